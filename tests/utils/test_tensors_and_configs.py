"""Weights are finite and configs are typed, or the error says which file, which name and what to do."""

from __future__ import annotations

import errno
import json
import math
from dataclasses import asdict, dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from torch import nn

from worldgym.errors import CheckpointError, ConfigError
from worldgym.hub import HubModel
from worldgym.utils import tensors
from worldgym.utils.train_state import TrainState
from worldgym.utils.typed import from_values


@dataclass(frozen=True)
class Inner:
    width: int = 4
    scale: float = 1.0


@dataclass(frozen=True)
class Config:
    sizes: tuple[int, int] = (3, 2)
    name: str = "a"
    on: bool = True
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        if min(self.sizes) < 1:
            raise ConfigError(f"sizes are {self.sizes}, expected at least 1")


class Net(nn.Module, HubModel, coders={Config: (asdict, lambda values: from_values(Config, values))}):
    def __init__(self, config: Config | dict) -> None:
        super().__init__()
        self.config = config if isinstance(config, Config) else from_values(Config, config)
        self.layer = nn.Linear(*self.config.sizes)


def test_a_config_survives_json():
    config = Config((5, 6), "b", False, Inner(2, 3.0))
    assert from_values(Config, json.loads(json.dumps(asdict(config)))) == config
    assert from_values(Config, {}) == Config()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sizes": [True, 2]}, "sizes.0"), ({"sizes": ["3", 2]}, "sizes.0"), ({"sizes": [3]}, "sizes"),
        ({"sizes": {"3": 1}}, "sizes"), ({"sizes": [3, 2.5]}, "sizes.1"), ({"sizes": None}, "sizes"),
        ({"name": 3}, "name"), ({"on": 1}, "on"), ({"on": "yes"}, "on"), ({"nam": "x"}, "did you mean 'name'"),
        ({"inner": {"widht": 3}}, "did you mean 'inner.width'"), ({"inner": {"width": True}}, "inner.width"),
        ({"inner": [1]}, "inner"), ({"inner": {"scale": math.nan}}, "NaN"), ({"inner": {"scale": math.inf}}, "NaN"),
        ({"sizes": [0, 2]}, "expected at least 1"), ([], "expected the settings"), (None, "expected the settings"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        from_values(Config, values, "runs/x/config.json")


@given(index=st.integers(0, 7), value=st.sampled_from([math.nan, math.inf, -math.inf]))
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path_factory, index, value):
    folder = tmp_path_factory.mktemp("net") / "net"
    net = Net(Config())
    with torch.no_grad():
        torch.nn.utils.parameters_to_vector(net.parameters())
        flat = torch.nn.utils.parameters_to_vector(net.parameters())
        flat[index] = value
        torch.nn.utils.vector_to_parameters(flat, net.parameters())
    net.save_pretrained(folder)
    with pytest.raises(
        CheckpointError, match=r"layer\.(weight|bias) holds 1 values that are NaN or infinite"
    ):
        Net.from_pretrained(folder)


def test_a_mistyped_path_never_asks_a_hub(tmp_path, monkeypatch):
    def asked(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", asked)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", asked)
    for name in ("data/nope", "./q/r", "nope", str(tmp_path / "x"), "a/b/c"):
        with pytest.raises(CheckpointError, match="no folder"):
            Net.from_pretrained(name)
    with pytest.raises(AssertionError, match="the hub was asked"):
        Net.from_pretrained("hf:data/nope")


def test_a_full_disk_is_an_ordinary_oserror(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(OSError) as error:
        tensors.save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)})
    assert error.value.errno == errno.ENOSPC and error.value.filename == str(tmp_path / "x.safetensors")


def test_a_transposed_tensor_keeps_its_values(tmp_path):
    value = torch.arange(6.0).reshape(2, 3).t()
    tensors.save_tensors(tmp_path / "x.safetensors", {"a": value})
    assert torch.equal(tensors.load_tensors(tmp_path / "x.safetensors")["a"], value)


def test_a_checkpoint_is_refused_by_a_run_with_other_settings(tmp_path):
    net = Net(Config())
    optimizer = torch.optim.AdamW(net.parameters())
    TrainState(tmp_path / "checkpoint", {"lr": 1e-3, "data": "a"}).save(net, optimizer, {"epoch": 1})
    assert TrainState(tmp_path / "checkpoint", {"data": "a", "lr": 1e-3}).load(net, optimizer) == {"epoch": 1}
    with pytest.raises(ConfigError, match=r"data: there \"a\", here \"b\"; lr: there 0.001, here 0.002"):
        TrainState(tmp_path / "checkpoint", {"lr": 2e-3, "data": "b"}).load(net, optimizer)
    assert TrainState(tmp_path / "checkpoint").load(net, optimizer) == {"epoch": 1}


@pytest.mark.parametrize("name", ["state.json", "weights.safetensors", "optimizer.safetensors"])
def test_a_checkpoint_with_a_lost_or_damaged_file_says_what_to_do(tmp_path, name):
    net = Net(Config())
    optimizer = torch.optim.AdamW(net.parameters())
    state = TrainState(tmp_path / "checkpoint")
    state.save(net, optimizer, {"epoch": 1})
    (tmp_path / "checkpoint" / name).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="emove the folder .*checkpoint to start again"):
        state.load(net, optimizer)
    (tmp_path / "checkpoint" / name).unlink()
    assert state.exists()
    with pytest.raises(CheckpointError, match=f"holds no {name}"):
        state.load(net, optimizer)
