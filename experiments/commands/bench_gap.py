"""`worldgym bench gap`: measures the domain gap of the software simulator with scripted experts.

The gap used for comparisons is a constant of the suite (`Suite.frozen_gap`).

Example::

    worldgym bench gap --gaps 0.25 0.5 0.75 1 --json runs/gap.json
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from worldgym.errors import ConfigError
from worldgym.suite import extra, load_suite
from worldgym.utils.files import atomic_write_text
from worldgym.utils.progress import Progress


@dataclass(frozen=True)
class BenchGapConfig:
    """Measure success of experts in Real and in Soft, and of the actions from Soft replayed in Real.

    Args:
        gaps: gaps to measure, each in [0, 1].
        episodes: episodes per task.
        suite: suite to measure; the default one if None.
        json: output file for the results; not written if None.
    """

    gaps: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    episodes: int = 60
    suite: str | None = None
    json: Path | None = None

    def __post_init__(self) -> None:
        """Validate the settings."""
        if not self.gaps or self.episodes < 1 or not all(0 <= g <= 1 for g in self.gaps):
            raise ConfigError(
                f"gaps must lie in [0, 1] and episodes be at least 1; got {self.gaps}, {self.episodes}"
            )


def run(config: BenchGapConfig) -> int:
    """Measure the gaps, print the table, and write the JSON file."""
    suite = load_suite(config.suite)
    measure_gap = extra(suite, "measure_gap", "gap to measure")
    rows = []
    with Progress(len(config.gaps), "measure gaps") as bar:
        for gap in config.gaps:
            rows.append(measure_gap(gap, episodes=config.episodes))
            bar.update(1)
    lines = [f"{'gap':>5}  {'task':<12}{'Real':>7}{'Soft':>7}{'replayed':>10}"]
    for row in rows:
        for task, t in row["tasks"].items():
            lines.append(
                f"{row['gap']:>5g}  {task:<12}{t['real']:>7.2f}{t['soft']:>7.2f}{t['replay']:>10.2f}"
            )
    sys.stdout.write("\n".join([*lines, f"frozen gap: {suite.frozen_gap():g}"]) + "\n")
    if config.json is not None:
        atomic_write_text(config.json, json.dumps(rows, indent=1) + "\n")
    return 0
