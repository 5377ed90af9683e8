"""The README's Python runs as it stands, on the bundled weights; the commands in it exist, and so do their options."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = "# my_robot/"  # a file of docs/examples, which tests/test_docs.py runs
# the pages of claims are generated, and those of the API are built from docstrings
PAGES = [
    ROOT / "README.md",
    *(
        page
        for page in sorted((ROOT / "docs").rglob("*.md"))
        if page.parent.name not in ("results", "api", "examples") or page.name == "demo.md"
    ),
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


SNIPPETS = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(blocks(page, "python"))
    if not code.startswith(EXAMPLE)
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_every_python_snippet_runs(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:worldgym", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    if missing := re.search(r"ModuleNotFoundError: No module named '(\w+)", done.stderr):
        if missing[1] not in ("worldgym", "envs", "rewards", "agents", "experiments"):
            pytest.skip(f"needs the optional package {missing[1]}")
    assert done.returncode == 0, done.stderr


def commands() -> list[str]:
    """What is typed in shell blocks and in the tables of commands."""
    lines: list[str] = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        joined = "\n".join(blocks(page, "(?:sh|bash)?")).replace("\\\n", " ")
        lines += joined.splitlines()
        lines += [
            code
            for row in text.splitlines()
            if row.startswith("| ")
            for code in re.findall(r"`([^`]+)`", row)
        ]
    return sorted({" ".join(line.split("#")[0].split()) for line in lines} - {""})


@lru_cache(maxsize=64)
def help_of(path: tuple[str, ...]) -> str:
    """What `--help` of a command prints, in this process."""
    from experiments import cli

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        cli.main([*path, "--help"])
    return printed.getvalue()


@pytest.mark.parametrize("line", [c for c in commands() if c.startswith("worldgym ")])
def test_every_command_exists_with_its_options(line):
    from experiments.cli import COMMANDS

    words = shlex.split(line.replace("[", "").replace("]", ""))[1:]
    path = tuple(words[:2]) if tuple(words[:2]) in COMMANDS else tuple(words[:1])
    if path not in COMMANDS:
        pytest.fail(f"{line!r}: no such command")
    known = help_of(path)
    for option in (word for word in words if word.startswith("--")):
        assert re.search(rf"{re.escape(option)}\b", known), f"{line!r}: {option} is none of {path}'s options"


@pytest.mark.parametrize("line", [c for c in commands() if c.startswith("make ")])
def test_every_target_exists(line):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
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
        [sys.executable, *words[1:], *short], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results.json").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_and_picture_exists(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
    assert "@@" not in text, "a placeholder is left"
