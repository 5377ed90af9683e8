"""The model card of a bundle: tasks that miss the gate are left out, figures are those of the files given."""

from __future__ import annotations

import json
import shutil

import pytest

from experiments.bundle import Bundle
from experiments.cli import main, parse_command
from experiments.pipelines.settings import FineTuneSettings
from worldgym.errors import CheckpointError, ConfigError
from worldgym.pretrained import read_card
from worldgym.utils.files import write_sealed
from worldgym.utils.folders import verify_listed


def row(precision, recall):
    interval = {f"{name}_interval": [0.0, 1.0] for name in ("precision", "recall")}
    return {"episodes": 40, "precision": precision, "recall": recall, **interval}


@pytest.fixture
def bundle(bundle, tmp_path):
    """A copy that a test may change, without a card for readers."""
    folder = shutil.copytree(bundle, tmp_path / "builds" / "bundle")
    (folder / "README.md").unlink(missing_ok=True)
    return folder


@pytest.fixture
def gate(bundle, tmp_path):
    tasks = Bundle(bundle).card["tasks"]
    rows = {task: row(0.9, 0.8) for task in tasks} | {tasks[0]: row(0.91, 0.69)}
    file = tmp_path / "gate.json"
    facts = {"policies": {"sft": {}}, "by_task": rows, "all": row(0.87, 0.86), "start_seed": 7}
    file.write_text(json.dumps(facts))
    return file


def test_a_task_below_the_floor_is_left_out_and_named(bundle, gate):
    first, *others = Bundle(bundle).card["tasks"]
    assert main(["card", "--bundle", str(bundle), "--gate", str(gate)]) == 0
    card = read_card(bundle)
    assert card["tasks"] == others and card["tasks_thin"] == [first]
    text = (bundle / "README.md").read_text()
    assert f"| {first} | 40 | 0.91 [0.00, 1.00] | 0.69" in text and "0.87" in text and "M parameters" in text
    verify_listed(bundle, "restore it")
    # A lower floor takes it back, so that the command can be typed again.
    assert main(["card", "--bundle", str(bundle), "--gate", str(gate), "--floor", "0.6"]) == 0
    assert sorted(read_card(bundle)["tasks"]) == sorted([first, *others]) and not read_card(bundle)["tasks_thin"]


def test_the_card_states_how_long_rollouts_are(bundle):
    assert FineTuneSettings(bundle=str(bundle)).rollout_horizon == 25
    card = read_card(bundle) | {"rollout_horizon": 30}
    (bundle / "manifest.json").unlink(missing_ok=True)
    (bundle / "card.json").write_text(json.dumps(card))
    assert FineTuneSettings(bundle=str(bundle)).rollout_horizon == 30
    assert FineTuneSettings(bundle=str(bundle)).key()["rollout_horizon"] == 30
    assert FineTuneSettings(bundle=str(bundle), rollout_horizon=20).trainer_config().rollout.horizon == 20
    assert FineTuneSettings(bundle=str(bundle), quick=True).rollout_horizon == 10
    assert FineTuneSettings(bundle="no-such-bundle").rollout_horizon == 25


def test_a_card_may_state_how_success_is_confirmed_in_practice(bundle):
    assert FineTuneSettings(bundle=str(bundle)).trainer_config().rollout.confirm == 1
    (bundle / "manifest.json").unlink(missing_ok=True)
    card = read_card(bundle) | {"practice": {"confirm": 2, "threshold": 0.9}}
    (bundle / "card.json").write_text(json.dumps(card))
    stated = FineTuneSettings(bundle=str(bundle))
    assert stated.fastest and parse_command(("rl",), ["--bundle", str(bundle), "--no-fastest"])[0].fastest is False
    assert parse_command(("rl",), ["--fastest", "--bundle", str(bundle)])[0].fastest is True
    assert (stated.confirm, stated.threshold) == (2, 0.9) and stated.key()["confirm"] == 2
    (bundle / "card.json").write_text(json.dumps(card | {"practice": card["practice"] | {"train_tasks": ["push"]}}))
    assert FineTuneSettings(bundle=str(bundle)).train_tasks == ("push",)
    assert FineTuneSettings(bundle=str(bundle), train_tasks=("reach",)).train_tasks == ("reach",)
    given = FineTuneSettings(bundle=str(bundle), confirm=1).trainer_config().rollout
    assert (given.confirm, given.threshold) == (1, 0.9)
    (bundle / "card.json").write_text(json.dumps(card | {"practice": {"confirms": 2}}))
    with pytest.raises(ConfigError, match="'confirms'; expected confirm, threshold, fastest, train_tasks, initial"):
        FineTuneSettings(bundle=str(bundle))
    (bundle / "card.json").write_text(json.dumps(card | {"practice": {"confirm": "two"}}))
    with pytest.raises(CheckpointError, match="expected settings of fine-tuning"):
        read_card(bundle)


def test_undefined_precision_and_untested_tasks_are_below_every_floor(bundle, gate):
    first, *others = Bundle(bundle).card["tasks"]
    facts = json.loads(gate.read_text())
    facts["by_task"] = {first: row(None, 0.9), others[0]: row(0.9, 0.9)}
    gate.write_text(json.dumps(facts))
    assert main(["card", "--bundle", str(bundle), "--gate", str(gate), "--floor", "0"]) == 0
    assert read_card(bundle)["tasks"] == others[:1]
    assert "| undefined | 0.90" in (bundle / "README.md").read_text()


def test_commands_of_the_build_name_no_folder_of_this_machine(bundle, tmp_path):
    line = f"worldgym collect --out {bundle.parent}/data"
    stages = {"collect": {"line": line, "seconds": 90.0}, "probe": {"line": "worldgym train probe"}}
    write_sealed(tmp_path / "build.json", {"recipe": "x", "stages": stages})
    assert main(["card", "--bundle", str(bundle), "--build", str(tmp_path)]) == 0
    text = (bundle / "README.md").read_text()
    assert "| 1.5 | `worldgym collect --out OUT/data` |" in text and str(bundle.parent) not in text
    assert "train probe" not in text, "a stage that has not finished is no part of the bundle"


def test_what_cannot_be_done_is_refused_before_anything_changes(bundle, gate, tmp_path, capsys):
    before = (bundle / "card.json").read_bytes()
    (bundle / "README.md").write_text("# mine\n")
    assert main(["card", "--bundle", str(bundle), "--gate", str(gate)]) == 2
    assert "written by hand" in capsys.readouterr().err
    (bundle / "README.md").unlink()
    assert main(["card", "--bundle", str(bundle), "--gate", str(gate), "--floor", "0.95"]) == 2
    assert "no task reaches 0.95" in capsys.readouterr().err
    gate.write_text("{}")
    assert main(["card", "--bundle", str(bundle), "--gate", str(gate)]) == 2
    assert "no result of `worldgym bench closed-loop`" in capsys.readouterr().err
    assert main(["card", "--bundle", str(tmp_path)]) == 2
    assert "worldgym bundle" in capsys.readouterr().err
    assert main(["card", "--bundle", str(bundle), "--floor", "1.5"]) == 2
    assert (bundle / "card.json").read_bytes() == before
