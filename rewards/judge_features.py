"""The judge's eyes for a policy that learns from scratch: where the thing is that the words name.

Why: that "red" and red belong together is learned from logs within minutes; by reward alone PPO stood at a success of a
third after 150,000 imagined frames, which is what going to the nearest of three objects gives. A judge has learned it
already: the keypoints that its words ask for lie on what they name. They are frozen here, so a policy on top learns to
act, which is what reinforcement is good at. Judge and policy then share their blind spots: audit with another judge.

Example::

    eyes = JudgeFeatures(envs.single_observation_space)
    eyes({"image": image, "state": state, "instruction": words})      # (B, eyes.dim), no gradient
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


class JudgeFeatures(nn.Module):
    """`Dict(image (B,H,W,3) u8, state (B,S), instruction (B,384))` to coordinates, strengths and state, `(B, dim)`.

    Args:
        space: of one observation.
        judge: a `LearnedJudge`, its folder, or None for the bundled one. Not trained, not saved with the policy.

    Raises:
        ConfigError: instructions as text, or pictures of another size than the judge's.
    """

    def __init__(self, space: spaces.Dict, judge: LearnedJudge | str | None = None) -> None:
        super().__init__()
        if judge is None or isinstance(judge, str):
            judge = load_bundled() if judge is None else LearnedJudge.from_pretrained(judge)
        words, state, image = (space[k] for k in ("instruction", "state", "image"))
        if not isinstance(words, spaces.Box) or not isinstance(state, spaces.Box) or image.shape is None:
            raise ConfigError(
                "a judge's eyes read embeddings; make the environment with instruction='embedding'"
            )
        if sorted(image.shape)[-1] != judge.config.image_size:
            raise ConfigError(
                f"pictures are {image.shape}; this judge reads {judge.config.image_size} pixels"
            )
        self._judge = [judge.eval().requires_grad_(False)]  # in a list: not among the policy's weights
        self.reach: Tensor
        bounds = torch.as_tensor(abs(state.low)).maximum(torch.as_tensor(abs(state.high)))
        self.register_buffer("reach", bounds, persistent=False)
        self.dim = 3 * (judge.config.keypoints + judge.config.asked) + state.shape[0]

    @torch.no_grad()
    def forward(self, observation: Mapping[str, Any]) -> Tensor:
        """Pictures as bytes channels last, or as SB3 hands them over: channels first, in [0, 1]."""
        image = observation["image"]
        if image.shape[-1] == 3:
            image = image.permute(0, 3, 1, 2)
        seen = image.float() / 255 if image.dtype == torch.uint8 else image.float()
        judge = self._judge[0].to(self.reach.device)  # not a submodule: moving this one does not move it
        where, strength = judge.places(seen, observation["instruction"].float())
        return torch.cat([where, strength, observation["state"].float() / self.reach], 1)


class JudgeFeatureWrapper(VectorWrapper):
    """A batch whose observations are what a judge's eyes see, `Dict(seen (dim,))`.

    For learners that look at an observation many times, such as those with a replay buffer: the picture is looked at
    once, and 12 KB become one.

    Args:
        env: a vector environment with `image`, `state` and `instruction="embedding"`, giving arrays.
        judge: see `JudgeFeatures`.
    """

    def __init__(self, env: VectorEnv, judge: LearnedJudge | str | None = None) -> None:
        super().__init__(env)
        space = env.single_observation_space
        if not isinstance(space, spaces.Dict):
            raise ConfigError(f"observations are {space}; a judge's eyes need image, state and instruction")
        self.eyes = JudgeFeatures(space, judge)
        seen = spaces.Box(-np.inf, np.inf, (self.eyes.dim,), np.float32)
        self.single_observation_space = spaces.Dict({"seen": seen})
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def see(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """`{"seen": (B, dim) float32}` of a batch of the environment's own observations."""
        device = self.eyes.reach.device
        seen = self.eyes({k: torch.as_tensor(v, device=device) for k, v in observation.items()})
        return {"seen": seen.cpu().numpy()}

    def reset(self, **how: Any) -> tuple[Any, dict[str, Any]]:
        """As the environment, seen."""
        observation, info = self.env.reset(**how)
        return self.see(observation), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As the environment, seen; so is what `final_obs` holds."""
        observation, reward, terminated, truncated, info = self.env.step(actions)
        if "final_obs" in info:
            last = np.full(self.num_envs, None, object)
            for i, own in enumerate(info["final_obs"]):
                if own is not None:
                    batch = {k: np.asarray(v)[None] for k, v in own.items()}
                    last[i] = {k: v[0] for k, v in self.see(batch).items()}
            info = {**info, "final_obs": last}
        return self.see(observation), reward, terminated, truncated, info
