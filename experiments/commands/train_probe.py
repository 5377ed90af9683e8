"""`worldgym train probe`: the ruler that reads from a frame where the hand and the objects are.

Trained on true frames of a suite with their true positions, half of them seen through a world model's tokenizer.
It measures world models; nothing that learns to act or to judge sees it or its labels.

Example::

    worldgym train probe --world-model runs/world_model/export --out runs/probe
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments.compute import DType, placing
from experiments.pipelines.checks import check_numbers
from experiments.pipelines.training_run import claim, content_of, identity, require_size
from worldgym.errors import ConfigError
from worldgym.pretrained import DEFAULT
from worldgym.suite import extra, load_suite

OWN = ("checkpoint", "tensorboard", "export", "probe.json")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainProbeConfig:
    """Train the position probe; the same command again resumes.

    Args:
        world_model: folder of the world model whose tokenizer frames are also seen through; the bundled one when None.
        out: run folder (checkpoint, TensorBoard, `export/`).
        suite: whose frames; the default one when None.
        tasks: verbs whose behaviours the frames come from; the suite's default ones when None.
        episodes: episodes of 40 steps, every third frame of them used.
        steps: optimizer steps.
        batch_size: frames a step.
        lr: peak learning rate.
        seed: first start seed, below the evaluation's 10,000,000, and everything random.
        fresh: remove what an earlier run of this command made in `out`, and start over.
        device: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.
        dtype: precision in which a world model imagines; `auto` leaves it as it was saved.
    """

    world_model: Path | None = None
    out: Path = Path("runs/probe")
    suite: str | None = None
    tasks: tuple[str, ...] | None = None
    episodes: int = 360
    steps: int = 320
    batch_size: Annotated[int, tyro.conf.arg(aliases=["--batch"])] = 64
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
        if self.episodes < 2:
            raise ConfigError(f"--episodes is {self.episodes}, expected at least 2: one of them is held out")


def run(config: TrainProbeConfig) -> int:
    """Render, train, export, and say how exact it is on frames that it was not trained on."""
    import torch

    from experiments.bundle import Bundle
    from experiments.pipelines.held_out_episodes import true_logs
    from worldgym.evaluation.fidelity import position_errors
    from worldgym.evaluation.probe import PositionProbe, PositionProbeConfig, probe_loss
    from worldgym.models import load_world_model
    from worldgym.training.loop import LoopConfig, TrainingLoop

    here = placing(config)
    model = (
        here(load_world_model(config.world_model))
        if config.world_model
        else Bundle.find(DEFAULT, here).world_model()
    )
    require_size(64, model.image_size, "the world model's tokenizer")
    facts = identity(config, contents=("world_model",))
    if config.suite is None:  # as before there were others
        del facts["--suite"]
    if config.world_model is None:
        facts["--world-model"] = content_of(Bundle.find(DEFAULT).folder)
    claim(config.out, "train probe", facts, own=OWN, fresh=config.fresh)
    # The first tenth, held out, is of `seen`: that is where the figures are from.
    splits = ("seen", "seen", "unseen_object", "unseen_scene")
    suite = load_suite(config.suite)
    splits = tuple(name for name in splits if name in suite.splits)
    logs = true_logs(config.tasks, config.episodes, seed=config.seed, splits=splits, suite=suite)
    held = max(1, len(logs.frames) // 10)
    frames = torch.from_numpy(logs.frames[:, ::3])
    positions = torch.from_numpy(logs.positions[:, ::3])
    flat, where = frames[held:].flatten(0, 1), positions[held:].flatten(0, 1)
    blurred = model.tokenizer.decode(model.tokenizer.encode(flat)).cpu()

    def loss(module, step, generator):  # type: ignore[no-untyped-def]
        rows = torch.randint(len(flat), (config.batch_size,), generator=generator)
        through = torch.rand(config.batch_size, generator=generator) < 0.5
        shown = torch.where(through[:, None, None, None], blurred[rows], flat[rows])
        return probe_loss(module, shown, where[rows])

    torch.manual_seed(config.seed)
    probe = here(PositionProbe(PositionProbeConfig(parts=tuple(extra(suite, "parts", "ruler of positions")))))
    loop = LoopConfig(steps=config.steps, lr=config.lr, final_lr=0.02, warmup=30, ema=0.99, seed=config.seed)
    training = TrainingLoop(probe, loop, config.out, loss, tag="train_probe", identity=facts)
    training.run()
    trained = training.ema_model
    scores = {}
    true = logs.frames[:held, 1:]
    decoded = model.tokenizer.decode(model.tokenizer.encode(torch.from_numpy(true).flatten(0, 1)))
    for name, shown in (("true", true), ("decoded", decoded.cpu().numpy().reshape(true.shape))):
        errors = position_errors(trained, shown, logs.positions[:held]).median()
        scores[name] = {
            "hand_px": errors["hand"],
            "objects_px": errors["objects"],
            "lost_share": errors["lost_share"],
        }
    trained.save_pretrained(str(config.out / "export"))
    (config.out / "probe.json").write_text(json.dumps(scores, indent=1) + "\n")
    logger.info("probe saved to %s; held out: %s", config.out / "export", scores)
    return 0
