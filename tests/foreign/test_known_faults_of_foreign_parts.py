"""Kinds of faults that were once found on the tabletop, tried on the parts of another package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from foreign_commands import build_bundle, run
from safetensors.torch import load_file, save_file

import worldgym  # noqa: F401
from experiments.cli import main
from worldgym.data import EpisodeDataset
from worldgym.errors import CheckpointError
from worldgym.suite import load_suite

ID = "worldgym/Imagined-v0"


@pytest.fixture(scope="module")
def bundle(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """World model, judge and policy of the package, hardly trained."""
    return build_bundle(tmp_path_factory.mktemp("faults"))["bundle"]


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def make(bundle: Path, **settings: object) -> gym.Env:
    return gym.make(ID, checkpoint=str(bundle), **{"horizon": 10, **settings})


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command says that ends with exit code 2."""
    assert main([str(word) for word in words]) == 2, words
    return capsys.readouterr().err


# -- the environment ---------------------------------------------------------------------------------------------------
def test_an_async_vector_environment_gives_the_right_words_or_is_refused(bundle: Path) -> None:
    settings = {"checkpoint": str(bundle), "horizon": 10}
    with pytest.raises(Exception, match="shared_memory"):
        gym.make_vec(ID, num_envs=2, vectorization_mode="async", **settings)


def test_max_episode_steps_is_the_horizon_and_in_the_spec(bundle: Path) -> None:
    env = gym.make(ID, checkpoint=str(bundle), max_episode_steps=4)
    assert env.spec.max_episode_steps == 4
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[2:4] for _ in range(4)]
    assert [any(end) for end in ends[:3]] == [False] * 3 or any(end[0] for end in ends)
    assert any(ends[-1])


def test_simulator_and_imagination_flatten_alike(bundle: Path) -> None:
    imagined = make(bundle, instruction="embedding")
    simulated = load_suite("foreign_arm").make_single(instruction="embedding")
    assert list(imagined.observation_space.spaces) == list(simulated.observation_space.spaces)
    shapes = [{k: s.shape for k, s in env.observation_space.items()} for env in (imagined, simulated)]
    assert shapes[0] == shapes[1]


def test_info_has_one_set_of_keys_and_none_of_the_observation(bundle: Path) -> None:
    env = make(bundle)
    observation, info = env.reset(seed=0)
    keys, ended = set(info), False
    assert not keys & set(observation)
    while not ended:
        *_, terminated, truncated, info = env.step(env.action_space.sample())
        ended = terminated or truncated
        assert set(info) == keys


def test_the_state_of_a_start_is_observed_as_it_was_logged(bundle: Path) -> None:
    env = make(bundle)
    states = np.stack([env.reset(seed=seed)[0]["state"] for seed in range(20)])
    logged = np.load(bundle / "starts.npz")["states"]
    assert all(np.isclose(state, logged, atol=1e-6).all(1).any() for state in states)


@pytest.mark.parametrize("mode", ["rgb_array", "rgb_array_list"])
def test_render_modes_of_gymnasium_work(bundle: Path, mode: str) -> None:
    env = make(bundle, render_mode=mode)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    shown = env.render()
    assert (shown if mode == "rgb_array" else shown[-1]).shape == (24, 40, 3)


class LateJudge:
    """Answers no row in time."""

    name, threshold = "late", 0.5

    def score(self, frames: torch.Tensor, instructions: list[str]) -> object:
        raise TimeoutError("no answer")


def test_an_episode_without_a_verdict_is_invalid_and_never_a_failure(bundle: Path) -> None:
    env = make(bundle, reward=LateJudge())
    env.reset(seed=0)
    info, truncated, terminated = {}, False, False
    while not (terminated or truncated):
        *_, terminated, truncated, info = env.step(env.action_space.sample())
    assert info["invalid"] and not info["judge_valid"] and np.isnan(info["p_success"]) and truncated


# -- files -------------------------------------------------------------------------------------------------------------
def test_damaged_weights_are_refused_by_name(copied: Path) -> None:
    file = next((copied / "world_model").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=file.name):
        make(copied)


@pytest.mark.parametrize("part", ["world_model", "judge", "policy"])
def test_weights_that_are_not_finite_are_refused(copied: Path, part: str, capsys) -> None:
    file = next((copied / {"policy": "policy_sft"}.get(part, part)).glob("*.safetensors"))
    weights = load_file(file)
    name = next(name for name, value in weights.items() if value.is_floating_point())
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, file)
    for manifest in copied.rglob("manifest.json"):
        manifest.unlink()
    said = refused(
        capsys, "rl", "--bundle", copied, "--out", copied.parent / "rl", "--iterations", 1, "--starts", 2, "--group", 2
    )
    assert name in said and "NaN" in said


