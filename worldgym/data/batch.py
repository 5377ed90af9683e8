"""The batch format of all trainers, and its data loader.

Robot recordings, internet video and several embodiments share one format (the `reference` layout of the UWM, FLARE,
Motus and DreamDojo trainers). Quantities that a source lacks are masked, so that no loss is computed on placeholder
values.

Example::

    loader = batch_loader([robot.load_arrays(), video.load_arrays()], length=8, batch=16, steps=1000, seed=0)
    for batch in loader:
        batch["frames"].shape, batch["has_action"]      # (16, 9, H, W, 3), (16,)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from worldgym.data.arrays import EpisodeArrays
from worldgym.errors import ConfigError

SOURCES = ("demonstration", "rollout", "near_success", "synthetic", "human_video", "augmented", "other")
"""Source types; `Batch["source"]` holds indices into this tuple."""
_SOURCE_OF = {
    "expert": "demonstration", "noisy": "demonstration", "teleoperation": "demonstration", "policy": "rollout",
    "near_miss": "near_success", "counterfactual": "near_success", "human_video": "human_video", "video": "human_video",
    "imported": "demonstration",
}  # fmt: skip


class Batch(TypedDict):
    """B windows of T steps and T+1 frames. Masks are True where a value exists; masked entries are zero."""

    frames: Tensor  # (B, T+1, H, W, 3) uint8, main camera
    views: dict[str, Tensor]  # by camera name, (B, T+1, H', W', 3) uint8
    view_mask: dict[str, Tensor]  # by camera name, (B,) bool
    frame_mask: Tensor  # (B, T+1) bool, False after the end of an episode (the last frame is repeated)
    state: Tensor  # (B, T+1, S) float32
    state_mask: Tensor  # (B, S) bool
    action: Tensor  # (B, T, A) float32 in [-1, 1]; action[t] leads from frame t to t+1
    action_mask: Tensor  # (B, T, A) bool: False after the end, in padded dimensions, and in episodes without actions
    has_action: Tensor  # (B,) bool
    success: Tensor  # (B, T+1) float32, 1 or 0; NaN if not labelled
    progress: Tensor  # (B, T+1) float32 in [0, 1]; NaN if not labelled
    instruction: list[str]
    embodiment: Tensor  # (B,) int64, index of the dataset
    source: Tensor  # (B,) int64, index into SOURCES
    episode: Tensor  # (B,) int64, index of the episode in its dataset
    start: Tensor  # (B,) int64, first frame of the window in its episode


def sample_windows(
    datasets: Sequence[EpisodeArrays],
    batch: int,
    length: int,
    rng: np.random.Generator,
    weights: Sequence[float] | None = None,
) -> Batch:
    """Sample a batch of windows.

    For each window a dataset is drawn by `weights`, then its first frame uniformly from all frames of the dataset
    except the last frames of episodes.

    Args:
        datasets: each camera has the same frame size in all datasets; action and state dimensions may differ and are
            padded to the largest.
        batch: number of windows, B.
        length: steps per window, T.
        rng: random generator.
        weights: sampling weights of the datasets; their numbers of frames when None.

    Raises:
        ConfigError: there are no episodes, or the main cameras differ in size.
    """
    _check(datasets, batch, length)
    mass = np.array(weights if weights is not None else [len(d.frames) for d in datasets], float)
    owner = rng.choice(len(datasets), batch, p=mass / mass.sum())
    rows = []
    for number in owner:
        starts = np.flatnonzero(~datasets[number].is_last)
        rows.append(int(starts[rng.integers(len(starts))]))
    return gather(datasets, owner, np.array(rows), length)


def gather(datasets: Sequence[EpisodeArrays], owner: np.ndarray, rows: np.ndarray, length: int) -> Batch:
    """Collect the windows that begin at frames `rows (B,)` of the datasets with indices `owner (B,)`."""
    count = len(rows)
    a = max(d.actions.shape[1] for d in datasets)
    s = max(d.states.shape[1] for d in datasets)
    names = {name: frames.shape[1:] for d in datasets for name, frames in d.views.items()}
    out: dict[str, Any] = {
        "frames": np.zeros((count, length + 1, *datasets[0].frames.shape[1:]), np.uint8),
        "frame_mask": np.zeros((count, length + 1), bool),
        "state": np.zeros((count, length + 1, s), np.float32),
        "state_mask": np.zeros((count, s), bool),
        "action": np.zeros((count, length, a), np.float32),
        "action_mask": np.zeros((count, length, a), bool),
        "has_action": np.zeros(count, bool),
        "success": np.full((count, length + 1), np.nan, np.float32),
        "progress": np.full((count, length + 1), np.nan, np.float32),
        "source": np.zeros(count, np.int64),
        "episode": np.zeros(count, np.int64),
        "start": np.zeros(count, np.int64),
        "embodiment": np.asarray(owner, np.int64),
    }
    views = {name: np.zeros((count, length + 1, *size), np.uint8) for name, size in names.items()}
    view_mask = {name: np.zeros(count, bool) for name in names}
    words = []
    for i, (number, row) in enumerate(zip(owner, rows, strict=True)):
        data = datasets[number]
        episode = int(np.searchsorted(data.offsets, row, side="right")) - 1
        last = int(data.offsets[episode + 1]) - 1
        frames = np.minimum(np.arange(row, row + length + 1), last)
        real = np.arange(row, row + length + 1) <= last
        out["frames"][i], out["frame_mask"][i] = data.frames[frames], real
        for name, pictures in data.views.items():
            views[name][i], view_mask[name][i] = pictures[frames], True
        own_s, own_a = data.states.shape[1], data.actions.shape[1]
        out["state"][i, :, :own_s], out["state_mask"][i, :own_s] = data.states[frames], True
        if data.has_action[episode]:
            out["has_action"][i] = True
            out["action"][i, :, :own_a] = np.where(real[1:, None], data.actions[frames[:-1]], 0.0)
            out["action_mask"][i, :, :own_a] = real[1:, None]
        if data.has_success[episode]:
            out["success"][i] = data.success[frames]
        out["progress"][i] = data.progress[frames]
        words.append(data.instructions[episode])
        out["source"][i] = SOURCES.index(_SOURCE_OF.get(data.behaviours[episode], "other"))
        out["episode"][i], out["start"][i] = data.indices[episode], row - data.offsets[episode]
    tensors = {name: torch.from_numpy(value) for name, value in out.items()}
    return {
        **tensors,  # type: ignore[typeddict-item]
        "views": {name: torch.from_numpy(value) for name, value in views.items()},
        "view_mask": {name: torch.from_numpy(value) for name, value in view_mask.items()},
        "instruction": words,
    }


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """Copy a batch with all its tensors moved to `device`."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        return {name: moved(part) for name, part in value.items()} if isinstance(value, dict) else value

    return {name: moved(value) for name, value in batch.items()}  # type: ignore[return-value]


