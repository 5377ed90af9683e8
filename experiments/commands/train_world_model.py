"""`worldgym train world-model`: trains the dynamics on the latents of a trained tokenizer.

Datasets of any shape work: any number of action dimensions, cameras of any size, any proprioception or none. If
proprioception is known to contain an end effector, object latents are moved with it and contacts are sampled more
often.

Example::

    worldgym train world-model --data data/real --tokenizer runs/tokenizer --out runs/world_model --minutes 60
    worldgym train world-model --data data/new --initial runs/world_model/export --out runs/refreshed --minutes 15
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from experiments.compute import DType, placing
from experiments.pipelines.checks import check_numbers
from experiments.pipelines.ranks import run_ranks
from experiments.pipelines.registered_training import train_registered
from experiments.pipelines.training_run import (
    WORLD_PRESETS,
    Hand,
    claim,
    identity,
    require_preset,
    require_size,
    with_hand,
)
from worldgym.errors import ConfigError, DatasetError
from worldgym.registry import WORLD_MODELS
from worldgym.specs import check_observations

if TYPE_CHECKING:

    from worldgym.data import EpisodeDataset
    from worldgym.data.reader import EpisodeArrays
    from worldgym.models import FrameTokenizer, VideoWorldModel
    from worldgym.specs import Specs
    from worldgym.training.world_model import LatentEpisodes

logger = logging.getLogger(__name__)
OWN = ("checkpoint", "tensorboard", "shift", "export")


@dataclass(frozen=True)
class TrainWorldModelConfig:
    """Train the dynamics; the same command resumes an interrupted run.

    Args:
        data: dataset folder of `worldgym collect` or `worldgym import`.
        tokenizer: run folder of `worldgym train tokenizer`; with `initial`, it replaces the tokenizer of that model.
        out: run folder (checkpoint, TensorBoard, `export/`).
        type: type of the model: `video` predicts frame by frame, `chunk` one frame per action chunk, `diffusers` four
            frames at a time with a video transformer of diffusers. Also a type that another package registers
            (`worldgym list`) and whose class supports the training of `worldgym.training.generic`; only the common
            options apply to these.
        initial: world model to continue training from; models of earlier versions are extended to the current shape.
        settings: `name=value` pairs (YAML) for a type other than `video`, such as `lora=16` or `attention=full` for
            `diffusers`, and `members=3` (an ensemble) or `own_layers=2` for `chunk`.
        probe: position probe (`worldgym train probe`) whose positions a model of type `chunk` predicts.
        success_head: weight of a success head on the latents that a model of type `chunk` predicts, trained in the same
            steps (World-VLA-Loop). It is saved as a latent judge in `judge/` beside `export/`.
        judge: latent judge that the success head begins with, of the same tokenizer.
        head_only: train the success head alone, for as many steps; the dynamics stays that of `initial`.
        hand: whether object latents move with an end effector. `auto` is yes if the dataset says which columns of
            proprioception belong to it; `yes` takes x, y, z as the first and the gripper opening as the last column.
        preset: `base` (one GPU), `small` or `tiny`.
        minutes: wall-clock time; the learning rate depends on the elapsed time. Ignored if `steps` is given.
        steps: optimizer steps; a run with steps resumes with identical results.
        batch_size: windows per step.
        window: frames per window.
        lr: peak learning rate.
        optimizer: optimizer of the dynamics, for `video`, `chunk` and `joint`: `muon` (Jordan et al. 2024; the default)
            or `adamw`.
        contact_odds: factor by which training windows in which the gripper grasps or pushes an object are sampled more
            often, and again the same factor for windows in which it carries one; 1 samples all windows equally.
        equal_tasks: sample the same number of windows of every task, whatever its share of the logs. Otherwise rare
            tasks are learned last and forgotten first.
        shift_steps: training steps of the network that moves object latents, before the dynamics; only for a model that
            is new or gets another tokenizer.
        processes: number of training processes, each with `batch_size` windows per step and its share of the cores.
            Threads of one process synchronise at every small matrix product, processes only once per step.
        address: distribute the processes with Ray Train: `local` for this machine, `auto` or `ray://HOST:10001` for a
            running cluster, whose nodes must share `out`. The weights are bit-identical; if a process dies, only the
            steps since the last checkpoint are lost.
        shard: distribute the weights, gradients, averages and optimizer state over the processes (FSDP), for models
            that do not fit into the memory of one GPU; only for `diffusers` without adapters. An interrupted run
            continues from the last checkpoint.
        compile: use torch.compile for the training pass, for `video` and `joint`; 40 % to 60 % faster after a minute or
            two of warm-up.
        seed: seed of all randomness.
        limit: maximum number of episodes to read; the first ones.
        augment: copies of each episode with other colours and crops (`worldgym.data.augment`), for few recordings.
        fresh: delete what an earlier run of this command wrote to `out`, and start over.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of world-model inference; `auto` uses the saved precision.
    """

    data: Path
    tokenizer: Path | None = None
    out: Path = Path("runs/world_model")
    type: str = "video"
    initial: Path | None = None
    probe: Path | None = None
    settings: tuple[str, ...] = ()
    success_head: float | None = None
    judge: Path | None = None
    head_only: bool = False
    hand: Hand = "auto"
    preset: str = "small"
    minutes: float = 120.0
    steps: int | None = None
    batch_size: int = 20
    window: int = 20
    lr: float = 2e-3
    optimizer: Literal["muon", "adamw"] | None = None
    contact_odds: float = 2.5
    equal_tasks: bool = True
    shift_steps: int = 1500
    processes: int = 1
    address: str | None = None
    shard: bool = False
    compile: bool = False
    seed: int = 0
    limit: int | None = None
    augment: int = 0
    fresh: bool = False
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        """Validate the settings."""
        for name in ("data", "tokenizer", "out", "initial", "probe", "judge"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value))
        check_numbers(self)
        if self.type == "video":
            require_preset(self.preset, WORLD_PRESETS)
        if self.contact_odds <= 0:
            raise ConfigError(
                f"--contact-odds is {self.contact_odds}, expected more than 0; try --contact-odds 1"
            )
        if self.success_head is None:
            if self.judge is not None or self.head_only:
                name = "--judge" if self.judge is not None else "--head-only"
                raise ConfigError(f"{name} belongs to a success head; add --success-head 0.05")
            return
        if not 0 < self.success_head < float("inf"):
            raise ConfigError(f"--success-head is {self.success_head}, expected more than 0; try 0.05")
        if self.type != "chunk":
            raise ConfigError(f"--success-head is for --type chunk, got --type {self.type}; leave it out")
        if self.processes > 1 or self.address:
            raise ConfigError("a success head is trained by one process; leave out --processes and --address")
        if self.head_only and self.initial is None:
            raise ConfigError("--head-only keeps a world model as it is; add --initial, the folder of that model")
        if self.head_only and (self.tokenizer is not None or self.settings):
            name = "--settings" if self.settings else "--tokenizer"
            raise ConfigError(f"--head-only keeps the world model as it is, and {name} would change it; leave it out")


def run(config: TrainWorldModelConfig) -> int:
    """Encode the logs, train the dynamics, and export the model."""
    import torch

    from worldgym.data import EpisodeDataset
    from worldgym.data.augment import augmented
    from worldgym.models import HandColumns, WorldModelConfig
    from worldgym.models.tokenizers.saved import read_tokenizer
    from worldgym.models.video.object_motion import window_odds
    from worldgym.training.world_model import LatentEpisodes

    if config.type != "video":
        return train_registered(
            WORLD_MODELS, config, command="train world-model", save_to=config.out / "export"
        )
    if config.shard:
        raise ConfigError("--shard is for --type diffusers; leave it out, the small models fit into every process")
    if config.settings:
        raise ConfigError("--settings is for other types than video; leave it out, or add --type diffusers")
    if config.probe is not None:
        raise ConfigError("--probe applies to models of type chunk; leave it out, or add --type chunk")
    if config.tokenizer is None and config.initial is None:
        raise ConfigError("give --tokenizer RUN (from `worldgym train tokenizer`) or --initial WORLD_MODEL")
    here = placing(config)
    dataset = EpisodeDataset(config.data).require_seen()
    specs = with_hand(dataset.specs, config.hand)
    hand = HandColumns.of(specs.observation)
    facts = identity(config, dataset, contents=("tokenizer", "initial"))
    tokenizer = None if config.tokenizer is None else read_tokenizer(config.tokenizer)
    if tokenizer is not None:
        picture = WorldModelConfig.preset(config.preset).canvas_for(specs.observation.cameras).size
        require_size(picture, tokenizer.config.image_size, f"the tokenizer {config.tokenizer}")
    torch.manual_seed(config.seed)
    initial = None if config.initial is None else _initial(config.initial, dataset, tokenizer)
    claim(config.out, "train world-model", facts, own=OWN, fresh=config.fresh)
    arrays = _acted(dataset.load_arrays(limit=config.limit, progress=True, cameras=dataset.cameras))
    arrays = augmented(arrays, config.augment, config.seed)
    model = _model(config, arrays, tokenizer, initial, specs, hand is not None)
    if tokenizer is not None:
        model.tokenizer.load_state_dict(tokenizer.state_dict())
    model = here(model)
    data = LatentEpisodes.encode(model.tokenizer, arrays, model.canvas)
    if hand is not None:
        data.odds = window_odds(arrays.states, arrays.offsets, config.window, config.contact_odds, hand)
    else:
        logger.info(
            "the dataset has no end-effector position and gripper: object latents are not moved, and training windows "
            "are sampled uniformly"
        )
        data.odds = np.ones(len(arrays.states))
    if config.equal_tasks:
        data.odds = equal_shares(data.odds, np.repeat(np.array(arrays.tasks), np.diff(arrays.offsets)))
    job = Job(config, facts)
    run_ranks(
        train_stages, job, model, data,
        processes=config.processes, address=config.address, out=config.out, device=here.device,
    )  # fmt: skip
    logger.info("world model saved to %s", config.out / "export")
    return 0


def _acted(arrays: EpisodeArrays) -> EpisodeArrays:
    """Return the episodes with actions, because the dynamics are conditioned on actions.

    Raises:
        DatasetError: no episode has actions.
    """
    if arrays.has_action.all():
        return arrays
    if not arrays.has_action.any():
        raise DatasetError(
            "no episode of the dataset has actions, but this world model is conditioned on actions; add episodes with "
            "actions, or train a type that learns from video only (`worldgym list`)"
        )
    logger.warning("%d episodes without actions are skipped", int((~arrays.has_action).sum()))
    return arrays.keep(arrays.has_action)


@dataclass(frozen=True)
class Job:
    """The job of a training process: the command's `config`, and the `facts` that identify the run in checkpoints."""

    config: TrainWorldModelConfig
    facts: dict[str, Any] = field(default_factory=dict)


