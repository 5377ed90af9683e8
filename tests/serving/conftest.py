from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("websockets", reason="needs the extra `serve`: pip install 'worldgym[serve]'")
sys.path.insert(0, str(Path(__file__).parents[1] / "imagination"))

from fakes import DotWorldModel  # noqa: E402
from proxy import FaultyProxy  # noqa: E402

from worldgym.models.remote import RemoteWorldModel  # noqa: E402
from worldgym.serving.client import ClientSettings  # noqa: E402
from worldgym.serving.server import Server  # noqa: E402
from worldgym.serving.world_model import WorldModelService  # noqa: E402

FAST = ClientSettings(timeout=1.0, deadline=4.0)


@pytest.fixture
def served() -> Iterator[Server]:
    """A server of the exact world model of `fakes`, with noise."""
    with Server(WorldModelService(DotWorldModel(0.01)), port=0).start() as server:
        yield server


@pytest.fixture
def proxied(served: Server) -> Iterator[tuple[RemoteWorldModel, FaultyProxy]]:
    """A client whose connection goes through a proxy that can misbehave."""
    proxy = FaultyProxy(served.port)
    yield RemoteWorldModel(proxy.url, settings=FAST), proxy
    proxy.kill()
