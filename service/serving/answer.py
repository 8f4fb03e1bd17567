"""From a whole request to its answer: decode, predict, record with one `write`, encode, count; or refuse, in words.

What can be done elsewhere, is: models are loaded by the worker's thread, rows reach the store by the controller,
metrics are one memory write each. Requests come from `front.py`, small ones from `wire.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec

from monitoring.decode import InvalidRequest
from monitoring.errors import without_values
from monitoring.fits import LONGEST_CATEGORY
from monitoring.metrics import HotCounter
from monitoring.record import FEEDBACK, PREDICTION, REJECTION
from monitoring.traces import Part, Told, Trace, trace_of
from service.keys import Denied
from service.serving import tuning
from service.serving.asgi import Headers, Receive, Scope
from service.serving.feedback import check_labels
from service.serving.ids import new_ids, new_request_id
from service.serving.large import check_values
from service.serving.pieces import Answered, answer_in_pieces
from service.serving.predict_answer import PredictAnswer
from service.serving.predictor import ServedModel
from service.serving.request import FORWARDED, Reject, content_length
from service.serving.sources import Kind, OverLimit
from service.serving.unpack import unpacked
from service.serving.worker import Worker
from service.settings import Scope as TokenScope
from training.priority import let_first

if TYPE_CHECKING:
    from monitoring.decode import Batch

Answers = tuple[list[Any], list[list[float]] | None]
"""Predictions, and the probabilities of a classifier."""

T = TypeVar("T")

logger = logging.getLogger("evergreen.answer")

INLINE_ROWS: Final = 256
"""Batches up to this size are predicted on the event loop (some 1 ms); larger ones in a thread."""

INLINE_BYTES: Final = 128 * 1024
"""Bodies up to this size are decoded on the event loop: finding the fault in a large one takes tens of ms."""

BATCH_NICE: Final = 9
"""Of the thread that answers batches: requests of a few rows, on the event loop, interrupt it. Its share must be small,
as Linux lets it have a whole tick of the clock after an event loop that had more than its own; but it comes before the
controller (nice 10): behind it, at 15, all in one group of the kernel's, single rows had a p99 of 47 ms, not 18."""

LARGE_BYTES: Final = 2**20
TURN_S: Final = 2.0
"""Bodies over a megabyte take turns, each this long at most: several at once would delay all small ones."""

MOST_TEXT_BYTES: Final = 12 * LONGEST_CATEGORY
"""Of one string in a large body: each character may be written as two escapes of six."""

REJECTIONS_EVERY_S: Final = 1.0
JSON: Final = (b"content-type", b"application/json")
FEEDBACK_EXAMPLE: Final = '{"labels": [{"id": "...", "label": value}]}'


