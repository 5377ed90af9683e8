"""Policies behind a server: openpi's protocol in both directions."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

websockets = pytest.importorskip(
    "websockets", reason="needs the extra `serve`: pip install 'worldgym[serve]'"
)

from agents import VLAPolicy, VLAPolicyConfig, load_policy  # noqa: E402
from agents.policies.remote.keys import PRESETS, KeyMap, fitting  # noqa: E402
from agents.policies.remote.pictures import resize_with_pad  # noqa: E402
from agents.policies.remote.policy import RemotePolicy, RemotePolicyConfig  # noqa: E402
from agents.policies.remote.service import PolicyService  # noqa: E402
from envs.tabletop.specs import tabletop_specs  # noqa: E402
from worldgym.errors import CheckpointError, ConfigError, ServerUnavailableError  # noqa: E402
from worldgym.protocols import Policy  # noqa: E402
from worldgym.serving.client import Client, ClientSettings  # noqa: E402
from worldgym.serving.server import Server  # noqa: E402
from worldgym.serving.wire import pack, unpack  # noqa: E402

RNG = np.random.default_rng(0)
ONE = {
    "image": RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8),
    "state": np.array([0.1, 0.0, 0.2, 0.05], np.float32),
    "instruction": "push the red cube to the left",
}
BATCH = {
    "image": torch.from_numpy(RNG.integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)),
    "state": torch.from_numpy(RNG.normal(0, 0.1, (3, 4)).astype(np.float32)),
    "instruction": ["open the drawer", "press the button", "reach the red cube"],
}


@pytest.fixture(scope="module")
def policy() -> VLAPolicy:
    torch.manual_seed(0)
    return VLAPolicy(VLAPolicyConfig.for_data("tiny", tabletop_specs())).eval()


@pytest.fixture(scope="module")
def served(policy: VLAPolicy) -> Iterator[Server]:
    with Server(PolicyService(policy, name="tiny"), port=0).start() as server:
        yield server


# -- our client, our server ------------------------------------------------------------------------------
def test_a_remote_policy_acts_as_the_policy_in_this_process(policy, served):
    remote = RemotePolicy.connect(served.url)
    assert isinstance(remote, Policy) and remote.chunk == policy.chunk
    greedy = remote.act(BATCH, temperature=0.0).actions
    assert torch.allclose(greedy, policy.act(BATCH, temperature=0.0).actions, atol=1e-6)
    seed = int(torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(5)))
    sampled = remote.act(BATCH, temperature=1.0, generator=torch.Generator().manual_seed(5)).actions
    here = policy.act(BATCH, temperature=1.0, generator=torch.Generator().manual_seed(seed)).actions
    assert torch.allclose(sampled, here, atol=1e-6) and not torch.allclose(sampled, greedy)


def test_units_on_the_wire_come_back_normalised(policy):
    with Server(PolicyService(policy, actions="units"), port=0).start() as server:
        remote = RemotePolicy.connect(server.url)
        told = Client(server.url).request({**ONE})["actions"]
        assert np.abs(told[:, 0]).max() <= policy.specs.action.high[0] + 1e-6  # metres, not [-1, 1]
        expected = policy.act(BATCH, temperature=0.0).actions.clamp(-1, 1)
        assert torch.allclose(remote.act(BATCH, temperature=0.0).actions, expected, atol=1e-5)


def test_a_folder_names_the_server_and_no_token(served, tmp_path):
    RemotePolicy.connect(f"{served.url}?chunk=2").save_pretrained(tmp_path / "remote")
    again = load_policy(tmp_path / "remote")
    assert again.chunk == 2 and again.act(BATCH, temperature=0.0).actions.shape == (3, 2, 4)
    (tmp_path / "remote" / "manifest.json").unlink()
    (tmp_path / "remote" / "config.json").write_text(
        '{"type": "remote", "url": "ws://a:1", "key_env": "HOME"}'
    )
    with pytest.raises(CheckpointError, match="does not hold the settings"):
        load_policy(tmp_path / "remote")


def test_a_server_that_has_ended_is_reported(policy):
    with Server(PolicyService(policy), port=0).start() as server:
        remote = RemotePolicy(
            RemotePolicyConfig(server.url), settings=ClientSettings(timeout=0.3, deadline=0.6)
        )
    remote.client.close()
    with pytest.raises(ServerUnavailableError, match="does not answer"):
        remote.act(BATCH, temperature=0.0)


# -- requests of other clients ---------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["worldgym", "libero"])
def test_a_single_observation_under_the_names_of_openpi_gets_a_chunk(policy, served, name):
    message = {key: ONE[part] for key, part in PRESETS[name].items() if part in ONE}
    reply = Client(served.url).request(message)
    expected = policy.act(
        {"image": torch.from_numpy(ONE["image"])[None], "state": torch.from_numpy(ONE["state"])[None],
         "instruction": [ONE["instruction"]]}, temperature=0.0,
    )  # fmt: skip
    np.testing.assert_allclose(reply["actions"], expected.actions[0].numpy(), atol=1e-6)
    assert reply["policy_timing"]["infer_ms"] > 0 and reply["server_timing"]["infer_ms"] > 0


@pytest.mark.parametrize(
    "image",
    [np.moveaxis(ONE["image"], -1, 0), ONE["image"].astype(np.float32) / 255, np.float64(ONE["image"]) / 255],
    ids=["channels first", "float32", "float64"],
)
def test_images_in_other_layouts_mean_the_same(served, image):
    client = Client(served.url)
    np.testing.assert_array_equal(
        client.request({**ONE, "image": image})["actions"], client.request(dict(ONE))["actions"]
    )


def test_an_image_of_another_size_is_scaled_and_padded(served):
    wide = np.repeat(np.repeat(ONE["image"], 2, 0), 4, 1)
    small = resize_with_pad(wide, 64, 64)
    client = Client(served.url)
    np.testing.assert_array_equal(
        client.request({**ONE, "image": wide})["actions"], client.request({**ONE, "image": small})["actions"]
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"instruction": None}, "got the keys .*; expected .*observation/image.*--keys KEY=PART"),
        ({"state": np.zeros(7, np.float32)}, r"shape \(7,\); expected \(4,\): "),
        ({"state": np.full(4, np.nan, np.float32)}, "NaN or infinity"),
        ({"image": np.zeros((64, 64), np.uint8)}, r"shape \(64, 64\); expected \(H, W, 3\)"),
        ({"image": np.zeros((64, 64, 3), np.int64)}, "type int64; expected uint8"),
        ({"image": np.full((64, 64, 3), 7.0, np.float32)}, r"from 7 to 7; expected uint8, or floats in \[0, 1\]"),
        ({"instruction": ["a", "b"]}, "2 instructions for 1 images"),
        ({"instruction": 5}, "the instruction is int; expected one text a row"),
        ({"temperature": float("nan")}, "temperature is nan; expected a number >= 0"),
    ],
)  # fmt: skip
def test_a_wrong_observation_is_refused_with_its_reason_and_the_connection_goes_on(served, change, said):
    client = Client(served.url)
    with pytest.raises(ConfigError, match=said):
        client.request({key: value for key, value in {**ONE, **change}.items() if value is not None})
    assert client.request(dict(ONE))["actions"].shape == (5, 4) and client.connections == 1


def test_a_policy_without_specs_gets_the_inputs_as_they_are():
    policy = VLAPolicy(VLAPolicyConfig.preset("tiny")).eval()
    with Server(PolicyService(policy), port=0).start() as server:
        np.testing.assert_allclose(
            Client(server.url).request({**BATCH})["actions"],
            policy.act(BATCH, temperature=0.0).actions,
            atol=1e-6,
        )


def test_all_cameras_reach_a_policy_behind_a_server():
    specs = tabletop_specs(("front", "wrist"))
    policy = VLAPolicy(VLAPolicyConfig.for_data("tiny", specs)).eval()
    wrist = torch.from_numpy(RNG.integers(0, 256, (3, 48, 64, 3)).astype(np.uint8))
    seen = {**BATCH, "image_wrist": wrist}
    for keys in (None, KeyMap.parse("cam=image q=state task=instruction")):
        with Server(PolicyService(policy, keys=keys), port=0).start() as server:
            remote = RemotePolicy.connect(server.url)
            wanted = policy.act(seen, temperature=0.0).actions
            assert torch.allclose(remote.act(seen, temperature=0.0).actions, wanted, atol=1e-6)


def test_settings_of_the_address_that_have_no_effect_are_named(served, caplog):
    with caplog.at_level("WARNING"):
        RemotePolicy.connect(f"{served.url}?keys=libero&image_size=32")
    assert "keys and image_size of the address has no effect" in caplog.text


def test_a_world_model_where_a_policy_is_expected_is_named():
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[1] / "imagination"))
    from fakes import DotWorldModel

    from worldgym.serving.world_model import WorldModelService

    with Server(WorldModelService(DotWorldModel()), port=0).start() as server:
        with pytest.raises(ConfigError, match="serves 'worldgym.world_model', expected a policy"):
            RemotePolicy.connect(server.url)


def test_names_given_by_the_caller_are_required(policy):
    keys = KeyMap.parse("cam=image q=state task=instruction")
    with Server(PolicyService(policy, keys=keys), port=0).start() as server:
        client = Client(server.url)
        assert client.request({"cam": ONE["image"], "q": ONE["state"], "task": "push"})["actions"].shape == (
            5,
            4,
        )
        with pytest.raises(ConfigError, match="expected q too"):
            client.request({"cam": ONE["image"], "task": "push"})


# -- a server of openpi ------------------------------------------------------------------------------------
class OpenpiServer:
    """Speaks as openpi's `websocket_policy_server.py` does: metadata, then one reply for one observation."""

    def __init__(self, reply) -> None:
        from websockets.sync.server import serve

        self.seen: list = []
        self.reply = reply
        self._server = serve(self._handle, "127.0.0.1", 0, compression=None, max_size=None)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"ws://127.0.0.1:{self._server.socket.getsockname()[1]}"

    def _handle(self, connection) -> None:
        connection.send(pack({"reset_pose": None}))
        for data in connection:
            self.seen.append(unpack(data))
            answer = self.reply(self.seen[-1])
            if isinstance(answer, str):
                connection.send(answer)
                connection.close(code=1011, reason="Internal server error.")
                return
            connection.send(pack(answer))


