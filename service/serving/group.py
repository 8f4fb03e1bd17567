"""Small predictions answered together: what one turn of the event loop brings becomes one run of the model.

Nobody waits for company: a turn that brought one request answers one. But the busier a worker is, the more requests
have arrived while it answered the ones before, and the less each of them costs: one run, one write to the record.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from monitoring.decode import Batch, MoreAsked
from service.serving.answer import INLINE_ROWS, Asked, unpredictable
from service.serving.asgi import Headers
from service.serving.request import (
    ACCEPT,
    ANY_ANSWER,
    JSON,
    RARE,
    TRACEPARENT,
    answer_kind,
    body_encoding,
    body_kind,
    echoed,
)

if TYPE_CHECKING:
    from service.serving.answer import Lane
    from service.serving.predictor import ServedModel

GROUP_ROWS: Final = 64
"""More rows are not cheaper in one run, and the first of them would wait for the last."""

PATH: Final = "/predict"


class Connection(Protocol):
    """Where an answer goes. Called once for each request that was taken, in the order they were."""

    known: bool
    """Whether its client needs no token."""

    def answer(self, body: bytes, request_id: bytes) -> None: ...
    def refuse(self, status: int, headers: Headers, body: bytes) -> None: ...


_Waiting = tuple[Connection, bytes, Asked]
"""Whom to answer, the request's id, and the request. A plain tuple: a named one takes some 0.2 µs to make."""


class Group:
    """The requests of one turn, answered by `flush` at its end at the latest."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._model: ServedModel | None = None  # that decoded the waiting ones
        self._waiting: list[_Waiting] = []
        self._rows = 0

    def take(self, connection: Connection, headers: Headers, body: bytes) -> bool:
        """Answer this request, now or at the end of the turn; False when it goes the long way, and nothing was done."""
        started = time.perf_counter()
        lane, request_id, authorization, known, traceparent = self._lane, b"", b"", connection.known, b""
        model = lane.worker.model.current
        if model is not None and model.engine == "scikit-learn":
            return False
        try:
            for name, value in headers:
                if name == b"content-type":
                    if value != JSON and body_kind(value) != JSON:
                        return False
                elif name == b"x-request-id":
                    request_id = echoed(value)
                elif name == b"content-encoding":
                    if body_encoding(value):
                        return False
                elif name == b"authorization":
                    authorization = value
                elif name in RARE:
                    if name == ACCEPT:
                        if value not in ANY_ANSWER and answer_kind(value, JSON) != JSON:
                            return False
                    elif name == TRACEPARENT:
                        traceparent = value
                    else:
                        known = lane.worker.keys.open_to("")
            source = "" if known and not authorization else lane.worker.keys.require("predict", authorization)
            lane.admit(1)
            model = model or lane.model
            batch = model.decoder.decode(body)
            if batch.n > INLINE_ROWS:
                return False
            if source or lane.worker.sources.limited:
                lane.count_source("predictions", source, batch.n)
        except MoreAsked:
            return False
        except Exception as error:  # the same words as on the long way
            connection.refuse(*lane.refusal(PATH, error, request_id, traceparent, started))
            return True
        if model is not self._model:
            self.flush()
            self._model = model
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self.flush)
        trace = lane.trace_of(traceparent) if traceparent or lane.tracer is not None else None
        self._waiting.append((connection, request_id, Asked(batch, body, started, source, trace)))
        self._rows += batch.n
        if self._rows >= GROUP_ROWS:
            self.flush()
        return True

    def flush(self) -> None:
        """Answer all that wait."""
        waiting, model = self._waiting, self._model
        if not waiting or model is None:
            return
        self._waiting, self._rows = [], 0
        if len(waiting) == 1 or not model.row_by_row:
            for one in waiting:
                self._answer(model, [one])
        else:
            self._answer(model, waiting)

    def _answer(self, model: ServedModel, waiting: Sequence[_Waiting]) -> None:
        asked = [one for _, _, one in waiting]
        begun = 0.0 if self._lane.tracer is None else time.perf_counter()
        try:
            found = model.predict(asked[0].batch if len(asked) == 1 else Batch.joined([one.batch for one in asked]))
        except Exception as error:
            if len(waiting) > 1:  # one request's rows are not another's fault
                for one in waiting:
                    self._answer(model, [one])
            else:
                self._refuse(waiting, unpredictable(model, error) if isinstance(error, ValueError) else error)
            return
        try:
            answers = self._lane.settle(model, asked, *found, begun)
            self._lane.count(PATH, 200, len(waiting))
        except Exception as error:  # not tried again: the rows may be in the record already
            self._refuse(waiting, error)
            return
        for (connection, request_id, _), answer in zip(waiting, answers, strict=True):
            connection.answer(answer, request_id)

    def _refuse(self, waiting: Sequence[_Waiting], error: Exception) -> None:
        for connection, request_id, _ in waiting:
            connection.refuse(*self._lane.refusal(PATH, error, request_id))
