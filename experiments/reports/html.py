"""Writes `report.html`, one self-contained page about a demo run, from the files of the run folder.

The page can therefore be written again without repeating the computation, and it always agrees with `results.json`.

Example::

    from experiments.reports.html import write_report
    write_report("runs/demo")     # reads results.json, history.json, clips.json, videos/*.gif
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from experiments.reports.charts import IntervalRow, Series, interval_chart, line_chart, percent
from experiments.reports.html_template import ARM_LABELS, ARM_NOTES, EXPLANATION, PAGE, STYLE
from worldgym.utils.files import atomic_write_text, read_json

Row = Mapping[str, Any]


def write_report(folder: str | Path) -> Path:
    """Write `folder/report.html` from `results.json` and, if they exist, `history.json` and `clips.json`.

    Raises:
        FileNotFoundError: the folder has no results.json.
    """
    folder = Path(folder)
    if not (folder / "results.json").is_file():
        raise FileNotFoundError(f"no results.json in {folder}; type: worldgym demo --out {folder}")
    results = read_json(folder / "results.json", f"Type: worldgym demo --out {folder}")
    history = _read(folder / "history.json")
    clips = _read(folder / "clips.json")
    sections = [
        _headline(results),
        _section("What was done", _explanation(results, clips)),
        _section("Results in Real", _results(results)),
        _section("Reliability of imagined success", _confusion(results)),
        _section(
            "Videos: imagined next to real", _videos(folder, [c for c in clips if c["kind"] == "dream"])
        ),
        _section(
            "Before and after, in Real", _videos(folder, [c for c in clips if c["kind"] == "before_after"])
        ),
        _section("Learning curves", _curves(history)),
        _section("Cost", _cost(results)),
        _section("Next steps", _next_steps(folder, results)),
        _section("Settings and versions", _settings(folder, results)),
    ]
    page = PAGE.substitute(title="worldgym demo", style=STYLE, body="\n".join(s for s in sections if s))
    path = folder / "report.html"
    return atomic_write_text(path, page)


def _read(path: Path) -> list[dict[str, Any]]:
    return list(read_json(path, f"Type: worldgym demo --out {path.parent}")) if path.is_file() else []


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def rate(value: Row | None) -> str:
    """'68 % [62, 74]'; a dash for None."""
    if not value:
        return "-"
    return f"{percent(value['mean'])} <small>[{100 * value['low']:.0f}, {100 * value['high']:.0f}]</small>"


def points(value: Row) -> str:
    """'+16 [+9, +23]' percentage points."""
    return (
        f"{100 * value['mean']:+.1f} <small>[{100 * value['low']:+.1f}, {100 * value['high']:+.1f}]</small>"
    )


def difference(results: Row, a: str, b: str, mode: str) -> Row | None:
    """The entry of `differences` for two variants in one mode, or None."""
    found = (d for d in results["differences"] if (d["a"], d["b"], d.get("mode")) == (a, b, mode))
    return next(found, None)


def verdict(value: Row) -> str:
    """'better', 'worse' or 'no clear difference', depending on whether the interval excludes 0."""
    return "better" if value["low"] > 0 else "worse" if value["high"] < 0 else "no clear difference"


def _arm(results: Row, name: str) -> Row:
    return next((arm for arm in results["arms"] if arm["name"] == name), {})


def _headline(results: Row) -> str:
    before, after = _arm(results, "sft"), _arm(results, "imagined_rl")
    cards = []
    for mode, key, label in (
        ("greedy", "success", "greedy"),
        ("sampled", "success_sampled", "sampled, T = 1"),
    ):
        gain = difference(results, "imagined_rl", "sft", mode)
        if gain is None or not before or not after:
            continue
        kind = {"better": "good", "worse": "bad"}.get(verdict(gain), "")
        cards.append(
            f'<div class="{kind}"><b>{percent(before[key]["mean"])} &rarr; {percent(after[key]["mean"])}</b>'
            f"<span>success in Real, {label}: {points(gain)} points</span></div>"
        )
    precision = (results.get("gate") or {}).get("precision")
    if precision:
        cards.append(
            f"<div><b>{percent(precision['mean'])}</b><span>of the imagined successes executed in Real "
            "also succeeded there</span></div>"
        )
    minutes = results["seconds"].get("total", 0.0) / 60
    return (
        "<h1>A policy trained in imagination</h1>"
        f'<p class="lead">worldgym demo, seed {results["seed"]}, {minutes:.1f} minutes. All rates have 95 % '
        f"intervals, from {after['success']['episodes'] if after else 0} episodes with the same start "
        f'states for every policy.</p><div class="headline">{"".join(cards)}</div>'
    )


def _explanation(results: Row, clips: Sequence[Row]) -> str:
    settings = results.get("settings", {})
    return Template(EXPLANATION).substitute(
        instruction=escape(
            clips[0]["instruction"] if clips else "pick up the red cube and put it in the tray"
        ),
        group=settings.get("group", "several"),
        iterations=settings.get("iterations", "Some"),
        judge=escape(str(results["judge"])),
    )


def _results(results: Row) -> str:
    tasks = list(next((arm["by_task"] for arm in results["arms"]), {}))
    sharp = (results.get("settings") or {}).get("sharpen_temperature", 0.5)
    head = "".join(f'<th class="n">{escape(t.replace("_", " "))}<br>greedy</th>' for t in tasks)
    body, chart = [], []
    for arm in results["arms"]:
        name = arm["name"]
        label = escape(ARM_LABELS.get(name, name))
        note = ARM_NOTES.get(name, "") + (f" (T = {sharp})" if name == "sft_sharpened" else "")
        cells = "".join(f'<td class="n">{rate(arm["by_task"].get(t))}</td>' for t in tasks)
        key = ' class="key"' if name == "imagined_rl" else ""
        body.append(
            f"<tr{key}><td>{label}<br><small>{escape(note)}</small></td>"
            f"<td class='n'>{rate(arm['success'])}</td><td class='n'>{rate(arm['success_sampled'])}</td>{cells}</tr>"
        )
        for group, field in enumerate(("success", "success_sampled")):
            value = arm[field]
            tag = ARM_LABELS.get(name, name) if group == 0 else ""
            chart.append(IntervalRow(tag, value["mean"], value["low"], value["high"], group))
    rows = "".join(
        f"<tr><td>{escape(ARM_LABELS.get(d['a'], d['a']))} &minus; "
        f"{escape(ARM_LABELS.get(d['b'], d['b']))}</td>"
        f"<td>{escape(str(d.get('mode', '')).replace('_', ' '))}</td><td class='n'>{points(d)}</td>"
        f'<td class="{ {"better": "good", "worse": "bad"}.get(verdict(d), "") }">{verdict(d)}</td></tr>'
        for d in results["differences"]
    )
    return (
        interval_chart(chart, groups=("greedy", "sampled"))
        + '<div class="scroll"><table><tr><th>policy</th><th class="n">greedy</th><th class="n">sampled</th>'
        + f"{head}</tr>"
        + "".join(body)
        + "</table></div><h3>Paired differences, in percentage points</h3>"
        + '<div class="scroll"><table><tr><th>comparison</th><th>mode</th><th class="n">difference</th>'
        + f"<th>result</th></tr>{rows}</table></div>"
        + '<p class="note">Rates have Wilson intervals; differences have bootstrap intervals over the same start '
        "states. One policy counts as better than another only if the interval of the difference excludes 0.</p>"
    )


def _confusion(results: Row) -> str:
    table, gate = results["confusion"], results.get("gate") or {}
    total = sum(table.values())
    if not total:
        return ""
    rates = ", ".join(f"{name} {rate(gate.get(name))}" for name in ("precision", "recall") if gate.get(name))
    by_task = "".join(
        f"<tr><td>{escape(t.replace('_', ' '))}</td>"
        + "".join(f'<td class="n">{row[k]}</td>' for k in ("fp", "tp", "fn", "tn"))
        + f'<td class="n">{rate(row["precision"])}</td><td class="n">{rate(row["recall"])}</td></tr>'
        for t, row in (gate.get("by_task") or {}).items()
    )
    return (
        f"<p>The improved policy acted on imagined frames from {total} held-out starts. Then the <i>same "
        "actions</i> were executed in Real from the same starts. A false positive is a success in imagination that "
        f"fails in Real. Many false positives indicate reward hacking.</p><p>{rates}</p>"
        '<div class="scroll"><table class="matrix"><tr><th></th><th>failure in Real</th>'
        "<th>success in Real</th></tr>"
        f'<tr><th>imagined success</th><td class="wrong"><b>{table["fp"]}</b>false positives</td>'
        f'<td class="right"><b>{table["tp"]}</b>true positives</td></tr>'
        f'<tr><th>imagined failure</th><td class="right"><b>{table["tn"]}</b>true negatives</td>'
        f'<td class="wrong"><b>{table["fn"]}</b>false negatives</td></tr></table></div>'
        + (
            '<h3>Results by task</h3><div class="scroll"><table><tr><th>task</th><th class="n">FP</th>'
            '<th class="n">TP</th><th class="n">FN</th><th class="n">TN</th><th class="n">precision</th>'
            '<th class="n">recall</th></tr>'
            f"{by_task}</table></div>"
            if by_task
            else ""
        )
    )


def _videos(folder: Path, clips: Sequence[Row]) -> str:
    names = {"fp": "false positive", "tp": "true positive", "fn": "false negative", "tn": "true negative"}
    figures = []
    for clip in clips:
        path = folder / clip["gif"]
        if not path.is_file():
            continue
        data = base64.b64encode(path.read_bytes()).decode()
        kind = clip.get("verdict", "")
        tag = f'<span class="tag {escape(kind)}">{names[kind]}</span> ' if kind in names else ""
        figures.append(
            f'<figure><img alt="{escape(clip["caption"])}" src="data:image/gif;base64,{data}">'
            f"<figcaption>{tag}{escape(clip['caption'])}</figcaption></figure>"
        )
    return f'<div class="videos">{"".join(figures)}</div>' if figures else ""


def _curves(history: Sequence[Row]) -> str:
    if not history:
        return ""
    x = [row["iteration"] for row in history]

    def series(label: str, key: str, smooth: bool = True) -> Series:
        return Series(label, x, [_number(row.get(key)) for row in history], smooth)

    success = line_chart(
        [
            series(
                "imagined success during training (sampled; dots: iterations, line: running mean)",
                "success_rate",
            )
        ],
        x_label="iteration",
        y_range=(0.0, 1.0),
    )
    small = [
        ("Entropy of the sampled goal positions (nats)", "goal_entropy"),
        ("Fraction of clipped probability ratios", "goal_clip_fraction"),
        ("Groups with both successes and failures", "groups_kept"),
        ("Imagined steps until success", "ep_len_mean"),
    ]
    more = "".join(
        f"<div><h3>{title}</h3>"
        + line_chart(
            [series("", key)], x_label="iteration", y_format=lambda v: f"{v:.2g}", width=420, height=190
        )
        + "</div>"
        for title, key in small
        if any(math.isfinite(_number(row.get(key))) for row in history)
    )
    return f'{success}<div class="two">{more}</div>'


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _cost(results: Row) -> str:
    budget, seconds = results["budget"], dict(results["seconds"])
    total = seconds.pop("total", sum(seconds.values()))
    words = {
        "real_episodes": "real episodes for training the bundled models",
        "imagined_steps": "imagined steps used for training",
        "soft_steps": "steps in a misspecified simulator",
        "evaluation_steps": "steps in Real, for measurement only",
        "audit_episodes": "episodes in Real, for audits during training",
        "policy_updates": "policy updates",
    }
    left = "".join(
        f'<tr><td>{words.get(k, escape(k.replace("_", " ")))}</td><td class="n">'
        f"{'not recorded' if v is None else f'{v:,}'}</td></tr>"
        for k, v in budget.items()
    )
    right = "".join(
        f'<tr><td>{escape(k.replace("_", " "))}</td><td class="n">{v:,.1f} s</td></tr>'
        for k, v in seconds.items()
    )
    speed = results.get("imagined_steps_per_second")
    note = f'<p class="note">Imagination speed: {speed:,.0f} frames per second.</p>' if speed else ""
    return (
        f'<div class="two"><table>{left}</table><table>{right}<tr class="key"><td>total</td>'
        f'<td class="n">{total:,.1f} s</td></tr></table></div>{note}'
    )


def _next_steps(folder: Path, results: Row) -> str:
    out = escape(folder.as_posix())
    seed = int(results["seed"]) + 1
    return (
        "<p>All commands below run on the same two cores.</p><pre><code>"
        f"worldgym demo --seed {seed} --out {out}-seed{seed}      # repeat with another seed\n"
        f"worldgym eval --policy {out}/policy sft --split unseen_instruction --episodes 210\n"
        f"worldgym bench closed-loop --policies {out}/policy sft --episodes 100\n"
        f"tensorboard --logdir {out}\n"
        "worldgym train world-model --help               # a better world model helps most"
        "</code></pre>"
        "<p>In Python, the world model is available as a Gymnasium environment: "
        '<code>gym.make("worldgym/Imagined-v0")</code>.</p>'
    )


def _settings(folder: Path, results: Row) -> str:
    versions = "".join(
        f'<tr><td>{escape(str(k))}</td><td class="n">{escape(str(v))}</td></tr>'
        for k, v in results["versions"].items()
    )
    config = folder / "config.yaml"
    text = f"<pre><code>{escape(config.read_text())}</code></pre>" if config.is_file() else ""
    return f"<details><summary>show</summary><table>{versions}</table>{text}</details>"
