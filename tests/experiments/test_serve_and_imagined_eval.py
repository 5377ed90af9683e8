"""`worldgym serve` and `worldgym eval --world imagined`: policies and world models of other processes, judged here."""

from __future__ import annotations

import json
import pickle
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("websockets", reason="needs the extra `serve`: pip install 'worldgym[serve]'")

from agents import load_policy  # noqa: E402
from agents.policies.remote.service import PolicyService  # noqa: E402
from experiments.cli import main  # noqa: E402
from experiments.pipelines.policies import DecodedRef, PolicyChoice  # noqa: E402
from worldgym.evaluation import PolicyRef  # noqa: E402
from worldgym.models import load_world_model  # noqa: E402
from worldgym.serving.client import Client  # noqa: E402
from worldgym.serving.server import Server  # noqa: E402
from worldgym.serving.world_model import WorldModelService  # noqa: E402


def evaluated(tmp_path, *options: str) -> dict:
    out = tmp_path / "eval.json"
    assert main(["eval", "--horizon", "10", "--episodes", "6", "--out", str(out), *options]) == 0
    return json.loads(out.read_text())


def test_an_imagined_evaluation_names_the_judge_and_counts_what_it_stopped(bundle, tmp_path, capsys):
    options = ("--imagined", "--bundle", str(bundle), "--starts", "bundle", "--policy", "sft", "sft@1.0")
    data = evaluated(tmp_path, *options)
    assert data["world"] == "imagined" and set(data["policies"]) == {"sft", "sft@1.0"}
    result = data["policies"]["sft"]
    assert result["episodes"] == 6 and result["judge"] == "learned" and result["hallucination_stops"] == 0
    assert result["success"]["low"] <= result["success"]["mean"] <= result["success"]["high"]
    assert 0 <= result["progress"]["mean"] <= 1 and set(result["by_task"]) <= {"reach", "push"}
    assert data["differences"][0]["a"] == "sft@1.0"
    assert "as judged by learned on imagined frames" in capsys.readouterr().out
    stopped = evaluated(tmp_path, *options, "--max-uncertainty", "0")["policies"]["sft"]
    assert stopped["hallucination_stops"] == stopped["invalid"] == 6 and stopped["success"] is None
    assert "  - " in capsys.readouterr().out


def test_starts_of_the_suite_are_those_of_an_evaluation_in_real(bundle, tmp_path):
    options = ("--bundle", str(bundle), "--tasks", "reach", "--policy", "sft", "--workers", "0")
    real = evaluated(tmp_path, *options)["policies"]["sft"]["outcomes"]
    imagined = evaluated(tmp_path, *options, "--imagined")["policies"]["sft"]["outcomes"]
    assert imagined["instructions"] == real["instructions"]


def test_a_policy_may_be_shown_decoded_frames_in_real(bundle, tmp_path):
    options = ("--bundle", str(bundle), "--tasks", "reach", "--workers", "0", "--policy", "sft")
    data = evaluated(tmp_path, *options, "--decoded-by", str(bundle / "world_model"))
    assert data["decoded_by"] == str(bundle / "world_model")
    model, policy = load_world_model(bundle), load_policy(bundle / "policy_sft")
    ref = DecodedRef(str(bundle / "policy_sft"), world_model=str(bundle / "world_model"))
    assert ref.stamp() != PolicyRef(str(bundle / "policy_sft")).stamp()
    images = torch.from_numpy(np.load(bundle / "starts.npz")["images"][:2])
    seen = {"image": images, "state": torch.zeros(2, 4), "instruction": ["push", "reach"]}
    decoded = {**seen, "image": model.tokenizer.decode(model.tokenizer.encode(images)).to(torch.uint8)}
    assert torch.equal(ref.load().act(seen, temperature=0.0).actions, policy.act(decoded, temperature=0.0).actions)


def test_starts_may_come_from_a_file_or_a_dataset(bundle, tmp_path):
    options = ("--imagined", "--bundle", str(bundle), "--starts", str(bundle / "starts.npz"))
    assert evaluated(tmp_path, *options)["policies"]["sft"]["episodes"] == 6
    assert main(["eval", *options[:-1], str(tmp_path / "nothing")]) == 2


