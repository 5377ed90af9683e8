"""Devices by name, and random numbers that do not depend on the device."""

from __future__ import annotations

import pytest
import torch

from worldgym.errors import ConfigError
from worldgym.models import load_world_model
from worldgym.pretrained import DEFAULT
from worldgym.utils.devices import (
    autocast,
    bfloat16_pays,
    choose_device,
    choose_dtype,
    multinomial,
    place,
    rand,
    randn,
)

cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device, and this machine has none"
)


def test_auto_takes_the_best_that_there_is() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "mps", "", "cpu:cpu"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--device"):
        choose_device(name)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="CUDA devices here; type --device cpu"):
        choose_device(f"cuda:{torch.cuda.device_count()}")


def test_precision_by_name() -> None:
    assert choose_dtype("float32", torch.device("cpu")) is torch.float32
    assert choose_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16
    with pytest.raises(ConfigError, match="--dtype"):
        choose_dtype("float16", torch.device("cpu"))


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("amx", [True, False])
def test_a_cpu_without_amx_computes_in_float32_unless_told(
    amx: bool, earlier: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if earlier:  # a version of torch that does not have it
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx}, raising=False)
    bfloat16_pays.cache_clear()
    try:
        cpu, chosen = torch.device("cpu"), torch.bfloat16 if amx else torch.float32
        assert choose_dtype("auto", cpu) is chosen
        model = load_world_model(DEFAULT)
        assert model.dtype == str(chosen).removeprefix("torch.")
        assert model.inference_network().embed.weight.dtype is chosen
        assert model.with_dtype("bfloat16").inference_network().embed.weight.dtype is torch.bfloat16
        for always, expected in ((False, chosen), (True, torch.bfloat16)):
            with autocast(cpu, always=always):
                assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype is expected
            with autocast(cpu, False, always=always):
                assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype is torch.float32
    finally:
        bfloat16_pays.cache_clear()


def test_draws_are_those_of_torch_on_the_generators_device() -> None:
    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    cpu = torch.device("cpu")
    assert torch.equal(randn((2, 3), seeded(), cpu), torch.randn(2, 3, generator=seeded()))
    assert torch.equal(rand((4,), seeded(), cpu), torch.rand(4, generator=seeded()))
    weights = torch.tensor([[0.2, 0.8], [0.5, 0.5]])
    assert torch.equal(multinomial(weights, 1, seeded()), torch.multinomial(weights, 1, generator=seeded()))


def test_parts_without_weights_are_left_alone() -> None:
    part = object()
    assert place(part, torch.device("cpu")) is part
    layer = torch.nn.Linear(1, 1)
    assert place(layer, torch.device("cpu")) is layer


@cuda
def test_a_seed_draws_the_same_on_every_device() -> None:
    on = [randn((5,), torch.Generator().manual_seed(1), torch.device(name)).cpu() for name in ("cpu", "cuda")]
    assert torch.equal(*on)
