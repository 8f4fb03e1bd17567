"""Forgetting rows: who is meant, and how they leave the spool, the store and the exports.

Rows are erased by prediction id, or by a subject feature's value: then every prediction id under which a record with
that value was answered is meant. What was recorded after the moment of asking stays.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import sqlalchemy as sa

from monitoring import fits
from monitoring.canonical import frame_of_readable, is_whole
from monitoring.export import whole_file
from monitoring.feature import AT, ID, SchemaError
from monitoring.files import UNFINISHED
from monitoring.insert import last_stored
from monitoring.record import Entry, TableRows, blank, decode_entry, iter_entries
from monitoring.schema import FeatureSchema
from monitoring.spool import open_segment, segments
from monitoring.store import dead_letters, key_columns, labels, predictions

if TYPE_CHECKING:
    import pandas as pd

_AT_ONCE: Final = 500
_ROWS_AT_ONCE: Final = 10_000
_LETTERS_AT_ONCE: Final = 100


class Subject(msgspec.Struct, frozen=True):
    """Whom an erasure means: prediction ids, or the value of one feature."""

    ids: tuple[str, ...] = ()
    feature: str = ""
    value: str | bool | int | float | None = None
    """A text also means the number or truth value it spells: "41" means "41" and 41."""
    hidden: str | None = None
    """The value as it is recorded where the feature is hashed; rows of earlier may have the value itself."""

    @property
    def values(self) -> tuple[Any, ...]:
        if not self.feature or self.value is None:
            return ()
        values = [self.value]
        if isinstance(self.value, str):
            try:
                spelled = msgspec.json.decode(self.value)
            except msgspec.DecodeError:
                spelled = None
            values += [spelled] if isinstance(spelled, bool | int | float) else []
        return (*values, *([self.hidden] if self.hidden is not None else []))


class Row(NamedTuple):
    """One stored prediction that is meant."""

    at: float
    features: dict[str, Any]


class Found(NamedTuple):
    """Everything that is meant, as the store knows it."""

    ids: frozenset[str]
    rows: tuple[Row, ...]


def find(engine: sa.Engine, subject: Subject, until: float) -> Found:
    """The prediction ids meant, and the rows answered under them up to `until`.

    By value every stored record is looked at (about a second for a million rows).
    """
    ids = {id_ for id_ in subject.ids if fits.id_text(id_)}  # no store can be asked for others
    if subject.feature:
        is_meant = _record_test(subject)
        every = sa.select(predictions.c.id, predictions.c.features).where(predictions.c.at <= until)
        with engine.connect().execution_options(yield_per=_ROWS_AT_ONCE) as connection:
            ids |= {id_ for id_, text in connection.execute(every) if is_meant(text)}
    rows: list[Row] = []
    with engine.connect() as connection:
        for some in _some(ids):
            meant = sa.select(predictions.c.at, predictions.c.features)
            meant = meant.where(predictions.c.id.in_(some), predictions.c.at <= until)
            rows += [Row(at, _features(text)) for at, text in connection.execute(meant)]
    return Found(frozenset(ids), tuple(rows))


def _features(text: str) -> dict[str, Any]:
    """The features of a stored record; none when it is no JSON object, which nothing was trained from."""
    try:
        found = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def erase_rows(engine: sa.Engine, subject: Subject, ids: Iterable[str], until: float) -> dict[str, int]:
    """Delete predictions, labels and dead letters of `ids` recorded up to `until`; deleted rows by table.

    A dead letter goes when it mentions an id, or both name and value of the subject's feature; before the rows, without
    which nobody knows any more which ids were meant.
    """
    erased = {"predictions": 0, "labels": 0, "dead_letters": 0}
    ids = [id_ for id_ in ids if fits.id_text(id_)]
    is_meant = _letter_test(subject, {*ids, *subject.ids})
    key = key_columns(dead_letters)
    every = sa.select(*key, dead_letters.c.payload, dead_letters.c.reason)
    with engine.connect().execution_options(yield_per=_LETTERS_AT_ONCE) as connection:
        found = connection.execute(every)
        meant = [where for *where, payload, reason in found if is_meant(payload + b"\n" + reason.encode())]
    with engine.begin() as connection:
        for where in meant:
            conditions = [column == value for column, value in zip(key, where, strict=True)]
            erased["dead_letters"] += connection.execute(sa.delete(dead_letters).where(*conditions)).rowcount
    for some in _some(ids):  # a transaction each: the drain and the lease come in between
        with engine.begin() as connection:
            for table, at in ((predictions, predictions.c.at), (labels, labels.c.received_at)):
                gone = connection.execute(sa.delete(table).where(table.c.id.in_(some), at <= until))
                erased[table.name] += gone.rowcount
    return erased


# --- the spool -----------------------------------------------------------------------------------------------------


def undrained(directory: Path, engine: sa.Engine, until: float) -> int:
    """How many entries of the spool written up to `until` are not in the store yet."""
    waiting = 0
    for segment, path in segments(directory).items():
        last = last_stored(engine, segment)
        waiting += sum(e.offset > last and e.rows > 0 and e.at <= until for e in _entries(path))
    return waiting


def blank_spool(directory: Path, engine: sa.Engine, is_meant: Callable[[Entry, int], bool]) -> int:
    """Overwrite the stored entries that are meant (asked with the segment's number) with empty ones; how many.

    Done in place, so that also the open segment of a worker that has had no request since is clean at once: workers
    only ever append. An entry that is not in the store yet is left alone.
    """
    blanked = 0
    for segment, path in segments(directory).items():
        last = last_stored(engine, segment)
        meant = [e for e in _entries(path) if e.offset <= last and e.rows and is_meant(e, segment)]
        if not meant:
            continue
        opened = open_segment(path, os.O_WRONLY)
        if opened is None:  # drained away this instant
            continue
        fd, _ = opened
        try:
            for entry in meant:
                os.pwrite(fd, blank(entry), entry.offset)
            os.fdatasync(fd)
        finally:
            os.close(fd)
        blanked += len(meant)
    return blanked


def entry_test(subject: Subject, ids: frozenset[str], until: float) -> Callable[[Entry, int], bool]:
    """Whether an entry of the spool written up to `until` holds a row that is meant; for `blank_spool`."""
    has_value, mentions = _record_test(subject), _letter_test(subject, ids)

    def is_meant(entry: Entry, segment: int) -> bool:
        if entry.at > until:
            return False
        rows = TableRows()
        decode_entry(entry, segment, rows)
        return (
            any(row.id in ids or has_value(row.features) for row in rows.predictions)
            or any(row.id in ids for row in rows.labels)
            or any(mentions(letter.payload) for letter in rows.dead)
        )

    return is_meant


def _entries(path: Path) -> Iterator[Entry]:
    opened = open_segment(path)
    if opened is None:
        return
    with os.fdopen(opened[0], "rb") as file:
        data = file.read()
    for found in iter_entries(data, 0):
        if isinstance(found, Entry):
            yield found


# --- frames of features, and exports -------------------------------------------------------------------------------


def canonical_values(subject: Subject, schema: FeatureSchema) -> frozenset[Any]:
    """The subject's value as it stands in canonical frames of this schema; empty when its feature is not among them."""
    if subject.feature not in schema.names:
        return frozenset()
    found = set()
    for value in subject.values:
        try:
            frame = schema.frame([{**schema.example(), subject.feature: value}])
        except SchemaError:
            continue
        found.add(frame[subject.feature].tolist()[0])
    return frozenset(found)


def canonical_rows(rows: Sequence[Row], schema: FeatureSchema) -> tuple[list[float], pd.DataFrame]:
    """(times, canonical features) of the rows that this schema can read."""
    whole = [row for row in rows if is_whole(schema.features, row.features)]
    frame, places = frame_of_readable(schema.features, [row.features for row in whole])
    return [whole[place].at for place in places], frame


def erase_exports(target: str, subject: Subject, ids: frozenset[str], until: float) -> dict[str, int]:
    """Rows deleted from each file below the folder or URL that `export` wrote to; files without any are not named."""
    import fsspec
    import pyarrow as pa
    import pyarrow.parquet as pq

    filesystem, root = fsspec.core.url_to_fs(target)
    for left in filesystem.glob(f"{root.rstrip('/')}/day=*/*{UNFINISHED}"):  # of an export that was killed
        filesystem.rm_file(left)
    meant = set(subject.values)
    numbers = [float(v) for v in meant if fits.feature_number(v) or isinstance(v, bool)]
    erased: dict[str, int] = {}
    for path in sorted(filesystem.glob(f"{root.rstrip('/')}/day=*/*.parquet")):
        with filesystem.open(path, "rb") as file:
            table = pq.ParquetFile(file).read()
        at = table[AT].to_pylist()
        gone = [id_ in ids for id_ in table[ID].to_pylist()]
        if subject.feature in table.column_names:
            column = table[subject.feature]
            single = column.type == pa.float32()
            wanted = set(map(_single, numbers)) if single else meant
            gone = [g or v in wanted for g, v in zip(gone, column.to_pylist(), strict=True)]
        keep = [not g or moment > until for g, moment in zip(gone, at, strict=True)]
        if all(keep):
            continue
        erased[path.removeprefix(root).lstrip("/")] = keep.count(False)
        if not any(keep):
            filesystem.rm_file(path)
            continue
        with whole_file(filesystem, path) as out:
            pq.write_table(table.filter(pa.array(keep)), out)
    return erased


def _single(value: float) -> float:
    import numpy as np

    return float(np.float32(value))


# --- tests of one record -------------------------------------------------------------------------------------------


def _record_test(subject: Subject) -> Callable[[str], bool]:
    """Whether a record (JSON text) has the subject's value."""
    if not subject.feature:
        return lambda text: False
    shape = msgspec.defstruct("Record", [("value", Any, None)], rename={"value": subject.feature})
    decode = msgspec.json.Decoder(shape).decode
    values = subject.values

    def test(text: str) -> bool:
        try:
            found: Any = decode(text).value  # type: ignore[attr-defined]
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
            return False
        return any(found == value and isinstance(found, bool) == isinstance(value, bool) for value in values)

    return test


def _letter_test(subject: Subject, ids: Iterable[str]) -> Callable[[bytes], bool]:
    """Whether bytes that could not be understood mention an id, or the feature together with its value."""
    needles = [form for id_ in ids for form in _written(id_)]
    names = _written(subject.feature) if subject.feature else set()
    texts = {form for value in subject.values for form in _written(value)}

    def test(payload: bytes) -> bool:
        if any(needle in payload for needle in needles):
            return True
        return any(name in payload for name in names) and any(text in payload for text in texts)

    return test


def _written(value: str | bool | int | float) -> set[bytes]:
    """How the value may stand in a client's JSON, without quotes: as it is, and with its characters escaped."""
    if not isinstance(value, str):
        forms = {json.dumps(value)}
        if isinstance(value, float) and value.is_integer():
            forms.add(str(int(value)))
        return {form.encode() for form in forms}
    escaped = (json.dumps(value, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False))
    return {form.encode("utf-8", "surrogatepass") for form in (value, *escaped)}


def _some(ids: Iterable[str]) -> Iterator[list[str]]:
    every = sorted(ids)
    for start in range(0, len(every), _AT_ONCE):
        yield every[start : start + _AT_ONCE]
