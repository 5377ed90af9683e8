"""Everything that worldgym can be given from outside, used end to end by every command.

The package `foreign_arm` beside this file brings a suite with a 7-D action, two cameras of different, non-square sizes
and nine state fields without a gripper; a world model; a flow-matching policy; a judge that needs eight frames; and
recordings in a format of their own, without success labels. It uses public names of worldgym only.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest
from foreign_commands import run

from experiments.cli import main
from worldgym.data import EpisodeDataset

HERE = Path(__file__).parent
THREE = ["--steps", "3", "--batch-size", "4"]


@pytest.fixture(scope="module")
def parts(installed: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Everything that the commands make of the package."""
    root = tmp_path_factory.mktemp("foreign")
    names = ("data", "recordings", "imported", "world_model", "judge", "policy", "bundle")
    return {name: root / name for name in names}


def test_the_package_uses_public_names_only() -> None:
    for file in (HERE / "foreign_arm").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.ImportFrom)
                and node.module
                and node.module.startswith(("worldgym", "agents"))
            ):
                parts = [*node.module.split("."), *(alias.name for alias in node.names)]
                assert not any(part.startswith("_") for part in parts), f"{file.name}: {node.module}"
    assert len((HERE / "foreign_arm" / "world_model.py").read_text().splitlines()) < 110


def test_every_part_is_listed_with_its_origin(installed: None, capsys: pytest.CaptureFixture[str]) -> None:
    run("list")
    shown = capsys.readouterr().out
    for name in ("foreign_arm", "foreign_states", "foreign_flow", "foreign_video", "foreign_log", "foreign_weighted"):
        assert name in shown


def test_1_collect(parts: dict[str, Path]) -> None:
    run("collect", "--suite", "foreign_arm", "--out", parts["data"], "--episodes", 12, "--workers", 0)
    dataset = EpisodeDataset(parts["data"])
    assert [str(camera) for camera in dataset.specs.observation.cameras] == ["table 24x40", "side 16x32"]
    assert dataset.specs.observation.state_dim == 9 and dataset.specs.action.dim == 7
    assert any(record.success for record in dataset.records)


def test_2_import(parts: dict[str, Path]) -> None:
    from foreign_arm.recordings import write

    write(parts["recordings"], list(EpisodeDataset(parts["data"])))
    run("import", "--source", parts["recordings"], "--out", parts["imported"])
    read, wrote = EpisodeDataset(parts["imported"])[3], EpisodeDataset(parts["data"])[3]
    assert read.success is None and np.array_equal(read.views["side"], wrote.views["side"])
    assert np.allclose(read.actions, wrote.actions, atol=1e-5)


def test_3_train_world_model_on_the_recordings(parts: dict[str, Path]) -> None:
    out = parts["world_model"]
    run("train", "world-model", "--type", "foreign_states", "--data", parts["imported"], "--out", out, *THREE)
    assert json.loads((out / "export" / "config.json").read_text())["type"] == "foreign_states"


def test_4_train_judge(parts: dict[str, Path]) -> None:
    run("train", "judge", "--type", "foreign_video", "--data", parts["data"], "--out", parts["judge"], *THREE)


def test_5_train_policy(parts: dict[str, Path]) -> None:
    run(
        "train", "policy", "--type", "foreign_flow", "--data", parts["data"], "--out", parts["policy"], "--epochs", 2,
        "--finish-steps", 2, "--batch-size", 8,
    )  # fmt: skip


def test_6_bundle(parts: dict[str, Path]) -> None:
    run(
        "bundle", "--data", parts["data"], "--world-model", parts["world_model"] / "export", "--judge", parts["judge"],
        "--policy", parts["policy"], "--out", parts["bundle"], "--starts", 40, "--demos-per-task", 4,
    )  # fmt: skip
    assert json.loads((parts["bundle"] / "card.json").read_text())["suite"] == "foreign_arm"


RL = (
    "rl", "--learn", "all", "--iterations", 2, "--starts", 2, "--group", 2, "--rollout-horizon", 10,
    "--imitation-steps", 2, "--bc-batch", 8, "--threads", 1,
)  # fmt: skip


def rl(parts: dict[str, Path], out: Path, *more: object) -> list[dict[str, float]]:
    run(*RL, "--bundle", parts["bundle"], "--out", out, *more)
    rows: list[dict[str, float]] = json.loads((out / "history.json").read_text())
    return rows


def test_7_rl(parts: dict[str, Path], tmp_path: Path) -> None:
    rows = rl(parts, tmp_path / "rl")
    assert (
        len(rows) == 2
        and json.loads((tmp_path / "rl/policy/config.json").read_text())["type"] == "foreign_flow"
    )


