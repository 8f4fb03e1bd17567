"""A load generator: keep-alive HTTP/1.1 clients on raw sockets, every latency kept.

`closed_loop` holds a number of clients, each sending its next request when the answer is there: it measures capacity.
`open_loop` sends at a constant rate whatever the answers do, and counts each latency from the moment the request was
due: a server that stalls is charged for everyone who had to wait (no "coordinated omission", G. Tene, wrk2).

One thread, one process, no event loop library. `Generator` runs either one in a process of its own, on a core of its
own. README.md has how it compares with `wrk`.
"""

from __future__ import annotations

import contextlib
import gc
import math
import multiprocessing
import os
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, ParamSpec, Self, TypeVar

from training.priority import be_prompt, let_first

P = ParamSpec("P")
T = TypeVar("T")

OnAnswer = Callable[[int, int, bytes, float, float], bool]
"""(which request, status, body, when it was sent, when it was answered; perf_counter seconds) -> was it right?"""


class Enough(Exception):
    """Raised by an `OnAnswer` when no more requests shall be sent; the answer it was given counts as right."""


RECEIVE_BYTES: Final = 1 << 18
GRACE_S: Final = 5.0
"""Seconds that the last requests have to be answered; then they count as unanswered."""

NO_ANSWER: Final = "no answer"
CLOSED: Final = "connection closed"
WRONG: Final = "wrong answer"


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go. `bodies` are sent in turn, of one type each; `headers` are further ones, the same for all."""

    port: int
    path: str
    bodies: tuple[bytes, ...]
    host: str = "127.0.0.1"
    content_type: str = "application/json"
    accept: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()

    def requests(self) -> list[bytes]:
        """The whole requests, ready for the socket."""
        further = "".join(f"{name}: {value}\r\n" for name, value in self.headers)
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: {self.content_type}\r\n"
            f"Accept: {self.accept}\r\n{further}Content-Length: "
        )
        return [f"{head}{len(body)}\r\n\r\n".encode() + body for body in self.bodies]


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of a load: `latencies_ms` of the good answers, sorted; `failures` by kind."""

    requests: int
    seconds: float
    latencies_ms: list[float]
    failures: dict[str, int] = field(default_factory=dict)
    generator_cpu: float = 0.0
    """Share of a core that the generator itself used; near 1 it was the generator that was measured."""
    lost_ports: tuple[int, ...] = ()
    """The client's port of each request whose connection was closed before the answer."""

    @property
    def good(self) -> int:
        return len(self.latencies_ms)

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    @property
    def requests_per_second(self) -> float:
        return self.good / self.seconds

    def percentile(self, share: float) -> float:
        """The latency in milliseconds that `share` of the good answers did not exceed; NaN without answers."""
        return percentile(self.latencies_ms, share)


def percentile(ascending: Sequence[float], share: float) -> float:
    """Nearest-rank percentile of sorted values; NaN of none."""
    if not ascending:
        return math.nan
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


