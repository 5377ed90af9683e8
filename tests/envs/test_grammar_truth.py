"""Instructions are parsed back, and their truth can be asked in any scene."""

from __future__ import annotations

import numpy as np
import pytest

from envs.tabletop.grammar import TEMPLATES, paraphrases, parse, phrase
from envs.tabletop.suite import TabletopSuite
from envs.tabletop.tasks import (
    HELD_OUT_TARGETS,
    SPLITS,
    UNSEEN_COLOUR,
    draw_scene,
    other_instructions,
    scene_for,
)


@pytest.mark.parametrize("task", TEMPLATES)
def test_every_template_is_parsed_back(task):
    words = {"target": "red cube", "side": "left", "base": "blue ball"}
    for index in range(len(TEMPLATES[task])):
        found, given = parse(phrase(task, index, **words))
        assert found == task
        assert given == {name: words[name] for name in given}


def test_an_unknown_sentence_is_an_error():
    with pytest.raises(ValueError, match="is of no known task"):
        parse("sing a song")


@pytest.mark.parametrize("seed", range(5))
def test_a_scene_under_its_own_instruction_is_the_same_task(seed):
    scene = draw_scene(seed, "push")
    again = scene_for(scene, scene.instruction)
    assert (again.task, again.target, again.side) == (scene.task, scene.target, scene.side)


def test_an_object_that_is_not_there_fulfils_nothing():
    scene = draw_scene(0, "reach")
    missing = next(c for c in ("red", "green", "blue", "yellow", "purple", "cyan") if c not in scene.colours)
    assert scene_for(scene, f"reach the {missing} cube") is None


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", TEMPLATES)
def test_other_instructions_name_what_the_scene_holds_and_the_split_asks_for(task, split):
    found = 0
    for seed in range(10):
        scene = draw_scene(seed, task, split)
        others = other_instructions(task, seed, split)
        assert others == TabletopSuite().other_instructions(task=task, seed=seed, split=split)
        for text in others:
            changed = scene_for(scene, text)
            assert changed is not None and changed.task == task
            assert (changed.target, changed.side) != (scene.target, scene.side)
            named = tuple(changed.name(changed.target).split())
            assert (named in HELD_OUT_TARGETS) == (split == "unseen_combination")
            assert split != "unseen_object" or named[0] == UNSEEN_COLOUR
            assert task not in ("push", "stack") or named[1] != "ball"
            words = parse(text)[1]
            assert any(text == phrase(task, index, **words) for index in paraphrases(task, split))
        found += len(others)
    names_objects = "{target}" in TEMPLATES[task][0]
    if split not in ("unseen_object", "unseen_combination"):  # a scene there may have only one such object
        assert (found > 0) == names_objects
    assert names_objects or not found


def test_the_truth_of_another_instruction_is_that_of_an_episode_with_it():
    """An expert fulfils its instruction; the same state fulfils its paraphrase, and not that of another side."""
    suite = TabletopSuite()
    env = suite.make_single(terminate_on_success=False)
    env.reset(seed=3, options={"task": "push"})
    scene = env.batch.scene()
    done = False
    while not done:
        _, _, terminated, truncated, info = env.step(np.asarray(suite.expert_action(env)))
        done = terminated or truncated or bool(info["success"])
    target, side = parse(scene.instruction)[1]["target"], parse(scene.instruction)[1]["side"]
    other = {"left": "right", "right": "left"}[side]
    assert info["success"]
    assert suite.fulfilled(env, f"push the {target} to the {side}")
    assert not suite.fulfilled(env, f"push the {target} to the {other}")
