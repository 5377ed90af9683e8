"""The speed bench's own arithmetic, and that its works do what they count."""

from __future__ import annotations

import pytest
import torch

from experiments.pipelines import speed
from worldgym.errors import ConfigError
from worldgym.models import VideoWorldModel, WorldModelConfig


@pytest.fixture(scope="module")
def model() -> VideoWorldModel:
    torch.manual_seed(0)
    return VideoWorldModel(WorldModelConfig.preset("tiny")).eval().requires_grad_(False)


def test_a_rate_counts_units_and_not_calls():
    calls = []
    assert speed.rate(lambda: calls.append(1) or 7, seconds=0.02) > 7 * (len(calls) - 1) / 1.0
    rates = speed.paired({"a": lambda: 1, "b": lambda: 2}, rounds=2, seconds=0.01)
    assert set(rates) == {"a", "b"} and min(rates.values()) > 0


def test_exponents_of_known_growth():
    assert speed.exponent([1, 2, 4], [3, 6, 12]) == pytest.approx(1)
    assert speed.exponent([1, 2, 4], [5, 5, 5]) == pytest.approx(0, abs=1e-9)


def test_imagining_goes_on_from_where_it_was(model):
    work = speed.imagining(model, batch=2, chunk=3)
    assert work() == 6
    state = work.__closure__ and next(
        c.cell_contents for c in work.__closure__ if isinstance(c.cell_contents, dict)
    )
    before = state["state"].cache.count.clone()
    work()
    assert (state["state"].cache.count == before + 3).all()


def test_works_of_single_stages_count_frames(model):
    assert speed.denoising(model, 2)() == 2 and speed.layers_only(model, 2)() == 2
    assert speed.transformer_flops(model.config.dynamics) > 0
    assert speed.matmul_gflops(64)() == 2 * 64**3 // 1_000_000


def test_counted_operations_hold_the_transformer_and_more(model):
    flops = speed.flops_per_frame(model)
    assert flops["denoise and commit"] > speed.transformer_flops(model.config.dynamics)
    assert flops["decode"] > 0


def test_another_step_is_timed_in_place_of_the_networks_own(model):
    net, calls = model.inference_network(), []

    def step(*args):
        calls.append(1)
        return net.step(*args)

    assert speed.denoising(model, 2, step)() == 2 and calls == [1]


def test_a_compiler_that_fails_is_reported(model, monkeypatch):
    def compile(*args, **kwargs):
        raise RuntimeError("no C++ compiler\nhere")

    monkeypatch.setattr(torch, "compile", compile)
    assert speed.compiling(model, 2, 1, 0.01) == {"failed": "RuntimeError: no C++ compiler"}


def test_int8_products_are_timed_against_bfloat16():
    factors = speed.int8_linear(32, 64, rounds=1, seconds=0.01)
    assert set(factors) == {"product", "layer"} and min(factors.values()) > 0


def test_bad_settings_are_refused():
    from experiments.commands.bench_fidelity import BenchFidelityConfig
    from experiments.commands.bench_speed import BenchSpeedConfig

    with pytest.raises(ConfigError, match="batches"):
        BenchSpeedConfig(batches=())
    with pytest.raises(ConfigError, match="episodes"):
        BenchFidelityConfig(episodes=1)
    with pytest.raises(ConfigError, match="three policies"):
        BenchFidelityConfig(noises=(0.0,), temperatures=())
