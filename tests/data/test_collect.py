"""Collecting is deterministic, resumable and counted, whoever makes the episodes."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_up import MANIFEST, episode, same

from experiments.commands import collect
from experiments.commands.collect import run
from experiments.pipelines import collecting
from experiments.pipelines.collect_settings import BehaviourMix, CollectConfig
from worldgym.data import Episode, EpisodeDataset, SplitManifest
from worldgym.errors import CheckpointError, ConfigError, WorldgymError

Rollout = Callable[[collecting.Job], Episode]


def fake_rollout(config: CollectConfig) -> Rollout:
    key = collecting.collection_key(config)

    def make(what: collecting.Job) -> Episode:
        facts = {"behaviour": what.behaviour, "seed": what.seed}
        facts |= {"collection": key, "collection_index": what.index}
        return episode(what.seed, task=what.task, provenance=facts)

    return make


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the simulator by made-up episodes."""
    monkeypatch.setattr(SplitManifest, "load", classmethod(lambda cls, path: MANIFEST))
    monkeypatch.setattr(collecting, "make_rollout", fake_rollout)


def config(out: Path, **changes: object) -> CollectConfig:
    values = {"episodes": 7, "workers": 0, "image_size": 16, "shard_episodes": 3}
    return CollectConfig(out=out, **{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.usefixtures("simulator")
def test_same_command_resumes_and_a_larger_one_extends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []

    def counting(settings: CollectConfig) -> Rollout:
        make = fake_rollout(settings)

        def once(what: collecting.Job) -> Episode:
            if len(seen) == 5:
                seen.append(-1)
                raise KeyboardInterrupt
            seen.append(what.index)
            return make(what)

        return once

    monkeypatch.setattr(collecting, "make_rollout", counting)
    with caplog.at_level("INFO"):
        assert run(config(tmp_path / "d")) == 130
        assert "stopped after 5 of 7 episodes, all saved" in caplog.text
        assert run(config(tmp_path / "d")) == 0
        assert run(config(tmp_path / "d", episodes=9)) == 0
    assert seen == [0, 1, 2, 3, 4, -1, 5, 6, 7, 8]
    assert run(config(tmp_path / "straight", episodes=9)) == 0
    resumed, straight = EpisodeDataset(tmp_path / "d"), EpisodeDataset(tmp_path / "straight")
    assert all(same(a, b) for a, b in zip(resumed, straight, strict=True))
    assert "36 interactions with Real" in caplog.text


@pytest.mark.usefixtures("simulator")
def test_other_settings_add_a_collection_and_warn_of_used_seeds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(config(tmp_path / "d"))
    run(config(tmp_path / "d", episodes=2, mix=BehaviourMix(random=1.0)))
    assert "2 start seeds were already used" in caplog.text
    assert "--seed 7" in caplog.text
    dataset = EpisodeDataset(tmp_path / "d")
    assert [made.provenance["collection_index"] for made in dataset] == [*range(7), 0, 1]
    assert [made.behaviour for made in dataset][7:] == ["random", "random"]


def test_recording_a_task_that_is_kept_as_unseen_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    common = {"episodes": 1, "workers": 0, "horizon": 2, "mix": {"random": 1.0}}
    run(CollectConfig(out=tmp_path / "a", tasks=("reach",), **common))
    assert "unseen" not in caplog.text
    run(CollectConfig(out=tmp_path / "b", tasks=("stack",), **common))
    assert "stack is kept for the split unseen_task of suite tabletop" in caplog.text


def test_jobs_follow_the_mix_and_deal_the_tasks(tmp_path: Path) -> None:
    settings = config(tmp_path, episodes=400, seed=100, mix=BehaviourMix(expert=3, random=1))
    jobs = [collecting.job(settings, index) for index in range(400)]
    assert jobs == [collecting.job(dataclasses.replace(settings, workers=5), index) for index in range(400)]
    assert [what.seed for what in jobs] == list(range(100, 500))
    counts = Counter(what.behaviour for what in jobs)
    assert set(counts) == {"expert", "random"}
    assert 0.65 < counts["expert"] / 400 < 0.85
    assert max(Counter(what.task for what in jobs).values()) == 134


def test_few_starts_are_repeated_in_turn_with_other_randomness(tmp_path: Path) -> None:
    settings = config(tmp_path, episodes=10, seed=100, starts=4)
    jobs = [collecting.job(settings, index) for index in range(10)]
    assert [what.seed for what in jobs] == [100, 101, 102, 103] * 2 + [100, 101]
    assert [what.task for what in jobs[:4]] == [what.task for what in jobs[4:8]]
    assert len({tuple(what.acting) for what in jobs}) == 10
    plain = collecting.job(config(tmp_path, episodes=10, seed=100), 2)
    assert jobs[2].acting == plain.acting == [102, 2], "the first use of a start is that of a plain collection"
    last = config(tmp_path, episodes=10, seed=999_996, starts=4)
    assert last.start_count == 4, "the seeds that are used lie inside the range"
    assert collecting.collection_key(settings) != collecting.collection_key(config(tmp_path, seed=100))


def test_repeated_starts_show_the_same_scene_and_another_demonstration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mujoco")
    monkeypatch.setattr(SplitManifest, "load", classmethod(lambda cls, path: MANIFEST))
    few = CollectConfig(out=tmp_path / "few", tasks=("reach", "push"), episodes=4, starts=2, workers=0, horizon=8)
    run(few)
    assert json.loads((tmp_path / f"few/meta/collect-{collecting.collection_key(few)}.json").read_text())["starts"] == 2
    first, other, again, _ = EpisodeDataset(tmp_path / "few")
    assert np.array_equal(first.frames[0], again.frames[0]) and first.instruction == again.instruction
    assert not np.array_equal(first.frames[0], other.frames[0])
    assert not np.array_equal(first.actions[:3], again.actions[:3])


def test_key_changes_with_what_changes_an_episode_only(tmp_path: Path) -> None:
    base = collecting.collection_key(config(tmp_path))
    for name, value in (("episodes", 99), ("workers", 3), ("shard_episodes", 9)):
        assert collecting.collection_key(config(tmp_path, **{name: value})) == base
    for name, value in (("seed", 5), ("tasks", ("push",)), ("horizon", 9), ("split", "unseen_task")):
        assert collecting.collection_key(config(tmp_path, **{name: value})) != base


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 0}, "at least 1"),
        ({"starts": 0}, "at least 1"),
        ({"starts": 2}, "at least --starts 3"),
        ({"starts": 3, "policy": Path("p"), "mix": BehaviourMix(policy=1), "temperature": 0.0}, "repeats itself"),
        ({"workers": -1}, "workers"),
        ({"tasks": ()}, "--tasks"),
        ({"split": "train"}, "unknown split"),
        ({"seed": 999_999}, "smaller --seed"),
        ({"gap": 0.5}, "gap"),
        ({"temperature": -1.0}, "temperature"),
        ({"policy": Path("p")}, "belong together"),
        ({"mix": BehaviourMix(policy=1)}, "belong together"),
    ],
)
def test_impossible_settings_say_what_to_type(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **changes)
    with pytest.raises(ConfigError, match=r"mix\.noisy"):
        BehaviourMix(noisy=-1)