def test_a_policy_and_a_world_model_behind_servers_are_judged_as_those_in_this_process(bundle, tmp_path):
    options = ("--imagined", "--bundle", str(bundle), "--starts", "bundle", "--policy")
    here = evaluated(tmp_path, *options, "sft")["policies"]["sft"]
    policy, model = load_policy(bundle / "policy_sft"), load_world_model(bundle)
    with (
        Server(PolicyService(policy), port=0).start() as one,
        Server(WorldModelService(model), port=0).start() as two,
    ):
        data = evaluated(tmp_path, *options, one.url, "--world-model", two.url)
    there = data["policies"][one.url]
    assert there["outcomes"]["steps"] and there["invalid"] == here["invalid"]
    assert data["world_model"] == two.url


def test_a_policy_behind_a_server_is_evaluated_in_real(bundle, tmp_path):
    policy = load_policy(bundle / "policy_sft")
    options = ("--bundle", str(bundle), "--tasks", "reach", "--workers", "0", "--policy", "sft")
    with Server(PolicyService(policy), port=0).start() as server:
        ref = pickle.loads(
            pickle.dumps(PolicyChoice.parse(server.url, "tabletop-small").ref)
        )  # what workers get
        assert ref.load().chunk == policy.chunk and ref.stamp() == ref.stamp()
        rows = evaluated(tmp_path, *options, server.url)["policies"]
    np.testing.assert_array_equal(rows["sft"]["outcomes"]["steps"], rows[server.url]["outcomes"]["steps"])
    assert rows["sft"]["outcomes"]["success"] == rows[server.url]["outcomes"]["success"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--starts", "bundle"], "--starts is for an evaluation in imagination; type --imagined"),
        (["--imagined", "--gap", "0.5"], "has no --domain, --gap, --decoded-by, --wrong"),
        (["--imagined", "--world-model", "nowhere"], "there is no folder nowhere"),
        (["--policy", "ws://127.0.0.1"], "does not answer|set chunk"),
        (["--policy", "ws://127.0.0.1:1?speed=2"], "has the setting 'speed'"),
        (["--policy", "http://127.0.0.1:8000"], "one begins with ws:// or wss://"),
        (["--policy", "lerobot:nowhere"], "nowhere has no config.json"),
    ],
)  # fmt: skip
def test_wrong_options_are_explained(bundle, options, said, capsys, monkeypatch):
    from worldgym.serving import client

    monkeypatch.setattr(client.ClientSettings, "deadline", 0.5)
    monkeypatch.setattr(client.ClientSettings.__init__, "__defaults__", (0.5, 0.5, 0.5, 0, 64))
    assert main(["eval", "--bundle", str(bundle), "--episodes", "2", "--workers", "0", *options]) == 2
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize("part", ["policy", "world-model"])
def test_the_served_address_is_printed_and_ctrl_c_ends_the_server(bundle, part):
    named = ["--model", str(bundle)] if part == "world-model" else ["--bundle", str(bundle)]
    line = [sys.executable, "-m", "worldgym", "serve", part, *named, "--port", "0", "--device", "cpu"]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - it may be ignored where tests run
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, **pipes, text=True, preexec_fn=heard) as process:
        try:
            told = process.stdout.readline()
            assert (found := re.search(r"ws://\S+\d", told)), told + process.stderr.read()
            assert Client(found[0]).metadata["protocol"].startswith("worldgym.")
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0 and "ended" in process.stdout.read()
        finally:
            process.kill()


def test_a_host_for_other_machines_and_a_wrong_port_are_refused(bundle, capsys):
    assert main(["serve", "policy", "--bundle", str(bundle), "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "there is no token" in capsys.readouterr().err
    assert main(["serve", "world-model", "--model", str(bundle), "--port", "70000"]) == 2
    assert "expected 0 (any free port) to 65535" in capsys.readouterr().err
