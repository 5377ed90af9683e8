"""Stable-Baselines3 from scratch inside the world model: reach, by PPO or SAC, measured in Real before and after.

SB3's own algorithms and its `MultiInputPolicy`, unmodified; only the feature extractor is ours, because SB3's joins
picture and words end to end, and a sum of the two cannot choose an object by its name: a product can.

Example::

    python -m experiments.examples.sb3 --algorithm ppo --minutes 12 --out runs/sb3_ppo
    python -m experiments.examples.sb3 --algorithm sac --minutes 12 --out runs/sb3_sac
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from safetensors.torch import save_file
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from experiments.run_folder import versions
from worldgym.evaluation import paired_bootstrap, wilson
from worldgym.imagination.held import HeldActions
from worldgym.imagination.sb3 import make_sb3_vec_env

EVAL_SEED0 = 18_000_000


@dataclass(frozen=True)
class Args:
    """What to run.

    Args:
        algorithm: of SB3.
        task: verb that is practised; the bundled world model covers reach, push and pick_place.
        minutes: of learning.
        out: run folder.
        seed: everything random.
        num_envs: slots imagined together.
        chunk: frames for which an action is held.
        horizon: frames of an episode.
        eval_episodes: in Real, from the same starts before and after.
        threads: of torch.
    """

    algorithm: Literal["ppo", "sac"] = "ppo"
    task: str = "reach"
    minutes: float = 12.0
    out: Path = Path("runs/sb3")
    seed: int = 0
    num_envs: int = 64
    chunk: int = 5
    horizon: int = 40
    eval_episodes: int = 200
    threads: int = 2


class SeenAndTold(BaseFeaturesExtractor):
    """Features of picture, words, their product, and proprioception; `(B, 3 width + 4)`."""

    def __init__(self, observation_space: gym.spaces.Dict, width: int = 256) -> None:
        super().__init__(observation_space, 3 * width + 4)
        self.eyes = nn.Sequential(
            nn.Conv2d(3, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(1024, width), nn.Tanh(),
        )  # fmt: skip
        self.words = nn.Sequential(nn.Linear(384, width), nn.Tanh())

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        """SB3 hands over channels first and in [0, 1]."""
        seen = self.eyes(observation["image"])
        told = self.words(20 * observation["instruction"])  # unit length in 384 dimensions: 0.05 each
        return torch.cat([seen, told, seen * told, 5 * observation["state"]], -1)


class Watch(BaseCallback):
    """Keeps the curve of imagined success, and stops when the time is over."""

    def __init__(self, minutes: float, chunk: int) -> None:
        super().__init__()
        self.seconds, self.chunk = 60 * minutes, chunk
        self.recent: deque[float] = deque(maxlen=500)
        self.curve: list[dict[str, float]] = []
        self.began = time.perf_counter()

    def _on_step(self) -> bool:
        self.recent += [info["is_success"] for info in self.locals["infos"] if "is_success" in info]
        spent = time.perf_counter() - self.began
        if self.recent and spent >= 10 * (len(self.curve) + 1):
            frames, success = self.num_timesteps * self.chunk, float(np.mean(self.recent))
            self.curve.append({"frames": frames, "success": success, "seconds": spent})
            self.logger.record("rollout/success_rate", success)
            sys.stdout.write(f"{frames:>8} frames  imagined success {success:.2f}  {frames / spent:.0f}/s\n")
        return spent < self.seconds


def success_in_real(model: Any, args: Args, slots: int = 25) -> np.ndarray:
    """`(N,)` bool, success at any time, acting by the mean; the same starts whenever it is called."""
    envs = HeldActions(gym.make_vec(
        "worldgym/Tabletop-v0", num_envs=slots, task=args.task, horizon=args.horizon, chunk=args.chunk,
        instruction="embedding", autoreset_mode="Disabled", terminate_on_success=False,
    ))  # fmt: skip
    found = []
    for first in range(0, args.eval_episodes, slots):
        observation, info = envs.reset(seed=EVAL_SEED0 + first)
        for _ in range(args.horizon // args.chunk):
            actions, _ = model.predict(observation, deterministic=True)
            observation, *_, info = envs.step(actions)
        found.append(info["success_once"])
    envs.close()
    return np.concatenate(found)[: args.eval_episodes]


def build(args: Args, envs: Any) -> Any:
    """The algorithm with settings for short episodes of few decisions."""
    features = {"features_extractor_class": SeenAndTold, "net_arch": [256], "activation_fn": nn.Tanh}
    common = {"seed": args.seed, "device": "cpu", "tensorboard_log": str(args.out), "gamma": 0.97}
    if args.algorithm == "ppo":
        return PPO(
            "MultiInputPolicy", envs, learning_rate=5e-4, n_steps=16, batch_size=256, n_epochs=4, ent_coef=0.002,
            policy_kwargs={**features, "log_std_init": -0.5}, **common,
        )  # fmt: skip
    return SAC(
        "MultiInputPolicy", envs, learning_rate=3e-4, buffer_size=30_000, learning_starts=2_000, batch_size=128,
        train_freq=1, gradient_steps=8, policy_kwargs={**features, "share_features_extractor": True}, **common,
    )  # fmt: skip


def main(args: Args) -> int:
    """Learn, measure, write `results.json` and the model."""
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    envs = make_sb3_vec_env(
        "worldgym/ImaginedTabletop-v0", num_envs=args.num_envs, held=True, task=args.task, chunk=args.chunk,
        horizon=args.horizon,
    )  # fmt: skip
    model, watch = build(args, envs), Watch(args.minutes, args.chunk)
    before = success_in_real(model, args)
    watch.began = time.perf_counter()
    model.learn(1_000_000_000, callback=watch, log_interval=1 if args.algorithm == "ppo" else 50)
    seconds = time.perf_counter() - watch.began
    envs.close()
    after = success_in_real(model, args)
    difference = paired_bootstrap(after, before)
    results = {
        "args": asdict(args), "before": wilson(int(before.sum()), len(before)).to_dict(),
        "after": wilson(int(after.sum()), len(before)).to_dict(), "difference": difference.to_dict(),
        "seconds": seconds, "curve": watch.curve, "versions": versions(),
    }  # fmt: skip
    (args.out / "results.json").write_text(json.dumps(results, indent=1, default=str) + "\n")
    save_file(
        {k: v.contiguous().clone() for k, v in model.policy.state_dict().items()},
        args.out / "policy.safetensors",
    )
    sys.stdout.write(
        f"success in Real: {before.mean():.2f} before, {after.mean():.2f} after; difference "
        f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}], {len(before)} paired starts\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
