"""A websocket server for a policy or a world model.

Each connection has one thread and sends one request at a time; requests of all connections take turns on the model. The
first message of a connection is the server's metadata, every reply is a msgpack message, and an error is a text
message: JSON with `code`, `message` and, if the request may be repeated, `retry_after` in seconds. `GET /healthz`
answers `OK`. Metadata, `healthz` and the header `Authorization: Api-Key TOKEN` are as in openpi
(`websocket_policy_server.py`).

Example::

    with Server(service, port=0) as server:
        server.url                  # "ws://127.0.0.1:41231"
        server.serve_forever()
"""

from __future__ import annotations

import hmac
import http
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from typing_extensions import Self

from worldgym.errors import ConfigError, WorldgymError
from worldgym.serving.address import is_loopback, token_of
from worldgym.serving.wire import WireError, pack, unpack
from worldgym.utils.optional import require

logger = logging.getLogger(__name__)
MEBIBYTE = 2**20


class Session(Protocol):
    """The requests of one connection."""

    def __call__(self, message: Any) -> Any:
        """Answer one request."""
        ...

    def close(self) -> None:
        """The connection has ended."""
        ...


class Service(Protocol):
    """What a server offers."""

    metadata: dict[str, Any]

    def open(self) -> Session:
        """A session for a new connection."""
        ...


