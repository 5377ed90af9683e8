"""Latency: actions are executed at their time or dropped, and the robot holds still when it has none."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from point_world import PointEnv, PointPolicy

from worldgym.errors import ConfigError
from worldgym.evaluation import evaluate_policy, make_starts
from worldgym.evaluation.latency import Delays, Latency
from worldgym.specs import ActionSpec, GripperRule

STARTS = make_starts(["a"], per_task=6)


class Numbered:
    """Chunks of the times for which their actions were inferred, `observed, observed + 1, ...`."""

    def __init__(self, chunk, latency):
        self.chunk, self.now, self.delays = chunk, 0, Delays(latency, chunk, None)
        self.executed = []

    def decide(self, observed):
        chunk = np.stack([np.arange(observed, observed + self.chunk), np.ones(self.chunk)], 1).astype(
            np.float32
        )
        self.executed += self.delays.plan(0, chunk).tolist()


def observation_times(numbered, decisions):
    """Time of each observation: all actions before it are executed."""
    times = []
    for _ in range(decisions):
        times.append(len(numbered.executed))
        numbered.decide(times[-1])
    return times


@given(chunk=st.integers(1, 9), steps=st.integers(0, 12), decisions=st.integers(2, 6))
def test_a_blocking_robot_holds_still_and_then_executes_whole_chunks(chunk, steps, decisions):
    robot = Numbered(chunk, Latency(steps, "blocking"))
    times = observation_times(robot, decisions)
    assert times == [i * (chunk + steps) for i in range(decisions)]
    for observed in times:
        taken = robot.executed[observed : observed + steps + chunk]
        assert taken[:steps] == [[0, 0]] * steps
        assert [a for a, _ in taken[steps:]] == list(range(observed, observed + chunk))


@given(chunk=st.integers(1, 9), steps=st.integers(0, 8), decisions=st.integers(2, 7))
def test_an_asynchronous_robot_executes_the_actions_that_are_left_and_drops_those_whose_time_has_passed(
    chunk, steps, decisions
):
    if steps >= chunk:
        with pytest.raises(ConfigError, match="none is left"):
            Latency(steps).check(chunk)
        return
    robot = Numbered(chunk, Latency(steps))
    times = observation_times(robot, decisions)
    moved = [(at, int(aim)) for at, (aim, there) in enumerate(robot.executed) if there]
    assert robot.executed[:steps] == [[0, 0]] * steps, (
        "nothing can be executed before the first chunk arrives"
    )
    for at, aim in moved:
        observed = [t for t in times if t + steps <= at]
        assert observed, "no action before its chunk has arrived"
        assert aim <= at, "an action is never executed before its time"
    aims = [aim for _, aim in moved]
    assert len(aims) == len(set(aims)), "no action is executed twice"
    if 2 * steps <= chunk:  # enough actions are left for every inference: no hold but the first
        assert len(moved) == len(robot.executed) - steps
        late = [(at, aim) for at, aim in moved if at >= steps + chunk]
        assert all(at == aim for at, aim in late), (
            "after the first chunk every action is executed at its time"
        )


def test_no_latency_is_the_plain_loop_and_latency_costs_steps():
    plain = evaluate_policy(PointPolicy(0.5), PointEnv, STARTS, workers=0, env_kwargs={"horizon": 60})
    none = evaluate_policy(
        PointPolicy(0.5), PointEnv, STARTS, workers=0, env_kwargs={"horizon": 60}, latency=Latency(0)
    )
    held = evaluate_policy(
        PointPolicy(0.5),
        PointEnv,
        STARTS,
        workers=0,
        env_kwargs={"horizon": 60},
        latency=Latency(3, "blocking"),
    )
    going = evaluate_policy(
        PointPolicy(0.5), PointEnv, STARTS, workers=0, env_kwargs={"horizon": 60}, latency=Latency(3)
    )
    assert np.array_equal(plain.steps, none.steps) and np.array_equal(plain.success, none.success)
    assert (going.steps >= plain.steps + 3).all() and (going.steps <= held.steps).all()
    assert going.steps.sum() < held.steps.sum()


def robot(low: float, high: float) -> SimpleNamespace:
    """An environment whose action is a difference within bounds, and a gripper."""
    action = ActionSpec(("dx", "grip"), ("m", "1"), 5.0, (low, -1.0), (high, 1.0), GripperRule(1))
    return SimpleNamespace(specs=SimpleNamespace(action=action))


@given(low=st.floats(-1, -0.01), high=st.floats(0.01, 1))
def test_a_robot_that_holds_still_is_sent_no_motion_whatever_the_bounds(low, high):
    env = robot(low, high)
    held = Delays(Latency(1, "blocking"), 2, env).plan(0, np.ones((2, 2), np.float32))[0]
    assert np.allclose(env.specs.action.denormalise(held), [0, 1], atol=1e-6)


def test_a_robot_without_a_zero_action_is_refused():
    with pytest.raises(ConfigError, match="outside the bounds of its action dx"):
        Delays(Latency(1, "blocking"), 2, robot(0.2, 0.4))


def test_the_gripper_keeps_its_command_while_the_robot_holds():
    delays = Delays(Latency(2, "blocking"), 2, robot(-0.1, 0.1))
    first = delays.plan(0, np.array([[0.5, 1.0], [0.5, -1.0]], np.float32))
    assert first.tolist() == [[0, 1], [0, 1], [0.5, 1], [0.5, -1]]
    assert delays.plan(0, np.array([[0.2, -1.0]] * 2, np.float32))[:2].tolist() == [[0, -1], [0, -1]]
    assert delays.plan(1, np.array([[0.2, -1.0]] * 2, np.float32))[:2].tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("seconds", "hz", "steps"), [(0.2, 5, 1), (0.201, 5, 2), (0.01, 5, 1), (0.0, 5, 0), (0.3, 10, 3)]
)
def test_time_is_rounded_up_to_whole_steps(seconds, hz, steps):
    assert Latency.of(seconds, hz).steps == steps


def test_mistakes_are_named():
    for bad in ({"steps": -1}, {"steps": 1.5}, {"steps": 1, "execution": "soon"}):
        with pytest.raises(ConfigError):
            Latency(**bad)
    for seconds, hz in ((float("nan"), 5), (-1.0, 5), (float("inf"), 5), (0.1, 0)):
        with pytest.raises(ConfigError, match="expected e.g."):
            Latency.of(seconds, hz)
    with pytest.raises(ConfigError, match="blocking"):
        evaluate_policy(PointPolicy(), PointEnv, STARTS, workers=0, latency=Latency(5))
