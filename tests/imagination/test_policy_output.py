"""What a policy returns is checked in the same way wherever it acts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fakes import DotJudge, DotWorldModel, make_starts

from worldgym.errors import ConfigError
from worldgym.imagination.policy_output import check_output
from worldgym.imagination.rollout import run_policy
from worldgym.protocols import PolicyOutput

OBSERVATION = {"instruction": ["left"] * 3, "state": torch.zeros(3, 2), "image": torch.zeros(3, 4, 4, 3)}


class Broken:
    """A policy of chunk 5 that changes its output by a function."""

    chunk = 5

    def __init__(self, change, dims=2):
        self.change, self.dims = change, dims

    def act(self, observation, *, temperature=1.0, generator=None):
        count = len(observation["instruction"])
        actions = torch.full((count, self.chunk, self.dims), 0.25)
        return self.change(
            PolicyOutput(actions, {"action": torch.zeros(count, 5)}, {"x": torch.zeros(count)})
        )


def with_actions(change):
    return lambda output: PolicyOutput(change(output.actions), output.log_probs, output.trace)


def nan_in_row_1(actions):
    actions[1, 2, 0] = float("nan")
    return actions


WRONG_ACTIONS = {
    "flat": (with_actions(lambda a: a[:, 0]), r"shape \(3, 2\); expected \(3, 5, 2\).*chunk of one action"),
    "fewer rows": (with_actions(lambda a: a[:1]), r"shape \(1, 5, 2\); expected \(3, 5, 2\)"),
    "longer chunk": (with_actions(lambda a: a.repeat(1, 2, 1)), r"\(3, 10, 2\).*attribute `chunk`"),
    "other dimension": (with_actions(lambda a: a.repeat(1, 1, 2)), r"\(3, 5, 4\); expected \(3, 5, 2\)"),
    "array": (with_actions(lambda a: a.numpy()), r"numpy.ndarray; expected a torch.Tensor.*from_numpy"),
    "whole numbers": (with_actions(lambda a: a.long()), r"torch.int64; expected torch.float32"),
    "nan": (with_actions(nan_in_row_1), r"in 1 of 3 rows: actions\[1, 2, 0\] is nan.*diverged loss"),
    "infinity": (with_actions(lambda a: a / 0), r"in 3 of 3 rows: actions\[0, 0, 0\] is inf"),
    "a bare tensor": (
        lambda output: output.actions,
        r"of type torch.Tensor; expected worldgym.protocols.Policy",
    ),
    "nothing": (lambda output: None, r"None; expected worldgym.protocols.PolicyOutput"),
}
WRONG_RECORDS = {
    "shorter chunk": (with_actions(lambda a: a[:, :2]), r"\(3, 2, 2\); expected \(3, 5, 2\)"),
    "no log_probs": (lambda o: PolicyOutput(o.actions, None), r"log_probs\['action'\] that is None"),
    "fewer log_probs": (lambda o: PolicyOutput(o.actions, torch.zeros(1)), r"\(1,\); expected \(3, ...\)"),
    "nan log_probs": (lambda o: PolicyOutput(o.actions, torch.full((3,), torch.nan)), r"NaN in 3 of 3 rows"),
    "trace of other rows": (
        lambda o: PolicyOutput(o.actions, o.log_probs, {"x": torch.zeros(7)}),
        r"trace\['x'\]",
    ),
    "no trace": (lambda o: PolicyOutput(o.actions, o.log_probs, None), r"trace that are None"),
}


def checked(change, **how):
    policy = Broken(change)
    return check_output(policy.act(OBSERVATION), policy, OBSERVATION, action_dim=2, chunk=5, **how)


@pytest.mark.parametrize("kind", WRONG_ACTIONS)
@pytest.mark.parametrize("stored", [False, True])
def test_wrong_actions_are_an_error_that_names_the_policy(kind, stored):
    change, message = WRONG_ACTIONS[kind]
    with pytest.raises(ConfigError, match=f"Broken.act returned .*{message}"):
        checked(change, stored=stored)


@pytest.mark.parametrize("kind", WRONG_RECORDS)
def test_what_is_recorded_for_learning_must_fit_too(kind):
    change, message = WRONG_RECORDS[kind]
    checked(change)
    with pytest.raises(ConfigError, match=f"Broken.act returned .*{message}"):
        checked(change, stored=True)


def test_a_good_output_is_returned_as_it_is_and_other_precisions_as_float32():
    policy = Broken(lambda output: output)
    output = policy.act(OBSERVATION)
    assert check_output(output, policy, OBSERVATION, action_dim=2, chunk=5, stored=True) is output
    halves = checked(with_actions(lambda a: a.bfloat16()), stored=True)
    assert halves.actions.dtype == torch.float32 and float(halves.actions[0, 0, 0]) == 0.25


def test_finished_rows_may_hold_anything():
    live = np.array([True, False, True])
    checked(with_actions(nan_in_row_1), live=live)
    with pytest.raises(ConfigError, match="in 1 of 3 rows"):
        checked(with_actions(nan_in_row_1), live=~live)


def test_nan_in_the_observation_points_to_the_world_model():
    policy = Broken(with_actions(nan_in_row_1))
    seen = {**OBSERVATION, "state": torch.full((3, 2), torch.nan)}
    with pytest.raises(ConfigError, match="look for the fault in the world model"):
        check_output(policy.act(seen), policy, seen)


def test_the_specs_of_the_policy_give_the_dimension_if_nothing_else_does():
    from types import SimpleNamespace

    policy = Broken(lambda output: output)
    policy.specs = SimpleNamespace(action=SimpleNamespace(dim=7))
    with pytest.raises(ConfigError, match=r"expected \(3, K, 7\)"):
        check_output(policy.act(OBSERVATION), policy, OBSERVATION)


@pytest.mark.parametrize("kind", WRONG_ACTIONS)
def test_an_imagined_rollout_refuses_them(kind):
    change, message = WRONG_ACTIONS[kind]
    begin = make_starts(3)
    seen = {"image": begin.images, "state": begin.states, "instruction": begin.instructions}
    world_model = DotWorldModel()
    policy = Broken(change, world_model.action_dim)
    with pytest.raises(ConfigError, match="Broken.act returned"):
        run_policy(policy, world_model, DotJudge(), seen, horizon=10)
