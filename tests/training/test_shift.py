"""Moving a picture in latents: exact answers, learning them, several processes as one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.training.test_training import TINY, moving_dots
from worldgym.models import FrameTokenizer, VideoWorldModel
from worldgym.models.video.latent_shift import LatentShift, move_bilinearly
from worldgym.training.loop import LoopConfig, TrainingLoop
from worldgym.training.shift import shift_by_pixels, shift_loss, train_shift
from worldgym.training.tokenizer import train_tokenizer
from worldgym.training.world_model import LatentEpisodes


@given(right=st.integers(-3, 3), down=st.integers(-3, 3))
@settings(max_examples=20, deadline=None)
def test_a_move_by_whole_cells_moves_and_lets_nothing_in(right, down):
    x = torch.zeros(1, 2, 8, 8)
    x[..., 4, 3] = 1.0
    expected = torch.zeros_like(x)
    expected[..., 4 + down, 3 + right] = 1.0
    assert torch.allclose(move_bilinearly(x, torch.tensor([[right, down]])), expected, atol=1e-5)


def test_the_exact_answer_moves_what_differs_from_the_background():
    tokenizer = FrameTokenizer(TINY.tokenizer)
    z = torch.randn(2, 8, 8, 8)
    still, moved = shift_by_pixels(tokenizer, z, torch.zeros(2, 2), torch.ones(2, 2))
    assert still.shape == z.shape
    # away from the edges, moving by a whole cell is moving the latents by one
    assert torch.allclose(moved[..., 4:7, 4:7], still[..., 3:6, 3:6], atol=0.1)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> SimpleNamespace:
    data = moving_dots()
    loop = LoopConfig(steps=60, lr=4e-3, warmup=5)
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = train_tokenizer(data.frames, TINY.tokenizer, loop, folder, batch=16)
    torch.manual_seed(0)
    model = VideoWorldModel(TINY)
    model.tokenizer.load_state_dict(tokenizer.state_dict())
    return SimpleNamespace(model=model, data=LatentEpisodes.encode(model.tokenizer, data))


def test_latents_learn_to_move(world, tmp_path):
    def error() -> float:
        generator = torch.Generator().manual_seed(1)
        background = world.model.tokenizer.encode_background()
        net = world.model.dynamics.objects.shift
        z = world.data.latents[:32].float()
        with torch.no_grad():
            return float(shift_loss(net, world.model.tokenizer, z, background, generator)[0])

    before = error()
    train_shift(world.model, world.data, LoopConfig(steps=30, lr=3e-3, warmup=5, ema=0.9), tmp_path)
    assert error() < 0.6 * before


def test_a_model_without_a_moved_frame_is_refused(world, tmp_path):
    from dataclasses import replace

    still = VideoWorldModel(replace(TINY, dynamics=replace(TINY.dynamics, motion=None)))
    with pytest.raises(ValueError, match="no object motion"):
        train_shift(still, world.data, LoopConfig(steps=1), tmp_path)


def test_imagined_latents_move_in_half_precision():
    net = LatentShift(8, 32).to(torch.bfloat16)
    moved = net(torch.randn(2, 8, 8, 8, dtype=torch.bfloat16), torch.rand(2, 2))
    assert moved.dtype == torch.float32 and torch.isfinite(moved).all()


def _one_of_two(rank: int, folder: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    torch.manual_seed(rank)  # ranks begin apart: the first one's weights count
    model = torch.nn.Linear(4, 4)
    seen = []

    def loss(module, step, generator):
        x = torch.randn(8, 4, generator=generator)
        seen.append(x)
        return (module(x) - x.flip(1)).square().mean(), {}

    TrainingLoop(model, LoopConfig(steps=5, warmup=1), f"{folder}/run", loss).run()
    save_file({"weight": model.weight.detach(), "x": torch.stack(seen)}, f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


def test_two_processes_train_one_model_on_different_batches(tmp_path):
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path),), nprocs=2)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert torch.equal(first["weight"], second["weight"])
    assert not torch.equal(first["x"], second["x"])

    torch.manual_seed(0)
    model, both = torch.nn.Linear(4, 4), torch.cat([first["x"], second["x"]], 1)

    def loss(module, step, generator):
        return (module(both[step]) - both[step].flip(1)).square().mean(), {}

    TrainingLoop(model, LoopConfig(steps=5, warmup=1), tmp_path / "alone", loss).run()
    assert torch.allclose(first["weight"], model.weight, atol=1e-5)  # as one process with both batches
    assert (tmp_path / "run" / "checkpoint" / "tensors.safetensors").is_file()
