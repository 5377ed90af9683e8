"""A world model as a service: sessions that begin, step, fork, merge and drop imagined states.

States stay on the server; a client names them by numbers. No request changes a state, as in the `WorldModel`
protocol, so a request is safe to repeat: the server keeps the last reply of a session, and answers a repeated number
with it. A session outlives its connection by `keep` seconds, so a client whose connection broke goes on where it was.

Requests (`op`) and their replies:

| op | fields | reply |
|---|---|---|
| `begin` | `frames`, `actions`, `states`, `views`, `seed` | `state`, `rows`, `latent` |
| `step` | `state`, `actions`, `decode` | `state`, `rows`, and the fields of `Imagined` |
| `fork` | `state`, `index` | `state`, `rows` |
| `merge` | `state`, `rows`, `other` | `state`, `rows` |
| `observe` | `state`, `frames`, `views` | `state`, `rows` |
| `resume` | `session` | nothing |

Each request has a number `id`, and may have `drop`, states that the client no longer needs, `seen`, the number of the
last request whose reply arrived (the state of a later reply is dropped, since nobody knows its number), and
`images="png"`.

Example::

    Server(WorldModelService(load_world_model("tabletop-small"))).serve_forever()
"""

from __future__ import annotations

import itertools
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldgym import __version__
from worldgym.errors import ConfigError
from worldgym.protocols import uncertainty_kind
from worldgym.serving.frames import from_wire, to_wire
from worldgym.serving.server import Refusal
from worldgym.specs import specs_of

PROTOCOL = "worldgym.world_model"
VERSION = 1


@dataclass(frozen=True)
class StateLimits:
    """Limits of a world-model server.

    Args:
        rows: imagined episodes that all states of all sessions may hold together. A client needs twice its batch.
        batch: rows of one state.
        keep: seconds that the states of a broken connection are kept.
    """

    rows: int = 16384
    batch: int = 4096
    keep: float = 60.0

    def __post_init__(self) -> None:
        """Validate."""
        if not 1 <= 2 * self.batch <= self.rows or self.keep < 0:
            raise ConfigError(
                f"{self}: expected batch >= 1, rows at least twice as many (a step needs the states before and after "
                "it) and keep >= 0"
            )


@dataclass
class _Held:
    """The states of one session."""

    key: str
    states: dict[int, tuple[Any, int]] = field(default_factory=dict)
    last: tuple[int, Any] | None = None
    connections: int = 1
    left: float | None = None  # when its last connection broke

    @property
    def rows(self) -> int:
        return sum(rows for _, rows in self.states.values())


class WorldModelService:
    """Serves one world model to many clients.

    Args:
        world_model: implements `worldgym.protocols.WorldModel`.
        limits: what the server holds at most.
        name: name of the model in the metadata.

    Raises:
        ConfigError: the world model returns further futures, which the protocol does not carry.
    """

    def __init__(self, world_model: Any, *, limits: StateLimits | None = None, name: str = "") -> None:
        if getattr(world_model, "futures", 0):
            raise ConfigError(
                "the protocol has no field for further futures: serve their leader, and compare verdicts at the client "
                "by FutureEnsemble(RemoteWorldModel(url), shifts=[(1, 0)])"
            )
        self.world_model, self.limits = world_model, limits or StateLimits()
        self.metadata: dict[str, Any] = {
            "protocol": PROTOCOL,
            "version": VERSION,
            "worldgym": __version__,
            "name": name,
            "specs": specs_of(world_model).to_dict(),
            "uncertainty_kind": uncertainty_kind(world_model),
            "action_dim": int(world_model.action_dim),
            "max_batch": self.limits.batch,
        }
        self.held: dict[str, _Held] = {}
        self.numbers = itertools.count(1)  # of states; never the same in two sessions
        self._lock = threading.Lock()

    def open(self) -> WorldModelSession:
        """A session for a new connection."""
        session = _Held(secrets.token_hex(16))
        with self._lock:
            self._expire()
            self.held[session.key] = session
        return WorldModelSession(self, session)

    def attach(self, key: str) -> _Held | None:
        """The session of a broken connection, if it is still kept."""
        with self._lock:
            self._expire()
            held = self.held.get(key)
            if held is not None:
                held.connections, held.left = held.connections + 1, None
            return held

    def leave(self, held: _Held) -> None:
        """A connection has ended; its states are kept for a while."""
        with self._lock:
            held.connections -= 1
            if held.connections:
                return
            held.left = time.monotonic()
            if not held.states:
                self.held.pop(held.key, None)
            self._expire()

    def _expire(self) -> None:
        now = time.monotonic()
        for key, held in list(self.held.items()):
            if held.left is not None and now - held.left > self.limits.keep:
                del self.held[key]

    @property
    def rows(self) -> int:
        """Imagined episodes that are held now."""
        return sum(held.rows for held in list(self.held.values()))

    def require_room(self, rows: int) -> None:
        """Refuse a state of `rows` rows that is too large, or for which there is no room now."""
        if rows > self.limits.batch:
            raise Refusal(
                400, f"a state of {rows} rows; expected at most {self.limits.batch}. Send smaller batches"
            )
        with self._lock:
            self._expire()
        if self.rows + rows > self.limits.rows:
            raise Refusal(429, f"the server holds {self.rows} of at most {self.limits.rows} rows", 2.0)


