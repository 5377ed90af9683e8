"""`worldgym bench best-of`: each judge chooses the best of N imagined rollouts, which is then executed in Real.

Best-of-N is the simplest way to optimise against a reward. The strength of the optimisation is given by one number: the
KL divergence from the policy is at most log N - (N - 1) / N nats (Gao et al. 2023, arXiv 2210.10760, section 2). All
judges score the same rollouts. As N grows, imagined and true success stay together if the judge is right about the
rollouts that it scores highest; they diverge if the judge is exploited.

Judges are named as in `worldgym bench hacking`: `A+B` requires the success verdict of both, and `A~0.1` leaves out the
10 % of rollouts with the highest uncertainty of the world model.

Example::

    worldgym bench best-of --judges bundled latent bundled+latent bundled~0.1 --attempts 32
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bundle import Bundle
from experiments.commands.evaluate import covered_tasks
from experiments.compute import DType, placing
from experiments.pipelines.policies import PolicyChoice
from experiments.pipelines.run_folder import finite, versions
from experiments.suites import BundleName, chosen_suite, real_env
from worldgym.errors import ConfigError
from worldgym.evaluation import make_starts, paired_bootstrap
from worldgym.evaluation.judge_audit import JudgeAudit, watch
from worldgym.pretrained import DEFAULT
from worldgym.protocols import threshold_of
from worldgym.utils.files import atomic_path, atomic_write_text
from worldgym.utils.progress import Progress

BEST_SEED0 = 15_000_000
SHUFFLES = 40  # random orders of the rollouts over which the curve is averaged
AT_ONCE = 480  # rollouts imagined in one batch


@dataclass(frozen=True)
class BenchBestOfConfig:
    """Choose the best imagined rollouts with each judge, and execute them in Real.

    Args:
        judges: `bundled`, `latent`, `open_clip`, or folders. `A+B` requires both; `A~0.1` drops the 10 % most uncertain
            rollouts.
        judge_keys: `URL=VARIABLE`: environment variable with the API key for a judge's endpoint at exactly this URL;
            without it, no key is sent.
        names: names of the judges in reports, one each; as typed if empty.
        policy: policy that acts: a folder, or `sft`.
        bundle: name of a bundled checkpoint, or a folder with the same parts.
        suite: suite whose real domain gives the ground truth; that of the bundle if None.
        attempts: rollouts per start; the largest N.
        starts: starts per seed.
        seeds: seeds; each has its own starts and rollouts.
        temperature: sampling temperature of the policy.
        horizon: steps per rollout.
        threads: number of torch threads.
        json: output file for the results; the chart is written beside it.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of world-model inference; `auto` uses the saved precision.
    """

    judges: tuple[str, ...] = ("bundled", "latent", "bundled+latent", "bundled~0.1")
    judge_keys: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    policy: str = "sft"
    bundle: BundleName = DEFAULT
    suite: str | None = None
    attempts: int = 32
    starts: int = 60
    seeds: tuple[int, ...] = (0, 1, 2)
    temperature: float = 1.0
    horizon: int = 40
    threads: int = 2
    json: Path = Path("runs/best_of.json")
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        """Validate the settings."""
        if not self.judges or not self.seeds or (self.names and len(self.names) != len(self.judges)):
            raise ConfigError(
                f"got {len(self.judges)} judges, {len(self.seeds)} seeds and {len(self.names)} names; expected at "
                "least one judge and one seed, and one name per judge or none"
            )
        if self.attempts < 2 or min(self.starts, self.horizon, self.threads) < 1 or self.temperature <= 0:
            raise ConfigError(
                "attempts must be at least 2; starts, horizon and threads at least 1; temperature above 0"
            )
        for text in self.judges:
            parse(text)


def parse(text: str) -> tuple[list[str], float]:
    """Split `A+B~0.1` into the names of judges and the share of uncertain rollouts to drop.

    Raises:
        ConfigError: the share is not a number in [0, 1).
    """
    names, _, share = text.partition("~")
    try:
        drop = float(share or 0)
    except ValueError:
        drop = -1.0
    if not 0 <= drop < 1:
        raise ConfigError(f"{text}: the share of uncertain episodes must lie in [0, 1), for example {names}~0.1")
    return names.split("+"), drop


def run(config: BenchBestOfConfig) -> int:
    """Imagine and execute rollouts, choose by each judge, and write table, JSON file and chart."""
    import torch

    torch.set_num_threads(config.threads)
    here = placing(config)
    bundle = Bundle.find(config.bundle, here)
    tasks = covered_tasks(config.bundle)
    world_model = bundle.world_model()
    policy = PolicyChoice.parse(config.policy, config.bundle, device=here.name).ref.load()
    single = dict.fromkeys(name for text in config.judges for name in parse(text)[0])
    keys = config.judge_keys
    judges = {
        name: bundle.named_judge(name, getattr(world_model, "tokenizer", None), keys=keys) for name in single
    }
    env = real_env(chosen_suite(config.suite, config.bundle), horizon=config.horizon, terminate_on_success=False)
    seen: list[JudgeAudit] = []
    starts_a_call = max(1, AT_ONCE // config.attempts)
    total = len(config.seeds) * config.starts * config.attempts
    with Progress(total, "best of many") as bar:
        for seed in config.seeds:
            starts = make_starts(tasks, max(1, round(config.starts / len(tasks))), BEST_SEED0 + 10_000 * seed)
            for first in range(0, len(starts), starts_a_call):
                some = [
                    start for start in starts[first : first + starts_a_call] for _ in range(config.attempts)
                ]
                before = bar.count
                seen.append(
                    watch(
                        policy, world_model, judges, env, some, horizon=config.horizon,
                        temperature=config.temperature, seed=1000 * seed + first,
                        progress=lambda done, _, before=before: bar.update(before + done - bar.count),
                    )
                )  # fmt: skip
    env.close()
    levels = {name: threshold_of(judge) for name, judge in judges.items()}
    rows = {}
    for text, name in zip(config.judges, config.names or config.judges, strict=True):
        rows[name] = curve(*choices(seen, text, levels, config.attempts))
    facts = {
        "judges": rows, "attempts": config.attempts, "starts": len(config.seeds) * config.starts,
        "policy": config.policy, "versions": versions(),
    }  # fmt: skip
    atomic_write_text(config.json, json.dumps(finite(facts), indent=1) + "\n")
    picture = config.json.with_suffix(".png")
    draw(rows, picture)
    sys.stdout.write(table(rows) + f"\nwritten to {config.json} and {picture}\n")
    return 0


def choices(
    seen: list[JudgeAudit], text: str, levels: Mapping[str, float], attempts: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the score of every rollout and its imagined and true success.

    Args:
        seen: rollouts; the `attempts` rollouts of a start are consecutive.
        text: names of judges, as in the command.
        levels: threshold of each judge.
        attempts: rollouts per start.

    Returns:
        margin `(starts, attempts)`: log odds above the threshold, maximum over the checks of the minimum over judges,
        and -inf for dropped rollouts; imagined success and true success up to the check at which the rollout ends, both
        bool.
    """
    names, drop = parse(text)
    margins = []
    for name in names:
        p = np.clip(np.concatenate([w.scores[name] for w in seen]).astype(np.float64), 1e-6, 1 - 1e-6)
        level = levels[name]
        margins.append(np.nan_to_num(np.log(p / (1 - p)) - np.log(level / (1 - level)), nan=-np.inf))
    margin = np.min(margins, 0)
    hit = margin >= 0
    ends = np.where(hit.any(1), hit.argmax(1), margin.argmax(1))
    row = np.arange(len(margin))
    true = np.concatenate([w.by_then for w in seen])[row, ends]
    best = margin.max(1)
    if drop:
        uncertainty = np.concatenate([w.uncertainty for w in seen if w.uncertainty is not None])[row, ends]
        best = np.where(uncertainty <= np.quantile(uncertainty, 1 - drop), best, -np.inf)
    shape = (-1, attempts)
    return (
        best.reshape(shape),
        hit.any(1).reshape(shape) & np.isfinite(best.reshape(shape)),
        true.reshape(shape),
    )


