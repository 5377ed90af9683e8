"""The HTML page of `worldgym bench fidelity`: errors of the world model by horizon, and reliability of verdicts.

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
    "shuffled_actions": "actions of another episode",
}


def write_fidelity_report(facts: Mapping[str, Any], path: Path | str) -> Path:
    """Write the results of `bench fidelity` as one self-contained page."""
    path = Path(path)
    sections = [
        ("Imagined success against success in Real, closed loop", _closed_loop(facts["closed_loop"])),
        ("Errors by horizon, on held-out episodes", _by_horizon(facts["by_horizon"])),
        ("Results by split", _splits(facts["by_split"])),
        ("Errors by part", _parts(facts["by_split"]["seen"].get("by_part"))),
        ("Ranking of policies", _ranking(facts.get("ranking"))),
        ("Versions", f"<pre>{escape(json.dumps(facts.get('versions', {}), indent=1))}</pre>"),
    ]
    head = "<h1>Fidelity of the world model</h1><p class='lead'>Measured on episodes that no part was trained on.</p>"
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
        "<p>Policies act on imagined frames until the judge reports success. Then the same actions are executed in "
        "Real from the same start.</p>" + table(["policy", "FP", "TP", "FN", "TN", "precision", "recall"], rows)
    )


def _by_horizon(by_horizon: Mapping[str, Any]) -> str:
    def chart(title: str, pick: Callable[[Mapping[str, Any]], Sequence[float]], digits: int = 1) -> str:
        lines = []
        for name, row in by_horizon.items():
            pairs = [(i + 1, y) for i, y in enumerate(pick(row)) if y is not None]
            lines.append(Series(LABELS.get(name, name), [x for x, _ in pairs], [y for _, y in pairs]))
        drawn = line_chart(lines, x_label="imagined steps", y_format=lambda v: f"{v:.{digits}f}")
        return f"<h3>{escape(title)}</h3>{drawn}"

    part = lambda key: lambda row: [step[key] for step in row["position"]]  # noqa: E731
    return (
        chart("Position error of moved objects, median px", part("moved_objects"))
        + chart("Position error of the hand, median px", part("hand"))
        + chart("Fraction of moved objects that are no longer visible", part("lost_share_moved"), 2)
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
        "split", "episodes", "PSNR at 40", "PSNR of first frame", "all px", "hand px", "moved px", "lost", "agreement",
        "FPR", "drift horizon", "action sensitivity", "uncertainty ~ error", "AUROC",
    ]  # fmt: skip
    return table(header, rows) + (
        "<p class='note'>Position errors (px) are medians at step 40. Agreement and FPR (false-positive rate): actions "
        "of real episodes are replayed in imagination and judged every fifth step. Drift horizon: number of steps "
        "until repeating the first frame reaches the same PSNR. Uncertainty ~ error: rank correlation of the model's "
        "uncertainty with its error, steps 5 to 20. AUROC: this uncertainty as a predictor of wrong verdicts.</p>"
    )


def _parts(parts: Mapping[str, Any] | None) -> str:
    if not parts:
        return ""
    keys = ("outcome_agreement", "false_positive_rate", "false_negative_rate", "position_error_px", "moved_objects_px")
    rows = [[escape(name)] + [number(row[k]) for k in keys] for name, row in parts.items()]
    header = ["up to", "agreement", "FPR", "FNR", "px at 40", "moved px"]
    return (
        "<p>Errors of verdicts and positions that each part adds: in real frames (judge and probe only), in the same "
        "frames encoded and decoded (tokenizer), and in imagined frames (world model).</p>" + table(header, rows)
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
        f"<p>Success rates from the same {ranking['starts']} starts in each world.</p>"
        + table(["policy", *map(escape, worlds)], rates)
        + table(["evaluator", "Pearson", "Spearman", "MMRV"], agreements)
    )


def _interval(row: Mapping[str, float]) -> str:
    return f"{number(row['mean'])} <small>[{number(row['low'])}, {number(row['high'])}]</small>"
