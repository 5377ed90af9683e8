"""TorchRL steps the batch: specs hold, the last observation of an episode is its own, resets are masked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("torchrl", reason="install it with `make test-clients`")

from tensordict.nn import TensorDictModule  # noqa: E402
from torchrl.envs.utils import check_env_specs  # noqa: E402

from worldgym.imagination.adapters.torchrl import TorchRLEnv  # noqa: E402


@pytest.mark.parametrize("env_id", ["worldgym/ImaginedTabletop-v0", "worldgym/Tabletop-v0"])
def test_specs_hold_and_episodes_end_with_their_own_frames(env_id):
    env = TorchRLEnv(env_id, num_envs=3, chunk=5, horizon=10)
    check_env_specs(env)
    env.set_seed(0)
    # random actions now and then solve a task, which ends an episode early
    still = TensorDictModule(lambda image: torch.zeros(env.action_spec.shape), ["image"], ["action"])
    batch = env.rollout(5, still, break_when_any_done=False)
    assert batch.batch_size == (3, 5)
    done = batch["next", "done"][..., 0]
    assert done[:, 1].all() and done[:, 3].all()  # after 2 chunks of 5
    last, first = batch["next", "image"][:, 1], batch["image"][:, 2]
    assert not torch.equal(last, first)  # the next episode starts elsewhere, and the last frame is kept
    assert batch["next", "episode_len"][:, 1, 0].tolist() == [10.0] * 3
    assert batch["episode_len"][:, 2, 0].tolist() == [0.0] * 3


def test_a_seed_repeats_and_only_masked_slots_are_reset():
    env = TorchRLEnv(num_envs=2, horizon=10)
    env.set_seed(3)
    first = env.reset()
    env.set_seed(3)
    assert torch.equal(env.reset()["image"], first["image"])
    stepped = env.step(first.set("action", torch.zeros(2, 4)))["next"]
    before = stepped["image"].clone()
    stepped["_reset"] = torch.tensor([[False], [True]])
    again = env.reset(stepped)
    assert torch.equal(again["image"][0], before[0]) and not torch.equal(again["image"][1], before[1])
    assert again["episode_len"][:, 0].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("settings", [{"autoreset_mode": "SameStep"}, {"instruction": "text"}])
def test_what_torchrl_cannot_work_with_is_refused(settings):
    with pytest.raises(ValueError, match="leave out"):
        TorchRLEnv(num_envs=2, **settings)


def test_torchrls_collector_takes_the_batch():
    from torchrl.collectors import Collector

    env = TorchRLEnv(num_envs=2, chunk=5, horizon=10)
    collector = Collector(env, frames_per_batch=8, total_frames=16)
    frames = 0
    for batch in collector:
        frames += batch.numel()
        assert np.isfinite(batch["next", "reward"].numpy()).all()
    collector.shutdown()
    assert frames == 16
