"""Improvers refuse log-probabilities that do not fit the rollouts, and steps with NaN, and leave the weights alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gauss_policy import GaussPolicy
from line_world import SIZE, BrightJudge, LineWorld, starts, tiny_policy

from agents import (
    GRPO,
    SFT,
    ChunkDataset,
    FilteredBC,
    GRPOConfig,
    SelfImitation,
    SelfImitationConfig,
    SFTConfig,
    collect,
)
from worldgym.errors import ConfigError, DivergedError

GRPO_FAULTS = {
    "disagrees": (
        ConfigError,
        r"GaussPolicy.evaluate and .act differ by 3.00 nats.*stored trace.*temperature",
    ),
    "nan": (DivergedError, r"loss of the component 'action' of GaussPolicy is nan.*not taken.*--lr"),
    "gradient": (DivergedError, r"gradient norm of the components 'action'.*--lr"),
    "sums": (ConfigError, r"log_probs\['action'\] of shape \(\d+,\); expected \(\d+, 5, 4\)"),
    "lacks": (ConfigError, r"evaluate returned no log_probs\['action'\]; it returned those of no component"),
    "no entropies": (ConfigError, r"evaluate returned no entropies\['action'\]"),
    "silent": (ConfigError, r"act returned no log_probs, which GRPO needs"),
}
CLONING_FAULTS = {name: GRPO_FAULTS[name] for name in ("nan", "sums", "lacks")} | {
    "gradient": (DivergedError, r"gradient norm of GaussPolicy")
}
LOSS_FAULTS = {
    "loss": (DivergedError, r"loss of the component 'action' of GaussPolicy is nan.*--imitation-lr"),
    "loss gradient": (DivergedError, r"gradient norm of GaussPolicy"),
    "no loss": (ConfigError, r"GaussPolicy.loss returned a dict; expected a dict of scalar losses"),
}


def rollouts(policy, **how):
    generator = torch.Generator().manual_seed(0)
    how = {"group_size": 8, "horizon": 10, **how}
    r = collect(LineWorld(), BrightJudge(), policy, starts(4), generator=generator, **how)
    r.reward[:] = torch.arange(len(r)) % 2  # every group has both
    return r


def demos(count=12):
    rng = np.random.default_rng(0)
    return ChunkDataset(
        rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8),
        np.zeros((count, 4), np.float32),
        ["move right"] * count,
        rng.uniform(-1, 1, (count, 5, 4)).astype(np.float32),
        np.arange(count) // 3,
        np.zeros((count, 4), np.float32),
    )


def refuses(fault, known, update):
    """`update` raises for a policy with this fault, and its weights stay as they were."""
    kind, message = known[fault]
    policy = GaussPolicy(fault)
    with pytest.raises(kind, match=message):
        update(policy)
    assert bool((policy.mean == 0).all()), "no step was taken"


@pytest.mark.parametrize("fault", GRPO_FAULTS)
def test_grpo_refuses_it_before_the_first_step(fault):
    refuses(fault, GRPO_FAULTS, lambda policy: GRPO().update(policy, rollouts(policy)))


@pytest.mark.parametrize("fault", CLONING_FAULTS)
def test_filtered_cloning_refuses_it(fault):
    refuses(fault, CLONING_FAULTS, lambda policy: FilteredBC().update(policy, rollouts(policy)))


@pytest.mark.parametrize("fault", LOSS_FAULTS)
def test_supervised_steps_refuse_it(fault):
    own = SelfImitationConfig(steps=2, batch_size=8, min_rate=0.0)
    updates = [
        lambda policy: SFT(SFTConfig(batch_size=8)).update(policy, demos()),
        lambda policy: SFT(SFTConfig(batch_size=8, epochs=1)).fit(policy, demos()),
        lambda policy: SelfImitation(demos(), own).update(policy, rollouts(policy)),
    ]
    for update in updates:
        refuses(fault, LOSS_FAULTS, update)


def test_advantage_conditioned_cloning_refuses_it():
    from agents.algorithms.advantage_conditioned import AdvantageConditioned, AdvantageConfig

    def update(policy):
        policy.size = 0  # no future tokens
        improver = AdvantageConditioned(demos(), AdvantageConfig(learn="all"))
        improver.update(policy, demos(), np.ones(12, bool), steps=1)

    refuses("loss", LOSS_FAULTS, update)


def test_a_component_to_learn_that_the_policy_lacks_is_named():
    policy = GaussPolicy()
    policy.parameters_of = lambda component: [policy.mean]
    with pytest.raises(ConfigError, match=r"no log_probs\['goal'\].*'action'.*--learn all"):
        GRPO(GRPOConfig(learn="goal")).update(policy, rollouts(policy))


@pytest.mark.parametrize("head", ["bins", "autoregressive", "flow", "l1"])
@pytest.mark.parametrize("temperature", [1.0, 2.0, {"goal": 2.0, "action": 0.0}])
def test_every_head_agrees_with_itself_at_every_temperature(head, temperature):
    policy = tiny_policy(head=head)
    r = rollouts(policy, temperature=temperature)
    scalars = GRPO().update(policy, r)
    assert scalars["groups_kept"] == 4 and np.isfinite(list(scalars.values())).all()


def test_rollouts_of_other_weights_are_compared_only_at_the_first_update():
    policy, grpo = GaussPolicy(), GRPO(GRPOConfig(lr=1e-3))
    r = rollouts(policy)
    grpo.update(policy, r)
    with torch.no_grad():
        policy.mean += 1.0
    grpo.update(policy, r)
    with pytest.raises(ConfigError, match="current weights"):
        GRPO().update(policy, r)


def test_no_finite_validation_score_is_an_error_not_a_policy():
    class Unsure(GaussPolicy):
        def metrics(self, batch):
            return {"val_loss": float("nan")}

    with pytest.raises(DivergedError, match="no epoch had a finite val_goal_error.*--lr"):
        SFT(SFTConfig(batch_size=8, epochs=2)).fit(Unsure(), demos())
