"""Requests to an OpenAI-compatible endpoint that may misbehave: bounded in time, size, number and cost.

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
    """Raise a ConfigError unless a judge can read such frames."""
    try:
        Reads(frames)
    except ValueError as error:
        raise ConfigError(str(error)) from error


@dataclass(frozen=True)
class HttpJudgeConfig:
    """Whom to ask, how, and how often.

    Args:
        url: base of the endpoint, up to and including `/v1`.
        model: name that the endpoint knows it by.
        prompt: with `{instruction}` in it; by default the answer must end with `Final Score: 0` or `1`.
        votes: answers asked for; the probability of success is the share that say success.
        min_votes: answers that must be readable; with fewer the verdict is invalid.
        frames: what it is shown: the whole `episode` so far, the `last` frame, or the last so many.
        stride: of these frames, every so many are sent, counted back from the last, which always is.
        size: pixels that frames are enlarged to.
        temperature: of the answers; None sends none, for models that refuse the parameter.
        max_tokens: of an answer.
        token_parameter: what the endpoint calls `max_tokens`; reasoning models want `max_completion_tokens`. None
            sends none.
        batch: ask for several answers in one request (`n`); False asks once for each.
        threshold: of the probability; at 0.5 a tie counts as success, as in World-Gymnast.
        scale: which numbers are verdicts, and how they are found in an answer.
        timeout: seconds that a request may take, from the connection to the last byte of the reply.
        deadline: seconds that a verdict may take in all, with every retry and every pause that the endpoint asks for;
            then it is invalid. None for `timeout` times the number of tries.
        retries: how often a request is repeated that was refused for being one too many, failed, or came back broken.
        max_reply: bytes of a reply; a longer one is an error.
        concurrency: videos at a time.
        give_up: so many failed verdicts in a row pause the run with a `JudgeUnavailableError`; None never does.
        key_env: environment variable that holds the key for this very `url`; None sends no key.
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
                f"url is {self.url!r} and model {self.model!r}; expected http(s)://HOST/v1 and the model's name there"
            )
        if host.username or host.password:
            raise ConfigError(
                "the url holds a user or a password; put the key into a variable and name it by key_env"
            )
        if "{instruction}" not in self.prompt:
            raise ConfigError(
                "the prompt has no {instruction} in it, so the judge would not know what was asked"
            )
        counts = (self.votes, self.min_votes, self.stride, self.size, self.concurrency)
        if (
            min(*counts, self.max_tokens, self.max_reply) < 1
            or self.min_votes > self.votes
            or self.retries < 0
        ):
            raise ConfigError(
                "votes, min_votes, stride, size, max_tokens, max_reply and concurrency must be at least 1, min_votes "
                "at most votes, retries not negative"
            )
        if not (0 < self.timeout < math.inf and 0 < self.limit < math.inf):
            raise ConfigError(
                f"timeout is {self.timeout} and deadline {self.deadline}, expected positive numbers of seconds"
            )
        if self.give_up is not None and self.give_up < 1:
            raise ConfigError(f"give_up is {self.give_up}, expected at least 1, or None")
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold}, expected in (0, 1]")
        check_frames_setting(self.frames)

    @property
    def limit(self) -> float:
        """Seconds that a verdict may take in all."""
        return self.timeout * (self.retries + 1) if self.deadline is None else self.deadline

    @property
    def host(self) -> str:
        """Scheme and host of the address, for messages."""
        parts = urllib.parse.urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    def with_key(self, key_env: str | None) -> HttpJudgeConfig:
        """The same, with the key of another variable."""
        return replace(self, key_env=key_env)

    def key(self) -> str | None:
        """The key, read now; None where none is wanted.

        Raises:
            ConfigError: the variable is not set.
        """
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env)
        if not key:
            raise ConfigError(
                f"the environment variable {self.key_env} is not set; type export {self.key_env}=... (a key is never "
                "read from anywhere else), or pass key_env=None for an endpoint that wants none"
            )
        return key


@dataclass
class Spent:
    """What a judge has cost so far."""

    requests: int = 0
    cached: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    money: float = 0.0


class Refused(Exception):  # noqa: N818 - a verdict of the endpoint on the request
    """The endpoint refuses the request as it is: key, address, model or a parameter."""


