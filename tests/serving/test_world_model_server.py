"""A world model behind a server: the same predictions as in this process, and no lost or silent failures."""

from __future__ import annotations

import copy
import gc
import pickle
import urllib.request

import numpy as np
import pytest
import torch
from fakes import LEFT, DotJudge, DotWorldModel, draw, make_starts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worldgym.errors import CheckpointError, ConfigError, ServerUnavailableError
from worldgym.imagination import WorldModelVectorEnv
from worldgym.imagination.episodes import ImaginedEpisodes
from worldgym.imagination.rollout import rollout
from worldgym.imagination.rules import Rules
from worldgym.models import load_world_model
from worldgym.models.remote import RemoteWorldModel
from worldgym.protocols import PolicyOutput, WorldModel
from worldgym.serving.client import Client, ClientSettings
from worldgym.serving.server import Server, ServerLimits
from worldgym.serving.world_model import StateLimits, WorldModelService

FAST = ClientSettings(timeout=1.0, deadline=4.0)
ACTIONS = torch.linspace(-1, 1, 2 * 3 * 4).view(2, 3, 4)


def frames(*places: float) -> torch.Tensor:
    return draw(torch.tensor([[x, 0.0, 0.0, 0.1] for x in places]))[:, None]


def local_begin(model, remote_seed: int = 0):
    """The state that a server makes of the seed that a client draws from its generator."""
    seed = int(torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(remote_seed)))
    start = frames(0.0, 0.1)
    return model.begin(start, torch.zeros(2, 0, 4), torch.Generator().manual_seed(seed))


def remote_begin(model, seed: int = 0):
    return model.begin(frames(0.0, 0.1), torch.zeros(2, 0, 4), torch.Generator().manual_seed(seed))


def assert_same(a, b) -> None:
    for name in ("frames", "latents", "states", "uncertainty"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize("images", ["raw", "png"])
@pytest.mark.parametrize("decode", ["all", "last", "none"])
def test_predictions_equal_those_of_the_model_in_this_process(served, images, decode):
    remote, local = RemoteWorldModel(served.url, images=images), DotWorldModel(0.01)
    assert isinstance(remote, WorldModel)
    there, here = remote_begin(remote), local_begin(local)
    for _ in range(2):
        there, seen = remote.step(there, ACTIONS, decode=decode)
        here, expected = local.step(here, ACTIONS, decode=decode)
        assert_same(seen, expected)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_order_of_operations_gives_the_states_of_the_model_in_this_process(served, data):
    remote, local = RemoteWorldModel(served.url), DotWorldModel(0.01)
    pairs = [(remote_begin(remote), local_begin(local))]
    for _ in range(data.draw(st.integers(1, 6))):
        there, here = pairs[data.draw(st.integers(0, len(pairs) - 1))]
        rows = there.rows
        match data.draw(st.sampled_from(["step", "fork", "merge", "observe"])):
            case "step":
                actions = ACTIONS[:1].expand(rows, -1, -1)
                there, seen = remote.step(there, actions)
                here, expected = local.step(here, actions)
                assert_same(seen, expected)
            case "fork":
                index = torch.tensor(data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=4)))
                there, here = remote.fork(there, index), local.fork(here, index)
            case "merge":
                into = torch.tensor(data.draw(st.permutations(range(rows)))[:1])
                one = torch.tensor([0])
                there = remote.merge(there, into, remote.fork(there, one))
                here = local.merge(here, into, local.fork(here, one))
            case "observe":
                seen = frames(*([0.05] * rows))[:, 0]
                there, here = remote.observe(there, seen), local.observe(here, seen)
        pairs.append((there, here))


def test_states_that_nobody_uses_are_dropped_on_the_server(served):
    remote = RemoteWorldModel(served.url)
    state = remote_begin(remote)
    for _ in range(5):
        state, _ = remote.step(state, ACTIONS)
    gc.collect()
    state, _ = remote.step(state, ACTIONS)
    assert served.service.rows <= 2 * 2  # the state before the last step, and the last one


