"""The seams between the parts: world models, judges, policies and improvers.

Every part of worldgym talks to the others through these small runtime-checkable protocols, so a
research model drops in without inheriting anything. Letters in shapes: B batch, T frames,
H W pixels, A action dimension, K chunk length, S proprioception dimension. Images are uint8,
channels last; actions are float32 in [-1, 1]; probabilities are float32 in [0, 1].

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

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)
Decode = Literal["all", "last", "none"]
FrameCount = Literal["last", "episode"] | int
"""Frames that a judge reads: the last one, the last n, or all since the first observation of the episode."""


class _Seen(TypedDict):
    image: Any  # (B, H, W, 3) uint8, tensor or array
    state: Any  # (B, S) float32, tensor or array
    instruction: Sequence[str]  # B strings


class Observation(_Seen, total=False):
    """What a policy sees: one batch of camera image, proprioception and instruction, and maybe a condition."""

    condition: Any  # (B, F) float32, tensor or array: what else a conditioned policy is asked for
    # Cameras beside the main one are further keys, image_<name> (B, H', W', 3) uint8: ObservationSpec.camera_keys.


@dataclass
class Imagined:
    """What one call of `WorldModel.step` imagined.

    Args:
        frames: `(B, K', H, W, 3)` uint8 of the main camera; K' is K with `decode="all"`, 1 with `"last"`, 0 with
            `"none"`.
        latents: `(B, K, C, h, w)` float32, clean latents of every imagined frame.
        states: `(B, K, S)` float32, imagined proprioception, in the units of the dataset's state.
        uncertainty: `(B,)` float32 >= 0, larger is less sure.
        success_prob: `(B, K)` float32 in [0, 1] for the state's instructions, or None.
        views: frames of the other cameras, by camera name, each `(B, K', H', W', 3)` uint8.
    """

    frames: Tensor
    latents: Tensor
    states: Tensor
    uncertainty: Tensor
    success_prob: Tensor | None = None
    views: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class Judgement:
    """A judge's verdict on B videos.

    Args:
        p_success: `(B,)` float32 in [0, 1], probability that the instruction is fulfilled at the last frame.
        progress: `(B, T)` float32 in [0, 1] or None.
        valid: `(B,)` bool; False where the judge failed. Such an episode is dropped, never scored zero.
        raw: whatever the judge said, one entry a video, for audits.
    """

    p_success: Tensor
    progress: Tensor | None
    valid: Tensor
    raw: list[Any] = field(default_factory=list)


Temperature = float | Mapping[str, float]
"""Of all components of a policy, or of each by name; 0 is greedy."""


@dataclass
class PolicyOutput:
    """An action chunk, and what is needed to score it again.

    Args:
        actions: `(B, K, A)` float32 in [-1, 1].
        log_probs: by component, such as `action` or `goal`: `(B, ...)` float32, the log-probability of each of its
            choices under the sampling temperature. A tensor alone is that of `action`.
        trace: by name, `(B, ...)`: what `TrainablePolicy.evaluate` needs; nobody but the policy reads it.
        temperature: sampling temperature; 0 is greedy.
    """

    actions: Tensor
    log_probs: dict[str, Tensor]
    trace: dict[str, Tensor] = field(default_factory=dict)
    temperature: Temperature = 1.0

    def __post_init__(self) -> None:
        """Accept the log-probabilities of actions alone."""
        if not isinstance(self.log_probs, Mapping):
            self.log_probs = {"action": self.log_probs}

    @property
    def log_prob(self) -> Tensor:
        """`(B,)` log-probability of the whole chunk: the sum over all choices of all components."""
        return total_log_prob(self.log_probs)


@dataclass
class Evaluation:
    """What a policy thinks now of choices that were made before; differentiable.

    Args:
        log_probs: by component, shaped as in `PolicyOutput`.
        entropies: by component, nats, shaped as `log_probs`.
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
    """An action-conditioned video model that can be stepped, copied and corrected.

    It says what it imagines in an attribute `specs: worldgym.specs.Specs`: cameras with their sizes, state fields with
    their roles, the meaning of actions. Where it imagines more than one camera, `begin` and `observe` are also given
    the other cameras' frames, `views={name: (B, Tc, H', W', 3)}` (without Tc for `observe`).
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
        """Start from real `frames (B,Tc,H,W,3)` u8, `actions (B,Tc-1,A)`; `states (B,Tc,S)` is estimated when None.

        A model of several cameras also takes `views`.
        """
        ...

    def step(self, state: Any, actions: Tensor, *, decode: Decode = "all") -> tuple[Any, Imagined]:
        """Imagine K frames for `actions (B,K,A)` in [-1, 1]; the given state is not changed."""
        ...

    def fork(self, state: Any, index: Tensor) -> Any:
        """Copy rows `index (B',)` into a new imagined state; later steps of either leave the other alone."""
        ...

    def merge(self, state: Any, rows: Tensor, other: Any) -> Any:
        """`state` with its rows `rows` replaced, in order, by all rows of `other` (per-slot resets)."""
        ...

    def observe(self, state: Any, frames: Tensor) -> Any:
        """Overwrite the imagined memory's last frame by `frames (B,H,W,3)` u8 that were really seen."""
        ...


