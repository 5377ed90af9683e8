from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from judged_world import SIZE, logs

from rewards import JudgeTrainConfig, LearnedJudgeConfig, imagine_training_logs, train_judge
from rewards.training.imagined_logs import balanced_threshold, episode_verdicts, precision_recall
from worldgym.protocols import Imagined


class Fading:
    """A world model that repeats the first frame, a little greyer each step."""

    def begin(self, frames, actions, generator=None, states=None):
        return frames[:, -1], states[:, -1]

    def step(self, state, actions):
        first, proprio = state
        k = actions.shape[1]
        fade = (1 - 0.1 * torch.arange(1, k + 1)).view(1, k, 1, 1, 1)
        frames = (fade * first[:, None].float() + (1 - fade) * 120).round().to(torch.uint8)
        return state, Imagined(
            frames=frames,
            latents=torch.zeros(len(first), k, 1),
            uncertainty=torch.zeros(len(first)),
            success_prob=None,
            states=proprio[:, None].expand(-1, k, -1),
        )


def test_dreams_keep_first_frames_and_labels_and_paint_the_rest():
    real = logs(12)
    dreams = imagine_training_logs(Fading(), real, episodes=np.array([3, 7, 8]), batch=2)
    assert len(dreams) == 3 and dreams.indices.tolist() == [3, 7, 8]
    assert dreams.instructions == [real.instructions[i] for i in (3, 7, 8)]
    for m, i in enumerate((3, 7, 8)):
        mine, theirs = dreams.rows(m), real.rows(i)
        assert (dreams.frames[mine.start] == real.frames[theirs.start]).all()
        assert (dreams.success[mine] == real.success[theirs]).all()
        faded = (0.9 * real.frames[theirs.start].astype(float) + 12).round()
        assert np.abs(dreams.frames[mine.start + 1] - faded).max() <= 1
    assert (real.frames == logs(12).frames).all()  # the logs are left alone


def test_a_judge_learns_from_dreams_and_reports_them():
    real = logs(60)
    dreams = dataclasses.replace(real, frames=(real.frames * 0.6 + 48).astype(np.uint8))  # faint but true
    settings = JudgeTrainConfig(steps=150, batch_size=32, lr=2e-3, val_fraction=0.3, val_pairs=100)
    tiny = LearnedJudgeConfig.preset("tiny", image_size=SIZE, dropout=0.0)
    judge, report = train_judge(real, config=settings, model=tiny, imagined=dreams)
    assert report["imagined_episodes/recall"] > 0.7 and report["imagined_episodes/precision"] > 0.7
    said, truth = episode_verdicts(judge, dreams, np.arange(20))
    assert said.shape == truth.shape == (20, 1)
    with pytest.raises(ValueError, match="held-out"):
        none = dataclasses.replace(dreams, indices=dreams.indices + 1000)
        train_judge(real, config=settings, model=tiny, imagined=none)


def test_an_episode_stops_at_the_first_verdict():
    said = np.array([[0.1, 0.9, 0.9], [0.1, 0.1, 0.1], [0.9, 0.1, 0.1], [0.2, 0.2, 0.2]])
    truth = np.array([[False, False, True], [False] * 3, [True] * 3, [False, True, True]])
    precision, recall = precision_recall(said, truth, 0.5)
    assert precision == 0.5  # the first one succeeded only after it had stopped
    assert recall == 0.5


@given(
    hnp.arrays(np.float64, (12, 4), elements=st.floats(0, 1)),
    hnp.arrays(np.bool_, (12, 4)),
)
def test_the_balanced_threshold_is_the_best_of_its_grid(said, wins):
    truth = np.maximum.accumulate(wins, 1)
    chosen = balanced_threshold(said, truth)
    assert 0.2 <= chosen <= 0.99
    best = np.nan_to_num(min(precision_recall(said, truth, chosen)))
    assert best >= max(np.nan_to_num(min(precision_recall(said, truth, t))) for t in (0.2, 0.5, 0.99))
