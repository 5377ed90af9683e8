"""`worldgym collect`: collects episodes of scripted behaviours and policies in a domain of a suite; resumable.

Episode i of a collection depends only on (seed + i, settings), and episodes are written in order. So the same command
continues where it stopped, and a larger `--episodes` extends the collection. Other settings with the same folder add
another collection, for example rollouts of the current policy to refresh a world model.

Example::

    worldgym collect --out data/real --episodes 3000 --tasks reach push pick_place
    worldgym collect --out data/real --episodes 300 --seed 100000 --policy runs/sft --mix policy=1
    # weights that are not named are zero: in the second collection only the policy acts. `--mix.policy 1` is the same
"""

from __future__ import annotations

import logging
import time
from contextlib import closing

from experiments.pipelines.collect_settings import CollectConfig
from experiments.pipelines.collecting import collection_key, episodes_in_order
from worldgym.data import DatasetWriter
from worldgym.data.files import write_json
from worldgym.data.lerobot import EpisodeRecord
from worldgym.suite import Suite
from worldgym.utils.progress import Progress

logger = logging.getLogger(__name__)

LOG_SECONDS = 10.0


def summary_table(records: list[EpisodeRecord]) -> str:
    """Return a table of episodes, success rates and environment steps by behaviour and by task."""
    lines = [f"{'':<14}{'episodes':>9}{'success':>9}{'steps':>9}"]
    for name in ("behaviour", "task"):
        for value in sorted({getattr(record, name) for record in records}):
            lines.append(_row(value, [record for record in records if getattr(record, name) == value]))
    return "\n".join([*lines, _row("all", records)])


def _row(name: str, records: list[EpisodeRecord]) -> str:
    rate = sum(record.success for record in records) / max(1, len(records))
    return f"{name:<14}{len(records):>9}{100 * rate:>8.1f}%{sum(record.steps for record in records):>9}"


def run(config: CollectConfig) -> int:
    """Collect the episodes; return 0 if complete, 130 after Ctrl-C (finished episodes are saved)."""
    suite, key = config.loaded_suite, collection_key(config)
    specs = suite.specs_for(config.cameras or None, config.image_size)
    interrupted = False
    with DatasetWriter(
        config.out, specs, suite.manifest(), shard_episodes=config.shard_episodes, images=config.images
    ) as writer:
        start = sum(record.provenance.get("collection") == key for record in writer.records)
        _warn_of_used_seeds(config, key, writer.records)
        _warn_of_unseen_tasks(config, suite)
        if start:
            logger.info(
                "%s contains %d of %d episodes of this collection; continuing", config.out, start, config.episodes
            )
        settings = {
            name: getattr(config, name) for name in ("episodes", "tasks", "domain", "gap", "seed", "split")
        }
        settings |= {"mix": config.weights, "horizon": config.horizon}
        settings |= {} if config.starts is None else {"starts": config.starts}
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
    logger.info("the dataset contains %d episodes and %d interactions with Real", total, real_steps)
    if interrupted:
        logger.warning(
            "stopped after %d of %d episodes, all saved; run the same command to continue",
            len(mine),
            config.episodes,
        )
        return 130
    return 0


def _warn_of_unseen_tasks(config: CollectConfig, suite: Suite) -> None:
    """Warn if tasks that the suite keeps for the split `unseen_task` are recorded as training data."""
    kept = [task for task in config.tasks or () if task in getattr(suite, "unseen_tasks", ())]
    if kept and config.split == "seen":
        logger.warning(
            "%s is kept for the split unseen_task of suite %s: for parts that are trained on this dataset it is not "
            "unseen, and results on that split mean nothing", ", ".join(kept), suite.name,
        )  # fmt: skip


def _warn_of_used_seeds(config: CollectConfig, key: str, records: list[EpisodeRecord]) -> None:
    others = [record.provenance for record in records if record.domain == config.domain]
    used = {facts["seed"] for facts in others if facts.get("collection") != key and "seed" in facts}
    shared = sum(config.seed <= seed < config.seed + config.start_count for seed in used)
    if shared:
        logger.warning(
            "%d start seeds were already used in %s by another collection; for new starts try --seed %d",
            shared, config.out, max(used) + 1,
        )  # fmt: skip
