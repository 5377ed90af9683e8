"""A failed attempt becomes a success of another instruction, if the judge is sure and it was not fulfilled before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agents.algorithms.hindsight import relabel
from agents.rollouts.trajectories import Rollouts
from worldgym.errors import ConfigError
from worldgym.protocols import Judgement, Reads

SENTENCES = {"reach": ["reach red", "reach green", "reach blue"], "push": ["push red"]}


class Brightness:
    """`reach <colour>` is fulfilled in frames whose brightness is that of the colour."""

    name = "brightness"
    level = {"red": 50, "green": 100, "blue": 150}

    def score(self, frames, instructions):
        bright = frames[:, -1].float().mean((1, 2, 3))
        wanted = torch.tensor([float(self.level[text.split()[-1]]) for text in instructions])
        p = torch.where((bright - wanted).abs() < 1, 0.95, 0.05)
        return Judgement(p, None, bright < 250)


def rollouts(first: list[int], last: list[int], texts: list[str], reward: list[float]) -> Rollouts:
    n = len(first)
    picture = lambda values: torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 4, 4, 3)  # noqa: E731
    made = Rollouts.empty(picture(first).clone(), torch.zeros(n, 2), texts, 1, (2, 5, 3))
    made.images[:, 0], made.final_images = picture(first), picture(last)
    made.mask[:] = True
    made.reward = torch.tensor(reward)
    return made


def run(made, **settings):
    return relabel(made, Brightness(), SENTENCES, threshold=0.9, rng=np.random.default_rng(0), **settings)


def test_a_failure_that_fulfils_another_instruction_is_relabelled():
    extra, facts = run(rollouts([0], [100], ["reach red"], [0.0]))
    assert extra.instructions == ["reach green"]
    assert extra.reward.tolist() == [1.0]
    assert facts == {"failures": 1.0, "asked": 2.0, "relabelled": 1.0}


@pytest.mark.parametrize(
    ("first", "last", "text", "reward"),
    [
        (100, 100, "reach red", 0.0),  # fulfilled at the start already
        (0, 100, "reach green", 1.0),  # a success of its own instruction
        (0, 50, "push red", 0.0),  # no other instruction of its task
        (0, 30, "reach red", 0.0),  # nothing is fulfilled
        (0, 255, "reach red", 0.0),  # no verdict
    ],
)
def test_other_attempts_are_not(first, last, text, reward):
    assert run(rollouts([first], [last], [text], [reward]))[0] is None


def test_what_the_scene_allows_is_asked_in_place_of_all_sentences():
    made = rollouts([0, 0], [100, 100], ["reach red", "reach red"], [0.0, 0.0])
    made.other_instructions = [("reach blue",), ("reach green",)]
    extra, facts = run(made)
    assert facts == {"failures": 2.0, "asked": 2.0, "relabelled": 1.0}
    assert extra.instructions == ["reach green"]
    assert extra.other_instructions is None  # those of the old instruction would be wrong for the new one


def test_invalid_attempts_are_not_asked_about():
    made = rollouts([0, 0], [100, 100], ["reach red", "reach red"], [0.0, 0.0])
    made.valid[0] = False
    extra, facts = run(made)
    assert len(extra) == 1
    assert facts["failures"] == 1


def test_a_judge_of_videos_is_refused():
    class Video(Brightness):
        reads = Reads(frames="episode")

    with pytest.raises(ConfigError, match="hindsight asks about single frames"):
        relabel(
            rollouts([0], [1], ["reach red"], [0.0]), Video(), SENTENCES, threshold=0.9, rng=np.random.default_rng(0)
        )
