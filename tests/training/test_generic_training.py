"""What the losses of parts of other packages may give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from worldgym.data import EpisodeArrays
from worldgym.errors import ConfigError
from worldgym.training.generic import PartTraining, fresh_part, train_part
from worldgym.training.loop import LoopConfig


def arrays(lengths=(3, 6)):
    """Episodes of so many actions; every number of a frame is the frame's index."""
    offsets = np.concatenate([[0], np.cumsum([length + 1 for length in lengths])])
    last = np.zeros(int(offsets[-1]), bool)
    last[offsets[1:] - 1] = True
    index, count = np.arange(len(last)), len(lengths)
    return EpisodeArrays(
        frames=np.broadcast_to(index[:, None, None, None], (len(last), 4, 6, 3)).astype(np.uint8),
        states=index[:, None].astype(np.float32), actions=np.where(last, 0, index)[:, None].astype(np.float32),
        success=last, progress=last.astype(np.float32), is_last=last, offsets=offsets,
        instructions=[f"episode {i}" for i in range(count)], tasks=["t"] * count, behaviours=["expert"] * count,
        provenance=[{}] * count, indices=np.arange(count),
    )  # fmt: skip


class Net(nn.Module):
    def __init__(self, gives):
        super().__init__()
        self.gives, self.w = gives, nn.Parameter(torch.zeros(1))

    def loss(self, batch, generator):
        return self.gives(self)


@pytest.mark.parametrize("gives", [lambda net: net.w.sum(), lambda net: {}, lambda net: {"a": net.w}])
def test_a_loss_is_a_mapping_of_scalars(gives, tmp_path):
    settings = PartTraining(LoopConfig(steps=1), batch=2, window=2)
    with pytest.raises(ConfigError, match="expected scalar tensors by name"):
        train_part(Net(gives), arrays(), settings, tmp_path)


def test_the_sum_of_the_terms_is_minimised(tmp_path):
    net = Net(lambda net: {"near": (net.w - 1).square().sum(), "small": 0.0 * net.w.sum()})
    settings = PartTraining(LoopConfig(steps=300, lr=0.05, ema=0.9, warmup=1), batch=2, window=2)
    trained, scalars = train_part(net, arrays(), settings, tmp_path)
    assert abs(float(trained.w.detach()) - 1) < 0.1 and scalars["near"] < 0.05 and not trained.training


def test_what_cannot_be_trained_is_named():
    with pytest.raises(ConfigError, match="'x'.*no for_data.*and no loss"):
        fresh_part(object, "x", None, "small", None)
    with pytest.raises(ConfigError, match="not a torch.nn.Module"):
        train_part(type("Plain", (), {"loss": lambda *a: {}})(), arrays(), PartTraining(), "unused")
    with pytest.raises(ConfigError, match="at least 1"):
        PartTraining(batch=0)
