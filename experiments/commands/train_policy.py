"""`worldgym train policy`: a policy from a few demonstrations (SFT), the start of every arm.

Ctrl-C keeps the last finished epoch; the same command goes on from it. The weights with the lowest loss on held-out
episodes are the ones that are saved.

Example::

    worldgym train policy --data data/real --demos-per-task 200 --out runs/policy_sft
    worldgym eval --policies runs/policy_sft
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

from worldgym.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainPolicyConfig:
    """Train a policy on demonstrations; the same command again resumes.

    Args:
        data: dataset folder of `worldgym collect`.
        out: folder of the policy (config.json, model.safetensors), with TensorBoard logs beside.
        demos_per_task: successful episodes of `behaviour` to learn from, of each task.
        behaviour: who demonstrates.
        initial: take over how this policy acts, and learn only where to go. Acting towards a given place needs no names
            of things, so it can come from many logs; what words mean comes from the demonstrations.
        preset: `small` or `tiny`; that of `initial` where given.
        epochs: at most so many passes; stops early when held-out loss no longer falls.
        batch_size: frames per step.
        lr: peak learning rate.
        finish_steps: steps at a low rate on all demonstrations, averaged, after the best epoch.
        patience: epochs without improvement before stopping; 0 never stops early.
        seed: everything random follows from it, the choice of demonstrations included.
        limit: read at most so many episodes.
    """

    data: Path
    out: Path = Path("runs/policy_sft")
    demos_per_task: int = 400
    behaviour: str = "expert"
    initial: Path | None = None
    preset: str = "small"
    epochs: int = 60
    batch_size: int = 128
    lr: float = 8e-4
    finish_steps: int = 240
    patience: int = 12
    seed: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("data", "out", "initial"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value))
        if self.demos_per_task < 1:
            raise ConfigError(f"demos_per_task is {self.demos_per_task}, expected at least 1")
        if self.preset not in ("tiny", "small"):
            raise ConfigError(f"unknown policy preset {self.preset!r}; the presets are tiny, small")


def run(config: TrainPolicyConfig) -> int:
    """Train, save, log the held-out scores."""
    import json

    import torch
    from torch.utils.tensorboard import SummaryWriter

    from agents import SFT, SFTConfig, VLAPolicy, VLAPolicyConfig, chunk_dataset
    from agents.pointer import Pointer
    from agents.sft import demonstrations
    from worldgym.data import EpisodeDataset
    from worldgym.utils.files import atomic_write_text
    from worldgym.utils.progress import Progress
    from worldgym.utils.train_state import TrainState

    arrays = EpisodeDataset(config.data).require_seen().load_arrays(limit=config.limit, progress=True)
    torch.manual_seed(config.seed)
    if config.initial is None:
        shape = VLAPolicyConfig.preset(config.preset, image_size=int(arrays.frames.shape[1]))
        policy = VLAPolicy(shape)
    else:
        policy = VLAPolicy.from_pretrained(str(config.initial))
        shape = policy.config
        policy.pointer = Pointer(shape)
    chosen = demonstrations(arrays, config.demos_per_task, behaviour=config.behaviour, seed=config.seed)
    counts = {
        task: sum(demo.task == task for demo in chosen) for task in sorted({demo.task for demo in chosen})
    }
    for task, count in counts.items():
        if count < config.demos_per_task:
            logger.warning("only %d of %d demonstrations of %s", count, config.demos_per_task, task)
    demos = chunk_dataset(chosen, shape.chunk)
    del arrays
    settings = SFTConfig(
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        finish_steps=config.finish_steps,
        patience=config.patience,
        seed=config.seed,
        learn="all" if config.initial is None else "pointer",
    )
    state = TrainState(config.out / "checkpoint")
    first = int(state.meta()["epoch"]) + 1 if state.exists() else 0
    logger.info(
        "%d frames of %s demonstrations%s", len(demos), counts, f", from epoch {first}" if first else ""
    )
    with (
        SummaryWriter(str(config.out / "tensorboard"), purge_step=first) as board,
        Progress(config.epochs, "train policy", initial=first) as progress,
    ):

        def on_epoch(scalars: dict[str, float]) -> None:
            for name, value in scalars.items():
                board.add_scalar(f"sft/{name}", value, int(scalars["epoch"]))
            progress.update(1, loss=scalars["loss"], val_loss=scalars["val_loss"])

        history = SFT(settings).fit(policy, demos, on_epoch=on_epoch, checkpoint=state)
    policy.save_pretrained(config.out)
    facts = {
        "demos": counts, "history": history, "settings": dataclasses.asdict(settings), "data": config.data.name,
        "behaviour": config.behaviour,
    }  # fmt: skip
    atomic_write_text(config.out / "training.json", json.dumps(facts, indent=1))
    state.remove()
    logger.info("policy saved to %s, held-out %s", config.out, {k: round(v, 4) for k, v in history.items()})
    return 0
