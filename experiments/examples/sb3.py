"""Stable-Baselines3 in the world model: PPO or SAC learns the task reach, evaluated in Real before and after.

Uses SB3's algorithms and `MultiInputPolicy` without changes. The environment encodes each image once, with the judge's
frozen image and text encoder (`rewards.judge_features`). With SB3's own extractor, which concatenates image and text
features and is trained from reward only, PPO does not learn to find an object by its name.

Example::

    python -m experiments.examples.sb3 --algorithm ppo --minutes 12 --out runs/sb3_ppo
    python -m experiments.examples.sb3 --algorithm sac --minutes 12 --out runs/sb3_sac
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from experiments.examples.measured import imagined_settings, success_in_real, write_results
from experiments.pipelines.keypoint_policy import Checkpoints, KeypointPolicy
from rewards.judge_features import JudgeFeatureWrapper
from worldgym.imagination.adapters.sb3 import make_sb3_vec_env

GAMMA = 0.97


@dataclass(frozen=True)
class Args:
    """Settings of the run.

    Args:
        algorithm: algorithm of SB3.
        task: task to learn; the bundled world model covers reach, push and pick_place.
        minutes: training time in minutes.
        out: run folder.
        seed: seed of all randomness.
        num_envs: environments that are stepped as one batch.
        chunk: frames for which an action is repeated.
        horizon: frames per episode.
        eval_episodes: evaluation episodes in Real, from the same starts before and after training.
        threads: number of torch threads.
        world_model: folder of another world model than the bundled one; judge and starts stay the bundled ones.
    """

    algorithm: Literal["ppo", "sac"] = "ppo"
    task: str = "reach"
    minutes: float = 12.0
    out: Path = Path("runs/sb3")
    seed: int = 0
    num_envs: int = 64
    chunk: int = 2
    horizon: int = 20
    eval_episodes: int = 200
    threads: int = 2
    world_model: Path | None = None


class Watch(BaseCallback):
    """Records the curve of imagined success, saves checkpoints, and stops training when the time is over.

    Args:
        minutes: training time.
        chunk: frames of an action.
        checkpoints: when to save.
        save: saves the present policy into a folder.
    """

    def __init__(
        self, minutes: float, chunk: int, checkpoints: Checkpoints, save: Callable[[Path], None]
    ) -> None:
        super().__init__()
        self.seconds, self.chunk, self.checkpoints, self.save = 60 * minutes, chunk, checkpoints, save
        self.recent: deque[float] = deque(maxlen=500)
        self.curve: list[dict[str, float]] = []
        self.began = time.perf_counter()

    def _on_step(self) -> bool:
        self.recent += [info["is_success"] for info in self.locals["infos"] if "is_success" in info]
        spent = time.perf_counter() - self.began
        for folder in self.checkpoints.passed(spent / self.seconds):
            self.save(folder)
        if self.recent and spent >= 10 * (len(self.curve) + 1):
            frames, success = self.num_timesteps * self.chunk, float(np.mean(self.recent))
            self.curve.append({"frames": frames, "success": success, "seconds": spent})
            self.logger.record("rollout/success_rate", success)
            sys.stdout.write(f"{frames:>8} frames  imagined success {success:.2f}  {frames / spent:.0f}/s\n")
        return spent < self.seconds


def build(args: Args, envs: Any) -> Any:
    """Create the algorithm, with settings for short episodes of few decisions."""
    net = {"net_arch": [128, 128], "activation_fn": nn.Tanh}
    common = {"seed": args.seed, "device": "cpu", "tensorboard_log": str(args.out), "gamma": GAMMA}
    if args.algorithm == "ppo":
        return PPO(
            "MultiInputPolicy", envs, learning_rate=1e-3, n_steps=20, batch_size=320, n_epochs=4, ent_coef=0.002,
            policy_kwargs={**net, "log_std_init": -1.0}, **common,
        )  # fmt: skip
    # A small, fixed entropy weight. The automatic weight starts at 1; with rewards of at most 1, the policy became
    # random.
    return SAC(
        "MultiInputPolicy", envs, learning_rate=1e-3, buffer_size=200_000, learning_starts=3_000, batch_size=512,
        train_freq=1, gradient_steps=16, ent_coef=0.005, policy_kwargs=net, **common,
    )  # fmt: skip


def policy_of(model: Any, reach: torch.Tensor, args: Args) -> KeypointPolicy:
    """The policy part of the networks of PPO or SAC."""
    if args.algorithm == "ppo":
        body, mean, log_std = (
            model.policy.mlp_extractor.policy_net, model.policy.action_net, model.policy.log_std,
        )  # fmt: skip
        return KeypointPolicy.of_layers([body[0], body[2], mean], log_std, reach, args.chunk)
    body, actor = model.actor.latent_pi, model.actor
    return KeypointPolicy.of_layers([body[0], body[2], actor.mu], actor.log_std, reach, args.chunk, "tanh")


def main(args: Args) -> int:
    """Train and evaluate; write `results.json`, the policy, and checkpoints of it."""
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    envs = make_sb3_vec_env(
        "worldgym/Imagined-v0", num_envs=args.num_envs, held=True, task=args.task, chunk=args.chunk,
        horizon=args.horizon, judge_every=args.chunk, reward_kind="potential", discount=GAMMA,
        wrap=JudgeFeatureWrapper, **imagined_settings(args.world_model),
    )  # fmt: skip
    model, checkpoints = build(args, envs), Checkpoints(args.out)
    encoder: Any = envs.envs

    def save(folder: Path) -> None:
        policy_of(model, encoder.eyes.reach, args).save_pretrained(folder)

    watch = Watch(args.minutes, args.chunk, checkpoints, save)

    def act(observation: dict[str, np.ndarray]) -> np.ndarray:
        actions, _ = model.predict(encoder.see(observation), deterministic=True)
        return np.asarray(actions)

    before = success_in_real(act, args)
    watch.began = time.perf_counter()
    model.learn(1_000_000_000, callback=watch, log_interval=1 if args.algorithm == "ppo" else 50)
    seconds = time.perf_counter() - watch.began
    after = success_in_real(act, args)
    envs.close()
    save(checkpoints.last)
    sys.stdout.write(write_results(args.out, args, before, after, watch.curve, seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
