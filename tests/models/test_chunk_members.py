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
from worldgym.imagination.episodes import uncertainty_kind
from worldgym.models import load_world_model
from worldgym.models.chunk.config import ChunkConfig
from worldgym.models.chunk.members import LEAST
from worldgym.models.chunk.world_model import ChunkWorldModel
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
    state = state.replace(member=torch.tensor([2, 0, 1]))
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
        state = start(model).replace(member=torch.zeros(3, dtype=torch.int64))
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
    model = model_of(()) if members == 1 else ensemble((), members)
    frames = torch.zeros(rows, 1, 32, 32, 3, dtype=torch.uint8)
    given = {"states": torch.zeros(rows, 1, 4)}
    draws = [
        model.begin(frames, torch.zeros(rows, 0, 3), torch.Generator().manual_seed(seed), **given).member
        for _ in range(2)
    ]
    assert torch.equal(*draws) and int(draws[0].min()) >= 0 and int(draws[0].max()) < members


def test_a_single_model_draws_nothing():
    model, generator = model_of(), torch.Generator().manual_seed(0)
    before = generator.get_state()
    frames, none = torch.zeros(2, 1, 32, 32, 3, dtype=torch.uint8), torch.zeros(2, 0, 3)
    state = model.begin(frames, none, generator, states=torch.zeros(2, 1, 4))
    model.fork(state, torch.tensor([0, 0]), generator)
    assert state.member is None and torch.equal(before, generator.get_state())


def test_copies_follow_members_of_their_own_and_plain_forks_keep_theirs():
    model = ensemble()
    state, rows = start(model, rows=1), torch.zeros(60, dtype=torch.int64)
    assert len(model.fork(state, rows).member.unique()) == 1
    assert len(model.fork(state, rows, torch.Generator().manual_seed(0)).member.unique()) == 3
    joined = model.merge(model.fork(state, rows), torch.tensor([1]), state.replace(member=torch.tensor([2])))
    assert int(joined.member[1]) == 2


def test_a_saved_ensemble_imagines_the_same(tmp_path):
    model = ensemble()
    model.save_pretrained(tmp_path)
    loaded = load_world_model(tmp_path)
    assert loaded.config.members == 3
    state = start(loaded).replace(member=torch.tensor([0, 1, 2]))
    after = loaded.step(state, actions_of(loaded), decode="last")[1]
    own = start(model).replace(member=torch.tensor([0, 1, 2]))
    wanted = model.step(own, actions_of(model), decode="last")[1]
    assert int((after.frames.int() - wanted.frames.int()).abs().max()) <= 8, "weights are saved in bfloat16"


@given(st.integers(2, 6), st.integers(50, 400), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_each_member_has_a_bootstrap_sample_of_its_own(members, episodes, seed):
    counts = bootstrap(members, np.arange(episodes), seed)
    assert counts.shape == (members, episodes)
    assert torch.equal(counts, bootstrap(members, np.arange(episodes), seed))
    assert abs(float(counts.mean()) - 1) < 6 / (members * episodes) ** 0.5
    assert not torch.equal(counts[0], counts[1])
    assert bootstrap(1, np.arange(episodes), seed) is None


@pytest.mark.parametrize(("values", "said"), [
    ({"members": 0}, "members is 0, expected at least 1"), ({"own_layers": 5}, "own_layers is 5, but there are"),
])  # fmt: skip
def test_shapes_that_do_not_exist_are_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        replace(ChunkConfig(), **values)
