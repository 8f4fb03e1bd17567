"""Does a column hold moments, and how are they written?

pandas is imported only inside the functions.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from monitoring.fits import INSTANT_CHARS

if TYPE_CHECKING:
    import pandas as pd

ISO: Final = "ISO8601"
"""What stands for ISO 8601 among the formats, as in `pandas.to_datetime`."""

_DAYS: Final = (
    *("%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y.%m.%d", "%Y%m%d"),
    *("%d/%m/%y", "%m/%d/%y", "%d.%m.%y", "%d-%b-%Y", "%d-%b-%y", "%d %b %Y", "%d %B %Y"),
    *("%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%a, %d %b %Y", "%a %b %d %Y"),
)
_CLOCKS: Final = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p", "T%H:%M:%S", ", %H:%M")
_ISO_TEXT: Final = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d.*)?")
_NAME: Final = re.compile(r"time|date|epoch|moment|(^|_)(at|ts|on)$", re.IGNORECASE)
_SECONDS: Final = (631_152_000, 4_102_444_800)
"""1990 … 2100: numbers in between may be seconds since 1970."""
UNITS: Final = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
"""Unit of a number → how many are a second."""

_ENOUGH: Final = 0.9
"""Share of the different texts that are read in a format, for the column to be of dates with some odd values."""


class Written(NamedTuple):
    """How the texts of a column write moments."""

    formats: tuple[str, ...]
    """Empty: it holds no dates. Two: the day may be the month."""
    odd: str | None = None
    """A text that is no date, of a column of dates otherwise."""


def written(column: pd.Series[Any]) -> Written:
    """How a column of text writes dates; no formats when it holds something else.

    >>> import pandas as pd
    >>> written(pd.Series(["31/01/2026", "01/02/2026"]))
    Written(formats=('%d/%m/%Y',), odd=None)
    >>> written(pd.Series(["01/02/2026", "03/04/2026"])).formats
    ('%d/%m/%Y', '%m/%d/%Y')
    """
    import pandas as pd

    texts = pd.Series(column.dropna().astype(object).unique(), dtype=object)
    if not len(texts) or not all(isinstance(text, str) for text in texts):
        return Written(())
    texts = texts.str.strip()
    few = texts.iloc[:: max(1, len(texts) // 50)]
    if not few.str.contains(r"\d").mean() >= _ENOUGH:
        return Written(())
    best = Written(())
    for form in (ISO, *(day + clock for clock in _CLOCKS for day in _DAYS)):
        if _read(few, form).mean() < _ENOUGH - 0.1:
            continue
        read = _read(texts, form)
        if read.all():
            if best.odd is not None or not best.formats:
                best = Written((form,))
            elif len(best.formats) < 2:
                best = Written((*best.formats, form))
        elif read.mean() >= _ENOUGH and not best.formats:
            best = Written((form,), str(texts[~read].iloc[0]))
    return _in_order(column, best) if len(best.formats) > 1 else best


def _read(texts: pd.Series[Any], form: str) -> pd.Series[bool]:
    """Which texts the format reads."""
    import pandas as pd

    read = pd.to_datetime(texts, format=form, errors="coerce", utc=True).notna()
    return read & texts.str.fullmatch(_ISO_TEXT) if form == ISO else read


def _in_order(column: pd.Series[Any], found: Written) -> Written:
    """Of two formats the one by which the rows stand in time order, when it is one."""
    import pandas as pd

    texts = column.dropna().astype(object)
    moments = {form: pd.to_datetime(texts.str.strip(), format=form, utc=True) for form in found.formats}
    ordered = [form for form, read in moments.items() if read.is_monotonic_increasing or read.is_monotonic_decreasing]
    return Written((ordered[0],)) if len(ordered) == 1 else found


def iso_texts(column: pd.Series[Any]) -> bool:
    """Whether every value is an ISO 8601 date as a request may send one, such as `2026-01-31` or with a time of day."""
    texts = column.dropna().unique()
    return len(texts) > 0 and all(isinstance(text, str) and _is_iso(text) for text in texts)


def _is_iso(text: str) -> bool:
    if len(text) > INSTANT_CHARS or not _ISO_TEXT.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def holds_numbers(column: pd.Series[Any]) -> bool:
    """Whether the column is of numbers; booleans are none."""
    import pandas as pd

    return bool(pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype))


def epoch_unit(column: pd.Series[Any]) -> str | None:
    """The unit ("s", "ms", "us", "ns") in which all numbers of a column may count from 1970 UTC; None for others."""
    import pandas as pd

    if not holds_numbers(column):
        return None
    least, most = column.min(), column.max()
    if pd.isna(least):
        return None
    first, last = _SECONDS
    return next((unit for unit, many in UNITS.items() if first * many <= least and most <= last * many), None)


def days_as_numbers(column: pd.Series[Any]) -> bool:
    """Whether all numbers of a column are days such as 20260131."""
    import pandas as pd

    if not holds_numbers(column):
        return False
    numbers = pd.Series(column.dropna().unique())
    if not len(numbers) or not (numbers.between(19000101, 21001231) & (numbers % 1 == 0)).all():
        return False
    return bool(pd.to_datetime(numbers.astype("int64").astype(str), format="%Y%m%d", errors="coerce").notna().all())


def named_as_time(name: str) -> bool:
    """Whether a name says time, as `pickup_time`, `date` or `created_at` do."""
    return _NAME.search(name) is not None
