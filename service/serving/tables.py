"""`/predict` for bodies and answers that are no JSON: Arrow, CSV, NDJSON.

A body in Arrow never becomes rows here: its columns are what the model reads, and it is recorded as it came. The others
become what they would be in JSON, and are recorded so; their answers are made from the one in JSON.
"""

from __future__ import annotations

import csv
import io
import os
import time
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final

import msgspec

from monitoring.delimited import read_csv
from monitoring.record import COLUMNS, PREDICTION, has_magic
from service.serving.answer import INLINE_BYTES, MOST_TEXT_BYTES, Asked
from service.serving.ids import apart, new_ids_in_a_row
from service.serving.large import check_values
from service.serving.pieces import Answered
from service.serving.predict_answer import PredictAnswer
from service.serving.request import ARROW, CSV, JSON
from service.serving.tryout import predict_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monitoring.columns import ArrowBatch
    from service.serving.answer import Lane
    from service.serving.asgi import Headers
    from service.serving.predictor import ServedModel


class Answer(msgspec.Struct):
    """What `PredictAnswer` writes."""

    model: str
    version: int
    ids: list[str]
    predictions: list[Any]
    probabilities: list[list[float]] | None = None
    classes: tuple[Any, ...] = ()
    adaptation: int | msgspec.UnsetType = msgspec.UNSET
    trace_id: str | msgspec.UnsetType = msgspec.UNSET


_read_answer: Final = msgspec.json.Decoder(Answer).decode
_encode_lines: Final = msgspec.json.Encoder().encode_lines


async def predict_table(
    lane: Lane, kind: bytes, wanted: bytes, body: bytes, source: str, traceparent: bytes
) -> tuple[Headers, bytes]:
    """Headers and answer in `wanted` of a whole request of `/predict` in `kind`; one of them is not JSON."""
    if kind == ARROW:
        return await _predict_arrow(lane, wanted, body, source, traceparent)
    if kind == JSON:
        predicted = await predict_json(lane, body, source, traceparent)
    else:
        predicted = await _predict_text(lane, kind, body, source, traceparent)
    return await _answer(lane, wanted, predicted)


async def _predict_text(lane: Lane, kind: bytes, body: bytes, source: str, traceparent: bytes) -> bytes:
    """The answer in JSON to a body in CSV or NDJSON."""
    started, model = time.perf_counter(), lane.model

    def read() -> Asked:
        if kind == CSV:
            batch = read_csv(model.decoder, body)
        else:
            what = f"{lane.max_records} records hold no more; send fewer"
            check_values(body, lane.most_values(model), MOST_TEXT_BYTES, what)
            batch = model.decoder.decode_lines(body)
        return Asked(batch, batch.to_json(), started, source, lane.trace_of(traceparent))

    return await lane.predict(model, await lane.in_thread(read) if len(body) > INLINE_BYTES else read())


async def _answer(lane: Lane, wanted: bytes, predicted: bytes) -> tuple[Headers, bytes]:
    """An answer that was made in JSON."""
    if wanted == JSON:
        return [(b"content-type", JSON)], predicted
    if len(predicted) > INLINE_BYTES or wanted == ARROW:  # whose library may have to be loaded
        return await lane.in_thread(lambda: _encoded(wanted, _read_answer(predicted)))
    return _encoded(wanted, _read_answer(predicted))


def answer_names(classes: Sequence[str | int | bool]) -> list[str]:
    """The columns of an answer; of a regression there are no classes."""
    texts = [one if isinstance(one, str) else msgspec.json.encode(one).decode() for one in classes]
    return ["id", "prediction", *(f"probability_{text}" for text in texts)]


def _told(answer: Answer | PredictAnswer) -> dict[str, str]:
    """What an answer says of all its rows."""
    told = {"model": answer.model, "version": str(answer.version)}
    if answer.adaptation is not msgspec.UNSET:
        told["adaptation"] = str(answer.adaptation)
    if answer.trace_id is not msgspec.UNSET:
        told["trace_id"] = answer.trace_id
    return told


