"""Commands on the parts of `foreign_arm`."""

from __future__ import annotations

from pathlib import Path

from experiments.cli import main


def run(*words: object) -> None:
    """A command that ends with exit code 0."""
    assert main([str(word) for word in words]) == 0, words


def build_bundle(root: Path) -> dict[str, Path]:
    """World model, judge and policy of the package after a few steps, and the bundle of them."""
    parts = {name: root / name for name in ("data", "world_model", "judge", "policy", "bundle")}
    few = ("--data", parts["data"], "--steps", 3, "--batch-size", 4)
    run("collect", "--suite", "foreign_arm", "--out", parts["data"], "--episodes", 12, "--workers", 0)
    run("train", "world-model", "--type", "foreign_states", "--out", parts["world_model"], *few)
    run("train", "judge", "--type", "foreign_video", "--out", parts["judge"], *few)
    run(
        "train", "policy", "--type", "foreign_flow", "--data", parts["data"], "--out", parts["policy"], "--epochs", 2,
        "--finish-steps", 2, "--batch-size", 8,
    )  # fmt: skip
    run(
        "bundle", "--data", parts["data"], "--world-model", parts["world_model"] / "export", "--judge", parts["judge"],
        "--policy", parts["policy"], "--out", parts["bundle"], "--starts", 40, "--demos-per-task", 4,
    )  # fmt: skip
    return parts
