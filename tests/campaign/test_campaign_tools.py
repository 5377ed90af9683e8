"""The campaign's tools: a few cases of each, and the parts that decide what is good and bad."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil

import numpy as np
import pytest

from . import compare, deaths, operators, report
from .harness import Book, forked, markdown
from .kills import cases as kill_cases
from .mutations import cases as mutation_cases
from .workspace import COMMANDS


def test_a_child_gives_its_value_its_code_or_the_signal_that_ended_it(tmp_path):
    assert forked(lambda: {"a": 1}).value == {"a": 1}
    assert forked(lambda: 3).code == 3
    log = tmp_path / "log"
    assert forked(lambda: 1 / 0, log=log).code == 70 and "ZeroDivisionError" in log.read_text()
    slow = forked(lambda: __import__("time").sleep(60), seconds=0.05)
    assert slow.late and slow.code == -9
    assert not forked(lambda: __import__("time").sleep(60), until=0.05).late


def test_a_process_dies_before_the_change_it_was_told(tmp_path):
    from worldgym.utils.files import atomic_write_text

    def write():
        seen = deaths.watch(tmp_path)
        atomic_write_text(tmp_path / "a", "x")
        (tmp_path.parent / "elsewhere").touch()
        return {"changes": seen.count}

    changes = forked(write).value["changes"]
    assert changes >= 5
    for at in range(1, changes + 1):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()

        def write_and_die(at=at):
            deaths.watch(tmp_path, at)
            atomic_write_text(tmp_path / "a", "x")
            return 0

        assert forked(write_and_die).code == deaths.KILLED
        assert not (tmp_path / "a").exists() or (tmp_path / "a").read_text() == "x"


def test_a_full_disk_stays_full(tmp_path):
    def write():
        deaths.watch(tmp_path, 1, errno.ENOSPC)
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                (tmp_path / "a").write_text("x")
        return 0

    assert forked(write).code == 0


def test_results_are_compared_without_times_and_without_the_order_of_tensors(tmp_path):
    import torch
    from safetensors.torch import save_file

    for name, seconds, order in (("a", 1.0, ("x", "y")), ("b", 2.0, ("y", "x"))):
        folder = tmp_path / name
        folder.mkdir()
        save_file({key: torch.full((2,), float(ord(key))) for key in order}, folder / "m.safetensors")
        (folder / "r.json").write_text(
            json.dumps({"seconds": {"all": seconds}, "rate": 0.5, "out": str(folder)})
        )
    one, two = compare.facts(tmp_path / "a"), compare.facts(tmp_path / "b")
    assert len(one) >= 4 and compare.differences(one, two) == []
    (tmp_path / "b" / "r.json").write_text(json.dumps({"rate": 0.25, "out": str(tmp_path / "b")}))
    assert compare.differences(one, compare.facts(tmp_path / "b")) == ["r.json#/rate"]
    (tmp_path / "b" / ".tmp-0123456789ab").mkdir()
    assert compare.leftovers(tmp_path / "b") == [".tmp-0123456789ab"]


@pytest.mark.parametrize("operator", operators.OPERATORS)
def test_every_operator_changes_a_file_or_says_that_it_does_not_apply(tmp_path, operator):
    import torch
    from safetensors.torch import save_file

    applied = 0
    for turn in range(12):
        root = tmp_path / str(turn)
        root.mkdir()
        save_file({"w": torch.arange(8.0)}, root / "m.safetensors")
        save_file({"w": torch.arange(3.0)}, root / "n.safetensors")
        np.savez(root / "a.npz", x=np.arange(6.0).reshape(3, 2), y=np.array(["a", "b", "c"]))
        (root / "c.json").write_text(json.dumps({"format": 1, "names": ["a"], "inner": {"x": 0.5}}))
        for file in ("m.safetensors", "a.npz", "c.json"):
            before = (root / file).read_bytes()
            told = operators.mutate(root, file, operator, random.Random(turn))
            path = root / file
            same = path.is_file() and path.read_bytes() == before
            assert (told is None) == same, (operator, file, told)
            applied += told is not None
            if path.is_dir():
                path.rmdir()
            path.write_bytes(before)
    assert applied


def test_cases_cover_every_command_and_both_kinds_and_are_the_same_every_time():
    names = kill_cases(240, 0)
    assert names == kill_cases(240, 0) and len(set(names)) == 240
    for command in COMMANDS:
        kinds = {name.split(".")[1] for name in names if name.startswith(f"{command}.")}
        assert kinds == {"change", "moment"}, command
    assert len(set(mutation_cases(1200, 0))) == 1200


def test_a_book_goes_on_after_a_line_that_was_cut_off(tmp_path):
    file = tmp_path / "kills.jsonl"
    Book(file).add(
        {"id": "a", "outcome": "equal", "bad": False, "command": "x", "kind": "change", "seconds": 1.0}
    )
    with file.open("a") as stream:
        stream.write('{"id": "b", "out')
    book = Book(file)
    assert list(book.rows) == ["a"]
    book.add(
        {"id": "c", "outcome": "differs: y", "bad": True, "command": "x", "kind": "moment", "seconds": 2.0}
    )
    assert list(Book(file).rows) == ["a", "c"]
    assert "| x | 2 | 1 | 1 |" in markdown(list(book.rows.values()), "command")
    text = report.page(tmp_path)
    assert "2 cases, 1 bad" in text and "Bad cases" in text and "differs: y" in text


@pytest.mark.parametrize("tool", ["kills", "disks"])
def test_a_few_cases_of_a_cheap_command(tmp_path, tool):
    """In a process of its own: the tool forks, and must not inherit what other tests have started."""
    import subprocess
    import sys

    line = [sys.executable, "-m", f"tests.campaign.{tool}", "--count", "4", "--only", "import."]
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    done = subprocess.run(
        [*line, "--work", str(tmp_path / "work"), "--out", str(tmp_path / "x.jsonl")],
        capture_output=True, text=True, cwd=root, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "import" in done.stdout


def test_a_few_damaged_files(tmp_path):
    import subprocess
    import sys

    line = [sys.executable, "-m", "tests.campaign.mutations", "--count", "20", "--only", "train_state."]
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    done = subprocess.run(
        [*line, "--work", str(tmp_path / "work"), "--out", str(tmp_path / "x.jsonl")],
        capture_output=True, text=True, cwd=root, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train_state" in done.stdout
