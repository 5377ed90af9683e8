"""`worldgym train policy`: trains a policy on demonstrations (SFT), the initial policy of fine-tuning.

Datasets of any shape work. The policy has a goal head only if proprioception is known to contain an end effector.
Ctrl-C keeps the last finished epoch, and the same command resumes from it. The weights with the lowest loss on held-out
episodes are saved.

Example::

    worldgym train policy --data data/real --demos-per-task 200 --out runs/policy_sft
    worldgym train policy --data data/mine --no-success-only        # recordings without success labels
    worldgym train policy --data data/real --aux flare --aux-video data/video      # with an auxiliary loss
    worldgym eval --policy sft runs/policy_sft
"""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.compute import DType, placing
from experiments.pipelines.auxiliary import check_auxiliary, losses_for, tokens_for, video_for
from experiments.pipelines.checks import check_numbers, values_of
from experiments.pipelines.training_run import (
    Hand,
    claim,
    fingerprint,
    finish,
    finished,
    identity,
    released_if_refused,
    require_preset,
    require_size,
    with_hand,
)
from worldgym.errors import ConfigError
from worldgym.registry import POLICIES

if TYPE_CHECKING:
    from worldgym.data.reader import EpisodeArrays
    from worldgym.specs import Specs

logger = logging.getLogger(__name__)
OWN = ("checkpoint", "tensorboard", "config.json", "model.safetensors", "manifest.json", "training.json")


@dataclass(frozen=True)
class TrainPolicyConfig:
    """Train a policy on demonstrations; the same command resumes an interrupted run.

    Args:
        data: dataset folder of `worldgym collect` or `worldgym import`.
        out: folder of the policy (config.json, model.safetensors) and of TensorBoard logs.
        demos_per_task: number of demonstrations (episodes of `behaviour`) per task.
        behaviour: behaviour of the demonstrations; if None, `expert`, or the only behaviour of the dataset.
        success_only: use successful episodes only.
        type: type of the policy: `vla`, or a type that another package registers (`worldgym list`) and whose class has
            `for_data(specs, preset, arrays)` and the `loss` of `worldgym.protocols.TrainablePolicy`.
        initial: folder of a policy whose weights are reused and fixed, except for its goal head, which is trained.
            Moving to a given goal needs no instruction, so it can be learned from many logs; the demonstrations are
            needed to learn the meaning of instructions.
        decoded_by: folder of a world model. The policy learns from every frame twice: as recorded, and encoded and
            decoded by its tokenizer, so that it acts alike on real and on imagined frames.
        hand: `auto` uses the roles of the dataset's state fields; `yes` means that proprioception is x, y, z, ...,
            opening of the gripper, and that the last action is the gripper; `no` means that its meaning is unknown.
        goal_head: the policy first chooses the hand's next position, if the meaning of proprioception is known;
            `--no-goal-head` trains the same policy without.
        preset: `small` or `tiny`; ignored if `initial` is given. For other types, a preset of theirs; for `hf_vla` also
            a folder with a vision-language model.
        settings: `name=value` pairs (YAML) for a type other than `vla`, such as `head=flow` or `lora={rank: 16}` for
            `hf_vla`.
        aux: auxiliary losses on what the future looks like: `flare`, `vla-jepa`, or another registered name. The policy
            gets the tokens that they need; the saved policy has no other part of them.
        aux_settings: `name=value` pairs (YAML) for the auxiliary loss, such as `weight=0.2 tokens=8`; with several
            losses `flare.weight=0.2`. `weight=0` keeps the tokens without the loss, as a control.
        aux_video: dataset of the same cameras from which the auxiliary losses alone learn; its actions, if any, are
            ignored. Episodes of held-out splits are allowed, and then these splits are no longer unseen.
        epochs: maximum number of epochs; training stops early when the held-out loss no longer decreases.
        steps: maximum number of optimizer steps, rounded up to whole epochs, in place of `epochs`.
        batch_size: frames per step.
        lr: peak learning rate.
        finish_steps: steps with a low learning rate and weight averaging on all demonstrations, after the best epoch.
        patience: epochs without improvement before training stops; 0 never stops early.
        seed: seed of all randomness, including the choice of demonstrations.
        limit: maximum number of episodes to read, also of `aux_video`.
        fresh: delete what an earlier run of this command wrote to `out`, and start over.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of world-model inference; `auto` uses the saved precision.
    """

    data: Path
    out: Path = Path("runs/policy_sft")
    demos_per_task: int = 400
    behaviour: str | None = None
    success_only: bool = True
    type: str = "vla"
    initial: Path | None = None
    decoded_by: Path | None = None
    hand: Hand = "auto"
    goal_head: bool = True
    preset: str = "small"
    settings: tuple[str, ...] = ()
    aux: tuple[str, ...] = ()
    aux_settings: tuple[str, ...] = ()
    aux_video: Path | None = None
    epochs: int = 60
    steps: int | None = None
    batch_size: int = 128
    lr: float = 8e-4
    finish_steps: int = 240
    patience: int = 12
    seed: int = 0
    limit: int | None = None
    fresh: bool = False
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        for name in ("data", "out", "initial", "decoded_by", "aux_video"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value))
        check_numbers(self)
        if self.type == "vla":
            require_preset(self.preset)
        elif self.initial is not None:
            raise ConfigError(f"--initial is for --type vla, got --type {self.type}; leave it out")
        if self.type == "vla" and self.settings:
            raise ConfigError(f"--settings is for other types than vla, got {' '.join(self.settings)}; leave it out")
        if not self.goal_head and (self.type != "vla" or self.initial is not None):
            raise ConfigError("--no-goal-head is for a new policy of --type vla; leave it out")
        check_auxiliary(self.aux, self.aux_settings, self.aux_video, self.initial)


