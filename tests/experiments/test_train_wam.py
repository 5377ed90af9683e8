"""`worldgym train wam`: where its weights begin, video without actions, optical flow as actions, and its identity."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.commands.train_wam import TrainWamConfig, run
from experiments.commands.train_world_model import TrainWorldModelConfig
from experiments.commands.train_world_model import run as train_world_model
from worldgym.data import DatasetWriter, Episode, SplitManifest
from worldgym.errors import ConfigError
from worldgym.models.joint import JointConfig, JointModel
from worldgym.specs import ActionSpec, Camera, ObservationSpec, Specs, StateField
from worldgym.utils.compiling import has_compiler

SIDE, LENGTH = 32, 9


def write(
    path: Path,
    dims: int = 2,
    count: int = 4,
    side: int = SIDE,
    fps: float = 5.0,
    split: str = "seen",
    first: int = 0,
) -> Path:
    """Episodes of a bright square that moves; `dims` actions, 0 for none."""
    action = (
        ActionSpec(tuple("abc"[:dims]), ("m",) * dims, 5.0, (-1.0,) * dims, (1.0,) * dims) if dims else None
    )
    specs = Specs(ObservationSpec((Camera("front", side, side),), (StateField("x"), StateField("y"))), action)
    with DatasetWriter(path, specs, SplitManifest(name="test", rules={}), fps=fps) as writer:
        for number in range(first, first + count):
            rng = np.random.default_rng(number)
            steps = rng.integers(-1, 2, (LENGTH, 2))
            at = np.concatenate([[(12, 12)], 12 + np.cumsum(steps, 0)]).clip(0, SIDE - 8)
            frames = np.full((LENGTH + 1, SIDE, SIDE, 3), 30, np.uint8)
            for frame, (x, y) in zip(frames, at, strict=True):
                frame[y : y + 8, x : x + 8] = rng.integers(120, 255, (8, 8, 1))
            success = np.arange(LENGTH + 1) == LENGTH
            writer.append(
                Episode(
                    frames=frames[:, :side, :side],
                    actions=np.tile(steps[:, :1], (1, dims)).astype(np.float32) if dims else None,
                    state=at.astype(np.float32), instruction="move", success=success,
                    progress=success.astype(np.float32), domain="real", split=split, task="move",
                    provenance={"behaviour": "expert", "seed": number},
                )
            )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A joint model of another family, whose tokenizer is used."""
    path = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    states = np.zeros((4, 2), np.float32)
    config = JointConfig.preset("tiny", "uwm")
    config = replace(config, tokenizer=replace(config.tokenizer, image_size=SIDE, background=False))
    specs = Specs(
        ObservationSpec((Camera("front", SIDE, SIDE),), (StateField("x"), StateField("y"))),
        ActionSpec(("a", "b"), ("m",) * 2, 5.0, (-1.0,) * 2, (1.0,) * 2),
    )
    return JointModel(config.for_data(states, specs)).save_pretrained(path / "uwm")


def config(data: Path, initial: Path, out: Path, **changes) -> TrainWamConfig:
    values = {
        "family": "motus",
        "preset": "tiny",
        "steps": 2,
        "batch_size": 4,
        "settings": ("chunk=3",),
        **changes,
    }
    return TrainWamConfig(data=data, initial=initial, out=out, **values)


