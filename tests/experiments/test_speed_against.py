"""Two builds of the project are measured in turns."""

from __future__ import annotations

import subprocess

import pytest

from experiments.pipelines.speed_against import ROOT, against
from worldgym.errors import ConfigError


def in_a_repository() -> bool:
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True).returncode == 0


needs_git = pytest.mark.skipif(not in_a_repository(), reason="the checkout is no git repository")


@pytest.mark.slow
@needs_git
def test_a_build_against_itself_gives_rates_and_ratios(bundle):
    facts = against("HEAD", str(bundle), threads=1, rounds=1, seconds=0.01, earlier_bundle=str(bundle))
    assert set(facts["ratios"]) == {"last_frame", "all_frames", "no_frame", "rl", "batch_1"}
    assert all(rate > 0 for pair in facts["steps_per_second"].values() for rate in pair.values())
    left = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True).stdout
    assert "/earlier" not in left


@needs_git
def test_an_unknown_commit_is_an_error_that_says_so():
    with pytest.raises(ConfigError, match="commit nowhere cannot be checked out"):
        against("nowhere", "tabletop-small", threads=1, rounds=1, seconds=0.01)
