"""The printed form of a diagnosis: tables in plain text.

Example::

    text = lines(diagnose(recorder))     # one string for each line
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def lines(facts: dict[str, Any]) -> list[str]:
    """The lines of the tables, and the remarks.

    Args:
        facts: result of `diagnose`.
    """
    out = ["", *_specs(facts["specs"])]
    if facts["actions"]:
        out += [
            "",
            "actions, in recorded units; at bounds: share of values at or outside the bounds",
            *_ranges(facts["actions"]),
        ]
    if facts["state"]:
        out += ["", "state", *_ranges(facts["state"])]
    if facts["alignment"]:
        out += [
            "",
            "alignment of actions with the state: lag in steps (95 % interval); a positive lag: the state is later",
            *_alignment(facts["alignment"]),
        ]
    out += ["", *_pictures(facts), "", _idle(facts["idle"])]
    if facts["remarks"]:
        out += ["", *[f"remark: {text}" for text in facts["remarks"]]]
    return out + [""]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines; the first column is aligned to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _specs(specs: dict[str, Any]) -> list[str]:
    length = specs["length"]
    cameras = []
    for camera in specs["cameras"]:
        size, recorded = ("x".join(map(str, camera[key])) for key in ("size", "recorded_size"))
        cameras.append(f"{camera['name']} {size}" + (f" (recorded {recorded})" if size != recorded else ""))
    state = [
        field["name"] + (f":{field['role']}" if field["role"] != "other" else "") for field in specs["state"]
    ]
    used = specs["diagnosed_episodes"]
    part = f", {used} of them diagnosed" if used < specs["episodes"] else ""
    action = specs["action"]
    return [
        f"diagnosis of {specs['episodes']} episodes{part}, {specs['steps']} steps at {specs['fps']:g} per second",
        f"  lengths       {length['min']} to {length['max']} steps, median {length['median']:g}",
        f"  cameras       {', '.join(cameras) or 'none'}",
        f"  state         {', '.join(state) or specs['no_state']}",
        f"  actions       {'none' if action is None else ', '.join(action['names'])}",
    ]


def _ranges(items: Sequence[dict[str, Any]]) -> list[str]:
    keys = ("min", "q01", "q50", "q99", "max")
    bounded = "low" in items[0]
    head = [
        "dimension",
        "min",
        "1 %",
        "median",
        "99 %",
        "max",
        *(["bounds", "at bounds"] if bounded else []),
        "",
    ]
    rows = [head]
    for item in items:
        row = [item["name"], *(f"{item[key]:.4g}" for key in keys)]
        if bounded:
            row += [f"{item['low']:.4g} to {item['high']:.4g}", f"{item['at_bounds']:.1%}"]
        rows.append([*row, "constant" if item["constant"] else "switch" if item["switch"] else ""])
    return table(rows)


def _lag(lag: dict[str, Any] | None) -> list[str]:
    """Cells of a lag: value with interval, and correlation."""
    if lag is None:
        return ["-", "-"]
    ends = "" if lag["interval"] is None else f" ({lag['interval'][0]:+.1f} to {lag['interval'][1]:+.1f})"
    return [f"{lag['fine']:+.1f}{'*' if lag['at_end_of_search'] else ''}{ends}", f"{lag['r']:.2f}"]


def _alignment(items: Sequence[dict[str, Any]]) -> list[str]:
    rows = [["action", "looks like", "state field", "lag to deltas", "r", "lag to state", "r"]]
    for item in items:
        kind = item["kind"] if item["rule"] in (None, item["kind"]) else f"{item['kind']} ({item['rule']})"
        rows.append([item["name"], kind, item["state"] or "-", *_lag(item["delta"]), *_lag(item["absolute"])])
    ended = any(
        lag is not None and lag["at_end_of_search"] for i in items for lag in (i["delta"], i["absolute"])
    )
    return table(rows) + (["  * at the end of the search"] if ended else [])


def _pictures(facts: dict[str, Any]) -> list[str]:
    head = ["camera", "change 1 %", "median", "99 %", "repeated", "new per second", "lag to state", "r"]
    rows = [head]
    for item in facts["pictures"]:
        change = [f"{item['change'][key]:.3g}" for key in ("q01", "q50", "q99")]
        repeats = [f"{item['repeats']:.1%}", f"{item['effective_fps']:.3g}"]
        rows.append([item["camera"], *change, *repeats, *_lag(item["lag"])])
    out = [
        "pictures: mean absolute change of successive frames, 0 to 255; a positive lag: pictures lead the state"
    ]
    out += table(rows)
    if (lag := facts["action_pictures"]) is not None:
        value, r = _lag(lag)
        out.append(
            f"  the main camera changes {value} steps after the size of the action, r {r}; the convention is 0"
        )
    return out


def _idle(idle: dict[str, Any]) -> str:
    return (
        f"idle steps {idle['share']:.1%}: {idle['start']:.1%} at the start of episodes (median "
        f"{idle['median_start_s']:.2g} "
        f"s), {idle['end']:.1%} at the end (median {idle['median_end_s']:.2g} s), {idle['inside']:.1%} inside"
    )
