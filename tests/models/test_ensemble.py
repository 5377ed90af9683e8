"""An ensemble: the leader's video unchanged, disagreement as doubt, states that fork and merge."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldgym.errors import CheckpointError
from worldgym.models import EnsembleWorldModel, VideoWorldModel, WorldModelConfig, load_world_model
from worldgym.protocols import WorldModel

TINY = WorldModelConfig.preset("tiny")


def _member(seed: int, scale: float = 0.05) -> VideoWorldModel:
    torch.manual_seed(0)
    model = VideoWorldModel(TINY)
    generator = torch.Generator().manual_seed(seed)
    for p in model.dynamics.parameters():
        p.data.add_(scale * torch.randn(p.shape, generator=generator))
    return model.eval().requires_grad_(False).with_sampler(steps=2, dtype="float32")


@pytest.fixture(scope="module")
def ensemble() -> EnsembleWorldModel:
    return EnsembleWorldModel([_member(1), _member(2), _member(3)])


def _frames(batch: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (batch, 1, 64, 64, 3), dtype=np.uint8))


def _actions(batch: int, steps: int) -> torch.Tensor:
    return torch.rand(batch, steps, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _begin(model, batch: int = 3):
    return model.begin(_frames(batch), torch.zeros(batch, 0, 4), torch.Generator().manual_seed(7))


@pytest.mark.parametrize("decode", ["all", "last", "none"])
def test_the_video_is_the_leaders_alone(ensemble, decode):
    assert isinstance(ensemble, WorldModel)
    state, alone = _begin(ensemble), _begin(ensemble.leader)
    for _ in range(3):  # beyond the window of 4
        state, ours = ensemble.step(state, _actions(3, 2), decode=decode)
        alone, its = ensemble.leader.step(alone, _actions(3, 2), decode=decode)
        assert torch.equal(ours.frames, its.frames) and ours.frames.shape == its.frames.shape
        assert torch.equal(ours.latents, its.latents) and torch.equal(ours.states, its.states)
    assert state.batch_size == 3 and torch.equal(state.latent, alone.latent)


def test_members_that_agree_leave_no_doubt_and_others_do():
    same = EnsembleWorldModel([_member(1), _member(1)])
    _, imagined = same.step(_begin(same), _actions(3, 4))
    assert imagined.uncertainty.shape == (3,) and not imagined.uncertainty.any()
    near, far = (EnsembleWorldModel([_member(1), _member(2, scale)]) for scale in (0.05, 0.2))
    doubts = [m.step(_begin(m), _actions(3, 4))[1].uncertainty for m in (near, far)]
    assert (doubts[0] > 0).all() and (doubts[1] > doubts[0]).all()


def test_doubt_is_of_one_step_and_the_largest_of_a_chunk(ensemble):
    state, single = _begin(ensemble), []
    _, whole = ensemble.step(state, _actions(3, 3))
    for i in range(3):
        state, imagined = ensemble.step(state, _actions(3, 3)[:, i : i + 1])
        single.append(imagined.uncertainty)
    assert torch.allclose(whole.uncertainty, torch.stack(single).amax(0))


def test_states_fork_merge_and_are_corrected_together(ensemble):
    state, _ = ensemble.step(_begin(ensemble), _actions(3, 2))
    forked = ensemble.fork(state, torch.tensor([2, 0]))
    merged = ensemble.merge(state, torch.tensor([1]), ensemble.fork(state, torch.tensor([2])))
    a, b, c = (
        ensemble.step(s, _actions(1, 2).expand(s.batch_size, -1, -1))[1] for s in (state, forked, merged)
    )
    close = lambda x, y: torch.allclose(x, y, atol=1e-4)  # noqa: E731
    assert close(b.latents[0], a.latents[2]) and close(b.uncertainty[0], a.uncertainty[2])
    assert close(c.latents[1], a.latents[2]) and close(c.uncertainty[1], a.uncertainty[2])
    seen = ensemble.observe(state, _frames(3)[:, 0], torch.zeros(3, 4))
    assert all(torch.equal(s.latent, seen.latent) and not s.states.any() for s in seen.members)
    assert ensemble.render(seen).shape == (3, 64, 64, 3)


def test_an_environment_runs_on_it(ensemble):
    from worldgym.imagination import WorldModelVectorEnv
    from worldgym.imagination.starts import ArrayStarts

    frames = _frames(3)[:, 0].numpy()
    starts = ArrayStarts(frames, ["push the red cube"] * 3, np.zeros((3, 4), np.float32), ["push"] * 3)
    env = WorldModelVectorEnv(ensemble, None, starts, num_envs=2, chunk=2, horizon=4)
    env.reset(seed=0)
    *_, info = env.step(np.zeros((2, 2, 4), np.float32))
    assert (info["uncertainty"] > 0).all()


def test_what_cannot_disagree_is_refused():
    one = _member(1)
    for members in ([], [one], [one, one]):
        with pytest.raises(ValueError, match="at least two"):
            EnsembleWorldModel(members)
    other = _member(2)
    next(other.tokenizer.parameters()).data.add_(1.0)
    with pytest.raises(ValueError, match="another tokenizer"):
        EnsembleWorldModel([one, other])
    both = EnsembleWorldModel([one, _member(2)])
    with pytest.raises(ValueError, match="K >= 1"):
        both.step(_begin(both), torch.zeros(3, 0, 4))
    with pytest.raises(ValueError, match="decode"):
        both.step(_begin(both), _actions(3, 1), decode="some")


def test_it_is_saved_and_loaded_by_its_type(ensemble, tmp_path):
    ensemble.save_pretrained(tmp_path)
    once = load_world_model(tmp_path)
    assert isinstance(once, EnsembleWorldModel) and len(once.members) == 3
    once.save_pretrained(tmp_path / "again")  # saved weights are rounded once
    again = load_world_model(tmp_path / "again")
    seen = [model.step(_begin(model), _actions(3, 2))[1] for model in (once, again)]
    assert torch.equal(seen[0].frames, seen[1].frames)
    assert torch.equal(seen[0].uncertainty, seen[1].uncertainty)
    (tmp_path / "again" / "config.json").write_text('{"type": "ensemble", "members": 1}')
    (tmp_path / "again" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="members=1, expected 2 to 64"):
        load_world_model(tmp_path / "again")
