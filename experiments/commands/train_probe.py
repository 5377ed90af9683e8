"""`worldgym train probe`: trains the position probe, which reads the positions of gripper and objects from a frame.

It is trained on true frames of a suite with true positions; half of the frames pass through a tokenizer. It measures
world models, and labels the logs from which a world model of type `chunk` learns positions. Policies and judges are
never trained with the probe or its labels.

Example::

    worldgym train probe --world-model runs/world_model/export --out runs/probe
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.compute import DType, placing
from experiments.pipelines.checks import check_numbers
from experiments.pipelines.training_run import claim, content_of, identity, require_size
from worldgym.errors import ConfigError
from worldgym.pretrained import DEFAULT
from worldgym.suite import extra, load_suite

OWN = ("checkpoint", "tensorboard", "export", "probe.json")
OVERLOOKED = 0.1
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainProbeConfig:
    """Train the position probe; the same command resumes an interrupted run.

    Args:
        world_model: folder of the world model through whose tokenizer half of the frames pass; the bundled one if None.
        tokenizer: run folder of `worldgym train tokenizer`, instead of a world model.
        out: run folder (checkpoint, TensorBoard, `export/`).
        suite: suite of the frames; the default one if None.
        tasks: tasks of the episodes; the suite's default tasks if None.
        episodes: number of episodes of 40 steps of demonstrators; every third frame is used.
        data: dataset of `worldgym collect`; `replays` of its episodes are executed again in Real to know the positions
            in their frames. Policies bring about states that demonstrators do not.
        replays: number of these episodes.
        steps: optimizer steps.
        batch_size: frames per step.
        lr: peak learning rate.
        seed: first start seed, below the evaluation seeds (10,000,000), and seed of all randomness.
        fresh: delete what an earlier run of this command wrote to `out`, and start over.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of world-model inference; `auto` uses the saved precision.
    """

    world_model: Path | None = None
    tokenizer: Path | None = None
    out: Path = Path("runs/probe")
    suite: str | None = None
    tasks: tuple[str, ...] | None = None
    episodes: int = 360
    data: Path | None = None
    replays: int = 600
    steps: int = 320
    batch_size: int = 64
    lr: float = 3e-3
    seed: int = 5_000_000
    fresh: bool = False
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        check_numbers(self)
        known = load_suite(self.suite).default_tasks
        tasks = known if self.tasks is None else tuple(self.tasks)
        object.__setattr__(self, "tasks", tasks)
        if not tasks or set(tasks) - set(known):
            raise ConfigError(f"--tasks is {' '.join(tasks) or 'empty'}; expected some of {' '.join(known)}")
        if self.world_model is not None and self.tokenizer is not None:
            raise ConfigError("give --world-model or --tokenizer, not both")
        if self.episodes < 2:
            raise ConfigError(f"--episodes is {self.episodes}, expected at least 2: one of them is held out")


def run(config: TrainProbeConfig) -> int:
    """Render frames, train and export the probe, and log its errors on held-out frames."""
    import torch

    from experiments.bundle import Bundle
    from experiments.pipelines.held_out_episodes import replayed, true_logs
    from experiments.pipelines.run_folder import finite
    from experiments.pipelines.tokenizers import load_tokenizer
    from worldgym.data import EpisodeDataset
    from worldgym.evaluation.fidelity import position_errors
    from worldgym.models.probe import PositionProbe, PositionProbeConfig, probe_loss
    from worldgym.training.loop import LoopConfig, TrainingLoop
    from worldgym.utils.progress import Progress

    here = placing(config)
    given = load_tokenizer(config.world_model, config.tokenizer)
    tokenizer = here(given) if given is not None else Bundle.find(DEFAULT, here).world_model().tokenizer
    require_size(64, tokenizer.image_size, "the tokenizer")
    dataset = None if config.data is None else EpisodeDataset(config.data).require_seen()
    facts = identity(config, dataset, contents=("world_model", "tokenizer"))
    for option in ("suite", "tokenizer"):  # keeps the identity of runs from before these options
        if getattr(config, option) is None:
            del facts[f"--{option}"]
    if config.data is None:
        del facts["--replays"]
    if given is None:
        facts["--world-model"] = content_of(Bundle.find(DEFAULT).folder)
    claim(config.out, "train probe", facts, own=OWN, fresh=config.fresh)
    # The first tenth is held out for the scores; it is of split `seen`.
    splits = ("seen", "seen", "unseen_object", "unseen_scene")
    suite = load_suite(config.suite)
    splits = tuple(name for name in splits if name in suite.splits)
    logs = true_logs(config.tasks, config.episodes, seed=config.seed, splits=splits, suite=suite)
    held_out = max(1, len(logs.frames) // 10)
    frames = torch.from_numpy(logs.frames[:, ::3])
    positions = torch.from_numpy(logs.positions[:, ::3])
    flat, targets = frames[held_out:].flatten(0, 1), positions[held_out:].flatten(0, 1)
    if dataset is not None:
        with Progress(config.replays, "replay logs") as bar:
            more, places = replayed(
                dataset, config.replays, seed=config.seed, suite=suite,
                progress=lambda done, _: bar.update(done - bar.count),
            )  # fmt: skip
        require_size(more.shape[1], tokenizer.image_size, "the tokenizer")
        flat, targets = torch.cat([flat, torch.from_numpy(more)]), torch.cat([targets, torch.from_numpy(places)])
    decoded_flat = tokenizer.decode(tokenizer.encode(flat)).cpu()

    def loss(module, step, generator):  # type: ignore[no-untyped-def]
        rows = torch.randint(len(flat), (config.batch_size,), generator=generator)
        tokenized = torch.rand(config.batch_size, generator=generator) < 0.5
        inputs = torch.where(tokenized[:, None, None, None], decoded_flat[rows], flat[rows])
        return probe_loss(module, inputs, targets[rows])

    torch.manual_seed(config.seed)
    probe = here(PositionProbe(PositionProbeConfig(parts=tuple(extra(suite, "parts", "objects for a position probe")))))
    loop = LoopConfig(steps=config.steps, lr=config.lr, final_lr=0.02, warmup=30, ema=0.99, seed=config.seed)
    training = TrainingLoop(probe, loop, config.out, loss, tag="train_probe", identity=facts)
    training.run()
    trained = training.ema_model
    scores: dict[str, Any] = {}
    true = logs.frames[:held_out, 1:]
    decoded = tokenizer.decode(tokenizer.encode(torch.from_numpy(true).flatten(0, 1)))
    for name, inputs in (("true", true), ("decoded", decoded.cpu().numpy().reshape(true.shape))):
        errors = position_errors(trained, inputs, logs.positions[:held_out])
        median = errors.median()
        scores[name] = {
            "hand_px": median["hand"],
            "objects_px": median["objects"],
            "lost_share": median["lost_share"],
            "lost_by_part": dict(zip(trained.config.parts[1:], errors.lost_by_part(), strict=True)),
        }
    trained.save_pretrained(str(config.out / "export"))
    (config.out / "probe.json").write_text(json.dumps(finite(scores), indent=1) + "\n")
    logger.info("probe saved to %s; held-out errors: %s", config.out / "export", scores)
    if overlooked := overlooked_parts(scores["decoded"]["lost_by_part"]):
        logger.warning(
            "the probe overlooks %s in more than %.0f %% of the held-out frames that show them: a world model of type "
            "chunk learns where an object goes only from frames in which the probe finds it; type the command again "
            "with --fresh and --steps %d", ", ".join(overlooked), 100 * OVERLOOKED, 4 * config.steps,
        )  # fmt: skip
    return 0


def overlooked_parts(lost: dict[str, float]) -> list[str]:
    """Names of the parts that are overlooked in more than `OVERLOOKED` of the frames that show them, worst first.

    Example:
        >>> overlooked_parts({"drawer": 0.02, "window": 0.2, "faucet": 0.5, "puck": float("nan")})
        ['faucet', 'window']
    """
    return sorted((name for name, share in lost.items() if share > OVERLOOKED), key=lambda name: -lost[name])
