"""`worldgym bench video`: leave-one-out test of the world model's training on recorded video of a real robot.

It measures how well a model predicts the episodes that it was trained on, and the one that was left out. A model
trained on a few episodes does not generalise; the second result shows this.

Example::

    worldgym bench video --source shared/data/bridge_v2 --image-size 64 --json runs/bridge_64.json
    worldgym bench video --source data/my_lerobot_dataset --folds 3
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.compute import DType, placing
from experiments.pipelines.checks import check_numbers
from experiments.pipelines.run_folder import finite, versions
from experiments.pipelines.training_run import Hand, arrays_hash, require_preset, with_hand
from worldgym.errors import ConfigError
from worldgym.specs import Specs
from worldgym.utils.files import atomic_write_text
from worldgym.utils.progress import Progress
from worldgym.utils.sizes import short, text

logger = logging.getLogger(__name__)
HORIZONS = (1, 5, 10, 20)


@dataclass(frozen=True)
class BenchVideoConfig:
    """Train on all episodes but one, and predict the trained ones and the one left out; repeat for each fold.

    Args:
        source: folder of BridgeData V2 samples (mp4 + npz), a worldgym dataset, or a LeRobotDataset v2.0 to v3.0.
        camera: camera to use of a LeRobotDataset with several.
        image_size: side of imported frames in pixels, a multiple of 8.
        folds: number of folds, each with another episode left out; one per episode if None.
        tokenizer_steps: updates of the tokenizer per fold.
        shift_steps: updates per fold of the network that moves object latents.
        steps: updates of the dynamics per fold.
        hand: `auto` uses the roles of the dataset's state fields; `yes` means that proprioception is x, y, z, ...,
            opening of the gripper; `no` means that its meaning is unknown.
        preset: `small` or `tiny`.
        seed: seed of all randomness.
        out: run folder.
        json: output file for the results.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of world-model inference; `auto` uses the saved precision.
    """

    source: Path
    camera: str | None = None
    image_size: int = 64
    folds: int | None = None
    tokenizer_steps: int = 300
    shift_steps: int = 100
    steps: int = 120
    hand: Hand = "auto"
    preset: str = "small"
    seed: int = 0
    out: Path = Path("runs/video")
    json: Path = Path("runs/video.json")
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_numbers(self)
        require_preset(self.preset)
        if self.image_size % 8 or self.image_size < 32:
            raise ConfigError(
                f"--image-size is {self.image_size}, expected a multiple of 8 of at least 32; try --image-size 64"
            )
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"--out {self.out} is a file, expected a folder; give another --out")


def run(config: BenchVideoConfig) -> int:
    """Train all folds, print the table, and write the JSON file."""
    episodes, specs = load(config)
    folds = len(episodes) if config.folds is None else min(config.folds, len(episodes))
    rows = []
    with Progress(folds, "folds") as bar:
        for fold in range(folds):
            rows.append(one_fold(episodes, fold, config, specs))
            bar.update(1)
    facts = {
        "source": config.source.name,
        "episodes": len(episodes),
        "image_size": short(specs.observation.main.size),
        "folds": rows,
        "mean": {
            kind: {
                name: {str(h): float(np.nanmean([row[kind][name][str(h)] for row in rows])) for h in HORIZONS}
                for name in ("model", "first_frame", "tokenizer")
            }
            for kind in ("trained", "left_out")
        },
        "settings": {
            k: getattr(config, k) for k in ("tokenizer_steps", "shift_steps", "steps", "preset", "seed")
        },
        "versions": versions(),
    }
    atomic_write_text(config.json, json.dumps(finite(facts), indent=1) + "\n")
    sys.stdout.write(table(facts) + f"\nwritten to {config.json}\n")
    return 0


def load(config: BenchVideoConfig) -> tuple[list[Any], Specs]:
    """Read episodes from a folder of any known format, and their specs with only the main camera."""
    from worldgym.data import EpisodeDataset
    from worldgym.data.formats.bridge import bridge_episodes, bridge_specs
    from worldgym.data.formats.foreign import read_episodes, read_specs
    from worldgym.data.formats.known import find_other
    from worldgym.data.formats.lerobot_import import ImportSettings, LeRobotFolder, is_foreign

    settings = ImportSettings(
        image_size=config.image_size, cameras=() if config.camera is None else (config.camera,)
    )
    if any(config.source.glob("*.npz")):
        episodes, specs = bridge_episodes(config.source, config.image_size), bridge_specs(config.image_size)
    elif is_foreign(config.source):
        recordings = LeRobotFolder(config.source, settings=settings)
        episodes, specs = list(recordings.episodes()), recordings.specs
    elif (kind := find_other(config.source)) is not None:
        specs = read_specs(kind, config.source, settings)
        episodes = list(read_episodes(kind, config.source, settings))
    else:
        dataset = EpisodeDataset(config.source).require_seen()
        episodes, specs = list(dataset), dataset.specs
    episodes = [episode for episode in episodes if episode.actions is not None]
    if len(episodes) < 2:
        raise ConfigError(
            f"{config.source} contains {len(episodes)} episodes with actions, and leaving one out needs two; give "
            "another --source"
        )
    specs = with_hand(specs, config.hand)
    if not specs.observation.has_hand:
        logger.info("no state fields are a position and a gripper: object latents are not moved with the gripper")
    return episodes, Specs(specs.observation.select([specs.observation.main.name]), specs.action)


def arrays_of(episodes: list[Any]) -> Any:
    """Concatenate episodes, in the form that trainers take."""
    from types import SimpleNamespace

    last = lambda x: np.concatenate([x, np.zeros_like(x[:1])])  # noqa: E731
    return SimpleNamespace(
        frames=np.concatenate([e.frames for e in episodes]),
        actions=np.concatenate([last(e.actions) for e in episodes]),
        states=np.concatenate([e.state for e in episodes]),
        offsets=np.concatenate([[0], np.cumsum([len(e.frames) for e in episodes])]),
    )


def one_fold(episodes: list[Any], fold: int, config: BenchVideoConfig, specs: Specs) -> dict[str, Any]:
    """Train one fold; return PSNR in dB by horizon on the trained episodes and on the one left out."""
    import torch

    from worldgym.models import VideoWorldModel, WorldModelConfig
    from worldgym.training.loop import LoopConfig
    from worldgym.training.shift import train_shift
    from worldgym.training.tokenizer import train_tokenizer
    from worldgym.training.world_model import LatentEpisodes, WorldModelTraining, train_world_model

    seen = [e for i, e in enumerate(episodes) if i != fold]
    arrays = arrays_of(seen)
    preset = WorldModelConfig.preset(config.preset)
    folder = config.out / f"{text(specs.observation.main.size)}px_fold{fold}"
    shape = preset.for_data(arrays.states, specs=specs)
    facts = {"--source": arrays_hash(arrays.frames, arrays.actions, arrays.states)}
    here = placing(config)
    tokenizer = train_tokenizer(
        arrays.frames, shape.tokenizer,
        LoopConfig(steps=config.tokenizer_steps, lr=2e-3, seed=config.seed), folder / "tokenizer", batch=24,
        identity=facts, device=here.device,
    )  # fmt: skip
    torch.manual_seed(config.seed)
    model = here(VideoWorldModel(shape))
    model.tokenizer.load_state_dict(tokenizer.state_dict())
    data = LatentEpisodes.encode(model.tokenizer, arrays)
    if shape.dynamics.motion is not None:
        loop = LoopConfig(
            steps=config.shift_steps, lr=3e-3, final_lr=0.02, warmup=20, ema=0.98, seed=config.seed
        )
        train_shift(model, data, loop, folder / "shift", identity=facts)
    window = min(20, min(len(e.actions) for e in seen))
    training = WorldModelTraining(
        loop=LoopConfig(
            steps=config.steps,
            lr=2e-3,
            final_lr=0.02,
            warmup=20,
            optimizer="muon",
            ema=0.98,
            seed=config.seed,
        ),
        batch=12,
        window=window,
    )
    model = train_world_model(model, data, training, folder / "world_model", identity=facts).eval()
    return {
        "left_out_episode": fold,
        "trained": curves(model, seen),
        "left_out": curves(model, [episodes[fold]]),
    }


def curves(model: Any, episodes: list[Any]) -> dict[str, dict[str, float]]:
    """Mean PSNR at each horizon of the world model, of the repeated first frame, and of the tokenizer alone."""
    import torch

    from worldgym.evaluation import fidelity

    found: dict[str, dict[str, list[float]]] = {
        name: {str(h): [] for h in HORIZONS} for name in ("model", "first_frame", "tokenizer")
    }
    for episode in episodes:
        predicted, _ = fidelity.imagine_logs(
            model, episode.frames[None], episode.actions[None], episode.state[None],
            torch.Generator().manual_seed(0),
        )  # fmt: skip
        frames = torch.from_numpy(episode.frames)
        again = model.tokenizer.decode(model.tokenizer.encode(frames)).numpy()
        for h in (h for h in HORIZONS if h <= len(episode.actions)):
            true = episode.frames[h]
            pictures = {"model": predicted[0, h - 1], "first_frame": episode.frames[0], "tokenizer": again[h]}
            for name, picture in pictures.items():
                found[name][str(h)].append(float(fidelity.psnr(true, picture)))
    return {
        name: {h: float(np.mean(v)) if v else float("nan") for h, v in row.items()}
        for name, row in found.items()
    }


def table(facts: dict[str, Any]) -> str:
    """Return the printed table."""
    lines = [
        f"{facts['episodes']} episodes at {facts['image_size']} px, {len(facts['folds'])} folds; PSNR in dB at step "
        + ", ".join(map(str, HORIZONS))
    ]
    for kind, rows in facts["mean"].items():
        for name, row in rows.items():
            lines.append(f"  {kind:<10}{name:<14}" + "".join(f"{row[str(h)]:>8.1f}" for h in HORIZONS))
    return "\n".join(lines)
