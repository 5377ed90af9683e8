from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from envs.tabletop import TABLETOP_ACTION_SPEC
from experiments.commands import train_judge, train_policy
from experiments.commands.train_judge import TrainJudgeConfig
from experiments.commands.train_policy import TrainPolicyConfig
from worldgym.data import DatasetWriter, Episode, SplitManifest
from worldgym.errors import CheckpointError, ConfigError, DatasetError


def write(path: Path, split: str = "seen") -> Path:
    with DatasetWriter(path, TABLETOP_ACTION_SPEC, 16, 4, SplitManifest(name="test", rules={})) as writer:
        for number in range(8):
            rng = np.random.default_rng(number)
            success = np.zeros(6, bool)
            success[-2:] = number % 4 != 0
            writer.append(
                Episode(
                    frames=rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8),
                    actions=rng.uniform(-1, 1, (5, 4)).astype(np.float32),
                    state=rng.normal(size=(6, 4)).astype(np.float32),
                    instruction=f"push the {('red', 'blue')[number % 2]} cube to the left",
                    success=success,
                    progress=success.astype(np.float32),
                    domain="real",
                    split=split,
                    task="push",
                    provenance={"behaviour": "expert" if number % 4 else "random", "seed": number},
                )
            )
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("logs") / "real")


def policy_config(data, out, **changes):
    values = {"demos_per_task": 4, "preset": "tiny", "epochs": 3, "batch_size": 16, "finish_steps": 8, **changes}
    return TrainPolicyConfig(data=data, out=out, **values)


def test_train_policy_saves_a_policy_that_loads(data, tmp_path):
    from agents import VLAPolicy

    assert train_policy.run(policy_config(data, tmp_path / "p")) == 0
    assert VLAPolicy.from_pretrained(tmp_path / "p").config.image_size == 16
    facts = json.loads((tmp_path / "p" / "training.json").read_text())
    assert facts["demos"] == {"push": 4} and facts["behaviour"] == "expert"
    assert list((tmp_path / "p" / "tensorboard").iterdir()) and not (tmp_path / "p" / "checkpoint").exists()


def test_the_goal_head_alone_can_be_left_out(data, tmp_path):
    from agents import VLAPolicy

    assert train_policy.run(policy_config(data, tmp_path / "with", hand="yes")) == 0
    assert train_policy.run(policy_config(data, tmp_path / "without", hand="yes", goal_head=False)) == 0
    first, second = (VLAPolicy.from_pretrained(tmp_path / name).config for name in ("with", "without"))
    assert (first.goal_dims, second.goal_dims) == (3, 0) and first.specs == second.specs
    assert "--goal-head" not in json.loads((tmp_path / "with/run.json").read_text())["facts"]
    with pytest.raises(ConfigError, match="other settings"):
        train_policy.run(policy_config(data, tmp_path / "without", hand="yes"))
    with pytest.raises(ConfigError, match="--no-goal-head"):
        policy_config(data, tmp_path / "p", goal_head=False, initial=tmp_path / "with")


def test_ctrl_c_keeps_the_last_epoch_and_the_same_command_goes_on(data, tmp_path, monkeypatch):
    from agents.algorithms.sft import SFT

    assert train_policy.run(policy_config(data, tmp_path / "whole")) == 0
    honest, calls = SFT.evaluate, []

    def interrupt(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return honest(*args, **kwargs)

    monkeypatch.setattr(SFT, "evaluate", staticmethod(interrupt))
    with pytest.raises(KeyboardInterrupt):
        train_policy.run(policy_config(data, tmp_path / "p"))
    assert (tmp_path / "p" / "checkpoint" / "state.json").is_file()
    monkeypatch.setattr(SFT, "evaluate", staticmethod(honest))
    assert train_policy.run(policy_config(data, tmp_path / "p")) == 0
    whole, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "p"))
    assert whole == again


def test_train_judge_saves_a_judge_that_loads(data, tmp_path):
    from rewards import LearnedJudge

    config = TrainJudgeConfig(data=data, out=tmp_path / "j", preset="tiny", steps=3, batch_size=8)
    assert train_judge.run(config) == 0
    judge = LearnedJudge.from_pretrained(tmp_path / "j")
    report = json.loads((tmp_path / "j" / "training.json").read_text())["held_out"]
    assert report["threshold"] == judge.threshold and list(report)[0] == "fpr"


