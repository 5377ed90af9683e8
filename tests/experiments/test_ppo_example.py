"""The one-file PPO: its advantages by hand, its clip, and a run from end to end."""

from __future__ import annotations

import json

import pytest
import torch

from experiments.examples.ppo import Agent, Args, advantages, held, improve, main


def test_advantages_are_the_discounted_sums_that_they_stand_for():
    args, steps = Args(gamma=0.9, lam=1.0), 6
    torch.manual_seed(0)
    reward, value, next_value = torch.rand(3, steps, 2)
    terminated, truncated = torch.zeros(2, steps, 2, dtype=torch.bool)
    terminated[2, 0] = truncated[3, 1] = True
    gain = advantages(
        {"reward": reward, "value": value, "next_value": next_value, "terminated": terminated, "truncated": truncated},
        args,
    )
    next_value[:-1] = value[1:]  # what a run has; where an episode ends by time the value of its own last frame counts
    chain = advantages(
        {"reward": reward, "value": value, "next_value": next_value, "terminated": terminated, "truncated": truncated},
        args,
    )
    # lambda of 1: return minus value, up to the end of the episode or of the window
    for slot, end, tail in ((0, 2, 0.0), (1, 3, float(next_value[3, 1]))):
        total = tail
        for t in range(end, -1, -1):
            total = float(reward[t, slot]) + 0.9 * total
        assert float(chain[0, slot] + value[0, slot]) == pytest.approx(total, abs=1e-5)
    assert gain.shape == (steps, 2) and not torch.allclose(gain, chain)


def test_updates_make_good_actions_likelier_and_stay_within_the_clip():
    torch.manual_seed(0)
    args, agent = Args(epochs=4, minibatches=2, entropy=0.0), Agent(20, -0.5)
    n = 64
    seen = torch.randn(n, 20)
    with torch.no_grad():
        policy, value = agent(seen)
        action = policy.sample()
        log_prob = policy.log_prob(action).sum(-1)
    gain = action[:, 0]  # the further right, the better
    batch = {
        "seen": seen, "action": action, "log_prob": log_prob, "advantage": gain, "return": gain + value, "reward": gain,
    }  # fmt: skip
    losses = improve(agent, torch.optim.Adam(agent.parameters(), 1e-3), batch, args)
    with torch.no_grad():
        assert agent(seen)[0].mean[:, 0].mean() > policy.mean[:, 0].mean()
    assert 0 <= losses["clip_fraction"] <= 1 and set(losses) == {
        "policy_gradient_loss", "value_loss", "entropy_loss", "clip_fraction",
    }  # fmt: skip


def test_an_action_is_held_and_kept_within_bounds():
    chunk = held(torch.tensor([[2.0, -3.0, 0.5, 0.0]]), 3)
    assert chunk.shape == (1, 3, 4) and chunk[0, 2].tolist() == [1.0, -1.0, 0.5, 0.0]


@pytest.mark.slow
def test_the_program_runs_and_writes_what_it_found(tmp_path):
    args = Args(out=tmp_path, frames=320, num_envs=4, chunk=5, steps=8, eval_episodes=5, threads=1)
    assert main(args) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["frames"] for row in results["curve"]] == [160, 320]
    assert {"before", "after", "difference", "versions"} <= set(results)
    assert (tmp_path / "policy" / "model.safetensors").is_file() and list(tmp_path.glob("events.out.*"))
