"""`worldgym bench best-of`: the best of N imagined attempts, as each judge has it, executed in Real.

Why: choosing the best of N is the simplest way to optimise against a reward, and how hard it optimises is one number
(its divergence from the policy is at most log N - (N - 1) / N nats; Gao et al. 2023, arXiv 2210.10760, section 2). The
attempts are the same for every judge, so judges differ by nothing but their choice. A judge that is right about what it
likes best keeps imagined and true success together as N grows; one that is gamed does not.

A judge is named as in `worldgym bench hacking`: `A+B` needs the word of both, `A~0.1` leaves out the tenth of attempts
of which the world model is least sure.

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
from experiments.suites import chosen_suite, real_env
from worldgym.errors import ConfigError
from worldgym.evaluation import make_starts, paired_bootstrap
from worldgym.evaluation.judge_audit import JudgeAudit, watch
from worldgym.pretrained import DEFAULT
from worldgym.protocols import threshold_of
from worldgym.utils.files import atomic_path, atomic_write_text
from worldgym.utils.progress import Progress

BEST_SEED0 = 15_000_000
SHUFFLES = 40  # orders of the attempts over which the curve is averaged
AT_ONCE = 480  # attempts imagined together


@dataclass(frozen=True)
class BenchBestOfConfig:
    """Choose among imagined attempts by each judge; ask Real.

    Args:
        judges: `bundled`, `latent`, `open_clip`, folders, `A+B` for agreement, `A~0.1` without the doubtful.
        judge_keys: `URL=VARIABLE`: the environment variable whose key is sent to a judge's endpoint, for exactly that
            address; without one no key is sent.
        names: what reports call them; as they are typed when empty.
        policy: that attempts: a folder or `sft`.
        bundle: name of a bundled checkpoint, or a folder with the same parts.
        suite: where the truth comes from; that of the bundle when None.
        attempts: from each start.
        starts: of a seed.
        seeds: each has starts and attempts of its own.
        temperature: of the attempts.
        horizon: steps of an attempt.
        threads: of torch.
        json: where the figures go; the picture lies beside it.
        device: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.
        dtype: precision in which a world model imagines; `auto` leaves it as it was saved.
    """

    judges: tuple[str, ...] = ("bundled", "latent", "bundled+latent", "bundled~0.1")
    judge_keys: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    policy: str = "sft"
    bundle: str = DEFAULT
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
        """Validate."""
        if not self.judges or not self.seeds or (self.names and len(self.names) != len(self.judges)):
            raise ConfigError("best-of needs judges and seeds, and as many names as judges or none")
        if self.attempts < 2 or min(self.starts, self.horizon, self.threads) < 1 or self.temperature <= 0:
            raise ConfigError(
                "attempts must be at least 2, starts, horizon, threads at least 1, temperature above 0"
            )
        for text in self.judges:
            parse(text)


def parse(text: str) -> tuple[list[str], float]:
    """`A+B~0.1` as names and the share of doubtful attempts to leave out.

    Raises:
        ConfigError: a share that is none.
    """
    names, _, share = text.partition("~")
    try:
        drop = float(share or 0)
    except ValueError:
        drop = -1.0
    if not 0 <= drop < 1:
        raise ConfigError(f"{text}: the share of doubtful episodes must lie in [0, 1), such as {names}~0.1")
    return names.split("+"), drop


def run(config: BenchBestOfConfig) -> int:
    """Attempt, choose, execute; table, json, picture."""
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
    """What a judge thinks of every attempt, and what became of it.

    Args:
        seen: episodes, `attempts` of each start beside each other.
        text: names of judges, as in the command.
        levels: threshold of each.
        attempts: of a start.

    Returns:
        margin `(starts, attempts)`: log odds above the threshold at the best look, the least over judges, -inf where
        the attempt is left out; imagined success and true success by the look at which it ends, bool.
    """
    names, drop = parse(text)
    margins = []
    for name in names:
        p = np.clip(np.concatenate([w.said[name] for w in seen]).astype(np.float64), 1e-6, 1 - 1e-6)
        level = levels[name]
        margins.append(np.nan_to_num(np.log(p / (1 - p)) - np.log(level / (1 - level)), nan=-np.inf))
    margin = np.min(margins, 0)
    hit = margin >= 0
    ends = np.where(hit.any(1), hit.argmax(1), margin.argmax(1))
    row = np.arange(len(margin))
    true = np.concatenate([w.by_then for w in seen])[row, ends]
    best = margin.max(1)
    if drop:
        doubt = np.concatenate([w.doubt for w in seen if w.doubt is not None])[row, ends]
        best = np.where(doubt <= np.quantile(doubt, 1 - drop), best, -np.inf)
    shape = (-1, attempts)
    return (
        best.reshape(shape),
        hit.any(1).reshape(shape) & np.isfinite(best.reshape(shape)),
        true.reshape(shape),
    )


def curve(margin: np.ndarray, imagined: np.ndarray, true: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Imagined and true success of the attempt that is liked best among n, for n = 1, 2, 4, ...

    Args:
        margin: `(S,N)`, what is maximised.
        imagined: `(S,N)` bool.
        true: `(S,N)` bool.
        seed: of the orders.

    Returns:
        n, imagined, true (lists over n), `gap_grew` (interval over starts, imagined less true at N less the same at 1),
        `true_gained`.
    """
    rng = np.random.default_rng(seed)
    starts, total = margin.shape
    sizes = [2**i for i in range(int(np.log2(total)) + 1)]
    said, was = np.zeros((len(sizes), starts)), np.zeros((len(sizes), starts))
    row = np.arange(starts)
    for _ in range(SHUFFLES):
        order = rng.permuted(np.tile(np.arange(total), (starts, 1)), axis=1)
        for i, n in enumerate(sizes):
            first = order[:, :n]
            chosen = first[row, margin[row[:, None], first].argmax(1)]
            said[i] += imagined[row, chosen] / SHUFFLES
            was[i] += true[row, chosen] / SHUFFLES
    gap = said - was
    return {
        "n": sizes,
        "imagined": said.mean(1).tolist(),
        "true": was.mean(1).tolist(),
        "gap_grew": paired_bootstrap(gap[-1], gap[0]).to_dict("starts"),
        "true_gained": paired_bootstrap(was[-1], was[0]).to_dict("starts"),
    }


def table(rows: Mapping[str, Any]) -> str:
    """What is printed."""
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
    """Imagined and true success against N, a panel a judge."""
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
