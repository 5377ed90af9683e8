"""`RecordedFolder`: what every format of recordings shares when they are read as episodes.

Selection of episodes, resampling, bounds of the actions, names of cameras, success, and the report of an import are
here, once. A format states its episodes and cameras, and reads the rows and the frames of one episode.

Example::

    class MyLogs(RecordedFolder):
        layout, robot = "my logs", "my arm"
        def places(self): ...                                  # the episodes, each with index, length and data
        def read(self, place, pictures=False): ...             # Recording
        def frames(self, place, recording, camera, rows, size): ...   # (N, H, W, 3) uint8, and the rule
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from worldgym.data.episode import Episode
from worldgym.data.formats.bounds import ActionBounds, action_bounds, cut, report_dims
from worldgym.data.formats.fields import number_ranges
from worldgym.data.formats.items import Item, Scan
from worldgym.data.formats.recording import REWARD_KEY, SUCCESS_KEY, Part, Recording, part_success
from worldgym.data.formats.resampling import Rules, keep_rows, resampled
from worldgym.data.formats.settings import ImportSettings
from worldgym.errors import ConfigError, DatasetError
from worldgym.specs import ActionSpec, Camera, ObservationSpec, Specs, state_fields
from worldgym.utils.sizes import size_of

logger = logging.getLogger(__name__)
SLACK = 0.1  # allowed relative difference between the rate of the timestamps and the stated rate


class RecordedFolder(ABC):
    """Recordings that are read as episodes.

    Attributes:
        root: the folder or file.
        settings: import settings.
        chosen: names of the chosen cameras in the recordings, the main camera first.
        layout: name and version of the format.
        robot: name of the robot, or `unknown`.
        state_keys: names of the features of proprioception.
        labels: by `next.success` and `next.reward`, what the format calls these columns, if it has them.
        success_recorded: whether `--success auto` uses the column `next.success`, because it means success.
        convention: what the format records of its actions: delta or absolute, frame, units, sign of the gripper.
        takes_mapping: whether the format is read with a mapping file.
    """

    layout: str
    robot: str = "unknown"
    state_keys: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}
    success_recorded: bool = True
    convention: Mapping[str, Any] = {}
    rate_place: str = "their metadata"
    takes_mapping: bool = False

    def __init__(self, root: Path, chosen: Sequence[str], settings: ImportSettings) -> None:
        if settings.mapping is not None and not self.takes_mapping:
            raise ConfigError(
                f"--mapping describes the topics of MCAP recordings; {root} is read as {self.layout}; omit it"
            )
        self.root, self.settings, self.chosen = root, settings, tuple(chosen)
        self.camera = self.chosen[0]
        main, *names = [self.short(key) for key in self.chosen]
        # The main camera is `front` in the dataset, whatever its recorded name, unless another one is.
        self.main = main if "front" in names else "front"
        if len({self.main, *names}) != len(names) + 1:
            raise DatasetError(
                f"the cameras {', '.join(self.chosen)} get the names {[self.main, *names]}, the last "
                "part of each; expected different names: choose others with --camera, or rename the features"
            )
        self.views = tuple(names)
        self.skipped: dict[int, str] = {}

    # ---- what a format states and reads --------------------------------------------------------------------------

    @property
    @abstractmethod
    def places(self) -> Sequence[Any]:
        """All recorded episodes, sorted by number; each has `index`, `length` and `data`."""

    @property
    @abstractmethod
    def recorded_rate(self) -> float | None:
        """Rows per second of the recordings; None if the format does not record it."""

    @abstractmethod
    def read(self, place: Any, pictures: bool = False) -> Recording:
        """Read the rows of an episode, without its videos.

        Raises:
            DatasetError: the episode is damaged; other episodes may be readable.
        """

    @abstractmethod
    def frames(
        self, place: Any, recording: Recording, camera: str, rows: np.ndarray, size: tuple[int, int]
    ) -> tuple[np.ndarray, str]:
        """Frames `(len(rows), H, W, 3)` uint8 of the given rows, and the rule that matched them.

        Raises:
            DatasetError: a frame is missing or damaged.
        """

    @abstractmethod
    def action_names(self, dim: int) -> tuple[str, ...]:
        """Names of the action dimensions."""

    @abstractmethod
    def state_names(self, dim: int) -> tuple[str, ...]:
        """Names of the state dimensions."""

    def files(self, places: Sequence[Any]) -> set[Path]:
        """Files of these episodes, whose sizes identify an import."""
        return {place.data for place in places}

    def facts(self) -> list[Any]:
        """Further facts that identify an import, as plain JSON."""
        return []

    def prepare(self) -> None:  # noqa: B027 (most formats have nothing to prepare)
        """Read what all episodes depend on; an error here is not the fault of one episode."""

    def origin(self, place: Any) -> dict[str, Any]:
        """Further provenance of an episode: its file, its name there."""
        return {}

    def notes(self, without: Collection[int]) -> list[str]:
        """Sentences for the report about the episodes, apart from those in `without`."""
        return []

    def short(self, key: str) -> str:
        """Camera name in the dataset: the last part of the recorded name, with _ for other than letters and digits."""
        name = "".join(c if c.isalnum() else "_" for c in key.rpartition(".")[2])
        return name or "camera"

    # ---- selection -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def recorded_hz(self) -> float:
        """Rows per second of the recordings, as recorded or as stated in the settings.

        Raises:
            ConfigError: neither or both are given.
        """
        stated, found = self.settings.recorded_fps, self.recorded_rate
        if found is not None and stated is not None:
            raise ConfigError(
                f"{self.root} records its rate, {found:g} rows per second; omit --recorded-fps, and resample with --fps"
            )
        if found is None and stated is None:
            raise ConfigError(
                f"{self.root} ({self.layout}) does not record its rate; state the rows per second of the recordings, "
                "e.g. --recorded-fps 10"
            )
        return float(found if found is not None else stated)  # type: ignore[arg-type]

    @property
    def rate(self) -> float:
        """Rows per second of the episodes."""
        return float(self.settings.fps or self.recorded_hz)

    def _chosen(self) -> list[Any]:
        s, places = self.settings, list(self.places)
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
        _ = self.recorded_hz
        self.prepare()
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
                f"no episode of {self.root} is left to import: {len(self)} are listed, {len(self.skipped)} "
                f"could not be read{''.join(f'; episode {n}: {why}' for n, why in list(self.skipped.items())[:1])}"
            )
        rate = 1.0 / float(np.median(np.concatenate(spans)))
        if self.settings.fps is None and abs(rate / self.recorded_hz - 1.0) > SLACK:
            raise DatasetError(
                f"{self.root}: the timestamps give {rate:.4g} rows per second, but {self.rate_place} has fps "
                f"{self.recorded_hz:g}; correct one of them, or set the rate with --fps and --actions"
            )
        return Scan(items, actions, dims[1], lost, digest.hexdigest())

    @property
    def items(self) -> list[Item]:
        """The episodes to make, in order."""
        return self.scan.items

    def leave_out(self, place: Any, error: Exception) -> None:
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

    def _span(self, part: Part) -> tuple[int, int]:
        """First and last row of a part after rows are cut and actions and pictures are moved."""
        s = self.settings
        first = part.first + s.cut[0] + max(0, s.action_shift, s.picture_shift)
        return first, part.last - s.cut[1] + min(0, s.action_shift, s.picture_shift)

    def _rows(self, recording: Recording, part: Part) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the kept rows, and the actions between them in recorded units.

        Raises:
            DatasetError: nothing is left after rows are cut, or a gap in time is too large to resample.
        """
        s, where = self.settings, f"{self.root}: episode {recording.index}"
        first, last = self._span(part)
        if last <= first:
            raise DatasetError(
                f"{where} has {part.last - part.first + 1} rows; with --cut, --action-shift and --picture-shift fewer "
                "than two are left"
            )
        times = recording.times[first : last + 1]
        actions = recording.actions[first - s.action_shift : last - s.action_shift]
        if s.fps is None:
            return np.arange(first, last + 1), actions
        rows = keep_rows(times, s.fps, where)
        rules = Rules.parse(s.actions, self.action_names(actions.shape[1]))
        return rows + first, resampled(actions, rows, rules)

    @cached_property
    def _bounds(self) -> ActionBounds:
        return action_bounds(np.concatenate(self.scan.actions), self.settings.bounds)

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
        fields = self.state_names(self.scan.state_dim)
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
            names=self.action_names(len(low)),
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
        frames, rules, shift = {}, {}, self.settings.picture_shift
        sizes = self.settings.sizes(len(self.chosen)) if size is None else [size_of(size)] * len(self.chosen)
        for camera, pixels in zip(self.chosen, sizes, strict=True):
            frames[camera], rules[camera] = self.frames(place, recording, camera, rows - shift, pixels)
        solved = part_success(recording, part)
        kept, success = rows - part.first, None
        if solved is not None:  # a success between two kept rows is assigned to the later one
            first, last = self._span(part)
            # What happened in rows that were cut is not in this episode, unless every demonstration counts as solved.
            stop = len(solved) if last == part.last or recording.demonstrated else last - part.first + 1
            begins, ends = [first - part.first, *(kept[:-1] + 1)], [*(kept[:-1] + 1), stop]
            success = np.array([solved[a:b].any() for a, b in zip(begins, ends, strict=True)], bool)
        provenance: dict[str, Any] = {
            "behaviour": "imported", "source": self.root.name, "episode": place.index,
            "frames": rules[self.camera], **self.origin(place),
        }  # fmt: skip
        if len(recording.parts) > 1:
            provenance |= {"part": item.number, "rows": [part.first, part.last]}
        if self.convention and not self.settings.without_actions:
            provenance["action_convention"] = dict(self.convention)
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
            views={self.short(key): frames[key] for key in self.chosen[1:]},
        )

    # ---- report --------------------------------------------------------------------------------------------------

    @property
    def success_from(self) -> str:
        """Source of the success labels."""
        if self.settings.success != "auto":
            return self.settings.success
        return SUCCESS_KEY if SUCCESS_KEY in self.labels and self.success_recorded else "none recorded"

    def report(self, without: Collection[int] = ()) -> dict[str, Any]:
        """Report of the import, as plain JSON.

        Args:
            without: episodes that are excluded because their frames could not be read.
        """
        pairs = zip(self.scan.items, self.scan.actions, strict=True)
        kept = [(item, values) for item, values in pairs if item.place.index not in without]
        items = [item for item, _ in kept]
        values = np.concatenate([values for _, values in kept])
        bounds = ActionBounds(np.zeros(0), np.ones(0), []) if self.settings.without_actions else self._bounds
        names = () if self.settings.without_actions else self.action_spec.names
        parts = Counter(item.place.index for item in items)
        texts = Counter(item.part.instruction for item in items)
        report = {
            "source": self.root.name,
            "layout": self.layout,
            "episodes": len(items),
            "recorded_episodes": len(parts),
            "split_episodes": {str(n): count for n, count in sorted(parts.items()) if count > 1},
            "rows_lost": {str(n): count for n, count in sorted(self.scan.lost.items()) if n in parts},
            "instructions": dict(texts.most_common()),
            "actions": report_dims(names, values, bounds),
            "rows_cut": round(float(cut(values, bounds).any(1).mean()), 6),
            "hz": self.rate,
            "recorded_hz": self.recorded_hz,
            "cameras": list(self.chosen),
            "state": list(self.state_keys),
            "success_from": self.success_from,
            "reward_recorded": REWARD_KEY in self.labels,
            "skipped": {str(n): why for n, why in sorted(self.skipped.items())},
        }
        if self.convention:
            report["action_convention"] = dict(self.convention)
        return report | ({"notes": notes} if (notes := self.notes(without)) else {})
