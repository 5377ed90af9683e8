"""`worldgym bundle`: put trained parts together into a checkpoint folder that `demo`, `bench` and `gym.make` use.

Example::

    worldgym bundle --data data/real --world-model runs/world_model/export --judge runs/judge --policy runs/policy \
        --out worldgym/pretrained/tabletop-small
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldgym.imagination.starts import VIEWS
from worldgym.pretrained import CARD
from worldgym.registry import JUDGES, POLICIES, SUITES, WORLD_MODELS
from worldgym.specs import Specs
from worldgym.suite import load_suite
from worldgym.utils.arrays import write_arrays
from worldgym.utils.files import atomic_write_text, read_json
from worldgym.utils.folders import MANIFEST, files_of, save_folder, seal_folder, verify_folder

logger = logging.getLogger(__name__)
README = "README.md"
KINDS = {
    "world_model": WORLD_MODELS, "judge": JUDGES, "policy_sft": POLICIES, "judge_latent": JUDGES,
    "judge_open_clip": JUDGES,
}  # fmt: skip
"""Registries of a bundle's parts, by their folders."""


@dataclass(frozen=True)
class BundleConfig:
    """Assemble a bundle.

    Args:
        data: dataset of `worldgym collect` that the parts were trained on.
        world_model: folder of a world model (`.../export`).
        judge: folder of a judge.
        policy: folder of the SFT policy.
        probe: folder of the position probe (`.../export`), which `worldgym bench fidelity` measures with.
        latent_judge: folder of a success head on this world model's latents.
        open_clip_judge: folder of an open_clip judge.
        out: the bundle's folder.
        starts: frames of Real's logs kept as starts of imagined episodes.
        demos_per_task: demonstrations that the policy was trained on, per task.
        demos_limit: the demonstrations are drawn from so many first episodes, as `worldgym train policy --limit` did.
        seed: which frames are kept.
        suite: that the data are of, for the card; the one whose split manifest they have, or the default, when None.
    """

    data: Path
    world_model: Path
    judge: Path
    policy: Path
    out: Path
    probe: Path | None = None
    latent_judge: Path | None = None
    open_clip_judge: Path | None = None
    starts: int = 3000
    demos_per_task: int = 25
    demos_limit: int | None = None
    seed: int = 0
    suite: str | None = None


def run(config: BundleConfig) -> int:
    """Copy the parts, pick starts and demonstrations, write the card: all of it aside, then one rename."""
    from agents.algorithms.sft import demonstrations
    from worldgym.data import EpisodeDataset

    sources = parts(config)
    dataset = EpisodeDataset(config.data).require_seen()
    suite = load_suite(config.suite or suite_of(dataset)).name
    name = f"the world model {config.world_model}"
    dataset.specs.check(specs_in(config.world_model), f"the dataset {config.data}", name)
    arrays = dataset.load_arrays(progress=True, cameras=dataset.cameras)
    first = arrays
    if config.demos_limit is not None:
        first = dataset.load_arrays(limit=config.demos_limit, cameras=dataset.cameras)
    try:
        with save_folder(config.out) as folder:
            for name, source in sources.items():
                copy_part(name, source, folder / name)
            write_starts(folder / "starts.npz", arrays, config.starts, config.seed)
            chosen = demonstrations(first, config.demos_per_task)
            write_demos(folder / "demos.npz", chosen, POLICIES.load(config.policy).chunk, dataset.specs)
            tasks = sorted(set(arrays.tasks))
            write_card(folder, config.out.name, tasks, dataset.manifest.hash, len(arrays), dataset.summary, suite)
            if (
                config.out / README
            ).is_file():  # the model card is written by people, beside what is made here
                shutil.copyfile(config.out / README, folder / README)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        # The copying names the file that it reads, which is not the one that can't be written.
        raise OSError(error.errno, error.strerror or str(error), str(config.out)) from error
    size = sum(f.stat().st_size for f in config.out.rglob("*") if f.is_file()) / 1e6
    logger.info("bundle in %s, %.1f MB", config.out, size)
    return 0


def suite_of(dataset: Any) -> str | None:
    """The suite that a dataset was collected in, by the name of its split manifest; None when that is no suite's."""
    return dataset.manifest.name if dataset.manifest.name in SUITES.names() else None


