"""The page and the printed table of `worldgym bench optimism`.

Example::

    write_optimism_report(facts, films, Path("runs/optimism.html"))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from experiments.reports.audit import films_of
from experiments.reports.charts import IntervalRow, interval_chart
from experiments.reports.html_template import PAGE, STYLE
from experiments.reports.tables import table as html_table
from worldgym.utils.files import atomic_write_text

UNITS = {"missed_grasp": "cm", "early_release": "steps", "late_close": "steps", "frozen": "", "reversed": ""}


def lines(facts: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Rows of the tables: the world model with the judge, in all and by family, severity and task; the judge alone."""
    imagined, judge = facts["parts"]["world model"], facts["parts"]["judge"]
    rows = [("all", imagined["all"]), ("all, frames from Real", judge["all"])]
    for family, row in imagined["by_family"].items():
        if family == "none":
            rows.append(("unperturbed", row))
            continue
        rows.append((family.replace("_", " "), row))
        if len(row["by_severity"]) > 1:
            levels = row["by_severity"].items()
            rows += [(f"  {level} {UNITS.get(family, '')}".rstrip(), each) for level, each in levels]
    return rows + [(f"task {task}", row) for task, row in imagined["by_task"].items()]


def _rate(value: Mapping[str, float] | None, digits: int = 2) -> str:
    if value is None:
        return "-"
    return f"{value['mean']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def table(facts: Mapping[str, Any]) -> str:
    """The printed table."""
    head = f"  {'':<24}{'sequences':>10}{'failures':>10}" + "".join(
        f"{name:>22}" for name in ("optimism", "recognised", "AUROC", "gap")
    )
    text = [f"{facts['starts']} starts, {facts['sequences']} sequences, judge {facts['judge']}", head]
    for name, row in lines(facts):
        values = "".join(f"{_rate(row[key]):>22}" for key in ("optimism", "recognised", "auroc", "gap"))
        text.append(f"  {name:<24}{row['sequences']:>10}{row['failures']:>10}{values}")
    text.append(
        "  optimism: failing sequences judged successful; recognised: successful ones judged successful;\n"
        "  AUROC and gap: of the judge's highest probability, successes against failures"
    )
    return "\n".join(text)


def write_optimism_report(facts: Mapping[str, Any], films: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Write the results, and videos of false successes, as one self-contained page."""
    imagined = facts["parts"]["world model"]["by_family"]
    bars = [
        IntervalRow(f"{family.replace('_', ' ')} {level} {UNITS.get(family, '')}".strip(), *_ends(each["optimism"]))
        for family, row in imagined.items() if family != "none"
        for level, each in row["by_severity"].items() if each["optimism"] is not None
    ]  # fmt: skip
    head = ["", "sequences", "failures", "optimism", "recognised", "AUROC", "gap"]
    rows = [
        [escape(name), str(row["sequences"]), str(row["failures"])]
        + [_rate(row[key]) for key in ("optimism", "recognised", "auroc", "gap")]
        for name, row in lines(facts)
    ]
    sections = [
        ("Failing sequences judged successful, by perturbation", interval_chart(bars) if bars else "none failed"),
        ("All figures", html_table(head, rows)),
        ("The surest false successes", films_of(films)),
    ]
    body = (
        "<h1>Optimism of the world model</h1><p class='lead'>Action sequences from "
        f"{facts['starts']} start states, executed in Real and imagined; judge {escape(facts['judge'])}, threshold "
        f"{facts['threshold']:.2f}. Intervals resample the starts.</p>"
    )
    body += "".join(f"<section><h2>{escape(title)}</h2>{text}</section>" for title, text in sections if text)
    return atomic_write_text(path, PAGE.substitute(title="worldgym bench optimism", style=STYLE, body=body))


def _ends(value: Mapping[str, float]) -> tuple[float, float, float]:
    return value["mean"], value["low"], value["high"]