class Refusal(Exception):  # noqa: N818 - an answer, not a fault
    """A request that the server does not carry out.

    Args:
        code: as in HTTP: 400 for a wrong request, 404 for an unknown state, 429 if the server is full.
        message: what was got, what was expected.
        retry_after: seconds after which the client may repeat the request; None if it must not.
    """

    def __init__(self, code: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.retry_after = code, message, retry_after

    def to_json(self) -> str:
        """The text message."""
        told = {"code": self.code, "message": self.message}
        return json.dumps(told if self.retry_after is None else {**told, "retry_after": self.retry_after})


@dataclass(frozen=True)
class ServerLimits:
    """Limits of a server.

    Args:
        max_message: largest request in MiB.
        max_connections: connections at the same time; a further one is refused with status 429.
        max_waiting: requests that wait for the model; a further one is refused with code 429.
        idle: seconds without a request after which a connection is closed.
    """

    max_message: int = 256
    max_connections: int = 64
    max_waiting: int = 64
    idle: float = 600.0

    def __post_init__(self) -> None:
        """Validate."""
        if min(self.max_message, self.max_connections, self.max_waiting) < 1 or not self.idle > 0:
            raise ConfigError(
                f"limits of a server are {self}; expected whole numbers >= 1 and a positive idle time"
            )


class Server:
    """Listens on a port and answers requests; use it as a context manager.

    Args:
        service: answers the requests.
        host: address to listen on. Other machines reach the server only if this is not a loopback address.
        port: port to listen on; 0 takes a free one.
        token_env: environment variable with the token that clients must send; None lets every client in.
        limits: sizes and counts that the server accepts.

    Raises:
        ConfigError: the host is not a loopback address and there is no token; the port is taken; or the variable is
            not set.
        DependencyError: websockets or msgpack is missing (extra `serve`).
    """

    def __init__(
        self,
        service: Service,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        token_env: str | None = None,
        limits: ServerLimits | None = None,
    ) -> None:
        self.service, self.limits = service, limits or ServerLimits()
        self._token = token_of(token_env)
        if self._token is None and not is_loopback(host):
            raise ConfigError(
                f"host is {host}, which other machines can reach, and there is no token. Type --token-env NAME with "
                "the name of an environment variable, or --host 127.0.0.1"
            )
        self._model, self._count = threading.Lock(), threading.Lock()
        self._open = self._waiting = 0
        self._started = False
        serve = require("websockets.sync.server", extra="serve").serve
        require("msgpack", extra="serve")
        try:
            self._server = serve(
                self._connection,
                host,
                port,
                process_request=self._admit,
                compression=None,
                max_size=self.limits.max_message * MEBIBYTE,
                logger=logging.getLogger("worldgym.serving.websockets"),
            )
        except OSError as error:
            raise ConfigError(
                f"can't listen on {host}, port {port}: {error.strerror or error}. Type another --port, or --port 0"
            ) from error
        self.host, self.port = host, int(self._server.socket.getsockname()[1])
        logging.getLogger("worldgym.serving.websockets").setLevel(logging.ERROR)

    @property
    def url(self) -> str:
        """Address for clients on this machine."""
        return f"ws://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def serve_forever(self) -> None:
        """Answer requests until `close` is called by another thread, or Ctrl-C."""
        self._started = True
        self._server.serve_forever()

    def start(self) -> Self:
        """Answer requests in a thread."""
        self._started = True
        threading.Thread(target=self.serve_forever, name="worldgym-server", daemon=True).start()
        return self

    def close(self) -> None:
        """Stop listening."""
        if self._started:
            self._server.shutdown()
        else:  # `shutdown` would wait for a loop that never ran
            self._server.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- one connection --------------------------------------------------------------------------------------------
    def _admit(self, connection: Any, request: Any) -> Any:
        """Answer a health check, and refuse a connection without the token or above the limit."""
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        given = request.headers.get("Authorization", "")
        if self._token is not None and not hmac.compare_digest(
            given.encode(), f"Api-Key {self._token}".encode()
        ):
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "expected the header Authorization: Api-Key TOKEN\n"
            )
        if self._open >= self.limits.max_connections:
            answer = connection.respond(
                http.HTTPStatus.TOO_MANY_REQUESTS, f"all {self._open} connections are taken\n"
            )
            answer.headers["Retry-After"] = "2"
            return answer
        return None

    def _connection(self, connection: Any) -> None:
        exceptions = require("websockets.exceptions", extra="serve")
        with self._count:
            self._open += 1
        session: Session | None = None
        try:
            session = self.service.open()
            connection.send(pack(self.service.metadata))
            while True:
                connection.send(self._answer(session, connection.recv(timeout=self.limits.idle)))
        except (exceptions.ConnectionClosed, OSError, TimeoutError):
            pass
        finally:
            if session is not None:
                session.close()
            with self._count:
                self._open -= 1

    def _answer(self, session: Session, data: bytes | str) -> bytes | str:
        """The reply to one request: a message, or the text of an error."""
        try:
            message = unpack(data)
            began = time.perf_counter()
            with self._turn():
                waited = time.perf_counter() - began
                reply = session(message)
            if isinstance(reply, dict):
                reply["server_timing"] = {
                    "infer_ms": 1000 * (time.perf_counter() - began - waited),
                    "wait_ms": 1000 * waited,
                }
            return pack(reply)
        except Refusal as refusal:
            return refusal.to_json()
        except KeyError as error:
            return Refusal(400, f"the request lacks {error}").to_json()
        except (WireError, WorldgymError, ValueError, TypeError) as error:
            logger.info("refused a request: %s", error)
            return Refusal(400, str(error)).to_json()
        except Exception as error:  # the server goes on with other requests
            logger.exception("a request failed")
            return Refusal(500, f"the model failed: {type(error).__name__}: {str(error)[:200]}", 1.0).to_json()

    def _turn(self) -> _Turn:
        with self._count:
            if self._waiting >= self.limits.max_waiting:
                raise Refusal(429, f"{self._waiting} requests wait for the model already", 1.0)
            self._waiting += 1
        return _Turn(self._model, self._leave)

    def _leave(self) -> None:
        with self._count:
            self._waiting -= 1


class _Turn:
    """Holds the model's lock, and counts the request as waiting or running until it ends."""

    def __init__(self, lock: threading.Lock, leave: Callable[[], None]) -> None:
        self._lock, self._leave = lock, leave

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()
        self._leave()
