"""A vision-language model as a judge, run here: any image-text-to-text model of transformers.

Two ways of asking. `yes_no` reads one forward pass: the probability of "yes" against "no" as the next word, which is
cheap and graded. `score` lets the model write, as World-Gymnast's reward does (fork of WorldGym,
`world_model_eval/utils.py::predict`): frames in the order of time, a rubric, "Final Score: X" at the end, the share of
several answers that say 1. An answer without a score is no verdict; with none that can be read the episode is invalid,
where World-Gymnast would pay 0.

Example::

    judge = VlmJudge.from_pretrained("models/SmolVLM-500M-Instruct", VlmJudgeConfig(mode="yes_no"))
    verdict = judge.score(frames, ["put the red cube in the tray"])     # frames (B,T,H,W,3) uint8
    judge.save_pretrained("runs/vlm_judge")                             # model, processor and settings
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rewards.models.answers import Scale, read_score
from rewards.models.endpoint import check_frames_setting
from rewards.models.http import PROMPT, checked_videos, shown_frames
from worldgym.errors import CheckpointError, ConfigError
from worldgym.hub import HUB
from worldgym.protocols import FrameCount, Judgement, Reads
from worldgym.utils.files import read_json
from worldgym.utils.folders import save_folder, verify_folder
from worldgym.utils.optional import require
from worldgym.utils.sizes import enlarged
from worldgym.utils.typed import from_values

SETTINGS = "judge.json"
QUESTION = """These frames, in the order of time, show a robot at a table. Instruction to the robot: "{instruction}"
Does the last frame show the instruction fulfilled? Answer yes or no."""


def _refuse_code(folder: Path) -> None:
    """Raise a CheckpointError for a model that brings code of its own: transformers would ask whether to run it."""
    for name in ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        file = folder / name
        if not file.is_file():
            continue
        remedy = "Restore it from a copy"
        if "auto_map" in _keys(read_json(file, remedy)):
            raise CheckpointError(
                f"{file} names Python code of its own (auto_map), which is never run here; give a model whose class is "
                "part of transformers, or serve it behind an endpoint and use HttpJudge"
            )


def _keys(data: Any) -> set[str]:
    if isinstance(data, dict):
        return set(data).union(*(_keys(value) for value in data.values()))
    return set().union(*(_keys(value) for value in data)) if isinstance(data, list) else set()


@dataclass(frozen=True)
class VlmJudgeConfig:
    """How a model is asked.

    Args:
        mode: `yes_no` reads the next word's probabilities, `score` lets it write.
        prompt: with `{instruction}` in it; None for the mode's own.
        yes: words that count as yes, those of them that are a single token.
        no: words that count as no.
        votes: answers a video in mode `score`.
        min_votes: of them that must be readable.
        frames: what it is shown: the whole `episode` so far, the `last` frame, or the last so many.
        stride: of these frames, every so many are shown, counted back from the last, which always is.
        size: pixels that the longer side of a frame is enlarged to.
        temperature: of written answers; 0 is greedy, and wants `votes` of 1.
        max_tokens: of a written answer.
        threshold: of the probability of success.
        scale: in mode `score`, which numbers are verdicts, and how they are found in an answer.
        max_batch: videos in one forward pass.

    Raises:
        ConfigError: an impossible value.
    """

    mode: Literal["yes_no", "score"] = "yes_no"
    prompt: str | None = None
    yes: tuple[str, ...] = ("yes", "Yes", " yes", " Yes")
    no: tuple[str, ...] = ("no", "No", " no", " No")
    votes: int = 5
    min_votes: int = 1
    frames: FrameCount = "episode"
    stride: int = 3
    size: int = 256
    temperature: float = 1.0
    max_tokens: int = 300
    threshold: float = 0.5
    scale: Scale = field(default_factory=Scale)
    max_batch: int = 8

    def __post_init__(self) -> None:
        """Validate, and accept lists where json gave them."""
        object.__setattr__(self, "yes", tuple(self.yes))
        object.__setattr__(self, "no", tuple(self.no))
        if self.mode not in ("yes_no", "score"):
            raise ConfigError(f"mode is {self.mode!r}; expected 'yes_no' or 'score'")
        if self.prompt is not None and "{instruction}" not in self.prompt:
            raise ConfigError(
                "the prompt has no {instruction} in it, so the judge would not know what was asked"
            )
        counts = (self.votes, self.min_votes, self.stride, self.size, self.max_tokens, self.max_batch)
        if min(counts) < 1 or self.min_votes > self.votes or self.temperature < 0:
            raise ConfigError(
                "votes, min_votes, stride, size, max_tokens and max_batch must be at least 1, min_votes at most votes, "
                "temperature not negative"
            )
        if self.temperature == 0 and self.votes > 1:
            raise ConfigError(f"{self.votes} greedy answers are all the same; type votes=1, or temperature=1")
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold}, expected in (0, 1]")
        check_frames_setting(self.frames)

    @property
    def asked(self) -> str:
        """The prompt in force."""
        return self.prompt or (QUESTION if self.mode == "yes_no" else PROMPT)


class VlmJudge:
    """A `RewardModel` around a generative vision-language model.

    Args:
        model: of transformers, image-text-to-text.
        processor: its processor, with a tokenizer and, if the model has turns, a chat template.
        config: how to ask.
        generator: of written answers; None for seed 0. It goes on from call to call.

    Raises:
        ConfigError: mode `yes_no`, and the tokenizer has no single token for yes or for no.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        config: VlmJudgeConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.model, self.processor, self.config = model.eval(), processor, config or VlmJudgeConfig()
        self.generator = generator or torch.Generator().manual_seed(0)
        tokenizer = processor.tokenizer
        if tokenizer.padding_side != "left":  # what comes next stands at the end of every row
            tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        first = [self._tokens(tokenizer, words) for words in (self.config.yes, self.config.no)]
        self._yes, self._no = (torch.tensor(sorted(ids)) for ids in first)
        if self.config.mode == "yes_no" and (first[0] & first[1] or not first[0] or not first[1]):
            raise ConfigError(
                f"this tokenizer has no single tokens that tell {self.config.yes} from {self.config.no}; give other "
                "words for yes= and no=, or mode='score'"
            )

    @staticmethod
    def _tokens(tokenizer: Any, words: Sequence[str]) -> set[int]:
        """Those of `words` that are one token; the first piece of a longer one might begin anything."""
        found = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in words)
        return {int(ids[0]) for ids in found if len(ids) == 1 and ids[0] != tokenizer.unk_token_id}

    def to(self, device: torch.device | str) -> VlmJudge:
        """Move the model; returns itself."""
        self.model.to(device)
        return self

    @property
    def name(self) -> str:
        """What reports call this judge."""
        return f"vlm:{self.model.config.model_type}"

    @property
    def reads(self) -> Reads:
        """The frames that the settings say."""
        return Reads(frames=self.config.frames)

    @property
    def threshold(self) -> float:
        """Probability at which it means success."""
        return self.config.threshold

    @classmethod
    def from_pretrained(
        cls, path: str | Path, config: VlmJudgeConfig | None = None, **loading: Any
    ) -> VlmJudge:
        """Model, processor, and settings where there are some.

        Args:
            path: folder of a model; `hf:OWNER/NAME` asks the hub.
            config: how to ask; None for the settings saved there, or the defaults.
            **loading: of `AutoModelForImageTextToText.from_pretrained`, such as `dtype` and `device_map`.

        Raises:
            CheckpointError: no such model, settings that cannot be read, or a model that brings its own code.
        """
        name = str(path)
        if name.startswith(HUB):
            name = name.removeprefix(HUB)
        else:
            _refuse_code(
                verify_folder(path, ("config.json",), "give the folder of an image-text-to-text model")
            )
        transformers = require("transformers", extra="vlm")
        loading = {**loading, "trust_remote_code": False}
        settings = Path(path) / SETTINGS
        try:
            if config is None and settings.is_file():
                verify_folder(path, (SETTINGS,), "give what save_pretrained wrote")
                config = from_values(VlmJudgeConfig, json.loads(settings.read_text()), str(settings))
            model = transformers.AutoModelForImageTextToText.from_pretrained(name, **loading)
            processor = transformers.AutoProcessor.from_pretrained(name, trust_remote_code=False)
            return cls(model, processor, config)
        except (OSError, ValueError, TypeError, KeyError) as error:
            if isinstance(error, ConfigError):
                raise
            raise CheckpointError(
                f"{path} holds no vision-language model that transformers can load ({error}); give the folder of an "
                "image-text-to-text model with its processor"
            ) from error

    def save_pretrained(self, path: str | Path) -> None:
        """Write model, processor and settings to folder `path`."""
        with save_folder(path) as folder:
            self.model.save_pretrained(str(folder))
            self.processor.save_pretrained(str(folder))
            (folder / SETTINGS).write_text(json.dumps(asdict(self.config), indent=1) + "\n")

    @torch.no_grad()
    def score(self, frames: Tensor | np.ndarray, instructions: Sequence[str]) -> Judgement:
        """Judge `frames (B,T,H,W,3)` uint8 against B instructions.

        `raw[i]` holds `p_yes` and the share of probability that yes and no had together, or the `texts` and `scores`.

        Raises:
            ValueError: other frames, or another number of instructions.
        """
        videos = checked_videos(frames, instructions)
        p, valid, raw = [], [], []
        for first in range(0, len(videos), self.config.max_batch):
            part = slice(first, first + self.config.max_batch)
            inputs = self._inputs(videos[part], instructions[part])
            for row in self._yes_no(inputs) if self.config.mode == "yes_no" else self._written(inputs):
                p.append(row.pop("p"))
                valid.append(bool(row.pop("valid")))
                raw.append(row)
        return Judgement(torch.tensor(p), None, torch.tensor(valid, dtype=torch.bool), raw)

    def _inputs(self, videos: np.ndarray, instructions: Sequence[str]) -> Any:
        from PIL import Image

        size, pictures, texts = self.config.size, [], []
        for video, instruction in zip(videos, instructions, strict=True):
            shown = [
                Image.fromarray(frame).resize(enlarged(frame.shape[:2], size), Image.Resampling.BICUBIC)
                for frame in shown_frames(video, self.config.stride)
            ]
            asked = self.config.asked.replace("{instruction}", instruction)
            pictures.append(shown)
            if getattr(self.processor, "chat_template", None):
                content = [{"type": "image"} for _ in shown] + [{"type": "text", "text": asked}]
                turn = [{"role": "user", "content": content}]
                texts.append(self.processor.apply_chat_template(turn, add_generation_prompt=True))
            else:
                texts.append(f"{getattr(self.processor, 'image_token', '<image>')}" * len(shown) + asked)
        inputs = self.processor(images=pictures, text=texts, return_tensors="pt", padding=True)
        return inputs.to(self.model.device)

    def _yes_no(self, inputs: Any) -> list[dict[str, Any]]:
        logits = self.model(**inputs).logits[:, -1].float().cpu()
        share = logits.log_softmax(-1)
        yes, no = (share[:, ids].logsumexp(-1).exp() for ids in (self._yes, self._no))
        p = yes / (yes + no)
        return [
            {"p": float(a), "valid": bool(torch.isfinite(a)), "p_yes": float(a), "said_either": float(b)}
            for a, b in zip(p, yes + no, strict=True)
        ]

    def _written(self, inputs: Any) -> list[dict[str, Any]]:
        config, count = self.config, len(inputs["input_ids"])
        sampling: dict[str, Any] = {"do_sample": False}
        if config.temperature > 0:
            sampling = {
                "do_sample": True,
                "temperature": config.temperature,
                "num_return_sequences": config.votes,
            }
        # generate() knows the global generator only; it is put back afterwards.
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**62, (), generator=self.generator)))
            said = self.model.generate(**inputs, max_new_tokens=config.max_tokens, **sampling)
        said = said[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(said, skip_special_tokens=True)
        votes = len(texts) // count
        rows = []
        for i in range(count):
            mine = texts[i * votes : (i + 1) * votes]
            found = [read_score(text, config.scale) for text in mine]
            scores = [score for score in found if score is not None]
            share = float(np.mean([s >= config.scale.success_at for s in scores])) if scores else 0.0
            rows.append(
                {"p": share, "valid": len(scores) >= config.min_votes, "texts": mine, "scores": scores}
            )
        return rows
