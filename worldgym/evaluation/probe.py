"""Where things are in a frame, read from its pixels: the ruler for what a world model draws.

Why a learned ruler: an imagined object may be blurred, pale or half hidden, and a colour threshold then measures its
own cut. The probe is trained on true frames, half of them seen through the tokenizer, so that what it measures on
imagined frames is where the dynamics put things and not how the decoder paints them. For each named part it gives a
position in pixels and how sure it is that the part is there at all.

Example::

    probe = PositionProbe.from_pretrained("runs/bundle/probe")
    found = probe.locate(frames)          # (N, 64, 64, 3) uint8
    found.positions, found.present        # (N, K, 2) pixels right and down, (N, K) in [0, 1]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldgym.hub import HubModel
from worldgym.models.tokenizers.frame import ResidualBlock, autocast, check_frames
from worldgym.utils.typed import from_values


@dataclass(frozen=True)
class PositionProbeConfig:
    """Shape of a `PositionProbe`.

    Args:
        parts: what it looks for, in the order of its answers.
        image_size: pixels along a side, a multiple of 4.
        width: channels.
    """

    parts: tuple[str, ...] = ("hand",)
    image_size: int = 64
    width: int = 48

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts:
            raise ValueError("a probe needs at least one part to look for, e.g. parts=('hand', 'red')")
        if self.image_size % 4:
            raise ValueError(f"image_size must be a multiple of 4, got {self.image_size}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PositionProbeConfig:
        """Inverse of `dataclasses.asdict`."""
        return from_values(cls, values)


class Found(NamedTuple):
    """`positions (N,K,2)` in pixels right and down, and `present (N,K)`, the probability that the part is in sight."""

    positions: np.ndarray
    present: np.ndarray


class PositionProbe(
    nn.Module,
    HubModel,
    library_name="worldgym",
    coders={PositionProbeConfig: (dataclasses.asdict, PositionProbeConfig.from_dict)},
):
    """One soft-argmax map and one presence score a part, at half the frame's resolution.

    Args:
        config: sizes; also accepts a plain dict (what `config.json` holds).
    """

    def __init__(self, config: PositionProbeConfig | Mapping[str, Any]) -> None:
        super().__init__()
        if not isinstance(config, PositionProbeConfig):
            config = PositionProbeConfig.from_dict(config)
        self.config = config
        self.cells: Tensor
        self.place: Tensor
        w, k = config.width, len(config.parts)
        self.fine = nn.Sequential(nn.Conv2d(5, w, 5, stride=2, padding=2), nn.SiLU(), ResidualBlock(w))
        self.coarse = nn.Sequential(
            nn.Conv2d(w, 2 * w, 3, stride=2, padding=1), ResidualBlock(2 * w), ResidualBlock(2 * w),
            nn.SiLU(), nn.Conv2d(2 * w, w, 1), nn.Upsample(scale_factor=2, mode="bilinear"),
        )  # fmt: skip
        self.maps = nn.Sequential(nn.Conv2d(w, w, 3, padding=1), nn.SiLU(), nn.Conv2d(w, 2 * k, 1))
        half = config.image_size // 2
        axis = (torch.arange(half) + 0.5) * 2  # pixels
        down, right = torch.meshgrid(axis, axis, indexing="ij")
        self.register_buffer("cells", torch.stack([right, down], -1).flatten(0, 1), persistent=False)
        axis = (torch.arange(config.image_size) + 0.5) / config.image_size * 2 - 1
        down, right = torch.meshgrid(axis, axis, indexing="ij")
        self.register_buffer("place", torch.stack([right, down]), persistent=False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels `(N,K,2)`, presence logits `(N,K)` and maps `(N,K,cells)` (log-probabilities) of u8 frames."""
        x = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
        x = torch.cat([x, self.place.expand(len(x), -1, -1, -1)], 1)
        h = self.fine(x.contiguous(memory_format=torch.channels_last))
        maps, evidence = self.maps(h + self.coarse(h)).float().flatten(2).chunk(2, 1)
        logs = maps.log_softmax(-1)
        # Not a matrix product: in bfloat16 it would round to a quarter of a pixel.
        where = (logs.exp()[..., None] * self.cells).sum(-2)
        return where, torch.logsumexp(evidence, -1) - np.log(evidence.shape[-1]), logs

    @torch.no_grad()
    def locate(self, frames: Tensor, batch: int = 256) -> Found:
        """Where the parts are in `frames (N,H,W,3)` uint8.

        Raises:
            ValueError: another size or dtype.
        """
        check_frames(frames, self.config.image_size)
        with autocast(self.cells.device):
            outs = [self(part.to(self.cells.device)) for part in frames.split(batch)]
        return Found(
            torch.cat([o[0] for o in outs]).cpu().numpy(), torch.cat([o[1] for o in outs]).sigmoid().cpu().numpy()
        )


def probe_loss(probe: PositionProbe, frames: Tensor, positions: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Distance in pixels, a Gaussian target for the maps, and presence.

    Args:
        probe: what is trained.
        frames: `(N,H,W,3)` uint8.
        positions: `(N,K,2)` pixels; nan where the part is not there.
    """
    frames, positions = frames.to(probe.cells.device), positions.to(probe.cells.device)
    with autocast(frames.device):
        found, logit, logs = probe(frames)
    size = probe.config.image_size
    there = ((positions > 0) & (positions < size)).all(-1)  # nan compares false
    target = positions.nan_to_num(0.0)
    distance = F.smooth_l1_loss(found, target, reduction="none", beta=1.0).sum(-1)
    spread = (probe.cells - target[..., None, :]).square().sum(-1)  # (N, K, cells)
    wanted = (-spread / (2 * 1.5**2)).softmax(-1)
    cross = -(wanted * logs).sum(-1)
    count = there.sum().clamp(min=1)
    miss = (distance * there).sum() / count
    shape = (cross * there).sum() / count
    presence = F.binary_cross_entropy_with_logits(logit, there.float())
    with torch.no_grad():
        pixels = ((found - target).norm(dim=-1) * there).sum() / count
    return miss + 0.3 * shape + presence, {
        "pixels": float(pixels),
        "presence": float(presence.detach()),
    }
