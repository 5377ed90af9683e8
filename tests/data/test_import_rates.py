"""Imports at another rate: which rows are kept, how their actions are joined."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_import_fields import change_rows
from test_imports import FPS, make

from worldgym.data import EpisodeDataset
from worldgym.data.formats.lerobot_import import ImportSettings, import_lerobot
from worldgym.data.formats.resampling import Rules, keep_rows, resampled
from worldgym.errors import ConfigError, DatasetError


@given(ratio=st.integers(2, 5), rows=st.integers(12, 40), seed=st.integers(0, 1000))
def test_joined_actions_keep_targets_motions_and_rates(ratio, rows, seed):
    rng = np.random.default_rng(seed)
    times = np.arange(rows) / 10 + rng.uniform(-0.02, 0.02, rows)
    times -= times[0]
    actions = rng.normal(size=(rows - 1, 3)).astype(np.float32)
    kept = keep_rows(times, 10 / ratio, "here")
    joined = resampled(actions, kept, Rules.parse(("delta", "a=absolute", "c=rate"), ("a", "b", "c")))
    assert len(joined) == len(kept) - 1 and np.abs(np.diff(times[kept]) - ratio / 10).max() < 0.1
    for j, (a, b) in enumerate(zip(kept, kept[1:], strict=False)):
        expected = [actions[b - 1, 0], actions[a:b, 1].sum(), actions[a:b, 2].mean()]
        np.testing.assert_allclose(joined[j], expected, rtol=1e-5, atol=1e-5)


def test_rates_that_the_rows_do_not_give_are_refused():
    with pytest.raises(DatasetError, match="is higher, and missing rows cannot be made up"):
        keep_rows(np.arange(10) / 10, 20, "here")
    with pytest.raises(DatasetError, match="a gap in the recording"):
        keep_rows(np.array([0, 0.1, 0.2, 0.3, 2.0, 2.1]), 5, "here")
    for bad in (("sideways",), ("x=delta",), ("a=delta",)):
        with pytest.raises(ConfigError, match="--actions"):
            Rules.parse(bad, ("a", "b"))


def test_a_resampled_import_says_its_rate_and_loses_no_success(tmp_path):
    root = make(tmp_path / "x", "v2.1", lengths=(9, 11), filmed=False, success=False)
    for e, n in ((0, 9), (1, 11)):
        change_rows(root, e, next__success=[t == 2 for t in range(n)], timestamp=[t / FPS for t in range(n)])
    settings = ImportSettings(image_size=16, fps=5.0, actions=("delta",))
    report = import_lerobot(root, tmp_path / "out", settings)
    ours = EpisodeDataset(tmp_path / "out")
    assert report["hz"] == ours.action_spec.hz == 5.0 and [e.length for e in ours] == [4, 5]
    assert ours[0].success.tolist() == [False, False, True, False, False] and report["successes"] == 2
    assert ours[1].state[:, 1].tolist() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
