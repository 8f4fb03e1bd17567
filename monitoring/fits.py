"""What may a value be? The limits that the door sets and that every room behind it can take.

`/predict`, `/v2` and `/feedback` refuse what does not fit; the drain, the window, drift, training, export and erasure
ask here too, and leave out and count what does not fit all the same: rows that were recorded by an older release, or
under another schema. Nothing here imports anything of ours.
"""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

FLOAT32_LIMIT: Final = float(2**128 - 2**103)
"""Features: doubles strictly between ± this round to a finite float32; this one and beyond would become infinite."""

TARGET_LIMIT: Final = 1e30
"""Labels and answers of a regression, between ± this. Boosting sums gradients in float32 and metrics square in float64:
from about 1e37 on a single label made every training fail."""

INT64: Final = 2**63
"""Labels that are whole numbers: -INT64 <= label < INT64, compared as integers, never by way of a float."""

ID_CHARS: Final = 128
"""Printable characters of a prediction id, at least one."""

CATEGORY_CHARS: Final = 1024
"""Characters of one category at the door unless a setting says otherwise."""

LONGEST_CATEGORY: Final = 8192
"""Characters of one category that no setting exceeds, and that the rooms take."""

INSTANT_CHARS: Final = 64
"""Characters of an ISO 8601 time; the longest useful one has 32."""

LABEL_CHARS: Final = 1024
"""Characters of a label that is text."""

LABEL_JSON: Final = 12 * LABEL_CHARS + 2
"""Bytes of a label in JSON: each character may be written as two escapes of six."""

AHEAD_S: Final = 300.0
"""Seconds that a label's time may be ahead of the server's clock: clocks differ, outcomes do not precede."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAY: Final = timedelta(days=1)
_EARLIEST: Final = datetime.min.replace(tzinfo=UTC).timestamp()
_LATEST: Final = datetime.max.replace(tzinfo=UTC, microsecond=0).timestamp()


def feature_number(value: Any) -> bool:
    """Whether it is a number that a float32 can hold."""
    return is_number(value) and -FLOAT32_LIMIT < _float(value) < FLOAT32_LIMIT


def feature_value(kind: str, value: Any) -> bool:
    """Whether a JSON value may stand in a feature of that kind; null always may."""
    if value is None:
        return True
    if kind == "numeric":
        return feature_number(value)
    if kind == "boolean":
        return isinstance(value, bool)
    if not isinstance(value, str):
        return False
    if kind == "categorical":
        return len(value) <= LONGEST_CATEGORY
    try:
        instant(value)
        return True
    except ValueError:
        return False


def target_number(value: Any) -> bool:
    """Whether it is a number that a regression can learn and be measured by."""
    return is_number(value) and -TARGET_LIMIT <= _float(value) <= TARGET_LIMIT


def whole_number(value: Any) -> bool:
    """Whether it is a number without a fraction that an int64 can hold."""
    return is_number(value) and -INT64 <= value < INT64 and value == int(value)


def _float(value: float) -> float:
    """What every room makes of it: an integer just below a limit may round up to the limit."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def id_text(value: str) -> bool:
    """Whether a prediction may have this id."""
    return 1 <= len(value) <= ID_CHARS and value.isprintable()


def label_problem(value: Any) -> str | None:
    """Why a JSON value can be nobody's label, whatever the model; None when it may be one."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        if len(value) > LABEL_CHARS:
            return f"{len(value):,} characters; send at most {LABEL_CHARS:,}"
        return None
    if value is None:
        return "a label cannot be null: leave it out until it is known"
    if not is_number(value):
        return "expected a number, a string, true or false"
    return None if target_number(value) else f"expected a number within ±{TARGET_LIMIT:g}"


def instant(value: str | date) -> datetime:
    """An ISO 8601 text, date or datetime with its offset; without one it is taken as UTC.

    Raises ValueError when the text is not ISO 8601 (as `datetime.fromisoformat` of Python 3.11 reads it) or too long.
    """
    if isinstance(value, str):
        if len(value) > INSTANT_CHARS:
            raise ValueError(f"a time of {len(value):,} characters")
        value = datetime.fromisoformat(value)
    elif not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


def days_since_epoch(value: str | date) -> float:
    """Days since 1970-01-01 UTC of what `instant` takes; from -719,164 (year 1) to 2,932,898 (year 9999)."""
    return (instant(value) - _EPOCH) / _DAY


def moment(value: float | str) -> float:
    """A label's `observed_at` in seconds since 1970 UTC: a number, or what `instant` takes.

    Raises ValueError, with what it got, when it is neither or lies outside the years 1 to 9999.
    """
    try:
        seconds = instant(value).timestamp() if isinstance(value, str) else float(value)
    except (ValueError, OverflowError):
        raise ValueError(
            f"expected seconds since 1970 or an ISO 8601 time such as 2026-01-31T12:00:00Z, got {str(value)[:40]!r}"
        ) from None
    if not (math.isfinite(seconds) and _EARLIEST <= seconds <= _LATEST):
        raise ValueError(f"expected a time of the years 1 to 9999, got {str(value)[:40]!r}")
    return seconds


def iso(seconds: float) -> str:
    """Seconds since 1970 as `2026-01-31T12:00:00Z`."""
    return (_EPOCH + timedelta(seconds=round(seconds))).isoformat().replace("+00:00", "Z")
