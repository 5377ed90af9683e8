"""A judge behind an OpenAI-compatible endpoint: vLLM, TGI, or a commercial API.

The prompt, the frame stride and the majority vote over several answers follow the reward of World-Gymnast (fork of
WorldGym, `world_model_eval/utils.py::predict`). One thing differs: World-Gymnast gives a reward of 0 for a failed
request or an unreadable answer, whereas here the verdict, and with it the episode, is invalid. Each verdict has a
deadline and each reply a maximum size. Requests are retried within the deadline, their concurrency is limited, and
their tokens and cost are counted. Answers are cached on disk, so a repeated audit costs nothing. If verdicts keep
failing, the run is paused instead of being scored.

The key is read at request time from the environment variable that the caller names, and is sent only to the address
that the caller names. It is not stored in files, pickles or logs; nor does a judge's folder store the variable's name.

Example::

    judge = HttpJudge(HttpJudgeConfig(url="http://localhost:8000/v1", model="Qwen/Qwen3-VL-8B-Instruct"))
    verdict = judge.score(frames, ["put the red cube in the tray"])   # frames (B,T,H,W,3) uint8
    verdict.p_success, verdict.valid, verdict.raw[0]["texts"], judge.spent
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewards.models.answers import PROMPT, read_score
from rewards.models.endpoint import Endpoint, HttpJudgeConfig, Refused, Spent, masked
from worldgym.errors import CheckpointError, ConfigError, JudgeUnavailableError
from worldgym.protocols import Judgement, Reads
from worldgym.registry import TYPE
from worldgym.utils.files import read_json, write_sealed
from worldgym.utils.folders import save_folder, verify_folder
from worldgym.utils.optional import require
from worldgym.utils.sizes import enlarged
from worldgym.utils.typed import from_values

__all__ = ["PROMPT", "HttpJudge", "HttpJudgeConfig", "Spent", "checked_videos", "shown_frames"]
logger = logging.getLogger(__name__)
SETTINGS = "config.json"


@dataclass
class _Answer:
    """The answers about one video, and the scores parsed from them."""

    texts: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    error: str | None = None
    cached: bool = False


class HttpJudge:
    """A `RewardModel` that queries an endpoint. It can be copied, pickled and sent to a worker, always without the key.

    Args:
        config: settings of the endpoint and of the judge.
        cache: folder in which answers are cached; None caches none.

    Raises:
        DependencyError: the package `openai` is not installed (extra `http`).
        ConfigError: `key_env` names a variable that is not set.
    """

    def __init__(self, config: HttpJudgeConfig, cache: str | os.PathLike[str] | None = None) -> None:
        self.config, self.spent = config, Spent()
        self.cache = None if cache is None else Path(cache)
        require("openai", extra="http")
        config.key()  # raises now if the variable is not set
        self._failures, self._answered = 0, False
        self._lock = threading.Lock()
        if config.key_env is not None:
            logger.info("the key in %s is sent to %s only", config.key_env, config.host)

    def __repr__(self) -> str:
        """The settings, which do not include the key."""
        return f"HttpJudge({self.config!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """Name of this judge in reports."""
        return f"http:{self.config.model}"

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
        cls,
        path: str | os.PathLike[str],
        cache: str | os.PathLike[str] | None = None,
        keys: Mapping[str, str] | None = None,
    ) -> HttpJudge:
        """Load a judge from the settings in folder `path`.

        Args:
            path: folder that `save_pretrained` wrote.
            cache: folder in which answers are cached; None caches none.
            keys: address to the environment variable that holds its key. Only the entry for exactly the address in
                the folder's settings is used; without such an entry, no key is sent.

        Raises:
            CheckpointError: the folder holds no settings of an `HttpJudge`.
            ConfigError: `keys` names a variable that is not set.
        """
        remedy = "give a folder written by HttpJudge.save_pretrained"
        folder = verify_folder(path, (SETTINGS,), remedy)
        values = read_json(folder / SETTINGS, remedy)
        if not isinstance(values, dict):
            raise CheckpointError(f"{folder / SETTINGS} holds no settings of an HttpJudge; {remedy}")
        values.pop(TYPE, None)
        stored_key_env = values.pop("key_env", None)  # ignored: a folder must not choose which variable is sent
        try:
            config = from_values(HttpJudgeConfig, values, str(folder / SETTINGS))
        except ConfigError as error:
            raise CheckpointError(
                f"{folder / SETTINGS} holds no settings of an HttpJudge ({error})"
            ) from error
        key_env = (keys or {}).get(config.url)
        if key_env is None and (stored_key_env is not None or keys):
            logger.warning(
                "no key is sent to %s: the caller names no variable for this address, and a variable named in the "
                "judge's folder is ignored; pass keys={%r: 'VARIABLE'}, or type --judge-keys %s=VARIABLE",
                config.host, config.url, config.url,
            )  # fmt: skip
        return cls(config.with_key(key_env), cache)

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write the settings, without the key and without the name of the variable that holds it."""
        facts = {TYPE: "http"} | {k: value for k, value in asdict(self.config).items() if k != "key_env"}
        with save_folder(path) as folder:
            (folder / SETTINGS).write_text(json.dumps(facts, indent=1) + "\n")

    def score(self, frames: Tensor, instructions: Sequence[str]) -> Judgement:
        """Judge `frames (B,T,H,W,3)` uint8 against B instructions, `config.concurrency` videos at a time.

        A video for which the endpoint failed is invalid, and `raw[i]["error"]` holds the error; other videos are not
        affected. Each verdict is finished within `config.limit` seconds of its first request.

        Raises:
            ConfigError: the endpoint rejects the first request: wrong address, model, key or parameter.
            JudgeUnavailableError: `config.give_up` verdicts in a row failed, or the budget is spent.
        """
        videos = checked_videos(frames, instructions)
        answers = _run(self._judge_all(videos, list(instructions)))
        refused = next((a for a in answers if isinstance(a, Refused)), None)
        if refused is not None:
            raise ConfigError(str(refused)) from None
        valid = [len(a.scores) >= self.config.min_votes and a.error is None for a in answers]
        scale = self.config.scale
        p = [float(np.mean([s >= scale.success_at for s in a.scores])) if a.scores else 0.0 for a in answers]
        failed = [a.error for a in answers if a.error]
        if failed:
            reason = failed[0][:500]
            logger.warning(
                "%s gave no verdict on %d of %d videos: %s", self.name, len(failed), len(answers), reason
            )
        self._pause_after_failures(answers)
        return Judgement(
            torch.tensor(p), None, torch.tensor(valid, dtype=torch.bool), [vars(a) for a in answers]
        )

    def _pause_after_failures(self, answers: Sequence[_Answer]) -> None:
        """Raise a JudgeUnavailableError after `config.give_up` failed verdicts in a row."""
        for answer in answers:
            self._failures = 0 if answer.error is None else self._failures + 1
        limit = self.config.give_up
        if limit is not None and self._failures >= limit:
            count, self._failures = self._failures, 0
            last = next(a.error for a in reversed(answers) if a.error)
            raise JudgeUnavailableError(
                f"{self.name} at {self.config.host} gave no verdict {count} times in a row; last error: {last[:300]}. "
                "The run is paused, finished work is kept. Repair the endpoint, then type the same command again"
            )

    # -- one video ---------------------------------------------------------------------------------
    async def _judge_all(self, videos: np.ndarray, instructions: list[str]) -> list[Any]:
        gate = asyncio.Semaphore(self.config.concurrency)
        async with Endpoint(self.config, self.spent, self._lock) as endpoint:

            async def one(video: np.ndarray, instruction: str) -> Any:
                async with gate:
                    return await self._judge(endpoint, video, instruction)

            return await asyncio.gather(*(one(v, i) for v, i in zip(videos, instructions, strict=True)))

    async def _judge(self, endpoint: Endpoint, video: np.ndarray, instruction: str) -> _Answer | Refused:
        config = self.config
        shown = shown_frames(video, config.stride)
        text = config.prompt.replace("{instruction}", instruction)
        key = self._cache_key(shown, text)
        if (cached := self._read_cache(key)) is not None:
            with self._lock:
                self.spent.cached += 1
            return cached
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        content += [
            {"type": "image_url", "image_url": {"url": _data_url(frame, config.size)}} for frame in shown
        ]
        answer = _Answer()
        try:
            await asyncio.wait_for(endpoint.collect(content, answer.texts), config.limit)
        except Refused as refused:
            if (
                not self._answered
            ):  # no request has ever succeeded, so the settings are wrong and further requests would fail too
                return refused
            answer.error = str(refused)
        except (asyncio.TimeoutError, TimeoutError):
            answer.error = (
                f"no verdict within {config.limit:g} s ({len(answer.texts)} of {config.votes} answers)"
            )
        except Exception as error:  # a broken endpoint can cause any exception in the client
            if isinstance(error, JudgeUnavailableError):
                raise
            answer.error = masked(f"{type(error).__name__}: {error}", config.key())
        parsed = [read_score(text, config.scale) for text in answer.texts]
        answer.scores = [score for score in parsed if score is not None]
        if len(answer.scores) < config.min_votes and answer.error is None:
            example = f", such as {answer.texts[0][-200:]!r}" if answer.texts else ""
            answer.error = f"no readable score in {len(answer.texts)} answers{example}"
        self._answered = self._answered or bool(answer.texts)
        if answer.error is None:
            self._write_cache(key, answer)
        return answer

    # -- cache -------------------------------------------------------------------------------------
    def _cache_key(self, shown: np.ndarray, text: str) -> str:
        c = self.config
        facts: list[Any] = [
            c.url,
            c.model,
            text,
            c.votes,
            c.size,
            c.temperature,
            c.max_tokens,
            asdict(c.scale),
        ]
        digest = hashlib.sha256(json.dumps([*facts, shown.shape]).encode())
        digest.update(np.ascontiguousarray(shown).tobytes())
        return digest.hexdigest()

    def _read_cache(self, key: str) -> _Answer | None:
        if self.cache is None:
            return None
        from worldgym.utils.files import read_sealed

        file = self.cache / key[:2] / f"{key}.json"
        try:
            entry = read_sealed(file, "")
            if entry["key"] != key:
                return None  # this file holds the answer to another request
            return _Answer(
                [str(t) for t in entry["texts"]], [float(s) for s in entry["scores"]], None, cached=True
            )
        except (CheckpointError, ValueError, KeyError, TypeError):  # missing or damaged: request the answer again
            return None

    def _write_cache(self, key: str, answer: _Answer) -> None:
        if self.cache is not None:
            entry = {"key": key, "model": self.config.model, "texts": answer.texts, "scores": answer.scores}
            write_sealed(self.cache / key[:2] / f"{key}.json", entry)


