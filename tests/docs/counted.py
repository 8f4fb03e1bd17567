"""What the tests of the documents have run, for the summary at their end."""

from __future__ import annotations

from collections import Counter
from typing import Final

DONE: Final = Counter[str]()
"""`run`: commands; `answers`: answers compared; of all pages."""
NOT_RUN: Final[list[str]] = []
"""Commands that are not run, with why."""
