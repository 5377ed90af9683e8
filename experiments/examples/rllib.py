"""RLlib in the world model: PPO on the new API stack learns the task reach, evaluated in Real before and after.

Uses RLlib's PPO without changes on the batched environment through `rllib_config`. The environment encodes each image
once, with the judge's frozen image and text encoder; the network is `ImageLanguageModule` on these features.

Example::

    python -m experiments.examples.rllib --minutes 12 --out runs/rllib_ppo
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from ray.rllib.callbacks.callbacks import RLlibCallback
from torch.utils.tensorboard import SummaryWriter

from experiments.examples.measured import imagined_settings, success_in_real, write_results
from experiments.pipelines.keypoint_policy import Checkpoints, KeypointPolicy
from rewards.judge_features import JudgeFeatures
from worldgym.imagination.adapters.features import EncodedFeatures
from worldgym.imagination.adapters.rllib import rllib_config
from worldgym.suite import load_suite

GAMMA, SUCCESS = 0.97, "success_rate"
WRAP = "rewards.judge_features:JudgeFeatureWrapper"


@dataclass(frozen=True)
class Args:
    """Settings of the run.

    Args:
        task: task to learn; the bundled world model covers reach, push and pick_place.
        minutes: training time in minutes.
        out: run folder.
        seed: seed of all randomness.
        num_envs: environments that are stepped as one batch.
        env_runners: number of remote processes with `num_envs` environments each; 0 imagines in this process.
        chunk: frames for which an action is repeated.
        horizon: frames per episode.
        eval_episodes: evaluation episodes in Real, from the same starts before and after training.
        threads: number of torch threads.
        world_model: folder of another world model than the bundled one; judge and starts stay the bundled ones.
    """

    task: str = "reach"
    minutes: float = 12.0
    out: Path = Path("runs/rllib")
    seed: int = 0
    num_envs: int = 64
    env_runners: int = 0
    chunk: int = 2
    horizon: int = 20
    eval_episodes: int = 200
    threads: int = 2
    world_model: Path | None = None


class CountSuccess(RLlibCallback):
    """Reports the share of episodes judged successful, which shaped rewards do not show."""

    def on_episode_end(self, *, episode: Any, metrics_logger: Any, **kwargs: Any) -> None:
        """Record the success of a finished episode; called by RLlib."""
        metrics_logger.log_value(SUCCESS, float(episode.get_infos(-1)["success_once"]), window=200)


def main(args: Args) -> int:
    """Train and evaluate; write `results.json`, the policy, checkpoints of it, and RLlib's checkpoint."""
    import ray

    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    config = rllib_config(
        num_envs=args.num_envs, env_runners=args.env_runners, held=True, task=args.task, chunk=args.chunk,
        horizon=args.horizon, judge_every=args.chunk, reward_kind="potential", discount=GAMMA, wrap=WRAP,
        **imagined_settings(args.world_model),
    )  # fmt: skip
    config.rl_module(model_config={"features": EncodedFeatures, "log_std": -1.0}).callbacks(CountSuccess)
    batch = args.num_envs * 20
    algorithm = config.debugging(seed=args.seed).training(
        lr=1e-3, gamma=GAMMA, lambda_=0.95, clip_param=0.2, vf_clip_param=float("inf"), entropy_coeff=0.002,
        use_kl_loss=False, grad_clip=0.5, train_batch_size_per_learner=batch, minibatch_size=min(320, batch),
        num_epochs=4,
    ).build_algo()  # fmt: skip

    plain = load_suite().make(1, chunk=args.chunk, instruction="embedding")
    features, checkpoints = JudgeFeatures(plain.single_observation_space), Checkpoints(args.out)
    plain.close()

    def act(observation: dict[str, np.ndarray]) -> np.ndarray:
        module: Any = algorithm.get_module()
        with torch.no_grad():
            seen = features({k: torch.as_tensor(v) for k, v in observation.items()})
            outputs = module.forward_inference({"obs": {"seen": seen}})
        mean: torch.Tensor = outputs["action_dist_inputs"][:, :4]
        return mean.clamp(-1, 1).numpy()

    def save(folder: Path) -> None:
        module: Any = algorithm.get_module()
        policy = KeypointPolicy.of_layers(
            [module.body[0], module.mean], module.log_std, features.reach, args.chunk
        )
        policy.save_pretrained(folder)

    before = success_in_real(act, args)
    board, curve, began = SummaryWriter(str(args.out)), [], time.perf_counter()
    while not curve or curve[-1]["seconds"] < 60 * args.minutes:
        sampled = algorithm.train()["env_runners"]
        frames, success = int(sampled["num_env_steps_sampled_lifetime"]) * args.chunk, sampled[SUCCESS]
        seconds = time.perf_counter() - began
        for folder in checkpoints.passed(seconds / (60 * args.minutes)):
            save(folder)
        curve.append({"frames": frames, "success": float(success), "seconds": seconds})
        board.add_scalar("rollout/success_rate", success, frames)
        board.add_scalar("time/fps", frames / seconds, frames)
        sys.stdout.write(f"{frames:>8} frames  imagined success {success:.2f}  {frames / seconds:.0f}/s\n")
    after = success_in_real(act, args)
    board.add_scalar("eval/success_once", float(after.mean()), frames)
    board.close()
    algorithm.save_to_path(str((args.out / "checkpoint").resolve()))
    save(checkpoints.last)
    algorithm.stop()
    sys.stdout.write(write_results(args.out, args, before, after, curve, seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
