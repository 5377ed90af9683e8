"""Tables of the HTML pages.

Example::

    table(["judge", "FPR"], [["learned", number(0.05)]])
"""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """HTML table with text in the first column and numbers in the others; cells are already HTML."""
    cells = lambda row, tag: "".join(  # noqa: E731
        f"<{tag}{' class=n' if i else ''}>{cell}</{tag}>" for i, cell in enumerate(row)
    )
    lines = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{cells(header, "th")}</tr>{lines}</table></div>'


def number(value: float | None, digits: int = 2) -> str:
    """Format a number; a dash for None and nan."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"
