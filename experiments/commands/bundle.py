"""`worldgym bundle`: combines trained parts into a checkpoint folder that `demo`, `bench` and `gym.make` use.

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

from experiments.pipelines.checks import values_of
from experiments.pipelines.settings import PRACTICE
from experiments.suites import other_instructions, suite_of_data
from worldgym.errors import ConfigError
from worldgym.imagination.starts import VIEWS
from worldgym.pretrained import CARD
from worldgym.registry import JUDGES, POLICIES, WORLD_MODELS
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
"""Registries of a bundle's parts, by folder name."""


@dataclass(frozen=True)
class BundleConfig:
    """Assemble a bundle.

    Args:
        data: dataset of `worldgym collect` or `worldgym import` on which the parts were trained.
        world_model: folder of a world model (`.../export`).
        judge: folder of a judge; None for recordings that no judge can be trained on. Environments then need `reward=`.
        policy: folder of the SFT policy; None makes a bundle without policy and demonstrations.
        probe: folder of the position probe (`.../export`), which `worldgym bench fidelity` uses.
        latent_judge: folder of a success head on this world model's latents.
        open_clip_judge: folder of an open_clip judge.
        out: folder of the bundle.
        starts: number of logged frames that are stored as starts of imagined episodes.
        starts_after: take them only from the episodes after the first N, which training left out (`--limit N`).
        demos_per_task: number of demonstrations per task on which the policy was trained.
        behaviour: behaviour of the demonstrations; if None, `expert`, or the only behaviour of the dataset.
        success_only: store successful demonstrations only.
        demos_every: store every N-th row of the demonstrations: a frame and the chunk of actions that follows it. Up to
            the length of a chunk all actions are still covered.
        demos_limit: draw the demonstrations from this many first episodes, as `worldgym train policy --limit` did.
        seed: seed of the choice of start frames.
        rollout_horizon: steps of a training rollout in imagination, for the card; commands that fine-tune use 25
            without it. Experts of the suite should be done by then.
        practice: `name=value` pairs of further settings for the card that commands that fine-tune take from there:
            `confirm`, `threshold`, `fastest`, `train_tasks`, `initial_share` (`worldgym rl --help`).
        half: store weights of 32 bits in 16 (float16), which halves the size; parts are computed in their own precision
            as before.
        licence: licence of the weights, for the card; recordings may require another.
        made_by: command that the card names as the one that makes this bundle.
        suite: suite of the data, for the card; if None, the suite of the data's split manifest. Imported recordings
            belong to none.
    """

    data: Path
    world_model: Path
    out: Path
    judge: Path | None = None
    policy: Path | None = None
    probe: Path | None = None
    latent_judge: Path | None = None
    open_clip_judge: Path | None = None
    starts: int = 3000
    starts_after: int | None = None
    demos_per_task: int = 25
    behaviour: str | None = None
    success_only: bool = True
    demos_every: int = 1
    demos_limit: int | None = None
    seed: int = 0
    rollout_horizon: int | None = None
    practice: tuple[str, ...] = ()
    half: bool = False
    licence: str = "Apache-2.0"
    made_by: str = "worldgym bundle"
    suite: str | None = None


def run(config: BundleConfig) -> int:
    """Copy the parts, choose starts and demonstrations, and write the card, in a temporary folder that is renamed."""
    from agents.algorithms.sft import demonstrations
    from agents.data.demonstrations import demonstrated_behaviour
    from worldgym.data import EpisodeDataset

    practice = values_of(config.practice, "--practice", "confirm=2")
    if unknown := sorted(set(practice) - set(PRACTICE)):
        raise ConfigError(f"--practice has {unknown[0]!r}, expected {' or '.join(PRACTICE)}; try --practice confirm=2")
    sources = parts(config)
    dataset = EpisodeDataset(config.data).require_seen()
    suite = load_suite(config.suite).name if config.suite else suite_of_data(dataset)
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
                if config.half:
                    halve(folder / name)
            left = arrays
            if config.starts_after is not None:
                if not 0 <= config.starts_after < len(arrays):
                    raise ConfigError(
                        f"--starts-after is {config.starts_after}, expected from 0 to {len(arrays) - 1}: {config.data} "
                        f"has {len(arrays)} episodes, and starts are taken from those after the first --starts-after"
                    )
                left = arrays.keep(np.arange(len(arrays)) >= config.starts_after)
            others = other_instructions(dataset, left, suite)
            write_starts(folder / "starts.npz", left, config.starts, config.seed, others)
            if config.policy is not None:
                chosen = demonstrations(
                    first,
                    config.demos_per_task,
                    behaviour=demonstrated_behaviour(first, config.behaviour),
                    success_only=config.success_only,
                )
                chunk = POLICIES.load(config.policy).chunk
                write_demos(folder / "demos.npz", chosen, chunk, dataset.specs, config.demos_every)
            facts = {"name": config.out.name, "tasks": sorted(set(arrays.tasks)), "real_episodes": len(arrays)}
            facts |= {"split_manifest": dataset.manifest.hash, "command": config.made_by, "licence": config.licence}
            facts |= {} if suite is None else {"suite": suite}
            facts |= {} if config.rollout_horizon is None else {"rollout_horizon": config.rollout_horizon}
            facts |= {"practice": practice} if practice else {}
            write_card(folder, facts, dataset.summary)
            if (
                config.out / README
            ).is_file():  # the model card is written by hand; keep it
                shutil.copyfile(config.out / README, folder / README)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        # The error of a copy names the file that is read, but the one that cannot be written matters.
        raise OSError(error.errno, error.strerror or str(error), str(config.out)) from error
    size = sum(f.stat().st_size for f in config.out.rglob("*") if f.is_file()) / 1e6
    logger.info("bundle in %s, %.1f MB", config.out, size)
    return 0


