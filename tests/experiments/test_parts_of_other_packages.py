"""Every command takes a judge, a policy, a world model and a dataset format that an installed package registers."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
import torch
from other_package import install

from agents import load_policy
from agents.loading import pack_policy
from experiments.bundle import Bundle
from experiments.cli import main
from rewards import load_judge
from worldgym import registry
from worldgym.data import EpisodeDataset
from worldgym.errors import CheckpointError, ConfigError
from worldgym.models import load_world_model
from worldgym.registry import DATASET_FORMATS, JUDGES, POLICIES, WORLD_MODELS


@pytest.fixture
def installed(tmp_path_factory, monkeypatch):
    """The package on sys.path, its entry points discovered; forgotten afterwards."""
    monkeypatch.syspath_prepend(str(install(tmp_path_factory.mktemp("site"))))
    known = {each: dict(each._known) for each in registry.REGISTRIES}
    registry._entry_points.cache_clear()
    yield
    for each, items in known.items():
        each._known.clear()
        each._known.update(items)
    sys.modules.pop("other_parts", None)
    registry._entry_points.cache_clear()


@pytest.fixture
def parts(installed, tmp_path):
    """Folders of one part of each kind."""
    torch.manual_seed(0)
    folders = {}
    for kind, name in ((JUDGES, "judge"), (POLICIES, "policy"), (WORLD_MODELS, "world_model")):
        folders[name] = tmp_path / "parts" / name
        kind.save(kind.get(f"their_{name}")(), folders[name])
    return folders


def data_of(tmp_path):
    from foreign import write

    return write(tmp_path / "data", 4, 4, size=16, sentences=("go",))


def test_saved_parts_are_loaded_by_their_type(parts):
    assert load_judge(parts["judge"], tokenizer="unused", cache="unused").name == "theirs"
    assert load_policy(parts["policy"]).chunk == 5
    assert load_world_model(parts["world_model"]).action_dim == 4


def test_a_registered_policy_travels_as_files(parts):
    policy = load_policy(parts["policy"])
    policy.mean.data.fill_(0.25)
    sent = pack_policy(policy)
    assert set(sent.files) == {"config.json", "manifest.json", "w.safetensors"}
    assert torch.equal(sent.load().mean, policy.mean)


def test_commands_that_measure_take_them(parts, bundle, tmp_path, capsys):
    shared = ["--bundle", str(bundle)]
    policy, judge, model = (str(parts[name]) for name in ("policy", "judge", "world_model"))
    lines = [
        [
            "eval",
            "--policy",
            policy,
            "--episodes",
            "4",
            "--horizon",
            "10",
            "--workers",
            "0",
            "--out",
            "e.json",
        ],
        [
            "bench",
            "closed-loop",
            "--policies",
            policy,
            "--judge",
            judge,
            "--world-model",
            model,
            "--episodes",
            "4",
        ]
        + ["--horizon", "10", "--out", "g.json"],
        [
            "audit",
            "--policies",
            policy,
            "--judges",
            judge,
            "bundled",
            "--world-model",
            model,
            "--episodes",
            "4",
        ]
        + ["--horizon", "10", "--json", "a.json"],
    ]
    for line in lines:
        line[-1] = str(tmp_path / line[-1])
        code = main([*line, *shared])
        assert code == (1 if line[0] == "bench" else 0), capsys.readouterr().err
    assert set(json.loads((tmp_path / "a.json").read_text())["judges"]) == {judge, "bundled"}


def test_workers_load_a_policy_by_its_type(parts, bundle, tmp_path):
    line = [
        "eval",
        "--policy",
        str(parts["policy"]),
        "--episodes",
        "2",
        "--horizon",
        "5",
        "--bundle",
        str(bundle),
    ]
    assert main([*line, "--workers", "1", "--out", str(tmp_path / "two.json")]) == 0
    assert main([*line, "--workers", "0", "--out", str(tmp_path / "none.json")]) == 0
    results = [json.loads((tmp_path / f"{name}.json").read_text())["policies"] for name in ("two", "none")]
    one, other = (next(iter(found.values())) for found in results)
    assert {k: v for k, v in one.items() if k != "seconds"} == {
        k: v for k, v in other.items() if k != "seconds"
    }


def test_policies_of_different_chunks_are_compared(parts, bundle, tmp_path):
    other = POLICIES.get("their_policy")(chunk=3)
    POLICIES.save(other, tmp_path / "three")
    line = [
        "eval",
        "--policy",
        "sft",
        str(tmp_path / "three"),
        "--episodes",
        "2",
        "--horizon",
        "6",
        "--workers",
        "0",
    ]
    assert main([*line, "--bundle", str(bundle), "--out", str(tmp_path / "e.json")]) == 0
    assert len(json.loads((tmp_path / "e.json").read_text())["policies"]) == 2


def test_imagined_rl_improves_a_registered_policy(parts, bundle, tmp_path):
    line = ["rl", "--bundle", str(bundle), "--policy", str(parts["policy"]), "--quick", "--iterations", "1"]
    assert main([*line, "--learn", "all", "--start-oversampling", "1", "--out", str(tmp_path / "rl")]) == 0
    assert type(load_policy(tmp_path / "rl" / "policy")).__name__ == "Policy"


def test_a_bundle_of_registered_parts_is_copied_whole_and_loads(parts, bundle, tmp_path, monkeypatch):
    import shutil

    from experiments.commands import bundle as command

    data = data_of(tmp_path)
    monkeypatch.setattr("agents.algorithms.sft.demonstrations", lambda arrays, count, **how: [])
    monkeypatch.setattr(
        command, "write_starts", lambda path, *rest: shutil.copyfile(bundle / path.name, path)
    )
    monkeypatch.setattr(command, "write_demos", lambda path, *rest: shutil.copyfile(bundle / path.name, path))
    (parts["judge"] / "tensorboard").mkdir()
    (parts["judge"] / "tensorboard" / "events").write_text("a log, which is no part of the judge")
    line = ["bundle", "--data", str(data), "--out", str(tmp_path / "made")]
    for name, folder in parts.items():
        line += [f"--{name.replace('_', '-')}", str(folder)]
    assert main(line) == 0
    made = Bundle(tmp_path / "made")
    assert made.judge().name == "theirs" and made.policy().chunk == 5 and made.world_model().state_dim == 4
    assert not (made.folder / "judge" / "tensorboard").exists()
    assert (made.folder / "judge" / "w.safetensors").is_file()


@pytest.mark.parametrize("kind", ["judge", "policy", "world-model"])
def test_training_commands_train_them(installed, tmp_path, kind):
    data, out = data_of(tmp_path), tmp_path / "run"
    more = ["--no-success-only", "--epochs", "2"] if kind == "policy" else ["--steps", "3"]
    name = f"their_{kind.replace('-', '_')}"
    line = ["train", kind, "--type", name, "--data", str(data), "--out", str(out), *more]
    assert main(line) == 0
    if kind == "judge":
        assert 0 < load_judge(out).level.item() < 1
    elif kind == "policy":
        assert float(load_policy(out).mean.detach().abs().sum()) > 0
    else:
        assert load_world_model(out / "export").image_size == 16
        assert list((out / "tensorboard").iterdir())
    assert main(line) == 0, "it is finished, and says so"


def test_a_stopped_training_goes_on_to_the_same_weights(installed, tmp_path, monkeypatch):
    from worldgym.nn import EMA

    def line(name):
        data = str(tmp_path / "data")
        command = ["train", "world-model", "--type", "their_world_model", "--data", data]
        return [*command, "--steps", "6", "--batch-size", "2", "--window", "3", "--out", str(tmp_path / name)]

    data_of(tmp_path)
    assert main(line("whole")) == 0
    average, steps = EMA.update, []

    def stops(ema, step):
        average(ema, step)
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EMA, "update", stops)
        assert main(line("parted")) == 130
    assert main(line("parted")) == 0
    whole, parted = (load_world_model(tmp_path / name / "export") for name in ("whole", "parted"))
    assert torch.equal(whole.gain.weight, parted.gain.weight)


def test_options_of_the_built_in_type_are_refused(installed, tmp_path, capsys):
    line = ["train", "world-model", "--type", "their_world_model", "--data", str(data_of(tmp_path))]
    assert main([*line, "--contact-odds", "2", "--out", str(tmp_path / "run")]) == 2
    assert "--contact-odds do not apply to --type their_world_model" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_type_without_the_seam_says_what_it_lacks(installed, tmp_path, capsys):
    line = ["train", "judge", "--type", "vlm", "--data", str(data_of(tmp_path)), "--steps", "1"]
    assert main([*line, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "'vlm'" in said and "for_data" in said and "loss(batch, generator)" in said


def test_an_unknown_type_lists_what_is_known(installed, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"type": "their_polcy"}')
    with pytest.raises(ConfigError, match="did you mean 'their_policy'"):
        load_policy(tmp_path)
    for kind in ("judge", "policy", "world-model"):
        assert (
            main(["train", kind, "--type", "no_such", "--data", str(tmp_path), "--out", str(tmp_path / "o")])
            == 2
        )
        said = capsys.readouterr().err
        assert "unknown" in said and f"their_{kind.replace('-', '_')}" in said


def test_import_detects_a_registered_format_and_resumes(installed, tmp_path, capsys):
    source = tmp_path / "recorded"
    source.mkdir()
    for number in range(3):
        data = {"names": ["a", "b"], "actions": [[0.1, 0.2]] * 4, "states": [[float(i)] for i in range(5)]}
        (source / f"{number}.traj").write_text(json.dumps(data))
    line = ["import", "--source", str(source), "--out", str(tmp_path / "mine")]
    assert main(line) == 0 and main(line) == 0
    dataset = EpisodeDataset(tmp_path / "mine")
    assert len(dataset) == 3 and dataset.state_dim == 1 and dataset.action_spec.names == ("a", "b")
    assert np.allclose(dataset[0].actions, [[0.1, 0.2]] * 4)
    assert main([*line, "--limit", "2"]) == 2 and "other settings" in capsys.readouterr().err
    assert main([*line[:3], "--out", str(tmp_path / "lerobot"), "--format", "lerobot"]) == 2
    assert main([*line[:3], "--out", str(tmp_path / "none"), "--format", "trja"]) == 2
    assert "did you mean 'traj'" in capsys.readouterr().err
    assert DATASET_FORMATS.get("traj").detects(source)


def test_list_shows_them_with_their_source(installed, capsys):
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"their_judge +other_parts:Judge", said) and re.search(r"traj +other_parts:Format", said)
    assert re.search(r"learned +rewards.models.learned:LearnedJudge", said) and "other_parts" not in sys.modules
    assert main(["list", "--kinds", "policies"]) == 0
    assert "judges" not in capsys.readouterr().out
    assert main(["list", "--kinds", "polices"]) == 2


def test_a_part_that_forgets_its_type_is_refused_when_saved(installed, tmp_path):
    policy = POLICIES.get("their_policy")()
    policy.TYPE = "another"
    with pytest.raises(ConfigError, match="registered as 'their_policy'"):
        POLICIES.save(policy, tmp_path)


def test_a_folder_of_another_kind_is_no_policy(parts):
    with pytest.raises(ConfigError, match="unknown policy type 'their_judge'"):
        load_policy(parts["judge"])
    with pytest.raises(CheckpointError, match="no folder"):
        load_policy(parts["judge"] / "nowhere")
