"""What one prediction, one label and one rejection are, and how they lie in a spool segment.

A segment is a sequence of entries. An entry is a header and one or two parts, JSON or Arrow exactly as they travelled
over HTTP: the hot path encodes nothing, the drain makes the rows.

    magic 4 | crc32 4 | payload length 4 | first part's length 4 | kind 1 | parts 1 | rows 2 | at 8 | payload

Little endian. The checksum covers everything behind it. The magic starts with 0xC1, a byte that never occurs in UTF-8
and so never in a payload (a batch in Arrow that has it is recorded as JSON): after damage the next entry is found by
looking for it.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from itertools import repeat
from typing import Annotated, Final, NamedTuple
from zlib import crc32

import msgspec

from monitoring.fits import ID_CHARS, LABEL_JSON, moment
from monitoring.spool import segment_day

DAMAGED: Final = 0
"""Of a dead letter only: bytes that were no record at all."""
PREDICTION: Final = 1
"""Parts: the answer as sent, the request body as received."""
FEEDBACK: Final = 2
"""Parts: the request body, `{"labels": [{"id", "label", "observed_at"?}]}`, and, when it came with a token, whose:
`{"source"}`."""
REJECTION: Final = 3
"""One part: `{"route", "status", "count", "reason"}`."""
COLUMNS: Final = 4
"""Predictions, too. Parts: the answer, the request, both as Arrow streams (see `arrow_rows.py`)."""
TABLES: Final = {PREDICTION: "predictions", FEEDBACK: "labels", REJECTION: "rejections", COLUMNS: "predictions"}
"""Kind -> the table that its rows are stored in."""

MAGIC: Final = b"\xc1EG1"
"""Ends in the format's number. A reader of format 2 must still know this one: spools outlive an upgrade."""
_FEW: Final = 64
"""Pairs of bytes that look like a part of a mark and are looked at one by one."""
MAX_ROWS: Final = 0xFFFF
MAX_PAYLOAD_BYTES: Final = 256 * 2**20
"""A length above it can only be damage."""
MAX_DEAD_BYTES: Final = 64 * 2**10
"""How much of an undecodable payload is kept."""

_FRONT: Final = struct.Struct("<4sI")
_TAIL: Final = struct.Struct("<IIBBHd")
_HEADER: Final = struct.Struct("<4sIIIBBHd")
HEADER_BYTES: Final = _HEADER.size


