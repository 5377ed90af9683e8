"""Remarks of a diagnosis: what a fact means for a world model, and the option or the change that mends it.

Example::

    remarks(facts, alignment)      # ["camera front: 48 % of ... import with --fps 15 --actions absolute", ...]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from worldgym.data.diagnosis.alignment import Alignment

PICTURE_R = 0.2  # least correlation of picture change and motion for a remark on their lag
FAR = 0.5  # steps by which the whole interval of a lag must differ from the convention
CUT = 0.05  # share of values that the bounds cut
UNUSED = 0.1  # share of the range of the bounds that a dimension uses at least
REPEATS, IDLE = 0.1, 0.1
SHOWN = 8  # names in a list


def remarks(facts: dict[str, Any], alignment: Sequence[Alignment]) -> list[str]:
    """All remarks, the most important ones first.

    Args:
        facts: the other results of `diagnose`.
        alignment: alignment of the action dimensions.
    """
    rules = _rules(alignment)
    out = _no_state(facts)
    out += _action_lags(alignment)
    out += _picture_lags(facts) + _action_pictures(facts)
    out += _repeats(facts, rules)
    out += _ranges(facts)
    out += _idle(facts)
    return out + _jumps(facts)


def listed(names: Sequence[str]) -> str:
    """The names, at most `SHOWN`, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _rules(alignment: Sequence[Alignment]) -> str:
    """Arguments of `--actions` that fit the kinds; RULE where they are not known."""
    rules = {item.name: item.rule for item in alignment if item.kind != "constant"}
    known = [rule for rule in rules.values() if rule is not None]
    if not known:
        return "RULE (absolute, delta or rate, whichever the actions are)"
    most = max(sorted(set(known)), key=known.count)
    others = [f"{name}={rule}" for name, rule in rules.items() if rule not in (None, most)]
    open_names = [name for name, rule in rules.items() if rule is None]
    note = f" (the rule of {listed(open_names)} is not known from the data; check it)" if open_names else ""
    return " ".join([most, *others]) + note


def _no_state(facts: dict[str, Any]) -> list[str]:
    reason = facts["specs"]["no_state"]
    if reason is None:
        return []
    return [
        f"{reason}: the kind and the lag of the actions, and the lag between pictures and states, cannot be measured; "
        "idle steps and repeated pictures are judged by the pictures alone. If the source has a feature with "
        "proprioception, name it with --state-key"
    ]


def _action_lags(alignment: Sequence[Alignment]) -> list[str]:
    groups: dict[tuple[str, int], list[Alignment]] = {}
    half: list[Alignment] = []
    slow: list[Alignment] = []
    for item in alignment:
        if (lag := item.best) is None:
            continue
        if lag.edge and lag.lag > 0 and item.kind == "absolute":
            slow.append(item)
        elif item.kind == "delta" and -0.75 <= lag.fine <= -0.25:
            half.append(item)
        elif abs(lag.off) > FAR:
            groups.setdefault((item.kind, round(lag.fine) or (1 if lag.fine > 0 else -1)), []).append(item)
    out = []
    for (kind, number), items in sorted(groups.items()):
        names = listed([item.name for item in items])
        steps = f"{abs(number)} step{'s' if abs(number) != 1 else ''}"
        if number < 0:
            out.append(
                f"actions {names} are logged {steps} after the {'motion' if kind == 'delta' else 'state'} that they "
                f"describe ({kind}): action t must lead from frame t to t+1. Import with --action-shift {number} "
                f"(row t gets the action of row t+{-number})"
            )
        elif kind == "delta":
            out.append(
                f"actions {names} are followed by the motion only {steps} later (delta): action t must lead from frame "
                f"t to t+1. Import with --action-shift {number} (row t gets the action of row t-{number}). If it is "
                "the delay of the robot, a lower --fps makes it a smaller part of a step"
            )
        else:
            out.append(
                f"actions {names} are absolute targets that the state reaches {steps} later than the next row. For "
                "targets of a controller this delay is usual and needs no change; a lower --fps makes it a smaller "
                f"part of a step. If the log is early, import with --action-shift {number}"
            )
    if slow:
        out.append(
            f"actions {listed([item.name for item in slow])} are absolute targets that the state reaches at least "
            f"{slow[0].best.lag if slow[0].best else 0} steps later: a slow drive. A lower --fps makes the delay a "
            "smaller part of a step"
        )
    if half:
        out.append(
            f"actions {listed([item.name for item in half])} agree with the motion before and after their row (lag "
            "-0.5): velocities that were measured at the row, not commands. To make them lead from row t to t+1, "
            "replace action t in the source by the mean of the actions t and t+1"
        )
    return out


