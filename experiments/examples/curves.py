"""Draws learning curves of several example runs: imagined success over frames, and success in Real before and after.

Example::

    python -m experiments.examples.curves runs/ppo runs/sb3_ppo runs/rllib_ppo runs/sb3_sac --out docs/learning.png
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from worldgym.utils.files import atomic_path


@dataclass(frozen=True)
class Args:
    """Settings of the chart.

    Args:
        runs: run folders with a `results.json`; the folder names are the titles.
        out: image file to write.
        smooth: number of points of the running mean.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    out: Path = Path("docs/learning.png")
    smooth: int = 5


def main(args: Args) -> int:
    """Read the runs, and draw and write the chart."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(args.runs), figsize=(3.1 * len(args.runs), 2.7), sharey=True, squeeze=False
    )
    for axis, folder in zip(axes[0], args.runs, strict=True):
        results = json.loads((folder / "results.json").read_text())
        frames, success = (np.array([row[k] for row in results["curve"]], float) for k in ("frames", "success"))
        known = np.isfinite(success)
        frames, success = frames[known] / 1000, success[known]
        window = min(args.smooth, len(success))
        mean = np.convolve(success, np.ones(window) / window, "valid")
        axis.plot(frames, success, color="#2458c5", alpha=0.25, linewidth=1)
        axis.plot(frames[window - 1 :], mean, color="#2458c5", label="imagined, sampled")
        for at, name in ((0.0, "before"), (float(frames[-1]), "after")):
            rate = results[name]
            spread = [[rate["mean"] - rate["low"]], [rate["high"] - rate["mean"]]]
            axis.errorbar(
                at, rate["mean"], spread, fmt="o", color="#d9822b", capsize=3, markersize=5, clip_on=False,
                label="Real, mean action" if name == "before" else None,
            )  # fmt: skip
        axis.set_title(f"{folder.name} ({results['seconds'] / 60:.0f} min)", fontsize=10)
        axis.set_xlabel("thousand imagined frames")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylim(0, 1)
    axes[0][0].set_ylabel("success")
    axes[0][0].legend(fontsize=8, loc="upper left")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    with atomic_path(args.out) as temporary:
        figure.savefig(temporary, dpi=110)
    pyplot.close(figure)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
