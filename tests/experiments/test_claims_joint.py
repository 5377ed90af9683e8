"""Claims about joint world-action models (C8 to C11, C14, C25): rules on made-up results, and arms at toy size."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from experiments.claims import CLAIMS, c8, c9, c10, c11, c14, c25, find_arm
from experiments.claims.arms import run_arm
from experiments.claims.context import ClaimContext
from experiments.claims.joint_arms import SPLITS, SURPRISE
from experiments.claims.presets import PRESETS
from experiments.claims.records import Records, pack
from experiments.claims.report import page

SMALL, STARTS = PRESETS["small"], 100


def results(
    folder,
    rates: dict[tuple[str, str], float],
    times: dict[str, float] | None = None,
    gain: float = 2.0,
    tasks=("reach",),
):
    """Success and progress at a rate on nested starts, milliseconds of a chunk, a gain of the forward mode in dB."""
    records = Records(folder, "small")
    for (claim, arm), rate in rates.items():
        for seed in range(3):
            won = np.random.default_rng(seed).permutation(STARTS) < STARTS * rate
            row = {"success": pack(won), "progress": won.astype(float).tolist(), "steps": 100}
            noise = np.random.default_rng(seed).normal(size=50)
            forward = {
                "success": pack(noise > 0),
                "gains": (gain + noise).tolist(),
                "psnr": 22.0,
                "psnr_others": 20.0,
            }
            facts = {
                "label": arm, "hashes": {}, "versions": {}, "tasks": list(tasks), "way": [],
                "settings": {"latency_ms": (times or {}).get(arm, 10.0)}, "budget": {"updates": 1.0},
                "evaluations": {f"{s}/greedy": row for s in SPLITS} | {"seen/sampled": row, "forward": forward},
            }  # fmt: skip
            records.write(claim, arm, seed, facts)
    return records


@pytest.mark.parametrize(
    ("joint", "alone", "wanted"),
    [(0.6, 0.4, "supported"), (0.4, 0.5, "refuted"), (0.41, 0.4, "inconclusive")],
)
def test_c8_asks_for_progress_in_the_unseen_scene(tmp_path, joint, alone, wanted):
    records = results(tmp_path, {c8.JOINT: joint, c8.ALONE: alone})
    assert CLAIMS["C8"].decide(records, SMALL).verdict == wanted
    assert f"{joint:.3f} / {joint:.3f} / {joint:.3f}" in page(CLAIMS["C8"], records, SMALL, [])


@pytest.mark.parametrize(
    ("diverse", "repetitive", "wanted"),
    [(0.6, 0.4, "supported"), (0.4, 0.5, "refuted"), (0.41, 0.4, "inconclusive")],
)
def test_c9_asks_for_progress_away_from_the_data(tmp_path, diverse, repetitive, wanted):
    records = results(tmp_path, {c9.DIVERSE: diverse, c9.REPETITIVE: repetitive})
    verdict = CLAIMS["C9"].decide(records, SMALL)
    assert verdict.verdict == wanted and "on seen starts" in verdict.why
    assert "| diverse | " in page(CLAIMS["C9"], records, SMALL, [])


@pytest.mark.parametrize(
    ("watched", "control", "wanted"),
    [(0.6, 0.4, "supported"), (0.4, 0.5, "refuted"), (0.43, 0.4, "inconclusive")],
)
def test_c10_asks_for_progress_in_the_task_without_actions_alone(tmp_path, watched, control, wanted):
    tasks = ["lift", "push", "reach"]
    rates = {c10.WATCHED: watched, c10.CONTROL: control, c10.ALONE: 0.5}
    records = results(tmp_path, rates, tasks=tasks)
    rows = c10.held_out_task(records, c10.WATCHED, [0, 1, 2])
    whole = np.array([records.read(*c10.WATCHED, s)["evaluations"]["seen/greedy"]["progress"] for s in range(3)])
    assert np.array_equal(rows, whole[:, ::3])
    verdict = CLAIMS["C10"].decide(records, SMALL)
    assert verdict.verdict == wanted and "minus no video" in verdict.why


@pytest.mark.parametrize(
    ("gain", "with_video", "wanted"),
    [(3.0, 0.5, "supported"), (0.5, 0.5, "refuted"), (1.05, 0.5, "inconclusive"), (3.0, 0.2, "refuted")],
)
def test_c14_asks_for_frames_that_follow_actions_and_an_undamaged_policy(tmp_path, gain, with_video, wanted):
    rates = {c14.UWM: with_video, c14.ALONE: 0.5}
    assert "on these objects" not in CLAIMS["C14"].decide(results(tmp_path / "two", rates), SMALL).why
    records = results(tmp_path, {**rates, c14.WATCHED: 0.5}, gain=gain)
    assert "on these objects" in CLAIMS["C14"].decide(records, SMALL).why
    verdict = CLAIMS["C14"].decide(records, SMALL)
    assert verdict.verdict == wanted and f"{verdict.effect.mean:+.2f}" in verdict.why
    assert "22.00 against 20.00" in page(CLAIMS["C14"], records, SMALL, [])


@pytest.mark.parametrize(
    ("fast", "alone", "slow", "times", "wanted"),
    [
        (0.6, 0.4, 0.6, (10.0, 80.0), "supported"),
        (0.4, 0.5, 0.4, (10.0, 80.0), "refuted"),  # the video loss does not help
        (0.6, 0.4, 0.8, (10.0, 80.0), "refuted"),  # making the frame is better
        (0.6, 0.4, 0.6, (80.0, 10.0), "refuted"),  # and it is faster
        (0.41, 0.4, 0.41, (10.0, 80.0), "inconclusive"),
    ],
)
def test_c25_asks_for_a_useful_video_loss_and_a_faster_equal_policy(
    tmp_path, fast, alone, slow, times, wanted
):
    rates = {c25.FAST: fast, c25.ALONE: alone, c25.JOINT: slow}
    records = results(tmp_path, rates, dict(zip(("fastwam", "dreamzero"), times, strict=True)))
    verdict = CLAIMS["C25"].decide(records, SMALL)
    assert verdict.verdict == wanted and "of its time" in verdict.why
    assert "| fastwam | " in page(CLAIMS["C25"], records, SMALL, [])


def surprise_results(folder, separation: float, failures: int = 30) -> Records:
    """Errors of 100 episodes, of which every fifth ends before its outcome is open; failures have larger ones."""
    records = Records(folder, "small")
    for seed in range(3):
        rng = np.random.default_rng(seed)
        failed, ended = np.arange(STARTS) < failures, np.arange(STARTS) % 5 == 4
        values = {}
        for name, shift in (("errors", separation), ("changes", 0.0)):
            drawn = rng.normal(size=STARTS) + shift * failed
            values[name] = [None if gone else float(x) for x, gone in zip(drawn, ended, strict=True)]
        row = {"success": pack(~failed), "progress": [0.5] * STARTS, "steps": 100}
        facts = {
            "label": "video and actions", "hashes": {}, "versions": {}, "tasks": ["reach"], "way": [],
            "settings": {"latency_ms": 9.0}, "budget": {"updates": 1.0},
            "evaluations": {f"{s}/greedy": row for s in SPLITS} | {SURPRISE: {"success": pack(~failed), **values}},
        }  # fmt: skip
        records.write(*c8.JOINT, seed, facts)
    return records


@pytest.mark.parametrize(
    ("separation", "wanted"), [(2.0, "supported"), (0.0, "refuted"), (0.65, "inconclusive")]
)
def test_c11_asks_how_well_errors_separate_failures_among_open_episodes(tmp_path, separation, wanted):
    records = surprise_results(tmp_path, separation)
    score, failed = c11.scores(records, 0, "errors")
    assert len(score) == 80 and failed.sum() == 24
    verdict = CLAIMS["C11"].decide(records, SMALL)
    assert verdict.verdict == wanted and "of the change of the frame" in verdict.why


def test_c11_is_undecided_where_nothing_fails(tmp_path):
    verdict = CLAIMS["C11"].decide(surprise_results(tmp_path, 1.0, failures=0), SMALL)
    assert verdict.verdict == "inconclusive" and "only failures or only successes" in verdict.why


@pytest.mark.slow
@pytest.mark.usefixtures("stages_in_this_process")
@pytest.mark.parametrize("name", ["uwm_watched", "uwm", "dreamzero", "repetitive", "watched_task"])
def test_arms_train_joint_models_and_measure_them(bundle, tmp_path, name):
    preset = dataclasses.replace(PRESETS["tiny"], bundle=str(bundle))
    with ClaimContext(preset, tmp_path, workers=0) as lab:
        facts = run_arm(lab, find_arm(name), 0)
    found = facts["evaluations"]
    more = {"uwm": {"forward"}, "dreamzero": {SURPRISE}}.get(name, set())
    assert set(found) == {f"{split}/greedy" for split in SPLITS} | {"seen/sampled"} | more
    assert facts["settings"]["latency_ms"] > 0
    if name == "uwm":
        assert (
            len(found["forward"]["gains"]) == len(found["forward"]["success"])
            and found["forward"]["psnr"] > 5
        )
