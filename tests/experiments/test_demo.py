"""The demo end to end with a tiny random bundle: files, schema, controls, resuming, refusing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from agents import ImaginedRLTrainer
from experiments.pipelines.demo import DemoSettings, run_demo
from experiments.pipelines.demo_results import table
from experiments.pipelines.finetune import FineTuning
from experiments.reports.clips import choose
from worldgym.errors import CheckpointError, ConfigError

SCHEMA = (
    "arms",
    "differences",
    "imagined_success",
    "confusion",
    "judge",
    "budget",
    "seconds",
    "seed",
    "versions",
)


def test_results_follow_the_schema(demo):
    out, results = demo
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert set(SCHEMA) <= set(results)
    names = ["sft", "imagined_rl", "bc_only", "sft_sharpened", "language_blind"]
    assert [arm["name"] for arm in results["arms"]] == names
    for arm in results["arms"]:
        assert set(arm["success"]) == {"mean", "low", "high", "episodes"}
        assert set(arm["success_sampled"]) == {"mean", "low", "high", "episodes"}
        assert set(arm["by_task"]) == {"reach", "push"}
    assert set(results["confusion"]) == {"tp", "fp", "fn", "tn"} and sum(results["confusion"].values()) == 4
    assert {"real_episodes", "imagined_steps", "soft_steps"} <= set(results["budget"])
    assert results["budget"]["imagined_steps"] > 0 and results["budget"]["soft_steps"] == 0
    assert {"imagine", "judge", "policy", "update", "evaluate"} <= set(results["seconds"])


def test_the_first_difference_is_the_headline(demo):
    first = demo[1]["differences"][0]
    assert (first["a"], first["b"], first["mode"]) == ("imagined_rl", "sft", "greedy")
    assert {d["b"] for d in demo[1]["differences"]} == {"sft", "bc_only", "sft_sharpened", "language_blind"}


def test_everything_is_written(demo):
    out, _ = demo
    for name in (
        "report.html",
        "config.yaml",
        "history.json",
        "evaluations.json",
        "policy/model.safetensors",
    ):
        assert (out / name).is_file(), name
    assert list(out.glob("events.out.tfevents.*"))
    assert (
        len(list((out / "videos").glob("dream-*.gif")))
        == len(list((out / "videos").glob("dream-*.mp4")))
        == 2
    )
    assert not [path for path in out.rglob("*") if path.suffix in (".pkl", ".pt", ".pth")]


def test_tensorboard_uses_the_usual_names_and_counts_imagined_steps(demo):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, results = demo
    events = EventAccumulator(str(out))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {
        "rollout/success_rate",
        "rollout/ep_len_mean",
        "time/fps",
        "train/loss",
        "eval/success_once",
    } <= tags
    assert events.Scalars("rollout/success_rate")[-1].step == results["budget"]["imagined_steps"]


def test_the_table_names_every_arm(demo):
    text = table(demo[1])
    assert all(word in text for word in ("SFT (before)", "Imagined RL", "BC only", "Language-blind", "FP"))


def test_a_finished_run_is_shown_and_not_run_again(bundle, demo, monkeypatch, caplog):
    out, results = demo
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with monkeypatch.context() as patch:
        patch.setattr(FineTuning, "run", lambda *_: pytest.fail("it practised"))
        again = run_demo(DemoSettings(out=out, bundle=str(bundle), quick=True))
    assert table(again) == table(results) and "--fresh" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(ConfigError, match="finished run with other settings.*--fresh"):
        run_demo(DemoSettings(out=out, bundle=str(bundle), quick=True, seed=9))


def test_an_interrupted_run_goes_on_and_ends_the_same(bundle, demo, tmp_path, monkeypatch):
    settings = DemoSettings(out=tmp_path / "run", bundle=str(bundle), quick=True)
    original, calls = ImaginedRLTrainer.round, []

    def stopped(self):
        number = len(self.history)
        calls.append(number)
        if number == 1 and len(calls) == 2:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(ImaginedRLTrainer, "round", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_demo(settings)
    with pytest.raises(ConfigError, match="fresh"):
        run_demo(DemoSettings(out=settings.out, bundle=str(bundle), quick=True, seed=9))
    results = run_demo(settings)
    assert calls == [0, 1, 1], "the finished iteration is not done again"
    whole = demo[1]
    assert results["confusion"] == whole["confusion"] and results["arms"] == whole["arms"]
    history = [json.loads((folder / "history.json").read_text()) for folder in (settings.out, demo[0])]
    for ours, theirs in zip(*history, strict=True):
        for key in ("loss", "success_rate", "imagined_steps"):
            assert np.isclose(ours[key], theirs[key], rtol=1e-4, equal_nan=True), key


@pytest.mark.parametrize("rounds_left", [0, 1], ids=["after practice", "after its last round"])
def test_a_run_stopped_after_practice_trains_the_same_control(
    bundle, demo, tmp_path, monkeypatch, rounds_left
):
    """The control's dropout goes on where practice left torch's stream, in a resumed run too."""
    import experiments.pipelines.demo
    from experiments.pipelines.run_folder import RunFolder

    settings = DemoSettings(out=tmp_path / "run", bundle=str(bundle), quick=True)

    def stopped(*arguments):
        raise KeyboardInterrupt

    write = RunFolder.write
    with monkeypatch.context() as patch:
        if rounds_left:
            patch.setattr(
                RunFolder, "write", lambda *args: stopped() if args[1] == "stream" else write(*args)
            )
        else:
            patch.setattr(experiments.pipelines.demo._Demo, "_clone", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_demo(settings)
    assert bool(list((settings.out / "state").glob("round-*"))) == bool(rounds_left)
    assert run_demo(settings)["arms"] == demo[1]["arms"]
    for name in ("policy", "policy_bc_only"):
        file = f"{name}/model.safetensors"
        assert (settings.out / file).read_bytes() == (demo[0] / file).read_bytes()


def test_a_damaged_round_says_how_to_start_over(bundle, tmp_path, monkeypatch):
    settings = DemoSettings(out=tmp_path / "run", bundle=str(bundle), quick=True)
    original = ImaginedRLTrainer.round

    def stopped(self):
        number = len(self.history)
        if number == 1:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(ImaginedRLTrainer, "round", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_demo(settings)
    monkeypatch.setattr(ImaginedRLTrainer, "round", original)
    weights = settings.out / "state" / "round-00001" / "average" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"average/model.safetensors.*--fresh"):
        run_demo(settings)
    (settings.out / "state" / "round-00001" / "grpo" / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"--fresh"):
        run_demo(settings)
    from dataclasses import replace

    assert run_demo(replace(settings, fresh=True))["arms"]


@pytest.mark.parametrize(
    ("name", "change"),
    [("starts.npz", {"images": 32}), ("demos.npz", {"images": 32}), ("demos.npz", {"actions": 3})],
)
def test_parts_of_other_shapes_are_named_before_anything_runs(bundle, tmp_path, name, change):
    import shutil

    from worldgym.utils.arrays import write_arrays

    other = shutil.copytree(bundle, tmp_path / "other")
    with np.load(other / name) as archive:
        arrays = {key: archive[key] for key in archive.files}
    for key, size in change.items():
        arrays[key] = arrays[key][:, :size, :size] if key == "images" else arrays[key][:, :size]
    write_arrays(other / name, arrays)
    with pytest.raises(CheckpointError, match="worldgym bundle"):
        run_demo(DemoSettings(out=tmp_path / "run", bundle=str(other), quick=True))


def test_a_bundle_that_changed_meanwhile_is_not_mixed(bundle, tmp_path, monkeypatch):
    import shutil

    other = shutil.copytree(bundle, tmp_path / "other")
    settings = DemoSettings(out=tmp_path / "run", bundle=str(other), quick=True)
    from experiments.pipelines.demo import _Demo

    with monkeypatch.context() as patch:
        patch.setattr(_Demo, "run", lambda _: {})
        run_demo(settings)
    (other / "judge" / "notes.txt").write_text("another judge")
    with pytest.raises(ConfigError, match="parts: there"):
        run_demo(settings)


def test_a_missing_or_damaged_bundle_says_what_to_do(bundle, tmp_path):
    import shutil

    with pytest.raises(CheckpointError, match="no bundled checkpoint"):
        run_demo(DemoSettings(out=tmp_path / "a", bundle="no-such-bundle"))
    broken = shutil.copytree(bundle, tmp_path / "broken")
    (broken / "starts.npz").write_bytes(b"not an archive")
    with pytest.raises(CheckpointError, match="can't be read"):
        run_demo(DemoSettings(out=tmp_path / "b", bundle=str(broken), quick=True))
    (broken / "starts.npz").unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        run_demo(DemoSettings(out=tmp_path / "c", bundle=str(broken), quick=True))


@pytest.mark.parametrize(
    "bad",
    [{"iterations": 0}, {"group": 1}, {"lr": -1.0}, {"actor": "initial"}, {"seed": -1}, {"temperature": 0.0}],
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        DemoSettings(**bad)


def test_videos_show_false_positives_first():
    from worldgym.evaluation.closed_loop import Clip
    from worldgym.evaluation.outcomes import Start

    frames = np.zeros((2, 8, 8, 3), np.uint8)
    kinds = [(True, True)] * 5 + [(False, False)] * 5 + [(True, False)] * 3
    clips = [Clip(Start("reach", i), "x", frames, frames, said, was) for i, (said, was) in enumerate(kinds)]
    verdicts = [clip.verdict for clip in choose(clips, 6)]
    assert verdicts[:2] == ["fp", "fp"] and "tp" in verdicts and "tn" in verdicts and len(verdicts) == 6
