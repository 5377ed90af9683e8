"""`worldgym train world-model`: the dynamics on a trained tokenizer's latents.

Example::

    worldgym train world-model --data data/real --tokenizer runs/tokenizer --out runs/world_model --minutes 60
    worldgym train world-model --data data/refresh --initial runs/world_model/export --minutes 15   # refresh
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainWorldModelConfig:
    """Train the dynamics; the same command again resumes.

    Args:
        data: dataset folder of `worldgym collect`.
        tokenizer: run folder of `worldgym train tokenizer`; with `initial` it replaces that model's own.
        out: run folder (checkpoint, TensorBoard, `export/`).
        initial: start from this world model instead of afresh.
        preset: `small` or `tiny`.
        minutes: wall time; the learning rate follows the clock. Ignored when `steps` is given.
        steps: optimizer steps; a run with steps resumes to the very same numbers.
        batch: windows per step.
        window: frames per window.
        lr: peak learning rate.
        contact_odds: how many times likelier a training window begins where the hand will hold or push something within
            the window than elsewhere; 1 treats all alike.
        compile: torch.compile the training pass: 40 % faster after a minute or two of warm-up.
        seed: everything random follows from it.
        limit: read at most so many episodes.
    """

    data: Path
    tokenizer: Path | None = None
    out: Path = Path("runs/world_model")
    initial: Path | None = None
    preset: str = "small"
    minutes: float = 120.0
    steps: int | None = None
    batch: int = 20
    window: int = 20
    lr: float = 2e-3
    contact_odds: float = 3.0
    compile: bool = False
    seed: int = 0
    limit: int | None = None


def run(config: TrainWorldModelConfig) -> int:
    """Encode the logs, train, export."""
    import torch
    from safetensors.torch import load_file

    from worldgym.data import EpisodeDataset
    from worldgym.errors import CheckpointError, ConfigError
    from worldgym.models import TokenizerConfig, VideoWorldModel, WorldModelConfig
    from worldgym.training.loop import LoopConfig
    from worldgym.training.world_model import LatentEpisodes, WorldModelTraining, train_world_model

    if config.tokenizer is None and config.initial is None:
        raise ConfigError("give --tokenizer RUN (from `worldgym train tokenizer`) or --initial WORLD_MODEL")
    arrays = EpisodeDataset(config.data).require_seen().load_arrays(limit=config.limit, progress=True)
    torch.manual_seed(config.seed)
    if config.initial is not None:
        model = VideoWorldModel.from_pretrained(config.initial).requires_grad_(True)
    weights = config.tokenizer / "tokenizer.safetensors" if config.tokenizer is not None else None
    if weights is not None and not weights.is_file():
        raise CheckpointError(
            f"no tokenizer at {weights}; run `worldgym train tokenizer --out {config.tokenizer}` first"
        )
    if config.initial is None:
        assert config.tokenizer is not None
        settings = json.loads((config.tokenizer / "tokenizer.json").read_text())
        settings.pop("metrics", None)
        mean, std = arrays.states.mean(0), arrays.states.std(0) + 1e-6
        shape = replace(
            WorldModelConfig.preset(config.preset),
            tokenizer=TokenizerConfig(**settings),
            state_mean=tuple(float(v) for v in mean),
            state_std=tuple(float(v) for v in std),
            tasks=tuple(sorted(set(arrays.tasks))),
        )
        model = VideoWorldModel(shape)
    if weights is not None:
        model.tokenizer.load_state_dict(load_file(weights))
    data = LatentEpisodes.encode(model.tokenizer, arrays)
    data.odds = window_odds(arrays.states, arrays.offsets, config.window, config.contact_odds)
    loop = LoopConfig(
        steps=config.steps or 1_000_000, lr=config.lr, final_lr=0.02, warmup=200, optimizer="muon", ema=0.995,
        weight_decay=0.02, seed=config.seed, max_minutes=None if config.steps else config.minutes,
    )  # fmt: skip
    training = WorldModelTraining(
        loop=loop, batch=config.batch, window=config.window, compile=config.compile,
        rollout_from=0.0 if config.initial is not None else 0.3,
    )  # fmt: skip
    trained = train_world_model(model, data, training, config.out)
    trained.save_pretrained(config.out / "export")
    logger.info("world model saved to %s", config.out / "export")
    return 0


def window_odds(states: np.ndarray, offsets: np.ndarray, window: int, contact: float) -> np.ndarray:
    """`contact` where a window that begins there holds a step at which the hand moves a thing, 1 elsewhere.

    Such steps are told from proprioception alone: the fingers are partly closed, or the hand slides sideways close to
    the table.

    Args:
        states: `(F,S)` hand x, y, z first, finger opening last.
        offsets: `(E+1,)` where episodes begin.
        window: frames a window.
        contact: the odds.
    """
    opening, height = states[:, -1], states[:, 2]
    low, high = np.percentile(opening, (1, 99))
    touching = (opening > low + 0.2 * (high - low)) & (opening < low + 0.8 * (high - low))
    speed = np.zeros(len(states))
    speed[1:] = np.linalg.norm(np.diff(states[:, :2], axis=0), axis=1)
    speed[offsets[:-1]] = 0.0
    floor, ceiling = np.percentile(height, (1, 99))
    touching |= (height < floor + 0.25 * (ceiling - floor)) & (speed > 0.25 * np.percentile(speed, 99))
    so_far = np.concatenate([[0], np.cumsum(touching)])
    episode = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    begin = np.arange(len(opening))
    end = np.minimum(begin + window, offsets[episode + 1])
    return np.where(so_far[end] > so_far[begin], contact, 1.0)
