"""The client of a server: sends requests, waits when the server is full, connects again when the connection breaks.

A request that can't be answered before the deadline ends in a `ServerUnavailableError`, which is a `ConnectionError`: a
closed loop then marks the running episodes as invalid.

Example::

    client = Client("ws://127.0.0.1:8000")
    client.metadata["protocol"]
    client.request({"op": "begin", ...})
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from worldgym.errors import ConfigError, ServerUnavailableError
from worldgym.serving.address import Address, token_of, variable_for
from worldgym.serving.wire import WireError, pack, unpack
from worldgym.utils.optional import require

logger = logging.getLogger(__name__)
TOO_BIG = 1009  # close code of RFC 6455 for a message above the receiver's limit


@dataclass(frozen=True)
class ClientSettings:
    """How long a client waits.

    Args:
        timeout: seconds for one try of a request, or of a connection.
        deadline: seconds for a request in total, with all tries and all pauses that the server asks for.
        first: seconds for the first connection, at most `deadline`; a mistyped address ends then.
        retries: how often a request is repeated after the server reported a failure of the model (code 500).
        max_message: largest reply in MiB.
    """

    timeout: float = 60.0
    deadline: float = 180.0
    first: float = 20.0
    retries: int = 2
    max_message: int = 1024

    def __post_init__(self) -> None:
        """Validate."""
        times = 0 < self.timeout <= self.deadline < float("inf") and self.first > 0
        if not times or self.retries < 0 or self.max_message < 1:
            raise ConfigError(
                f"{self}: expected 0 < timeout <= deadline, first > 0, retries >= 0 and max_message >= 1"
            )


class RefusedError(ConfigError):
    """The server refuses the request; repeating it would not help."""

    def __init__(self, message: str, code: int = 400) -> None:
        super().__init__(message)
        self.code = code


class _Retry(Exception):  # noqa: N818 - handled inside the client
    """The request may be repeated after `wait` seconds."""

    def __init__(self, reason: str, wait: float, *, reconnect: bool, counted: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.reconnect, self.counted = wait, reconnect, counted


class Client:
    """One connection to a server; thread-safe, and opened again in another process or after a copy.

    Args:
        url: address, for example `ws://127.0.0.1:8000`.
        token_env: environment variable with the token for this address; None takes the one that `WORLDGYM_TOKENS` names
            for it, if any.
        settings: time limits.

    Raises:
        ConfigError: the address or the token's variable is wrong, or the server refuses the token.
        ServerUnavailableError: no server answers at the address.
        DependencyError: websockets or msgpack is missing (extra `serve`).
    """

    def __init__(
        self, url: str, *, token_env: str | None = None, settings: ClientSettings | None = None
    ) -> None:
        self.url, self.settings = Address.parse(url).url, settings or ClientSettings()
        self.token_env = token_env if token_env is not None else variable_for(self.url)
        token_of(self.token_env)  # raises now if the variable is not set
        self.metadata: dict[str, Any] = {}
        self.greeting: Callable[[], dict[str, Any] | None] | None = None  # first request of a new connection
        self.connections = 0  # opened so far
        self._connection: Any = None
        self._lock = threading.RLock()
        with self._lock:
            self._repeat(self._connect, "connect", min(self.settings.deadline, self.settings.first))

    def __getstate__(self) -> dict[str, Any]:
        return {
            key: value
            for key, value in vars(self).items()
            if key not in ("_lock", "_connection", "connections", "greeting")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock, self._connection = threading.RLock(), None
        self.connections, self.greeting = 0, None

    def request(self, message: dict[str, Any]) -> Any:
        """Send a request and return the reply.

        Raises:
            RefusedError: the server refuses it.
            ServerUnavailableError: there is no reply before the deadline.
        """
        data = pack(message)
        with self._lock:
            return self._repeat(lambda: self._exchange(data), str(message.get("op", "request")))

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except Exception as error:  # it is broken already
                logger.debug("closing %s: %s", self.url, error)

    # -- one try ---------------------------------------------------------------------------------------------------
    def _connect(self) -> None:
        websockets = require("websockets.sync.client", extra="serve")
        exceptions = require("websockets.exceptions", extra="serve")
        self.close()
        token = token_of(self.token_env)
        try:
            connection = websockets.connect(
                self.url,
                compression=None,
                max_size=self.settings.max_message * 2**20,
                open_timeout=self.settings.timeout,
                close_timeout=2,
                additional_headers={"Authorization": f"Api-Key {token}"} if token else None,
            ).__enter__()
        except exceptions.InvalidStatus as error:
            status, headers = error.response.status_code, error.response.headers
            if status in (401, 403):
                what = f"token in {self.token_env}" if self.token_env else "connection: it expects a token"
                raise RefusedError(
                    f"{self.url} refuses the {what}"
                    f" (status {status}); type export WORLDGYM_TOKENS={self.url}=NAME with the variable that holds it",
                    status,
                ) from None
            if status == 429 or status >= 500:
                raise _Retry(
                    f"status {status}", _seconds(headers.get("Retry-After"), 1.0), reconnect=True
                ) from None
            raise RefusedError(
                f"{self.url} answers with status {status}; is it a websocket server?", status
            ) from None
        except exceptions.WebSocketException as error:  # also a ConnectionClosed, if the handshake breaks off
            raise _Retry(f"no websocket ({error})", 1.0, reconnect=True) from None
        except socket.gaierror as error:
            raise ServerUnavailableError(f"the host of {self.url} is not known ({error}); check the address") from None
        except (OSError, TimeoutError) as error:
            raise _Retry(str(error) or type(error).__name__, 0.5, reconnect=True) from None
        greeting = None if self.greeting is None else self.greeting()
        try:
            metadata = unpack(connection.recv(timeout=self.settings.timeout))
            if greeting is not None:
                connection.send(pack(greeting))
                connection.recv(timeout=self.settings.timeout)  # if it is refused, so will be what follows
        except (exceptions.ConnectionClosed, OSError, TimeoutError, WireError) as error:
            connection.close()
            raise _Retry(f"no metadata ({error})", 0.5, reconnect=True) from None
        if not isinstance(metadata, dict):
            connection.close()
            raise RefusedError(f"{self.url} sent {type(metadata).__name__} as its metadata, expected a map")
        if self.metadata and metadata != self.metadata:
            connection.close()
            changed = sorted(key for key in {*metadata, *self.metadata} if metadata.get(key) != self.metadata.get(key))
            raise RefusedError(
                f"{self.url} now serves something else than before ({', '.join(changed)} changed); start again with a "
                "new connection, so that two models are not mixed",
                409,
            )
        self.metadata, self._connection = metadata, connection
        self.connections += 1

    def _exchange(self, data: bytes) -> Any:
        exceptions = require("websockets.exceptions", extra="serve")
        if self._connection is None:
            self._connect()
        try:
            self._connection.send(data)
            reply = self._connection.recv(timeout=self.settings.timeout)
            return self._refused(reply) if isinstance(reply, str) else unpack(reply)
        except exceptions.ConnectionClosed as error:
            if error.rcvd is not None and error.rcvd.code == TOO_BIG:
                self.close()
                raise RefusedError(
                    f"a request of {len(data) / 2**20:.1f} MiB is larger than {self.url} accepts; send smaller "
                    "batches, or start the server with a larger --max-message",
                    413,
                ) from None
            if error.sent is not None and error.sent.code == TOO_BIG:
                self.close()
                raise RefusedError(
                    f"a reply of {self.url} is larger than max_message of {self.settings.max_message} MiB; send "
                    "smaller batches",
                    413,
                ) from None
            raise _Retry(f"the connection broke ({error})", 0.2, reconnect=True) from None
        except (OSError, TimeoutError, WireError) as error:
            raise _Retry(str(error) or "no answer in time", 0.2, reconnect=True) from None

    def _refused(self, text: str) -> Any:
        """Raise the error that a text message reports."""
        try:
            told = json.loads(text)
            code, message, wait = int(told["code"]), str(told["message"]), told.get("retry_after")
        except (ValueError, TypeError, KeyError):  # another server, such as openpi's, sends a traceback
            raise RefusedError(f"{self.url} answered: {text.strip()[-500:]}") from None
        if wait is not None:
            raise _Retry(message, _seconds(wait, 1.0), reconnect=False, counted=code >= 500)
        raise RefusedError(f"{self.url}: {message}", code)

    def _repeat(self, attempt: Any, what: str, deadline: float | None = None) -> Any:
        """Repeat an attempt until it succeeds, is refused, or the deadline has passed."""
        began, failures, tries = time.monotonic(), 0, 0
        end = began + (self.settings.deadline if deadline is None else deadline)
        while True:
            try:
                return attempt()
            except _Retry as reason:
                tries, failures = tries + 1, failures + reason.counted
                if reason.reconnect:
                    self.close()
                if failures > self.settings.retries or time.monotonic() + reason.wait >= end:
                    raise ServerUnavailableError(
                        f"{self.url} does not answer ({what}: {reason}; {tries} tries in "
                        f"{time.monotonic() - began:.0f} s). Check the address and the server, then type the same "
                        "command"
                    ) from None
                level = logging.INFO if tries == 1 else logging.DEBUG
                logger.log(level, "%s: %s; trying again until the deadline", self.url, reason)
                time.sleep(reason.wait)


def _seconds(value: Any, default: float) -> float:
    """A pause in seconds, at most a minute."""
    try:
        return min(max(float(value), 0.0), 60.0)
    except (TypeError, ValueError):
        return default
