"""The cluster files: well formed, of the versions that are installed, and asking for what commands accept."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import tyro
import yaml

from experiments.cli import COMMANDS, _load, find_command

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "experiments" / "cluster"


def parse(command: str):
    """The settings that `worldgym ...` would run with."""
    found = find_command(shlex.split(command)[1:])
    assert found is not None, command
    words, rest = found
    return tyro.cli(_load(COMMANDS[words])[0], args=rest)


def test_versions_are_those_of_the_constraints():
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    docker, job = (CLUSTER / "Dockerfile").read_text(), yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())
    assert f"rayproject/ray:{pinned['ray']}-" in docker
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned["ray"]
    for text in (docker, (CLUSTER / "autoscaler.yaml").read_text()):
        assert re.findall(r"torch==([\d.]+)", text) == [pinned["torch"].split("+")[0]]


@pytest.mark.parametrize("file", ["autoscaler.yaml", "rayjob.yaml"])
def test_every_worldgym_command_in_them_is_one(file):
    commands = re.findall(r"worldgym rl [^'\n]*", (CLUSTER / file).read_text())
    assert commands
    for command in commands:
        assert parse(command).address == "auto"


def test_the_job_has_as_many_cores_as_its_command_asks_for():
    job = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())["spec"]
    asked = parse(job["entrypoint"])
    group = job["rayClusterSpec"]["workerGroupSpecs"][0]
    cores = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert group["replicas"] * cores >= asked.workers * asked.threads


def test_rays_own_schema_accepts_the_launcher_file():
    autoscaler = pytest.importorskip("ray.autoscaler", reason="needs the extra `rllib`")
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load((CLUSTER / "autoscaler.yaml").read_text()), schema)
