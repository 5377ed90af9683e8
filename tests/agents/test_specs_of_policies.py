"""Policies for other data formats: several cameras, frames that are not square, roles in other columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import VLAPolicy, VLAPolicyConfig
from agents.algorithms.self_imitation import join
from agents.data.demonstrations import HandColumns, chunk_dataset, keyframes
from worldgym.errors import ConfigError
from worldgym.specs import ActionSpec, Camera, GripperRule, ObservationSpec, Specs, StateField

NAMES = tuple(f"a{i}" for i in range(7))
ACTIONS = ActionSpec(NAMES, ("m",) * 7, 5.0, (-1.0,) * 7, (1.0,) * 7, GripperRule(0))
STATE = (
    StateField("grip", "gripper"), *(StateField(f"q{i}", "joint") for i in range(5)),
    *(StateField(name, "ee_position", "m") for name in "xyz"),
)  # fmt: skip
CAMERAS = (Camera("front", 36, 52), Camera("wrist", 24, 20, static=False))
SPECS = Specs(ObservationSpec(CAMERAS, STATE), ACTIONS)


def policy(specs: Specs = SPECS, **settings: Any) -> VLAPolicy:
    torch.manual_seed(0)
    return VLAPolicy(VLAPolicyConfig.for_data("tiny", specs, **settings)).eval()


def observation(count: int, specs: Specs = SPECS, seed: int = 0) -> dict[str, Any]:
    generator, seen = torch.Generator().manual_seed(seed), specs.observation
    frames = {
        seen.camera_keys[camera.name]: torch.randint(
            0, 256, (count, *camera.size, 3), dtype=torch.uint8, generator=generator
        )
        for camera in seen.cameras
    }
    return {
        **frames,
        "state": torch.randn(count, seen.state_dim, generator=generator),
        "instruction": ["go"] * count,
    }


@settings(deadline=None, max_examples=12)
@given(
    sizes=st.lists(st.tuples(st.integers(16, 70), st.integers(16, 70)), min_size=1, max_size=3),
    head=st.sampled_from(["bins", "flow"]),
)
def test_any_cameras_of_any_sizes_are_read(sizes: list[tuple[int, int]], head: str) -> None:
    cameras = tuple(Camera(f"c{i}", *size) for i, size in enumerate(sizes))
    specs = Specs(ObservationSpec(cameras, STATE), ACTIONS)
    made = policy(specs, head=head)
    seen = observation(3, specs)
    out = made.act(seen, generator=torch.Generator().manual_seed(0))
    assert out.actions.shape == (3, 5, 7)
    now = made.evaluate(seen, out.trace)
    assert all(torch.isfinite(value).all() for value in now.log_probs.values())


def test_what_each_camera_shows_changes_the_actions() -> None:
    made, seen = policy(), observation(4)
    before = made.run(seen).features
    for key in ("image", "image_wrist"):
        changed = {**seen, key: 255 - seen[key]}
        assert not torch.allclose(made.run(changed).features, before)
    made.run(seen).features.sum().backward()
    assert made.view_positions["wrist"].grad.abs().sum() > 0


def test_a_missing_or_wrong_camera_is_named() -> None:
    made, seen = policy(), observation(2)
    with pytest.raises(ConfigError, match="lacks 'image_wrist'.*wrist 24x20"):
        made.act({k: v for k, v in seen.items() if k != "image_wrist"})
    with pytest.raises(ConfigError, match=r"image_wrist must be \(B, 24, 20, 3\)"):
        made.act({**seen, "image_wrist": seen["image_wrist"].transpose(1, 2)})


def test_a_policy_returns_from_disk_with_its_specs(tmp_path: Path) -> None:
    made, seen = policy(), observation(2)
    made.save_pretrained(tmp_path / "policy")
    read = VLAPolicy.from_pretrained(str(tmp_path / "policy")).eval()
    assert read.specs == SPECS and read.config == made.config
    assert torch.equal(read.act(seen, temperature=0).actions, made.act(seen, temperature=0).actions)


def test_goals_are_predicted_for_the_columns_of_the_position() -> None:
    made = policy()
    assert made.config.position == (6, 7, 8) and made.components == ("action", "goal")
    out = made.act(observation(2), temperature=0)
    made.state_mean[6:8] = torch.tensor([10.0, 20.0])
    goal = made.targets_of({"aim": torch.zeros_like(out.trace["aim"])})["goal"]
    assert np.allclose(goal, [[10, 20]] * 2)


def test_without_a_position_no_goal_is_predicted() -> None:
    specs = Specs(ObservationSpec(CAMERAS, STATE[:6]), ACTIONS)
    made = policy(specs)
    assert made.components == ("action",)
    with pytest.raises(ConfigError, match="0 state fields of the role ee_position"):
        policy(specs, goal_dims=3)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), order=st.permutations(range(4)), grip=st.integers(0, 3))
def test_keyframes_do_not_depend_on_the_order_of_columns(seed: int, order: list[int], grip: int) -> None:
    rng = np.random.default_rng(seed)
    states = np.cumsum(rng.normal(0, 0.02, (13, 4)), 0)
    actions = rng.uniform(-1, 1, (12, 4))
    usual = keyframes(states, actions, 12)
    moved = np.insert(actions[:, :3], grip, actions[:, 3], axis=1)
    place = HandColumns(height=order.index(2), gripper=grip)
    assert np.array_equal(keyframes(states[:, order], moved, 12, place), usual)


def test_columns_of_the_hand_come_from_the_roles() -> None:
    assert HandColumns.of(SPECS) == HandColumns(height=8, gripper=0)
    assert HandColumns.of(Specs(SPECS.observation)) is None


class Demo:
    """Three steps with two cameras and without success labels."""

    def __init__(self, seed: int, actions: bool = True) -> None:
        rng = np.random.default_rng(seed)
        self.frames = rng.integers(0, 256, (4, 36, 52, 3), dtype=np.uint8)
        self.views = {"wrist": rng.integers(0, 256, (4, 24, 20, 3), dtype=np.uint8)}
        self.actions = rng.uniform(-1, 1, (3, 7)).astype(np.float32) if actions else None
        self.state = rng.normal(size=(4, 9)).astype(np.float32)
        self.success, self.instruction = None, "go"


def test_demonstrations_keep_their_cameras_and_train_a_policy() -> None:
    demos = chunk_dataset([Demo(0), Demo(1, actions=False), Demo(2)], hand=HandColumns.of(SPECS))
    assert len(demos) == 6 and demos.views["wrist"].shape == (6, 24, 20, 3)
    assert np.array_equal(demos.views["wrist"][4], Demo(2).views["wrist"][1])
    twice = join(demos, demos.select(np.array([1])))
    assert np.array_equal(twice.views["wrist"][6], demos.views["wrist"][1])
    made = policy().train()
    made.set_state_stats(demos.states)
    losses = made.loss(demos.chunk_batch(np.arange(6)))
    assert set(losses) == {"action", "goal"} and all(torch.isfinite(loss) for loss in losses.values())


def test_chunks_of_other_cameras_are_not_joined() -> None:
    one = chunk_dataset([Demo(0)], hand=None)
    other = Demo(1)
    other.views = {}
    with pytest.raises(ValueError, match="wrist"):
        join(one, chunk_dataset([other], hand=None))
