"""The closed loop of imagination: a policy acts on imagined frames until a judge sees success or the horizon ends.

Imagined RL, the closed-loop gate, audits of judges, claims and refresh collection are this loop with other observers.
The Gymnasium environment is the same `ImaginedEpisodes`, stepped by its user.

Example::

    result = run_policy(policy, model, judge, {"image": images, "state": states, "instruction": texts}, horizon=40)
    result.success, result.invalid, result.actions[0].shape     # (B,) bool, (B,) bool, (T, A)

    episodes = ImaginedEpisodes.begin(model, judge, Rules(horizon=40, judge_every=1), images, states, texts)
    rollout(lambda seen, rows: policy.act(seen), episodes, observers=[FrameRecorder(len(episodes))])
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
from worldgym.imagination.rules import Flags, Rules
from worldgym.protocols import Decode, Observation, PolicyOutput, threshold_of

Act = Callable[[Observation, NDArray[np.int64]], PolicyOutput]
"""Chooses chunks `(B,K,A)` for an observation of B rows; the second argument `(B,)` says which episode each row is."""


@dataclass(frozen=True)
class Decision:
    """One action chunk of every episode that is still in the batch, and what came of it.

    Args:
        number: decisions before this one.
        rows: `(B,)` int64, the episode that each row of the batch is.
        live: `(B,)` bool, rows that were still running; the others only wait to be dropped from the batch.
        observation: what the policy saw.
        output: what it answered.
        actions: `(B,K,A)` of that, in [-1, 1], as imagined: the last chunk is cut at the horizon.
        step: what was imagined and judged.
    """

    number: int
    rows: NDArray[np.int64]
    live: Flags
    observation: Observation
    output: PolicyOutput
    actions: Tensor
    step: ImaginedStep


class Observer(Protocol):
    """Looks on, and keeps what it wants."""

    decode: Decode  # "all" if it needs every imagined frame, else "last"

    def begin(self, episodes: ImaginedEpisodes) -> None:
        """Before the first decision."""
        ...

    def __call__(self, decision: Decision) -> None:
        """After each decision."""
        ...


@dataclass(frozen=True)
class RolloutResult:
    """How N imagined episodes ended.

    Args:
        success: `(N,)` bool, judged successful.
        invalid: `(N,)` bool, not successful, and the judge gave no verdict or the world model was too uncertain.
            Such an episode is dropped, never counted as a failure.
        frames: imagined in all, rows that only waited included.
        seconds: wall time of `imagine`, `judge` and `policy`.
    """

    success: Flags
    invalid: Flags
    frames: int
    seconds: dict[str, float]


@torch.no_grad()
def rollout(
    act: Act, episodes: ImaginedEpisodes, *, observers: Sequence[Observer] = (), compact_below: float = 1.0
) -> RolloutResult:
    """Let a policy act in all episodes until each is over by its rules.

    Args:
        act: the policy; its actions are clipped to [-1, 1].
        episodes: as they begin; they are changed.
        observers: called after each decision, in order.
        compact_below: finished rows are dropped from the batch when the share of running ones falls below this; 0 keeps
            a static batch shape, which `torch.compile` likes.
    """
    rows = np.arange(len(episodes))
    success, invalid = np.zeros(len(episodes), np.bool_), np.zeros(len(episodes), np.bool_)
    decode: Decode = "all" if any(observer.decode == "all" for observer in observers) else "last"
    for observer in observers:
        observer.begin(episodes)
    frames = number = 0
    in_policy = 0.0
    while not episodes.slots.over.all():
        live = ~episodes.slots.over
        if live.mean() < compact_below:
            kept = np.flatnonzero(live)
            episodes, rows, live = episodes.take(kept), rows[kept], live[kept]
        began = time.perf_counter()
        observation = episodes.observation()
        output = act(observation, rows)
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
        episodes.slots.over |= step.outcome.over
        number += 1
    return RolloutResult(success, invalid, frames, {**episodes.seconds, "policy": in_policy})


class ActionRecorder:
    """Keeps the actions of every episode, up to its end.

    Args:
        count: number of episodes.
    """

    decode: Decode = "last"

    def __init__(self, count: int) -> None:
        self._parts: list[list[NDArray[np.float32]]] = [[] for _ in range(count)]

    def begin(self, episodes: ImaginedEpisodes) -> None:
        """Nothing has been done yet."""

    def __call__(self, decision: Decision) -> None:
        """Keep a chunk of each running episode."""
        actions = decision.actions.float().cpu().numpy()
        for row in np.flatnonzero(decision.live):
            self._parts[decision.rows[row]].append(actions[row])

    @property
    def actions(self) -> list[NDArray[np.float32]]:
        """N arrays `(T, A)`."""
        return [np.concatenate(parts) for parts in self._parts]


class FrameRecorder:
    """Keeps every frame of every episode, the first observation included, up to its end.

    Args:
        count: number of episodes.
    """

    decode: Decode = "all"

    def __init__(self, count: int) -> None:
        self._parts: list[list[NDArray[np.uint8]]] = [[] for _ in range(count)]

    def begin(self, episodes: ImaginedEpisodes) -> None:
        """Keep the first observations."""
        for parts, image in zip(self._parts, episodes.image.cpu().numpy(), strict=True):
            parts.append(image[None])

    def __call__(self, decision: Decision) -> None:
        """Keep the imagined frames of each running episode."""
        frames = decision.step.imagined.frames.cpu().numpy()
        for row in np.flatnonzero(decision.live):
            self._parts[decision.rows[row]].append(frames[row])

    @property
    def frames(self) -> list[NDArray[np.uint8]]:
        """N arrays `(T+1, H, W, 3)`."""
        return [np.concatenate(parts) for parts in self._parts]


@dataclass(frozen=True)
class ImaginedRollout:
    """What a policy did on imagined frames from B starts.

    Args:
        actions: B arrays `(T_b, A)` float32, up to the imagined end.
        success: `(B,)` bool.
        invalid: `(B,)` bool, see `RolloutResult`.
        frames: B arrays `(T_b+1, H, W, 3)` uint8 when recorded, else None.
        steps: imagined frames in all.
    """

    actions: list[NDArray[np.float32]]
    success: Flags
    invalid: Flags
    frames: list[NDArray[np.uint8]] | None
    steps: int


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
) -> ImaginedRollout:
    """Let a policy act on imagined frames until the judge sees success at the end of a chunk, or the horizon ends.

    Args:
        policy: obeys `worldgym.protocols.Policy`. One with a method `prepare` also gets `observation["row"]`, `(B,)`
            int64, the start that each row is.
        world_model: obeys `worldgym.protocols.WorldModel`.
        judge: obeys `worldgym.protocols.RewardModel`, or None: nothing ends before the horizon.
        observation: true starts: "image" `(B,H,W,3)` uint8, "state" `(B,S)`, "instruction" B strings, and
            "image_<name>" of each further camera of the world model.
        horizon: environment steps.
        temperature: sampling temperature; 0 is greedy.
        threshold: success is `p_success >= threshold`; the judge's own `threshold`, else 0.5, when None.
        confirm: successive chunk ends that must be judged successful.
        max_uncertainty: an episode whose model uncertainty exceeds it before a success is invalid, as in imagined RL.
        generator: torch generator of policy and world model.
        record: keep every imagined frame (costs decoding all of them).
    """
    limit = threshold_of(judge) if threshold is None else threshold
    rules = Rules(horizon, None, 1, limit, uncertainty_bound=max_uncertainty, confirm=confirm)
    texts = list(observation["instruction"])
    episodes = ImaginedEpisodes.begin(
        world_model,
        judge,
        rules,
        observation["image"],
        observation["state"],
        texts,
        generator=generator,
        views=views_of(world_model, observation),
    )

    def act(seen: Observation, rows: NDArray[np.int64]) -> PolicyOutput:
        shown: Any = {**seen, "row": torch.from_numpy(rows)} if hasattr(policy, "prepare") else seen
        output: PolicyOutput = policy.act(shown, temperature=temperature, generator=generator)
        return output

    did = ActionRecorder(len(texts))
    film = FrameRecorder(len(texts)) if record else None
    result = rollout(act, episodes, observers=[did] if film is None else [did, film])
    frames = None if film is None else film.frames
    return ImaginedRollout(did.actions, result.success, result.invalid, frames, result.frames)
