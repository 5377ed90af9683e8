"""The tabletop as a Gymnasium vector environment: the implementation; the single one is its batch-of-one view.

Task Description
    A two-finger hand on Cartesian axes, a cube, a cylinder and a ball of different colours, a tray, two zones,
    a drawer and a button. An English instruction names what to do: reach, push, pick and place, stack, open or
    close the drawer, press the button. `domain="real"` plays the robot; `domain="soft", gap=g` is the
    misspecified software simulator of a lab (g = 0 is Real itself).
Randomizations
    Colours, positions, tray, hand, paraphrase; wholly determined by (seed, task, split).
Success Conditions
    See `envs.tabletop.tasks.judge_truth`. All of them can be seen in a 64 px frame.

Example::

    import gymnasium as gym, worldgym
    envs = gym.make_vec("worldgym/Tabletop-v0", num_envs=4)
    obs, info = envs.reset(seed=0)
    obs, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
"""

from __future__ import annotations

import json
import struct
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.tabletop.grammar import TASKS
from envs.tabletop.scene import OPEN_WIDTH, Physics
from envs.tabletop.simulation import Simulation
from envs.tabletop.tasks import SPLITS, Scene, draw_scene
from worldgym.imagination import observations
from worldgym.imagination.observations import InstructionMode
from worldgym.imagination.settings import horizon_of, limited_spec

IMAGE_SIZE, STATE_DIM, ACTION_DIM = 64, 4, 4
MAGIC = b"WGTT1"
VARIANTS = 64  # draws of domain randomisation


def observation_space(image_size: int = IMAGE_SIZE, instruction: InstructionMode = "text") -> spaces.Dict:
    """One slot's observation: image (H,W,3) u8, instruction as text or as a sentence embedding (384,) f32, and state
    (4,) f32 = hand x, y, z and finger opening in metres.
    """
    low, high = (-0.3, -0.3, -0.05, -0.01), (0.3, 0.3, 0.3, OPEN_WIDTH + 0.02)
    return observations.observation_space(image_size, STATE_DIM, instruction, low, high)


