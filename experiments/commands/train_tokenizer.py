"""`worldgym train tokenizer`: trains the frame tokenizer on a dataset of split `seen`.

Example::

    worldgym train tokenizer --data data/real --out runs/tokenizer --minutes 12
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from experiments.compute import DType, placing
from experiments.pipelines.checks import check_numbers
from experiments.pipelines.training_run import WORLD_PRESETS, claim, identity, require_preset, require_size

logger = logging.getLogger(__name__)
OWN = ("checkpoint", "tensorboard", "tokenizer.safetensors", "tokenizer.json", "manifest.json")


@dataclass(frozen=True)
class TrainTokenizerConfig:
    """Train the frame tokenizer; the same command resumes an interrupted run.

    Args:
        data: dataset folder of `worldgym collect` or `worldgym import`.
        out: run folder (checkpoint, TensorBoard, `tokenizer.safetensors`).
        initial: world model whose tokenizer is trained further; a new tokenizer if None.
        preset: `base` (one GPU), `small` or `tiny`.
        minutes: wall-clock time; the learning rate depends on the elapsed time. Ignored if `steps` is given.
        steps: optimizer steps; a run with steps resumes with identical results.
        batch_size: frames per step.
        lr: peak learning rate.
        seed: seed of all randomness.
        limit: maximum number of episodes to read; the first ones.
        augment: copies of each episode with other colours and crops (`worldgym.data.augment`), for few recordings.
        fresh: delete what an earlier run of this command wrote to `out`, and start over.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of world-model inference; `auto` uses the saved precision.
    """

    data: Path
    out: Path = Path("runs/tokenizer")
    initial: Path | None = None
    preset: str = "small"
    minutes: float = 12.0
    steps: int | None = None
    batch_size: int = 48
    lr: float = 2e-3
    seed: int = 0
    limit: int | None = None
    augment: int = 0
    fresh: bool = False
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        for name in ("data", "out", "initial"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value))
        check_numbers(self)
        require_preset(self.preset, WORLD_PRESETS)


def run(config: TrainTokenizerConfig) -> int:
    """Train and save the tokenizer, and log the held-out PSNR."""
    import torch

    from worldgym.data import EpisodeDataset
    from worldgym.data.augment import augmented
    from worldgym.models import WorldModelConfig, load_world_model
    from worldgym.models.tokenizers.saved import write_tokenizer
    from worldgym.training.loop import LoopConfig
    from worldgym.training.pictures import Pictures
    from worldgym.training.tokenizer import reconstruction_psnr, train_tokenizer
    from worldgym.utils.sizes import short

    torch.set_num_threads(
        torch.get_num_threads() if placing(config).name != "cpu" else min(2, torch.get_num_threads())
    )
    device = placing(config).device
    dataset = EpisodeDataset(config.data).require_seen()
    facts = identity(config, dataset, contents=("initial",))
    initial = None if config.initial is None else load_world_model(config.initial).tokenizer
    preset, cameras = WorldModelConfig.preset(config.preset), dataset.specs.observation.cameras
    if initial is not None:
        picture = preset.canvas_for(cameras).size
        require_size(picture, initial.config.image_size, f"the world model {config.initial}")
    claim(config.out, "train tokenizer", facts, own=OWN, fresh=config.fresh)
    arrays = dataset.load_arrays(limit=config.limit, progress=True, cameras=dataset.cameras)
    trained = len(arrays) - max(1, len(arrays) // 20)  # the last 5 % of the episodes are held out
    if len(arrays) == 1:
        logger.warning("one episode: no episode is held out, and the PSNR is that of training frames")
        trained = 1
    rows = slice(int(arrays.offsets[trained]))
    loop = LoopConfig(
        steps=config.steps or 1_000_000,
        lr=config.lr,
        seed=config.seed,
        max_minutes=None if config.steps else config.minutes,
    )
    pictures = Pictures.of(arrays, preset.canvas_for(cameras))
    held_out = pictures.select(slice(rows.stop if len(arrays) > 1 else 0, None, 15))
    pictures = pictures.select(rows)
    if config.augment:
        more = augmented(arrays.keep(np.arange(len(arrays)) < trained), config.augment, config.seed)
        pictures = Pictures.of(more, pictures.canvas)
    static = all(camera.static for camera in cameras)
    fresh = replace(preset.tokenizer, image_size=short(pictures.size), background=static)
    shape = fresh if initial is None else initial.config
    tokenizer = train_tokenizer(
        pictures,
        shape,
        loop,
        config.out,
        batch=config.batch_size,
        held_out=held_out,
        initial=initial,
        identity=facts,
        device=device,
    )
    scores = reconstruction_psnr(tokenizer, held_out)
    write_tokenizer(tokenizer, config.out, scores)
    logger.info("tokenizer saved to %s, held-out %s", config.out, scores)
    return 0
