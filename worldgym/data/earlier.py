"""Compatibility with earlier versions: specs of their datasets, and arguments of their `DatasetWriter`.

Example::

    specs = specs_of_info(json.loads(Path("data/real/meta/info.json").read_text()))
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from worldgym.specs import ActionSpec, Camera, ObservationSpec, Specs, StateField, state_fields

_END_EFFECTOR_ROLES = {"x": "ee_position", "y": "ee_position", "z": "ee_position", "opening": "gripper"}


def specs_of_info(info: dict[str, Any]) -> Specs:
    """Specs of a dataset; for earlier versions, which stored only sizes and names, they are derived from these.

    Earlier versions had one size for all cameras.
    """
    block = info["worldgym"]
    if "specs" in block:
        return Specs.from_dict(block["specs"])
    size, dim = int(block["image_size"]), int(block["state_dim"])
    names = info["features"].get("observation.state", {}).get("names") or []
    if len(names) != dim or len(set(names)) != dim:
        names = [f"state_{i}" for i in range(dim)]
    # Only datasets recorded by `worldgym collect` have these field names.
    roles = _END_EFFECTOR_ROLES if list(names) == list(_END_EFFECTOR_ROLES) else {}
    cameras = tuple(Camera(name, size, size) for name in ("front", *map(str, block.get("views", ()))))
    fields = tuple(StateField(name, roles.get(name, "other"), "m" if roles else "") for name in names)
    return Specs(ObservationSpec(cameras, fields), ActionSpec.from_dict(block["action_spec"]))


def earlier_form(
    action_spec: ActionSpec,
    rest: tuple[Any, ...],
    fps: float | None,
    shard_episodes: int,
    views: Sequence[str],
) -> tuple[Specs, Any, float | None, int]:
    """Convert the arguments `(path, action_spec, image_size, state_dim, manifest, fps, shard_episodes)`.

    Returns the specs, the manifest, `fps` and `shard_episodes` for the current form of `DatasetWriter`.
    """
    warnings.warn(
        "DatasetWriter(path, action_spec, image_size, state_dim, manifest) is deprecated; pass "
        "DatasetWriter(path, worldgym.specs.Specs(observation, action), manifest)",
        DeprecationWarning,
        stacklevel=3,
    )
    size, dim, manifest, *more = rest
    if size < 1 or dim < 0:
        raise ValueError(f"image_size must be >= 1, state_dim >= 0; got {size}, {dim}")
    cameras = tuple(Camera(name, size, size) for name in ("front", *views))
    spec = ObservationSpec(cameras, state_fields([f"state_{i}" for i in range(dim)]))
    fps, shard_episodes = ([*more, fps, shard_episodes] if not more else [*more, shard_episodes])[:2]
    return Specs(spec, action_spec), manifest, fps, shard_episodes
