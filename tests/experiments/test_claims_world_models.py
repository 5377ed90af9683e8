"""Claims about world models and rounds (C3, C4, C16, C24): their rules on made-up results, and the arms at toy size."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_claims import made_up

from experiments.claims import CLAIMS, c4, c16, c17, c23, c24, find_arm
from experiments.claims.arms import run_arm
from experiments.claims.c3 import round_tables
from experiments.claims.context import ClaimContext
from experiments.claims.presets import PRESETS
from experiments.claims.records import Records, pack
from experiments.claims.report import page

SMALL = PRESETS["small"]


def state_results(folder, claim: str, rates: dict[str, float], keys: tuple[str, ...], settings: dict) -> Records:
    """Results of arms that train no policy of pictures: success at a rate, on nested starts."""
    records = Records(folder, "small")
    for arm, rate in rates.items():
        for seed in range(3):
            won = np.random.default_rng(seed).permutation(100) < 100 * rate
            facts = {
                "label": arm, "settings": settings, "hashes": {}, "versions": {}, "tasks": ["reach"],
                "budget": {"updates": 1.0}, "way": [], "evaluations": {key: {"success": pack(won)} for key in keys},
            }  # fmt: skip
            records.write(claim, arm, seed, facts)
    return records


@pytest.mark.parametrize(
    ("rates", "wanted"),
    [((0.4, 0.7, 0.2), "supported"), ((0.6, 0.5, 0.2), "refuted"), ((0.4, 0.6, 0.6), "refuted")],
)
def test_c16_asks_for_a_maximum_at_the_moderate_penalty(tmp_path, rates, wanted):
    settings = {"imagined_uncertainty": 0.5, "spearman": 0.7, "log_success": 0.6}
    named = {arm: rate for (_, arm), rate in zip((c16.NONE, c16.MODERATE, c16.LARGE), rates, strict=True)}
    records = state_results(tmp_path, "C16", named, (c16.TRUE, c16.IMAGINED), settings)
    assert CLAIMS["C16"].decide(records, SMALL).verdict == wanted
    text = page(CLAIMS["C16"], records, SMALL, [])
    assert "| 3 | " in text and "| 0.3 | " not in text, "arms without results are left out"


@pytest.mark.parametrize(
    ("rates", "wanted"),
    [((0.4, 0.7, 0.5), "supported"), ((0.6, 0.5, 0.2), "refuted"), ((0.4, 0.6, 0.7), "refuted")],
)
def test_c17_asks_for_more_than_history_and_a_student(tmp_path, rates, wanted):
    named = {arm: rate for (_, arm), rate in zip((c17.PLAIN, c17.DWL, c17.TEACHER), rates, strict=True)}
    keys = tuple(f"{what}/{level:g}" for what in ("real", "horizon") for level in c17.LEVELS)
    records = state_results(tmp_path, "C17", named, keys, {})
    assert CLAIMS["C17"].decide(records, SMALL).verdict == wanted
    assert "within 10 steps, noise 0.1 m" in page(CLAIMS["C17"], records, SMALL, [])


@pytest.mark.parametrize(
    ("rates", "wanted"),
    [((0.9, 0.7, 0.6), "supported"), ((0.7, 0.8, 0.6), "refuted"), ((0.7, 0.6, 0.7), "refuted")],
)
def test_c3_asks_for_more_than_both_controls(tmp_path, rates, wanted):
    records = made_up(tmp_path, dict(zip(CLAIMS["C3"].arms(SMALL), rates, strict=True)))
    assert CLAIMS["C3"].rule(records, SMALL, [0, 1, 2]).holds == {"supported": True, "refuted": False}[wanted]


def test_the_tables_of_rounds_sum_counts_over_seeds():
    counts = {"tp": 5, "fn": 1, "tn": 3, "fp": 1}
    first = {"round": 0, "confusion": counts, "by_task": {"reach": counts}, "true": 0.6, "world_model": None}
    learned = {when: {"psnr": 20.0 + i, "fp": 4 - i} for i, when in enumerate(("before", "after"))}
    second = {**first, "round": 1, "true": 0.7, "world_model": learned}
    text = round_tables([[first, second]] * 3)
    assert "| 0 | all | 15 | 3 | 9 | 3 | 0.600 / 0.600 / 0.600 |" in text
    assert "| 1 | 20.00, 21.00 dB | 12 | 9 |" in text and "| 0 | 20.00" not in text


def optimism_results(folder, claim: str, shares: dict[str, float], seeds=(0, 1, 2), solved=range(20)) -> Records:
    """Shares of 200 failures (10 of each of 20 starts) that are judged successful, by arm; `solved` starts succeed."""
    records = Records(folder, "small")
    for arm, share in shares.items():
        for seed in seeds:
            rng = np.random.default_rng(seed)
            failures = {"success": pack(rng.permutation(200) < 200 * share), "starts": [i // 10 for i in range(200)]}
            successes = {"success": "1" * len(solved), "starts": list(solved)}
            evaluations = {
                "optimism/failures": failures, "optimism/successes": successes,
                "optimism/scores": {"success": "01", "auroc": 0.9, "gap": None},
                "loop/imagined": {"success": "1100"}, "loop/real": {"success": "1010"},
            }  # fmt: skip
            facts = {
                "label": arm, "settings": {}, "hashes": {}, "versions": {}, "tasks": ["reach"],
                "budget": {"updates": 1.0}, "way": [], "evaluations": evaluations,
            }  # fmt: skip
            records.write(claim, arm, seed, facts)
    return records


def c24_results(folder, control: float, perturbed: float, seeds=(0, 1, 2)) -> Records:
    return optimism_results(folder, "C24", {"control": control, "counterfactual": perturbed}, seeds)


@pytest.mark.parametrize(
    ("control", "perturbed", "wanted"), [(0.4, 0.1, "supported"), (0.2, 0.3, "refuted"), (0.21, 0.2, "inconclusive")]
)
def test_c24_compares_optimism_at_equal_steps_and_reports_the_loop(tmp_path, control, perturbed, wanted):
    records = c24_results(tmp_path, control, perturbed)
    verdict = CLAIMS["C24"].decide(records, SMALL)
    assert verdict.verdict == wanted and "false successes in closed loop: +0.0" in verdict.why
    assert verdict.effect.mean == pytest.approx(perturbed - control)
    text = page(CLAIMS["C24"], records, SMALL, [])
    assert "0.900 / 0.900 / 0.900 | - / - / -" in text and "Success in Real, by seed" not in text


@pytest.mark.parametrize(
    ("joint", "after", "no_near", "wanted"),
    [(0.1, 0.4, 0.3, "supported"), (0.3, 0.2, 0.5, "refuted"), (0.2, 0.4, 0.1, "refuted")],
)
def test_c4_asks_for_more_right_verdicts_than_both_other_arms(tmp_path, joint, after, no_near, wanted):
    shares = {c4.JOINT[1]: joint, c4.AFTER[1]: after, c4.NO_NEAR[1]: no_near}
    records = optimism_results(tmp_path, "C4", shares, solved=range(1, 20))
    verdict = CLAIMS["C4"].decide(records, SMALL)
    assert verdict.verdict == wanted
    assert c4.alignment(records, c4.JOINT, [0]).shape == (1, 19), "a start without a success has no share"
    assert verdict.effect.mean == pytest.approx((after - joint) / 2, abs=0.02)
    assert f"| {' / '.join([f'{100 * joint:.1f}'] * 3)} |" in page(CLAIMS["C4"], records, SMALL, [])


def test_shares_are_means_over_starts(tmp_path):
    records = c24_results(tmp_path, 0.5, 0.5, seeds=(0,))
    table = c24.by_start(records, c24.CONTROL, "optimism/failures", [0])
    assert table.shape == (1, 20) and table.mean() == pytest.approx(0.5)


@pytest.mark.slow
@pytest.mark.usefixtures("stages_in_this_process")
@pytest.mark.parametrize(
    "name", ["counterfactual", "control", "joint_head", "head_after", "one_start", "lambda-3", "dwl-dwl"]
)
def test_arms_train_world_models_and_rounds(bundle, tmp_path, name):
    of_chunks = name in ("joint_head", "head_after")
    preset = dataclasses.replace(PRESETS["tiny"], bundle="tabletop-small" if of_chunks else str(bundle))
    with ClaimContext(preset, tmp_path, workers=0) as lab:
        facts = run_arm(lab, find_arm(name), 0)
    found = facts["evaluations"]
    if name in ("counterfactual", "control", "joint_head", "head_after"):
        assert set(found) >= {"optimism/failures", "optimism/successes", "loop/imagined", "loop/real"}
        assert facts["budget"]["real_episodes"] == preset.extra_episodes
    elif name == "one_start":
        assert len(found["start/after"]["success"]) == c23.FRAMES * c23.ATTEMPTS
        assert set(found) == {f"{what}/{when}" for what in ("start", "others") for when in ("before", "after")}
    elif name == "lambda-3":
        assert set(found) == {c16.TRUE, c16.IMAGINED}
    elif name == "dwl-dwl":
        assert set(found) == {"real/0.1", "real/0", "horizon/0.1", "horizon/0"}
