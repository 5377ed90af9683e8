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

import json
from dataclasses import dataclass
from pathlib import Path

from worldgym.errors import CheckpointError

_ROOT = Path(__file__).resolve().parent


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
        raise CheckpointError(
            f"no bundled checkpoint {name!r}; there is {', '.join(known) or 'none in this installation'}. "
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
    file = folder / "card.json"
    data: dict[str, list[str]] = {}
    if file.is_file():
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            tasks, thin = tuple(data.get("tasks", ())), tuple(data.get("tasks_thin", ()))
        except (ValueError, AttributeError, TypeError) as error:
            raise CheckpointError(
                f"{file} can't be read ({error}); restore it with `git checkout -- {file}`."
            ) from error
    else:
        tasks, thin = (), ()
    size = sum(entry.stat().st_size for entry in folder.rglob("*") if entry.is_file())
    return Card(name, tasks, thin, _parts(folder), size / 1e6)


def _parts(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
