"""Rollouts on Ray: independent of the number of workers and of killed workers; error messages say what to do."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import torch
from line_world import BrightJudge, LineWorld, starts, tiny_policy

from agents.rollouts.ray_pool import (
    RolloutPool,
    check_resources,
    collect_in_pieces,
    piece_generator,
    pieces_of,
)
from worldgym.errors import ConfigError

SETTINGS = {"group_size": 4, "horizon": 10, "piece": 2}
TENSORS = ("images", "actions", "mask", "reward", "valid", "groups", "final_images")


def same(a, b) -> bool:
    tables = [(a.log_probs, b.log_probs), (a.trace, b.trace)]
    return (
        all(torch.equal(getattr(a, name), getattr(b, name)) for name in TENSORS)
        and all(mine.keys() == yours.keys() and mine for mine, yours in tables)
        and all(torch.equal(mine[name], yours[name]) for mine, yours in tables for name in mine)
    )


def test_pieces_keep_order_and_groups_and_have_randomness_of_their_own():
    parts = pieces_of(starts(5), 2)
    assert [len(part) for part in parts] == [2, 2, 1]
    draws = [torch.rand(1, generator=piece_generator(*key)) for key in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert draws[0] == draws[3] and len({float(x) for x in draws}) == 3
    whole = collect_in_pieces(LineWorld(), BrightJudge(), tiny_policy(), starts(5), seed=0, **SETTINGS)
    assert whole.groups.tolist() == [i for i in range(5) for _ in range(4)]
    with pytest.raises(ConfigError, match="at least 1"):
        pieces_of(starts(2), 0)


def test_too_few_resources_are_named_instead_of_waited_for():
    class Ray:
        @staticmethod
        def cluster_resources():
            return {"CPU": 2.0}

    check_resources(Ray, {"CPU": 2, "GPU": 0})
    with pytest.raises(ConfigError, match="CPU: 64 requested, 2 available.*fewer workers"):
        check_resources(Ray, {"CPU": 64, "GPU": 0.5})


class Slow(LineWorld):
    """Writes its process id to a folder and runs slowly, so that it can be killed."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def begin(self, *args, **kwargs):
        (self.folder / str(os.getpid())).touch()
        time.sleep(0.5)
        return super().begin(*args, **kwargs)


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="needs the extra `rllib`")
    here = str(Path(__file__).parent)
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=200 * 1024**2, log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}},
    )  # fmt: skip
    yield ray
    ray.shutdown()


@pytest.mark.slow  # slow because workers import all modules again
def test_any_number_of_workers_gives_what_one_process_gives(cluster):
    policy = tiny_policy()
    expected = collect_in_pieces(LineWorld(), BrightJudge(), policy, starts(6), seed=3, **SETTINGS)
    for workers in (1, 2):
        with RolloutPool(LineWorld(), BrightJudge(), workers) as pool:
            assert same(pool.collect(policy, starts(6), seed=3, **SETTINGS), expected)
            assert not same(pool.collect(policy, starts(6), seed=4, **SETTINGS), expected)


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_result_is_the_same(cluster, tmp_path):
    policy = tiny_policy()
    expected = collect_in_pieces(LineWorld(), BrightJudge(), policy, starts(8), seed=3, **SETTINGS)

    def kill_one() -> None:
        while not list(tmp_path.iterdir()):
            time.sleep(0.05)
        os.kill(int(next(tmp_path.iterdir()).name), 9)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with RolloutPool(Slow(tmp_path), BrightJudge(), 2) as pool:
        got = pool.collect(policy, starts(8), seed=3, **SETTINGS)
        killer.join()
        assert pool.replaced == 1 and len(pool.workers) == 2
    assert same(got, expected) and len(list(tmp_path.iterdir())) >= 2


@pytest.mark.slow
def test_a_faulty_policy_is_the_same_error_on_a_worker(cluster):
    from gauss_policy import GaussPolicy

    with RolloutPool(LineWorld(), BrightJudge(), 1) as pool:
        with pytest.raises(ConfigError, match="^GaussPolicy.act returned actions with NaN") as caught:
            pool.collect(GaussPolicy("actions"), starts(2), seed=0, **SETTINGS)
        assert "Traceback" not in str(caught.value), "the explanation, without Ray's traceback"


@pytest.mark.slow
def test_asking_for_more_than_there_is_fails_at_once(cluster):
    with pytest.raises(ConfigError, match="requested, 2 available"):
        RolloutPool(LineWorld(), BrightJudge(), 16)


@pytest.mark.slow
def test_a_node_without_a_package_is_named_with_what_to_install(cluster, tmp_path, monkeypatch):
    """A module that only the driver can import simulates a package that a node lacks."""
    (tmp_path / "only_here.py").write_text(
        "from line_world import LineWorld\nclass World(LineWorld):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from only_here import World

    with pytest.raises(ConfigError, match="no package 'only_here'.*Dockerfile"):
        RolloutPool(World(), BrightJudge(), 1)


DRIVER = """
import sys, time
import ray
from agents.rollouts.ray_pool import connect
connect(ray, None, 1)
@ray.remote
def work():
    return 1
ray.get(work.remote())
print("ready", flush=True)
time.sleep(100)
"""


def descendants(pid: int) -> set[int]:
    from agents.rollouts.ray_watch import processes

    there = processes()
    chosen = {pid}
    while more := {p for p, (parent, _) in there.items() if parent in chosen} - chosen:
        chosen |= more
    return chosen - {pid}


@pytest.mark.slow
def test_nothing_of_ray_outlives_a_killed_driver():
    pytest.importorskip("ray", reason="needs the extra `rllib`")
    import subprocess
    import sys

    from agents.rollouts.ray_watch import processes

    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert driver.stdout.readline() == b"ready\n"
    time.sleep(1.5)
    began = {pid: processes()[pid][1] for pid in descendants(driver.pid)}
    assert len(began) > 5
    driver.kill()
    driver.wait()
    until = time.monotonic() + 10
    while left := {pid for pid, at in began.items() if processes().get(pid, (0, ""))[1] == at}:
        assert time.monotonic() < until, left
        time.sleep(0.2)


def test_only_processes_of_the_package_are_watched(tmp_path):
    """A child process that runs from the folder is found with its children; another child is not."""
    import subprocess
    import sys

    from agents.rollouts.ray_watch import cluster_of, processes

    script = tmp_path / "server.py"
    script.write_text("import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'input()'])\n")
    kinds = [[str(script)], ["-c", "input()"]]
    ours, other = (subprocess.Popen([sys.executable, *kind], stdin=subprocess.PIPE) for kind in kinds)
    until = time.monotonic() + 10
    while not descendants(ours.pid) and time.monotonic() < until:
        time.sleep(0.02)
    found = cluster_of(os.getpid(), str(tmp_path), processes())
    assert set(found) == {ours.pid} | descendants(ours.pid) and other.pid not in found
    for process in (ours, other):
        process.communicate(b"\n")
