"""`worldgym train judge`: a success judge from Real's logs, calibrated on held-out episodes.

With a world model (or tokenizer) half of what the judge sees goes through its decoder, so that it can read imagined
frames; with `--dream-episodes` it also learns from logged episodes as the world model imagines them. Ctrl-C keeps the
last checkpoint; the same command goes on from it.

Example::

    worldgym train judge --data data/real --world-model runs/world_model/export --out runs/judge
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldgym.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainJudgeConfig:
    """Train the success judge on logged episodes; the same command again resumes.

    Args:
        data: dataset folder of `worldgym collect`.
        out: folder of the judge (config.json, model.safetensors), with TensorBoard logs beside.
        world_model: folder of a world model whose tokenizer blurs half of the frames.
        tokenizer: run folder of `worldgym train tokenizer`, in place of `world_model`.
        eyes: folder of a trained policy whose first layers the judge starts from.
        dream_episodes: so many logged episodes, all behaviours alike, are imagined by `world_model` from their first
            frame and learned from as well, with Real's labels; the threshold then balances precision and recall on
            held-out ones.
        preset: `small` or `tiny`.
        state: read proprioception beside the picture; one camera cannot tell above from behind.
        initial: folder of a judge to go on from.
        hard_share: share of a batch that is drawn among frames of policies on which `initial` is wrong or nearly.
        steps: optimizer steps.
        batch_size: frames per step.
        lr: peak learning rate.
        max_fpr: false positives that the threshold allows on held-out hard negatives.
        seed: everything random follows from it.
        limit: read at most so many episodes.
    """

    data: Path
    out: Path = Path("runs/judge")
    world_model: Path | None = None
    tokenizer: Path | None = None
    eyes: Path | None = None
    dream_episodes: int = 0
    preset: str = "small"
    state: bool = True
    initial: Path | None = None
    hard_share: float = 0.0
    steps: int = 1500
    batch_size: int = 128
    lr: float = 1.2e-3
    max_fpr: float = 0.02
    seed: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("data", "out", "world_model", "tokenizer", "eyes", "initial"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value))
        if self.world_model is not None and self.tokenizer is not None:
            raise ConfigError(
                "give --world-model or --tokenizer, not both: a world model brings its own tokenizer"
            )
        if self.dream_episodes < 0 or (self.dream_episodes and self.world_model is None):
            raise ConfigError(
                f"dream_episodes is {self.dream_episodes}; it needs --world-model, and 0 is off"
            )
        if not 0 <= self.hard_share < 1 or (self.hard_share and self.initial is None):
            raise ConfigError(
                f"hard_share is {self.hard_share}; expected in [0, 1), with --initial, whose errors are mined"
            )
        if self.preset not in ("tiny", "small"):
            raise ConfigError(f"unknown judge preset {self.preset!r}; the presets are tiny, small")
        if self.steps < 1:
            raise ConfigError(f"steps is {self.steps}, expected at least 1")


def run(config: TrainJudgeConfig) -> int:
    """Train, calibrate, save, log the held-out scores: false positives first."""
    import json

    from torch.utils.tensorboard import SummaryWriter

    from rewards import JudgeTrainConfig, LearnedJudge, LearnedJudgeConfig, train_judge
    from worldgym.data import EpisodeDataset
    from worldgym.utils.files import atomic_write_text
    from worldgym.utils.progress import Progress
    from worldgym.utils.train_state import TrainState

    tokenizer = load_tokenizer(config.world_model, config.tokenizer)
    if tokenizer is None:
        logger.warning("no --world-model: the judge sees true frames only and may misread imagined ones")
    arrays = EpisodeDataset(config.data).require_seen().load_arrays(limit=config.limit, progress=True)
    dreams = None
    if config.dream_episodes and config.world_model is not None:
        dreams = _dream(config, arrays)
    judge = None
    if config.initial is not None:
        judge = LearnedJudge.from_pretrained(str(config.initial))
        judge = judge.with_state(arrays.states) if config.state else judge
    settings = JudgeTrainConfig(
        steps=config.steps,
        batch_size=config.batch_size,
        lr=config.lr,
        max_fpr=config.max_fpr,
        hard_share=config.hard_share,
        seed=config.seed,
    )
    state = TrainState(config.out / "checkpoint")
    first = int(state.meta()["step"]) + 1 if state.exists() else 0
    with (
        SummaryWriter(str(config.out / "tensorboard"), purge_step=first) as board,
        Progress(config.steps, "train judge", initial=first) as progress,
    ):

        def on_step(step: int, scalars: dict[str, float]) -> None:
            for name, value in scalars.items():
                board.add_scalar(f"judge/{name}", value, step)
            progress.update(step + 1 - progress.count, loss=scalars["loss"])

        judge, report = train_judge(
            arrays,
            tokenizer,
            settings,
            model=LearnedJudgeConfig.preset(
                config.preset,
                image_size=int(arrays.frames.shape[1]),
                state_dim=arrays.states.shape[1] if config.state else 0,
            ),
            judge=judge,
            on_step=on_step,
            checkpoint=state,
            eyes=None if config.eyes is None else str(config.eyes),
            dreams=dreams,
        )
        for name, value in report.items():
            board.add_scalar(f"held_out/{name}", value, config.steps)
    judge.save_pretrained(config.out)
    facts = {
        "held_out": report, "settings": dataclasses.asdict(settings), "data": config.data.name, "episodes": len(arrays),
    }  # fmt: skip
    atomic_write_text(config.out / "training.json", json.dumps(facts, indent=1))
    state.remove()
    logger.info("judge saved to %s, held-out %s", config.out, {k: round(v, 4) for k, v in report.items()})
    return 0


def _dream(config: TrainJudgeConfig, arrays: Any) -> Any:
    import numpy as np
    import torch

    from rewards import dream_logs
    from worldgym.models import load_world_model
    from worldgym.utils.progress import Progress

    rng = np.random.default_rng(config.seed)
    count = min(config.dream_episodes, len(arrays))
    with Progress(count, "imagine logs") as progress:
        return dream_logs(
            load_world_model(config.world_model),
            arrays,
            episodes=np.sort(rng.choice(len(arrays), count, replace=False, p=_even(arrays.behaviours))),
            generator=torch.Generator().manual_seed(config.seed),
            progress=lambda done, _: progress.update(done - progress.count),
        )


def _even(behaviours: list[str]) -> Any:
    """Chances that make every behaviour equally likely: what policies do matters more than their share of the logs."""
    import numpy as np

    _, kind, count = np.unique(behaviours, return_inverse=True, return_counts=True)
    return 1.0 / (len(count) * count[kind])


def load_tokenizer(world_model: Path | None, tokenizer: Path | None) -> Any | None:
    """The tokenizer of a world model, or of `worldgym train tokenizer`, or None."""
    if world_model is not None:
        from worldgym.models import load_world_model

        return load_world_model(world_model).tokenizer
    if tokenizer is None:
        return None
    import json

    from safetensors.torch import load_file

    from worldgym.models.tokenizer import FrameTokenizer, TokenizerConfig

    try:
        settings = json.loads((tokenizer / "tokenizer.json").read_text())
        settings.pop("metrics", None)
        model = FrameTokenizer(
            TokenizerConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
        )
        model.load_state_dict(load_file(str(tokenizer / "tokenizer.safetensors")))
    except Exception as error:
        raise CheckpointError(
            f"no usable tokenizer in {tokenizer} ({error}); run `worldgym train tokenizer --out {tokenizer}`"
        ) from error
    return model.eval().requires_grad_(False)
