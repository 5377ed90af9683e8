"""Starts of imagined episodes: from arrays, from logged episodes (any frame), or from one image.

The start set is the curriculum of training in imagination. A start in the middle of a logged episode leaves few
imagined frames, and thus little model error, before the contact that decides success.

Example::

    from worldgym.imagination.starts import ArrayStarts
    starts = ArrayStarts.load("runs/bundle/starts.npz")
    start = starts.sample(np.random.default_rng(0))
    start.frames.shape, start.instruction  # (1, 64, 64, 3), "push the red cube ..."
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from worldgym.errors import CheckpointError
from worldgym.utils.arrays import Field, array_names, read_arrays, write_arrays
from worldgym.utils.folders import verify_file

START_FIELDS = {
    "images": Field("uint8", ("N", "H", "W", 3)),
    "instructions": Field("text", ("N",)),
    "states": Field("float", ("N", "S"), required=False),
    "tasks": Field("text", ("N",), required=False),
    "steps": Field("int", ("N",), required=False),
    "other_instructions": Field("text", ("N",), required=False),
}
"""Arrays in the file of a start set; further cameras are `views_<name>`, uint8 (N, H', W', 3).

`other_instructions` has those of each start in one text, a line each.
"""
VIEWS = "views_"


@dataclass(frozen=True)
class Start:
    """A state from which an imagined episode can begin.

    Args:
        frames: (Tc, H, W, 3) uint8; the last one is the first observation, earlier ones are context.
        instruction: instruction of the episode, or None if the caller must give one.
        states: (Tc, S) float32 proprioception in the dataset's units, or None to let the model estimate it.
        actions: (Tc-1, A) float32 in [-1, 1] between the frames; None means Tc = 1.
        task: name of the task, "" when unknown.
        views: frames of the cameras besides the main one, by camera name, each (Tc, H', W', 3) uint8.
    """

    frames: NDArray[np.uint8]
    instruction: str | None = None
    states: NDArray[np.float32] | None = None
    actions: NDArray[np.float32] | None = None
    task: str = ""
    views: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)


@runtime_checkable
class StartSet(Protocol):
    """Protocol of start sets; sampling uses the given generator and no other randomness."""

    def __len__(self) -> int:
        """Number of images or episodes in the set."""
        ...

    def sample(self, rng: np.random.Generator, *, task: str | None = None) -> Start:
        """Draw a start, from the given `task` only if there is one."""
        ...

    def get(self, episode: int, frame: int = 0) -> Start:
        """The start at `frame` of `episode`."""
        ...


class ArrayStarts:
    """Starts from parallel arrays.

    Args:
        images: (N, H, W, 3) uint8.
        instructions: N strings.
        states: (N, S) float32, or None to let the model estimate them.
        tasks: N strings, or None.
        views: frames of further cameras, by camera name, each (N, H', W', 3) uint8.
        steps: (N,) index of each image in its logged episode; None for 0.
        other_instructions: for each image, other instructions that a policy could follow from there, for relabelling
            failed attempts; None if they are not known.

    Raises:
        ValueError: arrays of different lengths, wrong dtype, no rows, or a text of several lines among
            `other_instructions`.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        instructions: Sequence[str] | NDArray[np.str_],
        states: NDArray[np.float32] | None = None,
        tasks: Sequence[str] | NDArray[np.str_] | None = None,
        *,
        views: Mapping[str, NDArray[np.uint8]] | None = None,
        steps: Sequence[int] | NDArray[np.int64] | None = None,
        other_instructions: Sequence[Sequence[str]] | None = None,
    ) -> None:
        self.images = _pictures("images", images)
        self.views = {name: _pictures(f"views of {name}", frames) for name, frames in (views or {}).items()}
        count = len(self.images)
        if count == 0:
            raise ValueError("the start set is empty; expected at least one image")
        self.instructions = [str(text) for text in instructions]
        self.states = None if states is None else np.asarray(states, np.float32)
        self.tasks = [""] * count if tasks is None else [str(task) for task in tasks]
        self.steps = np.zeros(count, np.int64) if steps is None else np.asarray(steps, np.int64)
        self.other_instructions = (
            None if other_instructions is None else [tuple(map(str, texts)) for texts in other_instructions]
        )
        torn = next((t for texts in self.other_instructions or () for t in texts if not t or "\n" in t), None)
        if torn is not None:
            raise ValueError(f"{torn!r} is among the other instructions; expected texts of one line each")
        lengths = {"instructions": len(self.instructions), "tasks": len(self.tasks), "steps": len(self.steps)}
        if self.other_instructions is not None:
            lengths["lists of other instructions"] = len(self.other_instructions)
        lengths |= {f"views of {name}": len(frames) for name, frames in self.views.items()}
        if self.states is not None:
            lengths["states"] = len(self.states)
        for name, length in lengths.items():
            if length != count:
                raise ValueError(f"{length} {name} for {count} images; expected one for each image")

    @classmethod
    def load(cls, path: str | Path, remedy: str | None = None) -> ArrayStarts:
        """Read an .npz file: `images`, `instructions`, and if they are there the rest of `START_FIELDS` and the views.

        Nothing is unpickled. `remedy` is the advice in the message about a damaged file.

        Raises:
            CheckpointError: the file is missing, damaged, or not a start set.
        """
        path = Path(path)
        if not path.exists():
            raise CheckpointError(
                f"no start set at {path}, the file is missing; `worldgym bundle` writes one into each "
                "bundle, and ArrayStarts.save writes a new one"
            )
        remedy = (
            remedy
            or "restore it from a copy, write it with ArrayStarts.save, or make the bundle again with `worldgym bundle`"
        )
        verify_file(path, remedy)
        more = {
            name: Field("uint8", ("N", f"H of {name}", f"W of {name}", 3))
            for name in array_names(path)
            if name.startswith(VIEWS)
        }
        arrays = read_arrays(path, {**START_FIELDS, **more}, f"Expected a start set: {remedy}")
        views = {name.removeprefix(VIEWS): arrays[name] for name in more}
        others = arrays.get("other_instructions")
        return cls(
            arrays["images"], arrays["instructions"], arrays.get("states"), arrays.get("tasks"), views=views,
            steps=arrays.get("steps"),
            other_instructions=None if others is None else [str(text).split("\n") if text else [] for text in others],
        )  # fmt: skip

    def save(self, path: str | Path, dense: bool = False) -> None:
        """Write the set as a compressed .npz file of plain arrays; on an error the old file is unchanged.

        `dense` packs it tighter and more slowly, see `worldgym.utils.arrays.write_arrays`.
        """
        arrays: dict[str, Any] = {"images": self.images, "instructions": np.array(self.instructions, np.str_)}
        arrays["tasks"] = np.array(self.tasks, np.str_)
        if self.states is not None:
            arrays["states"] = self.states
        if self.steps.any():
            arrays["steps"] = self.steps
        if self.other_instructions is not None:
            arrays["other_instructions"] = np.array(["\n".join(texts) for texts in self.other_instructions], np.str_)
        arrays |= {f"{VIEWS}{name}": frames for name, frames in self.views.items()}
        write_arrays(path, arrays, dense)

    @property
    def state_range(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Elementwise minimum and maximum of the states, `(S,)` each; None without states."""
        return None if self.states is None else (self.states.min(0), self.states.max(0))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def sample(self, rng: np.random.Generator, *, task: str | None = None) -> Start:
        """Draw a start uniformly, from the images of `task` if given.

        Raises:
            ValueError: no image of that task.
        """
        if task is None:
            return self.get(int(rng.integers(len(self))))
        rows = [i for i, name in enumerate(self.tasks) if name == task]
        if not rows:
            raise ValueError(f"no start of task {task!r}; this set has {sorted(set(self.tasks))}")
        return self.get(rows[int(rng.integers(len(rows)))])

    def get(self, episode: int, frame: int = 0) -> Start:
        """Start at image number `episode`; each image is an episode of one frame.

        Raises:
            ValueError: the index is outside the set.
        """
        if not 0 <= episode < len(self) or frame != 0:
            raise ValueError(
                f"episode {episode}, frame {frame}; expected episode 0..{len(self) - 1} and frame 0"
            )
        states = None if self.states is None else self.states[episode][None]
        views = {name: frames[episode][None] for name, frames in self.views.items()}
        return Start(
            self.images[episode][None],
            self.instructions[episode],
            states,
            task=self.tasks[episode],
            views=views,
        )


class DatasetStarts:
    """Starts from any frame of logged episodes.

    Args:
        dataset: an `EpisodeDataset`, or any sequence of `Episode`s; read lazily.
        context: number of frames given to the model, >= 1; the last one is the first observation.
        middle: False restricts starts to the first frame of an episode.
        margin: minimum number of frames between a start and the logged success (or the end), >= 0, so that no episode
            begins with its goal already reached.

    Raises:
        ValueError: an empty dataset or invalid settings.
    """

    def __init__(self, dataset: Any, *, context: int = 1, middle: bool = True, margin: int = 1) -> None:
        if len(dataset) == 0:
            raise ValueError("the dataset has no episodes; collect some with `worldgym collect`")
        if context < 1 or margin < 0:
            raise ValueError(f"context={context}, margin={margin}; expected context >= 1 and margin >= 0")
        self.dataset, self.context, self.middle, self.margin = dataset, context, middle, margin
        self._by_task: dict[str, list[int]] | None = None

    @property
    def instructions(self) -> list[str]:
        """The distinct instructions of the episodes."""
        records = getattr(self.dataset, "records", None)
        rows = self.dataset if records is None else records
        return list(dict.fromkeys(str(row.instruction) for row in rows))

    @property
    def state_range(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Elementwise minimum and maximum of the recorded states, `(S,)` each; None without dataset statistics."""
        stats = getattr(self.dataset, "stats", None)
        found = stats.get("observation.state") if isinstance(stats, dict) else None
        return None if not found else (np.array(found["min"], np.float32), np.array(found["max"], np.float32))

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.dataset)

    def sample(self, rng: np.random.Generator, *, task: str | None = None) -> Start:
        """Draw an episode uniformly, then one of its frames before success.

        Raises:
            ValueError: no episode of that task.
        """
        if task is None:
            number = int(rng.integers(len(self.dataset)))
        else:
            if self._by_task is None:
                self._by_task = {}
                for i in range(len(self.dataset)):
                    self._by_task.setdefault(str(self.dataset[i].task), []).append(i)
            if task not in self._by_task:
                raise ValueError(f"no episode of task {task!r}; the dataset has {sorted(self._by_task)}")
            rows = self._by_task[task]
            number = rows[int(rng.integers(len(rows)))]
        episode = self.dataset[number]
        if not self.middle:
            return start_from_episode(episode, 0, self.context)
        success = np.flatnonzero(np.asarray(episode.success))
        end = int(success[0]) if len(success) else len(episode.frames) - 1
        return start_from_episode(episode, int(rng.integers(max(1, end - self.margin + 1))), self.context)

    def get(self, episode: int, frame: int = 0) -> Start:
        """The start at `frame` of episode number `episode`.

        Raises:
            ValueError: the index is outside the dataset or the episode.
        """
        if not 0 <= episode < len(self.dataset):
            raise ValueError(f"episode {episode}; the dataset has episodes 0..{len(self.dataset) - 1}")
        return start_from_episode(self.dataset[episode], frame, self.context)