def parts(config: BundleConfig) -> dict[str, Path]:
    """Folders of the parts that are given, each verified, of a known type, and made for the world model.

    Raises:
        CheckpointError: no such folder, a file is missing, or it is not what was saved.
        ConfigError: a type that is not registered here, or specs that do not fit.
    """
    given = {
        "world_model": config.world_model, "judge": config.judge, "policy_sft": config.policy,
        "probe": config.probe, "judge_latent": config.latent_judge, "judge_open_clip": config.open_clip_judge,
    }  # fmt: skip
    found = {name: source for name, source in given.items() if source is not None}
    for name, source in found.items():
        verify_part(name, source)
    world = specs_in(found["world_model"])
    if world is not None:
        for name in [name for name in found if name in KINDS and name != "world_model"]:
            giver = f"the world model {found['world_model']}"
            world.check(specs_in(found[name]), giver, f"the part {found[name]}")
    return found


def verify_part(name: str, source: Path) -> None:
    """Raise an error unless `source` holds a whole part of a registered type; `name` is its folder in a bundle."""
    remedy = f"give the folder of a trained {name}"
    if name not in KINDS:
        verify_folder(source, ("config.json", "model.safetensors"), remedy)
        return
    verify_folder(source, (), remedy)
    verify_folder(source, files_of(source), remedy)
    KINDS[name].get(KINDS[name].type_of(source))
    if not (source / MANIFEST).is_file():
        KINDS[name].load(source)  # nothing lists its files, so only loading tells whether they are all there


def specs_in(folder: Path) -> Specs | None:
    """The specs in the config.json of a part; None where it has none, as those of earlier versions."""
    file = folder / "config.json"
    config = read_json(file, f"Save {folder} again") if file.is_file() else {}
    found = config.get("specs") if isinstance(config, dict) else None
    return None if found is None else Specs.from_dict(found)


def copy_part(name: str, source: Path, target: Path) -> None:
    """Copy all files of a part with its manifest, and compare the copy with it; a part that has none gets one.

    Raises:
        CheckpointError: the copy is not what the source's manifest lists.
    """
    target.mkdir()
    files = files_of(source)
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, target / file)
    if (source / MANIFEST).is_file():
        shutil.copyfile(source / MANIFEST, target / MANIFEST)
        verify_folder(target, files, f"copy {source} again")
    else:
        seal_folder(target)


def write_starts(path: Path, arrays: Any, count: int, seed: int) -> None:
    """`count` unsolved frames, half first frames and half from the middle of episodes, tasks equally often."""
    from agents import StartBank

    bank = StartBank.from_arrays(arrays)
    chosen = bank.sample(count, np.random.default_rng(seed))
    chosen.start_set().save(path)


def write_demos(path: Path, demos: list[Any] | Any, chunk: int, specs: Specs) -> None:
    """The demonstrated chunks; pictures as differences from their median, which deflate to a fifth.

    Args:
        path: of the archive.
        demos: episodes.
        chunk: actions a row, as many as the policy gives.
        specs: of the dataset, which say where an end effector stands.
    """
    from agents import chunk_dataset
    from agents.data.demonstrations import HandColumns

    chunks = chunk_dataset(demos, chunk, hand=HandColumns.of(specs))
    sample = chunks.images[:: max(1, len(chunks.images) // 500)]
    background = np.median(sample, 0).astype(np.uint8)
    write_arrays(
        path,
        {
            "images": chunks.images - background,  # uint8 wraps around: lossless
            "background": background,
            "states": chunks.states,
            "actions": np.round(chunks.actions, 3).astype(np.float16),
            "instructions": np.array(chunks.instructions),
            "episode": chunks.episode,
            "goals": chunks.goals,
            **{f"{VIEWS}{name}": frames for name, frames in chunks.views.items()},
        },
    )


def write_card(
    folder: Path, name: str, tasks: list[str], manifest: str, real_episodes: int, summary: Any, suite: str
) -> None:
    """`card.json` for programs; the README beside it is for people."""
    from worldgym import __version__

    card = {
        "name": name,
        "suite": suite,
        "tasks": tasks,
        "tasks_thin": [],
        "licence": "Apache-2.0",
        "worldgym": __version__,
        "split_manifest": manifest,
        "real_episodes": real_episodes,
        "data": json.loads(json.dumps(summary, default=str)),
        "command": "make pretrained",
    }
    atomic_write_text(folder / CARD, json.dumps(card, indent=1))
