"""recipes/recordings.yaml, from recordings to an imagined environment, everything in it small."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from recordings import WRITERS, options, shared_data, take

from experiments.cli import main
from worldgym.pretrained import read_card

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = ["--hours", "0.0005", "--set", "preset=tiny", "start=null", "augment=1"]


def built(recipe: Path, source: Path, out: Path, *values: str) -> dict:
    """Build, step the environment of the bundle, and return the measured fidelity."""
    assert main(["build", str(recipe), "--out", str(out), *SMALL, f"source={source}", *values]) == 0
    env = gym.make("worldgym/Imagined-v0", checkpoint=str(out / "bundle"), reward=None, horizon=6)
    observation, _ = env.reset(seed=0)
    assert observation["image"].dtype == np.uint8 and observation in env.observation_space
    observation, reward, *_ = env.step(env.action_space.sample())
    assert reward == 0 and observation in env.observation_space
    env.close()
    card = read_card(out / "bundle")
    assert "suite" not in card and (out / "left_out.png").is_file() and (out / "bundle" / "README.md").is_file()
    return json.loads((out / "fidelity.json").read_text())


def values(kind: str) -> list[str]:
    given = {key: value for key, value in options(kind).items() if key in ("recorded_fps", "state_key", "mapping")}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    return ["camera=" + options(kind)["camera"][0], *(f"{key}={json.dumps(value)}" for key, value in plain.items())]


@pytest.mark.usefixtures("stages_in_this_process")
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "zarr 2" else [pytest.mark.slow]) for kind in WRITERS]
)
def test_recordings_become_an_environment_that_starts_from_episodes_left_out(tmp_path, kind):
    source = WRITERS[kind](tmp_path, [take(number, 12) for number in range(4)])
    facts = built(
        RECIPES / "recordings.yaml", source, tmp_path / "out", "image_size=32", "train=2", "length=8", "success=none",
        *values(kind),
    )  # fmt: skip
    row = facts["folds"][0]
    assert row["left_out_episodes"] == [2, 3] and row["left_out"]["episodes"] == 2
    assert set(row["left_out"]["psnr"]) == {"model", "first_frame", "shuffled_actions", "tokenizer"}
    assert -1 < row["left_out"]["action_sensitivity"]["mean"] < 1


@pytest.mark.slow
@pytest.mark.usefixtures("stages_in_this_process")
@pytest.mark.parametrize(
    ("name", "folder", "more"),
    [
        ("g1_bottle", "g1_bottle", ["episodes=0-12", "train=8"]),
        ("cr5_banana", "cr5_banana", ["episodes=0-12", "train=8"]),
        ("cr5_usb", "cr5_usb", ["episodes=0-12", "train=8"]),
        ("droid_new_setup", "droid_ctrlworld/droid_new_setup", []),
        ("bridge_octo", "bridge_octo_debug", []),
        ("bridge_v2", "bridge_v2", []),
    ],
)
def test_the_recipes_of_real_recordings_fit_them(tmp_path, name, folder, more):
    source = shared_data(folder)
    facts = built(RECIPES / "recordings" / f"{name}.yaml", source, tmp_path / "out", "image_size=32", *more)
    assert facts["folds"][0]["left_out"]["windows"] > 0