def _initial(folder: Path, dataset: EpisodeDataset, tokenizer: FrameTokenizer | None) -> VideoWorldModel:
    """Load the world model to continue training from, and check that the dataset and the tokenizer fit it.

    Raises:
        ConfigError: they do not fit; the message names the sizes that differ.
    """
    from worldgym.models import VideoWorldModel, load_world_model

    model = load_world_model(folder)
    if not isinstance(model, VideoWorldModel):
        raise ConfigError(
            f"--initial {folder} is a {type(model).__name__}, expected a world model of type video; leave --initial out"
        )
    here, there = (dataset.action_spec.dim, dataset.state_dim), (model.action_dim, model.state_dim)
    if here != there:
        raise ConfigError(
            f"--initial {folder} has {there[0]} dimensions of action and {there[1]} of proprioception, but the dataset "
            f"has {here[0]} and {here[1]}; leave --initial out, and train a new model with --tokenizer"
        )
    seen = model.specs.observation
    check_observations(
        dataset.specs.observation, seen, f"the dataset {dataset.root}", f"the world model {folder}"
    )
    if tokenizer is not None and asdict(tokenizer.config) != asdict(model.tokenizer.config):
        raise ConfigError(
            f"--initial {folder} has a tokenizer of another shape ({model.tokenizer.config}) than --tokenizer "
            f"({tokenizer.config}); leave one of the two out"
        )
    return model


