"""An ensemble within one chunk world model: one trunk, members with endings and object motion of their own."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldgym.errors import ConfigError
from worldgym.imagination.options import begin_rows, rekey
from worldgym.models import FutureEnsemble, load_world_model
from worldgym.models.chunk.config import ChunkConfig
from worldgym.models.chunk.members import LEAST
from worldgym.models.chunk.world_model import ChunkWorldModel
from worldgym.protocols import uncertainty_kind
from worldgym.training.chunk_data import bootstrap

sys.path.insert(0, str(Path(__file__).parent))
from test_chunk_world_model import PARTS, actions_of, model_of, start  # noqa: E402


def ensemble(parts: tuple[str, ...] = PARTS, members: int = 3, apart: float = 0.05) -> ChunkWorldModel:
    """Members that begin with the weights of `model_of`, then differ by noise of the scale `apart`."""
    single = model_of(parts)
    model = ChunkWorldModel(replace(single.config, members=members)).eval().requires_grad_(False)
    model.load_state_dict(single.state_dict(), strict=False)
    model.copy_first_member()
    rng = torch.Generator().manual_seed(5)
    for parameter in (*model.picture.others.parameters(), *model.other_motions.parameters()):
        parameter.add_(apart * torch.randn(parameter.shape, generator=rng))
    return model


def following(state, wanted: list[int]):
    """`state` with keys for which its rows follow the members `wanted`."""
    keys = []
    for member in wanted:
        tried = state.replace(keys=torch.arange(1000))
        keys.append(int((tried.member == member).nonzero()[0]))
    return state.replace(keys=torch.tensor(keys))


def alone(model: ChunkWorldModel, member: int) -> ChunkWorldModel:
    """A single model of the weights of one member."""
    single = ChunkWorldModel(replace(model.config, members=1)).eval().requires_grad_(False)
    weights = {name: value for name, value in model.state_dict().items() if "other" not in name}
    if member:
        shared = model.config.depth - model.config.own_layers
        for name, value in model.picture.others[member - 1].state_dict().items():
            kind, *rest = name.split(".")
            if kind == "layers":
                name = ".".join(["layers", str(shared + int(rest[0])), *rest[1:]])
            weights[f"picture.{name}"] = value
        if model.motion is not None:
            motion = model.other_motions[member - 1].state_dict()
            weights |= {f"motion.{name}": value for name, value in motion.items()}
    single.load_state_dict(weights)
    return single


@pytest.mark.parametrize("parts", [PARTS, ()], ids=["parts", "plain"])
def test_an_episode_is_imagined_by_its_member_alone(parts):
    model = ensemble(parts)
    state, actions = start(model), actions_of(model, steps=12)
    state = following(state, [2, 0, 1])
    after, imagined = model.step(state, actions, decode="all")
    for row, member in enumerate((2, 0, 1)):
        single = alone(model, member)
        wanted, seen = single.step(start(single), actions, decode="all")
        torch.testing.assert_close(after.latent[row], wanted.latent[row], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(imagined.states[row], seen.states[row], atol=1e-4, rtol=1e-4)
        away = (imagined.frames[row].int() - seen.frames[row].int()).abs()
        assert int(away.max()) <= 1, "rounding of the last digit at most"


@pytest.mark.parametrize("parts", [PARTS, ()], ids=["parts", "plain"])
def test_the_uncertainty_is_the_disagreement_of_the_members(parts):
    same, apart = ensemble(parts, apart=0.0), ensemble(parts)
    assert uncertainty_kind(same) == "ensemble" and uncertainty_kind(model_of(parts)) == "own"
    found = []
    for model in (same, apart):
        state = following(start(model), [0, 0, 0])
        found.append(model.step(state, actions_of(model), decode="none")[1].uncertainty)
    assert float(found[0].max()) < 100 * LEAST < 1e-6 < float(found[1].min())


def test_moved_objects_add_to_the_disagreement():
    model = ensemble(apart=0.0)
    state, actions = start(model), actions_of(model)
    before = model.step(state, actions, decode="none")[1].uncertainty
    model.other_motions[0].out[-1].bias[:2] += 2.0
    after = model.step(state, actions, decode="none")[1].uncertainty
    assert bool((after > before + 1e-6).all())


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(2, 5))
@settings(max_examples=15, deadline=None)
def test_members_are_drawn_from_the_generator(seed, rows, members):
    model = ensemble((), members)
    frames = torch.zeros(rows, 1, 32, 32, 3, dtype=torch.uint8)
    known = {"states": torch.zeros(rows, 1, 4)}
    draws = [
        model.begin(frames, torch.zeros(rows, 0, 3), torch.Generator().manual_seed(seed), **known).member
        for _ in range(2)
    ]
    assert torch.equal(*draws) and int(draws[0].min()) >= 0 and int(draws[0].max()) < members


def test_neighbouring_keys_have_unrelated_members():
    state = start(ensemble((), 3)).replace(keys=torch.arange(3000) + 2**40)
    counts = torch.bincount(state.member, minlength=3)
    assert int(counts.min()) > 900 and not torch.equal(state.member[:-3], state.member[3:])


def test_a_slot_follows_the_member_of_its_own_seed():
    model = ensemble()
    states = torch.zeros(4, 4)
    images = torch.zeros(4, 1, 32, 32, 3, dtype=torch.uint8)
    together = begin_rows(model, images, torch.zeros(4, 0, 3), states[:, None], torch.tensor([7, 8, 9, 10]))
    for i, seed in enumerate((7, 8, 9, 10)):
        single = begin_rows(model, images[:1], torch.zeros(1, 0, 3), states[:1, None], torch.tensor([seed]))
        assert int(single.member[0]) == int(together.member[i])
    assert len({int(rekey(single, torch.tensor([seed])).member[0]) for seed in range(30)}) == 3, "fresh noise"


def test_futures_of_an_ensemble_follow_members_of_their_own():
    model = FutureEnsemble(ensemble(), shifts=((1, 0), (0, 1)))
    images, states = torch.zeros(40, 1, 32, 32, 3, dtype=torch.uint8), torch.zeros(40, 1, 4)
    seeds = torch.arange(40)
    state = begin_rows(model, images, torch.zeros(40, 0, 3), states, seeds)
    followed = torch.stack([part.member for part in state.members])
    assert all(len(row.unique()) == 3 for row in followed) and not torch.equal(followed[0], followed[1])
    one = begin_rows(model, images[:1], torch.zeros(1, 0, 3), states[:1], seeds[5:6])
    assert [int(part.member[0]) for part in one.members] == followed[:, 5].tolist()


def test_a_single_model_draws_nothing():
    model, generator = model_of(), torch.Generator().manual_seed(0)
    before = generator.get_state()
    frames, none = torch.zeros(2, 1, 32, 32, 3, dtype=torch.uint8), torch.zeros(2, 0, 3)
    state = model.begin(frames, none, generator, states=torch.zeros(2, 1, 4))
    model.fork(state, torch.tensor([0, 0]), generator)
    assert state.keys is None and state.member is None and torch.equal(before, generator.get_state())


def test_copies_follow_members_of_their_own_and_plain_forks_keep_theirs():
    model = ensemble()
    state, rows = start(model, rows=1), torch.zeros(60, dtype=torch.int64)
    assert len(model.fork(state, rows).member.unique()) == 1
    assert len(model.fork(state, rows, torch.Generator().manual_seed(0)).member.unique()) == 3
    joined = model.merge(model.fork(state, rows), torch.tensor([1]), following(state, [2]))
    assert int(joined.member[1]) == 2


def test_a_saved_ensemble_imagines_the_same(tmp_path):
    model = ensemble()
    model.save_pretrained(tmp_path)
    loaded = load_world_model(tmp_path)
    assert loaded.config.members == 3
    state = following(start(loaded), [0, 1, 2])
    after = loaded.step(state, actions_of(loaded), decode="last")[1]
    own = following(start(model), [0, 1, 2])
    wanted = model.step(own, actions_of(model), decode="last")[1]
    assert int((after.frames.int() - wanted.frames.int()).abs().max()) <= 8, "weights are saved in bfloat16"


@given(st.integers(2, 6), st.integers(1, 300), st.integers(0, 3), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_each_member_has_a_bootstrap_sample_of_its_own(members, episodes, copies, seed):
    sources = np.tile(
        np.arange(episodes) + 5, 1 + copies
    )  # augmented copies are of the same recorded episode
    counts = bootstrap(members, sources, seed)
    assert counts.shape == (members, len(sources)) and torch.equal(counts, bootstrap(members, sources, seed))
    each = counts.unflatten(1, (1 + copies, episodes))
    assert bool((each == each[:, :1]).all()) and bool((each[:, 0].sum(1) == episodes).all())
    assert episodes < 20 or not torch.equal(counts[0], counts[1])
    assert bootstrap(1, sources, seed) is None


@pytest.mark.parametrize(("values", "said"), [
    ({"members": 0}, "members is 0, expected at least 1"), ({"own_layers": 5}, "own_layers is 5, but there are"),
])  # fmt: skip
def test_shapes_that_do_not_exist_are_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        replace(ChunkConfig(), **values)