def _run(work: Any) -> Any:
    """Run a coroutine in a new event loop; in a new thread if this thread already has a loop, as in a notebook."""

    def in_new_loop() -> Any:
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(work)
        finally:
            loop.close()  # does not wait for a DNS lookup that hangs

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return in_new_loop()
    result: list[Any] = []

    def store_result() -> None:
        try:
            result.append((in_new_loop(), None))
        except BaseException as error:
            result.append((None, error))

    thread = threading.Thread(target=store_result)
    thread.start()
    thread.join()
    value, error = result[0]
    if error is not None:
        raise error
    return value


def checked_videos(frames: Any, instructions: Sequence[str]) -> np.ndarray:
    """Return `frames` as a `(B,T,H,W,3)` uint8 array.

    Raises:
        ValueError: frames of another shape or dtype, or another number of instructions.
    """
    videos: np.ndarray = torch.as_tensor(frames).cpu().numpy()
    if videos.ndim != 5 or videos.dtype != np.uint8 or len(videos) != len(instructions):
        raise ValueError(
            f"frames are {videos.dtype} {videos.shape} for {len(instructions)} instructions; expected uint8 (B,T,H,W,3)"
        )
    return videos


def shown_frames(video: np.ndarray, stride: int) -> np.ndarray:
    """Every `stride`th frame of `video (T,H,W,3)`, counted back from the last frame."""
    return video[::-1][::stride][::-1]


def _data_url(frame: np.ndarray, size: int) -> str:
    """Encode `frame (H,W,3)` uint8 as a data URL of a JPEG whose longer side has `size` pixels."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).resize(enlarged(frame.shape[:2], size), Image.Resampling.BICUBIC).save(
        buffer, "JPEG", quality=92
    )
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
