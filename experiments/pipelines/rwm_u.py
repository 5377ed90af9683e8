"""Offline reinforcement learning on states with a penalty for the world model's uncertainty (RWM-U, arXiv 2504.16680).

An arm collects logs of mixed quality in Real, trains an ensemble on them, improves a policy by PPO in imagination
alone, and measures true success in Real on starts that all arms share. Arms differ in the penalty lambda: with lambda
= 0 the policy may exploit errors of the model, with a large one it stays where the logs are. The ensemble does not
depend on the penalty, so arms of one seed that share `out` share it.

Example::

    rows = [run_arm(penalty, seed=0, episodes=60, steps=200_000, out=Path("runs/rwm_u")) for penalty in PENALTIES]
    rows[0]["imagined_success"] - rows[0]["success"]
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.algorithms.ppo import PPO, PPOConfig
from agents.policies.denoising import DenoisingConfig, StateActorCritic
from envs.tabletop.experts import expert_action
from envs.tabletop.states import StateTabletop
from experiments.pipelines.dwl import first_episodes
from worldgym.errors import ConfigError
from worldgym.evaluation.fidelity import spearman_or_none
from worldgym.imagination.states import ImaginedStates
from worldgym.models.states import StateEnsemble, StateEnsembleConfig, StateEpisode
from worldgym.training.states import StateTrainingConfig, train_states

PENALTIES = (0.0, 0.3, 1.0, 3.0, 10.0)
LOG_SEED0, HELD_OUT_SEED0, AUDIT_SEED = 1_000, 2_000, 9_000
"""Seeds of `StateTabletop` for training logs, held-out logs (plus the seed of the arm) and the common audit."""


@dataclass(frozen=True)
class RwmUSettings:
    """Settings that all arms of a comparison share.

    Args:
        task: task of `StateTabletop`.
        quality: noise of the scripted expert in an episode, drawn from this range; standard deviation of the action.
        random: fraction of episodes with random actions.
        horizon: largest number of steps of an episode, in Real and in imagination.
        members: members of the ensemble.
        shared_trunk: whether they share the GRU.
        preset: size of the ensemble.
        history: largest number of pairs that it reads before a forecast; the state is almost Markov, so few do.
        model_steps: optimizer steps of the ensemble.
        unit: reward per unit of lambda and of uncertainty. The release multiplies by its control period of 0.02 s; a
            whole episode of a task earns about 2, so lambda = 1 costs it a few tenths on the logged states.
        num_envs: imagined episodes at once.
        uncertainty_bound: an imagined episode is truncated above this uncertainty.
        audit_episodes: episodes in Real of the final measurement.
        held_out: episodes of the held-out logs.
    """

    task: str = "reach"
    quality: tuple[float, float] = (0.3, 1.0)
    random: float = 0.25
    horizon: int = 40
    members: int = 5
    shared_trunk: bool = False
    preset: str = "small"
    history: int = 8
    model_steps: int = 1500
    unit: float = 0.02
    num_envs: int = 128
    uncertainty_bound: float = math.inf
    audit_episodes: int = 100
    held_out: int = 40

    def __post_init__(self) -> None:
        low, high = self.quality
        if not 0 <= low <= high or not 0 <= self.random <= 1:
            raise ConfigError(
                f"quality is {self.quality} and random {self.random}, expected 0 <= low <= high and a fraction; try "
                "quality=(0.3, 1.0) and random=0.25"
            )


def collect_states(count: int, seed: int, settings: RwmUSettings | None = None) -> list[StateEpisode]:
    """Collect logs of mixed quality in Real: noisy scripted experts, and smooth random motion; nothing is rendered.

    The noise has a correlation of 0.5 from step to step and flips the gripper in 5 % of the steps.

    Args:
        count: number of episodes.
        seed: seed of starts and noise.
        settings: task, horizon and quality.

    Returns:
        episodes with `states (T+1,13)`, the normalised true state of `StateTabletop`, `actions (T,4)`, `reward (T,)`,
        `success (T,)` and `terminated (T,)`.
    """
    s = settings or RwmUSettings()
    rng = np.random.default_rng((seed, 71))
    env = StateTabletop(count, task=s.task, horizon=s.horizon)
    state = env.reset(seed)["privileged"]
    blind = rng.random(count) < s.random
    sigma = np.where(blind, 0.8, rng.uniform(*s.quality, count))[:, None]
    noise, running = np.zeros((count, 4)), np.ones(count, bool)
    columns: list[dict[str, list[Any]]] = [
        {"states": [row], "actions": [], "reward": [], "success": [], "terminated": []} for row in state
    ]
    while running.any():
        noise = 0.5 * noise + sigma * rng.normal(size=(count, 4))
        expert = np.stack([expert_action(m.scene, m.privileged()) for m in env.simulations])
        expert[blind] = 0.0
        expert[:, 3] *= np.where(rng.random(count) < 0.05, -1.0, 1.0)
        noise[~blind, 3] = 0.0
        actions = np.clip(expert + noise, -1, 1).astype(np.float32)
        _, reward, done, info = env.step(actions)
        for i in np.flatnonzero(running):
            row = {"states": info["final"]["privileged"][i], "actions": actions[i], "reward": reward[i]}
            row |= {"success": info["success"][i], "terminated": info["terminated"][i]}
            for name, value in row.items():
                columns[i][name].append(value)
        running &= ~done
    return [{name: np.asarray(column) for name, column in episode.items()} for episode in columns]


def forecast_errors(
    model: StateEnsemble, episodes: Sequence[StateEpisode], steps: int = 8, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Uncertainty and true error of forecasts under the logged actions.

    Every window of `steps` actions with H states before it is forecast by the means of one random member.

    Returns:
        `(M,)` epistemic uncertainty, mean of the steps, and `(M,)` absolute error of the last state, summed over the
        dimensions that change; both in standard deviations of the data.
    """
    rng, past = np.random.default_rng((seed, 72)), model.config.history - 1
    windows = [(i, t) for i, e in enumerate(episodes) for t in range(0, len(e["actions"]) - steps + 1, 2)]
    before = [np.arange(t - past, t + 1) for _, t in windows]
    tensor = lambda rows: torch.from_numpy(np.stack(rows).astype(np.float32))  # noqa: E731
    states = tensor([episodes[i]["states"][b.clip(0)] for (i, _), b in zip(windows, before, strict=True)])
    actions = tensor(
        [episodes[i]["actions"][b[:-1].clip(0)] for (i, _), b in zip(windows, before, strict=True)]
    )
    memory = model.begin(states, actions, torch.from_numpy(np.stack(before)[:, :-1] >= 0))
    member = torch.from_numpy(rng.integers(model.config.members, size=len(windows)))
    uncertainty = torch.zeros(len(windows))
    for k in range(steps):
        memory, predicted = model.step(
            memory, tensor([episodes[i]["actions"][t + k] for i, t in windows]), member=member
        )
        uncertainty += predicted.epistemic / steps
    error = (memory.states - tensor([episodes[i]["states"][t + steps] for i, t in windows])).abs()
    return uncertainty.numpy(), (error / model.state_std).sum(-1).numpy()


