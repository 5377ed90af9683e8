"""What a finished (claim, arm, seed) leaves: one small JSON file, enough to compute every verdict again.

Outcomes are kept episode by episode (a string of 0 and 1, in start order), so that any two arms can be paired, and
beside them what was run (settings), on what (hashes) and at what cost (budget). Files are committed; an interrupted
set of runs continues on any machine with whatever is missing.

Example::

    store = Records(Path("docs/results/data"), "small")
    store.has("C1", "imagined_rl", 0)
    store.outcomes("C1", "imagined_rl", "seen/greedy")        # (seeds, starts) bool
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldgym.errors import CheckpointError
from worldgym.utils.files import read_sealed, write_sealed
from worldgym.utils.typed import changes

FORMAT = 1
SECTIONS = {
    "evaluations": dict,
    "budget": dict,
    "settings": dict,
    "hashes": dict,
    "versions": dict,
    "way": list,
}
"""What every result has."""
OUTCOMES = re.compile("[01]+")


@dataclass(frozen=True)
class Records:
    """A folder of results of one preset.

    Args:
        folder: of all presets.
        preset: its name.
    """

    folder: Path
    preset: str

    def file(self, claim: str, arm: str, seed: int) -> Path:
        """Where a result lies."""
        return self.folder / self.preset / f"{claim}-{arm}-{seed}.json"

    def has(self, claim: str, arm: str, seed: int) -> bool:
        """Whether it is finished."""
        return self.file(claim, arm, seed).is_file()

    def write(self, claim: str, arm: str, seed: int, facts: Mapping[str, Any]) -> Path:
        """Keep a result, with the hash of its content."""
        head = {"format": FORMAT, "claim": claim, "arm": arm, "seed": seed, "preset": self.preset}
        return write_sealed(self.file(claim, arm, seed), {**head, **facts}, indent=1)

    def read(self, claim: str, arm: str, seed: int) -> dict[str, Any]:
        """A result.

        Raises:
            CheckpointError: there is none, it is damaged or was edited, or it is not of this claim, arm and seed.
        """
        file = self.file(claim, arm, seed)
        again = f"worldgym claims run {claim} --arms {arm} --seeds {seed} --preset {self.preset}"
        if not file.is_file():
            raise CheckpointError(f"no result {file.name} in {file.parent}; type: {again}")
        remedy = f"Restore it (git checkout -- {file}), or remove it and type: {again}"
        facts, told = read_sealed(file, remedy), "no object"
        head = {"format": FORMAT, "claim": claim, "arm": arm, "seed": seed, "preset": self.preset}
        if not isinstance(facts, dict) or (told := changes({k: facts.get(k) for k in head}, head)):
            raise CheckpointError(f"{file} is another result than its name says ({told}). {remedy}")
        for name, kind in SECTIONS.items():
            if not isinstance(facts.get(name), kind):
                raise CheckpointError(f"{file}: {name} is no {kind.__name__}. {remedy}")
        for name, row in facts["evaluations"].items():
            if not isinstance(row, dict) or not OUTCOMES.fullmatch(str(row.get("success"))):
                raise CheckpointError(f"{file}: evaluations.{name}.success is no string of 0 and 1. {remedy}")
        return facts

    def _names(self, claim: str) -> list[re.Match[str]]:
        if not (self.folder / self.preset).is_dir():
            return []
        form = re.compile(rf"{re.escape(claim)}-(.+)-(\d+)\.json")
        names = (form.fullmatch(path.name) for path in (self.folder / self.preset).iterdir())
        return [name for name in names if name is not None]

    def seeds(self, claim: str, arm: str) -> list[int]:
        """Seeds for which an arm is finished."""
        return sorted(int(name[2]) for name in self._names(claim) if name[1] == arm)

    def arms(self, claim: str) -> list[str]:
        """Arms of a claim of which any seed is finished."""
        return sorted({name[1] for name in self._names(claim)})

    def outcomes(self, claim: str, arm: str, what: str, seeds: Sequence[int] | None = None) -> np.ndarray:
        """Success `(seeds, starts)` bool of an arm, such as `what="seen/greedy"`.

        Raises:
            CheckpointError: a result was not measured so, or on another number of starts than the others.
        """
        chosen = self.seeds(claim, arm) if seeds is None else list(seeds)
        rows = []
        for seed in chosen:
            found = self.read(claim, arm, seed)["evaluations"]
            if what not in found:
                raise CheckpointError(
                    f"{self.file(claim, arm, seed)} has no measurement {what}; it has {', '.join(sorted(found))}"
                )
            rows.append(unpack(found[what]["success"]))
        if len({len(row) for row in rows}) > 1:
            raise CheckpointError(
                f"the results of {claim}-{arm} in {self.folder / self.preset} are of {[len(r) for r in rows]} starts, "
                f"expected the same number for seeds {chosen}"
            )
        return np.stack(rows)


def pack(success: np.ndarray) -> str:
    """`(N,)` bool as text."""
    return "".join("1" if x else "0" for x in np.asarray(success, bool))


def unpack(text: str) -> np.ndarray:
    """Inverse of `pack`."""
    return np.frombuffer(text.encode(), np.uint8) == ord("1")


CODE = ("agents", "envs", "experiments", "rewards", "worldgym")


def code_hash() -> str:
    """SHA-256 over the source files that a result depends on, short."""
    root, total = Path(__file__).resolve().parents[2], hashlib.sha256()
    for file in sorted(file for package in CODE for file in (root / package).rglob("*.py")):
        total.update(file.relative_to(root).as_posix().encode())
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]
