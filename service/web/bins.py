"""Rows by bin: the one way in which the page counts values, of a reference as of a window. NumPy alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from service.web.shapes import Bars

if TYPE_CHECKING:
    import numpy.typing as npt

MOST_BINS: Final = 24
MOST_CATEGORIES: Final = 20
"""Kept apart; the rest are "others"."""
OTHERS: Final = "others"
SHOWN_CHARS: Final = 60
"""Of a category."""


class Sketch(msgspec.Struct, frozen=True):
    """One column of a reference, in bins."""

    bars: Bars
    edges: tuple[float, ...] | None = None
    categories: tuple[str, ...] | None = None
    """As they are, not cut; the last may be `OTHERS` with `rest` true."""
    rest: bool = False


def numbers(values: npt.NDArray[Any]) -> Sketch:
    """A column of numbers, NaN where one is missing: bins of one width between its 0.5 % and 99.5 % quantiles."""
    there = np.asarray(values, dtype=np.float64)
    there = there[np.isfinite(there)]
    if not len(there):
        return Sketch(Bars(rows=len(values), missing=len(values), counts=(), below=0, above=0), edges=())
    distinct = np.unique(there)
    if len(distinct) <= MOST_BINS and (distinct == np.round(distinct)).all() and np.ptp(distinct) < MOST_BINS:
        edges = np.arange(distinct[0] - 0.5, distinct[-1] + 1.0)  # whole numbers: a bin each
    else:
        low, high = np.quantile(there, (0.005, 0.995))
        if low == high:
            low, high = there.min(), there.max()
        if low == high:
            low, high = low - 0.5, high + 0.5
        edges = np.linspace(low, high, MOST_BINS + 1)
    found = tuple(edges.tolist())
    return Sketch(counted(values, found), edges=found)


def counted(values: npt.NDArray[Any], edges: Sequence[float]) -> Bars:
    """Numbers by bin: each has its left edge, the last its right one, too."""
    given = np.asarray(values, dtype=np.float64)
    there = given[np.isfinite(given)]
    missing = len(given) - len(there)
    if len(edges) < 2:
        return Bars(rows=len(given), missing=missing, counts=(), below=0, above=0)
    return Bars(
        rows=len(given),
        missing=missing,
        counts=tuple(np.histogram(there, np.asarray(edges))[0].tolist()),
        below=int((there < edges[0]).sum()),
        above=int((there > edges[-1]).sum()),
    )


def categories(values: Sequence[str | None]) -> Sketch:
    """A column of categories: the most frequent ones, and the rest together."""
    counts = Counter(value for value in values if value is not None)
    kept = [name for name, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:MOST_CATEGORIES]]
    rest = len(counts) > len(kept)
    names = (*kept, OTHERS) if rest else tuple(kept)
    return Sketch(of_categories(values, names, rest=rest), categories=names, rest=rest)


def of_categories(values: Sequence[str | None], names: Sequence[str], *, rest: bool) -> Bars:
    """Categories by their name; those that are not among `names` count in the last bin when it is the rest's."""
    counts = Counter(value for value in values if value is not None)
    own = names[:-1] if rest else names
    found = [counts.get(name, 0) for name in own]
    others = sum(counts.values()) - sum(found)
    return Bars(
        rows=len(values),
        missing=sum(value is None for value in values),
        counts=(*found, others) if rest else tuple(found),
        below=0,
        above=0 if rest else others,
    )
