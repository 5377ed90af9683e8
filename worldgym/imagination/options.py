"""What `reset(options=...)` may say, and what it means for each slot.

Why: the same six options come from a user at a prompt, from a curriculum and from a planner; a misspelt key
that is silently ignored would start every episode from somewhere else than intended.

Example::

    envs.reset(options={"task": "push"})
    envs.reset(options={"initial_image": photo, "instruction": "push the red cube to the left"})
    envs.reset(options={"episode": 12, "frame": 20, "reset_mask": mask})
    envs.reset(options={"state": envs.save_state()})
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from worldgym.imagination.episodes import SavedState
from worldgym.imagination.spaces import check_image, check_instruction
from worldgym.imagination.starts import Start, StartSet, read_image, start_from_episode

KEYS = ("instruction", "initial_image", "episode", "frame", "state", "task", "reset_mask")


@dataclass(frozen=True)
class ResetPlan:
    """What to begin R slots from: a saved state's rows, or stacked context frames.

    Args:
        instructions: R strings.
        tasks: R strings.
        frames: (R, Tc, H, W, 3) uint8.
        actions: (R, Tc-1, A) float32.
        states: (R, Tc, S) float32, or None for the model's estimate.
        source: a `SavedState` instead of frames, or None.
        source_rows: its rows, R of them.
    """

    instructions: list[str]
    tasks: list[str]
    frames: NDArray[np.uint8] | None = None
    actions: NDArray[np.float32] | None = None
    states: NDArray[np.float32] | None = None
    source: SavedState | None = None
    source_rows: NDArray[np.int64] | None = None


def check_mask(mask: Any, num_envs: int) -> NDArray[np.bool_]:
    """The slots to reset, (num_envs,) bool; None means all.

    Raises:
        ValueError: not such an array, or all False.
    """
    if mask is None:
        return np.ones(num_envs, np.bool_)
    if hasattr(mask, "detach"):
        mask = mask.detach().cpu().numpy()
    if (
        not isinstance(mask, np.ndarray)
        or mask.shape != (num_envs,)
        or mask.dtype != np.bool_
        or not mask.any()
    ):
        got = f"{mask.dtype} {mask.shape}, {mask.tolist()}" if isinstance(mask, np.ndarray) else repr(mask)
        raise ValueError(
            f"reset_mask is {got}; expected a bool array of shape ({num_envs},) with at least one True"
        )
    return mask


def plan(
    options: dict[str, Any],
    rows: NDArray[np.int64],
    streams: Sequence[np.random.Generator],
    starts: StartSet | None,
    model: Any,
    num_envs: int,
    words: spaces.Text,
) -> ResetPlan:
    """Turn options into starts for the slots `rows`, drawing what they leave open from each slot's stream.

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
    )


def begin_rows(model: Any, frames: Tensor, actions: Tensor, states: Tensor | None, seeds: Tensor) -> Any:
    """`model.begin` with one noise seed a row, so that a row's dream does not depend on its neighbours.

    A model whose state has no `keys` gets a generator made from the first row's seed instead: runs stay
    reproducible, but a slot's noise then depends on which slots are reset with it.
    """
    dream = model.begin(frames, actions, torch.Generator().manual_seed(int(seeds[0])), states=states)
    return rekey(dream, seeds) if has_keys(dream) else dream


def has_keys(dream: Any) -> bool:
    """Whether a state is a named tuple with `keys (B,) int64`, from which each row draws its noise."""
    return "keys" in getattr(dream, "_fields", ())


def rekey(dream: Any, seeds: Tensor) -> Any:
    """`dream` with other noise keys `(B,)`.

    Raises:
        ValueError: the model's state has none.
    """
    if not has_keys(dream):
        raise ValueError(
            f"a {type(dream).__name__} has no noise keys; expected a NamedTuple with keys (B,) int64, as"
            " VideoWorldModel's"
        )
    return dream._replace(keys=seeds.to(dream.keys.device))


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
    if image is not None and episode is not None:
        raise ValueError("options hold both 'initial_image' and 'episode'; expected one of them")
    if image is not None:
        pixels = read_image(image) if isinstance(image, (str, Path)) else image
        start = Start(
            check_image(pixels, model.image_size)[None], states=_proprio(options.get("state"), model)
        )
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
    check_image(start.frames[-1], model.image_size, "a start's frame")
    if text is None and start.instruction is None:
        raise ValueError("an initial_image comes without words; add options={'instruction': 'push the ...'}")
    words = check_instruction(start.instruction if text is None else text, space)
    return Start(start.frames, words, start.states, start.actions, start.task)


def _proprio(state: Any, model: Any) -> NDArray[np.float32] | None:
    if state is None:
        return None
    array = np.asarray(state, np.float32)
    if array.shape != (model.state_dim,) or not np.isfinite(array).all():
        raise ValueError(
            f"option 'state' is {array.tolist()}; expected {model.state_dim} finite numbers or a saved state"
        )
    return array[None]


def _of_slot(key: str, value: Any, i: int, num_envs: int) -> Any:
    """Slot i's share of an option: sequences, and arrays of one dimension more than a value, are per slot."""
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