@dataclass(frozen=True)
class Reads:
    """What a judge must be given.

    Args:
        frames: `"last"`, an integer n >= 1 for the last n frames, or `"episode"` for all frames since the first
            observation. An episode of fewer than n frames is padded at the front with its first frame.
        state: proprioception `(B,S)` at the last frame, passed as `states`. It is no privileged information: a robot
            knows where its hand is, and a world model imagines it.
        latents: the world model's clean latents `(B,C,h,w)` of the last frame, passed as `latents` where there are any.

    Raises:
        ValueError: another value of `frames`.
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
        """What both together must be given."""
        depths = (self.depth, other.depth)
        frames: FrameCount = "episode" if None in depths else max(depth or 1 for depth in depths)
        return Reads("last" if frames == 1 else frames, self.state or other.state, self.latents or other.latents)


@runtime_checkable
class RewardModel(Protocol):
    """A judge: looks at video and instruction, says how likely the instruction is fulfilled.

    A judge that needs more than the last frame declares it in an attribute `reads: Reads`; without one it is shown the
    last frame alone. An optional `threshold: float` is the probability that it counts as success, 0.5 without one.
    """

    name: str

    def score(self, frames: Tensor, instructions: Sequence[str]) -> Judgement:
        """Judge `frames (B,T,H,W,3)` u8 against B instructions; also `states`, `latents` where it reads them."""
        ...


def reads_of(judge: Any) -> Reads:
    """What `judge` declares to read; the last frame where it declares nothing.

    Raises:
        TypeError: its `reads` is no `Reads`.
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


def threshold_of(judge: Any) -> float:
    """Probability that `judge` counts as success: its `threshold`, or 0.5."""
    return float(getattr(judge, "threshold", 0.5))


def judged(
    judge: Any,
    frames: Tensor,
    instructions: Sequence[str],
    states: Tensor | None,
    latents: Tensor | None = None,
) -> Judgement:
    """What `judge` says of `frames (B,T,H,W,3)` u8, given no more than it reads (`Reads`).

    Args:
        judge: obeys `RewardModel`.
        frames: all that there is, the last one last; the judge is shown those that it reads.
        instructions: B of them.
        states: `(B,S)` proprioception at the last frame, or None.
        latents: `(B,C,h,w)` the world model's last latents, or None.
    """
    reads = reads_of(judge)
    given: dict[str, Any] = {}
    if states is not None and reads.state:
        given["states"] = states
    if latents is not None and reads.latents:
        given["latents"] = latents
    verdict: Judgement = judge.score(last_frames(frames, reads.depth), instructions, **given)
    return verdict


def last_frames(frames: Tensor, depth: int | None) -> Tensor:
    """The last `depth` of `frames (B,T,H,W,3)`, padded at the front with the first one; all of them when None."""
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
    """`judged` for a closed loop: a row without a verdict is invalid, whatever the reason, and never a failure.

    Invalid are rows that the judge could not judge, rows to which it does not apply (NaN), and all rows when it timed
    out or could not be reached.

    Returns:
        `p_success (B,)`, 0 where there is no verdict, and `valid (B,)` bool, on the judge's device.

    Raises:
        ValueError: the judgement has another number of rows.
        JudgeUnavailableError: the judge asks for a pause.
    """
    import torch

    count, name = len(frames), getattr(judge, "name", type(judge).__name__)
    try:
        with torch.no_grad():
            verdict = judged(judge, frames, instructions, states, latents)
    except (TimeoutError, ConnectionError) as error:
        logger.warning("judge %s failed on %d episodes, which become invalid: %s", name, count, error)
        return Judgement(torch.zeros(count), None, torch.zeros(count, dtype=torch.bool), [str(error)] * count)
    p, valid = torch.as_tensor(verdict.p_success).detach(), torch.as_tensor(verdict.valid).detach().bool()
    if tuple(p.shape) != (count,) or tuple(valid.shape) != (count,):
        raise ValueError(
            f"judge {name} gave p_success {tuple(p.shape)}, valid {tuple(valid.shape)}; expected ({count},) each"
        )
    valid = valid.to(p.device) & torch.isfinite(p)
    return Judgement(torch.where(valid, p, torch.zeros_like(p)), verdict.progress, valid, verdict.raw)


class ChunkBatch(TypedDict, total=False):
    """Demonstrated action chunks, for `TrainablePolicy.loss`; a policy leaves aside what it does not know."""

    observation: Observation
    actions: Any  # (B, K, A) float32 array or tensor, NaN where unknown
    goals: Any  # (B, S) float32, the hand's next keyframe in the units of proprioception, NaN where unknown
    rng: Any  # numpy Generator, for noise that the policy adds to its own inputs
    goal_noise: float  # standard deviation of the noise on goals, in spreads of proprioception


@runtime_checkable
class Policy(Protocol):
    """A policy that acts in chunks: enough to be evaluated, audited, and run in imagination."""

    chunk: int

    def act(
        self,
        observation: Observation,
        *,
        temperature: Temperature = 1.0,
        generator: torch.Generator | None = None,
    ) -> PolicyOutput:
        """Sample a chunk for each row; `temperature=0` is greedy."""
        ...


@runtime_checkable
class TrainablePolicy(Policy, Protocol):
    """A policy that improvers can change, with exact log-probabilities of its choices.

    Policy-gradient algorithms need `evaluate`, supervised training `loss`, auxiliary losses `features`.
    """

    def evaluate(
        self, observation: Observation, trace: Mapping[str, Tensor], components: Sequence[str] | None = None
    ) -> Evaluation:
        """What the current weights think of a trace of `act`, at the temperature at which it was sampled.

        Args:
            observation: what `act` saw.
            trace: of its output.
            components: those that are wanted; all when None.
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
    """An algorithm that updates a policy from rollouts and reports scalars."""

    def update(self, policy: Any, rollouts: Any) -> dict[str, float]:
        """Change `policy` in place."""
        ...