def test_a_mistyped_folder_is_an_error_at_once(bundle: Path, tmp_path: Path, capsys) -> None:
    for option in ("--policy", "--judge"):
        said = refused(capsys, "rl", "--bundle", bundle, "--out", tmp_path / "rl", option, tmp_path / "nope")
        assert "nope" in said
    with pytest.raises(CheckpointError, match="nope"):
        make(tmp_path / "nope")


# -- data and runs -----------------------------------------------------------------------------------------------------
def test_a_collection_in_two_parts_is_that_in_one(installed: None, tmp_path: Path) -> None:
    common = ("collect", "--suite", "foreign_arm", "--workers", 0, "--shard-episodes", 2)
    run(*common, "--out", tmp_path / "whole", "--episodes", 5)
    run(*common, "--out", tmp_path / "parts", "--episodes", 2)
    run(*common, "--out", tmp_path / "parts", "--episodes", 5)
    whole, parts = (list(EpisodeDataset(tmp_path / name)) for name in ("whole", "parts"))
    for a, b in zip(whole, parts, strict=True):
        assert np.array_equal(a.frames, b.frames) and np.array_equal(a.views["side"], b.views["side"])
        assert np.array_equal(a.actions, b.actions) and np.array_equal(a.success, b.success)


def test_one_episode_without_labels_trains_a_world_model_and_a_policy_and_no_judge(
    installed: None, tmp_path: Path, capsys, caplog
) -> None:
    from foreign_arm.recordings import write

    run("collect", "--suite", "foreign_arm", "--workers", 0, "--out", tmp_path / "data", "--episodes", 3)
    write(tmp_path / "log", list(EpisodeDataset(tmp_path / "data"))[:1])
    run("import", "--source", tmp_path / "log", "--out", tmp_path / "one")
    run(
        "train", "world-model", "--type", "foreign_states", "--data", tmp_path / "one", "--out", tmp_path / "model",
        "--steps", 2, "--batch-size", 2,
    )  # fmt: skip
    few = ("--epochs", 1, "--finish-steps", 1, "--batch-size", 4, "--no-success-only")
    run("train", "policy", "--type", "foreign_flow", "--data", tmp_path / "one", "--out", tmp_path / "policy", *few)
    said = refused(capsys, "train", "judge", "--data", tmp_path / "one", "--out", tmp_path / "judge")
    assert "success" in said
    judge = ("train", "judge", "--type", "foreign_video", "--steps", 1, "--batch-size", 2)
    run(*judge, "--data", tmp_path / "one", "--out", tmp_path / "own")  # one may learn from something else
    assert "no frame of" in caplog.text and "--success all" in caplog.text


def test_a_run_folder_of_other_settings_or_data_is_refused(installed: None, tmp_path: Path, capsys) -> None:
    for name, seed in (("a", 0), ("b", 100)):
        collect = ("collect", "--suite", "foreign_arm", "--workers", 0, "--episodes", 3)
        run(*collect, "--out", tmp_path / name, "--seed", seed)
    common = ("train", "world-model", "--type", "foreign_states", "--out", tmp_path / "model", "--batch-size", 2)
    run(*common, "--data", tmp_path / "a", "--steps", 2)
    before = (tmp_path / "model/export/weights.safetensors").read_bytes()
    assert "--fresh" in refused(capsys, *common, "--data", tmp_path / "b", "--steps", 2)
    assert "--fresh" in refused(capsys, *common, "--data", tmp_path / "a", "--steps", 2, "--lr", 1e-3)
    assert (tmp_path / "model/export/weights.safetensors").read_bytes() == before


def test_values_out_of_range_end_in_a_sentence(bundle: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    for words in (
        ("train", "world-model", "--type", "foreign_states", "--data", tmp_path / "none", "--out", tmp_path / "x"),
        ("rl", "--bundle", bundle, "--iterations", -1, "--out", tmp_path / "x"),
        ("rl", "--bundle", bundle, "--out", tmp_path / "file"),
        ("collect", "--suite", "foreign_arm", "--episodes", 0, "--out", tmp_path / "x"),
        ("collect", "--suite", "foreign_arm", "--tasks", "middle lamp", "--out", tmp_path / "x"),
        ("collect", "--suite", "foreign_arms", "--out", tmp_path / "x"),
        ("eval", "--bundle", bundle, "--policy", "sft", "--split", "unseen_object"),
    ):
        said = refused(capsys, *words)
        assert "Traceback" not in said and len(said.strip().splitlines()) <= 6, said


def test_a_bundle_of_another_suite_is_refused_with_both_sides(bundle: Path, tmp_path: Path, capsys) -> None:
    from worldgym import pretrained

    other = pretrained.path("tabletop-small") / "policy_sft"
    said = refused(capsys, "rl", "--bundle", bundle, "--policy", other, "--out", tmp_path / "rl")
    assert "24x40" in said and "64x64" in said or "joint_0" in said
    assert json.loads((bundle / "card.json").read_text())["suite"] == "foreign_arm"
