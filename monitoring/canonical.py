"""Values in canonical form: float32 or str, missing = NaN, out of whatever a pandas column or a client's JSON holds.

pandas is imported only inside the functions that take frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from monitoring import fits
from monitoring.feature import Feature, Kind, SchemaError, Task, nearest, shown, some
from monitoring.fits import FLOAT32_LIMIT, days_since_epoch

if TYPE_CHECKING:
    import pandas as pd

_SCALARS: Final = (str, bool, int, float, Decimal, np.generic, date)
_NUMBERS: Final = (int, float, Decimal, np.integer, np.floating)


def canonical_frame(features: Sequence[Feature], frame: pd.DataFrame) -> pd.DataFrame:
    """The features of a frame in this order and canonical form, as `FeatureSchema.canonical` says."""
    import pandas as pd

    columns = {}
    for feature in features:
        if feature.name not in frame.columns:
            raise SchemaError(
                f"column {shown(feature.name)} is missing from the data{nearest(feature.name, frame.columns)}"
            )
        column = frame[feature.name]
        if isinstance(column, pd.DataFrame):
            raise SchemaError(f"column {shown(feature.name)} appears twice: rename or drop one of them")
        columns[feature.name] = canonical_column(feature.kind, feature.name, column)
    return pd.DataFrame(columns, index=frame.index, columns=list(columns))


def frame_of_records(features: Sequence[Feature], records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The canonical frame of decoded JSON records, as `FeatureSchema.frame` says."""
    import pandas as pd

    columns = {}
    for feature in features:
        values = pd.Series([record.get(feature.name) for record in records], dtype=object)
        columns[feature.name] = canonical_column(feature.kind, feature.name, values)
    return pd.DataFrame(columns, index=pd.RangeIndex(len(records)), columns=list(columns))


def is_whole(features: Sequence[Feature], record: Any) -> bool:
    """Whether a JSON value is a record that has every feature with a value that fits it, or null."""
    return isinstance(record, dict) and all(
        feature.name in record and fits.feature_value(feature.kind, record[feature.name]) for feature in features
    )


def frame_of_readable(features: Sequence[Feature], records: Sequence[Any]) -> tuple[pd.DataFrame, list[int]]:
    """The canonical frame of the records that can be read, and their places; the others are left out.

    Nearly always all can be read at once. Otherwise they are halved until the bad ones stand alone.
    """
    import pandas as pd

    try:
        return frame_of_records(features, records), list(range(len(records)))
    except SchemaError:
        if len(records) == 1:
            return frame_of_records(features, []), []
    half = len(records) // 2
    left, good_left = frame_of_readable(features, records[:half])
    right, good_right = frame_of_readable(features, records[half:])
    return pd.concat([left, right], ignore_index=True), good_left + [half + place for place in good_right]


def canonical_labels(
    target: str, task: Task, classes: Sequence[str | int | bool], series: pd.Series[Any] | Sequence[Any]
) -> npt.NDArray[Any]:
    """Labels in canonical form, as `FeatureSchema.labels` says."""
    import pandas as pd

    column = series if isinstance(series, pd.Series) else pd.Series(list(series), dtype=object)
    refuse_missing_labels(target, column)
    if task == "regression":
        return to_target_numbers(target, column)
    if isinstance(classes[0], str):
        return to_texts(target, column)
    if isinstance(classes[0], bool):
        if not _only_booleans(column):
            raise _unfit(target, "True or False", column, lambda value: isinstance(value, bool | np.bool_))
        return np.array(column, dtype=bool)
    if column.dtype == np.int64:
        return np.array(column, dtype=np.int64)
    values = [value.item() if isinstance(value, np.generic) else value for value in column.tolist()]
    for value in values:
        if isinstance(value, Decimal) and _is_finite(value) and value == int(value):
            value = int(value)
        if not fits.whole_number(value):
            raise SchemaError(
                f"target {shown(target)}: expected whole numbers (the classes are {some(classes)}), got {shown(value)}"
            )
    return np.fromiter(map(int, values), np.int64, len(values))


def refuse_missing_labels(target: str, column: pd.Series[Any]) -> None:
    """Raise SchemaError when a row has no label."""
    missing = int(column.isna().sum())
    if missing:
        raise SchemaError(
            f"target {shown(target)} is missing in {missing} of {len(column)} rows: drop those rows first"
        )


# -- one column --------------------------------------------------------------------------------------------------------


def canonical_column(kind: Kind, name: str, column: pd.Series[Any]) -> npt.NDArray[Any]:
    """Float32 with NaN, or object of str with np.nan; raises SchemaError naming the column and its first bad value."""
    values: npt.NDArray[Any] = _CANONICAL[kind](name, column)
    return values


def _canonical_numeric(name: str, column: pd.Series[Any]) -> npt.NDArray[Any]:
    return _float32(name, to_numbers(name, column), column)


