"""Lines that fit a terminal; into a pipe they are whole, the cells of a table apart by tabs."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, Final

GAP: Final = "  "
NARROWEST: Final = 6
"""Cells that a column keeps when a table is too wide,"""
NARROWEST_LAST: Final = 12
"""and the last one, which is cut first,"""
NARROWEST_SENTENCE: Final = 30
"""and the last one when it is broken instead."""


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is; None when it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(
    head: Sequence[str], rows: Iterable[Sequence[Any]], width: int | None, *, sentences: bool = False
) -> list[str]:
    """A line for the head and one for each row.

    In a terminal of `width` cells stand below each other; what does not fit is cut with an ellipsis, in the last column
    first, then in the widest. A column without any value is left out. With `sentences` the last column is broken
    between words instead, over as many lines as it takes.
    """
    cells = [list(head), *([_cell(value) for value in row] for row in rows)]
    if width is None:
        return ["\t".join(row) for row in cells]
    from rich.cells import cell_len, set_cell_size

    filled = [any(row[column] for row in cells[1:]) for column in range(len(head))]
    cells = [[cell for cell, there in zip(row, filled, strict=True) if there] for row in cells]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    room = width - len(GAP) * (len(widths) - 1)
    least = NARROWEST_SENTENCE if sentences else NARROWEST_LAST
    widths[-1] = min(widths[-1], max(room - sum(widths[:-1]), least))
    while sum(widths) > room and max(cut := widths[: -1 if sentences else None], default=0) > NARROWEST:
        widths[cut.index(max(cut))] -= 1
    if sentences:
        cells = [line for row in cells for line in _broken(row, widths[-1])]

    def fitted(cell: str, size: int) -> str:
        return set_cell_size(cell, size) if cell_len(cell) <= size else set_cell_size(cell, size - 1) + "…"

    return [GAP.join(map(fitted, row, widths)).rstrip() for row in cells]


def _broken(row: Sequence[str], width: int) -> list[list[str]]:
    """A row as several, the last cell broken between words; the other cells stand in the first."""
    first, *rest = textwrap.wrap(row[-1], width, break_on_hyphens=False) or [""]
    return [[*row[:-1], first], *([*[""] * (len(row) - 1), line] for line in rest)]


def paragraph(text: str, width: int | None, *, first: str = "", rest: str = "") -> list[str]:
    """The text behind `first`; in a terminal broken between words, its other lines behind `rest`."""
    whole = first + _cell(text)
    if width is None:
        return [whole]
    return textwrap.wrap(
        _cell(text),
        max(width, 40),
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
    ) or [whole.rstrip()]


def named(parts: Iterable[tuple[str, str]], width: int | None) -> list[str]:
    """Paragraphs behind their names, which stand in a column of their own; a name is said once for those in a row."""
    found = list(parts)
    wide = max((len(name) for name, _ in found), default=0)
    lines, before = [], None
    for name, text in found:
        shown = "" if name == before and width is not None else name
        first = f"{GAP}{shown:<{wide}}{GAP}"
        lines += paragraph(text, width, first=first, rest=" " * len(first))
        before = name
    return lines


def _cell(value: Any) -> str:
    """One line of what can be printed: a reason given by somebody must not move the cursor."""
    text = " ".join(str("" if value is None else value).split())
    return text if text.isprintable() else "".join(one if one.isprintable() else "?" for one in text)
