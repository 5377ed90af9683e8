"""Arms of the claims on auxiliary losses (C6, C7): SFT from scratch on few demonstrations, with and without.

All arms of a seed have the same demonstrations, initial weights (of equal tokens), number of optimizer steps and
settings. Those without a loss keep its tokens (weight 0).

Example::

    Arm("flare-10", "FLARE, 10 demonstrations per task", with_loss(10, "flare"), splits=SPLITS, evaluators=False)
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims.arms import Trained
from experiments.claims.c24 import built, plain
from experiments.claims.context import ClaimContext
from experiments.pipelines.recipe import Stage, arguments_of

DEMO_SEED0, VIDEO_SEED0 = 200_000, 300_000
"""First seeds of the demonstrations and of the video without actions."""
VIDEO_SPLIT = "unseen_object"
"""Split of the objects that the video without actions shows."""
FINISH_SHARE = 0.1
"""Share of the steps that are taken after the best epoch, at a low learning rate."""


def collected(lab: ClaimContext, name: str, episodes: int, seed: int, split: str) -> Any:
    """A dataset of the suite's expert in Real; collected once."""
    from worldgym.data import EpisodeDataset

    folder = lab.folder(name, 0)
    options = {
        "out": folder / "data", "suite": lab.suite.name, "tasks": list(lab.tasks), "episodes": episodes, "seed": seed,
        "split": split, "mix": {"expert": 1.0}, "workers": lab.workers,
    }  # fmt: skip
    built(name, (Stage("episodes", ("collect",), tuple(arguments_of(plain(options)))),), folder)
    return EpisodeDataset(folder / "data")


def expert_arrays(lab: ClaimContext) -> Any:
    """The demonstrations of all arms, in memory."""

    def make() -> Any:
        dataset = collected(lab, "aux_demos", lab.preset.aux_episodes, DEMO_SEED0, "seen").require_seen()
        return dataset.load_arrays(cameras=dataset.cameras)

    return lab.once("aux_demos", make)


def video_arrays(lab: ClaimContext) -> Any:
    """Video of unseen objects, in memory; its actions are ignored."""

    def make() -> Any:
        dataset = collected(lab, "aux_video", lab.preset.aux_video, VIDEO_SEED0, VIDEO_SPLIT)
        return dataset.load_arrays(cameras=dataset.cameras)

    return lab.once("aux_video", make)


def with_loss(
    demos: int,
    name: str,
    values: Mapping[str, Any] | None = None,
    *,
    video: bool = False,
    frozen: bool = False,
) -> Callable[[ClaimContext, int, Path], Trained]:
    """Train function: SFT from scratch with an auxiliary loss.

    Args:
        demos: demonstrations per task.
        name: auxiliary loss.
        values: its settings; `weight=0` keeps the tokens alone.
        video: also learn from video of unseen objects, without actions.
        frozen: the loss has a frozen encoder, which is that of the bundle's world model.
    """

    def train(lab: ClaimContext, seed: int, folder: Path) -> Trained:
        import torch

        from agents import SFT, SFTConfig, VLAPolicy, VLAPolicyConfig, chunk_dataset
        from agents.auxiliary.make import future_view, make_auxiliaries, settings_of, token_count
        from agents.auxiliary.video import video_rows
        from agents.data.demonstrations import HandColumns, demonstrations

        preset, arrays = lab.preset, expert_arrays(lab)
        own = {**(values or {}), **({"encoder": str(lab.bundle.folder)} if frozen else {})}
        settings = settings_of([name], own)
        hand = HandColumns.of(arrays.specs)
        torch.manual_seed(seed)
        policy = lab.bundle.placing(VLAPolicy(VLAPolicyConfig.for_data(
            "tiny" if preset.name == "tiny" else "small", arrays.specs, goal_dims=3 if hand is not None else 0,
            future_tokens=token_count(settings), future_view=future_view(settings),
        )))  # fmt: skip
        chosen = demonstrations(arrays, demos, seed=seed)
        rows = chunk_dataset(chosen, policy.chunk, hand=hand, future=True)
        losses = make_auxiliaries(settings, policy)
        watched = video_rows(video_arrays(lab), rows) if video else None
        config = SFTConfig(batch_size=preset.batch, patience=0, seed=seed)
        held_out = int(rows.held_out(config.val_fraction, seed).sum()) if len(chosen) > 1 else 0
        in_epoch = math.ceil((len(rows) - held_out) / preset.batch)
        epochs = math.ceil(preset.aux_steps / in_epoch)
        config = dataclasses.replace(
            config, epochs=epochs, finish_steps=round(FINISH_SHARE * preset.aux_steps)
        )
        history = SFT(config, losses, watched).fit(policy, rows)
        policy.save_pretrained(folder / "policy")
        found = {
            "demos": len(chosen), "frames": len(rows), "loss": name, **(values or {}),
            "video_frames": 0 if watched is None else len(watched), "epochs": epochs,
            "best_epoch": history["best_epoch"], "best_score": round(history["best_score"], 5),
            "latency_ratio": round(latency_ratio(policy, rows), 4),
            "probe": round(action_probe(losses[0], policy, rows), 4),
        }  # fmt: skip
        budget = {
            "real_episodes": float(len(chosen)),
            "updates": float(epochs * in_epoch + config.finish_steps),
        }
        return Trained(lab.ref(folder / "policy"), budget, settings=found)

    return train


def latency_ratio(policy: Any, rows: Any, repeats: int = 30) -> float:
    """Median time of `act` for one observation, divided by that of the same policy without future tokens."""
    import torch

    bare = dataclasses.replace(policy.config, future_tokens=0, future_view=False)
    with torch.random.fork_rng():
        other = type(policy)(bare).to(policy.device).eval()
    observation, _ = rows.batch(np.arange(1))
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(repeats):
        for i, acting in enumerate((policy, other)):
            began = time.perf_counter()
            acting.act(observation, temperature=0)
            seconds[i].append(time.perf_counter() - began)
    return float(np.median(seconds[0]) / np.median(seconds[1]))


def action_probe(loss: Any, policy: Any, rows: Any, ridge: float = 1.0) -> float:
    """R^2 of a ridge regression from a loss's future tokens to the next action, on every second episode.

    It is fitted on the other episodes; tokens and actions are standardised, and the value is the mean over actions.
    """
    import torch

    tokens = []
    with torch.no_grad():
        for part in np.array_split(np.arange(len(rows)), max(1, len(rows) // 256)):
            tokens.append(loss.tokens(policy, rows.chunk_batch(part), None).flatten(1).cpu().double())
    x, y = torch.cat(tokens), torch.from_numpy(rows.actions[:, 0]).double()
    numbers = np.unique(rows.episode, return_inverse=True)[1]
    fit = torch.from_numpy(numbers % 2 == 0)
    if bool(fit.all()):
        return 0.0
    x = (x - x[fit].mean(0)) / (x[fit].std(0) + 1e-6)
    centre = y[fit].mean(0)
    gram = x[fit] @ x[fit].T + ridge * x.shape[1] * torch.eye(int(fit.sum()), dtype=x.dtype)
    guess = centre + x[~fit] @ x[fit].T @ torch.linalg.solve(gram, y[fit] - centre)
    spread = (y[~fit] - centre).square().mean(0)
    moving = spread > 1e-6
    return (
        float((1 - (guess - y[~fit]).square().mean(0)[moving] / spread[moving]).mean())
        if moving.any()
        else 0.0
    )
