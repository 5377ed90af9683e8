"""Any LeRobot policy in this process, behind worldgym's policy protocol.

A LeRobot policy has `predict_action_chunk(batch)`, `reset()` and `config.input_features`; a pair of processors
normalises its inputs and un-normalises its actions. The calls are those of LeRobot's own policy server (version 0.6,
`lerobot/async_inference/policy_server.py`): the pre-processor gets a batch, the post-processor one action of each row
at a time. LeRobot needs Python 3.12.

Example::

    policy = load_lerobot("lerobot:outputs/train/act/checkpoints/last/pretrained_model")
    cameras = {"image": "observation.images.top"}
    policy = LeRobotAdapter(act, chunk=8, preprocessor=before, postprocessor=after, cameras=cameras)
    # worldgym eval --world imagined --policy lerobot:outputs/.../pretrained_model
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from worldgym.errors import CheckpointError, ConfigError
from worldgym.protocols import Observation, PolicyOutput, Temperature
from worldgym.specs import Specs
from worldgym.utils.arrays import host_array
from worldgym.utils.optional import require

IMAGES, STATE, TASK = "observation.image", "observation.state", "task"


class LeRobotAdapter:
    """A `worldgym.protocols.Policy` around a LeRobot policy. It has no log-probabilities, so that RL can't train it.

    Args:
        policy: has `predict_action_chunk(batch)` and `config`; `reset()` is called if it has one.
        chunk: how many actions of each predicted chunk are executed, K; None takes `config.n_action_steps`.
        preprocessor: maps the batch to the policy's inputs; None for none.
        postprocessor: maps actions `(B, A)` to those of the dataset; None for none.
        cameras: the policy's image key by the key of an observation, such as `{"image": "observation.images.top"}`;
            None pairs both in their order.
        actions: `normalised` if the dataset's actions are in [-1, 1], as those that worldgym writes; `units` if they
            are in the units of `specs.action`.
        specs: specs of the robot; needed for `actions="units"`.

    Raises:
        ConfigError: the object is not such a policy, or a setting is missing.
    """

    def __init__(
        self,
        policy: Any,
        *,
        chunk: int | None = None,
        preprocessor: Callable[[Any], Any] | None = None,
        postprocessor: Callable[[Any], Any] | None = None,
        cameras: Mapping[str, str] | None = None,
        actions: Literal["normalised", "units"] = "normalised",
        specs: Specs | None = None,
    ) -> None:
        config = getattr(policy, "config", None)
        if not hasattr(policy, "predict_action_chunk") or config is None:
            raise ConfigError(
                f"got a {type(policy).__name__}; expected a LeRobot policy with predict_action_chunk and config"
            )
        length = chunk if chunk is not None else getattr(config, "n_action_steps", None)
        if not isinstance(length, int) or length < 1:
            raise ConfigError(
                f"chunk is {chunk} and n_action_steps of the policy's config is "
                f"{getattr(config, 'n_action_steps', None)}; give chunk, a whole number >= 1"
            )
        if int(getattr(config, "n_obs_steps", 1) or 1) > 1:
            raise ConfigError(
                f"the policy reads {config.n_obs_steps} observations (config.n_obs_steps); policies here read one. "
                "Train it with n_obs_steps=1, or serve it behind a server that keeps the observations"
            )
        if actions not in ("normalised", "units") or (
            actions == "units" and (specs is None or specs.action is None)
        ):
            raise ConfigError(
                f"actions is {actions!r}; expected 'normalised', or 'units' with specs=Specs(observation, action)"
            )
        self.policy, self.chunk, self.specs, self.units = policy, length, specs, actions == "units"
        self.preprocessor, self.postprocessor = preprocessor, postprocessor
        self.pictures = [
            name for name in dict(getattr(config, "input_features", None) or {}) if name.startswith(IMAGES)
        ]
        self.cameras = None if cameras is None else dict(cameras)

    def reset(self) -> None:
        """Clear what the policy remembers of an episode."""
        if hasattr(self.policy, "reset"):
            self.policy.reset()

    @torch.no_grad()
    def act(
        self,
        observation: Observation,
        *,
        temperature: Temperature = 1.0,
        generator: torch.Generator | None = None,
    ) -> PolicyOutput:
        """Actions `(B,K,A)`; the log-probabilities are zeros. LeRobot policies choose their own sampling.

        Raises:
            ConfigError: the cameras or the actions do not fit.
        """
        rows = len(observation["instruction"])
        self.reset()  # policies keep queues of one episode, and these rows may belong to others
        batch = self.batch(observation)
        if self.preprocessor is not None:
            batch = self.preprocessor(batch)
        chunk = self.policy.predict_action_chunk(batch)
        if chunk.ndim != 3 or chunk.shape[0] != rows or chunk.shape[1] < self.chunk:
            raise ConfigError(
                f"{type(self.policy).__name__}.predict_action_chunk returned the shape {tuple(chunk.shape)}; expected "
                f"({rows}, K, A) with K >= {self.chunk}. Give a smaller chunk"
            )
        steps = [chunk[:, step] for step in range(self.chunk)]
        if self.postprocessor is not None:
            steps = [self.postprocessor(action) for action in steps]
        actions = torch.stack([torch.as_tensor(action) for action in steps], 1).float().cpu()
        if self.units:
            assert self.specs is not None and self.specs.action is not None
            actions = torch.from_numpy(self.specs.action.normalise(actions.numpy()))
        return PolicyOutput(actions.clamp(-1, 1), {"action": torch.zeros(rows)}, temperature=temperature)

    def batch(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """An observation in LeRobot's format: images `(B, 3, H, W)` float32 in [0, 1], state `(B, S)`, B task texts.

        Raises:
            ConfigError: the policy reads another number of cameras than there are.
        """
        ours = [key for key in observation if key == "image" or key.startswith("image_")]
        pairs = self.cameras
        if pairs is None:
            theirs = self.pictures or [f"{IMAGES}s.{'front' if key == 'image' else key[6:]}" for key in ours]
            if len(theirs) > len(ours):
                raise ConfigError(
                    f"the policy reads {', '.join(theirs)}; the observation has {', '.join(ours)}. Name the pairs with "
                    "cameras={'image': 'observation.images.top', ...}"
                )
            pairs = dict(zip(ours, theirs, strict=False))
        out: dict[str, Any] = {}
        for key, name in pairs.items():
            if key not in observation:
                raise ConfigError(
                    f"cameras names {key}, which the observation lacks; it has {', '.join(ours)}"
                )
            image = torch.as_tensor(host_array(observation[key]))
            out[name] = image.movedim(-1, -3).contiguous().float() / 255
        out[STATE] = torch.as_tensor(host_array(observation["state"]).astype(np.float32))
        out[TASK] = [str(text) for text in observation["instruction"]]
        return out


def load_lerobot(name: str) -> LeRobotAdapter:
    """Load a policy that LeRobot's `save_pretrained` wrote, with its processors: `lerobot:FOLDER` or `FOLDER`.

    Raises:
        CheckpointError: there is no such folder.
        DependencyError: LeRobot is not installed; it needs Python 3.12.
    """
    folder = Path(name.removeprefix("lerobot:")).expanduser()
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} has no config.json; give the folder pretrained_model of a checkpoint that LeRobot wrote"
        )
    config_class = require("lerobot.configs.policies", package="lerobot").PreTrainedConfig
    factory = require("lerobot.policies.factory", package="lerobot")
    config = config_class.from_pretrained(str(folder))
    policy = factory.get_policy_class(config.type).from_pretrained(str(folder), config=config)
    before, after = factory.make_pre_post_processors(config, pretrained_path=str(folder))
    return LeRobotAdapter(policy.eval(), preprocessor=before, postprocessor=after)