def has_magic(data: bytes) -> bool:
    """`MAGIC in data`, in a fifth of the time: whether an entry's mark stands in a large payload that is no text.

    Two bytes of a mark stand together at an even place, wherever it begins; by chance as many as two in 100 kB do.
    """
    import numpy as np

    pairs = np.frombuffer(data, np.uint16, len(data) // 2)
    at_even, at_odd = np.frombuffer(MAGIC[:2] + MAGIC[1:3], np.uint16)
    looks_like = np.flatnonzero((pairs == at_even) | (pairs == at_odd))
    if len(looks_like) > _FEW:
        return MAGIC in data
    return any(MAGIC in data[max(0, at - 1) : at + 4] for at in (2 * looks_like).tolist())


class Prediction(NamedTuple):
    """One stored prediction, in the column order of the table."""

    day: int
    segment: int
    position: int
    id: str
    at: float
    version: int
    features: str
    prediction: str
    probabilities: str | None
    adaptation: int | None
    """Number of the version's adaptation that was in force."""
    trace_id: str | None
    """Of the request, 32 hex digits."""


class Label(NamedTuple):
    """One stored label, in the column order of the table."""

    day: int
    segment: int
    position: int
    id: str
    label: str
    observed_at: float
    received_at: float
    source: str
    """Name of the token it came with, "" when it came without one."""


class Rejection(NamedTuple):
    """One kind of refused request, in the column order of the table."""

    day: int
    segment: int
    position: int
    at: float
    route: str
    status: int
    times: int
    """How many like this one it stands for."""
    reason: str


class DeadLetter(NamedTuple):
    """What could not be understood or stored, and why, in the column order of the table."""

    day: int
    segment: int
    position: int
    at: float
    kind: int
    reason: str
    payload: bytes


class Entry(NamedTuple):
    """One whole entry of a segment; `offset` and `end` are bytes from the segment's start."""

    offset: int
    end: int
    kind: int
    rows: int
    at: float
    parts: tuple[memoryview, ...]


class Damage(NamedTuple):
    """A stretch of a segment that is no entry. `torn`: an unfinished write at the very end, expected after a kill."""

    offset: int
    end: int
    data: bytes
    torn: bool


class TableRows:
    """Rows decoded out of entries, by table."""

    __slots__ = ("dead", "labels", "predictions", "rejections")

    def __init__(self) -> None:
        self.predictions: list[Prediction] = []
        self.labels: list[Label] = []
        self.rejections: list[Rejection] = []
        self.dead: list[DeadLetter] = []

    def __len__(self) -> int:
        return len(self.predictions) + len(self.labels) + len(self.rejections) + len(self.dead)


def encode_header(kind: int, at: float, rows: int, parts: tuple[bytes, ...]) -> bytes:
    """The bytes that go before `parts` (one or two).

    Raises `ValueError` for more than 65,535 rows, more than two parts or a payload over 256 MiB.
    """
    count = len(parts)
    first = len(parts[0])
    length = first + len(parts[1]) if count == 2 else first
    if not 0 < rows <= MAX_ROWS or count > 2 or length > MAX_PAYLOAD_BYTES:
        raise ValueError(
            f"a record holds 1 to {MAX_ROWS} rows in one or two parts of together at most {MAX_PAYLOAD_BYTES} bytes, "
            f"got {rows} rows in {count} parts of {length} bytes: send smaller batches"
        )
    tail = _TAIL.pack(length, first, kind, count, rows, at)
    checksum = crc32(parts[0], crc32(tail))
    if count == 2:
        checksum = crc32(parts[1], checksum)
    return _FRONT.pack(MAGIC, checksum) + tail


def blank(entry: Entry) -> bytes:
    """An entry as long as `entry` (header included) that holds no row: what takes its place when it is erased.

    Feedback without labels, filled up with spaces: an older reader understands it too.
    """
    length = entry.end - entry.offset - HEADER_BYTES
    payload = b'{"labels":[]}'.ljust(length)
    if len(payload) > length:
        raise ValueError(f"a record of {length} bytes is too short to be blanked")
    tail = _TAIL.pack(length, length, FEEDBACK, 1, 0, entry.at)
    return _FRONT.pack(MAGIC, crc32(payload, crc32(tail))) + tail + payload


def iter_entries(data: bytes, base: int = 0, *, at_end: bool = False) -> Iterator[Entry | Damage]:
    """The entries and damaged stretches of `data`, which lies at byte `base` of its segment.

    Stops before an entry that is not complete; with `at_end`, nothing will ever follow `data`, and that entry is
    yielded as torn damage. Behind damage it resumes at the next magic, so one bad byte costs one entry.
    """
    view = memoryview(data)
    start, size = 0, len(data)
    while start < size:
        entry = _entry_at(view, start, base)
        if isinstance(entry, Entry):
            yield entry
            start = entry.end - base
            continue
        if entry is None and not at_end:
            return
        resume = _next_start(data, view, start + 1, base, at_end)
        if resume <= start:
            return
        torn = entry is None and resume == size
        yield Damage(
            base + start,
            base + resume,
            data[start : min(resume, start + MAX_DEAD_BYTES)],
            torn,
        )
        start = resume


def needed_bytes(data: bytes, start: int) -> int:
    """How many bytes the incomplete entry at `start` of `data` says it has, header included."""
    if len(data) - start < HEADER_BYTES:
        return HEADER_BYTES
    length: int = _HEADER.unpack_from(data, start)[2]
    return HEADER_BYTES + length


def time_of(header: bytes) -> float | None:
    """When the entry whose first bytes are `header` was written, if that can be told."""
    if len(header) < HEADER_BYTES or header[:4] != MAGIC:
        return None
    at: float = _HEADER.unpack_from(header)[7]
    return at


def _entry_at(view: memoryview, start: int, base: int) -> Entry | bool | None:
    """The whole entry at `start`; None when it goes on behind the view; False when it is no entry."""
    available = len(view) - start
    if available < HEADER_BYTES:
        return None if MAGIC.startswith(view[start : start + 4].tobytes()) else False
    magic, checksum, length, first, kind, count, rows, at = _HEADER.unpack_from(view, start)
    if magic != MAGIC or length > MAX_PAYLOAD_BYTES or first > length or count not in (1, 2):
        return False
    if available < HEADER_BYTES + length:
        return None
    payload = start + HEADER_BYTES
    end = payload + length
    if crc32(view[start + _FRONT.size : end]) != checksum:
        return False
    parts = (view[payload : payload + first], view[payload + first : end]) if count == 2 else (view[payload:end],)
    return _new_tuple(Entry, (base + start, base + end, kind, rows, at, parts))


def _next_start(data: bytes, view: memoryview, start: int, base: int, at_end: bool) -> int:
    """Where the next entry may begin at or behind `start`."""
    while (found := data.find(MAGIC, start)) >= 0:
        entry = _entry_at(view, found, base)
        if isinstance(entry, Entry) or (entry is None and not at_end):
            return found
        start = found + 1
    if at_end:
        return len(data)
    return len(data) - len(MAGIC) + 1  # the first bytes of a magic may already be there


# --- from an entry to rows ---------------------------------------------------------------------------------------


_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_CHARS)]