class _StepDataset(Dataset[Batch]):
    """Item n is the batch of training step n; it depends only on (seed, n), so a resumed run gets the same batches."""

    def __init__(self, make: Any, seed: int) -> None:
        self.make, self.seed = make, seed

    def __getitem__(self, step: int) -> Batch:
        batch: Batch = self.make(np.random.default_rng([self.seed, step]))
        return batch


class _WindowSampler:
    """`sample_windows` with fixed settings; a class because worker processes must be able to unpickle it."""

    def __init__(self, datasets: Sequence[EpisodeArrays], batch: int, length: int, weights: Any) -> None:
        self.settings = (datasets, batch, length, weights)

    def __call__(self, rng: np.random.Generator) -> Batch:
        datasets, batch, length, weights = self.settings
        return sample_windows(datasets, batch, length, rng, weights)


def batch_loader(
    datasets: Sequence[EpisodeArrays],
    *,
    batch: int,
    length: int,
    steps: int,
    seed: int = 0,
    first: int = 0,
    weights: Sequence[float] | None = None,
    workers: int = 0,
    prefetch: int = 2,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Make a `torch.utils.data.DataLoader` over the batches of training steps `first..steps-1`.

    Args:
        datasets: see `sample_windows`.
        batch: windows per batch, B.
        length: steps per window, T.
        steps: number of training steps; the loader ends before this step.
        seed: the batch of a step depends only on (seed, step), not on `workers` or `first`.
        first: first step, for a resumed run.
        weights: sampling weights of the datasets.
        workers: worker processes that prepare batches; 0 prepares them in this process.
        prefetch: batches that each worker prepares in advance.
        pin_memory: use page-locked memory, for faster copies to a GPU.

    Raises:
        ConfigError: see `sample_windows`.
    """
    _check(datasets, batch, length)
    return DataLoader(
        _StepDataset(_WindowSampler(datasets, batch, length, weights), seed),
        batch_size=None,
        sampler=range(first, steps),
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin_memory,
    )


def _check(datasets: Sequence[EpisodeArrays], batch: int, length: int) -> None:
    if batch < 1 or length < 1:
        raise ConfigError(f"batch and length must be at least 1, got {batch} and {length}")
    if not datasets or not all(len(data) for data in datasets):
        raise ConfigError(
            "there is no episode to sample batches from; give datasets with at least one episode each"
        )
    sizes = {data.frames.shape[1:3] for data in datasets}
    if len(sizes) > 1:
        raise ConfigError(
            f"the datasets have main cameras of {len(sizes)} sizes, {sorted(sizes)}; import them at one size, with "
            "`worldgym import --source DATA --out NEW --image-size HxW`"
        )
