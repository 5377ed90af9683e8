"""PPO from scratch in the world model, in one file: the task reach, evaluated in Real before and after training.

It shows the whole training loop in one file, as CleanRL does: imagined episodes as torch tensors (`tensors=True`),
disabled autoreset so that each reset names its task, Gaussian actions that are repeated for a chunk of frames,
generalised advantage estimation that bootstraps at truncation, and the clipped objective (Schulman et al. 2017,
equation 7).

Example::

    python -m experiments.examples.ppo --task reach --frames 400000 --out runs/ppo
    tensorboard --logdir runs/ppo
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

import worldgym  # noqa: F401  (registers the ids)
from experiments.examples.measured import imagined_settings
from experiments.pipelines.keypoint_policy import Checkpoints, KeypointPolicy
from experiments.pipelines.run_folder import versions
from rewards.judge_features import JudgeFeatures
from worldgym.evaluation import paired_bootstrap, wilson
from worldgym.suite import load_suite
from worldgym.utils.files import atomic_write_text

EVAL_SEED0 = 18_000_000


@dataclass(frozen=True)
class Args:
    """Settings of the run.

    Args:
        task: task to learn; the bundled world model covers reach, push and pick_place.
        frames: total number of imagined frames.
        out: run folder.
        seed: seed of all randomness.
        num_envs: environments that are stepped as one batch.
        chunk: frames for which an action is repeated.
        horizon: frames per episode.
        steps: actions per environment between updates.
        lr: learning rate of Adam, decaying linearly to 0.
        gamma, lam: discount and GAE parameter, per action.
        clip: clipping range of the probability ratio.
        epochs: epochs over the data of an update.
        minibatches: minibatches per epoch.
        entropy: weight of the entropy bonus.
        log_std: initial log standard deviation of the actions.
        reward_kind: `success`, `difference`, or `potential`, which adds shaping by the judge's log odds.
        eval_episodes: evaluation episodes in Real, from the same starts before and after training.
        threads: number of torch threads.
        world_model: folder of another world model than the bundled one; judge and starts stay the bundled ones.
    """

    task: str = "reach"
    frames: int = 400_000
    out: Path = Path("runs/ppo")
    seed: int = 0
    num_envs: int = 64
    chunk: int = 2
    horizon: int = 20
    steps: int = 20
    lr: float = 1e-3
    gamma: float = 0.97
    lam: float = 0.95
    clip: float = 0.2
    epochs: int = 4
    minibatches: int = 4
    entropy: float = 0.002
    log_std: float = -1.0
    reward_kind: str = "potential"
    eval_episodes: int = 200
    threads: int = 2
    world_model: Path | None = None


class Agent(nn.Module):
    """Policy and value networks on image and instruction features `(B, dim)`."""

    def __init__(self, dim: int, log_std: float, width: int = 128) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(dim, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.mean, self.value = nn.Linear(width, 4), nn.Linear(width, 1)
        nn.init.orthogonal_(self.mean.weight, 0.01)
        self.log_std = nn.Parameter(torch.full((4,), log_std))

    def forward(self, seen: Tensor) -> tuple[torch.distributions.Normal, Tensor]:
        """Distribution of the action `(B,4)` and value `(B,)`."""
        hidden = self.body(seen)
        return torch.distributions.Normal(self.mean(hidden), self.log_std.exp()), self.value(hidden).squeeze(-1)


def held(action: Tensor, chunk: int) -> Tensor:
    """Clamp an action `(B,4)` to [-1, 1] and repeat it for `chunk` frames: `(B,K,4)`."""
    return action.clamp(-1, 1)[:, None].expand(-1, chunk, -1)


@torch.no_grad()
def success_in_real(eyes: JudgeFeatures, agent: Agent, args: Args, slots: int = 25) -> np.ndarray:
    """Return success at any time with mean actions, `(N,)` bool. Every call uses the same starts."""
    envs = load_suite().make(
        slots, task=args.task, horizon=args.horizon, chunk=args.chunk,
        instruction="embedding", autoreset_mode="Disabled", terminate_on_success=False,
    )  # fmt: skip
    found = []
    for first in range(0, args.eval_episodes, slots):
        observation, info = envs.reset(seed=EVAL_SEED0 + first)
        for _ in range(args.horizon // args.chunk):
            policy, _ = agent(eyes({k: torch.as_tensor(v) for k, v in observation.items()}))
            observation, *_, info = envs.step(held(policy.mean, args.chunk).numpy())
        found.append(info["success_once"])
    envs.close()
    return np.concatenate(found)[: args.eval_episodes]


def advantages(batch: dict[str, Tensor], args: Args) -> Tensor:
    """Generalised advantages `(T,B)` (Schulman et al. 2016, equation 16); at truncation, bootstrap from the value."""
    target = batch["reward"] + args.gamma * batch["next_value"] * ~batch["terminated"]
    delta, out = target - batch["value"], torch.zeros_like(target)
    carry = torch.zeros_like(delta[0])
    for t in range(len(delta) - 1, -1, -1):
        over = batch["terminated"][t] | batch["truncated"][t]
        out[t] = carry = delta[t] + args.gamma * args.lam * ~over * carry
    return out


def main(args: Args) -> int:
    """Train and evaluate; write `results.json`, the policy, and checkpoints of it."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    board = SummaryWriter(str(args.out))
    board.add_text("hparams", json.dumps(asdict(args), default=str, indent=1))
    envs = gym.make_vec(
        "worldgym/Imagined-v0", num_envs=args.num_envs, horizon=args.horizon, chunk=args.chunk, tensors=True,
        instruction="embedding", reward_kind=args.reward_kind, discount=args.gamma, judge_every=args.chunk,
        autoreset_mode="Disabled", **imagined_settings(args.world_model),
    )  # fmt: skip
    encoder = JudgeFeatures(envs.single_observation_space)
    agent = Agent(encoder.dim, args.log_std)
    adam = torch.optim.Adam(agent.parameters(), lr=args.lr, eps=1e-5)
    before = success_in_real(encoder, agent, args)
    options = {"task": args.task}
    observation, _ = envs.reset(seed=args.seed, options=options)
    seen = encoder(observation)
    per_update = args.num_envs * args.steps * args.chunk
    updates, began, curve = max(1, args.frames // per_update), time.perf_counter(), []
    checkpoints = Checkpoints(args.out)

    def save(folder: Path) -> None:
        layers = [layer for layer in (*agent.body, agent.mean) if isinstance(layer, nn.Linear)]
        policy = KeypointPolicy.of_layers(layers, agent.log_std, encoder.reach, args.chunk)
        policy.save_pretrained(folder)

    for update in range(updates):
        adam.param_groups[0]["lr"] = args.lr * (1 - update / updates)
        rows: list[dict[str, Tensor]] = []
        ended: list[tuple[float, float]] = []
        for _ in range(args.steps):
            with torch.no_grad():
                policy, value = agent(seen)
                action = policy.sample()
                after, reward, terminated, truncated, info = envs.step(held(action, args.chunk))
                seen_after = encoder(after)
                next_value = agent(seen_after)[1]
            # Steps that the judge could not score are dropped below.
            valid = ~torch.as_tensor(info["invalid"])
            rows.append({
                "seen": seen, "action": action, "log_prob": policy.log_prob(action).sum(-1), "value": value,
                "reward": reward, "next_value": next_value, "terminated": terminated, "truncated": truncated,
                "valid": valid,
            })  # fmt: skip
            seen = seen_after
            over = (terminated | truncated).numpy()
            if over.any():
                ended += list(zip(info["success_once"][over], info["episode_len"][over], strict=True))
                observation, _ = envs.reset(options={**options, "reset_mask": over})
                seen = encoder(observation)
        batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        gain = advantages(batch, args)
        batch |= {"advantage": gain, "return": gain + batch["value"]}
        flat = {key: value.flatten(0, 1) for key, value in batch.items()}
        flat = {key: value[flat["valid"]] for key, value in flat.items()}
        losses = improve(agent, adam, flat, args)
        for folder in checkpoints.passed((update + 1) / updates):
            save(folder)
        frames = (update + 1) * per_update
        success = float(np.mean([s for s, _ in ended])) if ended else float("nan")
        curve.append({"frames": frames, "success": success, "seconds": time.perf_counter() - began})
        board.add_scalar("rollout/success_rate", success, frames)
        board.add_scalar("rollout/ep_len_mean", float(np.mean([n for _, n in ended])) if ended else 0.0, frames)
        board.add_scalar("time/fps", frames / curve[-1]["seconds"], frames)
        for name, loss in losses.items():
            board.add_scalar(f"train/{name}", loss, frames)
        sys.stdout.write(f"{frames:>8} frames  imagined success {success:.2f}  {frames / curve[-1]['seconds']:.0f}/s\n")
    envs.close()
    after_training = success_in_real(encoder, agent, args)
    board.add_scalar("eval/success_once", float(after_training.mean()), updates * per_update)
    board.close()
    difference = paired_bootstrap(after_training, before)
    results = {
        "args": asdict(args), "before": wilson(int(before.sum()), len(before)).to_dict(),
        "after": wilson(int(after_training.sum()), len(before)).to_dict(), "difference": difference.to_dict(),
        "seconds": time.perf_counter() - began, "curve": curve, "versions": versions(),
    }  # fmt: skip
    atomic_write_text(args.out / "results.json", json.dumps(results, indent=1, default=str) + "\n")
    save(checkpoints.last)
    sys.stdout.write(
        f"success in Real: {before.mean():.2f} before, {after_training.mean():.2f} after; difference "
        f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}], {len(before)} paired starts\n"
    )
    return 0


