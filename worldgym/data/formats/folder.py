"""Reads a LeRobot folder as episodes: selection of episodes, action bounds, frames, and import report.

Example::

    folder = LeRobotFolder("data/pusht", camera="observation.image")
    folder.action_spec, folder.cameras, len(folder)
    for episode in folder.episodes(image_size=64): ...
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from worldgym.data.episode import Episode
from worldgym.data.formats.fields import number_ranges
from worldgym.data.formats.frames import decode_video, match, picture
from worldgym.data.formats.recording import (
    REWARD_KEY,
    SUCCESS_KEY,
    Part,
    Recording,
    action_names,
    part_success,
    read_recording,
    state_names,
)
from worldgym.data.formats.resampling import Rules, keep_rows, resampled
from worldgym.data.formats.settings import ImportSettings
from worldgym.data.formats.source import LeRobotSource, Place
from worldgym.errors import DatasetError
from worldgym.specs import ActionSpec, Camera, ObservationSpec, Specs, state_fields
from worldgym.utils.sizes import size_of

logger = logging.getLogger(__name__)
SLACK = 0.1  # allowed relative difference between the rate of the timestamps and `fps` in info.json
WIDE = 10.0  # with bounds "auto", dimensions that span more than this multiple of the quantiles' range use minmax


@dataclass(frozen=True)
class Item:
    """A part of a recorded episode, which becomes one episode of the dataset."""

    place: Place
    number: int
    part: Part


@dataclass(frozen=True)
class Scan:
    """Result of reading all rows, before any frame is decoded.

    Args:
        items: the episodes to make, in order.
        actions: for each item, `(T, A)` as recorded or resampled.
        state_dim: proprioception dimension, S.
        lost: by recorded episode, the number of rows with an action that belongs to no item.
        hash: hash of all values that were read.
    """

    items: list[Item]
    actions: list[np.ndarray]
    state_dim: int
    lost: dict[int, int]
    hash: str


class LeRobotFolder:
    """A folder in LeRobot's layout, read as episodes.

    Args:
        path: the folder with `meta/info.json`.
        camera: the main camera, if there are several; short for `ImportSettings(cameras=(camera,))`.
        settings: import settings.

    Raises:
        DatasetError: the folder is missing or has another version, there are several cameras and none was chosen, or a
            file is missing or damaged.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        camera: str | None = None,
        settings: ImportSettings | None = None,
    ) -> None:
        self.settings = s = settings or ImportSettings(cameras=() if camera is None else (camera,))
        actions = () if s.without_actions else s.action_keys or None
        self.source = LeRobotSource(path, s.cameras or None, s.state_keys or None, actions)
        self.root, self.camera = self.source.root, self.source.cameras_chosen[0]
        main, *names = [_short(key) for key in self.source.cameras_chosen]
        # The main camera is `front` in the dataset, whatever its recorded name, unless another one is.
        self.main = main if "front" in names else "front"
        if len({self.main, *names}) != len(names) + 1:
            raise DatasetError(
                f"the cameras {', '.join(self.source.cameras_chosen)} get the names {[self.main, *names]}, the last "
                "part of each; expected different names: choose others with --camera, or rename the features"
            )
        self.views = tuple(names)
        self.skipped: dict[int, str] = {}

    @property
    def cameras(self) -> list[str]:
        """Names of the image features."""
        return self.source.cameras

    def __len__(self) -> int:
        return len(self.source)

    @property
    def rate(self) -> float:
        """Rows per second of the episodes."""
        return float(self.settings.fps or self.source.fps)

    # ---- selection -----------------------------------------------------------------------------------------------

    def _chosen(self) -> list[Place]:
        s, places = self.settings, self.source.places
        if s.episodes is not None:
            by_number = {place.index: place for place in places}
            wanted = number_ranges(s.episodes)
            missing = [n for n in wanted if n not in by_number]
            if missing:
                known = f"{places[0].index} to {places[-1].index}" if places else "none"
                raise DatasetError(
                    f"{self.root} has no episode {missing[0]}; it lists {len(places)} episodes, {known}"
                )
            places = [by_number[n] for n in sorted(wanted)]
        left_out = set(number_ranges(s.skip)) if s.skip is not None else set()
        return [place for place in places if place.index not in left_out][: s.limit]

    @cached_property
    def scan(self) -> Scan:
        """Episodes to make and their actions, read before any frame is decoded."""
        items: list[Item] = []
        actions: list[np.ndarray] = []
        spans: list[np.ndarray] = []
        dims: tuple[int, int] | None = None
        lost: dict[int, int] = {}
        s, digest = self.settings, hashlib.sha256()
        _ = self.source.sentences  # read first: a damaged task list affects all episodes, so skipping one does not help
        for place in self._chosen():
            try:
                recording = self.read(place)
                found = [(n, part, self._rows(recording, part)[1]) for n, part in enumerate(recording.parts)]
                got = (recording.actions.shape[1], recording.state.shape[1])
                if (got[0] == 0 and not s.without_actions) or (dims is not None and got != dims):
                    raise DatasetError(
                        f"{place.data}: episode {place.index} has {got[0]} action and {got[1]} state dimensions, but "
                        f"the earlier episodes have {dims or 'none'}; all episodes need the same dimensions, and at "
                        "least one action dimension"
                    )
            except DatasetError as error:
                self.leave_out(place, error)
                continue
            dims = got
            items += [Item(place, number, part) for number, part, _ in found]
            actions += [values for _, _, values in found]
            spans.append(np.diff(recording.times))
            if recording.lost:
                lost[place.index] = recording.lost
            for values in (recording.actions, recording.state, recording.times, recording.success):
                digest.update(b"" if values is None else np.ascontiguousarray(values).tobytes())
        if not items or dims is None:
            raise DatasetError(
                f"no episode of {self.root} is left to import: {len(self.source)} are listed, {len(self.skipped)} "
                f"could not be read{''.join(f'; episode {n}: {why}' for n, why in list(self.skipped.items())[:1])}"
            )
        rate = 1.0 / float(np.median(np.concatenate(spans)))
        if self.settings.fps is None and abs(rate / self.source.fps - 1.0) > SLACK:
            raise DatasetError(
                f"{self.root}: the timestamps give {rate:.4g} rows per second, but meta/info.json has fps "
                f"{self.source.fps:g}; correct one of them, or set the rate with --fps and --actions"
            )
        return Scan(items, actions, dims[1], lost, digest.hexdigest())

    @property
    def items(self) -> list[Item]:
        """The episodes to make, in order."""
        return self.scan.items

    def leave_out(self, place: Place, error: Exception) -> None:
        """Skip a bad episode; without `skip_bad`, raise `error` with the options that skip the episode.

        Raises:
            DatasetError: `skip_bad` is not set.
        """
        if not self.settings.skip_bad:
            raise DatasetError(
                f"{error}. To skip the episode, type --skip {place.index}; to skip all bad episodes, --skip-bad"
            ) from error
        self.skipped[place.index] = str(error)
        logger.warning("episode %d is skipped: %s", place.index, error)

    def read(self, place: Place, pictures: bool = False) -> Recording:
        """Read the rows of an episode, without its videos."""
        return read_recording(self.source, place, self.settings.success, pictures, self.settings.reward)

    def _rules(self, dim: int) -> Rules:
        return Rules.parse(self.settings.actions, action_names(self.source, dim))

    def _rows(self, recording: Recording, part: Part) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the kept rows, and the actions between them in recorded units."""
        times = recording.times[part.first : part.last + 1]
        actions = recording.actions[part.first : part.last]
        if self.settings.fps is None:
            return np.arange(part.first, part.last + 1), actions
        where = f"{self.root}: episode {recording.index}"
        rows = keep_rows(times, self.settings.fps, where)
        return rows + part.first, resampled(actions, rows, self._rules(actions.shape[1]))

    @cached_property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray, list[str]]:
        values = np.concatenate(self.scan.actions).astype(np.float64)
        least, most = values.min(0), values.max(0)
        low, high = np.quantile(values, (0.01, 0.99), axis=0)
        wide = most - least > WIDE * (high - low)
        if self.settings.bounds == "minmax":
            wide[:] = True
        elif self.settings.bounds == "quantiles":
            wide = _is_empty(low, high)  # a range of zero width cannot be used for normalising
        low, high = np.where(wide, least, low), np.where(wide, most, high)
        still = _is_empty(low, high)  # a constant dimension: any bounds work if they differ
        margin = np.maximum(1.0, np.abs(low))
        return (
            np.where(still, low - margin, low),
            np.where(still, high + margin, high),
            ["still" if s else "minmax" if w else "quantiles" for s, w in zip(still, wide, strict=True)],
        )

    @cached_property
    def specs(self) -> Specs:
        """Cameras with their sizes after the import, state fields with their roles, and the action spec."""
        names = [self.main, *self.views]
        sizes = self.settings.sizes(len(names))
        cameras = tuple(Camera(name, *size, static=False) for name, size in zip(names, sizes, strict=True))
        roles: dict[str, str] = {}
        for item in self.settings.state_roles:
            name, _, role = item.rpartition("=")
            roles[name] = role
        fields = state_names(self.source, self.scan.state_dim)
        unknown = sorted(set(roles) - set(fields))
        if unknown:
            raise DatasetError(
                f"--state-roles names {', '.join(unknown)}; the state fields are {', '.join(fields) or 'none'}"
            )
        observation = ObservationSpec(cameras, state_fields(fields, roles))
        return Specs(observation, None if self.settings.without_actions else self.action_spec)

    @cached_property
    def action_spec(self) -> ActionSpec:
        """Action spec with the recorded names, bounds from the actions of the selected episodes, and their row rate."""
        low, high, kinds = self._bounds
        return ActionSpec(
            names=action_names(self.source, len(low)),
            units=("as recorded",) * len(low),
            hz=self.rate,
            low=tuple(low),
            high=tuple(high),
            bounds="q01/q99" if "quantiles" in kinds else "limits",
        )

    # ---- episodes ------------------------------------------------------------------------------------------------

    def episodes(
        self, image_size: int | tuple[int, int] | None = None, limit: int | None = None
    ) -> Iterator[Episode]:
        """Read the episodes one by one, in order.

        Args:
            image_size: side length of the frames in pixels, or (H, W); that of the settings when None.
            limit: maximum number of episodes; None for all.

        Raises:
            DatasetError: a file is missing or damaged, or contradicts the metadata of the episode.
        """
        for item in self.items[:limit]:
            yield self.episode(item, image_size)

    def episode(self, item: Item, size: int | tuple[int, int] | None = None) -> Episode:
        """Read one episode with its frames."""
        place, part = item.place, item.part
        recording = self.read(place, pictures=True)
        rows, actions = self._rows(recording, part)
        frames, rules = {}, {}
        cameras = self.source.cameras_chosen
        sizes = self.settings.sizes(len(cameras)) if size is None else [size_of(size)] * len(cameras)
        for camera, pixels in zip(cameras, sizes, strict=True):
            frames[camera], rules[camera] = self._frames(place, recording, camera, rows, pixels)
        solved = part_success(recording, part)
        kept, success = rows - part.first, None
        if solved is not None:  # a success between two kept rows is assigned to the later one
            begins, ends = [0, *(kept[:-1] + 1)], [*(kept[:-1] + 1), len(solved)]
            success = np.array([solved[a:b].any() for a, b in zip(begins, ends, strict=True)], bool)
        provenance: dict[str, Any] = {
            "behaviour": "imported", "source": self.root.name, "episode": place.index,
            "frames": rules[self.camera],
        }  # fmt: skip
        if len(recording.parts) > 1:
            provenance |= {"part": item.number, "rows": [part.first, part.last]}
        return Episode(
            frames=frames[self.camera],
            actions=None if self.settings.without_actions else self.action_spec.normalise(actions),
            state=recording.state[rows],
            instruction=part.instruction,
            success=success,
            progress=None if success is None else success.astype(np.float32),
            domain="real",
            split="seen",
            task="imported",
            provenance=provenance,
            views={_short(key): frames[key] for key in self.source.cameras_chosen[1:]},
        )

    def _frames(
        self, place: Place, recording: Recording, camera: str, rows: np.ndarray, size: tuple[int, int]
    ) -> tuple[np.ndarray, str]:
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

    # ---- report --------------------------------------------------------------------------------------------------

    @property
    def success_from(self) -> str:
        """Source of the success labels."""
        if self.settings.success != "auto":
            return self.settings.success
        return SUCCESS_KEY if SUCCESS_KEY in self.source.features else "none recorded"

    def report(self, without: Collection[int] = ()) -> dict[str, Any]:
        """Report of the import, as plain JSON.

        Args:
            without: episodes that are excluded because their frames could not be read.
        """
        pairs = zip(self.scan.items, self.scan.actions, strict=True)
        kept = [(item, values) for item, values in pairs if item.place.index not in without]
        items = [item for item, _ in kept]
        low, high, kinds = (
            self._bounds if not self.settings.without_actions else (np.zeros(0), np.ones(0), [])
        )
        values = np.concatenate([values for _, values in kept]).astype(np.float64)
        names = () if self.settings.without_actions else self.action_spec.names
        cut = np.abs(2.0 * (values - low) / (high - low) - 1.0) > 1.0 + 1e-6
        parts = Counter(item.place.index for item in items)
        texts = Counter(item.part.instruction for item in items)
        dims = [
            {"name": name, "low": float(a), "high": float(b), "bounds": kind, "cut": round(float(share), 6)}
            for name, a, b, kind, share in zip(names, low, high, kinds, cut.mean(0), strict=True)
        ]
        return {
            "source": self.root.name,
            "layout": self.source.version,
            "episodes": len(items),
            "recorded_episodes": len(parts),
            "split_episodes": {str(n): count for n, count in sorted(parts.items()) if count > 1},
            "rows_lost": {str(n): count for n, count in sorted(self.scan.lost.items()) if n in parts},
            "instructions": dict(texts.most_common()),
            "actions": dims,
            "rows_cut": round(float(cut.any(1).mean()), 6),
            "hz": self.rate,
            "recorded_hz": self.source.fps,
            "cameras": list(self.source.cameras_chosen),
            "state": list(self.source.state_keys),
            "success_from": self.success_from,
            "reward_recorded": REWARD_KEY in self.source.features,
            "skipped": {str(n): why for n, why in sorted(self.skipped.items())},
        }


def _is_empty(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Whether each range has zero width up to rounding."""
    return high - low <= np.maximum(1e-6 * np.maximum(np.abs(low), np.abs(high)), 1e-12)


def _short(key: str) -> str:
    """Camera name: the last part of the feature name, with other characters than letters and digits replaced by _."""
    name = "".join(c if c.isalnum() else "_" for c in key.rpartition(".")[2])
    return name or "camera"
