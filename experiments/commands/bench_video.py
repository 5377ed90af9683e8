"""`worldgym bench video`: how well a world model predicts recordings of a robot that its training left out.

Either it trains a model per fold, each without some episodes, or it measures a trained `--world-model`. The result on
episodes that were trained on stands beside; a model of few episodes predicts them well and the others badly.

Example::

    worldgym bench video --source shared/data/bridge_v2 --image-size 64 --json runs/bridge_64.json
    worldgym bench video --source data/mine --world-model runs/world_model/export --after 66 --picture runs/film.png
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
from experiments.pipelines.recorded_fidelity import METRICS, film, measure, windows
from experiments.pipelines.run_folder import finite, versions
from experiments.pipelines.training_run import Hand, arrays_hash, recorded_run, require_preset, with_hand
from worldgym.errors import ConfigError
from worldgym.specs import Specs
from worldgym.utils.files import atomic_write_text
from worldgym.utils.progress import Progress
from worldgym.utils.sizes import short, text

logger = logging.getLogger(__name__)
SETTINGS = (
    "tokenizer_steps", "shift_steps", "steps", "preset", "seed", "length", "windows", "left_out", "after",
)  # fmt: skip


@dataclass(frozen=True)
class BenchVideoConfig:
    """Train on all episodes but one, and predict the trained ones and the one left out; repeat for each fold.

    Args:
        source: folder of BridgeData V2 samples (mp4 + npz), a worldgym dataset, or a LeRobotDataset v2.0 to v3.0.
        camera: camera to use of a LeRobotDataset with several.
        image_size: side of imported frames in pixels, a multiple of 8.
        folds: number of folds, each with other episodes left out; until every episode was left out once if None.
        left_out: episodes left out per fold.
        world_model: folder of a trained world model. It is measured as it is, and nothing is trained.
        after: number of episodes on which `world_model` was trained (`--limit` of the train commands); those after
            them are measured.
        length: steps of a window that is predicted from its first frame.
        windows: windows per episode, at most.
        picture: PNG file of windows left out: recorded, predicted, and predicted under the actions of another episode.
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
    left_out: int = 1
    world_model: Path | None = None
    after: int | None = None
    length: int = 20
    windows: int = 4
    picture: Path | None = None
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
        if (self.world_model is None) != (self.after is None):
            raise ConfigError(
                "--world-model measures a trained model on the episodes after the first --after, which training left "
                "out; give both, or neither"
            )
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"--out {self.out} is a file, expected a folder; give another --out")


def run(config: BenchVideoConfig) -> int:
    """Train all folds, or load the given model; print the table, and write the JSON file."""
    episodes, specs = load(config)
    if config.world_model is not None:
        rows = [one_model(episodes, specs, config)]
    else:
        episodes = acted(episodes)
        groups = folds_of(len(episodes), config)
        rows = []
        with Progress(len(groups), "folds") as bar:
            for number, group in enumerate(groups):
                rows.append(one_fold(episodes, number, group, config, specs))
                bar.update(1)
    facts = {
        "source": config.source.name,
        "episodes": len(episodes),
        "image_size": short(specs.observation.main.size),
        "folds": rows,
        "mean": {kind: average([row[kind] for row in rows]) for kind in ("trained", "left_out") if kind in rows[0]},
        "settings": {k: getattr(config, k) for k in SETTINGS},
        "versions": versions(),
    }
    atomic_write_text(config.json, json.dumps(finite(facts), indent=1) + "\n")
    sys.stdout.write(table(facts) + f"\nwritten to {config.json}\n")
    return 0


def folds_of(count: int, config: BenchVideoConfig) -> list[list[int]]:
    """Numbers of the episodes that each fold leaves out: runs of neighbours, as recorded one after the other."""
    size = min(config.left_out, count - 1)
    groups = [list(range(low, min(low + size, count))) for low in range(0, count, size)]
    return groups if config.folds is None else groups[: config.folds]


def one_model(episodes: list[Any], specs: Specs, config: BenchVideoConfig) -> dict[str, Any]:
    """Measure a trained model on the episodes after the first `after`, and on as many of those before them.

    Raises:
        ConfigError: the model has several cameras, no episodes are left, or specs differ.
    """
    from worldgym.models import load_world_model

    assert config.world_model is not None and config.after is not None
    model = placing(config)(load_world_model(config.world_model))
    seen = model.specs.observation
    if len(seen.cameras) > 1:
        names = ", ".join(camera.name for camera in seen.cameras)
        raise ConfigError(
            f"--world-model {config.world_model} predicts the cameras {names}, and one camera is measured here; import "
            "the recordings with one --camera and train on them"
        )
    model.specs.check(specs, f"the world model {config.world_model}", f"the recordings {config.source}")
    if not 1 <= config.after < len(episodes):
        raise ConfigError(
            f"--after is {config.after}, expected from 1 to {len(episodes) - 1}: {config.source} has {len(episodes)} "
            "episodes, and those after the first --after are measured"
        )
    check_left_out(config)
    trained, left_out = acted(episodes[: config.after]), acted(episodes[config.after :])
    if not trained or not left_out:
        raise ConfigError(f"{config.source} has no episodes with actions on one side of --after {config.after}")
    row: dict[str, Any] = {"fold": 0, "left_out_episodes": list(range(config.after, len(episodes)))}
    row |= measured(model, trained, left_out, config)
    if config.picture is not None:
        film(model, windows(left_out, config.length, 1), config.picture)
    return row


