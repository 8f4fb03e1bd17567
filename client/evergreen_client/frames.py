"""From a DataFrame to records: numbers, true/false, text and ISO times, as the service's `/schema` wants them.

pandas is imported only here, and only when the caller has a DataFrame.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from evergreen_client.errors import BadRecords

if TYPE_CHECKING:
    import pandas as pd


def is_frame(rows: Any) -> TypeGuard[pd.DataFrame]:
    """Whether these rows are a pandas DataFrame."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(rows, pandas.DataFrame)


def records_of(frame: pd.DataFrame, kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows as records with these features; other columns of the frame stay here. Raises as `json_columns`."""
    columns = json_columns(frame, kinds)
    names = tuple(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def json_columns(frame: pd.DataFrame, kinds: Mapping[str, str]) -> dict[str, list[Any]]:
    """Each feature's values as JSON can carry them: numbers, true/false, strings, ISO times; missing is None.

    Raises `BadRecords` naming a feature that the frame lacks or that does not fit its kind.
    """
    missing = [name for name in kinds if name not in frame.columns]
    if missing:
        near = difflib.get_close_matches(missing[0], [str(name) for name in frame.columns], n=1)
        raise BadRecords(
            f'the service wants "{missing[0]}", which the data lacks'
            + (f', did you mean "{near[0]}"?' if near else "")
            + (f" ({len(missing)} of {len(kinds)} features are missing)" if len(missing) > 1 else "")
        )
    return {name: _json_column(frame[name], kind) for name, kind in kinds.items()}


def _json_column(column: pd.Series, kind: str) -> list[Any]:
    import numpy as np
    import pandas as pd

    gone = column.isna().to_numpy()
    try:
        if kind == "numeric":
            numbers = pd.to_numeric(column)
            if numbers.dtype.kind in "iu" and not gone.any():
                return list(numbers.tolist())
            gone = gone | ~np.isfinite(numbers.astype("float64").to_numpy(na_value=np.nan))
            values = numbers.astype("float64").tolist()
        elif kind == "boolean":
            values = [None if none else _SWITCHES[value] for value, none in zip(column.tolist(), gone, strict=True)]
        elif kind == "datetime":
            moments = pd.to_datetime(column, utc=True).dt.tz_localize(None)
            gone = moments.isna().to_numpy()
            values = moments.dt.strftime("%Y-%m-%dT%H:%M:%S.%fZ").tolist()
        else:
            values = [_text(value) for value in column.astype(object)]
    except (ValueError, TypeError, KeyError) as error:
        raise BadRecords(f'"{column.name}" should be {kind}: {" ".join(str(error).split())[:120]}') from None
    return [None if none else value for value, none in zip(values, gone, strict=True)]


_SWITCHES: Final = {True: True, False: False}  # 1 and 0 too: they are equal


def _text(value: Any) -> str:
    """A category as the schema writes it: a whole float (an integer column with gaps) without ".0"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def json_labels(column: pd.Series, classes: Sequence[Any]) -> list[Any]:
    """The labels as the service names them (a class written `1.0` in the file becomes its `1`); None where unknown."""
    known = {each: each for each in classes}
    named = {str(each): each for each in classes}
    values = [None if none else value for value, none in zip(column.tolist(), column.isna(), strict=True)]
    if not known:
        return values
    return [known.get(value, named.get(str(value), value)) for value in values]
