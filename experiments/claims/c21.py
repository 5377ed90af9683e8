"""C21: action heads at an equal trunk: categorical bins, L1 regression (OpenVLA-OFT) and flow matching (pi0).

SFT from scratch on the same demonstrations, number of steps and initial trunk; only the head differs. The policy has no
goal head: with one, the place to move to is chosen before the action head, which then has one mode.

Example::

    from experiments.claims.c21 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from experiments.claims.arms import Arm, Trained
from experiments.claims.auxiliary_arms import FINISH_SHARE, expert_arrays
from experiments.claims.claim import Claim, Ruling, by_gain, difference, said
from experiments.claims.context import ClaimContext
from experiments.claims.joint_arms import SPLITS, latency, success_table
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records

NAME = "C21"
DEMOS = 100  # per task
HEADS = {"bins": "bins", "l1": "L1 regression", "flow": "flow matching, 5 steps"}
BINS, L1, FLOW = ((NAME, f"head-{head}") for head in HEADS)


def with_head(head: str) -> Callable[[ClaimContext, int, Path], Trained]:
    """Train function: SFT from scratch of a policy with an action head."""

    def train(lab: ClaimContext, seed: int, folder: Path) -> Trained:
        import torch

        from agents import SFT, SFTConfig, VLAPolicy, VLAPolicyConfig, chunk_dataset
        from agents.data.demonstrations import demonstrations

        preset, arrays = lab.preset, expert_arrays(lab)
        shape = "tiny" if preset.name == "tiny" else "small"
        torch.manual_seed(seed)
        made = VLAPolicyConfig.for_data(shape, arrays.specs, goal_dims=0)
        policy = lab.bundle.placing(VLAPolicy(dataclasses.replace(made, head=head)))
        chosen = demonstrations(arrays, DEMOS, seed=seed)
        rows = chunk_dataset(chosen, policy.chunk)
        config = SFTConfig(batch_size=preset.batch, patience=0, seed=seed, select="val_loss")
        held_out = int(rows.held_out(config.val_fraction, seed).sum())
        epochs = math.ceil(preset.aux_steps / math.ceil((len(rows) - held_out) / preset.batch))
        finish = round(FINISH_SHARE * preset.aux_steps)
        history = SFT(dataclasses.replace(config, epochs=epochs, finish_steps=finish)).fit(policy, rows)
        policy.save_pretrained(folder / "policy")
        found = {
            "head": head, "demos": len(chosen), "frames": len(rows), "epochs": epochs,
            "best_epoch": history["best_epoch"], "latency_ms": round(latency(lab, folder / "policy"), 2),
        }  # fmt: skip
        budget = {"real_episodes": float(len(chosen)), "updates": float(preset.aux_steps + finish)}
        return Trained(lab.ref(folder / "policy"), budget, settings=found)

    return train


def rule(records: Records, preset: ClaimPreset, seeds: list[int]) -> Ruling:
    """Flow matching against L1 regression decides; bins are reported."""
    effect = difference(records, FLOW, L1, seeds)
    why = f"success of flow matching minus L1 regression: {said(effect)}"
    if set(seeds) <= set(records.seeds(*BINS)):
        why += f"; minus bins: {said(difference(records, FLOW, BINS, seeds))}"
    return by_gain(effect, why)


CLAIM = Claim(
    NAME,
    "an action head that can represent several choices succeeds more often than one that regresses their middle",
    "pi0 (arXiv 2410.24164) uses flow matching, OpenVLA-OFT (arXiv 2502.19645) L1 regression: .971 on LIBERO",
    "mean success of flow matching is not above that of L1 regression at an equal trunk",
    arms=lambda preset: [L1, FLOW, BINS],
    needs=lambda preset: [L1, FLOW],
    rule=rule,
    figures=lambda records, preset, seeds: {},
    tables=lambda records, preset, seeds: success_table(records, [L1, FLOW, BINS], seeds),
    own_arms=tuple(
        Arm(f"head-{head}", label, with_head(head), splits=SPLITS, evaluators=False) for head, label in HEADS.items()
    ),
)
