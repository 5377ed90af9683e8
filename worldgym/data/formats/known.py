"""Dataset formats by name: which one a folder is in, and how it becomes a dataset of this project.

A class that another package registers in `worldgym.registry.DATASET_FORMATS` has

- `detects(source) -> bool`: whether a folder looks like its own;
- `specs(source) -> worldgym.specs.Specs`; without an action spec the dataset is of video alone, and `rate(source)`
  gives its frames a second;
- `episodes(source)`, an iterable of `worldgym.data.Episode`, in the same order at every call.

`specs` and `episodes` may also name `settings`, the `ImportSettings` of the command.

Example::

    kind = find_format(Path("data/pusht"))          # LeRobotFormat
    lines = convert(kind, Path("data/pusht"), Path("data/mine"), ImportSettings(), command="worldgym import ...")
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from worldgym.data.formats.settings import ImportSettings
from worldgym.errors import ConfigError, DatasetError
from worldgym.registry import DATASET_FORMATS, accepted
from worldgym.specs import Specs

BUILT_IN = ("lerobot", "bridge", "video")
NOTES = "meta/import.json"


class LeRobotFormat:
    """LeRobotDataset folders, v2.0 to v3.0."""

    @staticmethod
    def detects(source: Path) -> bool:
        """Whether `source` has LeRobot's `meta/info.json`."""
        return (source / "meta" / "info.json").is_file()

    @staticmethod
    def convert(source: Path, out: Path, settings: ImportSettings, command: str) -> dict[str, Any]:
        """Write the dataset; the report of `import_lerobot`."""
        from worldgym.data.formats.lerobot_import import import_lerobot

        return import_lerobot(source, out, settings, command=command)


class BridgeFormat:
    """Folders of BridgeData V2 samples: `NAME.mp4` and `NAME.npz`."""

    @staticmethod
    def detects(source: Path) -> bool:
        """Whether `source` has no `meta` and holds a pair of files."""
        pairs = (path.with_suffix(".mp4").is_file() for path in source.glob("*.npz"))
        return not (source / "meta").is_dir() and any(pairs)

    @staticmethod
    def convert(source: Path, out: Path, settings: ImportSettings, command: str) -> dict[str, Any]:
        """Write the dataset; how many `episodes` it has.

        Raises:
            ConfigError: a setting that does not apply to such samples.
        """
        from worldgym.data.formats.bridge import write_bridge

        if settings != ImportSettings(image_size=settings.sizes(1)[0], limit=settings.limit):
            raise ConfigError(
                "samples of mp4 + npz have one camera, one kind of action and no success; of the options only "
                "--image-size and --limit apply to them, leave the others out"
            )
        return {"episodes": write_bridge(source, out, settings.sizes(1)[0], settings.limit, command=command)}


class VideoFormat:
    """Folders of plain videos: no actions, no state, no success; see `worldgym.data.formats.video_folder`."""

    @staticmethod
    def detects(source: Path) -> bool:
        """Whether `source` holds videos and nothing that says what was done in them."""
        from worldgym.data.formats.video_folder import is_video_folder

        return is_video_folder(source) and not (source / "meta").is_dir()

    @staticmethod
    def specs(source: Path, settings: ImportSettings) -> Specs:
        """One camera."""
        from worldgym.data.formats.video_folder import video_specs

        return video_specs(settings)

    @staticmethod
    def rate(source: Path, settings: ImportSettings) -> float | None:
        """Frames a second, as asked for."""
        return settings.fps

    @staticmethod
    def episodes(source: Path, settings: ImportSettings) -> Iterable[Any]:
        """The clips."""
        from worldgym.data.formats.video_folder import video_episodes

        return video_episodes(source, settings)


def find_format(source: Path, name: str = "auto") -> Any:
    """The format named `name`; for `auto` the first one that detects its own folder, those of this package first.

    A folder that nobody detects is left to this package's readers, whose errors say what they expect.

    Raises:
        ConfigError: an unknown name; lists what is known.
    """
    if name != "auto":
        return DATASET_FORMATS.get(name)
    own = next((kind for kind in (LeRobotFormat, BridgeFormat, VideoFormat) if kind.detects(source)), None)
    if (found := own or find_other(source)) is not None:
        return found
    samples = not (source / "meta").is_dir() and any(source.glob("*.npz"))
    return BridgeFormat if samples else LeRobotFormat


