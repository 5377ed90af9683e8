"""openpi's own client on our policy server, and its message format against ours."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("websockets", reason="needs the extra `serve`")
pytest.importorskip("openpi_client", reason="install it with `make test-clients`")

from openpi_client import action_chunk_broker, image_tools, msgpack_numpy  # noqa: E402
from openpi_client.websocket_client_policy import WebsocketClientPolicy  # noqa: E402

from agents import load_policy  # noqa: E402
from agents.policies.remote.pictures import resize_with_pad  # noqa: E402
from agents.policies.remote.service import PolicyService  # noqa: E402
from worldgym import pretrained  # noqa: E402
from worldgym.serving.server import Server  # noqa: E402
from worldgym.serving.wire import pack, unpack  # noqa: E402

RNG = np.random.default_rng(0)


def observation(side: int = 64) -> dict:
    return {
        "observation/image": RNG.integers(0, 256, (side, side, 3)).astype(np.uint8),
        "observation/state": np.array([0.1, 0.0, 0.2, 0.05], np.float32),
        "prompt": "push the red cube to the left",
    }


@pytest.fixture(scope="module")
def server():
    policy = load_policy(pretrained.path("tabletop-small") / "policy_sft")
    with Server(PolicyService(policy), port=0).start() as server:
        yield server


def test_openpis_client_gets_actions_and_metadata(server):
    client = WebsocketClientPolicy("127.0.0.1", server.port)
    reply = client.infer(observation(224))
    assert reply["actions"].shape == (5, 4) and reply["actions"].dtype == np.float32
    assert client.get_server_metadata()["chunk"] == 5


def test_openpis_action_chunk_broker_steps_through_our_chunks(server):
    broker = action_chunk_broker.ActionChunkBroker(WebsocketClientPolicy("127.0.0.1", server.port), 5)
    seen = observation()
    actions = [broker.infer(seen)["actions"] for _ in range(6)]
    assert all(action.shape == (4,) for action in actions)


def test_openpis_client_shows_our_reason_for_a_refused_request(server):
    client = WebsocketClientPolicy("127.0.0.1", server.port)
    with pytest.raises(RuntimeError, match="expected"):
        client.infer({"prompt": "push"})
    assert client.infer(observation())["actions"].shape == (5, 4)


@pytest.mark.parametrize("value", [np.ones((2, 3), np.float16), np.float32(1.5), np.zeros(0, np.uint8)])
def test_messages_are_those_of_openpi(value):
    np.testing.assert_array_equal(msgpack_numpy.unpackb(pack({"x": value}))["x"], value)
    np.testing.assert_array_equal(unpack(msgpack_numpy.packb({"x": value}))["x"], value)


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (100, 100), (480, 640)])
def test_images_are_resized_as_by_openpi(size):
    images = RNG.integers(0, 256, (2, *size, 3)).astype(np.uint8)
    np.testing.assert_array_equal(resize_with_pad(images, 32, 32), image_tools.resize_with_pad(images, 32, 32))