def _headers(kind: bytes, told: dict[str, str]) -> Headers:
    named = [(f"evergreen-{name.replace('_', '-')}".encode(), text.encode()) for name, text in told.items()]
    return [(b"content-type", kind), *named]


def _encoded(wanted: bytes, answer: Answer) -> tuple[Headers, bytes]:
    told = _told(answer)
    headers = _headers(wanted, told)
    if wanted == ARROW:
        return headers, _arrow(answer, told)
    return headers, _csv(answer) if wanted == CSV else _lines(answer)


def _arrow(answer: Answer, told: dict[str, str]) -> bytes:
    import numpy as np

    from monitoring.arrow_rows import answer_stream

    output = np.array(answer.predictions if answer.probabilities is None else answer.probabilities, np.float64)
    return answer_stream(answer_names(answer.classes), answer.ids, output, answer.classes, told)


def _csv(answer: Answer) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(answer_names(answer.classes))
    predictions = answer.predictions
    if answer.classes and isinstance(answer.classes[0], bool):
        predictions = ["true" if one else "false" for one in predictions]
    chances = answer.probabilities or repeat(())
    writer.writerows([id_, one, *some] for id_, one, some in zip(answer.ids, predictions, chances, strict=False))
    return text.getvalue().encode()


def _lines(answer: Answer) -> bytes:
    names = ("id", "prediction") if answer.probabilities is None else ("id", "prediction", "probabilities")
    columns = (answer.ids, answer.predictions, answer.probabilities or ())
    rows = zip(*columns[: len(names)], strict=True)
    return _encode_lines([dict(zip(names, row, strict=True)) for row in rows])


# -- a body in Arrow ---------------------------------------------------------------------------------------------------


async def _predict_arrow(
    lane: Lane, wanted: bytes, body: bytes, source: str, traceparent: bytes
) -> tuple[Headers, bytes]:
    started, model = time.perf_counter(), lane.model
    headers: Headers = []

    def work() -> Answered:
        nonlocal headers
        from monitoring.columns import read_arrow

        privacy = lane.worker.privacy
        batch = read_arrow(model.decoder, body, lane.max_bytes, *(() if privacy is None else (privacy.column,)))
        headers, answered = answer_columns(lane, model, wanted, batch, traceparent)
        return answered

    answered = await lane.answer_large(model, source, started, work)
    return headers, answered.body


def answer_columns(
    lane: Lane, model: ServedModel, wanted: bytes, batch: ArrowBatch, traceparent: bytes
) -> tuple[Headers, Answered]:
    """Headers and answer in `wanted`, and the record; done beside the event loop. Raises `Unpredictable`."""
    from monitoring.arrow_rows import GIVEN, MADE, answer_stream, in_json

    trace = lane.trace_of(traceparent)
    begun = time.perf_counter()
    output = model.output(batch)
    predicted = time.perf_counter()
    ids = batch.ids or new_ids_in_a_row(batch.n, os.urandom(10))
    trace_id = msgspec.UNSET if trace is None else trace.trace_id
    classes = None if output.ndim == 1 else model.classes
    empty: list[Any] = []
    answer = PredictAnswer(model.name, model.version, model.adaptation, empty, empty, None, classes, trace_id)
    told = _told(answer)
    stream = answer_stream(
        answer_names(model.classes), ids, output, model.classes, {**told, "ids": GIVEN if batch.ids else MADE}
    )
    kind, parts = COLUMNS, (stream, batch.stream)
    if has_magic(stream) or has_magic(batch.stream):
        kind, parts = PREDICTION, in_json(stream, batch.stream)
    headers, sent = _headers(ARROW, told), stream
    if wanted != ARROW:
        answer.ids = apart(ids) if isinstance(ids, bytes) else ids
        answer.predictions, answer.probabilities = model.answers(output)
        sent = msgspec.json.encode(answer)
        headers, sent = ([(b"content-type", JSON)], sent) if wanted == JSON else _encoded(wanted, _read_answer(sent))
    times = (begun, predicted, time.perf_counter())
    return headers, Answered(batch.n, kind, [(batch.n, parts)], sent, trace, times)
