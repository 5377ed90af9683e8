"""A judge of motion: it needs eight frames, and learns from labelled windows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldgym.protocols import Judgement, Reads, last_frames
from worldgym.specs import Specs
from worldgym.text import embed

FRAMES = 8


class VideoJudge(nn.Module):
    name, threshold, reads = "foreign_video", 0.5, Reads(frames=FRAMES)

    def __init__(self, specs: Specs) -> None:
        super().__init__()
        self.specs = specs
        self.eye = nn.Sequential(nn.AdaptiveAvgPool2d((6, 10)), nn.Flatten(), nn.Linear(180, 16), nn.GELU())
        self.out = nn.Sequential(nn.Linear(16 * FRAMES + 384, 32), nn.GELU(), nn.Linear(32, 1))

    @classmethod
    def for_data(cls, specs: Specs, preset: str, arrays: Any = None) -> VideoJudge:
        return cls(specs)

    def forward(self, frames: Tensor, words: Sequence[str]) -> Tensor:
        pictures = frames.permute(0, 1, 4, 2, 3).float().flatten(0, 1) / 255
        seen = self.eye(pictures).unflatten(0, frames.shape[:2]).flatten(1)
        return self.out(torch.cat([seen, torch.as_tensor(embed(list(words)))], 1)).squeeze(1)

    def loss(self, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        label = batch["success"][:, -1]
        known = ~label.isnan()
        logit = self(last_frames(batch["frames"], FRAMES), batch["instruction"])
        off = nn.functional.binary_cross_entropy_with_logits(logit, label.nan_to_num(), reduction="none")
        return {"success": (off * known).sum() / known.sum().clamp_min(1)}

    @torch.no_grad()
    def score(self, frames: Tensor, instructions: Sequence[str]) -> Judgement:
        if frames.shape[1] != FRAMES:
            raise ValueError(f"this judge needs {FRAMES} frames, and was shown {frames.shape[1]}")
        p = self(frames, instructions).sigmoid()
        return Judgement(p, None, torch.ones(len(p), dtype=torch.bool))

    def save_pretrained(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "config.json").write_text(
            json.dumps({"type": "foreign_video", "specs": self.specs.to_dict()})
        )
        save_file(
            {k: v.contiguous() for k, v in self.state_dict().items()}, Path(folder) / "weights.safetensors"
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> VideoJudge:
        facts = json.loads((Path(folder) / "config.json").read_text())
        judge = cls(Specs.from_dict(facts["specs"]))
        judge.load_state_dict(load_file(Path(folder) / "weights.safetensors"))
        return judge.eval()
