"""Is each id of a column there once? Found out before anything is sent, in memory that does not grow with the file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Any, Final

import evergreen_client.files.values as values
from evergreen_client.files.errors import BadRow, Unreadable

if TYPE_CHECKING:
    from evergreen_client.files.reading import Table

_PILES: Final = 256
"""Files of hashes; one at a time is sorted: 31 MB for 10⁹ rows."""
_LOOKED_AT: Final = 1000
"""Pairs of rows with equal hashes that are compared at most."""


def check_ids(
    table: Table, column: str, *, nulls: bool, on_share: Callable[[float], None] = lambda share: None
) -> None:
    """Raise `Unreadable` when two rows have the same id, `BadRow` when one has none and `nulls` is false.

    A label is sent back by id: of two rows with one id, the first would never get its own. Reads the column once, and
    a second time only to show ids that repeat; needs 16 bytes a row in the folder of temporary files.
    """
    import numpy as np

    table.require([column])
    with tempfile.TemporaryDirectory(prefix="evergreen-ids-") as folder:
        piles = [open(f"{folder}/{number}", "w+b") for number in range(_PILES)]  # noqa: SIM115
        try:
            first = 1
            for batch in table.batches([column], 65_536):
                texts, faults = values.texts(batch.column(0))
                listed = texts.to_pylist()
                if faults:
                    row = min(faults)
                    raise BadRow(table.source, first + row, f"id column {column!r}: {faults[row]}")
                if not nulls and texts.null_count:
                    raise BadRow(table.source, first + listed.index(None), f"id column {column!r} is empty")
                hashes = np.fromiter(map(hash, listed), np.int64, len(listed))
                pairs = np.column_stack([hashes, np.arange(first, first + len(listed))])
                pairs = pairs[[one is not None for one in listed]] if texts.null_count else pairs
                _put(pairs, piles)
                first += len(listed)
                on_share(table.share)
            if repeated := _same_hashes(piles):
                _refuse(table, column, repeated)
        finally:
            for pile in piles:
                pile.close()


def _put(pairs: Any, piles: Sequence[IO[bytes]]) -> None:
    import numpy as np

    which = (pairs[:, 0].astype(np.uint64) >> np.uint64(56)).astype(np.int64)
    order = np.argsort(which, kind="stable")
    ends = np.cumsum(np.bincount(which, minlength=_PILES))
    ordered = pairs[order]
    for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        if end > start:
            piles[number].write(ordered[start:end].tobytes())


def _same_hashes(piles: Sequence[IO[bytes]]) -> list[tuple[int, int]]:
    """Pairs of rows whose ids have one hash."""
    import numpy as np

    found: list[tuple[int, int]] = []
    for pile in piles:
        pile.seek(0)
        pairs = np.frombuffer(pile.read(), np.int64).reshape(-1, 2)
        pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
        for at in np.flatnonzero(pairs[1:, 0] == pairs[:-1, 0]).tolist():
            found.append((int(pairs[at, 1]), int(pairs[at + 1, 1])))
    return sorted(found)[:_LOOKED_AT]


def _refuse(table: Table, column: str, pairs: list[tuple[int, int]]) -> None:
    """Raise `Unreadable` for the first pair of rows that do have the same id."""
    wanted = {row for pair in pairs for row in pair}
    texts: dict[int, str] = {}
    first = 1
    for batch in table.batches([column], 65_536):
        here = [row for row in wanted if first <= row < first + batch.num_rows]
        if here:
            listed = values.texts(batch.column(0))[0]
            texts |= {row: listed[row - first].as_py() for row in here}
        first += batch.num_rows
    for one, other in pairs:
        if texts[one] == texts[other]:
            raise Unreadable(
                f"{table.source}: the id column {column!r} has {values.shown(texts[one])} in row {one:,} and in row "
                f"{other:,}. A label finds its row by the id: name a column in which each id stands once, or leave "
                "ids to be made"
            )
