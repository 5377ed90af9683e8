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
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)
Decode = Literal["all", "last", "none"]


class Observation(TypedDict):
    """What a policy sees: one batch of camera image, proprioception and instruction."""

    image: Any  # (B, H, W, 3) uint8, tensor or array
    state: Any  # (B, S) float32, tensor or array
    instruction: Sequence[str]  # B strings


@dataclass
class Imagined:
    """What one call of `WorldModel.step` dreamt.

    Args:
        frames: `(B, K', H, W, 3)` uint8; K' is K with `decode="all"`, 1 with `"last"`, 0 with `"none"`.
        latents: `(B, K, C, h, w)` float32, clean latents of every imagined frame.
        states: `(B, K, S)` float32, imagined proprioception, in the units of the dataset's state.
        uncertainty: `(B,)` float32 >= 0, larger is less sure.
        success_prob: `(B, K)` float32 in [0, 1] for the state's instructions, or None.
    """

    frames: Tensor
    latents: Tensor
    states: Tensor
    uncertainty: Tensor
    success_prob: Tensor | None = None


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


@dataclass
class PolicyOutput:
    """An action chunk and what is needed to score it again.

    Args:
        actions: `(B, K, A)` float32 in [-1, 1].
        log_prob: `(B,)` float32, log-probability of the whole chunk under the sampling temperature.
        trace: what `log_prob_of` needs (for binned heads: `{"tokens": (B, K, A) int64}`).
        temperature: sampling temperature; 0 is greedy.
    """

    actions: Tensor
    log_prob: Tensor
    trace: dict[str, Tensor] = field(default_factory=dict)
    temperature: float = 1.0


@runtime_checkable
class WorldModel(Protocol):
    """An action-conditioned video model that can be stepped, copied and corrected."""

    image_size: int
    action_dim: int
    state_dim: int

    def begin(
        self,
        frames: Tensor,
        actions: Tensor,
        generator: torch.Generator | None = None,
        *,
        states: Tensor | None = None,
    ) -> Any:
        """Start from real `frames (B,Tc,H,W,3)` u8, `actions (B,Tc-1,A)`; `states (B,Tc,S)` is estimated when None."""
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


@runtime_checkable
class RewardModel(Protocol):
    """A judge: looks at video and instruction, says how likely the instruction is fulfilled."""

    name: str

    def score(self, frames: Tensor, instructions: Sequence[str]) -> Judgement:
        """Judge `frames (B,T,H,W,3)` u8 against B instructions."""
        ...


def judged(
    judge: Any,
    frames: Tensor,
    instructions: Sequence[str],
    states: Tensor | None,
    latents: Tensor | None = None,
) -> Judgement:
    """What `judge` says of `frames (B,T,H,W,3)` u8, told no more than it reads.

    One that has `reads_state` is told `states (B,S)`: proprioception is no privileged information, a robot knows where
    its hand is, and a world model imagines it; without them it says itself what is missing. One that has
    `reads_latents` is handed the world model's last `latents (B,C,h,w)` where there are some.
    """
    told: dict[str, Any] = {}
    if states is not None and getattr(judge, "reads_state", False):
        told["states"] = states
    if latents is not None and getattr(judge, "reads_latents", False):
        told["latents"] = latents
    verdict: Judgement = judge.score(frames, instructions, **told)
    return verdict


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


@runtime_checkable
class Policy(Protocol):
    """A policy that samples action chunks with exact log-probabilities."""

    chunk: int

    def act(
        self,
        observation: Observation,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> PolicyOutput:
        """Sample a chunk for each row; `temperature=0` is greedy."""
        ...

    def log_prob_of(self, observation: Observation, output: PolicyOutput) -> Tensor:
        """Differentiable `(B,)` log-probability of `output` under the current weights."""
        ...


@runtime_checkable
class Improver(Protocol):
    """An algorithm that updates a policy from rollouts and reports scalars."""

    def update(self, policy: Any, rollouts: Any) -> dict[str, float]:
        """Change `policy` in place."""
        ...
