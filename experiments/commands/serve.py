"""`worldgym serve policy` and `worldgym serve world-model`: a part on this machine, used from other processes or
machines.

Example::

    worldgym serve policy --policy runs/policy --port 8000              # for openpi clients and RemotePolicy
    worldgym serve world-model --model runs/mine/export --device cuda   # for RemoteWorldModel
    worldgym eval --world imagined --world-model ws://127.0.0.1:8001 --policy ws://127.0.0.1:8000
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.compute import DType, placing
from experiments.pipelines.policies import PolicyChoice
from experiments.suites import BundleName
from worldgym.errors import ConfigError
from worldgym.pretrained import DEFAULT
from worldgym.serving.server import Server, ServerLimits


@dataclass(frozen=True)
class ServePolicyConfig:
    """Serve a policy over a websocket, in openpi's protocol.

    Args:
        policy: folder written by save_pretrained, or `sft` for the bundled one; `@T` sets the temperature of requests
            that have none.
        host: address to listen on; other machines reach the server only if it is not a loopback address.
        port: port to listen on; 0 takes a free one.
        token_env: environment variable with the token that clients must send; needed if the host is not a loopback
            address.
        keys: `KEY=PART`: names of the inputs in requests, such as `observation/image=image prompt=instruction`. If
            empty, those of worldgym and of openpi's examples (libero, droid, aloha) are understood.
        units: reply with actions in the units of the policy's ActionSpec, instead of [-1, 1].
        max_connections: connections at the same time; a further one is refused with status 429.
        max_message: largest request in MiB.
        bundle: bundle of the policy `sft`: name of a bundled checkpoint, or a folder.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of the inference of a policy that lets one choose it; `auto` uses the saved precision.
    """

    policy: str = "sft"
    host: str = "127.0.0.1"
    port: int = 8000
    token_env: str | None = None
    keys: tuple[str, ...] = ()
    units: bool = False
    max_connections: int = 64
    max_message: int = 256
    bundle: BundleName = DEFAULT
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_port(self.port)


@dataclass(frozen=True)
class ServeWorldModelConfig:
    """Serve a world model over a websocket: sessions that begin, step, fork, merge and drop imagined states.

    Args:
        model: folder written by save_pretrained, or a bundle.
        host: address to listen on; other machines reach the server only if it is not a loopback address.
        port: port to listen on; 0 takes a free one.
        token_env: environment variable with the token that clients must send; needed if the host is not a loopback
            address.
        max_rows: imagined episodes that all clients may hold together; a request above it is answered with code 429.
        max_batch: rows of one state.
        keep: seconds that the states of a broken connection are kept.
        max_connections: connections at the same time; a further one is refused with status 429.
        max_message: largest request in MiB.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of the inference; `auto` uses the saved precision.
    """

    model: str = DEFAULT
    host: str = "127.0.0.1"
    port: int = 8001
    token_env: str | None = None
    max_rows: int = 16384
    max_batch: int = 4096
    keep: float = 60.0
    max_connections: int = 64
    max_message: int = 256
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_port(self.port)


def check_port(port: int) -> None:
    """Raise a ConfigError unless `port` is a port."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"port is {port}; expected 0 (any free port) to 65535")


def serve_policy(config: ServePolicyConfig) -> int:
    """Load the policy and serve it until Ctrl-C."""
    from agents.policies.remote.keys import KeyMap
    from agents.policies.remote.service import PolicyService

    keys = KeyMap.parse(" ".join(config.keys)) if config.keys else None
    here = placing(config)
    choice = PolicyChoice.parse(config.policy, config.bundle, device=here.name)
    service = PolicyService(
        here(choice.ref.load()),
        keys=keys,
        actions="units" if config.units else "normalised",
        temperature=choice.temperature,
        name=choice.name,
    )
    return listen(service, config, f"policy {choice.name}")


def serve_world_model(config: ServeWorldModelConfig) -> int:
    """Load the world model and serve it until Ctrl-C."""
    from worldgym.models import load_world_model
    from worldgym.serving.world_model import StateLimits, WorldModelService

    limits = StateLimits(config.max_rows, config.max_batch, config.keep)
    model = placing(config)(load_world_model(Path(config.model).expanduser()))
    return listen(
        WorldModelService(model, limits=limits, name=config.model), config, f"world model {config.model}"
    )


def listen(service: Any, config: ServePolicyConfig | ServeWorldModelConfig, what: str) -> int:
    """Serve until Ctrl-C; the address is printed first."""
    limits = ServerLimits(max_message=config.max_message, max_connections=config.max_connections)
    with Server(
        service, host=config.host, port=config.port, token_env=config.token_env, limits=limits
    ) as server:
        sys.stdout.write(f"serving {what} at {server.url}; Ctrl-C ends it\n")
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            sys.stdout.write("the server has ended\n")
    return 0
