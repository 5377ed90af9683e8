"""`worldgym card`: writes the model card of a bundle, and leaves tasks out that miss the closed-loop gate.

Example::

    worldgym bench closed-loop --bundle runs/my/bundle --policies sft runs/rl/policy --json runs/my/gate.json
    worldgym card --bundle runs/my/bundle --gate runs/my/gate.json
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.commands.bundle import README
from experiments.pipelines.build import STATE
from experiments.reports.model_card import MARK, model_card
from worldgym.errors import CheckpointError, ConfigError
from worldgym.pretrained import CARD, read_card
from worldgym.utils.files import read_json, read_sealed
from worldgym.utils.folders import files_of, save_folder


@dataclass(frozen=True)
class CardConfig:
    """Write the model card.

    Args:
        bundle: folder of a bundle.
        gate: file of `worldgym bench closed-loop --json`, whose figures go into the card; tasks below `floor` move from
            the bundle's `tasks` to its `tasks_thin`.
        floor: lowest precision and recall of a task that the bundle covers.
        build: folder of the build that made the bundle; its commands go into the card.
    """

    bundle: Path
    gate: Path | None = None
    floor: float = 0.7
    build: Path | None = None

    def __post_init__(self) -> None:
        """Validate the settings."""
        if not 0 <= self.floor <= 1:
            raise ConfigError(f"floor is {self.floor}, expected a rate from 0 to 1")


def run(config: CardConfig) -> int:
    """Update `card.json` and write README.md.

    Raises:
        CheckpointError: the folder is no bundle, or the file is no result of the gate.
        ConfigError: README.md was written by hand, or no task reaches the floor.
    """
    folder, readme = config.bundle, config.bundle / README
    card = read_card(folder)
    if not card:
        raise CheckpointError(f"{folder} has no {CARD}; give a folder written by `worldgym bundle`")
    if readme.is_file() and MARK not in readme.read_text(encoding="utf-8"):
        raise ConfigError(f"{readme} was written by hand and is kept; move it away to have one written")
    gate = None if config.gate is None else read_gate(config.gate)
    if gate is not None:
        known = [*card.get("tasks", ()), *card.get("tasks_thin", ())]
        covered, missed = chosen(known, gate, config.floor)
        if not covered:
            raise ConfigError(f"no task reaches {config.floor} in {config.gate}; train further, or lower --floor")
        card |= {"tasks": covered, "tasks_thin": missed}
    stages: dict[str, Any] | None = None
    if config.build is not None:
        stages = read_sealed(config.build / STATE, "give the folder of a build")["stages"]
    with save_folder(folder) as stage:
        for file in files_of(folder):
            (stage / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file, stage / file)
        (stage / CARD).write_text(json.dumps(card, indent=1), encoding="utf-8")
        (stage / README).write_text(model_card(folder, card, gate, stages), encoding="utf-8")
    left = f"; left out: {', '.join(card['tasks_thin'])}" if card.get("tasks_thin") else ""
    sys.stdout.write(f"written to {readme}; covers {', '.join(card.get('tasks', ()))}{left}\n")
    return 0


def read_gate(file: Path) -> dict[str, Any]:
    """Read what `worldgym bench closed-loop` wrote.

    Raises:
        CheckpointError: another file.
    """
    gate = read_json(file, "Type worldgym bench closed-loop --json FILE to make it")
    if not isinstance(gate, dict) or not {"policies", "by_task", "all", "start_seed"} <= set(gate):
        raise CheckpointError(f"{file} is no result of `worldgym bench closed-loop`")
    return gate


def chosen(tasks: list[str], gate: dict[str, Any], floor: float) -> tuple[list[str], list[str]]:
    """Divide tasks into those whose precision and recall reach `floor`, and the others; untested ones are others."""

    def reaches(task: str) -> bool:
        row = gate["by_task"].get(task, {})
        return all(row.get(name) is not None and row[name] >= floor for name in ("precision", "recall"))

    return [task for task in tasks if reaches(task)], [task for task in tasks if not reaches(task)]
