"""A tiny vision-language model with each head learns by SFT, then by GRPO in the bundled imagined tabletop.

Success is counted in imagination, at the starts that are practised; success in Real at fresh starts is measured by
`test_hf_vla_practice.py` (slow) and stated in docs/guides/vla.md.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra `vla`")

from agents import GRPO, SFT, GRPOConfig, SFTConfig
from agents.policies.hf.config import HFVLAConfig
from agents.policies.hf.fast import FastCodec
from agents.policies.hf.policy import HFVLAPolicy
from agents.policies.hf.presets import byte_tokenizer
from agents.rollouts.imagined import collect
from experiments.bundle import Bundle
from worldgym.evaluation.statistics import paired_bootstrap

TASK = "reach"
STARTS = (0, 2, 3)  # few, so that a few rounds suffice
VLM = {
    "model_type": "smolvlm", "scale_factor": 2, "image_token_id": 511,
    "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                      "image_size": 32, "patch_size": 8},
    "text_config": {"model_type": "llama", "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
                    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "vocab_size": 512,
                    "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}  # fmt: skip
ROUNDS = 10  # with fewer, the gain of some heads is within the noise on processors that round otherwise
# Steps of SFT, and learning rate of GRPO.
SETTINGS = {
    "parallel": (150, 5e-4), "tokens": (150, 5e-4), "fast": (200, 1e-3), "l1": (120, 5e-4), "flow": (100, 5e-4),
}  # fmt: skip


@pytest.fixture(scope="module")
def imagination():
    """World model, judge, start frames and demonstrations of `reach`."""
    bundle = Bundle.find("tabletop-small")
    bank = bundle.start_bank((TASK,)).starts
    starts = bank.select(np.flatnonzero(bank.steps.numpy() == 0)[list(STARTS)])
    demos = bundle.demonstrations()
    rows = [i for i, text in enumerate(demos.instructions) if text.split()[0] in ("reach", "touch", "go")]
    return bundle.world_model(), bundle.judge(), starts, demos, np.asarray(rows)


def cloned(head: str, demos, rows: np.ndarray) -> HFVLAPolicy:
    """A model of random weights after SFT on the demonstrations in `rows`."""
    torch.manual_seed(0)
    config = {"vlm": VLM, "head": head, "action_dim": 4, "state_dim": 4, "binary_dims": (3,), "text_length": 64,
              "prompt": "{instruction}:", "expert_width": 32, "expert_ffn": 64}  # fmt: skip
    if head == "fast":
        config["fast"] = FastCodec.fit(demos.actions[rows]).to_json()
    policy = HFVLAPolicy(HFVLAConfig.from_dict(config), byte_tokenizer())
    policy.set_state_stats(demos.states)
    draws = np.random.default_rng(0)
    still = {"colour_jitter": 0.0, "noise": 0.0, "state_noise": 0.0}
    for lr, count in ((2e-3, SETTINGS[head][0]), (5e-4, 50)):
        drawn = draws.choice(rows, 64 * count)
        losses = SFT(SFTConfig(lr=lr, **still)).steps(policy, demos, drawn, count)
    assert np.isfinite(losses).all()
    return policy.eval()


@pytest.mark.parametrize("head", sorted(SETTINGS))
def test_grpo_in_the_bundled_imagination_improves_every_head(head, imagination):
    world_model, judge, starts, demos, rows = imagination
    policy = cloned(head, demos, rows)

    def attempts(group: int, seed: int):
        draws = torch.Generator().manual_seed(seed)
        return collect(world_model, judge, policy, starts, group_size=group, horizon=25, generator=draws)

    before = attempts(96, 0)
    grpo = GRPO(GRPOConfig(lr=SETTINGS[head][1], updates=4))
    for i in range(ROUNDS):
        grpo.update(policy, attempts(40, 1 + i))
        policy.eval()
    after = attempts(96, 0)
    assert bool(before.valid.all()) and bool(after.valid.all())
    gain = paired_bootstrap(after.reward, before.reward)
    assert gain.low > 0, (
        f"{head}: {before.reward.mean():.3f} before, {after.reward.mean():.3f} after; gain {gain}"
    )
