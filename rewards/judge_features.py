"""Frozen keypoint features of a judge, as the input of a policy that is trained from scratch.

From logs, a model learns within minutes which objects the word "red" refers to. From reward alone it does not: after
150,000 imagined frames PPO had a success rate of one third, the rate of a policy that goes to the nearest of three
objects. A trained judge has already learned this: its instruction-conditioned keypoints lie on the named objects. The
features are frozen here, so the policy on top only learns to act. Judge and policy then share their errors, so audit
with a different judge.

Example::

    features = JudgeFeatures(envs.single_observation_space)
    features({"image": image, "state": state, "instruction": embedding})      # (B, features.dim), no gradient
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from torch import Tensor, nn

from rewards.models.learned import LearnedJudge, load_bundled
from worldgym.errors import ConfigError
from worldgym.utils.row_threads import by_rows


class JudgeFeatures(nn.Module):
    """Feature extractor: keypoint coordinates and strengths of a judge, and the scaled state, `(B, dim)`.

    The input is `Dict(image (B,H,W,3) u8, state (B,S), instruction (B,384))`.

    Args:
        space: observation space of a single environment.
        judge: a `LearnedJudge`, its folder, or None for the bundled one. It is not trained and not saved with the
            policy.

    Raises:
        ConfigError: instructions are text, or the image size differs from the judge's.
    """

    def __init__(self, space: spaces.Dict, judge: LearnedJudge | str | None = None) -> None:
        super().__init__()
        if judge is None or isinstance(judge, str):
            judge = load_bundled() if judge is None else LearnedJudge.from_pretrained(judge)
        instruction, state, image = (space[k] for k in ("instruction", "state", "image"))
        if not isinstance(instruction, spaces.Box) or not isinstance(state, spaces.Box) or image.shape is None:
            raise ConfigError(
                "JudgeFeatures needs an image, a state vector and instruction embeddings; make the environment with "
                "instruction='embedding'"
            )
        if sorted(image.shape)[-1] != judge.config.image_size:
            raise ConfigError(
                f"images have shape {image.shape}; this judge expects {judge.config.image_size} pixels a side"
            )
        self._judge = [judge.eval().requires_grad_(False)]  # in a list, so that it is not a submodule of the policy
        self.reach: Tensor
        bounds = torch.as_tensor(abs(state.low)).maximum(torch.as_tensor(abs(state.high)))
        self.register_buffer("reach", bounds, persistent=False)
        self.dim = 3 * (judge.config.keypoints + judge.config.asked) + state.shape[0]

    @torch.no_grad()
    def forward(self, observation: Mapping[str, Any]) -> Tensor:
        """Features `(B, dim)`; images are uint8 (B,H,W,3), or float (B,3,H,W) in [0, 1] as SB3 passes them."""
        image = observation["image"]
        if image.shape[-1] == 3:
            image = image.permute(0, 3, 1, 2)
        pixels = image.float() / 255 if image.dtype == torch.uint8 else image.float()
        judge = self._judge[0].to(self.reach.device)  # not a submodule, so `.to()` does not move it
        words = observation["instruction"].float()
        places = by_rows(
            lambda rows: torch.cat(judge.places(pixels[rows], words[rows]), 1), len(pixels), self.reach.device
        )
        return torch.cat([torch.cat(places), observation["state"].float() / self.reach], 1)


class JudgeFeatureWrapper(VectorWrapper):
    """Vector environment wrapper that replaces observations by the features of a judge, `Dict(seen (dim,))`.

    For algorithms that read an observation many times, such as those with a replay buffer: each image is encoded once,
    and an observation takes 1 KB instead of 12 KB.

    Args:
        env: a vector environment with `image`, `state` and `instruction="embedding"` that returns arrays.
        judge: see `JudgeFeatures`.
    """

    def __init__(self, env: VectorEnv, judge: LearnedJudge | str | None = None) -> None:
        super().__init__(env)
        space = env.single_observation_space
        if not isinstance(space, spaces.Dict):
            raise ConfigError(
                f"the observation space is {space}; expected a Dict with image, state and instruction. Make the "
                "environment with instruction='embedding'"
            )
        self.eyes = JudgeFeatures(space, judge)
        features = spaces.Box(-np.inf, np.inf, (self.eyes.dim,), np.float32)
        self.single_observation_space = spaces.Dict({"seen": features})
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def see(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Encode a batch of the environment's own observations as `{"seen": (B, dim) float32}`."""
        device = self.eyes.reach.device
        features = self.eyes({k: torch.as_tensor(v, device=device) for k, v in observation.items()})
        return {"seen": features.cpu().numpy()}

    def reset(self, **how: Any) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and encode its observations."""
        observation, info = self.env.reset(**how)
        return self.see(observation), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environment and encode its observations, including those in `final_obs`."""
        observation, reward, terminated, truncated, info = self.env.step(actions)
        if "final_obs" in info:
            last = np.full(self.num_envs, None, object)
            ended = [i for i, own in enumerate(info["final_obs"]) if own is not None]
            if ended:
                rows = [info["final_obs"][i] for i in ended]
                seen = self.see({k: np.stack([np.asarray(row[k]) for row in rows]) for k in rows[0]})
                for at, i in enumerate(ended):
                    last[i] = {k: v[at] for k, v in seen.items()}
            info = {**info, "final_obs": last}
        return self.see(observation), reward, terminated, truncated, info
