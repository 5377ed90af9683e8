"""Noise processes invert themselves, and every sampler finds the data that an exact predictor knows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldgym.errors import ConfigError
from worldgym.nn import (
    EMA,
    FLOW,
    DiffusersNoise,
    FlowNoise,
    LogitNormalTimes,
    MixedTimes,
    NoiseProcess,
    PowerTimes,
    Sampler,
    ShiftedTimes,
    make_sampler,
    renoise,
    uniform,
)


@given(t=st.floats(0.01, 1.0), predicts=st.sampled_from(["velocity", "clean"]), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_perfect_flow_prediction_says_the_clean_data(t, predicts, seed):
    torch.manual_seed(seed)
    x, eps, level = torch.randn(3, 4, 2), torch.randn(3, 4, 2), torch.full((3, 4), t)
    process = FlowNoise(predicts)
    noisy = process.add(x, eps, level)
    target = process.target(x, eps, level)
    assert torch.allclose(process.clean(noisy, target, level), x, atol=1e-4)
    assert torch.allclose(process.velocity(noisy, target, level), eps - x, atol=1e-3 / t)
    assert isinstance(process, NoiseProcess)


def test_flow_is_clean_at_zero_and_noise_at_one():
    x, eps = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(FLOW.add(x, eps, torch.zeros(2)), x)
    assert torch.equal(FLOW.add(x, eps, torch.ones(2)), eps)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_diffusers_processes_have_the_same_face(kind):
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    process = DiffusersNoise(DDPMScheduler(prediction_type=kind))
    x, eps, t = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([0.1, 0.5, 0.8])
    noisy = process.add(x, eps, t)
    theirs = process.scheduler.add_noise(x, eps, process.steps(t))
    assert torch.allclose(noisy, theirs, atol=1e-5)
    assert torch.allclose(process.clean(noisy, process.target(x, eps, t), t), x, atol=1e-3)
    if kind == "v_prediction":
        velocity = process.scheduler.get_velocity(x, eps, process.steps(t))
        assert torch.allclose(process.target(x, eps, t), velocity, atol=1e-5)


@given(
    sampler=st.sampled_from(
        [uniform, LogitNormalTimes(0.5), PowerTimes(), ShiftedTimes(uniform, 3.0), MixedTimes(uniform, 0.4)]
    ),
    seed=st.integers(0, 99),
)
@settings(max_examples=20, deadline=None)
def test_levels_are_in_range_and_repeat_with_the_generator(sampler, seed):
    t = sampler((50, 4), torch.Generator().manual_seed(seed))
    assert t.shape == (50, 4) and bool((t >= 0).all() and (t <= 1).all())
    assert torch.equal(t, sampler((50, 4), torch.Generator().manual_seed(seed)))


def test_mixed_levels_are_pure_noise_as_often_as_asked():
    t = MixedTimes(uniform, 0.8)((4000,), torch.Generator().manual_seed(0))
    assert 0.77 < float((t == 1).float().mean()) < 0.83


@pytest.mark.parametrize("name", ["euler", "flow_euler", "unipc", "ddim"])
def test_samplers_find_the_data_that_an_exact_predictor_knows(name):
    torch.manual_seed(0)
    data, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    sampler = make_sampler(name, steps=6)
    levels = []
    if name == "ddim":
        process = DiffusersNoise(sampler.scheduler)

        def predict(x, t):
            signal, rest = process._signal(t, x)
            return (x - signal * data) / rest
    else:

        def predict(x, t):
            levels.append(float(t[0]))
            return (x - data) / t[:, None, None, None]

    assert isinstance(sampler, Sampler)
    assert torch.allclose(sampler.sample(predict, noise), data, atol=2e-2)
    if levels:
        assert levels[0] > 0.99 and levels == sorted(levels, reverse=True)


def test_our_euler_steps_are_those_of_diffusers():
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 4)
    predict = lambda x, t: net(x) * t[:, None]  # noqa: E731
    noise = torch.randn(5, 4)
    with torch.no_grad():
        # diffusers ends at sigma = 1 / 1000 before 0, so its levels differ from ours by less than a hundredth
        ours, theirs = (make_sampler(n, 8).sample(predict, noise) for n in ("euler", "flow_euler"))
    assert torch.allclose(ours, theirs, atol=0.05)


def test_renoising_uses_the_last_answer_where_the_network_does_not_run():
    ran = []

    def answer(x, t):
        ran.append(t)
        return x + 1

    out = renoise(
        answer, lambda y: y, torch.zeros(1), (1.0, 0.5, 0.25), lambda i: torch.zeros(1), lambda i: i != 1
    )
    assert ran == [1.0, 0.25] and float(out) == pytest.approx(0.75 * 1 + 1)


def test_the_average_follows_the_weights_and_copies_buffers():
    model = torch.nn.BatchNorm1d(2)
    ema = EMA(model, 0.9)
    with torch.no_grad():
        model.weight.fill_(3.0)
    model.running_mean.fill_(5.0)
    ema.update(step=1)
    assert ema.model.weight.tolist() == pytest.approx([1 + 2 * (1 - 2 / 11)] * 2)
    assert ema.model.running_mean.tolist() == [5.0, 5.0] and not ema.model.weight.requires_grad


def test_mistakes_are_named():
    for bad in (
        lambda: make_sampler("heun", 3),
        lambda: make_sampler("euler", 0).sample(lambda x, t: x, torch.zeros(1)),
        lambda: make_sampler("ddim", 3, shift=2.0),
        lambda: FlowNoise("epsilon"),
        lambda: EMA(torch.nn.Linear(1, 1), 1.5),
        lambda: DiffusersNoise(object()),
    ):
        with pytest.raises(ConfigError):
            bad()