def test_mistakes_are_explained(data, tmp_path):
    with pytest.raises(DatasetError, match="behaviour 'wizard'"):
        train_policy.run(policy_config(data, tmp_path / "p", behaviour="wizard"))
    with pytest.raises(ConfigError, match="preset"):
        policy_config(data, tmp_path / "p", preset="huge")
    with pytest.raises(ConfigError, match="not both"):
        TrainJudgeConfig(data=data, world_model=Path("a"), tokenizer=Path("b"))
    with pytest.raises(CheckpointError, match="worldgym train tokenizer"):
        train_judge.run(TrainJudgeConfig(data=data, out=tmp_path / "j", tokenizer=tmp_path / "none"))


def test_episodes_of_an_unseen_split_are_refused(tmp_path):
    held_out = write(tmp_path / "u", split="unseen_object")
    with pytest.raises(DatasetError, match="seen"):
        train_policy.run(policy_config(held_out, tmp_path / "p"))
    with pytest.raises(DatasetError, match="seen"):
        train_judge.run(TrainJudgeConfig(data=held_out, out=tmp_path / "j", preset="tiny", steps=1))


@pytest.mark.parametrize("head", ["parallel", "tokens", "flow"])
def test_a_vision_language_model_is_trained_by_the_same_command(data, tmp_path, head):
    pytest.importorskip("transformers", reason="needs the extra `vla`")
    from agents import load_policy

    settings = (f"head={head}", "lora={rank: 2}", "chunk=3")
    config = policy_config(data, tmp_path / "p", type="hf_vla", settings=settings, epochs=1, finish_steps=1)
    assert train_policy.run(config) == 0 == train_policy.run(config)
    policy = load_policy(tmp_path / "p")
    assert policy.config.head == head and policy.config.lora.rank == 2 and policy.chunk == 3
    assert bool((policy.state_std != 1).any()), "normalisation is that of the demonstrations"
    with pytest.raises(ConfigError, match="did you mean 'head'"):
        train_policy.run(policy_config(data, tmp_path / "q", type="hf_vla", settings=("heed=flow",)))
    with pytest.raises(ConfigError, match="there are tiny, smolvlm-256m"):
        train_policy.run(policy_config(data, tmp_path / "q", type="hf_vla", preset="large"))
    with pytest.raises(ConfigError, match="--settings is for other types than vla"):
        policy_config(data, tmp_path / "q", settings=settings)
    with pytest.raises(ConfigError, match="--settings 'head': expected name=value, such as --settings head=flow"):
        train_policy.run(policy_config(data, tmp_path / "q", type="hf_vla", settings=("head",)))


def test_a_policy_also_learns_from_the_frames_that_imagination_shows(tmp_path):
    import torch

    from agents import load_policy
    from agents.data.demonstrations import ChunkDataset
    from experiments.cli import main
    from worldgym import pretrained
    from worldgym.suite import load_suite

    class Darker:
        """A tokenizer that halves every value."""

        def encode(self, frames):
            return frames

        def decode(self, latents):
            return latents // 2

    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    zeros = np.zeros((5, 4), np.float32)
    demos = ChunkDataset(images, zeros, ["a"] * 5, np.zeros((5, 3, 4), np.float32), np.array([0, 0, 1, 1, 2]), zeros)
    twice = demos.with_decoded(Darker())
    assert np.array_equal(twice.images, np.concatenate([images, images // 2]))
    train, val = twice.split(0.4, seed=0)
    assert not set(train.episode) & set(val.episode), "both copies of a frame are on one side"
    demos.views["wrist"] = images
    with pytest.raises(ConfigError, match="also have wrist; leave --decoded-by out"):
        demos.with_decoded(Darker())

    data, out = tmp_path / "data", tmp_path / "p"
    collect = ["collect", "--out", str(data), "--episodes", "6", "--tasks", "reach", "--mix", "expert=1"]
    assert main([*collect, "--workers", "0"]) == 0
    model = pretrained.path("tabletop-small") / "world_model"
    arguments = ["--preset", "tiny", "--epochs", "1", "--finish-steps", "1", "--decoded-by", str(model)]
    assert main(["train", "policy", "--data", str(data), *arguments, "--out", str(out)]) == 0
    seen = {"image": torch.zeros(1, 64, 64, 3, dtype=torch.uint8), "state": torch.zeros(1, 4), "instruction": ["reach"]}
    assert load_policy(out).act(seen, temperature=0.0).actions.shape == (1, 5, load_suite(None).specs.action.dim)
