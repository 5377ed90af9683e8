"""The documentation site builds without a warning, and the Python in its guides compiles."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCKS = [
    pytest.param(code, id=f"{page.relative_to(DOCS).with_suffix('')}-{number}")
    for page in sorted(DOCS.rglob("*.md"))
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S))
]


def test_the_site_builds_strictly(tmp_path):
    for name in ("mkdocs", "material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}: pip install -e '.[docs]' -c constraints.txt")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'id="agents.' in (tmp_path / "site/api/agents.html").read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} == listed


@pytest.mark.parametrize("code", BLOCKS)
def test_every_python_block_compiles(code):
    compile(code, "<guide>", "exec")


def test_no_page_loads_anything_from_elsewhere():
    for page in sorted(DOCS.rglob("*.md")):
        assert not re.search(r"(!\[[^]]*\]\(|src=\")https?://", page.read_text(encoding="utf-8")), page
