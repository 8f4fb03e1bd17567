"""Rows to send: read from a file or from the sample stream, in time order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from monitoring.errors import EvergreenError
from monitoring.nearest import did_you_mean
from service.settings import SAMPLE, row_at

if TYPE_CHECKING:
    import pandas as pd

    from service.sample import Scenario

SAMPLE_ROWS: Final = 10_000
"""How many rows of the sample are sent when no end is given."""


class RowsError(EvergreenError, ValueError):
    """Raised when rows cannot be read or sent as asked; the message says which file, column or row, and what to do."""


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
