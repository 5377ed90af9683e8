"""Episodes of several robots in one form, for a world model of all of them.

Actions and states are padded with zeros to the largest number of dimensions, and the state ends in one indicator per
robot, which is 1 for the robot of the episode. The indicators tell a network which of the padded columns have a
meaning. Columns get no roles: the same column means different things for different robots.

Example::

    specs = {"tabletop": first.specs, "metaworld": second.specs}
    both = joined({"tabletop": first.load_arrays(), "metaworld": second.load_arrays()}, specs)
    both.specs.action.dim                  # the larger of the two
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from worldgym.data.arrays import EpisodeArrays
from worldgym.errors import ConfigError
from worldgym.specs import ActionSpec, Camera, ObservationSpec, Specs, StateField

CAMERA = "front"


def joined_specs(specs: Mapping[str, Specs]) -> Specs:
    """Specs of the padded form.

    Args:
        specs: specs of each robot by name; all main cameras have one size, and all robots have actions.

    Raises:
        ConfigError: the sizes differ, or a robot has no actions.
    """
    sizes = {name: one.observation.main.size for name, one in specs.items()}
    if len(set(sizes.values())) != 1:
        raise ConfigError(f"the main cameras have the sizes {sizes}; record or import the datasets at one size")
    if missing := [name for name, one in specs.items() if one.action is None]:
        raise ConfigError(f"{', '.join(missing)} has no actions; leave it out")
    actions = {name: one.action for name, one in specs.items() if one.action is not None}
    height, width = next(iter(sizes.values()))
    dim = max(action.dim for action in actions.values())
    count = max(one.observation.state_dim for one in specs.values())
    fields = [StateField(f"state_{i}") for i in range(count)] + [StateField(f"is_{name}") for name in specs]
    action = ActionSpec(
        names=tuple(f"action_{i}" for i in range(dim)), units=("1",) * dim,
        hz=max(action.hz for action in actions.values()), low=(-1.0,) * dim, high=(1.0,) * dim,
    )  # fmt: skip
    return Specs(ObservationSpec((Camera(CAMERA, height, width, static=False),), tuple(fields)), action)


def padded(arrays: EpisodeArrays, name: str, specs: Mapping[str, Specs]) -> EpisodeArrays:
    """Episodes of robot `name` in the form of `joined_specs(specs)`; only the main camera is kept."""
    both = joined_specs(specs)
    assert both.action is not None
    rows, names = len(arrays.states), list(specs)
    states = np.zeros((rows, both.observation.state_dim), np.float32)
    states[:, : arrays.states.shape[1]] = arrays.states
    states[:, len(both.observation.state) - len(names) + names.index(name)] = 1
    actions = np.zeros((rows, both.action.dim), np.float32)
    actions[:, : arrays.actions.shape[1]] = arrays.actions
    return replace(arrays, states=states, actions=actions, views={}, specs=both)


def joined(arrays: Mapping[str, EpisodeArrays], specs: Mapping[str, Specs]) -> EpisodeArrays:
    """The episodes of all robots, one robot after the other, in the form of `joined_specs(specs)`.

    Args:
        arrays: episodes by robot.
        specs: specs by robot; also of robots without episodes here, so that models of one robot and of all robots have
            one form.

    Raises:
        ConfigError: as `joined_specs`, or a robot of `arrays` has no specs.
    """
    if unknown := sorted(set(arrays) - set(specs)):
        raise ConfigError(f"no specs of {', '.join(unknown)}; there are those of {', '.join(specs)}")
    return EpisodeArrays.together([padded(one, name, specs) for name, one in arrays.items()])
