"""A saved judge says its type; folders of earlier versions, which do not, are recognised by what is in them."""

from __future__ import annotations

import json

import pytest
import torch

from rewards import (
    CalibratedJudge,
    Calibration,
    ComposedJudge,
    HttpJudge,
    HttpJudgeConfig,
    LatentJudge,
    LatentJudgeConfig,
    LearnedJudge,
    LearnedJudgeConfig,
    ReferenceJudge,
    Term,
    load_judge,
)
from rewards.registered import earlier_judge
from worldgym import pretrained
from worldgym.errors import CheckpointError, ConfigError
from worldgym.registry import JUDGES
from worldgym.utils.folders import MANIFEST

TINY = LearnedJudgeConfig.preset("tiny")


def judges():
    learned = LearnedJudge(TINY)
    return {
        "learned": learned,
        "latent": LatentJudge(LatentJudgeConfig(width=16, asked=4)),
        "http": HttpJudge(HttpJudgeConfig(url="http://localhost:1/v1", model="none")),
        "reference": ReferenceJudge([torch.zeros(3, 8, 8, 3, dtype=torch.uint8)], ["push"]),
        "calibrated": CalibratedJudge(learned, Calibration((0.0, 1.0), (0.0, 1.0), 0.5)),
        "composed": ComposedJudge({"a": Term(learned), "b": Term(learned)}),
    }


@pytest.mark.parametrize("name", list(judges()))
def test_the_type_is_written_and_read(name, tmp_path):
    judge = judges()[name]
    JUDGES.save(judge, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["type"] == name
    assert type(load_judge(tmp_path)) is type(judge)


@pytest.mark.parametrize("name", list(judges()))
def test_a_folder_of_an_earlier_version_is_recognised(name, tmp_path):
    judge = judges()[name]
    judge.save_pretrained(tmp_path)
    for config in tmp_path.rglob("config.json"):
        facts = {k: v for k, v in json.loads(config.read_text()).items() if k != "type"}
        config.write_text(json.dumps(facts)) if facts else config.unlink()
    for manifest in tmp_path.rglob(MANIFEST):
        manifest.unlink()
    assert JUDGES.type_of(tmp_path) == name
    assert type(load_judge(tmp_path)) is type(judge)


def test_bundled_judges_are_recognised():
    root = pretrained.path("tabletop-small")
    assert [JUDGES.type_of(root / name) for name in ("judge", "judge_latent", "judge_open_clip")] == [
        "learned", "latent", "open_clip",
    ]  # fmt: skip


def test_a_model_of_transformers_is_a_vlm(tmp_path):
    assert earlier_judge(tmp_path, {"model_type": "idefics3"}) == "vlm"
    assert earlier_judge(tmp_path, {"chunk": 5}) is None


def test_another_class_does_not_read_it(tmp_path):
    LatentJudge(LatentJudgeConfig(width=16, asked=4)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="type 'latent', but LearnedJudge loads type 'learned'"):
        LearnedJudge.from_pretrained(tmp_path)


def test_an_edited_config_is_noticed_before_its_type_is_believed(tmp_path):
    LearnedJudge(TINY).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"learned"', '"learnep"'))
    with pytest.raises(CheckpointError, match="config.json has another SHA-256"):
        load_judge(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(ConfigError, match="unknown judge type 'learnep' .did you mean 'learned'"):
        load_judge(tmp_path)


class Encoder:
    def __init__(self, state):
        self.state = state

    def encoder_state(self):
        return self.state


def test_a_judge_starts_from_the_encoder_that_a_policy_offers():
    judge = LearnedJudge(TINY)
    wanted = torch.full_like(judge.conv2.weight, 0.5)
    taken = judge.init_from_policy(
        Encoder({"conv2.weight": wanted, "conv1.weight": torch.zeros(1), "other": wanted})
    )
    assert taken == ["conv2.weight"] and torch.equal(judge.conv2.weight, wanted)
    with pytest.raises(CheckpointError, match="no layer of the encoder"):
        judge.init_from_policy(Encoder({"other": wanted}))
    with pytest.raises(CheckpointError, match="offers no encoder_state"):
        judge.init_from_policy(object())
