"""Imagined episodes of states: a vectorised environment in a `StateEnsemble`, penalised for the model's uncertainty.

Offline model-based RL of RWM-U (arXiv 2504.16680, section 3; MOPO, Yu et al. 2020, arXiv 2005.13239). Episodes begin at
logged states. Each follows one random member of the ensemble to its end, so that a policy cannot use the average of
members that disagree. The reward is `r - penalty * u`, where u is the epistemic uncertainty, and an episode is cut off
when u exceeds a bound. The interface is that of the project's PPO on states (`agents.algorithms.ppo.StateEnv`).

Example::

    envs = ImaginedStates(model, episodes, num_envs=256, penalty=1.0)
    obs = envs.reset(seed=0)                                   # {"actor": (256, S), "privileged": (256, S)}
    obs, reward, done, info = envs.step(actions)               # actions (256, A) in [-1, 1]
    info["uncertainty"], info["member"]                        # (256,), (256,)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldgym.errors import ConfigError, DatasetError
from worldgym.models.states import StateEnsemble, StateEpisode, StateMemory, check_episodes

Observations = dict[str, NDArray[np.float32]]


class ImaginedStates:
    """N imagined episodes at once; an episode that ends is followed by the next one within the same step.

    The memories of the starts are computed once, so make a new environment after the model was trained further.

    Args:
        model: a trained ensemble.
        episodes: logged episodes of its data; an imagined episode begins at any of their states but the last ones,
            with the logged history before it.
        num_envs: number of parallel episodes, N.
        penalty: reward per unit of epistemic uncertainty that is subtracted, lambda >= 0.
        uncertainty_bound: an episode is truncated when its epistemic uncertainty exceeds this.
        horizon: largest number of steps of an episode.
        sample: whether next states are sampled; otherwise they are the member's means.
        most_starts: largest number of different starts; a random subset if the data have more.

    Raises:
        ConfigError: a setting is out of range.
        DatasetError: the episodes have other shapes than the model.
    """

    def __init__(
        self,
        model: StateEnsemble,
        episodes: Sequence[StateEpisode],
        num_envs: int,
        *,
        penalty: float = 1.0,
        uncertainty_bound: float = math.inf,
        horizon: int = 40,
        sample: bool = True,
        most_starts: int = 4096,
    ) -> None:
        for name, number in (("num_envs", num_envs), ("horizon", horizon), ("most_starts", most_starts)):
            if number < 1:
                raise ConfigError(f"{name} is {number}, expected at least 1; try {name}=40")
        if not 0 <= penalty < math.inf:
            raise ConfigError(f"penalty is {penalty}, expected a finite number of at least 0; try penalty=1")
        if not uncertainty_bound > 0:
            raise ConfigError(
                f"uncertainty_bound is {uncertainty_bound}, expected a positive number; leave it out for no bound"
            )
        c, dims = model.config, check_episodes(episodes)
        if dims != (c.state_dim, c.action_dim):
            raise DatasetError(
                f"the episodes have {dims[0]} state and {dims[1]} action dimensions, expected {c.state_dim} and "
                f"{c.action_dim} as in the model; give episodes like those that it was trained on"
            )
        self.model, self.num_envs, self.horizon, self.sample = model, num_envs, horizon, sample
        self.penalty, self.uncertainty_bound = float(penalty), float(uncertainty_bound)
        self.sizes = {"actor": c.state_dim, "privileged": c.state_dim}
        self.action_dim = c.action_dim
        self._starts = _memories(model, episodes, most_starts)
        self._memory: StateMemory | None = None
        self._generator = torch.Generator()
        self._member = torch.zeros(num_envs, dtype=torch.int64)
        self._steps = np.zeros(num_envs, np.int64)
        self._success_once = np.zeros(num_envs, bool)

    @property
    def member(self) -> NDArray[np.int64]:
        """The member that each episode follows, `(N,)` int64."""
        return self._member.numpy().copy()

    def reset(self, seed: int = 0) -> Observations:
        """Begin N episodes; the same seed gives the same starts, members and samples.

        Returns:
            `{"actor": (N,S), "privileged": (N,S)}`, both the current state in data units.
        """
        self._generator = torch.Generator().manual_seed(seed)
        self._memory = self._drawn(np.arange(self.num_envs))
        return self._observation(self._memory)

    def step(
        self, actions: Any
    ) -> tuple[Observations, NDArray[np.float32], NDArray[np.bool_], dict[str, Any]]:
        """Imagine one step.

        Args:
            actions: `(N,A)`, clipped to [-1, 1].

        Returns:
            observation: as in `reset`; where `done`, the first one of the next episode.
            reward: `(N,)`, the member's reward minus `penalty` times the uncertainty.
            done: `(N,)` bool.
            info: a dict with `terminated (N,)`, `truncated (N,)`, `success (N,)` (False where not `done`), `final` (the
                observation before a next episode began), `uncertainty (N,)`, `model_reward (N,)` without the penalty,
                and `member (N,)` that made this step.

        Raises:
            ConfigError: `reset` was not called, or the actions have another shape or are not finite.
        """
        if self._memory is None:
            raise ConfigError("step was called before reset, expected a start; type envs.reset(seed=0) first")
        given = torch.as_tensor(np.asarray(actions, np.float32))
        if tuple(given.shape) != (self.num_envs, self.action_dim) or not bool(torch.isfinite(given).all()):
            raise ConfigError(
                f"actions have shape {tuple(given.shape)} and {int((~torch.isfinite(given)).sum())} values that are "
                f"not finite, expected {(self.num_envs, self.action_dim)} and finite numbers; pass one row per slot"
            )
        device, member = self.model.device, self.member
        noise = self._generator if self.sample else None
        memory, predicted = self.model.step(
            self._memory, given.clamp(-1, 1), member=self._member.to(device), generator=noise
        )
        uncertainty, model_reward = _array(predicted.epistemic), _array(predicted.reward)
        self._steps += 1
        self._success_once |= _array(predicted.success) > 0.5
        terminated = _array(predicted.terminated) > 0.5
        truncated = ~terminated & ((self._steps >= self.horizon) | (uncertainty > self.uncertainty_bound))
        done = terminated | truncated
        final = obs = self._observation(memory)
        success = done & self._success_once
        if done.any():
            rows = np.flatnonzero(done)
            memory = memory.merge(torch.from_numpy(rows).to(device), self._drawn(rows))
            obs = self._observation(memory)
        self._memory = memory
        info: dict[str, Any] = {
            "terminated": terminated, "truncated": truncated, "success": success, "final": final,
            "uncertainty": uncertainty, "model_reward": model_reward, "member": member,
        }  # fmt: skip
        reward = (model_reward - np.float32(self.penalty) * uncertainty).astype(np.float32)
        return obs, reward, done, info

    def _drawn(self, rows: NDArray[np.int64]) -> StateMemory:
        """Draw starts and members of the environments `rows`."""
        count, members = len(self._starts.states), self.model.config.members
        chosen = torch.randint(count, (len(rows),), generator=self._generator).to(self.model.device)
        self._member[rows] = torch.randint(members, (len(rows),), generator=self._generator)
        self._steps[rows], self._success_once[rows] = 0, False
        return StateMemory(self._starts.hidden[:, :, chosen], self._starts.states[chosen])

    def _observation(self, memory: StateMemory) -> Observations:
        return {"actor": _array(memory.states), "privileged": _array(memory.states)}


def _memories(model: StateEnsemble, episodes: Sequence[StateEpisode], most: int) -> StateMemory:
    """Memories of logged starts, at most `most` of them; the subset is always the same one."""
    pairs = np.array([(i, t) for i, e in enumerate(episodes) for t in range(len(e["actions"]))])
    if len(pairs) > most:
        pairs = pairs[np.sort(np.random.default_rng(0).choice(len(pairs), most, replace=False))]
    past = min(model.config.history - 1, int(pairs[:, 1].max()))
    parts = []
    for block in np.array_split(pairs, math.ceil(len(pairs) / 1024)):
        before = block[:, 1:] + np.arange(-past, 1)
        rows = [np.maximum(times, 0) for times in before]
        states = np.stack([episodes[i]["states"][times] for i, times in zip(block[:, 0], rows, strict=True)])
        actions = np.stack([episodes[i]["actions"][t[:-1]] for i, t in zip(block[:, 0], rows, strict=True)])
        valid = torch.from_numpy(before[:, :-1] >= 0)
        parts.append(
            model.begin(
                _tensor(states), _tensor(actions.reshape(len(block), past, model.config.action_dim)), valid
            )
        )
    return StateMemory(torch.cat([p.hidden for p in parts], 2), torch.cat([p.states for p in parts]))


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))


def _array(values: Tensor) -> NDArray[np.float32]:
    return values.detach().cpu().numpy().astype(np.float32)
