"""`worldgym cost`: counts on meta tensors are those of real ones, tables, and the page of the documentation."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.cli import main
from experiments.pipelines.cost import table
from experiments.pipelines.cost.counting import Live, flops_of, on_meta, saved_bytes
from experiments.pipelines.cost.measured import check, measure
from experiments.pipelines.cost.page import markdown
from experiments.pipelines.cost.policies import policy_training
from experiments.pipelines.cost.training import step_cost
from experiments.pipelines.cost.worlds import (
    WORLDS,
    imagining_cost,
    world_model,
    world_presets,
    world_training,
)
from worldgym.errors import ConfigError
from worldgym.models.video.config import WorldModelConfig

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs/results/data/cost.json"
vla = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs worldgym[vla]")
SLOW_VLA = [vla, pytest.mark.slow]
STEPS = [
    pytest.param(lambda: world_training("video", "tiny", 1), id="video"),
    pytest.param(lambda: world_training("chunk", "tiny", 4), id="chunk", marks=pytest.mark.slow),
    pytest.param(lambda: world_training("diffusers", "tiny-wan", 2), id="diffusers", marks=pytest.mark.slow),
    pytest.param(lambda: policy_training("vla", "tiny", 3), id="vla"),
    pytest.param(
        lambda: policy_training("hf_vla", "tiny", 2, "lora", "grpo"), id="hf_vla, GRPO", marks=SLOW_VLA
    ),
    pytest.param(lambda: policy_training("hf_vla", "tiny", 2), id="hf_vla, SFT", marks=SLOW_VLA),
]


@pytest.mark.parametrize("step", STEPS)
def test_saved_tensors_and_operations_on_meta_are_those_on_the_cpu(step, request):
    def counted():
        training, saved = step(), []
        flops = flops_of(lambda: saved.append(saved_bytes(training.forward, training.held())))
        return saved[0], flops

    torch.manual_seed(0)
    real = counted()
    with on_meta():
        meta = counted()
    # Indices of chosen rows are a few bytes. Without values, transformers keeps a mask in which everything is visible.
    tolerance = 1e-2 if "SFT" in request.node.callspec.id else 1e-5
    assert meta[0] == pytest.approx(real[0], rel=tolerance) and meta[0] > 10_000
    assert meta[1] == real[1] > 0


def test_the_largest_sum_of_live_bytes_on_meta_is_that_on_the_cpu():
    def largest():
        training = world_training("chunk", "tiny", 8, checkpointing=True)
        with Live(training.held()) as live:
            training.forward().backward()
        return live.peak

    real = largest()
    with on_meta():
        assert largest() == pytest.approx(real, rel=2e-3)


def test_live_bytes_end_with_their_storage():
    with Live() as live:
        a = torch.zeros(1000)
        b = a[:10] + 1
        del a
        assert live.now == 40 and live.peak == 4040
        c = b.view(2, 5)
        del b
        assert live.now == 40 and c.shape == (2, 5)


def test_checkpointing_changes_no_gradient_and_saves_memory():
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        training = world_training("chunk", "tiny", 8, checkpointing)
        with Live() as live:
            training.forward().backward()
        found.append((live.peak, [p.grad for p in training.trained if p.grad is not None]))
    assert found[1][0] < found[0][0]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_weights_gradients_and_moments_are_counted_from_parameters():
    with on_meta():
        found = step_cost(world_training("chunk", "tiny", 2))
    model = world_model("chunk", "tiny")
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["trained"] == sum(p.numel() for p in model.picture.parameters())
    assert found["gradient_bytes"] == 4 * found["trained"]
    assert (
        0 <= found["optimizer_bytes"] - 8 * found["trained"] <= 4 * 200
    )  # and one number for each parameter
    parts = ("weight_bytes", "gradient_bytes", "optimizer_bytes", "copy_bytes", "activation_bytes")
    assert sum(found[name] for name in parts) == found["training_bytes"]


def test_base_is_128_pixels_64_tokens_and_twelve_layers_of_768():
    config = WorldModelConfig.preset("base")
    assert config.tokenizer.size == (128, 128) and config.dynamics.tokens == 64
    assert (config.dynamics.width, config.dynamics.depth) == (768, 12)
    assert WorldModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with on_meta():
        for kind in ("video", "chunk"):
            model = world_model(kind, "base")
            assert 85e6 < sum(p.numel() for p in model.parameters()) < 105e6
            assert model.config.tokenizer.size == (128, 128)


def test_a_type_that_is_not_registered_has_no_presets(monkeypatch):
    monkeypatch.setitem(WORLDS, "not_there", replace(WORLDS["video"], presets=("large",)))
    assert ("not_there", "large") not in world_presets() and ("video", "base") in world_presets()
    assert ("diffusers", "large") in world_presets()
    with pytest.raises(
        ConfigError, match="no world model 'video' with the preset 'large'; there are video tiny"
    ):
        world_training("video", "large", 1)


def test_the_command_prints_times_only_for_a_given_throughput(tmp_path, capsys):
    rows = [row for row in json.loads(RESULTS.read_text())["rows"] if row["preset"] == "base"]
    assert " s a step" not in table.text(rows)
    row = next(row for row in rows if row["type"] == "chunk")
    found = table.speeds(row, flops_per_second=30e12, steps=3600)
    assert found["hours"] == pytest.approx(row["step_flops"] / 30e12)
    assert "frames/s" in table.text([row], 30e12, 3600)
    for arguments, said in (
        (["--preset", "huge"], "there is no preset 'huge'; there are tiny, small, base"),
        (["--tflops", "100"], "times need both --tflops and --utilisation"),
        (["--tflops", "100", "--utilisation", "1.5"], "expected more than 0 and at most 1"),
        (["--tuning", "half"], "there are full, lora, frozen_vision"),
        (["--report", str(tmp_path / "page.md")], "type --json docs/results/data/cost.json"),
    ):
        assert main(["cost", *arguments]) == 2
        assert said in capsys.readouterr().err


def test_results_of_an_earlier_run_stay_in_the_file(tmp_path, capsys, monkeypatch):
    path, kept = tmp_path / "cost.json", {"part": "policy", "type": "vla", "preset": "small"}
    path.write_text(json.dumps({"rows": [kept], "checks": []}))
    rows = [row for row in json.loads(RESULTS.read_text())["rows"] if row["preset"] == "base"]
    monkeypatch.setattr(table, "cost_rows", lambda presets, batch, tunings: rows)
    assert main(["cost", "--json", str(path)]) == 0
    assert json.loads(path.read_text())["rows"] == [kept, *rows]
    assert "video base, batch 64 (windows of 20 frames)" in capsys.readouterr().out
    again = table.merged([kept, *rows], [{**rows[0], "batch": 2}, {**rows[0], "trained": 0}])
    assert len(again) == len(rows) + 2 and again[1]["trained"] == 0


def test_imagining_costs_less_where_fewer_frames_are_decoded():
    with on_meta():
        found = imagining_cost("chunk", "tiny", 2)
    weights = sum(p.numel() * p.element_size() for p in world_model("chunk", "tiny").parameters())
    assert found["frame_flops"] > found["frame_flops_last"] > 0
    assert found["env_bytes"] > 0 and found["imagining_bytes"] > weights


@pytest.mark.slow
def test_rows_are_computed_for_world_models_and_policies():
    world = table._world("chunk", "tiny", 2)
    assert world["step_flops_checkpointed"] > world["step_flops"]
    policy = table._policy("vla", "tiny", "full", "grpo", 2)
    assert table._acting("vla", "tiny", "full")["acting_flops"] > 0
    assert policy["copy_bytes"] == 0 and "step_flops_checkpointed" not in policy


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc of Linux")
def test_the_estimate_is_within_a_tenth_of_what_a_process_needs():
    assert abs(check({"type": "video", "preset": "tiny", "batch": 20, "step": "world"})["difference"]) < 0.1


def test_numbers_are_written_with_three_digits():
    assert [table.count(n) for n in (12, 1234, 999_600, 93_215_000)] == ["12", "1.23 k", "1.00 M", "93.2 M"]
    assert [table.size(n) for n in (None, 12, 45_600_000, 1.37e11)] == ["-", "12 B", "45.6 MB", "137 GB"]


def test_a_measurement_that_fails_says_so(monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(
        ConfigError, match="failed" if Path("/proc/self/clear_refs").exists() else "leave --check out"
    ):
        measure({"type": "video", "preset": "tiny", "batch": 1, "step": "world"})


def test_the_page_shows_the_results_that_are_kept():
    results = json.loads(RESULTS.read_text())
    page = (ROOT / "docs/cost.md").read_text(encoding="utf-8")
    data = ROOT / "docs/results/data/gpu.json"
    gpu = json.loads(data.read_text()) if data.exists() else None
    typed = "worldgym cost --report docs/cost.md --json docs/results/data/cost.json"
    assert markdown(results, gpu) == page, f"docs/cost.md is not what its data say; type: {typed}"
    named = {(row["type"], row["preset"]) for row in results["rows"]}
    assert {(kind, preset) for kind in ("video", "chunk") for preset in ("tiny", "small", "base")} <= named
    assert max(abs(found["difference"]) for found in results["checks"]) < 0.1


def test_the_page_shows_no_figure_of_a_toy_or_of_a_cpu():
    results = json.loads(RESULTS.read_text())
    entry = {"what": "imagining", "type": "video", "preset": "base", "batch": 64, "frames_per_second": 4321.0}
    gpu = {
        "device": "Some GPU",
        "toy": False,
        "dtype": "bfloat16",
        "versions": {"torch": "2"},
        "entries": [entry],
    }
    assert "4,321" in markdown(results, gpu) and "on one Some GPU" in markdown(results, gpu)
    for other in ({"toy": True}, {"device": "cpu"}):
        assert markdown(results, gpu | other) == markdown(results, None)
    assert "There is no figure here" in markdown(results, None)
