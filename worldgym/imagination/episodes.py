"""Imagined episodes that run together: world-model state, frames for the judge, and bookkeeping.

The Gymnasium environment, RL in imagination, the closed-loop gate, audits and refresh collection all do the same
between two actions: predict frames, judge them, decide which episodes end. This module implements that step.

Example::

    episodes = ImaginedEpisodes.begin(model, judge, Rules(horizon=40), images, states, instructions)
    step = episodes.step(actions)              # actions (B,K,A)
    step.outcome.success, step.p, step.valid   # one entry per episode
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from worldgym.errors import ConfigError
from worldgym.imagination.checks import check_imagined
from worldgym.imagination.frame_buffer import FrameBuffer
from worldgym.imagination.rules import Flags, Numbers, Outcome, Rules
from worldgym.imagination.slots import Slots
from worldgym.protocols import Decode, Imagined, Observation, reads_of, settled
from worldgym.specs import check_fit, specs_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImaginedStep:
    """Result of one call of `ImaginedEpisodes.step`, one entry per episode.

    Args:
        imagined: the world model's output.
        outcome: reward, success and end flags.
        p: `(B,)` float64, judged probability of success; 0 for episodes without a valid judgement.
        valid: `(B,)` bool, False where the judge was queried and returned no valid judgement.
        uncertainty: `(B,)` float64, uncertainty of the world model, or disagreement of the verdicts on its futures; NaN
            if it failed.
        hallucination: `(B,)` bool, the uncertainty exceeded its bound or is NaN, so the episode was not judged.
    """

    imagined: Imagined
    outcome: Outcome
    p: Numbers
    valid: Flags
    uncertainty: Numbers
    hallucination: Flags


class ImaginedEpisodes:
    """B episodes in one batch.

    Args:
        world_model: implements `worldgym.protocols.WorldModel`.
        judge: implements `worldgym.protocols.RewardModel`; None gives no reward and no success.
        rules: when episodes are judged, and what ends them.
        state: the world model's state of B rows.
        image: `(B,H,W,3)` uint8, the first observations.
        proprio: `(B,S)` float32, proprioception of the first observations.
        slots: bookkeeping of B rows.
        views: first observations of the cameras besides the main one, by camera name, each `(B,H',W',3)` uint8. Judges
            receive the main camera only.

    Attributes:
        state, slots, views: current values of the arguments above.
        proprio: `(B,S)` float32, current proprioception.
        seconds: wall time spent in `imagine` and `judge` so far.
    """

    def __init__(
        self, world_model: Any, judge: Any, rules: Rules, state: Any, image: Tensor, proprio: Tensor, slots: Slots,
        views: Mapping[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.world_model, self.judge, self.rules = world_model, judge, rules
        self.state, self.proprio, self.slots = state, proprio.float(), slots
        self.spec = specs_of(world_model).observation
        self.views = dict(views or {})
        self.buffer = FrameBuffer(image, reads_of(judge).frames)
        self.latents: Tensor | None = getattr(state, "latent", None)
        self.seconds = {"imagine": 0.0, "judge": 0.0}
        futures = int(getattr(world_model, "futures", 0))
        if futures and judge is not None and reads_of(judge).depth != 1:
            raise ConfigError(
                f"the verdicts of {futures} futures can't be compared: judge {judge.name} reads several frames, "
                "expected one that reads the last frame; take a world model without futures, or another judge"
            )
        if futures and judge is not None and slots.highest.shape[1] != futures + 1:
            slots.highest = np.zeros((len(slots.over), futures + 1))

    @classmethod
    @torch.no_grad()
    def begin(
        cls,
        world_model: Any,
        judge: Any,
        rules: Rules,
        images: Tensor,
        states: Tensor,
        instructions: Sequence[str],
        *,
        copies: int = 1,
        generator: torch.Generator | None = None,
        views: Mapping[str, Tensor] | None = None,
    ) -> Self:
        """Episodes from real frames.

        Args:
            world_model: see the class.
            judge: see the class.
            rules: see the class.
            images: `(M,H,W,3)` uint8 real frames.
            states: `(M,S)` proprioception.
            instructions: M of them.
            copies: episodes per start, adjacent to each other; B is M times this.
            generator: random generator of the world model's sampling.
            views: real frames of the world model's further cameras, by camera name, each `(M,H',W',3)` uint8.

        Raises:
            ValueError: frames of a camera of the world model are missing; the message names it.
            ConfigError: the judge does not fit the world model's cameras and state.
        """
        began = time.perf_counter()
        check_fit(world_model, judge, "the world model", "the judge")
        device = getattr(world_model, "device", "cpu")
        images, states = torch.as_tensor(images, device=device), torch.as_tensor(states, device=device)
        none = torch.zeros(len(images), 0, world_model.action_dim, device=device)
        seen = {name: torch.as_tensor(views[name], device=device) for name in check_views(world_model, views)}  # type: ignore[index]
        more: Any = {"views": {name: frames[:, None] for name, frames in seen.items()}} if seen else {}
        state = world_model.begin(images[:, None], none, generator, states=states[:, None], **more)
        if copies > 1:
            state = world_model.fork(state, torch.arange(len(images)).repeat_interleave(copies))
            images, states = images.repeat_interleave(copies, 0), states.repeat_interleave(copies, 0)
            seen = {name: frames.repeat_interleave(copies, 0) for name, frames in seen.items()}
        slots = Slots.empty(len(images))
        slots.instruction[:] = [text for text in instructions for _ in range(copies)]
        episodes = cls(world_model, judge, rules, state, images, states, slots, seen)
        episodes.seconds["imagine"] += time.perf_counter() - began
        return episodes

    def __len__(self) -> int:
        """Number of episodes, B."""
        return len(self.slots.over)

    @property
    def image(self) -> Tensor:
        """`(B,H,W,3)` uint8, the current frames."""
        return self.buffer.last

    def observation(self) -> Observation:
        """The policy's current observation: `image`, and `image_<name>` of each further camera of the world model."""
        seen = Observation(image=self.image, state=self.proprio, instruction=list(self.slots.instruction))
        seen.update({self.spec.camera_keys[name]: frames for name, frames in self.views.items()})  # type: ignore[typeddict-item]
        return seen

    def step(self, actions: Tensor, *, moving: Flags | None = None, decode: Decode = "last") -> ImaginedStep:
        """Imagine K frames, judge the episodes that are due, decide which end.

        Args:
            actions: `(B,K,A)` in [-1, 1].
            moving: `(B,)` bool; the others are imagined too, but neither judged nor counted. None for all.
            decode: "all" to get every frame; frames that the judge reads are decoded in any case.
        """
        slots, count = self.slots, len(self)
        moving = np.ones(count, np.bool_) if moving is None else moving
        began = time.perf_counter()
        with torch.no_grad():
            wanted: Decode = "all" if "all" in (decode, self.buffer.decode) else "last"
            imagined = self._imagine(actions, wanted)
        self.buffer.append(imagined.frames if self.buffer.decode == "all" else imagined.frames[:, -1:])
        self.views = {name: imagined.views[name][:, -1] for name in self.views}
        self.proprio = imagined.states[:, -1].float()
        self.latents = None if imagined.latents is None else imagined.latents[:, -1]
        uncertainty = imagined.uncertainty.detach().cpu().numpy().astype(np.float64)
        self.seconds["imagine"] += time.perf_counter() - began
        slots.elapsed[moving] += actions.shape[1]
        slots.unjudged[moving] += actions.shape[1]
        due, hallucination = self.rules.due(slots, moving, uncertainty)
        p, valid = np.zeros(count), np.ones(count, np.bool_)
        if self.judge is None:
            due[:] = False
        elif due.any():
            rows = np.flatnonzero(due)
            p[rows], valid[rows] = self.judge_rows(rows)
            valid[rows] &= np.isfinite(slots.last_p[rows])  # a difference also needs a valid baseline
        if slots.highest.shape[1]:
            uncertainty = self._disagreement(np.flatnonzero(due), p, valid, imagined, uncertainty)
            _, hallucination = self.rules.due(slots, moving, uncertainty)
            due &= ~hallucination
        outcome = self.rules.settle(slots, moving, due, hallucination, p, valid, uncertainty)
        return ImaginedStep(imagined, outcome, p, valid, uncertainty, hallucination)

    def _imagine(self, actions: Tensor, decode: Decode) -> Imagined:
        """Call the world model. If its server does not answer, the frames are repeated with a NaN uncertainty.

        An episode with a NaN uncertainty is invalid (`Rules.due`); it never counts as a failure.
        """
        count, steps, name = len(self), actions.shape[1], type(self.world_model).__name__
        try:
            if self.state is None:
                raise ConnectionError("its state was lost")
            self.state, imagined = self.world_model.step(self.state, actions, decode=decode)
        except (TimeoutError, ConnectionError) as error:
            logger.warning("%s failed on %d episodes, which become invalid: %s", name, count, error)
            shown = steps if decode == "all" else 1
            views = {view: frames[:, None].repeat_interleave(shown, 1) for view, frames in self.views.items()}
            latents: Any = None if self.latents is None else self.latents[:, None].repeat_interleave(steps, 1)
            return Imagined(
                self.image[:, None].repeat_interleave(shown, 1), latents,
                self.proprio[:, None].repeat_interleave(steps, 1),
                torch.full((count,), float("nan")), None, views,
            )  # fmt: skip
        check_imagined(imagined, self.spec, count, steps, decode, name)
        return imagined

    def judge_rows(self, rows: NDArray[np.int64]) -> tuple[Numbers, Flags]:
        """Judge the current frames of episodes `rows (R,)`: probability `(R,)`, 0 if invalid, and validity `(R,)`."""
        began = time.perf_counter()
        p, valid = np.zeros(len(self)), np.zeros(len(self), np.bool_)
        for same_length, clips in self.buffer.clips(rows):
            index = torch.as_tensor(same_length, device=clips.device)
            latents = None if self.latents is None else self.latents[index]
            judgement = settled(
                self.judge, clips, list(self.slots.instruction[same_length]), self.proprio[index], latents
            )
            p[same_length] = judgement.p_success.cpu().numpy().astype(np.float64)
            valid[same_length] = judgement.valid.cpu().numpy()
        self.seconds["judge"] += time.perf_counter() - began
        return p[rows], valid[rows]

    def _disagreement(
        self, rows: NDArray[np.int64], p: Numbers, valid: Flags, imagined: Imagined, uncertainty: Numbers
    ) -> Numbers:
        """Judge the other futures of `rows (R,)`; the standard deviation of the highest probabilities, `(B,)`.

        An invalid judgement of a future makes `valid` False. A NaN in `uncertainty` stays.
        """
        began, highest = time.perf_counter(), self.slots.highest
        if len(imagined.futures) + 1 != highest.shape[1]:
            name = type(self.world_model).__name__
            if not np.isnan(uncertainty).all():  # NaN: its server did not answer
                expected = highest.shape[1] - 1
                raise ConfigError(f"{name}.step returned {len(imagined.futures)} futures, expected {expected}")
            return uncertainty
        if len(rows):
            index = torch.as_tensor(rows, device=imagined.frames.device)
            texts = list(self.slots.instruction[rows])
            highest[rows, 0] = np.maximum(highest[rows, 0], p[rows])
            for number, future in enumerate(imagined.futures, 1):
                latents = None if future.latents is None else future.latents[index, -1]
                verdict = settled(
                    self.judge, future.frames[index, -1:], texts, future.states[index, -1].float(), latents
                )
                said = verdict.p_success.cpu().numpy().astype(np.float64)
                highest[rows, number] = np.maximum(highest[rows, number], said)
                valid[rows] &= verdict.valid.cpu().numpy()
        self.seconds["judge"] += time.perf_counter() - began
        return np.asarray(np.where(np.isnan(uncertainty), np.nan, highest.std(1)), np.float64)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Self:
        """Independent copies of the episodes `rows`, in any order, repetitions allowed."""
        chosen = np.asarray(rows, np.int64)
        index = torch.as_tensor(chosen, device=self.image.device)
        taken = object.__new__(type(self))
        taken.world_model, taken.judge, taken.rules = self.world_model, self.judge, self.rules
        taken.state, taken.spec = self._forked(index), self.spec
        taken.views = {name: frames[index] for name, frames in self.views.items()}
        taken.proprio, taken.slots = self.proprio[index], self.slots.take(chosen)
        taken.latents = None if self.latents is None else self.latents[index]
        taken.buffer, taken.seconds = self.buffer.take(chosen), self.seconds
        return taken

    def _forked(self, index: Tensor) -> Any:
        """Copies of rows; None if the world model's server does not answer, so that the next step is invalid."""
        try:
            return None if self.state is None else self.world_model.fork(self.state, index)
        except (TimeoutError, ConnectionError) as error:
            logger.warning("%s lost %d episodes: %s", type(self.world_model).__name__, len(index), error)
            return None

    def put(self, rows: Sequence[int] | NDArray[np.int64], other: Self) -> None:
        """Replace the episodes `rows` by all those of `other`, in order."""
        chosen = np.asarray(rows, np.int64)
        index = torch.as_tensor(chosen, device=self.image.device)
        self.state = self._merged(chosen, other)
        self.proprio = self.proprio.index_copy(0, index, other.proprio)
        self.views = {name: view.index_copy(0, index, other.views[name]) for name, view in self.views.items()}
        if self.latents is not None and other.latents is not None:
            self.latents = self.latents.index_copy(0, index, other.latents)
        self.buffer.put(chosen, other.buffer)
        self.slots.put(chosen, other.slots)

    def _merged(self, rows: NDArray[np.int64], other: Self) -> Any:
        """The state with `rows` replaced. If all rows are, a state that a server has lost is not needed."""
        try:
            if self.state is None:
                raise ConnectionError("the other episodes' state was lost")
            return self.world_model.merge(self.state, torch.as_tensor(rows, device=self.image.device), other.state)
        except (TimeoutError, ConnectionError):
            if sorted(rows.tolist()) != list(range(len(self))):
                raise
            return self.world_model.fork(other.state, torch.as_tensor(np.argsort(rows)))

    def first_judgement(self) -> None:
        """Judge the first frames, if the reward is a difference and needs a baseline."""
        if self.judge is not None and self.rules.needs_baseline:
            p, valid = self.judge_rows(np.arange(len(self)))
            self.slots.last_p[:] = np.where(valid, p, np.nan)


