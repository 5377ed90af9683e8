"""E1: the number of additional episodes in Real that has the same effect as RL in imagination.

This is not a published claim but the question behind them, which users of WMPO ask. The same SFT policy either clones N
more expert demonstrations, or clones its own successes among N episodes in Real, or is fine-tuned in imagination, which
takes no episode, with as many updates. The training data of the world model and the judge is counted on their card, not
here.

Example::

    from experiments.claims.e1 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.claims.arms import REAL_SEEDS, Arm, Trained, clone, filtered_bc, some_starts
from experiments.claims.claim import Claim, Ruling, difference, said
from experiments.claims.context import ClaimContext
from experiments.claims.presets import PRESETS, ClaimPreset
from experiments.claims.records import Records
from experiments.reports.charts import Series, line_chart, standalone
from experiments.suites import real_env

NAME = "E1"
RL, SFT = ("C1", "imagined_rl"), ("C1", "sft")
MEASURED = ("seen", "unseen_combination")


def demos(count: int) -> Callable[[ClaimContext, int, Path], Trained]:
    """Train function: clone `count` more expert demonstrations together with the bundle's."""

    def train(lab: ClaimContext, seed: int, folder: Path) -> Trained:
        from agents import chunk_dataset
        from agents.algorithms.self_imitation import join

        settings, rng = lab.preset.practice(seed, folder), np.random.default_rng([seed, 13])
        suite = lab.suite
        env = real_env(suite, horizon=lab.preset.measured, terminate_on_success=False)
        starts = zip(*some_starts(rng, count, lab.tasks, REAL_SEEDS), strict=True)
        episodes = [suite.demonstrate(env, "expert", seed=start, task=task, rng=rng) for start, task in starts]
        steps = env.batch.interactions
        env.close()
        more = chunk_dataset(
            [episode for episode in episodes if episode.success.any()], lab.bundle.policy().chunk
        )
        everything = join(lab.bundle.demonstrations(), more)
        return clone(lab, settings, everything, {"real_episodes": float(count), "real_steps": float(steps)})

    return train


OWN_ARMS = tuple(
    arm
    for n in sorted({n for preset in PRESETS.values() for n in preset.budgets})
    for arm in (
        Arm(f"demos-{n}", f"{n} more demonstrations", demos(n), MEASURED, evaluators=False),
        Arm(f"own-{n}", f"filtered BC, {n} own episodes", filtered_bc(n), MEASURED, evaluators=False),
    )
)


def arms(preset: ClaimPreset) -> list[tuple[str, str]]:
    """All arms on the page."""
    return [SFT, RL, *((NAME, f"{kind}-{n}") for kind in ("demos", "own") for n in preset.budgets)]


def rule(records: Records, preset: ClaimPreset, seeds: list[int]) -> Ruling:
    """Compare imagined RL with filtered BC on the most episodes, and find where either kind of cloning exceeds it."""
    gains = {
        kind: [difference(records, RL, (NAME, f"{kind}-{n}"), seeds) for n in preset.budgets]
        for kind in ("demos", "own")
    }
    effect, first = gains["own"][-1], gains["own"][0]
    exceeded = {
        kind: next((n for n, d in zip(preset.budgets, row, strict=True) if d.mean < 0), None)
        for kind, row in gains.items()
    }
    names = {"demos": "BC on more demonstrations", "own": "filtered BC on own episodes"}
    where = "; ".join(
        f"{names[k]} does not exceed imagined RL up to {preset.budgets[-1]} episodes"
        if n is None
        else f"{names[k]} exceeds imagined RL from {n} episodes on"
        for k, n in exceeded.items()
    )
    why = f"imagined RL minus filtered BC on {preset.budgets[-1]} own episodes in Real: {said(effect)}; {where}"
    if first.mean <= 0:
        return Ruling(False, effect, why)
    if effect.low > 0:
        return Ruling(True, effect, why)
    return Ruling(None, effect, f"{why}; at the largest budget the interval is not above 0")


def figures(records: Records, preset: ClaimPreset, seeds: list[int]) -> dict[str, str]:
    """Chart of success in Real against the number of additional episodes in Real."""
    x = list(preset.budgets)
    series = []
    ours = records.outcomes(*RL, "seen/greedy", seeds).mean(1)
    rows = {"imagined RL, no additional episode": [ours] * len(x)}
    for kind, label in (("demos", "more demonstrations"), ("own", "filtered BC, own episodes")):
        rows[label] = [records.outcomes(NAME, f"{kind}-{n}", "seen/greedy", seeds).mean(1) for n in x]
    for label, values in rows.items():
        series.append(
            Series(label, x, [float(v.mean()) for v in values], low=[float(v.min()) for v in values],
                   high=[float(v.max()) for v in values])
        )  # fmt: skip
    base = float(records.outcomes(*SFT, "seen/greedy", [0]).mean())
    series.append(Series("SFT", x, [base] * len(x)))
    chart = line_chart(series, x_label="episodes in Real", y_range=(0.0, 1.0))
    return {"episodes": standalone(chart, [s.label for s in series])}


CLAIM = Claim(
    NAME,
    "RL in imagination has the effect of many additional episodes in Real",
    "World-Gymnast (arXiv 2602.02454) and WMPO (2511.09515) compare at equal episodes; this curve is not published",
    "filtered BC on the smallest number of own episodes is at least as good as imagined RL",
    arms=arms,
    needs=arms,
    rule=rule,
    figures=figures,
    own_arms=OWN_ARMS,
)
