"""Tiny vision-language policies learn to reach from demonstrations, and improve by GRPO in the bundled imagination."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers", reason="needs the extra `vla`")

from experiments.cli import main

HEADS = ("parallel", "tokens", "fast", "l1", "flow")


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reach") / "data"
    collected = ["collect", "--out", str(folder), "--tasks", "reach", "--episodes", "400", "--seed", "5000"]
    assert main([*collected, "--mix", "expert=1"]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_practice_in_imagination_improves_the_policy_in_real(demonstrations, tmp_path, head):
    sft, rl = tmp_path / "sft", tmp_path / "rl"
    trained = ["train", "policy", "--type", "hf_vla", "--preset", "tiny", "--data", str(demonstrations)]
    settings = ["--settings", f"head={head}", "prompt={instruction}:", "--epochs", "25", "--lr", "2e-3"]
    assert main([*trained, *settings, "--patience", "0", "--out", str(sft)]) == 0
    practised = ["rl", "--policy", str(sft), "--learn", "all", "--train-tasks", "reach", "--lr", "3e-4"]
    assert main([*practised, "--iterations", "12", "--starts", "32", "--out", str(rl)]) == 0
    out = tmp_path / "eval.json"
    measured = ["eval", "--policy", str(sft), str(rl / "policy"), "--tasks", "reach", "--episodes", "200"]
    assert main([*measured, "--temperature", "1", "--out", str(out)]) == 0
    (difference,) = json.loads(out.read_text())["differences"]
    assert difference["low"] > 0, difference
