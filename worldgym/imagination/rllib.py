"""RLlib on batched environments: a config that uses the batch, and a network for what our environments show.

Why: RLlib (new API stack) steps single environments unless told to use the batched class, takes the observation after
an end to be a reset's (Gymnasium's NEXT_STEP; fed SAME_STEP it runs and is wrong), has no network for an image beside
numbers and no room for a matrix of actions, and its remote runners know an id only with the module that registers it.
`rllib_config` settles all of that; the rest of the config is RLlib's own and can be changed as always.

Example::

    from worldgym.imagination.rllib import rllib_config
    config = rllib_config("worldgym/ImaginedTabletop-v0", num_envs=16, chunk=5).training(lr=3e-4)
    algorithm = config.build_algo()
    algorithm.train()["env_runners"]["episode_return_mean"]
"""

from __future__ import annotations

from typing import Any

import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn

from worldgym.utils.optional import require

require("ray.rllib", extra="rllib")

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig  # noqa: E402
from ray.rllib.algorithms.ppo import PPOConfig  # noqa: E402
from ray.rllib.core.columns import Columns  # noqa: E402
from ray.rllib.core.distribution.torch.torch_distribution import TorchDiagGaussian  # noqa: E402
from ray.rllib.core.rl_module.apis import ValueFunctionAPI  # noqa: E402
from ray.rllib.core.rl_module.rl_module import RLModuleSpec  # noqa: E402
from ray.rllib.core.rl_module.torch import TorchRLModule  # noqa: E402


def rllib_config(
    env_id: str = "worldgym/ImaginedTabletop-v0",
    num_envs: int = 8,
    *,
    algorithm: type[AlgorithmConfig] = PPOConfig,
    env_runners: int = 0,
    **settings: Any,
) -> AlgorithmConfig:
    """An algorithm's config that steps the batched environment.

    Args:
        env_id: a Gymnasium id with a vector entry point; ids of ours get the module prefix that remote runners need.
        num_envs: slots of each runner.
        algorithm: RLlib's config class.
        env_runners: remote runners; 0 samples in the driver.
        **settings: of the environment. Instructions come as embeddings, chunks of actions as one vector.

    Raises:
        ValueError: an autoreset mode other than NEXT_STEP, text instructions, or tensors.
    """
    mode = AutoresetMode(settings.get("autoreset_mode", AutoresetMode.NEXT_STEP))
    if mode is not AutoresetMode.NEXT_STEP:
        raise ValueError(
            f"autoreset_mode={mode.value!r}; RLlib counts episodes right with 'NextStep' only, leave it out"
        )
    if settings.get("instruction", "embedding") != "embedding" or settings.get("tensors"):
        raise ValueError("RLlib takes arrays of numbers; leave out instruction= and tensors=")
    keywords = {"instruction": "embedding", "flat_actions": True, **settings, "autoreset_mode": mode.value}
    if env_id.startswith("worldgym/"):
        env_id = f"worldgym:{env_id}"
    config = (
        algorithm()
        .environment(env_id, env_config=keywords)
        .env_runners(
            num_env_runners=env_runners,
            num_envs_per_env_runner=num_envs,
            gym_env_vectorize_mode="vector_entry_point",
        )
        .learners(num_learners=0)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=ImageLanguageModule))
    )
    assert isinstance(config, AlgorithmConfig)
    return config


class ImageLanguageModule(TorchRLModule, ValueFunctionAPI):
    """Policy and value of an observation `Dict(image (H,W,3) u8, state (S,), instruction (D,))`, Gaussian actions.

    The convolutions are those of Mnih et al. 2015 at twice the stride for 64 px. `model_config`: `width` (256) of the
    hidden layers, `log_std` (-0.5) that exploration begins with.
    """

    def setup(self) -> None:
        """Build the layers (RLlib calls this)."""
        spaces: Any = self.observation_space.spaces  # type: ignore[union-attr]
        settings: Any = self.model_config or {}
        width, actions = settings.get("width", 256), self.action_space.shape[0]  # type: ignore[union-attr, index]
        self.eyes = nn.Sequential(
            nn.Conv2d(3, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3, 1), nn.ReLU(),
            nn.Flatten(),
        )  # fmt: skip
        size = spaces["image"].shape[0]
        with torch.no_grad():
            seen = self.eyes(torch.zeros(1, 3, size, size)).shape[1]
        numbers = spaces["state"].shape[0] + spaces["instruction"].shape[0]
        self.body = nn.Sequential(
            nn.Linear(seen + numbers, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()
        )
        self.mean, self.value = nn.Linear(width, actions), nn.Linear(width, 1)
        self.log_std = nn.Parameter(torch.full((actions,), float(settings.get("log_std", -0.5))))
        for head, gain in ((self.mean, 0.01), (self.value, 1.0)):
            nn.init.orthogonal_(head.weight, gain)
            nn.init.zeros_(head.bias)
        self.action_dist_cls = TorchDiagGaussian

    def _embed(self, observation: dict[str, Tensor]) -> Tensor:
        image = observation["image"]
        lead = image.shape[:-3]
        pixels = image.reshape(-1, *image.shape[-3:]).permute(0, 3, 1, 2).float() / 255
        rest = [observation[name].reshape(len(pixels), -1).float() for name in ("state", "instruction")]
        hidden: Tensor = self.body(torch.cat([self.eyes(pixels), *rest], -1))
        return hidden.reshape(*lead, -1)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        hidden = self._embed(batch[Columns.OBS])
        mean = self.mean(hidden)
        spread = self.log_std.expand_as(mean)
        return {Columns.EMBEDDINGS: hidden, Columns.ACTION_DIST_INPUTS: torch.cat([mean, spread], -1)}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """Values `(B,)` of a batch's observations."""
        hidden = self._embed(batch[Columns.OBS]) if embeddings is None else embeddings
        values: Tensor = self.value(hidden).squeeze(-1)
        return values
