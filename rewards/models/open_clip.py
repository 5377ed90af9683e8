"""A contrastive image-text model as a judge: any checkpoint that open_clip loads.

The score is the cosine similarity of a frame and the goal sentence minus that of the frame and a baseline sentence,
which only describes the scene: "goal minus baseline" (VLM-RMs, Rocamonde et al. 2024, section 3, whose regularised form
has the same optimum when the baseline is projected out). A scale and an offset, fitted on held-out logs, convert the
difference of cosines to a probability. Without fine-tuning, CLIP's cosine does not distinguish "left" from "right": see
`rewards.training.open_clip`, and audit the judge before you use it as a reward.

Example::

    judge = OpenClipJudge.from_pretrained("runs/clip_judge")              # written by save_pretrained
    judge = OpenClipJudge.create("ViT-B-32", pretrained="models/vit_b_32.safetensors")
    judge.score(frames, ["put the red cube in the tray"]).p_success       # frames (B,T,H,W,3) uint8
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from worldgym.errors import CheckpointError, ConfigError
from worldgym.protocols import Judgement, Reads
from worldgym.registry import TYPE
from worldgym.utils.files import read_json
from worldgym.utils.folders import save_folder, verify_folder
from worldgym.utils.optional import require
from worldgym.utils.tensors import load_tensors, save_tensors
from worldgym.utils.typed import from_values

SETTINGS = "judge.json"
MODEL, WEIGHTS = (
    "open_clip_config.json",
    "open_clip_model.safetensors",
)  # names that open_clip's `local-dir:` reads


@dataclass(frozen=True)
class OpenClipJudgeConfig:
    """Settings of an `OpenClipJudge`: how cosine similarities are converted to a verdict.

    Args:
        goal: sentence that describes success, with the placeholder `{instruction}`.
        baseline: sentence that describes the scene independently of success.
        frames: number of last frames that are scored, `stride` apart.
        stride: step between the scored frames.
        aggregate: `last` frame only, or `mean` or `max` over the scored frames.
        scale: factor of the difference of cosines in the logit.
        offset: added to the logit.
        threshold: probability at which a verdict counts as success.
        max_batch: number of frames in one forward pass.

    Raises:
        ConfigError: a value is not allowed.
    """

    goal: str = "{instruction}"
    baseline: str = "a robot arm at a table"
    frames: int = 1
    stride: int = 1
    aggregate: Literal["last", "mean", "max"] = "last"
    scale: float = 100.0
    offset: float = 0.0
    threshold: float = 0.5
    max_batch: int = 256

    def __post_init__(self) -> None:
        """Validate."""
        if "{instruction}" not in self.goal:
            raise ConfigError(f"goal is {self.goal!r}; it needs {{instruction}}, e.g. goal='{{instruction}}'")
        if self.aggregate not in ("last", "mean", "max"):
            raise ConfigError(f"aggregate is {self.aggregate!r}; expected 'last', 'mean' or 'max'")
        if min(self.frames, self.stride, self.max_batch) < 1 or not self.scale > 0:
            raise ConfigError("frames, stride and max_batch must be at least 1, scale more than 0")
        if self.aggregate == "last" and self.frames > 1:
            raise ConfigError(
                f"aggregate='last' scores one frame, but frames is {self.frames}; type aggregate='mean', or frames=1"
            )
        if not 0 < self.threshold < 1:
            raise ConfigError(f"threshold is {self.threshold}; expected a number in (0, 1)")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OpenClipJudgeConfig:
        """Build from a JSON object; raises a ConfigError with a suggestion for an unknown key."""
        made: OpenClipJudgeConfig = from_values(cls, values)
        return made


class OpenClipJudge:
    """A `RewardModel` around an open_clip model.

    Args:
        model: a model with `encode_image((B,3,h,w))` and `encode_text(tokens)`.
        tokenizer: converts a list of sentences to tokens.
        config: settings of the judge.
        description: open_clip's `model_cfg`; required by `save_pretrained`.
        mean: mean of the pixels, RGB in [0, 1].
        std: standard deviation of the pixels, RGB.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        config: OpenClipJudgeConfig | None = None,
        *,
        description: Mapping[str, Any] | None = None,
        mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
    ) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.config = config or OpenClipJudgeConfig()
        self.description = None if description is None else dict(description)
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self._texts: dict[str, Tensor] = {}

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def to(self, device: torch.device | str) -> OpenClipJudge:
        """Move the model, which judges made by `with_config` share; returns itself."""
        self.model.to(device)
        self._texts = {}
        return self

    # -- making one -------------------------------------------------------------------------------
    @classmethod
    def create(
        cls, name: str, pretrained: str | None = None, config: OpenClipJudgeConfig | None = None
    ) -> OpenClipJudge:
        """Build a judge from a model architecture of open_clip.

        Args:
            name: name of the architecture, such as `ViT-B-32`.
            pretrained: a file of weights, or a tag whose weights open_clip downloads; None for random weights.
            config: settings of the judge.

        Raises:
            DependencyError: open_clip is not installed (extra `clip`).
            CheckpointError: open_clip has no such architecture or no such weights.
        """
        open_clip = require("open_clip", extra="clip")
        try:
            model = open_clip.create_model(name, pretrained=pretrained)
            description = open_clip.get_model_config(name)
        except (RuntimeError, FileNotFoundError, ValueError) as error:
            raise CheckpointError(
                f"open_clip has no model {name!r} with weights {pretrained!r}: {error}"
            ) from error
        shown = open_clip.get_model_preprocess_cfg(model)
        return cls(
            model, open_clip.get_tokenizer(name), config, description=description, mean=shown["mean"], std=shown["std"]
        )  # fmt: skip

    @classmethod
    def from_description(
        cls, description: Mapping[str, Any], config: OpenClipJudgeConfig | None = None
    ) -> OpenClipJudge:
        """Build an untrained model from open_clip's `model_cfg`, with pixels in [-1, 1] and CLIP's tokenizer."""
        open_clip = require("open_clip", extra="clip")
        model = open_clip.CLIP(**description)
        tokenizer = open_clip.SimpleTokenizer(
            context_length=description["text_cfg"].get("context_length", 77)
        )
        half = (0.5, 0.5, 0.5)
        return cls(model, tokenizer, config, description=description, mean=half, std=half)

    @classmethod
    def from_pretrained(cls, path: str | Path, config: OpenClipJudgeConfig | None = None) -> OpenClipJudge:
        """Load a folder that `save_pretrained` wrote, or any folder in open_clip's own format.

        Raises:
            CheckpointError: files are missing or damaged.
            DependencyError: open_clip is not installed.
        """
        remedy = (
            "give a folder that save_pretrained wrote, or use OpenClipJudge.create(name, pretrained=FILE)"
        )
        folder = verify_folder(path, (MODEL, WEIGHTS), remedy)
        facts = read_json(folder / MODEL, remedy)
        found = load_tensors(folder / WEIGHTS)
        try:
            if config is None and (folder / SETTINGS).is_file():
                config = OpenClipJudgeConfig.from_dict(json.loads((folder / SETTINGS).read_text()))
            judge = cls.from_description(facts["model_cfg"], config)
            shown = facts.get("preprocess_cfg", {})
            judge.mean, judge.std = tuple(shown.get("mean", judge.mean)), tuple(shown.get("std", judge.std))
            weights = {k: v.float() if v.is_floating_point() else v for k, v in found.items()}
            judge.model.load_state_dict(weights)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise CheckpointError(f"the open_clip judge in {folder} is damaged: {error}") from error
        judge.model.eval()
        return judge

    def save_pretrained(self, path: str | Path, *, half: bool = True) -> None:
        """Write open_clip's `local-dir` files and the settings.

        Args:
            path: folder to write.
            half: save the weights in float16, which halves the file size.

        Raises:
            ConfigError: the judge was made from a model object without its description.
        """
        if self.description is None:
            raise ConfigError(
                "this judge has no description of its model; pass description= to OpenClipJudge"
            )
        dtype = torch.float16 if half else torch.float32
        tensors = {
            k: v.detach().to("cpu", dtype if v.is_floating_point() else v.dtype).contiguous().clone()
            for k, v in self.model.state_dict().items()
        }
        size = self.size
        facts = {
            "model_cfg": self.description,
            "preprocess_cfg": {"mean": list(self.mean), "std": list(self.std), "size": [size, size]},
        }
        with save_folder(path) as folder:
            save_tensors(folder / WEIGHTS, tensors, metadata={"format": "pt"})
            (folder / MODEL).write_text(json.dumps(facts, indent=1) + "\n")
            (folder / SETTINGS).write_text(json.dumps(dataclasses.asdict(self.config), indent=1) + "\n")
            (folder / "config.json").write_text(json.dumps({TYPE: "open_clip"}) + "\n")

    # -- facts ------------------------------------------------------------------------------------
    @property
    def name(self) -> str:
        """Name of this judge in reports."""
        return "open_clip"

    @property
    def threshold(self) -> float:
        """Probability at which a verdict counts as success."""
        return self.config.threshold

    @property
    def reads(self) -> Reads:
        """The scored frames and the frames between them."""
        span = (self.config.frames - 1) * self.config.stride + 1
        return Reads(frames="last" if span == 1 else span)

    @property
    def size(self) -> int:
        """Pixels along one side of the model's input."""
        visual: Any = self.model.visual  # type: ignore[union-attr]
        size = visual.image_size
        return int(size[0] if isinstance(size, tuple | list) else size)

    def with_config(self, **changes: Any) -> OpenClipJudge:
        """Return a judge with changed settings that shares this judge's model."""
        config = dataclasses.replace(self.config, **changes)
        return OpenClipJudge(
            self.model, self.tokenizer, config, description=self.description, mean=self.mean, std=self.std
        )

    # -- judging ----------------------------------------------------------------------------------
    @torch.no_grad()
    def score(self, frames: Tensor | np.ndarray, instructions: Sequence[str]) -> Judgement:
        """Judge `frames (B,T,H,W,3)` uint8 against B instructions; `raw` holds the differences of cosines.

        Raises:
            ValueError: frames of another shape or dtype, or another number of instructions.
        """
        videos = torch.as_tensor(frames)
        if videos.ndim != 5 or videos.dtype != torch.uint8 or len(videos) != len(instructions):
            raise ValueError(
                f"frames are {videos.dtype} {tuple(videos.shape)} for {len(instructions)} instructions; expected uint8 "
                "(B,T,H,W,3)"
            )
        c = self.config
        scored = videos.flip(1)[:, :: c.stride][:, : c.frames]
        count = scored.shape[1]
        goals = self.texts([c.goal.replace("{instruction}", text) for text in instructions])
        direction = goals - self.texts([c.baseline])
        images = torch.cat([self.pictures(part) for part in scored.flatten(0, 1).split(c.max_batch)])
        similarity = (images.unflatten(0, (-1, count)) * direction[:, None]).sum(-1)
        value = {"last": similarity[:, 0], "mean": similarity.mean(1), "max": similarity.amax(1)}[c.aggregate]
        value = value.cpu()
        logit = c.scale * value + c.offset
        return Judgement(torch.sigmoid(logit), None, torch.isfinite(logit), value.tolist())

    def pictures(self, frames: Tensor) -> Tensor:
        """Image embeddings `(B,D)` of `frames (B,H,W,3)` uint8, of unit length."""
        return nn.functional.normalize(self.model.encode_image(self.pixels(frames)).float(), dim=-1)  # type: ignore[operator]

    def pixels(self, frames: Tensor) -> Tensor:
        """Model input `(B,3,h,w)`: `frames (B,H,W,3)` uint8, resized and standardised."""
        x = frames.to(self.device).permute(0, 3, 1, 2).float() / 255
        if x.shape[-1] != self.size:
            x = nn.functional.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True).clamp(
                0, 1
            )
        mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std

    def texts(self, sentences: Sequence[str]) -> Tensor:
        """Text embeddings `(B,D)` of unit length; each sentence is encoded once and cached."""
        new = sorted(set(sentences) - self._texts.keys())
        if new:
            vectors = self.model.encode_text(self.tokenizer(new).to(self.device)).float()  # type: ignore[operator]
            self._texts |= dict(zip(new, nn.functional.normalize(vectors, dim=-1), strict=True))
        return torch.stack([self._texts[text] for text in sentences])
