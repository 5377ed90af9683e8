"""Calibrate a judge's probabilities, and set a threshold that bounds the rate of false positives.

A reward is thresholded, composed with other rewards, and reported as a probability. This requires calibrated
probabilities, and the output of a network is not calibrated. The calibration map is fitted on held-out logs from the
real domain. It is a *temperature* (Guo et al. 2017, section 4.2, one number, with an offset as in Platt scaling) or
*isotonic* regression (Zadrozny and Elkan 2002, any increasing map).

Example::

    judge = CalibratedJudge.fit(raw_judge, p, truth, method="isotonic", max_fpr=0.05)
    judge.score(frames, instructions, states).p_success     # calibrated probability
    judge.save_pretrained("runs/calibrated")
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rewards.loading import load_judge
from worldgym.errors import CheckpointError, ConfigError
from worldgym.protocols import Judgement, Reads, judged, reads_of
from worldgym.registry import JUDGES, TYPE
from worldgym.utils.devices import place
from worldgym.utils.folders import save_folder, verify_folder
from worldgym.utils.typed import from_values

SETTINGS, INNER = "calibrated.json", "judge"
EDGE = 1e-6  # smallest distance of a probability from 0 and 1, where log odds are infinite


@dataclass(frozen=True)
class Calibration:
    """A piecewise linear, non-decreasing map of probabilities, and a threshold of the mapped probability.

    Args:
        said: probabilities of the judge at the points of the map, increasing, in [0, 1].
        true: calibrated probabilities at these points, not decreasing.
        threshold: calibrated probability at which a verdict counts as success.
        method: method of the fit.
        count: number of verdicts in the fit.
    """

    said: tuple[float, ...]
    true: tuple[float, ...]
    threshold: float
    method: str = "isotonic"
    count: int = 0

    def __post_init__(self) -> None:
        """Validate, and convert lists from JSON to tuples."""
        object.__setattr__(self, "said", tuple(self.said))
        object.__setattr__(self, "true", tuple(self.true))
        good = len(self.said) == len(self.true) >= 2 and np.all(np.diff(self.said) > 0)
        if not good or np.any(np.diff(self.true) < 0) or not 0 < self.threshold <= 1:
            raise ConfigError(
                f"got {len(self.said)} values of `said`, {len(self.true)} of `true`, and threshold {self.threshold}; "
                "expected two or more points with increasing `said` and non-decreasing `true`, and a threshold in "
                "(0, 1]"
            )

    def apply(self, p: np.ndarray) -> np.ndarray:
        """Map the probabilities `p`; nan stays nan."""
        return np.where(np.isnan(p), p, np.interp(p, self.said, self.true))

    @classmethod
    def fit(
        cls,
        said: np.ndarray,
        true: np.ndarray,
        *,
        method: Literal["temperature", "isotonic"] = "isotonic",
        max_fpr: float = 0.05,
    ) -> Calibration:
        """Fit the map and the threshold.

        Args:
            said: `(N,)` probabilities of a judge; nan where the judge gave no verdict, which is left out.
            true: `(N,)` bool, true success.
            method: `temperature` or `isotonic`.
            max_fpr: largest share of the failures whose probability may reach the threshold.

        Raises:
            ConfigError: fewer than ten verdicts, or only successes, or only failures.
        """
        p, y = np.asarray(said, np.float64), np.asarray(true, bool)
        p, y = p[~np.isnan(p)], y[~np.isnan(p)]
        if len(p) < 10 or y.all() or not y.any():
            raise ConfigError(
                f"got {len(p)} verdicts, {int(y.sum())} of them on successes; expected ten or more, of both kinds. "
                "Collect more held-out episodes"
            )
        if method == "temperature":
            points, mapped = _temperature(p, y)
        elif method == "isotonic":
            points, mapped = _isotonic(p, y)
        else:
            raise ConfigError(f"method is {method!r}; expected 'temperature' or 'isotonic'")
        negatives = np.sort(np.interp(p[~y], points, mapped))[::-1]
        allowed = int(np.floor(max_fpr * len(negatives)))
        cut = float(negatives[allowed]) + EDGE if allowed < len(negatives) else EDGE
        return cls(tuple(points), tuple(mapped), float(np.clip(cut, EDGE, 1.0)), method, len(p))


def _temperature(p: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Table of sigmoid(a logit(p) + b), with a and b that minimise the cross-entropy."""
    from scipy.optimize import minimize

    def logit(values: np.ndarray) -> np.ndarray:
        inside = np.clip(values, EDGE, 1 - EDGE)
        return np.asarray(np.log(inside / (1 - inside)))

    x = logit(p)

    def loss(ab: np.ndarray) -> float:
        z = np.exp(ab[0]) * x + ab[1]  # the exponential keeps the map increasing
        return float(np.mean(np.logaddexp(0, np.where(y, -z, z))))

    slope, offset = minimize(loss, np.zeros(2), method="Nelder-Mead").x
    # Points evenly spaced in logits, so that they are dense near 0 and 1, where the map is curved.
    points = 1 / (1 + np.exp(-np.linspace(-14, 14, 113)))
    points[0], points[-1] = 0.0, 1.0
    return points, 1 / (1 + np.exp(-(np.exp(slope) * logit(points) + offset)))


