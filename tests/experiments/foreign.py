"""Small random datasets of any shape, and the chain of trainers on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.cli import main
from worldgym.data import DatasetWriter, Episode, SplitManifest
from worldgym.specs import ActionSpec, Camera, ObservationSpec, Specs, state_fields

SENTENCES = (
    "抓住红色的方块，然后放进盒子里",
    "Pick up the cube (red) and place it in box #2; then stop: it_is done!",
    "go " * 60,
    "x",
)


def write(
    out: Path,
    actions: int,
    state: int,
    *,
    episodes: int = 3,
    steps: int = 6,
    size: int = 32,
    sentences: tuple[str, ...] = SENTENCES,
    labels: bool = True,
    seed: int = 0,
    behaviour: str = "imported",
) -> Path:
    """A dataset of `episodes` with `actions` and `state` dimensions; every other one succeeds where `labels`."""
    rng = np.random.default_rng(seed)
    names = tuple(f"joint_{i}" for i in range(actions))
    spec = ActionSpec(names, ("rad",) * actions, 10.0, (-2.0,) * actions, (2.0,) * actions)
    seen = ObservationSpec((Camera("front", size, size),), state_fields([f"state_{i}" for i in range(state)]))
    with DatasetWriter(out, Specs(seen, spec), SplitManifest(name="foreign", rules={})) as writer:
        for number in range(episodes):
            success = np.zeros(steps + 1, bool)
            success[-2:] = labels and number % 2 == 0
            writer.append(
                Episode(
                    frames=rng.integers(0, 256, (steps + 1, size, size, 3), dtype=np.uint8),
                    actions=rng.uniform(-1, 1, (steps, actions)).astype(np.float32),
                    state=(90 * rng.normal(size=(steps + 1, state))).astype(np.float32),
                    instruction=sentences[number % len(sentences)],
                    success=success,
                    progress=np.zeros(steps + 1, np.float32),
                    domain="real",
                    split="seen",
                    task="imported",
                    provenance={"behaviour": behaviour, "episode": number},
                )
            )
    return out


def trained(root: Path, data: Path, *more: str, judge: bool = True) -> dict[str, Path]:
    """Tokenizer, world model, judge and policy of `data`, a few steps each."""
    parts = {name: root / name for name in ("tokenizer", "world_model", "judge", "policy")}
    commands: list[list[Any]] = [
        ["tokenizer", "--out", parts["tokenizer"], "--steps", "2", "--batch-size", "4"],
        ["world-model", "--tokenizer", parts["tokenizer"], "--out", parts["world_model"]]
        + ["--steps", "2", "--batch-size", "2", "--window", "3", "--shift-steps", "1"],
        [
            "policy",
            "--out",
            parts["policy"],
            "--epochs",
            "1",
            "--batch-size",
            "8",
            "--finish-steps",
            "1",
            *more,
        ],
    ]
    if judge:
        commands.append(
            [
                "judge",
                "--world-model",
                parts["world_model"] / "export",
                "--out",
                parts["judge"],
                "--steps",
                "2",
            ]
            + ["--batch-size", "4"]
        )
    for words in commands:
        line = ["train", *words, "--data", data, "--preset", "tiny"]
        assert main([str(word) for word in line]) == 0, words
    return parts


def few_pairs(monkeypatch: Any) -> None:
    """Judges are measured on a few pairs: what takes seconds here is measuring."""
    import functools

    import rewards

    monkeypatch.setattr(
        rewards, "JudgeTrainConfig", functools.partial(rewards.JudgeTrainConfig, val_pairs=20)
    )
