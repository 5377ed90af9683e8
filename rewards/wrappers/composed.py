"""Several judges as one: a weighted mean, or the least of them, so that a success needs everybody's word.

Why: a policy that learns to please one judge seldom pleases another that was made otherwise, so two that must agree are
harder to game; and rewards are often a sum of named parts, some of which do not apply to every instruction.

A term that does not apply to a video says so with a probability of nan that is *valid*, and is left out of that video's
verdict. A term that failed (`valid` False) makes the verdict invalid: what it would have said is not known.

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
    """One part of a composed verdict.

    Args:
        judge: who says it.
        weight: of its probability in the mean, more than 0; without effect on the least.
    """

    judge: RewardModel
    weight: float = 1.0


class ComposedJudge:
    """A `RewardModel` made of others.

    Args:
        terms: by name; the names stand in `raw` and in reports.
        how: `mean` of the probabilities by weight, or `least`. For `least` each is first divided by its judge's
            threshold (and capped at 1), so that judges of different strictness agree where each says yes: the verdict
            is 1 exactly where all reach their own.
        threshold: of the verdict; None for 0.5 of a mean, and for 1 of the least.

    Raises:
        ConfigError: no term, a weight that is not positive, an unknown `how`.
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
            raise ConfigError(f"threshold is {self.threshold}, expected in (0, 1]")

    def to(self, device: torch.device | str) -> ComposedJudge:
        """Move every term's judge; returns itself."""
        for term in self.terms.values():
            place(term.judge, torch.device(device))
        return self

    @property
    def name(self) -> str:
        """What reports call this judge: its terms with their weights."""
        parts = [
            name if term.weight == 1 or self.how == "least" else f"{term.weight:g} {name}"
            for name, term in self.terms.items()
        ]
        return f"{self.how}({', '.join(parts)})"

    @property
    def reads(self) -> Reads:
        """What all terms together must be given; each is shown its own part of it."""
        return functools.reduce(operator.or_, (reads_of(term.judge) for term in self.terms.values()))

    def score(
        self,
        frames: Tensor,
        instructions: Sequence[str],
        states: Tensor | None = None,
        latents: Tensor | None = None,
    ) -> Judgement:
        """All terms on `frames (B,T,H,W,3)`; a video to which no term applies is invalid."""
        count = len(frames)
        total, weights = torch.zeros(count, device="cpu"), torch.zeros(count, device="cpu")
        least = torch.full((count,), torch.inf, device="cpu")
        valid = torch.ones(count, dtype=torch.bool, device="cpu")
        raw: list[dict[str, float | None]] = [{} for _ in range(count)]
        for name, term in self.terms.items():
            verdict = judged(term.judge, frames, instructions, states, latents)
            p = torch.as_tensor(verdict.p_success).detach().cpu().float()
            sound = torch.as_tensor(verdict.valid).detach().cpu().bool()
            applies = torch.isfinite(p)
            valid &= sound
            total += torch.where(applies, term.weight * p.nan_to_num(), torch.zeros(()))
            weights += term.weight * applies
            strict = p / threshold_of(term.judge)
            least = torch.where(applies, torch.minimum(least, strict), least)
            for row, value in zip(raw, p.tolist(), strict=True):
                row[name] = value if value == value else None
        valid &= weights > 0
        p = total / weights.clamp(min=1e-12) if self.how == "mean" else least.clamp(max=1.0)
        return Judgement(torch.where(valid, p, torch.zeros(())), None, valid, list(raw))

    def save_pretrained(self, path: str | Path) -> None:
        """Write how it is composed, and every term's judge in a folder of its number.

        Raises:
            ConfigError: a term that cannot be saved, such as the simulator's truth.
        """
        folder = Path(path)
        if lacking := [
            name for name, term in self.terms.items() if not hasattr(term.judge, "save_pretrained")
        ]:
            raise ConfigError(
                f"{', '.join(lacking)} cannot be saved; compose judges that have save_pretrained"
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
        """What `save_pretrained` wrote; all but the path is for the terms, see `rewards.loading.load_judge`.

        Raises:
            CheckpointError: files are missing or damaged.
        """
        folder = Path(path)
        try:
            verify_folder(folder, ("composed.json",), "give what save_pretrained wrote")
            facts = json.loads((folder / "composed.json").read_text())
            rows = [(str(row["name"]), float(row["weight"])) for row in facts["terms"]]
            how, threshold = facts["how"], float(facts["threshold"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder} holds no composed judge ({error}); give what save_pretrained wrote"
            ) from error
        terms = {
            name: Term(load_judge(folder / str(i), tokenizer=tokenizer, cache=cache, keys=keys), weight)
            for i, (name, weight) in enumerate(rows)
        }
        return cls(terms, how, threshold)
