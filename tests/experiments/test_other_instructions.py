"""Starts from logs of a suite know which other instructions their scenes allow."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from envs.tabletop.tasks import draw_scene, other_instructions, scene_for
from experiments.cli import main
from experiments.commands.bundle import write_starts
from experiments.pipelines.imagined_evaluation import bank_of
from experiments.suites import other_instructions as of_episodes
from worldgym.data import EpisodeDataset
from worldgym.imagination import ArrayStarts


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs") / "data"
    line = ["collect", "--out", str(folder), "--episodes", "4", "--tasks", "reach", "push", "--seed", "40"]
    assert main(line) == 0
    return folder


def test_starts_of_a_dataset_and_of_a_bundle_have_those_of_their_episode(logs, tmp_path):
    dataset = EpisodeDataset(logs)
    of = {
        record.instruction: other_instructions(record.task, record.provenance["seed"], record.split)
        for record in dataset.records
    }
    assert any(of.values())
    for record in dataset.records:
        scene = draw_scene(record.provenance["seed"], record.task, record.split)
        assert scene.instruction == record.instruction
        assert all(scene_for(scene, text) is not None for text in of[record.instruction])
    starts = bank_of(None, str(logs), None)
    assert starts.other_instructions == [of[text] for text in starts.instructions]
    arrays = dataset.load_arrays()
    write_starts(tmp_path / "starts.npz", arrays, 6, 0, of_episodes(dataset, arrays))
    stored = ArrayStarts.load(tmp_path / "starts.npz")
    assert stored.other_instructions == [of[text] for text in stored.instructions]


def test_episodes_of_no_suite_or_without_a_seed_have_none(logs):
    dataset = EpisodeDataset(logs)
    arrays = dataset.load_arrays()
    foreign = SimpleNamespace(manifest=SimpleNamespace(name="my own robot"), records=dataset.records)
    assert of_episodes(foreign, arrays) is None
    unknown = [
        SimpleNamespace(provenance={}, task=record.task, split=record.split) for record in dataset.records
    ]
    assert of_episodes(SimpleNamespace(manifest=dataset.manifest, records=unknown), arrays) is None
