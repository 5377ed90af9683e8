"""Environments of worldgym as a batched TorchRL environment: tensors, final observations, masked resets.

TorchRL itself resets finished slots between two steps, so that the final observation is never replaced by the first of
the next episode. Autoreset is therefore disabled inside, and resets go through TorchRL's `_reset` mask.
Instructions are given as sentence embeddings, because a TensorDict cannot hold text.

Example::

    from worldgym.imagination.adapters.torchrl import TorchRLEnv
    env = TorchRLEnv("worldgym/Imagined-v0", num_envs=16, chunk=5)
    batch = env.rollout(8)                      # TensorDict of batch size (16, 8)
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from worldgym.utils.optional import require

require("torchrl", extra="torchrl")

from tensordict import TensorDict, TensorDictBase  # noqa: E402
from torchrl.data import Binary, Bounded, Composite, Unbounded  # noqa: E402
from torchrl.envs import EnvBase  # noqa: E402

_INFO = ("success", "success_once", "invalid", "p_success", "uncertainty", "return", "episode_len")


class TorchRLEnv(EnvBase):  # type: ignore[misc]
    """A batch of environments; every entry of its TensorDicts has `num_envs` rows.

    Observation keys are those of the environment: `image (N, H, W, 3)` uint8, `instruction (N, 384)` float32, `state
    (N, S)` float32. Info entries that TorchRL users log are added: `success`, `success_once`, `invalid`, `p_success`
    (NaN at frames that were not judged), `uncertainty`, `return`, `episode_len`. Drop `invalid` episodes: their reward
    is a placeholder.

    Args:
        env_id: a Gymnasium id with a vector entry point, such as `worldgym/Imagined-v0`.
        num_envs: number of slots.
        device: device of the returned tensors.
        **settings: settings of the environment, see `WorldModelVectorEnv`.

    Raises:
        ValueError: `autoreset_mode` or text instructions are set.
    """

    batch_locked = True

    def __init__(
        self,
        env_id: str = "worldgym/Imagined-v0",
        num_envs: int = 8,
        *,
        device: str | torch.device | None = None,
        **settings: Any,
    ) -> None:
        import worldgym  # noqa: F401  (registers the ids)

        if settings.get("autoreset_mode", "Disabled") not in ("Disabled", gym.vector.AutoresetMode.DISABLED):
            raise ValueError("TorchRL resets episodes itself; leave out autoreset_mode")
        if settings.get("instruction", "embedding") != "embedding":
            raise ValueError("a TensorDict cannot hold text; leave out instruction=, embeddings are returned")
        super().__init__(device=device, batch_size=torch.Size([num_envs]))
        settings = {**settings, "instruction": "embedding", "autoreset_mode": "Disabled"}
        self.envs: Any = gym.make_vec(
            env_id, num_envs=num_envs, vectorization_mode="vector_entry_point", **settings
        )
        self._seed: int | None = None
        # A first reset shows which info entries exist; the user's seed is set later.
        observation, info = self.envs.reset(seed=0)
        self._logged = [key for key in _INFO if key in info]
        space: Any = self.envs.single_observation_space
        spec = {key: self._spec_of(space[key]) for key in observation}
        spec |= {key: self._number(torch.as_tensor(np.asarray(info[key])).dtype) for key in self._logged}
        self.observation_spec = Composite(**spec, shape=self.batch_size)
        action: Any = self.envs.action_space
        low, high = (torch.as_tensor(bound, device=self.device) for bound in (action.low, action.high))
        self.action_spec = Bounded(low=low, high=high, shape=action.shape, dtype=torch.float32)
        self.reward_spec = Unbounded(shape=(num_envs, 1), dtype=torch.float32)
        flags = {key: self._number(torch.bool) for key in ("done", "terminated", "truncated")}
        self.done_spec = Composite(**flags, shape=self.batch_size)

    def _spec_of(self, space: gym.spaces.Box) -> Any:
        shape = (self.batch_size[0], *space.shape)
        dtype = torch.uint8 if space.dtype == np.uint8 else torch.float32
        if dtype == torch.uint8 or not np.isfinite(np.asarray([space.low.min(), space.high.max()])).all():
            return Unbounded(shape=shape, dtype=dtype)
        low, high = (torch.as_tensor(bound).expand(shape).clone() for bound in (space.low, space.high))
        return Bounded(low=low, high=high, shape=shape, dtype=dtype)

    def _number(self, dtype: torch.dtype) -> Any:
        kind = Binary(n=1, shape=(self.batch_size[0], 1), dtype=torch.bool)
        return kind if dtype == torch.bool else Unbounded(shape=(self.batch_size[0], 1), dtype=torch.float32)

    def _rows(self, observation: dict[str, Any], info: dict[str, Any]) -> dict[str, Tensor]:
        rows = {key: torch.as_tensor(value).clone() for key, value in observation.items()}
        for key in self._logged:
            value = torch.as_tensor(np.asarray(info[key])).view(-1, 1)
            rows[key] = value if value.dtype == torch.bool else value.float()
        return rows

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        options: dict[str, Any] = {}
        if mask is not None and not bool(mask.all()):
            options["reset_mask"] = mask.reshape(self.batch_size[0]).cpu().numpy()
        observation, info = self.envs.reset(seed=self._seed, options=options or None)
        self._seed = None
        rows = self._rows(observation, info)
        if options:  # slots that are not reset keep their info entries
            where = torch.as_tensor(options["reset_mask"]).view(-1, 1)
            for key in self._logged:
                previous = None if tensordict is None else tensordict.get(key, None)
                rows[key] = rows[key] if previous is None else torch.where(where, rows[key], previous.cpu())
        over = torch.zeros(self.batch_size[0], 1, dtype=torch.bool)
        flags = {key: over.clone() for key in ("done", "terminated", "truncated")}
        return TensorDict({**rows, **flags}, batch_size=self.batch_size, device=self.device)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        actions = tensordict.get("action").detach().cpu().numpy()
        observation, reward, terminated, truncated, info = self.envs.step(actions)
        column = lambda values, dtype: torch.as_tensor(np.asarray(values)).to(dtype).view(-1, 1)  # noqa: E731
        ends = {"terminated": column(terminated, torch.bool), "truncated": column(truncated, torch.bool)}
        rows = {
            **self._rows(observation, info), **ends, "done": ends["terminated"] | ends["truncated"],
            "reward": column(reward, torch.float32),
        }  # fmt: skip
        return TensorDict(rows, batch_size=self.batch_size, device=self.device)

    def _set_seed(self, seed: int | None) -> None:
        self._seed = seed

    def close(self, **kwargs: Any) -> None:
        """Close the batch."""
        self.envs.close()
        super().close(**kwargs)
