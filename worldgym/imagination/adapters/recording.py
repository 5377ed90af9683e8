"""Record an environment: every finished episode of a batch becomes an episode of a dataset.

A recorded imagined episode can be viewed, replayed in the suite's real domain, or used for training by anything that
reads a LeRobotDataset. `domain` marks it as imagined and the provenance names the judge, so that it is not mistaken for
a logged episode. Simulators of a suite can be recorded too; their episodes are logs. All cameras are recorded.

Example::

    import gymnasium as gym
    from worldgym.imagination.adapters.recording import RecordDataset
    envs = gym.make_vec("worldgym/Imagined-v0", num_envs=16, checkpoint="runs/bundle", chunk=5, info_frames=True)
    with RecordDataset(envs, "data/imagined", behaviour="sft") as envs:
        ...  # reset and step as usual
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray

from worldgym.data import ActionSpec, DatasetWriter, Episode, SplitManifest
from worldgym.specs import Camera, ObservationSpec, Specs, specs_of, state_fields
from worldgym.suite import load_suite


@dataclass
class _OpenEpisode:
    """An unfinished episode; it has one frame (per camera key) and one state more than actions."""

    frames: dict[str, list[NDArray[np.uint8]]]
    states: list[NDArray[np.float32]]
    instruction: str
    task: str
    actions: list[NDArray[np.float32]] = field(default_factory=list)
    success: list[bool] = field(default_factory=lambda: [False])
    progress: list[float] = field(default_factory=lambda: [0.0])
    judged: list[int] = field(default_factory=list)
    uncertainty: float = 0.0


class RecordDataset(VectorWrapper):
    """A vector environment that writes each episode to a dataset when it ends.

    For imagined frames, success and progress come from the judge: its success decision and its probability, at the
    frames that it judged (provenance `judged`); False and 0 at all other frames. Episodes with an invalid judgement are
    counted in `dropped` and not written, and so are episodes that a reset or `close` cuts short. After restoring or
    forking states of the inner environment, reset before you continue, because the wrapper did not record the frames
    before that state.

    Args:
        env: a vector environment with `image`, `state` and `instruction`; chunked actions need `info_frames=True`.
        path: the dataset folder; it is created, or continued if it exists.
        behaviour: name of the acting policy, stored in the provenance.
        split: split that the starts belong to.
        action_spec: meaning of the actions; None takes that of the environment or of its world model.
        manifest: the split rules; None writes a manifest that names only the recorded environment and split.
        shard_episodes: episodes per file; at most this many are lost if the process is killed.

    Raises:
        ValueError: an environment without images, or one that steps chunks and returns only their last frame.
        DatasetError: the folder holds another kind of dataset.
    """

    def __init__(
        self,
        env: VectorEnv,
        path: str | os.PathLike[str],
        *,
        behaviour: str = "policy",
        split: str = "seen",
        action_spec: ActionSpec | None = None,
        manifest: SplitManifest | None = None,
        shard_episodes: int = 50,
    ) -> None:
        self.dropped = 0
        self._open: list[_OpenEpisode | None] = []
        self._writer: DatasetWriter | None = None  # `close` needs these even if a check below fails
        super().__init__(env)
        base: Any = env.unwrapped
        spaces = getattr(env.single_observation_space, "spaces", {})
        if not {"image", "state", "instruction"} <= set(spaces):
            raise ValueError(
                f"this environment observes {sorted(spaces) or env.single_observation_space}; recording needs image, "
                "state and instruction, as in the environment ids of worldgym"
            )
        self.chunk = getattr(base, "chunk", None)
        if self.chunk is not None and not getattr(base, "info_frames", False):
            raise ValueError(
                f"chunk={self.chunk} returns only the last of {self.chunk} frames: make the environment with "
                "info_frames=True (imagined ids), or without a chunk"
            )
        self.domain = str(getattr(base, "domain", "imagined"))
        self.behaviour, self.split = behaviour, split
        self._mode = AutoresetMode(env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        self._judge = getattr(
            getattr(base, "reward", None), "name", "none" if self.domain == "imagined" else "simulator"
        )
        self._open = [None] * env.num_envs
        self._waiting = np.zeros(env.num_envs, np.bool_)
        self._keys = [key for key in spaces if key == "image" or key.startswith("image_")]
        self._names = {key: key.removeprefix("image_") for key in self._keys[1:]}
        if action_spec is None:
            action_spec = _actions_of(base)
        if manifest is None:
            manifest = SplitManifest(name="recorded", rules={"domain": self.domain, "split": split})
        self._writer = DatasetWriter(
            path, Specs(self._recorded_spec(base, spaces), action_spec), manifest, shard_episodes=shard_episodes
        )

    def _recorded_spec(self, base: Any, spaces: Any) -> ObservationSpec:
        """The recorded observation spec: that of the environment if it has one, else made from its space sizes."""
        known = getattr(base, "specs", None) or specs_of(getattr(base, "world_model", None))
        cameras, state = known.observation.cameras, known.observation.state
        main = next(name for name in ("front", "main", "main_camera") if name not in self._names.values())
        sizes = {main: spaces["image"].shape[:2]}
        sizes |= {name: spaces[key].shape[:2] for key, name in self._names.items()}
        if [camera.size for camera in cameras] != list(sizes.values()):
            cameras = tuple(Camera(name, *size) for name, size in sizes.items())
        if len(state) != spaces["state"].shape[0]:
            state = state_fields([f"state_{i}" for i in range(spaces["state"].shape[0])])
        return ObservationSpec(cameras, state)

    def reset(  # type: ignore[override]
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; unfinished episodes in the slots that are reset are dropped."""
        mask = np.ones(self.num_envs, np.bool_)
        if options and options.get("reset_mask") is not None:
            mask = np.asarray(options["reset_mask"], np.bool_)
        observation, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        for i in map(int, np.flatnonzero(mask)):
            self._begin(i, observation, info)
        self._waiting &= ~mask
        return observation, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environment; episodes that end are written."""
        observation, reward, terminated, truncated, info = self.env.step(actions)
        over = _numpy(terminated) | _numpy(truncated)
        taken = _numpy(actions).astype(np.float32).reshape(self.num_envs, self.chunk or 1, -1)
        same_step = self._mode is AutoresetMode.SAME_STEP
        for i in range(self.num_envs):
            if self._waiting[i]:  # NEXT_STEP: the action was ignored, this is the first frame of a new episode
                self._begin(i, observation, info)
            elif self._open[i] is not None:
                last = info["final_obs"] if same_step and over[i] else observation
                step_info = info["final_info"] if same_step and over[i] else info
                self._add(i, taken[i], last, step_info)
                if over[i]:
                    self._end(i, step_info)
                    if same_step:
                        self._begin(i, observation, info)
        self._waiting = over if self._mode is AutoresetMode.NEXT_STEP else np.zeros(self.num_envs, np.bool_)
        return observation, reward, terminated, truncated, info

    def _begin(self, i: int, observation: Any, info: dict[str, Any]) -> None:
        if self._open[i] is not None and self._open[i].actions:  # type: ignore[union-attr]
            self.dropped += 1
        self._open[i] = _OpenEpisode(
            {key: [_numpy(observation[key][i]).copy()] for key in self._keys},
            [_numpy(observation["state"][i]).astype(np.float32)],
            str(_entry(info, "instruction_text", i) or ""),
            str(_entry(info, "task", i) or "unknown"),
        )

    def _add(self, i: int, actions: NDArray[np.float32], last: Any, info: dict[str, Any]) -> None:
        episode = self._open[i]
        assert episode is not None
        if self.chunk is None:
            # SAME_STEP returns one observation per slot, tensor environments one for all slots
            shown = (
                {key: last[key][i] for key in (*self._keys, "state")} if isinstance(last, dict) else last[i]
            )
            videos = {key: _numpy(shown[key])[None] for key in self._keys}
            states = _numpy(shown["state"])[None]
        else:
            videos = {key: _numpy(info[key.replace("image", "frames", 1)][i]) for key in self._keys}
            states = _numpy(info["states"][i])
        for key, video in videos.items():
            episode.frames[key] += list(video.copy())
        episode.states += list(states.astype(np.float32))
        episode.actions += list(actions)
        quiet = len(states) - 1
        progress = _entry(info, "p_success" if self.domain == "imagined" else "progress", i)
        if progress is not None and not np.isfinite(progress):  # this frame was not judged
            progress = None
        episode.success += [False] * quiet + [bool(_entry(info, "success", i))]
        episode.progress += [0.0] * quiet + [float(progress or 0.0)]
        if progress is not None:
            episode.judged.append(len(episode.actions))
        episode.uncertainty = max(episode.uncertainty, float(_entry(info, "uncertainty", i) or 0.0))

    def _end(self, i: int, info: dict[str, Any]) -> None:
        episode, self._open[i] = self._open[i], None
        assert episode is not None
        if bool(_entry(info, "invalid", i)):
            self.dropped += 1
            return
        provenance: dict[str, Any] = {"behaviour": self.behaviour, "judge": self._judge}
        if self.domain == "imagined":
            provenance |= {
                "judged": episode.judged,
                "uncertainty": episode.uncertainty,
                "hallucination": bool(_entry(info, "hallucination", i)),
            }
        assert self._writer is not None
        self._writer.append(
            Episode(
                frames=np.stack(episode.frames["image"]),
                views={name: np.stack(episode.frames[key]) for key, name in self._names.items()},
                actions=np.stack(episode.actions),
                state=np.stack(episode.states),
                instruction=episode.instruction,
                success=np.array(episode.success, np.bool_),
                progress=np.clip(np.array(episode.progress, np.float32), 0, 1),
                domain=self.domain,
                split=self.split,
                task=episode.task,
                provenance=provenance,
            )
        )

    def close(self, **kwargs: Any) -> None:
        """Write finished episodes, drop unfinished ones, close the environment."""
        self.dropped += sum(e is not None and bool(e.actions) for e in self._open)
        self._open = [None] * len(self._open)
        if self._writer is not None:
            self._writer.close()
        super().close(**kwargs)

    def __enter__(self) -> RecordDataset:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _numpy(value: Any) -> NDArray[Any]:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def _actions_of(env: Any) -> ActionSpec:
    """Meaning of an environment's actions, from its own specs, its world model's, or the default suite's.

    Raises:
        ValueError: none of them has an action spec of this dimension.
    """
    size = int(getattr(getattr(env, "world_model", None), "action_dim", 0))
    specs = getattr(env, "specs", None) or specs_of(getattr(env, "world_model", None))
    found = specs.action or load_suite().specs.action  # world models of earlier versions store no action spec
    if found is None or (size and found.dim != size):
        raise ValueError(
            f"no specs define the meaning of the {size} numbers of an action; give action_spec=ActionSpec(...)"
        )
    return found


def _entry(info: dict[str, Any], key: str, i: int) -> Any:
    """Slot i's entry of a batched info, or None."""
    return info[key][i] if key in info and info[f"_{key}"][i] else None
