"""Tables of our pages.

Example::

    table(["judge", "FPR"], [["learned", number(0.05)]])
"""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """HTML of a table whose first column is text and whose others are numbers; cells are HTML already."""
    cells = lambda row, tag: "".join(  # noqa: E731
        f"<{tag}{' class=n' if i else ''}>{cell}</{tag}>" for i, cell in enumerate(row)
    )
    lines = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{cells(header, "th")}</tr>{lines}</table></div>'


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash for None and for what is not one."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"
