"""`worldgym bundle`: put trained parts together into a checkpoint folder that `demo`, `bench` and `gym.make` use.

Example::

    worldgym bundle --data data/real --world-model runs/world_model/export --judge runs/judge --policy runs/policy \
        --out worldgym/pretrained/tabletop-small
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldgym.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BundleConfig:
    """Assemble a bundle.

    Args:
        data: dataset of `worldgym collect` that the parts were trained on.
        world_model: folder of a world model (`.../export`).
        judge: folder of a judge.
        policy: folder of the SFT policy.
        probe: folder of the position probe (`.../export`), which `worldgym bench fidelity` measures with.
        latent_judge: folder of a success head on this world model's latents.
        open_clip_judge: folder of an open_clip judge.
        out: the bundle's folder.
        starts: frames of Real's logs kept as starts of imagined episodes.
        demos_per_task: demonstrations that the policy was trained on, per task.
        demos_limit: the demonstrations are drawn from so many first episodes, as `worldgym train policy --limit` did.
        seed: which frames are kept.
    """

    data: Path
    world_model: Path
    judge: Path
    policy: Path
    out: Path
    probe: Path | None = None
    latent_judge: Path | None = None
    open_clip_judge: Path | None = None
    starts: int = 3000
    demos_per_task: int = 25
    demos_limit: int | None = None
    seed: int = 0


def run(config: BundleConfig) -> int:
    """Copy the parts, pick starts and demonstrations, write the card."""
    from agents.sft import demonstrations
    from worldgym.data import EpisodeDataset

    dataset = EpisodeDataset(config.data).require_seen()
    arrays = dataset.load_arrays(progress=True)
    copy_parts(config)
    write_starts(config.out / "starts.npz", arrays, config.starts, config.seed)
    first = arrays if config.demos_limit is None else dataset.load_arrays(limit=config.demos_limit)
    write_demos(config.out / "demos.npz", demonstrations(first, config.demos_per_task))
    write_card(config.out, sorted(set(arrays.tasks)), dataset.manifest.hash, len(arrays), dataset.summary)
    size = sum(f.stat().st_size for f in config.out.rglob("*") if f.is_file()) / 1e6
    logger.info("bundle in %s, %.1f MB", config.out, size)
    return 0


def copy_parts(config: BundleConfig) -> None:
    """World model, judges, policy and probe: config.json and model.safetensors of each, open_clip's own of one."""
    parts = {"world_model": config.world_model, "judge": config.judge, "policy_sft": config.policy}
    more = {"probe": config.probe, "judge_latent": config.latent_judge, "judge_open_clip": config.open_clip_judge}
    parts |= {name: source for name, source in more.items() if source is not None}
    for name, source in parts.items():
        files = ("config.json", "model.safetensors")
        if name == "judge_open_clip":
            files = ("judge.json", "open_clip_config.json", "open_clip_model.safetensors")
        missing = [f for f in files if not (source / f).is_file()]
        if missing:
            raise ConfigError(
                f"{source} has no {' and no '.join(missing)}; give the folder of a trained {name}"
            )
        target = config.out / name
        target.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(source / file, target / file)


def write_starts(path: Path, arrays: Any, count: int, seed: int) -> None:
    """`count` unsolved frames, half first frames and half from the middle of episodes, tasks equally often."""
    from agents import StartBank

    bank = StartBank.from_arrays(arrays)
    chosen = bank.sample(count, np.random.default_rng(seed))
    np.savez_compressed(
        path,
        images=chosen.images.numpy(),
        states=chosen.states.numpy(),
        instructions=np.array(chosen.instructions),
        tasks=np.array(chosen.tasks),
        steps=chosen.steps.numpy(),
    )


def write_demos(path: Path, demos: list[Any] | Any) -> None:
    """The demonstrated chunks; pictures as differences from their median, which deflate to a fifth."""
    from agents import chunk_dataset

    chunks = chunk_dataset(demos)
    sample = chunks.images[:: max(1, len(chunks.images) // 500)]
    background = np.median(sample, 0).astype(np.uint8)
    np.savez_compressed(
        path,
        images=chunks.images - background,  # uint8 wraps around: lossless
        background=background,
        states=chunks.states,
        actions=np.round(chunks.actions, 3).astype(np.float16),
        instructions=np.array(chunks.instructions),
        episode=chunks.episode,
        goals=chunks.goals,
    )


def write_card(out: Path, tasks: list[str], manifest: str, real_episodes: int, summary: Any) -> None:
    """`card.json` for programs; the README beside it is for people."""
    from worldgym import __version__
    from worldgym.utils.files import atomic_write_text

    card = {
        "name": out.name,
        "tasks": tasks,
        "tasks_thin": [],
        "licence": "Apache-2.0",
        "worldgym": __version__,
        "split_manifest": manifest,
        "real_episodes": real_episodes,
        "data": json.loads(json.dumps(summary, default=str)),
        "command": "make pretrained",
    }
    atomic_write_text(out / "card.json", json.dumps(card, indent=1))
