"""Reads a dataset completely and lists all its problems; for datasets of worldgym and other LeRobot datasets.

Example::

    found = check("data/mine")
    found.problems          # [] if the dataset is intact
    found.facts["episodes"]
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from worldgym.data import lerobot
from worldgym.data.diagnosis import Recorder, diagnose
from worldgym.data.formats.known import detect
from worldgym.data.formats.lerobot_import import NOTES, ImportSettings, LeRobotFolder, is_foreign
from worldgym.data.reader import EpisodeDataset
from worldgym.data.schema import camera_keys, tasks_table
from worldgym.data.stats import RunningStats
from worldgym.errors import ConfigError, DatasetError, WorldgymError
from worldgym.utils.files import file_sha256, read_sealed

STILL = 1e-4  # standard deviation of pixels (0 to 255) below which all frames of an episode count as identical
CLOSE = 1e-9  # relative tolerance: statistics of datasets that were written in several runs differ by rounding
NO_STATE = "no state was recorded in these BridgeData V2 samples (the import adds up the actions instead)"


@dataclass
class Found:
    """Result of a dataset check.

    Args:
        facts: counts, as plain JSON.
        problems: errors that make the dataset or one of its episodes unusable.
        notes: warnings that a user may accept.
        diagnosis: result of `worldgym.data.diagnosis.diagnose`, plain JSON; None if it was not asked for.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    diagnosis: dict[str, Any] | None = None


def check(
    path: str | os.PathLike[str], settings: ImportSettings | None = None, *, diagnosis: bool = False
) -> Found:
    """Read every file of a dataset and report its problems.

    Args:
        path: folder of the dataset.
        settings: import settings for a LeRobot dataset that worldgym did not write; each bad episode is one problem.
        diagnosis: also diagnose the recordings for world-model training, see `worldgym.data.diagnosis`.

    Raises:
        DatasetError: there is no dataset, or its metadata cannot be read.
        ConfigError: `settings` was given for a dataset that worldgym wrote.
    """
    root = Path(path).expanduser()
    if is_foreign(root):
        return _foreign(root, settings, diagnosis)
    if settings is not None and settings != ImportSettings():
        raise ConfigError(
            f"{root} is a dataset of worldgym; the options that set how data is read apply to other datasets only; "
            "omit them"
        )
    if not (root / lerobot.INFO_PATH).is_file():
        if any(root.glob("*.npz")):
            return _bridge(root, diagnosis)
        if (kind := detect(root)) is not None:
            raise DatasetError(
                f"{root} holds recordings that {kind.__name__} reads; import them first with `worldgym import "
                f"--source {root} --out NEW`, then check NEW"
            )
    return _own(root, diagnosis)


def _own(root: Path, diagnosis: bool) -> Found:
    found = Found()
    meta = lerobot.read_meta(root, sizes=False)
    for entry in meta.files:
        try:
            lerobot.check_size(root / entry["path"], int(entry["bytes"]))
            if file_sha256(root / entry["path"]) != entry["sha256"]:
                raise DatasetError(
                    f"{root / entry['path']} differs from the committed version; restore it from a copy"
                )
        except DatasetError as error:
            found.problems.append(str(error))
    if "seal" not in meta.info["worldgym"]:
        found.notes.append(f"{root / lerobot.INFO_PATH} was written by an earlier version and has no seal")
    if found.problems:
        return found  # the next checks would report the same files again
    try:
        dataset = EpisodeDataset(root)
        _meta_files(found, dataset)
    except WorldgymError as error:
        found.problems.append(str(error))
        return found
    rows, recorder = 0, None
    if diagnosis:
        steps = sum(record.steps for record in dataset.records)
        recorder = Recorder(meta.specs, meta.fps, steps, no_state=_derived(dataset))
    for position, record in enumerate(dataset.records):
        where = f"episode {record.index}"
        try:
            episode = dataset[position]
            rows += episode.length
            _note_constant(found, where, episode.frames, episode.actions)
            if episode.succeeded != record.success:
                listed = "successful" if record.success else "failed"
                found.problems.append(f"{where} is listed as {listed}, but the success labels of its frames disagree")
            if recorder is not None:
                recorder.add(record.index, episode)
        except (WorldgymError, ValueError) as error:
            found.problems.append(f"{where}: {error}")
    found.facts = {
        "layout": f"worldgym format {meta.format_version}", "episodes": len(dataset), "actions": rows,
        "image_size": dataset.image_size, "state_dim": meta.state_dim, "hz": meta.fps, "cameras": len(meta.cameras),
        "action_names": [] if meta.specs.action is None else list(meta.specs.action.names),
        "instructions": dict(Counter(record.instruction for record in dataset.records).most_common()),
        "successes": sum(bool(record.success) for record in dataset.records),
        "without_success": sum(record.success is None for record in dataset.records),
        "splits": dict(Counter(record.split for record in dataset.records)),
        "behaviours": dict(Counter(record.behaviour for record in dataset.records)),
    }  # fmt: skip
    if not len(dataset):
        found.problems.append("the dataset has no episodes")
    _diagnose(found, recorder)
    return found


