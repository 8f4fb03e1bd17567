"""Arrow IPC streams: how much is in them before it is read, their rows, and their values as JSON has them.

Import it only where a stream is at hand: pyarrow takes some 40 MB of memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

FAULTS: Final = (ValueError, OSError, pa.ArrowException)
"""What reading a stream may raise that is none, or is cut short."""

EARLIEST_US: Final = -62_135_596_800_000_000
LATEST_US: Final = 253_402_300_799_999_999
"""Microseconds since 1970 UTC of the first and the last moment of the years 1 to 9999."""

_PREFIX: Final = struct.Struct("<II")
_MARKER: Final = 0xFFFFFFFF
SCHEMA, DICTIONARY, ROWS = 1, 2, 3  # kinds of messages: Message.fbs of the Arrow format
_PER_SECOND: Final = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_EXACT: Final = 2**53
_WIDTHS: Final = [f"{sign}int{width}" for sign in ("", "u") for width in (8, 16, 32, 64)]
DTYPES: Final = {name: np.dtype(name) for name in _WIDTHS} | {
    "halffloat": np.dtype(np.float16),
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
}
_DAY_US: Final = 86_400_000_000


class Inside(NamedTuple):
    """What a stream says of itself."""

    rows: int
    batches: int
    size: int
    """Bytes of its values, unpacked."""
    packed: bool
    """Whether some of them are compressed within the stream."""


class Message(NamedTuple):
    """One message of a stream."""

    kind: int
    """`SCHEMA`, `DICTIONARY`, `ROWS`, or another of the format's."""
    head: Table
    start: int
    """Where its head begins, with the length of it."""
    body: int
    size: int
    """Where its body begins, and its bytes."""


def messages(stream: bytes) -> Iterator[Message]:
    """The messages of an Arrow IPC stream, from their heads alone.

    Raises `ValueError` for bytes that are no whole stream. One without its end marker is not whole: cut between two
    messages it would look like a shorter one.
    """
    at = 0
    try:
        while True:
            start = at
            marker, length = _PREFIX.unpack_from(stream, at)
            if marker != _MARKER:
                raise ValueError(f"no message of Arrow begins at byte {at}")
            at += _PREFIX.size
            if not length:
                break
            head = Table(stream, at + _u32(stream, at))
            at += length
            kind, held = head.number(1, "<B"), head.number(3, "<q")
            if held < 0 or length > len(stream) or held > len(stream) - at:
                raise ValueError(f"it is cut short at byte {len(stream)}")
            yield Message(kind, head, start, at, held)
            at += held
    except struct.error:
        raise ValueError(f"it is cut short at byte {len(stream)}") from None
    if at != len(stream):
        raise ValueError(f"{len(stream) - at} bytes follow its end")


def look_into(stream: bytes) -> Inside:
    """What an Arrow IPC stream holds, from the heads of its messages: nothing is unpacked, and no row is made.

    Raises `ValueError` as `messages` does.
    """
    rows = batches = size = 0
    packed = False
    try:
        for kind, head, _, body, held in messages(stream):
            if kind in (DICTIONARY, ROWS):
                batch = head.table(2) if kind == ROWS else head.table(2).table(1)
                if kind == ROWS:
                    rows, batches = rows + max(0, batch.number(0, "<q")), batches + 1
                inside = held if not batch.place(3) else _unpacked(stream, batch, body)
                packed, size = packed or batch.place(3) > 0, size + inside
    except struct.error:
        raise ValueError(f"it is cut short at byte {len(stream)}") from None
    return Inside(rows, batches, size, packed)


