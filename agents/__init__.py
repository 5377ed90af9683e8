"""Policies and the algorithms that improve them.

Policies see a camera image, read an instruction and answer with a chunk of actions whose probability is exact;
the improvers (supervised, filtered cloning, GRPO, self-imitation) change a policy from demonstrations or from
rollouts that a world model imagined.

Example::

    from agents import GRPO, GRPOConfig, collect, load_policy
    policy = load_policy("runs/policy_sft")
    rollouts = collect(world_model, judge, policy, starts, group_size=8, horizon=40)
    GRPO(GRPOConfig()).update(policy, rollouts)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.filtered_bc import FilteredBC, FilteredBCConfig
    from agents.grpo import GRPO, GRPOConfig
    from agents.imagination import RealCollector, StartBank, Starts, collect, collect_real
    from agents.imagined_rl import ImaginedRLConfig, ImaginedRLTrainer, RolloutConfig
    from agents.loading import load_policy
    from agents.rollouts import Rollouts
    from agents.self_imitation import SelfImitation, SelfImitationConfig
    from agents.sft import SFT, ChunkDataset, SFTConfig, average_weights, chunk_dataset
    from agents.vla import VLAPolicy, VLAPolicyConfig

_WHERE = {
    "FilteredBC": "filtered_bc",
    "FilteredBCConfig": "filtered_bc",
    "GRPO": "grpo",
    "GRPOConfig": "grpo",
    "ImaginedRLConfig": "imagined_rl",
    "ImaginedRLTrainer": "imagined_rl",
    "RolloutConfig": "imagined_rl",
    "RealCollector": "imagination",
    "StartBank": "imagination",
    "Starts": "imagination",
    "collect": "imagination",
    "collect_real": "imagination",
    "load_policy": "loading",
    "Rollouts": "rollouts",
    "SelfImitation": "self_imitation",
    "SelfImitationConfig": "self_imitation",
    "SFT": "sft",
    "SFTConfig": "sft",
    "ChunkDataset": "sft",
    "average_weights": "sft",
    "chunk_dataset": "sft",
    "VLAPolicy": "vla",
    "VLAPolicyConfig": "vla",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    """Import lazily: `import agents` loads no torch."""
    if name not in _WHERE:
        raise AttributeError(f"module 'agents' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"agents.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
