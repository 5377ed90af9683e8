"""The diagnosis finds what was put into made-up recordings: lags, kinds of actions, repeats, idle steps, cut values."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_imports import make

from experiments.commands.data_check import DataCheckConfig, run
from worldgym.data import Episode
from worldgym.data.check import check
from worldgym.data.diagnosis import Recorder, diagnose, lines
from worldgym.data.diagnosis import recorder as recorder_module
from worldgym.data.diagnosis.recorder import picture_change
from worldgym.data.formats.lerobot_import import ImportSettings, import_lerobot
from worldgym.errors import ConfigError, DatasetError
from worldgym.specs import ActionSpec, Camera, ObservationSpec, Specs, state_fields

FPS, STEPS = 10.0, 40


def _specs(states: int, actions: int, bound: float = 100.0) -> Specs:
    names = tuple(f"a{i}" for i in range(actions))
    spec = (
        ActionSpec(names, ("1",) * actions, FPS, (-bound,) * actions, (bound,) * actions) if actions else None
    )
    return Specs(
        ObservationSpec((Camera("front", 8, 8),), state_fields([f"s{i}" for i in range(states)])), spec
    )


def _frames(change: np.ndarray) -> np.ndarray:
    """Frames `(T+1, 8, 8, 3)` whose successive mean differences are `change (T,)`, whole numbers up to 100."""
    levels = [100]
    for step in change.astype(int):
        levels.append(levels[-1] + (step if levels[-1] + step <= 255 else -step))
    return np.broadcast_to(np.array(levels, np.uint8)[:, None, None, None], (len(levels), 8, 8, 3)).copy()


def _episode(state: np.ndarray, actions: np.ndarray | None, change: np.ndarray | None = None) -> Episode:
    steps = len(state) - 1
    return Episode(
        frames=_frames(np.full(steps, 9) if change is None else change), state=state.astype(np.float32),
        actions=None if actions is None else np.zeros(actions.shape, np.float32), instruction="move", success=None,
        progress=None, domain="real", split="seen", task="made up",
    )  # fmt: skip


def _diagnosed(specs: Specs, episodes: list[tuple[Any, ...]], **options: Any) -> dict[str, Any]:
    """Diagnosis of `(state, actions, change)` of each episode; it is strict JSON and can be printed."""
    recorder = Recorder(specs, FPS, sum(len(e[0]) - 1 for e in episodes), **options)
    for number, parts in enumerate(episodes):
        recorder.add(number, _episode(*parts), parts[1])
    facts = diagnose(recorder)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert all(isinstance(line, str) and "\n" not in line for line in lines(facts))
    return facts


def _walks(seed: int, dims: int, episodes: int = 5) -> list[np.ndarray]:
    """Random walks with 6 more states before and after the episode, `(STEPS + 13, dims)`."""
    rng = np.random.default_rng(seed)
    return [np.cumsum(rng.normal(size=(STEPS + 13, dims)), 0) for _ in range(episodes)]


def _remark(facts: dict[str, Any], *words: str) -> str:
    found = [text for text in facts["remarks"] if all(word in text for word in words)]
    assert len(found) == 1, (words, facts["remarks"])
    return found[0]


# ---- actions -----------------------------------------------------------------------------------------------------


@given(
    lag=st.integers(-4, 4), dims=st.integers(1, 4), kind=st.sampled_from(["delta", "absolute"]), seed=st.integers(0, 99)
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_lag_kind_and_partner_of_actions_are_found(lag, dims, kind, seed):
    order = np.random.default_rng(seed).permutation(dims)
    episodes = []
    for walk in _walks(seed, dims):
        meant = np.diff(walk, axis=0) if kind == "delta" else walk[1:]
        episodes.append((walk[6 : 7 + STEPS], -2.5 * meant[6 + lag : 6 + lag + STEPS, order]))
    facts = _diagnosed(_specs(dims, dims), episodes)
    for found, partner in zip(facts["alignment"], order, strict=True):
        assert (found["kind"], found["state"]) == (kind, f"s{partner}")
        low, high = found[kind]["interval"]
        assert found[kind]["lag"] == lag and low - 0.25 <= lag <= high + 0.25 and abs(found[kind]["r"]) > 0.95
    said = [
        text
        for text in facts["remarks"]
        if text.startswith("actions") and "step" in text and "never" not in text
    ]
    assert len(said) == (lag != 0)
    if lag:
        assert f"{abs(lag)} step" in said[0] and f"--action-shift {lag}" in said[0]


@pytest.mark.parametrize(("slope", "rule"), [(1.0, "delta"), (FPS, "rate"), (3.0, None)])
def test_a_velocity_is_told_from_a_motion_by_its_size(slope, rule):
    episodes = [(w[6 : 7 + STEPS], slope * np.diff(w, axis=0)[6 : 6 + STEPS]) for w in _walks(1, 2)]
    assert [found["rule"] for found in _diagnosed(_specs(2, 2), episodes)["alignment"]] == [rule, rule]


def test_measured_velocities_lie_half_a_step_early():
    """The velocity at a row agrees equally with the motion before and after it."""
    episodes = []
    for walk in _walks(2, 2, episodes=8):
        smooth = np.stack([np.convolve(c, np.ones(4) / 4, "same") for c in walk.T], 1)
        speed = (smooth[2:] - smooth[:-2]) / 2 * FPS  # at state 1, 2, ...
        episodes.append((smooth[6 : 7 + STEPS], speed[5 : 5 + STEPS]))
    facts = _diagnosed(_specs(2, 2), episodes)
    assert all(f["kind"] == "delta" and -0.6 < f["delta"]["fine"] < -0.4 for f in facts["alignment"])
    assert "mean of the actions t and t+1" in _remark(facts, "a0, a1", "measured")


@pytest.mark.parametrize("slow", [False, True])
def test_unrelated_actions_stay_unknown(slow):
    rng = np.random.default_rng(0)
    episodes = []
    for walk in _walks(3, 2, episodes=8):
        noise = rng.normal(size=(STEPS, 3))
        noise[:, 2] = 0.5
        episodes.append((walk[6 : 7 + STEPS], np.cumsum(noise, 0) if slow else noise))
    found = _diagnosed(_specs(2, 3), episodes)["alignment"]
    assert [f["kind"] for f in found][:2] == ["unknown", "unknown"]
    assert slow or found[2]["kind"] == "constant"


def test_single_jumps_do_not_decide_the_lag():
    """A stale first row: without it the lag is 0, and the diagnosis names the jump."""
    episodes = []
    for walk in _walks(4, 2):
        state = walk[6 : 7 + STEPS].copy()
        actions = np.diff(state, axis=0)
        state[0, 1] += 500.0
        episodes.append((state, actions))
    facts = _diagnosed(_specs(2, 2), episodes)
    assert [found["delta"]["lag"] for found in facts["alignment"]] == [0, 0]
    assert [(j["name"], j["count"], j["first_step"]) for j in facts["jumps"]] == [("s1", 5, 5)]
    assert "import with --cut 1 0" in _remark(facts, "s1 jumps 5 times")


# ---- pictures ----------------------------------------------------------------------------------------------------


@given(lag=st.integers(-4, 4), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_the_lag_between_pictures_and_states_is_found(lag, seed):
    episodes = []
    for walk in _walks(seed, 1, episodes=6):
        size = np.abs(np.diff(walk[:, 0]))
        change = np.round(np.minimum(30 * size, 100))
        episodes.append((walk[6 : 7 + STEPS], None, change[6 + lag : 6 + lag + STEPS]))
    facts = _diagnosed(_specs(1, 0), episodes)
    found = facts["pictures"][0]["lag"]
    assert found["lag"] == lag and found["r"] > 0.8
    said = [text for text in facts["remarks"] if text.startswith("camera front: pictures")]
    assert len(said) == (lag != 0)
    if lag:
        assert ("lead" if lag > 0 else "follow") in said[0] and f"{abs(lag)} row" in said[0]


@pytest.mark.parametrize("delay", [-2, 0, 2])
def test_without_states_the_delay_from_actions_to_pictures_is_found(delay):
    episodes = []
    for walk in _walks(7, 1, episodes=6):
        actions = np.diff(walk, axis=0)
        change = np.round(np.minimum(30 * np.abs(actions[:, 0]), 100))
        episodes.append(
            (np.zeros((STEPS + 1, 0)), actions[6 : 6 + STEPS], change[6 - delay : 6 - delay + STEPS])
        )
    facts = _diagnosed(_specs(0, 1), episodes)
    assert facts["action_pictures"]["lag"] == delay and facts["action_pictures"]["r"] > 0.8
    said = [text for text in facts["remarks"] if text.startswith("the pictures change")]
    assert len(said) == (delay != 0)
    if delay:
        assert ("2 steps after" if delay > 0 else "2 steps before") in said[0]


@given(every=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_repeated_pictures_and_the_rate_of_new_ones(every, seed):
    rng = np.random.default_rng(seed)
    episodes = []
    for _ in range(4):
        state = np.cumsum(rng.uniform(0.8, 1.2, (61, 1)), 0)
        change = rng.integers(20, 30, 60)
        change[np.arange(60) % every != 0] = rng.integers(0, 3)  # an encoded repeat is not quite identical
        episodes.append((state, 1.5 * state[1:], change))
    facts = _diagnosed(_specs(1, 1), episodes)
    found = facts["pictures"][0]
    assert found["repeats"] == pytest.approx(1 - 1 / every, abs=0.05)
    assert found["effective_fps"] == pytest.approx(FPS / every, abs=0.5)
    if every == 1:
        assert not any("--fps" in text and "repeat" in text for text in facts["remarks"])
    else:
        assert f"--fps {FPS / every:g} --actions" in _remark(facts, "camera front", "repeat")


def test_a_still_scene_repeats_nothing():
    """Without motion of the state the same picture is right."""
    state = np.cumsum(np.r_[np.zeros(21), np.ones(40)])[:, None]
    change = np.r_[np.zeros(20), np.full(40, 20)]
    facts = _diagnosed(_specs(1, 0), [(state, None, change)] * 4)
    assert facts["pictures"][0]["repeats"] == 0 and facts["pictures"][0]["identical"] == pytest.approx(1 / 3)


def test_a_pause_of_the_robot_is_no_repeat():
    """Every third step is five times smaller, in the state and in the picture: nothing repeats."""
    size = np.where(np.arange(60) % 3 == 0, 0.2, 1.0)
    facts = _diagnosed(_specs(1, 0), [(np.cumsum(np.r_[0, size])[:, None], None, np.round(20 * size))] * 4)
    assert facts["pictures"][0]["repeats"] == 0
    slow_camera = np.where(np.arange(60) % 3 == 0, 4, 20)
    facts = _diagnosed(_specs(1, 0), [(np.arange(61.0)[:, None], None, slow_camera)] * 4)
    assert facts["pictures"][0]["repeats"] > 0.25


def test_picture_change_is_the_mean_difference_also_of_large_and_many_frames(monkeypatch):
    frames = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), dtype=np.uint8)
    plain = np.abs(np.diff(frames.astype(int), axis=0)).mean((1, 2, 3))
    assert np.allclose(picture_change(frames), plain, atol=1e-3)
    large = np.repeat(np.repeat(frames[:3], 32, axis=1), 32, axis=2)  # 256 x 256
    assert np.allclose(picture_change(large), plain[:2], atol=1e-3)
    monkeypatch.setattr(recorder_module, "MAX_FRAMES", 50)
    assert np.allclose(picture_change(frames), plain[:49], atol=1e-3)


# ---- idle steps, ranges ------------------------------------------------------------------------------------------


@given(start=st.integers(0, 9), inside=st.integers(0, 9), end=st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_idle_steps_at_the_start_inside_and_at_the_end(start, inside, end):
    moves = np.r_[np.zeros(start), np.ones(15), np.zeros(inside), np.ones(15), np.zeros(end)]
    state = np.cumsum(np.r_[0, moves])[:, None]
    total = 30 + start + inside + end
    facts = _diagnosed(_specs(1, 0), [(state, None, 20 * moves)] * 3)
    shares = [facts["idle"][key] * total for key in ("start", "inside", "end", "share")]
    assert shares == pytest.approx([start, inside, end, start + inside + end])
    assert facts["idle"]["median_start_s"] == pytest.approx(start / FPS)
    assert any("are idle" in text for text in facts["remarks"]) == ((start + inside + end) / total >= 0.1)


def test_a_step_is_not_idle_while_state_or_pictures_move():
    moves = np.r_[np.ones(20), np.zeros(20)]
    state = np.cumsum(np.r_[0, moves])[:, None]
    assert _diagnosed(_specs(1, 0), [(state, None, np.full(40, 20))] * 3)["idle"]["share"] == 0
    steady = np.arange(41.0)[:, None]
    assert _diagnosed(_specs(1, 0), [(steady, None, 20 * moves)] * 3)["idle"]["share"] == 0


def test_an_episode_without_motion_is_named():
    moving = (np.arange(31.0)[:, None], None, np.full(30, 20))
    still = (np.zeros((31, 1)), None, np.zeros(30))
    facts = _diagnosed(_specs(1, 0), [moving, moving, still, moving])
    assert facts["idle"]["wholly_idle_episodes"] == [2]
    assert "--skip 2" in _remark(facts, "without any motion")


def test_ranges_cut_values_and_constant_dimensions():
    values = np.tile(np.linspace(-1, 1, 101)[:100], 2)[:, None]
    actions = np.concatenate([values, np.full((200, 1), 0.25), np.sign(values)], 1)
    facts = _diagnosed(_specs(1, 3, bound=0.5), [(np.arange(201.0)[:, None], actions)])
    ramp, fixed, switch = facts["actions"]
    assert (ramp["min"], ramp["max"]) == (-1, pytest.approx(0.98)) and ramp["q50"] == pytest.approx(
        -0.01, abs=0.02
    )
    assert ramp["at_bounds"] == pytest.approx((np.abs(values) > 0.499).mean())
    assert ramp["outside"] == pytest.approx((np.abs(values) > 0.501).mean())
    assert (ramp["constant"], fixed["constant"], switch["constant"]) == (False, True, False)
    assert switch["switch"] and not ramp["switch"]
    assert "a1 never change" in _remark(facts, "--action-key")
    assert "a0 (" in _remark(facts, "--bounds minmax") and "a2" not in _remark(facts, "--bounds minmax")


@pytest.mark.parametrize(("bounds", "said"), [("limits", False), ("q01/q99", True)])
def test_stored_actions_are_cut_at_quantiles_and_not_at_limits(bounds, said):
    spec = ActionSpec(("a0",), ("m",), FPS, (-2.0,), (4.0,), bounds=bounds)
    specs = Specs(_specs(1, 0).observation, spec)
    recorder = Recorder(specs, FPS, 100)
    values = np.clip(np.linspace(-1.2, 1.2, 100), -1, 1).astype(np.float32)[:, None]
    recorder.add(0, replace(_episode(np.arange(101.0)[:, None], values), actions=values))
    facts = diagnose(recorder)
    (found,) = facts["actions"]
    assert (
        (found["min"], found["max"]) == (-2, 4) and 0.1 < found["at_bounds"] < 0.25 and found["outside"] == 0
    )
    assert any("--bounds minmax" in text for text in facts["remarks"]) == said


# ---- little data, missing data -----------------------------------------------------------------------------------


@given(steps=st.integers(1, 16), episodes=st.integers(1, 3), states=st.integers(0, 2), acts=st.integers(0, 2))
@settings(max_examples=30, deadline=None)
def test_few_short_or_still_episodes_give_facts_and_no_verdict(steps, episodes, states, acts):
    parts = (np.zeros((steps + 1, states)), np.zeros((steps, acts)) if acts else None, np.zeros(steps))
    facts = _diagnosed(_specs(states, acts), [parts] * episodes)
    assert facts["specs"]["steps"] == steps * episodes and facts["idle"]["share"] == 1.0
    assert {f["kind"] for f in facts["alignment"]} <= {"constant"}
    assert (facts["specs"]["no_state"] is None) == (states > 0)


def test_two_episodes_give_lags_without_an_interval():
    episodes = [(w[6 : 7 + STEPS], np.diff(w, axis=0)[7 : 7 + STEPS]) for w in _walks(5, 1, episodes=2)]
    found = _diagnosed(_specs(1, 1), episodes)["alignment"][0]
    assert (found["kind"], found["delta"]["lag"], found["delta"]["interval"]) == ("delta", 1, None)


def test_states_that_are_no_measurements_are_not_used():
    episodes = [(w[6 : 7 + STEPS], np.diff(w, axis=0)[6 : 6 + STEPS]) for w in _walks(6, 1)]
    facts = _diagnosed(_specs(1, 1), episodes, no_state="the state is made up")
    assert facts["state"] == [] and facts["alignment"] == [] and facts["pictures"][0]["lag"] is None
    assert _remark(facts, "--state-key").startswith("the state is made up: ")


def test_a_large_dataset_is_thinned(monkeypatch):
    monkeypatch.setattr(recorder_module, "MAX_VALUES", 400)
    episodes = [(np.arange(21.0)[:, None], None) for _ in range(50)]  # 50 x 20 steps x 2 values
    facts = _diagnosed(_specs(1, 0), episodes)
    assert (facts["specs"]["episodes"], facts["specs"]["diagnosed_episodes"]) == (50, 10)
    assert "10 of them diagnosed" in lines(facts)[1]


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match="fps is 0"):
        Recorder(_specs(1, 1), 0.0, 1)
    with pytest.raises(DatasetError, match="no episode"):
        diagnose(Recorder(_specs(1, 1), FPS, 1))


# ---- the command -------------------------------------------------------------------------------------------------


def test_the_command_prints_and_stores_the_diagnosis(make_dataset, tmp_path, capsys):
    root = make_dataset(4)
    assert run(DataCheckConfig(root, json=tmp_path / "on.json")) == 0
    printed = capsys.readouterr().out
    assert "diagnosis of 4 episodes, 16 steps" in printed and "opening:gripper" in printed
    stored = json.loads((tmp_path / "on.json").read_text())["diagnosis"]
    assert stored == check(root, diagnosis=True).diagnosis and len(stored["actions"]) == 4
    assert run(DataCheckConfig(root, diagnosis=False, json=tmp_path / "off.json")) == 0
    assert "diagnosis" not in capsys.readouterr().out
    assert json.loads((tmp_path / "off.json").read_text())["diagnosis"] is None


def test_a_foreign_folder_is_diagnosed_in_recorded_units(tmp_path):
    root = make(tmp_path / "x", "v3.0", lengths=(4, 6), filmed=False)
    facts = check(root, diagnosis=True).diagnosis
    assert facts is not None and facts["specs"]["cameras"][0]["recorded_size"] == [128, 128]
    assert [(a["name"], a["min"], a["max"]) for a in facts["actions"]] == [
        ("shoulder", -1, 3),
        ("elbow", 0, 2),
    ]
    assert facts["state"][1]["max"] == 5  # the state after the last action counts too
    import_lerobot(root, tmp_path / "out", ImportSettings(image_size=16, bounds="minmax"))
    ours = check(tmp_path / "out", diagnosis=True).diagnosis
    assert ours is not None and ours["actions"][0]["max"] == pytest.approx(3, abs=1e-4)
