"""RLlib on batched environments: a config that steps the batch, and a network for their observations.

RLlib (new API stack) has five problems with batched environments. It steps single environments unless it is given the
batched class. It treats the observation after an episode end as that of a reset (Gymnasium's NEXT_STEP; with SAME_STEP
it runs without an error but is wrong). It has no network for an image next to vectors. It does not accept action
matrices. Its remote runners know an environment id only together with the module that registers it. `rllib_config`
handles all five; the other settings of the config are RLlib's and can be changed as usual.

Example::

    from worldgym.imagination.adapters.rllib import rllib_config
    config = rllib_config("worldgym/Imagined-v0", num_envs=16, chunk=5).training(lr=3e-4)
    algorithm = config.build_algo()
    algorithm.train()["env_runners"]["episode_return_mean"]
"""

from __future__ import annotations

from typing import Any

import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn

from worldgym.imagination.adapters.features import ImageLanguageFeatures
from worldgym.utils.optional import require

require("ray.rllib", extra="rllib")

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig  # noqa: E402
from ray.rllib.algorithms.ppo import PPOConfig  # noqa: E402
from ray.rllib.core.columns import Columns  # noqa: E402
from ray.rllib.core.distribution.torch.torch_distribution import TorchDiagGaussian  # noqa: E402
from ray.rllib.core.rl_module.apis import ValueFunctionAPI  # noqa: E402
from ray.rllib.core.rl_module.rl_module import RLModuleSpec  # noqa: E402
from ray.rllib.core.rl_module.torch import TorchRLModule  # noqa: E402

HELD = "worldgym:worldgym/ActionRepeat-v0"  # a Gymnasium id, so that other processes and restored checkpoints find it


def rllib_config(
    env_id: str = "worldgym/Imagined-v0",
    num_envs: int = 8,
    *,
    algorithm: type[AlgorithmConfig] = PPOConfig,
    env_runners: int = 0,
    action_repeat: bool = False,
    held: bool = False,
    **settings: Any,
) -> AlgorithmConfig:
    """An algorithm config that steps the batched environment.

    Args:
        env_id: a Gymnasium id with a vector entry point; worldgym ids get the module prefix that remote runners need.
        num_envs: slots per runner.
        algorithm: RLlib's config class.
        env_runners: number of remote runners; 0 samples in the driver.
        action_repeat: one action per chunk, repeated for its frames (`ActionRepeat`), suited to learning from scratch;
            False takes chunks of different actions as one vector.
        held: earlier name of `action_repeat`.
        **settings: settings of the environment. Instructions are given as embeddings. With `action_repeat` also `wrap`,
            `module:attribute` of an outermost wrapper such as `rewards.judge_features:JudgeFeatureWrapper`.

    Raises:
        ValueError: an autoreset mode other than NEXT_STEP, text instructions, tensors, or `wrap` without
            `action_repeat`.
    """
    mode = AutoresetMode(settings.get("autoreset_mode", AutoresetMode.NEXT_STEP))
    if mode is not AutoresetMode.NEXT_STEP:
        raise ValueError(
            f"autoreset_mode={mode.value!r}; RLlib counts episodes correctly with 'NextStep' only, leave it out"
        )
    if settings.get("instruction", "embedding") != "embedding" or settings.get("tensors"):
        raise ValueError("RLlib takes numeric arrays only; leave out instruction= and tensors=")
    if "wrap" in settings and not (action_repeat or held):
        raise ValueError("wrap= applies with action_repeat=True only; add it, or leave wrap= out")
    keywords = {"instruction": "embedding", **settings, "autoreset_mode": mode.value}
    if env_id.startswith("worldgym/"):
        env_id = f"worldgym:{env_id}"
    env = env_id
    if action_repeat or held:
        env, keywords = HELD, {"env_id": env_id, **keywords}
    else:
        keywords.setdefault("flat_actions", True)
    config = (
        algorithm()
        .environment(env, env_config=keywords)
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
    """Gaussian policy and value function for `Dict(image (H,W,3) u8, state (S,), instruction (D,))`.

    With other `features` (`EncodedFeatures` for observations that a wrapper has encoded), the observations may differ.

    `model_config`: `width` (128) of the hidden layers, `log_std` (-0.5) at the start of training, `features` (a class
    constructed with the space, `ImageLanguageFeatures`; `rewards.judge_features.JudgeFeatures` is a trained encoder).
    """

    def setup(self) -> None:
        """Build the layers (RLlib calls this)."""
        space: Any = self.observation_space
        settings: Any = self.model_config or {}
        width, actions = settings.get("width", 128), self.action_space.shape[0]  # type: ignore[union-attr, index]
        self.features = settings.get("features", ImageLanguageFeatures)(space)
        self.body = nn.Sequential(nn.Linear(self.features.dim, width), nn.Tanh())
        self.mean, self.value = nn.Linear(width, actions), nn.Linear(width, 1)
        self.log_std = nn.Parameter(torch.full((actions,), float(settings.get("log_std", -0.5))))
        for head, gain in ((self.mean, 0.01), (self.value, 1.0)):
            nn.init.orthogonal_(head.weight, gain)
            nn.init.zeros_(head.bias)
        self.action_dist_cls = TorchDiagGaussian

    def _embed(self, observation: dict[str, Tensor]) -> Tensor:
        space: Any = self.observation_space
        name, part = next(iter(observation.items()))
        lead = part.shape[: part.ndim - len(space[name].shape)]
        rows = {name: part.reshape(-1, *part.shape[len(lead) :]) for name, part in observation.items()}
        hidden: Tensor = self.body(self.features(rows))
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
