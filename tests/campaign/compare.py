"""What a folder of results holds, apart from times: tensors, JSON, tables, episodes, TensorBoard's steps.

Example::

    whole, again = facts(Path("whole")), facts(Path("again"))
    differences(whole, again)      # [] when both hold the same
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CLOCK = re.compile(
    r"(^|[/._# ])(seconds|wall\w*|elapsed|time\w*|timestamp|date|created\w*|started|ended|fps|\w*per_second|\w*_s|ms|"
    r"hostname|pid|token|run_id|spent|duration\w*|bytes|sha256|hash)($|[/._ ])"
)
LOCKS = (".writer.lock",)
"""Files that nothing is read from: locks of processes."""
LEFT = re.compile(r"(^|/)(\.tmp-[^/]*|\.commit|[^/]*\.partial|[^/]*\.tmp)(/|$)")
TRIAL = re.compile(r"\b[0-9a-f]{5}_(\d{5})\b")
"""Names that Ray Tune gives to trials: the first part is random."""
OPAQUE = (".html", ".png", ".gif", ".mp4", ".svg", ".log", ".txt", ".csv", ".pkl")
"""Compared by name only: they show seconds, or are drawn from what is compared elsewhere."""


def facts(folder: Path, skip: str | None = None) -> dict[str, str]:
    """Facts of all files below `folder`, each with a name; a path of `folder` in texts is written as `OUT`.

    Args:
        folder: of results.
        skip: pattern of relative names that are left out.
    """
    found: dict[str, str] = {}
    events: list[Path] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or path.name in LOCKS or LEFT.search(name) or (skip and re.search(skip, name)):
            continue
        if "tfevents" in path.name:
            events.append(path)
            continue
        try:
            for key, value in _file(path).items():
                found[TRIAL.sub(r"TRIAL_\1", f"{name}#{key}")] = TRIAL.sub(
                    r"TRIAL_\1", value.replace(str(folder), "OUT")
                )
        except Exception as error:  # a damaged result is a difference, never the end of the campaign
            found[f"{name}#unreadable"] = f"{type(error).__name__}: {error}"
    for parent in sorted({path.parent for path in events}):
        found |= _events(parent, parent.relative_to(folder).as_posix())
    return found


def leftovers(folder: Path) -> list[str]:
    """Names of temporary files and unfinished commits below `folder`."""
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")))
    return [name for name in names if LEFT.search(name)]


def differences(
    whole: Mapping[str, str], again: Mapping[str, str], unsteady: frozenset[str] = frozenset()
) -> list[str]:
    """Names of facts that differ; `unsteady` ones, which differ between uninterrupted runs too, are not compared."""
    names = sorted({*whole, *again} - unsteady)
    return [name for name in names if whole.get(name) != again.get(name)]


def _file(path: Path) -> dict[str, str]:
    if path.suffix == ".safetensors":
        return _tensors(path)
    if path.suffix in (".json", ".jsonl"):
        text = path.read_text()
        data = (
            [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
        )
        leaves = {name: json.dumps(value) for name, value in _leaves(data, "")}
        return {name: value for name, value in leaves.items() if not CLOCK.search(f"{path.stem}{name}")}
    if path.suffix == ".npz":
        return _archive(path)
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path, use_threads=False)
        return {name: _hash(repr(table.column(name).to_pylist()).encode()) for name in table.column_names}
    if path.suffix in OPAQUE:
        return {"there": "yes"}
    if path.suffix in (".yaml", ".yml", ".md"):
        return {"text": path.read_text()}
    return {"bytes": _hash(path.read_bytes())}


def _tensors(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    shown = {}
    for name, value in values.items():
        plain = (
            value.contiguous().flatten().view(__import__("torch").uint8) if value.ndim else value.reshape(1)
        )
        shown[name] = f"{value.dtype} {tuple(value.shape)} {_hash(plain.numpy().tobytes())}"
    return shown


def _archive(path: Path) -> dict[str, str]:
    import numpy as np

    with np.load(path, allow_pickle=False) as data:
        return {k: f"{data[k].dtype} {data[k].shape} {_hash(data[k].tobytes())}" for k in data.files}


def _events(folder: Path, name: str) -> dict[str, str]:
    """Of each tag its steps as TensorBoard shows them: what was overwritten after a restart is dropped.

    Values are means since the last point, so a restart between two points changes them; they are not compared.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), purge_orphaned_data=True, size_guidance={"scalars": 0})
    events.Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        points = events.Scalars(tag)
        steps = [point.step for point in points]
        rising = all(a < b for a, b in zip(steps, steps[1:], strict=False))
        found[f"{name}/tensorboard#{tag}.rising"] = str(rising)
        found[f"{name}/tensorboard#{tag}.steps"] = repr(steps)
    return found


def _leaves(value: Any, name: str) -> Any:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}/{key}")
    elif isinstance(value, list) and value:
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{name}/{number}")
    else:
        yield name, value


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
