"""`worldgym train wam`: trains a joint world-action model, one network that imagines and acts.

It is `worldgym train world-model --type joint` with the family as an option. The result is a world model and a policy:
`worldgym eval --policy RUN/export` evaluates it, `worldgym bench closed-loop --world-model RUN/export` imagines with
it, and `worldgym bundle` makes a bundle of it, for `worldgym rl`.

Example::

    worldgym train wam --family dreamzero --data data/real --tokenizer runs/tokenizer --out runs/wam --minutes 30
    worldgym train wam --family uwm --data data/real --initial tabletop-small --settings imitate=all --out runs/uwm
    worldgym train wam --family uwm --data data/real --initial tabletop-small --video data/other_robot --out runs/uwm
    worldgym train wam --family motus --data data/video --actions flow --initial tabletop-small --out runs/motus_flow
    worldgym train wam --family motus --data data/real --initial runs/motus_flow/export --out runs/motus
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.commands.train_world_model import TrainWorldModelConfig
from experiments.compute import DType
from experiments.pipelines.checks import check_numbers
from experiments.pipelines.registered_training import train_registered
from experiments.pipelines.training_run import fingerprint
from worldgym.data import EpisodeArrays, EpisodeDataset
from worldgym.data.action_free import as_video, check_video
from worldgym.data.flow_actions import with_flow_actions
from worldgym.errors import ConfigError
from worldgym.registry import WORLD_MODELS


@dataclass(frozen=True)
class TrainWamConfig:
    """Train a joint world-action model; the same command resumes an interrupted run.

    Args:
        data: dataset folder of `worldgym collect` or `worldgym import`. All episodes train the video; the actions of
            successful ones are imitated.
        family: `uwm`, `dreamzero`, `fastwam`, `gigaworld` (FastWAM with video that follows actions) or `motus`.
        tokenizer: run folder of `worldgym train tokenizer`.
        initial: world model whose tokenizer is used, in place of `tokenizer`, such as `tabletop-small`. From a joint
            model of the same family the training also goes on from its weights; layers of another shape are new.
        video: dataset of the same cameras from which the video alone is learned, such as recordings of another robot;
            its actions, if any, are ignored.
        actions: `logged`, or `flow`: codes of the optical flow in place of the actions, for recordings that have none
            (second stage of Motus). Such a model is the `initial` one of a training on logged actions.
        out: run folder (checkpoint, TensorBoard, `export/`).
        settings: `name=value` pairs (YAML) of `JointConfig` and `JointTraining`, such as `levels=decoupled`,
            `video_coef=0` or `imitate=all`.
        preset: `base` (one GPU), `small` or `tiny`.
        minutes: wall-clock time; the learning rate depends on the elapsed time. Ignored if `steps` is given.
        steps: optimizer steps; a run with steps resumes with identical results.
        batch_size: sequences per step.
        lr: peak learning rate.
        seed: seed of all randomness.
        limit: maximum number of episodes to read, also of `video`; the first ones.
        augment: copies of each episode with other colours and crops (`worldgym.data.augment`), for few recordings.
        compile: train through torch.compile, in about two thirds of the time; compiling takes one to several minutes,
            which do not count as `minutes`, and needs a C++ compiler on a CPU.
        fresh: delete what an earlier run of this command wrote to `out`, and start over.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: not used by this type; `auto`.
    """

    data: Path
    family: Literal["uwm", "dreamzero", "fastwam", "gigaworld", "motus"] = "uwm"
    tokenizer: Path | None = None
    initial: Path | None = None
    video: Path | None = None
    actions: Literal["logged", "flow"] = "logged"
    out: Path = Path("runs/wam")
    settings: tuple[str, ...] = ()
    preset: str = "small"
    minutes: float = 30.0
    steps: int | None = None
    batch_size: int = 64
    lr: float = 2e-3
    seed: int = 0
    limit: int | None = None
    augment: int = 0
    compile: bool = False
    fresh: bool = False
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_numbers(self)
        if self.dtype != "auto":
            raise ConfigError(
                f"--dtype {self.dtype} does not apply to training; for inference type --settings "
                f'"sampling={{dtype: {self.dtype}}}"'
            )


def run(config: TrainWamConfig) -> int:
    """Encode the logs, train the model, and export it."""
    own = ("family", "settings", "video", "actions")
    values = {name: getattr(config, name) for name in config.__dataclass_fields__ if name not in own}
    settings = (f"family={config.family}", *config.settings)
    chosen = TrainWorldModelConfig(type="joint", settings=settings, **values)
    watched = None if config.video is None else EpisodeDataset(config.video)

    def prepare(arrays: EpisodeArrays, dataset: EpisodeDataset) -> EpisodeArrays:
        if config.actions == "flow":
            arrays = with_flow_actions(arrays, dataset.meta.fps)
        if watched is None:
            return arrays
        check_video(watched, dataset.meta.fps, "--video")
        seen = watched.load_arrays(limit=config.limit, progress=True, cameras=watched.cameras)
        return EpisodeArrays.together([arrays, as_video(seen, arrays, "--video")])

    more = {} if watched is None else {"--video": fingerprint(watched)}
    more |= {} if config.actions == "logged" else {"--actions": config.actions}
    return train_registered(
        WORLD_MODELS, chosen, command="train wam", save_to=config.out / "export", prepare=prepare, more=more
    )