def _picture_lags(facts: dict[str, Any]) -> list[str]:
    out = []
    for entry in facts["pictures"]:
        lag = entry["lag"]
        if lag is None:
            continue
        if abs(lag["r"]) < PICTURE_R or lag["r"] < 0:
            out.append(
                f"camera {entry['camera']}: its changes agree too little with the state motion (r {lag['r']:.2f}) to "
                "tell a lag; the camera moves by itself, sees little of the robot, or the rows do not belong together"
            )
            continue
        low, high = lag["interval"] or (lag["fine"], lag["fine"])
        if low <= FAR and high >= -FAR:
            continue
        steps = abs(round(lag["fine"])) or 1
        unit = f"{steps} row{'s' if steps > 1 else ''}"
        if lag["fine"] > 0:
            out.append(
                f"camera {entry['camera']}: pictures lead the state by {unit} (lag {lag['fine']:+.1f}). Import with "
                f"--picture-shift {steps} (row t gets the picture of row t-{steps}); if the times of rows and frames "
                "are recorded, try --frames timestamp"
            )
        else:
            out.append(
                f"camera {entry['camera']}: pictures follow the state by {unit} (lag {lag['fine']:+.1f}), as with a "
                f"camera or encoder that is late. Import with --picture-shift -{steps} (row t gets the picture of row "
                f"t+{steps}); if the times of rows and frames are recorded, try --frames timestamp"
            )
    return out


def _action_pictures(facts: dict[str, Any]) -> list[str]:
    """The lag between actions and pictures; only without states, which tell more."""
    lag = facts["action_pictures"]
    if facts["specs"]["no_state"] is None or lag is None or lag["r"] < PICTURE_R:
        return []
    low, high = lag["interval"] or (lag["fine"], lag["fine"])
    if low <= FAR and high >= -FAR:
        return []
    steps = abs(round(lag["fine"])) or 1
    late = lag["fine"] > 0
    return [
        f"the pictures change {steps} step{'s' if steps > 1 else ''} {'after' if late else 'before'} the actions (lag "
        f"{lag['fine']:+.1f}): "
        f"{'the robot reacts late, or the log is early' if late else 'the actions are logged late'}. "
        f"Import with --action-shift {steps if late else -steps}"
        + (
            "; a delay of the robot may also stay, but the world model then needs frames from before it"
            if late
            else ""
        )
    ]


def _repeats(facts: dict[str, Any], rules: str) -> list[str]:
    out = []
    fps = facts["specs"]["fps"]
    for entry in facts["pictures"]:
        if entry["repeats"] < REPEATS:
            continue
        every = max(2, round(1.0 / max(1.0 - entry["repeats"], 0.05)))
        out.append(
            f"camera {entry['camera']}: {entry['repeats']:.0%} of the steps with motion repeat the picture before, so "
            f"the camera gives about {entry['effective_fps']:.3g} new pictures per second at {fps:g} rows per second. "
            f"Import with --fps {fps / every:g} --actions {rules}"
        )
    return out


def _ranges(facts: dict[str, Any]) -> list[str]:
    out = []
    constant = [item["name"] for item in facts["actions"] if item["constant"]]
    if constant:
        out.append(
            f"actions {listed(constant)} never change: a world model cannot learn what they do. Leave the feature out "
            "with --action-key, or the dimension out of the source"
        )
    fixed = [item["name"] for item in facts["state"] if item["constant"]]
    if fixed:
        out.append(f"state fields {listed(fixed)} never change; leave the feature out with --state-key")
    cut = [item for item in facts["actions"] if not item["switch"] and item["cut"] > CUT]
    if cut:
        names = listed([f"{item['name']} ({item['cut']:.0%})" for item in cut])
        out.append(
            f"actions {names} are cut at their bounds: import with --bounds minmax, or check for wrong values with the "
            "quantiles above"
        )
    wide = [
        item["name"] for item in facts["actions"]
        if not item["constant"] and not item["switch"]
        and item["q99"] - item["q01"] < UNUSED * (item["high"] - item["low"])
    ]  # fmt: skip
    if wide:
        out.append(
            f"actions {listed(wide)}: 98 % of the values use less than {UNUSED:.0%} of the bounds, so most are close "
            "to each other after normalising. If the rare large values are errors, import with --bounds quantiles"
        )
    return out


def _idle(facts: dict[str, Any]) -> list[str]:
    idle, out = facts["idle"], []
    if idle["wholly_idle_episodes"]:
        numbers = [str(number) for number in idle["wholly_idle_episodes"]]
        out.append(
            f"episodes without any motion: {listed(numbers)}. Skip them: import with --skip {','.join(numbers[:20])}"
        )
    if idle["share"] >= IDLE:
        out.append(
            f"{idle['share']:.0%} of the steps are idle ({idle['start']:.0%} at the start of episodes, "
            f"{idle['end']:.0%} at the end, {idle['inside']:.0%} inside): a world model that predicts no change is "
            "right there. Cut idle rows: import with --cut START END for those of all episodes (median "
            f"{idle['median_start_s']:.2g} s and {idle['median_end_s']:.2g} s), and remove in the source pauses that "
            "no work of the gripper explains"
        )
    return out


def _jumps(facts: dict[str, Any]) -> list[str]:
    out = []
    for jump in facts["jumps"]:
        number, step, delta = jump["largest"]
        times = "once" if jump["count"] == 1 else f"{jump['count']} times"
        first = (
            f", {jump['first_step']} of them in the first step of an episode" if jump["first_step"] else ""
        )
        cure = (
            "an angle that wraps around or a wrong reading: unwrap or correct the column in the source, or leave the "
            f"episodes out, such as --skip {number}"
        )
        if 2 * jump["first_step"] > jump["count"]:
            cure = "a stale value in the first row: import with --cut 1 0"
        out.append(
            f"state field {jump['name']} jumps {times}{first} (largest: {delta:+.3g} in episode {number}, "
            f"step {step}); {cure}"
        )
    return out