def curve(margin: np.ndarray, imagined: np.ndarray, true: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Imagined and true success of the rollout with the highest score among n, for n = 1, 2, 4, ...

    Args:
        margin: `(S,N)` score that is maximised.
        imagined: `(S,N)` bool.
        true: `(S,N)` bool.
        seed: seed of the random orders.

    Returns:
        n, imagined, true (lists over n); `gap_grew`: growth of imagined minus true success from n = 1 to N, with an
        interval over starts; `true_gained`: the same for true success.
    """
    rng = np.random.default_rng(seed)
    starts, total = margin.shape
    sizes = [2**i for i in range(int(np.log2(total)) + 1)]
    imagined_rate, true_rate = np.zeros((len(sizes), starts)), np.zeros((len(sizes), starts))
    row = np.arange(starts)
    for _ in range(SHUFFLES):
        order = rng.permuted(np.tile(np.arange(total), (starts, 1)), axis=1)
        for i, n in enumerate(sizes):
            first = order[:, :n]
            chosen = first[row, margin[row[:, None], first].argmax(1)]
            imagined_rate[i] += imagined[row, chosen] / SHUFFLES
            true_rate[i] += true[row, chosen] / SHUFFLES
    gap = imagined_rate - true_rate
    return {
        "n": sizes,
        "imagined": imagined_rate.mean(1).tolist(),
        "true": true_rate.mean(1).tolist(),
        "gap_grew": paired_bootstrap(gap[-1], gap[0]).to_dict("starts"),
        "true_gained": paired_bootstrap(true_rate[-1], true_rate[0]).to_dict("starts"),
    }


def table(rows: Mapping[str, Any]) -> str:
    """Return the printed table."""
    lines = [f"{'judge':<36}{'imagined':>16}{'true':>16}{'gap grew by':>24}{'true success gained':>24}"]
    for name, row in rows.items():
        cells = [f"{row[k][0]:.2f} -> {row[k][-1]:.2f}" for k in ("imagined", "true")]
        spread = [
            f"{100 * v['mean']:+.1f} [{100 * v['low']:+.1f}, {100 * v['high']:+.1f}]"
            for v in (row["gap_grew"], row["true_gained"])
        ]
        lines.append(f"{name:<36}{cells[0]:>16}{cells[1]:>16}{spread[0]:>24}{spread[1]:>24}")
    return "\n".join(lines)


def draw(rows: Mapping[str, Any], path: Path) -> None:
    """Draw imagined and true success against N, one panel per judge."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    wide = min(4, len(rows))
    tall = -(-len(rows) // wide)
    figure, axes = pyplot.subplots(tall, wide, figsize=(2.5 * wide, 2.6 * tall), sharey=True, squeeze=False)
    for axis in axes.flat[len(rows) :]:
        axis.axis("off")
    for axis, (name, row) in zip(axes.flat, rows.items(), strict=False):
        axis.plot(row["n"], row["imagined"], color="#2458c5", marker="o", markersize=3, label="imagined")
        axis.plot(row["n"], row["true"], color="#d9822b", marker="o", markersize=3, label="true")
        axis.set_xscale("log", base=2)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("best of N")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylim(0, 1.02)
    for first in axes[:, 0]:
        first.set_ylabel("success")
    axes[0][0].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    pyplot.close(figure)
