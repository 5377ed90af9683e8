"""A bundle with random weights and real frames: enough to run every line of the demo in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

TASKS = ("reach", "push")


def make_tiny_bundle(folder: Path) -> Path:
    from agents import VLAPolicy, VLAPolicyConfig
    from envs.tabletop import TabletopEnv
    from rewards import LearnedJudge
    from rewards.learned import LearnedJudgeConfig
    from worldgym.models import VideoWorldModel, WorldModelConfig

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    VLAPolicy(VLAPolicyConfig.preset("tiny")).save_pretrained(str(folder / "policy_sft"))
    LearnedJudge(LearnedJudgeConfig.preset("tiny")).save_pretrained(str(folder / "judge"))
    VideoWorldModel(WorldModelConfig.preset("tiny")).save_pretrained(folder / "world_model")
    env, rng = TabletopEnv(), np.random.default_rng(0)
    rows = []
    for i in range(6):
        observation, info = env.reset(seed=i, options={"task": TASKS[i % 2]})
        rows.append((observation["image"], observation["state"], info["instruction"], TASKS[i % 2]))
    images, states, texts, tasks = (np.array(column) for column in zip(*rows, strict=True))
    np.savez(folder / "starts.npz", images=images, states=states, instructions=texts, tasks=tasks)
    actions = rng.uniform(-1, 1, (6, 5, 4)).astype(np.float32)
    np.savez(folder / "demos.npz", images=images, states=states, instructions=texts, actions=actions)
    card = {"tasks": list(TASKS), "tasks_thin": [], "real_episodes": 6}
    (folder / "card.json").write_text(json.dumps(card))
    return folder