def _isotonic(p: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Isotonic regression by pooling adjacent violators; equal probabilities form one point."""
    from scipy.optimize import isotonic_regression

    points, group, count = np.unique(p, return_inverse=True, return_counts=True)
    share = np.bincount(group, y) / count
    mapped = isotonic_regression(share, weights=count).x
    if points[0] > 0:
        points, mapped = np.r_[0.0, points], np.r_[mapped[0], mapped]
    if points[-1] < 1:
        points, mapped = np.r_[points, 1.0], np.r_[mapped, mapped[-1]]
    # The map is constant inside a step, so only the two ends of each step are kept.
    keep = np.r_[True, (np.diff(mapped)[1:] != 0) | (np.diff(mapped)[:-1] != 0), True]
    return points[keep], mapped[keep]


class CalibratedJudge:
    """A judge whose probabilities are mapped by a `Calibration`.

    Args:
        judge: any `RewardModel`.
        calibration: calibration fitted to this judge.
    """

    def __init__(self, judge: Any, calibration: Calibration) -> None:
        self.judge, self.calibration = judge, calibration

    @classmethod
    def fit(
        cls,
        judge: Any,
        said: np.ndarray,
        true: np.ndarray,
        *,
        method: Literal["temperature", "isotonic"] = "isotonic",
        max_fpr: float = 0.05,
    ) -> CalibratedJudge:
        """Calibrate `judge` on its probabilities `said` of held-out logs and the labels `true`: `Calibration.fit`."""
        return cls(judge, Calibration.fit(said, true, method=method, max_fpr=max_fpr))

    def to(self, device: torch.device | str) -> CalibratedJudge:
        """Move the wrapped judge to `device`; returns itself."""
        place(self.judge, torch.device(device))
        return self

    @property
    def name(self) -> str:
        """Name of this judge in reports: that of the wrapped judge, with the calibration method."""
        return f"{self.judge.name} ({self.calibration.method})"

    @property
    def threshold(self) -> float:
        """Threshold of the calibration."""
        return self.calibration.threshold

    @property
    def reads(self) -> Reads:
        """Inputs of the wrapped judge."""
        return reads_of(self.judge)

    def score(
        self,
        frames: Tensor,
        instructions: Sequence[str],
        states: Tensor | None = None,
        latents: Tensor | None = None,
    ) -> Judgement:
        """Score with the wrapped judge and calibrate `p_success`; `progress`, `valid` and `raw` are unchanged."""
        verdict = judged(self.judge, frames, instructions, states, latents)
        p = self.calibration.apply(torch.as_tensor(verdict.p_success).double().cpu().numpy())
        return Judgement(torch.from_numpy(p).float(), verdict.progress, verdict.valid, verdict.raw)

    def save_pretrained(self, path: str | Path) -> None:
        """Write the calibration and the wrapped judge."""
        with save_folder(path) as folder:
            JUDGES.save(self.judge, folder / INNER)
            (folder / SETTINGS).write_text(json.dumps(asdict(self.calibration), indent=1) + "\n")
            (folder / "config.json").write_text(json.dumps({TYPE: "calibrated"}) + "\n")

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        tokenizer: Any | None = None,
        cache: str | Path | None = None,
        keys: Mapping[str, str] | None = None,
    ) -> CalibratedJudge:
        """Load what `save_pretrained` wrote; `tokenizer`, `cache` and `keys` are passed to `load_judge`.

        Raises:
            CheckpointError: files are missing or damaged.
        """
        try:
            verify_folder(path, (SETTINGS,), "give a folder that save_pretrained wrote")
            facts = json.loads((Path(path) / SETTINGS).read_text())
            calibration = from_values(Calibration, facts, str(Path(path) / SETTINGS))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{path} holds no calibration ({error}); give a folder that save_pretrained wrote"
            ) from error
        return cls(load_judge(Path(path) / INNER, tokenizer=tokenizer, cache=cache, keys=keys), calibration)