def _meta_files(found: Found, dataset: EpisodeDataset) -> None:
    """Check the files whose hash is not in `meta/info.json`: they can be recomputed, or have a seal."""
    meta, root = dataset.meta, dataset.root
    remedy = "restore it from a copy"
    tasks = lerobot.read_tasks(meta)
    listed = set(tasks) == {record.instruction for record in dataset.records}
    if not listed or (tasks and not _same_table(lerobot.read_table(root / lerobot.TASKS_PATH), tasks)):
        found.problems.append(
            f"{root / lerobot.TASKS_PATH} lists different instructions from the episodes; {remedy}"
        )
    if len(dataset) and meta.padding == 0:
        stats = RunningStats(meta.action_dim, meta.state_dim, camera_keys(meta.specs.observation))
        stats.add_files(root, meta.files, dataset.records)
        if not _agree(json.loads(json.dumps(stats.summary())), dataset.stats):
            found.problems.append(f"{root / lerobot.STATS_PATH} does not match the data; {remedy}")
    if (root / NOTES).is_file():
        read_sealed(root / NOTES, remedy.capitalize())


def _same_table(table: pa.Table, tasks: list[str]) -> bool:
    """Whether `meta/tasks.parquet` equals a newly written table, apart from the version of pyarrow."""
    expected = tasks_table(tasks)
    try:
        metadata = [json.loads((t.schema.metadata or {})[b"pandas"]) for t in (table, expected)]
        for pandas in metadata:
            pandas.pop("creator")
    except (KeyError, ValueError, AttributeError):
        return False
    return bool(table.equals(expected)) and metadata[0] == metadata[1]


def _agree(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal, numbers up to rounding."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_agree(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_agree, a, b))
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return abs(a - b) <= CLOSE * max(1.0, abs(a), abs(b))
    return bool(a == b)


def _foreign(root: Path, settings: ImportSettings | None, diagnosis: bool) -> Found:
    found = Found()
    base = settings or ImportSettings()
    folder = LeRobotFolder(root, settings=dataclasses.replace(base, skip_bad=True))
    late: dict[int, str] = {}
    recorder = _folder_recorder(folder) if diagnosis else None
    for item, actions in zip(folder.items, folder.scan.actions, strict=True):
        where = f"episode {item.place.index}"
        try:
            episode = folder.episode(item)
            _note_constant(found, where, episode.frames, episode.actions)
            if recorder is not None:
                recorder.add(item.place.index, episode, None if folder.settings.without_actions else actions)
        except (DatasetError, ValueError) as error:
            late[item.place.index] = str(error)
    if len(late) < len({item.place.index for item in folder.items}):
        found.facts = folder.report(late)
    bad = sorted({**folder.skipped, **late}.items())
    found.problems += [f"episode {number}: {why}" for number, why in bad]
    _diagnose(found, recorder)
    return found


def _folder_recorder(folder: LeRobotFolder) -> Recorder:
    """Recorder for a LeRobot folder, with the sizes of its pictures before the import."""
    cameras = zip(folder.source.cameras_chosen, folder.specs.observation.cameras, strict=True)
    sizes = {}
    for key, camera in cameras:
        shape = folder.source.features[key].get("shape")
        if isinstance(shape, list) and len(shape) == 3 and all(type(side) is int for side in shape):
            sizes[camera.name] = (shape[1], shape[2]) if shape[0] == 3 else (shape[0], shape[1])
    steps = sum(item.part.last - item.part.first for item in folder.items)
    return Recorder(folder.specs, folder.rate, steps, recorded_sizes=sizes)


def _derived(dataset: EpisodeDataset) -> str | None:
    """Reason why the states of a dataset are no measurements; None if they are."""
    sources = {record.provenance.get("source") for record in dataset.records}
    return NO_STATE if sources == {"BridgeData V2"} else None


def _diagnose(found: Found, recorder: Recorder | None) -> None:
    """Add the diagnosis of the recorded episodes, if any could be read."""
    if recorder is not None and recorder.rows:
        found.diagnosis = diagnose(recorder)


def _bridge(root: Path, diagnosis: bool) -> Found:
    from worldgym.data.formats.bridge import BRIDGE_ACTION_SPEC, bridge_episodes, bridge_specs

    found = Found()
    episodes = bridge_episodes(root)
    for episode in episodes:
        _note_constant(found, f"episode {episode.provenance['episode']}", episode.frames, episode.actions)
    rows = sum(episode.length for episode in episodes)
    if diagnosis:
        specs = bridge_specs()
        recorder = Recorder(specs, BRIDGE_ACTION_SPEC.hz, rows, no_state=NO_STATE)
        for number, episode in enumerate(episodes):
            recorder.add(number, episode)
        _diagnose(found, recorder)
    found.facts = {"layout": "BridgeData V2 samples", "episodes": len(episodes), "actions": rows}
    return found


def _note_constant(found: Found, where: str, frames: np.ndarray, actions: np.ndarray | None) -> None:
    """Add a note if all frames or all actions of an episode are identical."""
    if float(frames.reshape(len(frames), -1).std(0).max()) < STILL:
        found.notes.append(f"{where}: all its frames are identical")
    if actions is not None and len(actions) > 1 and float(np.abs(np.diff(actions, axis=0)).max()) == 0.0:
        found.notes.append(f"{where}: all its actions are identical")