def run_arm(
    penalty: float,
    seed: int,
    episodes: int,
    steps: int,
    *,
    settings: RwmUSettings | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Run one arm.

    Args:
        penalty: lambda of `r - unit lambda u`, with u summed over the state's dimensions in standard deviations of the
            data.
        seed: seed of logs, ensemble and policy. The audit's starts are the same for all seeds.
        episodes: logged episodes in Real to train on.
        steps: imagined steps of PPO.
        settings: settings shared by the arms.
        out: folder in which arms of one seed share the ensemble; None trains it in a temporary folder.

    Returns:
        JSON-able numbers: `success` in Real and `success_by_start`, `imagined_success` from held-out starts and
        `imagined_by_start`, `gap` of
        the two, `log_success` of the logs, `spearman` of uncertainty and 8-step error on held-out logs (None if
        undefined), mean `uncertainty` on held-out logs and `imagined_uncertainty` under the policy, seconds by stage,
        and the settings.
    """
    s, clock = settings or RwmUSettings(), [time.monotonic()]
    logs = collect_states(episodes, LOG_SEED0 + seed, s)
    held_out = collect_states(s.held_out, HELD_OUT_SEED0 + seed, s)
    clock.append(time.monotonic())
    config = StateEnsembleConfig.preset(
        s.preset, members=s.members, shared_trunk=s.shared_trunk, history=s.history, seed=seed
    )
    model = StateEnsemble(config.for_data(logs))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if out is None else Path(out) / f"seed{seed}"
        losses = train_states(model, logs, StateTrainingConfig(steps=s.model_steps, seed=seed), folder)
    clock.append(time.monotonic())
    uncertainty, error = forecast_errors(model, held_out, seed=seed)
    imagined: Any = {"horizon": s.horizon, "uncertainty_bound": s.uncertainty_bound}
    envs = ImaginedStates(model, logs, s.num_envs, penalty=s.unit * penalty, **imagined)
    sizes = DenoisingConfig(envs.sizes["actor"], envs.sizes["privileged"], envs.action_dim)
    policy = StateActorCritic(sizes, seed=seed)
    last = PPO(policy, PPOConfig(seed=seed)).train(envs, steps)
    clock.append(time.monotonic())
    real = StateTabletop(s.audit_episodes, task=s.task, horizon=s.horizon)
    success, _ = first_episodes(policy, real, AUDIT_SEED)
    firsts = [{name: column[: 2 if name == "states" else 1] for name, column in e.items()} for e in held_out]
    there = ImaginedStates(model, firsts, s.audit_episodes, penalty=0.0, **imagined)
    judged, _ = first_episodes(policy, there, AUDIT_SEED)
    clock.append(time.monotonic())
    seconds = dict(
        zip(("collect", "model", "policy", "audit"), np.diff(clock).round(1).tolist(), strict=True)
    )
    return {
        "penalty": penalty,
        "seed": seed,
        "success": float(success.mean()),
        "success_by_start": success.astype(int).tolist(),
        "imagined_success": float(judged.mean()),
        "imagined_by_start": judged.astype(int).tolist(),
        "gap": float(judged.mean() - success.mean()),
        "log_success": float(np.mean([e["success"].any() for e in logs])),
        "log_steps": int(sum(len(e["actions"]) for e in logs)),
        "spearman": spearman_or_none(uncertainty, error),
        "uncertainty": float(uncertainty.mean()),
        "imagined_uncertainty": _uncertainty_under(policy, there),
        "nll": losses.get("nll"),
        "training_success": None if math.isnan(last["success"]) else last["success"],
        "seconds": seconds,
        "settings": {k: v if v != math.inf else None for k, v in asdict(s).items()},
    }


@torch.no_grad()
def _uncertainty_under(policy: Any, envs: ImaginedStates, steps: int = 20) -> float:
    """Mean uncertainty of imagined steps under the policy's mean actions."""
    obs, total = envs.reset(AUDIT_SEED + 1), 0.0
    for _ in range(steps):
        given = {"privileged": torch.from_numpy(obs["privileged"])}
        step = policy.act(given, policy.initial(envs.num_envs), True)
        obs, _, _, info = envs.step(step.action.numpy())
        total += float(np.mean(info["uncertainty"])) / steps
    return total
