"""One HTTP connection that no client can hold on to: deadlines, bounded heads, and a last answer that arrives.

uvicorn's own protocol waits for ever for the rest of a request and for a client that does not read, takes a head of any
length, and closes a connection under the client's unread bytes, so that the answer is lost with them. Here one look at
all connections, twice a second, ends what takes too long: no timer is set for a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, ClassVar, Final

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEAD_BYTES: Final = 16 * 1024
"""Of a request's line and headers together; 431 above it, 414 when the line alone is longer."""

LOOK_EVERY_S: Final = 0.5
LINGER_S: Final = 2.0
"""How long a client that is still sending has to read the answer that closes its connection."""

PUSH: Final = b"/manage/models"
"""Its body may take its time, as long as it moves: the token was looked at before the first byte."""

NO_UPGRADE: Final = frozenset({b"upgrade", b"http2-settings"})


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with an end to everything a client can leave unfinished."""

    read_timeout_s: float = 10.0
    """From the first byte of a request to its last, and from the connection to the first byte."""
    max_connections: int = 4096
    """Of this process; beyond it those that have rested longest are closed."""
    _patrol: ClassVar[Patrol | None] = None

    _watch: Patrol
    _socket: asyncio.Transport  # what `transport` stands for
    _since = 0.0  # when the request under way began, or the last one ended
    _served = False  # a request was answered before
    _reading = False  # the first byte of a request is here, its last is not
    _beginning = False  # nor is the end of its headers
    _head_bytes = 0  # of a head that came in several pieces, about
    _closing = False
    _upgrading = False  # the head asked for another protocol: the request is read anew without that
    _unread = 0  # bytes of answers that the client has not taken
    _unread_since = 0.0
    _pieces: list[bytes] | None = None  # of a body that uvicorn does not know of
    _waiting = False  # for an answer that uvicorn does not know of

    # --- from the socket ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        cls = type(self)
        if cls._patrol is None:
            cls._patrol = Patrol(self.loop, self.connections)
        self._watch, self._socket = cls._patrol, transport
        super().connection_made(_Closer(self, transport))  # type: ignore[arg-type]
        self._watch.begin()
        self._since = self._watch.now
        if len(self.connections) > self.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        if len(data) <= HEAD_BYTES and not self._beginning:
            try:
                self.parser.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
                self._not_read(data, error)
            if self._pieces:
                self._hold(self._pieces)
            return
        view = memoryview(data)
        for start in range(0, len(data), HEAD_BYTES):
            piece = view[start : start + HEAD_BYTES]
            if self._beginning:
                self._head_bytes += len(piece)
            self._feed(piece)
            if self._beginning and self._head_bytes > HEAD_BYTES:
                self._refuse_head()
            if self.transport.is_closing():
                return
        if self._pieces:
            self._hold(self._pieces)

    def _answer_waiting(self) -> None:
        """Another request begins: answers go out in the order of their requests."""

    def _hold(self, pieces: list[bytes]) -> None:
        """Account for the bytes of a body that is not whole yet."""

    def _feed(self, data: bytes | memoryview) -> None:
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._not_read(data, error)

    def _not_read(self, data: bytes | memoryview, error: Exception) -> None:
        if isinstance(error, httptools.HttpParserUpgrade):
            self._stay(bytes(data[error.args[0] :]))
        elif not self._closing:
            self._give_up(400, "this is not HTTP/1.1: the connection ends here")

    def _stay(self, rest: bytes) -> None:
        """Read a request that offers another protocol (h2c, websocket) as what it is without the offer: RFC 9110, 7.8.

        The parser has taken its head only and would leave out the body.
        """
        method, self._upgrading = self.parser.get_method(), False
        if method == b"CONNECT":
            self.refuse_request(405, "CONNECT is for proxies; this is a service")
            return
        self.parser = httptools.HttpRequestParser(self)
        lines = [method + b" " + self.url + b" HTTP/1.1"]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(token for token in value.split(b",") if token.strip().lower() not in NO_UPGRADE)
            if value and name not in NO_UPGRADE:
                lines.append(name + b": " + value)
        self._feed(b"\r\n".join(lines) + b"\r\n\r\n" + rest)

    # --- httptools calls these, and takes no exception -----------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._waiting:
            self._answer_waiting()
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._head_bytes = 0
        if not self._closing:
            self._reading = self._beginning = True
            self._since = self._watch.now

    def on_headers_complete(self) -> None:
        self._beginning = False
        if self._closing:
            return
        if self._head_bytes and self._head_is_long():
            self._refuse_head()
        elif self.parser.should_upgrade():
            self._upgrading = True
        else:
            self.begin_request()

    def begin_request(self) -> None:
        """The head of a request is there: uvicorn's scope is made, and its application started."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.headers += headers
        self.url, self.expect_100_continue = url, expects
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._closing:
            return
        if self.url.startswith(PUSH):
            self._since = self._watch.now
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrading or self._closing:
            return
        self._reading = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()
        self._rest()

    def _rest(self) -> None:
        self._served = True
        if not self._reading:
            self._since = self._watch.now

    # --- bounds ------------------------------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """End what has taken too long; called twice a second."""
        unread = self._socket.get_write_buffer_size()
        if unread:
            if unread != self._unread:
                self._unread, self._unread_since = unread, now
            elif now - self._unread_since > self.read_timeout_s:
                self._socket.abort()
            return
        self._unread = 0
        waited = now - self._since
        under_way = self.cycle is not None and not self.cycle.response_complete
        if self._closing:
            if waited > LINGER_S:
                self._socket.abort()
        elif self._reading:
            if self.flow.read_paused or (self._beginning and under_way):
                self._since = now  # it waits for us
            elif waited > self.read_timeout_s:
                words = f"the request was not whole after {self.read_timeout_s:g} s ([serve] read_timeout_s)"
                self._give_up(408, f"{words}; send it again")
        elif not (under_way or self._waiting) and waited > (
            self.timeout_keep_alive if self._served else self.read_timeout_s
        ):
            self.close()

    def _give_up(self, status: int, message: str) -> None:
        """Refuse the request that is being read: it will never be whole."""
        under_way = self.cycle is not None and not self.cycle.response_complete
        if self._reading and not self._beginning and self._pieces is None:
            answered = self.cycle is None or self.cycle.response_complete or self.cycle.response_started
            if under_way:  # the application waits for the body
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            if answered or self.pipeline:
                self.close()
                return
        self.refuse_request(status, message)

    def _make_room(self) -> None:
        others: list[GuardedProtocol] = [one for one in self.connections if one is not self]  # type: ignore[misc]
        resting = [one for one in others if not one._reading and not one._waiting and not one._closing]
        idle = [one for one in resting if one.cycle is None or one.cycle.response_complete]
        waiting = idle or [one for one in others if one._reading]
        for one in sorted(waiting, key=lambda one: (one._served, one._since))[: max(1, self.max_connections // 16)]:
            one._socket.abort()

    def _head_is_long(self) -> bool:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > HEAD_BYTES

    def _refuse_head(self) -> None:
        if len(self.url) > HEAD_BYTES or not self.headers:
            self.refuse_request(414, f"the URL is longer than {HEAD_BYTES} bytes: send the data in the body")
        else:
            self.refuse_request(431, f"the headers are longer than {HEAD_BYTES} bytes together: send fewer, or shorter")

    # --- ends --------------------------------------------------------------------------------------------------------

    def refuse_request(self, status: int, message: str) -> None:
        """Answer before any route does, and close; behind an answer that is under way, only close."""
        if self.answered_in_turn():
            return
        body = msgspec.json.encode({"error": message})
        self.write_answer(
            status,
            [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"connection", b"close"),
            ],
            body,
        )
        self.close()

    def answered_in_turn(self) -> bool:
        """Whether an answer to the request before is still to come: it is then the last on this connection."""
        if self.cycle is None or self.cycle.response_complete or self.cycle.disconnected:
            return False
        self.cycle.keep_alive = False
        return True

    def write_answer(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        lines = [*self.server_state.default_headers, *headers]
        self._socket.write(
            STATUS_LINE[status] + b"".join(name + b": " + value + b"\r\n" for name, value in lines) + b"\r\n" + body
        )

    def close(self) -> None:
        """Close once the answers are sent; a client that still sends has 2 s to read them first."""
        if self._closing:
            return
        self._closing = True
        self._since = self._watch.now
        if self._reading and self._socket.can_write_eof():
            self.flow.resume_reading()
            self._socket.write_eof()
        else:
            self._socket.close()

    def timeout_keep_alive_handler(self) -> None:
        self.close()


class _Closer:
    """The socket as uvicorn has it: the same, but for the way it is closed."""

    def __init__(self, connection: GuardedProtocol, socket: asyncio.Transport) -> None:
        self._connection, self._socket = connection, socket
        self.write = socket.write

    def close(self) -> None:
        self._connection.close()

    def is_closing(self) -> bool:
        return self._connection._closing or self._socket.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class Patrol:
    """Looks at the connections of one server while there are any; `now` is the loop's time at the last look."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connections: set[Any]) -> None:
        self._loop, self._connections = loop, connections
        self._looking = False
        self.now = loop.time()

    def begin(self) -> None:
        """Look from now on."""
        if not self._looking:
            self._looking = True
            self.now = self._loop.time()
            self._loop.call_later(LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        self.now = self._loop.time()
        for connection in list(self._connections):
            connection.look(self.now)
        self._looking = False
        if self._connections:
            self.begin()
