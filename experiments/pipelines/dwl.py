"""Denoising world-model learning (DWL, arXiv 2408.14472) against its controls, from Soft to Real without Real data.

Every arm trains in Soft with randomised physics and noisy, late sensors, and is measured in Real on the same starts.

- `plain`: recurrent PPO on the history of the sensors.
- `own`: the same, and a decoder reconstructs the noisy observation.
- `dwl`: the same, and the decoder reconstructs the true state.
- `teacher_student`: PPO on the true state for half of the steps, then a recurrent student copies it for the other half.
- `oracle`: PPO on the true state, also when measured; an upper bound, and what the noise takes away.

All critics see the true state in training.

Example::

    rows = [run_arm(arm, seed=0, noise=0.03, steps=200_000) for arm in ("plain", "dwl", "oracle")]
    [row["rate"] for row in rows]
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from agents.algorithms.distil import DistilConfig, distil
from agents.algorithms.ppo import PPO, PPOConfig, StateEnv, tensors
from agents.policies.denoising import DenoisingActorCritic, DenoisingConfig, StateActorCritic
from envs.tabletop.states import StateTabletop
from worldgym.errors import ConfigError

ARMS = ("plain", "own", "dwl", "teacher_student", "oracle")
RECONSTRUCT: Mapping[str, Any] = {"plain": None, "own": "own", "dwl": "privileged"}
EVAL_SEED = 900
"""Seed of the starts in Real; training uses smaller seeds, so that no start occurs in both."""


@dataclass(frozen=True)
class DWLSettings:
    """Settings that all arms share.

    Args:
        task: task of `StateTabletop`.
        latency: steps by which the sensors are late.
        dropout: probability that the sensors repeat their last reading.
        gap: misspecification of Soft.
        randomise: width of the physics in Soft.
        horizon: largest number of steps of an episode.
        num_envs: environments in training.
        episodes: paired starts in Real.
        denoise: weight of the denoising loss.
        ppo: settings of PPO; its seed is replaced.
        distil: settings of the student; its seed is replaced.
    """

    task: str = "reach"
    latency: int = 2
    dropout: float = 0.0
    gap: float = 0.5
    randomise: float = 1.0
    horizon: int = 40
    num_envs: int = 64
    episodes: int = 200
    denoise: float = 1.0
    ppo: PPOConfig = PPOConfig()
    distil: DistilConfig = DistilConfig()

    def __post_init__(self) -> None:
        """Validate; the environment validates its own settings."""
        if self.episodes < 1:
            raise ConfigError(f"episodes must be at least 1; got {self.episodes}. Try episodes=200")

    def env(self, num_envs: int, domain: str, noise: float) -> StateTabletop:
        """Environments of a domain; Real has no randomised physics."""
        return StateTabletop(
            num_envs, self.task, domain, self.gap, self.randomise if domain == "soft" else 0.0, noise, self.latency,
            self.horizon, self.dropout,
        )  # fmt: skip


def run_arm(
    arm: str, seed: int, noise: float, steps: int, settings: DWLSettings | None = None,
    levels: Sequence[float] | None = None, log: Callable[[dict[str, float]], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train one arm in Soft and measure it in Real, zero-shot.

    Args:
        arm: one of `ARMS`.
        seed: seed of weights, starts and samples, in [0, `EVAL_SEED`).
        noise: standard deviation of the sensors in training, metres.
        steps: environment steps in Soft; those of teacher and student together.
        settings: what all arms share.
        levels: noise levels in Real, metres; None for the one of training.
        log: called with the scalars of every update.

    Returns:
        arm, seed, noise, steps, seconds, rate (success rate at the first level), `real` (by level, as text in metres:
        `success`, 0 or 1, and `length`, steps, per start, paired between arms and seeds), `soft` (training curve: steps
        and success).

    Raises:
        ConfigError: unknown arm, or a seed outside its range.
        DivergedError: training diverged.
    """
    if arm not in ARMS:
        raise ConfigError(f"unknown arm {arm!r}; expected one of {', '.join(ARMS)}. Try arm='dwl'")
    if not 0 <= seed < EVAL_SEED:
        raise ConfigError(f"seed must lie in [0, {EVAL_SEED}); got {seed}. Try seed=0")
    settings = settings or DWLSettings()
    curve: list[dict[str, float]] = []

    def logged(scalars: dict[str, float]) -> None:
        curve.append(scalars)
        if log is not None:
            log(scalars)

    began = time.perf_counter()
    policy = _train(arm, seed, steps, settings, settings.env(settings.num_envs, "soft", noise), logged)
    seconds = time.perf_counter() - began
    chosen = (noise,) if levels is None else tuple(levels)
    real: dict[str, dict[str, list[int]]] = {}
    for level in chosen:
        success, length = first_episodes(policy, settings.env(settings.episodes, "real", level), EVAL_SEED)
        real[f"{level:g}"] = {"success": success.astype(int).tolist(), "length": length.tolist()}
    return {
        "arm": arm, "seed": seed, "noise": noise, "steps": steps, "seconds": seconds, "real": real,
        "rate": float(np.mean(real[f"{chosen[0]:g}"]["success"])),
        "soft": [{"steps": row["steps"], "success": row["success"]} for row in curve],
    }  # fmt: skip


