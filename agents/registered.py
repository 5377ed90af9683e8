"""Registers the policies, heads, improvers and auxiliary losses of this package by name; each is imported on first use.

Example::

    from worldgym.registry import POLICIES
    POLICIES.get("vla")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldgym.moved import NAMES
from worldgym.registry import AUXILIARIES, HEADS, IMPROVERS, POLICIES
from worldgym.text import EMBEDDING_DIM

POLICIES.register_lazily(
    vla="agents.policies.vla:VLAPolicy",
    conditioned="agents.policies.conditioned:ConditionedPolicy",
    foresight="agents.policies.conditioned:ForesightPolicy",
    hf_vla="agents.policies.hf.policy:HFVLAPolicy",
    joint="agents.policies.joint:JointPolicy",
    remote="agents.policies.remote.policy:RemotePolicy",
)
HEADS.register_lazily(
    bins="agents.policies.heads.bins:ParallelBins",
    autoregressive="agents.policies.heads.bins:AutoregressiveBins",
    l1="agents.policies.heads.l1:L1Head",
    flow="agents.policies.heads.flow:FlowHead",
)
IMPROVERS.register_lazily(
    sft="agents.algorithms.sft:SFT",
    filtered_bc="agents.algorithms.filtered_bc:FilteredBC",
    grpo="agents.algorithms.grpo:GRPO",
    self_imitation="agents.algorithms.self_imitation:SelfImitation",
    advantage_conditioned="agents.algorithms.advantage_conditioned:AdvantageConditioned",
)
AUXILIARIES.register_lazily(
    flare="agents.auxiliary.flare:Flare",
    vla_jepa="agents.auxiliary.vla_jepa:VlaJepa",
)


def earlier_policy(folder: Path, config: dict[str, Any]) -> str | None:
    """Return the type of a policy saved by an earlier version, or None."""
    if (folder / "policy").is_dir() and (folder / "foresight").is_dir():
        return "foresight"
    if not {"chunk", "action_dim"} <= set(config):
        return None
    # A conditioned policy appends its condition to the instruction embedding, so its text_dim is larger.
    return "conditioned" if config.get("text_dim", EMBEDDING_DIM) != EMBEDDING_DIM else "vla"


POLICIES.legacy(earlier_policy)

for old, new in {"RealCollector": "SimulatorCollector", "collect_real": "collect_simulated"}.items():
    for place in ("agents", "agents.rollouts.simulated", "agents.rollouts.imagined"):
        NAMES[f"{place}:{old}"] = f"agents.rollouts.simulated:{new}"