def run(config: TrainPolicyConfig) -> int:
    """Train and save the policy, and log the held-out scores."""
    import json

    import torch
    from torch.utils.tensorboard import SummaryWriter

    from agents import SFT, SFTConfig, chunk_dataset
    from agents.algorithms.sft import demonstrations
    from agents.auxiliary.make import make_auxiliaries
    from agents.data.demonstrations import HandColumns, demonstrated_behaviour
    from worldgym.data import EpisodeDataset
    from worldgym.models import load_world_model
    from worldgym.utils.files import atomic_write_text
    from worldgym.utils.progress import Progress
    from worldgym.utils.train_state import TrainState

    kind, here = POLICIES.get(config.type), placing(config)
    dataset = EpisodeDataset(config.data).require_seen()
    specs = with_hand(dataset.specs, config.hand)
    hand = HandColumns.of(specs)
    facts = identity(config, dataset, contents=("initial", "decoded_by"))
    auxiliary, video = losses_for(config.aux, config.aux_settings, config.aux_video), None
    if config.aux_video is not None:
        video = EpisodeDataset(config.aux_video)
        facts["--aux-video"] = fingerprint(video)
    for option in ("--settings", "--decoded-by", "--aux", "--aux-settings", "--aux-video"):
        if not facts[option]:
            del facts[option]  # keeps the identity of runs from before this option
    claim(config.out, "train policy", facts, own=OWN, fresh=config.fresh)
    if finished(config.out, config):
        return 0
    arrays = dataset.load_arrays(limit=config.limit, progress=True, cameras=dataset.cameras)
    behaviour = demonstrated_behaviour(arrays, config.behaviour)
    if config.behaviour is None and behaviour != "expert":
        logger.info("no episodes of behaviour 'expert': using those of %r", behaviour)
    chosen = demonstrations(
        arrays,
        config.demos_per_task,
        behaviour=behaviour,
        seed=config.seed,
        success_only=config.success_only,
    )
    torch.manual_seed(config.seed)
    if config.type == "vla":
        policy = _policy(config, arrays, specs, tokens_for(auxiliary))
    else:
        from worldgym.training.generic import fresh_part

        with released_if_refused(config.out):
            offered = {"settings": values_of(config.settings, "--settings", "head=flow") or None}
            policy = fresh_part(kind, config.type, specs, config.preset, arrays, offered)
    policy = here(policy)
    counts = {
        task: sum(demo.task == task for demo in chosen) for task in sorted({demo.task for demo in chosen})
    }
    for task, count in counts.items():
        if count < config.demos_per_task:
            logger.warning("only %d of %d demonstrations of %s", count, config.demos_per_task, task)
    if not config.goal_head:
        hand = None
    elif hand is None:
        logger.info(
            "the dataset has no end-effector position and gripper command: the policy gets no goal head"
        )
    demos = chunk_dataset(
        chosen, policy.chunk, hand=hand, stop_at_success=config.success_only, future=bool(auxiliary)
    )
    del arrays
    with released_if_refused(config.out):
        losses = make_auxiliaries(auxiliary, policy)
        watched = None if video is None else video_for(video, demos, config.limit)
    if config.decoded_by is not None:
        with released_if_refused(config.out):
            tokenizer = getattr(here(load_world_model(config.decoded_by)), "tokenizer", None)
            if tokenizer is None:
                raise ConfigError(f"--decoded-by {config.decoded_by}: this world model has no tokenizer of frames")
            require_size(demos.images.shape[1:3], tokenizer.image_size, f"the tokenizer of {config.decoded_by}")
            demos = demos.with_decoded(tokenizer)
    settings = SFTConfig(
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        finish_steps=config.finish_steps,
        patience=config.patience,
        seed=config.seed,
        learn="all" if config.initial is None else "goal",
    )
    if config.steps is not None:
        trained = len(demos)
        if len(chosen) > 1:
            trained -= int(demos.held_out(settings.val_fraction, settings.seed).sum())
        epochs = math.ceil(config.steps / math.ceil(trained / config.batch_size))
        settings = dataclasses.replace(settings, epochs=epochs)
    with released_if_refused(config.out):
        trainer = SFT(settings, losses, watched)
    state = TrainState(config.out / "checkpoint", identity=facts)
    first = int(state.meta()["epoch"]) + 1 if state.exists() else 0
    logger.info(
        "%d frames of %s demonstrations%s", len(demos), counts, f", from epoch {first}" if first else ""
    )
    with (
        SummaryWriter(str(config.out / "tensorboard"), purge_step=first) as board,
        Progress(settings.epochs, "train policy", initial=first) as progress,
    ):

        def on_epoch(scalars: dict[str, float]) -> None:
            for name, value in scalars.items():
                board.add_scalar(f"sft/{name}", value, int(scalars["epoch"]))
            board.flush()
            progress.update(1, loss=scalars["loss"], val_loss=scalars["val_loss"])

        history = trainer.fit(policy, demos, on_epoch=on_epoch, checkpoint=state)
    POLICIES.save(policy, config.out)
    written = {
        "demos": counts, "history": history, "settings": dataclasses.asdict(settings), "data": config.data.name,
        "behaviour": behaviour,
    }  # fmt: skip
    if auxiliary:
        written["auxiliary"] = {name: dataclasses.asdict(each) for name, each in auxiliary.items()}
    if video is not None and watched is not None:
        splits = sorted({record.split for record in video.records})
        written["video"] = {"data": video.root.name, "episodes": len(video), "frames": len(watched), "splits": splits}
    atomic_write_text(config.out / "training.json", json.dumps(written, indent=1))
    state.remove()
    finish(config.out, config)
    logger.info("policy saved to %s, held-out %s", config.out, {k: round(v, 4) for k, v in history.items()})
    return 0


