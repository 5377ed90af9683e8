"""A dataset format of another package that fails ends the import in a sentence, and the import goes on afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import episode, specs

from experiments.cli import main
from worldgym.data import Episode, EpisodeDataset
from worldgym.data.formats.known import find_format
from worldgym.errors import ConfigError, DatasetError
from worldgym.registry import DATASET_FORMATS
from worldgym.specs import ObservationSpec, Specs

VIDEO = Specs(specs().observation, None)


class Logs:
    """A format of 60 episodes; tests replace single methods."""

    count = 60
    change: Callable[[int], Any] = staticmethod(episode)

    @staticmethod
    def detects(source: Path) -> bool:
        return (source / "logs.txt").is_file()

    @staticmethod
    def specs(source: Path) -> Specs:
        return specs()

    @classmethod
    def episodes(cls, source: Path) -> Iterator[Any]:
        for number in range(cls.count):
            yield cls.change(number)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "logs.txt").write_text("x")
    return tmp_path / "source"


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., type]:
    """Register `Logs` with some of its members replaced."""

    def add(name: str = "logs", **members: Any) -> type:
        changed = {k: staticmethod(v) if callable(v) else v for k, v in members.items()}
        kind = type("Changed", (Logs,), changed)
        monkeypatch.setitem(DATASET_FORMATS._known, name, kind)
        return kind

    return add


def line(source: Path, *more: object) -> list[str]:
    return ["import", "--source", str(source), "--out", str(source.parent / "out"), *map(str, more)]


def at(number: int, make: Callable[[], Any]) -> Callable[[int], Any]:
    """Episodes of which one is made otherwise."""
    return lambda n: make() if n == number else episode(n)


def fail(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: episode(0, actions=np.zeros((4, 4))),
            "actions: got (4, 4) float64, expected (T, A) float32",
        ),
        (
            lambda: episode(0, state=np.zeros((4, 4), np.float32)),
            "state: got (4, 4) float32, expected (5, S) float32",
        ),
        (lambda: episode(0, actions=np.zeros((4, 3), np.float32)), "3 action and 4 state dimensions"),
        (lambda: episode(0, size=8), "frames front 8x8"),
        (lambda: episode(0, views={"wrist": episode(0).frames}), "the cameras ['wrist']"),
        (lambda: episode(0, split="train"), "split: got 'train', expected one of seen"),
        (lambda: episode(0, views=None), "AttributeError: 'NoneType'"),
        (lambda: episode(0, instruction="\ud800"), "half of a surrogate pair"),
        (lambda: episode(0, provenance={"behaviour": "a\udfff"}), "behaviour: got half of a surrogate pair"),
        (lambda: episode(0, provenance=[1]), "provenance: got list, expected a dict"),
        (lambda: None, "got NoneType, expected worldgym.data.Episode"),
        (lambda: {"frames": 1}, "got dict, expected worldgym.data.Episode"),
        (lambda: fail(ValueError("bad file 3.log")), "bad file 3.log"),
        (lambda: fail(ValueError()), "ValueError"),
        (lambda: fail(KeyError("rgb")), "KeyError: 'rgb'"),
        (
            lambda: fail(FileNotFoundError(2, "No such file", "3.log")),
            "FileNotFoundError: [Errno 2] No such file",
        ),
        (lambda: fail(DatasetError("3.log is empty; remove it")), "3.log is empty; remove it"),
        (lambda: fail(ModuleNotFoundError("no rosbags", name="rosbags")), "pip install rosbags"),
    ],
)
def test_a_bad_episode_ends_in_a_sentence_and_the_import_goes_on(
    source, register, capsys, make, said
) -> None:  # type: ignore[no-untyped-def]
    kind = register(change=at(52, make))
    assert main(line(source)) == 2
    error = capsys.readouterr().err
    assert error.startswith("worldgym import: the format logs failed on episode 52 (the first one is 0) of ")
    assert said in error and "Traceback" not in error
    with pytest.raises(DatasetError, match="not finished"):
        EpisodeDataset(source.parent / "out")
    kind.change = staticmethod(episode)
    assert main(line(source)) == 0
    seeds = [record.provenance["seed"] for record in EpisodeDataset(source.parent / "out").records]
    assert seeds == list(range(60))


def test_the_exception_of_a_reader_is_the_cause(source, register) -> None:  # type: ignore[no-untyped-def]
    from worldgym.data.formats.known import ImportSettings, convert

    cause = RuntimeError("broken pipe of a camera")
    for members in (
        {"change": at(1, lambda: fail(cause))},
        {"episodes": lambda source: fail(cause)},
        {"specs": lambda source: fail(cause)},
    ):
        with pytest.raises(
            DatasetError, match="the format logs failed .*RuntimeError: broken pipe"
        ) as caught:
            convert(register(**members), source, source.parent / "out", ImportSettings(), "worldgym import")
        assert caught.value.__cause__ is cause


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"episodes": lambda source: None}, "gave NoneType for"),
        ({"episodes": lambda source: 3}, "gave int for"),
        ({"episodes": lambda source: episode(0)}, "gave Episode for"),
        ({"episodes": lambda source: []}, "holds no episode that the format logs can read"),
        ({"episodes": None}, "the format logs has no episodes; expected the methods"),
        ({"episodes": lambda: []}, "failed on episodes("),
        ({"specs": lambda source: {"action": 3}}, "gave dict for"),
        ({"specs": lambda source: Specs(ObservationSpec(()))}, "rate"),
        ({"specs": lambda source: Specs(ObservationSpec(()), specs().action)}, "specs without a camera"),
        ({"specs": lambda source: fail(ConfigError("hz: got None"))}, "the format logs failed on specs("),
        ({"specs": lambda source: VIDEO, "rate": lambda source: "fast"}, "gave the rate 'fast'"),
        ({"specs": lambda source: VIDEO, "rate": lambda source: float("nan")}, "gave the rate nan"),
        ({"specs": lambda source: VIDEO, "rate": lambda source: -5}, "gave the rate -5"),
        ({"specs": lambda source: VIDEO, "rate": lambda source: 5.0}, "episode 0 (the first one is 0)"),
    ],
)
def test_a_format_that_returns_something_else_is_refused_by_name(
    source, register, capsys, members, said
) -> None:  # type: ignore[no-untyped-def]
    register(**members)
    assert main(line(source)) == 2
    error = capsys.readouterr().err
    assert said in error and "logs" in error and "Traceback" not in error


def silent(number: int) -> Episode:
    return episode(number, actions=None)


@pytest.mark.parametrize("members", [{}, {"rate": lambda source: None}, {"rate": lambda source: 0}])
def test_recordings_without_a_rate_are_imported_with_what_the_message_says(
    source, register, capsys, members
) -> None:  # type: ignore[no-untyped-def]
    register(specs=lambda source: VIDEO, change=silent, count=3, **members)
    assert main(line(source)) == 2
    error = capsys.readouterr().err
    remedy = error.rpartition("type ")[2].split()
    assert remedy == ["--fps", "5", "--actions", "absolute"]
    assert main(line(source, "--image-size", 32, *remedy)) == 2
    assert "only --limit, and --fps with --actions, apply to the format logs" in capsys.readouterr().err
    assert main(line(source, *remedy)) == 0
    dataset = EpisodeDataset(source.parent / "out")
    assert len(dataset) == 3 and dataset.meta.fps == 5.0 and dataset[1].actions is None
    assert np.array_equal(dataset[2].frames, silent(2).frames)


@pytest.mark.parametrize("members", [{}, {"specs": lambda source: VIDEO, "rate": lambda source: 7.5}])
def test_a_rate_that_the_recordings_state_is_not_overruled(source, register, capsys, members) -> None:  # type: ignore[no-untyped-def]
    register(count=3, **({"change": silent, **members} if members else {}))
    assert main(line(source, "--fps", 5, "--actions", "absolute")) == 2
    assert "of the options only --limit applies to the format logs" in capsys.readouterr().err
    assert main(line(source, "--limit", 2)) == 0
    assert len(EpisodeDataset(source.parent / "out")) == 2


def test_a_format_that_fails_to_detect_leaves_the_others(source, register, caplog) -> None:  # type: ignore[no-untyped-def]
    register("a_broken", detects=lambda source: fail(RuntimeError("no licence")))
    register("b_broken", detects=None)
    kind = register("logs")
    assert find_format(source) is kind
    said = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert len(said) == 2 and "'a_broken'" in said[0] and "no licence" in said[0] and "'b_broken'" in said[1]