class _Answer(msgspec.Struct, gc=False):
    version: int
    predictions: list[msgspec.Raw]
    ids: list[_Id] | None = None
    probabilities: list[msgspec.Raw] | None = None
    adaptation: int | None = None
    trace_id: str | None = None


class _Asked(msgspec.Struct, gc=False):
    records: list[msgspec.Raw]
    ids: list[_Id] | None = None


class _Labelled(msgspec.Struct, gc=False):
    id: _Id
    label: msgspec.Raw
    observed_at: float | str | None = None


class _Feedback(msgspec.Struct, gc=False):
    labels: list[_Labelled]


class _Sent(msgspec.Struct, gc=False):
    source: str


class _Refused(msgspec.Struct, gc=False):
    route: str
    status: int
    reason: str
    count: int = 1


_new_tuple = tuple.__new__
_answer = msgspec.json.Decoder(_Answer)
_asked = msgspec.json.Decoder(_Asked)
_feedback = msgspec.json.Decoder(_Feedback)
_sent = msgspec.json.Decoder(_Sent)
_refused = msgspec.json.Decoder(_Refused)


def row_key(segment: int, offset: int) -> tuple[int, int, int]:
    """The key of the first row of the entry at byte `offset` of its segment; each further row adds 1 to it."""
    return segment_day(segment), segment, offset << 16


def decode_entry(entry: Entry, segment: int, into: TableRows) -> None:
    """Add the entry's rows to `into`; what cannot be understood becomes a dead letter there, with the reason."""
    try:
        if entry.kind == PREDICTION:
            _decode_prediction(entry, segment, into)
        elif entry.kind == FEEDBACK:
            _decode_feedback(entry, segment, into)
        elif entry.kind == COLUMNS:
            _decode_columns(entry, segment, into)
        elif entry.kind == REJECTION:
            refused = _refused.decode(entry.parts[0])
            key = row_key(segment, entry.offset)
            into.rejections.append(
                Rejection(*key, entry.at, refused.route, refused.status, refused.count, refused.reason)
            )
        else:
            raise ValueError(f"unknown kind of record {entry.kind}: was it written by a newer program?")
    except (ValueError, IndexError) as error:  # msgspec's errors and UnicodeDecodeError are ValueErrors
        into.dead.append(dead_letter(entry, segment, str(error)))


