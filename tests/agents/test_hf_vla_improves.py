"""A tiny vision-language model with each head learns by SFT, then by GRPO.

GRPO of every head runs on a line with known dynamics and the true reward, and of one head in the bundled imagined
tabletop; the other heads follow there with `-m slow`. Success is counted where the policy practises; success in Real at
fresh starts is measured by `test_hf_vla_practice.py` (slow) and stated in docs/guides/vla.md.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra `vla`")

from line_world import BrightJudge, LineWorld
from line_world import starts as line_starts

from agents import GRPO, SFT, GRPOConfig, SFTConfig
from agents.data.demonstrations import ChunkDataset
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
# Steps of SFT, rounds and learning rate of GRPO in the bundled imagination.
SETTINGS = {
    "parallel": (150, 10, 5e-4), "tokens": (150, 4, 1e-3), "fast": (200, 10, 1e-3), "l1": (120, 10, 5e-4),
    "flow": (100, 10, 5e-4),
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


def cloned(head: str, demos, rows: np.ndarray, *phases: tuple[float, int]) -> HFVLAPolicy:
    """A model of random weights after SFT on the demonstrations in `rows`; a phase has a learning rate and steps."""
    torch.manual_seed(0)
    config = {"vlm": VLM, "head": head, "action_dim": 4, "state_dim": 4, "binary_dims": (3,), "text_length": 64,
              "prompt": "{instruction}:", "expert_width": 32, "expert_ffn": 64}  # fmt: skip
    if head == "fast":
        config["fast"] = FastCodec.fit(demos.actions[rows]).to_json()
    policy = HFVLAPolicy(HFVLAConfig.from_dict(config), byte_tokenizer())
    policy.set_state_stats(demos.states)
    draws = np.random.default_rng(0)
    still = {"colour_jitter": 0.0, "noise": 0.0, "state_noise": 0.0}
    for lr, count in phases:
        drawn = draws.choice(rows, 64 * count)
        losses = SFT(SFTConfig(lr=lr, **still)).steps(policy, demos, drawn, count)
    assert np.isfinite(losses).all()
    return policy.eval()


def wandering(count: int = 48) -> ChunkDataset:
    """Demonstrations on the line that move by random amounts, as often to the left as to the right."""
    rng = np.random.default_rng(0)
    speed = rng.uniform(-0.8, 0.8, (count, 1)).astype(np.float32)
    actions = np.zeros((count, 5, 4), np.float32)
    actions[..., 0] = speed
    actions[..., 3] = np.where(speed > 0, 1.0, -1.0)
    images = rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    states, goals = np.zeros((count, 4), np.float32), np.full((count, 4), np.nan, np.float32)
    return ChunkDataset(images, states, ["move right"] * count, actions, np.arange(count), goals)


@pytest.mark.parametrize("head", sorted(SETTINGS))
def test_grpo_improves_every_head_from_true_reward(head):
    demos = wandering()
    policy = cloned(head, demos, np.arange(len(demos)), (2e-3, 60))

    def attempts(seed: int):
        draws = torch.Generator().manual_seed(seed)
        return collect(LineWorld(), BrightJudge(), policy, line_starts(4), group_size=16, horizon=10, generator=draws)

    before = np.mean([attempts(900 + i).success_rate() for i in range(3)])
    grpo = GRPO(GRPOConfig(lr=2e-3, updates=4))
    for i in range(8):
        grpo.update(policy, attempts(i))
        policy.eval()
    after = np.mean([attempts(990 + i).success_rate() for i in range(3)])
    assert after > before + 0.25, (before, after)


@pytest.mark.parametrize(
    "head", [pytest.param(head, marks=[] if head == "tokens" else pytest.mark.slow) for head in sorted(SETTINGS)]
)
def test_grpo_in_the_bundled_imagination_improves_every_head(head, imagination):
    world_model, judge, starts, demos, rows = imagination
    count, rounds, lr = SETTINGS[head]
    policy = cloned(head, demos, rows, (2e-3, count), (5e-4, 50))

    def attempts(group: int, seed: int):
        draws = torch.Generator().manual_seed(seed)
        return collect(world_model, judge, policy, starts, group_size=group, horizon=25, generator=draws)

    before = attempts(48, 0)
    grpo = GRPO(GRPOConfig(lr=lr, updates=4))
    for i in range(rounds):
        grpo.update(policy, attempts(40, 1 + i))
        policy.eval()
    after = attempts(48, 0)
    assert bool(before.valid.all()) and bool(after.valid.all())
    gain = paired_bootstrap(after.reward, before.reward)
    assert gain.low > 0, (
        f"{head}: {before.reward.mean():.3f} before, {after.reward.mean():.3f} after; gain {gain}"
    )