class _Connection:
    """One client: at most one request under way."""

    __slots__ = ("address", "buffer", "fd", "need", "port", "request", "sent", "sock", "unsent")

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.open()

    def open(self) -> None:
        self.sock = socket.create_connection(self.address, timeout=GRACE_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.fd = self.sock.fileno()
        self.port: int = self.sock.getsockname()[1]
        self.request = -1  # which request is under way; -1: none
        self.sent = 0.0
        self.unsent = memoryview(b"")
        self.buffer = b""
        self.need = 0  # bytes of the whole answer; 0: not known yet, -1: chunked

    def begin(self, number: int, data: bytes, sent: float) -> bool:
        """Send a request; False when the kernel did not take all of it."""
        self.request = number
        self.sent = sent
        self.buffer = b""
        self.need = 0
        try:
            taken = self.sock.send(data)
        except BlockingIOError:
            taken = 0
        self.unsent = memoryview(data)[taken:]
        return not self.unsent

    def go_on(self) -> bool:
        """Send more of a large request; True when all of it is on its way."""
        with contextlib.suppress(BlockingIOError):
            while self.unsent:
                self.unsent = self.unsent[self.sock.send(self.unsent) :]
        return not self.unsent

    def receive(self) -> bool:
        """Read what is there; True when the answer is whole. Raises OSError when the connection has gone."""
        data = self.sock.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError
        self.buffer = buffer = self.buffer + data if self.buffer else data
        if self.need == 0:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return False
            head = buffer[:end].lower()
            at = head.find(b"\r\ncontent-length:")
            if at >= 0:
                self.need = end + 4 + int(head[at + 17 :].split(b"\r\n", 1)[0])
            else:
                self.need = -1
        if self.need > 0:
            return len(buffer) >= self.need
        return buffer.endswith(b"0\r\n\r\n")

    def answer(self) -> tuple[int, bytes]:
        """Status and body of the whole answer (a chunked body as it came)."""
        return int(self.buffer[9:12]), self.buffer[self.buffer.find(b"\r\n\r\n") + 4 :]


class _Run:
    """The clients of one load and what they have seen."""

    def __init__(self, target: Target, connections: int, on_answer: OnAnswer | None) -> None:
        self.requests = target.requests()
        self.on_answer = on_answer
        self.latencies: list[float] = []
        self.failures: Counter[str] = Counter()
        self.lost_ports: list[int] = []
        self.begun = 0
        self.enough = False
        self.poll = select.epoll()
        self.connections: dict[int, _Connection] = {}
        for _ in range(connections):
            self._add(_Connection((target.host, target.port)))

    def _add(self, connection: _Connection) -> None:
        self.connections[connection.fd] = connection
        self.poll.register(connection.fd, select.EPOLLIN)

    def begin(self, connection: _Connection, sent: float) -> None:
        number = self.begun % len(self.requests)
        self.begun += 1
        for _ in range(2):  # the second time on a new connection
            try:
                if not connection.begin(number, self.requests[number], sent):
                    self.poll.modify(connection.fd, select.EPOLLIN | select.EPOLLOUT)
                return
            except OSError:
                self.lost(connection)

    def lost(self, connection: _Connection) -> None:
        """A closed connection is a failure when a request was under way; either way there is a new one."""
        if connection.request >= 0:
            self.failures[CLOSED] += 1
            self.lost_ports.append(connection.port)
        del self.connections[connection.fd]
        connection.sock.close()
        connection.open()
        self._add(connection)

    def wait(self, timeout: float) -> list[_Connection]:
        """The connections that became free, after at most `timeout` seconds."""
        return self.handle(self.poll.poll(timeout))

    def handle(self, events: Sequence[tuple[int, int]]) -> list[_Connection]:
        free = []
        for fd, event in events:
            connection = self.connections[fd]
            try:
                if event & select.EPOLLOUT and connection.go_on():
                    self.poll.modify(fd, select.EPOLLIN)
                if not event & ~select.EPOLLOUT or not connection.receive():
                    continue
            except OSError:
                if connection.request >= 0:
                    free.append(connection)
                self.lost(connection)
                continue
            self._answered(connection)
            free.append(connection)
        return free

    def _answered(self, connection: _Connection) -> None:
        now = time.perf_counter()
        buffer = connection.buffer
        if buffer[9:12] != b"200":
            self.failures[buffer[9:12].decode()] += 1
        elif self._right(connection, now):
            self.latencies.append(now - connection.sent)
        else:
            self.failures[WRONG] += 1
        connection.request = -1
        if connection.unsent:  # answered before the whole request was read: of no use any more
            self.lost(connection)

    def _right(self, connection: _Connection, now: float) -> bool:
        if self.on_answer is None:
            return True
        try:
            return self.on_answer(connection.request, *connection.answer(), connection.sent, now)
        except Enough:
            self.enough = True
            return True

    def finish(self) -> None:
        """Wait for the requests under way; what is not answered within the grace is a failure."""
        until = time.perf_counter() + GRACE_S
        while any(c.request >= 0 for c in self.connections.values()) and time.perf_counter() < until:
            self.wait(0.1)
        for connection in self.connections.values():
            if connection.request >= 0:
                self.failures[NO_ANSWER] += 1
            connection.sock.close()
        self.poll.close()

    def measured(self, seconds: float, cpu: float) -> Measured:
        latencies = sorted(latency * 1e3 for latency in self.latencies)
        lost = tuple(self.lost_ports)
        return Measured(self.begun, seconds, latencies, dict(self.failures), cpu / seconds, lost)


def closed_loop(
    target: Target,
    connections: int,
    seconds: float,
    *,
    on_answer: OnAnswer | None = None,
) -> Measured:
    """`connections` clients, each with one request under way, for `seconds` or until `on_answer` has `Enough`.

    Answers that come after the end count in the latencies and stretch the time they are divided by: a server that
    takes longer than the measurement is not flattered.
    """
    run = _Run(target, connections, on_answer)
    gc.disable()
    cpu = time.process_time()
    began = time.perf_counter()
    end = began + seconds
    for connection in list(run.connections.values()):
        run.begin(connection, time.perf_counter())
    now = time.perf_counter()
    while now < end and not run.enough:
        for connection in run.wait(end - now):
            now = time.perf_counter()
            if now < end and not run.enough:
                run.begin(connection, now)
        now = time.perf_counter()
    run.finish()
    took = time.perf_counter() - began
    cpu = time.process_time() - cpu
    gc.enable()
    return run.measured(took, cpu)


def open_loop(
    target: Target,
    connections: int,
    seconds: float,
    *,
    rate: float,
    on_answer: OnAnswer | None = None,
) -> Measured:
    """One request every `1/rate` seconds; a request that finds all `connections` taken waits, and its wait counts."""
    run = _Run(target, connections, on_answer)
    free = deque(run.connections.values())
    gc.disable()
    cpu = time.process_time()
    began = time.perf_counter()
    total = int(rate * seconds)
    sent = 0
    while sent < total:
        due = began + sent / rate
        now = time.perf_counter()
        if now >= due and free:
            run.begin(free.popleft(), due)  # the longest idle: all workers get their share
            sent += 1
            continue
        # select() sleeps to the microsecond; epoll's timeout is rounded up to a millisecond.
        ready, _, _ = select.select([run.poll], [], [], max(0.0, due - now) if free else GRACE_S)
        if ready:
            free += run.wait(0)
        elif not free:
            break  # nothing was answered for so long: what is under way counts as unanswered
    run.failures[NO_ANSWER] += total - sent
    run.finish()
    took = time.perf_counter() - began
    cpu = time.process_time() - cpu
    gc.enable()
    run.failures += Counter()  # drops the zeros
    return run.measured(took, cpu)


class Generator:
    """The load generator in a process of its own, on `core` when one is given.

    With a `nice` value it gives way to another generator there, which measures.
    """

    def __init__(self, core: int | None = None, nice: int = 0) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, initializer=_pin, initargs=(core, nice))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, load: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `load` (`closed_loop`, `open_loop`, …) returns for these arguments."""
        return self.begin(load, *args, **kwargs).result()

    def begin(self, load: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """The same, without waiting for it."""
        return self._pool.submit(load, *args, **kwargs)


def _pin(core: int | None, nice: int) -> None:
    if nice:
        let_first(nice)
    else:
        be_prompt()  # an instrument must not be what is measured
    if core is not None:
        os.sched_setaffinity(0, {core})
