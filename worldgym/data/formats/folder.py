"""Reads a LeRobot folder as episodes: its rows, its videos and the images in its rows.

Selection of episodes, resampling, bounds and the report are those of all formats (`worldgym.data.formats.recorded`).

Example::

    folder = LeRobotFolder("data/pusht", camera="observation.image")
    folder.action_spec, folder.cameras, len(folder)
    for episode in folder.episodes(image_size=64): ...
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldgym.data.formats.frames import decode_video, match, picture
from worldgym.data.formats.items import Item, Scan
from worldgym.data.formats.recorded import RecordedFolder
from worldgym.data.formats.recording import (
    REWARD_KEY,
    SUCCESS_KEY,
    Recording,
    action_names,
    read_recording,
    state_names,
)
from worldgym.data.formats.settings import ImportSettings
from worldgym.data.formats.source import LeRobotSource, Place
from worldgym.errors import DatasetError

__all__ = ["Item", "LeRobotFolder", "Scan"]


class LeRobotFolder(RecordedFolder):
    """A folder in LeRobot's layout, read as episodes.

    Args:
        path: the folder with `meta/info.json`.
        camera: the main camera, if there are several; short for `ImportSettings(cameras=(camera,))`.
        settings: import settings.

    Raises:
        DatasetError: the folder is missing or has another version, there are several cameras and none was chosen, or a
            file is missing or damaged.
    """

    rate_place = "meta/info.json"

    def __init__(
        self,
        path: str | os.PathLike[str],
        camera: str | None = None,
        settings: ImportSettings | None = None,
    ) -> None:
        s = settings or ImportSettings(cameras=() if camera is None else (camera,))
        actions = () if s.without_actions else s.action_keys or None
        self.source = LeRobotSource(path, s.cameras or None, s.state_keys or None, actions)
        self.layout, self.state_keys = self.source.version, self.source.state_keys
        self.robot = str(self.source.info.get("robot_type") or "unknown")
        self.labels = {key: key for key in (SUCCESS_KEY, REWARD_KEY) if key in self.source.features}
        super().__init__(self.source.root, self.source.cameras_chosen, s)

    @property
    def cameras(self) -> list[str]:
        """Names of the image features."""
        return self.source.cameras

    @property
    def places(self) -> list[Place]:
        """All listed episodes, sorted by number."""
        return self.source.places

    @property
    def recorded_rate(self) -> float:
        """`fps` of `meta/info.json`."""
        return self.source.fps

    def prepare(self) -> None:
        """Read the task list: if it is damaged, all episodes are affected, so skipping one does not help."""
        _ = self.source.sentences

    def action_names(self, dim: int) -> tuple[str, ...]:
        """Names of the action dimensions."""
        return action_names(self.source, dim)

    def state_names(self, dim: int) -> tuple[str, ...]:
        """Names of the state dimensions."""
        return state_names(self.source, dim)

    def files(self, places: Sequence[Place]) -> set[Path]:
        """Files of rows and videos of these episodes."""
        videos = {video[0] for place in places for video in place.videos.values()}
        return super().files(places) | videos

    def read(self, place: Place, pictures: bool = False) -> Recording:
        """Read the rows of an episode, without its videos."""
        return read_recording(self.source, place, self.settings.success, pictures, self.settings.reward)

    def frames(
        self, place: Place, recording: Recording, camera: str, rows: np.ndarray, size: tuple[int, int]
    ) -> tuple[np.ndarray, str]:
        """Frames of the given rows, from the video or from the rows."""
        s = self.settings
        if not self.source.filmed(camera):
            assert recording.table is not None
            column = recording.table[camera]
            out = [self._picture(place, camera, column[int(row)].as_py(), size) for row in rows]
            return np.stack(out), "stored"
        path, start, end = place.videos[camera]
        times, slack = recording.times + start, 0.25 / self.source.fps
        window = None
        if end is not None or start > 0:  # frames outside the window belong to other episodes
            window = (start - slack, (np.inf if end is None else end) - slack)
        video = decode_video(path, size, s.resize, window)
        where = f"{path}, episode {place.index}"
        frames, rule = match(video, times, self.source.fps, s.frames, where)
        return frames[rows], rule

    def _picture(self, place: Place, camera: str, item: Any, size: tuple[int, int]) -> np.ndarray:
        where = f"{place.data}: {camera} of episode {place.index}"
        try:
            data = item["bytes"] if isinstance(item, dict) else item
            if data is None and isinstance(item, dict) and isinstance(item.get("path"), str):
                file = self.source.inside(item["path"])
                if file.exists() and not file.is_file():
                    raise ValueError(f"{file} is not a file")
                data = file.read_bytes()
            if not isinstance(data, bytes):
                raise ValueError("a row has neither the bytes nor the path of an image")
            return picture(data, size, self.settings.resize)
        except FileNotFoundError as error:
            raise DatasetError(
                f"{where}: {error.filename} is missing; copy the image files next to the data"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(f"{where}: {error}") from error
