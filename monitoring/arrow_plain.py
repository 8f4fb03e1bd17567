"""Arrow streams as most programs write them for a model, read without pyarrow: one batch, nothing compressed.

What a stream's schema asks for is worked out once and kept with the decoder, and where its columns lie, too: the next
stream of the same schema, dictionaries and length is cut into its columns by their places in the bytes. Everything else
is left to `monitoring.columns.read_arrow`, which has the words for what is wrong; what is read here is what it would
make of it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from monitoring.arrow import DICTIONARY, DTYPES, FAULTS, ROWS, SCHEMA, Coded, Message, coded, messages
from monitoring.decode import InvalidRequest

if TYPE_CHECKING:
    from monitoring.decode import RequestDecoder

MOST_PLANS: Final = 16
MOST_KEPT: Final = 64
"""Dictionaries of one plan."""
MOST_LAID: Final = 16
"""Lengths of streams of one plan."""
KEPT_BYTES: Final = 64 * 1024
"""Of a schema, a dictionary or a head that is kept, at most."""


class Column(NamedTuple):
    """How one column is read."""

    form: Literal["number", "boolean", "words", "text", "id"]
    to: int = 0
    """Column of the numeric matrix, or place among the texts."""
    dtype: np.dtype[Any] | None = None
    """Of its numbers, or its places in a dictionary."""
    words: int = 0
    """Number of that dictionary."""
    kind: pa.DataType | None = None
    """Of its text."""

    @property
    def buffers(self) -> int:
        return 3 if self.form in ("text", "id") else 2


class Words(NamedTuple):
    """The values of a dictionary."""

    values: list[str]
    chars: int
    size: int
    """Characters and bytes of its longest values."""


class Laid(NamedTuple):
    """Where the rows of a stream lie: the same in every stream of this length, head and tail."""

    head: bytes
    """Up to the values; pyarrow has read it, so nothing in it stands for bytes behind it."""
    tail: bytes
    """Behind the values."""
    rows: int
    columns: list[tuple[Column, int, tuple[int, ...]]]
    """Of each how many values are missing, and offset and size of its buffers."""
    words: dict[int, Words]
    """The dictionaries by their numbers."""
    start: int
    size: int
    """Where the values begin, and their bytes."""


class Plan(NamedTuple):
    """How streams of one schema are read."""

    columns: list[Column]
    buffers: int
    """Of all columns together."""
    width: int
    """Of the numeric matrix."""
    texts: int
    kinds: dict[int, pa.DataType]
    """Of the values of each dictionary, by its number."""
    kept: dict[bytes, Words]
    """What dictionaries' bytes were found to say."""
    laid: dict[int, Laid]
    """Where the rows of the last stream of a length lay, by the length."""


class Plain(NamedTuple):
    """The n rows of a stream."""

    ids: list[str] | None
    matrix: npt.NDArray[np.float32]
    """n by the schema's `numeric_names`, none infinite."""
    texts: list[Coded]
    """In the order of the schema's `categorical_names`."""


