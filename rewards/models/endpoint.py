"""Requests to an OpenAI-compatible endpoint, with limits on time, reply size, number of tries and cost.

Example::

    async with Endpoint(config, Spent(), threading.Lock()) as endpoint:
        texts = []
        await asyncio.wait_for(endpoint.collect(content, texts), config.limit)
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import os
import threading
import urllib.parse
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rewards.models.answers import PROMPT, Scale
from worldgym.errors import ConfigError, JudgeUnavailableError
from worldgym.protocols import FrameCount, Reads
from worldgym.utils.optional import require


def check_frames_setting(frames: FrameCount) -> None:
    """Raise a ConfigError unless `frames` is a valid value of a judge's `frames` setting."""
    try:
        Reads(frames)
    except ValueError as error:
        raise ConfigError(str(error)) from error


@dataclass(frozen=True)
class HttpJudgeConfig:
    """Settings of a judge behind an endpoint.

    Args:
        url: base URL of the endpoint, up to and including `/v1`.
        model: name of the model at the endpoint.
        prompt: prompt with the placeholder `{instruction}`; with the default prompt an answer must end with
            `Final Score: 0` or `1`.
        votes: number of answers requested per video; the probability of success is the share of answers that score
            success.
        min_votes: smallest number of readable answers; with fewer the verdict is invalid.
        frames: frames that are sent: the whole `episode` so far, only the `last` frame, or a number of last frames.
        stride: every `stride`th of these frames is sent, counted back from the last frame, which is always sent.
        size: frames are enlarged to this size, pixels.
        temperature: sampling temperature; None omits the parameter, for models that reject it.
        max_tokens: largest number of tokens of an answer.
        token_parameter: name of the endpoint's parameter for `max_tokens`; reasoning models need
            `max_completion_tokens`. None omits the parameter.
        batch: request several answers in one request (`n`); False sends one request per answer.
        threshold: probability at which a verdict counts as success; at 0.5 a tie is a success, as in World-Gymnast.
        scale: the scores that an answer may give, and how to parse them.
        timeout: seconds that a request may take, from the connection to the last byte of the reply.
        deadline: seconds that a verdict may take in total, including all retries and all pauses that the endpoint
            requests; after that the verdict is invalid. None for `timeout` times the number of tries.
        retries: how often a request is repeated after a rate limit, a failure or a malformed reply.
        max_reply: largest reply in bytes; a longer one is an error.
        concurrency: number of videos judged at the same time.
        give_up: number of failed verdicts in a row after which the run is paused with a `JudgeUnavailableError`; None
            for never.
        key_env: environment variable that holds the key for exactly this `url`; None sends no key.
        price_in: price of a million input tokens.
        price_out: price of a million output tokens.
        budget: money after which no more requests are sent; None for no limit.

    Raises:
        ConfigError: a value is not allowed.
    """

    url: str
    model: str
    prompt: str = PROMPT
    votes: int = 5
    min_votes: int = 1
    frames: FrameCount = "episode"
    stride: int = 3
    size: int = 256
    temperature: float | None = 1.0
    max_tokens: int = 300
    token_parameter: Literal["max_tokens", "max_completion_tokens"] | None = "max_tokens"
    batch: bool = True
    threshold: float = 0.5
    scale: Scale = field(default_factory=Scale)
    timeout: float = 60.0
    deadline: float | None = None
    retries: int = 4
    max_reply: int = 1_000_000
    concurrency: int = 8
    give_up: int | None = 20
    key_env: str | None = None
    price_in: float = 0.0
    price_out: float = 0.0
    budget: float | None = None

    def __post_init__(self) -> None:
        """Validate."""
        host = urllib.parse.urlsplit(self.url) if isinstance(self.url, str) else None
        if host is None or host.scheme not in ("http", "https") or not host.hostname or not self.model:
            raise ConfigError(
                f"url is {self.url!r} and model {self.model!r}; expected http(s)://HOST/v1 and the name of a model "
                "at that address"
            )
        if host.username or host.password:
            raise ConfigError(
                "the url contains a user or a password; put the key into an environment variable and pass its name as "
                "key_env"
            )
        if "{instruction}" not in self.prompt:
            raise ConfigError(
                "the prompt has no {instruction}, so the model would not be given the instruction; add {instruction}"
            )
        counts = (self.votes, self.min_votes, self.stride, self.size, self.concurrency)
        if (
            min(*counts, self.max_tokens, self.max_reply) < 1
            or self.min_votes > self.votes
            or self.retries < 0
        ):
            raise ConfigError(
                "votes, min_votes, stride, size, max_tokens, max_reply and concurrency must be at least 1, min_votes "
                "at most votes, and retries not negative"
            )
        if not (0 < self.timeout < math.inf and 0 < self.limit < math.inf):
            raise ConfigError(
                f"timeout is {self.timeout} and deadline {self.deadline}; expected positive, finite numbers of seconds"
            )
        if self.give_up is not None and self.give_up < 1:
            raise ConfigError(f"give_up is {self.give_up}; expected at least 1, or None")
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold}; expected a number in (0, 1]")
        check_frames_setting(self.frames)

    @property
    def limit(self) -> float:
        """Seconds that a verdict may take in total."""
        return self.timeout * (self.retries + 1) if self.deadline is None else self.deadline

    @property
    def host(self) -> str:
        """Scheme and host of the address, for messages."""
        parts = urllib.parse.urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    def with_key(self, key_env: str | None) -> HttpJudgeConfig:
        """The same settings with another `key_env`."""
        return replace(self, key_env=key_env)

    def key(self) -> str | None:
        """The key, read from the environment now; None if `key_env` is None.

        Raises:
            ConfigError: the variable is not set.
        """
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env)
        if not key:
            raise ConfigError(
                f"the environment variable {self.key_env} is not set; type export {self.key_env}=... (a key is never "
                "read from anywhere else), or pass key_env=None for an endpoint that needs no key"
            )
        return key


