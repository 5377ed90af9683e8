"""Claims on auxiliary losses (C6, C7): their rules on made-up results, and the arms at toy size."""

from __future__ import annotations

import dataclasses
import json

import pytest
from test_claims import made_up

from experiments.claims import CLAIMS, c6, c7, find_arm
from experiments.claims.arms import run_arm
from experiments.claims.context import ClaimContext
from experiments.claims.presets import PRESETS
from experiments.claims.report import page

SMALL = PRESETS["small"]


@pytest.mark.parametrize(
    ("tokens", "flare", "wanted"),
    [
        ((0.3, 0.5, 0.7), (0.5, 0.6, 0.7), "supported"),
        ((0.3, 0.5, 0.7), (0.3, 0.5, 0.7), "refuted"),
        ((0.3, 0.5, 0.7), (0.2, 0.4, 0.6), "refuted"),
        ((0.3, 0.5, 0.7), (0.4, 0.3, 0.5), "inconclusive"),
    ],
)
def test_c6_asks_for_a_gain_at_some_number_of_demonstrations_and_in_the_mean(tmp_path, tokens, flare, wanted):
    rates = dict(zip(c6.TOKENS.values(), tokens, strict=True)) | dict(
        zip(c6.FLARE.values(), flare, strict=True)
    )
    records = made_up(tmp_path, {**rates, c6.VIDEO: 0.6})
    verdict = CLAIMS["C6"].decide(records, SMALL)
    assert verdict.verdict == wanted, verdict.why
    gain = 100 * (0.6 - flare[0])
    assert f"video of unseen objects minus no video, on these objects: {gain:+.1f}" in verdict.why
    text = page(CLAIMS["C6"], records, SMALL, [])
    assert (
        "Refuted if at 10, 30 and 100 demonstrations per task" in text
        and "| unseen objects, by seed |" in text
    )


def test_c6_reports_the_time_of_an_action(tmp_path):
    rates = dict.fromkeys([*c6.TOKENS.values(), *c6.FLARE.values()], 0.5)
    records = made_up(tmp_path, rates)
    for _, arm in c6.FLARE.values():
        for seed in range(3):
            facts = records.read("C6", arm, seed)
            records.write("C6", arm, seed, {**facts, "settings": {"latency_ratio": 1.08}})
    assert "time of an action with tokens: 1.08 times" in CLAIMS["C6"].decide(records, SMALL).why


@pytest.mark.parametrize(
    ("none", "causal", "leaky", "wanted"),
    [
        (0.5, 0.6, 0.45, "supported"),
        (0.5, 0.45, 0.4, "refuted"),
        (0.5, 0.7, 0.65, "refuted"),
    ],
)
def test_c7_asks_for_a_gain_under_perturbations_that_a_leak_does_not_give(
    tmp_path, none, causal, leaky, wanted
):
    rates = {c7.NONE: none, c7.JEPA: causal, c7.LEAKY: leaky, c7.CONTEXT: 0.55}
    records = made_up(tmp_path, rates)
    verdict = CLAIMS["C7"].decide(records, SMALL)
    assert verdict.verdict == wanted, verdict.why
    assert "leak into the predictor's context +5.0" in verdict.why
    text = page(CLAIMS["C7"], records, SMALL, [])
    assert "held-out splits of the suite; there is none of camera or noise" in text
    assert "| arm | seen | unseen_scene | unseen_object | unseen_instruction |" in text


def test_c7_is_undecided_if_the_gain_differs_between_seeds(tmp_path):
    records = made_up(tmp_path, {c7.NONE: 0.5, c7.JEPA: 0.6, c7.LEAKY: 0.45})
    lower = made_up(tmp_path / "lower", {c7.JEPA: 0.4}).read("C7", c7.JEPA[1], 1)
    records.write("C7", c7.JEPA[1], 1, lower)
    verdict = CLAIMS["C7"].decide(records, SMALL)
    assert verdict.verdict == "inconclusive" and verdict.effect.mean > 0 > verdict.effect.low


def test_arms_that_are_compared_have_the_same_tokens():
    """Otherwise the comparison would be one of capacity."""
    from agents.auxiliary.make import settings_of, token_count

    counts = {token_count(settings_of(["vla_jepa"], values)) for values in c7.VALUES.values()}
    assert counts == {12}
    assert token_count(settings_of(["flare"], {"weight": 0.0})) == token_count(settings_of(["flare"])) == 8


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.mark.usefixtures("stages_in_this_process")
@pytest.mark.parametrize("name", ["flare_video-10", "jepa-leaky"])
def test_arms_train_from_scratch_and_are_measured(bundle, work, name):
    preset = dataclasses.replace(PRESETS["tiny"], bundle=str(bundle), episodes=2)
    with ClaimContext(preset, work, workers=0) as lab:
        facts = run_arm(lab, find_arm(name), 0)
    splits = c6.SPLITS if name.startswith("flare") else c7.SPLITS
    assert set(facts["evaluations"]) == {f"{split}/greedy" for split in splits} | {"seen/sampled"}
    found = facts["settings"]
    assert found["demos"] == facts["budget"]["real_episodes"] > 3
    assert 0 < found["latency_ratio"] < 50 and found["probe"] <= 1
    assert (found["video_frames"] > 0) == name.startswith("flare") and "encoder" not in found
    assert json.loads(json.dumps(facts)) == facts
