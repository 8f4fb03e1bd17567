"""A large JSON body, cut between its records: each piece is answered and recorded by itself.

In the usual form it is read and predicted whole, while the interpreter is free; else each piece is decoded and
predicted by itself, too. Nothing of it takes long at once: requests of a few rows, which are answered on the event
loop, get their turn in between. Nothing is recorded before every record was read and predicted.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import msgspec

from monitoring.decode import InvalidRequest
from monitoring.fits import ID_CHARS
from monitoring.record import PREDICTION
from service.serving.ids import new_ids
from service.serving.predict_answer import PredictAnswer
from service.serving.predictor import Unpredictable

if TYPE_CHECKING:
    from monitoring.decode import Batch, RequestDecoder
    from monitoring.log import NewEntry
    from monitoring.traces import Trace
    from service.serving.predictor import ServedModel
    from training.records import Records

PIECE_BYTES: Final = 32 * 1024
"""Some 100 records: less than a tenth of a millisecond to decode."""

READ_BYTES: Final = 64 * 1024
"""Where nothing is decoded: to make the answer of some 200 records takes no longer."""

_HEAD: Final = re.compile(rb'\s*\{\s*"records"\s*:\s*\[\s*(?=\{)')
_BETWEEN: Final = re.compile(rb"\}\s*,\s*(?=\{)")
_SPACE: Final = b" \t\r\n"
_BEGIN, _END = b'{"records":[', b"]}"


class _Tail(msgspec.Struct, forbid_unknown_fields=True):
    """A body without its records."""

    records: Annotated[list[int], msgspec.Meta(max_length=0)]
    ids: list[Annotated[str, msgspec.Meta(min_length=1, max_length=ID_CHARS)]] | None = None


_decode_tail: Final = msgspec.json.Decoder(_Tail).decode


class Piece(NamedTuple):
    """Some of a body's rows, and the body that holds them alone, without ids."""

    batch: Batch
    body: bytes


def pieces(decoder: RequestDecoder, body: bytes) -> list[Piece]:
    """The rows of a JSON body in order, in pieces of some 32 kB; one piece when it is of an unusual form.

    Raises `InvalidRequest` as `decoder.decode(body)` does, and nothing else.
    """
    found = _cut(decoder, body)
    return [Piece(decoder.decode(body), body)] if found is None else found


def _cut(decoder: RequestDecoder, body: bytes) -> list[Piece] | None:
    """None when the body is of an unusual form, or has a fault, which must be told with its place in the whole.

    A cut may only be wrong inside a string or a list; then what stands before it is no JSON, and the decoder says so.
    """
    head, length = _HEAD.match(body), len(body.rstrip(_SPACE))
    end = body.rfind(b"}", 0, length - 1) + 1
    if head is None or end <= head.end():
        return None
    try:
        ids = _decode_tail(_BEGIN + body[end:length]).ids
        found, at, rows = [], head.end(), 0
        while at < end:
            between = _BETWEEN.search(body, at + PIECE_BYTES, end)
            part = body[at : end if between is None else between.start() + 1]
            at = end if between is None else between.end()
            piece = _BEGIN + part + _END
            batch = decoder.decode(piece)
            if ids is not None:
                batch.ids = ids[rows : rows + batch.n]
            rows += batch.n
            if rows > decoder.max_records:
                return None
            found.append(Piece(batch, piece))
    except (ValueError, RecursionError, InvalidRequest):
        return None
    return None if ids is not None and not _fits(ids, rows) else found


def _fits(ids: list[str], rows: int) -> bool:
    return len(ids) == rows and "".join(ids).isprintable()


def _read(model: ServedModel, body: bytes) -> tuple[Records, list[str] | None] | None:
    """The rows of a body in the usual form and their ids, no object made of a row; None: the decoder has to read it."""
    records = model.read(body, READ_BYTES)
    if records is None:
        return None
    try:
        ids = _decode_tail(_BEGIN + body[records.end - 1 :]).ids
    except (ValueError, RecursionError):
        return None
    return None if ids is not None and not _fits(ids, len(records.matrix)) else (records, ids)


class _Part(NamedTuple):
    """Some predicted rows, in JSON values."""

    body: bytes  # that holds them alone, without ids
    ids: list[str] | None
    predictions: list[Any]
    probabilities: list[list[float]] | None


def _parts(model: ServedModel, body: bytes, records: Records, ids: list[str] | None) -> Iterator[_Part]:
    output, row = model.output_of(records), 0
    for start, end, rows in records.pieces:
        until = row + rows
        part = _BEGIN + body[start:end] + _END
        yield _Part(part, ids and ids[row:until], *model.answers(output[row:until]))
        row = until


def _parts_of(model: ServedModel, found: Sequence[Piece]) -> Iterator[_Part]:
    row = 0
    for batch, part in found:
        try:
            yield _Part(part, batch.ids, *model.predict(batch))
        except Unpredictable as error:
            raise Unpredictable(model.version, row + error.row) from None
        row += batch.n


class Answered(NamedTuple):
    """A large request that was answered, and is not recorded yet."""

    rows: int
    kind: int
    entries: list[NewEntry]  # of the record, of this kind
    body: bytes
    trace: Trace | None
    times: tuple[float, float, float]  # the model began, had answered, and the answer was written


def answer_in_pieces(
    model: ServedModel,
    body: bytes,
    check: Callable[[], None],
    trace_of: Callable[[], Trace | None],
    redact: Callable[[bytes], bytes] | None,
) -> Answered:
    """All that is done for a large body beside the event loop.

    `check` is asked before objects are made of the body. Raises what it raises, `InvalidRequest`, and `ValueError` for
    records that the model cannot take.
    """
    read = _read(model, body)
    if read is None:
        check()
        # A few rows cost scikit-learn as much as a thousand.
        whole = model.engine == "scikit-learn"
        found = [Piece(model.decoder.decode(body), body)] if whole else pieces(model.decoder, body)
    trace, begun = trace_of(), time.perf_counter()
    parts = list(_parts_of(model, found) if read is None else _parts(model, body, *read))
    predicted, rows = time.perf_counter(), sum(len(part.predictions) for part in parts)
    made = [] if parts[0].ids else new_ids(rows, os.urandom(10))
    encode = msgspec.json.encode
    entries: list[NewEntry] = []
    columns: list[_Columns] = []

    def answer(parts: Sequence[_Columns]) -> bytes:
        ids, predictions, probabilities = (_joined(lists) for lists in zip(*parts, strict=True))
        classes = model.classes or None
        trace_id = msgspec.UNSET if trace is None else trace.trace_id
        head = (model.name, model.version, model.adaptation)
        return encode(PredictAnswer(*head, ids, predictions, probabilities, classes, trace_id))

    start = 0
    for part, ids, predictions, probabilities in parts:
        n = len(predictions)
        chances = None if probabilities is None else encode(probabilities)
        columns.append((encode(ids or made[start : start + n]), encode(predictions), chances))
        entries.append((n, (answer(columns[-1:]), part if redact is None else redact(part))))
        start += n
    said = entries[0][1][0] if len(entries) == 1 else answer(columns)
    return Answered(rows, PREDICTION, entries, said, trace, (begun, predicted, time.perf_counter()))


_Columns = tuple[bytes, bytes, bytes | None]
"""Ids, predictions and probabilities of some rows, lists in JSON."""


def _joined(lists: Sequence[bytes | None]) -> Any:
    """One JSON list of several, as it stands in an answer; None of none."""
    parts = [part[1:-1] for part in lists if part is not None]
    return msgspec.Raw(b"[" + b",".join(parts) + b"]") if parts else None