def _canonical_boolean(name: str, column: pd.Series[Any]) -> npt.NDArray[Any]:
    if _only_booleans(column):
        return np.fromiter(
            (math.nan if missing else value for value, missing in zip(column, column.isna(), strict=True)),
            np.float32,
            len(column),
        )
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column.dtype):
        numbers = to_numbers(name, column)
        if (np.isnan(numbers) | (numbers == 0) | (numbers == 1)).all():
            return numbers.astype(np.float32)
        raise _unfit(name, "True, False, 1 or 0", column, lambda value: value in (0, 1))
    raise _unfit(name, "True or False", column, lambda value: isinstance(value, bool | np.bool_))


def _canonical_datetime(name: str, column: pd.Series[Any]) -> npt.NDArray[Any]:
    import pandas as pd

    dtype = column.dtype
    if pd.api.types.is_datetime64_any_dtype(dtype):
        if getattr(dtype, "tz", None) is not None:
            column = column.dt.tz_convert("UTC").dt.tz_localize(None)
        instants = column.to_numpy(dtype="datetime64[us]")
        days: npt.NDArray[np.float64] = instants.astype(np.int64) / 86_400_000_000
        days[np.isnat(instants)] = np.nan
        return days.astype(np.float32)
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype):
        return _float32(name, to_numbers(name, column), column)  # canonical already
    days = np.empty(len(column), dtype=np.float64)
    for row, (value, missing) in enumerate(zip(column, column.isna(), strict=True)):
        try:
            days[row] = math.nan if missing else _days(value)
        except (TypeError, ValueError, OverflowError):
            raise SchemaError(
                f"column {shown(name)}: expected a date or an ISO-8601 string, got {shown(value)}"
            ) from None
    return days.astype(np.float32)


def _days(value: Any) -> float:
    if isinstance(value, np.datetime64):
        return float(value.astype("datetime64[us]").astype(np.int64)) / 86_400_000_000
    if isinstance(value, str | date):
        return days_since_epoch(value)
    raise TypeError


def to_texts(name: str, column: pd.Series[Any]) -> npt.NDArray[Any]:
    """Object array of str, missing = np.nan."""
    values: npt.NDArray[Any] = column.to_numpy(dtype=object, copy=True)
    missing = column.isna().to_numpy(dtype=bool)
    values[missing] = np.nan
    for row, value in enumerate(values.tolist()):
        if type(value) is str or missing[row]:
            continue
        if not isinstance(value, _SCALARS):
            raise SchemaError(
                f"column {shown(name)}: expected text, got {shown(value)} of type {type(value).__name__}; "
                "turn it into columns of single values, or ignore it"
            )
        values[row] = _text(value)
    return values


def _text(value: Any) -> str:
    if isinstance(value, float | np.floating) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value)


def to_numbers(name: str, column: pd.Series[Any]) -> npt.NDArray[np.float64]:
    """Float64, missing = NaN; raises SchemaError for anything that is not a number."""
    import pandas as pd

    dtype = column.dtype
    numeric = pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype)
    if numeric and not pd.api.types.is_bool_dtype(dtype):
        return np.array(column.to_numpy(dtype=np.float64, na_value=np.nan))
    values = [None if missing else value for value, missing in zip(column.tolist(), column.isna(), strict=True)]
    types = set(map(type, values)) - {type(None)}
    if not all(issubclass(kind, _NUMBERS) and kind is not bool for kind in types):
        raise _unfit(name, "a number", column, _is_number)
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:
        raise _unfit(name, "a number that fits float32", column, _is_finite) from None


def _float32(name: str, numbers: npt.NDArray[np.float64], column: pd.Series[Any]) -> npt.NDArray[np.float32]:
    bad = np.abs(numbers) >= FLOAT32_LIMIT
    if bad.any():
        raise SchemaError(
            f"column {shown(name)}: {shown(column.iloc[int(np.argmax(bad))])} is infinite or outside float32; "
            "the model takes finite numbers up to ±3.4e38, or missing"
        )
    return numbers.astype(np.float32)


def to_target_numbers(target: str, column: pd.Series[Any]) -> npt.NDArray[np.float64]:
    """Float64; raises SchemaError for what a regression cannot learn, missing ones included."""
    numbers = to_numbers(target, column)
    bad = ~(np.abs(numbers) <= fits.TARGET_LIMIT)
    if bad.any():
        raise SchemaError(
            f"target {shown(target)}: expected finite numbers within ±{fits.TARGET_LIMIT:g}, "
            f"got {shown(column.iloc[int(np.argmax(bad))])}"
        )
    return numbers


def _only_booleans(column: pd.Series[Any]) -> bool:
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)
    if pd.api.types.is_bool_dtype(column.dtype):
        return True
    return column.dtype == object and all(isinstance(value, bool | np.bool_) for value in column[~column.isna()])


def _unfit(name: str, expected: str, column: pd.Series[Any], fitting: Any) -> SchemaError:
    for value in column[~column.isna()]:
        if not fitting(value):
            return SchemaError(f"column {shown(name)}: expected {expected}, got {shown(value)}")
    return SchemaError(f"column {shown(name)}: expected {expected}, got dtype {column.dtype}")


def _is_number(value: Any) -> bool:
    return isinstance(value, _NUMBERS) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


_CANONICAL: Final = {
    "numeric": _canonical_numeric,
    "boolean": _canonical_boolean,
    "datetime": _canonical_datetime,
    "categorical": to_texts,
}
