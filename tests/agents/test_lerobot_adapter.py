"""A LeRobot policy behind worldgym's protocol: the calls that LeRobot's own policy server makes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from agents.policies.lerobot_adapter import LeRobotAdapter, load_lerobot
from worldgym.errors import CheckpointError, ConfigError, DependencyError
from worldgym.protocols import Policy
from worldgym.specs import ActionSpec, Camera, ObservationSpec, Specs, state_fields

BATCH = {
    "image": torch.full((2, 8, 8, 3), 51, dtype=torch.uint8),
    "image_wrist": torch.full((2, 6, 6, 3), 255, dtype=torch.uint8),
    "state": torch.tensor([[0.5, -0.5], [0.1, 0.2]]),
    "instruction": ["open the lid", "close the lid"],
}


class Contract:
    """Follows the public source of LeRobot 0.6: what `PreTrainedPolicy` promises and its policy server calls."""

    def __init__(
        self, steps: int = 4, pictures=("observation.images.top", "observation.images.wrist"), observations=1
    ):
        self.config = SimpleNamespace(
            n_action_steps=steps, n_obs_steps=observations,
            input_features={**dict.fromkeys(pictures), "observation.state": None},
        )  # fmt: skip
        self.seen: list[dict] = []
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    @torch.no_grad()
    def predict_action_chunk(self, batch):
        self.seen.append(batch)
        return batch["observation.state"][:, None].repeat(1, 6, 1)


def test_the_batch_is_in_the_format_of_lerobot_and_the_chunk_is_that_of_its_config():
    lerobot = Contract()
    policy = LeRobotAdapter(lerobot)
    assert isinstance(policy, Policy) and policy.chunk == 4
    output = policy.act(BATCH, temperature=0.0)
    assert output.actions.shape == (2, 4, 2) and torch.equal(output.actions[:, 0], BATCH["state"])
    (batch,) = lerobot.seen
    assert set(batch) == {"observation.images.top", "observation.images.wrist", "observation.state", "task"}
    top = batch["observation.images.top"]
    assert top.shape == (2, 3, 8, 8) and top.dtype == torch.float32 and torch.allclose(top, torch.tensor(0.2))
    assert batch["observation.images.wrist"].max() == 1.0 and batch["task"] == BATCH["instruction"]
    assert lerobot.resets == 1


def test_processors_are_called_as_by_lerobots_policy_server():
    lerobot, calls = Contract(), []

    def after(action):
        calls.append(action.shape)
        return 0.5 * action

    policy = LeRobotAdapter(lerobot, preprocessor=lambda batch: {**batch, "tokens": 1}, postprocessor=after)
    actions = policy.act(BATCH, temperature=0.0).actions
    assert lerobot.seen[0]["tokens"] == 1 and calls == [(2, 2)] * 4  # one action of all rows at a time
    assert torch.allclose(actions[:, 0], 0.5 * BATCH["state"])


def test_cameras_are_paired_by_name_and_units_are_normalised():
    spec = ActionSpec(("x", "y"), ("m", "m"), 5.0, (0.0, -1.0), (1.0, 1.0))
    specs = Specs(ObservationSpec((Camera("front", 8, 8),), state_fields(["x", "y"])), spec)
    lerobot = Contract(pictures=("observation.images.top",))
    policy = LeRobotAdapter(
        lerobot, chunk=1, cameras={"image_wrist": "observation.images.top"}, actions="units", specs=specs
    )
    actions = policy.act(BATCH, temperature=0.0).actions
    assert lerobot.seen[0]["observation.images.top"].shape == (2, 3, 6, 6)
    np.testing.assert_allclose(actions[:, 0].numpy(), spec.normalise(BATCH["state"].numpy()), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LeRobotAdapter(object()), "expected a LeRobot policy"),
        (lambda: LeRobotAdapter(Contract(observations=2)), "reads 2 observations"),
        (lambda: LeRobotAdapter(Contract(), actions="units"), "with specs="),
        (lambda: LeRobotAdapter(Contract(), chunk=9).act(BATCH), r"K >= 9. Give a smaller chunk"),
        (
            lambda: LeRobotAdapter(Contract(pictures=[f"observation.images.{x}" for x in "abc"])).act(BATCH),
            "Name the pairs with cameras=",
        ),
        (lambda: LeRobotAdapter(Contract(), cameras={"image_left": "x"}).act(BATCH), "names image_left, which the"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_a_folder_needs_a_config_and_lerobot(tmp_path):
    with pytest.raises(CheckpointError, match="has no config.json"):
        load_lerobot(f"lerobot:{tmp_path}")
    (tmp_path / "config.json").write_text("{}")
    try:
        import lerobot  # noqa: F401
    except ImportError:
        with pytest.raises(DependencyError, match="pip install lerobot"):
            load_lerobot(f"lerobot:{tmp_path}")
