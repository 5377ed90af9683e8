"""A bundle with random weights and real frames: enough to run every line of the demo in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

TASKS = ("reach", "push")


def make_tiny_bundle(folder: Path) -> Path:
    from agents import Starts, VLAPolicy, VLAPolicyConfig, collect
    from envs.tabletop import TabletopEnv
    from rewards import LearnedJudge
    from rewards.models.learned import LearnedJudgeConfig
    from worldgym.models import VideoWorldModel, WorldModelConfig

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    policy = VLAPolicy(VLAPolicyConfig.preset("tiny")).eval()
    policy.save_pretrained(str(folder / "policy_sft"))
    world_model, judge = (
        VideoWorldModel(WorldModelConfig.preset("tiny")),
        LearnedJudge(LearnedJudgeConfig.preset("tiny")),
    )
    with torch.no_grad():
        # A newborn model predicts no change and a newborn judge says 0.5: neither would give GRPO a mixed group.
        for parameter in world_model.dynamics.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
        judge.head[-1].weight.mul_(3000)
    world_model.save_pretrained(folder / "world_model")
    env, rng = TabletopEnv(), np.random.default_rng(0)
    rows = []
    for i in range(6):
        observation, info = env.reset(seed=i, options={"task": TASKS[i % 2]})
        rows.append((observation["image"], observation["state"], info["instruction_text"], TASKS[i % 2]))
    images, states, texts, tasks = (np.array(column) for column in zip(*rows, strict=True))
    # One start under two names: a random judge tells starts apart far better than attempts from one of them.
    for column in (images, states, texts):
        column[:] = column[0]
    np.savez(folder / "starts.npz", images=images, states=states, instructions=texts, tasks=tasks)
    actions = rng.uniform(-1, 1, (6, 5, 4)).astype(np.float32)
    demos = {"images": images, "states": states, "instructions": texts, "actions": actions}
    np.savez(folder / "demos.npz", **demos, episode=np.arange(6), goals=states)
    starts = Starts(
        torch.tensor(images), torch.tensor(states), texts.tolist(), tasks.tolist(), torch.zeros(6)
    )
    # Half of what this policy imagines is to count as success, whatever the random weights turned out to be.
    said: list[torch.Tensor] = []
    hook = judge.head.register_forward_hook(lambda module, args, out: said.append(out.flatten().float()))
    collect(world_model, judge.eval(), policy, starts, group_size=4, horizon=10, threshold=2.0)
    hook.remove()
    with torch.no_grad():
        judge.head[-1].bias.sub_(torch.cat(said).median())
    judge.save_pretrained(str(folder / "judge"))
    card = {"tasks": list(TASKS), "tasks_thin": [], "real_episodes": 6}
    (folder / "card.json").write_text(json.dumps(card))
    return folder