class WorldModelSession:
    """The requests of one connection; see the module for their fields.

    Args:
        service: the service.
        held: the states of the session.
    """

    def __init__(self, service: WorldModelService, held: _Held) -> None:
        self.service, self.held = service, held

    def close(self) -> None:
        """The connection has ended."""
        self.service.leave(self.held)

    def __call__(self, message: Any) -> dict[str, Any]:
        """Answer a request.

        Raises:
            Refusal: the request is wrong, or there is no room.
        """
        if not isinstance(message, dict) or not isinstance(message.get("id"), int):
            raise Refusal(400, f"got {type(message).__name__} without a number `id`; expected a request")
        op = message.get("op")
        if op == "resume":
            return self._resume(message)
        if self.held.last is not None and self.held.last[0] == message["id"]:
            return dict(self.held.last[1])  # the reply was lost on the way
        if self.held.last is not None and self.held.last[0] != message.get("seen", self.held.last[0]):
            self.held.states.pop(self.held.last[1].get("state", 0), None)  # the client gave up before the reply
        for number in message.get("drop") or ():
            self.held.states.pop(number, None)
        operations = {
            "begin": self._begin,
            "step": self._step,
            "fork": self._fork,
            "merge": self._merge,
            "observe": self._observe,
            "drop": lambda message: {},
        }
        if op not in operations:
            raise Refusal(400, f"op is {op!r}; expected one of {', '.join(operations)}")
        with torch.inference_mode():
            reply = {"id": message["id"], "session": self.held.key, **operations[op](message)}
        self.held.last = (message["id"], dict(reply))
        return reply

    def _resume(self, message: dict[str, Any]) -> dict[str, Any]:
        found = self.service.attach(str(message.get("session")))
        if found is None:
            raise Refusal(404, "this session's states are no longer kept; begin again")
        if found is self.held:
            found.connections -= 1
        else:
            self.service.held.pop(self.held.key, None)
            self.held = found
        return {"id": message["id"], "session": found.key}

    # -- operations ------------------------------------------------------------------------------------------------
    def _begin(self, message: dict[str, Any]) -> dict[str, Any]:
        model, device = self.service.world_model, getattr(self.service.world_model, "device", "cpu")
        frames = torch.from_numpy(from_wire(message["frames"])).to(device)
        if frames.ndim != 5 or not len(frames):
            raise Refusal(400, f"frames have the shape {tuple(frames.shape)}; expected (B, T, H, W, 3), B at least 1")
        self.service.require_room(len(frames))
        actions = torch.as_tensor(message["actions"], dtype=torch.float32, device=device)
        states, seed = message.get("states"), message.get("seed")
        given = None if states is None else torch.as_tensor(states, dtype=torch.float32, device=device)
        generator = None if seed is None else torch.Generator().manual_seed(int(seed))
        views = self._views(message)
        more: dict[str, Any] = {"views": views} if views else {}
        state = model.begin(frames, actions, generator, states=given, **more)
        return self._kept(state, len(frames), {"latent": _array(getattr(state, "latent", None))})

    def _step(self, message: dict[str, Any]) -> dict[str, Any]:
        state, rows = self._state(message["state"])
        self.service.require_room(rows)
        device = getattr(self.service.world_model, "device", "cpu")
        size = self.service.world_model.action_dim
        actions = torch.as_tensor(message["actions"], dtype=torch.float32, device=device)
        if (
            actions.ndim != 3
            or actions.shape[0] != rows
            or actions.shape[2] != size
            or not actions.shape[1]
        ):
            raise Refusal(
                400,
                f"actions have the shape {tuple(actions.shape)}; expected ({rows}, K, {size})",
            )
        after, imagined = self.service.world_model.step(state, actions, decode=message.get("decode", "all"))
        images = message.get("images", "raw")
        return self._kept(
            after,
            rows,
            {
                "frames": to_wire(imagined.frames, images),
                "views": {name: to_wire(frames, images) for name, frames in imagined.views.items()},
                "latents": _array(imagined.latents),
                "states": _array(imagined.states),
                "uncertainty": _array(imagined.uncertainty),
                "success_prob": _array(imagined.success_prob),
            },
        )

    def _fork(self, message: dict[str, Any]) -> dict[str, Any]:
        state, rows = self._state(message["state"])
        index = _indices(message["index"], rows)
        self.service.require_room(len(index))
        return self._kept(self.service.world_model.fork(state, torch.from_numpy(index)), len(index), {})

    def _merge(self, message: dict[str, Any]) -> dict[str, Any]:
        state, rows = self._state(message["state"])
        other, more = self._state(message["other"])
        index = _indices(message["rows"], rows)
        if len(index) != more:
            raise Refusal(400, f"{len(index)} rows to replace by a state of {more} rows; expected as many")
        self.service.require_room(rows)
        return self._kept(self.service.world_model.merge(state, torch.from_numpy(index), other), rows, {})

    def _observe(self, message: dict[str, Any]) -> dict[str, Any]:
        state, rows = self._state(message["state"])
        self.service.require_room(rows)
        device = getattr(self.service.world_model, "device", "cpu")
        views = self._views(message)
        more: dict[str, Any] = {"views": views} if views else {}
        frames = torch.from_numpy(from_wire(message["frames"])).to(device)
        if len(frames) != rows:
            raise Refusal(400, f"{len(frames)} frames for a state of {rows} rows; expected one for each")
        return self._kept(self.service.world_model.observe(state, frames, **more), rows, {})

    # -- states ----------------------------------------------------------------------------------------------------
    def _views(self, message: dict[str, Any]) -> dict[str, Tensor]:
        device = getattr(self.service.world_model, "device", "cpu")
        told = message.get("views") or {}
        if not isinstance(told, dict):
            raise Refusal(400, f"views is {type(told).__name__}; expected frames by camera name")
        return {name: torch.from_numpy(from_wire(frames)).to(device) for name, frames in told.items()}

    def _state(self, number: Any) -> tuple[Any, int]:
        found = self.held.states.get(number)
        if found is None:
            raise Refusal(404, f"state {number!r} is not held here; it was dropped, or its session has ended")
        return found

    def _kept(self, state: Any, rows: int, reply: dict[str, Any]) -> dict[str, Any]:
        number = next(self.service.numbers)
        self.held.states[number] = (state, rows)
        return {"state": number, "rows": rows, **reply}


def _indices(told: Any, rows: int) -> np.ndarray:
    index = np.array(told, np.int64).reshape(-1)
    if len(index) and not (0 <= index.min() and index.max() < rows):
        raise Refusal(400, f"rows {index.min()} to {index.max()}; expected 0 to {rows - 1}")
    return index


def _array(value: Any) -> Any:
    return None if value is None else value.detach().float().cpu().numpy()
