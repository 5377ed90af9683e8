"""The bundled checkpoint of Meta-World: found by its suite, small, complete; imagination without the simulator."""

from __future__ import annotations

import json
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

import worldgym  # noqa: F401  (registers the ids)
from experiments.bundle import Bundle
from experiments.cli import main
from worldgym import pretrained

CARD = pretrained.card("metaworld-small")


def test_it_is_found_by_its_suite_and_is_at_most_25_megabytes():
    assert pretrained.path("metaworld") == pretrained.path("metaworld-small")
    assert CARD.megabytes <= 25 and len(CARD.tasks) >= 8
    assert not set(CARD.tasks) & set(CARD.tasks_thin)
    text = (pretrained.path("metaworld") / "README.md").read_text()
    assert all(task in text for task in (*CARD.tasks, *CARD.tasks_thin)) and "| **all** |" in text


@pytest.mark.parametrize("task", CARD.tasks)
def test_every_task_has_an_imagined_episode_with_a_reward(task):
    env = gym.make("worldgym/ImaginedMetaWorld-v0", task=task, chunk=5)
    observation, info = env.reset(seed=3)
    assert info["task"] == task and observation in env.observation_space
    for _ in range(2):
        observation, reward, _, _, info = env.step(np.zeros(env.action_space.shape, np.float32))
    assert observation in env.observation_space and 0 <= info["p_success"] <= 1 and reward in (0, 1)
    env.close()


def test_imagination_does_not_import_the_simulator():
    code = (
        "import sys, gymnasium as gym, worldgym; env = gym.make('worldgym/ImaginedMetaWorld-v0', task='reach'); "
        "env.reset(seed=0); env.step(env.action_space.sample()); assert not {'metaworld', 'mujoco'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_parts_that_are_not_stored_twice_are_found():
    bundle = Bundle.find("metaworld")
    assert not (bundle.folder / "probe").exists() and bundle.probe().config.parts
    assert len(bundle.demonstrations()) > 1000 and bundle.card["rollout_horizon"] == 30


def test_the_demo_and_the_gate_run_on_it(tmp_path):
    pytest.importorskip("metaworld", reason="pip install 'worldgym[metaworld]'")
    tasks = ["--tasks", "drawer_open", "reach"]
    assert main(["demo", "--world", "metaworld", "--quick", "--out", str(tmp_path / "demo"), *tasks]) == 0
    assert (tmp_path / "demo" / "report.html").is_file()
    gate = ["bench", "closed-loop", "--world", "metaworld", "--policies", "sft", "--episodes", "4", *tasks]
    assert main([*gate, "--json", str(tmp_path / "gate.json")]) in (0, 1)
    facts = json.loads((tmp_path / "gate.json").read_text())
    assert facts["all"]["episodes"] == 4 and set(facts["by_task"]) == {"drawer_open", "reach"}