def test_a_model_goes_on_from_one_of_its_family_and_takes_the_tokenizer_of_another(start, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    data = write(tmp_path / "data")
    assert run(config(data, start, tmp_path / "one")) == 0
    assert "of the family uwm, this one of motus: only its tokenizer is used" in caplog.text
    one = JointModel.from_pretrained(tmp_path / "one/export")
    first = JointModel.from_pretrained(start).tokenizer.state_dict()
    assert all(torch.equal(value, first[name]) for name, value in one.tokenizer.state_dict().items())
    assert run(config(data, tmp_path / "one/export", tmp_path / "two", steps=1, lr=1e-9)) == 0
    two = JointModel.from_pretrained(tmp_path / "two/export")
    there = two.network.state_dict()
    assert all(
        torch.allclose(value, there[name], atol=1e-6) for name, value in one.network.state_dict().items()
    )
    count = len({**one.network.state_dict(prefix="n."), **one.integrator.state_dict()})
    assert f"{count} of {count} weights are those of the initial model" in caplog.text


def test_a_remedy_that_is_typed_after_a_refusal_is_accepted(start, tmp_path):
    data = write(tmp_path / "data")
    with pytest.raises(ConfigError, match="try --settings chunk=5"):
        run(config(data, start, tmp_path / "run", settings=("chunk=60",)))
    assert run(config(data, start, tmp_path / "run", settings=("chunk=5",))) == 0


@pytest.mark.parametrize("compiler", ["nothere", "", "  ", "nice g++"])
def test_a_compiler_that_cannot_be_called_is_refused_before_anything_is_made(compiler, start, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", compiler)
    assert not has_compiler()
    with pytest.raises(ConfigError, match="CXX=g") as error:
        run(config(write(tmp_path / "data"), start, tmp_path / "run", compile=True))
    assert repr(compiler) in str(error.value) and not (tmp_path / "run").exists()


def test_an_error_of_one_of_several_processes_is_the_error_of_the_command(start, tmp_path):
    chosen = TrainWorldModelConfig(
        type="joint", data=write(tmp_path / "data"), initial=start, out=tmp_path / "run", preset="tiny", steps=2,
        batch_size=4, processes=2, settings=("family=motus", "chunk=60"),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="^a chunk has 60 actions.*chunk=5$"):
        train_world_model(chosen)
    assert not (tmp_path / "run/run.json").exists()


def test_optical_flow_teaches_recordings_without_actions_and_the_robot_goes_on(start, tmp_path, caplog):
    pytest.importorskip("cv2", reason='install it with: pip install "worldgym[flow]"')
    caplog.set_level(logging.INFO)
    video, data = write(tmp_path / "video", dims=0), write(tmp_path / "data", dims=3)
    with pytest.raises(ConfigError, match="no action spec|learns them"):
        run(config(video, start, tmp_path / "none"))
    assert run(config(video, start, tmp_path / "flow", actions="flow")) == 0
    flow = JointModel.from_pretrained(tmp_path / "flow/export")
    assert flow.action_dim == 14 and flow.specs.action.names[0] == "flow_0"
    assert run(config(data, tmp_path / "flow/export", tmp_path / "robot")) == 0
    robot = JointModel.from_pretrained(tmp_path / "robot/export")
    assert robot.action_dim == 3 and robot.specs.action.names == ("a", "b", "c")
    assert "new: " in caplog.text and "network.action.weight" in caplog.text
    with pytest.raises(ConfigError, match="--actions"):
        run(config(video, start, tmp_path / "flow"))


def test_video_is_part_of_the_identity_of_a_run(start, tmp_path):
    data, video = write(tmp_path / "data"), write(tmp_path / "video", dims=3, count=2)
    chosen = config(data, start, tmp_path / "run", video=video)
    assert run(chosen) == 0 == run(chosen)
    with pytest.raises(ConfigError, match="--video"):
        run(config(data, start, tmp_path / "run"))
    with pytest.raises(ConfigError, match="--video"):
        run(config(data, start, tmp_path / "run", video=write(tmp_path / "other", count=3)))


def test_video_that_does_not_fit_leaves_the_folder_free(start, tmp_path):
    data, other = write(tmp_path / "data"), write(tmp_path / "other", side=16)
    with pytest.raises(ConfigError, match="main 16x16.*leave --video out"):
        run(config(data, start, tmp_path / "run", video=other))
    assert run(config(data, start, tmp_path / "run")) == 0


def test_the_content_of_the_initial_model_identifies_a_run(start, tmp_path):
    data = write(tmp_path / "data")
    assert run(config(data, start, tmp_path / "one")) == 0
    assert run(config(data, tmp_path / "one/export", tmp_path / "two")) == 0
    assert run(config(data, start, tmp_path / "one", seed=7, fresh=True)) == 0
    with pytest.raises(ConfigError, match="--initial"):
        run(config(data, tmp_path / "one/export", tmp_path / "two"))


def test_video_has_the_rate_of_the_logs_and_held_out_splits_are_said(start, tmp_path, caplog):
    data = write(tmp_path / "data")
    with pytest.raises(ConfigError, match="30 frames per second, and the other data have 5"):
        run(config(data, start, tmp_path / "run", video=write(tmp_path / "fast", dims=0, fps=30.0)))
    other = write(tmp_path / "other", dims=0, split="unseen_object")
    assert run(config(data, start, tmp_path / "run", video=other)) == 0
    assert "--video has episodes of the split unseen_object" in caplog.text


def test_video_changes_neither_the_robots_own_statistics_nor_its_flow_actions(start, tmp_path):
    data, video = write(tmp_path / "data"), write(tmp_path / "video", dims=0, count=20, first=50)
    assert (
        run(config(data, start, tmp_path / "alone"))
        == 0
        == run(config(data, start, tmp_path / "both", video=video))
    )
    alone, both = (
        JointModel.from_pretrained(tmp_path / name / "export").config for name in ("alone", "both")
    )
    assert (alone.state_mean, alone.state_std) == (both.state_mean, both.state_std)
