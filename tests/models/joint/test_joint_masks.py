"""Each family's mask is the published one: a token that must not be seen changes nothing, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from joint_cases import inputs_of, model_of

from worldgym.errors import ConfigError
from worldgym.models.joint import FAMILIES
from worldgym.models.joint.layouts import Sizes, family_of

SIZES = Sizes(blocks=1, patches=1, chunk=1)


def outputs(model, inputs):
    c = model.config
    with torch.no_grad():
        return model.network(c.kind.layout(c.sizes(c.block_count)), c.kind.rule(), inputs)


def changed(inputs, name: str, block: int):
    value = getattr(inputs, name).clone()
    value[:, block] += 1
    return replace(inputs, **{name: value})


def effect(family: str, name: str, block: int = 0) -> tuple[list[bool], list[bool]]:
    """Whether a change of one input changes the frame, and the actions, of each block."""
    model = model_of(family)
    inputs = inputs_of(model)
    before, after = outputs(model, inputs), outputs(model, changed(inputs, name, block))
    differs = [(a != b).flatten(2).any(2).any(0).tolist() for a, b in zip(before[:2], after[:2], strict=True)]
    return differs[0], differs[1]


@pytest.mark.parametrize(
    ("name", "video", "actions"),
    [("video", True, False), ("actions", False, True), ("states", False, True), ("clean", True, True)],
)
def test_fastwam_never_shows_the_future_to_the_actions_nor_the_actions_to_the_video(name, video, actions):
    assert effect("fastwam", name) == ([video], [actions])


@pytest.mark.parametrize(
    ("name", "video", "actions"),
    [("video", True, False), ("actions", True, True), ("states", True, True), ("clean", True, True)],
)
def test_gigaworld_shows_the_actions_to_the_video_only(name, video, actions):
    assert effect("gigaworld", name) == ([video], [actions])


@pytest.mark.parametrize("family", ["uwm", "motus"])
@pytest.mark.parametrize("name", ["video", "actions", "clean", "states"])
def test_uwm_and_motus_attend_to_everything(family, name):
    assert effect(family, name) == ([True], [True])


@pytest.mark.parametrize(
    ("name", "block", "seen"),
    [
        ("clean", 0, [True, True]),  # the first frame is the past of both blocks
        ("clean", 1, [False, True]),  # the second one is the target of block 1 and the past of block 2
        ("clean", 2, [False, False]),  # the last one is a target only
        ("video", 0, [True, False]),
        ("video", 1, [False, True]),
        ("actions", 0, [True, False]),
        ("actions", 1, [False, True]),
        ("states", 0, [True, False]),
        ("states", 1, [False, True]),
    ],
)
def test_dreamzero_blocks_see_the_clean_past_and_themselves(name, block, seen):
    assert effect("dreamzero", name, block) == (seen, seen)


def test_uwm_keeps_the_observation_out_of_the_sequence():
    layout = FAMILIES["uwm"].layout(SIZES)
    assert [(s.role, s.clean) for s in layout.segments] == [
        ("action", False),
        ("video", False),
        ("register", False),
    ]
    assert len(model_of("uwm").network.body.config.experts) == 1


def test_motus_has_three_experts_with_their_own_widths():
    experts = model_of("motus").network.body.config.experts
    assert [e.name for e in experts] == ["video", "action", "understanding"]
    assert len({e.width for e in experts}) == 3


def test_keys_and_values_are_kept_only_where_no_given_token_sees_a_noisy_one():
    assert {name: family.cached for name, family in FAMILIES.items()} == {
        "uwm": False, "dreamzero": True, "fastwam": True, "gigaworld": True, "motus": False,
    }  # fmt: skip


def test_an_unknown_family_is_named():
    with pytest.raises(ConfigError, match="unknown family 'dreamone'.*dreamzero"):
        family_of("dreamone")
