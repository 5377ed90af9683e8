"""Closed-loop imagined rollouts: a policy acts on predicted frames until the judge detects success or the horizon ends.

RL in imagination, the closed-loop gate, audits of judges, claims and refresh collection use this loop with different
observers. The Gymnasium environment uses the same `ImaginedEpisodes`, stepped by the user.

Example::

    result = run_policy(policy, model, judge, {"image": images, "state": states, "instruction": texts}, horizon=40)
    result.success, result.invalid, result.actions[0].shape     # (B,) bool, (B,) bool, (T, A)

    episodes = ImaginedEpisodes.begin(model, judge, Rules(horizon=40, judge_every=1), images, states, texts)
    rollout(lambda observation, rows: policy.act(observation), episodes, observers=[FrameRecorder(len(episodes))])
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldgym.imagination.episodes import ImaginedEpisodes, ImaginedStep, views_of
from worldgym.imagination.observations import state_of
from worldgym.imagination.policy_output import check_output
from worldgym.imagination.rules import Flags, Rules
from worldgym.protocols import Decode, Observation, PolicyOutput, threshold_of
from worldgym.specs import check_fit

Act = Callable[[Observation, NDArray[np.int64]], PolicyOutput]
"""Chooses chunks `(B,K,A)` for an observation of B rows; the second argument `(B,)` is the episode of each row."""


@dataclass(frozen=True)
class Decision:
    """One action chunk of every episode that is still in the batch, and its result.

    Args:
        number: number of decisions before this one.
        rows: `(B,)` int64, the episode of each row of the batch.
        live: `(B,)` bool, rows that were still running; the others are finished and not yet removed from the batch.
        observation: observation given to the policy.
        output: output of the policy.
        actions: `(B,K,A)` of that output, in [-1, 1], as imagined: the last chunk is cut at the horizon.
        step: predicted frames and judgements.
    """

    number: int
    rows: NDArray[np.int64]
    live: Flags
    observation: Observation
    output: PolicyOutput
    actions: Tensor
    step: ImaginedStep


class Observer(Protocol):
    """Callback of a rollout that records what it needs."""

    decode: Decode  # "all" if it needs every imagined frame, else "last"

    def begin(self, episodes: ImaginedEpisodes) -> None:
        """Called before the first decision."""
        ...

    def __call__(self, decision: Decision) -> None:
        """Called after each decision."""
        ...


@dataclass(frozen=True)
class RolloutResult:
    """Results of N imagined episodes.

    Args:
        success: `(N,)` bool, judged successful.
        invalid: `(N,)` bool, not successful, and either the judgement was invalid or the world model too uncertain.
            Such an episode is dropped, never counted as a failure.
        uncertainty: `(N,)` float64, largest uncertainty up to the end of the episode.
        frames: total number of imagined frames, including finished rows that were still in the batch.
        seconds: wall time of `imagine`, `judge` and `policy`.
    """

    success: Flags
    invalid: Flags
    uncertainty: NDArray[np.float64]
    frames: int
    seconds: dict[str, float]


@torch.no_grad()
def rollout(
    act: Act,
    episodes: ImaginedEpisodes,
    *,
    observers: Sequence[Observer] = (),
    compact_below: float = 1.0,
    policy: Any = None,
    stored: bool = False,
) -> RolloutResult:
    """Run a policy in all episodes until each one ends by its rules.

    Args:
        act: the policy; its actions are clipped to [-1, 1].
        episodes: the episodes at their start; they are modified.
        observers: called after each decision, in order.
        compact_below: finished rows are removed from the batch when the fraction of running rows falls below this; 0
            keeps the batch shape static, which suits `torch.compile`.
        policy: the policy behind `act`, for its name in messages and its declared chunk length; None takes `act`.
        stored: the outputs become training data, so their log-probabilities and traces are checked too.

    Raises:
        ConfigError: the policy's output has a wrong type or shape, or is NaN or infinite.
    """
    policy = act if policy is None else policy
    rows = np.arange(len(episodes))
    success, invalid = np.zeros(len(episodes), np.bool_), np.zeros(len(episodes), np.bool_)
    uncertainty = np.zeros(len(episodes))
    decode: Decode = "all" if any(observer.decode == "all" for observer in observers) else "last"
    for observer in observers:
        observer.begin(episodes)
    frames = number = 0
    in_policy = 0.0
    while not episodes.slots.over.all():
        live = ~episodes.slots.over
        if live.mean() < compact_below:
            running = np.flatnonzero(live)
            episodes, rows, live = episodes.take(running), rows[running], live[running]
        began = time.perf_counter()
        observation = episodes.observation()
        output = check_output(
            act(observation, rows),
            policy,
            observation,
            action_dim=episodes.world_model.action_dim,
            chunk=getattr(policy, "chunk", None),
            live=live,
            stored=stored,
        )
        left = episodes.rules.horizon - int(episodes.slots.elapsed[live].max())
        actions = output.actions[:, :left].clamp(-1, 1)
        in_policy += time.perf_counter() - began
        step = episodes.step(actions, moving=live, decode=decode)
        frames += actions.shape[0] * actions.shape[1]
        decision = Decision(number, rows, live, observation, output, actions, step)
        for observer in observers:
            observer(decision)
        success[rows[live]] |= step.outcome.success[live]
        invalid[rows[live]] |= ((~step.valid | step.hallucination) & ~step.outcome.success)[live]
        uncertainty[rows[live]] = np.maximum(uncertainty[rows[live]], step.uncertainty[live])
        episodes.slots.over |= step.outcome.over
        number += 1
    return RolloutResult(success, invalid, uncertainty, frames, {**episodes.seconds, "policy": in_policy})


class ActionRecorder:
    """Records the actions of every episode, up to its end.

    Args:
        count: number of episodes.
    """

    decode: Decode = "last"

    def __init__(self, count: int) -> None:
        self._parts: list[list[NDArray[np.float32]]] = [[] for _ in range(count)]

    def begin(self, episodes: ImaginedEpisodes) -> None:
        """Called before the first decision; there is nothing to record."""

    def __call__(self, decision: Decision) -> None:
        """Record the chunk of each running episode."""
        actions = decision.actions.float().cpu().numpy()
        for row in np.flatnonzero(decision.live):
            self._parts[decision.rows[row]].append(actions[row])

    @property
    def actions(self) -> list[NDArray[np.float32]]:
        """Recorded actions, N arrays `(T, A)`."""
        return [np.concatenate(parts) for parts in self._parts]


class FrameRecorder:
    """Records every frame of every episode, including the first observation, up to its end.

    Args:
        count: number of episodes.
    """

    decode: Decode = "all"

    def __init__(self, count: int) -> None:
        self._parts: list[list[NDArray[np.uint8]]] = [[] for _ in range(count)]

    def begin(self, episodes: ImaginedEpisodes) -> None:
        """Record the first observations."""
        for parts, image in zip(self._parts, episodes.image.cpu().numpy(), strict=True):
            parts.append(image[None])

    def __call__(self, decision: Decision) -> None:
        """Record the imagined frames of each running episode."""
        frames = decision.step.imagined.frames.cpu().numpy()
        for row in np.flatnonzero(decision.live):
            self._parts[decision.rows[row]].append(frames[row])

    @property
    def frames(self) -> list[NDArray[np.uint8]]:
        """Recorded frames, N arrays `(T+1, H, W, 3)`."""
        return [np.concatenate(parts) for parts in self._parts]


@dataclass(frozen=True)
class ImaginedRollout:
    """Actions, results and frames of a policy in imagined episodes from B starts.

    Args:
        actions: B arrays `(T_b, A)` float32, up to the imagined end.
        success: `(B,)` bool.
        invalid: `(B,)` bool, see `RolloutResult`.
        frames: B arrays `(T_b+1, H, W, 3)` uint8 when recorded, else None.
        steps: total number of imagined frames.
        uncertainty: `(B,)` float64, see `RolloutResult`.
    """

    actions: list[NDArray[np.float32]]
    success: Flags
    invalid: Flags
    frames: list[NDArray[np.uint8]] | None
    steps: int
    uncertainty: NDArray[np.float64]


def run_policy(
    policy: Any,
    world_model: Any,
    judge: Any,
    observation: Mapping[str, Any],
    *,
    horizon: int = 40,
    temperature: float = 0.0,
    threshold: float | None = None,
    confirm: int = 1,
    max_uncertainty: float | None = None,
    generator: torch.Generator | None = None,
    record: bool = False,
    observers: Sequence[Observer] = (),
) -> ImaginedRollout:
    """Run a policy on imagined frames until the judge detects success at the end of a chunk, or the horizon ends.

    Args:
        policy: implements `worldgym.protocols.Policy`. A policy with a method `prepare` also gets `observation["row"]`,
            `(B,)` int64, the start of each row.
        world_model: implements `worldgym.protocols.WorldModel`.
        judge: implements `worldgym.protocols.RewardModel`, or None: no episode ends before the horizon.
        observation: real start observations: "image" `(B,H,W,3)` uint8, "state" `(B,S)`, "instruction" B strings, and
            "image_<name>" of each further camera of the world model.
        horizon: environment steps.
        temperature: sampling temperature; 0 is greedy.
        threshold: success is `p_success >= threshold`; the judge's own `threshold`, else 0.5, when None.
        confirm: number of successive chunk ends that must be judged successful.
        max_uncertainty: an episode whose model uncertainty exceeds this before a success is invalid, as in imagined RL.
        generator: torch generator of policy and world model.
        record: record every imagined frame, which requires decoding all of them.
        observers: further observers of the rollout.

    Raises:
        ConfigError: policy, judge and world model do not fit each other, or the policy's actions have a wrong shape or
            are NaN or infinite.
    """
    check_fit(world_model, policy, "the world model", "the policy")
    limit = threshold_of(judge) if threshold is None else threshold
    rules = Rules(horizon, None, 1, limit, uncertainty_bound=max_uncertainty, confirm=confirm)
    texts = list(observation["instruction"])
    episodes = ImaginedEpisodes.begin(
        world_model,
        judge,
        rules,
        observation["image"],
        state_of(observation),
        texts,
        generator=generator,
        views=views_of(world_model, observation),
    )

    def act(current: Observation, rows: NDArray[np.int64]) -> PolicyOutput:
        shown: Any = {**current, "row": torch.from_numpy(rows)} if hasattr(policy, "prepare") else current
        output: PolicyOutput = policy.act(shown, temperature=temperature, generator=generator)
        return output

    actions = ActionRecorder(len(texts))
    frame_recorder = FrameRecorder(len(texts)) if record else None
    result = rollout(
        act,
        episodes,
        observers=[actions, *([] if frame_recorder is None else [frame_recorder]), *observers],
        policy=policy,
    )
    frames = None if frame_recorder is None else frame_recorder.frames
    return ImaginedRollout(
        actions.actions, result.success, result.invalid, frames, result.frames, result.uncertainty
    )