def masked(text: str, key: str | None) -> str:
    """`text` without the key, however the endpoint echoed it: as it is, quoted, in base64 or hexadecimal."""
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
        config: whom and how.
        spent: counts, shared by all connections of a judge.
        lock: of `spent`.
    """

    def __init__(self, config: HttpJudgeConfig, spent: Spent, lock: threading.Lock) -> None:
        self.config, self.spent, self._lock = config, spent, lock
        self._openai = require("openai", extra="http")
        self._key = config.key()
        self._http = self._openai.DefaultAsyncHttpxClient(
            follow_redirects=False,  # a key goes to the address that was named, and nowhere else
            timeout=config.timeout,
            headers={"Accept-Encoding": "identity"},  # a small reply must not unpack to a large one
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
        """Refuse a reply that is, or claims to be, longer than it may be."""
        limit = self.config.max_reply
        encoding = response.headers.get("content-encoding", "identity")
        if encoding not in ("identity", ""):
            raise ValueError(f"the reply is compressed ({encoding}), which was not asked for")
        claimed = response.headers.get("content-length", "0")
        if not claimed.isdecimal() or int(claimed) > limit:
            raise ValueError(f"the reply claims {claimed[:20]} bytes, more than max_reply={limit}")
        response.stream = _limited(response.stream, limit)

    async def collect(self, content: list[dict[str, Any]], texts: list[str]) -> None:
        """Ask until `texts` holds as many answers as votes; what has come stays there when the call is cut short.

        Raises:
            Refused: the endpoint will not take such a request.
            JudgeUnavailableError: the budget is spent.
        """
        failures = 0
        while len(texts) < self.config.votes:
            try:
                wanted = self.config.votes - len(texts)
                texts += await asyncio.wait_for(self._ask(content, wanted), self.config.timeout)
            except (Refused, JudgeUnavailableError):
                raise
            except Exception as error:
                failures += 1
                if failures > self.config.retries:
                    raise
                await asyncio.sleep(self._pause(error, failures))

    def _pause(self, error: Exception, failures: int) -> float:
        """Seconds before the next try: what the endpoint asks for, or growing."""
        response = getattr(error, "response", None)
        asked = None if response is None else response.headers.get("retry-after")
        try:
            if asked is not None and math.isfinite(float(asked)):
                return min(max(0.0, float(asked)), self.config.limit)
        except ValueError:
            pass
        return min(0.05 * 2.0**failures, 5.0)

    async def _ask(self, content: list[dict[str, Any]], count: int) -> list[str]:
        """At least one answer, at most `count`."""
        config = self.config
        with self._lock:
            if config.budget is not None and self.spent.money >= config.budget:
                raise JudgeUnavailableError(
                    f"{config.model} has spent {self.spent.money:.2f} of a budget of {config.budget:.2f}. The run is "
                    "paused: raise `budget` and type the same command again; answers in the cache cost nothing"
                )
            self.spent.requests += 1
        wanted: dict[str, Any] = {"n": count} if config.batch and count > 1 else {}
        if config.temperature is not None:
            wanted["temperature"] = config.temperature
        if config.token_parameter is not None:
            wanted[config.token_parameter] = config.max_tokens
        api = self._openai
        try:
            reply = await self._client.chat.completions.create(
                model=config.model, messages=[{"role": "user", "content": content}], **wanted
            )
        except (
            api.AuthenticationError, api.PermissionDeniedError, api.NotFoundError, api.BadRequestError,
            api.UnprocessableEntityError,
        ) as error:  # fmt: skip
            said = masked(str(error), self._key)[:1000]
            raise Refused(f"{config.url} refuses {config.model!r}: {said}. {self._hint(said)}") from None
        texts = [choice.message.content for choice in reply.choices]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"the reply holds no text but {masked(repr(texts), self._key)[:100]}")
        self._pay(reply.usage)
        return [masked(text, self._key) for text in texts[:count]]

    def _hint(self, said: str) -> str:
        """What to change, by what the endpoint complains of."""
        low = said.lower()
        if "max_tokens" in low or "max_completion_tokens" in low:
            return "Type token_parameter='max_completion_tokens' (or 'max_tokens', or None)"
        if "temperature" in low:
            return "Type temperature=None"
        if "'n'" in low or '"n"' in low or "parameter n" in low or " n " in low:
            return "Type batch=False to ask for one answer at a time"
        key = (
            "pass key_env=NAME"
            if self.config.key_env is None
            else f"look at the key in {self.config.key_env}"
        )
        return f"Look at url and model, and {key}"

    def _pay(self, usage: Any) -> None:
        """Count tokens and money; an endpoint that counts nothing costs nothing that can be told."""
        counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
        sent, received = (
            c if isinstance(c, int) and not isinstance(c, bool) and c > 0 else 0 for c in counts
        )
        with self._lock:
            self.spent.tokens_in += sent
            self.spent.tokens_out += received
            self.spent.money += (sent * self.config.price_in + received * self.config.price_out) / 1e6


def _limited(stream: Any, limit: int) -> Any:
    """`stream`, an error after `limit` bytes."""
    # Of the HTTP library that the installed `openai` is built on: httpx, or httpx2 from openai 3 on.
    base: Any = next(kind for kind in type(stream).__mro__ if kind.__name__ == "AsyncByteStream")

    class Limited(base):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            got = 0
            async for part in stream:
                got += len(part)
                if got > limit:
                    raise ValueError(f"the reply is longer than max_reply={limit} bytes")
                yield part

        async def aclose(self) -> None:
            await stream.aclose()

    return Limited()
