"""Windows of logs for parts of other packages, and what their losses may give."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from worldgym.errors import ConfigError
from worldgym.training.generic import PartTraining, fresh_part, sample_windows, train_part
from worldgym.training.loop import LoopConfig


def arrays(lengths=(3, 6)):
    """Episodes of so many actions; every number of a frame is the frame's index."""
    offsets = np.concatenate([[0], np.cumsum([length + 1 for length in lengths])])
    count = int(offsets[-1])
    last = np.zeros(count, bool)
    last[offsets[1:] - 1] = True
    index = np.arange(count)
    return SimpleNamespace(
        frames=np.broadcast_to(index[:, None, None, None], (count, 4, 6, 3)).astype(np.uint8),
        states=index[:, None].astype(np.float32),
        actions=np.where(last, 99, index)[:, None].astype(np.float32),
        success=last,
        is_last=last,
        offsets=offsets,
        instructions=[f"episode {i}" for i in range(len(lengths))],
        views={"wrist": np.broadcast_to(index[:, None, None, None], (count, 2, 2, 3)).astype(np.uint8)},
    )


def test_windows_stay_inside_their_episode_and_say_where_it_ended():
    data = arrays()
    batch = sample_windows(data, 200, 4, torch.Generator().manual_seed(0))
    first = batch["states"][:, 0, 0].long()
    assert set(first.tolist()) == {0, 1, 2, 4, 5, 6, 7, 8, 9}, (
        "every frame with a successor begins some window"
    )
    ends = torch.where(first < 4, 3, 10)
    for t in range(5):
        assert torch.equal(batch["states"][:, t, 0].long(), torch.minimum(first + t, ends))
    assert torch.equal(batch["mask"], first[:, None] + torch.arange(4) < ends[:, None])
    actions = batch["actions"][..., 0]
    assert torch.equal(actions, torch.where(batch["mask"], first[:, None] + torch.arange(4), 0).float())
    assert torch.equal(batch["frames"][:, :, 0, 0, 0].long(), batch["states"][..., 0].long())
    assert torch.equal(batch["views"]["wrist"][:, :, 0, 0, 0], batch["frames"][:, :, 0, 0, 0])
    assert [text == "episode 0" for text in batch["instructions"]] == (first < 4).tolist()
    assert torch.equal(batch["success"], (batch["states"][..., 0] == ends[:, None]).float())


def test_the_same_generator_gives_the_same_windows_and_none_is_refused():
    one, two = (sample_windows(arrays(), 5, 3, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one["frames"], two["frames"]) and one["instructions"] == two["instructions"]
    empty = arrays()
    empty.is_last = np.ones_like(empty.is_last)
    with pytest.raises(ConfigError, match="no episode of two frames"):
        sample_windows(empty, 1, 1, torch.Generator())


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
    with pytest.raises(ConfigError, match="no torch.nn.Module"):
        train_part(type("Plain", (), {"loss": lambda *a: {}})(), arrays(), PartTraining(), "unused")
    with pytest.raises(ConfigError, match="at least 1"):
        PartTraining(batch=0)
