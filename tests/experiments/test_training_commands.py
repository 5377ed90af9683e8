"""The chain collect -> tokenizer -> world model -> bundle -> picture, at toy size, through the command line."""

from __future__ import annotations

import json

import pytest

from experiments.cli import main


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
                "8",
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
    assert main(["train", "world-model", *arguments, "--steps", "3", "--batch", "4", "--window", "4"]) == 0
    return root


def test_the_trained_world_model_loads_and_knows_its_tasks(chain):
    from worldgym.models import load_world_model

    assert load_world_model(chain / "world" / "export").config.tasks == ("push", "reach")


def test_world_model_training_goes_on_from_an_exported_model(chain):
    arguments = [
        "--data",
        str(chain / "data"),
        "--initial",
        str(chain / "world" / "export"),
        "--out",
        str(chain / "more"),
    ]
    assert main(["train", "world-model", *arguments, "--steps", "2", "--batch", "4", "--window", "3"]) == 0
    assert (chain / "more" / "export" / "model.safetensors").is_file()


def test_a_bundle_holds_all_parts_and_draws_a_picture(chain):
    from agents import VLAPolicy, VLAPolicyConfig
    from experiments.bundle import Bundle
    from rewards import LearnedJudge
    from rewards.learned import LearnedJudgeConfig

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


def test_a_world_model_needs_a_tokenizer(chain, capsys):
    assert main(["train", "world-model", "--data", str(chain / "data")]) == 2
    assert "--tokenizer" in capsys.readouterr().err