def test_the_state_of_a_reply_that_its_client_gave_up_is_dropped(served):
    remote = RemoteWorldModel(served.url)
    state = remote_begin(remote)
    remote._requests += 1  # the server answers, and the caller no longer waits
    lost = {"op": "step", "id": remote._requests, "state": state.number, "actions": ACTIONS, "decode": "last"}
    remote.client.request({**lost, "images": "raw", "seen": remote._seen})
    assert served.service.rows == 2 * 2
    after, _ = remote.step(state, ACTIONS)
    assert served.service.rows == 2 * 2 and after.number in next(iter(served.service.held.values())).states


def test_a_model_with_further_futures_is_not_served():
    from worldgym.models import FutureEnsemble

    with pytest.raises(ConfigError, match=r"FutureEnsemble\(RemoteWorldModel"):
        WorldModelService(FutureEnsemble(DotWorldModel(), shifts=[(1, 0)]))


def test_futures_of_a_remote_world_model_are_imagined_there(served):
    from worldgym.models import FutureEnsemble

    model = FutureEnsemble(RemoteWorldModel(served.url), shifts=[(1, 0)])
    env = WorldModelVectorEnv(model, starts=make_starts(), num_envs=3, reward=DotJudge(), horizon=4)
    env.reset(seed=0)
    info = env.step(np.zeros((3, 4), np.float32))[-1]
    assert info["uncertainty_kind"].tolist() == ["verdicts"] * 3 and info["uncertainty"].shape == (3,)
    env.close()


def test_the_environment_runs_on_a_remote_world_model(served):
    env = WorldModelVectorEnv(
        RemoteWorldModel(served.url), starts=make_starts(), num_envs=3, reward=DotJudge(), horizon=4
    )
    env.reset(seed=0)
    for _ in range(9):
        observation, _, _, truncated, _ = env.step(np.zeros((3, 4), np.float32))
    assert observation["image"].shape == (3, 64, 64, 3)
    env.close()


def test_a_saved_folder_and_an_address_load_the_same_model(served, tmp_path):
    RemoteWorldModel(served.url, images="png").save_pretrained(tmp_path / "remote")
    for named in (tmp_path / "remote", served.url):
        assert load_world_model(named).url == served.url
    assert "token" not in (tmp_path / "remote" / "config.json").read_text()
    (tmp_path / "remote" / "config.json").write_text('{"type": "remote"}')
    (tmp_path / "remote" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="names no url"):
        load_world_model(tmp_path / "remote")


def test_a_copy_and_a_pickle_connect_for_themselves(served):
    remote = RemoteWorldModel(served.url)
    for other in (copy.deepcopy(remote), pickle.loads(pickle.dumps(remote))):
        state = remote_begin(other)
        assert_same(other.step(state, ACTIONS)[1], remote.step(remote_begin(remote), ACTIONS)[1])
    with pytest.raises(TypeError, match="held by a server"):
        pickle.dumps(remote_begin(remote))


# -- servers and networks that misbehave ----------------------------------------------------------------
@pytest.mark.parametrize("fault", [("cut", 0), ("cut", 7), ("cut", 300), ("stall", 0)])
def test_a_reply_that_breaks_off_is_asked_for_again_and_is_the_same(proxied, fault):
    remote, proxy = proxied
    state, expected = remote_begin(remote), local_begin(DotWorldModel(0.01))
    proxy.faults.append(fault)
    state, seen = remote.step(state, ACTIONS)
    here, wanted = DotWorldModel(0.01).step(expected, ACTIONS)
    assert_same(seen, wanted)
    assert not proxy.faults and remote.client.connections == 2
    assert_same(remote.step(state, ACTIONS)[1], DotWorldModel(0.01).step(here, ACTIONS)[1])


def act(observation, rows):
    return PolicyOutput(torch.zeros(len(rows), 2, 4), torch.zeros(len(rows)))


class Kill:
    """Ends the server after the first decision."""

    decode = "last"

    def __init__(self, end) -> None:
        self.end = end

    def begin(self, episodes) -> None:
        pass

    def __call__(self, decision) -> None:
        if decision.number == 0:
            self.end()


