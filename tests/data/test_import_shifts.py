"""`--action-shift`, `--picture-shift` and `--cut` give what the same change of the source would give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import WRITERS, imported, options, take, write_lerobot

from experiments.cli import main
from worldgym.data.check import check
from worldgym.errors import ConfigError, DatasetError

SHIFT = st.integers(-2, 2)


def moved(one, action_shift, picture_shift, start, end):
    """The take with its columns moved and the rows left over cut."""
    rows = len(one.actions)
    first = start + max(0, action_shift, picture_shift)
    last = rows - end + min(0, action_shift, picture_shift)
    own, acted, shown = (np.arange(first, last) - shift for shift in (0, action_shift, picture_shift))
    actions = one.actions[
        np.clip(acted, 0, rows - 1)
    ]  # the action of the last row leads to no recorded frame
    return replace(
        one,
        top=one.top[shown],
        wrist=one.wrist[shown],
        actions=actions,
        state=one.state[own],
        rewards=one.rewards[own],
    )


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind != "mcap"])
@given(action=SHIFT, picture=SHIFT, start=st.integers(0, 2), end=st.integers(0, 2))
@settings(max_examples=5, deadline=None)
def test_an_option_equals_the_change_of_the_source(tmp_path_factory, kind, action, picture, start, end):
    root = tmp_path_factory.mktemp("x")
    takes = [take(0, 14), take(1, 12)]
    kept = {**options(kind), "bounds": "minmax", "success": "none"}
    (root / "a").mkdir()
    (root / "b").mkdir()
    found = imported(
        WRITERS[kind](root / "a", takes), root / "found", **kept,
        action_shift=action, picture_shift=picture, cut=(start, end),
    )  # fmt: skip
    changed = [moved(one, action, picture, start, end) for one in takes]
    expected = imported(WRITERS[kind](root / "b", changed), root / "expected", **kept)
    assert found.specs.action == expected.specs.action
    for one, other in zip(found, expected, strict=True):
        for name in ("frames", "actions", "state"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
        assert np.array_equal(one.views["wrist"], other.views["wrist"])


def test_success_in_rows_that_are_cut_does_not_count(tmp_path):
    source = write_lerobot(tmp_path / "a", [take(0, 8)])
    more = {"camera": ("top",), "image_size": ("16",), "success": "next.reward"}
    assert imported(source, tmp_path / "whole", **more)[0].success.tolist() == [False] * 7 + [True]
    assert not imported(source, tmp_path / "end", **more, cut=(1, 3))[0].success.any()
    assert imported(source, tmp_path / "start", **more, cut=(1, 0))[0].success.tolist() == [False] * 6 + [True]
    early = replace(take(0, 8), rewards=np.eye(8, dtype=np.float32)[1])
    source = write_lerobot(tmp_path / "b", [early])
    assert imported(source, tmp_path / "early", **more)[0].success.tolist() == [False, False, True] + [False] * 5
    assert not imported(source, tmp_path / "late", **more, cut=(3, 0))[0].success.any()
    # Demonstrations that all count as successful end in success, wherever they are cut.
    all_ = imported(source, tmp_path / "all", **{**more, "success": "all"}, cut=(1, 3))[0]
    assert all_.success.tolist() == [False] * 3 + [True]


@pytest.mark.parametrize("delay", [-1, 2])
def test_the_shift_that_the_diagnosis_names_mends_the_lag(tmp_path, delay):
    takes = []
    for number in range(6):
        rng = np.random.default_rng(number)
        motion = np.repeat(rng.normal(size=(20, 3)), 3, 0)[:60].astype(np.float32) + rng.normal(
            0, 0.2, (60, 3)
        )
        state = np.concatenate([np.zeros((1, 3)), np.cumsum(motion, 0)[:-1]]).astype(np.float32)
        # `motion[t]` leads from row t to t+1, and row t of the recording has that of row t + delay.
        actions = np.roll(motion, -delay, 0).astype(np.float32)
        one = take(number, 60)
        takes.append(replace(one, actions=actions, state=np.concatenate([state, state[:, :1]], 1)))
    source = write_lerobot(tmp_path / "a", takes)
    for file in (source / "data").iterdir():
        assert pq.read_table(file).num_rows == 60
    imported(source, tmp_path / "late", camera=("top",), image_size=("16",), success="none")
    named = [
        text
        for text in check(tmp_path / "late", diagnosis=True).diagnosis["remarks"]
        if "--action-shift" in text
    ]
    assert named and all(f"--action-shift {delay} " in text for text in named)
    imported(
        source, tmp_path / "mended", camera=("top",), image_size=("16",), success="none", action_shift=delay
    )
    assert not [
        text
        for text in check(tmp_path / "mended", diagnosis=True).diagnosis["remarks"]
        if "--action-shift" in text
    ]


def test_what_cannot_be_cut_is_refused(tmp_path, capsys):
    source = write_lerobot(tmp_path / "a", [take(0, 5), take(1, 9)])
    common = {"camera": ("top",), "image_size": ("16",)}
    with pytest.raises(DatasetError, match=r"5 rows; with --cut.*fewer than two are left.*--skip 0"):
        imported(source, tmp_path / "b", **common, cut=(2, 2))
    assert len(imported(source, tmp_path / "b", **common, cut=(2, 2), skip_bad=True)) == 1
    for wrong in ({"cut": (-1, 0)}, {"cut": (1.5, 0)}, {"action_shift": 0.5}):
        with pytest.raises(ConfigError, match="expected"):
            imported(source, tmp_path / "c", **common, **wrong)
    assert main(["import", "--source", str(source), "--out", str(tmp_path / "d"), "--camera", "top", "--image-size",
                 "16", "--cut", "1", "0", "--action-shift", "-1"]) == 0  # fmt: skip
