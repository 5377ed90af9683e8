"""A vision-language model as a judge, run in this process: any image-text-to-text model of transformers.

There are two modes. `yes_no` uses one forward pass: the probability of "yes" against "no" as the next token, which is
cheap and graded. `score` generates text, as the reward of World-Gymnast does (fork of WorldGym,
`world_model_eval/utils.py::predict`): frames in temporal order, a rubric, "Final Score: X" at the end; the probability
is the share of several answers that score 1. Answers without a readable score are not counted. With no readable answer
the episode is invalid, where World-Gymnast gives a reward of 0.

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
    """Raise a CheckpointError for a model with its own Python code, which transformers would offer to run."""
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
    """Settings of a `VlmJudge`.

    Args:
        mode: `yes_no` uses the probabilities of the next token, `score` parses a score from generated text.
        prompt: prompt with the placeholder `{instruction}`; None for the default prompt of the mode.
        yes: words that count as yes; only words of a single token are used.
        no: words that count as no; only words of a single token are used.
        votes: number of answers per video in mode `score`.
        min_votes: smallest number of readable answers; with fewer the verdict is invalid.
        frames: frames that are shown: the whole `episode` so far, only the `last` frame, or a number of last frames.
        stride: every `stride`th of these frames is shown, counted back from the last frame, which is always shown.
        size: the longer side of a frame is enlarged to this size, pixels.
        temperature: sampling temperature of generated answers; 0 is greedy and needs `votes=1`.
        max_tokens: largest number of tokens of a generated answer.
        threshold: probability at which a verdict counts as success.
        scale: in mode `score`, the scores that an answer may give, and how to parse them.
        max_batch: number of videos in one forward pass.

    Raises:
        ConfigError: a value is not allowed.
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
        """Validate, and convert lists from JSON to tuples."""
        object.__setattr__(self, "yes", tuple(self.yes))
        object.__setattr__(self, "no", tuple(self.no))
        if self.mode not in ("yes_no", "score"):
            raise ConfigError(f"mode is {self.mode!r}; expected 'yes_no' or 'score'")
        if self.prompt is not None and "{instruction}" not in self.prompt:
            raise ConfigError(
                "the prompt has no {instruction}, so the model would not be given the instruction; add {instruction}"
            )
        counts = (self.votes, self.min_votes, self.stride, self.size, self.max_tokens, self.max_batch)
        if min(counts) < 1 or self.min_votes > self.votes or self.temperature < 0:
            raise ConfigError(
                "votes, min_votes, stride, size, max_tokens and max_batch must be at least 1, min_votes at most votes, "
                "temperature not negative"
            )
        if self.temperature == 0 and self.votes > 1:
            raise ConfigError(
                f"votes is {self.votes}, but greedy answers are all the same; type votes=1, or temperature=1"
            )
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold}; expected a number in (0, 1]")
        check_frames_setting(self.frames)

    @property
    def asked(self) -> str:
        """The prompt that is used: `prompt`, or the default of the mode."""
        return self.prompt or (QUESTION if self.mode == "yes_no" else PROMPT)


