"""Compose several judges: the weighted mean of their probabilities, or the minimum, for which all must agree.

A policy that exploits one judge seldom exploits another one that was trained differently, so two judges that must agree
are harder to exploit. Rewards are also often sums of named terms, some of which do not apply to every instruction.

A term that does not apply to a video returns nan with `valid` True, and is left out of that video's verdict. A failed
term (`valid` False) makes the verdict invalid, because its probability is unknown.

Example::

    judge = ComposedJudge({"learned": Term(learned), "vlm": Term(http, weight=0.5)}, how="mean")
    both = ComposedJudge({"learned": Term(learned), "vlm": Term(http)}, how="least")      # agreement
    both.score(frames, instructions, states).raw[0]     # {"learned": 0.9, "vlm": 0.2}
"""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rewards.loading import load_judge
from worldgym.errors import CheckpointError, ConfigError
from worldgym.protocols import Judgement, Reads, RewardModel, judged, reads_of, threshold_of
from worldgym.registry import JUDGES, TYPE
from worldgym.utils.devices import place
from worldgym.utils.folders import save_folder, verify_folder


@dataclass(frozen=True)
class Term:
    """One judge of a `ComposedJudge`.

    Args:
        judge: the judge.
        weight: weight of its probability in the mean, more than 0; it has no effect with `how="least"`.
    """

    judge: RewardModel
    weight: float = 1.0


class ComposedJudge:
    """A `RewardModel` composed of other judges.

    Args:
        terms: the judges by name; the names appear in `raw` and in reports.
        how: `mean`, the weighted mean of the probabilities, or `least`, their minimum. For `least` each probability is
            first divided by the threshold of its judge and capped at 1, so that thresholds may differ: the result is 1
            exactly if every judge reaches its own threshold.
        threshold: value at which a verdict counts as success; None for 0.5 with `mean` and 1 with `least`.

    Raises:
        ConfigError: no terms, a weight that is not positive, or an unknown `how`.
    """

    def __init__(
        self,
        terms: Mapping[str, Term],
        how: Literal["mean", "least"] = "mean",
        threshold: float | None = None,
    ) -> None:
        if not terms or any(not term.weight > 0 for term in terms.values()):
            raise ConfigError(f"terms are {dict(terms)}; expected at least one, with weights more than 0")
        if how not in ("mean", "least"):
            raise ConfigError(f"how is {how!r}; expected 'mean' or 'least'")
        self.terms, self.how = dict(terms), how
        self.threshold = threshold if threshold is not None else {"mean": 0.5, "least": 1.0}[how]
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold}; expected a number in (0, 1]")

    def to(self, device: torch.device | str) -> ComposedJudge:
        """Move the judges of all terms to `device`; returns itself."""
        for term in self.terms.values():
            place(term.judge, torch.device(device))
        return self

    @property
    def name(self) -> str:
        """Name of this judge in reports: its terms with their weights."""
        parts = [
            name if term.weight == 1 or self.how == "least" else f"{term.weight:g} {name}"
            for name, term in self.terms.items()
        ]
        return f"{self.how}({', '.join(parts)})"

    @property
    def reads(self) -> Reads:
        """The union of the inputs of all terms; each term is given only its own inputs."""
        return functools.reduce(operator.or_, (reads_of(term.judge) for term in self.terms.values()))

    def score(
        self,
        frames: Tensor,
        instructions: Sequence[str],
        states: Tensor | None = None,
        latents: Tensor | None = None,
    ) -> Judgement:
        """Score `frames (B,T,H,W,3)` with all terms; the verdict is invalid for a video to which no term applies."""
        count = len(frames)
        total, weights = torch.zeros(count, device="cpu"), torch.zeros(count, device="cpu")
        least = torch.full((count,), torch.inf, device="cpu")
        valid = torch.ones(count, dtype=torch.bool, device="cpu")
        raw: list[dict[str, float | None]] = [{} for _ in range(count)]
        for name, term in self.terms.items():
            verdict = judged(term.judge, frames, instructions, states, latents)
            p = torch.as_tensor(verdict.p_success).detach().cpu().float()
            term_valid = torch.as_tensor(verdict.valid).detach().cpu().bool()
            applies = torch.isfinite(p)
            valid &= term_valid
            total += torch.where(applies, term.weight * p.nan_to_num(), torch.zeros(()))
            weights += term.weight * applies
            scaled = p / threshold_of(term.judge)
            least = torch.where(applies, torch.minimum(least, scaled), least)
            for row, value in zip(raw, p.tolist(), strict=True):
                row[name] = value if value == value else None
        valid &= weights > 0
        p = total / weights.clamp(min=1e-12) if self.how == "mean" else least.clamp(max=1.0)
        return Judgement(torch.where(valid, p, torch.zeros(())), None, valid, list(raw))

    def save_pretrained(self, path: str | Path) -> None:
        """Write the settings, and the judge of each term to a numbered subfolder.

        Raises:
            ConfigError: a term cannot be saved, such as an `OracleJudge`.
        """
        folder = Path(path)
        if unsavable := [
            name for name, term in self.terms.items() if not hasattr(term.judge, "save_pretrained")
        ]:
            raise ConfigError(
                f"the terms {', '.join(unsavable)} cannot be saved; compose judges that have save_pretrained"
            )
        facts = {
            "how": self.how,
            "threshold": self.threshold,
            "terms": [{"name": name, "weight": term.weight} for name, term in self.terms.items()],
        }
        with save_folder(folder) as stage:
            for i, term in enumerate(self.terms.values()):
                JUDGES.save(term.judge, stage / str(i))
            (stage / "composed.json").write_text(json.dumps(facts, indent=1) + "\n")
            (stage / "config.json").write_text(json.dumps({TYPE: "composed"}) + "\n")

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        tokenizer: Any | None = None,
        cache: str | Path | None = None,
        keys: Mapping[str, str] | None = None,
    ) -> ComposedJudge:
        """Load what `save_pretrained` wrote; `tokenizer`, `cache` and `keys` are passed to `load_judge` for each term.

        Raises:
            CheckpointError: files are missing or damaged.
        """
        folder = Path(path)
        try:
            verify_folder(folder, ("composed.json",), "give a folder that save_pretrained wrote")
            facts = json.loads((folder / "composed.json").read_text())
            rows = [(str(row["name"]), float(row["weight"])) for row in facts["terms"]]
            how, threshold = facts["how"], float(facts["threshold"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder} holds no composed judge ({error}); give a folder that save_pretrained wrote"
            ) from error
        terms = {
            name: Term(load_judge(folder / str(i), tokenizer=tokenizer, cache=cache, keys=keys), weight)
            for i, (name, weight) in enumerate(rows)
        }
        return cls(terms, how, threshold)
