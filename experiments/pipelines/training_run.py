"""Shared by all training commands: the identity of a run folder, the meaning of proprioception, and checked settings.

`run.json` in the folder stores the identity of the run: the settings, and hashes of the data and of the models from
which training starts. The same command continues or repeats the run. A different command is refused, so that weights
and figures of two runs are never mixed.

Example::

    facts = identity(config, dataset, contents=("initial",))
    claim(config.out, "train tokenizer", facts, own=("checkpoint", "tensorboard", "tokenizer.json"), fresh=config.fresh)
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from worldgym.errors import CheckpointError, ConfigError, WorldgymError
from worldgym.specs import GripperRule, Specs
from worldgym.utils.files import file_sha256, read_sealed, write_sealed
from worldgym.utils.sizes import ImageSize, size_of, text
from worldgym.utils.staging import sweep_once
from worldgym.utils.typed import changes

if TYPE_CHECKING:
    import numpy as np

    from worldgym.data import EpisodeDataset

logger = logging.getLogger(__name__)
MARKER = "run.json"
Hand = Literal["auto", "yes", "no"]
EXTENDABLE = ("steps", "minutes", "epochs")
"""Settings that may change when a run is continued: its length."""
ELSEWHERE = ("data", "out", "fresh", "address", "shard", "compile", "device", "dtype")
"""Settings that do not affect the result, or that are compared by content."""
LATER = ("goal_head", "head_only")
"""Switches that runs of earlier versions had not: at their default they identify nothing."""


WORLD_PRESETS = ("base", "small", "tiny")
"""Presets of world models and their tokenizers; policies and judges have the last two."""


def require_preset(preset: str, presets: Sequence[str] = ("small", "tiny")) -> None:
    """Raise a ConfigError unless `preset` is one of `presets`."""
    if preset not in presets:
        raise ConfigError(
            f"unknown preset {preset!r}; the presets are {', '.join(presets)}: try --preset small"
        )


def require_size(image_size: ImageSize, model_size: ImageSize, what: str) -> None:
    """Raise a ConfigError unless the frames of the data have the size that `what` reads: pixels a side, or (H, W)."""
    if size_of(image_size) != size_of(model_size):
        has, takes = text(size_of(image_size)), text(size_of(model_size))
        raise ConfigError(
            f"the dataset has frames of {has} pixels a side, and {what} takes {takes}; train it on this dataset, or "
            f"create the dataset again with `worldgym collect` or `worldgym import` --image-size {takes}"
        )


# -- proprioception -----------------------------------------------------------------------------------------------


def with_hand(specs: Specs, choice: Hand = "auto") -> Specs:
    """Add or remove the roles of a hand in the specs; `auto` keeps them as recorded.

    Args:
        specs: specs of a dataset.
        choice: `yes` means that proprioception is x, y, z, ..., finger opening, and that the last action is the
            gripper; `no` means that its columns are unknown.

    Raises:
        ConfigError: `yes` with fewer than four dimensions.
    """
    if choice == "auto":
        return specs
    state, action = specs.observation.state, specs.action
    if choice == "no":
        fields = [dataclasses.replace(field, role="other") for field in state]
        action = None if action is None else dataclasses.replace(action, gripper=None)
        return Specs(dataclasses.replace(specs.observation, state=tuple(fields)), action)
    if len(state) < 4:
        raise ConfigError(
            f"proprioception has {len(state)} dimensions; a hand's has at least four: x, y, z, ..., opening of the "
            "fingers. Type --hand no"
        )
    roles = ["ee_position"] * 3 + ["other"] * (len(state) - 4) + ["gripper"]
    fields = [dataclasses.replace(field, role=role) for field, role in zip(state, roles, strict=True)]
    if action is not None and action.gripper is None:
        last = action.dim - 1
        action = dataclasses.replace(action, gripper=GripperRule(last, action.high[last], action.low[last]))
    return Specs(dataclasses.replace(specs.observation, state=tuple(fields)), action)


# -- identity of a run folder -------------------------------------------------------------------------------------


def identity(
    config: Any, dataset: EpisodeDataset | None = None, contents: Sequence[str] = ()
) -> dict[str, Any]:
    """Identity of a training run: settings by option name, data and models by content.

    Args:
        config: config of the command.
        dataset: training data.
        contents: fields that name folders of models; the contents of their files are compared, not their names.
    """
    facts: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if name in LATER and value == field.default:
            continue
        if name in contents:
            facts[option(name)] = None if value is None else content_of(value)
        elif name not in (*EXTENDABLE, *ELSEWHERE):
            facts[option(name)] = value
    if dataset is not None:
        facts["--data"] = fingerprint(dataset)
    return dict(json.loads(json.dumps(facts, default=str)))


def option(field: str) -> str:
    """Return the command-line option of a field."""
    return "--" + field.replace("_", "-")


def fingerprint(dataset: EpisodeDataset) -> str:
    """Hash of the committed content of a dataset: file hashes, action spec and split rules; 16 hex digits."""
    meta = dataset.meta
    action = meta.specs.action  # None for video without actions
    facts = [[f["sha256"] for f in meta.files], None if action is None else action.to_dict(), meta.manifest.hash]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def arrays_hash(*arrays: np.ndarray) -> str:
    """Hash of the bytes and shapes of arrays; 16 hex digits."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str((array.shape, array.dtype.str)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def content_of(path: Path | str) -> str:
    """Hash of the weights and settings in a model's folder; a name that is not a folder is returned unchanged."""
    folder = Path(path)
    if not folder.is_dir():
        return str(path)
    if (folder / "world_model").is_dir():
        folder = folder / "world_model"
    files = [folder / name for name in ("config.json", "tokenizer.json") if (folder / name).is_file()]
    hashes = [file_sha256(file) for file in (*files, *sorted(folder.glob("*.safetensors")))]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:16]


