"""The checkpoints that are bundled with worldgym, by name.

Each is a folder with one sub-folder per part (`world_model`, `judge`, `policy_sft`), a `card.json` for programs and a
`README.md` (the model card) for people. `card.json` lists the tasks of the checkpoint: those in `tasks` are covered
well; those in `tasks_thin` were seen in training, but results on them are not reliable.

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
"""The checkpoint of commands that do not name one."""


@dataclass(frozen=True)
class Card:
    """Contents and task coverage of a bundled checkpoint.

    Args:
        name: name of the folder.
        tasks: tasks that are covered well.
        tasks_thin: tasks seen in training, but with unreliable results.
        parts: sub-folders that contain weights.
        megabytes: size of all files, in MB of 10^6 bytes.
    """

    name: str
    tasks: tuple[str, ...]
    tasks_thin: tuple[str, ...]
    parts: tuple[str, ...]
    megabytes: float


def names() -> list[str]:
    """Names of the bundled checkpoints, i.e. the folders here that contain weights."""
    return sorted(
        folder.name for folder in _ROOT.iterdir() if folder.is_dir() and any(folder.rglob("*.safetensors"))
    )


def path(name: str, part: str | None = None) -> Path:
    """Folder of a bundled checkpoint, or of one part of it.

    Args:
        name: name of a checkpoint, such as `"tabletop-small"`, or of the suite that one checkpoint belongs to, such as
            `"tabletop"`.
        part: name of a part, such as `"world_model"`, `"judge"` or `"policy_sft"`.

    Raises:
        CheckpointError: no such checkpoint or part; the message lists what exists.
    """
    known = names()
    found = [name] if name in known else [other for other in known if read_card(_ROOT / other).get("suite") == name]
    if len(found) != 1:
        several = f"several checkpoints of the suite {name!r}" if found else f"no bundled checkpoint {name!r}"
        listed = ", ".join(found or known) or "none in this installation"
        raise CheckpointError(
            f"{several} and no such folder; there is {listed}. "
            "Give one of these names or the path of a folder, or make one in a checkout: each file in recipes/ is a "
            "recipe for `worldgym build`."
        )
    folder = _ROOT / found[0]
    if part is None:
        return folder
    if not (folder / part).is_dir():
        parts = ", ".join(_parts(folder)) or "none"
        raise CheckpointError(f"checkpoint {name!r} has no part {part!r}; it has {parts}.")
    return folder / part


def card(name: str) -> Card:
    """Read the card of a bundled checkpoint.

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
    """Advice for a damaged or missing file of a checkpoint folder, used at the end of error messages."""
    if folder.resolve().is_relative_to(_ROOT):
        return "install worldgym again, or type `git checkout -- worldgym/pretrained` in a checkout"
    return "restore it from a copy, or make the folder again with `worldgym bundle`"


def read_card(folder: Path) -> dict[str, Any]:
    """Read `card.json` of a checkpoint folder as JSON; empty when the folder has none.

    Raises:
        CheckpointError: the file was changed, is not JSON, or has a field of another type; the message names the file.
    """
    file = folder / CARD
    advice = remedy(folder)
    verify_file(file, advice)
    if not file.is_file():
        return {}
    if (folder / MANIFEST).is_file():  # the manifest always lists the card, so a missing card means damage
        verify_folder(folder, (CARD,), advice)
    advice = advice[:1].upper() + advice[1:]
    data = read_json(file, advice)
    if not isinstance(data, dict):
        raise CheckpointError(
            f"{file} can't be read: got a {type(data).__name__}, expected an object. {advice}"
        )
    for key, (valid, expected) in _CARD_FIELDS.items():
        if key in data and not valid(data[key]):
            raise CheckpointError(
                f"{file} can't be read: {key} is {str(data[key])[:60]!r}, expected {expected}. {advice}"
            )
    return data


def _is_word_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) and word for word in value)


_CARD_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "tasks": (_is_word_list, "a list of words"),
    "tasks_thin": (_is_word_list, "a list of words"),
    "name": (lambda value: isinstance(value, str), "a string"),
    "suite": (lambda value: isinstance(value, str), "the name of a suite"),
    "split_manifest": (lambda value: isinstance(value, str), "a string"),
    "real_episodes": (lambda value: value is None or (type(value) is int and value >= 0), "a count"),
    "rollout_horizon": (lambda value: type(value) is int and value > 0, "steps of a rollout"),
    "practice": (
        lambda value: isinstance(value, dict)
        and all(isinstance(each, int | float) or _is_word_list(each) for each in value.values()),
        "settings of fine-tuning by name: numbers, truth values, lists of words",
    ),
    "data": (lambda value: value is None or isinstance(value, dict), "an object"),
}


def _parts(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
