"""Writes recordings of any format as a dataset of worldgym; one importer for all formats.

An import can be resumed. Until the last episode is written, readers reject the dataset and show the command that
finishes it. The same command continues after an interruption; other settings are rejected.

Example::

    report = import_recorded(LeRobotFolder("data/pusht"), "data/mine")
    report["episodes"], report["actions"]
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from worldgym.data import lerobot
from worldgym.data.formats.items import Item
from worldgym.data.formats.recorded import RecordedFolder
from worldgym.data.splits import SplitManifest
from worldgym.data.writer import DatasetWriter
from worldgym.errors import ConfigError, DatasetError
from worldgym.utils.files import read_sealed, write_sealed
from worldgym.utils.sizes import text

logger = logging.getLogger(__name__)
NOTES = "meta/import.json"
_LATER = {"recorded_fps": None, "mapping": None, "action_shift": 0, "picture_shift": 0, "cut": (0, 0)}
"""Settings of later versions with their defaults, which do not count, so that earlier imports are continued."""


def import_recorded(
    folder: RecordedFolder,
    out: str | os.PathLike[str],
    *,
    command: str = "worldgym import with the same options",
) -> dict[str, Any]:
    """Convert recordings to a dataset of worldgym; the same call resumes an interrupted import.

    Args:
        folder: the recordings; they are not changed.
        out: a new folder, or the folder of the same import after an interruption.
        command: command that finishes the import; shown to those who open the unfinished dataset.

    Returns:
        The report, which is also stored in `meta/import.json` of the dataset.

    Raises:
        DatasetError: an episode can't be read; also if `out` holds other data.
        ConfigError: `out` holds an import with other settings or of other recordings.
    """
    target = Path(out).expanduser()
    key = _identity(folder)
    notes = _notes(target)
    if notes is not None and notes["key"] != key:
        raise ConfigError(
            f"{target} holds an import with other settings or of other recordings; type the same command as before "
            "(--skip-bad may be added), or give another --out"
        )
    if notes is not None and notes["complete"]:
        logger.info("%s is already complete", target)
        return dict(notes["report"])
    if notes is None and (target / lerobot.INFO_PATH).is_file():
        begun = lerobot.read_meta(target, partial=True)
        if begun.partial is None or begun.info["total_episodes"]:
            raise DatasetError(f"{target} holds a dataset of another import; give another --out")
    items = folder.items
    manifest = SplitManifest(name=folder.root.name, rules={})
    with DatasetWriter(
        target,
        folder.specs,
        manifest,
        fps=folder.rate,
        robot_type=folder.robot,
        partial=command,
    ) as writer:
        late: dict[str, str] = {} if notes is None else dict(notes["late"])
        write_sealed(target / NOTES, {"key": key, "complete": False, "late": late, "report": {}})
        done = _after(items, writer, late)
        for item in _progress(items[done:], len(items), done):
            if str(item.place.index) in late:
                continue
            try:
                episode = folder.episode(item)
            except (DatasetError, ValueError) as error:
                folder.leave_out(item.place, error)
                late[str(item.place.index)] = str(error)
                write_sealed(target / NOTES, {"key": key, "complete": False, "late": late, "report": {}})
                continue
            writer.append(episode)
        if not len(writer):
            raise DatasetError(f"no episode of {folder.root} could be read: {next(iter(late.values()), '')}")
        writer.finish()
        report = folder.report(without=[int(number) for number in late])
        kept = [record.success for record in writer.records]
        sizes = [text(camera.size) for camera in folder.specs.observation.cameras]
        rules = Counter(str(record.provenance["frames"]) for record in writer.records)
        report |= {
            "episodes": len(kept), "successes": sum(map(bool, kept)), "image_size": sizes,
            "state_dim": folder.scan.state_dim,
            "frames_by": dict(rules.most_common()), "skipped": {**report["skipped"], **late},
        }  # fmt: skip
        write_sealed(target / NOTES, {"key": key, "complete": True, "late": late, "report": report}, indent=1)
    return report


def _after(items: Sequence[Item], writer: DatasetWriter, late: dict[str, str]) -> int:
    """Number of items that are already done: committed, or found to be bad before the last committed one."""
    if not writer.records:
        return 0
    last = writer.records[-1].provenance
    for number, item in enumerate(items):
        if item.place.index == last["episode"] and item.number == last.get("part", 0):
            return number + 1
    raise ConfigError(f"the recordings changed after the import to {writer.root} began; give another --out")


def _identity(folder: RecordedFolder) -> str:
    """Hash that identifies an import: settings, selected episodes, all recorded values, and sizes of the files.

    `skip_bad` is excluded, so that it can be added after a damaged video has stopped the import.
    """
    settings = {**dataclasses.asdict(folder.settings), "skip_bad": None}
    settings = {k: v for k, v in settings.items() if k not in _LATER or v != _LATER[k]}
    plan = [
        [i.place.index, i.place.length, i.part.first, i.part.last, i.part.instruction] for i in folder.items
    ]
    files = folder.files([item.place for item in folder.items])
    sizes = sorted(
        (path.relative_to(folder.root).as_posix(), path.stat().st_size if path.is_file() else -1)
        for path in files
    )
    facts = [settings, plan, sizes, folder.scan.hash, folder.specs.to_dict(), folder.root.name, *folder.facts()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _notes(target: Path) -> dict[str, Any] | None:
    """Stored state of an earlier import into `target`, or None."""
    path = target / NOTES
    if not path.is_file():
        return None
    remedy = f"Remove the folder {target} to import again"
    data = read_sealed(path, remedy)
    if not isinstance(data, dict) or not {"key", "complete", "late", "report"} <= set(data):
        raise DatasetError(f"{path} does not hold the state of an import. {remedy}")
    return data


def _progress(items: Sequence[Item], total: int, done: int) -> Iterator[Item]:
    from worldgym.utils.progress import Progress

    with Progress(total, "import", initial=done) as bar:
        for item in items:
            yield item
            bar.update(1)
