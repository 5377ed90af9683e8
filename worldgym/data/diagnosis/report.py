"""`diagnose`: all facts of a diagnosis as plain JSON, and remarks that say what to mend.

Example::

    facts = diagnose(recorder)
    facts["actions"][0]["q50"], facts["alignment"][0]["kind"], facts["remarks"]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from worldgym.data.diagnosis.alignment import Alignment, action_size, align_actions, picture_lag, state_motion
from worldgym.data.diagnosis.recorder import Recorder, Rows
from worldgym.data.diagnosis.remarks import REPEATS, remarks
from worldgym.data.diagnosis.stillness import idle_facts, idle_steps, repeat_facts, state_jumps
from worldgym.errors import DatasetError
from worldgym.specs import ActionSpec

QUANTILES = ((0.01, "q01"), (0.5, "q50"), (0.99, "q99"))
SWITCH = 3  # a dimension with at most this many values is a switch, such as a binary gripper
SMOOTH = 4  # steps over which changes and motions are averaged before their lag is measured, if pictures are repeated


def diagnose(recorder: Recorder) -> dict[str, Any]:
    """Evaluate the recorded episodes.

    Returns:
        Plain JSON without NaN: `specs`, `actions` and `state` (ranges), `alignment` by action dimension, `pictures` by
        camera, `action_pictures`, `idle`, `jumps`, `remarks`.

    Raises:
        DatasetError: no episode was added.
    """
    rows = recorder.rows
    if not rows:
        raise DatasetError(
            "there is no episode to diagnose; give a dataset with at least one readable episode"
        )
    specs = recorder.specs
    names = () if specs.action is None else specs.action.names
    measured = bool(specs.observation.state) and recorder.no_state is None
    fields = [field.name for field in specs.observation.state] if measured else []
    acted = [item.actions for item in rows if item.actions is not None]
    alignment: list[Alignment] = []
    if acted and measured:
        alignment = align_actions(rows, names, fields, recorder.fps)
    motions = state_motion(rows) if measured else None
    if motions is not None and not any(m.any() for m in motions):
        motions = None  # constant states say nothing about motion
    facts: dict[str, Any] = {
        "specs": _specs(recorder, measured),
        "actions": _ranges(acted, names, specs.action, recorder.unclipped),
        "state": _ranges([item.state for item in rows], fields, None) if measured else [],
        "alignment": [item.to_dict() for item in alignment],
        "pictures": _pictures(recorder, motions),
        "action_pictures": _action_pictures(rows),
        "idle": _idle(recorder, motions),
        "jumps": state_jumps(rows, fields) if measured else [],
    }
    facts["remarks"] = remarks(facts, alignment)
    return facts


def _specs(recorder: Recorder, measured: bool) -> dict[str, Any]:
    spec, lengths = recorder.specs.action, recorder.lengths
    cameras = [
        {
            "name": camera.name, "size": list(camera.size),
            "recorded_size": list(recorder.recorded_sizes.get(camera.name, camera.size)),
        }
        for camera in recorder.specs.observation.cameras
    ]  # fmt: skip
    state = [
        {"name": field.name, "role": field.role, "unit": field.unit}
        for field in recorder.specs.observation.state
    ]
    return {
        "cameras": cameras,
        "state": state if measured else [],
        "no_state": recorder.no_state or (None if state else "no state was recorded"),
        "action": None if spec is None else spec.to_dict(),
        "fps": recorder.fps,
        "episodes": len(lengths),
        "diagnosed_episodes": len(recorder.rows),
        "steps": sum(lengths),
        "length": {"min": min(lengths), "median": float(np.median(lengths)), "max": max(lengths)},
    }


def _ranges(
    parts: Sequence[np.ndarray], names: Sequence[str], spec: ActionSpec | None, unclipped: bool = True
) -> list[dict[str, Any]]:
    """Range of each column of `(T, D)` arrays; with a spec also its bounds and the shares at and outside them.

    `cut` is the share of values that the bounds clip: those outside, or, of actions that were stored clipped, those at
    bounds that are quantiles. Bounds that are hard limits cut nothing.
    """
    if not parts:
        return []
    values = np.concatenate(parts).astype(np.float64)
    marks = np.quantile(values, [q for q, _ in QUANTILES], axis=0)
    out = []
    for i, name in enumerate(names):
        column = values[:, i]
        low, high = float(column.min()), float(column.max())
        entry: dict[str, Any] = {"name": name, "min": low, "max": high}
        entry |= {key: float(marks[k, i]) for k, (_, key) in enumerate(QUANTILES)}
        entry["constant"] = low == high
        entry["switch"] = len(np.unique(column)) <= SWITCH
        if spec is not None:
            a, b = spec.low[i], spec.high[i]
            slack = 1e-5 * (b - a)
            entry |= {
                "low": a, "high": b,
                "at_bounds": float(((column <= a + slack) | (column >= b - slack)).mean()),
                "outside": float(((column < a - slack) | (column > b + slack)).mean()),
            }  # fmt: skip
            stored = entry["at_bounds"] if spec.bounds == "q01/q99" else 0.0
            entry["cut"] = entry["outside"] if unclipped else stored
        out.append(entry)
    return out


def _pictures(recorder: Recorder, motions: list[np.ndarray] | None) -> list[dict[str, Any]]:
    out = []
    for position, camera in enumerate(recorder.specs.observation.cameras):
        changes = [item.change[:, position] for item in recorder.rows]
        entry = repeat_facts(changes, motions, recorder.fps)
        smooth = SMOOTH if entry["repeats"] >= REPEATS else 1
        lag = None if motions is None else picture_lag(changes, motions, smooth)
        out.append({"camera": camera.name, "lag": None if lag is None else lag.to_dict(), **entry})
    return out


def _action_pictures(rows: Sequence[Rows]) -> dict[str, Any] | None:
    """Lag between the size of the actions and the changes of the main camera; positive if the pictures follow."""
    acted = [item for item in rows if item.actions is not None]
    if not acted:
        return None
    lag = picture_lag([item.change[:, 0] for item in acted], action_size(acted))
    if lag is None:
        return None
    found = lag.to_dict()
    ends = found["interval"]
    # Seen from the action: the pictures follow the action by the negative of the lag by which they lead it.
    found |= {"lag": -found["lag"], "fine": -found["fine"], "curve": found["curve"][::-1]}
    found["interval"] = None if ends is None else [-ends[1], -ends[0]]
    return found


def _idle(recorder: Recorder, motions: list[np.ndarray] | None) -> dict[str, Any]:
    rows = recorder.rows
    changes = [item.change.max(1) for item in rows]
    return idle_facts(idle_steps(changes, motions), [item.number for item in rows], recorder.fps)