class Table:
    """A table of a flatbuffer: its fields by their number in the format's description."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        (back,) = struct.unpack_from("<i", data, at)
        self._fields = at - back
        if self._fields < 0:
            raise ValueError(f"no message of Arrow is at byte {at}")
        (self._size,) = struct.unpack_from("<H", data, self._fields)

    def place(self, field: int) -> int:
        """Where the field lies; 0 when it is absent."""
        entry = 4 + 2 * field
        if entry + 2 > self._size:
            return 0
        (offset,) = struct.unpack_from("<H", self._data, self._fields + entry)
        return self._at + int(offset) if offset else 0

    def number(self, field: int, form: str) -> int:
        at = self.place(field)
        return int(struct.unpack_from(form, self._data, at)[0]) if at else 0

    def table(self, field: int) -> Table:
        at = self.place(field)
        if not at:
            raise ValueError("a message of Arrow has no content")
        return Table(self._data, at + _u32(self._data, at))

    def items(self, field: int) -> tuple[int, int]:
        """Where the items of a list begin, and how many they are."""
        at = self.place(field)
        if not at:
            return 0, 0
        at += _u32(self._data, at)
        return at + 4, _u32(self._data, at)

    def tables(self, field: int) -> list[Table]:
        first, count = self.items(field)
        if count * 4 > len(self._data) - first:
            raise ValueError("a list of Arrow is cut short")
        return [Table(self._data, at + _u32(self._data, at)) for at in range(first, first + 4 * count, 4)]


def _u32(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])


def _unpacked(stream: bytes, batch: Table, body: int) -> int:
    """Bytes of a compressed batch's buffers once unpacked: each begins with how many."""
    size = 0
    first, count = batch.items(2)
    for place in range(first, first + 16 * count, 16):
        offset, length = struct.unpack_from("<qq", stream, place)
        if length:
            if offset < 0:
                raise ValueError(f"a buffer lies at byte {offset}")
            (said,) = struct.unpack_from("<q", stream, body + offset)
            if said < -1:
                raise ValueError(f"a buffer says that it has {said} bytes")
            size += length if said == -1 else said
    return size


# -- rows --------------------------------------------------------------------------------------------------------------


def one_batch(
    reader: pa.RecordBatchReader, check: Callable[[pa.RecordBatch], None] = lambda batch: None
) -> pa.RecordBatch:
    """All rows of a stream as one batch, every value checked to be what its type says. Raises one of `FAULTS`.

    `check` is asked of each batch before its texts are written out.
    """
    batches = []
    for batch in reader:
        batch.validate(full=True)
        if batch.num_rows:
            check(batch)
            batches.append(batch)
    if len(batches) == 1:
        return batches[0]
    if not batches:
        raise ValueError("it has no rows")
    columns = [_joined([batch.column(at) for batch in batches]) for at in range(len(reader.schema))]
    return pa.RecordBatch.from_arrays(columns, names=reader.schema.names)


def _joined(parts: list[pa.Array]) -> pa.Array:
    parts = list(map(_plain, parts))
    if pa.types.is_dictionary(parts[0].type):
        parts = [part.dictionary_decode() for part in parts]
    return pa.concat_arrays(parts)


def _plain(texts: pa.Array) -> pa.Array:
    """A column without views, for which little is implemented."""
    kind = texts.type
    if pa.types.is_dictionary(kind) and pa.types.is_string_view(kind.value_type):
        return pa.DictionaryArray.from_arrays(texts.indices, texts.dictionary.cast(pa.large_string()))
    return texts.cast(pa.large_string()) if pa.types.is_string_view(kind) else texts


def read(stream: bytes | memoryview) -> tuple[pa.RecordBatch, Mapping[str, str]]:
    """The rows of a stream, and the text of its schema's metadata. Raises one of `FAULTS`."""
    with pa.ipc.open_stream(pa.py_buffer(stream)) as reader:
        told = {name.decode(): text.decode() for name, text in (reader.schema.metadata or {}).items()}
        return one_batch(reader), told


def written(names: Sequence[str], columns: Iterable[pa.Array], told: Mapping[str, str] | None = None) -> bytes:
    """A stream of one batch; `told` becomes the metadata of its schema."""
    batch = pa.RecordBatch.from_arrays(list(columns), names=list(names))
    if told:
        batch = batch.replace_schema_metadata(dict(told))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content: bytes = sink.getvalue().to_pybytes()
    return content


# -- to and from NumPy: `pyarrow.array` and `to_numpy` would import pandas: half a second, and 80 MB -------------------


