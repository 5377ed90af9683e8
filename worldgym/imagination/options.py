"""Parsing of `reset(options=...)` into a start for each slot.

The same six options are given by interactive users, by curricula and by planners. Unknown keys are an error, because a
misspelt key that is silently ignored would start episodes from an unintended state.

Example::

    envs.reset(options={"task": "push"})
    envs.reset(options={"initial_image": photo, "instruction": "push the red cube to the left"})
    envs.reset(options={"initial_image": {"front": photo, "wrist": photo_2}, "instruction": "open the drawer"})
    envs.reset(options={"episode": 12, "frame": 20, "reset_mask": mask})
    envs.reset(options={"state": envs.save_state()})
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from worldgym.errors import ConfigError
from worldgym.imagination.checks import check_image, check_instruction
from worldgym.imagination.episodes import SavedState
from worldgym.imagination.starts import Start, StartSet, read_image, start_from_episode
from worldgym.specs import ObservationSpec, specs_of

KEYS = ("instruction", "initial_image", "episode", "frame", "state", "task", "reset_mask")


@dataclass(frozen=True)
class ResetPlan:
    """Starts of R slots: rows of a saved state, or stacked context frames.

    Args:
        instructions: R strings.
        tasks: R strings.
        frames: (R, Tc, H, W, 3) uint8.
        actions: (R, Tc-1, A) float32.
        states: (R, Tc, S) float32, or None to let the model estimate them.
        views: frames of further cameras, by camera name, each (R, Tc, H', W', 3) uint8.
        source: a `SavedState` used instead of frames, or None.
        source_rows: the R rows of `source`.
    """

    instructions: list[str]
    tasks: list[str]
    frames: NDArray[np.uint8] | None = None
    actions: NDArray[np.float32] | None = None
    states: NDArray[np.float32] | None = None
    views: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    source: SavedState | None = None
    source_rows: NDArray[np.int64] | None = None


def plan(
    options: dict[str, Any],
    rows: NDArray[np.int64],
    streams: Sequence[np.random.Generator],
    starts: StartSet | None,
    model: Any,
    num_envs: int,
    words: spaces.Text,
) -> ResetPlan:
    """Turn options into starts for the slots `rows`; values left open are drawn from each slot's stream.

    Raises:
        ValueError: an unknown option, a value that does not fit, or nothing to start from.
    """
    for key in options:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown reset option {key!r}; {hint}known options: {', '.join(KEYS)}")
    saved = options.get("state")
    if isinstance(saved, SavedState):
        return _from_saved(options, saved, rows, num_envs, words)
    made = [
        _start(
            {k: _of_slot(k, v, int(i), num_envs) for k, v in options.items()}, stream, starts, model, words
        )
        for i, stream in zip(rows, streams, strict=True)
    ]
    lengths = {len(start.frames) for start in made}
    if len(lengths) > 1:
        raise ValueError(f"starts with {sorted(lengths)} context frames in one reset; expected one length")
    known = all(start.states is not None for start in made)
    blank = np.zeros((lengths.pop() - 1, model.action_dim), np.float32)
    return ResetPlan(
        instructions=[str(start.instruction) for start in made],
        tasks=[start.task for start in made],
        frames=np.stack([start.frames for start in made]),
        actions=np.stack([blank if start.actions is None else start.actions for start in made]),
        states=np.stack([np.asarray(start.states, np.float32) for start in made]) if known else None,
        views={
            camera.name: np.stack([start.views[camera.name] for start in made])
            for camera in specs_of(model).observation.views
        },
    )


def begin_rows(
    model: Any,
    frames: Tensor,
    actions: Tensor,
    states: Tensor | None,
    seeds: Tensor,
    views: Mapping[str, Tensor] | None = None,
) -> Any:
    """`model.begin` with one noise seed per row, so that a row's predictions do not depend on the other rows.

    A model whose state has no `keys` gets a generator seeded with the first row's seed instead. Runs stay reproducible,
    but a slot's noise then depends on which slots are reset with it.
    """
    more: Any = {"views": views} if views else {}
    state = model.begin(frames, actions, torch.Generator().manual_seed(int(seeds[0])), states=states, **more)
    return rekey(state, seeds) if has_keys(state) else state


def has_keys(state: Any) -> bool:
    """Whether a state has noise keys `keys (B,) int64`, from which the noise of each row is drawn."""
    return isinstance(getattr(state, "keys", None), Tensor)


def rekey(state: Any, seeds: Tensor) -> Any:
    """`state` with new noise keys `(B,)`: by its `with_keys`, or a copy of a dataclass or named tuple.

    Raises:
        ValueError: the model's state has no noise keys.
    """
    if not has_keys(state):
        raise ValueError(
            f"a {type(state).__name__} has no noise keys; expected `keys (B,)` int64 and `with_keys(keys)`, as in"
            " the state of a VideoWorldModel"
        )
    seeds = seeds.to(state.keys.device)
    if hasattr(state, "with_keys"):
        return state.with_keys(seeds)
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        return dataclasses.replace(state, keys=seeds)
    if hasattr(state, "_replace"):
        return state._replace(keys=seeds)
    raise ValueError(
        f"a {type(state).__name__} has noise keys and no way to change them; give it a method `with_keys(keys)`, or"
        " make it a dataclass or a named tuple"
    )


def _from_saved(
    options: dict[str, Any], saved: SavedState, rows: NDArray[np.int64], num_envs: int, space: spaces.Text
) -> ResetPlan:
    if extra := set(options) - {"state", "instruction"}:
        raise ValueError(f"options {sorted(extra)} beside a saved state; expected at most 'instruction'")
    if saved.num_envs not in (1, num_envs):
        raise ValueError(
            f"a state of {saved.num_envs} slots for {num_envs}; expected {num_envs}, or 1 for all of them"
        )
    source = np.zeros(len(rows), np.int64) if saved.num_envs == 1 else rows
    words = [str(text) for text in saved.episodes.slots.instruction[source]]
    if options.get("instruction") is not None:
        words = [
            check_instruction(_of_slot("instruction", options["instruction"], int(i), num_envs), space)
            for i in rows
        ]
    tasks = [str(task) for task in saved.episodes.slots.task[source]]
    return ResetPlan(words, tasks, source=saved, source_rows=source)


def _start(
    options: dict[str, Any],
    stream: np.random.Generator,
    starts: StartSet | None,
    model: Any,
    space: spaces.Text,
) -> Start:
    """One slot's start; `options` hold this slot's values only."""
    image, episode, text = options.get("initial_image"), options.get("episode"), options.get("instruction")
    spec = specs_of(model).observation
    if image is not None and episode is not None:
        raise ValueError("options hold both 'initial_image' and 'episode'; expected one of them")
    if image is not None:
        start = _start_from_images(image, _proprio(options.get("state"), spec.state_dim), spec)
    elif options.get("state") is not None:
        raise ValueError(
            "option 'state' is proprioception without an 'initial_image'; pass both, or a saved state"
        )
    elif episode is not None and hasattr(episode, "frames"):
        start = start_from_episode(episode, int(options.get("frame") or 0))
    elif starts is None:
        raise ValueError(
            "no start set: pass starts=... when making the environment, or reset(options={"
            "'initial_image': image, 'instruction': text})"
        )
    elif episode is not None:
        start = starts.get(int(episode), int(options.get("frame") or 0))
    else:
        start = starts.sample(stream, task=options.get("task"))
    check_image(start.frames[-1], spec.main.size, "a start's frame")
    for camera in spec.views:
        if camera.name not in start.views:
            raise ValueError(
                f"the start has no frames of camera {camera.name}, which the world model imagines; it has frames of "
                f"{spec.main.name}{''.join(f' and {name}' for name in start.views)}. Record that camera, or give "
                f"options={{'initial_image': {{{spec.main.name!r}: ..., {camera.name!r}: ...}}}}"
            )
        check_image(start.views[camera.name][-1], camera.size, f"a start's frame of camera {camera.name}")
    states = start.states if spec.state_dim else None
    if states is not None and states.shape[-1] != spec.state_dim:
        names = ", ".join(item.name for item in spec.state)
        raise ConfigError(
            f"the start has {states.shape[-1]} state values; the world model needs {spec.state_dim}: {names}. Give "
            "starts with these, in this order"
        )
    if text is None and start.instruction is None:
        raise ValueError("an initial_image has no instruction; add options={'instruction': 'push the ...'}")
    words = check_instruction(start.instruction if text is None else text, space)
    return Start(start.frames, words, states, start.actions, start.task, start.views)


def _start_from_images(image: Any, states: NDArray[np.float32] | None, spec: ObservationSpec) -> Start:
    """A start from one image, or from one image per camera, by name."""
    names = [camera.name for camera in spec.cameras]
    pictures = image if isinstance(image, Mapping) else {names[0]: image}
    missing, unknown = set(names) - set(pictures), set(pictures) - set(names)
    if missing or unknown:
        problems = [f"no picture of camera {name}" for name in names if name in missing]
        problems += [f"an unknown camera {name}" for name in sorted(map(str, unknown))]
        raise ValueError(
            f"option 'initial_image' has {' and '.join(problems)}; the world model imagines {', '.join(names)}: give "
            f"{{{', '.join(f'{name!r}: (H, W, 3) uint8' for name in names)}}}"
        )
    seen: dict[str, NDArray[np.uint8]] = {}
    for camera in spec.cameras:
        picture = pictures[camera.name]
        pixels = read_image(picture) if isinstance(picture, (str, Path)) else picture
        image_name = "initial_image" if len(names) == 1 else f"initial_image of camera {camera.name}"
        seen[camera.name] = check_image(pixels, camera.size, image_name)[None]
    return Start(seen.pop(names[0]), states=states, views=seen)


def _proprio(state: Any, state_dim: int) -> NDArray[np.float32] | None:
    if state is None:
        return None
    array = np.asarray(state, np.float32)
    if array.shape != (state_dim,) or not np.isfinite(array).all():
        raise ValueError(
            f"option 'state' is {array.tolist()}; expected {state_dim} finite numbers or a saved state"
        )
    return array[None]


def _of_slot(key: str, value: Any, i: int, num_envs: int) -> Any:
    """Slot i's value of an option: sequences, and arrays with one dimension more than a value, are per slot."""
    if isinstance(value, Mapping):  # images by camera
        return {name: _of_slot(key, part, i, num_envs) for name, part in value.items()}
    single = {"initial_image": 3, "state": 1}.get(key, 0)
    array = hasattr(value, "ndim") and value.ndim > single
    if not array and not isinstance(value, (list, tuple)):
        return value
    if key == "state" and not array and not np.ndim(value[0] if len(value) else 0):
        return value  # a plain list of S numbers
    if len(value) != num_envs:
        raise ValueError(
            f"option {key!r} has {len(value)} entries; expected one value, or one for each of {num_envs}"
        )
    return value[i]
