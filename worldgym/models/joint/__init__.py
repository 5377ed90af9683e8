"""Joint world-action models: one network for video and actions, as UWM, DreamZero, FastWAM and Motus.

Example::

    from worldgym.models.joint import JointConfig, JointModel
    model = JointModel(JointConfig.preset("tiny", "dreamzero").for_data(states, specs))
"""

from worldgym.models.joint.config import JointConfig, JointSampling
from worldgym.models.joint.layouts import FAMILIES, Family
from worldgym.models.joint.world_model import JointModel

__all__ = ["FAMILIES", "Family", "JointConfig", "JointModel", "JointSampling"]
