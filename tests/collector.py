"""An OTLP/HTTP collector on the loopback interface: what was posted, as spans by name."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class Got(NamedTuple):
    """A span as it arrived."""

    name: str
    trace_id: str
    span_id: str
    parent: str
    begin: int
    end: int
    kind: int
    failed: bool
    attributes: dict[str, Any]
    service: str


class Collector(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Got] = []
        self.paths: set[str] = set()
        self.hold = threading.Event()  # while clear, nobody is answered
        self.hold.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def of(self, trace_id: str) -> dict[str, Got]:
        """The spans of one trace, by name."""
        return {span.name: span for span in self.spans if span.trace_id == trace_id}


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if not self.server.hold.wait(30):
            return
        asked = ExportTraceServiceRequest.FromString(body)
        self.server.paths.add(self.path)
        for resource in asked.resource_spans:
            service = {one.key: one.value.string_value for one in resource.resource.attributes}.get("service.name", "")
            for scope in resource.scope_spans:
                self.server.spans += [_got(span, service) for span in scope.spans]
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def _got(span: Any, service: str) -> Got:
    values = {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}
    ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
    times = span.start_time_unix_nano, span.end_time_unix_nano
    return Got(span.name, *ids, *times, span.kind, span.status.code == 2, values, service)


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        collector.hold.set()
        collector.shutdown()
        collector.server_close()
        thread.join(timeout=5)
