"""`worldgym collect`: logs of Real (or Soft), made by experts, blunderers and policies, counted and resumable.

Episode i of a collection is decided by (seed + i, settings) alone and written in order, so the same command run
again goes on where it stopped, and a larger `--episodes` extends it. Different settings into the same folder add
another collection to it, e.g. rollouts of the current policy to refresh a world model.

Example::

    worldgym collect --out data/real --episodes 3000 --tasks reach push pick_place
    worldgym collect --out data/real --episodes 300 --seed 100000 --policy runs/sft --mix.policy 1
    # naming one weight leaves the others at zero: in the second collection only the policy acts
"""

from __future__ import annotations

import dataclasses
import logging
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from experiments.collecting import collection_key, episodes_in_order
from worldgym.data import SPLITS, TABLETOP_ACTION_SPEC, DatasetWriter, SplitManifest
from worldgym.data.files import write_json
from worldgym.data.lerobot import EpisodeRecord
from worldgym.errors import ConfigError
from worldgym.utils.progress import Progress

logger = logging.getLogger(__name__)

SEED_LIMIT = 1_000_000  # seeds from here on belong to debugging and to evaluation
STATE_DIM = 4
LOG_SECONDS = 10.0


@dataclass(frozen=True)
class BehaviourMix:
    """Relative weights of who acts; they need not sum to 1.

    Args:
        expert: the scripted expert, with little noise.
        noisy: the expert with strong noise and slips of the gripper.
        near_miss: grasps, placements and pushes that fail by a few pixels.
        distracted: something sensible with the wrong object, so that the words matter.
        random: random motion.
        policy: the checkpoint given as `--policy`.
    """

    expert: float = 0.0
    noisy: float = 0.0
    near_miss: float = 0.0
    distracted: float = 0.0
    random: float = 0.0
    policy: float = 0.0

    def __post_init__(self) -> None:
        for name, weight in self.weights().items():
            if not (np.isfinite(weight) and weight >= 0):
                raise ConfigError(f"mix.{name} is {weight}, expected a weight >= 0")

    def weights(self) -> dict[str, float]:
        """Name to weight, as given."""
        return dataclasses.asdict(self)


DEFAULT_MIX = BehaviourMix(expert=0.35, noisy=0.2, near_miss=0.25, distracted=0.1, random=0.1)