def dead_letter(entry: Entry, segment: int, reason: str) -> DeadLetter:
    """The whole entry as a dead letter; of columns that can be read the rows in JSON, where erasure finds values."""
    payload = b"\n".join(part.tobytes() for part in entry.parts)
    if entry.kind == COLUMNS:
        with contextlib.suppress(ValueError, IndexError):
            rows = TableRows()
            _decode_columns(entry, segment, rows)
            payload = "\n".join(f"{row.id} {row.features}" for row in rows.predictions).encode()
    if len(payload) > MAX_DEAD_BYTES:
        reason = f"{reason} (the first {MAX_DEAD_BYTES} of {len(payload)} bytes are kept)"
    key = row_key(segment, entry.offset)
    return DeadLetter(
        *key,
        entry.at,
        entry.kind,
        reason.replace("\x00", "\\0"),
        payload[:MAX_DEAD_BYTES],
    )


def _decode_prediction(entry: Entry, segment: int, into: TableRows) -> None:
    answer = _answer.decode(entry.parts[0])
    asked = _asked.decode(entry.parts[1])
    records, predictions, probabilities = asked.records, answer.predictions, answer.probabilities
    rows = len(records)
    day, _, first = row_key(segment, entry.offset)
    ids = answer.ids if answer.ids is not None else asked.ids
    if ids is None:
        ids = [f"{segment:016x}-{first | row:x}" for row in range(rows)]
    if not rows == entry.rows == len(predictions) == len(ids) or (
        probabilities is not None and len(probabilities) != rows
    ):
        raise ValueError(
            f"{entry.rows} rows announced, {rows} records, {len(predictions)} predictions, {len(ids)} ids, "
            f"{'no' if probabilities is None else len(probabilities)} probabilities"
        )
    at, version, made_by = entry.at, answer.version, (answer.adaptation, answer.trace_id)
    if rows == 1:  # most requests: without the loop it takes two thirds of the time
        chance = None if probabilities is None else str(probabilities[0], "utf-8")
        texts = (str(records[0], "utf-8"), str(predictions[0], "utf-8"), chance)
        into.predictions.append(_new_tuple(Prediction, (day, segment, first, ids[0], at, version, *texts, *made_by)))
        return
    into.predictions += [
        _new_tuple(  # Prediction(...) would take as long as all the rest
            Prediction,
            (
                day,
                segment,
                first | row,
                ids[row],
                at,
                version,
                str(records[row], "utf-8"),
                str(predictions[row], "utf-8"),
                None if probabilities is None else str(probabilities[row], "utf-8"),
                *made_by,
            ),
        )
        for row in range(rows)
    ]


def _decode_columns(entry: Entry, segment: int, into: TableRows) -> None:
    from monitoring.arrow_rows import rows_of

    answer, request = entry.parts
    found = rows_of(answer, request)
    rows = len(found.ids)
    if rows != entry.rows:
        raise ValueError(f"{entry.rows} rows announced, {rows} found")
    day, _, first = row_key(segment, entry.offset)
    chances = repeat(None) if found.probabilities is None else found.probabilities
    into.predictions += map(
        Prediction._make,
        zip(
            repeat(day), repeat(segment), range(first, first + rows), found.ids, repeat(entry.at),
            repeat(found.version, rows), found.features, found.predictions, chances,
            repeat(found.adaptation), repeat(found.trace_id),
        ),
    )  # fmt: skip


def _decode_feedback(entry: Entry, segment: int, into: TableRows) -> None:
    day, _, first = row_key(segment, entry.offset)
    given = _feedback.decode(entry.parts[0]).labels
    source = _sent.decode(entry.parts[1]).source if len(entry.parts) == 2 else ""
    if len(given) != entry.rows:
        raise ValueError(f"{entry.rows} rows announced, {len(given)} labels")
    for row, one in enumerate(given):
        label = str(one.label, "utf-8")
        try:
            observed_at = entry.at if one.observed_at is None else moment(one.observed_at)
            if label[0] in "{[n":
                raise ValueError(f"label: expected a number, a string, true or false, got {label[:40]}")
            if len(label) > LABEL_JSON:
                raise ValueError(f"label: {len(label):,} bytes; a label has at most {LABEL_JSON:,}")
        except ValueError as error:
            payload = msgspec.json.encode(one)[:MAX_DEAD_BYTES]
            into.dead.append(DeadLetter(day, segment, first | row, entry.at, FEEDBACK, str(error), payload))
            continue
        into.labels.append(Label(day, segment, first | row, one.id, label, observed_at, entry.at, source))
