"""Reads recordings in the layout of Ctrl-World: one JSON annotation and one mp4 for each camera per episode.

A folder has `annotation/SPLIT/ID.json` with `texts`, `states` (T, 7), perhaps `joints` (T, J), `success` and the paths
of the videos, `videos/SPLIT/ID/0.mp4` and so on, with one frame for each state. No actions are recorded at the rate of
the states: as in Ctrl-World, the action of a row is the next state, an absolute pose.

Example::

    folder = CtrlWorldFolder("droid_new_setup", ImportSettings(cameras=("camera_0", "camera_2")))
    folder.cameras, list(folder.features)     # ["camera_0", ...], ["states", "next_states", ...]
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from worldgym.data.formats.choices import is_inside
from worldgym.data.formats.frames import decode_video
from worldgym.data.formats.importing import import_recorded
from worldgym.data.formats.recording import SUCCESS_KEY, Recording
from worldgym.data.formats.rows import Feature, RowFolder
from worldgym.data.formats.settings import ImportSettings
from worldgym.errors import CheckpointError, DatasetError
from worldgym.utils.files import read_json

STATES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
SPARE = 1  # frames that a video may have more than there are states; they are dropped


@dataclass(frozen=True)
class Annotated:
    """An episode: its number, annotation, and number of rows (-1: read with the annotation)."""

    index: int
    data: Path
    length: int = field(default=-1)


class CtrlWorldFormat:
    """Recordings in the layout of Ctrl-World; see `worldgym.data.formats.ctrlworld`."""

    @staticmethod
    def detects(source: Path) -> bool:
        """Whether `source` has `annotation/SPLIT/ID.json` and a folder `videos`."""
        return (source / "videos").is_dir() and any(source.glob("annotation/*/*.json"))

    @staticmethod
    def convert(source: Path, out: Path, settings: ImportSettings, command: str) -> dict[str, Any]:
        """Write the dataset and return the report of `import_recorded`."""
        return import_recorded(CtrlWorldFolder(source, settings), out, command=command)


class CtrlWorldFolder(RowFolder):
    """A folder in the layout of Ctrl-World, read as episodes.

    Args:
        path: the folder with `annotation` and `videos`.
        settings: import settings.

    Raises:
        DatasetError: there is no annotation, the first one is damaged, or see `RowFolder`.
    """

    layout, rate_place = "Ctrl-World annotations", "the videos"

    def __init__(self, path: str | os.PathLike[str], settings: ImportSettings | None = None) -> None:
        root = Path(path).expanduser()
        files = sorted(root.glob("annotation/*/*.json"), key=_order)
        if not files:
            raise DatasetError(f"{root} holds no annotation/SPLIT/ID.json; give the folder of the recordings")
        self._places = [Annotated(number, file) for number, file in enumerate(files)]
        self._read: dict[int, dict[str, Any]] = {}
        self.root = root
        first = next((found for place in self._places if (found := self._tried(place)) is not None), None)
        if first is None:
            self._annotation(self._places[0])  # raises what is wrong with it
            raise AssertionError("unreachable")
        features: dict[str, Feature] = {}
        for name in ("states", "joints"):
            if name in first:
                size = first[name].shape[1]
                names = STATES if name == "states" and size == len(STATES) else ()
                features[name] = Feature(size, names)
                features[f"next_{name}"] = Feature(size, tuple(f"next_{part}" for part in names))
        self.labels = {SUCCESS_KEY: "success"} if "success" in first else {}
        if self.labels:
            features["success"] = Feature(1)
        cameras = [f"camera_{number}" for number in range(len(first["videos"]))]
        super().__init__(root, settings or ImportSettings(), cameras, features, ["states"], ["next_states"])
        self.convention = {
            "kind": "absolute",
            "frame": "unknown",
            "units": "unknown",
            "gripper": "unknown",
            "recorded": "no actions; the action of a row is its next state",
        }

    @property
    def places(self) -> list[Annotated]:
        """The annotations, by split and number."""
        return self._places

    @cached_property
    def recorded_rate(self) -> float:
        """Frames per second of the main camera's first video that can be read."""
        problem: DatasetError | None = None
        for place in self._places:
            try:
                times = decode_video(self._video(place, self.camera), 8, "stretch").times
            except DatasetError as error:
                problem = problem or error
                continue
            if len(times) > 1 and times[-1] > times[0]:
                return float((len(times) - 1) / (times[-1] - times[0]))
        raise problem or DatasetError(f"{self.root} has no video of two frames; copy or download it again")

    def files(self, places: Sequence[Any]) -> set[Path]:
        """Annotations and videos of these episodes."""
        return super().files(places) | {self._video(p, c) for p in places for c in self.chosen}

    def origin(self, place: Annotated) -> dict[str, Any]:
        """Split and name of the annotation."""
        return {"recorded_split": place.data.parent.name, "file": place.data.name}

    # ---- rows ----------------------------------------------------------------------------------------------------

    def length(self, place: Annotated) -> int:
        """Number of states; the paths of the videos are checked, too."""
        for camera in self.chosen:
            self._video(place, camera)
        return len(self._annotation(place)["states"])

    def columns(self, place: Annotated, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Rows of numeric features; the last row of `next_...`, whose result was not recorded, repeats the state."""
        found, out = self._annotation(place), {}
        for key in keys:
            name = key.removeprefix("next_")
            if name not in found:
                raise DatasetError(
                    f"{place.data} has no {name}; choose others with --state-key and --action-key"
                )
            out[key] = found[name]
            if key != name:
                out[key] = np.concatenate([found[name][1:], found[name][-1:]])
        return out

    def sentences(self, place: Annotated) -> list[str]:
        """The first of the texts."""
        return list(self._annotation(place)["texts"][:1])

    def frames(
        self, place: Annotated, recording: Recording, camera: str, rows: np.ndarray, size: tuple[int, int]
    ) -> tuple[np.ndarray, str]:
        """The k-th frame of the video for the k-th state; one more frame at the end is dropped."""
        path, states = self._video(place, camera), len(recording.times)
        frames = decode_video(path, size, self.settings.resize).frames
        if not states <= len(frames) <= states + SPARE:
            raise DatasetError(
                f"{path} has {len(frames)} frames for the {states} states of {place.data.name}; expected as many, or "
                "one more: copy or download both again"
            )
        return frames[rows], "index"

    # ---- files ---------------------------------------------------------------------------------------------------

    def _video(self, place: Annotated, camera: str) -> Path:
        number, videos = int(camera.rpartition("_")[2]), self._annotation(place)["videos"]
        if number >= len(videos):
            raise DatasetError(
                f"{place.data} lists {len(videos)} videos, so it has no {camera}; expected the same cameras"
            )
        path = self.root / videos[number]
        if Path(videos[number]).is_absolute() or ".." in path.parts or not is_inside(path, self.root):
            raise DatasetError(
                f"{place.data} names the video {videos[number]!r}, which lies outside {self.root}; nothing outside the "
                "source folder is read: correct the path"
            )
        return path

    def _tried(self, place: Annotated) -> dict[str, Any] | None:
        try:
            return self._annotation(place)
        except DatasetError:
            return None

    def _annotation(self, place: Annotated) -> dict[str, Any]:
        """The checked annotation: texts, videos, states, and joints and success where recorded."""
        if place.index not in self._read:
            if not is_inside(place.data, self.root):
                raise DatasetError(
                    f"{place.data} is a link to a file outside {self.root}; copy the file into the folder"
                )
            try:
                found = read_json(place.data, "Download it again")
                self._read[place.index] = _checked(found)
            except CheckpointError as error:
                raise DatasetError(str(error)) from error
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise DatasetError(
                    f"{place.data} is not an annotation of Ctrl-World ({type(error).__name__}: {error}); expected "
                    "texts, videos and states: download it again"
                ) from error
        return self._read[place.index]


def _checked(found: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"texts": [str(text) for text in found["texts"]]}
    out["videos"] = [str(video["video_path"]) for video in found["videos"]]
    for name in ("states", "joints"):
        if name in found:
            values = np.array(found[name], np.float64)
            if values.ndim != 2 or not values.size:
                raise ValueError(f"{name} have the shape {values.shape}, expected (T, D)")
            out[name] = values
    if "states" not in out:
        raise KeyError("states")
    success = found.get("success")
    if isinstance(success, (bool, int)) and success in (0, 1):
        out["success"] = np.zeros(len(out["states"]), bool)
        out["success"][-1] = bool(success)
    return out


def _order(path: Path) -> tuple[str, int, str]:
    """Splits by name, episodes by number."""
    return path.parent.name, int(path.stem) if path.stem.isdecimal() and len(path.stem) < 10 else 0, path.stem