class Label(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    label: bool | int | float | str
    observed_at: float | str | None = None


class Feedback(msgspec.Struct, forbid_unknown_fields=True):
    labels: list[Label]


class Asked(NamedTuple):
    """A decoded request: `body` is what the record keeps of it, `{"records": [...], "ids": ...}` in JSON, or Arrow."""

    batch: Batch
    body: bytes
    started: float  # time.perf_counter() when the whole request was there
    source: str = ""  # name of the token it came with
    trace: Trace | None = None


class Lane:
    """One worker's way from a whole request to its answer: admit, predict, record, count, refuse."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        serve = worker.settings.serve
        self.max_in_flight = serve.max_in_flight
        self._redact = worker.privacy.redact if worker.privacy is not None else None
        self.max_bytes = serve.max_request_bytes
        self.max_pending_bytes = serve.max_pending_bytes
        self.read_timeout_s = serve.read_timeout_s
        self.max_connections = tuning.bounded_connections(serve.max_connections)
        self.held = 0
        """Bytes of bodies that are not whole, or wait for their turn."""
        self._turn = asyncio.Lock()  # of the one body over a megabyte that is read and answered at a time
        self.max_records = serve.max_records
        self.in_flight = 0
        self.log = worker.log
        self.tracer = worker.tracer
        self._threads = ThreadPoolExecutor(
            1, thread_name_prefix="evergreen-predict", initializer=let_first, initargs=(BATCH_NICE,)
        )
        self._requests: dict[tuple[str, int], HotCounter] = {}
        self._predictions: dict[int, HotCounter] = {}
        self._rejections: Counter[tuple[str, int, str]] = Counter()
        self._flush_due = False
        self._encode = msgspec.json.Encoder().encode
        self._decode_feedback = msgspec.json.Decoder(Feedback).decode

    def source(self, needed: TokenScope, scope: Scope) -> str:
        """Name of the token that a request came with, "" when it came without one and may. Raises `Denied`."""
        authorization, client = b"", scope.get("client")
        known = self.worker.keys.open_to(client[0] if client else None)
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = value
            elif name in FORWARDED:
                known = self.worker.keys.open_to("")
        return "" if known and not authorization else self.worker.keys.require(needed, authorization)

    def admit(self, more: int) -> None:
        """Raise `Reject` when more requests are in flight than this worker takes: waiting would only grow."""
        if self.in_flight + more > self.max_in_flight:
            raise Reject(503, f"{self.max_in_flight} requests are in flight on this worker; try again", 1)

    def trace_of(self, traceparent: bytes) -> Trace | None:
        """The trace of a request that is decoded; None when it names none and gets no spans."""
        found = trace_of(traceparent) if traceparent else None
        return found if self.tracer is None else self.tracer.begin(found)

    async def predict_body(self, body: bytes, source: str, traceparent: bytes) -> tuple[int, bytes]:
        """Status and answer of a whole request of `/predict`; `source` is the name of its token."""
        started = time.perf_counter()
        model = self.model
        if len(body) <= INLINE_BYTES:
            batch = model.decoder.decode(body)
            return 200, await self.predict(model, Asked(batch, body, started, source, self.trace_of(traceparent)))

        def check() -> None:
            most = self.most_values(model)
            check_values(body, most, MOST_TEXT_BYTES, f"{self.max_records} records hold no more; send fewer")

        def work() -> Answered:
            return answer_in_pieces(model, body, check, lambda: self.trace_of(traceparent), self._redact)

        answered = await self.answer_large(model, source, started, work)
        self._warm_with(answered.entries[-1][1][1])
        return 200, answered.body

    async def answer_large(
        self, model: ServedModel, source: str, started: float, work: Callable[[], Answered]
    ) -> Answered:
        """What `work` makes of a large request, done and recorded beside the event loop, and counted.

        Raises what `work` raises, a `ValueError` as a `Reject`, and `OverLimit`.
        """
        limited = bool(source) or self.worker.sources.limited  # counters are written by the event loop alone

        def all_of_it() -> tuple[Answered, int]:
            answered = work()
            return answered, 0 if limited else self._keep_large(answered)

        try:
            answered, kept = await self.in_thread(all_of_it)
        except ValueError as error:
            raise unpredictable(model, error) from error
        if limited:
            self.count_source("predictions", source, answered.rows)
            kept = await self.in_thread(lambda: self._keep_large(answered))
        self._count_kept(kept, answered.rows)
        self._count_rows(model.version, answered.rows)
        now = time.perf_counter()
        self.worker.prediction_seconds.observe(now - started)
        self._tell(answered.trace, model.version, answered.rows, (started, *answered.times, now))
        return answered

    def _keep_large(self, answered: Answered) -> int:
        return 0 if self.log is None else self.worker.keep_batch(answered.kind, answered.entries)

    def most_values(self, model: ServedModel) -> int:
        """In a body of `/predict`: one for each feature and other column of each record, its id, and a few around."""
        return self.max_records * (len(model.schema.names) + len(self.worker.settings.privacy.names) + 1) + 8

    async def in_thread(self, work: Callable[[], T]) -> T:
        """What `work` returns, done beside the event loop: one large request at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    @property
    def model(self) -> ServedModel:
        """The model in service. Raises `Reject` when there is none."""
        model = self.worker.model.current
        if model is None:
            raise Reject(503, self.worker.why_not_ready or "not ready", 1)
        return model

    async def predict(self, model: ServedModel, asked: Asked) -> bytes:
        """Predict, record and count a decoded request: the answer's JSON, as it also stands in the record."""
        begun = 0.0 if self.tracer is None else time.perf_counter()
        return self.settle(model, (asked,), *await self.answers(model, asked), begun)[0]

    async def answers(self, model: ServedModel, asked: Asked) -> Answers:
        """What the model says of a decoded request, counted for its source and not recorded yet."""
        self.count_source("predictions", asked.source, asked.batch.n)
        try:
            if asked.batch.n > INLINE_ROWS or model.engine == "scikit-learn":
                return await self.in_thread(lambda: model.predict(asked.batch))
            return model.predict(asked.batch)
        except ValueError as error:
            raise unpredictable(model, error) from error

    def count_source(self, kind: Kind, source: str, rows: int) -> None:
        """Raises `OverLimit`. Rows without a token are counted only when they are limited, too."""
        if source or self.worker.sources.limited:
            self.worker.sources.take(kind, source, rows)

    def settle(
        self,
        model: ServedModel,
        requests: Sequence[Asked],
        predictions: list[Any],
        probabilities: list[list[float]] | None,
        begun: float = 0.0,
    ) -> list[bytes]:
        """Write the answers of these requests, record them with one write, and count them; the answers' JSON.

        `predictions` and `probabilities` are those of all their rows, in order; `begun` is when the model began, for
        their spans.
        """
        tracer = self.tracer
        predicted = 0.0 if tracer is None else time.perf_counter()
        answers, records, start = [], [], 0
        for batch, body, _, _, trace in requests:
            end = start + batch.n
            answer = self._encode(
                PredictAnswer(
                    model.name,
                    model.version,
                    model.adaptation,
                    batch.ids or new_ids(batch.n),
                    predictions[start:end],
                    None if probabilities is None else probabilities[start:end],
                    None if probabilities is None else model.classes,
                    msgspec.UNSET if trace is None else trace.trace_id,
                )
            )
            answers.append(answer)
            records.append((batch.n, (answer, body if self._redact is None else self._redact(body))))
            start = end
        encoded = 0.0 if tracer is None else time.perf_counter()
        if self.log is not None:
            self._count_kept(self.log.append_all(PREDICTION, time.time(), records), start)
        self._count_rows(model.version, start)
        now = time.perf_counter()
        self.worker.prediction_seconds.observe(*[now - request.started for request in requests])
        if tracer is not None:
            for request in requests:
                times = (request.started, begun, predicted, encoded, now)
                self._tell(request.trace, model.version, request.batch.n, times)
        self._warm_with(records[-1][1][1])
        return answers

    def _count_kept(self, kept: int, rows: int) -> None:
        if self.log is not None:
            self.worker.recorded.inc(kept)
            if kept < rows:
                self.worker.dropped.inc(rows - kept)

    def _warm_with(self, body: bytes) -> None:
        """Keep what the next version is warmed up with."""
        if len(body) <= INLINE_BYTES:
            self.worker.model.recent_body = body

    def _count_rows(self, version: int, rows: int) -> None:
        try:
            self._predictions[version].inc(rows)
        except KeyError:
            self._predictions[version] = HotCounter(self.worker.metrics.predictions.labels(str(version)))
            self._predictions[version].inc(rows)

    def _tell(
        self, trace: Trace | None, version: int, rows: int, times: tuple[float, float, float, float, float]
    ) -> None:
        """Put down what took how long, if the request gets spans.

        `times`: it was whole, the model began and had answered, the answer was written, and was recorded.
        """
        if self.tracer is None or trace is None or not trace.sampled:
            return
        to_epoch = self.tracer.offset
        started, begun, predicted, encoded, now = (moment + to_epoch for moment in times)
        decoded = trace.since + to_epoch
        parts = (Part("decode", started, decoded), Part("predict", begun, predicted), Part("record", encoded, now))
        facts = {"http.response.status_code": 200, "evergreen.version": version, "evergreen.rows": rows}
        self.tracer.take(Told("POST predict", trace.trace_id, trace.parent, started, now, parts, facts))

    async def take_labels(self, body: bytes, source: str) -> tuple[int, bytes]:
        """Status and answer of a whole request of `/feedback`: its labels are in the record."""
        labels = await self.in_thread(lambda: self._labels(body)) if len(body) > INLINE_BYTES else self._labels(body)
        self.worker.sources.take("labels", source, len(labels))
        if self.log is not None:
            whose = (msgspec.json.encode({"source": source}),) if source else ()
            kept = self.log.append(FEEDBACK, time.time(), len(labels), body, *whose)
            self.worker.metrics.labels.labels("accepted" if kept else "dropped").inc(len(labels))
            if not kept:
                raise Reject(503, "the record is full or its disk is; the labels were not kept, send them again", 30)
        return 202, b'{"accepted":%d}' % len(labels)

    def _labels(self, body: bytes) -> list[Label]:
        """The labels in a body of `/feedback`, each of which may be recorded."""
        most = self.max_records * 3 + 8
        check_values(body, most, MOST_TEXT_BYTES, f"{self.max_records} labels hold no more; send fewer")
        try:
            labels = self._decode_feedback(body).labels
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors, and so is bad UTF-8
            raise Reject(400, f"{str(error)[:300]}; send {FEEDBACK_EXAMPLE}") from error
        if not labels:
            raise Reject(400, f"labels: empty; send at least one: {FEEDBACK_EXAMPLE}")
        if len(labels) > self.max_records:
            raise Reject(413, f"labels: {len(labels)} in one request; send at most {self.max_records}")
        model = self.worker.model.current
        check_labels(labels, model.schema if model else None, time.time())
        return labels

    @asynccontextmanager
    async def whole_body(self, scope: Scope, receive: Receive, encoding: bytes = b"") -> AsyncIterator[bytes]:
        """The body of a request, unpacked; it is in flight from the moment it is whole to the end of the block.

        Raises `Reject` when it is too large, or there is no room for it; ConnectionResetError when the client left.
        """
        length = next((content_length(value) for name, value in scope["headers"] if name == b"content-length"), 0)
        if length > self.max_bytes:
            raise Reject(413, self._too_large(length))
        held, turn = 0, False
        try:
            parts, more = [], True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionResetError
                part, more = message.get("body", b""), message.get("more_body", False)
                if held + len(part) > self.max_bytes:
                    raise Reject(413, self._too_large(held + len(part)))
                self.hold(len(part), unfinished=more)
                held += len(part)
                parts.append(part)
                if held > LARGE_BYTES and not turn:
                    await self._take_turn(unfinished=more)
                    turn = True
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
            if encoding and not turn:  # however small it is now
                await self._take_turn(unfinished=False)
                turn = True
            self.admit(1)
            self.in_flight += 1
            try:
                if encoding:
                    packed = body
                    body = await self.in_thread(lambda: unpacked(packed, encoding, self.max_bytes))
                yield body
            finally:
                self.in_flight -= 1
        finally:
            self.held -= held
            if turn:
                self._turn.release()

    async def _take_turn(self, *, unfinished: bool) -> None:
        """Wait for the large body before this one; meanwhile the client is not read from. Raises `Reject`."""
        try:
            await asyncio.wait_for(self._turn.acquire(), TURN_S)
        except TimeoutError:
            raise Reject(503, "requests over a megabyte take turns; try again", 1, closes=unfinished) from None

    def hold(self, more: int, *, unfinished: bool = True) -> None:
        """Make room for `more` bytes of bodies. Raises `Reject` when there is none."""
        if self.held + more > self.max_pending_bytes:
            raise Reject(
                503,
                f"{self.held} bytes of requests wait on this worker ([serve] max_pending_bytes); try again",
                1,
                closes=unfinished,
            )
        self.held += more

    def _too_large(self, size: int) -> str:
        return f"the body has {size} bytes or more; send at most {self.max_bytes} ([serve] max_request_bytes)"

    def refusal(
        self, path: str, error: Exception, request_id: bytes, traceparent: bytes = b"", started: float = 0.0
    ) -> tuple[int, Headers, bytes]:
        """(status, headers, body) for a request that ended with this error; counted and, the client's fault, noted.

        The answer has an `X-Request-Id` in any case, and so has the line in the log.
        """
        request_id = request_id or new_request_id()
        status, message, reason, retry_after_s, closes = 500, "", "", None, False
        if isinstance(error, Reject):
            status, message, retry_after_s, closes = error.status, error.message, error.retry_after_s, error.closes
        elif isinstance(error, InvalidRequest):
            status, message, reason = error.status, error.message, error.reason
        elif isinstance(error, Denied):
            status, message, closes = error.status, error.message, True
        elif isinstance(error, OverLimit):
            status, message, retry_after_s = 429, str(error), error.retry_after_s
        else:
            told = {"request": request_id.decode(), "route": path, "status": 500}
            logger.error("unexpected error on %s, request %s", path, request_id.decode(), exc_info=error, extra=told)
            message = f"an error of ours; the server's log has the details under request {request_id.decode()}"
        body = msgspec.json.encode({"error": message})
        headers = [JSON, (b"content-length", b"%d" % len(body))]
        if retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % retry_after_s))
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if isinstance(error, Reject) and status == 405:
            headers.append((b"allow", error.allow.encode()))
        headers.append((b"x-request-id", request_id))
        if self.worker.stopping or closes or status == 413:
            headers.append((b"connection", b"close"))
        self.count(path, status)
        if traceparent and self.tracer is not None:
            self._tell_refusal(
                trace_of(traceparent), started, {"http.response.status_code": status, "http.route": path}
            )
        if status != 500:
            reason = reason or without_values(message)
            told = {"request": request_id.decode(), "route": path, "status": status}
            logger.info("refused a request: %s", reason, extra=told)
        if 400 <= status < 500:
            self.note_rejection(path, status, reason)
        return status, headers, body

    def _tell_refusal(self, trace: Trace | None, started: float, facts: dict[str, Any]) -> None:
        if trace is not None and trace.sampled and self.tracer is not None:
            begin, end = (moment + self.tracer.offset for moment in (started or trace.since, trace.since))
            self.tracer.take(Told("POST refused", trace.trace_id, trace.parent, begin, end, (), facts, failed=True))

    def count(self, route: str, status: int, requests: int = 1) -> None:
        try:
            self._requests[route, status].inc(requests)
        except KeyError:
            self._requests[route, status] = HotCounter(self.worker.metrics.requests.labels(route, str(status)))
            self._requests[route, status].inc(requests)

    def note_rejection(self, route: str, status: int, reason: str) -> None:
        """Remember that a client is broken, without the values it sent; written once a second, as counts."""
        self._rejections[route, status, reason] += 1
        if not self._flush_due and self.log is not None:
            self._flush_due = True
            asyncio.get_running_loop().call_later(REJECTIONS_EVERY_S, self._flush_rejections)

    def _flush_rejections(self) -> None:
        self._flush_due = False
        rejections, self._rejections = self._rejections, Counter()
        if self.log is None:
            return
        for (route, status, reason), count in rejections.most_common(100):
            line = {"route": route, "status": status, "count": count, "reason": reason}
            self.log.append(REJECTION, time.time(), 1, msgspec.json.encode(line))


def unpredictable(model: ServedModel, error: ValueError) -> Reject:
    """What a client is told when the model has no answer to its well-formed records."""
    return Reject(422, f"version {model.version} cannot take these records: {error}")