def test_7_rl_with_an_improver_of_its_own_resumes_as_if_never_stopped(parts: dict[str, Path], tmp_path: Path) -> None:
    from foreign_arm.improver import RewardWeighted

    own = ("--improver", "foreign_weighted")
    whole = rl(parts, tmp_path / "whole", *own)
    update, calls = RewardWeighted.update, []

    def stopped(self: RewardWeighted, policy: object, rollouts: object) -> dict[str, float]:
        calls.append(self.iteration)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return update(self, policy, rollouts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RewardWeighted, "update", stopped)
        assert main([str(word) for word in (*RL, "--bundle", parts["bundle"], "--out", tmp_path / "two", *own)]) == 130
    again = rl(parts, tmp_path / "two", *own)
    assert [row["loss"] for row in again] == [row["loss"] for row in whole]
    assert calls == [0, 1] and "goal_entropy" not in whole[0]


@pytest.mark.slow
def test_8_rl_on_two_ray_workers(parts: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra `rllib`")
    alone, two = rl(parts, tmp_path / "one", "--workers", 1), rl(parts, tmp_path / "two", "--workers", 2)
    assert [row["success_rate"] for row in alone] == pytest.approx(
        [row["success_rate"] for row in two], nan_ok=True
    )


def test_9_eval(parts: dict[str, Path], tmp_path: Path) -> None:
    run(
        "eval", "--bundle", parts["bundle"], "--policy", "sft", "--episodes", 4, "--horizon", 10, "--workers", 0,
        "--out", tmp_path / "eval.json",
    )  # fmt: skip
    assert (tmp_path / "eval.json").is_file()


def test_audit(parts: dict[str, Path], tmp_path: Path) -> None:
    run(
        "audit", "--bundle", parts["bundle"], "--policy", "sft", "--judges", "bundled", "--episodes", 4, "--horizon",
        10, "--json", tmp_path / "audit.json",
    )  # fmt: skip
    assert (tmp_path / "audit.json").is_file()


def test_bench_closed_loop(parts: dict[str, Path], tmp_path: Path) -> None:
    code = main(
        [
            "bench",
            "closed-loop",
            "--bundle",
            str(parts["bundle"]),
            "--policies",
            "sft",
            "--episodes",
            "4",
            "--horizon",
            "10",
            "--out",
            str(tmp_path / "loop.json"),
        ]  # fmt: skip
    )
    row = json.loads((tmp_path / "loop.json").read_text())["policies"]["sft"]
    assert code == (0 if row["passes"] else 1)


@pytest.mark.filterwarnings("error")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_bundle_is_an_environment(parts: dict[str, Path]) -> None:
    import gymnasium as gym
    from gymnasium.utils.env_checker import check_env

    import worldgym  # noqa: F401

    env = gym.make("worldgym/Imagined-v0", checkpoint=str(parts["bundle"]), horizon=10)
    check_env(env.unwrapped, skip_render_check=True)
    observation, _ = env.reset(seed=0)
    assert observation["image"].shape == (24, 40, 3) and observation["image_side"].shape == (16, 32, 3)
    assert observation["state"].shape == (9,) and env.action_space.shape == (7,)
    env.close()


def test_the_builtin_parts_take_its_data_as_well(parts: dict[str, Path], tmp_path: Path) -> None:
    """The video world model, the judge of frames and the VLA policy learn from two such cameras."""
    tokenizer, world, policy = (tmp_path / name for name in ("tokenizer", "world", "policy"))
    data = ("--data", parts["imported"])
    run("train", "tokenizer", *data, "--out", tokenizer, "--preset", "tiny", *THREE)
    run(
        "train", "world-model", *data, "--tokenizer", tokenizer, "--out", world, "--preset", "tiny", "--steps", 2,
        "--batch-size", 2, "--window", 3, "--shift-steps", 1,
    )  # fmt: skip
    run(
        "train", "policy", "--data", parts["data"], "--out", policy, "--preset", "tiny", "--epochs", 1,
        "--finish-steps", 1, "--batch-size", 8,
    )  # fmt: skip
    run("train", "judge", "--data", parts["data"], "--out", tmp_path / "judge", "--preset", "tiny", *THREE)
    run(
        "bundle", "--data", parts["data"], "--world-model", world / "export", "--judge", tmp_path / "judge", "--policy",
        policy, "--out", tmp_path / "bundle", "--starts", 20, "--demos-per-task", 4,
    )  # fmt: skip
    rows = rl({"bundle": tmp_path / "bundle"}, tmp_path / "rl")
    assert len(rows) == 2
