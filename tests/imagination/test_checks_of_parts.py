"""A part that breaks its protocol is named, with what it gave and what was expected."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from fakes import LEFT, DotJudge, DotWorldModel, make_starts
from made_up_suite import JointsVectorEnv

from worldgym.errors import ConfigError
from worldgym.imagination import ArrayStarts, WorldModelEnv, WorldModelVectorEnv
from worldgym.imagination.observations import state_of
from worldgym.protocols import Judgement, Reads
from worldgym.specs import Camera, ObservationSpec, Specs, StateField, check_observations


class Changed(DotWorldModel):
    """The dot's world model with one part of its prediction changed."""

    def __init__(self, **changes):
        super().__init__()
        self.changes = changes

    def step(self, state, actions, *, decode="all"):
        state, imagined = super().step(state, actions, decode=decode)
        return state, replace(imagined, **{key: change(imagined) for key, change in self.changes.items()})


WRONG_PREDICTIONS = {
    "frames as floats": ({"frames": lambda i: i.frames / 255}, "float32 (1, 1, 64, 64, 3)"),
    "channels first": ({"frames": lambda i: i.frames.permute(0, 1, 4, 2, 3)}, "uint8 (1, 1, 3, 64, 64)"),
    "another size": ({"frames": lambda i: i.frames[:, :, :32]}, "expected uint8 (1, at least 1, 64, 64, 3)"),
    "no time axis": ({"frames": lambda i: i.frames[:, 0]}, "uint8 (1, 64, 64, 3)"),
    "no frame": ({"frames": lambda i: i.frames[:, :0]}, "uint8 (1, 0, 64, 64, 3)"),
    "states of one step": ({"states": lambda i: i.states[:, 0]}, "states (1, 4); expected (1, 1, 4)"),
    "states with NaN": ({"states": lambda i: i.states * float("nan")}, "NaN or infinite"),
    "no uncertainty": ({"uncertainty": lambda i: None}, "uncertainty None; expected (1,)"),
    "uncertainty as a column": ({"uncertainty": lambda i: i.uncertainty[:, None]}, "uncertainty (1, 1)"),
}


@pytest.mark.parametrize("name", WRONG_PREDICTIONS)
def test_a_world_model_that_breaks_the_protocol_is_named(name):
    changes, message = WRONG_PREDICTIONS[name]
    env = WorldModelEnv(Changed(**changes), DotJudge(), make_starts(), horizon=10)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        env.step(np.zeros(4, np.float32))
    assert "Changed.step" in str(caught.value)


def test_a_world_model_that_ignores_decode_all_is_named():
    judge = DotJudge()
    judge.reads = Reads(frames=3)
    model = Changed(frames=lambda i: i.frames[:, -1:])
    env = WorldModelEnv(model, judge, make_starts(), horizon=10, chunk=5)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"\(1, 1, 64, 64, 3\) for decode='all'"):
        env.step(np.zeros((5, 4), np.float32))


class Says:
    """A judge that returns whatever it is told to return."""

    name = "says"

    def __init__(self, verdict):
        self.verdict = verdict

    def score(self, frames, instructions):
        return self.verdict(torch.full((len(frames),), 0.5), torch.ones(len(frames), dtype=torch.bool))


WRONG_JUDGEMENTS = {
    "nothing": (lambda p, ok: None, TypeError, "returned NoneType"),
    "a tuple": (lambda p, ok: (p, ok), TypeError, "returned tuple"),
    "no validity": (lambda p, ok: Judgement(p, None, None), TypeError, "returned Judgement"),
    "a column": (lambda p, ok: Judgement(p[:, None], None, ok), ValueError, "p_success (1, 1)"),
    "a logit": (lambda p, ok: Judgement(p + 3, None, ok), ValueError, "p_success 3.5"),
    "a percentage": (lambda p, ok: Judgement(100 * p, None, ok), ValueError, "divide percentages by 100"),
    "below zero": (lambda p, ok: Judgement(p - 1, None, ok), ValueError, "p_success -0.5"),
}


@pytest.mark.parametrize("name", WRONG_JUDGEMENTS)
def test_a_judge_that_breaks_the_protocol_is_named(name):
    verdict, error, message = WRONG_JUDGEMENTS[name]
    env = WorldModelEnv(DotWorldModel(), Says(verdict), make_starts(), horizon=1)
    env.reset(seed=0)
    with pytest.raises(error, match=re.escape(message)) as caught:
        env.step(np.zeros(4, np.float32))
    assert "judge says" in str(caught.value)


