"""Is what was printed what the page shows? Words must be the same; numbers, ids and moments differ from run to run.

- a number is as good as any other, and so is an id: eight hexadecimal digits or more;
- how much white space there is, and where a line ends, does not count; nor how long a ruled line is;
- `…` stands for anything, also for nothing.
"""

from __future__ import annotations

import difflib
import re
from typing import Final

ANYTHING: Final = "…"
_SHAPES: Final = (
    (re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]"), ""),
    (re.compile(r"\b(?=[0-9a-f-]*\d)[0-9a-f][0-9a-f-]{6,}[0-9a-f]\b"), "0"),
    (re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"), "0"),
    (re.compile(r"\d+"), "0"),
    (re.compile(r"[─━]+"), "─"),
    (re.compile(r"\s+"), " "),
)


def shape(text: str) -> str:
    """The text with every number as 0 and white space as one blank."""
    for pattern, instead in _SHAPES:
        text = pattern.sub(instead, text)
    return text.strip()


def same(shown: str, printed: str) -> bool:
    """Whether `printed` is what a page shows as `shown`."""
    parts = [re.escape(shape(part)) for part in shown.split(ANYTHING)]
    return re.fullmatch(".*?".join(parts), shape(printed), re.DOTALL) is not None


def difference(shown: str, printed: str) -> str:
    """Both, line by line, for whoever mends the page."""
    lines = [[shape(line) for line in text.splitlines()] for text in (shown, printed)]
    return "\n".join(difflib.unified_diff(*lines, "the page shows", "it printed", lineterm="", n=100)) + (
        f"\n\nas it was printed:\n{printed}"
    )
