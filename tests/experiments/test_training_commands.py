"""The chain collect -> tokenizer -> world model -> bundle -> picture, at toy size, through the command line."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.cli import main
from experiments.commands.train_judge import TrainJudgeConfig
from experiments.pipelines.collect_settings import CollectConfig


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    root = tmp_path_factory.mktemp("chain")
    data, tokenizer, world = root / "data", root / "tokenizer", root / "world"
    assert (
        main(
            [
                "collect",
                "--out",
                str(data),
                "--episodes",
                "9",
                "--tasks",
                "reach",
                "push",
                "--horizon",
                "16",
                "--workers",
                "0",
            ]
        )
        == 0
    )
    assert (
        main(
            [
                "train",
                "tokenizer",
                "--data",
                str(data),
                "--out",
                str(tokenizer),
                "--preset",
                "tiny",
                "--steps",
                "4",
            ]
        )
        == 0
    )
    arguments = ["--data", str(data), "--tokenizer", str(tokenizer), "--out", str(world), "--preset", "tiny"]
    arguments += ["--steps", "3", "--shift-steps", "2", "--batch-size", "4", "--window", "4"]
    assert main(["train", "world-model", *arguments, "--processes", "2"]) == 0
    return root


def test_the_trained_world_model_loads_and_knows_its_tasks(chain):
    from worldgym.models import load_world_model

    assert load_world_model(chain / "world" / "export").config.tasks == ("push", "reach")


@pytest.mark.slow
def test_ray_train_gives_the_weights_of_plain_processes(chain, tmp_path):
    """Two workers of Ray Train, gloo between them, against the two processes of the fixture."""
    from safetensors.torch import load_file

    pytest.importorskip("ray.train")
    arguments = ["--data", str(chain / "data"), "--tokenizer", str(chain / "tokenizer"), "--preset", "tiny"]
    arguments += ["--steps", "3", "--shift-steps", "2", "--batch-size", "4", "--window", "4", "--out", str(tmp_path)]
    assert main(["train", "world-model", *arguments, "--processes", "2", "--address", "local"]) == 0
    mine = load_file(tmp_path / "export" / "model.safetensors")
    theirs = load_file(chain / "world" / "export" / "model.safetensors")
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=0, msg=name)


def test_world_model_training_goes_on_from_an_exported_model(chain):
    arguments = [
        "--data",
        str(chain / "data"),
        "--initial",
        str(chain / "world" / "export"),
        "--out",
        str(chain / "more"),
    ]
    assert main(["train", "world-model", *arguments, "--steps", "2", "--batch-size", "4", "--window", "3"]) == 0
    assert (chain / "more" / "export" / "model.safetensors").is_file()


def test_a_bundle_holds_all_parts_and_draws_a_picture(chain):
    from agents import VLAPolicy, VLAPolicyConfig
    from experiments.bundle import Bundle
    from rewards import LearnedJudge
    from rewards.models.learned import LearnedJudgeConfig

    VLAPolicy(VLAPolicyConfig.preset("tiny")).save_pretrained(str(chain / "policy"))
    LearnedJudge(LearnedJudgeConfig.preset("tiny")).save_pretrained(str(chain / "judge"))
    parts = [
        "--world-model",
        str(chain / "world" / "export"),
        "--judge",
        str(chain / "judge"),
        "--policy",
        str(chain / "policy"),
    ]
    out = chain / "bundle"
    assert main(["bundle", "--data", str(chain / "data"), *parts, "--out", str(out), "--starts", "6"]) == 0
    card = json.loads((out / "card.json").read_text())
    assert card["tasks"] == ["push", "reach"] and card["real_episodes"] == 9
    bundle = Bundle(out)
    demos = bundle.demonstrations()
    assert demos.images.dtype.name == "uint8" and demos.actions.shape[1:] == (5, 4)
    assert len(bundle.start_bank(["reach"])) >= 1
    assert (
        main(
            [
                "picture",
                "--out",
                str(chain / "p.png"),
                "--bundle",
                str(out),
                "--episodes",
                "1",
                "--horizon",
                "4",
            ]
        )
        == 0
    )
    assert (chain / "p.png").stat().st_size > 500


def test_a_policy_acts_on_imagined_frames_and_a_judge_learns_from_what_came_of_it(chain):
    from agents import VLAPolicy, VLAPolicyConfig
    from rewards import LearnedJudge
    from worldgym.data import EpisodeDataset

    policy = VLAPolicy(VLAPolicyConfig.preset("tiny"))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(4)  # so that the slightest change of the picture changes the answer
    policy.save_pretrained(str(chain / "policy"))
    world = str(chain / "world" / "export")
    who = ["--policy", str(chain / "policy"), "--mix.policy", "1", "--temperature", "0"]
    where = ["--episodes", "3", "--tasks", "reach", "--horizon", "30", "--workers", "0"]
    seen, dreamt = str(chain / "seen"), str(chain / "dreamt")
    assert main(["collect", "--out", seen, *where, *who]) == 0
    assert main(["collect", "--out", dreamt, *where, *who, "--world-model", world]) == 0
    real, blind = EpisodeDataset(seen), EpisodeDataset(dreamt)
    assert blind[0].provenance["looked_at"] == "imagined" and real[0].provenance["looked_at"] == "real"
    assert (real[0].frames[0] == blind[0].frames[0]).all()
    assert (real[0].actions[:5] == blind[0].actions[:5]).all()  # the first look is a true one
    assert any((real[i].actions[5:] != blind[i].actions[5:]).any() for i in range(3))
    logs = ["--episodes", "40", "--tasks", "reach", "--horizon", "12", "--workers", "0", "--seed", "500"]
    assert main(["collect", "--out", str(chain / "more_data"), *logs]) == 0
    judge = ["train", "judge", "--data", str(chain / "more_data"), "--world-model", world]
    judge += ["--preset", "tiny", "--steps", "2"]
    assert main([*judge, "--imagined-episodes", "40", "--out", str(chain / "judge_d")]) == 0
    assert 0.2 <= LearnedJudge.from_pretrained(chain / "judge_d").threshold <= 0.99
    assert "imagined_episodes/recall" in json.loads((chain / "judge_d" / "training.json").read_text())["held_out"]


def test_dreams_need_a_world_model_and_a_policy_to_look_at_them(chain):
    with pytest.raises(ValueError, match="--world-model"):
        TrainJudgeConfig(data=chain / "data", imagined_episodes=3)
    with pytest.raises(ValueError, match="--policy"):
        CollectConfig(out=chain / "no", world_model=chain / "world" / "export")


def test_a_world_model_needs_a_tokenizer(chain, capsys):
    assert main(["train", "world-model", "--data", str(chain / "data")]) == 2
    assert "--tokenizer" in capsys.readouterr().err


def test_tasks_get_equal_shares_of_the_windows():
    from experiments.commands.train_world_model import equal_shares

    tasks = np.array(["push"] * 2 + ["reach"] * 6)
    odds = equal_shares(np.array([1.0, 3.0, *[1.0] * 6]), tasks)
    assert odds[:2].sum() == pytest.approx(5) and odds[2:].sum() == pytest.approx(5)
    assert odds[1] == pytest.approx(3 * odds[0])


def test_windows_that_hold_a_grasp_or_a_push_are_likelier():
    from worldgym.models import HandColumns
    from worldgym.models.video.object_motion import window_odds

    states = np.zeros((60, 4), np.float32)
    states[:, 0] = np.linspace(0, 0.05, 60)  # drifts slowly, high up and open
    states[:, 2], states[:, 3] = 0.15, 0.13
    states[1::20, 3] = 0.01  # closed without anything
    states[10:13, 3] = 0.06  # first episode: holds something
    states[30:34, 2] = 0.02  # second: slides sideways near the table
    states[30:34, 1] = (0.0, 0.05, 0.10, 0.15)
    states[34:40, 1] = 0.15
    states[50:52, 2:] = 0.1, 0.06  # third: carries something
    odds = window_odds(states, np.array([0, 20, 40, 60]), 4, 3.0, HandColumns((0, 1, 2), 3))
    touching = [28, 29, 30, 31, 32, 33]
    carrying = [7, 8, 9, 10, 11, 12, 47, 48, 49, 50, 51]
    assert np.flatnonzero(odds == 3).tolist() == touching
    assert np.flatnonzero(odds == 9).tolist() == carrying


def test_a_chunk_model_starts_from_a_frame_model_and_is_used_like_it(chain, tmp_path):
    from worldgym import pretrained
    from worldgym.models import load_world_model
    from worldgym.models.chunk.world_model import ChunkWorldModel

    arguments = ["--type", "chunk", "--data", str(chain / "data"), "--initial", str(chain / "world" / "export")]
    arguments += ["--preset", "tiny", "--steps", "10", "--batch-size", "2", "--out", str(tmp_path / "chunk")]
    probe = str(pretrained.path("tabletop-small") / "probe")
    assert main(["train", "world-model", *arguments, "--probe", probe]) == 0
    assert main(["train", "world-model", *arguments, "--probe", probe]) == 0  # finished: the same command does nothing
    model, initial = load_world_model(tmp_path / "chunk" / "export"), load_world_model(chain / "world" / "export")
    assert isinstance(model, ChunkWorldModel)
    assert model.config.objects
    for name, value in initial.tokenizer.state_dict().items():
        torch.testing.assert_close(model.tokenizer.state_dict()[name], value, atol=1e-2, rtol=1e-2)
    frames = torch.zeros(2, 1, 64, 64, 3, dtype=torch.uint8)
    state = model.begin(frames, torch.zeros(2, 0, 4), states=torch.zeros(2, 1, 4))
    assert model.step(state, torch.zeros(2, 5, 4), decode="last")[1].frames.shape == (2, 1, 64, 64, 3)


def test_a_success_head_is_trained_with_a_chunk_model_and_saved_as_a_judge(chain, tmp_path, capsys):
    from safetensors.torch import load_file

    from rewards import LatentJudge, load_judge

    data = str(tmp_path / "data")
    collect = ["--episodes", "8", "--tasks", "reach", "--mix", "expert=1", "--workers", "0"]
    assert main(["collect", "--out", data, *collect]) == 0
    common = ["train", "world-model", "--data", data, "--preset", "tiny", "--steps", "10"]
    arguments = [*common, "--type", "chunk", "--tokenizer", str(chain / "tokenizer"), "--batch-size", "2"]
    arguments += ["--success-head", "0.05", "--out", str(tmp_path / "chunk")]
    assert main(arguments) == 0
    assert isinstance(load_judge(tmp_path / "chunk" / "judge"), LatentJudge)
    scalars = json.loads((tmp_path / "chunk" / "training.json").read_text())["scalars"]
    assert scalars["success_loss"] > 0 and 0 < scalars["judge/threshold"] < 1
    capsys.readouterr()
    assert main(arguments) == 0 and not capsys.readouterr().err.count("Error")
    # what the head began with identifies the run
    assert main([*arguments, "--judge", str(tmp_path / "chunk" / "judge")]) == 2
    assert "--judge" in capsys.readouterr().err
    again = [*arguments[:-1], str(tmp_path / "second"), "--judge", str(tmp_path / "chunk" / "judge")]
    assert main(again) == 0, "the latents are of the same tokenizer"
    # the head alone: the dynamics stays as it is
    alone = [*common, "--type", "chunk", "--initial", str(tmp_path / "chunk" / "export"), "--batch-size", "2"]
    alone += ["--success-head", "0.05", "--head-only", "--out", str(tmp_path / "head")]
    assert main(alone) == 0
    parts = [tmp_path / name / "export" / "model.safetensors" for name in ("chunk", "head")]
    before, after = (load_file(part) for part in parts)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "head" / "judge" / "config.json").is_file() and not (tmp_path / "head" / "decoder").exists()
    # not on members that would be copies of each other, nor on a model that would become another one
    assert main([*alone[:-1], str(tmp_path / "no"), "--settings", "members=3"]) == 2
    assert "--settings would change it" in capsys.readouterr().err
    video = str(chain / "world" / "export")
    assert main([*alone[:-1], str(tmp_path / "no"), "--initial", video]) == 2
    assert "is a VideoWorldModel; expected a ChunkWorldModel" in capsys.readouterr().err
    assert not (tmp_path / "no" / "run.json").exists()
    # a refused head gives its folder back, and --fresh begins again
    failures = str(tmp_path / "failures")
    collect = ["--episodes", "4", "--tasks", "reach", "--mix", "random=1", "--workers", "0", "--horizon", "4"]
    assert main(["collect", "--out", failures, *collect]) == 0
    none = [*arguments[:-4], "--success-head", "0.05", "--out", str(tmp_path / "none"), "--data", failures]
    assert main(none) == 2 and "a success head needs two" in capsys.readouterr().err
    assert not (tmp_path / "none" / "run.json").exists()
    before = load_file(tmp_path / "chunk" / "judge" / "model.safetensors")
    assert main([*arguments, "--fresh", "--seed", "1"]) == 0
    after = load_file(tmp_path / "chunk" / "judge" / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    for more, said in (
        (["--success-head", "0.05"], "--success-head is for --type chunk"),
        (["--judge", str(tmp_path)], "add --success-head 0.05"),
        (["--head-only"], "add --success-head 0.05"),
        (["--success-head", "0.05", "--type", "chunk", "--processes", "2"], "trained by one process"),
        (["--success-head", "0.05", "--type", "chunk", "--head-only"], "add --initial"),
        (["--success-head", "0.05", "--type", "chunk", "--head-only", "--initial", str(tmp_path)], "--tokenizer would"),
        (["--success-head", "-1"], "--success-head is -1"),
        (["--type", "chunk", "--compile"], "--compile is for --type video and joint, got --type chunk"),
    ):
        assert main([*common, "--tokenizer", str(chain / "tokenizer"), "--out", str(tmp_path / "no"), *more]) == 2
        assert said in capsys.readouterr().err


def test_a_refused_tokenizer_does_not_take_the_folder(chain, tmp_path, capsys):
    out = tmp_path / "chunk"
    arguments = ["train", "world-model", "--type", "chunk", "--data", str(chain / "data"), "--out", str(out)]
    assert main([*arguments, "--tokenizer", str(tmp_path / "nowhere"), "--preset", "tiny", "--steps", "2"]) == 2
    assert "no usable tokenizer" in capsys.readouterr().err and not (out / "run.json").exists()


def test_a_chunk_model_starts_from_a_tokenizer(chain, tmp_path):
    from worldgym.models import load_world_model

    arguments = ["--type", "chunk", "--data", str(chain / "data"), "--tokenizer", str(chain / "tokenizer")]
    arguments += ["--preset", "tiny", "--steps", "10", "--batch-size", "2", "--out", str(tmp_path / "chunk")]
    assert main(["train", "world-model", *arguments]) == 0
    model = load_world_model(tmp_path / "chunk" / "export")
    frames = torch.zeros(2, 1, 64, 64, 3, dtype=torch.uint8)
    state = model.begin(frames, torch.zeros(2, 0, 4), states=torch.zeros(2, 1, 4))
    assert model.step(state, torch.zeros(2, 5, 4), decode="all")[1].frames.shape == (2, 5, 64, 64, 3)
    longer = [*arguments[:-1], str(tmp_path / "other"), "--initial", str(tmp_path / "chunk" / "export")]
    assert main(["train", "world-model", *longer]) == 0, "a tokenizer trained further, and dynamics of another model"


def test_the_optimizer_of_the_dynamics_changes_the_picture_but_not_how_positions_are_learned(chain, tmp_path):
    from worldgym.models import load_world_model

    arguments = ["--type", "chunk", "--data", str(chain / "data"), "--tokenizer", str(chain / "tokenizer")]
    arguments += ["--preset", "tiny", "--steps", "10", "--batch-size", "2"]
    weights = {}
    for chosen in ((), ("--optimizer", "muon"), ("--optimizer", "adamw")):
        out = tmp_path / "-".join(("chunk", *chosen[1:]))
        assert main(["train", "world-model", *arguments, *chosen, "--out", str(out)]) == 0
        weights[chosen[-1:]] = load_world_model(out / "export").state_dict()
    plain, muon, adamw = weights.values()
    assert all(torch.equal(plain[name], muon[name]) for name in plain), "Muon is the default"
    other = {name.split(".")[0] for name in plain if not torch.equal(muon[name], adamw[name])}
    assert "picture" in other and not {"kinematics", "motion", "light", "tokenizer"} & other


def test_an_optimizer_is_refused_by_types_that_choose_their_own(chain, tmp_path, capsys):
    arguments = ["--type", "diffusers", "--data", str(chain / "data"), "--optimizer", "adamw", "--steps", "1"]
    assert main(["train", "world-model", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert "--optimizer do not apply to --type diffusers" in capsys.readouterr().err


def test_a_probe_needs_no_world_model_but_its_tokenizer(chain, tmp_path, capsys, caplog):
    arguments = ["train", "probe", "--tokenizer", str(chain / "tokenizer"), "--out", str(tmp_path / "probe")]
    few = ["--episodes", "4", "--steps", "2", "--batch-size", "2"]
    assert main([*arguments, *few]) == 0
    assert (tmp_path / "probe" / "export" / "config.json").is_file()
    lost = json.loads((tmp_path / "probe" / "probe.json").read_text())["decoded"]["lost_by_part"]
    found = [name for name, share in lost.items() if share is not None and share > 0.1]
    said = caplog.text
    assert found and "overlooks" in said and "--fresh and --steps 8" in said, "two steps teach nothing"
    assert all(name in said for name in found)
    other = ["train", "probe", "--tokenizer", str(chain / "tokenizer"), "--out", str(tmp_path / "other"), *few]
    assert main([*other, "--world-model", str(chain / "world" / "export")]) == 2
    assert "not both" in capsys.readouterr().err


def test_a_probe_learns_from_logs_that_are_executed_again(chain, tmp_path, capsys):
    from experiments.pipelines.held_out_episodes import replayed
    from worldgym.data import EpisodeDataset
    from worldgym.suite import load_suite

    suite, data = load_suite(None), EpisodeDataset(chain / "data")
    frames, positions = replayed(data, 5, seed=0, suite=suite, every=4)
    recorded = data.load_arrays().frames
    assert len(frames) == len(positions) and positions.shape[1:] == (len(suite.parts), 2)
    assert all((recorded == frame).all((1, 2, 3)).any() for frame in frames), "the frames are those of the logs"
    again, every_frame = replayed(data, 99, seed=0, suite=suite, every=1)
    known = [i for i, record in enumerate(data.records) if not json.loads(record.provenance_json).get("warmup")]
    assert len(again) == sum(data.records[i].steps + 1 for i in known)
    inside = every_frame[np.isfinite(every_frame).all(-1)]
    assert len(inside) and (inside >= 0).all() and (inside <= data.image_size).all()
    arguments = ["--tokenizer", str(chain / "tokenizer"), "--data", str(chain / "data"), "--replays", "3"]
    few = ["--episodes", "2", "--steps", "2", "--batch-size", "2", "--out", str(tmp_path / "probe")]
    assert main(["train", "probe", *arguments, *few]) == 0
    assert main(["train", "probe", *arguments[:-1], "4", *few]) == 2
    assert "--replays: there 3, here 4" in capsys.readouterr().err


def test_logs_that_do_not_repeat_themselves_are_not_learned_from(chain, monkeypatch):
    from experiments.pipelines.held_out_episodes import replayed
    from worldgym.data import EpisodeDataset
    from worldgym.errors import ConfigError
    from worldgym.suite import load_suite

    data, suite = EpisodeDataset(chain / "data"), load_suite(None)
    honest = EpisodeDataset.load_arrays

    def others(self, **options):
        arrays = honest(self, **options)
        arrays.states[:] += 0.1
        return arrays

    monkeypatch.setattr(EpisodeDataset, "load_arrays", others)
    with pytest.raises(ConfigError, match="does not repeat itself in suite"):
        replayed(data, 3, seed=0, suite=suite)
    monkeypatch.setattr(data, "records", [replace(record, provenance_json="{}") for record in data.records])
    with pytest.raises(ConfigError, match="no episode of .* can be executed again"):
        replayed(data, 3, seed=0, suite=suite)


def test_a_chunk_model_without_an_initial_model_says_what_to_type(chain, tmp_path, capsys):
    arguments = ["--type", "chunk", "--data", str(chain / "data"), "--steps", "5", "--out", str(tmp_path / "chunk")]
    assert main(["train", "world-model", *arguments]) == 2
    assert "type --initial WORLD_MODEL" in capsys.readouterr().err


def test_an_option_that_a_type_does_not_take_is_refused(chain, tmp_path, capsys):
    arguments = ["--data", str(chain / "data"), "--probe", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["train", "world-model", *arguments, "--initial", str(chain / "world" / "export")]) == 2
    assert "--probe" in capsys.readouterr().err