def improve(agent: Agent, adam: torch.optim.Optimizer, flat: dict[str, Tensor], args: Args) -> dict[str, float]:
    """Run `epochs` of clipped updates on N steps; return mean losses."""
    total = {"policy_gradient_loss": 0.0, "value_loss": 0.0, "entropy_loss": 0.0, "clip_fraction": 0.0}
    count = args.epochs * args.minibatches
    for _ in range(args.epochs):
        for part in torch.randperm(len(flat["reward"])).chunk(args.minibatches):
            policy, value = agent(flat["seen"][part])
            ratio = (policy.log_prob(flat["action"][part]).sum(-1) - flat["log_prob"][part]).exp()
            gain = flat["advantage"][part]
            gain = (gain - gain.mean()) / (gain.std() + 1e-8)
            surrogate = torch.min(ratio * gain, ratio.clamp(1 - args.clip, 1 + args.clip) * gain).mean()
            error = (value - flat["return"][part]).square().mean()
            entropy = policy.entropy().sum(-1).mean()
            adam.zero_grad(set_to_none=True)
            (-surrogate + 0.5 * error - args.entropy * entropy).backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            adam.step()
            clipped = ((ratio - 1).abs() > args.clip).float().mean()
            for name, value_of in zip(total, (-surrogate, error, -entropy, clipped), strict=True):
                total[name] += float(value_of.detach()) / count
    return total


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
