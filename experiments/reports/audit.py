"""The HTML page of `worldgym audit`: comparison of judges, their calibration, and their worst false positives.

The worst false positives are those with the highest predicted probability: the judge reports success in imagination,
but the same actions from the same start fail in Real. Each is shown as imagined next to real video, up to the check at
which the judge reported success.

Example::

    films = worst_false_positives(seen, "bundled", 0.8, out=Path("runs/audit"))
    write_audit_report(facts, films, "runs/audit.html")
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from experiments.reports.charts import Series, line_chart
from experiments.reports.html import rate
from experiments.reports.html_template import PAGE, STYLE
from experiments.reports.tables import number, table
from experiments.reports.videos import save_gif, side_by_side
from worldgym.evaluation.judge_audit import JudgeAudit
from worldgym.utils.files import atomic_write_text


def worst_false_positives(
    seen: Mapping[str, JudgeAudit], judge: str, level: float, out: Path, count: int = 4
) -> list[dict[str, Any]]:
    """Write `out/*.gif` of the most confident false positives of `judge`; returns rows with `gif` and `caption`."""
    found = []
    for policy, watched in seen.items():
        if watched.imagined is None or watched.frames is None:
            continue
        success, real, valid = watched.outcomes(judge, level)
        for row in np.flatnonzero(success & ~real & valid):
            stop = int((watched.scores[judge][row] >= level).argmax())
            found.append((float(watched.scores[judge][row, stop]), policy, int(row), stop))
    films = []
    for p, policy, row, stop in sorted(found, key=lambda item: -item[0])[:count]:
        watched = seen[policy]
        assert watched.imagined is not None and watched.frames is not None
        frames = side_by_side(
            watched.imagined[row, : stop + 1], watched.frames[row, : stop + 1], "imagined", "real", left_good=True,
            right_good=False,
        )  # fmt: skip
        safe = "".join(c if c.isalnum() else "_" for c in f"{judge}-{policy}-{row}")
        out.mkdir(parents=True, exist_ok=True)
        caption = f"{watched.instructions[row]} ({policy}, start {watched.starts[row].seed}; judged {p:.2f})"
        films.append({"gif": str(save_gif(frames, out / f"{safe}.gif", fps=2)), "judge": judge, "caption": caption})
    return films


def write_audit_report(facts: Mapping[str, Any], films: Sequence[Mapping[str, Any]], path: Path | str) -> Path:
    """Write the results of an audit as one self-contained page."""
    path = Path(path)
    sections = [
        ("Judges", _judges(facts)),
        ("Judged success in imagination against true success in Real", _confusions(facts)),
        ("Imagined minus true success", _gaps(facts)),
        ("Calibration: true rate against predicted probability", _calibration(facts["judges"])),
        ("Agreement between judges", _agreement(facts["agreement"])),
        ("Worst false positives", films_of(films)),
        ("Versions", f"<pre>{escape(json.dumps(facts.get('versions', {}), indent=1))}</pre>"),
    ]
    head = (
        "<h1>Comparison of judges</h1><p class='lead'>All judges score the same imagined episodes; their actions are "
        f"executed in Real. {facts['episodes']} episodes. Reward from {escape(facts['rewarded'])}.</p>"
    )
    body = head + "".join(f"<section><h2>{escape(t)}</h2>{b}</section>" for t, b in sections if b)
    atomic_write_text(path, PAGE.substitute(title="worldgym audit", style=STYLE, body=body))
    return path


def _judges(facts: Mapping[str, Any]) -> str:
    header = [
        "judge", "threshold", "balanced accuracy, Real", "wrong instructions rejected", "FPR imagined",
        "recall imagined", "ms per episode", "no verdict",
    ]  # fmt: skip
    keys = (
        "balanced_accuracy_real", "swapped_instruction_rejection", "false_positive_rate_imagined", "recall_imagined",
    )  # fmt: skip
    return table(header, [
        [escape(name), number(row["threshold"])] + [number(row[k], 3) for k in keys]
        + [number(row["ms_per_episode"], 1), str(row["invalid"])]
        for name, row in facts["judges"].items()
    ])  # fmt: skip


def _confusions(facts: Mapping[str, Any]) -> str:
    rows = []
    for name, judge in facts["judges"].items():
        for task, c in [*judge["by_task"].items(), ("all", judge["confusion"])]:
            counts = [str(c[k]) for k in ("fp", "tp", "fn", "tn")]
            rows.append([escape(name), escape(task), *counts, rate(c["precision"]), rate(c["recall"])])
    return table(["judge", "task", "FP", "TP", "FN", "TN", "precision", "recall"], rows)


def _gaps(facts: Mapping[str, Any]) -> str:
    gaps = [("all", facts["imagined_minus_true"])]
    gaps += [(name, row["imagined_minus_true"]) for name, row in facts["policies"].items()]
    return table(["policy", "difference, percentage points"], [
        [escape(name), "-" if gap is None else f"{100 * gap['mean']:+.1f} "
         f"<small>[{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]</small>"]
        for name, gap in gaps
    ])  # fmt: skip


def _calibration(judges: Mapping[str, Any]) -> str:
    lines = [Series("perfect calibration", [0.0, 1.0], [0.0, 1.0])]
    lines += [
        Series(name, [r["stated"] for r in row["calibration"]], [r["true"] for r in row["calibration"]])
        for name, row in judges.items()
    ]
    return line_chart(lines, x_label="predicted success probability of a check", y_range=(0.0, 1.0))


def _agreement(pairs: Mapping[str, float | None]) -> str:
    return table(["judges", "same verdict"], [[escape(k), number(v, 3)] for k, v in pairs.items()]) if pairs else ""


def films_of(films: Sequence[Mapping[str, Any]]) -> str:
    """Videos of false positives, as written by `worst_false_positives`."""
    figures = []
    for film in films:
        data = base64.b64encode(Path(film["gif"]).read_bytes()).decode()
        caption = escape(f"{film['judge']}: {film['caption']}")
        figures.append(
            f'<figure><img alt="{caption}" src="data:image/gif;base64,{data}">'
            f'<figcaption><span class="tag fp">false positive</span> {caption}</figcaption></figure>'
        )
    return f'<div class="videos">{"".join(figures)}</div>' if figures else ""
