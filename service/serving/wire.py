"""From the socket to an answer without an ASGI task: the short way of small `POST /predict` requests.

uvicorn's own protocol makes a task, a scope, an event and two dictionaries of each request: more than half of the time
that a prediction takes. Requests of a few rows need none of it. All others (large ones, other routes, chunked bodies,
`Expect: 100-continue`, HTTP/1.0, connections to be closed) go uvicorn's way, behind the ones before them. What no
request and no connection may do stands in `connection.py`.

BentoML gives uvicorn no protocol, so uvicorn looks "auto" up in its table when a worker starts: `install` stands there.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.serving.answer import LARGE_BYTES
from service.serving.connection import GuardedProtocol
from service.serving.group import Group
from service.serving.ids import REQUEST_MARK, next_request
from service.serving.request import LENGTH_DIGITS, Reject
from service.serving.routes import template

if TYPE_CHECKING:
    from service.serving.answer import Lane
    from service.serving.asgi import App, Headers, Receive, Scope, Send

logger = logging.getLogger("evergreen.wire")

SHORT_BYTES: Final = 64 * 1024
"""Finding a fault in a larger body takes long."""

URL: Final = b"/predict"


def install() -> None:
    """Let the servers of this process speak HTTP with `LaneProtocol`."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:LaneProtocol"


class Answering(Protocol):
    """What knows the lane of this process."""

    stack: App | None

    @property
    def lane(self) -> Lane: ...
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class LaneProtocol(GuardedProtocol):
    """One connection. Without a `front` every request goes uvicorn's way."""

    front: ClassVar[Answering | None] = None
    """Whose lane takes the short way; set once the lane stands before BentoML's layers."""
    _group: ClassVar[Group | None] = None

    known = True  # the client needs no token
    _ending = False  # close once the answer is written
    _held = 0  # bytes of `_pieces` that the lane knows of
    _dated: object = None
    _head = _marked = b""  # of a 200, up to the request's id; and with the first part of one of ours

    @property
    def _whole_bytes(self) -> int:
        """Bodies up to so many are put together here, and go uvicorn's way in one piece when they go it; larger ones
        take turns while they come."""
        assert self.front is not None
        return min(LARGE_BYTES, self.front.lane.max_bytes)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if self.front is not None:
            lane = self.front.lane
            self.read_timeout_s, self.max_connections = lane.read_timeout_s, lane.max_connections
            self.front.stack, self.app = self.app, self.front
        super().connection_made(transport)
        if self.front is not None:
            self.known = self.front.lane.worker.keys.open_to(self.client[0] if self.client else None)

    # --- httptools calls these, and takes no exception -----------------------------------------------------------

    def _answer_waiting(self) -> None:
        if self._group is not None:
            self._group.flush()

    def begin_request(self) -> None:
        if self.front is not None and self.url == URL and self._is_plain():
            self._pieces = []
        else:
            self._begin_long()

    def on_body(self, body: bytes) -> None:
        if self._pieces is None:
            super().on_body(body)
        else:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        pieces = self._pieces
        if pieces is None:
            super().on_message_complete()
            return
        self._pieces, self._reading = None, False
        if self._held:
            self._let_go()
        if self._closing:
            return
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._waiting = True
        if len(body) > SHORT_BYTES or not self._the_group().take(self, self.headers, body):
            self._waiting = False
            self._begin_long()
            super().on_body(body)
            super().on_message_complete()

    def _begin_long(self) -> None:
        super().begin_request()
        if self._ending:
            self.cycle.keep_alive = False

    def _hold(self, pieces: list[bytes]) -> None:
        assert self.front is not None
        lane, held = self.front.lane, sum(map(len, pieces))
        try:
            lane.hold(held - self._held)
        except Reject as reject:
            self._refuse(reject)
        else:
            self._held = held
            if len(pieces) > 64:  # a client that sends byte by byte
                pieces[:] = [b"".join(pieces)]

    def _let_go(self) -> None:
        assert self.front is not None
        self.front.lane.held -= self._held
        self._held = 0

    # --- the short way -------------------------------------------------------------------------------------------

    def _is_plain(self) -> bool:
        parser, cycle = self.parser, self.cycle
        if (
            parser.get_method() != b"POST"
            or self.expect_100_continue
            or (cycle is not None and not cycle.response_complete)
            or self.flow.write_paused
            or parser.get_http_version() != "1.1"
            or not parser.should_keep_alive()
        ):
            return False
        lengths = [value for name, value in self.headers if name == b"content-length"]
        return len(lengths) == 1 and len(lengths[0]) <= LENGTH_DIGITS and int(lengths[0]) <= self._whole_bytes

    def _the_group(self) -> Group:
        cls = type(self)
        if cls._group is None:
            assert cls.front is not None
            cls._group = Group(cls.front.lane)
        return cls._group

    def answer(self, body: bytes, request_id: bytes) -> None:
        """Write a 200; the group calls it."""
        default = self.server_state.default_headers
        if default is not self._dated:  # uvicorn makes a new list each second, for the date
            lines = b"".join(name + b": " + value + b"\r\n" for name, value in default)
            self._head = STATUS_LINE[200] + lines + b"content-type: application/json\r\nx-request-id: "
            self._marked, self._dated = self._head + REQUEST_MARK, default
        extra = b""
        if self._ending or (self.front is not None and self.front.lane.worker.stopping):
            self._ending = True
            extra = b"connection: close\r\n"
        if request_id:
            named = b"%b%b" % (self._head, request_id)
            self._write(b"%b\r\ncontent-length: %d\r\n%b\r\n%b" % (named, len(body), extra, body))
        else:  # an id is made in one formatting with the rest: some 0.2 µs
            marked, number = self._marked, next_request()
            self._write(b"%b%x\r\ncontent-length: %d\r\n%b\r\n%b" % (marked, number, len(body), extra, body))

    def refuse(self, status: int, headers: Headers, body: bytes) -> None:
        """Write another answer; the group calls it."""
        lines = [*self.server_state.default_headers, *headers]
        if (b"connection", b"close") in headers:
            self._ending = True
        elif self._ending:
            lines.append((b"connection", b"close"))
        head = b"".join(name + b": " + value + b"\r\n" for name, value in lines)
        self._write(STATUS_LINE[status] + head + b"\r\n" + body)

    def _write(self, response: bytes) -> None:
        self._waiting = False
        self.server_state.total_requests += 1
        if self._closing:
            return
        self._socket.write(response)
        if self._ending:
            self.close()
        else:
            self._served, self._since = True, self._watch.now

    def refuse_request(self, status: int, message: str) -> None:
        if self.front is None:
            super().refuse_request(status, message)
        else:
            self._refuse(Reject(status, message))

    def _refuse(self, reject: Reject) -> None:
        assert self.front is not None
        if self._waiting and self._group is not None:
            self._group.flush()
        if not self.answered_in_turn():
            self._ending = True
            path = template(self.url.split(b"?", 1)[0].decode("latin-1"))
            self.refuse(*self.front.lane.refusal(path, reject, b""))

    # --- ends ----------------------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """uvicorn ends: a request under way is answered first."""
        if self._waiting or self._pieces is not None:
            self._ending = True
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._held:
            self._let_go()
        super().connection_lost(exc)
