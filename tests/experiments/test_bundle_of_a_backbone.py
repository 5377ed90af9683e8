"""A bundle with a video transformer of diffusers as world model, or one behind a server, in the commands."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from envs.tabletop import TABLETOP_ACTION_SPEC
from experiments.cli import main
from worldgym.models import load_world_model
from worldgym.models.remote import RemoteWorldModel
from worldgym.serving.server import Server
from worldgym.serving.world_model import WorldModelService

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "backbones"))
from backbone_cases import model_of  # noqa: E402


@pytest.fixture(params=["diffusers", "remote"])
def other(request: pytest.FixtureRequest, bundle: Path, tmp_path: Path) -> Iterator[Path]:
    """The tiny bundle with another world model."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    model = load_world_model(bundle / "world_model")
    shutil.rmtree(folder / "world_model")
    if request.param == "diffusers":
        given = replace(model.specs, action=TABLETOP_ACTION_SPEC)
        model_of(given=given, tiny_decoder=8).save_pretrained(folder / "world_model")
        yield folder
        return
    with Server(WorldModelService(model), port=0).start() as server:
        RemoteWorldModel(server.url).save_pretrained(folder / "world_model")
        yield folder


def test_practice_gate_audit_and_evaluation_run_on_another_kind_of_world_model(other, tmp_path):
    few = ["--episodes", "4", "--horizon", "10", "--bundle", str(other)]
    assert main(["rl", "--quick", "--bundle", str(other), "--out", str(tmp_path / "rl")]) == 0
    assert (tmp_path / "rl" / "policy" / "config.json").is_file()
    gate, audit, evaluated = (tmp_path / f"{name}.json" for name in ("gate", "audit", "eval"))
    assert main(["bench", "closed-loop", *few, "--policies", "sft", "--clips", "1", "--out", str(gate)]) in (0, 1)
    assert json.loads(gate.read_text())["all"]["episodes"] == 4
    assert main(["audit", *few, "--policy", "sft", "--judges", "bundled", "--json", str(audit)]) == 0
    assert audit.is_file()
    assert main(["eval", *few, "--policy", "sft", "--imagined", "--out", str(evaluated)]) == 0
    assert len(json.loads(evaluated.read_text())["policies"]) == 1
