"""Reading the record: recorded predictions as frames with the labels that join them, and what is known of one id."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import sqlalchemy as sa

from monitoring import fits
from monitoring.canonical import frame_of_readable, is_whole
from monitoring.decode import InvalidRequest, RequestDecoder
from monitoring.feature import (
    ADAPTATION,
    AT,
    ID,
    LABEL,
    OBSERVED_AT,
    PREDICTED,
    PROBABILITIES,
    SCORE,
    SOURCE,
    VERSION,
)
from monitoring.schema import FeatureSchema
from monitoring.store import key_columns, labels, predictions

if TYPE_CHECKING:
    import pandas as pd

_KEY: Final = key_columns(predictions)
_DECODED_AT_ONCE: Final = 4096
"""Records; so many stay in the processor's cache between being decoded and being read."""


class StoredLabel(msgspec.Struct, frozen=True):
    """One label as stored. `label` is the JSON value."""

    label: Any
    observed_at: float
    received_at: float
    source: str = ""
    """Name of the token it came with, "" for none."""


class LabelStatus(msgspec.Struct, frozen=True):
    """What is known about one prediction id."""

    id: str
    predictions: int
    """Stored rows with this id: 0 when its prediction never came (or not yet), more than 1 when it was repeated."""
    version: int | None
    """Model version of the newest of them, which the label joins."""
    at: float | None
    prediction: Any
    labels: tuple[StoredLabel, ...]
    """The one that counts first: newest `observed_at`, then newest receipt."""

    @property
    def outcome(self) -> str:
        """`matched`, `unmatched` (label only), `waiting` (prediction only) or `unknown`."""
        if self.labels:
            return "matched" if self.predictions else "unmatched"
        return "waiting" if self.predictions else "unknown"


def read_window(
    engine: sa.Engine,
    schema: FeatureSchema,
    *,
    rows: int | None = None,
    since: float | None = None,
    until: float | None = None,
    version: int | None = None,
    labelled: bool = False,
    sources: Collection[str] = (),
) -> pd.DataFrame:
    """Recorded predictions, oldest first: the canonical features in schema order, then
    `_id, _at, _version, _adaptation, _prediction, _score, _label, _observed_at, _source` (and `_probabilities` for a
    multiclass task).

    `since` <= at < `until`, seconds since 1970 UTC; `rows` keeps the newest ones. A label joins only the newest row
    with its id, and of several labels the one observed last counts. `labelled=True` keeps rows with a label.
    With `sources` only the labels that came with a token of one of these names are looked at. `_source` is that name,
    "" without a token, and without a label.
    `_adaptation` is the number of the version's adaptation that was in force (float), NaN when none was.
    `_score` is the probability of `classes[1]` of a binary task, else NaN. `_label` has the canonical dtype when every
    row has one, else it is float with NaN (regression) or object with None.

    Rows that this schema cannot read (another version's, or what `monitoring.fits` has no room for) are left out:
    `.attrs["skipped"]` counts them, `.attrs["unfit_labels"]` the labels that the target does not take, held as absent.
    """
    conditions = conditions_of(since, until, version)
    # With none of these, a newer prediction of the same id is always in the window, too.
    whole = until is None and version is None
    with snapshot_of(engine) as connection, _collector_paused():
        return _read(connection, schema, conditions, rows, labelled, sources, newest=True, whole=whole)[0]


def iter_window(
    engine: sa.Engine,
    schema: FeatureSchema,
    *,
    chunk_rows: int = 20_000,
    since: float | None = None,
    until: float | None = None,
    version: int | None = None,
) -> Iterator[pd.DataFrame]:
    """The same rows as `read_window`, oldest first, at most `chunk_rows` at a time: memory stays bounded.

    A chunk may be empty: all its rows were skipped. Each is a snapshot of its own, so rows recorded meanwhile may
    be among the last ones.
    """
    conditions = conditions_of(since, until, version)
    behind: list[sa.ColumnElement[bool]] = []
    order = (predictions.c.at, *_KEY)
    while True:
        with snapshot_of(engine) as connection, _collector_paused():
            frame, last = _read(
                connection, schema, conditions + behind, chunk_rows, False, (), newest=False, whole=False
            )
        if last is None:
            return
        if len(frame) or frame.attrs["skipped"]:
            yield frame
        behind = [predictions.c.at >= last[0], sa.tuple_(*order) > sa.tuple_(*_literals(last))]


