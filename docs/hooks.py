"""Pages that are made when the site is built, and the code of `docs/examples` in the guides.

`mkdocs.yml` names this module as a hook. `python docs/hooks.py` copies the example files into the guides.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
EXAMPLE = re.compile(r"```python\n# (my_robot/\w+\.py)\n.*?```", re.S)
MADE = ("changelog.md", "contributing.md", "commands_options.md")


def with_examples(text: str) -> str:
    """A guide's text with the present content of the example files that its code blocks name."""

    def block(match: re.Match[str]) -> str:
        return f"```python\n# {match[1]}\n{(DOCS / 'examples' / match[1]).read_text(encoding='utf-8')}```"

    return EXAMPLE.sub(block, text)


def copied(name: str) -> str:
    """A page of the repository's root, with its links as they are from `docs`."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for old, new in (("docs/", ""), ("CONTRIBUTING.md", "contributing.md"), ("CHANGELOG.md", "changelog.md")):
        text = text.replace(f"]({old}", f"]({new}")
    return text


def options() -> str:
    """The options of every command, as `--help` prints them."""
    os.environ.update(COLUMNS="100", NO_COLOR="1", TERM="dumb")
    sys.path.insert(0, str(ROOT))
    from experiments import cli

    parts = ["# Options of all commands", "", "As `worldgym COMMAND --help` prints them.", ""]
    for words in cli.COMMANDS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            cli.main([*words, "--help"])
        text = re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue()).strip()
        parts += [f"## worldgym {' '.join(words)}", "", "````text", text, "````", ""]
    return "\n".join(parts)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of `MADE`."""
    from mkdocs.structure.files import File

    texts = (copied("CHANGELOG.md"), copied("CONTRIBUTING.md"), options())
    for name, text in zip(MADE, texts, strict=True):
        files.append(File.generated(config, name, content=text))
    return files


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Docstrings introduce code with `Example::`; shown with one colon."""
    return html.replace("::</p>", ":</p>") if page.url.startswith("api/") else html


if __name__ == "__main__":
    for page in sorted((DOCS / "guides").glob("*.md")):
        page.write_text(with_examples(page.read_text(encoding="utf-8")), encoding="utf-8")
