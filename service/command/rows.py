"""Rows to send: read from a file or from the sample stream, in time order, and turned into what JSON can carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from monitoring.errors import EvergreenError
from monitoring.feature import Task
from monitoring.nearest import did_you_mean
from service.settings import SAMPLE, row_at

if TYPE_CHECKING:
    import pandas as pd

    from service.sample import Scenario

SAMPLE_ROWS: Final = 10_000
"""How many rows of the sample are sent when no end is given."""


class RowsError(EvergreenError, ValueError):
    """Raised when rows cannot be read or sent as asked; the message says which file, column or row, and what to do."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the service expects to be sent, as its `/schema` says."""

    kinds: dict[str, str]
    """Feature → numeric | boolean | categorical | datetime."""
    target: str
    task: Task
    classes: tuple[Any, ...]


def read_rows(
    source: str,
    *,
    target: str,
    time_column: str = "",
    shuffle: bool = False,
    first: str = "",
    until: str = "",
    scenario: Scenario = "none",
    drift_at: int | None = None,
    over_rows: int = 4000,
    seed: int = 0,
) -> pd.DataFrame:
    """Rows `first` … `until` (marks: "20%", "3000") of a file in time order or shuffled, or of the sample stream.

    The index is each row's number in that order, from 0. The sample begins behind its training rows and goes on for
    10,000; its scenario begins at `drift_at`, by default 2,000 rows after `first`.
    Raises `RowsError`, or `training.source.DataError` when the file cannot be read.
    """
    from training.data import row_order
    from training.source import load_source

    if source == SAMPLE:
        return _sample_rows(first, until, scenario, drift_at, over_rows, seed)
    rows = load_source(source)
    for column in (target, time_column):
        if column and column not in rows.columns:
            known = [str(name) for name in rows.columns]
            raise RowsError(
                f'{source} has no column "{column}"{did_you_mean(column, known) or "; it has " + ", ".join(known)}'
            )
    rows = rows.iloc[row_order(rows, time=time_column, shuffle=seed if shuffle else None)].reset_index(drop=True)
    try:
        start, end = row_at(first or "0", len(rows)), row_at(until or "100%", len(rows))
    except ValueError as error:
        raise RowsError(str(error)) from None
    if start >= end:
        raise RowsError(f"no rows from {first or 0} until {until or '100%'}: {source} has {len(rows)}")
    return rows.iloc[start:end]


def _sample_rows(
    first: str, until: str, scenario: Scenario, drift_at: int | None, over_rows: int, seed: int
) -> pd.DataFrame:
    from service import sample

    if first.endswith("%") or until.endswith("%"):
        raise RowsError("the sample stream has no end to take a share of: give --from and --until as rows")
    try:
        start = row_at(first, 2**62) if first else sample.TRAINING_ROWS
        end = row_at(until, 2**62) if until else start + SAMPLE_ROWS
    except ValueError as error:
        raise RowsError(str(error)) from None
    if start >= end:
        raise RowsError(f"no rows from {start} until {end}")
    at_row = start + 2000 if drift_at is None else drift_at
    return sample.frame(end - start, start=start, seed=seed, scenario=scenario, at_row=at_row, over_rows=over_rows)


def read_schema(answer: dict[str, Any]) -> Wanted:
    """What a sender needs of a `/schema` answer. Raises `RowsError` when it is not one of Evergreen."""
    try:
        return msgspec.convert(
            {
                "kinds": {name: found["x-evergreen"]["kind"] for name, found in answer["properties"].items()},
                **answer["x-evergreen"],
            },
            Wanted,
        )
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise RowsError(f"this /schema is not one of Evergreen ({error})") from None


def json_columns(frame: pd.DataFrame, kinds: dict[str, str]) -> dict[str, list[Any]]:
    """Each feature's values as JSON can carry them: numbers, true/false, strings, ISO times; missing is None.

    Raises `RowsError` naming a feature that the frame lacks or that does not fit its kind.
    """
    missing = [name for name in kinds if name not in frame.columns]
    if missing:
        known = [str(name) for name in frame.columns]
        raise RowsError(
            f'the service wants "{missing[0]}", which the data lacks{did_you_mean(missing[0], known)}'
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
        raise RowsError(f'"{column.name}" should be {kind}: {" ".join(str(error).split())[:120]}') from None
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
