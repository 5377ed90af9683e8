"""A judge behind an OpenAI-compatible endpoint: vLLM, TGI, or a commercial API.

The prompt, the frame stride and the majority of several answers are those of World-Gymnast's reward (fork of WorldGym,
`world_model_eval/utils.py::predict`). What differs: there a request that fails is a reward of 0, and so is an answer
that cannot be read. Here it is no verdict: the episode is invalid. A verdict has a deadline and a reply a size;
requests are repeated within the deadline, limited in number at a time, and counted in tokens and money; answers are
kept on disk, so that an audit pays once. When verdicts keep failing, the run is paused, not scored.

A key is read from the environment variable that the caller names, at the moment of the request, for the address that
the caller names. It is part of no file, no pickle and no log; a judge's folder never says which variable is read.

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
    """What was said of one video."""

    texts: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    error: str | None = None
    cached: bool = False


class HttpJudge:
    """A `RewardModel` that asks an endpoint. It can be copied, pickled and sent to a worker; the key is no part of it.

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
        require("openai", extra="http")
        config.key()  # said at once when the variable is not set
        self._failures, self._answered = 0, False
        self._lock = threading.Lock()
        if config.key_env is not None:
            logger.info("the key in %s is sent to %s, and nowhere else", config.key_env, config.host)

    def __repr__(self) -> str:
        """Without the key, which is no part of the settings."""
        return f"HttpJudge({self.config!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """What reports call this judge."""
        return f"http:{self.config.model}"

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
        cls,
        path: str | os.PathLike[str],
        cache: str | os.PathLike[str] | None = None,
        keys: Mapping[str, str] | None = None,
    ) -> HttpJudge:
        """The judge whose settings were saved in folder `path`.

        Args:
            path: of the folder.
            cache: folder of answers; None keeps none.
            keys: by address, the environment variable that holds its key. Only an entry for exactly the address that
                the folder names is used; without one, no key is sent.

        Raises:
            CheckpointError: no such settings there.
            ConfigError: `keys` names a variable that is not set.
        """
        remedy = "give a folder written by HttpJudge.save_pretrained"
        folder = verify_folder(path, (SETTINGS,), remedy)
        values = read_json(folder / SETTINGS, remedy)
        if not isinstance(values, dict):
            raise CheckpointError(f"{folder / SETTINGS} holds no settings of an HttpJudge; {remedy}")
        values.pop(TYPE, None)
        named = values.pop("key_env", None)  # not the folder's to decide
        try:
            config = from_values(HttpJudgeConfig, values, str(folder / SETTINGS))
        except ConfigError as error:
            raise CheckpointError(
                f"{folder / SETTINGS} holds no settings of an HttpJudge ({error})"
            ) from error
        key_env = (keys or {}).get(config.url)
        if key_env is None and (named is not None or keys):
            logger.warning(
                "no key is sent to %s: the caller names no variable for this address, and a folder's own is not "
                "followed; give keys={%r: 'VARIABLE'}, or type --judge-keys %s=VARIABLE",
                config.host, config.url, config.url,
            )  # fmt: skip
        return cls(config.with_key(key_env), cache)

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write the settings; neither the key nor the variable that holds it is one of them."""
        facts = {TYPE: "http"} | {k: value for k, value in asdict(self.config).items() if k != "key_env"}
        with save_folder(path) as folder:
            (folder / SETTINGS).write_text(json.dumps(facts, indent=1) + "\n")

    def score(self, frames: Tensor, instructions: Sequence[str]) -> Judgement:
        """Judge `frames (B,T,H,W,3)` uint8 against B instructions, several at a time.

        A video on which the endpoint failed is invalid, with `raw[i]["error"]` saying how; the others stand. Each
        verdict ends within `config.limit` seconds from its first request.

        Raises:
            ConfigError: the endpoint refuses the very first request: wrong address, model, key or parameter.
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
            said = failed[0][:500]
            logger.warning(
                "%s gave no verdict on %d of %d videos: %s", self.name, len(failed), len(answers), said
            )
        self._count(answers)
        return Judgement(
            torch.tensor(p), None, torch.tensor(valid, dtype=torch.bool), [vars(a) for a in answers]
        )

    def _count(self, answers: Sequence[_Answer]) -> None:
        """Pause a run whose verdicts have stopped coming."""
        for answer in answers:
            self._failures = 0 if answer.error is None else self._failures + 1
        limit = self.config.give_up
        if limit is not None and self._failures >= limit:
            count, self._failures = self._failures, 0
            last = next(a.error for a in reversed(answers) if a.error)
            raise JudgeUnavailableError(
                f"{self.name} at {self.config.host} gave no verdict {count} times in a row, lastly: {last[:300]}. The "
                "run is paused: what was finished is kept. See to the endpoint, then type the same command again"
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
        if (kept := self._kept(key)) is not None:
            with self._lock:
                self.spent.cached += 1
            return kept
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
            ):  # nothing was ever answered: settings are wrong, and asking on would not help
                return refused
            answer.error = str(refused)
        except (asyncio.TimeoutError, TimeoutError):
            answer.error = (
                f"no verdict within {config.limit:g} s ({len(answer.texts)} of {config.votes} answers)"
            )
        except Exception as error:  # whatever a broken endpoint makes the client stumble over
            if isinstance(error, JudgeUnavailableError):
                raise
            answer.error = masked(f"{type(error).__name__}: {error}", config.key())
        found = [read_score(text, config.scale) for text in answer.texts]
        answer.scores = [score for score in found if score is not None]
        if len(answer.scores) < config.min_votes and answer.error is None:
            said = f", such as {answer.texts[0][-200:]!r}" if answer.texts else ""
            answer.error = f"no readable score in {len(answer.texts)} answers{said}"
        self._answered = self._answered or bool(answer.texts)
        if answer.error is None:
            self._keep(key, answer)
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

    def _kept(self, key: str) -> _Answer | None:
        if self.cache is None:
            return None
        from worldgym.utils.files import read_sealed

        file = self.cache / key[:2] / f"{key}.json"
        try:
            said = read_sealed(file, "")
            if said["key"] != key:
                return None  # the answer to another question, under this one's name
            return _Answer(
                [str(t) for t in said["texts"]], [float(s) for s in said["scores"]], None, cached=True
            )
        except (CheckpointError, ValueError, KeyError, TypeError):  # not there, or damaged: ask again
            return None

    def _keep(self, key: str, answer: _Answer) -> None:
        if self.cache is not None:
            said = {"key": key, "model": self.config.model, "texts": answer.texts, "scores": answer.scores}
            write_sealed(self.cache / key[:2] / f"{key}.json", said)


def _run(work: Any) -> Any:
    """Run a coroutine to its end in a loop of its own, in a thread where this one has a loop already (a notebook)."""

    def alone() -> Any:
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(work)
        finally:
            loop.close()  # does not wait for a name lookup that hangs

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return alone()
    result: list[Any] = []

    def caught() -> None:
        try:
            result.append((alone(), None))
        except BaseException as error:
            result.append((None, error))

    thread = threading.Thread(target=caught)
    thread.start()
    thread.join()
    value, error = result[0]
    if error is not None:
        raise error
    return value


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
    """`frame (H,W,3)` uint8 as a JPEG, `size` pixels along its longer side, in a data URL."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).resize(enlarged(frame.shape[:2], size), Image.Resampling.BICUBIC).save(
        buffer, "JPEG", quality=92
    )
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
