"""Policies whose cost is computed, by registered type: shapes, what is trained, and the steps of SFT and GRPO.

Example::

    with on_meta():
        training = policy_training("hf_vla", "smolvlm-256m", batch=64, tuning="lora", step="grpo")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.pipelines.cost.counting import bytes_of, flops_of, weights_of
from experiments.pipelines.cost.training import Training
from worldgym.errors import ConfigError
from worldgym.registry import POLICIES

TUNINGS = ("full", "lora", "frozen_vision")
STEPS = ("sft", "grpo")
ACTION_DIM, STATE_DIM = 7, 8
"""Actions and proprioception of an arm with a gripper, for `hf_vla`."""
INSTRUCTION = "put the red cube in the tray"
IMAGE = 128
"""Side of the frames that `hf_vla` gets, as the world model `base` makes them; it resizes them to its own size."""


def _vla(preset: str, tuning: str, checkpointing: bool) -> Any:
    from agents.policies.vla import VLAPolicy
    from agents.policies.vla_config import VLAPolicyConfig

    return VLAPolicy(VLAPolicyConfig.preset(preset))


def _hf_vla(preset: str, tuning: str, checkpointing: bool) -> Any:
    from agents.policies.hf.config import HFVLAConfig, LoRA
    from agents.policies.hf.policy import HFVLAPolicy
    from agents.policies.hf.presets import shape

    vlm, tokenizer, own = shape(preset)
    settings = {
        "vlm": vlm, "action_dim": ACTION_DIM, "state_dim": STATE_DIM, "bf16": True, **own,
        "gradient_checkpointing": checkpointing, "train_vision": tuning == "full",
        "weights": "bfloat16" if tuning == "lora" else "float32", "lora": LoRA() if tuning == "lora" else None,
    }  # fmt: skip
    return HFVLAPolicy(HFVLAConfig(**settings), tokenizer)


POLICY_SHAPES: dict[str, tuple[tuple[str, ...], tuple[str, ...], bool, Callable[[str, str, bool], Any]]] = {
    "vla": (("tiny", "small"), ("full",), False, _vla),
    "hf_vla": (("tiny", "smolvlm-256m", "smolvlm-500m", "openvla-7b"), TUNINGS, True, _hf_vla),
}
"""By type: names of presets, what can be trained, whether it can checkpoint activations, and what builds it."""


def policy_presets() -> list[tuple[str, str, str]]:
    """Types, presets and tunings of registered policies whose cost can be computed."""
    known = set(POLICIES.names())
    return [
        (kind, preset, tuning)
        for kind, (presets, tunings, _, _) in POLICY_SHAPES.items() if kind in known
        for preset in presets for tuning in tunings
    ]  # fmt: skip


def policy_of(kind: str, preset: str, tuning: str = "full", checkpointing: bool = False) -> Any:
    """A policy with random weights.

    Args:
        kind: registered type.
        preset: name of a shape.
        tuning: `full`, `lora` (adapters of rank 32 on weights in bfloat16) or `frozen_vision`.
        checkpointing: recompute activations in the backward pass.

    Raises:
        ConfigError: an unknown type, preset or tuning.
    """
    if (kind, preset, tuning) not in policy_presets():
        known = ", ".join(sorted({f"{kind} {preset}" for kind, preset, _ in policy_presets()}))
        raise ConfigError(
            f"there is no policy {kind!r} with the preset {preset!r} and tuning {tuning!r}; there are {known}, with "
            f"the tunings {', '.join(TUNINGS)} of hf_vla, and full of vla"
        )
    return POLICY_SHAPES[kind][3](preset, tuning, checkpointing)


def can_checkpoint(kind: str) -> bool:
    """Whether policies of this type have gradient checkpointing."""
    return POLICY_SHAPES[kind][2]


def observation_of(policy: Any, batch: int, device: torch.device | str = "cpu") -> dict[str, Any]:
    """An observation of `batch` rows, black images."""
    config = policy.config
    side = getattr(config, "size", (IMAGE, IMAGE))
    seen: dict[str, Any] = {"image": torch.zeros(batch, *side, 3, dtype=torch.uint8, device=device)}
    seen["state"] = torch.zeros(batch, config.state_dim, device=device)
    width = getattr(config, "text_dim", None)
    words: Any = [INSTRUCTION] * batch if width is None else torch.zeros(batch, width, device=device)
    return {**seen, "instruction": words}


def policy_training(
    kind: str, preset: str, batch: int, tuning: str = "full", step: str = "sft", checkpointing: bool = False,
    device: torch.device | str = "cpu",
) -> Training:  # fmt: skip
    """A training step of a policy.

    Args:
        kind: registered type.
        preset: name of a shape.
        batch: chunks of actions in a step, in one forward pass.
        tuning: what is trained; see `policy_of`.
        step: `sft` (cloning loss) or `grpo` (clipped objective on a trace of the policy).
        checkpointing: recompute activations in the backward pass.
        device: where the step is taken.

    Raises:
        ConfigError: an unknown type, preset, tuning or step.
    """
    if step not in STEPS:
        raise ConfigError(f"unknown step {step!r}; there are {', '.join(STEPS)}")
    policy = policy_of(kind, preset, tuning, checkpointing).to(device)
    seen = observation_of(policy, batch, device)
    tensors = [value for value in seen.values() if isinstance(value, Tensor)]
    trained = tuple(p for p in policy.parameters() if p.requires_grad)
    unit = f"chunks of {policy.config.chunk} actions"
    if step == "sft":
        shape = (batch, policy.config.chunk, policy.config.action_dim)
        goals = np.zeros((batch, policy.config.state_dim), np.float32)
        rows = {"observation": seen, "actions": np.zeros(shape, np.float32), "goals": goals}
        policy.train()
        copies = 2 * bytes_of(weights_of(policy))  # the average, and the best so far
        return Training(policy, trained, tuple(tensors), _cloning(policy, rows), copies, True, batch, unit)
    policy.eval()  # as GRPO does
    with torch.no_grad():
        out = policy.act(seen, generator=torch.Generator().manual_seed(0))
    tensors += [*out.trace.values(), *out.log_probs.values()]
    loss = _policy_gradient(policy, seen, out.trace, out.log_probs)
    return Training(policy, trained, tuple(tensors), loss, 0, False, batch, unit)


def _cloning(policy: Any, rows: Mapping[str, Any]) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        losses = policy.loss(rows)
        return torch.stack([value.float() for value in losses.values()]).sum()

    return forward


def _policy_gradient(
    policy: Any, seen: Any, trace: Mapping[str, Tensor], old: Mapping[str, Tensor]
) -> Callable[[], Tensor]:
    """The loss of `agents.algorithms.grpo` for one micro-batch; there its choices are reduced on the CPU."""
    from agents.algorithms.grpo import GRPOConfig, clipped_objective

    config = GRPOConfig()

    def forward() -> Tensor:
        now = policy.evaluate(seen, trace)
        total = None
        for name, value in now.log_probs.items():
            advantage = torch.ones(len(value), device=value.device)
            loss, _ = clipped_objective(value - old[name], advantage, config.clip_low, config.clip_high)
            term = loss.mean() - config.entropy_coef * now.entropies[name].mean()
            total = term if total is None else total + term
        assert total is not None
        return total

    return forward


def acting_flops(kind: str, preset: str, tuning: str, batch: int = 1) -> int:
    """Operations of choosing one chunk of actions."""
    policy = policy_of(kind, preset, tuning)
    policy.eval()
    seen = observation_of(policy, batch)
    return flops_of(lambda: policy.act(seen, generator=torch.Generator().manual_seed(0))) // batch
