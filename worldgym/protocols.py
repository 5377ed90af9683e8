"""Interfaces between the components: world models, judges, policies and improvers.

The components of worldgym use each other only through these small runtime-checkable protocols, so a research model
needs no base class. Letters in shapes: B batch, T frames, H W pixels, A action dimension, K chunk length,
S proprioception dimension. Images are uint8, channels last; actions are float32 in [-1, 1]; probabilities are float32
in [0, 1].

Example::

    from worldgym.protocols import WorldModel
    assert isinstance(my_model, WorldModel)
    state = my_model.begin(frames[:, :1], actions[:, :0], generator)
    state, imagined = my_model.step(state, chunk)
    imagined.frames.shape  # (B, K, H, W, 3)
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, runtime_checkable

from worldgym.judge_checks import check_accepts, check_inputs, check_verdict

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)
Decode = Literal["all", "last", "none"]
FrameCount = Literal["last", "episode"] | int
"""Frames that a judge reads: the last one, the last n, or all frames of the episode from the first observation on."""


class _RequiredKeys(TypedDict):
    image: Any  # (B, H, W, 3) uint8, tensor or array
    state: Any  # (B, S) float32, tensor or array
    instruction: Sequence[str]  # B strings


class Observation(_RequiredKeys, total=False):
    """One batch of inputs of a policy: camera image, proprioception, instruction, and optionally a condition."""

    condition: Any  # (B, F) float32, tensor or array: the additional input of a conditioned policy
    goal: Any  # (B, 2) float32: goals that exploration chose for a policy with goals, NaN where the policy chooses
    # Each further camera has the key image_<name> with (B, H', W', 3) uint8: see ObservationSpec.camera_keys.


@dataclass
class Imagined:
    """Prediction of one call of `WorldModel.step`.

    Args:
        frames: `(B, K', H, W, 3)` uint8, predicted frames of the main camera; K' is K with `decode="all"`, 1 with
            `"last"`, 0 with `"none"`.
        latents: `(B, L, C, h, w)` float32, clean latents of the last L predicted frames; L is K with `decode="all"`,
            else at least 1.
        states: `(B, K, S)` float32, predicted proprioception, in the units of the dataset's state.
        uncertainty: `(B,)` float32 >= 0; larger is more uncertain.
        success_prob: `(B, K)` float32 in [0, 1], success probability under the state's instructions, or None.
        views: frames of the other cameras, by camera name, each `(B, K', H', W', 3)` uint8.
        futures: other futures of the same episodes under the same actions, with the last frame only. Their judged
            probabilities give the uncertainty of the verdict (`worldgym.models.FutureEnsemble`).
    """

    frames: Tensor
    latents: Tensor
    states: Tensor
    uncertainty: Tensor
    success_prob: Tensor | None = None
    views: Mapping[str, Tensor] = field(default_factory=dict)
    futures: tuple[Imagined, ...] = ()


@dataclass
class Judgement:
    """A judge's verdict on B videos.

    Args:
        p_success: `(B,)` float32 in [0, 1], probability that the instruction is fulfilled at the last frame.
        progress: `(B, T)` float32 in [0, 1] or None.
        valid: `(B,)` bool; False where the judge failed. Such an episode is dropped, not scored as zero.
        raw: unprocessed output of the judge, one entry per video, for audits.
    """

    p_success: Tensor
    progress: Tensor | None
    valid: Tensor
    raw: list[Any] = field(default_factory=list)


Temperature = float | Mapping[str, float]
"""Sampling temperature, one for all components of a policy or one per component name; 0 is greedy."""


@dataclass
class PolicyOutput:
    """An action chunk, with the data to recompute its log-probability.

    Args:
        actions: `(B, K, A)` float32 in [-1, 1].
        log_probs: by component, such as `action` or `goal`: `(B, ...)` float32, the log-probability of each choice of
            the component at the sampling temperature. A single tensor is taken as that of `action`.
        trace: by name, `(B, ...)`: input of `TrainablePolicy.evaluate`; only the policy itself reads it.
        temperature: sampling temperature; 0 is greedy.
    """

    actions: Tensor
    log_probs: dict[str, Tensor]
    trace: dict[str, Tensor] = field(default_factory=dict)
    temperature: Temperature = 1.0

    def __post_init__(self) -> None:
        """Convert a single tensor of log-probabilities to `{"action": tensor}`."""
        if not isinstance(self.log_probs, Mapping):
            self.log_probs = {"action": self.log_probs}

    @property
    def log_prob(self) -> Tensor:
        """`(B,)` log-probability of the whole chunk: the sum over all choices of all components."""
        return total_log_prob(self.log_probs)


@dataclass
class Evaluation:
    """Log-probabilities and entropies of earlier choices under the current weights; differentiable.

    Args:
        log_probs: by component, with shapes as in `PolicyOutput`.
        entropies: by component, nats, with the shapes of `log_probs`.
    """

    log_probs: dict[str, Tensor]
    entropies: dict[str, Tensor]


def total_log_prob(log_probs: Mapping[str, Tensor]) -> Tensor:
    """`(B,)` sum over all choices of all components."""
    parts = [value.flatten(1).sum(1) if value.ndim > 1 else value for value in log_probs.values()]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


@runtime_checkable
class WorldModel(Protocol):
    """An action-conditioned video model with methods to step, copy and correct its state.

    Its attribute `specs: worldgym.specs.Specs` describes its predictions: cameras with their sizes, state fields with
    their roles, the meaning of actions. If it predicts several cameras, `begin` and `observe` also take the frames of
    the other cameras, `views={name: (B, Tc, H', W', 3)}` (without Tc for `observe`).
    """

    action_dim: int

    def begin(
        self,
        frames: Tensor,
        actions: Tensor,
        generator: torch.Generator | None = None,
        *,
        states: Tensor | None = None,
    ) -> Any:
        """Start from real `frames (B,Tc,H,W,3)` uint8 and `actions (B,Tc-1,A)`.

        `states (B,Tc,S)` is estimated when None. A model of several cameras also takes `views`.
        """
        ...

    def step(self, state: Any, actions: Tensor, *, decode: Decode = "all") -> tuple[Any, Imagined]:
        """Predict K frames for `actions (B,K,A)` in [-1, 1]; `state` itself is not changed."""
        ...

    def fork(self, state: Any, index: Tensor) -> Any:
        """Copy rows `index (B',)` into a new state; later steps of either state do not affect the other."""
        ...

    def merge(self, state: Any, rows: Tensor, other: Any) -> Any:
        """Return `state` with its rows `rows` replaced, in order, by all rows of `other` (per-slot resets)."""
        ...

    def observe(self, state: Any, frames: Tensor) -> Any:
        """Replace the last imagined frame in the model's context by the real `frames (B,H,W,3)` uint8."""
        ...


