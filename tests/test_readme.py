"""The README's Python runs as it stands, on the bundled weights."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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


def test_every_picture_exists():
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / picture).is_file(), picture


def test_no_placeholder_is_left():
    assert "@@" not in README.read_text(encoding="utf-8")