@pytest.mark.usefixtures("simulator")
def test_unknown_task_and_missing_policy_leave_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown task 'juggle'; the tasks are reach"):
        run(config(tmp_path / "d", tasks=("juggle",)))
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        run(config(tmp_path / "d", policy=tmp_path, mix=BehaviourMix(policy=1)))
    assert not (tmp_path / "d").exists()


class _Gone:
    pid, exitcode = 7, -9

    def is_alive(self) -> bool:
        return False


def test_a_dead_worker_is_reported() -> None:
    import queue

    class Silent:
        def get(self, timeout: float) -> None:
            raise queue.Empty

    with pytest.raises(WorldgymError, match="worker 7 died with exit code -9"):
        collecting._receive([_Gone()], Silent())


@pytest.mark.slow
def test_worker_processes_make_what_one_process_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mujoco")
    monkeypatch.setattr(SplitManifest, "load", classmethod(lambda cls, path: MANIFEST))
    run(CollectConfig(out=tmp_path / "one", episodes=6, workers=0, horizon=12))
    run(CollectConfig(out=tmp_path / "two", episodes=6, workers=2, horizon=12))
    one, two = EpisodeDataset(tmp_path / "one"), EpisodeDataset(tmp_path / "two")
    assert len(one) == len(two) == 6
    for a, b in zip(one, two, strict=True):
        assert np.array_equal(a.actions, b.actions)
        assert same(a, b)