@dataclass(frozen=True)
class Reads:
    """Inputs that a judge needs.

    Args:
        frames: `"last"`, an integer n >= 1 for the last n frames, or `"episode"` for all frames from the first
            observation on. An episode of fewer than n frames is padded at the front with its first frame.
        state: proprioception `(B,S)` at the last frame, passed as `states`. It is not privileged information: a robot
            measures the pose of its gripper, and a world model predicts it.
        latents: the world model's clean latents `(B,C,h,w)` of the last frame, passed as `latents` if available.

    Raises:
        ValueError: `frames` has another value.
    """

    frames: FrameCount = "last"
    state: bool = False
    latents: bool = False

    def __post_init__(self) -> None:
        """Validate."""
        whole = isinstance(self.frames, int) and not isinstance(self.frames, bool)
        if not (whole and int(self.frames) >= 1) and self.frames not in ("last", "episode"):
            raise ValueError(
                f"a judge reads frames={self.frames!r}; expected 'last', 'episode' or a whole number >= 1"
            )

    @property
    def depth(self) -> int | None:
        """Number of frames; None for the whole episode."""
        return None if self.frames == "episode" else 1 if self.frames == "last" else int(self.frames)

    def __or__(self, other: Reads) -> Reads:
        """Inputs that suffice for both judges."""
        depths = (self.depth, other.depth)
        frames: FrameCount = "episode" if None in depths else max(depth or 1 for depth in depths)
        return Reads(
            "last" if frames == 1 else frames, self.state or other.state, self.latents or other.latents
        )


