"""The page of `worldgym coevolve`: success, gap and the world model by round and by episode spent in Real.

Example::

    write_coevolution_report(rows, Path("runs/vlaw/report.html"), "vlaw")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from experiments.reports.charts import Series, line_chart
from experiments.reports.html_template import PAGE, STYLE
from experiments.reports.tables import table
from worldgym.utils.files import atomic_write_text

Row = Mapping[str, Any]


def write_coevolution_report(
    rows: Sequence[Row], path: Path, recipe: str, result: Mapping[str, Any] | None = None
) -> Path:
    """Write the page of a run, from the rows of its rounds and, if it has ended, its result."""
    body = [
        f"<h1>Co-evolution: {escape(recipe)}</h1>",
        f"<p class='lead'>{escape(_headline(rows, result))}</p>",
    ]
    for title, text in (
        ("Success by episodes in Real", _chart(rows)),
        ("Rounds", _rounds(rows)),
        ("False successes by task", _false(rows)),
        ("What the world model learned", _learned(rows)),
    ):
        body.append(f"<section><h2>{escape(title)}</h2>{text}</section>")
    return atomic_write_text(
        path, PAGE.substitute(title="worldgym coevolve", style=STYLE, body="\n".join(body))
    )


def percent(value: float | None) -> str:
    """`84.3`, or a dash."""
    return "-" if value is None else f"{100 * value:.1f}"


def _interval(rate: Mapping[str, float]) -> str:
    return f"{percent(rate['mean'])} [{percent(rate['low'])}, {percent(rate['high'])}]"


def _headline(rows: Sequence[Row], result: Mapping[str, Any] | None) -> str:
    if result is None:
        return f"{len(rows) - 1} rounds done; the run goes on."
    final = result["final"]
    text = (
        f"Best round: {result['best']}, after {result['real_episodes']} episodes of the policy in Real. On fresh "
        f"starts: first policy {_interval(final['first'])} %, best {_interval(final['best'])} %"
    )
    if final["difference"] is not None:
        text += f", difference {_interval(final['difference'])} points (paired)"
    return f"{text}. Stopped because {result['stopped']}."


def _chart(rows: Sequence[Row]) -> str:
    x = [row["real_episodes"] for row in rows]
    true = Series(
        "true success, greedy", x, [row["true"]["mean"] for row in rows],
        low=[row["true"]["low"] for row in rows], high=[row["true"]["high"] for row in rows],
    )  # fmt: skip
    closed = [row for row in rows if row["imagined"] is not None]
    others = [
        Series(label, [row["real_episodes"] for row in closed], [row[name] for row in closed])
        for label, name in (("imagined success", "imagined"), ("the same actions in Real", "executed"))
    ]
    return line_chart([true, *others], x_label="episodes of the policy in Real", y_range=(0.0, 1.0))


def _rounds(rows: Sequence[Row]) -> str:
    head = [
        "round",
        "episodes in Real",
        "true success, %",
        "imagined, %",
        "gap",
        "precision, %",
        "recall, %",
        "then",
    ]
    lines = []
    for row in rows:
        gap = "-" if row["gap"] is None else f"{100 * row['gap']:+.1f}"
        rates = [percent(row["imagined"]), gap, percent(row["precision"]), percent(row["recall"])]
        after = row["stop"] or ("measured before the first round" if row["round"] == 0 else "went on")
        lines.append([str(row["round"]), str(row["real_episodes"]), _interval(row["true"]), *rates, after])
    return table(head, lines)


def _false(rows: Sequence[Row]) -> str:
    names = ("fp", "tp", "fn", "tn")
    lines = [
        [str(row["round"]), task, *(str(counts[name]) for name in names)]
        for row in rows
        for task, counts in row["by_task"].items()
    ]
    return table(
        ["round", "task", "false positives", "true positives", "false negatives", "true negatives"], lines
    )


def _learned(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        for when in ("before", "after"):
            if row["world_model"] is not None:
                facts = row["world_model"][when]
                counts = [str(facts[name]) for name in ("fp", "tp", "fn", "tn")]
                lines.append([str(row["round"]), when, f"{facts['psnr']:.2f}", *counts])
    if not lines:
        return "<p class='note'>No round has collected episodes.</p>"
    note = (
        "<p class='note'>The policy's new episodes, imagined from their first frames by the world model before and "
        "after the round; after it, they were trained on. Verdicts of the judge against what happened in Real.</p>"
    )
    head = [
        "round",
        "parts",
        "PSNR, dB",
        "false positives",
        "true positives",
        "false negatives",
        "true negatives",
    ]
    return note + table(head, lines)
