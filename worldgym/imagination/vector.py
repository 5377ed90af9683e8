"""Many imagined episodes in one batch: world model, judge and starts as a Gymnasium vector environment.

Task Description
    Each slot is imagined forward from a real frame under its actions. Models, datasets and logs stay outside: the
    world model, the judge and the starts come in as objects (or as names, see
    `worldgym.imagination.loading`).
Randomizations
    The start and the model's noise, from one generator a slot: slot i of `reset(seed=s)` draws what the single
    environment seeded s + i draws. Frames agree to the rounding of the batch size: bits repeat for one batch size.
Success Conditions
    The judge's probability of success reaches `success_threshold`, the judge's own by default. It can be wrong:
    replay what matters in Real.

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

from worldgym.imagination import options as reset_options
from worldgym.imagination.branching import BranchingVectorEnv
from worldgym.imagination.episodes import ImaginedEpisodes
from worldgym.imagination.loading import resolve_reward, resolve_starts, resolve_world_model
from worldgym.imagination.observations import (
    EMBEDDING_DIM,
    InstructionMode,
    instruction_space,
    observation_space,
)
from worldgym.imagination.rules import Flags, Outcome, RewardKind, Rules
from worldgym.imagination.settings import horizon_of, limited_spec, state_bounds
from worldgym.imagination.slots import Slots, put_info
from worldgym.imagination.spaces import action_space, check_actions
from worldgym.imagination.starts import StartSet
from worldgym.protocols import RewardModel, WorldModel, threshold_of

Column = tuple[str, Any, Flags]  # an info entry: key, one value a slot, the slots that have it


class WorldModelVectorEnv(BranchingVectorEnv):
    """`num_envs` episodes imagined together.

    Observation: `Dict(image (H,W,3) u8, instruction, state (S,) f32)`; no state where the model has none. Info has
    the same keys from the reset on: `p_success` is NaN at frames that were not judged, `success_once`, `return` and
    `episode_len` are those of the episode so far, `instruction_text` are the words. Action: `(A,)` in [-1, 1], or
    `(K, A)` stepped as K frames with `chunk=K`.

    Args:
        world_model: a `protocols.WorldModel` with `merge`, or the path or name of a checkpoint.
        reward: a `protocols.RewardModel`, an entry point "package.module:factory", or None: no reward, no
            success.
        starts: a `StartSet`, the path or name of one, or None if every reset brings an `initial_image`.
        num_envs: number of slots.
        task: every start drawn from the start set is of this task, those of automatic resets too; None for any. The
            option `task` of a reset comes first.
        horizon: imagined frames until truncation; a multiple of `chunk`.
        max_episode_steps: the same in steps, as Gymnasium's vector environments take it; None for `horizon`.
        chunk: None, or K frames a step.
        judge_every: frames between two judgements, >= 1; the last frame of an episode is always judged. The
            judge sees the current frame.
        success_threshold: probability at which the judge's word counts as success, in (0, 1]; None for the judge's own
            `threshold`, or 0.5 if it has none.
        reward_kind: "success" pays 1 at the first judged success; "difference" pays the change of the judged
            probability since the last judgement; "potential" pays a success and how much nearer the judge's log odds
            say it has come, `rules.potential`.
        discount: of the learner; for "potential" alone.
        terminate_on_success: False lets an episode go on after success.
        confirm: judgements of success in a row that make a success; 2 lets errors of a single frame pass.
        uncertainty_bound: truncate a slot, unjudged and with info["hallucination"], above this; None for
            never.
        flat_actions: True takes a chunk as one vector (K A,), for libraries that want no matrix.
        instruction: "text", or "embedding" for `Box(384,)` sentence embeddings.
        instructions: sentences that resets will ask for; the space of words has the characters and the length of
            these and of the start set's.
        autoreset_mode: one of Gymnasium's three, or its value ("NextStep", "SameStep", "Disabled").
        render_mode: None or "rgb_array".
        tensors: True keeps images, states, rewards and dones as torch tensors on the model's device.
        info_frames: True adds info["frames"] (num_envs, K, H, W, 3) uint8, every imagined frame of the step, and
            info["states"] (num_envs, K, S) float32 with them.
        state_low: lower bound of the state, a number or S numbers; imagined states are clipped to it. None for the
            least recorded value and ten standard deviations below the mean, whichever is lower, where the model or the
            starts know them, else no bound.
        state_high: upper bound, likewise.
        reward_kwargs: keywords of the entry point, JSON-able.

    Raises:
        CheckpointError: a named checkpoint or start set is missing.
        TypeError: an object does not follow its protocol.
        ValueError: an impossible setting.
    """

    metadata: dict[str, Any] = {
        "render_modes": ["rgb_array"],
        "render_fps": 5,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

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
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs}; expected at least 1")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode={render_mode!r}; expected None or 'rgb_array'")
        horizon = horizon_of(horizon, max_episode_steps, chunk)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.world_model: Any = resolve_world_model(world_model)
        self.reward = resolve_reward(reward, reward_kwargs)
        warm_up = getattr(self.reward, "warm_up", None)
        if warm_up is not None:  # here, not in the middle of the first episode
            warm_up()
        if success_threshold is None:
            success_threshold = threshold_of(self.reward)
        if not 0.0 < success_threshold <= 1.0:
            raise ValueError(f"success_threshold={success_threshold}; expected a probability in (0, 1]")
        self.rules = Rules(
            horizon, chunk, judge_every, success_threshold, reward_kind, terminate_on_success, uncertainty_bound,
            discount, confirm,
        )  # fmt: skip
        self.starts = resolve_starts(starts)
        self.device = torch.device(getattr(self.world_model, "device", "cpu"))
        self.instruction_mode, self.render_mode = instruction, render_mode
        self.tensors, self.info_frames = tensors, info_frames
        self.horizon, self.chunk, self.task = horizon, chunk, task
        fps = self.metadata["render_fps"] / (chunk or 1)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode, "render_fps": fps}
        model: Any = self.world_model
        self._words = instruction_space([*getattr(self.starts, "instructions", ()), *instructions])
        low, high = state_bounds(model, self.starts, state_low, state_high)
        self.single_observation_space = observation_space(
            model.image_size, model.state_dim, instruction, low, high, self._words
        )
        self.single_action_space = action_space(model.action_dim, chunk, flat_actions)
        bounds = [np.broadcast_to(np.asarray(b, np.float32), (model.state_dim,)).copy() for b in (low, high)]
        self._low, self._high = (torch.as_tensor(b, device=self.device) for b in bounds)
        self._spec: Any = None
        self._episodes: ImaginedEpisodes | None = None
        self._set_size(num_envs)
        self._streams, self._seeds = [None] * num_envs, [-1] * num_envs

    # -- starting ------------------------------------------------------------------------------------------
    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start episodes.

        Args:
            seed: slot i is seeded `seed + i`, or `seed[i]`; None goes on with the present streams.
            options: each value for all slots, or a list with one a slot. `instruction`: str. `task`: a task
                of the start set. `initial_image`: (H,W,3) uint8 or the path of a picture. `episode`: an
                `Episode` or the number of one in the start set, with `frame`: int. `state`: a `SavedState`
                to begin from, or the (S,) proprioception that goes with `initial_image`. `reset_mask`:
                (num_envs,) bool, the slots to reset.

        Raises:
            ValueError: an unknown option, or one that does not fit.
        """
        options = dict(options or {})
        mask = reset_options.check_mask(options.pop("reset_mask", None), self.num_envs)
        if self._episodes is None and not mask.all():
            raise ValueError("reset_mask before the first reset; call reset() without a mask once")
        seeds: Sequence[int | None]
        if seed is None or isinstance(seed, (int, np.integer)):
            seeds = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        else:
            seeds = seed
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds; expected {self.num_envs}, one an environment, or an int")
        for i, chosen in enumerate(seeds):
            if chosen is not None and mask[i]:
                self._seed_slot(i, int(chosen))
        infos: dict[str, Any] = {}
        for key, values, having in self._begin(np.flatnonzero(mask), options):
            put_info(infos, key, values, having)
        return self._observation(), infos

    def _begin(self, rows: NDArray[np.int64], options: dict[str, Any]) -> list[Column]:
        """Give the slots `rows` a new episode each; returns their info."""
        everyone = self.np_random
        streams = [everyone[i] for i in rows]
        model, device = self.world_model, self.device
        if self.task is not None:
            options = {"task": self.task, **options}
        plan = reset_options.plan(options, rows, streams, self.starts, model, self.num_envs, self._words)
        seeds = torch.tensor([int(stream.integers(2**62)) for stream in streams])
        slots = Slots.empty(len(rows), EMBEDDING_DIM if self.instruction_mode == "embedding" else 0)
        slots.instruction[:], slots.task[:] = plan.instructions, plan.tasks
        if slots.embedding.shape[1]:
            from worldgym.text import embed

            slots.embedding[:] = embed([str(text) for text in slots.instruction])
        with torch.no_grad():
            if plan.source is not None and plan.source_rows is not None:
                source = plan.source.episodes.take(plan.source_rows)
                state, image, proprio = source.state, source.image, source.proprio
            else:
                frames = torch.as_tensor(plan.frames, device=device)
                states = None if plan.states is None else torch.as_tensor(plan.states, device=device)
                actions = torch.as_tensor(plan.actions, device=device)
                state = reset_options.begin_rows(model, frames, actions, states, seeds)
                image, proprio = frames[:, -1], state.states if states is None else states[:, -1]
        fresh = ImaginedEpisodes(model, self.reward, self.rules, state, image.clone(), proprio, slots)
        fresh.first_judgement()
        if self._episodes is None or len(rows) == self.num_envs:
            self._episodes = fresh
        else:
            self._episodes.put(rows, fresh)
        having = np.zeros(self.num_envs, np.bool_)
        having[rows] = True
        nothing, zero = np.zeros(self.num_envs, np.bool_), np.zeros(self.num_envs)
        still = Outcome(zero, nothing, nothing, nothing, nothing)
        columns = self._columns(still, zero, ~nothing, nothing, zero, having)
        if self.info_frames:  # nothing was imagined yet: the start, as often as a step has frames
            count = self.chunk or 1
            frames = self._now.image[:, None].expand(-1, count, -1, -1, -1)
            columns += self._paths(frames, self._now.proprio[:, None].expand(-1, count, -1), having)
        return columns

    # -- stepping ------------------------------------------------------------------------------------------
    def step(self, actions: Any) -> tuple[dict[str, Any], Any, Any, Any, dict[str, Any]]:
        """Imagine one frame, or one chunk of K, in every slot.

        Returns:
            Observation, reward (num_envs,) float64, terminated and truncated (num_envs,) bool, info. An
            invalid judgement truncates with info["invalid"]; its reward of 0 is a placeholder: drop the
            episode.

        Raises:
            ValueError: actions of the wrong shape, NaN, or beyond [-1, 1].
            AssertionError: with autoreset disabled, an episode that is over is stepped.
        """
        if self._episodes is None:
            raise RuntimeError("step before reset; call reset(seed=...) first")
        waiting = self._episodes.slots.over.copy()
        if self.autoreset_mode is AutoresetMode.DISABLED and waiting.any():
            raise AssertionError(
                f"environments {np.flatnonzero(waiting).tolist()} are over and autoreset is disabled; call"
                " reset(options={'reset_mask': mask}) first"
            )
        chunk = check_actions(actions, self.action_space.shape or (), ~waiting, self.device)
        chunk = chunk.reshape(self.num_envs, -1, self.world_model.action_dim)
        columns: list[Column] = []
        reward = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, np.bool_), np.zeros(self.num_envs, np.bool_)
        if not waiting.all():
            outcome, columns = self._advance(self._episodes, chunk, ~waiting)
            reward, terminated, truncated = outcome.reward, outcome.terminated, outcome.truncated
        if waiting.any():  # NEXT_STEP: their action was ignored, this step only shows them their new start
            columns += self._begin(np.flatnonzero(waiting), {})
        over = terminated | truncated
        infos: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and over.any():
            self._final(infos, columns, over)
            columns = [(key, values, having & ~over) for key, values, having in columns]
            columns += self._begin(np.flatnonzero(over), {})
        else:
            self._episodes.slots.over[:] = over
        for key, values, having in columns:
            put_info(infos, key, values, having)
        if self.tensors:
            paid = torch.as_tensor(reward, dtype=torch.float32, device=self.device)
            ends = [torch.as_tensor(flags, device=self.device) for flags in (terminated, truncated)]
            return self._observation(), paid, ends[0], ends[1], infos
        return self._observation(), reward, terminated, truncated, infos

    def _advance(
        self, episodes: ImaginedEpisodes, chunk: Tensor, moving: Flags
    ) -> tuple[Outcome, list[Column]]:
        """One step of all episodes; rows not `moving` are left to their reset."""
        step = episodes.step(chunk, moving=moving, decode="all" if self.info_frames else "last")
        columns = self._columns(step.outcome, step.uncertainty, step.valid, step.hallucination, step.p, moving)
        if self.info_frames:
            columns += self._paths(step.imagined.frames, step.imagined.states, moving)
        return step.outcome, columns

    def _columns(
        self, outcome: Outcome, uncertainty: Any, valid: Flags, hallucination: Flags, p: Any, having: Flags
    ) -> list[Column]:
        """The info entries of the slots `having`, the same ones at a reset and at a step."""
        slots = self._now.slots
        columns: list[Column] = [
            ("instruction_text", slots.instruction.copy(), having),
            ("task", slots.task.copy(), having),
            ("success", outcome.success, having),
            ("uncertainty", uncertainty, having),
            ("judge_valid", valid, having),
            ("invalid", ~valid, having),
            ("hallucination", hallucination, having),
            ("p_success", np.where(outcome.sound, p, np.nan), having),
            ("success_once", slots.success_once.copy(), having),
            ("success_at_end", outcome.success, having),
            ("return", slots.returned.copy(), having),
            ("episode_len", slots.elapsed.copy(), having),
        ]
        if self.reward is not None:
            columns.append((f"reward_terms/{self.reward.name}", outcome.reward, having))
        return columns

    def _paths(self, frames: Tensor, states: Tensor, having: Flags) -> list[Column]:
        """Every frame `(num_envs, K, H, W, 3)` of a step, and every state."""
        path = states.float().clamp(self._low, self._high)
        if self.tensors:
            return [("frames", frames, having), ("states", path, having)]
        return [("frames", frames.cpu().numpy(), having), ("states", path.cpu().numpy(), having)]

    def _final(self, infos: dict[str, Any], columns: list[Column], over: Flags) -> None:
        """SAME_STEP: last observation and info of ended episodes, in the form of SyncVectorEnv."""
        last = self._observation()
        final_info: dict[str, Any] = {}
        for key, values, having in columns:
            put_info(final_info, key, values, having & over)
        if self.tensors:
            infos["final_obs"] = last
        else:
            infos["final_obs"] = np.full(self.num_envs, None, object)
            for i in np.flatnonzero(over):
                infos["final_obs"][i] = {key: value[i] for key, value in last.items()}
        infos["final_info"] = final_info
        infos["_final_obs"], infos["_final_info"] = over.copy(), over.copy()

    # -- reading -------------------------------------------------------------------------------------------
    @property  # type: ignore[override]
    def spec(self) -> Any:
        """What `gym.make_vec` made it from, with the limit of steps that is in force."""
        return self._spec

    @spec.setter
    def spec(self, value: Any) -> None:
        self._spec = limited_spec(value, self.horizon, self.chunk)

    @property
    def _now(self) -> ImaginedEpisodes:
        if self._episodes is None:
            raise RuntimeError("nothing was imagined yet; call reset(seed=...) first")
        return self._episodes

    def _observation(self) -> dict[str, Any]:
        now = self._now
        state: Any = now.proprio.clamp(self._low, self._high)
        words: Any = tuple(str(text) for text in now.slots.instruction)
        if self.instruction_mode == "embedding":
            words = now.slots.embedding.copy()
        if self.tensors:
            if self.instruction_mode == "embedding":
                words = torch.as_tensor(words, device=self.device)
            image: Any = now.image
        else:
            image, state = now.image.cpu().numpy().copy(), state.cpu().numpy()
        observation = {"image": image, "instruction": words}
        return {**observation, "state": state} if self.world_model.state_dim else observation

    @property
    def finished(self) -> bool:
        """Whether every episode is over and waits for a reset."""
        return self._episodes is not None and bool(self._episodes.slots.over.all())

    @property
    def instructions(self) -> list[str]:
        """The words each slot is to obey."""
        return [str(text) for text in self._now.slots.instruction]

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:  # type: ignore[override]
        """The current frame of each slot, (H, W, 3) uint8, with `render_mode="rgb_array"`."""
        return tuple(self._now.image.cpu().numpy().copy()) if self.render_mode == "rgb_array" else None