@runtime_checkable
class RewardModel(Protocol):
    """A judge: estimates from video and instruction the probability that the instruction is fulfilled.

    A judge that needs more than the last frame declares it in an attribute `reads: Reads`; without this attribute it
    gets the last frame only. The optional attribute `threshold: float` is the lowest probability that counts as
    success; the default is 0.5.
    """

    name: str

    def score(self, frames: Tensor, instructions: Sequence[str]) -> Judgement:
        """Score `frames (B,T,H,W,3)` uint8 under B instructions; also takes `states`, `latents` if it reads them."""
        ...


def reads_of(judge: Any) -> Reads:
    """The inputs that `judge` declares; the last frame if it declares none.

    Raises:
        TypeError: its attribute `reads` is not a `Reads`.
    """
    declared = getattr(judge, "reads", None)
    if isinstance(declared, Reads):
        return declared
    if declared is not None:
        raise TypeError(
            f"{type(judge).__name__}.reads is {declared!r}; expected worldgym.protocols.Reads(frames=..., state=...)"
        )
    state, latents = (bool(getattr(judge, f"reads_{name}", False)) for name in ("state", "latents"))
    if state or latents:
        warnings.warn(
            f"{type(judge).__name__} declares reads_state or reads_latents; declare "
            f"reads = worldgym.protocols.Reads(state={state}, latents={latents})",
            DeprecationWarning,
            stacklevel=2,
        )
    return Reads(state=state, latents=latents)


def uncertainty_kind(world_model: Any) -> str:
    """What the uncertainty of a world model is: `own`, `ensemble` (of predictions), or `verdicts`."""
    return str(getattr(world_model, "uncertainty_kind", "own"))


def threshold_of(judge: Any) -> float:
    """The lowest probability that `judge` counts as success: its `threshold`, or 0.5."""
    return float(getattr(judge, "threshold", 0.5))


def judged(
    judge: Any,
    frames: Tensor,
    instructions: Sequence[str],
    states: Tensor | None,
    latents: Tensor | None = None,
) -> Judgement:
    """Score `frames (B,T,H,W,3)` uint8 with `judge`, which gets only the inputs that it declares (`Reads`).

    Args:
        judge: a `RewardModel`.
        frames: all available frames in temporal order; the judge gets the part that it reads.
        instructions: B instructions.
        states: `(B,S)` proprioception at the last frame, or None.
        latents: `(B,C,h,w)` the world model's latents of the last frame, or None.
    """
    reads = reads_of(judge)
    wanted = {"states": states} if reads.state else {}
    if reads.latents:
        wanted["latents"] = latents
    given = {key: value for key, value in wanted.items() if value is not None}
    if len(given) < len(wanted):
        check_inputs(judge, [key for key in wanted if key not in given])
    try:
        verdict: Judgement = judge.score(last_frames(frames, reads.depth), instructions, **given)
    except TypeError:
        check_accepts(judge, given)  # says which argument is missing
        raise
    return verdict


def last_frames(frames: Tensor, depth: int | None) -> Tensor:
    """The last `depth` of `frames (B,T,H,W,3)`, padded at the front with the first frame; all frames if None."""
    if depth is None:
        return frames
    missing = depth - frames.shape[1]
    if missing <= 0:
        return frames[:, -depth:]
    import torch

    return torch.cat([frames[:, :1].expand(-1, missing, *frames.shape[2:]), frames], 1)


