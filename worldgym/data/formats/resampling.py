"""Resamples rows to a lower rate: selects the kept rows, and combines the actions between them.

The rule for combining actions depends on their meaning: of absolute targets the last one is taken, motions are summed,
rates are averaged. The meaning cannot be inferred from the values, so the user gives the rule.

Example::

    rules = Rules.parse(("delta", "gripper=absolute"), ("dx", "gripper"))
    rows = keep_rows(times, fps=5.0, where="episode 3")
    resampled(actions, rows, rules).shape        # (len(rows) - 1, 2)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worldgym.errors import ConfigError, DatasetError

RULES = ("absolute", "delta", "rate")


@dataclass(frozen=True)
class Rules:
    """One rule of `RULES` for each action dimension."""

    rules: tuple[str, ...]

    @classmethod
    def parse(cls, texts: Sequence[str], names: Sequence[str]) -> Rules:
        """Parse `RULE` for all dimensions and `NAME=RULE` for single dimensions.

        Raises:
            ConfigError: a rule or name is unknown, or a dimension has no rule.
        """
        rules: dict[str, str] = {}
        for text in texts:
            name, equals, rule = text.rpartition("=")
            if rule not in RULES or (equals and name not in names):
                raise ConfigError(
                    f"--actions {text!r}: expected {', '.join(RULES)}, or NAME=RULE with a name of {', '.join(names)}"
                )
            rules |= {name: rule} if equals else {n: rule for n in names if n not in rules}
        missing = [name for name in names if name not in rules]
        if missing:
            raise ConfigError(
                f"--actions has no rule for {', '.join(missing)}; add a rule without a name for the rest"
            )
        return cls(tuple(rules[name] for name in names))


def keep_rows(times: np.ndarray, fps: float, where: str) -> np.ndarray:
    """Select the rows nearest to a regular time grid that starts at the first row.

    Args:
        times: `(N,)` seconds, increasing.
        fps: rate of the grid, rows per second.
        where: description of the episode for messages.

    Raises:
        DatasetError: the rows have a lower rate than `fps`, or a gap.
    """
    rate = 1.0 / float(np.median(np.diff(times)))
    if fps > 1.05 * rate:
        raise DatasetError(
            f"{where} was recorded at {rate:.3g} rows per second; --fps {fps:g} is higher, and missing rows cannot be "
            "made up; choose a lower --fps"
        )
    grid = times[0] + np.arange(int((times[-1] - times[0]) * fps + 1e-6) + 1) / fps
    right = np.searchsorted(times, grid).clip(1, len(times) - 1)
    rows = np.where(grid - times[right - 1] <= times[right] - grid, right - 1, right)
    off = np.abs(times[rows] - grid)
    if off.max() > 0.75 / fps:
        raise DatasetError(
            f"{where} has no row within {0.75 / fps:.3f} s of {grid[int(off.argmax())]:.3f} s: a gap in the recording; "
            "choose a lower --fps"
        )
    rows = np.unique(rows)
    if len(rows) < 2:
        raise DatasetError(f"{where} is shorter than two rows at {fps:g} rows per second")
    return rows


def resampled(actions: np.ndarray, rows: np.ndarray, rules: Rules) -> np.ndarray:
    """Combine the actions `(N - 1, A)` between kept rows, giving `(len(rows) - 1, A)` float32."""
    spans = [actions[a:b] for a, b in zip(rows, rows[1:], strict=False)]
    joined = {
        "absolute": np.stack([span[-1] for span in spans]),
        "delta": np.stack([span.sum(0) for span in spans]),
        "rate": np.stack([span.mean(0) for span in spans]),
    }
    columns = [joined[rule][:, i] for i, rule in enumerate(rules.rules)]
    return np.stack(columns, axis=1).astype(np.float32)
