"""`worldgym train tokenizer`: the frame tokenizer from a dataset of `seen` episodes.

Example::

    worldgym train tokenizer --data data/real --out runs/tokenizer --minutes 12
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainTokenizerConfig:
    """Train the frame tokenizer; the same command again resumes.

    Args:
        data: dataset folder of `worldgym collect`.
        out: run folder (checkpoint, TensorBoard, `tokenizer.safetensors`).
        initial: go on from the tokenizer of this world model instead of afresh.
        preset: `small` or `tiny`.
        minutes: wall time; the learning rate follows the clock. Ignored when `steps` is given.
        steps: optimizer steps; a run with steps resumes to the very same numbers.
        batch: frames per step.
        lr: peak learning rate.
        seed: everything random follows from it.
        limit: read at most so many episodes.
    """

    data: Path
    out: Path = Path("runs/tokenizer")
    initial: Path | None = None
    preset: str = "small"
    minutes: float = 12.0
    steps: int | None = None
    batch: int = 48
    lr: float = 2e-3
    seed: int = 0
    limit: int | None = None


def run(config: TrainTokenizerConfig) -> int:
    """Train, save, log the held-out PSNR."""
    import torch
    from safetensors.torch import save

    from worldgym.data import EpisodeDataset
    from worldgym.models import VideoWorldModel, WorldModelConfig
    from worldgym.training.loop import LoopConfig
    from worldgym.training.tokenizer import reconstruction_psnr, train_tokenizer
    from worldgym.utils.files import atomic_write_bytes, atomic_write_text

    torch.set_num_threads(
        torch.get_num_threads() if torch.cuda.is_available() else min(2, torch.get_num_threads())
    )
    arrays = EpisodeDataset(config.data).require_seen().load_arrays(limit=config.limit, progress=True)
    held = int(arrays.offsets[-1 - max(1, len(arrays) // 20)])  # the last 5 % of the episodes are held out
    loop = LoopConfig(
        steps=config.steps or 1_000_000,
        lr=config.lr,
        seed=config.seed,
        max_minutes=None if config.steps else config.minutes,
    )
    held_out = arrays.frames[held::15]
    initial = None if config.initial is None else VideoWorldModel.from_pretrained(config.initial).tokenizer
    preset = replace(WorldModelConfig.preset(config.preset).tokenizer, image_size=arrays.frames.shape[1])
    shape = preset if initial is None else initial.config
    tokenizer = train_tokenizer(
        arrays.frames[:held],
        shape,
        loop,
        config.out,
        batch=config.batch,
        held_out=held_out,
        initial=initial,
    )
    scores = reconstruction_psnr(tokenizer, held_out)
    tensors = {k: v.contiguous() for k, v in tokenizer.state_dict().items()}
    atomic_write_bytes(config.out / "tokenizer.safetensors", save(tensors))
    atomic_write_text(
        config.out / "tokenizer.json", json.dumps({**asdict(shape), "metrics": scores}, indent=1)
    )
    logger.info("tokenizer saved to %s, held-out %s", config.out, scores)
    return 0