def parts(config: BundleConfig) -> dict[str, Path]:
    """Folders of the given parts, after a check that each is complete, of a known type, and fits the world model.

    Raises:
        CheckpointError: a folder or file is missing, or a file differs from what was saved.
        ConfigError: a type is not registered, or specs do not match the world model.
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
            source = f"the world model {found['world_model']}"
            world.check(specs_in(found[name]), source, f"the part {found[name]}")
    return found


def verify_part(name: str, source: Path) -> None:
    """Raise an error unless `source` is a complete part of a registered type; `name` is its folder in a bundle."""
    remedy = f"give the folder of a trained {name}"
    if name not in KINDS:
        verify_folder(source, ("config.json", "model.safetensors"), remedy)
        return
    verify_folder(source, (), remedy)
    verify_folder(source, files_of(source), remedy)
    KINDS[name].get(KINDS[name].type_of(source))
    if not (source / MANIFEST).is_file():
        KINDS[name].load(source)  # without a manifest, only loading shows whether all files are there


def specs_in(folder: Path) -> Specs | None:
    """The specs in the config.json of a part; None if it has none, as in earlier versions."""
    file = folder / "config.json"
    config = read_json(file, f"Save {folder} again") if file.is_file() else {}
    found = config.get("specs") if isinstance(config, dict) else None
    return None if found is None else Specs.from_dict(found)


def copy_part(name: str, source: Path, target: Path) -> None:
    """Copy all files of a part and compare the copy with its manifest. A part without a manifest gets one.

    Raises:
        CheckpointError: the copy differs from the source's manifest.
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


def halve(folder: Path) -> None:
    """Convert the float32 arrays of a copied part to float16 and write its manifest again.

    Raises:
        ConfigError: a value is too large for float16.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    for file in sorted(folder.rglob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        arrays = load_file(file)
        for key, value in arrays.items():
            if value.dtype == torch.float32:
                arrays[key] = value.half()
                if not torch.equal(arrays[key].isfinite(), value.isfinite()):
                    raise ConfigError(f"{file}: {key} holds values beyond 65504; bundle it without --half")
        save_file(arrays, file, metadata)
    seal_folder(folder)


def write_starts(
    path: Path, arrays: Any, count: int, seed: int, others: list[tuple[str, ...]] | None = None
) -> None:
    """Write `count` start frames without success: half first frames, half from mid-episode, tasks equally often.

    `others` has the other instructions that a policy could follow in each episode.
    """
    from agents import StartBank

    bank = StartBank.from_arrays(arrays, other_instructions=others)
    chosen = bank.sample(count, np.random.default_rng(seed))
    chosen.start_set().save(path, dense=True)


def write_demos(path: Path, demos: list[Any] | Any, chunk: int, specs: Specs, every: int = 1) -> None:
    """Write the demonstrated chunks.

    Args:
        path: path of the archive.
        demos: demonstrated episodes.
        chunk: actions per row; the chunk length of the policy.
        specs: specs of the dataset, which define the end-effector columns.
        every: write every N-th row of each episode.
    """
    from agents import chunk_dataset
    from agents.data.demonstrations import HandColumns

    chunks = chunk_dataset(demos, chunk, hand=HandColumns.of(specs))
    _, first = np.unique(chunks.episode, return_index=True)
    rank = np.arange(len(chunks.episode)) - first[np.searchsorted(np.unique(chunks.episode), chunks.episode)]
    rows = rank % every == 0
    arrays = {
        "images": chunks.images, "states": chunks.states, "actions": np.round(chunks.actions, 3).astype(np.float16),
        "instructions": np.array(chunks.instructions), "episode": chunks.episode, "goals": chunks.goals,
        **{f"{VIEWS}{name}": frames for name, frames in chunks.views.items()},
    }  # fmt: skip
    write_arrays(path, {name: values[rows] for name, values in arrays.items()}, dense=True)


def write_card(folder: Path, facts: dict[str, Any], summary: Any) -> None:
    """Write `card.json`, the machine-readable description; the README beside it is the model card for readers."""
    from worldgym import __version__

    card = {**facts, "tasks_thin": [], "worldgym": __version__}
    card |= {"data": json.loads(json.dumps(summary, default=str))}
    atomic_write_text(folder / CARD, json.dumps(card, indent=1))
