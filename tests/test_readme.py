"""The README's Python runs as it stands, on the bundled weights; the commands in it exist, and so do their options."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_every_python_snippet_runs():
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    assert snippets
    for code in snippets:
        done = subprocess.run(
            [sys.executable, "-W", "error::DeprecationWarning:worldgym", "-c", code],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def commands() -> list[str]:
    """What is typed in shell blocks and in the table of commands."""
    text = README.read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```(?:sh)?\n(.*?)```", text, re.S) for line in block.splitlines()]
    cells = [row.split("|")[1] for row in text.splitlines() if row.startswith("| `")]
    lines += [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]
    return sorted({line.split("#")[0].strip() for line in lines} - {""})


@pytest.mark.parametrize("line", [c for c in commands() if c.startswith("worldgym ")])
def test_every_command_exists_with_its_options(line):
    from experiments.cli import COMMANDS

    words = shlex.split(line.replace("[", "").replace("]", ""))[1:]
    path = tuple(words[:2]) if tuple(words[:2]) in COMMANDS else tuple(words[:1])
    if path not in COMMANDS:
        pytest.fail(f"{line!r}: no such command")
    done = subprocess.run([sys.executable, "-m", "worldgym", *path, "--help"], capture_output=True, text=True)
    known = done.stdout + done.stderr
    for option in (word for word in words if word.startswith("--")):
        assert re.search(rf"{re.escape(option)}\b", known), f"{line!r}: {option} is none of {path}'s options"


@pytest.mark.parametrize("line", [c for c in commands() if c.startswith("make ")])
def test_every_target_exists(line):
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    target = shlex.split(line)[1]
    assert re.search(rf"^{re.escape(target)}:", makefile, re.M), line


@pytest.mark.parametrize("line", [c for c in commands() if c.startswith("python -m experiments.examples.")])
def test_every_example_runs(line, tmp_path):
    """As typed, but for seconds: what it learns is measured by the run whose picture stands beside it."""
    words = shlex.split(line)
    if words[2].endswith("curves"):
        pytest.skip("draws what the others wrote; tested on its own")
    short = ["--num-envs", "4", "--eval-episodes", "4", "--threads", "1", "--out", str(tmp_path)]
    short += ["--frames", "640"] if "--frames" in words or words[2].endswith("ppo") else ["--minutes", "0.01"]
    done = subprocess.run(
        [sys.executable, *words[1:], *short], capture_output=True, text=True, cwd=README.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results.json").is_file()


def test_every_picture_exists():
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / picture).is_file(), picture


def test_no_placeholder_is_left():
    assert "@@" not in README.read_text(encoding="utf-8")
