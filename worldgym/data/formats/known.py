"""Dataset formats by name: detection of the format of a folder, and conversion to a dataset of worldgym.

A class that another package registers in `worldgym.registry.DATASET_FORMATS` has these methods:

- `detects(source) -> bool`: whether a folder has this format;
- `specs(source) -> worldgym.specs.Specs`: specs of the recordings; without an action spec the dataset holds video only,
  and the class also needs `rate(source)`, the frames per second, or the user states them with `--fps`;
- `episodes(source)`: an iterable of `worldgym.data.Episode`, in the same order at every call.

`specs`, `rate` and `episodes` may also take a parameter `settings`, the `ImportSettings` of the command.

Example::

    kind = find_format(Path("data/pusht"))          # LeRobotFormat
    lines = convert(kind, Path("data/pusht"), Path("data/mine"), ImportSettings(), command="worldgym import ...")
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from worldgym.data.formats.foreign import (
    check_methods,
    check_options,
    frame_rate,
    name_of,
    read_episodes,
    read_specs,
    refuse_episode,
    stated_rate,
)
from worldgym.data.formats.settings import ImportSettings
from worldgym.errors import ConfigError, DatasetError, WorldgymError
from worldgym.registry import DATASET_FORMATS
from worldgym.specs import Specs

logger = logging.getLogger(__name__)

BUILT_IN = ("lerobot", "rlds", "robomimic", "zarr", "mcap", "ctrlworld", "bridge", "video")  # in the order of detection
NOTES = "meta/import.json"


class LeRobotFormat:
    """LeRobotDataset folders, v2.0 to v3.0."""

    @staticmethod
    def detects(source: Path) -> bool:
        """Whether `source` has LeRobot's `meta/info.json`, or the files of such a dataset without sub-folders."""
        from worldgym.data.formats.source import is_foreign

        return (source / "meta" / "info.json").is_file() or is_foreign(source)

    @staticmethod
    def convert(source: Path, out: Path, settings: ImportSettings, command: str) -> dict[str, Any]:
        """Write the dataset and return the report of `import_lerobot`."""
        from worldgym.data.formats.lerobot_import import import_lerobot

        return import_lerobot(source, out, settings, command=command)


class BridgeFormat:
    """Folders of BridgeData V2 samples: `NAME.mp4` and `NAME.npz`."""

    @staticmethod
    def detects(source: Path) -> bool:
        """Whether `source` has no folder `meta` and holds a pair `NAME.mp4`, `NAME.npz`."""
        pairs = (path.with_suffix(".mp4").is_file() for path in source.glob("*.npz"))
        return not (source / "meta").is_dir() and any(pairs)

    @staticmethod
    def convert(source: Path, out: Path, settings: ImportSettings, command: str) -> dict[str, Any]:
        """Write the dataset and return `{"episodes": number of episodes}`.

        Raises:
            ConfigError: a setting that does not apply to BridgeData V2 samples.
        """
        from worldgym.data.formats.bridge import write_bridge

        if settings != ImportSettings(image_size=settings.sizes(1)[0], limit=settings.limit):
            raise ConfigError(
                "samples of mp4 + npz have one camera, one kind of action and no success labels; only the options "
                "--image-size and --limit apply to them; omit the others"
            )
        return {"episodes": write_bridge(source, out, settings.sizes(1)[0], settings.limit, command=command)}


class VideoFormat:
    """Folders of plain videos: no actions, no state, no success; see `worldgym.data.formats.video_folder`."""

    @staticmethod
    def detects(source: Path) -> bool:
        """Whether `source` holds videos, and neither actions nor metadata."""
        from worldgym.data.formats.video_folder import is_video_folder

        return is_video_folder(source) and not (source / "meta").is_dir()

    @staticmethod
    def specs(source: Path, settings: ImportSettings) -> Specs:
        """Specs with one camera, without state and actions."""
        from worldgym.data.formats.video_folder import video_specs

        return video_specs(settings)

    @staticmethod
    def rate(source: Path, settings: ImportSettings) -> float | None:
        """Frames per second, from the settings."""
        return settings.fps

    @staticmethod
    def episodes(source: Path, settings: ImportSettings) -> Iterable[Any]:
        """Episodes made from the videos."""
        from worldgym.data.formats.video_folder import video_episodes

        return video_episodes(source, settings)