def check_left_out(config: BenchVideoConfig) -> None:
    """Compare `--after` with the `--limit` of the run that trained the model, where its folder is beside the model.

    Raises:
        ConfigError: the model was trained on episodes that are measured as left out.
    """
    assert config.world_model is not None
    run = recorded_run(config.world_model.resolve().parent)
    if run is None or run["command"] != "train world-model":
        logger.info("%s has no run beside it: which episodes it was trained on is unknown", config.world_model)
        return
    limit = run["facts"].get("--limit")
    if limit is None:
        raise ConfigError(
            f"--world-model {config.world_model} was trained on all episodes of its data, so that none is left out; "
            f"train one with --limit {config.after}"
        )
    if limit > (config.after or 0):
        raise ConfigError(
            f"--world-model {config.world_model} was trained on the first {limit} episodes of its data; with --after "
            f"{config.after} some of them would count as left out. Type --after {limit}"
        )


def acted(episodes: list[Any]) -> list[Any]:
    """The episodes that have actions."""
    return [episode for episode in episodes if episode.actions is not None]


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
    if (count := len(acted(episodes))) < 2:
        raise ConfigError(
            f"{config.source} contains {count} episodes with actions, and leaving one out needs two; give another "
            "--source"
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


def one_fold(
    episodes: list[Any], fold: int, group: list[int], config: BenchVideoConfig, specs: Specs
) -> dict[str, Any]:
    """Train one fold; return the fidelity on as many trained episodes as were left out, and on those left out."""
    import torch

    from worldgym.models import VideoWorldModel, WorldModelConfig
    from worldgym.training.loop import LoopConfig
    from worldgym.training.shift import train_shift
    from worldgym.training.tokenizer import train_tokenizer
    from worldgym.training.world_model import LatentEpisodes, WorldModelTraining, train_world_model

    seen = [e for i, e in enumerate(episodes) if i not in group]
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
    left_out = [episodes[i] for i in group]
    if config.picture is not None and not fold:
        film(model, windows(left_out, config.length, 1), config.picture)
    return {"fold": fold, "left_out_episodes": group, **measured(model, seen, left_out, config)}


def measured(
    model: Any, seen: list[Any], left_out: list[Any], config: BenchVideoConfig
) -> dict[str, dict[str, Any]]:
    """Fidelity on as many trained episodes as were left out, and on those left out."""
    cut = lambda episodes: windows(episodes, config.length, config.windows)  # noqa: E731
    trained = cut(seen[-max(2, len(left_out)) :])
    return {
        "trained": measure(model, trained, config.seed),
        "left_out": measure(model, cut(left_out), config.seed, donors=trained),
    }


def average(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over folds of the image metrics; None where a fold has none."""

    def mean(values: list[Any]) -> Any:
        if any(value is None for value in values):
            return None
        if isinstance(values[0], dict):
            return {key: mean([value.get(key) for value in values]) for key in values[0]}
        return float(np.mean(values))

    return {metric: mean([row[metric] for row in rows]) for metric in METRICS}


def table(facts: dict[str, Any]) -> str:
    """Return the printed table: PSNR, SSIM and feature distance by horizon, then the comparisons with intervals."""
    lines = [f"{facts['episodes']} episodes at {facts['image_size']} px"]
    for kind, rows in facts["mean"].items():
        steps = sorted({int(h) for curve in rows["psnr"].values() if curve for h in curve})
        for metric, unit in zip(METRICS, ("dB", "0..1", "smaller is nearer"), strict=True):
            lines.append(f"  {kind}: {metric} ({unit}) at step " + ", ".join(map(str, steps)))
            for name, curve in rows[metric].items():
                if curve is not None:
                    lines.append(f"    {name:<18}" + "".join(f"{curve[str(h)]:>8.2f}" for h in steps))
    for row in facts["folds"]:
        for kind in (kind for kind in ("trained", "left_out") if kind in row):
            lines.append(f"  fold {row['fold']}, {kind}: " + compared(row[kind]))
    return "\n".join(lines)


def compared(row: dict[str, Any]) -> str:
    """Gain over the first frame repeated, and action sensitivity, with intervals over episodes."""

    def shown(value: dict[str, Any]) -> str:
        around = "" if value["low"] is None else f" [{value['low']:.2f}, {value['high']:.2f}]"
        return f"{value['mean']:.2f}{around}"

    last = list(row["gain"])[-1]
    text = f"{row['windows']} windows of {row['episodes']} episodes; gain at step {last} {shown(row['gain'][last])} dB"
    sensitivity = row["action_sensitivity"]
    return text + ("" if sensitivity is None else f"; action sensitivity {shown(sensitivity)}")
