"""A judge behind an OpenAI-compatible endpoint: vLLM, TGI, or a commercial API.

The prompt, the frame stride and the majority of several answers are those of World-Gymnast's reward (fork of WorldGym,
`world_model_eval/utils.py::predict`). What is not: there a request that fails is a reward of 0, and so is an answer
that cannot be read. Here it is no verdict: the episode is invalid. Requests are repeated with growing pauses, limited
in number at a time, counted in tokens and money, and answers are kept on disk, so that an audit pays once.

Example::

    judge = HttpJudge(HttpJudgeConfig(url="http://localhost:8000/v1", model="Qwen/Qwen3-VL-8B-Instruct", key_env=None))
    verdict = judge.score(frames, ["put the red cube in the tray"])   # frames (B,T,H,W,3) uint8
    verdict.p_success, verdict.valid, verdict.raw[0]["texts"], judge.spent
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldgym.errors import CheckpointError, ConfigError
from worldgym.protocols import Judgement
from worldgym.utils.files import atomic_write_text
from worldgym.utils.optional import require

logger = logging.getLogger(__name__)

PROMPT = """These frames, in the order of time, show a robot at a table. They come from a video world model and may \
contain artifacts; judge what they show, not how well they are drawn.
Instruction to the robot: "{instruction}"
Score 1 if the last frame shows the instruction fulfilled, 0 if it does not or if you cannot tell.
Explain your judgement in two or three sentences, then end with a line of its own:
Final Score: X"""
SCORE = re.compile(r"final score\W*([01](?:\.\d+)?)", re.IGNORECASE)
SUCCESS = 1.0  # of the rubric; World-Gymnast trains on score >= 1


@dataclass(frozen=True)
class HttpJudgeConfig:
    """Whom to ask, how, and how often.

    Args:
        url: base of the endpoint, up to and including `/v1`.
        model: name that the endpoint knows it by.
        prompt: with `{instruction}` in it; the answer must end with `Final Score: 0` or `1`.
        votes: answers asked for; the probability of success is the share that say 1.
        min_votes: answers that must be readable; with fewer the verdict is invalid.
        stride: every so many frames are sent, counted back from the last, which always is.
        size: pixels that frames are enlarged to.
        temperature: of the answers.
        max_tokens: of an answer.
        threshold: of the probability; at 0.5 a tie counts as success, as in World-Gymnast.
        timeout: seconds until a request is given up.
        retries: how often a request is repeated that timed out, was refused for being one too many, or came back
            broken.
        concurrency: requests at a time.
        key_env: environment variable that holds the key; None if the endpoint wants none. The key itself is kept
            nowhere else and never logged.
        price_in: money for a million tokens sent.
        price_out: money for a million tokens received.
        budget: money after which no request is sent any more; None for no limit.

    Raises:
        ConfigError: an impossible value.
    """

    url: str
    model: str
    prompt: str = PROMPT
    votes: int = 5
    min_votes: int = 1
    stride: int = 3
    size: int = 256
    temperature: float = 1.0
    max_tokens: int = 300
    threshold: float = 0.5
    timeout: float = 60.0
    retries: int = 4
    concurrency: int = 8
    key_env: str | None = "OPENAI_API_KEY"
    price_in: float = 0.0
    price_out: float = 0.0
    budget: float | None = None

    def __post_init__(self) -> None:
        """Validate."""
        if not self.url.startswith(("http://", "https://")) or not self.model:
            raise ConfigError(
                f"url is {self.url!r} and model {self.model!r}; expected http(s)://HOST/v1 and the model's name there"
            )
        if "{instruction}" not in self.prompt:
            raise ConfigError(
                "the prompt has no {instruction} in it, so the judge would not know what was asked"
            )
        counts = (self.votes, self.min_votes, self.stride, self.size, self.concurrency, self.max_tokens)
        if min(counts) < 1 or self.min_votes > self.votes or self.retries < 0 or self.timeout <= 0:
            raise ConfigError(
                "votes, min_votes, stride, size, max_tokens and concurrency must be at least 1, min_votes at most "
                "votes, retries not negative, timeout more than 0"
            )
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold}, expected in (0, 1]")


@dataclass
class Spent:
    """What a judge has cost so far."""

    requests: int = 0
    cached: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    money: float = 0.0


@dataclass
class _Answer:
    """What was said of one video."""

    texts: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    error: str | None = None
    cached: bool = False


class HttpJudge:
    """A `RewardModel` that asks an endpoint.

    Args:
        config: whom and how.
        cache: folder of answers; None keeps none.

    Raises:
        DependencyError: the package `openai` is not installed (extra `http`).
        ConfigError: `key_env` names a variable that is not set.
    """

    def __init__(self, config: HttpJudgeConfig, cache: str | os.PathLike[str] | None = None) -> None:
        self.config, self.spent = config, Spent()
        self.cache = None if cache is None else Path(cache)
        self._openai = require("openai", extra="http")
        key = "none" if config.key_env is None else os.environ.get(config.key_env)
        if not key:
            raise ConfigError(
                f"the environment variable {config.key_env} is not set; type export {config.key_env}=... (a key is "
                "never read from anywhere else), or pass key_env=None for an endpoint that wants none"
            )
        self._key = key
        self._client = self._openai.OpenAI(
            base_url=config.url, api_key=key, timeout=config.timeout, max_retries=config.retries
        )
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        """Without the key."""
        return f"HttpJudge({self.config!r})"

    @property
    def name(self) -> str:
        """What reports call this judge."""
        return f"http:{self.config.model}"

    @property
    def threshold(self) -> float:
        """Probability at which it means success."""
        return self.config.threshold

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], cache: str | os.PathLike[str] | None = None
    ) -> HttpJudge:
        """The judge whose settings were saved in folder `path`.

        Raises:
            CheckpointError: no such settings there.
        """
        file = Path(path) / "config.json"
        try:
            config = HttpJudgeConfig(**json.loads(file.read_text()))
        except (OSError, ValueError, TypeError, ConfigError) as error:
            raise CheckpointError(f"{file} holds no settings of an HttpJudge ({error})") from error
        return cls(config, cache)

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write the settings; the key is none of them."""
        Path(path).mkdir(parents=True, exist_ok=True)
        atomic_write_text(Path(path) / "config.json", json.dumps(asdict(self.config), indent=1) + "\n")

    def score(self, frames: Tensor, instructions: Sequence[str]) -> Judgement:
        """Judge `frames (B,T,H,W,3)` uint8 against B instructions, several at a time.

        A video on which the endpoint failed is invalid, with `raw[i]["error"]` saying how; the others stand.

        Raises:
            ConfigError: the endpoint refuses the key, knows no such model, or the budget is spent.
        """
        videos = checked_videos(frames, instructions)
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            answers = list(pool.map(self._judge, videos, instructions))
        valid = [len(a.scores) >= self.config.min_votes for a in answers]
        p = [float(np.mean([s >= SUCCESS for s in a.scores])) if a.scores else 0.0 for a in answers]
        failed = [a.error for a in answers if a.error]
        if failed:
            logger.warning(
                "%s gave no verdict on %d of %d videos: %s", self.name, len(failed), len(answers), failed[0]
            )
        return Judgement(
            torch.tensor(p), None, torch.tensor(valid, dtype=torch.bool), [vars(a) for a in answers]
        )

    # -- one video ---------------------------------------------------------------------------------
    def _judge(self, video: np.ndarray, instruction: str) -> _Answer:
        config = self.config
        shown = shown_frames(video, config.stride)
        text = config.prompt.replace("{instruction}", instruction)
        key = self._cache_key(shown, text)
        if (kept := self._kept(key)) is not None:
            with self._lock:
                self.spent.cached += 1
            return kept
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        content += [
            {"type": "image_url", "image_url": {"url": _data_url(frame, config.size)}} for frame in shown
        ]
        answer, broken = _Answer(), 0
        while len(answer.texts) < config.votes:
            try:
                answer.texts += self._ask(content, config.votes - len(answer.texts))
            except ConfigError:
                raise
            except Exception as error:  # whatever a broken endpoint makes the client stumble over
                repeated = isinstance(error, self._openai.APIStatusError | self._openai.APIConnectionError)
                broken += not repeated  # such requests the client has sent again already
                if not repeated and broken <= config.retries:
                    continue
                answer.error = self._hide(f"{type(error).__name__}: {error}")
                break
        found = [SCORE.findall(text) for text in answer.texts]
        answer.scores = [float(scores[-1]) for scores in found if scores]
        if len(answer.scores) < config.min_votes and answer.error is None:
            answer.error = (
                f"no readable score in {len(answer.texts)} answers, such as {answer.texts[0][-200:]!r}"
            )
        if answer.error is None:
            self._keep(key, answer)
        return answer

    def _ask(self, content: list[dict[str, Any]], count: int) -> list[str]:
        """At least one answer, at most `count`."""
        config = self.config
        with self._lock:
            if config.budget is not None and self.spent.money >= config.budget:
                raise ConfigError(
                    f"{self.name} has spent {self.spent.money:.2f} of a budget of {config.budget:.2f}; raise `budget`, "
                    "or use the answers in its cache"
                )
            self.spent.requests += 1
        try:
            reply = self._client.chat.completions.create(
                model=config.model,
                messages=[{"role": "user", "content": content}],
                n=count,
                temperature=config.temperature,
                max_tokens=config.max_tokens,
            )
        except (
            self._openai.AuthenticationError,
            self._openai.PermissionDeniedError,
            self._openai.NotFoundError,
            self._openai.BadRequestError,
        ) as error:
            # Asking again, or about another video, would not help.
            raise ConfigError(
                f"{self.config.url} refuses {self.config.model!r}: {self._hide(str(error))}. Look at url, model and "
                f"the key in {self.config.key_env}"
            ) from None
        texts = [choice.message.content for choice in reply.choices]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"the reply holds no text but {texts!r:.100}")
        usage = reply.usage
        with self._lock:
            if usage is not None:
                self.spent.tokens_in += usage.prompt_tokens
                self.spent.tokens_out += usage.completion_tokens
                self.spent.money += (
                    usage.prompt_tokens * config.price_in + usage.completion_tokens * config.price_out
                ) / 1e6
        return texts[:count]

    def _hide(self, text: str) -> str:
        """`text` without the key, should the endpoint have echoed it."""
        return text if self.config.key_env is None else text.replace(self._key, "***")

    # -- cache -------------------------------------------------------------------------------------
    def _cache_key(self, shown: np.ndarray, text: str) -> str:
        config = self.config
        facts = [
            config.url,
            config.model,
            text,
            config.votes,
            config.size,
            config.temperature,
            config.max_tokens,
        ]
        digest = hashlib.sha256(json.dumps([*facts, shown.shape]).encode())
        digest.update(np.ascontiguousarray(shown).tobytes())
        return digest.hexdigest()

    def _kept(self, key: str) -> _Answer | None:
        if self.cache is None:
            return None
        file = self.cache / key[:2] / f"{key}.json"
        try:
            said = json.loads(file.read_text())
            return _Answer(list(said["texts"]), [float(s) for s in said["scores"]], None, cached=True)
        except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged: ask again
            return None

    def _keep(self, key: str, answer: _Answer) -> None:
        if self.cache is not None:
            file = self.cache / key[:2] / f"{key}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            said = {"model": self.config.model, "texts": answer.texts, "scores": answer.scores}
            atomic_write_text(file, json.dumps(said) + "\n")


def checked_videos(frames: Any, instructions: Sequence[str]) -> np.ndarray:
    """`frames` as `(B,T,H,W,3)` uint8.

    Raises:
        ValueError: other frames, or another number of instructions.
    """
    videos: np.ndarray = torch.as_tensor(frames).cpu().numpy()
    if videos.ndim != 5 or videos.dtype != np.uint8 or len(videos) != len(instructions):
        raise ValueError(
            f"frames are {videos.dtype} {videos.shape} for {len(instructions)} instructions; expected uint8 (B,T,H,W,3)"
        )
    return videos


def shown_frames(video: np.ndarray, stride: int) -> np.ndarray:
    """Every `stride`th frame of `video (T,H,W,3)`, counted back from the last."""
    return video[::-1][::stride][::-1]


def _data_url(frame: np.ndarray, size: int) -> str:
    """`frame (H,W,3)` uint8 as a JPEG of `size` pixels in a data URL."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