@pytest.mark.slow
def test_a_policy_checkpoint_acts_and_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco")
    vla = pytest.importorskip("agents.policies.vla")
    monkeypatch.setattr(SplitManifest, "load", classmethod(lambda cls, path: MANIFEST))
    vla.VLAPolicy(vla.VLAPolicyConfig.preset("tiny")).save_pretrained(tmp_path / "tiny-policy")
    settings = CollectConfig(
        out=tmp_path / "d",
        episodes=2,
        workers=0,
        horizon=7,
        policy=tmp_path / "tiny-policy",
        mix=BehaviourMix(policy=1),
    )
    assert run(settings) == 0
    first = EpisodeDataset(tmp_path / "d")[0]
    assert (first.behaviour, first.length) == ("policy", 7)
    assert first.provenance["policy"] == "tiny-policy"
    assert len(first.provenance["policy_sha256"]) == 12
    again = collecting.make_rollout(settings)(collecting.job(settings, 0))
    assert np.array_equal(again.actions, first.actions)  # sampling is seeded


def test_summary_counts_by_behaviour_and_task(make_dataset: Callable[..., Path]) -> None:
    table = collect.summary_table(EpisodeDataset(make_dataset(5)).records)
    assert table.splitlines()[-1].split() == ["all", "5", "40.0%", "20"]
    assert "expert" in table
    assert "push" in table


@pytest.mark.parametrize(
    "typed",
    [
        ["--mix.expert", "1", "--mix.noisy=0.5"],
        ["--mix", "expert=1", "noisy=0.5"],
        ["--mix", "expert", "1", "noisy", "0.5"],
        ["--mix", "expert=1", "--mix.noisy", "0.5"],
    ],
)
def test_weights_are_typed_in_any_of_three_ways(tmp_path: Path, typed: list[str]) -> None:
    import tyro

    words = ["--out", str(tmp_path), *typed[:2], "--episodes", "5", *typed[2:]]
    if typed[0] == "--mix":
        words = ["--out", str(tmp_path), *typed, "--episodes", "5"]
    read = tyro.cli(CollectConfig, args=CollectConfig.rewrite_arguments(words))
    assert read.mix == {"expert": 1.0, "noisy": 0.5} and read.episodes == 5
    assert read.weights == {
        "expert": 1.0, "noisy": 0.5, "near_miss": 0.0, "distracted": 0.0, "random": 0.0, "policy": 0.0
    }  # fmt: skip


def test_unknown_behaviours_and_domains_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="suite tabletop has no behaviour 'clumsy'; it has expert"):
        config(tmp_path, mix={"clumsy": 1.0})
    with pytest.raises(ConfigError, match="suite tabletop has no domain 'moon'; its domains are real, soft"):
        config(tmp_path, domain="moon")
    with pytest.raises(ConfigError, match="unknown suite type"):
        config(tmp_path, suite="kitchen")


def test_collections_of_earlier_versions_go_on_under_their_old_names(tmp_path: Path) -> None:
    """The key of these settings as version 0.1.0 computed it."""
    old = CollectConfig(out=tmp_path, episodes=6, tasks=("push", "reach"))
    assert collecting.collection_key(old) == "8c476d13e688"
    assert collecting.collection_key(dataclasses.replace(old, suite="tabletop")) == "8c476d13e688"
    assert collecting.collection_key(dataclasses.replace(old, cameras=("front", "wrist"))) != "8c476d13e688"
