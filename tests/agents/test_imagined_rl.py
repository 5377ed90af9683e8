"""The loop of RL in imagination: what an improver must return, what is never saved, and rounds without a verdict."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from gauss_policy import GaussPolicy
from line_world import BrightJudge, LineWorld, starts
from test_guards import demos

from agents import (
    GRPOConfig,
    ImaginedRLConfig,
    ImaginedRLTrainer,
    RolloutConfig,
    SelfImitationConfig,
    StartBank,
)
from agents.algorithms.improver import OptimizerImprover
from agents.rollouts.imagined import Rollouts
from worldgym.errors import CheckpointError, ConfigError, DivergedError
from worldgym.protocols import Judgement
from worldgym.registry import IMPROVERS


class Returning(OptimizerImprover):
    """An improver that changes nothing and returns `metrics`."""

    metrics: object = {"loss": 0.5}

    def __init__(self):
        pass

    def update(self, policy, rollouts):
        return self.metrics


class Raising(Returning):
    def update(self, policy, rollouts):
        raise ValueError("the wheel came off")


class Demanding(Returning):
    def __init__(self, lr, horizon):
        pass


class Unborn(Returning):
    def __init__(self, lr):
        raise RuntimeError(f"{lr} is no rate")


class Ruining(Returning):
    def update(self, policy, rollouts):
        with torch.no_grad():
            policy.mean[0, 0] = float("nan")
        return {"loss": 0.5}


class Cloning(Returning):
    def __init__(self, demos):
        pass


def trainer(improver="grpo", *, policy=GaussPolicy, judge=None, steps=2, chunks=5, rollout=None):
    shown = demos()
    shown.actions = np.zeros((len(shown), chunks, 4), np.float32)
    config = ImaginedRLConfig(
        RolloutConfig(starts=4, group_size=4, horizon=10, **(rollout or {})),
        GRPOConfig(lr=1e-3, learn="all"),
        SelfImitationConfig(steps=steps, batch_size=8, min_rate=0.0),
        improver=improver,
    )
    return ImaginedRLTrainer(
        config, LineWorld(), judge or BrightJudge(), policy, StartBank(starts(12)), shown
    )


@pytest.fixture
def register(monkeypatch):
    """`register(kind)` registers an improver as `mine` for one test."""
    IMPROVERS.names()
    return lambda kind: monkeypatch.setitem(IMPROVERS._known, "mine", kind)


def test_an_improver_of_another_package_trains_and_its_metrics_are_kept(register):
    register(type("Fine", (Returning,), {"metrics": {"loss": torch.tensor(0.5), "steps": np.float32(3)}}))
    row = trainer("mine").round()
    assert row["loss"] == 0.5 and row["updates"] == 3 + row["imitation_steps"] and type(row["loss"]) is float


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (None, r"improver 'mine' \(Wrong\) returned None from update; expected a dict of numbers"),
        (torch.zeros(3), r"returned a Tensor of shape \(3,\) from update"),
        ("done", r"returned a str, 'done' from update"),
        ({"note": "hello"}, r"returned 'note': a str, 'hello'"),
        ({"note": "3"}, r"returned 'note': a str, '3'"),
        ({"each": torch.zeros(3)}, r"returned 'each': a Tensor of shape \(3,\)"),
        ({"loss": None}, r"returned 'loss': None"),
        (
            {"success_rate": 9.0, "imitation_loss": 1.0},
            r"metrics imitation_loss, success_rate, which .* rename them",
        ),
    ],
)
def test_metrics_that_are_not_numbers_by_name_are_an_error(register, metrics, message):
    register(type("Wrong", (Returning,), {"metrics": metrics}))
    made = trainer("mine")
    with pytest.raises(ConfigError, match=message):
        made.round()
    assert made.history == []


def test_an_improver_that_raises_is_named_with_the_place(register):
    register(Raising)
    with pytest.raises(ConfigError, match=r"'mine' \(Raising\) failed: ValueError: the wheel.*_rl.py, line"):
        trainer("mine").round()


def test_an_improver_that_cannot_be_created_is_named(register):
    register(Demanding)
    with pytest.raises(
        ConfigError, match=r"'mine' \(Demanding\) needs the argument horizon,.*it gives lr, .*for_rl"
    ):
        trainer("mine")
    register(Unborn)
    with pytest.raises(
        ConfigError, match=r"'mine' \(Unborn\) could not be created: RuntimeError: 0.001 is no rate"
    ):
        trainer("mine")


def test_weights_with_nan_are_found_before_they_are_averaged(register):
    register(Ruining)
    made = trainer("mine")
    with pytest.raises(DivergedError, match=r"improver 'mine' left 1 of 20 values NaN .* weight 'mean'"):
        made.round()
    assert made.history == [] and bool(made.average.mean.isfinite().all())


@pytest.mark.parametrize("fault", ["actions", "log_probs", "short", "nan", "disagrees", "lacks"])
def test_a_faulty_policy_ends_the_round_and_the_average_stays(fault):
    made = trainer(policy=lambda: GaussPolicy(fault))
    with pytest.raises((ConfigError, DivergedError), match="GaussPolicy"):
        made.round()
    assert made.history == [] and bool((made.average.mean == 0).all())


def test_chunks_of_another_length_need_no_demonstrations(register):
    register(Cloning)
    with pytest.raises(
        CheckpointError, match="chunks of 2 actions, but the policy predicts 5.*--imitation-steps 0"
    ):
        trainer(chunks=2)
    with pytest.raises(CheckpointError, match="improver 'mine' clones them"):
        trainer("mine", chunks=2, steps=0)
    register(Returning)
    for improver in ("grpo", "mine", "filtered_bc"):
        row = trainer(improver, chunks=2, steps=0).round()
        assert row["imitation_steps"] == 0


class Silent:
    name = "silent"

    def __init__(self, how):
        self.how = how

    def score(self, frames, instructions):
        if self.how == "timeout":
            raise TimeoutError("late")
        p, valid = torch.full((len(frames),), 0.4), torch.ones(len(frames), dtype=torch.bool)
        return Judgement(p * torch.nan, None, valid) if self.how == "nan" else Judgement(p, None, ~valid)


@pytest.mark.parametrize("how", ["nan", "invalid", "timeout"])
def test_a_round_without_a_verdict_is_warned_about_with_the_judge(how, caplog):
    made = trainer(judge=Silent(how))
    with caplog.at_level(logging.WARNING):
        row = made.round()
    assert "round 1: all 16 imagined episodes are invalid" in caplog.text
    assert "16 without a verdict of judge silent" in caplog.text
    assert row["valid"] == 0 and np.isnan(row["success_rate"])


def test_a_round_that_the_world_model_spoils_is_warned_about_with_the_bound(caplog):
    with caplog.at_level(logging.WARNING):
        trainer(rollout={"max_uncertainty": -1.0}).round()
    assert "16 with an unusable prediction of the world model (max_uncertainty -1)" in caplog.text


def test_a_simulator_refuses_the_same_outputs():
    from agents import collect_simulated

    for fault, message in (
        ("actions", "NaN or infinity"),
        ("log_probs", "NaN"),
        ("short", r"\(2, 2, 4\); expected"),
    ):
        with pytest.raises(ConfigError, match=f"GaussPolicy.act returned .*{message}"):
            collect_simulated(
                GaussPolicy(fault),
                [0, 1],
                ["reach"] * 2,
                env="simulated_line:LineEnv",
                processes=0,
                group_size=1,
            )


def test_every_chunk_has_the_same_parts():
    empty = Rollouts.empty(
        torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.zeros(2, 4), ["a", "b"], 1, (3, 5, 4)
    )
    policy, rows = GaussPolicy(), torch.arange(2)
    seen = {
        "image": torch.zeros(2, 4, 4, 3, dtype=torch.uint8),
        "state": torch.zeros(2, 4),
        "instruction": ["a", "b"],
    }
    live, output = torch.ones(2, dtype=torch.bool), policy.act(seen)
    empty.record(rows, 0, seen, output, live)
    output.trace = {"raw": torch.zeros(2, 3)}
    with pytest.raises(
        ConfigError, match=r"trace\['raw'\] with rows of shape \(3,\), but \(5, 4\) at the first chunk"
    ):
        empty.record(rows, 1, seen, output, live)
    output.trace = {"other": torch.zeros(2, 3)}
    with pytest.raises(ConfigError, match=r"trace of \['other'\], but of \['raw'\] at the first chunk"):
        empty.record(rows, 1, seen, output, live)


@pytest.mark.parametrize("known", [True, False])
def test_hindsight_says_when_the_starts_do_not_know_what_their_scenes_allow(known, caplog):
    made = trainer(rollout={"hindsight": 2})
    if known:
        made.starts.starts.other_instructions = [("reach another",)] * len(made.starts.starts)
    with caplog.at_level(logging.WARNING):
        first, second = made.round(), made.round()
    warned = [record for record in caplog.records if "hindsight" in record.getMessage()]
    assert len(warned) == (0 if known else 1)  # once in a run
    assert not warned or "--start-frames" in warned[0].getMessage()
    for row in (first, second):
        assert row["hindsight_failures"] > 0 and (row["hindsight_asked"] == row["hindsight_failures"]) == known