def label_status(engine: sa.Engine, id: str) -> LabelStatus:
    """Predictions and labels stored under one prediction id."""
    newest = (predictions.c.at.desc(), *(column.desc() for column in _KEY))
    with snapshot_of(engine) as connection:
        found = connection.execute(
            sa.select(predictions.c.version, predictions.c.at, predictions.c.prediction)
            .where(predictions.c.id == id)
            .order_by(*newest)
        ).all()
        given = connection.execute(
            sa.select(labels.c.label, labels.c.observed_at, labels.c.received_at, labels.c.source)
            .where(labels.c.id == id)
            .order_by(*(column.desc() for column in LABEL_ORDER))
        ).all()
    version, at, prediction = found[0] if found else (None, None, None)
    return LabelStatus(
        id,
        len(found),
        version,
        at,
        None if prediction is None else msgspec.json.decode(prediction),
        tuple(StoredLabel(msgspec.json.decode(label), *rest) for label, *rest in given),
    )


# --- queries -------------------------------------------------------------------------------------------------------

LABEL_ORDER: Final = (labels.c.observed_at, labels.c.received_at, *key_columns(labels))


@contextmanager
def snapshot_of(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection whose queries all see the store at one moment."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("begin")
        else:
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        yield connection


@contextmanager
def _collector_paused() -> Iterator[None]:
    """No garbage collection meanwhile: it would walk the rows over and over, for a quarter of the whole time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _literals(values: Sequence[Any]) -> list[sa.ColumnElement[Any]]:
    return [sa.literal(value, sa.Double if isinstance(value, float) else sa.BigInteger) for value in values]


def conditions_of(
    since: float | None,
    until: float | None,
    version: int | None,
) -> list[sa.ColumnElement[bool]]:
    """That a prediction was answered from `since` on and before `until`, and by this version."""
    conditions: list[sa.ColumnElement[bool]] = []
    if since is not None:
        conditions.append(predictions.c.at >= since)
    if until is not None:
        conditions.append(predictions.c.at < until)
    if version is not None:
        conditions.append(predictions.c.version == version)
    return conditions


def is_superseded(rows: sa.FromClause = predictions) -> sa.ColumnElement[bool]:
    """Whether a newer prediction has the same id."""
    newer = predictions.alias("newer")
    return sa.exists(
        sa.select(sa.literal(1)).where(
            newer.c.id == rows.c.id,
            sa.tuple_(newer.c.at, *key_columns(newer)) > sa.tuple_(rows.c.at, *key_columns(rows)),
        )
    )


def has_label(rows: sa.FromClause = predictions, sources: Collection[str] = ()) -> sa.ColumnElement[bool]:
    """Whether a row has a label, of one of these sources when some are named."""
    return sa.exists(sa.select(sa.literal(1)).where(joins(rows, sources)))


def joins(rows: sa.FromClause, sources: Collection[str]) -> sa.ColumnElement[bool]:
    """Whether a label is one of this row, and of one of these sources when some are named."""
    same = labels.c.id == rows.c.id
    return sa.and_(same, labels.c.source.in_(list(sources))) if sources else same


# What `_fetch` selects: the columns of `predictions`, then those that order labels, then the label and its source.
_READ: Final = tuple(column for column in predictions.columns if column.name != "trace_id")
"""What of a prediction makes a window."""
_AT: Final = list(predictions.columns.keys()).index("at")
_LABEL: Final = slice(len(_READ), None)
"""Comparing these finds the label that counts: the order of `LABEL_ORDER`."""
_WIDTH: Final = len(_READ) + len(LABEL_ORDER) + 2


def _read(
    connection: sa.Connection,
    schema: FeatureSchema,
    conditions: list[sa.ColumnElement[bool]],
    limit: int | None,
    labelled: bool,
    sources: Collection[str],
    *,
    newest: bool,
    whole: bool,
) -> tuple[pd.DataFrame, tuple[float, int, int, int] | None]:
    """The frame, and the order key of the last row the database gave (None when it gave none).

    `whole`: no newer prediction of an id can lie outside the window.
    """
    if labelled:
        conditions = [*conditions, has_label(sources=sources)]
        if not whole:
            conditions.append(~is_superseded())
    window = _window(conditions, limit, newest)
    columns = _fetch(connection, window, sources)
    days, segments, positions, ids, at, *_, label_texts, _ = columns
    if not ids:
        return _frame(schema, columns, set(), labelled), None
    superseded: set[int] = set()
    if whole:
        last_of = dict(zip(ids, range(len(ids)), strict=True))
        if len(last_of) < len(ids):
            if labelled:  # others belong in their place: let the database choose
                return _read(connection, schema, conditions, limit, True, sources, newest=newest, whole=False)
            superseded = {row for row, id_ in enumerate(ids) if last_of[id_] != row}
    elif not labelled and any(text is not None for text in label_texts):
        narrow = window.with_only_columns(predictions.c.id, predictions.c.at, *_KEY).subquery()
        if connection.execute(_twice(narrow)).first() is not None:
            older = sa.select(*key_columns(narrow))
            keys = {
                tuple(row) for row in connection.execute(older.where(has_label(narrow, sources), is_superseded(narrow)))
            }
            key_of = zip(days, segments, positions, strict=True)
            superseded = {row for row, key in enumerate(key_of) if key in keys}
    return _frame(schema, columns, superseded, labelled), (at[-1], days[-1], segments[-1], positions[-1])


def _window(conditions: list[sa.ColumnElement[bool]], limit: int | None, newest: bool) -> sa.Select[tuple[Any, ...]]:
    """The predictions of the window, in no particular order."""
    order = (predictions.c.at, *_KEY)
    return (
        sa.select(*_READ)
        .where(*conditions)
        .order_by(*(column.desc() if newest else column for column in order))
        .limit(limit)
    )


def _fetch(
    connection: sa.Connection, window: sa.Select[tuple[Any, ...]], sources: Collection[str]
) -> list[Sequence[Any]]:
    """The window's predictions, oldest first, each with the label that counts (or None), column by column."""
    rows = window.subquery()
    joined = sa.select(rows, *LABEL_ORDER, labels.c.label, labels.c.source).join_from(
        rows, labels, joins(rows, sources), isouter=True
    )
    cursor: Any = connection.execute(joined).cursor  # its own tuples: SQLAlchemy's rows cost half as much again
    found: list[tuple[Any, ...]] = cursor.fetchall()
    cursor.close()
    columns, order, unique = _in_order(found)
    if not unique:  # several labels for one id: the one observed last counts
        best: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        for row in found:
            other = best.get(row[:3])
            if other is None or row[_LABEL] > other[_LABEL]:
                best[row[:3]] = row
        columns, order, _ = _in_order(list(best.values()))
    if (order[:-1] > order[1:]).all():  # as SQLite gives the newest ones
        return [column[::-1] for column in columns]
    places = order.tolist()
    return [[column[place] for place in places] for column in columns]


def _in_order(found: Sequence[tuple[Any, ...]]) -> tuple[list[Sequence[Any]], np.ndarray[Any, Any], bool]:
    """The columns as they are, the places of their rows from oldest to newest, and whether no row is there twice."""
    columns: list[Sequence[Any]] = list(zip(*found, strict=True)) if found else [()] * _WIDTH
    days, segments, positions = (np.array(columns[at], dtype=np.int64) for at in range(3))
    order = np.lexsort((positions, segments, days, np.array(columns[_AT], dtype=np.float64)))
    steps = [np.diff(key[order]) == 0 for key in (positions, segments, days)]
    return columns, order, not np.logical_and.reduce(steps).any()


def _twice(rows: sa.FromClause) -> sa.Select[Any]:
    """A row whose id another prediction has too: cheap to ask, as the index on ids alone answers it."""
    other = predictions.alias("other")
    different = sa.or_(other.c.segment != rows.c.segment, other.c.position != rows.c.position)
    return sa.select(rows.c.id).join(other, other.c.id == rows.c.id).where(different).limit(1)


# --- from rows to a frame ------------------------------------------------------------------------------------------


def _frame(
    schema: FeatureSchema, columns: Sequence[Sequence[Any]], superseded: set[int], labelled: bool
) -> pd.DataFrame:
    import pandas as pd

    *_, ids, at, versions, texts, answers, chances, adaptations = columns[: len(_READ)]
    observed_at, *_, label_texts, senders = columns[len(_READ) :]
    given = targets_of(schema, answers)
    fitting = np.array([value is not None for value in given], dtype=bool)
    probabilities, readable = matrix_of(chances, len(schema.classes))
    fitting &= readable

    if superseded:
        label_texts = [None if row in superseded else text for row, text in enumerate(label_texts)]
    raw_labels = targets_of(schema, label_texts)
    known = np.array([value is not None for value in raw_labels], dtype=bool)
    unfit = len(label_texts) - label_texts.count(None) - int(known.sum())
    observed = np.array(observed_at, dtype=np.float64)
    observed[~known] = np.nan
    if labelled:
        fitting &= known

    features, kept = _features(schema, texts, np.asarray(versions), fitting)
    keep: list[int] = np.flatnonzero(kept).tolist()

    def pick(values: Sequence[Any]) -> Sequence[Any]:
        return values if len(keep) == len(values) else [values[row] for row in keep]

    extra: dict[str, Any] = {
        ID: np.array(pick(ids), dtype=object),
        AT: np.array(pick(at), dtype=np.float64),
        VERSION: np.array(pick(versions), dtype=np.int64),
        ADAPTATION: np.array(pick(adaptations), dtype=np.float64),
        PREDICTED: column_of(schema, pick(given)),
        SCORE: np.full(len(keep), np.nan),
        LABEL: column_of(schema, pick(raw_labels)),
        OBSERVED_AT: observed[keep],
        SOURCE: np.array([name if ok else "" for name, ok in zip(pick(senders), known[keep], strict=True)], object),
    }
    if schema.task == "binary":
        extra[SCORE] = probabilities[keep, 1]
    if schema.task == "multiclass":
        column = np.empty(len(keep), dtype=object)
        column[:] = list(probabilities[keep])
        extra[PROBABILITIES] = column
    frame = pd.concat([features, pd.DataFrame(extra, index=features.index)], axis=1)
    frame.attrs = {
        "skipped": len(ids) - len(keep) - (unfit if labelled else 0),
        "unfit_labels": unfit,
    }
    return frame


_UNREADABLE: Final = object()
"""What stands for a text that is no JSON, or holds a number of thousands of digits: no type fits it."""


def _decoded(texts: Sequence[str]) -> list[Any]:
    """The values of many small JSON texts, in one go."""
    try:
        values: list[Any] = msgspec.json.decode("[" + ",".join(texts) + "]")
    except (ValueError, RecursionError):
        values = []
    return values if len(values) == len(texts) else list(map(_decoded_alone, texts))


def _decoded_alone(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return _UNREADABLE


def matrix_of(texts: Sequence[str | None], width: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Rows by classes out of JSON arrays (NaN where there is none), and which rows have that many or none."""
    readable = np.ones(len(texts), dtype=bool)
    if not width:
        return np.empty((len(texts), 0)), readable
    nothing = "[" + ",".join(["null"] * width) + "]"
    found = _decoded([nothing if text is None else text for text in texts])
    try:
        cells = np.array(found, dtype=np.float64)
        if cells.shape == (len(texts), width):
            return cells, readable
    except (ValueError, TypeError):
        pass  # one of them is none of ours: each by itself
    cells = np.full((len(texts), width), np.nan)
    for row, chances in enumerate(found):
        readable[row] = (
            isinstance(chances, list)
            and len(chances) == width
            and all(chance is None or fits.feature_number(chance) for chance in chances)
        )
        if readable[row]:
            cells[row] = [np.nan if chance is None else chance for chance in chances]
    return cells, readable


def targets_of(schema: FeatureSchema, texts: Sequence[str | None]) -> list[Any]:
    """The canonical value of each JSON text; None for None and for what the target does not take."""
    distinct = [text for text in dict.fromkeys(texts) if text is not None]
    values = {text: value for text, value in zip(distinct, _decoded(distinct), strict=True)}
    fitting = {text: value for text, value in values.items() if schema.takes_label(value)}
    canonical = schema.labels(list(fitting.values())).tolist()
    value_of: dict[str | None, Any] = dict(zip(fitting, canonical, strict=True))
    return list(map(value_of.get, texts))


def column_of(schema: FeatureSchema, values: Sequence[Any]) -> np.ndarray[Any, Any]:
    """Canonical values, None where there is none, as a column."""
    dtype = schema.labels([]).dtype
    if dtype != np.float64 and None in values:
        dtype = np.dtype(object)
    return np.array(values, dtype=dtype)


def _features(
    schema: FeatureSchema, texts: Sequence[str], versions: np.ndarray[Any, Any], fitting: np.ndarray[Any, Any]
) -> tuple[pd.DataFrame, np.ndarray[Any, Any]]:
    """The canonical features of the rows that fit, and which rows those are.

    The request decoder reads what it once accepted, fast and all at once. Where it refuses, other versions' rows are
    among them: then each version is asked by itself, and at last each row.
    """
    import pandas as pd

    rows = np.flatnonzero(fitting)
    if not len(rows):
        return schema.frame([]), np.zeros(len(texts), dtype=bool)
    whole = _decode_all(schema, [texts[row] for row in rows.tolist()])
    if whole is not None:
        return whole, fitting
    frames, kept = [], np.zeros(len(texts), dtype=bool)
    order: list[int] = []
    for version in np.unique(versions[rows]):
        of_version = rows[versions[rows] == version]
        frame = _decode_all(schema, [texts[row] for row in of_version.tolist()])
        if frame is None:
            records = _decoded([texts[row] for row in of_version.tolist()])
            readable = [place for place, record in enumerate(records) if is_whole(schema.features, record)]
            frame, good = frame_of_readable(schema.features, [records[place] for place in readable])
            of_version = of_version[[readable[place] for place in good]]
        kept[of_version] = True
        order += of_version.tolist()
        frames.append(frame)
    together = pd.concat(frames, ignore_index=True)
    return together.iloc[np.argsort(order, kind="stable")].reset_index(drop=True), kept


@lru_cache(8)
def _decoder(schema: FeatureSchema) -> RequestDecoder:
    """Its types are made once: `typing` keeps the last hundred that it was given."""
    return RequestDecoder(schema, _DECODED_AT_ONCE)


def _decode_all(schema: FeatureSchema, texts: list[str]) -> pd.DataFrame | None:
    """The features of all the records, None when one of them is not what a request may hold."""
    import pandas as pd

    decode = _decoder(schema).decode
    try:
        frames = [
            decode(('{"records":[' + ",".join(texts[start : start + _DECODED_AT_ONCE]) + "]}").encode()).frame()
            for start in range(0, len(texts), _DECODED_AT_ONCE)
        ]
    except InvalidRequest:
        return None
    return frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
