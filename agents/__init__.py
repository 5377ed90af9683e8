"""Policies and the algorithms that improve them.

A policy reads a camera image and an instruction and outputs a chunk of actions with its exact probability. An
improver (supervised fine-tuning, filtered behaviour cloning, GRPO, self-imitation, advantage conditioning) updates a
policy from demonstrations or from rollouts imagined by a world model.

Example::

    from agents import GRPO, GRPOConfig, collect, load_policy
    policy = load_policy("runs/policy_sft")
    rollouts = collect(world_model, judge, policy, starts, group_size=8, horizon=40)
    GRPO(GRPOConfig()).update(policy, rollouts)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from worldgym.moved import earlier

if TYPE_CHECKING:
    from agents.algorithms.filtered_bc import FilteredBC, FilteredBCConfig
    from agents.algorithms.grpo import GRPO, GRPOConfig
    from agents.algorithms.imagined_rl import ImaginedRLConfig, ImaginedRLTrainer, RolloutConfig
    from agents.algorithms.self_imitation import SelfImitation, SelfImitationConfig
    from agents.algorithms.sft import SFT, ChunkDataset, SFTConfig, average_weights, chunk_dataset
    from agents.loading import load_policy
    from agents.policies.vla import VLAPolicy, VLAPolicyConfig
    from agents.rollouts.imagined import SimulatorCollector, StartBank, Starts, collect, collect_simulated
    from agents.rollouts.trajectories import Rollouts

_WHERE = {
    "FilteredBC": "algorithms.filtered_bc",
    "FilteredBCConfig": "algorithms.filtered_bc",
    "GRPO": "algorithms.grpo",
    "GRPOConfig": "algorithms.grpo",
    "ImaginedRLConfig": "algorithms.imagined_rl",
    "ImaginedRLTrainer": "algorithms.imagined_rl",
    "RolloutConfig": "algorithms.imagined_rl",
    "SimulatorCollector": "rollouts.imagined",
    "StartBank": "rollouts.imagined",
    "Starts": "rollouts.imagined",
    "collect": "rollouts.imagined",
    "collect_simulated": "rollouts.imagined",
    "load_policy": "loading",
    "Rollouts": "rollouts.trajectories",
    "SelfImitation": "algorithms.self_imitation",
    "SelfImitationConfig": "algorithms.self_imitation",
    "SFT": "algorithms.sft",
    "SFTConfig": "algorithms.sft",
    "ChunkDataset": "algorithms.sft",
    "average_weights": "algorithms.sft",
    "chunk_dataset": "algorithms.sft",
    "VLAPolicy": "policies.vla",
    "VLAPolicyConfig": "policies.vla",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    """Import public names on first access, so that `import agents` does not load torch."""
    if name not in _WHERE:
        return earlier(__name__, name)  # a name of an earlier version, or an AttributeError
    return getattr(importlib.import_module(f"agents.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