def test_numbers_out_of_range_that_are_invalid_anyway_are_not_an_error():
    judge = Says(lambda p, ok: Judgement(p + 7, None, ~ok))
    env = WorldModelEnv(DotWorldModel(), judge, make_starts(), horizon=1)
    env.reset(seed=0)
    assert env.step(np.zeros(4, np.float32))[4]["invalid"]


def test_a_judge_that_needs_latents_says_so_where_there_are_none():
    class NeedsLatents(DotJudge):
        reads = Reads(latents=True)

        def score(self, frames, instructions, latents):
            return super().score(frames, instructions)

    env = WorldModelEnv(Changed(latents=lambda i: None), NeedsLatents(), make_starts(), horizon=1)
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="reads latents, and this world model predicts none"):
        env.step(np.zeros(4, np.float32))


def test_a_judge_whose_score_does_not_take_what_it_declares_is_named():
    class Forgets(DotJudge):
        reads = Reads(state=True)

    env = WorldModelEnv(DotWorldModel(), Forgets(), make_starts(), horizon=1)
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"declares that it reads states, and its score takes frames, instructions"):
        env.step(np.zeros(4, np.float32))


def test_a_dataclass_may_be_the_state_and_has_noise_of_its_own_per_slot():
    @dataclass
    class State:
        states: torch.Tensor
        keys: torch.Tensor
        age: torch.Tensor

    class OfDataclasses(DotWorldModel):
        def begin(self, frames, actions, generator=None, *, states=None):
            return State(*super().begin(frames, actions, generator, states=states))

        def step(self, state, actions, *, decode="all"):
            state, imagined = super().step(state, actions, decode=decode)
            return State(*state), imagined

        def merge(self, state, rows, other):
            return State(*super().merge(state, rows, other))

    batch = WorldModelVectorEnv(OfDataclasses(noise=0.02), DotJudge(), make_starts(), num_envs=3, horizon=9)
    alone = WorldModelVectorEnv(OfDataclasses(noise=0.02), DotJudge(), make_starts(), num_envs=1, horizon=9)
    batch.reset(seed=4)
    alone.reset(seed=6)
    for _ in range(3):
        many = batch.step(np.zeros((3, 4), np.float32))[0]["state"]
        one = alone.step(np.zeros((1, 4), np.float32))[0]["state"]
    np.testing.assert_allclose(many[2], one[0], atol=1e-6)


def test_a_start_with_another_number_of_state_values_is_refused():
    images = np.zeros((2, 64, 64, 3), np.uint8)
    starts = ArrayStarts(images, [LEFT, LEFT], np.zeros((2, 5), np.float32))
    with pytest.raises(ConfigError, match="5 state values; the world model needs 4"):
        WorldModelEnv(DotWorldModel(), DotJudge(), starts, horizon=3).reset(seed=0)


@pytest.mark.parametrize("change", [lambda f: f / 255, lambda f: f[..., :1], lambda f: f[:3], lambda f: None])
def test_a_simulator_that_draws_something_else_is_named(change):
    class Draws(JointsVectorEnv):
        def draw_slot(self, i, camera):
            return change(super().draw_slot(i, camera))

    with pytest.raises(ValueError, match=r"Draws.draw_slot returned .* expected uint8"):
        Draws(1).reset(seed=0)


def test_an_observation_without_state_has_a_state_of_length_zero():
    assert state_of({"image": np.zeros((7, 4, 4, 3), np.uint8)}).shape == (7, 0)
    assert state_of({"image": torch.zeros(4, 4, 3, dtype=torch.uint8)}).shape == (0,)
    assert state_of({"image": None, "state": [1.0]}) == [1.0]


FIELDS = (StateField("x", "ee_position", "m"), StateField("a", "other", "m"), StateField("b"))


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        (FIELDS, True),
        (tuple(reversed(FIELDS)), False),
        ((FIELDS[0], StateField("a", "other", "mm"), FIELDS[2]), False),
        ((FIELDS[0], StateField("c", "other", "m"), FIELDS[2]), False),
        ((FIELDS[0], FIELDS[1], StateField("b", "joint", "rad")), True),  # the role and the unit were unknown
        (tuple(StateField(f"state_{i}") for i in range(3)), True),  # names by number are unknown
    ],
)
def test_states_fit_if_names_units_and_roles_do(fields, fits):
    camera = (Camera("main", 8, 8),)
    given, wanted = ObservationSpec(camera, FIELDS), ObservationSpec(camera, fields)
    if fits:
        check_observations(given, wanted, "the data", "the policy")
    else:
        with pytest.raises(ConfigError, match=r"do not fit") as caught:
            check_observations(given, wanted, "the data", "the policy")
        assert str(Specs(given).observation) in str(caught.value)
        assert str(wanted) in str(caught.value)