class ImageStarts(ArrayStarts):
    """A start set of one image.

    Args:
        image: (H, W, 3) uint8 array, or the path of an image file of that size.
        instruction: instruction of the episodes.
        state: (S,) float32 proprioception, or None to let the model estimate it.
    """

    def __init__(
        self,
        image: NDArray[np.uint8] | str | Path,
        instruction: str,
        state: NDArray[np.float32] | None = None,
    ) -> None:
        pixels = read_image(image) if isinstance(image, (str, Path)) else np.asarray(image)
        super().__init__(pixels[None], [instruction], None if state is None else np.asarray(state)[None])


def start_from_episode(episode: Any, frame: int = 0, context: int = 1) -> Start:
    """Cut `context` frames that end at `frame` out of an `Episode`; missing frames repeat the first one.

    Raises:
        ValueError: `frame` lies outside the episode.
    """
    frames = np.asarray(episode.frames)
    if not 0 <= frame < len(frames):
        raise ValueError(f"frame {frame} of an episode with frames 0..{len(frames) - 1}")
    index = np.arange(frame - context + 1, frame + 1)
    clipped = index.clip(min=0)
    actions = np.asarray(episode.actions, np.float32)
    between = np.zeros((context - 1, actions.shape[-1]), np.float32)  # zero actions before the first frame
    for row, t in enumerate(index[:-1]):
        if t >= 0:
            between[row] = actions[t]
    states = None if episode.state is None else np.asarray(episode.state, np.float32)[clipped]
    views = {name: np.asarray(view)[clipped] for name, view in (getattr(episode, "views", None) or {}).items()}
    return Start(frames[clipped], str(episode.instruction), states, between, str(episode.task or ""), views)


def _pictures(name: str, frames: Any) -> NDArray[np.uint8]:
    array = np.asarray(frames)
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise ValueError(f"{name} are {array.dtype} {array.shape}; expected uint8 (N, H, W, 3)")
    return array


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image file as (H, W, 3) uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an image.
    """
    from PIL import Image, UnidentifiedImageError

    if not Path(path).exists():
        raise FileNotFoundError(f"no picture at {path}")
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"), np.uint8)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is not a readable picture ({error}); expected PNG or JPEG") from error