def find_format(source: Path, name: str = "auto") -> Any:
    """The format registered as `name`; for `auto` the first format that detects `source`.

    The formats of this package are tried first. If no format detects the folder, a format of this package is returned,
    whose error messages state the expected files.

    Raises:
        ConfigError: the name is unknown; the message lists the known names.
        DatasetError: the folder has the files of no format; the message lists the formats.
    """
    if name != "auto":
        return DATASET_FORMATS.get(name)
    if not source.exists():
        raise DatasetError(f"there is no file or folder {source}; give the recordings")
    if (found := detect(source)) is not None:
        return found
    samples = not (source / "meta").is_dir() and any(source.glob("*.npz"))
    if source.is_file() or source.is_dir() and not samples and not (source / "meta").is_dir():
        raise DatasetError(
            f"none of the formats {', '.join(DATASET_FORMATS.names())} can read {source}; expected meta/info.json "
            "(LeRobot), features.json (RLDS), NAME.hdf5 (robomimic), meta/episode_ends (Zarr), NAME.mcap, annotation/ "
            "and videos/ (Ctrl-World), pairs of NAME.mp4 and NAME.npz (BridgeData V2), or videos. Check the path, or "
            "register a format for these recordings (docs/guides/add_dataset_format.md)"
        )
    return BridgeFormat if samples else LeRobotFormat


def detect(source: Path) -> Any:
    """The first format that detects `source`, those of this package first; None if none does."""
    built_in = map(DATASET_FORMATS.get, BUILT_IN)
    return next((kind for kind in built_in if kind.detects(source)), None) or find_other(source)


def find_other(source: Path) -> Any:
    """The first format of another package that detects `source`; None if none does.

    A format that can't be loaded, or whose `detects` fails, is skipped with a warning.
    """
    for name, kind in DATASET_FORMATS.available(without=BUILT_IN):
        try:
            if kind.detects(source):
                return kind
        except Exception as error:
            logger.warning(
                "skipped: the dataset format %r failed in detects(%s): %s: %s",
                name,
                source,
                type(error).__name__,
                error,
            )
    return None


def convert(kind: Any, source: Path, out: Path, settings: ImportSettings, command: str) -> dict[str, Any]:
    """Convert `source` of the format `kind` to a dataset at `out`; the same call resumes an interrupted import.

    Args:
        kind: the format, from `find_format`.
        source: folder or file to read; it is not changed.
        out: a new folder, or the folder of the same import after an interruption.
        settings: import settings.
        command: command that finishes the import; shown to those who open the unfinished dataset.

    Returns:
        The report of the format; it contains at least `episodes`, the number of episodes.

    Raises:
        DatasetError: `source` cannot be read, or `out` holds other data.
        ConfigError: a setting does not apply, or the settings differ from those of the interrupted import.
    """
    if hasattr(kind, "convert"):
        return dict(kind.convert(source, out, settings, command))
    return {"episodes": write_episodes(kind, source, out, settings, command)}


def write_episodes(kind: Any, source: Path, out: Path, settings: ImportSettings, command: str) -> int:
    """Convert with a format that has `specs` and `episodes`; returns the number of episodes."""
    from worldgym.data.splits import SplitManifest
    from worldgym.data.writer import DatasetWriter
    from worldgym.utils.files import read_sealed, write_sealed

    name = name_of(kind)
    if not source.exists():
        raise DatasetError(f"there is no folder {source}; give the folder of the recordings")
    check_methods(kind)
    specs = read_specs(kind, source, settings)
    rate = stated_rate(kind, source, specs, settings)
    check_options(kind, rate, settings)
    fps = frame_rate(kind, rate, settings)
    key, notes = _identity(name, source, settings), out / NOTES
    if notes.is_file():
        noted = read_sealed(notes, f"Remove the folder {out} to import again")
        if not isinstance(noted, dict) or noted.get("key") != key:
            raise ConfigError(
                f"{out} holds an import of something else or with other settings; give another --out"
            )
    episodes = read_episodes(kind, source, settings)
    if not specs.observation.cameras:
        raise DatasetError(f"the format {name} gave specs without a camera for {source}; a dataset needs one")
    with DatasetWriter(
        out, specs, SplitManifest(name=source.name, rules={}), fps=fps, robot_type=name, partial=command
    ) as writer:
        write_sealed(notes, {"key": key})
        for episode in islice(episodes, len(writer.records), settings.limit):
            try:
                writer.append(episode)
            except (WorldgymError, OSError, MemoryError):  # saving failed, which is no fault of the episode
                raise
            except Exception as error:
                refuse_episode(kind, source, len(writer), error)
        if not len(writer):
            raise DatasetError(f"{source} holds no episode that the format {name} can read")
        writer.finish()
        return len(writer)


def _identity(name: str, source: Path, settings: ImportSettings) -> str:
    """Hash of format, settings and the sizes of all files, which identifies an import."""
    paths = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    sizes = [[path.relative_to(source).as_posix(), path.stat().st_size] for path in paths]
    later = ("mapping", "recorded_fps")  # settings that imports of earlier versions do not have
    given = {key: value for key, value in asdict(settings).items() if key not in later or value is not None}
    return hashlib.sha256(json.dumps([name, given, sizes]).encode()).hexdigest()
