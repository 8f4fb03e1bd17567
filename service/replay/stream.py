"""A data file as a stream: rows in time order, a moment for each, and when each label becomes known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from monitoring.errors import EvergreenError
from monitoring.feature import AT, Task
from training.data import Prepared, prepare, seconds_of

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from monitoring.schema import FeatureSchema

MOST_START_ROWS: Final = 20_000
"""A share of a long file is bounded by it: what a first version is trained on in practice."""
FIRST_AT: Final = 1_577_836_800.0
"""2020-01-01 UTC: the first row's moment in a file whose rows have an order but no dates."""
ROW_S: Final = 60.0
"""Seconds from row to row in such a file."""
LEAST_DATE: Final = 1e8
"""Numbers from here on (1973) are seconds since 1970; smaller ones are only an order."""
LEAST_START_ROWS: Final = 50


class ReplayError(EvergreenError, ValueError):
    """Raised when a file cannot be replayed as asked; the message says which value is in the way, and what to do."""


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """Rows in the order in which they come. The first `start` of them train the first version, the others follow."""

    first: Prepared
    """The `start` rows, as a source of the loop; the schema is inferred from them alone."""
    frame: pd.DataFrame
    """The rows that follow, as the file holds them, numbered from 0."""
    at: npt.NDArray[np.float64]
    """When each of them comes: seconds since 1970 UTC, strictly rising, later than every row of `first`."""
    labels: npt.NDArray[Any]
    """Their labels in canonical form."""
    truth: npt.NDArray[Any]
    """The same as class numbers (-1: no class of the schema), or values."""
    due: npt.NDArray[np.float64]
    """When each label becomes known, seconds since 1970 UTC."""
    dated: bool
    """Whether the moments are the file's own dates; else one row a minute."""
    notes: tuple[str, ...] = ()

    @property
    def schema(self) -> FeatureSchema:
        found: FeatureSchema = self.first.schema
        return found

    def __len__(self) -> int:
        return len(self.frame)

    def known(self, row: int) -> npt.NDArray[np.int64]:
        """The rows before `row` whose label is known by the time the last of them has come, in order."""
        return np.flatnonzero((self.due[:row] <= self.at[row - 1]) & self.usable[:row]) if row else np.arange(0)

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """Which rows have a label that the model has a class for."""
        return np.ones(len(self), bool) if self.schema.task == "regression" else np.asarray(self.truth >= 0)


def open_stream(
    frame: pd.DataFrame,
    *,
    target: str,
    time: str = "",
    ignore: Iterable[str] = (),
    task: Task | None = None,
    start: float = 0.2,
    max_rows: int = 60_000,
    delay_rows: int = 500,
    label_time: str = "",
    shuffle: int | None = None,
) -> Stream:
    """The stream of a data file's frame.

    `start`: share of all rows, of which at most 20,000 count, that train the first version; `max_rows` follow them.
    Labels come `delay_rows` rows after their row, or with `label_time` at the moment in that column. Without a column
    of dates there is a row a minute. Rows of one moment are spread up to the next: a service answers one after another.
    `shuffle` is the seed of a random order of all rows, in which nothing changes over time. Raises `ReplayError`,
    `DataError`, and the schema's `SchemaError`.
    """
    import pandas as pd

    for role, name in (("target", target), ("time", time), ("label time", label_time)):
        if name and name not in frame.columns:
            known = ", ".join(map(str, frame.columns[:40]))
            raise ReplayError(f"the {role} column {name!r} is not in the data; it has {known}")
    if not 0 < start < 1:
        raise ReplayError(f"--start is a share between 0 and 1, got {start:g}; 0.2 takes the first fifth")
    if delay_rows < 0:
        raise ReplayError(f"--label-delay is a number of rows from 0 on, got {delay_rows}")
    gone = frame[target].isna()
    for name in (time, label_time):
        if name:
            gone = gone | frame[name].isna()
    notes = [f"{int(gone.sum()):,} of {len(frame):,} rows have no label or no time: left out"] if gone.any() else []
    frame = frame[~gone]
    at = np.asarray(seconds_of(frame[time], time)) if time else np.arange(len(frame), dtype=np.float64)
    dated = bool(time) and len(at) > 0 and (frame[time].dtype.kind not in "iuf" or float(at.min()) >= LEAST_DATE)
    order = np.argsort(at, kind="stable")
    at = at[order] if dated else FIRST_AT + ROW_S * np.arange(len(frame))
    if shuffle is not None:
        order = np.random.default_rng(shuffle).permutation(order)
    first_rows = min(int(start * len(frame)), MOST_START_ROWS)
    wanted = first_rows + max_rows
    if len(frame) > wanted:
        notes.append(f"the last {len(frame) - wanted:,} of {len(frame):,} rows are left out: raise --max-rows")
    frame, at = frame.iloc[order[:wanted]].reset_index(drop=True), _spread(at[:wanted])
    first, later = frame.iloc[:first_rows], frame.iloc[first_rows:].reset_index(drop=True)
    _check(first, later, target, start)

    left_out = [name for name in dict.fromkeys((*ignore, time, label_time)) if name]
    prepared = prepare(first.drop(columns=[name for name in left_out if name in first]), target=target, task=task)
    schema: FeatureSchema = prepared.schema
    prepared = msgspec.structs.replace(prepared, frame=prepared.frame.assign(**{AT: at[:first_rows]}))
    labels = schema.labels(later[target])
    truth = labels
    if schema.task != "regression":
        truth = pd.Index(list(schema.classes)).get_indexer(labels.tolist())
        if unknown := int((truth < 0).sum()):
            notes.append(
                f"{unknown:,} rows have a class that the first {first_rows:,} rows lack: not labelled, not scored"
            )
    at = at[first_rows:]
    if label_time:
        due = np.maximum(np.asarray(seconds_of(later[label_time], label_time)), at)
    else:
        due = np.full(len(later), np.inf)
        if delay_rows < len(later):
            due[: len(later) - delay_rows] = at[delay_rows:]
    return Stream(prepared, later, at, labels, truth, due, dated, tuple(notes))


def _check(first: pd.DataFrame, later: pd.DataFrame, target: str, start: float) -> None:
    rows = len(first) + len(later)
    if len(first) < LEAST_START_ROWS or not len(later):
        raise ReplayError(
            f"{rows:,} labelled rows, of which --start {start:g} takes {len(first):,}: a first version needs at least "
            f"{LEAST_START_ROWS}, and rows must follow; give more data or another share"
        )
    seen = first[target].unique()
    if len(seen) == 1:
        what = "all rows have" if later[target].isin(seen).all() else f"the first {len(first):,} rows have"
        todo = "name another --target" if what.startswith("all") else "raise --start until both classes are among them"
        raise ReplayError(f"{what} {target!r} = {seen[0]!r}: there is nothing to learn; {todo}")


def _spread(at: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Moments that never fall, made strictly rising: those that are equal are spread evenly up to the next."""
    moments, first, counts = np.unique(at, return_index=True, return_counts=True)
    if len(moments) == len(at):
        return at
    gaps = np.diff(moments)
    gaps = np.append(gaps, np.median(gaps) if len(gaps) else ROW_S)
    place = np.arange(len(at)) - np.repeat(first, counts)
    return np.asarray(at + place * np.repeat(gaps / counts, counts))