def numbers_array(values: npt.NDArray[Any]) -> pa.Array:
    """Integers or floats without gaps."""
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def packed(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The values of a column as they lie in a stream: of truth values bits."""
    return np.packbits(values, bitorder="little") if values.dtype.kind == "b" else values


def values_array(values: npt.NDArray[Any]) -> pa.Array:
    """Truth values, integers or floats without gaps."""
    if values.dtype.kind != "b":
        return numbers_array(values)
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(packed(values))])


def text_column(ends: bytes, joined: bytes) -> pa.Array:
    """Texts in UTF-8, one behind the other; `ends` are n + 1 int32, from 0 on. Nothing is checked."""
    return pa.Array.from_buffers(pa.string(), len(ends) // 4 - 1, [None, pa.py_buffer(ends), pa.py_buffer(joined)])


def flat(column: pa.Array) -> npt.NDArray[Any]:
    """Integers or floats as they lie in memory: what stands where one is missing is anything."""
    data, kind = column.buffers()[1], DTYPES[str(column.type)]
    if data is None:
        return np.zeros(len(column), kind)
    values: npt.NDArray[Any] = np.frombuffer(data, kind)[column.offset :][: len(column)]
    return values


def present(column: pa.Array) -> npt.NDArray[np.bool_]:
    """Where a column has a value."""
    if column.buffers()[0] is None:
        return np.full(len(column), column.null_count == 0)
    return _bits(column, 0)


def _bits(column: pa.Array, buffer: int) -> npt.NDArray[np.bool_]:
    """A buffer of bits, one a row."""
    bits = np.unpackbits(np.frombuffer(column.buffers()[buffer], np.uint8), bitorder="little")
    return bits[column.offset :][: len(column)].view(np.bool_)


def text_array(texts: Sequence[str | None]) -> pa.Array:
    """Texts; None is missing."""
    valid, words = None, texts
    if None in texts:
        valid = pa.py_buffer(np.packbits([text is not None for text in texts], bitorder="little"))
        words = [text or "" for text in texts]
    joined = "".join(words)  # type: ignore[arg-type]
    lengths: Iterable[int] = map(len, words if joined.isascii() else [word.encode() for word in words])  # type: ignore[union-attr,arg-type]
    ends = np.zeros(len(texts) + 1, np.int32)
    np.cumsum(np.fromiter(lengths, np.int32, len(texts)), out=ends[1:])
    return pa.Array.from_buffers(pa.string(), len(texts), [valid, pa.py_buffer(ends), pa.py_buffer(joined.encode())])


# -- values ------------------------------------------------------------------------------------------------------------


def is_text(kind: pa.DataType) -> bool:
    """Whether it is text, also in a dictionary."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def repeats(kind: pa.DataType) -> bool:
    """Whether few bytes may stand for many texts: of a dictionary, and of views."""
    return bool(pa.types.is_dictionary(kind) or pa.types.is_string_view(kind))


def text_bytes(column: pa.Array) -> int:
    """Bytes of all texts of a column that `repeats`, each written out for every row that has it. No text is made."""
    if not pa.types.is_dictionary(column.type):
        return int(_lengths(column).sum())
    lengths = _lengths(column.dictionary)
    views = lengths.sum() if pa.types.is_string_view(column.type.value_type) else 0  # they may lie on each other
    return int(np.append(lengths, 0)[_places(column.indices)].sum() + views)


def _lengths(texts: pa.Array) -> npt.NDArray[np.int64]:
    """Bytes of each text; 0 where it is missing."""
    data = texts.buffers()[1]
    if data is None:
        return np.zeros(len(texts), np.int64)
    if pa.types.is_string_view(texts.type):
        lengths: npt.NDArray[Any] = np.frombuffer(data, "<i4")[::4][texts.offset :][: len(texts)].astype(np.int64)
    else:
        width = "<i8" if pa.types.is_large_string(texts.type) else "<i4"
        lengths = np.diff(np.frombuffer(data, width)[texts.offset :][: len(texts) + 1].astype(np.int64))
    if texts.null_count:
        lengths[~present(texts)] = 0
    return lengths


def _places(indices: pa.Array) -> npt.NDArray[np.int64]:
    """Indices of a dictionary, -1 where one is missing."""
    places = flat(indices).astype(np.int64)
    if indices.null_count:
        places[~present(indices)] = -1
    return places


class Coded(NamedTuple):
    """A column of n texts: for each row the place of its value, -1 where it is missing."""

    codes: npt.NDArray[np.int64]
    values: list[str]
    """Some may be no row's."""

    def row_of(self, place: int) -> int:
        """The first row that has this value; -1 when none has it."""
        rows = np.flatnonzero(self.codes == place)
        return int(rows[0]) if len(rows) else -1

    def put(self, texts: Sequence[Any], missing: Any) -> npt.NDArray[np.object_]:
        """For each row what stands for its value in `texts`."""
        table = np.empty(len(texts) + 1, object)
        table[:-1], table[-1] = texts, missing
        found: npt.NDArray[np.object_] = table[self.codes]
        return found


def coded(column: pa.Array) -> Coded:
    """A column of text (see `is_text`) or of nulls by its values; of a large dictionary only those that are used."""
    if pa.types.is_null(column.type):
        return Coded(np.full(len(column), -1), [])
    column = _plain(column)
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    codes, words = _places(column.indices), column.dictionary
    if len(words) > len(codes):
        used, codes = np.unique(codes, return_inverse=True)
        if used[0] == -1:
            used, codes = used[1:], codes - 1
        words = words.take(numbers_array(used))
    values = words.to_pylist()
    if words.null_count:
        kept = [at for at, value in enumerate(values) if value is not None]
        place = np.full(len(values) + 1, -1)
        place[kept] = np.arange(len(kept))
        codes, values = place[codes], [values[at] for at in kept]
    return Coded(codes, values)


def numbers(column: pa.Array) -> npt.NDArray[Any]:
    """Numbers, truth values or nulls as floats, missing NaN; whole numbers as the doubles that JSON makes of them."""
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    if pa.types.is_decimal(kind):
        column = column.cast(pa.string()).cast(pa.float64())  # by way of the text: the nearest double
    values = _bits(column, 1).astype(np.float32) if pa.types.is_boolean(kind) else flat(column)
    if column.null_count or values.dtype.kind in "iu":
        values = values.astype(np.float64 if values.dtype.kind in "iu" else values.dtype)
        values[~present(column)] = np.nan
    return values


class Moments(NamedTuple):
    """A column of n times; where one is missing or outside the years 1 to 9999, `us` is 0."""

    us: npt.NDArray[np.int64]
    """Microseconds since 1970 UTC, rounded down."""
    missing: npt.NDArray[np.bool_]
    outside: npt.NDArray[np.bool_]

    def days(self) -> npt.NDArray[np.float64]:
        """Days since 1970 UTC, missing NaN: the doubles that `monitoring.fits.days_since_epoch` gives."""
        days = self.us / _DAY_US
        for at in np.flatnonzero(np.abs(self.us) > _EXACT):
            days[at] = int(self.us[at]) / _DAY_US  # integers of Python: rounded once
        days[self.missing] = np.nan
        return days

    def texts(self) -> list[str | None]:
        """ISO 8601 in UTC."""
        unit: Literal["us", "s"] = "us" if (self.us % 1_000_000).any() else "s"
        texts = np.datetime_as_string(self.us.astype("datetime64[us]"), unit=unit).tolist()
        return [None if gone else f"{text}Z" for text, gone in zip(texts, self.missing.tolist(), strict=True)]


def moments(column: pa.Array) -> Moments:
    """A column of timestamps or dates. One without a zone is in UTC, as a text without an offset is."""
    kind, missing = column.type, ~present(column)
    per_second = _PER_SECOND[kind.unit if pa.types.is_timestamp(kind) else "ms" if pa.types.is_date64(kind) else "s"]
    found = flat(column.cast(pa.int32() if pa.types.is_date32(kind) else pa.int64())).astype(np.int64)
    found[missing] = 0
    if pa.types.is_date32(kind):
        found *= 86_400
    if per_second > 1_000_000:
        us, outside = found // (per_second // 1_000_000), np.zeros(len(found), bool)
    else:
        scale = 1_000_000 // per_second
        outside = (found < EARLIEST_US // scale) | (found > LATEST_US // scale)
        us = np.where(outside, 0, found) * scale
    return Moments(us, missing, outside)


def json_values(column: pa.Array) -> list[Any]:
    """The values of a column that the door accepted, as JSON has them; NaN is null."""
    if is_time(column.type):
        return moments(column).texts()
    if pa.types.is_decimal(column.type) or pa.types.is_floating(column.type):
        return _without_nan(numbers(column))
    found: list[Any] = column.to_pylist()
    return found


def _without_nan(values: npt.NDArray[Any]) -> list[Any]:
    gone = np.isnan(values)
    found: list[Any] = values.tolist()
    for at in np.flatnonzero(gone):
        found[at] = None
    return found
