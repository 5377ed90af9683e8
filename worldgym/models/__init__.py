"""World models: frame tokenizers, latent dynamics, and their combination behind the `WorldModel` protocol."""

from worldgym.models.canvas import Canvas
from worldgym.models.ensemble import EnsembleWorldModel
from worldgym.models.futures import FutureEnsemble
from worldgym.models.loading import load_world_model
from worldgym.models.tokenizers import (
    DiffusersTokenizer,
    DiffusersTokenizerConfig,
    FrameTokenizer,
    TokenizerConfig,
    VideoTokenizer,
)
from worldgym.models.video.config import DynamicsConfig, SamplerConfig, WorldModelConfig
from worldgym.models.video.dynamics import Dynamics
from worldgym.models.video.object_motion import HandColumns, ObjectMotionConfig
from worldgym.models.video.state import ImaginedState
from worldgym.models.video.world_model import VideoWorldModel

__all__ = [
    "Canvas",
    "DiffusersTokenizer",
    "DiffusersTokenizerConfig",
    "Dynamics",
    "DynamicsConfig",
    "EnsembleWorldModel",
    "FrameTokenizer",
    "FutureEnsemble",
    "HandColumns",
    "ImaginedState",
    "ObjectMotionConfig",
    "SamplerConfig",
    "TokenizerConfig",
    "VideoTokenizer",
    "VideoWorldModel",
    "WorldModelConfig",
    "load_world_model",
]
