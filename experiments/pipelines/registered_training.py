"""`worldgym train world-model|judge --type NAME` for types of other packages, by `worldgym.training.generic`.

Example::

    if config.type not in BUILT_IN:
        return train_registered(WORLD_MODELS, config, command="train world-model", save_to=config.out / "export")
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.compute import placing
from experiments.pipelines.checks import values_of
from experiments.pipelines.ranks import run_ranks
from experiments.pipelines.training_run import claim, finish, finished, identity, option, released_if_refused
from worldgym.errors import ConfigError
from worldgym.registry import JUDGES, TRAINERS, WORLD_MODELS, Registry
from worldgym.utils.compiling import require_compiler

if TYPE_CHECKING:
    from worldgym.data import EpisodeArrays, EpisodeDataset

logger = logging.getLogger(__name__)
COMMON = (
    "data", "out", "type", "preset", "steps", "minutes", "batch_size", "window", "lr", "seed", "limit", "augment",
    "processes", "address", "shard", "fresh", "device", "dtype",
)  # fmt: skip
"""Options that apply to every registered type."""
HEAD = ("success_head", "judge", "head_only")
"""Options of a success head, for types whose training takes one (`heads = True`)."""
COMPILED = ("compile",)
"""The option of types whose training goes through torch.compile (`compiles = True`)."""
OPTIMIZER = ("optimizer",)
"""The option of types whose dynamics can be trained by more than one optimizer (`optimizers = True`)."""
OFFERED = ("initial", "probe", "tokenizer")
"""Options that apply to the types whose `for_data` names them."""
OWN = (
    "checkpoint",
    "tensorboard",
    "export",
    "config.json",
    "model.safetensors",
    "manifest.json",
    "training.json",
    "judge",
)


def train_registered(
    registry: Registry,
    config: Any,
    *,
    command: str,
    save_to: Path,
    prepare: Callable[[EpisodeArrays, EpisodeDataset], EpisodeArrays] | None = None,
    more: Mapping[str, str] | None = None,
) -> int:
    """Train a part of the registered type `config.type`, and save it.

    Args:
        registry: registry of the part.
        config: config of the command; only its options in `COMMON` apply.
        command: words of the command.
        save_to: folder of the result.
        prepare: changes the episodes of the dataset before the training.
        more: further facts that identify the run, by option: what `prepare` does.

    Returns:
        the exit code.

    Raises:
        ConfigError: an unknown type, a type that cannot be trained, or an option that does not apply.
    """
    import torch

    from worldgym.data import EpisodeDataset
    from worldgym.data.augment import augmented
    from worldgym.training.generic import fresh_part

    registry.get(config.type)  # an unknown type ends here
    trained = registry is WORLD_MODELS and config.type in TRAINERS.names()
    kind, here = (TRAINERS if trained else registry).get(config.type), placing(config)
    offered = {name: getattr(config, name) for name in OFFERED if hasattr(config, name)}
    if hasattr(config, "settings"):
        offered["settings"] = values_of(config.settings, "--settings", "name=value") or None
    compiled = getattr(config, "compile", False)
    if compiled and not getattr(kind, "compiles", False):
        raise ConfigError(f"--compile is for --type video and joint, got --type {config.type}; leave it out")
    if compiled and here.device.type == "cpu":
        require_compiler()
    applying = [name for name in COMMON if hasattr(config, name)]
    for mark, names in (("heads", HEAD), ("compiles", COMPILED), ("optimizers", OPTIMIZER)):
        applying += names if getattr(kind, mark, False) else ()
    refuse_others(config, (*applying, *offered))
    dataset = EpisodeDataset(config.data).require_seen()
    facts = {**identity(config, dataset, contents=("tokenizer", "initial", "judge")), **(more or {})}
    claim(config.out, command, facts, own=(*OWN, *getattr(kind, "own", ())), fresh=config.fresh)
    if finished(config.out, config):
        return 0
    arrays = dataset.load_arrays(limit=config.limit, progress=True, cameras=dataset.cameras)
    specs = dataset.specs
    if prepare is not None:
        with released_if_refused(config.out):
            arrays = prepare(arrays, dataset)
        specs = arrays.specs or specs
    arrays = augmented(arrays, getattr(config, "augment", 0), config.seed)
    if registry is JUDGES and not arrays.has_success.any():
        logger.warning(
            "no frame of %s has a success label; a judge that learns from labels learns nothing. If the recording has "
            "them, import it again with --success COLUMN, or --success all for demonstrations", config.data,
        )  # fmt: skip
    torch.manual_seed(config.seed)
    with released_if_refused(config.out):
        part = here(fresh_part(kind, config.type, specs, config.preset, arrays, offered))
        head = success_head(config, part, arrays)
    processes, address = getattr(config, "processes", 1), getattr(config, "address", None)
    if getattr(config, "shard", False):
        refuse_sharding(config, kind, part, processes)
    job = Job(config, command, save_to, facts, kind, registry is JUDGES, head)
    with released_if_refused(config.out):
        run_ranks(train, job, part, arrays, processes=processes, address=address, out=config.out, device=here.device)
    finish(config.out, config)
    return 0


@dataclasses.dataclass(frozen=True)
class Job:
    """The job of a training process.

    Args:
        config: config of the command.
        command: words of the command.
        save_to: folder of the result.
        facts: identify the run in checkpoints.
        kind: class of the part, or its trainer.
        judge: whether the part is a judge, otherwise a world model.
        head: success head that is trained with a world model, or None.
    """

    config: Any
    command: str
    save_to: Path
    facts: dict[str, Any]
    kind: Any
    judge: bool
    head: Any = None


def train(rank: int, job: Job, part: Any, arrays: Any) -> None:
    """Train a part alone, or as one rank of the current process group; the first rank saves it."""
    import torch

    from worldgym.training.generic import PartTraining, train_part
    from worldgym.training.loop import LoopConfig
    from worldgym.utils.files import atomic_write_text

    config = job.config
    torch.manual_seed(config.seed)
    minutes = None if config.steps else getattr(config, "minutes", None)
    loop = LoopConfig(steps=config.steps or 1_000_000, lr=config.lr, seed=config.seed, max_minutes=minutes)
    window, shard = getattr(config, "window", PartTraining.window), getattr(config, "shard", False)
    compiled = getattr(config, "compile", False)
    optimizer = getattr(config, "optimizer", None)
    settings = PartTraining(loop, config.batch_size, window, shard, compiled, optimizer)
    tag = job.command.rpartition(" ")[2]
    head = job.head
    part, scalars = train_part(
        part, arrays, settings, config.out, identity=job.facts, tag=tag, trainer=job.kind, head=head
    )
    if rank:
        return
    if head is not None:
        judge, report = head.finished(part)
        judge.save_pretrained(config.out / "judge")
        scalars |= {f"judge/{name}": value for name, value in report.items()}
    registry = JUDGES if job.judge else WORLD_MODELS
    registry.save(part, job.save_to)
    written = {"type": config.type, "scalars": scalars, "data": config.data.name, "episodes": len(arrays)}
    atomic_write_text(config.out / "training.json", json.dumps(written, indent=1))
    logger.info("%s of type %s saved to %s, %s", registry.kind, config.type, job.save_to, scalars)


def success_head(config: Any, part: Any, arrays: Any) -> Any:
    """The success head that is trained with a world model, or None."""
    if not getattr(config, "success_head", 0):
        return None
    if config.head_only:
        from worldgym.models import load_world_model

        found = type(load_world_model(config.initial))
        if found is not type(part):
            raise ConfigError(
                f"--head-only keeps the world model as it is, and {config.initial} is a {found.__name__}; expected a "
                f"{type(part).__name__}. Train one with --type {config.type}, and give its export as --initial"
            )
    from rewards.training.success_head import SuccessHead

    return SuccessHead.for_data(
        part, arrays, coef=config.success_head, initial=config.judge, alone=config.head_only, seed=config.seed,
        preset=config.preset,
    )  # fmt: skip


def refuse_sharding(config: Any, kind: Any, part: Any, processes: int) -> None:
    """Raise a ConfigError if the weights of a part cannot be distributed over processes."""
    if not getattr(kind, "shards", False):
        raise ConfigError(f"--shard does not apply to --type {config.type}; leave it out")
    if processes < 2:
        raise ConfigError(f"--shard distributes weights over processes, got --processes {processes}; try --processes 2")
    if getattr(part, "lora", None):
        raise ConfigError(
            "--shard is for the training of all weights. With adapters each process holds the frozen weights; leave "
            "out --shard or --settings lora"
        )


def refuse_others(config: Any, names: tuple[str, ...]) -> None:
    """Raise a ConfigError if an option other than `names` was given, since the type would ignore it."""
    given = [
        field.name
        for field in dataclasses.fields(config)
        if field.name not in names and getattr(config, field.name) != field.default
    ]
    if given:
        raise ConfigError(
            f"{', '.join(map(option, given))} do not apply to --type {config.type}; leave them out. The options of a "
            f"type of another package are {', '.join(map(option, names))}"
        )