def _model(
    config: TrainWorldModelConfig,
    arrays: EpisodeArrays,
    tokenizer: FrameTokenizer | None,
    initial: VideoWorldModel | None,
    specs: Specs,
    hand: bool,
) -> VideoWorldModel:
    """Create a model for the data, or extend `initial` to the current shape."""
    from worldgym.models import VideoWorldModel, WorldModelConfig
    from worldgym.models.video.growth import grown

    if initial is not None:
        return (grown(initial, arrays.states) if hand else initial).requires_grad_(True)
    assert tokenizer is not None
    preset = WorldModelConfig.preset(config.preset)
    latents = replace(
        preset,
        tokenizer=replace(tokenizer.config, image_size=preset.tokenizer.image_size),
        dynamics=replace(preset.dynamics, latent_channels=tokenizer.config.latent_channels),
    )
    shape = latents.for_data(arrays.states, specs=specs, hand=hand and tokenizer.config.background)
    own = replace(tokenizer.config, image_size=shape.tokenizer.image_size)
    return VideoWorldModel(replace(shape, tokenizer=own, tasks=tuple(sorted(set(arrays.tasks)))))


def train_stages(rank: int, job: Job, model: VideoWorldModel, data: LatentEpisodes) -> None:
    """Train both stages, alone or as one rank of the current process group."""
    from worldgym.training.loop import LoopConfig
    from worldgym.training.shift import train_shift
    from worldgym.training.world_model import WorldModelTraining, train_world_model

    config = job.config
    if model.config.dynamics.motion is not None and (config.initial is None or config.tokenizer is not None):
        shift = LoopConfig(
            steps=config.shift_steps, lr=3e-3, final_lr=0.02, warmup=50, ema=0.99, seed=config.seed
        )
        train_shift(model, data, shift, config.out / "shift", identity=job.facts)
    loop = LoopConfig(
        steps=config.steps or 1_000_000, lr=config.lr, final_lr=0.02, warmup=200, ema=0.995, weight_decay=0.02,
        optimizer=config.optimizer or "muon", seed=config.seed, max_minutes=None if config.steps else config.minutes,
    )  # fmt: skip
    training = WorldModelTraining(
        loop=loop, batch=config.batch_size, window=config.window, compile=config.compile,
        rollout_from=0.0 if config.initial is not None else 0.3,
    )  # fmt: skip
    trained = train_world_model(model, data, training, config.out, identity=job.facts)
    if rank == 0:
        trained.with_sampler(dtype=trained.config.sampler.dtype)  # `--dtype` is not saved with the model
        trained.save_pretrained(config.out / "export")


def equal_shares(odds: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Scale `odds (F,)` so that every group of `groups (F,)` has the same sum; the mean is unchanged."""
    result = odds.astype(np.float64)
    names = np.unique(groups)
    for name in names:
        mask = groups == name
        result[mask] *= odds.sum() / len(names) / odds[mask].sum()
    return result