def _train(
    arm: str, seed: int, steps: int, settings: DWLSettings, env: StateTabletop,
    log: Callable[[dict[str, float]], None],
) -> Any:  # fmt: skip
    ppo = dataclasses.replace(settings.ppo, seed=seed)
    sizes = env.sizes
    networks = DenoisingConfig(
        sizes["actor"], sizes["privileged"], env.action_dim, RECONSTRUCT.get(arm), settings.denoise
    )
    if arm in RECONSTRUCT:
        policy = DenoisingActorCritic(networks, seed)
        PPO(policy, ppo).train(env, steps, log)
        return policy
    teacher = StateActorCritic(networks, "privileged", seed)
    half = max(1, steps // 2) if arm == "teacher_student" else steps
    taught = PPO(teacher, ppo).train(env, half, log)["steps"]
    if arm == "oracle":
        return teacher
    student = DenoisingActorCritic(networks, seed)
    distil(
        teacher, student, env, max(1, steps - int(taught)), dataclasses.replace(settings.distil, seed=seed),
        lambda row: log({**row, "steps": row["steps"] + taught}),
    )  # fmt: skip
    return student


@torch.no_grad()
def first_episodes(
    policy: Any, env: StateEnv, seed: int, limit: int = 1000
) -> tuple[np.ndarray, np.ndarray]:
    """Success `(N,)` bool and length `(N,)` in steps of the first episode of every environment, with mean actions.

    The starts depend on the seed and the index only, so that the results of two policies are paired.

    Args:
        policy: an `ActorCritic`. It sees no privileged observation unless it acts on it (`policy.source`).
        env: N environments.
        seed: seed of the starts.
        limit: largest number of steps.

    Raises:
        ConfigError: an episode has not ended after `limit` steps.
    """
    obs, hidden = tensors(env.reset(seed)), policy.initial(env.num_envs)
    success, length = np.zeros(env.num_envs, bool), np.zeros(env.num_envs, int)
    running = np.ones(env.num_envs, bool)
    source = getattr(policy, "source", "actor")
    for _ in range(limit):
        step = policy.act({source: obs[source]}, hidden, True)
        found, _, done, info = env.step(step.action.numpy())
        over = np.asarray(done)
        success |= running & over & np.asarray(info["success"])
        length += running
        running &= ~over
        if not running.any():
            return success, length
        obs, hidden = tensors(found), step.hidden * ~torch.as_tensor(over)[:, None]
    raise ConfigError(
        f"{int(running.sum())} of {env.num_envs} episodes have not ended after {limit} steps; expected all to end. Set "
        "a horizon of the environment, or type first_episodes(..., limit=...)"
    )
