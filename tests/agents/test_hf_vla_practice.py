"""A tiny vision-language model learns to reach from demonstrations, then by GRPO in imagination (20 minutes)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.cli import main

pytest.importorskip("transformers")


@pytest.mark.slow
def test_practice_in_imagination_raises_success_in_real(tmp_path: Path) -> None:
    demos, sft, practised, out = (str(tmp_path / name) for name in ("demos", "sft", "practised", "eval.json"))
    collect = ["--tasks", "reach", "--episodes", "1500", "--mix", "expert=1", "--seed", "20000"]
    assert main(["collect", *collect, "--out", demos]) == 0
    train = ["--demos-per-task", "1499", "--settings", "head=parallel", "prompt='{instruction}:'", "--epochs", "12"]
    train += ["--finish-steps", "60", "--batch-size", "64", "--lr", "1e-3", "--patience", "0"]
    assert main(["train", "policy", "--type", "hf_vla", "--preset", "tiny", "--data", demos, *train, "--out", sft]) == 0
    rl = ["--learn", "all", "--train-tasks", "reach", "--temperature", "1", "--lr", "3e-4", "--iterations", "30"]
    rl += ["--starts", "48", "--imitation-steps", "0", "--updates", "4"]
    assert main(["rl", "--policy", sft, *rl, "--out", practised]) == 0
    policies = [sft, f"{practised}/policy"]
    measure = ["--tasks", "reach", "--episodes", "200", "--start-seed", "17700000", "--out", out]
    assert main(["eval", "--policy", *policies, *measure]) == 0
    difference = json.loads(Path(out).read_text())["differences"][0]
    assert difference["episodes"] == 200 and difference["low"] > 0, difference