def views_of(world_model: Any, observation: Mapping[str, Any]) -> dict[str, Any]:
    """Frames of the further cameras that `world_model` imagines, taken from an observation, by camera name.

    Raises:
        ValueError: one of them is missing; the message names it.
    """
    keys = specs_of(world_model).observation.camera_keys
    seen = {name: observation[key] for name, key in keys.items() if key in observation and key != "image"}
    check_views(world_model, seen)
    return seen


def check_views(world_model: Any, views: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Names of the cameras besides the main one that `world_model` imagines.

    Raises:
        ConfigError: one of them is missing from `views`.
    """
    wanted = tuple(camera.name for camera in specs_of(world_model).observation.views)
    if missing := [name for name in wanted if name not in (views or {})]:
        raise ConfigError(
            f"no frames of camera {', '.join(missing)}, which the world model imagines; got those of the main "
            f"camera{''.join(f' and of {name}' for name in views or {})}. Give views={{{missing[0]!r}: frames}}"
        )
    return wanted


@dataclass(frozen=True)
class SavedState:
    """Slots of a `WorldModelVectorEnv` at one moment; in memory only, later steps do not change it.

    Args:
        episodes: the episodes of all slots.
        streams: state of each slot's random generator.
    """

    episodes: ImaginedEpisodes
    streams: list[dict[str, Any]]

    @property
    def num_envs(self) -> int:
        """Number of saved slots."""
        return len(self.streams)
