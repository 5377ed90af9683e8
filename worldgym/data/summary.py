"""Counts of the content of a dataset, and short descriptions of its settings for messages.

Example::

    summarise(dataset.records)["env_steps"]       # {"real": 61234}
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from worldgym.data.lerobot import EpisodeRecord


def said(value: Any) -> str:
    """Format a value for a message; cameras and state fields are abbreviated."""
    if isinstance(value, (tuple, list)) and all(hasattr(item, "name") for item in value):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {height}x{width}" for name, (height, width) in value.items())
    return str(value)


def summarise(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """Count episodes and environment steps; steps in the domain `real` are real-robot interactions."""
    steps: Counter[str] = Counter()
    for record in records:
        steps[record.domain] += record.steps
    out: dict[str, Any] = {"env_steps": dict(steps)}
    for name in ("behaviour", "task", "split", "domain"):
        out[f"episodes_by_{name}"] = dict(Counter(getattr(record, name) for record in records))
    out["successes_by_behaviour"] = dict(Counter(record.behaviour for record in records if record.success))
    return json.loads(json.dumps(out))
