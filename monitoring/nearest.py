"""Which known word someone may have meant who wrote another one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST_CHARS = 200
"""Of the word that is compared: a client may send one of any length."""


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """The known word most like `word`, "" when none is; `cutoff` is how like it must be, 0 … 1 (equal).

    >>> from monitoring.nearest import nearest
    >>> nearest("prot", ["host", "port"])
    'port'
    """
    found = difflib.get_close_matches(word[:LONGEST_CHARS], list(known), n=1, cutoff=cutoff)
    return found[0] if found else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean "x"?` for the end of a message, "" when no known word is like it."""
    found = nearest(word, known)
    return f', did you mean "{found}"?' if found else ""