def settled(
    judge: Any,
    frames: Tensor,
    instructions: Sequence[str],
    states: Tensor | None,
    latents: Tensor | None = None,
) -> Judgement:
    """Call `judged` in a closed loop: a row without a verdict becomes invalid, and never counts as a failure.

    Invalid rows are: rows that the judge could not score, rows to which the judge does not apply (NaN), and all rows
    if the judge timed out or could not be reached.

    Returns:
        `p_success (B,)`, 0 where there is no verdict, and `valid (B,)` bool, on the judge's device.

    Raises:
        TypeError: the judge returned something else than a `Judgement`.
        ValueError: the judgement has another number of rows, or probabilities outside [0, 1].
        ConfigError: the judge needs latents or proprioception, and there are none.
        JudgeUnavailableError: the judge requests a pause.
    """
    import torch

    count, name = len(frames), getattr(judge, "name", type(judge).__name__)
    try:
        with torch.no_grad():
            verdict = judged(judge, frames, instructions, states, latents)
    except (TimeoutError, ConnectionError) as error:
        logger.warning("judge %s failed on %d episodes, which become invalid: %s", name, count, error)
        return Judgement(torch.zeros(count), None, torch.zeros(count, dtype=torch.bool), [str(error)] * count)
    p, valid = check_verdict(verdict, count, name)
    return Judgement(torch.where(valid, p, torch.zeros_like(p)), verdict.progress, valid, verdict.raw)


class ChunkBatch(TypedDict, total=False):
    """Demonstrated action chunks, for `TrainablePolicy.loss`; a policy ignores keys that it does not use."""

    observation: Observation
    actions: Any  # (B, K, A) float32 array or tensor, NaN where unknown
    goals: (
        Any  # (B, S) float32, next keyframe of the gripper in the units of proprioception, NaN where unknown
    )
    rng: Any  # numpy Generator, for noise that the policy adds to its inputs
    goal_noise: float  # standard deviation of the noise on goals, in standard deviations of proprioception
    future: Any  # agents.data.future.FutureFrames, later frames of the rows: for auxiliary losses, not for policies


@runtime_checkable
class Policy(Protocol):
    """A policy that outputs action chunks; sufficient for evaluation, audits and imagined rollouts."""

    chunk: int

    def act(
        self,
        observation: Observation,
        *,
        temperature: Temperature = 1.0,
        generator: torch.Generator | None = None,
    ) -> PolicyOutput:
        """Sample an action chunk for each row; `temperature=0` is greedy."""
        ...


@runtime_checkable
class TrainablePolicy(Policy, Protocol):
    """A policy that improvers can train, with exact log-probabilities of its choices.

    Policy-gradient algorithms need `evaluate`, supervised training needs `loss`, auxiliary losses need `features`.
    """

    def evaluate(
        self, observation: Observation, trace: Mapping[str, Tensor], components: Sequence[str] | None = None
    ) -> Evaluation:
        """Log-probabilities and entropies of choices of `act` under the current weights, at their sampling temperature.

        Args:
            observation: the input of `act`.
            trace: the `trace` of its `PolicyOutput`.
            components: components to evaluate; all when None.
        """
        ...

    def loss(self, batch: ChunkBatch, components: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Differentiable supervised losses by component, each a scalar."""
        ...

    def features(self, observation: Observation, layer: int = -1) -> Tensor:
        """`(B, N, D)` hidden tokens after transformer layer `layer` (0 is the first), for auxiliary losses."""
        ...


@runtime_checkable
class Improver(Protocol):
    """An algorithm that updates a policy from rollouts and returns scalar metrics."""

    def update(self, policy: Any, rollouts: Any) -> dict[str, float]:
        """Update `policy` in place and return scalar metrics by name."""
        ...
