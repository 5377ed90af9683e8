"""Compatibility with files of earlier versions: conversion of their config keys and weight names.

Example::

    values = upgraded(json.loads(text))          # {"dynamics": {"moved": True, ...}} -> {"dynamics": {"motion": {...}}}
    renamed("layers.0.up.weight")                # "layers.0.mlp.0.weight"
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from worldgym.errors import ConfigError

_MOTION = {
    "motion": "residual", "drift": "projection", "shift": "shift", "take": "take", "hand": "place",
}  # fmt: skip
_LAYER = {"up": "mlp.0", "down": "mlp.2", "modulation": "offset"}


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the values of an earlier `config.json` of a world model to the current format.

    Raises:
        ConfigError: the config is of a version whose models can no longer be run.
    """
    data = dict(config)
    dynamics = dict(data["dynamics"])
    if dynamics.get("moved") and "moved_width" not in dynamics:
        raise ConfigError(
            "it moves frames through pixels, which this version no longer supports; use it with the version that made "
            "it, or train a new one with `worldgym train world-model --data DATA --tokenizer TOKENIZER`"
        )
    if "motion" not in dynamics:
        dynamics.setdefault("anchor", False)  # older checkpoints had no anchor and no key for it
        old = {k: dynamics.pop(k, None) for k in ("moved", "held", "holding", "low", "moved_width", "shift")}
        dynamics["motion"] = None
        if old["moved"]:
            dynamics["motion"] = {
                # The flags assumed a state of x, y, z, ..., opening.
                "hand": {"position": [0, 1, 2], "gripper": max(3, int(dynamics["state_dim"]) - 1)},
                "projection": old["shift"],
                "warp_anchor": bool(old["held"]),
                **({"grasp_range": old["holding"]} if old["holding"] is not None else {}),
                "contact_height": old["low"] if old["held"] else None,
                "width": old["moved_width"],
            }
    data["dynamics"] = dynamics
    return data


def renamed(name: str) -> str:
    """Current name of a weight of the dynamics, from the name in an earlier version."""
    head, _, rest = name.partition(".")
    if head in _MOTION:
        return f"objects.{_MOTION[head]}.{rest}"
    found = re.fullmatch(r"(layers\.\d+)\.(up|down|modulation)(\..*)?", name)
    if found:
        return f"{found[1]}.{_LAYER[found[2]]}{found[3] or ''}"
    return name
