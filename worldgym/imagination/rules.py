"""Rules of imagined episodes: when frames are judged, the reward, and what ends an episode. No model, no pixels.

Reward, success, horizon, hallucination and invalid judgements interact in every step of every slot. They are separate
from the tensor code so that they can be read and tested on their own.

Example::

    from worldgym.imagination.rules import Rules
    rules = Rules(horizon=40, judge_every=5)
    judged, hallucination = rules.due(slots, moving, uncertainty)
    outcome = rules.settle(slots, moving, judged, hallucination, p, valid)
    outcome.reward, outcome.terminated, outcome.truncated
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from worldgym.imagination.slots import Slots

RewardKind = Literal["success", "difference", "potential"]
REWARD_KINDS = ("success", "difference", "potential")
BOUND = 8.0  # clip of the log odds; beyond it, a judge's probability carries no information about the distance
Flags = NDArray[np.bool_]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """Result of a step, one entry per slot; `sound` marks a valid judgement, `over` an ended episode."""

    reward: Numbers
    success: Flags
    terminated: Flags
    truncated: Flags
    sound: Flags

    @property
    def over(self) -> Flags:
        """Episodes that terminated or were truncated."""
        return self.terminated | self.truncated


@dataclass(frozen=True)
class Rules:
    """How episodes are judged and ended; see `WorldModelVectorEnv` for the meaning of each field.

    `judge_every=1` judges at the end of every step; a chunk counts as one step.

    Raises:
        ValueError: an impossible setting.
    """

    horizon: int = 40
    chunk: int | None = None
    judge_every: int = 5
    success_threshold: float = 0.5
    reward_kind: RewardKind = "success"
    terminate_on_success: bool = True
    uncertainty_bound: float | None = None
    discount: float = 0.99
    confirm: int = 1
    penalty: float = 0.0

    def __post_init__(self) -> None:
        if self.judge_every < 1 or self.confirm < 1 or (self.chunk is not None and self.chunk < 1):
            raise ValueError(
                f"judge_every={self.judge_every}, confirm={self.confirm}, chunk={self.chunk}; expected whole numbers "
                ">= 1"
            )
        if self.horizon < 1 or self.horizon % (self.chunk or 1):
            raise ValueError(
                f"horizon={self.horizon} with chunk={self.chunk}; expected a positive multiple of the chunk"
            )
        if not self.success_threshold > 0.0:  # a threshold above 1 means that nothing counts as success
            raise ValueError(f"success_threshold={self.success_threshold}; expected a probability in (0, 1]")
        if self.reward_kind not in REWARD_KINDS:
            raise ValueError(
                f"reward_kind={self.reward_kind!r}; expected one of {', '.join(map(repr, REWARD_KINDS))}"
            )
        if not 0.0 <= self.penalty < np.inf:
            raise ValueError(f"penalty={self.penalty}; expected a weight of the uncertainty, at least 0")
        if not 0.0 < self.discount <= 1.0:
            raise ValueError(f"discount={self.discount}; expected the learner's discount, in (0, 1]")

    @property
    def needs_baseline(self) -> bool:
        """Whether rewards are differences, so that an episode's first frame must be judged too."""
        return self.reward_kind != "success"

    def due(self, slots: Slots, moving: Flags, uncertainty: Numbers) -> tuple[Flags, Flags]:
        """Slots to judge now, and slots whose predicted frames are too uncertain to be judged."""
        bound = np.inf if self.uncertainty_bound is None else self.uncertainty_bound
        hallucination = moving & ~(uncertainty <= bound)  # NaN counts as too uncertain
        ending = slots.elapsed >= self.horizon
        return moving & ~hallucination & ((slots.unjudged >= self.judge_every) | ending), hallucination

    def settle(
        self, slots: Slots, moving: Flags, judged: Flags, hallucination: Flags, p: Numbers, valid: Flags,
        uncertainty: Numbers | None = None,
    ) -> Outcome:  # fmt: skip
        """Turn the judgements `p`, `valid` of the slots `judged` into rewards and end flags, and update `slots`.

        An invalid judgement truncates its episode with a placeholder reward of 0; such an episode must be dropped. At
        judged frames, `penalty` times the uncertainty is subtracted from the reward.
        """
        sound = judged & valid
        hit = sound & (p.astype(np.float32) >= np.float32(self.success_threshold))  # judges return float32
        slots.streak[judged] = np.where(hit, slots.streak + 1, 0)[judged]
        success = hit & (slots.streak >= self.confirm)
        first = (success & ~slots.success_once).astype(np.float64)
        before = np.nan_to_num(slots.last_p)
        if self.reward_kind == "success":
            reward = first
        elif self.reward_kind == "difference":
            reward = np.where(sound, p - before, 0.0)
        else:
            reward = first + np.where(sound, self.discount * potential(p) - potential(before), 0.0)
        if self.penalty and uncertainty is not None:
            reward = reward - self.penalty * np.where(sound, uncertainty, 0.0)
        slots.unjudged[judged] = 0
        slots.last_p[sound] = p[sound]
        slots.success_once |= success
        slots.returned += reward
        terminated = success & self.terminate_on_success
        ended = (slots.elapsed >= self.horizon) | hallucination | (judged & ~valid)
        return Outcome(reward, success, terminated, moving & ~terminated & ended, sound)


def potential(p: Numbers) -> Numbers:
    """Closeness of a state to success from its judged probability: bounded log odds, scaled to [-0.5, 0.5].

    Adding `discount * potential(after) - potential(before)` to the success reward keeps the optimal policy optimal (Ng,
    Harada, Russell 1999, theorem 1). Log odds are used because the probability is about 0.001 both near the goal and
    far from it.
    """
    bounded = np.clip(p, 1 / (1 + np.exp(BOUND)), 1 / (1 + np.exp(-BOUND)))
    return np.asarray(np.log(bounded / (1 - bounded)) / (2 * BOUND), np.float64)
