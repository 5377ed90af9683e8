"""`worldgym bench gpu` without a GPU: at toy size, with parts that fail, do not fit, or take too long."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from experiments.cli import main
from experiments.commands.gpu_check import said
from experiments.pipelines import gpu_parts
from experiments.pipelines.gpu_parts import PARTS, Settings, imagining, policy, run_part, training, tried

nowhere = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


@pytest.fixture
def toy():
    return Settings("cpu", "float32", toy=True, limit=100.0)


def test_all_parts_take_at_most_eight_minutes():
    assert sum(limit for limit, _ in PARTS.values()) <= 480


@nowhere
def test_without_a_gpu_it_measures_only_a_toy(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    assert main(["bench", "gpu", "--json", str(path)]) == 2 and not path.exists()
    assert "type --toy --device cpu to test the command" in capsys.readouterr().err
    assert main(["bench", "gpu", "--parts", "nothing"]) == 2
    assert "there are imagining small" in capsys.readouterr().err
    parts = ["--toy", "--device", "cpu", "--parts", "backbone"]
    assert main(["bench", "gpu", *parts, "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["toy"] and found["device"] == "cpu" and "memory_bytes" not in found
    assert [entry["part"] for entry in found["entries"]] == ["backbone"]
    entry = found["entries"][0]
    assert (entry["type"], entry["preset"]) == ("diffusers", "tiny-wan") and entry["frames_per_second"] > 0


def test_imagining_and_training_are_measured_at_toy_size(toy):
    found = list(imagining(toy, "tiny", ("eager",)))
    assert [(e["type"], e["batch"]) for e in found] == [
        ("chunk", 1),
        ("video", 1),
        ("chunk", 2),
        ("video", 2),
    ]
    assert all(e["frames_per_second"] > 0 and e["peak_bytes"] is None for e in found), found
    found = list(training(toy, "tiny"))
    assert [e["type"] for e in found] == ["video", "chunk"] and all(
        e["seconds_per_step"] > 0 for e in found
    ), found


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs worldgym[vla]")
def test_a_grpo_step_is_measured_with_adapters_and_with_all_weights(toy):
    found = list(policy(toy, "tiny"))
    assert [e["tuning"] for e in found] == ["lora", "full"] and all(
        e["seconds_per_step"] > 0 for e in found
    ), found
    assert "s a step" in said(found[0])


def test_a_smaller_batch_is_tried_where_one_does_not_fit(monkeypatch):
    def too_large(settings, what):
        if what["batch"] > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore lines")
        return {"seconds_per_step": 1.0, "peak_bytes": 10}

    monkeypatch.setattr(gpu_parts, "_stepped", too_large)
    found = list(training(Settings("cpu", "float32", toy=False, limit=100.0), "base"))
    assert [e["batch"] for e in found] == [64, 32, 16] * 2
    assert found[0]["failed"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert "out of memory" in said(found[0]) and "peak 10 B" in said(found[2])


def test_what_does_not_fit_into_the_time_is_recorded():
    late = Settings("cpu", "float32", toy=True, limit=-1.0)
    assert tried(late, {"what": "x"}, dict) == {"what": "x", "skipped": "the part's time was used up"}
    (stopped,) = run_part("imagining base", "cpu", "float32", toy=True, limit=0.3)
    assert stopped["part"] == "imagining base" and stopped["failed"] == "stopped after 0 s"
