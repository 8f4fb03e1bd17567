"""From the socket to an answer without an ASGI task: the short way of small `POST /predict` requests.

uvicorn's own protocol makes a task, a scope, an event and two dictionaries of each request: more than half of the time
that a prediction takes. Requests of a few rows need none of it. All others (large ones, other routes, chunked bodies,
`Expect: 100-continue`, HTTP/1.0, connections to be closed) go uvicorn's way, behind the ones before them.

BentoML gives uvicorn no protocol, so uvicorn looks "auto" up in its table when a worker starts: `install` stands there.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, ClassVar, Final

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.fastlane import LENGTH_DIGITS
from service.group import Group

if TYPE_CHECKING:
    from service.fastlane import FastLane, Headers

logger = logging.getLogger("evergreen.wire")

SHORT_BYTES: Final = 64 * 1024
"""Larger bodies come in many pieces, and finding a fault in them takes long."""

URL: Final = b"/predict"


def install() -> None:
    """Let the servers of this process speak HTTP with `LaneProtocol`."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:LaneProtocol"


class LaneProtocol(HttpToolsProtocol):
    """One connection. Without a `front` it is uvicorn's own protocol."""

    front: ClassVar[FastLane | None] = None
    """Whose lane takes the short way; set once the lane stands before BentoML's layers."""
    _group: ClassVar[Group | None] = None

    _beginning = False  # the first bytes of a request are there, its headers not yet
    _pieces: list[bytes] | None = None  # of the body being received on the short way
    _waiting = False  # for an answer of the group
    _ending = False  # close once that is written
    _rested_at = 0.0
    _idle: asyncio.TimerHandle | None = None
    _dated: object = None
    _head = b""

    @property
    def _short_bytes(self) -> int:
        assert self.front is not None
        return min(SHORT_BYTES, self.front.lane.max_bytes)

    # --- httptools calls these, and takes no exception -----------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._waiting and self._group is not None:
            self._group.flush()  # pipelined: answers go out in the order of their requests
        self._beginning = True
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        self._beginning = False
        if self.transport.is_closing():
            self._pieces = []  # pipelined behind an answer that closed: it is not to be done at all
        elif self.front is not None and self.url == URL and self._is_short():
            self._pieces = []
        else:
            self._begin_long()

    def on_body(self, body: bytes) -> None:
        if self._pieces is None:
            super().on_body(body)
        else:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        pieces, self._pieces = self._pieces, None
        if pieces is None:
            super().on_message_complete()
            return
        if self.transport.is_closing():
            return
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._waiting = True
        if not self._the_group().take(self, self.headers, body):
            self._waiting = False
            self._begin_long()
            super().on_body(body)
            super().on_message_complete()

    def _begin_long(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()  # the scope, which the short way does without
        self.headers += headers
        self.url, self.expect_100_continue = url, expects
        super().on_headers_complete()
        if self._ending:
            self.cycle.keep_alive = False

    # --- the short way -------------------------------------------------------------------------------------------

    def _is_short(self) -> bool:
        parser, cycle = self.parser, self.cycle
        if (
            parser.get_method() != b"POST"
            or self.expect_100_continue
            or (cycle is not None and not cycle.response_complete)
            or self.flow.write_paused
            or parser.get_http_version() != "1.1"
            or not parser.should_keep_alive()
            or parser.should_upgrade()
        ):
            return False
        lengths = [value for name, value in self.headers if name == b"content-length"]
        return len(lengths) == 1 and len(lengths[0]) <= LENGTH_DIGITS and int(lengths[0]) <= self._short_bytes

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
            self._head = STATUS_LINE[200] + lines + b"content-type: application/json\r\ncontent-length: "
            self._dated = default
        extra = b"" if not request_id else b"x-request-id: " + request_id + b"\r\n"
        if self._ending or (self.front is not None and self.front.lane.worker.stopping):
            self._ending = True
            extra += b"connection: close\r\n"
        self._write(b"%b%d\r\n%b\r\n%b" % (self._head, len(body), extra, body))

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
        if self.transport.is_closing():
            return
        self.transport.write(response)
        if self._ending:
            self.transport.close()
            return
        self._rested_at = self.loop.time()
        if self._idle is None:
            self._idle = self.loop.call_later(self.timeout_keep_alive, self._look_idle)

    # --- ends ----------------------------------------------------------------------------------------------------

    def _look_idle(self) -> None:
        """One timer for many requests: it looks when the last answer was, and goes on for what is left."""
        self._idle = None
        under_way = self.cycle is not None and not self.cycle.response_complete
        busy = self._beginning or self._pieces is not None or self._waiting or under_way
        if self.transport.is_closing() or busy:
            return  # the answer to come sets it again
        left = self._rested_at + self.timeout_keep_alive - self.loop.time()
        if left <= 0:
            self.transport.close()
        else:
            self._idle = self.loop.call_later(left, self._look_idle)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._rested_at = self.loop.time()

    def shutdown(self) -> None:
        """uvicorn ends: a request under way is answered first."""
        if self._waiting or self._pieces is not None:
            self._ending = True
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        super().connection_lost(exc)
