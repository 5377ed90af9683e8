"""Results of claims: one small JSON file for each finished (claim, arm, seed).

A file contains the outcome of every episode (a string of 0 and 1 in the order of the starts), so that any two arms can
be paired, together with settings, hashes of the inputs, and cost (`budget`). The files are committed. An interrupted
set of runs can be continued on any machine.

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
"""Sections of every result and their types."""
OUTCOMES = re.compile("[01]+")


@dataclass(frozen=True)
class Records:
    """The results of one preset.

    Args:
        folder: folder with one subfolder per preset.
        preset: name of the preset.
    """

    folder: Path
    preset: str

    def file(self, claim: str, arm: str, seed: int) -> Path:
        """Path of a result."""
        return self.folder / self.preset / f"{claim}-{arm}-{seed}.json"

    def has(self, claim: str, arm: str, seed: int) -> bool:
        """Whether a result exists."""
        return self.file(claim, arm, seed).is_file()

    def write(self, claim: str, arm: str, seed: int, facts: Mapping[str, Any]) -> Path:
        """Write a result, with the hash of its content."""
        head = {"format": FORMAT, "claim": claim, "arm": arm, "seed": seed, "preset": self.preset}
        return write_sealed(self.file(claim, arm, seed), {**head, **facts}, indent=1)

    def read(self, claim: str, arm: str, seed: int) -> dict[str, Any]:
        """Read a result.

        Raises:
            CheckpointError: the file is missing, damaged or edited, or belongs to another claim, arm or seed.
        """
        file = self.file(claim, arm, seed)
        again = f"worldgym claims run {claim} --arms {arm} --seeds {seed} --preset {self.preset}"
        if not file.is_file():
            raise CheckpointError(f"no result {file.name} in {file.parent}; type: {again}")
        remedy = f"Restore it (git checkout -- {file}), or remove it and type: {again}"
        facts, differences = read_sealed(file, remedy), "not a JSON object"
        head = {"format": FORMAT, "claim": claim, "arm": arm, "seed": seed, "preset": self.preset}
        if not isinstance(facts, dict) or (
            differences := changes({k: facts.get(k) for k in head}, head)
        ):
            raise CheckpointError(f"{file} is another result than its name says ({differences}). {remedy}")
        for name, kind in SECTIONS.items():
            if not isinstance(facts.get(name), kind):
                raise CheckpointError(f"{file}: {name} is not a {kind.__name__}. {remedy}")
        for name, row in facts["evaluations"].items():
            if not isinstance(row, dict) or not OUTCOMES.fullmatch(str(row.get("success"))):
                raise CheckpointError(f"{file}: evaluations.{name}.success is not a string of 0 and 1. {remedy}")
        return facts

    def _names(self, claim: str) -> list[re.Match[str]]:
        if not (self.folder / self.preset).is_dir():
            return []
        form = re.compile(rf"{re.escape(claim)}-(.+)-(\d+)\.json")
        names = (form.fullmatch(path.name) for path in (self.folder / self.preset).iterdir())
        return [name for name in names if name is not None]

    def seeds(self, claim: str, arm: str) -> list[int]:
        """Seeds for which an arm has a result."""
        return sorted(int(name[2]) for name in self._names(claim) if name[1] == arm)

    def arms(self, claim: str) -> list[str]:
        """Arms of a claim that have a result for at least one seed."""
        return sorted({name[1] for name in self._names(claim)})

    def outcomes(self, claim: str, arm: str, what: str, seeds: Sequence[int] | None = None) -> np.ndarray:
        """Success of an arm as `(seeds, starts)` bool, for a measurement such as `what="seen/greedy"`.

        Raises:
            CheckpointError: a result lacks this measurement, or the results have different numbers of starts.
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
                f"the results of {claim}-{arm} in {self.folder / self.preset} have {[len(r) for r in rows]} starts, "
                f"expected the same number for seeds {chosen}"
            )
        return np.stack(rows)


def pack(success: np.ndarray) -> str:
    """Encode `(N,)` bool as a string of 0 and 1."""
    return "".join("1" if x else "0" for x in np.asarray(success, bool))


def unpack(text: str) -> np.ndarray:
    """Inverse of `pack`."""
    return np.frombuffer(text.encode(), np.uint8) == ord("1")


CODE = ("agents", "envs", "experiments", "rewards", "worldgym")


def code_hash() -> str:
    """First 16 digits of the SHA-256 over the source files that a result depends on."""
    root, total = Path(__file__).resolve().parents[2], hashlib.sha256()
    for file in sorted(file for package in CODE for file in (root / package).rglob("*.py")):
        total.update(file.relative_to(root).as_posix().encode())
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]
