"""The checkpoints that come with worldgym, by name.

Each is a folder with one sub-folder a part (`world_model`, `judge`, `policy_sft`), a `card.json` for programs and a
`README.md` (the model card) for people. `card.json` says which tasks the checkpoint covers: `tasks` are covered well,
`tasks_thin` were seen in training and are not relied on.

Example::

    from worldgym import pretrained
    pretrained.names()                       # ["tabletop-small"]
    folder = pretrained.path("tabletop-small") / "world_model"
    pretrained.card("tabletop-small").tasks  # ("reach", "push", "pick_place")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldgym.errors import CheckpointError
from worldgym.utils.files import read_json
from worldgym.utils.folders import MANIFEST, verify_file, verify_folder

_ROOT = Path(__file__).resolve().parent
CARD = "card.json"
DEFAULT = "tabletop-small"
"""The checkpoint of commands that name none."""


@dataclass(frozen=True)
class Card:
    """What a bundled checkpoint covers.

    Args:
        name: the folder's name.
        tasks: verbs that are covered well.
        tasks_thin: verbs seen in training, but not to be relied on.
        parts: the sub-folders that hold weights.
        megabytes: size of all files, in MB of 10^6 bytes.
    """

    name: str
    tasks: tuple[str, ...]
    tasks_thin: tuple[str, ...]
    parts: tuple[str, ...]
    megabytes: float


def names() -> list[str]:
    """Names of the bundled checkpoints: the folders here that hold weights."""
    return sorted(
        folder.name for folder in _ROOT.iterdir() if folder.is_dir() and any(folder.rglob("*.safetensors"))
    )


def path(name: str, part: str | None = None) -> Path:
    """Folder of a bundled checkpoint, or of one part of it.

    Args:
        name: such as `"tabletop-small"`.
        part: such as `"world_model"`, `"judge"` or `"policy_sft"`.

    Raises:
        CheckpointError: no such checkpoint or part; the message lists what exists.
    """
    known = names()
    if name not in known:
        listed = ", ".join(known) or "none in this installation"
        raise CheckpointError(
            f"no bundled checkpoint {name!r} and no such folder; there is {listed}. "
            "Give one of these names or the path of a folder, or type `make pretrained` in a checkout to train it."
        )
    folder = _ROOT / name
    if part is None:
        return folder
    if not (folder / part).is_dir():
        parts = ", ".join(_parts(folder)) or "none"
        raise CheckpointError(f"checkpoint {name!r} has no part {part!r}; it has {parts}.")
    return folder / part


def card(name: str) -> Card:
    """Read what a bundled checkpoint covers.

    Raises:
        CheckpointError: no such checkpoint, or its `card.json` is damaged.
    """
    folder = path(name)
    data = read_card(folder)
    size = sum(entry.stat().st_size for entry in folder.rglob("*") if entry.is_file())
    return Card(
        name, tuple(data.get("tasks", ())), tuple(data.get("tasks_thin", ())), _parts(folder), size / 1e6
    )


def remedy(folder: Path) -> str:
    """What a user can do about a damaged or missing file of a checkpoint folder; ends an error's message."""
    if folder.resolve().is_relative_to(_ROOT):
        return "install worldgym again, or type `git checkout -- worldgym/pretrained` in a checkout"
    return "restore it from a copy, or make the folder again with `worldgym bundle`"


def read_card(folder: Path) -> dict[str, Any]:
    """`card.json` of a checkpoint folder as JSON; empty when the folder has none.

    Raises:
        CheckpointError: not what was saved, not JSON, or a field is of another type; names the file.
    """
    file = folder / CARD
    what = remedy(folder)
    verify_file(file, what)
    if not file.is_file():
        return {}
    if (folder / MANIFEST).is_file():  # here it is always a list of ours, so a card that it lacks is damaged
        verify_folder(folder, (CARD,), what)
    what = what[:1].upper() + what[1:]
    data = read_json(file, what)
    if not isinstance(data, dict):
        raise CheckpointError(
            f"{file} can't be read: got a {type(data).__name__}, expected an object. {what}"
        )
    for key, (valid, expected) in _CARD_FIELDS.items():
        if key in data and not valid(data[key]):
            raise CheckpointError(
                f"{file} can't be read: {key} is {str(data[key])[:60]!r}, expected {expected}. {what}"
            )
    return data


def _words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) and word for word in value)


_CARD_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "tasks": (_words, "a list of words"),
    "tasks_thin": (_words, "a list of words"),
    "name": (lambda value: isinstance(value, str), "a string"),
    "suite": (lambda value: isinstance(value, str), "the name of a suite"),
    "split_manifest": (lambda value: isinstance(value, str), "a string"),
    "real_episodes": (lambda value: value is None or (type(value) is int and value >= 0), "a count"),
    "data": (lambda value: value is None or isinstance(value, dict), "an object"),
}


def _parts(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
