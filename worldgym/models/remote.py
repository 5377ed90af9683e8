"""`RemoteWorldModel`: a world model on a server, such as a machine with a GPU, used like one in this process.

Example::

    # on the other machine: worldgym serve world-model --model runs/mine/export --device cuda
    model = RemoteWorldModel("ws://127.0.0.1:8000")
    env = gym.make_vec("worldgym/Imagined-v0", num_envs=64, world_model=model, judge=judge, starts=starts)
"""

from __future__ import annotations

import json
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from worldgym.errors import CheckpointError, ConfigError, ServerUnavailableError
from worldgym.protocols import Decode, Imagined
from worldgym.registry import TYPE
from worldgym.serving.client import Client, ClientSettings, RefusedError
from worldgym.serving.frames import Images, from_wire, to_wire
from worldgym.serving.world_model import PROTOCOL, VERSION
from worldgym.specs import Specs
from worldgym.utils.files import read_json
from worldgym.utils.folders import save_folder, verify_folder

REMEDY = "write one with save_pretrained, or give the address of a server"


class RemoteState:
    """An imagined state that a server holds; the server drops it when this object is no longer used.

    Args:
        number: name of the state on the server.
        rows: number of rows, B.
        latent: `(B,C,h,w)` float32, latents of the last real frame, or None.
    """

    def __init__(self, model: RemoteWorldModel, number: int, rows: int, latent: Tensor | None = None) -> None:
        self.number, self.rows, self.latent, self.session = number, rows, latent, model.session
        weakref.finalize(self, model.unused.append, number).atexit = False

    def __deepcopy__(self, memo: Any) -> RemoteState:
        return self  # no request changes a state

    def __reduce__(self) -> Any:
        raise TypeError(
            "the imagined state of a RemoteWorldModel can't be pickled: it is held by a server for one client"
        )


