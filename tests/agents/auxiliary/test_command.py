"""`worldgym train policy --aux`: settings, video without actions, resuming, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from squares import SIZE, episode

from envs.tabletop import TABLETOP_ACTION_SPEC
from experiments.commands import train_policy
from experiments.commands.train_policy import TrainPolicyConfig
from worldgym.data import DatasetWriter, Episode, SplitManifest
from worldgym.errors import ConfigError
from worldgym.specs import Camera, ObservationSpec, Specs, StateField


def write(path: Path, split: str = "seen", side: int = SIZE, count: int = 6) -> Path:
    state = (*(StateField(name, "ee_position", "m") for name in "xyz"), StateField("opening", "gripper", "m"))
    specs = Specs(ObservationSpec((Camera("front", side, side),), state), TABLETOP_ACTION_SPEC)
    with DatasetWriter(path, specs, SplitManifest(name="test", rules={})) as writer:
        for number in range(count):
            one = episode(number, steps=6)
            success = np.zeros(7, bool)
            success[-1] = True
            frames = np.repeat(np.repeat(one.frames, side // SIZE, 1), side // SIZE, 2)
            writer.append(
                Episode(
                    frames=frames, actions=one.actions, state=one.state, instruction=one.instruction, success=success,
                    progress=success.astype(np.float32), domain="real", split=split, task="push",
                    provenance={"behaviour": "expert", "seed": number},
                )
            )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("logs") / "real")


def config(data, out, **changes):
    values = {
        "preset": "tiny",
        "epochs": 2,
        "batch_size": 16,
        "finish_steps": 2,
        "aux": ("flare",),
        **changes,
    }
    return TrainPolicyConfig(data=data, out=out, **values)


def test_it_trains_a_policy_with_future_tokens_that_loads_alone(data, tmp_path):
    from agents import load_policy

    chosen = config(data, tmp_path / "p", aux_settings=("tokens=4", "weight=0.1"))
    assert train_policy.run(chosen) == 0 == train_policy.run(chosen)
    assert load_policy(tmp_path / "p").config.future_tokens == 4
    facts = json.loads((tmp_path / "p/training.json").read_text())
    assert facts["auxiliary"]["flare"]["weight"] == 0.1 and "video" not in facts
    run = json.loads((tmp_path / "p/run.json").read_text())
    assert "--aux-video" not in run["facts"] and run["facts"]["--aux"] == ["flare"]
    with pytest.raises(ConfigError, match="holds a run with other settings"):
        train_policy.run(config(data, tmp_path / "p"))


def test_without_it_nothing_is_recorded_about_it(data, tmp_path):
    assert train_policy.run(config(data, tmp_path / "p", aux=())) == 0
    for name in ("run.json", "training.json", "config.json"):
        facts = json.loads((tmp_path / "p" / name).read_text())
        facts = facts.get("facts", facts)
        assert not [key for key in facts if "aux" in key or "future" in key], name


def test_a_run_that_ended_before_this_option_is_still_finished(data, tmp_path, monkeypatch):
    from agents.algorithms.sft import SFT
    from worldgym.utils.files import read_sealed, write_sealed

    chosen = config(data, tmp_path / "p", aux=())
    assert train_policy.run(chosen) == 0
    marker = tmp_path / "p/run.json"
    facts = read_sealed(marker, "")
    for name in ("aux", "aux_settings", "aux_video"):
        del facts["finished"]["settings"][name]
    write_sealed(marker, facts, indent=1)
    monkeypatch.setattr(SFT, "fit", lambda *a, **k: pytest.fail("it trained again"))
    assert train_policy.run(chosen) == 0


def test_video_of_a_held_out_split_is_used_without_its_actions_and_said_so(data, tmp_path, caplog):
    video = write(tmp_path / "video", split="unseen_object", count=3)
    assert train_policy.run(config(data, tmp_path / "p", aux_video=video)) == 0
    assert "unseen_object: for this policy it is no longer unseen" in caplog.text
    facts = json.loads((tmp_path / "p/training.json").read_text())
    assert facts["video"] == {"data": "video", "episodes": 3, "frames": 18, "splits": ["unseen_object"]}
    other = write(tmp_path / "other", count=2)
    with pytest.raises(ConfigError, match="--aux-video"):
        train_policy.run(config(data, tmp_path / "p", aux_video=other))


def test_mistakes_are_explained_and_leave_the_folder_free(data, tmp_path):
    with pytest.raises(
        ConfigError, match="--aux-settings weight=1 is for an auxiliary loss, .* add --aux flare"
    ):
        config(data, tmp_path / "p", aux=(), aux_settings=("weight=1",))
    with pytest.raises(ConfigError, match="--aux is missing; add --aux flare"):
        config(data, tmp_path / "p", aux=(), aux_video=data)
    with pytest.raises(ConfigError, match="its goal head alone; leave one of them out"):
        config(data, tmp_path / "p", initial=tmp_path)
    with pytest.raises(ConfigError, match="unknown auxiliary loss type 'jepa'"):
        train_policy.run(config(data, tmp_path / "p", aux=("jepa",)))
    with pytest.raises(ConfigError, match="--aux-settings 'weight': expected name=value"):
        train_policy.run(config(data, tmp_path / "p", aux_settings=("weight",)))
    with pytest.raises(ConfigError, match="layer is 7, and this policy has 2 transformer layers"):
        train_policy.run(config(data, tmp_path / "p", aux_settings=("layer=7",)))
    large = write(tmp_path / "large", side=32, count=2)
    with pytest.raises(ConfigError, match="cameras main 32x32, and the other data have main 16x16"):
        train_policy.run(config(data, tmp_path / "p", aux_video=large))
    with pytest.raises(ConfigError, match="type --aux-settings encoder=FOLDER"):
        train_policy.run(config(data, tmp_path / "p", aux=("vla-jepa",)))
    with pytest.raises(ConfigError, match="leave out --aux-video or weight=0"):
        train_policy.run(config(data, tmp_path / "p", aux_settings=("weight=0",), aux_video=data))
    assert train_policy.run(config(data, tmp_path / "p", epochs=1)) == 0


@pytest.mark.parametrize("leak", ["none", "policy"])
def test_latent_actions_are_trained_with_the_tokenizer_of_the_bundled_world_model(tmp_path, leak):
    from agents import load_policy
    from experiments.cli import main

    data = write(tmp_path / "data", side=64, count=2)
    words = (
        f"train policy --data {data} --out {tmp_path / 'p'} --preset tiny --epochs 1 --finish-steps 1".split()
    )
    settings = ["steps=2", "tokens_per_step=2", "width=32", "heads=2", "depth=1", f"leak={leak}"]
    assert main([*words, "--device", "cpu", "--aux", "vla-jepa", "--aux-settings", *settings]) == 0
    policy = load_policy(tmp_path / "p")
    assert policy.config.future_tokens == 4 and policy.config.future_view == (leak == "policy")


def test_targets_of_a_single_row_are_not_standardised_to_zero(data, tmp_path):
    with pytest.raises(ConfigError, match="got 1 row; try --batch-size 128, or --aux-settings standardise=false"):
        train_policy.run(config(data, tmp_path / "p", batch_size=1, epochs=1))
    kept = config(data, tmp_path / "q", batch_size=1, epochs=1, aux_settings=("standardise=false",))
    assert train_policy.run(kept) == 0
