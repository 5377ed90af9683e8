"""World models of low-dimensional states: an ensemble of recurrent networks with an estimate of its own error."""

from worldgym.models.states.config import StateEnsembleConfig, StateEpisode, check_episodes
from worldgym.models.states.ensemble import (
    Forecast,
    PredictedStates,
    StateEnsemble,
    StateMemory,
    gaussian_nll,
)

__all__ = [
    "Forecast",
    "PredictedStates",
    "StateEnsemble",
    "StateEnsembleConfig",
    "StateEpisode",
    "StateMemory",
    "check_episodes",
    "gaussian_nll",
]
