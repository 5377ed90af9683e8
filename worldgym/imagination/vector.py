"""Many imagined episodes in one batch: world model, judge and starts as a Gymnasium vector environment.

Task Description
    Each slot is imagined forward from a real frame under its actions. The environment does not handle models, datasets
    or logs itself: world model, judge and starts are passed as objects (or as names, see
    `worldgym.imagination.loading`).
Randomizations
    The start and the model's noise, from one generator per slot: slot i of `reset(seed=s)` draws the same values as
    the single environment seeded with s + i. Frames agree up to the rounding that depends on the batch size; they are
    bit-identical for equal batch sizes.
Success Conditions
    The judge's probability of success reaches `success_threshold`, the judge's own by default. The judge can be wrong:
    verify important results by replaying the actions in the suite's real domain.

Example::

    from worldgym.imagination import WorldModelVectorEnv
    envs = WorldModelVectorEnv(model, judge, starts, num_envs=16, chunk=5)
    observation, info = envs.reset(seed=0)
    observation, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor

from worldgym.errors import ConfigError
from worldgym.imagination import options as reset_options
from worldgym.imagination.batched_env import BatchStep, Column, Flags, check_settings
from worldgym.imagination.branching import BranchingVectorEnv
from worldgym.imagination.episodes import ImaginedEpisodes
from worldgym.imagination.loading import resolve_reward, resolve_starts, resolve_world_model
from worldgym.imagination.observations import (
    EMBEDDING_DIM,
    InstructionMode,
    action_space,
    instruction_space,
    observation_space,
)
from worldgym.imagination.rules import Outcome, RewardKind, Rules
from worldgym.imagination.settings import horizon_of, state_bounds
from worldgym.imagination.slots import Slots
from worldgym.imagination.starts import StartSet
from worldgym.protocols import RewardModel, WorldModel, threshold_of, uncertainty_kind
from worldgym.specs import check_fit, specs_of
from worldgym.utils.devices import choose_device, place


class WorldModelVectorEnv(BranchingVectorEnv):
    """`num_envs` episodes imagined together.

    Observation: `Dict(image (H,W,3) u8, instruction, state (S,) f32)`; there is no state if the model has none, and one
    more image `image_<name>` for each further camera of its `specs`. Judges receive the main camera only. Info has the
    same keys after a reset and after a step: `p_success` is NaN at frames that were not judged; `success_once`,
    `return` and `episode_len` are those of the current episode; `instruction_text` is the instruction. Action: `(A,)`
    in [-1, 1], or `(K, A)` with `chunk=K`, stepped as K frames. An invalid judgement truncates the episode with
    info["invalid"]; its reward of 0 is a placeholder, so drop the episode.

    Args:
        world_model: a `protocols.WorldModel` with `merge`, or the path or name of a checkpoint.
        reward: a `protocols.RewardModel`, an entry point "package.module:factory", or None for no reward and no
            success.
        starts: a `StartSet`, the path or name of one, or None if every reset passes an `initial_image`.
        num_envs: number of slots.
        task: draw starts of this task only, also at automatic resets; None for any. The option `task` of a reset
            overrides it.
        horizon: imagined frames until truncation; a multiple of `chunk`.
        max_episode_steps: the same in steps, as in Gymnasium's vector environments; None to use `horizon`.
        chunk: None, or K frames per step.
        judge_every: frames between two judgements, >= 1; the last frame of an episode is always judged. The
            judge reads the current frame.
        success_threshold: judged probability that counts as success, in (0, 1]; None for the judge's own `threshold`,
            or 0.5 if it has none.
        reward_kind: "success" gives 1 at the first judged success; "difference" gives the change of the judged
            probability since the last judgement; "potential" gives 1 at success plus the change of the judge's bounded
            log odds, see `rules.potential`.
        discount: discount of the learner; used by "potential" only.
        terminate_on_success: False continues an episode after success.
        confirm: number of successive success judgements that count as a success; 2 ignores errors on a single frame.
        uncertainty_bound: above this uncertainty a slot is truncated without a judgement and with
            info["hallucination"]; None for never. info["uncertainty_kind"] names the kind of uncertainty.
        uncertainty_penalty: weight of the uncertainty, subtracted from the reward at judged frames (RWM-U, arXiv
            2504.16680).
        flat_actions: True takes a chunk as one vector (K A,), for libraries without matrix actions.
        instruction: "text", or "embedding" for `Box(384,)` sentence embeddings.
        instructions: sentences that resets will use; the text space covers the characters and the length of
            these and of the start set's instructions.
        autoreset_mode: one of Gymnasium's three, or its value ("NextStep", "SameStep", "Disabled").
        render_mode: None or "rgb_array".
        tensors: True returns images, states, rewards and dones as torch tensors on the model's device.
        info_frames: True adds info["frames"] (num_envs, K, H, W, 3) uint8, every imagined frame of the step,
            info["frames_<name>"] of each further camera, and info["states"] (num_envs, K, S) float32.
        state_low: lower bound of the state, a number or S numbers; imagined states are clipped to it. None takes the
            lower of the least recorded value and the mean minus ten standard deviations, if the model or the starts
            have these statistics, else no bound.
        state_high: upper bound, likewise.
        reward_kwargs: keyword arguments of the entry point, JSON-able.
        device: `auto`, `cpu`, `cuda` or `cuda:N`, to which world model and judge are moved; None leaves them.

    Raises:
        CheckpointError: a named checkpoint or start set is missing.
        TypeError: an object does not implement its protocol.
        ValueError: an impossible setting.
    """

    def __init__(
        self,
        world_model: WorldModel | str | Path,
        reward: RewardModel | str | None = None,
        starts: StartSet | str | Path | None = None,
        *,
        num_envs: int = 1,
        task: str | None = None,
        horizon: int | None = None,
        max_episode_steps: int | None = None,
        chunk: int | None = None,
        judge_every: int = 5,
        success_threshold: float | None = None,
        reward_kind: RewardKind = "success",
        discount: float = 0.99,
        terminate_on_success: bool = True,
        confirm: int = 1,
        uncertainty_bound: float | None = None,
        uncertainty_penalty: float = 0.0,
        flat_actions: bool = False,
        instruction: InstructionMode = "text",
        instructions: Sequence[str] = (),
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        tensors: bool = False,
        info_frames: bool = False,
        state_low: float | Sequence[float] | None = None,
        state_high: float | Sequence[float] | None = None,
        reward_kwargs: dict[str, Any] | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        check_settings(num_envs, None, render_mode)  # Rules check the chunk, with the horizon
        horizon = horizon_of(horizon, max_episode_steps, chunk)
        self.world_model: Any = resolve_world_model(world_model)
        self.reward = resolve_reward(reward, reward_kwargs)
        if device is not None:
            where = choose_device(device)
            self.world_model, self.reward = place(self.world_model, where), place(self.reward, where)
        check_fit(self.world_model, self.reward, "the world model", "the judge")
        warm_up = getattr(self.reward, "warm_up", None)
        if warm_up is not None:  # at construction, not in the middle of the first episode
            warm_up()
        if success_threshold is None:
            success_threshold = threshold_of(self.reward)
        if not 0.0 < success_threshold <= 1.0:
            raise ValueError(f"success_threshold={success_threshold}; expected a probability in (0, 1]")
        self.rules = Rules(
            horizon, chunk, judge_every, success_threshold, reward_kind, terminate_on_success, uncertainty_bound,
            discount, confirm, uncertainty_penalty,
        )  # fmt: skip
        self.starts = resolve_starts(starts)
        self.device = torch.device(getattr(self.world_model, "device", "cpu"))
        self.instruction_mode, self.task = instruction, task
        self.tensors, self.info_frames = tensors, info_frames
        model: Any = self.world_model
        self.observed = specs_of(model).observation
        self._words = instruction_space(
            [*getattr(self.starts, "instructions", ()), *instructions],
            self.observed.alphabet,
            self.observed.max_instruction,
        )
        low, high = state_bounds(model, self.starts, state_low, state_high)
        super().__init__(
            num_envs,
            observation_space(self.observed, instruction, low, high, self._words),
            action_space(model.action_dim, chunk, flat_actions),
            horizon=horizon,
            chunk=chunk,
            render_mode=render_mode,
            autoreset_mode=autoreset_mode,
        )
        bounds = [np.broadcast_to(np.asarray(b, np.float32), (self.observed.state_dim,)).copy() for b in (low, high)]
        self._low, self._high = (torch.as_tensor(b, device=self.device) for b in bounds)
        self._episodes: ImaginedEpisodes | None = None

    # -- starting ------------------------------------------------------------------------------------------
    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start episodes.

        Args:
            seed: slot i is seeded with `seed + i`, or `seed[i]`; None continues the present streams.
            options: each value is for all slots, or a list with one entry per slot. `instruction`: str. `task`: a task
                of the start set. `initial_image`: (H,W,3) uint8 or the path of an image, or one of each camera by
                name. `episode`: an `Episode` or the index of one in the start set, with `frame`: int. `state`: a
                `SavedState` to begin from, or the (S,) proprioception that goes with `initial_image`. `reset_mask`:
                (num_envs,) bool, the slots to reset.

        Raises:
            ValueError: an unknown option, or one that does not fit.
        """
        return super().reset(seed=seed, options=options)

    def _start(
        self, rows: NDArray[np.int64], options: dict[str, Any], seeds: Sequence[int | None]
    ) -> list[Column]:
        all_streams = self.np_random
        streams = [all_streams[i] for i in rows]
        model, device = self.world_model, self.device
        if self.task is not None:
            options = {"task": self.task, **options}
        plan = reset_options.plan(options, rows, streams, self.starts, model, self.num_envs, self._words)
        noise = torch.tensor([int(stream.integers(2**62)) for stream in streams])
        slots = Slots.empty(len(rows), EMBEDDING_DIM if self.instruction_mode == "embedding" else 0)
        slots.instruction[:], slots.task[:] = plan.instructions, plan.tasks
        if slots.embedding.shape[1]:
            from worldgym.text import embed

            slots.embedding[:] = embed([str(text) for text in slots.instruction])
        with torch.no_grad():
            if plan.source is not None and plan.source_rows is not None:
                source = plan.source.episodes.take(plan.source_rows)
                state, image, proprio, views = source.state, source.image, source.proprio, source.views
            else:
                frames = torch.as_tensor(plan.frames, device=device)
                states = None if plan.states is None else torch.as_tensor(plan.states, device=device)
                actions = torch.as_tensor(plan.actions, device=device)
                context = {name: torch.as_tensor(view, device=device) for name, view in plan.views.items()}
                state = reset_options.begin_rows(model, frames, actions, states, noise, context)
                image = frames[:, -1]
                proprio = self._first_proprio(state, len(image)) if states is None else states[:, -1]
                views = {name: view[:, -1].clone() for name, view in context.items()}
        fresh = ImaginedEpisodes(model, self.reward, self.rules, state, image.clone(), proprio, slots, views)
        fresh.first_judgement()
        if self._episodes is None or len(rows) == self.num_envs:
            self._episodes = fresh
        else:
            self._episodes.put(rows, fresh)
        present = np.zeros(self.num_envs, np.bool_)
        present[rows] = True
        nothing, zero = np.zeros(self.num_envs, np.bool_), np.zeros(self.num_envs)
        no_outcome = Outcome(zero, nothing, nothing, nothing, nothing)
        columns = self._columns(no_outcome, zero, ~nothing, nothing, zero, present)
        if self.info_frames:  # no frame is imagined at a reset: repeat the start for the frames of a step
            count = self.chunk or 1
            videos = {name: _repeat(view, count) for name, view in self._pictures().items()}
            columns += self._paths(videos, _repeat(self._now.proprio, count), present)
        return columns

    def _first_proprio(self, state: Any, count: int) -> Tensor:
        """Proprioception `(count, S)` that the world model estimates from the first frames."""
        if not self.observed.state_dim:
            return torch.zeros(count, 0, device=self.device)
        estimated = getattr(state, "states", None)
        if not isinstance(estimated, Tensor):
            raise ConfigError(
                f"the starts have no proprioception, and {type(self.world_model).__name__} estimates none (its state "
                f"has no `states (B, {self.observed.state_dim})`); give starts with states"
            )
        return estimated

    # -- stepping ------------------------------------------------------------------------------------------
    def _advance(self, actions: Any, moving: Flags) -> BatchStep:
        """One step of all episodes; rows that are not `moving` are about to be reset."""
        chunk = torch.as_tensor(actions, dtype=torch.float32, device=self.device)
        chunk = chunk.reshape(self.num_envs, -1, self.world_model.action_dim)
        step = self._now.step(chunk, moving=moving, decode="all" if self.info_frames else "last")
        columns = self._columns(
            step.outcome, step.uncertainty, step.valid, step.hallucination, step.p, moving
        )
        if self.info_frames:
            frames = {self.observed.main.name: step.imagined.frames, **step.imagined.views}
            columns += self._paths(frames, step.imagined.states, moving)
        return BatchStep(step.outcome.reward, step.outcome.terminated, step.outcome.truncated, columns)

    def _convert_outcome(self, reward: Any, terminated: Any, truncated: Any) -> tuple[Any, Any, Any]:
        if not self.tensors:
            return reward, terminated, truncated
        rewards = torch.as_tensor(reward, dtype=torch.float32, device=self.device)
        ends = [torch.as_tensor(flags, device=self.device) for flags in (terminated, truncated)]
        return rewards, ends[0], ends[1]

    def _columns(
        self, outcome: Outcome, uncertainty: Any, valid: Flags, hallucination: Flags, p: Any, present: Flags
    ) -> list[Column]:
        """Info entries of the slots `present`, the same ones after a reset and after a step."""
        slots = self._now.slots
        columns: list[Column] = [
            ("instruction_text", slots.instruction.copy(), present),
            ("task", slots.task.copy(), present),
            ("success", outcome.success, present),
            ("uncertainty", uncertainty, present),
            ("uncertainty_kind", np.full(self.num_envs, uncertainty_kind(self.world_model), object), present),
            ("judge_valid", valid, present),
            ("invalid", ~valid, present),
            ("hallucination", hallucination, present),
            ("p_success", np.where(outcome.sound, p, np.nan), present),
            ("success_once", slots.success_once.copy(), present),
            ("success_at_end", outcome.success, present),
            ("return", slots.returned.copy(), present),
            ("episode_len", slots.elapsed.copy(), present),
        ]
        if self.reward is not None:
            columns.append((f"reward_terms/{self.reward.name}", outcome.reward, present))
        return columns

    def _paths(self, frames: dict[str, Tensor], states: Tensor, present: Flags) -> list[Column]:
        """Every frame `(num_envs, K, H, W, 3)` of a step, by camera, and every state."""
        path = {
            self.observed.camera_keys[name].replace("image", "frames", 1): video
            for name, video in frames.items()
        }
        path["states"] = states.float().clamp(self._low, self._high)
        return [(key, video if self.tensors else video.cpu().numpy(), present) for key, video in path.items()]

    # -- reading -------------------------------------------------------------------------------------------
    @property
    def over(self) -> Flags:
        """(num_envs,) bool, episodes that have ended and wait for a reset."""
        return self._now.slots.over

    @property
    def started(self) -> bool:
        """Whether there was a reset."""
        return self._episodes is not None

    @property
    def _now(self) -> ImaginedEpisodes:
        if self._episodes is None:
            raise RuntimeError("nothing was imagined yet; call reset(seed=...) first")
        return self._episodes

    def _pictures(self) -> dict[str, Tensor]:
        """Current frames `(num_envs, H, W, 3)` by camera, the main one first."""
        return {self.observed.main.name: self._now.image, **self._now.views}

    def _observation(self) -> dict[str, Any]:
        now = self._now
        state: Any = now.proprio.clamp(self._low, self._high)
        words: Any = tuple(str(text) for text in now.slots.instruction)
        if self.instruction_mode == "embedding":
            words = now.slots.embedding.copy()
        observation: dict[str, Any] = {
            self.observed.camera_keys[name]: picture for name, picture in self._pictures().items()
        }
        if self.tensors:
            if self.instruction_mode == "embedding":
                words = torch.as_tensor(words, device=self.device)
        else:
            observation = {key: picture.cpu().numpy().copy() for key, picture in observation.items()}
            state = state.cpu().numpy()
        observation["instruction"] = words
        return {**observation, "state": state} if self.observed.state_dim else observation

    @property
    def instructions(self) -> list[str]:
        """The instruction of each slot."""
        return [str(text) for text in self._now.slots.instruction]

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:  # type: ignore[override]
        """The current frame of each slot, (H, W, 3) uint8, with `render_mode="rgb_array"`."""
        return tuple(self._now.image.cpu().numpy().copy()) if self.render_mode == "rgb_array" else None


def _repeat(values: Tensor, count: int) -> Tensor:
    """Repeat `(B, ...)` to `(B, count, ...)`."""
    return values[:, None].expand(-1, count, *[-1] * (values.dim() - 1))