@pytest.fixture
def openpi() -> Iterator[OpenpiServer]:
    server = OpenpiServer(lambda seen: {"actions": np.full((10, 4), 0.25), "server_timing": {}})
    yield server
    server._server.shutdown()


def test_a_server_of_openpi_gets_one_observation_a_request_under_its_own_names(openpi):
    remote = RemotePolicy.connect(f"{openpi.url}?keys=libero&chunk=5&image_size=32")
    batch = {**BATCH, "image_wrist": BATCH["image"]}
    output = remote.act(batch, temperature=0.0)
    assert output.actions.shape == (3, 5, 4) and bool((output.actions == 0.25).all())
    assert [seen["prompt"] for seen in openpi.seen] == BATCH["instruction"]
    first = openpi.seen[0]
    assert set(first) == set(PRESETS["libero"]) and first["observation/image"].shape == (32, 32, 3)
    np.testing.assert_array_equal(first["observation/state"], BATCH["state"][0].numpy())


def test_the_names_of_aloha_are_nested_and_channels_come_first(openpi):
    RemotePolicy.connect(f"{openpi.url}?keys=aloha&chunk=5").act(BATCH, temperature=0.0)
    assert openpi.seen[0]["images"]["cam_high"].shape == (3, 64, 64)
    np.testing.assert_array_equal(
        openpi.seen[0]["images"]["cam_high"], BATCH["image"][0].permute(2, 0, 1).numpy()
    )