def claim(
    out: Path, command: str, facts: Mapping[str, Any], *, own: Sequence[str], fresh: bool = False
) -> None:
    """Record in `out` that it holds the run `facts` of `command`, or refuse.

    Args:
        out: the run's folder; created if needed.
        command: words of the command, such as `train tokenizer`.
        facts: from `identity`.
        own: files and folders that the command writes into `out`.
        fresh: remove the files of an earlier run of this command, and nothing else.

    Raises:
        ConfigError: `out` is a file, or holds a run with other settings or data or of another command; or `fresh` is
            set and `out` holds files of these names that no marker lists.
        CheckpointError: the marker is damaged.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file, but a run needs a folder; give another --out")
    marker = out / MARKER
    before = _read(marker)
    if before is not None and before["command"] != command:
        raise ConfigError(f"{out} holds a run of `worldgym {before['command']}`; give another --out")
    if before is not None and fresh:
        for name in before["own"]:
            _remove(out / Path(name).name)
        before = None
    there = [name for name in own if (out / name).exists()]
    if before is None and fresh and there:
        raise ConfigError(
            f"{out} holds {', '.join(there)}, which no run of this command has recorded; nothing was removed. Give "
            "another --out, or move these files away"
        )
    if before is not None and (differences := changes(before["facts"], facts)):
        raise ConfigError(
            f"{out} holds a run with other settings or data ({differences}). Type the same settings to continue it, "
            "give another --out, or add --fresh, which removes the files of that run and starts over"
        )
    mine = before["own"] if before is not None else [name for name in own if name not in there]
    out.mkdir(parents=True, exist_ok=True)
    now = {"command": command, "facts": _plain(facts), "own": mine}
    if before is None or {key: before[key] for key in now} != now:
        write_sealed(marker, now, indent=1)


def recorded_run(out: Path) -> dict[str, Any] | None:
    """The `command` and `facts` of the run in a folder, as `claim` recorded them; None if it holds no run.

    Raises:
        CheckpointError: the marker is damaged.
    """
    return _read(out / MARKER)


def finish(out: Path, config: Any) -> None:
    """Mark the run of `config` in `out` as finished, with the results that exist now."""
    before = _read(out / MARKER)
    if before is not None:
        files = [name for name in before["own"] if (out / name).exists() and name != "checkpoint"]
        facts = {**before, "finished": {"settings": _settings(config), "files": files}}
        write_sealed(out / MARKER, facts, indent=1)


@contextlib.contextmanager
def released_if_refused(out: Path) -> Iterator[None]:
    """Give a folder back that a new run has claimed, if its inputs are refused before it has made anything."""
    try:
        yield
    except WorldgymError:
        before = _read(out / MARKER) or {}
        if before and not any((out / name).exists() for name in before["own"]):
            (out / MARKER).unlink(missing_ok=True)
        raise


def finished(out: Path, config: Any) -> bool:
    """Whether `out` holds this run, finished, with all its results; if so, logs how to run it again."""
    end = (_read(out / MARKER) or {}).get("finished")
    if not isinstance(end, dict) or _given(end.get("settings") or {}) != _given(_settings(config)):
        return False
    if not all((out / str(name)).exists() for name in end.get("files", [])):
        return False
    sweep_once(out)  # a finished run writes nothing, so it would never clean up leftovers
    logger.warning("%s already has a finished run with its results; --fresh removes it and runs again", out)
    return True


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Convert `facts` as a JSON round trip would; paths and other objects become strings."""
    return dict(json.loads(json.dumps(dict(facts), default=str)))


def _settings(config: Any) -> dict[str, Any]:
    """All settings that could affect the result."""
    same = {field.name for field in dataclasses.fields(config) if getattr(config, field.name) == field.default}
    values = dataclasses.asdict(config)
    return _plain({k: v for k, v in values.items() if k not in ELSEWHERE and not (k in LATER and k in same)})


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that were given: runs from before an option have none for it, which is the same as leaving it out."""
    return {name: value for name, value in settings.items() if value not in (None, [])}


def _read(marker: Path) -> dict[str, Any] | None:
    if not marker.is_file():
        return None
    remedy = f"Give another --out, or remove {marker}."
    data = read_sealed(marker, remedy)
    kinds = {"command": str, "facts": dict, "own": list}
    if not isinstance(data, dict) or any(not isinstance(data.get(key), kind) for key, kind in kinds.items()):
        raise CheckpointError(f"{marker} is not a marker of a training run. {remedy}")
    return data


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