@dataclass(frozen=True)
class CollectConfig:
    """Collect logged episodes on the tabletop.

    Args:
        out: folder of the dataset; made, continued or added to.
        episodes: size of this collection, counting what an earlier run of it already saved.
        tasks: verbs, dealt in turn.
        mix: who acts how often; all zero means the default mix (0.35 expert, 0.2 noisy, 0.25 near_miss,
            0.1 distracted, 0.1 random).
        policy: checkpoint folder of the policy for `--mix.policy`.
        temperature: sampling temperature of the policy; 0 is greedy.
        world_model: let the policy look at what this world model imagines while its actions are executed in the domain.
            What a policy does when imagination misleads it, and what then really happens, is what a world model and a
            judge most need to see; with it the world model is refreshed and the judge's dreams are closed-loop ones.
        domain: `real` is the robot stand-in, whose steps are counted; `soft` the misspecified simulator.
        gap: how wrong `soft` is, 0..1.
        seed: start seed of episode 0; episode i uses seed + i, below 1,000,000.
        workers: simulator processes; 0 runs in this one.
        split: which scenes and words; only `seen` may be trained on.
        horizon: most steps an episode, at 5 Hz.
        image_size: pixels, height and width.
        images: `png`, or `mp4` for at least 128 px.
        shard_episodes: episodes a file; a kill loses at most these.
    """

    out: Path = Path("data/real")
    episodes: int = 1000
    tasks: tuple[str, ...] = ("reach", "push", "pick_place")
    mix: BehaviourMix = field(default_factory=BehaviourMix)
    policy: Path | None = None
    temperature: float = 1.0
    world_model: Path | None = None
    domain: Literal["real", "soft"] = "real"
    gap: float = 0.0
    seed: int = 0
    workers: int = 2
    split: str = "seen"
    horizon: int = 40
    image_size: int = 64
    images: Literal["png", "mp4"] = "png"
    shard_episodes: int = 50

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))
        object.__setattr__(self, "tasks", tuple(self.tasks))
        for name in ("episodes", "horizon", "shard_episodes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.workers < 0:
            raise ConfigError(f"workers is {self.workers}, expected 0 (this process) or more")
        if not self.tasks:
            raise ConfigError("no task given; try --tasks reach push pick_place")
        if self.split not in SPLITS:
            raise ConfigError(f"unknown split {self.split!r}; the splits are {', '.join(SPLITS)}")
        if self.seed < 0 or self.seed + self.episodes > SEED_LIMIT:
            raise ConfigError(
                f"seeds {self.seed}..{self.seed + self.episodes - 1} leave 0..{SEED_LIMIT - 1}, what data may use "
                "(evaluation starts lie above); take a smaller --seed"
            )
        if not 0.0 <= self.gap <= 1.0 or (self.domain == "real" and self.gap != 0.0):
            raise ConfigError(f"gap is {self.gap} in domain {self.domain!r}; expected 0..1, and 0 in real")
        if self.temperature < 0:
            raise ConfigError(f"temperature is {self.temperature}, expected 0 (greedy) or more")
        if self.world_model is not None and self.policy is None:
            raise ConfigError(
                "--world-model says what a policy looks at: give --policy and --mix.policy 1 as well"
            )
        if (self.effective_mix.policy > 0) != (self.policy is not None):
            raise ConfigError(
                "--mix.policy and --policy belong together: give the weight and the checkpoint, or neither"
            )

    @property
    def effective_mix(self) -> BehaviourMix:
        """The mix that counts: the default one when every weight is zero."""
        return self.mix if any(self.mix.weights().values()) else DEFAULT_MIX


def summary_table(records: list[EpisodeRecord]) -> str:
    """Episodes, successes and environment steps by behaviour and by task."""
    lines = [f"{'':<14}{'episodes':>9}{'success':>9}{'steps':>9}"]
    for name in ("behaviour", "task"):
        for value in sorted({getattr(record, name) for record in records}):
            lines.append(_row(value, [record for record in records if getattr(record, name) == value]))
    return "\n".join([*lines, _row("all", records)])


def _row(name: str, records: list[EpisodeRecord]) -> str:
    rate = sum(record.success for record in records) / max(1, len(records))
    return f"{name:<14}{len(records):>9}{100 * rate:>8.1f}%{sum(record.steps for record in records):>9}"


def run(config: CollectConfig) -> int:
    """Collect; 0 when complete, 130 after Ctrl-C (what was made is saved)."""
    import envs.tabletop
    from envs.tabletop.collect import BEHAVIOURS

    for task in config.tasks:
        if task not in envs.tabletop.TASKS:
            raise ConfigError(f"unknown task {task!r}; the tasks are {', '.join(envs.tabletop.TASKS)}")
    for name, weight in config.effective_mix.weights().items():
        if weight and name not in (*BEHAVIOURS, "policy"):
            raise ConfigError(f"the tabletop has no behaviour {name!r}; it has {', '.join(BEHAVIOURS)}")
    key = collection_key(config)
    manifest = SplitManifest.load(Path(envs.tabletop.__file__).parent / "manifest.json")
    interrupted = False
    with DatasetWriter(
        config.out, TABLETOP_ACTION_SPEC, config.image_size, STATE_DIM, manifest,
        shard_episodes=config.shard_episodes, images=config.images,
    ) as writer:  # fmt: skip
        start = sum(record.provenance.get("collection") == key for record in writer.records)
        _warn_of_used_seeds(config, key, writer.records)
        if start:
            logger.info(
                "%s holds %d of %d episodes of this collection; going on", config.out, start, config.episodes
            )
        settings = {
            name: getattr(config, name) for name in ("episodes", "tasks", "domain", "gap", "seed", "split")
        }
        settings |= {"mix": config.effective_mix.weights(), "horizon": config.horizon}
        write_json(config.out / "meta" / f"collect-{key}.json", settings)
        try:
            with (
                closing(episodes_in_order(config, start)) as episodes,
                Progress(config.episodes, "collect", every=LOG_SECONDS, initial=start) as progress,
            ):
                steps, began = 0, time.monotonic()
                for episode in episodes:
                    writer.append(episode)
                    steps += episode.length
                    progress.update(1, steps_per_second=round(steps / (time.monotonic() - began)))
        except KeyboardInterrupt:
            interrupted = True
        writer.flush()
        mine = [record for record in writer.records if record.provenance.get("collection") == key]
        real_steps = sum(record.steps for record in writer.records if record.domain == "real")
        total = len(writer.records)
    logger.info("collection %s in %s:\n%s", key, config.out, summary_table(mine))
    logger.info("the dataset holds %d episodes and %d interactions with Real", total, real_steps)
    if interrupted:
        logger.warning(
            "stopped after %d of %d episodes, all saved; run the same command to go on",
            len(mine),
            config.episodes,
        )
        return 130
    return 0


def _warn_of_used_seeds(config: CollectConfig, key: str, records: list[EpisodeRecord]) -> None:
    others = [record.provenance for record in records if record.domain == config.domain]
    used = {facts["seed"] for facts in others if facts.get("collection") != key and "seed" in facts}
    shared = sum(config.seed <= seed < config.seed + config.episodes for seed in used)
    if shared:
        logger.warning(
            "%d start seeds were already used in %s by another collection; for new starts try --seed %d",
            shared, config.out, max(used) + 1,
        )  # fmt: skip