def test_the_names_of_droid_split_the_state(openpi):
    remote = RemotePolicy.connect(f"{openpi.url}?keys=droid&chunk=5")
    with pytest.raises(ConfigError, match="the state has 4 numbers"):
        remote.act(BATCH, temperature=0.0)
    eight = torch.arange(24.0).view(3, 8)
    remote.act({**BATCH, "state": eight}, temperature=0.0)
    np.testing.assert_array_equal(openpi.seen[1]["observation/joint_position"], eight[1, :7].numpy())
    np.testing.assert_array_equal(openpi.seen[1]["observation/gripper_position"], eight[1, 7:].numpy())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"actions": np.zeros((3, 4))}, r"shape \(3, 4\); expected \(K, A\) with K >= 5"),
        ({"action": np.zeros((9, 4))}, "no actions"),
        ({"actions": np.full((9, 4), np.nan)}, "NaN or infinite"),
        (
            "Traceback (most recent call last):\nKeyError: 'observation/image'",
            "KeyError: 'observation/image'",
        ),
    ],
)
def test_a_wrong_reply_or_a_traceback_of_the_server_is_reported(openpi, answer, said):
    openpi.reply = lambda seen: answer
    with pytest.raises(ConfigError, match=said):
        RemotePolicy.connect(f"{openpi.url}?keys=libero&chunk=5").act(BATCH, temperature=0.0)


def test_the_length_of_the_chunk_and_units_must_be_known(openpi):
    with pytest.raises(ConfigError, match=r"set chunk, for example ws://.*\?chunk=5"):
        RemotePolicy.connect(openpi.url)
    with pytest.raises(ConfigError, match="bounds of these are not known"):
        RemotePolicy.connect(f"{openpi.url}?chunk=5&actions=units")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("chunks=5", "has the setting 'chunks'; expected one of keys, chunk"),
        ("chunk=five", "chunk is 'five'; expected a whole number"),
        ("chunk=0", "chunk is 0"),
        ("keys=pi0", "keys is 'pi0'; expected one of worldgym, libero"),
        ("keys=a=picture,b=instruction", "expected image, image_<camera>"),
        ("actions=raw", "expected 'normalised' or 'units'"),
    ],
)
def test_wrong_settings_of_an_address_are_named(query, said):
    with pytest.raises(ConfigError, match=said):
        RemotePolicyConfig.parse(f"ws://127.0.0.1:1?{query}")


# -- key maps ----------------------------------------------------------------------------------------------
@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(PRESETS)), st.integers(0, 2))
def test_a_message_under_any_preset_gives_the_observation_back(name, row):
    observation = {
        "image": RNG.integers(0, 256, (3, 8, 10, 3)).astype(np.uint8),
        "image_wrist": RNG.integers(0, 256, (3, 8, 10, 3)).astype(np.uint8),
        "state": RNG.normal(size=(3, 8)).astype(np.float32),
        "instruction": ["a", "b", "c"],
    }
    keys = KeyMap.named(name)
    message = unpack(pack(keys.to_message(observation, row)))
    assert fitting(message) == keys
    parts = keys.from_message(message)
    np.testing.assert_array_equal(parts["image"], observation["image"][row])
    np.testing.assert_array_equal(parts["state"], observation["state"][row])
    assert parts["instruction"] == observation["instruction"][row]
