"""A dataset of any shape trains every part and becomes an environment; nothing assumes the tabletop's columns."""

from __future__ import annotations

import tempfile
from pathlib import Path

import foreign
import gymnasium as gym
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agents import VLAPolicy
from experiments.cli import main
from worldgym.data import EpisodeDataset
from worldgym.models import load_world_model


@pytest.fixture(autouse=True)
def _few_pairs(monkeypatch):
    foreign.few_pairs(monkeypatch)


def imagine(parts: dict[str, Path], data: Path) -> None:
    """One episode in the trained world model, acted by the trained policy."""
    env = gym.make(
        "worldgym/Imagined-v0",
        world_model=str(parts["world_model"] / "export"),
        starts=str(data),
        horizon=5,
    )
    policy = VLAPolicy.from_pretrained(parts["policy"])
    seen, _ = env.reset(seed=0)
    assert env.observation_space.contains(seen)
    batch = {"image": seen["image"][None], "instruction": [seen["instruction"]]}
    if "state" in seen:
        batch["state"] = seen["state"][None]
    for action in policy.act(batch, temperature=0).actions[0].numpy():
        seen, _, _, truncated, _ = env.step(action)
    assert truncated and env.observation_space.contains(seen)
    env.close()


@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.integers(1, 26), st.integers(0, 26), st.sampled_from([24, 32, 40]), st.integers(0, 9))
@example(2, 2, 32, 0)
@example(7, 0, 32, 1)
@example(14, 14, 32, 2)
def test_any_shape_trains_and_is_imagined(actions, state, size, seed):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = foreign.write(root / "data", actions, state, size=size, seed=seed, episodes=4)
        parts = foreign.trained(root, data, judge=state == 0)
        model = load_world_model(parts["world_model"] / "export")
        assert (model.action_dim, model.state_dim) == (actions, state)
        shape = model.config.dynamics
        assert shape.motion is None
        assert VLAPolicy.from_pretrained(parts["policy"]).config.goal_dims == 0
        imagine(parts, data)


@pytest.mark.parametrize(("actions", "state"), [(1, 0), (2, 2)])
def test_recordings_without_labels_train_a_policy_and_are_imagined(tmp_path, capsys, actions, state):
    data = foreign.write(tmp_path / "data", actions, state, labels=False)
    plain = ["train", "policy", "--data", str(data), "--out", str(tmp_path / "p"), "--preset", "tiny"]
    assert main(plain) == 2
    said = capsys.readouterr().err
    assert "imported (3 episodes, 0 successful)" in said
    assert "--behaviour imported --no-success-only" in said and "--success all" in said
    parts = foreign.trained(tmp_path, data, "--behaviour", "imported", "--no-success-only", judge=False)
    imagine(parts, data)
    judge = ["train", "judge", "--data", str(data), "--out", str(tmp_path / "j"), "--preset", "tiny"]
    assert main(judge) == 2
    assert "none of 21 frames is labelled as success" in capsys.readouterr().err


def test_one_episode_is_trained_on_and_nothing_is_held_out(tmp_path, caplog):
    data = foreign.write(tmp_path / "data", 2, 2, episodes=1)
    with caplog.at_level("WARNING"):
        parts = foreign.trained(tmp_path, data, judge=False)
    assert caplog.text.count("no episode is held out") == 2
    imagine(parts, data)


def test_one_episode_is_too_few_for_a_judge(tmp_path, capsys):
    data = foreign.write(tmp_path / "data", 2, 2, episodes=1)
    assert (
        main(["train", "judge", "--data", str(data), "--out", str(tmp_path / "j"), "--preset", "tiny"]) == 2
    )
    assert "at least 2" in capsys.readouterr().err