class TabletopVectorEnv(VectorEnv):
    """N tabletops in one process, drawn by one renderer.

    Args:
        num_envs: number of slots.
        domain: `"real"` or `"soft"`.
        gap: misspecification of `"soft"` in [0, 1].
        looks: that of its camera, light and colours alone, in [0, 1]; as `gap` when None.
        randomise: in [0, 1]; each episode of `"soft"` gets physics and looks of its own, drawn so far around them (one
            of 64 draws, since each has to be compiled).
        task: one of the seven verbs, or None for a random one per episode.
        split: which start states and words are drawn.
        horizon: steps (of 0.2 s) until truncation.
        max_episode_steps: the same in steps of a chunk, as Gymnasium's vector environments take it.
        image_size: pixels, 16..256.
        chunk: None for actions `(4,)`, K for `(K, 4)` stepped as K frames.
        flat_actions: True takes a chunk as one vector `(4 K,)`, for libraries that want no matrix.
        terminate_on_success: False keeps an episode going after success.
        render_mode: None or `"rgb_array"`.
        autoreset_mode: one of Gymnasium's three.
        instruction: `"text"`, or `"embedding"` for libraries that take numbers only.
    """

    metadata: dict[str, Any] = {
        "render_modes": ["rgb_array"],
        "render_fps": 5,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        domain: Literal["real", "soft"] = "real",
        gap: float = 0.0,
        looks: float | None = None,
        randomise: float = 0.0,
        task: str | None = None,
        split: str = "seen",
        horizon: int | None = None,
        max_episode_steps: int | None = None,
        image_size: int = IMAGE_SIZE,
        chunk: int | None = None,
        terminate_on_success: bool = True,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        instruction: InstructionMode = "text",
        flat_actions: bool = False,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        if domain not in ("real", "soft"):
            raise ValueError(f"unknown domain {domain!r}; expected 'real' or 'soft'")
        if domain == "real" and (gap != 0.0 or looks is not None or randomise != 0.0):
            raise ValueError(
                f"gap={gap}, looks={looks}, randomise={randomise} need domain='soft'; domain='real' has no gap"
            )
        if task is not None and task not in TASKS:
            raise ValueError(f"unknown task {task!r}; known tasks: {', '.join(TASKS)}")
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; known splits: {', '.join(SPLITS)}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"unknown render_mode {render_mode!r}; expected None or 'rgb_array'")
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be None or at least 1, got {chunk}")
        self.num_envs, self.domain, self.gap, self.task, self.split = num_envs, domain, gap, task, split
        self.horizon = horizon_of(horizon, max_episode_steps, chunk)
        self.image_size, self.chunk = image_size, chunk
        self._spec: Any = None
        self.terminate_on_success, self.render_mode = terminate_on_success, render_mode
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        fps = type(self).metadata["render_fps"] / (chunk or 1)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode, "render_fps": fps}
        shape = (ACTION_DIM,) if chunk is None else (chunk, ACTION_DIM)
        shape = (int(np.prod(shape)),) if flat_actions else shape
        self.instruction_mode = instruction
        self.single_observation_space = observation_space(image_size, instruction)
        self.single_action_space = spaces.Box(-1.0, 1.0, shape, np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.looks, self.randomise = looks, randomise
        self._physics = Physics().softened(gap, looks)
        self._physics.randomised(randomise, np.random.default_rng(0))  # refuses what cannot be drawn
        self._sims = [Simulation(self._physics) for _ in range(num_envs)]
        self._variant = np.zeros(num_envs, np.int64)
        self._rngs = [np.random.default_rng() for _ in range(num_envs)]
        self._steps = np.zeros(num_envs, np.int64)
        self._returns = np.zeros(num_envs)
        self._success_once = np.zeros(num_envs, bool)
        self._done = np.ones(num_envs, bool)
        self._pending = np.zeros(num_envs, bool)
        self._frames: NDArray[np.uint8] = np.zeros((num_envs, image_size, image_size, 3), np.uint8)
        self.interactions = 0  # environment steps ever taken: Real's use is counted

    # -- starting ---------------------------------------------------------------------------------
    def reset(  # type: ignore[override]
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start episodes.

        Args:
            seed: slot i starts from seed + i (or `seed[i]`), whatever `num_envs` is.
            options: `task`, `split`, `instruction` (text or one per slot), `state` (bytes of `save_state`, or one
                per slot), `reset_mask` (num_envs,) bool: which slots to reset.
        """
        options = dict(options or {})
        known = {"task", "split", "instruction", "state", "reset_mask", "scene"}
        if unknown := set(options) - known:
            raise ValueError(f"unknown reset options {sorted(unknown)}; known: {sorted(known)}")
        mask = np.ones(self.num_envs, bool)
        if options.get("reset_mask") is not None:
            mask = np.asarray(options["reset_mask"])
            if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
                raise ValueError(
                    f"reset_mask must be bool of shape ({self.num_envs},), got {mask.dtype} {mask.shape}"
                )
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int | np.integer) else seed
        for i in map(int, np.flatnonzero(mask)):
            self._start(
                i,
                None if seeds is None else seeds[i],
                {k: _of(v, i) for k, v in options.items() if k != "reset_mask"},
            )
        return self._observe(mask), self._info(self._empty_path(mask))

    def _start(self, i: int, seed: int | None, options: dict[str, Any]) -> None:
        if seed is not None:
            self._rngs[i] = np.random.default_rng(seed)
        if options.get("state") is not None:
            self._restore_slot(i, options["state"])
        else:
            scene = options.get("scene")
            if scene is None:
                task = options.get("task") or self.task
                scene_seed = int(self._rngs[i].integers(2**31)) if seed is None else int(seed)
                if task is None:
                    task = TASKS[int(self._rngs[i].integers(len(TASKS)))]
                scene = draw_scene(scene_seed, task, options.get("split") or self.split)
            if self.randomise:
                self._vary(i, int(self._rngs[i].integers(VARIANTS)))
            self._sims[i].load(scene if isinstance(scene, Scene) else Scene.from_json(scene))
            self._steps[i], self._returns[i], self._success_once[i] = 0, 0.0, False
        if options.get("instruction") is not None:
            self._sims[i].instruction = str(options["instruction"])
        self._done[i] = self._pending[i] = False

    def _vary(self, i: int, variant: int) -> None:
        """Physics of slot `i`: one of the draws around those of the domain."""
        self._variant[i] = variant
        self._sims[i] = Simulation(self._physics.randomised(self.randomise, np.random.default_rng(variant)))

    # -- stepping ---------------------------------------------------------------------------------
    def step(
        self, actions: NDArray[np.floating]
    ) -> tuple[dict[str, Any], NDArray, NDArray, NDArray, dict[str, Any]]:  # type: ignore[override]
        """Step every slot by one action (or a chunk of K).

        Returns:
            As Gymnasium. With a chunk, `info` also tells of every step in it, the last one repeated after an end:
            `path` (num_envs, K, 4), the proprioception, `path_success` (num_envs, K) and `path_progress`.

        Raises:
            ValueError: wrong shape, NaN, or an action outside [-1, 1].
        """
        skipped = self._pending.copy()  # with NEXT_STEP: whatever their action is, they are about to be reset
        actions = check_actions(actions, self.action_space.shape or (), ~skipped)
        if self.autoreset_mode == AutoresetMode.DISABLED and self._done.any():
            raise ValueError(
                f"slots {np.flatnonzero(self._done).tolist()} are done; "
                "call reset(options={'reset_mask': mask}) first"
            )
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        path = self._empty_path(~skipped)
        for i in range(self.num_envs):
            if skipped[i]:
                self._start(i, None, {})
                continue
            for t, action in enumerate(actions[i].reshape(-1, ACTION_DIM)):
                self._sims[i].step(action)
                self.interactions += 1
                self._steps[i] += 1
                success, progress = self._sims[i].truth()
                if path:
                    path["path"][i, t:] = self._sims[i].state()
                    path["path_success"][i, t:], path["path_progress"][i, t:] = success, progress
                rewards[i] += float(success and not self._success_once[i])
                self._success_once[i] |= success
                terminated[i] = success and self.terminate_on_success
                truncated[i] = self._steps[i] >= self.horizon and not terminated[i]
                if terminated[i] or truncated[i]:
                    break
        self._returns += rewards
        done = terminated | truncated
        self._done = done.copy()
        observation, info = self._observe(), self._info(path)
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            self._pending = done.copy()
        elif self.autoreset_mode == AutoresetMode.SAME_STEP and done.any():
            final_info = {k: v & done if k.startswith("_") else v for k, v in info.items()}
            last = np.full(self.num_envs, None, object)  # an entry a slot that ended, as SyncVectorEnv has it
            for i in map(int, np.flatnonzero(done)):
                last[i] = {key: value[i] for key, value in observation.items()}
                self._start(i, None, {})
            after = self._observe(done)
            info = {
                **self._info(path),
                "final_obs": last,
                "_final_obs": done.copy(),
                "final_info": final_info,
                "_final_info": done.copy(),
            }
            observation = after
        return observation, rewards, terminated, truncated, info

    def _empty_path(self, stepped: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
        """Room for what `step` tells of every step in a chunk; nothing without one."""
        if self.chunk is None:
            return {}
        k = self.chunk
        truths = [sim.truth() for sim in self._sims]  # a reset shows the start, as often as a step has states
        path = {
            "path": np.repeat(np.stack([sim.state() for sim in self._sims])[:, None], k, 1).astype(
                np.float32
            ),
            "path_success": np.repeat(np.array([[t[0]] for t in truths], bool), k, 1),
            "path_progress": np.repeat(np.array([[t[1]] for t in truths], np.float32), k, 1),
        }
        return {**path, **{f"_{key}": stepped.copy() for key in path}}

    # -- reading ----------------------------------------------------------------------------------
    def _observe(self, redraw: NDArray[np.bool_] | None = None) -> dict[str, Any]:
        frames = self._frames.copy()  # observations handed out earlier must not change
        for i in range(self.num_envs):
            if redraw is None or redraw[i]:
                frames[i] = self._sims[i].draw(self.image_size)
        self._frames = frames
        states = np.stack([s.state() for s in self._sims])
        words: Any = tuple(s.instruction for s in self._sims)
        if self.instruction_mode == "embedding":
            from worldgym.text import embed

            words = embed(words)
        return {"image": frames.copy(), "instruction": words, "state": states}

    def _info(self, path: dict[str, Any]) -> dict[str, Any]:
        """The same entries at a reset and at a step; metrics are those of the episode so far."""
        truths = [s.truth() for s in self._sims]
        all_slots = np.ones(self.num_envs, bool)
        info: dict[str, Any] = {
            "success": np.array([t[0] for t in truths]),
            "progress": np.array([t[1] for t in truths], np.float32),
            "task": np.array([s.scene.task for s in self._sims], dtype=object),
            "instruction_text": np.array([s.instruction for s in self._sims], dtype=object),
            "success_once": self._success_once.copy(),
            "success_at_end": np.array([t[0] for t in truths]),
            "return": self._returns.copy(),
            "episode_len": self._steps.copy(),
        }
        return info | {f"_{key}": all_slots.copy() for key in info} | path

    @property  # type: ignore[override]
    def spec(self) -> Any:
        """What `gym.make_vec` made it from, with the limit of steps that is in force."""
        return self._spec

    @spec.setter
    def spec(self, value: Any) -> None:
        self._spec = limited_spec(value, self.horizon, self.chunk)

    def scene(self, i: int = 0) -> Scene:
        """The start state that slot `i` was drawn from."""
        return self._sims[i].scene

    def simulation(self, i: int = 0) -> Simulation:
        """The simulator of slot `i` (privileged: experts and audits only)."""
        return self._sims[i]

    # -- saving -----------------------------------------------------------------------------------
    def save_state(self, i: int = 0) -> bytes:
        """Slot `i`, bit for bit, as bytes that any process can restore."""
        sim = self._sims[i]
        head = json.dumps(
            {
                "scene": sim.scene.to_json(), "instruction": sim.instruction, "steps": int(self._steps[i]),
                "return": float(self._returns[i]), "success_once": bool(self._success_once[i]), "lamp": sim.lamp,
                "rng": self._rngs[i].bit_generator.state, "domain": self.domain, "gap": self.gap,
                "variant": int(self._variant[i]),
            }
        ).encode()  # fmt: skip
        return MAGIC + struct.pack("<I", len(head)) + head + sim.physics_state().tobytes()

    def restore_state(self, state: bytes, i: int = 0) -> None:
        """Put slot `i` back; the next steps are the same bits as they were after `save_state`."""
        self._restore_slot(i, state)
        self._done[i] = self._pending[i] = False

    def _restore_slot(self, i: int, state: bytes) -> None:
        if not isinstance(state, bytes) or state[: len(MAGIC)] != MAGIC:
            raise ValueError("state is not a saved tabletop state; pass the bytes that save_state() returned")
        (n,) = struct.unpack_from("<I", state, len(MAGIC))
        start = len(MAGIC) + 4
        head = json.loads(state[start : start + n])
        if self.randomise:
            self._vary(i, head.get("variant", 0))
        sim = self._sims[i]
        sim.load(Scene.from_json(head["scene"]))
        sim.set_physics_state(np.frombuffer(state[start + n :], np.float64))
        sim.instruction, sim.lamp = head["instruction"], head["lamp"]
        self._steps[i], self._returns[i], self._success_once[i] = (
            head["steps"],
            head["return"],
            head["success_once"],
        )
        self._rngs[i].bit_generator.state = head["rng"]

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:  # type: ignore[override]
        """One `(256, 256, 3)` uint8 frame a slot with `render_mode="rgb_array"`."""
        if self.render_mode is None:
            return None
        return tuple(s.draw(256) for s in self._sims)

    def close_extras(self, **kwargs: Any) -> None:
        """Nothing to release: the renderer belongs to the process."""


def check_actions(
    actions: Any, shape: tuple[int, ...], used: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """Return `actions` as float32 or say what is wrong with them; rows not `used (N,)` may hold anything."""
    if hasattr(actions, "detach"):  # a tensor, which may require a gradient
        actions = actions.detach().cpu().numpy()
    a = np.asarray(actions, np.float32)
    if a.shape != shape:
        raise ValueError(f"actions have shape {a.shape}, expected {shape}: dx, dy, dz, gripper in [-1, 1]")
    if used is not None and not used.all():
        a = np.where(used.reshape(-1, *[1] * (a.ndim - 1)), a, np.float32(0))
    if not np.isfinite(a).all():
        raise ValueError("actions hold NaN or infinity; expected finite numbers in [-1, 1]")
    if np.abs(a).max(initial=0.0) > 1.0 + 1e-6:
        worst = float(a.flat[np.abs(a).argmax()])
        raise ValueError(
            f"an action is {worst:.4g}, outside [-1, 1]; np.clip(action, -1, 1) if that is what you mean"
        )
    return a


def _of(value: Any, i: int) -> Any:
    """Option `value` of slot `i`: lists, tuples and object arrays hold one entry a slot."""
    return (
        value[i]
        if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim)
        else value
    )