@dataclass
class Spent:
    """Requests, tokens and money that a judge has used so far."""

    requests: int = 0
    cached: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    money: float = 0.0


class Refused(Exception):  # noqa: N818 - also returned as a result
    """The endpoint rejects the request because of its key, address, model or a parameter; a retry would not help."""


def masked(text: str, key: str | None) -> str:
    """`text` with the key masked, also where it is URL-quoted, JSON-escaped, reversed, in base64 or in hexadecimal."""
    if not key:
        return text
    raw = key.encode()
    forms = {key, urllib.parse.quote(key, safe=""), json.dumps(key)[1:-1], raw.hex(), key[::-1]}
    forms |= {base64.b64encode(raw).decode().rstrip("="), base64.urlsafe_b64encode(raw).decode().rstrip("=")}
    forms |= {base64.b64encode(f"Bearer {key}".encode()).decode().rstrip("=")}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "***")
    return text


class Endpoint:
    """A connection to the endpoint of `config`, for one call of `score`.

    Args:
        config: settings of the endpoint.
        spent: usage counters, shared by all connections of a judge.
        lock: lock of `spent`.
    """

    def __init__(self, config: HttpJudgeConfig, spent: Spent, lock: threading.Lock) -> None:
        self.config, self.spent, self._lock = config, spent, lock
        self._openai = require("openai", extra="http")
        self._key = config.key()
        self._http = self._openai.DefaultAsyncHttpxClient(
            follow_redirects=False,  # the key is sent to the configured address only
            timeout=config.timeout,
            headers={"Accept-Encoding": "identity"},  # no compression: a small reply must not expand to a large one
            event_hooks={"response": [self._bound]},
        )
        self._client = self._openai.AsyncOpenAI(
            base_url=config.url, api_key=self._key or "none", max_retries=0, http_client=self._http
        )

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def _bound(self, response: Any) -> None:
        """Raise a ValueError for a compressed reply, and for one whose declared or actual length exceeds the limit."""
        limit = self.config.max_reply
        encoding = response.headers.get("content-encoding", "identity")
        if encoding not in ("identity", ""):
            raise ValueError(f"the reply is compressed ({encoding}), although the request accepts identity only")
        declared = response.headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > limit:
            raise ValueError(f"the reply declares {declared[:20]} bytes, more than max_reply={limit}")
        response.stream = _limited(response.stream, limit)

    async def collect(self, content: list[dict[str, Any]], texts: list[str]) -> None:
        """Send requests until `texts` holds `votes` answers; a cancelled call leaves the answers received so far.

        Raises:
            Refused: the endpoint rejects the request.
            JudgeUnavailableError: the budget is spent.
        """
        failures = 0
        while len(texts) < self.config.votes:
            try:
                missing = self.config.votes - len(texts)
                texts += await asyncio.wait_for(self._request(content, missing), self.config.timeout)
            except (Refused, JudgeUnavailableError):
                raise
            except Exception as error:
                failures += 1
                if failures > self.config.retries:
                    raise
                await asyncio.sleep(self._pause(error, failures))

    def _pause(self, error: Exception, failures: int) -> float:
        """Seconds before the next try: the value of Retry-After, or an exponential backoff."""
        response = getattr(error, "response", None)
        requested = None if response is None else response.headers.get("retry-after")
        try:
            if requested is not None and math.isfinite(float(requested)):
                return min(max(0.0, float(requested)), self.config.limit)
        except ValueError:
            pass
        return min(0.05 * 2.0**failures, 5.0)

    async def _request(self, content: list[dict[str, Any]], count: int) -> list[str]:
        """Send one request; returns at least one answer and at most `count`."""
        config = self.config
        with self._lock:
            if config.budget is not None and self.spent.money >= config.budget:
                raise JudgeUnavailableError(
                    f"{config.model} has spent {self.spent.money:.2f} of a budget of {config.budget:.2f}. The run is "
                    "paused: raise `budget` and type the same command again; cached answers cost nothing"
                )
            self.spent.requests += 1
        parameters: dict[str, Any] = {"n": count} if config.batch and count > 1 else {}
        if config.temperature is not None:
            parameters["temperature"] = config.temperature
        if config.token_parameter is not None:
            parameters[config.token_parameter] = config.max_tokens
        api = self._openai
        try:
            reply = await self._client.chat.completions.create(
                model=config.model, messages=[{"role": "user", "content": content}], **parameters
            )
        except (
            api.AuthenticationError, api.PermissionDeniedError, api.NotFoundError, api.BadRequestError,
            api.UnprocessableEntityError,
        ) as error:  # fmt: skip
            message = masked(str(error), self._key)[:1000]
            raise Refused(f"{config.url} rejects {config.model!r}: {message}. {self._hint(message)}") from None
        texts = [choice.message.content for choice in reply.choices]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"the reply contains {masked(repr(texts), self._key)[:100]}; expected text in each choice")
        self._count_usage(reply.usage)
        return [masked(text, self._key) for text in texts[:count]]

    def _hint(self, message: str) -> str:
        """The setting to change, inferred from the endpoint's error message."""
        low = message.lower()
        if "max_tokens" in low or "max_completion_tokens" in low:
            return "Type token_parameter='max_completion_tokens' (or 'max_tokens', or None)"
        if "temperature" in low:
            return "Type temperature=None"
        if "'n'" in low or '"n"' in low or "parameter n" in low or " n " in low:
            return "Type batch=False to request one answer at a time"
        key = (
            "pass key_env=NAME"
            if self.config.key_env is None
            else f"check the key in {self.config.key_env}"
        )
        return f"Check url and model, and {key}"

    def _count_usage(self, usage: Any) -> None:
        """Add tokens and money to `spent`; the usage counts as 0 if the endpoint reports none."""
        counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
        sent, received = (
            c if isinstance(c, int) and not isinstance(c, bool) and c > 0 else 0 for c in counts
        )
        with self._lock:
            self.spent.tokens_in += sent
            self.spent.tokens_out += received
            self.spent.money += (sent * self.config.price_in + received * self.config.price_out) / 1e6


def _limited(stream: Any, limit: int) -> Any:
    """Wrap `stream` so that it raises a ValueError after `limit` bytes."""
    # AsyncByteStream of the HTTP library that the installed `openai` uses: httpx, or httpx2 from openai 3 on.
    base: Any = next(kind for kind in type(stream).__mro__ if kind.__name__ == "AsyncByteStream")

    class Limited(base):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            received = 0
            async for part in stream:
                received += len(part)
                if received > limit:
                    raise ValueError(f"the reply is longer than max_reply={limit} bytes")
                yield part

        async def aclose(self) -> None:
            await stream.aclose()

    return Limited()
