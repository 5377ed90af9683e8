"""Training: exact resume, learning on a small set, checkpoints that survive."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldgym.errors import CheckpointError, ConfigError, DivergedError
from worldgym.models import FrameTokenizer, VideoWorldModel, WorldModelConfig
from worldgym.training.loop import KernelMuon, LoopConfig, TrainingLoop
from worldgym.training.tokenizer import train_tokenizer
from worldgym.training.world_model import (
    LatentEpisodes,
    WorldModelTraining,
    pixel_loss,
    train_world_model,
)

TINY = WorldModelConfig.preset("tiny")


def moving_dots(episodes: int = 6, length: int = 12) -> SimpleNamespace:
    """Episodes in which a bright square moves by the action."""
    rng = np.random.default_rng(0)
    frames, actions, states = [], [], []
    for _ in range(episodes):
        xy = rng.uniform(12, 52, 2)
        for _ in range(length):
            frame = np.full((64, 64, 3), 90, np.uint8)
            x, y = xy.astype(int)
            frame[y - 5 : y + 5, x - 5 : x + 5] = (250, 30, 30)
            a = rng.uniform(-1, 1, 4).astype(np.float32)
            frames.append(frame)
            actions.append(a)
            states.append([*xy / 64, 0.0, 0.0])
            xy = np.clip(xy + 4 * a[:2], 6, 58)
    offsets = np.arange(0, episodes * length + 1, length)
    return SimpleNamespace(
        frames=np.stack(frames),
        actions=np.stack(actions),
        states=np.array(states, np.float32),
        offsets=offsets,
    )


def _loop(tmp_path, name: str, steps: int, stop_at: int | None = None) -> TrainingLoop:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)

    def loss(module, step, generator):
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 4, generator=generator)
        return (module(x) - x.flip(1)).square().mean(), {}

    return TrainingLoop(
        model, LoopConfig(steps=steps, warmup=2, log_every=5, optimizer="muon"), tmp_path / name, loss
    )


def test_a_stopped_run_resumes_to_the_very_same_weights(tmp_path):
    whole = _loop(tmp_path, "whole", 20)
    whole.run()
    with pytest.raises(KeyboardInterrupt):
        _loop(tmp_path, "parts", 20, stop_at=9).run()
    resumed = _loop(tmp_path, "parts", 20)
    assert resumed.step == 9
    resumed.run()
    assert torch.equal(whole.model.weight, resumed.model.weight)
    assert torch.equal(whole.ema_model.weight, resumed.ema_model.weight)


def test_a_damaged_checkpoint_is_named_and_kept(tmp_path):
    loop = _loop(tmp_path, "run", 3)
    loop.run()
    weights = loop.checkpoint / "tensors.safetensors"
    weights.write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="emove .*checkpoint to start from scratch"):
        _loop(tmp_path, "run", 3)
    assert weights.read_bytes() == b"not safetensors"


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    loop = _loop(tmp_path, "run", 3)
    loop.run()
    weights = loop.checkpoint / "tensors.safetensors"
    before = weights.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("worldgym.training.loop.save_tensors", full)
    with pytest.raises(OSError, match="No space"):
        loop.save()
    assert weights.read_bytes() == before


@pytest.mark.parametrize("change", [{"seed": 1}, {"lr": 0.5}, {"optimizer": "adamw"}, {"data": "b"}])
def test_a_run_with_other_settings_or_data_is_not_continued(tmp_path, change):
    def run(steps, data="a", **settings):
        config = LoopConfig(**{"steps": steps, "warmup": 2, "optimizer": "muon", **settings})
        loss = lambda module, step, generator: (module.weight.square().mean(), {})  # noqa: E731
        return TrainingLoop(torch.nn.Linear(4, 4), config, tmp_path / "run", loss, identity={"data": data})

    run(3).run()
    with pytest.raises(ConfigError, match=next(iter(change))):
        run(3, **change)
    assert run(5).step == 3  # a longer run goes on


@pytest.mark.parametrize(("compiled", "steps"), [(False, 1), (True, 5)])
def test_the_time_of_compiling_is_not_training_time(tmp_path, monkeypatch, compiled, steps):
    from worldgym.training import loop as module

    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])

    def loss(net, step, generator):
        clock[0] += 300.0 if step == 0 else 1.0
        return net.weight.square().mean(), {}

    config = LoopConfig(steps=5, warmup=1, max_minutes=1.0)
    loop = TrainingLoop(torch.nn.Linear(2, 2), config, tmp_path, loss, compiled=compiled)
    loop.run()
    assert loop.step == steps


def test_points_behind_the_checkpoint_are_shown_once_after_a_kill(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loop = _loop(tmp_path, "run", 20)
    loop.run()
    before = loop.checkpoint.rename(tmp_path / "kept")
    shorter = _loop(tmp_path, "short", 10)
    shorter.run()
    shorter.checkpoint.rename(loop.checkpoint)  # as if killed at step 20 with a checkpoint of step 10
    _loop(tmp_path, "run", 20).run()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [point.step for point in events.Scalars("train/loss")] == [5, 10, 15, 20]
    assert before.is_dir()


def test_tokenizer_and_world_model_learn_a_moving_square(tmp_path):
    data = moving_dots()
    tokenizer = train_tokenizer(
        data.frames, TINY.tokenizer, LoopConfig(steps=40, lr=4e-3, warmup=5), tmp_path / "t", batch=8
    )
    torch.manual_seed(0)
    model = VideoWorldModel(TINY)
    model.tokenizer.load_state_dict(tokenizer.state_dict())
    episodes = LatentEpisodes.encode(model.tokenizer, data)
    settings = WorldModelTraining(
        loop=LoopConfig(steps=60, lr=4e-3, warmup=5, optimizer="muon", ema=0.9), batch=8, window=4
    )

    def error(m: VideoWorldModel) -> float:
        windows = episodes.windows(32, 1, torch.Generator().manual_seed(1))
        z, actions, states = windows.latents, windows.actions, windows.states
        level = torch.ones(32, 1)
        with torch.no_grad():
            out = m.dynamics(
                torch.randn(z[:, 1:].shape), z[:, :1], level, actions, m.normalise_state(states[:, :1])
            )
        return float((out.latents - z[:, 1:]).square().mean())

    before = error(model)
    trained = train_world_model(model, episodes, settings, tmp_path / "w")
    assert error(trained) < 0.9 * before


def test_windows_stay_inside_episodes():
    data = moving_dots(3, 5)
    flat = LatentEpisodes(
        torch.arange(15.0).reshape(15, 1, 1, 1),
        torch.from_numpy(data.actions[:15]),
        torch.from_numpy(data.states[:15]),
        data.offsets,
    )
    windows = flat.windows(64, 4, torch.Generator().manual_seed(0))
    z, states, mask, anchor, before = (
        windows.latents, windows.states, windows.mask, windows.anchor, windows.before
    )  # fmt: skip
    values = z.reshape(64, 5).long()
    assert ((values // 5) == (values[:, :1] // 5)).all()
    assert mask[:, 0].all() and not mask.all()
    first = anchor.flatten().long()
    assert (first // 5 == values[:, 0] // 5).all() and (first <= values[:, 0]).all()
    assert (first < values[:, 0]).any() and (first == values[:, 0]).any()
    assert before.shape == (64, 5, flat.states.shape[1])
    assert torch.equal(before[:, -1], states[:, 0]) and torch.equal(before[:, 0], flat.states[first])


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="steps"):
        LoopConfig(steps=0)
    with pytest.raises(ValueError, match="optimizer"):
        LoopConfig(optimizer="sgd")


def test_windows_begin_where_the_odds_are():
    data = moving_dots(3, 5)
    odds = np.zeros(15)
    odds[[1, 7]] = 1.0, 3.0
    flat = LatentEpisodes(
        torch.arange(15.0).reshape(15, 1, 1, 1),
        torch.from_numpy(data.actions[:15]),
        torch.from_numpy(data.states[:15]),
        data.offsets,
        odds,
    )
    first = flat.windows(400, 2, torch.Generator().manual_seed(0)).latents[:, 0].flatten().long()
    assert set(first.tolist()) == {1, 7}
    assert 0.65 < float((first == 7).float().mean()) < 0.85


def test_the_pixel_loss_sees_a_lost_colour():
    torch.manual_seed(0)
    tokenizer = FrameTokenizer(TINY.tokenizer)
    latents = torch.randn(3, 8, 8, 8)
    weight = torch.ones(3)
    assert float(pixel_loss(tokenizer, latents, latents, weight)) < 1e-4  # bf16 rounds, nothing else
    assert float(pixel_loss(tokenizer, -latents, latents, weight)) > 1e-3
    half = pixel_loss(
        tokenizer, torch.cat([latents[:1], -latents[1:]]), latents, torch.tensor([1.0, 0.0, 0.0])
    )
    assert float(half) < 1e-4  # a frame of no weight does not count


def test_muon_moves_a_kernel_as_the_matrix_of_its_output_channels():
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(6, 4, 3, 3).to(memory_format=torch.channels_last))
    matrix = torch.nn.Parameter(kernel.detach().flatten(1).clone())
    settings = {"lr": 0.1, "weight_decay": 0.01, "adjust_lr_fn": "match_rms_adamw"}
    ours, theirs = KernelMuon([kernel], **settings), torch.optim.Muon([matrix], **settings)
    for _ in range(3):
        kernel.grad = torch.randn(6, 4, 3, 3)
        matrix.grad = kernel.grad.flatten(1).clone()
        ours.step(), theirs.step()
        assert torch.equal(kernel.detach().flatten(1), matrix.detach())


def test_a_run_with_muon_on_kernels_resumes_bit_for_bit(tmp_path):
    def run(folder, stop: int | None = None):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 1))

        def loss(module, step, generator):
            if step == stop:
                raise KeyboardInterrupt
            x = torch.randn(4, 3, 8, 8, generator=generator)
            value = (module(x) - x.mean((1, 2, 3))[:, None]).square().mean()
            return value, {"mse": float(value.detach())}

        loop = TrainingLoop(net, LoopConfig(steps=8, optimizer="muon_conv", warmup=1), folder, loss)
        assert [type(o).__name__ for o in loop.optimizers] == ["AdamW", "Muon", "KernelMuon"]
        loop.run()
        return net

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop=5)
    resumed = run(tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_ends_the_run_and_loses_no_step(tmp_path, wrong, compiled):
    def trained(times, steps=5):
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 1)

        def loss(module, step, generator):
            error = module(torch.ones(4, 2)).square().mean()
            return error * times(step), {"error": float(error.detach())}

        return TrainingLoop(model, LoopConfig(steps=steps, warmup=1), tmp_path / "run", loss, compiled=compiled)

    broken = trained(lambda step: wrong if step == 3 else 1.0)
    with pytest.raises(DivergedError, match="step 4 .* the 3 steps before it are kept in .*run") as found:
        broken.run()
    assert ("--compile" in str(found.value)) is compiled
    mended = trained(lambda step: 1.0)
    assert mended.step == 3 and all(torch.isfinite(value).all() for value in mended.model.parameters())
    mended.run()
    assert mended.step == 5 and all(torch.isfinite(value).all() for value in mended.ema_model.parameters())
