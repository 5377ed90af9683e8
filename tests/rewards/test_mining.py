"""What a judge is wrong about is drawn more often, with its true label, and learned."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from judged_world import SIZE, logs

from experiments.commands.train_judge import TrainJudgeConfig
from rewards import LearnedJudge, LearnedJudgeConfig, train_judge
from rewards.training.mining import HardFrames, believed
from worldgym.errors import ConfigError, DatasetError

TINY = LearnedJudgeConfig.preset("tiny", image_size=SIZE, dropout=0.0)


class Brightness(LearnedJudge):
    """Certain of success where the hand is high, whatever happened."""

    def score(self, frames, instructions, states=None):
        from worldgym.protocols import Judgement

        p = torch.where(states[:, 2] > 0, 0.99, 0.01)
        return Judgement(p, None, torch.ones(len(p), dtype=torch.bool), p.tolist())


def arrays(policy: bool = True):
    made = logs(30)
    states = np.random.default_rng(1).normal(size=made.states.shape).astype(np.float32)
    behaviours = ["policy" if policy and i % 2 else "expert" for i in range(30)]
    return dataclasses.replace(made, states=states, behaviours=behaviours)


def test_frames_are_drawn_as_the_judge_is_wrong_about_them_and_keep_their_labels():
    made = arrays()
    hard = HardFrames.mine(Brightness(TINY), made, np.arange(30), np.random.default_rng(0))
    owner = np.repeat(np.arange(30), 6)
    assert all(owner[row] % 2 for rows in hard.rows for row in rows)  # policies' episodes only
    rows, texts, labels = hard.sample(400, np.random.default_rng(2))
    assert labels.dtype == np.float32 and labels.sum() == 200
    assert np.array_equal(labels > 0.5, made.success[rows])
    assert texts == [made.instructions[owner[row]] for row in rows]
    high = made.states[rows, 2] > 0
    assert high[labels < 0.5].mean() > 0.9 and high[labels > 0.5].mean() < 0.3


def test_without_policies_all_episodes_are_looked_at_and_held_out_ones_never():
    made = arrays(policy=False)
    hard = HardFrames.mine(Brightness(TINY), made, np.arange(20), np.random.default_rng(0))
    owner = np.repeat(np.arange(30), 6)
    assert {int(owner[row]) for rows in hard.rows for row in rows} <= set(range(20))
    never = dataclasses.replace(made, success=np.zeros_like(made.success))
    with pytest.raises(DatasetError, match="mix.policy"):
        HardFrames.mine(Brightness(TINY), never, np.arange(20), np.random.default_rng(0))


def test_a_policy_that_never_succeeds_leaves_solved_frames_to_the_other_episodes(caplog):
    made = arrays()
    owner = np.repeat(np.arange(30), 6)
    made = dataclasses.replace(made, success=np.where(owner % 2, False, made.success))
    hard = HardFrames.mine(Brightness(TINY), made, np.arange(20), np.random.default_rng(0))
    unsolved, solved = ({int(owner[row]) for row in rows} for rows in hard.rows)
    assert all(i % 2 for i in unsolved) and solved and all(i % 2 == 0 and i < 20 for i in solved)
    assert "none of the 10 rollouts of a policy has solved frames" in caplog.text


def test_a_judge_that_goes_on_with_mined_frames_errs_less_on_them():
    made = arrays()
    judge, _ = train_judge(made, model=TINY, steps=60, batch_size=32, lr=2e-3, val_fraction=0.2, val_pairs=60)
    hard = HardFrames.mine(judge, made, np.arange(30), np.random.default_rng(0))
    rows, _, labels = hard.sample(200, np.random.default_rng(0))
    before = np.abs(believed(judge, made, rows, hard.owner) - labels).mean()
    again, _ = train_judge(
        made, judge=judge, steps=60, batch_size=32, lr=2e-3, val_fraction=0.2, val_pairs=60, hard_share=0.5
    )
    assert np.abs(believed(again, made, rows, hard.owner) - labels).mean() < before


def test_mining_without_a_judge_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="to go on from"):
        train_judge(arrays(), model=TINY, steps=2, hard_share=0.5)
    with pytest.raises(ConfigError, match="--initial"):
        TrainJudgeConfig(data=tmp_path, hard_share=0.5)
