"""Configuration of a state-only ensemble; saved as config.json next to the weights.

Example::

    config = StateEnsembleConfig.preset("tiny").for_data(episodes)
    model = StateEnsemble(config)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from worldgym.errors import ConfigError, DatasetError
from worldgym.utils.typed import from_values

StateEpisode = Mapping[str, np.ndarray]
"""Arrays of one logged episode of T steps: `states (T+1,S)`, `actions (T,A)`, `reward (T,)`, `success (T,)`, and
optionally `terminated (T,)`, by default `success`. Entry t of `reward`, `success` and `terminated` follows action t."""

PRESETS: dict[str, dict[str, int]] = {
    "base": {"width": 256, "layers": 2, "head_width": 128, "history": 32},
    "small": {"width": 96, "layers": 1, "head_width": 96, "history": 16},
    "tiny": {"width": 32, "layers": 1, "head_width": 32, "history": 8},
}


@dataclass(frozen=True)
class StateEnsembleConfig:
    """Shape of a state-only ensemble, and statistics of its training data.

    Args:
        members: number of members, E.
        width: width of a GRU layer.
        layers: number of GRU layers.
        head_width: width of the hidden layer between the GRU and the predictions.
        history: largest number of (state, action) pairs in memory when a forecast starts, in training, H.
        forecast: steps that a member predicts from its own samples in training.
        shared_trunk: whether the members share the GRU, as in the release of RWM-U. A shared trunk underestimates the
            uncertainty.
        log_std_low: soft lower bound of the predicted log standard deviation, in units of `step_std`.
        log_std_high: soft upper bound.
        seed: seed of the initial weights; the members start from different weights.
        state_mean: mean of the data's states, per dimension.
        state_std: standard deviation of the data's states, per dimension; 1 where the data are constant.
        step_std: standard deviation of the difference of successive states, per dimension; 0 for a dimension that
            never changes within an episode. The model predicts no change there and has no uncertainty.
        action_mean: mean of the data's actions, per dimension.
        action_std: standard deviation of the data's actions, per dimension; 1 where the data are constant.
        reward_mean: mean of the data's rewards.
        reward_std: standard deviation of the data's rewards; 1 if they are constant.

    Raises:
        ConfigError: an invalid shape.
    """

    members: int = 5
    width: int = 256
    layers: int = 2
    head_width: int = 128
    history: int = 32
    forecast: int = 8
    shared_trunk: bool = False
    log_std_low: float = -3.0
    log_std_high: float = 1.0
    seed: int = 0
    state_mean: tuple[float, ...] = ()
    state_std: tuple[float, ...] = ()
    step_std: tuple[float, ...] = ()
    action_mean: tuple[float, ...] = ()
    action_std: tuple[float, ...] = ()
    reward_mean: float = 0.0
    reward_std: float = 1.0

    def __post_init__(self) -> None:
        for name in ("members", "width", "layers", "head_width", "history", "forecast"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}, expected at least 1; try {name}={PRESET_OF[name]}"
                )
        if not self.log_std_low < self.log_std_high:
            raise ConfigError(
                f"log_std_low is {self.log_std_low} and log_std_high {self.log_std_high}, expected the lower bound "
                "first; try -3 and 1"
            )
        if not len(self.state_mean) == len(self.state_std) == len(self.step_std):
            raise ConfigError(
                f"state_mean, state_std and step_std have {len(self.state_mean)}, {len(self.state_std)} and "
                f"{len(self.step_std)} values, expected one per state dimension each; make them with for_data(episodes)"
            )
        if len(self.action_mean) != len(self.action_std):
            raise ConfigError(
                f"action_mean and action_std have {len(self.action_mean)} and {len(self.action_std)} values, expected "
                "one per action dimension each; make them with for_data(episodes)"
            )
        scales = (*self.state_std, *self.action_std, self.reward_std)
        if any(value <= 0 for value in scales) or any(value < 0 for value in self.step_std):
            raise ConfigError(
                "a standard deviation is not positive, expected 1 for a constant dimension (0 only in step_std); make "
                "them with for_data(episodes)"
            )

    @property
    def state_dim(self) -> int:
        """Dimension of a state, S."""
        return len(self.state_mean)

    @property
    def action_dim(self) -> int:
        """Dimension of an action, A."""
        return len(self.action_mean)

    @staticmethod
    def preset(name: str, **changes: Any) -> StateEnsembleConfig:
        """Preset `"base"` (GRU 2 x 256, a GPU), `"small"` (1 x 96, a CPU) or `"tiny"` (1 x 32, tests), with `changes`.

        Raises:
            ConfigError: an unknown preset.
        """
        if name not in PRESETS:
            raise ConfigError(f"unknown preset {name!r}; the presets are {', '.join(PRESETS)}")
        return StateEnsembleConfig(**{**PRESETS[name], **changes})

    def for_data(self, episodes: Sequence[StateEpisode]) -> StateEnsembleConfig:
        """This config with the dimensions and statistics of logged episodes.

        Raises:
            DatasetError: an episode has arrays of unexpected shapes, see `check_episodes`.
        """
        check_episodes(episodes)
        states = np.concatenate([np.asarray(e["states"], np.float64) for e in episodes])
        steps = np.concatenate([np.diff(np.asarray(e["states"], np.float64), axis=0) for e in episodes])
        actions = np.concatenate([np.asarray(e["actions"], np.float64) for e in episodes])
        reward = np.concatenate([np.asarray(e["reward"], np.float64) for e in episodes])
        state_std, step_std = _scale(states), np.sqrt(np.square(steps).mean(0))
        return replace(
            self,
            state_mean=_tuple(states.mean(0)),
            state_std=_tuple(state_std),
            step_std=_tuple(np.where(step_std > 1e-6 * state_std, step_std, 0.0)),
            action_mean=_tuple(actions.mean(0)),
            action_std=_tuple(_scale(actions)),
            reward_mean=float(reward.mean()),
            reward_std=float(_scale(reward[:, None])[0]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StateEnsembleConfig:
        """Rebuild from `to_dict`.

        Raises:
            ConfigError: unknown fields, or values of another type.
        """
        return from_values(cls, data, "state ensemble")


PRESET_OF = {"members": 5, "forecast": 8, **PRESETS["small"]}
"""Values that an error message proposes."""


def check_episodes(episodes: Sequence[StateEpisode]) -> tuple[int, int]:
    """Check logged episodes, and return the dimensions (S, A).

    Raises:
        DatasetError: no episode, a missing array, an array of another shape, or a value that is NaN or infinite; the
            message names the episode.
    """
    if not len(episodes):
        raise DatasetError("got no episode, expected at least one; collect logs first")
    dims: tuple[int, int] | None = None
    for i, episode in enumerate(episodes):
        missing = [name for name in ("states", "actions", "reward", "success") if name not in episode]
        if missing:
            raise DatasetError(
                f"episode {i} has no {' and no '.join(missing)}, expected states (T+1,S), actions (T,A), reward (T,) "
                "and success (T,)"
            )
        states, actions = np.asarray(episode["states"]), np.asarray(episode["actions"])
        if states.ndim != 2 or actions.ndim != 2 or len(actions) < 1 or len(states) != len(actions) + 1:
            raise DatasetError(
                f"episode {i} has states of shape {states.shape} and actions of shape {actions.shape}, expected "
                "(T+1,S) and (T,A) with T >= 1; add the state after the last action"
            )
        if dims not in (None, (states.shape[1], actions.shape[1])):
            raise DatasetError(
                f"episode {i} has {states.shape[1]} state and {actions.shape[1]} action dimensions, expected {dims} as "
                "in episode 0; give episodes of one robot"
            )
        dims = (states.shape[1], actions.shape[1])
        for name in ("reward", "success", "terminated"):
            if name in episode and np.asarray(episode[name]).shape != (len(actions),):
                raise DatasetError(
                    f"episode {i} has {name} of shape {np.asarray(episode[name]).shape}, expected "
                    f"({len(actions)},), one value per action"
                )
        for name in ("states", "actions", "reward"):
            if not np.isfinite(np.asarray(episode[name], np.float64)).all():
                raise DatasetError(
                    f"episode {i} has NaN or infinity in {name}, expected finite numbers; remove it"
                )
    assert dims is not None
    return dims


def _scale(values: np.ndarray) -> np.ndarray:
    std = values.std(0)
    return np.where(std > 1e-6, std, 1.0)


def _tuple(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(v) for v in values)
