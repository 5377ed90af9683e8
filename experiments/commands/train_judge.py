"""`worldgym train judge`: trains a success judge on logs from Real and calibrates it on held-out episodes.

`--type learned` reads frames, `latent` reads the world model's latents, and `open_clip` is a contrastive image-text
model. Other packages can register more types.

With a world model (or tokenizer), half of the training frames pass through its encoder and decoder, so that the judge
learns to read imagined frames. With `--imagined-episodes`, it is also trained on logged episodes as predicted by the
world model. Ctrl-C keeps the last checkpoint, and the same command resumes from it.

Example::

    worldgym train judge --data data/real --world-model runs/world_model/export --out runs/judge
    worldgym train judge --type latent --data data/real --world-model tabletop-small --out runs/latent_judge
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.compute import DType, placing
from experiments.pipelines.checks import check_numbers
from experiments.pipelines.registered_training import train_registered
from experiments.pipelines.tokenizers import load_tokenizer
from experiments.pipelines.training_run import claim, finish, finished, identity, require_preset, require_size
from worldgym.errors import ConfigError, DatasetError
from worldgym.registry import JUDGES

logger = logging.getLogger(__name__)
OWN = (
    "checkpoint", "tensorboard", "config.json", "model.safetensors", "open_clip.safetensors", "manifest.json",
    "training.json",
)  # fmt: skip
MODELS = ("world_model", "tokenizer", "init_policy", "initial", "teacher")
BUILT_IN = ("learned", "latent", "open_clip")


@dataclass(frozen=True)
class TrainJudgeConfig:
    """Train the success judge on logged episodes; the same command resumes an interrupted run.

    Args:
        data: dataset folder of `worldgym collect` or `worldgym import`, with success labels.
        out: folder of the judge (config.json, model.safetensors) and of TensorBoard logs.
        type: `learned` reads frames, `latent` reads latents of the world model, `open_clip` compares frame and
            instruction. Also a type that another package registers (`worldgym list`) and whose class supports the
            training of `worldgym.training.generic`; only the common options apply to these.
        world_model: folder or name of a world model. Half of the frames pass through its tokenizer; a latent judge
            reads its latents.
        tokenizer: run folder of `worldgym train tokenizer`, in place of `world_model`.
        init_policy: folder of a trained policy whose image and text encoder initialises the judge (formerly `--eyes`).
        imagined_episodes: number of logged episodes, balanced over behaviours, that `world_model` imagines from their
            first frame as additional training data with the labels from Real. The threshold then balances precision
            and recall on held-out ones.
        preset: `small` or `tiny`.
        state: also read proprioception; with one camera, above and behind look the same.
        initial: folder of a judge to continue training from.
        teacher: folder of a judge that reads frames and is distilled into a latent or open_clip judge.
        hard_share: share of a batch drawn from policy frames on which `initial` is wrong or close to its threshold.
        near_share: share of near misses among the negatives.
        steps: optimizer steps.
        batch_size: frames per step.
        lr: peak learning rate.
        max_fpr: maximum false-positive rate of the threshold on held-out hard negatives.
        seed: seed of all randomness.
        limit: maximum number of episodes to read.
        fresh: delete what an earlier run of this command wrote to `out`, and start over.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of world-model inference; `auto` uses the saved precision.
    """

    data: Path
    out: Path = Path("runs/judge")
    type: str = "learned"
    world_model: Path | None = None
    tokenizer: Path | None = None
    init_policy: Path | None = None
    imagined_episodes: int = 0
    preset: str = "small"
    state: bool = True
    initial: Path | None = None
    teacher: Path | None = None
    hard_share: float = 0.0
    near_share: float = 0.3
    steps: int = 1500
    batch_size: int = 128
    lr: float = 1.2e-3
    max_fpr: float = 0.02
    seed: int = 0
    limit: int | None = None
    fresh: bool = False
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        for name in ("data", "out", *MODELS):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value))
        check_numbers(self)
        if self.type in BUILT_IN:
            require_preset(self.preset)
        if self.batch_size < 2:
            raise ConfigError(
                f"--batch-size is {self.batch_size}, expected at least 2 (one success and one failure)"
            )
        if not 0 <= self.near_share <= 0.75 or not 0 < self.max_fpr < 1:
            raise ConfigError(
                f"--near-share is {self.near_share} and --max-fpr {self.max_fpr}; expected [0, 0.75] and (0, 1); "
                "try --near-share 0.3 --max-fpr 0.02"
            )
        if self.world_model is not None and self.tokenizer is not None:
            raise ConfigError(
                "give --world-model or --tokenizer, not both: a world model contains its own tokenizer"
            )
        if self.imagined_episodes < 0 or (self.imagined_episodes and self.world_model is None):
            raise ConfigError(
                f"--imagined-episodes is {self.imagined_episodes}, expected 0 (off), or more with --world-model"
            )
        if not 0 <= self.hard_share < 1 or (self.hard_share and self.initial is None):
            raise ConfigError(
                f"--hard-share is {self.hard_share}, expected [0, 1), and more than 0 only with --initial, the judge "
                "whose errors are mined"
            )
        if self.type == "latent" and self.world_model is None:
            raise ConfigError(
                "a latent judge reads a world model's latents; add --world-model tabletop-small"
            )
        if (self.init_policy and self.type != "learned") or (self.initial and self.type not in ("learned", "latent")):
            raise ConfigError(
                f"--initial is for --type learned and latent, --init-policy for learned; got --type {self.type}"
            )
        if self.hard_share and self.type != "learned":
            raise ConfigError(f"--hard-share is for --type learned; got --type {self.type}")
        if self.teacher is not None and self.type == "learned":
            raise ConfigError(
                "--teacher is for --type latent or open_clip; to continue from a learned judge, use --initial"
            )


def run(config: TrainJudgeConfig) -> int:
    """Train, calibrate and save the judge, and log the held-out scores, false positives first."""
    import json

    from torch.utils.tensorboard import SummaryWriter

    from rewards import JudgeTrainConfig
    from worldgym.data import EpisodeDataset
    from worldgym.utils.files import atomic_write_text
    from worldgym.utils.progress import Progress
    from worldgym.utils.train_state import TrainState

    if config.type not in BUILT_IN:
        return train_registered(JUDGES, config, command="train judge", save_to=config.out)
    if config.type == "open_clip":
        from worldgym.utils.optional import require

        require("open_clip", extra="clip")
    here = placing(config)
    tokenizer = load_tokenizer(config.world_model, config.tokenizer)
    tokenizer = None if tokenizer is None else here(tokenizer)
    if tokenizer is None:
        logger.warning("no --world-model: the judge is trained on true frames only and may misjudge imagined frames")
    dataset = EpisodeDataset(config.data).require_seen()
    if tokenizer is not None:
        require_size(dataset.image_size, tokenizer.config.image_size, "this tokenizer")
    facts = identity(config, dataset, contents=MODELS)
    facts["--steps"] = (
        config.steps
    )  # the learning rate decays to zero over the steps, so a finished run cannot be extended
    claim(config.out, "train judge", facts, own=OWN, fresh=config.fresh)
    if finished(config.out, config):
        return 0
    arrays = dataset.load_arrays(limit=config.limit, progress=True)
    if not arrays.has_success.all():
        logger.warning(
            "%d episodes without a success label are skipped", int((~arrays.has_success).sum())
        )
        arrays = arrays.keep(arrays.has_success)
    require_labels(arrays)
    settings = JudgeTrainConfig(
        steps=config.steps,
        batch_size=config.batch_size,
        lr=config.lr,
        max_fpr=config.max_fpr,
        hard_share=config.hard_share,
        near_share=config.near_share,
        seed=config.seed,
    )
    state = TrainState(config.out / "checkpoint", identity=facts)
    first = int(state.meta()["step"]) + 1 if state.exists() else 0
    with (
        SummaryWriter(str(config.out / "tensorboard"), purge_step=first) as board,
        Progress(config.steps, "train judge", initial=first) as progress,
    ):

        def on_step(step: int, scalars: dict[str, float]) -> None:
            for name, value in scalars.items():
                board.add_scalar(f"judge/{name}", value, step)
            progress.update(step + 1 - progress.count, loss=scalars["loss"])

        train = {"learned": _learned, "latent": _latent, "open_clip": _open_clip}[config.type]
        judge, report = train(
            config, arrays, tokenizer, settings, on_step=on_step, checkpoint=state, device=here.device
        )
        for name, value in report.items():
            board.add_scalar(f"held_out/{name}", value, config.steps)
    judge.save_pretrained(config.out)
    written = {
        "held_out": report, "settings": dataclasses.asdict(settings), "data": config.data.name, "episodes": len(arrays),
    }  # fmt: skip
    atomic_write_text(config.out / "training.json", json.dumps(written, indent=1))
    state.remove()
    finish(config.out, config)
    logger.info("judge saved to %s, held-out %s", config.out, {k: round(v, 4) for k, v in report.items()})
    return 0


def require_labels(arrays: Any) -> None:
    """Raise a DatasetError unless `arrays` has two episodes, and frames with and without success."""
    solved, frames = int(arrays.success.sum()), len(arrays.success)
    if not solved:
        raise DatasetError(
            f"none of {frames} frames is labelled as success, so a judge cannot be trained. Collect episodes with "
            "`worldgym collect`, import with --success next.reward if rewards were recorded, or use a judge that needs "
            "no labels (see docs/guides/judges.md)"
        )
    if solved == frames:
        raise DatasetError(
            f"all {frames} frames are labelled as success; a judge also needs frames without success. Collect or "
            "import episodes with failures"
        )
    if len(arrays) < 2:
        raise DatasetError("the dataset has 1 episode, expected at least 2: one of them is held out. Add episodes")


def _learned(config: TrainJudgeConfig, arrays: Any, tokenizer: Any, settings: Any, **how: Any) -> Any:
    from agents import load_policy
    from rewards import LearnedJudge, LearnedJudgeConfig, imagine_training_logs, train_judge
    from rewards.training.learned import require_proprioception

    judge = None
    if config.initial is not None:
        judge = LearnedJudge.from_pretrained(str(config.initial))
        require_size(arrays.frames.shape[1:3], judge.config.image_size, f"the judge {config.initial}")
        require_proprioception(judge, arrays, f"--initial {config.initial}")
        judge = judge.with_state(arrays.states) if config.state else judge
    return train_judge(
        arrays,
        tokenizer,
        settings,
        model=LearnedJudgeConfig.preset(
            config.preset,
            image_size=arrays.frames.shape[1:3],
            state_dim=arrays.states.shape[1] if config.state else 0,
            specs=arrays.specs,
        ),
        judge=judge,
        init_policy=None if config.init_policy is None else load_policy(config.init_policy),
        imagined=_imagine(config, arrays, imagine_training_logs) if config.imagined_episodes else None,
        **how,
    )


def _latent(config: TrainJudgeConfig, arrays: Any, tokenizer: Any, settings: Any, **how: Any) -> Any:
    """Train a latent judge. It takes minutes and has no checkpoints, so an interrupted run starts again."""
    from rewards import (
        LatentJudge,
        LatentJudgeConfig,
        encode_logs,
        imagine_training_latents,
        load_judge,
        train_latent_judge,
    )
    from rewards.training.latent import LATENT_SIZES
    from rewards.training.learned import require_proprioception
    from worldgym.utils.progress import Progress

    with Progress(len(arrays.frames), "encode logs") as progress:
        latents = encode_logs(
            tokenizer, arrays, progress=lambda done, _: progress.update(done - progress.count)
        )
    judge = None
    if config.initial is not None:
        judge = LatentJudge.from_pretrained(config.initial)
        require_proprioception(judge, arrays, f"--initial {config.initial}")
    return train_latent_judge(
        arrays,
        latents,
        tokenizer,
        settings,
        model=LatentJudgeConfig(
            **LATENT_SIZES.get(config.preset, {}),
            state_dim=arrays.states.shape[1] if config.state else 0,
            specs=arrays.specs,
        ),
        judge=judge,
        imagined=_imagine(config, arrays, imagine_training_latents) if config.imagined_episodes else None,
        teacher=None if config.teacher is None else placing(config)(load_judge(config.teacher)),
        on_step=how["on_step"],
        device=how["device"],
    )


def _open_clip(config: TrainJudgeConfig, arrays: Any, tokenizer: Any, settings: Any, **how: Any) -> Any:
    from rewards import load_judge, train_open_clip

    teacher = None if config.teacher is None else placing(config)(load_judge(config.teacher))
    return train_open_clip(
        arrays, tokenizer, settings, teacher=teacher, on_step=how["on_step"], device=how["device"]
    )


def _imagine(config: TrainJudgeConfig, arrays: Any, imagine: Callable[..., Any]) -> Any:
    """Imagine logged episodes with `--world-model` as additional training data."""
    import numpy as np
    import torch

    from worldgym.models import load_world_model
    from worldgym.utils.progress import Progress

    assert config.world_model is not None
    rng = np.random.default_rng(config.seed)
    count = min(config.imagined_episodes, len(arrays))
    with Progress(count, "imagine logs") as progress:
        return imagine(
            placing(config)(load_world_model(config.world_model)),
            arrays,
            episodes=np.sort(rng.choice(len(arrays), count, replace=False, p=_even(arrays.behaviours))),
            generator=torch.Generator().manual_seed(config.seed),
            progress=lambda done, _: progress.update(done - progress.count),
        )


def _even(behaviours: list[str]) -> Any:
    """Sampling probabilities that make every behaviour equally likely, whatever its share of the logs."""
    import numpy as np

    _, kind, count = np.unique(behaviours, return_inverse=True, return_counts=True)
    return 1.0 / (len(count) * count[kind])
