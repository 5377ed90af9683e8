"""A few episodes against a faulty endpoint: invalid or scored, in time, without the key."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("openai", reason="needs the extra `http`")


def test_every_fault_makes_the_episode_invalid_and_every_score_counts(tmp_path):
    from tests.campaign import judge_endpoint

    out = tmp_path / "cases.jsonl"
    assert judge_endpoint.main(["--quick", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["fault"] for row in rows} == {*judge_endpoint.GOOD, *judge_endpoint.BAD}