def test_a_hand_is_known_by_its_roles_or_by_word(tmp_path):
    from experiments.pipelines.training_run import with_hand
    from worldgym.data.formats.bridge import bridge_specs
    from worldgym.errors import ConfigError

    other = EpisodeDataset(foreign.write(tmp_path / "data", 4, 4)).specs
    assert bridge_specs().observation.has_hand and not other.observation.has_hand
    assert with_hand(other) == other
    by_word = with_hand(other, "yes")
    assert by_word.observation.columns("gripper") == (3,) and by_word.action.gripper.index == 3
    assert not with_hand(bridge_specs(), "no").observation.has_hand
    with pytest.raises(ConfigError, match="--hand no"):
        with_hand(EpisodeDataset(foreign.write(tmp_path / "three", 4, 3)).specs, "yes")


def test_a_hand_by_word_gets_the_tabletops_features(tmp_path):
    data = foreign.write(tmp_path / "data", 5, 5)
    tokenizer = [
        "train",
        "tokenizer",
        "--data",
        str(data),
        "--preset",
        "tiny",
        "--steps",
        "1",
        "--batch-size",
        "2",
    ]
    assert main([*tokenizer, "--out", str(tmp_path / "t")]) == 0
    line = ["train", "world-model", "--data", str(data), "--tokenizer", str(tmp_path / "t"), "--hand", "yes"]
    line += ["--steps", "1", "--shift-steps", "1", "--batch-size", "2", "--window", "2", "--preset", "tiny"]
    assert main([*line, "--out", str(tmp_path / "w")]) == 0
    shape = load_world_model(tmp_path / "w" / "export").config.dynamics
    assert shape.motion is not None and shape.motion.warp_anchor and shape.motion.contact_height is not None


def test_actions_after_the_end_are_unknown_and_not_learned(tmp_path):
    from agents import chunk_dataset
    from agents.data.demonstrations import episode_views

    arrays = EpisodeDataset(foreign.write(tmp_path / "data", 3, 0, steps=4)).load_arrays()
    demos = chunk_dataset(episode_views(arrays), 5, hand=False, stop_at_success=False)
    assert np.isnan(demos.actions[0, 4:]).all() and not np.isnan(demos.actions[0, :4]).any()
    assert demos.states.shape == (12, 0) and demos.goals.shape == (12, 0)


@pytest.mark.parametrize(
    ("behaviours", "wanted", "found"),
    [
        (["imported"] * 2, None, "imported"), (["expert", "noisy"], None, "expert"),
        (["imported", "noisy"], None, "expert"), (["imported", "noisy"], "noisy", "noisy"),
    ],
)  # fmt: skip
def test_demonstrations_are_those_of_the_only_behaviour(behaviours, wanted, found):
    from types import SimpleNamespace

    from agents.data.demonstrations import demonstrated_behaviour

    assert demonstrated_behaviour(SimpleNamespace(behaviours=behaviours), wanted) == found


@settings(max_examples=10, deadline=None)
@given(st.lists(st.sampled_from(["expert", "imported", "noisy"]), min_size=1, max_size=6), st.booleans())
def test_the_remedy_for_missing_demonstrations_names_a_behaviour_that_is_there(behaviours, solved):
    from types import SimpleNamespace

    from agents.data.demonstrations import demonstrations
    from worldgym.errors import DatasetError

    count = len(behaviours)
    arrays = SimpleNamespace(
        behaviours=behaviours, success=np.full(count, solved), tasks=["t"] * count,
        instructions=["x"] * count, frames=np.zeros((count, 1)), actions=np.zeros((count, 1)),
        states=np.zeros((count, 1)), rows=lambda i: slice(i, i + 1), has_action=np.ones(count, bool), views={},
    )  # fmt: skip
    arrays = type("Arrays", (SimpleNamespace,), {"__len__": lambda self: count})(**vars(arrays))
    with pytest.raises(DatasetError, match="--behaviour (expert|imported|noisy)") as error:
        demonstrations(arrays, behaviour="nobody")
    named = str(error.value).split("--behaviour ")[1].split()[0]
    assert named in behaviours and ("--no-success-only" in str(error.value)) is not solved
