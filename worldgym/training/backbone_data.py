"""Logs for training a `DiffusersWorldModel`: latents of whole clips, encoded once and kept on disk.

The VAE encodes a clip from its first frame on, so the latents of a frame depend on where its clip starts. An episode is
therefore encoded from its first frame, and again from the second, third and fourth one.

Example::

    clips = Clips.encode(model, arrays, "runs/wan/latents")
    batch = clips.draw(batch=16, frames=5, generator=generator)          # latents (16, 6, C, h, w)
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from worldgym.errors import CheckpointError, ConfigError
from worldgym.models.backbones.world_model import DiffusersWorldModel
from worldgym.training.pictures import Pictures
from worldgym.utils.files import read_json
from worldgym.utils.folders import save_folder, verify_folder
from worldgym.utils.tensors import load_tensors, save_tensors

logger = logging.getLogger(__name__)
FILE, IDENTITY = "latents.safetensors", "identity.json"


@dataclass(frozen=True)
class Drawn:
    """B windows of clips: the first latent frame, then k consecutive ones.

    Args:
        latents: `(B,k+1,C,h,w)` float32.
        moves: `(B,k+1,r,A)` the actions that led to each; zeros for the first.
    """

    latents: Tensor
    moves: Tensor


@dataclass(frozen=True)
class Clips:
    """Encoded clips.

    Args:
        latents: `(N,C,h,w)` float16, the latent frames of all clips.
        first: `(M,)` int64, the first latent frame of each clip.
        frames: `(M,)` int64, its latent frames after the first one, at least 1.
        rows: `(M,)` int64, the row of its first frame in the arrays.
        actions: `(F,A)` float32 of the arrays.
        states: `(F,S)` float32 of the arrays.
        ends: `(F,)` int64, the last row of the episode of each row.
    """

    latents: Tensor
    first: np.ndarray
    frames: np.ndarray
    rows: np.ndarray
    actions: Tensor
    states: Tensor
    ends: np.ndarray

    @staticmethod
    def encode(model: DiffusersWorldModel, arrays: Any, folder: Path | str, phases: int = 4) -> Clips:
        """Encode logs with the model's VAE, or read them from `folder` if it holds them.

        Args:
            model: its VAE and canvas are used.
            arrays: episodes; those without actions are left out.
            folder: folder of the cache; it is written, and replaced if it holds latents of another VAE or data.
            phases: from how many of the first four frames of an episode clips start.

        Raises:
            ConfigError: no episode has actions and at least 5 frames.
        """
        r, pictures = model.config.per_frame, Pictures.of(arrays, model.canvas)
        offsets = np.asarray(arrays.offsets)
        acts = getattr(arrays, "has_action", None)
        rows, frames = [], []
        for episode, (start, end) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
            for phase in range(min(phases, r)):
                if (acts is None or acts[episode]) and (end - start - 1 - phase) // r >= 1:
                    rows.append(int(start) + phase)
                    frames.append(int(end - start - 1 - phase) // r)
        if not rows:
            raise ConfigError(
                f"none of the {len(offsets) - 1} episodes has actions and at least {r + 1} frames, which make one "
                "latent frame after the first; give other episodes"
            )
        counts, starts = np.asarray(frames), np.asarray(rows)
        first = np.concatenate([[0], np.cumsum(counts + 1)])[:-1]
        identity = {"vae": _hash(model.vae.state_dict()), "data": _data_hash(arrays), "phases": phases}
        latents = _read(Path(folder), identity)
        if latents is None:
            rank, ranks = (dist.get_rank(), dist.get_world_size()) if _grouped() else (0, 1)
            latents = _encode(model, pictures, starts, counts, first, rank, ranks)
            if not rank:
                with save_folder(folder) as stage:
                    save_tensors(stage / FILE, {"latents": latents})
                    (stage / IDENTITY).write_text(json.dumps(identity, indent=1))
        ends = np.repeat(offsets[1:] - 1, np.diff(offsets))
        return Clips(
            latents, first, counts, starts, torch.from_numpy(np.asarray(arrays.actions, np.float32)),
            torch.from_numpy(np.asarray(arrays.states, np.float32)), ends,
        )  # fmt: skip

    def standardised(self, model: DiffusersWorldModel) -> Clips:
        """Set the standardisation of the model's VAE from these latents, and these latents with it."""
        scale, shift = model.vae.latent_std.clone(), model.vae.latent_mean.clone()
        model.vae.fit(self.latents)
        z = self.latents.float() * scale.cpu() + shift.cpu()
        z = (z - model.vae.latent_mean.cpu()) / model.vae.latent_std.cpu()
        return Clips(z.half(), self.first, self.frames, self.rows, self.actions, self.states, self.ends)

    def draw(self, batch: int, frames: int, generator: torch.Generator) -> Drawn:
        """Draw windows of `frames` latent frames after the first one; longer clips are drawn more often.

        Clips that are shorter are left out, unless all are: then windows are as long as the longest clip.
        """
        k = min(frames, int(self.frames.max()))
        weight = torch.from_numpy(np.maximum(0, self.frames - k + 1)).double()
        clip = torch.multinomial(weight, batch, replacement=True, generator=generator).numpy()
        late = torch.rand(batch, generator=generator).numpy()
        begin = (late * (self.frames[clip] - k + 1)).astype(
            np.int64
        )  # latent frames left out after the first one
        offset = begin[:, None] + np.arange(1, k + 1)  # (B, k)
        index = np.concatenate([self.first[clip][:, None], self.first[clip][:, None] + offset], 1)
        row = self.rows[clip][:, None, None] + 4 * (offset[..., None] - 1) + np.arange(4)
        moves = self.actions[torch.from_numpy(row)]
        moves = torch.cat([torch.zeros_like(moves[:, :1]), moves], 1)
        return Drawn(self.latents[torch.from_numpy(index)].float(), moves)

    def draw_path(
        self, batch: int, steps: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw proprioception over `steps` actions.

        Returns:
            states `(B,steps+1,S)` in data units, the states before them `(B,S)`, the actions before them `(B,A)` (zeros
            at the start of an episode) and the actions `(B,steps,A)`.
        """
        clip = torch.randint(len(self.rows), (batch,), generator=generator).numpy()
        late = torch.rand(batch, generator=generator).numpy()
        start = self.rows[clip]
        room = np.maximum(1, self.ends[start] - start - steps + 1)
        at = start + (late * room).astype(np.int64)
        index = np.minimum(at[:, None] + np.arange(steps + 1), self.ends[start][:, None])
        inside = at > start
        before = np.where(inside, at - 1, at)
        rows = torch.from_numpy(index)
        acted = self.actions[torch.from_numpy(before)] * torch.from_numpy(inside)[:, None]
        return self.states[rows], self.states[torch.from_numpy(before)], acted, self.actions[rows[:, :-1]]


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


@torch.no_grad()
def _encode(
    model: DiffusersWorldModel,
    pictures: Pictures,
    rows: np.ndarray,
    counts: np.ndarray,
    first: np.ndarray,
    rank: int,
    ranks: int,
) -> Tensor:
    """Latents of all clips; every process encodes its share."""
    grid = model.config.grid
    out = torch.zeros(
        int((counts + 1).sum()), model.config.channels, *grid, dtype=torch.float16, device="cpu"
    )
    parts = []
    for count in np.unique(counts):
        alike = np.flatnonzero(counts == count)
        parts += [(int(count), part) for part in np.array_split(alike, -(-len(alike) // 8))]
    for count, part in parts[rank::ranks]:
        index = rows[part][:, None] + np.arange(1 + model.config.per_frame * count)
        frames = pictures[index.flatten()].unflatten(0, index.shape)
        z = model.vae.encode(frames).half().cpu()
        for clip, latents in zip(part, z, strict=True):
            out[first[clip] : first[clip] + count + 1] = latents
    if ranks > 1:
        for chunk in out.split(4096):
            shared = chunk.float().to(model.device)
            dist.all_reduce(shared)
            chunk.copy_(shared)
    return out


def _read(folder: Path, identity: dict[str, Any]) -> Tensor | None:
    """The cached latents; None if there are none, or those of another VAE or data."""
    if not (folder / IDENTITY).is_file():
        return None
    try:
        verify_folder(folder, (FILE, IDENTITY), "remove it; it will be made again")
        if read_json(folder / IDENTITY, "remove it") != identity:
            logger.info("the latents in %s are of another VAE or data; they are made again", folder)
            return None
        return load_tensors(folder / FILE)["latents"]
    except CheckpointError as error:
        logger.warning("%s; the latents are made again", error)
        return None


def _hash(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _data_hash(arrays: Any) -> str:
    digest = hashlib.sha256()
    for name in ("frames", "actions", "offsets"):
        value = np.ascontiguousarray(getattr(arrays, name))
        digest.update(f"{name}{value.shape}{value.dtype}".encode())
        digest.update(value.tobytes())
    for name, value in sorted((getattr(arrays, "views", None) or {}).items()):
        digest.update(name.encode() + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:16]