def find_other(source: Path) -> Any:
    """The first format of another package that detects `source` as its own; None where none does."""
    others = (DATASET_FORMATS.get(name) for name in DATASET_FORMATS.names() if name not in BUILT_IN)
    return next((kind for kind in others if kind.detects(source)), None)


def read_specs(kind: Any, source: Path, settings: ImportSettings) -> Specs:
    """What a format of another package says of `source`.

    Raises:
        DatasetError: something else than specs.
    """
    specs = kind.specs(source, **accepted(kind.specs, {"settings": settings}))
    if not isinstance(specs, Specs):
        raise DatasetError(
            f"the format {kind.__name__} gave {type(specs).__name__} for {source}; its specs(source) must return "
            "worldgym.specs.Specs"
        )
    return specs


def read_rate(kind: Any, source: Path, specs: Specs, settings: ImportSettings) -> float:
    """Frames a second: of the actions, or as the format says.

    Raises:
        ConfigError: nobody says.
    """
    if specs.action is not None:
        return specs.action.hz
    rate = None
    if hasattr(kind, "rate"):
        rate = kind.rate(source, **accepted(kind.rate, {"settings": settings}))
    if not rate:
        raise ConfigError(
            "these recordings have no actions, and so no rate of their own; type --fps 5 --actions absolute"
        )
    return float(rate)


def read_episodes(kind: Any, source: Path, settings: ImportSettings) -> Iterable[Any]:
    """The episodes that a format of another package reads from `source`."""
    episodes: Iterable[Any] = kind.episodes(source, **accepted(kind.episodes, {"settings": settings}))
    return episodes


def convert(kind: Any, source: Path, out: Path, settings: ImportSettings, command: str) -> dict[str, Any]:
    """Write `source`, in the format `kind`, as a dataset at `out`; the same call resumes.

    Args:
        kind: of `find_format`.
        source: what to read; it is not changed.
        out: a new folder, or that of the same import, interrupted.
        settings: how recordings become episodes.
        command: what finishes the import; readers of the unfinished dataset are told.

    Returns:
        what the format reports; at least `episodes`, how many there are.

    Raises:
        DatasetError: `source` cannot be read, or `out` holds something else.
        ConfigError: settings that do not apply, or other ones than those of the import that is resumed.
    """
    if hasattr(kind, "convert"):
        return dict(kind.convert(source, out, settings, command))
    return {"episodes": write_episodes(kind, source, out, settings, command)}


def write_episodes(kind: Any, source: Path, out: Path, settings: ImportSettings, command: str) -> int:
    """`convert` for a format that gives `specs` and `episodes`; returns how many there are."""
    from worldgym.data.splits import SplitManifest
    from worldgym.data.writer import DatasetWriter
    from worldgym.utils.files import read_sealed, write_sealed

    name = DATASET_FORMATS.name_of(kind) or kind.__name__
    if not source.exists():
        raise DatasetError(f"there is no {source}; give the folder of recordings")
    plain = ImportSettings(limit=settings.limit)
    if "settings" not in accepted(kind.episodes, {"settings": settings}) and settings != plain:
        raise ConfigError(f"of the options only --limit applies to the format {name}; leave the others out")
    specs = read_specs(kind, source, settings)
    key, notes = _identity(name, source, settings), out / NOTES
    if notes.is_file():
        noted = read_sealed(notes, f"Remove the folder {out} to import again")
        if not isinstance(noted, dict) or noted.get("key") != key:
            raise ConfigError(
                f"{out} holds an import of something else or with other settings; give another --out"
            )
    episodes = read_episodes(kind, source, settings)
    with DatasetWriter(
        out,
        specs,
        SplitManifest(name=source.name, rules={}),
        fps=read_rate(kind, source, specs, settings),
        robot_type=name,
        partial=command,
    ) as writer:
        write_sealed(notes, {"key": key})
        for episode in islice(episodes, len(writer.records), settings.limit):
            writer.append(episode)
        if not len(writer):
            raise DatasetError(f"{source} holds no episode that the format {name} can read")
        writer.finish()
        return len(writer)


def _identity(name: str, source: Path, settings: ImportSettings) -> str:
    """Hash of format, settings and the sizes of all files; what decides the result."""
    paths = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    sizes = [[path.relative_to(source).as_posix(), path.stat().st_size] for path in paths]
    return hashlib.sha256(json.dumps([name, asdict(settings), sizes]).encode()).hexdigest()
