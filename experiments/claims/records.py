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
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldgym.errors import CheckpointError
from worldgym.utils.files import atomic_write_text
from worldgym.utils.folders import MANIFEST

FORMAT = 1


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
        """Keep a result."""
        head = {"format": FORMAT, "claim": claim, "arm": arm, "seed": seed, "preset": self.preset}
        return atomic_write_text(self.file(claim, arm, seed), json.dumps({**head, **facts}, indent=1) + "\n")

    def read(self, claim: str, arm: str, seed: int) -> dict[str, Any]:
        """A result.

        Raises:
            CheckpointError: there is none, or it was written by another version.
        """
        file = self.file(claim, arm, seed)
        if not file.is_file():
            raise CheckpointError(
                f"no result {file.name} in {file.parent}; type: worldgym claims run {claim} --preset {self.preset}"
            )
        facts = dict(json.loads(file.read_text()))
        if facts.get("format") != FORMAT:
            raise CheckpointError(
                f"{file} has format {facts.get('format')}, this version reads {FORMAT}; run it again"
            )
        return facts

    def seeds(self, claim: str, arm: str) -> list[int]:
        """Seeds for which an arm is finished."""
        names = (self.folder / self.preset).glob(f"{claim}-{arm}-*.json")
        return sorted(int(name.stem.rpartition("-")[2]) for name in names)

    def arms(self, claim: str) -> list[str]:
        """Arms of a claim of which any seed is finished."""
        names = (self.folder / self.preset).glob(f"{claim}-*.json")
        return sorted({name.stem.partition("-")[2].rpartition("-")[0] for name in names})

    def outcomes(self, claim: str, arm: str, what: str, seeds: Sequence[int] | None = None) -> np.ndarray:
        """Success `(seeds, starts)` bool of an arm, such as `what="seen/greedy"`."""
        chosen = self.seeds(claim, arm) if seeds is None else list(seeds)
        return np.stack([unpack(self.read(claim, arm, s)["evaluations"][what]["success"]) for s in chosen])


def pack(success: np.ndarray) -> str:
    """`(N,)` bool as text."""
    return "".join("1" if x else "0" for x in np.asarray(success, bool))


def unpack(text: str) -> np.ndarray:
    """Inverse of `pack`."""
    return np.frombuffer(text.encode(), np.uint8) == ord("1")


def folder_hash(folder: Path) -> str:
    """SHA-256 over names and contents of the files in a folder, short; manifests only list them and are left out."""
    total = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        total.update(file.relative_to(folder).as_posix().encode())
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]


CODE = ("agents", "envs", "experiments", "rewards", "worldgym")


def code_hash() -> str:
    """SHA-256 over the source files that a result depends on, short."""
    root, total = Path(__file__).resolve().parents[2], hashlib.sha256()
    for file in sorted(file for package in CODE for file in (root / package).rglob("*.py")):
        total.update(file.relative_to(root).as_posix().encode())
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]