def _policy(config: TrainPolicyConfig, arrays: EpisodeArrays, specs: Specs, more: dict[str, Any]) -> Any:
    """Create a policy for the data's specs, or load `initial` with a new goal head."""
    import numpy as np

    from agents import VLAPolicy, VLAPolicyConfig
    from agents.data.demonstrations import HandColumns
    from agents.policies.goal_head import GoalHead

    if config.initial is not None:
        policy = VLAPolicy.from_pretrained(str(config.initial))
        shape, dims = policy.config, (arrays.states.shape[1], arrays.actions.shape[1])
        require_size(specs.observation.main.size, shape.size, f"the policy {config.initial}")
        if (shape.state_dim, shape.action_dim) != dims or not shape.goal_dims:
            raise ConfigError(
                f"--initial {config.initial} has {shape.state_dim} dimensions of proprioception, {shape.action_dim} of "
                f"action and {shape.goal_dims} of goals; the dataset has {dims[0]} and {dims[1]}, and goals are "
                "needed. Leave --initial out"
            )
        policy.pointer = GoalHead(shape)
        return policy
    # An action dimension whose values are only -1 and 1 is binary.
    two = np.abs(np.abs(arrays.actions[~arrays.is_last]) - 1).max(0, initial=0.0) < 1e-6
    binary = {int(d) for d in np.flatnonzero(two)}
    if specs.action is not None and specs.action.gripper is not None:
        binary.add(specs.action.gripper.index)
    goals = 3 if config.goal_head and HandColumns.of(specs) is not None else 0
    own = {"goal_dims": goals, "binary_dims": tuple(sorted(binary)), **more}
    return VLAPolicy(VLAPolicyConfig.for_data(config.preset, specs, **own))
