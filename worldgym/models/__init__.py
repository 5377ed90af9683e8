"""Learned parts of the world model: frame tokenizer, dynamics, and both behind the `WorldModel` protocol."""

from worldgym.models.config import DynamicsConfig, SamplerConfig, WorldModelConfig
from worldgym.models.dynamics import Dynamics
from worldgym.models.ensemble import EnsembleWorldModel
from worldgym.models.loading import load_world_model
from worldgym.models.rows import ImaginedState
from worldgym.models.tokenizer import FrameTokenizer, TokenizerConfig
from worldgym.models.world_model import VideoWorldModel

__all__ = [
    "Dynamics",
    "DynamicsConfig",
    "EnsembleWorldModel",
    "FrameTokenizer",
    "ImaginedState",
    "SamplerConfig",
    "TokenizerConfig",
    "VideoWorldModel",
    "WorldModelConfig",
    "load_world_model",
]
