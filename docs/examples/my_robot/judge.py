"""A judge: a small network that reads the last four frames and the instruction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from my_robot.saving import SavedPart
from worldgym.protocols import Judgement, Reads, last_frames
from worldgym.specs import Specs
from worldgym.text import embed

FRAMES = 4


class MyJudge(SavedPart):
    type = name = "my_judge"
    threshold = 0.5  # probability from which an episode counts as a success
    reads = Reads(frames=FRAMES)  # what `score` is given; the default is the last frame alone

    def __init__(self, specs: Specs) -> None:
        super().__init__(specs)
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 32), nn.GELU())
        self.out = nn.Sequential(nn.Linear(32 * FRAMES + 384, 64), nn.GELU(), nn.Linear(64, 1))

    def forward(self, frames: Tensor, instructions: Sequence[str]) -> Tensor:
        """Logits `(B,)` of `frames (B, 4, H, W, 3)` uint8."""
        images = frames.to(self.device).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        seen = self.image(images).unflatten(0, frames.shape[:2]).flatten(1)
        text = torch.as_tensor(embed(list(instructions))).to(self.device)
        return self.out(torch.cat([seen, text], 1)).squeeze(1)

    def loss(self, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """The training command minimises this; frames without a label (NaN) have no weight."""
        label = batch["success"][:, -1].to(self.device)
        logit = self(last_frames(batch["frames"], FRAMES), batch["instruction"])
        each = nn.functional.binary_cross_entropy_with_logits(logit, label.nan_to_num(), reduction="none")
        return {"success": (each * ~label.isnan()).mean()}

    @torch.no_grad()
    def score(self, frames: Tensor, instructions: Sequence[str]) -> Judgement:
        p = self(frames, instructions).sigmoid()
        return Judgement(p_success=p, progress=None, valid=torch.ones_like(p, dtype=torch.bool))
