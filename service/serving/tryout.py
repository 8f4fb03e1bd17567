"""`/predict` when more is asked for than answers: a try-out that is not recorded (`record` false), or `warnings`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from monitoring.decode import MoreAsked
from service.serving.answer import Asked
from service.serving.ids import new_ids
from service.serving.predict_answer import PredictAnswer
from service.serving.seen import seen

if TYPE_CHECKING:
    from service.serving.answer import Lane
    from service.serving.predictor import ServedModel


async def predict_json(lane: Lane, body: bytes, source: str, traceparent: bytes) -> bytes:
    """The answer to a whole request of `/predict` in JSON, whatever it asks for; `source` is the name of its token."""
    started = time.perf_counter()
    try:
        return (await lane.predict_body(body, source, traceparent))[1]
    except MoreAsked as found:
        more, model = found, lane.model
    batch = more.batch if more.decoder is model.decoder else model.decoder.decode(more.body)  # a swap came between
    asked = Asked(batch, more.body, started, source, lane.trace_of(traceparent))
    return await predict_more(lane, model, asked, record=more.record, warnings=more.warnings)


async def predict_more(lane: Lane, model: ServedModel, asked: Asked, *, record: bool, warnings: bool) -> bytes:
    """The answer's JSON; with `warnings` it ends in them. A try-out is counted, and nothing else is kept of it."""
    if record:
        answer = await lane.predict(model, asked)
    else:
        predictions, probabilities = await lane.answers(model, asked)
        answer = msgspec.json.encode(
            PredictAnswer(
                model.name,
                model.version,
                model.adaptation,
                asked.batch.ids or new_ids(asked.batch.n),
                predictions,
                probabilities,
                None if probabilities is None else model.classes,
                msgspec.UNSET if asked.trace is None else asked.trace.trace_id,
            )
        )
        lane.worker.metrics.tryouts.inc(asked.batch.n)
    if not warnings:
        return answer
    found = await lane.in_thread(lambda: seen(model.folder).warnings(asked.batch))
    return b'%b,"warnings":%b}' % (answer[:-1], msgspec.json.encode(found))
