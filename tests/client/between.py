"""What may happen between a client and its server: connections that break, a proxy that answers by itself."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx


class Between:
    """A relay to the server at `target`; `troubles` are what happens to the next requests, one each.

    `"reset"`: the connection is reset before anything is handed on. `"lost"`: the server answers, and the connection
    ends before the answer is handed back. `"503 0"`: a status and what `Retry-After` says (none without a number).
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.troubles: list[str] = []
        self.seen: list[tuple[str, str, bytes]] = []
        """Method, path and body of each request, in the order of coming."""
        self.url = ""

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        """Relay one request, or do to it what is next."""
        body = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        self.seen.append((handler.command, handler.path, body))
        trouble = self.troubles.pop(0) if self.troubles else ""
        if trouble == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if trouble == "reset":
            handler.close_connection = True
            return
        if trouble[:1].isdigit():
            status, _, after = trouble.partition(" ")
            headers = {"retry-after": after} if after else {}
            self._write(handler, int(status), headers, b"<html>not now</html>")
            return
        headers = {name: value for name, value in handler.headers.items() if name.lower() != "host"}
        answer = httpx.request(handler.command, self.target + handler.path, headers=headers, content=body)
        if trouble == "lost":
            handler.close_connection = True
            return
        self._write(handler, answer.status_code, {"x-request-id": answer.headers["x-request-id"]}, answer.content)

    @staticmethod
    def _write(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes) -> None:
        handler.send_response(status)
        for name, value in {**headers, "content-length": str(len(content))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)


@contextmanager
def between(target: str, port: int = 0) -> Iterator[Between]:
    """A relay on the loopback interface; `.url` is its address."""
    relay = Between(target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            relay.handle(self)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    relay.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield relay
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=60)
