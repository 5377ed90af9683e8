"""The reference judge: nearer videos are worth more, and what has no reference is not applicable rather than failed."""

from __future__ import annotations

import pytest
import torch
from judged_world import logs
from test_imagined_logs import Fading

from rewards import ComposedJudge, ReferenceJudge, ReferenceJudgeConfig, Term, load_judge
from worldgym.errors import ConfigError


@pytest.fixture
def arrays():
    return logs(6)


@pytest.fixture
def judge(arrays):
    return ReferenceJudge.imagine(Fading(), arrays)


def test_successful_episodes_become_references_as_the_world_model_imagines_them(judge, arrays):
    solved = [i for i in range(6) if arrays.success[arrays.rows(i)].any()]
    assert judge.instructions == [arrays.instructions[i] for i in solved] and len(judge.references) == len(
        solved
    )
    assert torch.equal(judge.references[0][0], torch.from_numpy(arrays.frames[arrays.rows(solved[0]).start]))
    verdict = judge.score(judge.references[0][None], judge.instructions[:1])
    assert verdict.p_success.tolist() == [1.0] and verdict.raw == [0.0], "its own video is at no distance"


def test_the_further_a_video_departs_the_less_it_is_worth(judge):
    video = judge.references[0]
    worth = []
    for change in (0, 3, 9, 27):
        other = video.clone()
        other[1:] = (other[1:].int() + change).clamp(0, 255).to(torch.uint8)
        worth.append(float(judge.score(other[None], judge.instructions[:1]).p_success))
    assert worth == sorted(worth, reverse=True) and worth[0] > worth[1] > worth[3]


def test_another_start_or_other_words_are_not_applicable(judge):
    video = judge.references[0][None]
    other = video.clone()
    other[0, 0, 0, 0] = 1
    verdict = judge.score(torch.cat([video, other]), judge.instructions[:1] * 2)
    assert verdict.valid.all() and torch.isnan(verdict.p_success).tolist() == [False, True]
    assert torch.isnan(judge.score(video, ["open the drawer"]).p_success).all()

    class Half:
        name = "half"

        def score(self, frames, instructions):
            verdict = judge.score(video, judge.instructions[:1])
            verdict.p_success[:] = 0.5
            return verdict

    both = ComposedJudge({"reference": Term(judge), "half": Term(Half())})
    assert both.score(other, judge.instructions[:1]).p_success.tolist() == [0.5]


def test_a_perceptual_distance_is_added_by_its_weight(arrays):
    config = ReferenceJudgeConfig(perceptual=2.0)
    with pytest.raises(ConfigError, match="needs a distance"):
        ReferenceJudge.imagine(Fading(), arrays, config=config)
    judge = ReferenceJudge.imagine(
        Fading(), arrays, config=config, perceptual=lambda a, b: torch.full((len(a),), 0.01)
    )
    assert judge.score(judge.references[0][None], judge.instructions[:1]).raw[0] == pytest.approx(-0.02)


def test_it_comes_back_from_disk_and_wants_whole_videos(judge, tmp_path):
    judge.save_pretrained(tmp_path)
    again = load_judge(tmp_path)
    video = judge.references[1][None]
    assert torch.equal(
        again.score(video, judge.instructions[1:2]).progress,
        judge.score(video, judge.instructions[1:2]).progress,
    )
    with pytest.raises(ValueError, match="whole videos"):
        again.score(video[:, :1], judge.instructions[1:2])
    with pytest.raises(ConfigError, match="at least one"):
        ReferenceJudge([], [])
