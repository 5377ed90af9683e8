"""C2: RL in the world model beats RL in a software simulator if the simulator's domain gap is large enough.

Example::

    from experiments.claims.c2 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

import numpy as np

from experiments.claims.claim import Claim, Ruling, difference, ratio, said, times
from experiments.claims.figures import gains, label_of
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records
from experiments.reports.charts import Series, line_chart, standalone
from worldgym.evaluation.statistics import resampled_means

NAME = "C2"
RL, SFT, REAL = ("C1", "imagined_rl"), ("C1", "sft"), (NAME, "real_rl")
APART = ("real_judged", "soft_rl-dynamics", "soft_rl-looks", "soft_rl-randomised", "soft_rl-partial")


def swept(preset: ClaimPreset) -> list[tuple[float, tuple[str, str]]]:
    """Pairs (gap, arm) by increasing gap; at gap 0 Soft is identical to Real."""
    return [(0.0, REAL)] + [(g, (NAME, f"soft_rl-{g:g}")) for g in preset.gaps]


def arms(preset: ClaimPreset) -> list[tuple[str, str]]:
    """All arms on the page; those that take the gap apart are of the default world only."""
    apart = () if preset.world else APART
    return [SFT, RL, *(arm for _, arm in swept(preset)), *((NAME, arm) for arm in apart)]


def needs(preset: ClaimPreset) -> list[tuple[str, str]]:
    """The arms of the sweep over gaps, and those that they are compared with."""
    return [SFT, RL, *(arm for _, arm in swept(preset))]


def rule(records: Records, preset: ClaimPreset, seeds: list[int]) -> Ruling:
    """Compare at the frozen gap, and find the gap at which the two curves cross."""
    by_gap = {g: difference(records, RL, arm, seeds) for g, arm in swept(preset)}
    at = min(by_gap, key=lambda g: abs(g - preset.frozen_gap))
    effect, cross = by_gap[at], crossing(list(by_gap), [v.mean for v in by_gap.values()])
    bounds = " to ".join(
        "beyond 1" if not np.isfinite(g) else f"{g:.2f}" for g in crosses(records, preset, seeds)
    )
    found = "no crossing up to gap 1" if cross is None else f"the curves cross at gap {cross:.2f}"
    where = f"{found} (95 % interval: {bounds})"
    why = f"imagined RL minus RL in Soft at gap {at:g}: {said(effect)}; {where}"
    multiple = ratio(records, RL, dict(swept(preset))[at], seeds)
    if cross is None and by_gap[max(by_gap)].mean <= 0:
        return Ruling(False, effect, why, multiple)
    if effect.low > 0:
        return Ruling(True, effect, f"{why}; the interval at gap {at:g} is above 0", multiple)
    return Ruling(None, effect, f"{why}; the interval at gap {at:g} is not above 0", multiple)


def crossing(gaps: list[float], values: list[float]) -> float | None:
    """Smallest gap at which `values` (imagined RL minus RL in Soft) become positive, by linear interpolation.

    Example:
        >>> crossing([0.0, 1.0], [-0.1, 0.1])
        0.5
    """
    if values[0] > 0:
        return gaps[0]
    for (g0, v0), (g1, v1) in zip(
        zip(gaps, values, strict=False), zip(gaps[1:], values[1:], strict=False), strict=False
    ):
        if v0 <= 0 < v1:
            return g0 + (g1 - g0) * -v0 / (v1 - v0)
    return None


def crosses(records: Records, preset: ClaimPreset, seeds: list[int]) -> list[float]:
    """95 % interval of the gap at which the curves cross, over training seeds and starts; infinite beyond 1."""
    gaps, arms = zip(*swept(preset), strict=True)
    tables = [records.outcomes(*arm, "seen/greedy", seeds) for arm in (RL, *arms)]
    ours, *theirs = (resampled_means(table, n_boot=2000) for table in tables)
    found = [crossing(list(gaps), row) for row in np.stack([ours - their for their in theirs], 1).tolist()]
    where = np.array([np.inf if gap is None else gap for gap in found])
    return [float(g) for g in np.quantile(where, [0.025, 0.975], method="nearest")]


def figures(records: Records, preset: ClaimPreset, seeds: list[int]) -> dict[str, str]:
    """Chart of success in Real against the gap, with minimum and maximum over seeds, and chart of the gains."""
    gaps = swept(preset)
    rows = [records.outcomes(*arm, "seen/greedy", seeds).mean(1) for _, arm in gaps]
    x = [g for g, _ in gaps]
    ours = records.outcomes(*RL, "seen/greedy", seeds).mean(1)
    base = float(records.outcomes(*SFT, "seen/greedy", [0]).mean())
    flat = lambda v: [float(v)] * len(x)  # noqa: E731
    series = [
        Series("imagined RL", x, flat(ours.mean()), low=flat(ours.min()), high=flat(ours.max())),
        Series("RL in Soft", x, [float(r.mean()) for r in rows], low=[float(r.min()) for r in rows],
               high=[float(r.max()) for r in rows]),
        Series("SFT", x, flat(base)),
    ]  # fmt: skip
    chart = line_chart(series, x_label="gap of the software simulator", y_range=(0.0, 1.0))
    others = [arm for _, arm in gaps] + [
        (NAME, arm) for arm in APART if set(seeds) <= set(records.seeds(NAME, arm))
    ]
    return {
        "gap": standalone(chart, [s.label for s in series]),
        **gains(records, RL, others),
    }


def tables(records: Records, preset: ClaimPreset, seeds: list[int]) -> str:
    """Differences and ratios of success (as World-Gymnast reports them), and the cost to reach `LEVEL`."""
    gaps = swept(preset)
    lines = ["| gap | imagined RL minus RL in Soft, points | imagined RL / RL in Soft |", "|---|---|---|"]
    for g, arm in gaps:
        apart = said(difference(records, RL, arm, seeds)).removesuffix(" points")
        lines.append(f"| {g:g} | {apart} | {times(ratio(records, RL, arm, seeds))} |")
    return "\n".join([*lines, "", *time_table(records, preset)]) + "\n"


LEVEL = 0.75
"""Success in Real, on the starts of evaluations during training, for which `time_table` gives the cost."""


def time_table(records: Records, preset: ClaimPreset) -> list[str]:
    """Steps, wall-clock and CPU seconds until the first evaluation with success in Real of at least `LEVEL`."""
    lines = [f"| arm | seeds that reach success {LEVEL} | steps | wall-clock s | CPU s |", "|---|---|---|---|---|"]
    for arm in [RL, *(arm for _, arm in swept(preset))]:
        found, seeds = [], records.seeds(*arm)
        for seed in seeds:
            facts = records.read(*arm, seed)
            row = next((row for row in facts["way"] if row.get("true", 0.0) >= LEVEL), None)
            if row is not None:
                cores = facts["budget"].get("core_seconds", 0.0) / max(facts["budget"]["wall_seconds"], 1e-9)
                found.append((row["steps"], row["seconds"], row["seconds"] * cores))
        cells = [f"{np.mean(column):,.0f}" for column in zip(*found, strict=True)] or ["-"] * 3
        lines.append(f"| {label_of(records, arm)} | {len(found)} of {len(seeds)} | {' | '.join(cells)} |")
    return lines


CLAIM = Claim(
    NAME,
    "RL in the world model beats RL in a software simulator if the simulator's domain gap is large enough",
    "World-Gymnast (arXiv 2602.02454): 1.5 times the success of RL in SIMPLER over four tasks",
    "imagined RL is below RL in Soft at every gap up to 1",
    arms=arms,
    needs=needs,
    rule=rule,
    figures=figures,
    tables=tables,
)
