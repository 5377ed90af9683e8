"""`worldgym bench embodiments`: does a world model of several robots predict each better than a model of its own?

All models have one shape, one tokenizer and equal numbers of steps; only their episodes differ. The model of all robots
therefore sees each robot's episodes less often. Specs are padded and masked as in `worldgym.data.joined`.

Example::

    worldgym bench embodiments --data tabletop=data/real metaworld=data/metaworld --json runs/embodiments.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.compute import DType, placing
from experiments.pipelines.checks import check_numbers
from experiments.pipelines.recorded_fidelity import Windows, measure, windows
from experiments.pipelines.run_folder import finite, versions
from experiments.pipelines.training_run import arrays_hash, claim, identity, require_preset
from worldgym.errors import ConfigError
from worldgym.utils.files import atomic_write_text

TOGETHER = "together"


@dataclass(frozen=True)
class BenchEmbodimentsConfig:
    """Train a world model of each robot and one of all, and measure them on episodes left out.

    Args:
        data: `NAME=DIR`, at least two datasets with main cameras of one size.
        train: episodes of each dataset that are trained on, the first ones.
        left_out: episodes of each dataset that are measured, those after them.
        tokenizer_steps: updates of the tokenizer, which is trained once on the frames of all robots.
        steps: updates of each model.
        seeds: training seeds.
        length: steps of a window, which begins with its episode.
        preset: `small` or `tiny`.
        batch_size: windows per step.
        out: run folder; the same command continues an interrupted run.
        fresh: delete what an earlier run of this command wrote to `out`, and start over.
        json: output file for the results.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of world-model inference; `auto` uses the saved precision.
    """

    data: tuple[str, ...]
    train: int = 1200
    left_out: int = 100
    tokenizer_steps: int = 1500
    steps: int = 2000
    seeds: tuple[int, ...] = (0, 1, 2)
    length: int = 20
    preset: str = "small"
    batch_size: int = 20
    out: Path = Path("runs/embodiments")
    json: Path = Path("runs/embodiments.json")
    fresh: bool = False
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_numbers(self)
        require_preset(self.preset)
        pairs = [item.partition("=") for item in self.data]
        names = [name for name, _, _ in pairs]
        whole = all(name and folder for name, _, folder in pairs)
        if len(names) < 2 or len(set(names)) != len(names) or TOGETHER in names or not whole:
            raise ConfigError(
                f"--data is {' '.join(self.data)!r}; expected at least two datasets with different names, such as "
                "--data tabletop=data/real metaworld=data/metaworld"
            )
        if not self.seeds:
            raise ConfigError("no seed given; type --seeds 0 1 2")


def run(config: BenchEmbodimentsConfig) -> int:
    """Train all models, print the table, and write the JSON file."""
    from worldgym.data.joined import joined, joined_specs, padded

    train, test, specs = load(config)
    both = joined_specs(specs)
    arms = {**{name: {name: one} for name, one in train.items()}, TOGETHER: train}
    # Seeds may be added later: a model depends on its own seed only.
    facts = {k: v for k, v in identity(config).items() if k != "--seeds"} | {"--steps": config.steps}
    facts |= {name: arrays_hash(one.frames, one.actions) for name, one in train.items()}
    own = ["tokenizer", *(f"{arm}-{seed}" for arm in arms for seed in config.seeds)]
    claim(config.out, "bench embodiments", facts, own=own, fresh=config.fresh)
    cut = {name: windows(episodes_of(padded(one, name, specs)), config.length, 1) for name, one in test.items()}
    tokenizer = shared_tokenizer(joined(train, specs), config)
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {arm: {name: [] for name in train} for arm in arms}
    scores: dict[tuple[str, str], list[np.ndarray]] = {}
    for seed in config.seeds:
        for arm, arrays in arms.items():
            model = trained(joined(arrays, specs), both, tokenizer, config, seed, f"{arm}-{seed}")
            for name in train if arm == TOGETHER else (arm,):
                rows[arm][name].append(measure(model, cut[name]))
                scores.setdefault((arm, name), []).append(last_psnr(model, cut[name]))
    facts = {
        "robots": {name: {"train": len(train[name]), "left_out": len(test[name])} for name in train},
        "results": {arm: {name: found for name, found in per.items() if found} for arm, per in rows.items()},
        "together_minus_alone": {name: difference(scores, name) for name in train},
        "settings": {
            key: getattr(config, key) for key in ("tokenizer_steps", "steps", "length", "preset", "batch_size", "seeds")
        },
        "versions": versions(),
    }
    atomic_write_text(config.json, json.dumps(finite(facts), indent=1) + "\n")
    sys.stdout.write(table(facts) + f"\nwritten to {config.json}\n")
    return 0


def load(config: BenchEmbodimentsConfig) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Training episodes, episodes left out, and specs, by robot."""
    from worldgym.data import EpisodeDataset

    train, test, specs = {}, {}, {}
    for item in config.data:
        name, _, folder = item.partition("=")
        dataset = EpisodeDataset(Path(folder).expanduser()).require_seen()
        arrays = dataset.load_arrays(limit=config.train + config.left_out, progress=True)
        arrays = arrays.keep(arrays.has_action & (arrays.lengths > 0))
        if len(arrays) <= config.left_out:
            raise ConfigError(
                f"{folder} has {len(arrays)} episodes with actions, and {config.left_out} are left out; give a smaller "
                "--left-out"
            )
        last = np.arange(len(arrays)) >= len(arrays) - config.left_out
        train[name], test[name], specs[name] = arrays.keep(~last), arrays.keep(last), dataset.specs
    return train, test, specs


