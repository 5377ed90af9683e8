"""Judges of videos are given whole episodes by every command: a reference judge and a vision-language model."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
import torch

import worldgym  # noqa: F401
from experiments.bundle import Bundle
from experiments.cli import main
from experiments.pipelines.settings import CHECK_SEED0
from rewards import ReferenceJudge, ReferenceJudgeConfig, VlmJudge, VlmJudgeConfig, load_judge
from tests.rewards.test_vlm_judge import tiny_llava
from worldgym.evaluation import make_starts
from worldgym.evaluation.rollouts import first_observations

TASKS = ["reach", "push"]


@pytest.fixture(scope="module")
def references(bundle, tmp_path_factory):
    """A reference judge for every start that the tests begin from."""
    from envs.tabletop import TabletopEnv

    model, env = Bundle.find(str(bundle)).world_model(), TabletopEnv()
    real = first_observations(env, make_starts(TASKS, 2, CHECK_SEED0))
    env.close()
    kept = np.load(bundle / "starts.npz")
    images = np.concatenate([real["image"], kept["images"][:1]])
    states = np.concatenate([real["state"], kept["states"][:1]])
    texts = [*map(str, real["instruction"]), str(kept["instructions"][0])]
    first = torch.from_numpy(images)
    state = model.begin(first[:, None], torch.zeros(len(first), 0, 4), states=torch.from_numpy(states)[:, None])
    with torch.no_grad():
        _, made = model.step(state, torch.zeros(len(first), 10, 4))
    videos = list(torch.cat([first[:, None], made.frames], 1))
    judge = ReferenceJudge(videos, texts, ReferenceJudgeConfig(threshold=1.0))
    folder = tmp_path_factory.mktemp("references") / "judge"
    judge.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlm") / "judge"
    model, processor = tiny_llava()
    VlmJudge(model, processor, VlmJudgeConfig(size=16, stride=5, threshold=1.0)).save_pretrained(folder)
    return folder


def command(bundle, judge, out, kind):
    loop = ["--episodes", "4", "--horizon", "10", "--bundle", str(bundle)]
    return {
        "rl": ["rl", "--quick", "--bundle", str(bundle), "--judge", str(judge), "--out", str(out)],
        "closed-loop": ["bench", "closed-loop", *loop, "--judge", str(judge), "--policies", "sft", "--out", str(out)],
        "audit": [
            "audit", *loop, "--judges", str(judge), "--start-seed", str(CHECK_SEED0), "--json", str(out)
        ],
    }[kind]  # fmt: skip


@pytest.mark.parametrize("kind", ["rl", "closed-loop", "audit"])
@pytest.mark.parametrize("which", ["references", "vlm"])
def test_every_command_shows_it_whole_episodes(bundle, tmp_path, kind, which, request, monkeypatch):
    folder, shown = request.getfixturevalue(which), []
    judge = type(load_judge(folder))
    score = judge.score

    def watched(self, frames, instructions):
        verdict = score(self, frames, instructions)
        shown.append((frames.shape[1], torch.as_tensor(verdict.p_success)))
        return verdict

    monkeypatch.setattr(judge, "score", watched)
    out = tmp_path / ("run" if kind == "rl" else "out.json")
    assert main(command(bundle, folder, out, kind)) in (0, 1)  # 1: the gate is not passed
    assert {length for length, _ in shown} == {6, 11}, "one chunk, and two, with the first frame"
    assert all(bool(torch.isfinite(p).all()) for _, p in shown), "it applies to these starts"
    if kind == "rl":
        history = json.loads((out / "history.json").read_text())
        assert all(np.isfinite(row["success_rate"]) for row in history)
    if kind == "closed-loop":
        assert json.loads(out.read_text())["policies"]["sft"]["invalid"] == 0


def test_the_environment_shows_it_whole_episodes(bundle, references):
    env = gym.make(
        "worldgym/Imagined-v0", world_model=str(bundle / "world_model"), reward=load_judge(references),
        starts=str(bundle / "starts.npz"), chunk=5, horizon=10,
    )  # fmt: skip
    env.reset(seed=0)
    first = env.step(np.zeros((5, 4), np.float32))[4]
    assert first["judge_valid"] and 0 < first["p_success"] <= 1
    other = gym.make(
        "worldgym/Imagined-v0", world_model=str(bundle / "world_model"), reward=load_judge(references), chunk=5,
        horizon=10,
    )  # fmt: skip
    other.reset(options={"initial_image": np.zeros((64, 64, 3), np.uint8), "instruction": "push it"})
    *_, truncated, info = other.step(np.zeros((5, 4), np.float32))
    assert truncated and info["invalid"] and np.isnan(info["p_success"]), "without a reference it does not apply"


def test_the_simulator_arm_refuses_a_judge_of_videos(references):
    from agents import SimulatorCollector
    from worldgym.errors import ConfigError

    refused = pytest.raises(ConfigError, match="frame at the end of each chunk")
    with SimulatorCollector(processes=0) as simulator, refused:
        simulator.collect(None, [0], ["reach"], judge=load_judge(references))
