"""Several futures of an episode: the leader's video unchanged, disagreement of verdicts as uncertainty."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldgym.errors import CheckpointError, ConfigError
from worldgym.imagination.episodes import ImaginedEpisodes
from worldgym.imagination.rules import Rules
from worldgym.models import FutureEnsemble, VideoWorldModel, WorldModelConfig, load_world_model
from worldgym.models.futures import LARGEST_SHIFT, first_shifts, shifted, with_futures
from worldgym.protocols import Judgement, WorldModel, uncertainty_kind

SHIFTS = ((1, 0), (0, -2))


@pytest.fixture(scope="module")
def leader() -> VideoWorldModel:
    torch.manual_seed(0)
    model = VideoWorldModel(WorldModelConfig.preset("tiny"))
    for p in model.dynamics.parameters():
        p.data.add_(0.05 * torch.randn(p.shape))
    return model.eval().requires_grad_(False).with_sampler(steps=2, dtype="float32")


def frames(batch: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (batch, 64, 64, 3), dtype=np.uint8))


def actions(batch: int = 3, steps: int = 5) -> torch.Tensor:
    return torch.rand(batch, steps, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Told:
    """A judge that gives the numbers of a list, one per call, to all rows."""

    name, threshold = "told", 0.5

    def __init__(self, *said: float, valid: bool = True) -> None:
        self.said, self.valid, self.shapes = list(said), valid, []

    def score(self, clips, instructions) -> Judgement:
        self.shapes.append(tuple(clips.shape))
        rows = len(instructions)
        p = self.said.pop(0) if self.said else 0.0
        last = self.valid or bool(self.said)
        return Judgement(torch.full((rows,), p), None, torch.full((rows,), last), [])


def begun(model, judge, **rules) -> ImaginedEpisodes:
    states = torch.zeros(3, model.state_dim)
    generator = torch.Generator().manual_seed(7)
    return ImaginedEpisodes.begin(
        model, judge, Rules(horizon=20, judge_every=1, **rules), frames(), states, ["a"] * 3, generator=generator
    )


def test_the_video_is_the_leaders_and_futures_are_shifted_back(leader):
    model = FutureEnsemble(leader, shifts=SHIFTS)
    assert isinstance(model, WorldModel) and model.futures == 2 and uncertainty_kind(model) == "verdicts"
    ours, alone = begun(model, None), begun(leader, None)
    for _ in range(3):
        a, b = ours.step(actions(), decode="all").imagined, alone.step(actions(), decode="all").imagined
        assert torch.equal(a.frames, b.frames) and torch.equal(a.states, b.states)
        assert not a.uncertainty.any()
    assert [future.frames.shape for future in a.futures] == [(3, 1, 64, 64, 3)] * 2
    moved = begun(leader, None)
    start = shifted(frames(), SHIFTS[1])
    noise, states = torch.Generator().manual_seed(7), moved.proprio[:, None]
    state = leader.begin(start[:, None], torch.zeros(3, 0, 4), noise, states=states)
    state = state.with_keys(state.keys + 2)  # the second future draws its noise from the second next keys
    for _ in range(3):
        state, other = leader.step(state, actions(), decode="last")
    assert torch.equal(a.futures[1].frames, shifted(other.frames, (0, 2)))


@given(st.integers(-9, 9), st.integers(-9, 9))
def test_a_shift_moves_pixels_and_repeats_the_border(down, right):
    picture = torch.arange(20 * 24).reshape(1, 20, 24, 1)
    out = shifted(picture, (down, right))
    rows, columns = np.clip(np.arange(20) - down, 0, 19), np.clip(np.arange(24) - right, 0, 23)
    assert np.array_equal(out[0, ..., 0], picture[0, ..., 0].numpy()[np.ix_(rows, columns)])


def test_uncertainty_is_the_spread_of_the_highest_probabilities_so_far(leader):
    # leader, first and second future; then the second step
    judge = Told(0.1, 0.4, 0.1, 0.3, 0.2, 0.0)
    episodes = begun(FutureEnsemble(leader, shifts=SHIFTS), judge)
    first = episodes.step(actions())
    assert first.uncertainty == pytest.approx(np.full(3, np.std([0.1, 0.4, 0.1])))
    second = episodes.step(actions())
    assert second.uncertainty == pytest.approx(np.full(3, np.std([0.3, 0.4, 0.1])))
    assert second.p == pytest.approx(np.full(3, 0.3)) and judge.shapes == [(3, 1, 64, 64, 3)] * 6
    taken = episodes.take([2, 0])
    assert taken.slots.highest.shape == (2, 3) and taken.slots.highest[0] == pytest.approx([0.3, 0.4, 0.1])


def test_a_bound_ends_episodes_whose_verdicts_disagree_and_a_penalty_lowers_the_reward(leader):
    model = FutureEnsemble(leader, shifts=SHIFTS)
    sure = begun(model, Told(0.9, 0.9, 0.9), uncertainty_bound=0.2).step(actions())
    assert sure.outcome.success.all() and not sure.hallucination.any()
    unsure = begun(model, Told(0.9, 0.1, 0.1), uncertainty_bound=0.2).step(actions())
    assert unsure.hallucination.all() and not unsure.outcome.success.any() and unsure.outcome.truncated.all()
    spread = np.std([0.9, 0.6, 0.9])
    lower = begun(model, Told(0.9, 0.6, 0.9), penalty=2.0).step(actions())
    assert lower.outcome.success.all() and lower.outcome.reward == pytest.approx(np.full(3, 1 - 2 * spread))


def test_a_failed_judgement_of_a_future_makes_the_episode_invalid(leader):
    step = begun(FutureEnsemble(leader, shifts=SHIFTS), Told(0.9, 0.9, 0.9, valid=False)).step(actions())
    assert not step.valid.any() and not step.outcome.success.any() and step.outcome.truncated.all()


def test_states_fork_merge_and_are_corrected_together(leader):
    model = FutureEnsemble(leader, others=[leader], shifts=SHIFTS)
    state = model.begin(frames()[:, None], torch.zeros(3, 0, 4), states=torch.zeros(3, 1, leader.state_dim))
    state, _ = model.step(state, actions())
    merged = model.merge(state, torch.tensor([1]), model.fork(state, torch.tensor([2])))
    _, a = model.step(state, actions()[:1].expand(3, -1, -1))
    _, b = model.step(merged, actions()[:1].expand(3, -1, -1))
    for x, y in zip((a, *a.futures), (b, *b.futures), strict=True):
        assert torch.allclose(y.latents[1], x.latents[2], atol=1e-4)
    seen = model.observe(state, frames())
    assert (model.render(seen).float() - leader.render(seen.members[0]).float()).abs().max() == 0


def test_it_is_saved_and_loaded(leader, tmp_path):
    model = FutureEnsemble(leader, others=[leader], shifts=SHIFTS)
    model.save_pretrained(tmp_path / "m")
    again = load_world_model(tmp_path / "m")
    assert isinstance(again, FutureEnsemble) and again.shifts == SHIFTS and again.futures == 3
    (tmp_path / "m" / "manifest.json").unlink()
    (tmp_path / "m" / "config.json").write_text('{"type": "futures", "members": 2, "shifts": [[1, "x"]]}')
    with pytest.raises(CheckpointError, match="pairs of whole numbers"):
        FutureEnsemble.from_pretrained(tmp_path / "m")


def test_what_cannot_be_meant_is_refused(leader):
    assert with_futures(leader, 0) is leader and with_futures(leader, 5).shifts == (*first_shifts(4), (2, 0))
    assert len(set(first_shifts(4 * LARGEST_SHIFT))) == 4 * LARGEST_SHIFT
    for bad, said in (((), "no future"), (((0, 0),), "shift"), (((0, 17),), "expected 1 to 16")):
        with pytest.raises(ConfigError, match=said):
            FutureEnsemble(leader, shifts=bad)
    with pytest.raises(ConfigError, match="futures is -1"):
        with_futures(leader, -1)

    class Film(Told):
        from worldgym.protocols import Reads

        reads = Reads(frames=3)

    with pytest.raises(ConfigError, match="reads several frames"):
        begun(FutureEnsemble(leader, shifts=SHIFTS), Film())
