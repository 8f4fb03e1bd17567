"""Where a request or a run belongs in somebody's trace, and its spans, sent to a collector when one is configured.

W3C Trace Context (https://www.w3.org/TR/trace-context/) says how callers name their trace: `traceparent`. What answers
only puts down what took how long (`Told`); a thread of its own makes spans of it and posts them by OTLP over HTTP. It
never waits for the collector: what finds no room is dropped and counted.

OpenTelemetry's own tracer would make each span on the event loop, some 20 µs apiece; its exporter is what is used here.
Nothing of it is imported without an endpoint.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan

MOST_WAITING: Final = 2_000
"""Requests and runs whose spans wait to be sent; each has some five."""
AT_ONCE: Final = 100
SEND_EVERY_S: Final = 1.0
GIVE_UP_S: Final = 5.0
"""How long one batch is tried."""
ENDPOINT_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

_PARENT: Final = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
_ODD: Final = b"13579bdf"


class TracePolicy(BaseModel):
    """Where spans go, and of how many requests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str = Field(
        "",
        pattern=r"^(https?://\S+)?$",
        description="URL of an OTLP/HTTP collector, `http://127.0.0.1:4318`; empty: OTEL_EXPORTER_OTLP_ENDPOINT, "
        "and without that no spans",
    )
    ratio: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of the requests without a traceparent that get spans; else its flag decides",
    )

    @property
    def url(self) -> str:
        """Where spans are posted; "" for nowhere."""
        if self.endpoint:
            return self.endpoint.rstrip("/") + "/v1/traces"
        whole, base = (os.environ.get(name, "") for name in ENDPOINT_VARIABLES)
        return whole or (base.rstrip("/") + "/v1/traces" if base else "")


class Trace:
    """The trace that a request belongs to."""

    __slots__ = ("parent", "sampled", "since", "trace_id")

    def __init__(self, trace_id: str, parent: str, sampled: bool) -> None:
        self.trace_id = trace_id
        """32 digits, hex."""
        self.parent = parent
        """The caller's span, 16 digits; "" when the trace begins here."""
        self.sampled = sampled
        """Whether it gets spans."""
        self.since = time.perf_counter()
        """When this was known: the request is decoded."""


def trace_of(traceparent: bytes) -> Trace | None:
    """What a `traceparent` header says; None when it is none.

    >>> trace_of(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").trace_id
    '4bf92f3577b34da6a3ce929d0e0e4736'
    """
    if _PARENT.fullmatch(traceparent) is None:
        return None
    trace_id, parent, version = traceparent[3:35].decode(), traceparent[36:52].decode(), traceparent[:2]
    if trace_id == _NO_TRACE or parent == _NO_SPAN or version == b"ff":
        return None
    if version == b"00" and len(traceparent) > 55:  # only later versions may have more fields
        return None
    return Trace(trace_id, parent, traceparent[54] in _ODD)


class Part(NamedTuple):
    """A step of what is told, a span below its own."""

    name: str
    begin: float
    end: float


class Told(NamedTuple):
    """What took how long, to become spans; times in seconds since 1970 UTC."""

    name: str
    trace_id: str
    parent: str
    begin: float
    end: float
    parts: Sequence[Part]
    attributes: Mapping[str, Any]
    failed: bool = False


class Tracer:
    """Sends spans to a collector, from a thread of its own.

    Args:
        policy: with a `url`.
        process: this process among the server's, `api-1`.
        service: the name of the model.
        count: told ("sent" | "dropped" | "failed", how many requests or runs).
    """

    def __init__(self, policy: TracePolicy, process: str, service: str, count: Callable[[str, int], None]) -> None:
        self.ratio = policy.ratio
        self.offset = time.time() - time.perf_counter()
        """From `time.perf_counter()` to seconds since 1970."""
        self._url, self._process, self._service, self._count = policy.url, process, service, count
        self._waiting: deque[Told] = deque()
        self._dropped = 0
        self._random = random.Random(os.urandom(16))
        self._closed = threading.Event()
        self._given_up = False
        self._exporter: OTLPSpanExporter | None = None
        self._resource: Resource | None = None
        self._thread = threading.Thread(target=self._run, name="evergreen-traces", daemon=True)
        self._thread.start()

    def begin(self, found: Trace | None) -> Trace | None:
        """The trace of a request whose caller named `found`; some of those without one begin a trace here."""
        if found is None and self._random.random() < self.ratio:
            return Trace(self.new_id(), "", True)
        return found

    def new_id(self) -> str:
        """The id of a trace that begins here."""
        return f"{self._random.getrandbits(128) or 1:032x}"

    def take(self, told: Told) -> None:
        """Send it soon, or drop it when too many wait. Never blocks."""
        if len(self._waiting) >= MOST_WAITING:
            self._dropped += 1
        else:
            self._waiting.append(told)

    def close(self) -> None:
        """Send what waits, within two seconds, and stop."""
        self._closed.set()
        self._thread.join(timeout=2)
        if self._thread.is_alive():
            self._given_up = True
            if self._exporter is not None:
                self._exporter.shutdown()  # type: ignore[no-untyped-call]  # ends a try that is under way
            self._thread.join(timeout=GIVE_UP_S)

    # --- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        closed = False
        while not closed:
            closed = self._closed.wait(SEND_EVERY_S)
            self.offset = time.time() - time.perf_counter()
            dropped, self._dropped = self._dropped, 0
            if dropped:
                self._count("dropped", dropped)
            while self._waiting and not self._given_up:
                batch = [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
                sent = self._send(batch)
                if not self._given_up:  # else the counters may be closed
                    self._count("sent" if sent else "failed", len(batch))

    def _send(self, batch: Sequence[Told]) -> bool:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import SpanExportResult

        if self._exporter is None:
            self._exporter = OTLPSpanExporter(endpoint=self._url, timeout=GIVE_UP_S)
            self._resource = Resource(
                {"service.name": f"evergreen/{self._service}", "service.instance.id": self._process}
            )
        try:
            spans = [span for told in batch for span in self._spans(told)]
            return self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception:  # whatever the network or the library does, the next batch is tried
            return False

    def _spans(self, told: Told) -> list[ReadableSpan]:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

        trace_id = int(told.trace_id, 16)

        def context(span_id: int, *, remote: bool = False) -> SpanContext:
            return SpanContext(trace_id, span_id, is_remote=remote, trace_flags=TraceFlags(TraceFlags.SAMPLED))

        whole = context(self._random.getrandbits(64) or 1)
        spans = [
            ReadableSpan(
                told.name,
                whole,
                parent=context(int(told.parent, 16), remote=True) if told.parent else None,
                resource=self._resource,
                attributes=dict(told.attributes),
                kind=SpanKind.SERVER if told.name.startswith("POST ") else SpanKind.INTERNAL,
                status=Status(StatusCode.ERROR) if told.failed else Status(StatusCode.UNSET),
                start_time=int(told.begin * 1e9),
                end_time=int(told.end * 1e9),
            )
        ]
        for part in told.parts:
            spans.append(
                ReadableSpan(
                    part.name,
                    context(self._random.getrandbits(64) or 1),
                    parent=whole,
                    resource=self._resource,
                    kind=SpanKind.INTERNAL,
                    start_time=int(part.begin * 1e9),
                    end_time=int(part.end * 1e9),
                )
            )
        return spans