class RemoteWorldModel:
    """A `WorldModel` behind a `worldgym serve world-model`.

    Broken connections are opened again, and the lost request is repeated; the server answers a repeated request with
    the reply that was lost. When the server does not answer before the deadline, `step` raises a
    `ServerUnavailableError`, and a closed loop marks the running episodes as invalid.

    The generator given to `begin` only provides the seed of a generator on the server.

    Args:
        url: address of the server.
        images: `png` compresses frames without loss, for slow networks; `raw` is faster on one machine.
        token_env: environment variable with the server's token; None takes the one that `WORLDGYM_TOKENS` names.
        settings: time limits.

    Raises:
        ConfigError: the address is wrong, the server refuses the token, or serves something else.
        ServerUnavailableError: no server answers.
    """

    def __init__(
        self,
        url: str,
        *,
        images: Images = "raw",
        token_env: str | None = None,
        settings: ClientSettings | None = None,
    ) -> None:
        to_wire(np.zeros((1, 1, 3), np.uint8), images)  # checks `images`
        self.url, self.images = url, images
        self.client = Client(url, token_env=token_env, settings=settings)
        told = self.client.metadata
        if told.get("protocol") != PROTOCOL or told.get("version") != VERSION:
            self.client.close()
            raise ConfigError(
                f"{url} serves {told.get('protocol', 'another protocol')!r} version {told.get('version')}; expected "
                f"{PROTOCOL!r} version {VERSION}. Start it with: worldgym serve world-model --model FOLDER"
            )
        self.specs, self.action_dim = Specs.from_dict(told["specs"]), int(told["action_dim"])
        self.uncertainty_kind = str(told.get("uncertainty_kind", "own"))  # servers of earlier versions do not say it
        self.device = torch.device("cpu")
        self._start()

    def _start(self) -> None:
        self.session: str | None = None
        self.unused: deque[int] = deque()  # states that the server may drop
        self.client.greeting = self._resume
        self._requests = self._seen = 0
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        own = ("session", "unused", "_requests", "_seen", "_lock")
        return {key: value for key, value in vars(self).items() if key not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    # -- the protocol ----------------------------------------------------------------------------------------------
    def begin(
        self,
        frames: Tensor,
        actions: Tensor,
        generator: torch.Generator | None = None,
        *,
        states: Tensor | None = None,
        views: Mapping[str, Tensor] | None = None,
    ) -> RemoteState:
        """Start from real `frames (B,Tc,H,W,3)` uint8 and `actions (B,Tc-1,A)`; see `WorldModel.begin`."""
        seed = int(torch.randint(2**62, (1,), generator=generator, device=_device(generator)))
        reply = self._ask(
            "begin",
            frames=to_wire(frames, self.images),
            actions=actions.float(),
            states=None if states is None else states.float(),
            seed=seed,
            views={name: to_wire(view, self.images) for name, view in (views or {}).items()},
        )
        return RemoteState(self, reply["state"], reply["rows"], _tensor(reply.get("latent")))

    def step(
        self, state: RemoteState, actions: Tensor, *, decode: Decode = "all"
    ) -> tuple[RemoteState, Imagined]:
        """Predict K frames for `actions (B,K,A)` in [-1, 1].

        Raises:
            ServerUnavailableError: the server does not answer, or no longer holds the state.
        """
        reply = self._ask("step", state, actions=actions.float(), decode=decode)
        imagined = Imagined(
            torch.from_numpy(from_wire(reply["frames"])),
            _tensor(reply["latents"]),  # type: ignore[arg-type]
            _tensor(reply["states"]),  # type: ignore[arg-type]
            _tensor(reply["uncertainty"]),  # type: ignore[arg-type]
            _tensor(reply["success_prob"]),
            {name: torch.from_numpy(from_wire(frames)) for name, frames in reply["views"].items()},
        )
        return RemoteState(self, reply["state"], reply["rows"]), imagined

    def fork(self, state: RemoteState, index: Tensor) -> RemoteState:
        """Copy rows `index (B',)` into a new state."""
        reply = self._ask("fork", state, index=torch.as_tensor(index))
        latent = None if state.latent is None else state.latent[torch.as_tensor(index)]
        return RemoteState(self, reply["state"], reply["rows"], latent)

    def merge(self, state: RemoteState, rows: Tensor, other: RemoteState) -> RemoteState:
        """`state` with its rows `rows` replaced, in order, by all rows of `other`."""
        self._require_session(other)
        reply = self._ask("merge", state, rows=torch.as_tensor(rows), other=other.number)
        return RemoteState(self, reply["state"], reply["rows"])

    def observe(
        self, state: RemoteState, frames: Tensor, views: Mapping[str, Tensor] | None = None
    ) -> RemoteState:
        """Replace the last imagined frame in the model's context by the real `frames (B,H,W,3)` uint8."""
        seen = {name: to_wire(view, self.images) for name, view in (views or {}).items()}
        reply = self._ask("observe", state, frames=to_wire(frames, self.images), views=seen)
        return RemoteState(self, reply["state"], reply["rows"])

    # -- requests --------------------------------------------------------------------------------------------------
    def _ask(self, op: str, state: RemoteState | None = None, **fields: Any) -> dict[str, Any]:
        with self._lock:
            if state is not None:
                self._require_session(state)
                fields["state"] = state.number
            self._requests += 1
            dropped = [self.unused.popleft() for _ in range(len(self.unused))]
            message = {
                "op": op,
                "id": self._requests,
                "drop": dropped,
                "seen": self._seen,
                "images": self.images,
                **fields,
            }
            try:
                reply: dict[str, Any] = self.client.request(message)
            except ServerUnavailableError:
                self.unused.extend(dropped)
                raise
            except RefusedError as error:
                if error.code != 404:
                    self.unused.extend(dropped)
                    raise
                self.session = None
                raise ServerUnavailableError(
                    f"{self.url} no longer holds these imagined states: {error}. Begin new episodes"
                ) from error
            self._seen = message["id"]
            if state is None:  # the server opens another session if it no longer keeps the earlier one
                self.session = reply["session"]
            return reply

    def _resume(self) -> dict[str, Any] | None:
        """The first request after a broken connection."""
        return None if self.session is None else {"op": "resume", "id": 0, "session": self.session}

    def _require_session(self, state: RemoteState) -> None:
        if state.session != self.session:
            raise ServerUnavailableError(
                f"these imagined states belong to an earlier connection with {self.url}; begin new episodes"
            )

    # -- disk ------------------------------------------------------------------------------------------------------
    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that names the server; the token and its variable are not stored."""
        with save_folder(folder) as stage:
            told = {TYPE: "remote", "url": self.url, "images": self.images}
            (stage / "config.json").write_text(json.dumps(told, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Connect to the server that a folder names.

        Raises:
            CheckpointError: the folder is damaged.
            ServerUnavailableError: the server does not answer.
        """
        path = verify_folder(folder, ("config.json",), REMEDY)
        told = read_json(path / "config.json", REMEDY)
        if not isinstance(told, dict) or not isinstance(told.get("url"), str):
            raise CheckpointError(f"{path / 'config.json'} names no url; {REMEDY}")
        return cls(told["url"], images=told.get("images", "raw"))


def _device(generator: torch.Generator | None) -> Any:
    return "cpu" if generator is None else generator.device


def _tensor(value: Any) -> Tensor | None:
    return None if value is None else torch.from_numpy(value)
