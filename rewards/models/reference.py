"""A judge that compares an imagined video with a reference video: a demonstration imagined by the same world model.

The reward is the verified reward of VLA-RFT (Li et al. 2025, arXiv 2510.00406): minus the mean absolute error and minus
a perceptual distance between the video under the policy's actions and the video under the demonstrated actions. One
world model predicts both videos, so its errors occur in both and cancel. The reward is dense and needs no labels, but
it penalises every solution that differs from the demonstrated one. A video whose start has no reference is *not
applicable*: its probability is nan and its verdict valid, and `ComposedJudge` leaves it out.

Example::

    judge = ReferenceJudge.imagine(world_model, arrays, episodes=range(64))
    verdict = judge.score(videos, instructions)     # (B,T,H,W,3) uint8 from the first frame on
    verdict.raw                                     # minus the distance, the reward of VLA-RFT
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from worldgym.errors import CheckpointError, ConfigError
from worldgym.protocols import Judgement, Reads
from worldgym.registry import TYPE
from worldgym.utils.files import read_json
from worldgym.utils.folders import save_folder, verify_folder
from worldgym.utils.tensors import load_tensors, save_tensors
from worldgym.utils.typed import from_values

if TYPE_CHECKING:
    from worldgym.data.reader import EpisodeArrays

Distance = Callable[[Tensor, Tensor], Tensor]
SETTINGS, FRAMES = "config.json", "references.safetensors"


@dataclass(frozen=True)
class ReferenceJudgeConfig:
    """Settings of a `ReferenceJudge`: how a distance is converted to a probability.

    Args:
        scale: mean absolute error, as a share of the pixel range, at which the probability is 1/e.
        perceptual: weight of the perceptual distance, which is added to the mean absolute error; 0 for none.
        threshold: probability, exp(-distance / scale), at which a verdict counts as success.

    Raises:
        ConfigError: a value is not allowed.
    """

    scale: float = 0.02
    perceptual: float = 0.0
    threshold: float = 0.5

    def __post_init__(self) -> None:
        """Validate."""
        if not self.scale > 0 or self.perceptual < 0 or not 0 < self.threshold <= 1:
            raise ConfigError(
                f"scale must be more than 0, perceptual not negative, threshold in (0, 1]; got {self}"
            )


class ReferenceJudge:
    """A `RewardModel` for whole videos that have the same first frame and instruction as a reference.

    Args:
        references: N videos `(T_i,H,W,3)` uint8.
        instructions: N instructions.
        config: settings of the judge.
        perceptual: function that returns the distance `(B,)` of two batches of frames `(B,H,W,3)` uint8; required if
            its weight is not 0.

    Raises:
        ConfigError: no references, another number of instructions, or a perceptual weight without a distance function.
    """

    def __init__(
        self,
        references: Sequence[Tensor],
        instructions: Sequence[str],
        config: ReferenceJudgeConfig | None = None,
        perceptual: Distance | None = None,
    ) -> None:
        self.config = config or ReferenceJudgeConfig()
        if not references or len(references) != len(instructions):
            raise ConfigError(
                f"{len(references)} references with {len(instructions)} instructions; expected equal numbers, at least "
                "one each"
            )
        if self.config.perceptual and perceptual is None:
            raise ConfigError(
                f"perceptual={self.config.perceptual} needs a distance; pass perceptual=callable, or a weight of 0"
            )
        self.references, self.instructions = list(references), [str(text) for text in instructions]
        self.perceptual = perceptual
        self._where = {
            _key(video[0], text): i
            for i, (video, text) in enumerate(zip(self.references, self.instructions, strict=True))
        }

    @classmethod
    @torch.no_grad()
    def imagine(
        cls,
        world_model: Any,
        arrays: EpisodeArrays,
        episodes: Iterable[int] | None = None,
        config: ReferenceJudgeConfig | None = None,
        *,
        perceptual: Distance | None = None,
        generator: torch.Generator | None = None,
    ) -> ReferenceJudge:
        """Make references by imagining logged episodes: the logged actions, from the first logged frame.

        Args:
            world_model: implements `worldgym.protocols.WorldModel`.
            arrays: logs, from `EpisodeDataset.load_arrays()`.
            episodes: indices of the episodes; None for those that succeed.
            config: settings of the judge.
            perceptual: see the class.
            generator: random generator for the world model's sampling.
        """
        chosen = list(episodes) if episodes is not None else [
            i for i in range(len(arrays)) if arrays.success[arrays.rows(i)].any()
        ]  # fmt: skip
        videos = []
        for i in chosen:
            rows = arrays.rows(i)
            first = torch.from_numpy(arrays.frames[rows.start : rows.start + 1])
            actions = torch.from_numpy(arrays.actions[rows][:-1])
            states = torch.from_numpy(arrays.states[rows.start : rows.start + 1])
            no_actions = torch.zeros(1, 0, actions.shape[1], device="cpu")
            state = world_model.begin(first[None], no_actions, generator, states=states[None])
            _, imagined = world_model.step(state, actions[None])
            videos.append(torch.cat([first, imagined.frames[0].cpu()]))
        return cls(videos, [arrays.instructions[i] for i in chosen], config, perceptual)

    @property
    def name(self) -> str:
        """Name of this judge in reports."""
        return "reference"

    @property
    def reads(self) -> Reads:
        """The whole episode."""
        return Reads(frames="episode")

    @property
    def threshold(self) -> float:
        """Probability at which a verdict counts as success."""
        return self.config.threshold

    def score(self, frames: Tensor | np.ndarray, instructions: Sequence[str]) -> Judgement:
        """Compare videos `frames (B,T,H,W,3)` uint8 with the references that have the same first frame.

        The last frame of the shorter video is repeated. `progress (B,T)` is the probability of each frame.

        Raises:
            ValueError: fewer than two frames, frames of another shape or dtype, or another number of instructions.
        """
        videos = torch.as_tensor(frames).cpu()
        if (
            videos.ndim != 5
            or videos.dtype != torch.uint8
            or len(videos) != len(instructions)
            or videos.shape[1] < 2
        ):
            raise ValueError(
                f"frames are {videos.dtype} {tuple(videos.shape)} for {len(instructions)} instructions; expected uint8 "
                "(B, T >= 2, H, W, 3): whole videos, starting with their first frame"
            )
        steps = videos.shape[1]
        p: list[float] = []
        progress: list[Tensor] = []
        raw: list[float | None] = []
        for video, text in zip(videos, instructions, strict=True):
            index = self._where.get(_key(video[0], text))
            if index is None:
                p.append(float("nan"))
                progress.append(torch.full((steps,), float("nan")))
                raw.append(None)
                continue
            reference = self.references[index]
            length = max(steps, len(reference))
            t = torch.arange(length)
            distances = self._distance(video[t.clamp(max=steps - 1)], reference[t.clamp(max=len(reference) - 1)])
            mean = float(distances[1:].mean())
            p.append(float(np.exp(-mean / self.config.scale)))
            progress.append(torch.exp(-distances[:steps] / self.config.scale))
            raw.append(-mean)
        return Judgement(torch.tensor(p), torch.stack(progress), torch.ones(len(p), dtype=torch.bool), raw)

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        distances = (a.float() - b.float()).abs().mean((1, 2, 3)) / 255
        if self.config.perceptual and self.perceptual is not None:
            distances = distances + self.config.perceptual * self.perceptual(a, b).cpu().float()
        return distances

    def save_pretrained(self, path: str | Path) -> None:
        """Write settings, instructions and videos; a perceptual distance is a function and is not saved."""
        facts = {TYPE: "reference", **asdict(self.config), "instructions": self.instructions}
        with save_folder(path) as folder:
            save_tensors(folder / FRAMES, {str(i): v for i, v in enumerate(self.references)})
            (folder / SETTINGS).write_text(json.dumps(facts, indent=1) + "\n")

    @classmethod
    def from_pretrained(cls, path: str | Path, perceptual: Distance | None = None) -> ReferenceJudge:
        """Load a judge that `save_pretrained` wrote; pass `perceptual` again if it was used.

        Raises:
            CheckpointError: files are missing or damaged.
        """
        remedy = "give a folder that save_pretrained wrote"
        folder = verify_folder(path, (SETTINGS, FRAMES), remedy)
        facts = read_json(folder / SETTINGS, remedy)
        videos = load_tensors(folder / FRAMES)
        try:
            facts.pop(TYPE, None)
            texts = [str(text) for text in facts.pop("instructions")]
            config = from_values(ReferenceJudgeConfig, facts, str(folder / SETTINGS))
            return cls([videos[str(i)] for i in range(len(texts))], texts, config, perceptual)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{folder} holds no ReferenceJudge ({error}); give a folder that save_pretrained wrote"
            ) from error


def _key(frame: Tensor, text: str) -> str:
    return hashlib.sha256(text.encode() + b"\0" + frame.contiguous().numpy().tobytes()).hexdigest()
