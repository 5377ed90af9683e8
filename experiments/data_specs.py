"""What a dataset shows and means, for the trainers: its specs, and whether proprioception is a hand's.

Example::

    specs, hand = data_specs(dataset, choice="auto")          # hand: HandColumns, or None
    size = WorldModelConfig.preset("small").canvas_for(specs.observation.cameras).size
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from experiments.training_run import Hand, knows_hand
from worldgym.errors import ConfigError
from worldgym.specs import Camera, ObservationSpec, Specs, StateField

if TYPE_CHECKING:
    from worldgym.models import HandColumns


def data_specs(dataset: Any, choice: Hand = "auto") -> tuple[Specs, HandColumns | None]:
    """The specs of a dataset, and the columns of its hand.

    Args:
        dataset: with `specs`, or, where it was made by an earlier version, `action_spec`, `state_dim`, `image_size`.
        choice: `auto` believes the dataset. `yes` says that proprioception is x, y, z first and the gripper's opening
            last, where the dataset does not say. `no` leaves the hand out.

    Raises:
        ConfigError: `yes` with fewer than four dimensions.
    """
    from worldgym.models import HandColumns

    specs = getattr(dataset, "specs", None)
    if isinstance(specs, Specs):
        action, observation = specs.action or dataset.action_spec, specs.observation
    else:
        size = dataset.image_size
        height, width = (size, size) if isinstance(size, int) else size
        fields = tuple(StateField(f"state_{i}") for i in range(dataset.state_dim))
        action, observation = dataset.action_spec, ObservationSpec((Camera("front", height, width),), fields)
    if choice == "no":
        return Specs(observation, action), None
    if not observation.has_hand and knows_hand(action, observation.state_dim, choice):
        observation = with_hand(observation)
    return Specs(observation, action), HandColumns.of(observation)


def with_hand(observation: ObservationSpec) -> ObservationSpec:
    """`observation` with the first three state fields as a hand's position and the last one as its gripper.

    Raises:
        ConfigError: fewer than four fields.
    """
    last = observation.state_dim - 1
    if last < 3:
        raise ConfigError(
            f"proprioception has {last + 1} dimensions; a hand's has at least four. Type --hand no"
        )
    roles = {0: "ee_position", 1: "ee_position", 2: "ee_position", last: "gripper"}
    taken = ("ee_position", "gripper")
    fields = tuple(
        replace(field, role=roles.get(i, "other" if field.role in taken else field.role))
        for i, field in enumerate(observation.state)
    )
    return replace(observation, state=fields)


def shown(specs: Specs, arrays: Any) -> Specs:
    """`specs` with the cameras whose frames were read, the main one first."""
    views = getattr(arrays, "views", None) or {}
    names = [c.name for i, c in enumerate(specs.observation.cameras) if i == 0 or c.name in views]
    return Specs(specs.observation.select(names), specs.action)
