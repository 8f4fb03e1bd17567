"""What is each column of a data file: a feature, or one to leave out, and why?

The commonest way to fool oneself with a prediction service is a column that is known only after the fact. So every
column is looked at alone: does it equal the target, tell it all by itself, never change, name each row? pandas is
imported only inside the functions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from monitoring.feature import MAX_CATEGORIES
from monitoring.moments import ISO, days_as_numbers, epoch_unit, named_as_time, written
from monitoring.wording import percent
from service.replay.stream import LEAST_DATE
from training.leak import MEASURE, tells

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from monitoring.schema import FeatureSchema

LOOKED_AT_ROWS: Final = 20_000
"""Rows from which it is judged what a column tells of the target, evenly spread: a second or two for any file."""
LEAK: Final = 0.99
"""A column that alone tells more of the target than this is left out,"""
NEARLY: Final = 0.9
"""and one that tells more than this is worth a look."""
SELDOM: Final = 10
"""Rows; a category that stands in fewer is too seldom for a model to learn what it means."""
FEW: Final = 50
"""Rows below which neither ids nor a sorted target are told from chance."""

_ID_NAME: Final = re.compile(r"(id|uuid|guid)$", re.IGNORECASE)
_UNITS: Final = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


@dataclass(frozen=True, slots=True)
class Column:
    """What was decided of a column."""

    name: str
    kind: str
    """numeric, boolean, categorical, datetime."""
    use: Literal["feature", "target", "time", "left out"]
    why: str = ""
    """Of a feature: what to look at; "" when there is nothing."""
    line: int | None = None
    """Of the settings file; without it the column is a feature again."""


def decide(frame: pd.DataFrame, schema: FeatureSchema, *, time: str = "") -> list[Column]:
    """A decision for each feature of `schema`, in its order; all rows of `frame` have a label.

    Left out are constants, copies of the target and of earlier columns, ids, free text, dates that the service could
    not read, the time of the rows, what tells the target too well, and categories of too many values.
    """
    import numpy as np

    regression = schema.task == "regression"
    target = frame[schema.target]
    rows = frame.iloc[:: max(1, len(frame) // LOOKED_AT_ROWS)]
    aim = rows[schema.target].to_numpy(dtype=float) if regression else _codes(rows[schema.target])
    measure = MEASURE[regression]
    proposed = "" if time else time_of(frame, schema.names)
    at = _seconds_in_order(frame, time, proposed)
    found: list[Column] = []
    kept: dict[tuple[Any, ...], list[str]] = {}  # by a few of their values: each pair compared whole would take minutes
    numbers: dict[str, npt.NDArray[np.float64]] = {}
    for feature in schema.features:
        name = feature.name
        why = (
            _by_itself(frame[name], time=name == proposed)
            or _again(frame, name, kept.get(_few(frame[name]), ()), target)
            or _with_time(frame[name], feature.kind, time or proposed, at)
        )
        if why:
            found.append(Column(name, feature.kind, "left out", why))
            continue
        codes = _numbers(rows[name], feature.kind)
        score = tells(codes, aim, regression)
        if score > LEAK:
            why = f"leak: alone tells the target ({measure} {score:.3f}); is it known when predicting?"
            found.append(Column(name, feature.kind, "left out", why))
            continue
        if feature.kind == "categorical" and (why := _seldom(frame[name])):
            found.append(Column(name, feature.kind, "left out", why))
            continue
        kept.setdefault(_few(frame[name]), []).append(name)
        if feature.kind == "numeric" and not np.isnan(codes).any():
            numbers[name] = codes
        if score > NEARLY:
            why = f"alone tells much of the target ({measure} {score:.3f}): is it known when predicting?"
        elif name == proposed:
            why = f"looks like time: do the rows follow it? then --time {name}"
        found.append(Column(name, feature.kind, "feature", why))
    summed = _adds_up(numbers, aim) if regression else []
    together = f"leak: {' and '.join(summed)} together add up to the target (R² 1.000); are they known when predicting?"
    return [replace(each, use="left out", why=together) if each.name in summed else each for each in found]


def time_of(frame: pd.DataFrame, names: Sequence[str]) -> str:
    """The column that most looks like the time of the rows; "" when none does.

    Those in whose order the rows stand come first, then those whose name says time, then the first.
    """
    able = [name for name in names if _moments(frame[name], name)]
    return min(able, key=lambda name: (not _ordered(frame[name]), not named_as_time(name)), default="")


def sorted_by_target(target: pd.Series[Any], *, regression: bool) -> bool:
    """Whether the rows stand in the order of their labels, so that no later row has what earlier ones had.

    Classes: the label changes from row to row in less than 5 % of the cases in which it would by chance. A quantity:
    99 % of its steps go one way.
    """
    import numpy as np

    if len(target) < FEW:
        return False
    if regression:
        steps = np.sign(np.diff(target.to_numpy(dtype=float)))
        steps = steps[steps != 0]
        return len(steps) > 0 and abs(float(steps.mean())) >= 0.98
    codes = _codes(target)
    shares = np.bincount(codes) / len(codes)
    by_chance = len(codes) * (1 - float((shares**2).sum()))
    return by_chance >= 20 and int((np.diff(codes) != 0).sum()) < 0.05 * by_chance


def _by_itself(column: pd.Series[Any], *, time: bool) -> str:
    """Why a column is left out whatever the others hold; "" when it is not. `time`: it most looks like time."""
    import pandas as pd

    name = str(column.name)
    values = column.dropna()
    different = int(values.nunique())
    if different <= 1:
        what = "always missing" if different == 0 else f"always {values.iloc[:1].tolist()[0]!r}"
        return f"constant: {what}"
    if time and (_ordered(column) or column.dtype.kind != "M"):
        how = f", {_moments(column, name)}" if column.dtype.kind != "M" else ""
        order = ", and the rows stand in its order" if _ordered(column) else ""
        return f"looks like time{how}{order}: --time {name} orders the rows by it"
    if column.dtype.kind == "M" or pd.api.types.is_bool_dtype(column.dtype):
        return ""
    if column.dtype.kind not in "iuf":
        dates = written(column)
        if dates.odd is not None:
            return f"dates ({dates.formats[0]}), but also {dates.odd!r}: the service takes ISO 8601, such as 2026-01-31"
        if dates.formats and dates.formats != (ISO,):
            how = " or ".join(dates.formats)
            return f"dates as text, {how}: the service takes ISO 8601, such as 2026-01-31"
        if dates.formats:
            return ""
    elif how := _moments(column, name):
        return f"time as a number, {how}: the service takes ISO 8601, such as 2026-01-31"
    share = different / len(values)
    if len(values) < FEW:
        return ""
    if column.dtype.kind in "iuf":
        if share > 0.99 and (values == values.round()).all() and _numbers_rows(values, name, different):
            or_time = f"; --time {name} if it orders the rows" if values.is_monotonic_increasing else ""
            return f"id: {different:,} different whole numbers in {len(values):,} rows{or_time}"
        return ""
    if share > 0.5 and values.astype(str).str.count(" ").mean() >= 3:
        return f"free text: {different:,} different texts of several words in {len(values):,} rows"
    if share > 0.9:
        return f"id: {different:,} different values in {len(values):,} rows"
    return ""


def _seldom(column: pd.Series[Any]) -> str:
    """Why a category of many values is left out, of which a model sees most too seldom to learn them; "" when not."""
    counts = column.value_counts()
    rows = int(counts.sum())
    if len(counts) <= FEW:
        return ""
    rare = float(counts[counts < SELDOM].sum()) / rows
    if len(counts) <= MAX_CATEGORIES and rare <= 0.5:
        return ""
    seldom = f", {percent(rare)} of the rows with one that stands in fewer than {SELDOM}" if rare > 0.01 else ""
    return f"high cardinality: {len(counts):,} different values in {rows:,} rows{seldom}; group them, or try it"


def _numbers_rows(values: pd.Series[Any], name: str, different: int) -> bool:
    """Of whole numbers that hardly repeat: whether they count, fill their range, or are called ids."""
    if different == len(values) and (values.is_monotonic_increasing or values.is_monotonic_decreasing):
        return True
    return float(values.max()) - float(values.min()) < 1.1 * len(values) or _ID_NAME.search(name) is not None


def _few(column: pd.Series[Any]) -> tuple[Any, ...]:
    """Values from all over the column, None where it is missing: columns that hold the same have the same."""
    few = column.iloc[:: max(1, len(column) // FEW)].astype(object)
    return tuple(few.where(few.notna(), None))


def _again(frame: pd.DataFrame, name: str, alike: Sequence[str], target: pd.Series[Any]) -> str:
    """Why a column is left out for what it repeats, the target or one of those that look alike; "" for nothing."""
    column = frame[name]
    if _equals(column, target):
        return "copy of the target: it will not be known when predicting"
    if (other := next((each for each in alike if _same(column, frame[each])), None)) is not None:
        return f'duplicate of "{other}"'
    return ""


def _same(column: pd.Series[Any], other: pd.Series[Any]) -> bool:
    """Whether both hold equal values in every row, missing ones in the same places."""
    import pandas as pd

    numeric = [pd.api.types.is_numeric_dtype(each.dtype) for each in (column, other)]
    if numeric[0] != numeric[1] or (column.dtype.kind == "M") != (other.dtype.kind == "M"):
        return False
    if not (column.isna() == other.isna()).all():
        return False
    first, second = (each.dropna() for each in (column, other))
    return bool((first.astype(object).to_numpy() == second.astype(object).to_numpy()).all())


def _equals(column: pd.Series[Any], target: pd.Series[Any]) -> bool:
    """Whether a column is the target, perhaps under other names (`yes`, `no` for 1, 0)."""
    import pandas as pd

    if column.isna().any():
        return False
    numeric = column.dtype.kind in "iufb" and target.dtype.kind in "iufb"
    if numeric and bool((column.astype(float) == target.astype(float)).all()):
        return True
    different = target.nunique()
    if different > len(target) / 2 or column.nunique() != different:
        return False  # names that hardly repeat would be those of anything
    left, right = pd.factorize(column.astype(str))[0], pd.factorize(target.astype(str))[0]
    return bool((left == right).all())


def _moments(column: pd.Series[Any], name: str) -> str:
    """How a column that looks like time writes it; "" when it does not."""
    if column.dtype.kind == "M":
        return "dates"
    if column.dtype.kind in "iuf":
        if not named_as_time(name):
            return ""
        unit = epoch_unit(column)
        return f"{_UNITS[unit]} since 1970" if unit else "days as 20260131" if days_as_numbers(column) else ""
    found = written(column)
    return f"dates as text, {found.formats[0]}" if len(found.formats) == 1 and found.odd is None else ""


def _seconds_in_order(frame: pd.DataFrame, time: str, proposed: str) -> npt.NDArray[np.float64] | None:
    """Seconds of the rows in the time column, or in the one proposed when the rows stand in its order."""
    from training.data import seconds_of

    name = time or (proposed if proposed and _ordered(frame[proposed]) else "")
    return seconds_of(frame[name], name) if name else None


def _ordered(column: pd.Series[Any]) -> bool:
    """Whether the rows stand in the order of a column that looks like time."""
    import pandas as pd

    from training.data import seconds_of

    seconds = pd.Series(seconds_of(column, str(column.name))).dropna()
    return bool(seconds.is_monotonic_increasing or seconds.is_monotonic_decreasing)


def _with_time(column: pd.Series[Any], kind: str, time: str, at: npt.NDArray[np.float64] | None) -> str:
    """Why a column is left out for how it goes with `time`, of which `at` are the seconds; "" when there is no reason.

    A moment after the time of its row is known only afterwards; what grows with the time, row after row, says no more
    than the time does, and a model has not seen the values that come.
    """
    import numpy as np

    if at is None or kind not in ("numeric", "datetime"):
        return ""
    values = _numbers(column, kind)
    later = float((values > at).mean()) if kind == "datetime" and np.nanmin(at) >= LEAST_DATE else 0.0
    if later > 0.01:
        return f'leak: later than "{time}" in {percent(later)} of the rows; is it known when predicting?'
    there = ~np.isnan(values) & ~np.isnan(at)
    grown = values[there][np.argsort(at[there], kind="stable")]
    if len(np.unique(grown)) > FEW and bool((np.diff(grown) >= 0).all()):
        return f'time again: grows with "{time}"'
    return ""


def _numbers(column: pd.Series[Any], kind: str) -> npt.NDArray[np.float64]:
    """A column as float64, missing = NaN: numbers and moments as they are, each category as its number."""
    import numpy as np

    from training.data import seconds_of

    if kind == "datetime":
        return np.asarray(seconds_of(column, str(column.name)), np.float64)
    if column.dtype.kind in "iufb":
        return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
    return _codes(column).astype(np.float64)


def _codes(column: pd.Series[Any]) -> npt.NDArray[np.int64]:
    """Each different value as a number, missing as one of its own."""
    import numpy as np
    import pandas as pd

    return np.asarray(
        pd.factorize(column.astype(object).where(column.notna(), None), use_na_sentinel=False)[0], np.int64
    )


def _adds_up(numbers: dict[str, npt.NDArray[np.float64]], aim: npt.NDArray[Any]) -> list[str]:
    """The columns whose weighted sum is the target exactly (least squares leaves nothing), else none."""
    import numpy as np

    if len(numbers) < 2 or len(aim) <= 2 * len(numbers):
        return []
    names = list(numbers)
    matrix = np.column_stack([*numbers.values(), np.ones(len(aim))])
    spread = np.maximum(matrix.std(axis=0), 1e-12)
    weights, *_ = np.linalg.lstsq(matrix, aim, rcond=None)
    left = aim - matrix @ weights
    if float(left.var()) > 1e-6 * float(aim.var()):
        return []
    share = np.abs(weights * spread) / max(float(aim.std()), 1e-12)
    return [name for name, part in zip(names, share, strict=False) if part > 1e-3]
