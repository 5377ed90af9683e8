"""A saved policy records its type and is loaded by it, here and in other processes; heads are found by name."""

from __future__ import annotations

import json

import pytest
import torch
from line_world import observation, tiny_policy

from agents import VLAPolicy, VLAPolicyConfig, load_policy
from agents.loading import pack_policy
from agents.policies.conditioned import ConditionedPolicy, ForesightPolicy
from agents.policies.heads import L1Head
from agents.registered import earlier_policy
from rewards import LearnedJudge, LearnedJudgeConfig
from worldgym.errors import CheckpointError
from worldgym.evaluation import PolicyRef
from worldgym.models import FrameTokenizer, TokenizerConfig
from worldgym.models.foresight import Foresight
from worldgym.registry import HEADS, POLICIES
from worldgym.utils.folders import MANIFEST


def of_type(name):
    policy = tiny_policy()
    if name == "vla":
        return policy
    if name == "conditioned":
        return ConditionedPolicy.of(policy, 3)
    torch.manual_seed(0)
    tokenizer = FrameTokenizer(
        TokenizerConfig(image_size=16, latent_channels=4, widths=(8, 8, 8), blocks=(1, 1, 1))
    )
    foresight = Foresight.of(tokenizer.eval(), futures=1, width=32, depth=1, heads=2, tokens=3).eval()
    return ForesightPolicy(ConditionedPolicy.of(policy, 3), foresight)


@pytest.mark.parametrize("name", ["vla", "conditioned", "foresight"])
def test_every_type_is_saved_and_loaded_by_its_name(name, tmp_path):
    policy = of_type(name)
    POLICIES.save(policy, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["type"] == name
    seen = observation(2)
    wanted = policy.act(seen, temperature=0.0).actions
    for loaded in (load_policy(tmp_path), PolicyRef(str(tmp_path)).load(), pack_policy(policy).load()):
        assert type(loaded) is type(policy)
        assert torch.equal(loaded.act(seen, temperature=0.0).actions, wanted)


@pytest.mark.parametrize("name", ["vla", "conditioned", "foresight"])
def test_folders_of_earlier_versions_are_recognised(name, tmp_path):
    of_type(name).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("type")
    (tmp_path / "config.json").write_text(json.dumps(config)) if config else (
        tmp_path / "config.json"
    ).unlink()
    (tmp_path / MANIFEST).unlink()
    assert POLICIES.type_of(tmp_path) == name
    assert earlier_policy(tmp_path / "nowhere", {"keypoints": 3}) is None


def test_a_class_refuses_the_folder_of_another_type(tmp_path):
    of_type("conditioned").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="type 'conditioned', but VLAPolicy loads type 'vla'"):
        VLAPolicy.from_pretrained(tmp_path)


def test_a_packed_policy_keeps_its_mode():
    policy = of_type("vla")
    assert not pack_policy(policy.eval()).load().training
    assert pack_policy(policy.train()).load().training
    assert pack_policy(policy).key == pack_policy(policy).key


def test_a_registered_head_is_used_by_name(tmp_path, monkeypatch):
    class Sharp(L1Head):
        def __init__(self, width: int, action_dim: int, sharpness: float = 0.5) -> None:
            super().__init__(width, action_dim, scale=sharpness)

    monkeypatch.setitem(HEADS._known, "sharp", Sharp)
    policy = VLAPolicy(VLAPolicyConfig.preset("tiny", head="sharp", head_settings={"sharpness": 0.1}))
    policy.save_pretrained(tmp_path)
    assert isinstance(load_policy(tmp_path).head, Sharp)


def test_a_policy_offers_its_encoder_to_a_judge():
    policy = VLAPolicy(VLAPolicyConfig.preset("small"))
    judge = LearnedJudge(LearnedJudgeConfig.preset("small"))
    taken = judge.init_from_policy(policy)
    assert {"text_mean", "text_std", "text.0.weight", "conv1.weight", "conv2.weight"} <= set(taken)
    assert torch.equal(judge.conv1.weight, policy.pointer.conv1.weight)
    assert torch.equal(judge.text_std, policy.text_std)


def test_the_type_is_no_setting_when_a_hub_is_asked(tmp_path, monkeypatch):
    policy = of_type("vla")
    policy.save_pretrained(tmp_path)

    def download(repo_id, filename, **how):
        assert repo_id == "someone/policy"
        return str(tmp_path / filename)

    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", download)
    loaded = VLAPolicy.from_pretrained("hf:someone/policy")
    assert loaded.config == policy.config
    assert torch.equal(loaded.head.weight, policy.head.weight)
