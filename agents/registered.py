"""Policies, action heads and improvers of this package, by name; imported when first asked for.

Example::

    from worldgym.registry import POLICIES
    POLICIES.get("vla")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldgym.registry import HEADS, IMPROVERS, POLICIES
from worldgym.text import EMBEDDING_DIM

POLICIES.register_lazily(
    vla="agents.vla:VLAPolicy",
    conditioned="agents.conditioned:ConditionedPolicy",
    foresight="agents.conditioned:ForesightPolicy",
)
HEADS.register_lazily(
    bins="agents.heads.bins:ParallelBins",
    autoregressive="agents.heads.bins:AutoregressiveBins",
    l1="agents.heads.l1:L1Head",
    flow="agents.heads.flow:FlowHead",
)
IMPROVERS.register_lazily(
    sft="agents.sft:SFT",
    filtered_bc="agents.filtered_bc:FilteredBC",
    grpo="agents.grpo:GRPO",
    self_imitation="agents.self_imitation:SelfImitation",
    advantage_conditioned="agents.advantage:AdvantageConditioned",
)


def earlier_policy(folder: Path, config: dict[str, Any]) -> str | None:
    """Type of a policy that an earlier version saved."""
    if (folder / "policy").is_dir() and (folder / "foresight").is_dir():
        return "foresight"
    if not {"chunk", "action_dim"} <= set(config):
        return None
    # The condition of a conditioned policy stands behind the embedding of the instruction.
    return "conditioned" if config.get("text_dim", EMBEDDING_DIM) != EMBEDDING_DIM else "vla"


POLICIES.legacy(earlier_policy)