@pytest.mark.parametrize("decode", ["all", "last"])
@pytest.mark.parametrize("reads", [1, "episode"])
def test_episodes_of_a_server_that_dies_are_invalid_and_the_rollout_ends(proxied, decode, reads):
    remote, proxy = proxied
    remote.client.settings = ClientSettings(timeout=0.3, deadline=0.6)
    judge = DotJudge()
    from worldgym.protocols import Reads

    judge.reads = Reads(frames=reads)
    start = frames(0.0, 0.1, -0.05)
    episodes = ImaginedEpisodes.begin(
        remote,
        judge,
        Rules(horizon=20, judge_every=1, success_threshold=0.99),
        start[:, 0],
        torch.zeros(3, 4),
        [LEFT] * 3,
    )
    observer = Kill(proxy.kill)
    observer.decode = decode
    result = rollout(act, episodes, observers=[observer])
    assert result.invalid.all() and not result.success.any()
    with pytest.raises(ServerUnavailableError, match="does not answer.*type the same command"):
        remote_begin(remote)


def test_finished_rows_are_removed_although_the_server_has_died(proxied):
    remote, proxy = proxied
    remote.client.settings = ClientSettings(timeout=0.3, deadline=0.6)
    episodes = ImaginedEpisodes.begin(
        remote, None, Rules(horizon=20), frames(0.0, 0.1)[:, 0], torch.zeros(2, 4), [LEFT] * 2
    )
    proxy.kill()
    kept = episodes.take([1])
    step = kept.step(torch.zeros(1, 1, 4))
    assert step.hallucination.all() and step.outcome.truncated.all() and not step.outcome.success.any()


def test_an_environment_goes_on_with_new_episodes_when_the_server_comes_back(served):
    remote = RemoteWorldModel(served.url, settings=ClientSettings(timeout=0.5, deadline=1.0))
    env = WorldModelVectorEnv(remote, starts=make_starts(), num_envs=2, reward=DotJudge(), horizon=10)
    env.reset(seed=0)
    served.close()
    for held in served.service.held.values():
        held.states.clear()
    remote.client.close()
    _, _, terminated, truncated, info = env.step(np.zeros((2, 4), np.float32))
    assert truncated.all() and not terminated.any() and np.asarray(info["hallucination"]).all()
    with Server(WorldModelService(DotWorldModel(0.01)), port=served.port).start():
        env.step(np.zeros((2, 4), np.float32))  # next-step autoreset: this resets
        _, _, _, truncated, _ = env.step(np.zeros((2, 4), np.float32))
        assert not truncated.any()
        env.close()


def test_states_survive_a_broken_connection_only_as_long_as_the_server_keeps_them(served):
    remote = RemoteWorldModel(served.url, settings=FAST)
    state = remote_begin(remote)
    remote.client.close()
    state, _ = remote.step(state, ACTIONS)  # kept
    remote.client.close()
    served.service.limits = StateLimits(keep=0.0)
    with pytest.raises(ServerUnavailableError, match="no longer holds|earlier connection"):
        for _ in range(3):
            state, _ = remote.step(state, ACTIONS)
            remote.client.close()
    remote_begin(remote)  # new episodes work


def test_a_server_without_room_is_asked_again_until_there_is_room(served):
    served.service.limits = StateLimits(rows=4, batch=2)
    first, second = RemoteWorldModel(served.url, settings=FAST), RemoteWorldModel(served.url, settings=FAST)
    state, other = remote_begin(first), remote_begin(first)
    with pytest.raises(ServerUnavailableError, match="holds 4 of at most 4 rows"):
        remote_begin(second)
    del state, other
    gc.collect()
    first.client.request({"op": "drop", "id": 10**6, "drop": list(first.unused)})
    remote_begin(second)


def test_connections_above_the_limit_are_refused_with_429_and_admitted_later():
    limits = ServerLimits(max_connections=1)
    with Server(WorldModelService(DotWorldModel()), port=0, limits=limits).start() as server:
        first = Client(server.url)
        with pytest.raises(ServerUnavailableError, match="status 429"):
            Client(server.url, settings=ClientSettings(timeout=0.5, deadline=0.6))
        first.close()
        assert Client(server.url).metadata["protocol"]