def episodes_of(arrays: Any) -> list[Any]:
    """Single episodes with `frames`, `actions` and `state`."""
    from types import SimpleNamespace

    rows = [arrays.rows(i) for i in range(len(arrays))]
    return [
        SimpleNamespace(frames=arrays.frames[r], actions=arrays.actions[r][:-1], state=arrays.states[r]) for r in rows
    ]


def shared_tokenizer(arrays: Any, config: BenchEmbodimentsConfig) -> Path:
    """Train the tokenizer on all robots and save it; returns its folder."""
    from worldgym.models import WorldModelConfig
    from worldgym.models.tokenizers.saved import write_tokenizer
    from worldgym.training.loop import LoopConfig
    from worldgym.training.pictures import Pictures
    from worldgym.training.tokenizer import train_tokenizer
    from worldgym.utils.sizes import short

    canvas = WorldModelConfig.preset(config.preset).canvas_for(arrays.specs.observation.cameras)
    pictures, folder = Pictures.of(arrays, canvas), config.out / "tokenizer"
    base = WorldModelConfig.preset(config.preset).tokenizer
    shape = replace(base, image_size=short(pictures.size), background=False)
    loop = LoopConfig(steps=config.tokenizer_steps, lr=2e-3)
    tokenizer = train_tokenizer(pictures, shape, loop, folder, batch=24, device=placing(config).device)
    write_tokenizer(tokenizer, folder, {})
    return folder


def trained(
    arrays: Any, specs: Any, tokenizer: Path, config: BenchEmbodimentsConfig, seed: int, name: str
) -> Any:
    """Train one model of type `chunk` from nothing, or load it if it has finished."""
    import torch

    from worldgym.models import load_world_model
    from worldgym.registry import WORLD_MODELS
    from worldgym.training.chunk import ChunkTrainer
    from worldgym.training.generic import PartTraining
    from worldgym.training.loop import LoopConfig

    export = config.out / name / "export"
    if not export.is_dir():
        torch.manual_seed(seed)
        model = placing(config)(ChunkTrainer.for_data(specs, config.preset, arrays, tokenizer=tokenizer))
        loop = LoopConfig(steps=config.steps, seed=seed)
        ChunkTrainer.fit(model, arrays, PartTraining(loop, config.batch_size), config.out / name)
        WORLD_MODELS.save(model, export)
    return placing(config)(load_world_model(export))


def last_psnr(model: Any, cut: Windows) -> np.ndarray:
    """PSNR in dB of the last frame of each window, `(N,)`."""
    import torch

    from worldgym.evaluation import fidelity

    said, _ = fidelity.imagine_logs(model, cut.frames, cut.actions, cut.states, torch.Generator().manual_seed(0))
    return np.asarray(fidelity.psnr(cut.frames[:, -1], said[:, -1]))


def difference(scores: Mapping[tuple[str, str], list[np.ndarray]], name: str) -> dict[str, float]:
    """PSNR at the end of the model of all robots minus that of robot `name` alone, over seeds and episodes."""
    from worldgym.evaluation.statistics import seeds_bootstrap

    found = seeds_bootstrap(np.stack(scores[TOGETHER, name]), np.stack(scores[name, name]))
    return {"mean": found.mean, "low": found.low, "high": found.high}


def table(facts: Mapping[str, Any]) -> str:
    """Return the printed table: PSNR, feature distance and action sensitivity at the last horizon, means over seeds."""
    lines = [f"  {'robot':<14}{'model':<14}{'PSNR dB':>9}{'features':>10}{'sensitivity':>13}"]
    for name in facts["robots"]:
        for arm in (name, TOGETHER):
            found = facts["results"][arm][name]
            last = list(found[0]["psnr"]["model"])[-1]
            mean = lambda pick: float(np.mean([pick(row) for row in found]))  # noqa: E731, B023
            label = "alone" if arm == name else TOGETHER
            lines.append(
                f"  {name:<14}{label:<14}{mean(lambda row: row['psnr']['model'][last]):>9.2f}"  # noqa: B023
                f"{mean(lambda row: row['features']['model'][last]):>10.2f}"  # noqa: B023
                f"{mean(lambda row: (row['action_sensitivity'] or {'mean': np.nan})['mean']):>13.2f}"
            )
        row = facts["together_minus_alone"][name]
        lines.append(f"  {'':<14}together - alone: {row['mean']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}] dB")
    return "\n".join(lines)
