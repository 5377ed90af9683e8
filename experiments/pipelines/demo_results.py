"""`results.json` of a demo run: policy variants, paired differences, the imagination check, the budget and the time.

Example::

    results = assemble(settings, tasks, evaluations, history, check, seconds, card, judge)
    sys.stdout.write(table(results))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.pipelines.run_folder import versions
from experiments.reports.html_template import ARM_LABELS
from worldgym.evaluation import EvalResult, paired_bootstrap

if TYPE_CHECKING:
    from experiments.pipelines.settings import DemoSettings

COMPARED = ("sft", "bc_only", "sft_sharpened", "language_blind")
STAGES = ("imagine", "judge", "policy", "update", "evaluate")
Evaluations = Mapping[str, Mapping[str, EvalResult]]


def differences(evaluations: Evaluations, seed: int = 0) -> list[dict[str, Any]]:
    """Paired differences imagined_rl minus every other variant: greedy, sampled, and the mean of both."""
    found = []
    for mode in ("greedy", "sampled", "both"):
        for other in COMPARED:
            if other not in evaluations:
                continue
            a, b = (_outcomes(evaluations[name], mode) for name in ("imagined_rl", other))
            interval = paired_bootstrap(a, b, seed=seed)
            found.append({"a": "imagined_rl", "b": other, "mode": mode, **interval.to_dict()})
    return found


def _outcomes(modes: Mapping[str, EvalResult], mode: str) -> np.ndarray:
    if mode == "both":
        return (modes["greedy"].success.astype(float) + modes["sampled"].success) / 2
    return modes[mode].success.astype(float)


def assemble(
    settings: DemoSettings,
    tasks: Sequence[str],
    evaluations: Evaluations,
    history: Sequence[Mapping[str, float]],
    check: Mapping[str, Any],
    seconds: Mapping[str, float],
    card: Mapping[str, Any],
    judge: str,
) -> dict[str, Any]:
    """Build the content of `results.json`; every number is a JSON type.

    Args:
        settings: settings of the run.
        tasks: measured tasks.
        evaluations: variant -> mode ("greedy", "sampled") -> outcomes.
        history: one row per iteration.
        check: the imagination check, as `ClosedLoopResult.to_dict`.
        seconds: wall time by stage.
        card: the bundle's card.
        judge: name of the judge that provided the reward.
    """
    window = max(1, min(5, len(history) // 2))
    rates = [row["success_rate"] for row in history]
    steps = int(history[-1]["imagined_steps"])
    counted = [result for modes in evaluations.values() for result in modes.values()]
    real = sum(int(r.steps.sum()) for r in {id(r): r for r in counted}.values()) + sum(
        check["outcomes"]["steps"]
    )
    times = {stage: round(seconds.get(stage, 0.0), 2) for stage in STAGES}
    times |= {stage: round(value, 2) for stage, value in seconds.items() if stage not in times}
    return {
        "arms": [_arm(name, modes, settings) for name, modes in evaluations.items()],
        "differences": differences(evaluations, settings.seed),
        "imagined_success": {
            "start": _mean(rates[:window]),
            "end": _mean(rates[-window:]),
            "checked": check["imagined_success"],
        },
        "confusion": {key: check["confusion"][key] for key in ("tp", "fp", "fn", "tn")},
        "judge": judge,
        "budget": {
            "real_episodes": card.get("real_episodes"),
            "imagined_steps": steps,
            "soft_steps": 0,
            "evaluation_steps": real,
            "audit_episodes": int(sum(row.get("audit_episodes", 0.0) for row in history)),
            "policy_updates": int(sum(row["updates"] for row in history)),
        },
        "seconds": {**times, "total": round(sum(times.values()), 2)},
        "seed": settings.seed,
        "versions": versions(),
        "tasks": list(tasks),
        "settings": settings.key(),
        "gate": {
            **{key: check["confusion"][key] for key in ("precision", "recall", "accuracy")},
            "by_task": check["by_task"],
            "invalid": check["invalid"],
            "temperature": settings.check_temperature,
        },
        "imagined_steps_per_second": round(steps / max(times["imagine"], 1e-9), 1),
    }


def _arm(name: str, modes: Mapping[str, EvalResult], settings: DemoSettings) -> dict[str, Any]:
    greedy, sampled = modes["greedy"], modes["sampled"]
    return {
        "name": name,
        "label": ARM_LABELS.get(name, name),
        "success": greedy.rate().to_dict(),
        "success_sampled": sampled.rate().to_dict(),
        "by_task": {task: rate.to_dict() for task, rate in greedy.by_task().items()},
        "by_task_sampled": {task: rate.to_dict() for task, rate in sampled.by_task().items()},
        "progress": greedy.mean_progress().to_dict(),
        "temperature_sampled": sampled.temperature,
    }


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if np.isfinite(value)]
    return round(float(np.mean(finite)), 4) if finite else None


def table(results: Mapping[str, Any]) -> str:
    """Format the results as plain text, printed at the end of a run."""

    def rate(value: Mapping[str, float]) -> str:
        return f"{100 * value['mean']:5.1f} [{100 * value['low']:4.1f}, {100 * value['high']:4.1f}]"

    lines = ["Success in Real, % [95 % interval]", f"{'':<26}{'greedy':>20}{'sampled':>20}"]
    for arm in results["arms"]:
        label = ARM_LABELS.get(arm["name"], arm["name"])
        lines.append(f"{label:<26}{rate(arm['success']):>20}{rate(arm['success_sampled']):>20}")
    lines += ["", "Imagined RL minus ..., points [95 % interval]"]
    for d in results["differences"]:
        numbers = f"{100 * d['mean']:+6.1f} [{100 * d['low']:+5.1f}, {100 * d['high']:+5.1f}]"
        outcome = "better" if d["low"] > 0 else "worse" if d["high"] < 0 else "no clear difference"
        lines.append(f"{ARM_LABELS.get(d['b'], d['b']):<26}{d['mode']:>8}{numbers:>25}  {outcome}")
    counts, gate = results["confusion"], results["gate"]
    rates = "".join(f", {k} {rate(gate[k]).strip()}" for k in ("precision", "recall") if gate[k])
    order = " ".join(f"{key.upper()} {counts[key]}" for key in ("fp", "tp", "fn", "tn"))
    lines += ["", f"Imagined success against Real: {order}{rates}"]
    seconds = results["seconds"]
    lines.append("Seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    return "\n".join(lines) + "\n"