def test_a_failure_of_the_model_is_retried_and_then_reported():
    class Fails(DotWorldModel):
        calls = 0

        def step(self, *args, **kwargs):
            Fails.calls += 1
            raise RuntimeError("out of memory")

    with Server(WorldModelService(Fails()), port=0).start() as server:
        remote = RemoteWorldModel(server.url, settings=ClientSettings(timeout=5, deadline=10, retries=1))
        state = remote_begin(remote)
        with pytest.raises(ServerUnavailableError, match="the model failed: RuntimeError"):
            remote.step(state, ACTIONS)
        assert Fails.calls == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"op": "fly"}, "op is 'fly'; expected one of begin"),
        ({"state": 10**6}, "not held here"),
        ({"actions": np.zeros((2, 3, 5), np.float32)}, r"shape \(2, 3, 5\); expected \(2, K, 4\)"),
        ({"op": "fork", "index": np.array([5])}, "rows 5 to 5; expected 0 to 1"),
        ({"op": "begin", "frames": np.zeros((2, 1, 64, 64), np.uint8)}, r"expected \(..., H, W, 3\) uint8"),
        ({"op": "begin", "frames": {"png": [b"no"], "shape": [1, 1, 64, 64, 3]}}, "not a PNG"),
        ({"id": None}, "without a number"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_refused_with_its_reason_and_the_connection_goes_on(served, change, said):
    client = Client(served.url)
    begun = client.request(
        {"op": "begin", "id": 1, "frames": frames(0.0, 0.1), "actions": np.zeros((2, 0, 4))}
    )
    request = {"op": "step", "id": 2, "state": begun["state"], "actions": np.zeros((2, 1, 4)), **change}
    with pytest.raises(ConfigError, match=said):
        client.request(request)
    assert client.request({"op": "drop", "id": 3})["id"] == 3 and client.connections == 1


def test_a_request_above_the_size_limit_says_so():
    limits = ServerLimits(max_message=1)
    with Server(WorldModelService(DotWorldModel()), port=0, limits=limits).start() as server:
        remote = RemoteWorldModel(server.url, settings=FAST)
        many = frames(0.0).expand(200, -1, -1, -1, -1)
        with pytest.raises(ConfigError, match="MiB is larger than .* accepts; send smaller batches"):
            remote.begin(many, torch.zeros(200, 0, 4))


def test_the_token_is_required_and_taken_only_from_the_variable_named_for_the_address(monkeypatch):
    monkeypatch.setenv("SERVER_SIDE", "secret")
    with Server(WorldModelService(DotWorldModel()), port=0, token_env="SERVER_SIDE").start() as server:
        monkeypatch.delenv("SERVER_SIDE")
        with pytest.raises(ConfigError, match="expects a token.*WORLDGYM_TOKENS"):
            RemoteWorldModel(server.url)
        monkeypatch.setenv("MINE", "wrong")
        with pytest.raises(ConfigError, match="the token in MINE"):
            RemoteWorldModel(server.url, token_env="MINE")
        monkeypatch.setenv("MINE", "secret")
        monkeypatch.setenv("WORLDGYM_TOKENS", f"ws://127.0.0.1:1=OTHER {server.url}=MINE")
        remote = RemoteWorldModel(server.url)
        assert "secret" not in repr(vars(remote.client)) and "secret" not in str(pickle.dumps(remote))


def test_a_server_for_other_machines_needs_a_token():
    with pytest.raises(ConfigError, match="there is no token. Type --token-env NAME"):
        Server(WorldModelService(DotWorldModel()), host="0.0.0.0", port=0)


def test_health_check_and_taken_port(served):
    with urllib.request.urlopen(served.url.replace("ws", "http", 1) + "/healthz") as answer:
        assert answer.status == 200 and answer.read() == b"OK\n"
    with pytest.raises(ConfigError, match="Type another --port"):
        Server(served.service, port=served.port)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://a:1", "ws://", "ws://u:p@host:1", "ws://a:x"])
def test_a_wrong_address_is_refused(url):
    with pytest.raises(ConfigError, match="ws://127.0.0.1:8000|environment variable"):
        RemoteWorldModel(url)


def test_a_server_that_serves_another_model_after_a_restart_is_refused(served):
    class Other(DotWorldModel):
        state_dim = 5

    remote = RemoteWorldModel(served.url, settings=FAST)
    served.close()
    remote.client.close()
    with Server(WorldModelService(Other()), port=served.port).start():
        with pytest.raises(ConfigError, match=r"serves something else than before \(specs changed\)"):
            remote_begin(remote)


def test_a_client_goes_on_after_a_message_that_was_too_large():
    with Server(WorldModelService(DotWorldModel()), port=0, limits=ServerLimits(max_message=1)).start() as server:
        remote = RemoteWorldModel(server.url, settings=FAST)
        with pytest.raises(ConfigError, match="larger than"):
            remote.begin(frames(0.0).expand(200, -1, -1, -1, -1), torch.zeros(200, 0, 4))
        assert remote_begin(remote).rows == 2


def test_a_server_that_was_never_started_closes():
    with Server(WorldModelService(DotWorldModel()), port=0) as server:
        port = server.port
    with Server(WorldModelService(DotWorldModel()), port=port):  # the port is free again
        pass


def test_an_unknown_host_fails_at_once_and_a_silent_port_soon(monkeypatch):
    with pytest.raises(ServerUnavailableError, match="host of .* is not known"):
        RemoteWorldModel("ws://no-such-host.invalid:1")
    with pytest.raises(ServerUnavailableError, match="Check the address"):
        RemoteWorldModel("ws://127.0.0.1:1", settings=ClientSettings(first=0.5))


@pytest.mark.parametrize("token", ["s3cret\r", "with space", "n\u00e4ive"])
def test_a_token_that_a_header_cannot_hold_is_refused_and_not_shown(token, monkeypatch, served):
    monkeypatch.setenv("MINE", token)
    ways = (
        lambda: Client(served.url, token_env="MINE"),
        lambda: Server(served.service, port=0, token_env="MINE"),
    )
    for connect in ways:
        with pytest.raises(ConfigError, match="variable MINE contains") as caught:
            connect()
        assert token not in str(caught.value)


def test_a_client_needs_room_for_two_of_its_batches():
    with pytest.raises(ConfigError, match="at least twice as many"):
        StateLimits(rows=60, batch=60)


def test_an_evaluation_repeats_the_batch_in_which_the_server_was_lost(served):
    from worldgym.evaluation.imagined import evaluate_imagined

    class Policy:
        chunk, calls, lose_at = 2, 0, ()

        def act(self, observation, *, temperature=1.0, generator=None):
            Policy.calls += 1
            if Policy.calls in Policy.lose_at:
                for held in served.service.held.values():
                    held.states.clear()
                remote.client.close()
            actions = torch.zeros(len(observation["image"]), 2, 4)
            actions[..., 0] = -1
            return PolicyOutput(actions, {"action": torch.zeros(len(actions))})

    start = frames(0.0, 0.2, -0.1)[:, 0]
    states = torch.tensor([[x, 0, 0, 0.1] for x in (0.0, 0.2, -0.1)])
    seen = {"image": start, "state": states, "instruction": [LEFT] * 3}
    results = []
    for lost in ((), (2,), (2, 4, 6)):
        remote = RemoteWorldModel(served.url, settings=FAST)
        Policy.calls, Policy.lose_at = 0, lost
        results.append(evaluate_imagined(Policy(), remote, DotJudge(), seen, ["left"] * 3, threshold=0.9, horizon=12))
    plain, once, always = results
    assert plain.success.any() and not plain.invalid.any()
    assert (once.success == plain.success).all() and not once.lost.any()
    assert always.lost.all() and always.invalid.all() and not always.success.any() and always.rate() is None
    assert always.to_dict()["server_failures"] == 3 and always.to_dict()["hallucination_stops"] == 0
