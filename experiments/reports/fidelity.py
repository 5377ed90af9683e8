"""The page of `worldgym bench fidelity`: what stays true how long, and whose verdicts can be trusted.

Example::

    write_fidelity_report(json.loads(path.read_text()), "runs/fidelity.html")
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from experiments.reports.charts import Series, line_chart
from experiments.reports.html import rate
from experiments.reports.html_template import PAGE, STYLE
from experiments.reports.tables import number, table
from worldgym.utils.files import atomic_write_text

LABELS = {
    "model": "world model",
    "first_frame": "first frame repeated",
    "shuffled_actions": "another's actions",
}


def write_fidelity_report(facts: Mapping[str, Any], path: Path | str) -> Path:
    """Write one self-contained page of the figures that `bench fidelity` measured."""
    path = Path(path)
    sections = [
        ("Verdicts, closed loop", _closed_loop(facts["closed_loop"])),
        ("By horizon, on held-out episodes", _by_horizon(facts["by_horizon"])),
        ("By split", _splits(facts["by_split"])),
        ("By part", _parts(facts["by_split"]["seen"].get("by_part"))),
        ("Ranking of policies", _ranking(facts.get("ranking"))),
        ("Versions", f"<pre>{escape(json.dumps(facts.get('versions', {}), indent=1))}</pre>"),
    ]
    head = "<h1>How true imagination is</h1><p class='lead'>Measured on episodes that no part was trained on.</p>"
    body = head + "".join(f"<section><h2>{escape(t)}</h2>{b}</section>" for t, b in sections if b)
    atomic_write_text(path, PAGE.substitute(title="worldgym fidelity", style=STYLE, body=body))
    return path


def _closed_loop(loop: Mapping[str, Any]) -> str:
    rows = [
        [escape(name)]
        + [str(row["confusion"][k]) for k in ("fp", "tp", "fn", "tn")]
        + [rate(row["confusion"][k]) for k in ("precision", "recall")]
        for name, row in loop["policies"].items()
    ]
    rows.append(
        ["all"]
        + [str(loop["confusion"][k]) for k in ("fp", "tp", "fn", "tn")]
        + [rate(loop[k]) for k in ("precision", "recall")]
    )
    return (
        "<p>Policies act on imagined frames until the judge sees success; then the same actions are executed in Real "
        "from the same start.</p>" + table(["policy", "FP", "TP", "FN", "TN", "precision", "recall"], rows)
    )


def _by_horizon(by_horizon: Mapping[str, Any]) -> str:
    def chart(title: str, pick: Callable[[Mapping[str, Any]], Sequence[float]], digits: int = 1) -> str:
        lines = []
        for name, row in by_horizon.items():
            pairs = [(i + 1, y) for i, y in enumerate(pick(row)) if y is not None]
            lines.append(Series(LABELS.get(name, name), [x for x, _ in pairs], [y for _, y in pairs]))
        drawn = line_chart(lines, x_label="steps imagined", y_format=lambda v: f"{v:.{digits}f}")
        return f"<h3>{escape(title)}</h3>{drawn}"

    part = lambda key: lambda row: [step[key] for step in row["position"]]  # noqa: E731
    return (
        chart("Position error of moved objects, median px", part("moved_objects"))
        + chart("Position error of the hand, median px", part("hand"))
        + chart("Moved objects that are not to be seen any more, share", part("lost_share_moved"), 2)
        + chart("PSNR, dB", lambda row: row["psnr"])
        + chart("SSIM", lambda row: row["ssim"], 2)
        + chart("EfficientNet-Lite0 feature distance", lambda row: row["features"], 2)
    )


def _splits(splits: Mapping[str, Any]) -> str:
    rows = []
    for name, row in splits.items():
        px = row["position_error_px"]
        rows.append(
            [escape(name), str(row["episodes"])]
            + [number(row[k], 1) for k in ("psnr_40", "first_frame_psnr_40")]
            + [number(px[k]) for k in ("all", "hand", "moved_objects", "lost_share")]
            + [number(row[k]) for k in ("outcome_agreement", "false_positive_rate")]
            + [str(row["drift_horizon"]), number(row["action_sensitivity"])]
            + [number(row[k]) for k in ("uncertainty_spearman", "failure_auroc")]
        )
    header = [
        "split", "episodes", "PSNR at 40", "first frame", "px", "hand px", "moved px", "lost", "agreement", "FPR",
        "drift horizon", "action sensitivity", "doubt ~ error", "AUROC",
    ]  # fmt: skip
    return table(header, rows) + (
        "<p class='note'>Position errors are medians at step 40. Agreement and false-positive rate: Real's actions "
        "replayed in imagination, judged every fifth step. Drift horizon: steps until the first frame repeated is as "
        "good in PSNR. Doubt ~ error: rank correlation of the model's own uncertainty with its error, steps 5 to 20; "
        "AUROC: that uncertainty as a sign of a wrong verdict.</p>"
    )


def _parts(parts: Mapping[str, Any] | None) -> str:
    if not parts:
        return ""
    keys = ("outcome_agreement", "false_positive_rate", "false_negative_rate", "position_error_px", "moved_objects_px")
    rows = [[escape(name)] + [number(row[k]) for k in keys] for name, row in parts.items()]
    header = ["up to the", "agreement", "FPR", "FNR", "px at 40", "moved px"]
    return (
        "<p>Verdicts and positions in Real's own frames (judge and probe alone), in the same frames coded and decoded "
        "(tokenizer), and in imagined ones (world model): what each part adds to the error.</p>" + table(header, rows)
    )


def _ranking(ranking: Mapping[str, Any] | None) -> str:
    if not ranking:
        return ""
    worlds = ["real", *(name for name in ranking["success"] if name != "real")]
    rates = [
        [escape(policy)] + [number(ranking["success"][world][i]) for world in worlds]
        for i, policy in enumerate(ranking["policies"])
    ]
    agreements = [
        [escape(name)] + [_interval(row[k]) for k in ("pearson", "spearman", "mmrv")]
        for name, row in ranking["agreement"].items()
    ]
    return (
        f"<p>Success on the same {ranking['starts']} starts, by world.</p>"
        + table(["policy", *map(escape, worlds)], rates)
        + table(["evaluator", "Pearson", "Spearman", "MMRV"], agreements)
    )


def _interval(row: Mapping[str, float]) -> str:
    return f"{number(row['mean'])} <small>[{number(row['low'])}, {number(row['high'])}]</small>"