class VlmJudge:
    """A `RewardModel` around a generative vision-language model.

    Args:
        model: an image-text-to-text model of transformers.
        processor: the model's processor, with a tokenizer and, for a chat model, a chat template.
        config: settings of the judge.
        generator: random generator for generated answers; None for one with seed 0. Its state advances with each call.

    Raises:
        ConfigError: in mode `yes_no`, the tokenizer has no single token for yes or for no.
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
        if tokenizer.padding_side != "left":  # the next token must follow the last position of every row
            tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        first = [self._tokens(tokenizer, words) for words in (self.config.yes, self.config.no)]
        self._yes, self._no = (torch.tensor(sorted(ids)) for ids in first)
        if self.config.mode == "yes_no" and (first[0] & first[1] or not first[0] or not first[1]):
            raise ConfigError(
                f"this tokenizer has no single tokens that distinguish {self.config.yes} from {self.config.no}; give "
                "other words for yes= and no=, or mode='score'"
            )

    @staticmethod
    def _tokens(tokenizer: Any, words: Sequence[str]) -> set[int]:
        """Token ids of the words that are a single token; the first token of a longer word would be ambiguous."""
        found = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in words)
        return {int(ids[0]) for ids in found if len(ids) == 1 and ids[0] != tokenizer.unk_token_id}

    def to(self, device: torch.device | str) -> VlmJudge:
        """Move the model; returns itself."""
        self.model.to(device)
        return self

    @property
    def name(self) -> str:
        """Name of this judge in reports."""
        return f"vlm:{self.model.config.model_type}"

    @property
    def reads(self) -> Reads:
        """The frames that `config.frames` selects."""
        return Reads(frames=self.config.frames)

    @property
    def threshold(self) -> float:
        """Probability at which a verdict counts as success."""
        return self.config.threshold

    @classmethod
    def from_pretrained(
        cls, path: str | Path, config: VlmJudgeConfig | None = None, **loading: Any
    ) -> VlmJudge:
        """Load model and processor, and the settings if the folder has any.

        Args:
            path: folder of a model, or `hf:OWNER/NAME` for a model on the Hugging Face hub.
            config: settings of the judge; None for the settings saved in the folder, or the defaults.
            **loading: keyword arguments of `AutoModelForImageTextToText.from_pretrained`, such as `dtype` and
                `device_map`.

        Raises:
            CheckpointError: there is no such model, its settings cannot be read, or it has its own Python code.
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
                verify_folder(path, (SETTINGS,), "give a folder that save_pretrained wrote")
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

        `raw[i]` holds `p_yes` and `said_either` (the total probability of yes and no) in mode `yes_no`, and `texts` and
        `scores` in mode `score`.

        Raises:
            ValueError: frames of another shape or dtype, or another number of instructions.
        """
        videos = checked_videos(frames, instructions)
        p, valid, raw = [], [], []
        for first in range(0, len(videos), self.config.max_batch):
            part = slice(first, first + self.config.max_batch)
            inputs = self._inputs(videos[part], instructions[part])
            for row in self._yes_no(inputs) if self.config.mode == "yes_no" else self._generated(inputs):
                p.append(row.pop("p"))
                valid.append(bool(row.pop("valid")))
                raw.append(row)
        return Judgement(torch.tensor(p), None, torch.tensor(valid, dtype=torch.bool), raw)

    def _inputs(self, videos: np.ndarray, instructions: Sequence[str]) -> Any:
        from PIL import Image

        size, images, texts = self.config.size, [], []
        for video, instruction in zip(videos, instructions, strict=True):
            shown = [
                Image.fromarray(frame).resize(enlarged(frame.shape[:2], size), Image.Resampling.BICUBIC)
                for frame in shown_frames(video, self.config.stride)
            ]
            prompt = self.config.asked.replace("{instruction}", instruction)
            images.append(shown)
            if getattr(self.processor, "chat_template", None):
                content = [{"type": "image"} for _ in shown] + [{"type": "text", "text": prompt}]
                turn = [{"role": "user", "content": content}]
                texts.append(self.processor.apply_chat_template(turn, add_generation_prompt=True))
            else:
                texts.append(f"{getattr(self.processor, 'image_token', '<image>')}" * len(shown) + prompt)
        inputs = self.processor(images=images, text=texts, return_tensors="pt", padding=True)
        return inputs.to(self.model.device)

    def _yes_no(self, inputs: Any) -> list[dict[str, Any]]:
        logits = self.model(**inputs).logits[:, -1].float().cpu()
        log_p = logits.log_softmax(-1)
        yes, no = (log_p[:, ids].logsumexp(-1).exp() for ids in (self._yes, self._no))
        p = yes / (yes + no)
        return [
            {"p": float(a), "valid": bool(torch.isfinite(a)), "p_yes": float(a), "said_either": float(b)}
            for a, b in zip(p, yes + no, strict=True)
        ]

    def _generated(self, inputs: Any) -> list[dict[str, Any]]:
        config, count = self.config, len(inputs["input_ids"])
        sampling: dict[str, Any] = {"do_sample": False}
        if config.temperature > 0:
            sampling = {
                "do_sample": True,
                "temperature": config.temperature,
                "num_return_sequences": config.votes,
            }
        # generate() uses the global generator only; its state is restored afterwards.
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**62, (), generator=self.generator)))
            tokens = self.model.generate(**inputs, max_new_tokens=config.max_tokens, **sampling)
        tokens = tokens[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        votes = len(texts) // count
        rows = []
        for i in range(count):
            answers = texts[i * votes : (i + 1) * votes]
            parsed = [read_score(text, config.scale) for text in answers]
            scores = [score for score in parsed if score is not None]
            share = float(np.mean([s >= config.scale.success_at for s in scores])) if scores else 0.0
            rows.append(
                {"p": share, "valid": len(scores) >= config.min_votes, "texts": answers, "scores": scores}
            )
        return rows
