"""A run removes only what its marker says it has made, and damaged or foreign files in its folder are sentences."""

from __future__ import annotations

import errno
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.cli import main
from experiments.pipelines.run_folder import AGAIN, MARKER, WRITTEN, RunFolder
from worldgym.errors import CheckpointError, ConfigError

SETTINGS = {"lr": 1e-3, "tasks": ["push"]}


def run(out, **how):
    """A run with a piece, a round, a video and events; returns it."""
    folder = RunFolder(out, SETTINGS, **how)
    folder.write("history", [{"success": float("nan")}])
    folder.own("state/round-00001").mkdir()
    (out / "videos").mkdir(exist_ok=True)
    folder.own("videos/dream-0.gif").write_bytes(b"gif")
    with folder.board() as board:
        board.add_scalar("a", 1.0, 1)
    return folder


def other_peoples(out):
    files = {
        "videos/holiday.mp4": b"film", "state/notes.json": b"{}", "events.out.tfevents.1.host.2.0": b"theirs",
        "events.out.tfevents.1.host.2.0.v2": b"theirs", "state/round-best/x": b"x", "notes.txt": b"t",
    }  # fmt: skip
    for name, data in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    return files


def content(out):
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.mark.parametrize("finished", [False, True])
def test_starting_over_removes_what_the_run_has_made_and_nothing_else(tmp_path, finished):
    folder = run(tmp_path)
    if finished:
        folder.finish()
    before = set(content(tmp_path))
    theirs = other_peoples(tmp_path)
    again = RunFolder(tmp_path, SETTINGS, fresh=True)
    assert not again.resumed and again.read("history") is None
    assert content(tmp_path) == {**theirs, f"state/{MARKER}": (again.state / MARKER).read_bytes()}
    assert "state/history.json" in before


def test_an_interrupted_run_is_gone_on_with(tmp_path):
    run(tmp_path)
    again = RunFolder(tmp_path, dict(reversed(SETTINGS.items())))
    assert again.resumed and str(again.read("history")[0]["success"]) == "nan"
    assert (tmp_path / "videos" / "dream-0.gif").is_file()


def test_a_finished_run_is_kept_until_another_one_is_asked_for(tmp_path):
    run(tmp_path).finish()
    before = content(tmp_path)
    again = RunFolder(tmp_path, SETTINGS)
    assert again.has("state/history.json", "videos") and not again.has("report.html")
    with pytest.raises(ConfigError, match="a finished run with other settings .*--fresh"):
        RunFolder(tmp_path, {**SETTINGS, "lr": 2e-3}, restart=AGAIN)
    assert content(tmp_path) == before
    again.own("videos/another.gif")  # what makes more is not finished
    assert not RunFolder(tmp_path, SETTINGS).has("state/history.json")


def test_a_full_disk_is_met_before_a_new_run_removes_the_old_one(tmp_path, monkeypatch):
    run(tmp_path).finish()
    before = content(tmp_path)

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("experiments.pipelines.run_folder.write_sealed", full)
        RunFolder(tmp_path, SETTINGS, fresh=True)
    assert content(tmp_path) == before


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_folder_that_somebody_else_uses_is_not_taken_over(tmp_path, name, fresh):
    theirs = tmp_path / name if "." in name else tmp_path / name / "theirs"
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("theirs")
    before = content(tmp_path)
    with pytest.raises(ConfigError, match=f"holds {name}.*another --out"):
        RunFolder(tmp_path, SETTINGS, fresh=fresh)
    assert content(tmp_path) == before


def test_fresh_on_a_foreign_folder_is_refused_by_the_command_and_touches_nothing(bundle, tmp_path, capsys):
    theirs = other_peoples(tmp_path)
    for command in ("rl", "demo"):
        assert main([command, "--bundle", str(bundle), "--quick", "--fresh", "--out", str(tmp_path)]) == 2
        assert "another --out" in capsys.readouterr().err
    assert content(tmp_path) == theirs


def test_other_settings_are_named_with_both_values(tmp_path):
    run(tmp_path, restart=AGAIN)
    with pytest.raises(ConfigError, match=r"lr: there 0.001, here 0.002.*--fresh"):
        RunFolder(tmp_path, {**SETTINGS, "lr": 2e-3}, restart=AGAIN)


def test_a_marker_can_not_point_outside_the_folder(tmp_path):
    (tmp_path / "theirs").write_text("x")
    folder = RunFolder(tmp_path / "out", SETTINGS)
    for name in ("../theirs", str(tmp_path / "theirs"), ".", ""):
        folder.own(name)
    RunFolder(tmp_path / "out", SETTINGS, fresh=True)
    assert (tmp_path / "theirs").is_file() and (tmp_path / "out" / "state" / MARKER).is_file()


@given(where=st.integers(0, 10**6), bit=st.integers(0, 7), name=st.sampled_from([MARKER, "history.json"]))
def test_a_flipped_bit_in_what_is_remembered_is_noticed(tmp_path_factory, where, bit, name):
    out = tmp_path_factory.mktemp("run")
    RunFolder(out, SETTINGS).write("history", [{"success": 0.5, "loss": 1.25}])
    file = out / "state" / name
    data = bytearray(file.read_bytes())
    data[where % len(data)] ^= 1 << bit
    file.write_bytes(data)
    try:
        found = RunFolder(out, SETTINGS)
        value = found.read("history")
    except CheckpointError as error:
        assert name in str(error) and "another --out" in str(error)
    else:  # white space, or the case of a digit of an escape
        assert found.settings == SETTINGS and value == [{"success": 0.5, "loss": 1.25}]


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "\x00", '{"settings": {}, "finished": false}', "[" * 99_999]
)
@pytest.mark.parametrize("fresh", [False, True])
def test_a_damaged_marker_is_a_sentence_and_removes_nothing(tmp_path, text, fresh):
    run(tmp_path)
    (tmp_path / "state" / MARKER).write_text(text)
    before = content(tmp_path)
    with pytest.raises(CheckpointError, match=f"{MARKER}.*another --out"):
        RunFolder(tmp_path, SETTINGS, fresh=fresh)
    assert content(tmp_path) == before


def test_a_resumed_board_has_every_step_once_whoever_reads_it(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "events.out.tfevents.1.host.2.0").write_bytes(b"")
    for last in (3, 5):  # the first writer is killed before its steps 2 and 3 are remembered
        with RunFolder(tmp_path, SETTINGS).board() as board:
            for step in range(1, last + 1):
                board.add_scalar("a", float(step), step)
    files = sorted(tmp_path.glob("events.out.*"))
    assert len(files) == 2
    events = EventAccumulator(str(files[1]))
    events.Reload()
    assert [e.step for e in events.Scalars("a")] == [1, 2, 3, 4, 5]


def test_settings_on_disk_are_plain_json(tmp_path):
    RunFolder(tmp_path, SETTINGS)
    assert json.loads((tmp_path / "state" / MARKER).read_text())["settings"] == SETTINGS