class _Bytes:
    """The buffers of one message's body. What lies outside of it raises `ValueError`."""

    def __init__(self, stream: bytes, start: int, size: int) -> None:
        self._stream, self._start, self._size = stream, start, size

    def _place(self, offset: int, size: int, needed: int) -> int:
        if offset < 0 or offset % 8 or needed > size or size > self._size - offset:
            raise ValueError("a buffer of Arrow lies outside of its message, or off its place")
        return self._start + offset

    def numbers(self, dtype: np.dtype[Any], rows: int, offset: int, size: int) -> npt.NDArray[Any]:
        if size % dtype.itemsize:
            raise ValueError("a buffer of Arrow ends within a number")
        return np.frombuffer(self._stream, dtype, rows, self._place(offset, size, rows * dtype.itemsize))

    def bits(self, rows: int, offset: int, size: int) -> npt.NDArray[np.bool_]:
        packed = np.frombuffer(self._stream, np.uint8, (rows + 7) // 8, self._place(offset, size, (rows + 7) // 8))
        return np.unpackbits(packed, count=rows, bitorder="little").view(np.bool_)

    def texts(self, kind: pa.DataType, rows: int, missing: int, buffers: tuple[int, ...]) -> pa.Array:
        """A checked column of text. Raises one of `FAULTS`."""
        whole, parts = pa.py_buffer(self._stream), []
        for offset, size in zip(buffers[::2], buffers[1::2], strict=True):
            parts.append(whole.slice(self._place(offset, size, 0), size))
        column = pa.Array.from_buffers(kind, rows, [parts[0] if parts[0].size else None, *parts[1:]])
        column.validate(full=True)
        if column.null_count != missing:
            raise ValueError("another number of values is missing than it says")
        return column


def read_plain(
    decoder: RequestDecoder,
    body: bytes,
    most_bytes: int,
    check_columns: Callable[[RequestDecoder, list[str], list[pa.DataType]], bool],
) -> Plain | None:
    """The rows of a stream in the usual form; None for every other one, and for what is wrong.

    `check_columns` says whether there are ids, and raises for columns that do not fit.
    """
    try:
        return _read(decoder, body, most_bytes, check_columns)
    except (*FAULTS, struct.error, OverflowError, InvalidRequest):
        return None


def _read(decoder: RequestDecoder, body: bytes, most_bytes: int, check_columns: Callable[..., bool]) -> Plain | None:
    schema = next(messages(body), None)
    if schema is None or schema.kind != SCHEMA:
        return None
    plan = _plan(decoder, body, schema, check_columns)
    if plan is None:
        return None
    laid = plan.laid.get(len(body))
    if laid is None or not (body.startswith(laid.head) and body.endswith(laid.tail)):
        laid = _lay(decoder, plan, body)
        if laid is None:
            return None
        if len(laid.head) <= KEPT_BYTES:
            if len(plan.laid) >= MOST_LAID:
                plan.laid.clear()
            plan.laid[len(body)] = laid
    return _columns(decoder, plan, laid, body, most_bytes)


def _lay(decoder: RequestDecoder, plan: Plan, body: bytes) -> Laid | None:
    """Where the columns of a stream lie; None when it is of another form. Raises one of `FAULTS`, or `struct.error`."""
    found = list(islice(messages(body), len(decoder.schema.features) + 3))  # one more than can be in the usual form
    last, words = found[-1], {}
    if last.kind != ROWS:
        return None
    for message in found[1:-1]:
        number = message.head.table(2).number(0, "<q") if message.kind == DICTIONARY else -1
        if number not in plan.kinds or number in words:
            return None
        words[number] = _words(plan, body, message, plan.kinds[number])
    if words.keys() != plan.kinds.keys():
        return None
    pa.ipc.read_message(pa.py_buffer(body).slice(last.start))  # raises for a head that only we can read
    batch = last.head.table(2)
    rows = batch.number(0, "<q")
    (first, columns), (place, buffers) = batch.items(1), batch.items(2)
    nodes = struct.unpack_from(f"<{2 * len(plan.columns)}q", body, first)
    places = struct.unpack_from(f"<{2 * plan.buffers}q", body, place)
    as_planned = columns == len(plan.columns) and buffers == plan.buffers
    if batch.place(3) or not as_planned or not 0 < rows <= decoder.max_records or set(nodes[::2]) != {rows}:
        return None
    each, at = [], 0
    for column, missing in zip(plan.columns, nodes[1::2], strict=True):
        each.append((column, missing, places[at : at + 2 * column.buffers]))
        at += 2 * column.buffers
    return Laid(body[: last.body], body[last.body + last.size :], rows, each, words, last.body, last.size)


@np.errstate(over="ignore", invalid="ignore")
def _columns(decoder: RequestDecoder, plan: Plan, laid: Laid, body: bytes, most_bytes: int) -> Plain | None:
    rows, inside = laid.rows, _Bytes(body, laid.start, laid.size)
    matrix, texts = np.empty((rows, plan.width), np.float32), dict[int, Coded]()
    ids, spread = None, 0
    for column, missing, here in laid.columns:
        if column.form in ("text", "id"):
            text = coded(inside.texts(column.kind, rows, missing, here))
            if column.form == "text":
                texts[column.to] = text
                if max(map(len, text.values), default=0) > decoder.max_chars:
                    return None
            else:
                ids = text.put(text.values, None).tolist()
            continue
        gone = None
        if missing or here[1]:
            gone = ~inside.bits(rows, *here[:2])
            if int(np.count_nonzero(gone)) != missing:
                return None
        if column.dtype is None:
            values: npt.NDArray[Any] = inside.bits(rows, *here[2:])
        else:
            values = inside.numbers(column.dtype, rows, *here[2:])
        if column.form == "words":
            known, codes = laid.words[column.words], values.astype(np.int64)
            used = codes if gone is None else codes[~gone]
            if used.size and (int(used.min()) < 0 or int(used.max()) >= len(known.values)):
                return None
            if known.chars > decoder.max_chars:
                return None
            if missing:
                codes[gone] = -1
            spread += known.size * rows
            texts[column.to] = Coded(codes, known.values)
        else:
            if values.dtype.kind in "iu" or missing:  # whole numbers are the doubles that JSON makes of them
                values = values.astype(np.float64)
            if missing:
                values[gone] = np.nan
            matrix[:, column.to] = values
    if spread > most_bytes or np.isinf(matrix).any():
        return None
    return Plain(ids, matrix, [texts[place] for place in range(plan.texts)])


def _plan(decoder: RequestDecoder, body: bytes, schema: Message, check_columns: Callable[..., bool]) -> Plan | None:
    key = body[schema.start : schema.body + schema.size]
    if key not in decoder.plans and len(key) <= KEPT_BYTES:
        if len(decoder.plans) >= MOST_PLANS:
            decoder.plans.clear()
        decoder.plans[key] = _made(decoder, body, schema, check_columns)
    return decoder.plans.get(key)


def _made(decoder: RequestDecoder, body: bytes, schema: Message, check_columns: Callable[..., bool]) -> Plan | None:
    """The plan for a schema; None for one of another form. Raises what `check_columns` does."""
    with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
        known = reader.schema
    check_columns(decoder, known.names, known.types)
    head = schema.head.table(2)
    numeric = {name: place for place, name in enumerate(decoder.schema.numeric_names)}
    texts = {name: place for place, name in enumerate(decoder.schema.categorical_names)}
    features = {feature.name: feature.kind for feature in decoder.schema.features}
    columns, kinds = [], {}
    for name, kind, field in zip(known.names, known.types, head.tables(1), strict=True):
        of, dtype = features.get(name, "id" if name == decoder.named_by else ""), DTYPES.get(str(kind))
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if of == "numeric" and dtype is not None:
            columns.append(Column("number", numeric[name], dtype))
        elif of == "boolean" and pa.types.is_boolean(kind):
            columns.append(Column("boolean", numeric[name]))
        elif of == "categorical" and is_text:
            columns.append(Column("text", texts[name], kind=kind))
        elif of == "id" and is_text:
            columns.append(Column("id", kind=kind))
        elif of == "categorical" and pa.types.is_dictionary(kind):
            number = field.table(4).number(0, "<q")
            if number in kinds or not (
                pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type)
            ):
                return None
            kinds[number] = kind.value_type
            columns.append(Column("words", texts[name], DTYPES[str(kind.index_type)], number))
        else:
            return None
    if head.number(0, "<h"):  # its numbers begin with their highest byte
        return None
    return Plan(columns, sum(column.buffers for column in columns), len(numeric), len(texts), kinds, {}, {})


def _words(plan: Plan, body: bytes, message: Message, kind: pa.DataType) -> Words:
    """What a dictionary says. Raises one of `FAULTS`, also for one in another form."""
    key = body[message.start : message.body + message.size]
    found = plan.kept.get(key)
    if found is None:
        pa.ipc.read_message(pa.py_buffer(key))
        whole = message.head.table(2)
        batch = whole.table(1)
        (first, nodes), (place, buffers) = batch.items(1), batch.items(2)
        if whole.number(2, "<B") or batch.place(3) or nodes != 1 or buffers != 3:
            raise ValueError("a dictionary in another form")
        length, missing = struct.unpack_from("<2q", body, first)
        places = struct.unpack_from("<6q", body, place)
        values = _Bytes(body, message.body, message.size).texts(kind, length, missing, places).to_pylist()
        if missing or batch.number(0, "<q") != length:
            raise ValueError("a dictionary in another form")
        sizes = [len(value.encode()) for value in values]
        found = Words(values, max(map(len, values), default=0), max(sizes, default=0))
        if len(key) <= KEPT_BYTES:
            if len(plan.kept) >= MOST_KEPT:
                plan.kept.clear()
            plan.kept[key] = found
    return found
