"""`PositionProbe`: a network that locates the gripper and the objects in a frame, to evaluate predicted frames.

The probe is learned because predicted objects may be blurred, pale or half occluded, so that a colour threshold would
depend on these artefacts. It is trained on true frames, half of them encoded and decoded by the tokenizer, so that it
measures errors of the dynamics and is robust to artefacts of the decoder. For each named part (gripper or object) it
gives a position in pixels and the probability that the part is visible.

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
from worldgym.models.tokenizers.frame import ResidualBlock, check_frames
from worldgym.utils.devices import autocast
from worldgym.utils.typed import from_values


@dataclass(frozen=True)
class PositionProbeConfig:
    """Architecture of a `PositionProbe`.

    Args:
        parts: names of the located parts, in the order of the outputs.
        image_size: side length of the frames in pixels, a multiple of 4.
        width: number of channels.
    """

    parts: tuple[str, ...] = ("hand",)
    image_size: int = 64
    width: int = 48

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts:
            raise ValueError("a probe needs at least one part to locate, e.g. parts=('hand', 'red')")
        if self.image_size % 4:
            raise ValueError(f"image_size must be a multiple of 4, got {self.image_size}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PositionProbeConfig:
        """Inverse of `dataclasses.asdict`."""
        return from_values(cls, values)


class Found(NamedTuple):
    """`positions (N,K,2)` in pixels (right, down), and `present (N,K)`, the probability that the part is visible."""

    positions: np.ndarray
    present: np.ndarray


class PositionProbe(
    nn.Module,
    HubModel,
    library_name="worldgym",
    coders={PositionProbeConfig: (dataclasses.asdict, PositionProbeConfig.from_dict)},
):
    """Convolutional network with a soft-argmax map and a presence score per part, at half the image resolution.

    Args:
        config: architecture; may also be a plain dict, as stored in `config.json`.
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
        """Positions `(N,K,2)` in pixels, presence logits `(N,K)` and log-probability maps `(N,K,cells)` of frames."""
        x = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
        x = torch.cat([x, self.place.expand(len(x), -1, -1, -1)], 1)
        h = self.fine(x.contiguous(memory_format=torch.channels_last))
        maps, evidence = self.maps(h + self.coarse(h)).float().flatten(2).chunk(2, 1)
        logs = maps.log_softmax(-1)
        # Not computed as a matrix product, which would round to a quarter of a pixel in bfloat16.
        where = (logs.exp()[..., None] * self.cells).sum(-2)
        return where, torch.logsumexp(evidence, -1) - np.log(evidence.shape[-1]), logs

    @torch.no_grad()
    def locate(self, frames: Tensor, batch: int = 256) -> Found:
        """Locate the parts in `frames (N,H,W,3)` uint8.

        Raises:
            ValueError: the frames have another size or dtype.
        """
        check_frames(frames, self.config.image_size)
        with autocast(self.cells.device):
            outs = [self(part.to(self.cells.device)) for part in frames.split(batch)]
        return Found(
            torch.cat([o[0] for o in outs]).cpu().numpy(), torch.cat([o[1] for o in outs]).sigmoid().cpu().numpy()
        )


def probe_loss(probe: PositionProbe, frames: Tensor, positions: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Training loss: distance in pixels + 0.3 x cross-entropy of the maps with Gaussian targets + presence.

    Args:
        probe: the probe to train.
        frames: `(N,H,W,3)` uint8.
        positions: `(N,K,2)` pixels; nan where the part is not visible.

    Returns:
        The loss, and the metrics `pixels` (mean distance) and `presence` (binary cross-entropy).
    """
    frames, positions = frames.to(probe.cells.device), positions.to(probe.cells.device)
    with autocast(frames.device):
        found, logit, logs = probe(frames)
    size = probe.config.image_size
    visible = ((positions > 0) & (positions < size)).all(-1)  # comparisons with nan are false
    target = positions.nan_to_num(0.0)
    distance = F.smooth_l1_loss(found, target, reduction="none", beta=1.0).sum(-1)
    spread = (probe.cells - target[..., None, :]).square().sum(-1)  # (N, K, cells)
    wanted = (-spread / (2 * 1.5**2)).softmax(-1)
    cross = -(wanted * logs).sum(-1)
    count = visible.sum().clamp(min=1)
    position_loss = (distance * visible).sum() / count
    map_loss = (cross * visible).sum() / count
    presence = F.binary_cross_entropy_with_logits(logit, visible.float())
    with torch.no_grad():
        pixels = ((found - target).norm(dim=-1) * visible).sum() / count
    return position_loss + 0.3 * map_loss + presence, {
        "pixels": float(pixels),
        "presence": float(presence.detach()),
    }
