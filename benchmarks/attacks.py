"""What hostile clients do: each attack has a bounded number of connections and bytes, and a bounded time.

`attack` runs one of them in the calling process, which should be a process of its own, and returns what the server
answered. Whatever the server does with a connection, close it, reset it, say nothing, is an answer and no error.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import re
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import uvloop

MB: Final = 2**20
LIMIT_S: Final = 300.0
"""No attack takes longer; one that is cut short says so."""
HOLD_S: Final = 15.0
"""How long open connections are held: longer than the server's deadline for reading a request."""
PATIENCE_S: Final = 30.0
"""How long an attacker waits for the answer to something large."""
REFUSED, CLOSED, SILENT = "refused", "closed", "no answer"


@dataclass(frozen=True, slots=True)
class Target:
    """The server, and what a valid request to it looks like. `body_bytes` is the largest body it takes."""

    port: int
    token: str
    model: str
    predict: bytes
    feedback: bytes
    infer: bytes
    body_bytes: int
    host: str = "127.0.0.1"

    @property
    def infer_path(self) -> str:
        return f"/v2/models/{self.model}/infer"


@dataclass(slots=True)
class Told:
    """What came of an attack: `answers` by status, or by what happened instead of one."""

    answers: Counter[str] = field(default_factory=Counter)
    sent_bytes: int = 0
    connections: int = 0
    examples: list[str] = field(default_factory=list)
    """The first requests that were answered with a 5xx other than 503."""
    cut_short: bool = False

    def errors(self) -> int:
        """Answers of 5xx other than 503, which says "not now" and is no error of the server's."""
        return sum(count for status, count in self.answers.items() if status[:1] == "5" and status != "503")


class Peer(asyncio.Protocol):
    """One connection of an attacker. It takes what comes, and never raises because of it."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.gone = False
        self.last = False  # the server will close behind its last answer
        self._changed = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: Any) -> None:  # uvloop's is no asyncio.Transport
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard += data
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self._changed.set()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def send(self, data: bytes) -> bool:
        """False when the server has closed, or takes nothing any more."""
        if self.gone or self.transport.is_closing():
            return False
        self.transport.write(data)
        if not self._writable.is_set():
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._writable.wait()
            except TimeoutError:
                return False
        return not self.gone

    async def answer(self, seconds: float, *, head: bool = False) -> str:
        """The status of the next whole answer (to a HEAD when `head`), or what happened instead of one."""
        try:
            async with asyncio.timeout(seconds):
                while (status := self._whole(head)) is None:
                    if self.gone:
                        found = re.match(rb"HTTP/1\.\d (\d{3})", self.heard)
                        return found[1].decode() if found else CLOSED
                    self._changed.clear()
                    await self._changed.wait()
                return status
        except TimeoutError:
            return SILENT

    def _whole(self, head: bool) -> str | None:
        while True:
            end = self.heard.find(b"\r\n\r\n")
            if end < 0:
                return None
            lines = bytes(self.heard[:end]).lower()
            status = lines[9:12].decode("latin-1")
            if status != "100":
                break
            del self.heard[: end + 4]
        self.last = b"\r\nconnection: close" in lines
        end += 4
        length = re.search(rb"\r\ncontent-length: *(\d+)", lines)
        if head or status in ("101", "204", "304"):
            pass
        elif length:
            end += int(length[1])
        elif b"\r\ntransfer-encoding: chunked" in lines:
            last = self.heard.find(b"0\r\n\r\n", end)
            end = last + 5 if last >= 0 else len(self.heard) + 1
        elif not self.gone:
            return None  # until it is closed
        if len(self.heard) < end:
            return None
        del self.heard[:end]
        return status

    def close(self) -> None:
        self.transport.abort()


class Attacker:
    """One attack under way."""

    def __init__(self, target: Target, scale: float, seed: int) -> None:
        self.target, self.scale, self.seed = target, scale, seed
        self.told = Told()

    def share(self, whole: float) -> int:
        return max(1, round(whole * self.scale))

    async def connect(self) -> Peer | None:
        """A connection; None, and counted, when there is none to be had."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                _, peer = await asyncio.get_running_loop().create_connection(Peer, self.target.host, self.target.port)
        except OSError:  # TimeoutError is one
            self.told.answers[REFUSED] += 1
            return None
        self.told.connections += 1
        return peer

    async def send(self, peer: Peer, data: bytes) -> bool:
        self.told.sent_bytes += len(data)
        return await peer.send(data)

    async def hear(self, peer: Peer, seconds: float, request: bytes, *, head: bool = False) -> str:
        """The answer to `request`, counted."""
        status = await peer.answer(seconds, head=head)
        self.told.answers[status] += 1
        if status[:1] == "5" and status != "503" and len(self.told.examples) < 10:
            self.told.examples.append(f"{status} to {request[:1500]!r}")
        return status

    async def once(self, pieces: Iterable[bytes]) -> None:
        """One connection, one request in pieces (the first is its head), one answer."""
        peer = await self.connect()
        if peer is None:
            return
        pieces = iter(pieces)
        head = next(pieces)
        sending = await self.send(peer, head)
        shown = head
        for piece in pieces:
            shown += piece[:100]
            sending = sending and await self.send(peer, piece)
        await self.hear(peer, PATIENCE_S, shown)
        peer.close()


def attack(name: str, target: Target, scale: float, seed: int) -> Told:
    """Run the attack of this name, `scale` (0 to 1) of its size."""
    attacker = Attacker(target, scale, seed)

    async def bounded() -> None:
        try:
            async with asyncio.timeout(LIMIT_S):
                await ATTACKS[name](attacker)
        except TimeoutError:
            attacker.told.cut_short = True

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())
    return attacker.told


def _head(method: str, path: str, *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: evergreen", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def _together(works: Iterable[Awaitable[None]], at_once: int) -> None:
    free = asyncio.Semaphore(at_once)

    async def one(work: Awaitable[None]) -> None:
        async with free:
            await work

    await asyncio.gather(*map(one, works))


# The attacks


async def nothing(attacker: Attacker) -> None:
    """No attack: what the machine does to the good client by itself."""
    await asyncio.sleep(max(5, attacker.share(15)))


async def half_sent(attacker: Attacker) -> None:
    """2,000 requests that never become whole: the head alone, one byte of the body, chunks without an end."""
    json_type = "content-type: application/json"
    paths = ("/predict", "/feedback", attacker.target.infer_path)

    async def one(number: int) -> None:
        peer = await attacker.connect()
        if peer is None:
            return
        path = paths[number // 3 % 3]
        data = (
            _head("POST", path, json_type, "content-length: 1000"),
            _head("POST", path, json_type, "content-length: 1000") + b"{",
            _head("POST", path, json_type, "transfer-encoding: chunked") + b"1\r\n{\r\n",
        )[number % 3]
        await attacker.send(peer, data)
        await attacker.hear(peer, HOLD_S, data)
        peer.close()

    await asyncio.gather(*map(one, range(attacker.share(2_000))))


async def idle(attacker: Attacker) -> None:
    """10,000 connections on which nothing is ever said."""
    peers: list[Peer] = []

    async def one() -> None:
        peer = await attacker.connect()
        if peer is not None:
            peers.append(peer)

    await _together((one() for _ in range(attacker.share(10_000))), 200)
    await asyncio.gather(*(attacker.hear(peer, HOLD_S, b"") for peer in peers))
    for peer in peers:
        peer.close()


async def headers(attacker: Attacker) -> None:
    """300 MB of small headers without an end over 8 connections; then headers and paths of 16 MB in one piece."""
    left = attacker.share(300 * MB)
    block = b"".join(b"x-%d: %d\r\n" % (number, number) for number in range(4_000))

    async def endless() -> None:
        nonlocal left
        while left > 0:
            peer = await attacker.connect()
            if peer is None:
                return
            start = b"GET /schema HTTP/1.1\r\nhost: evergreen\r\n"
            sending = await attacker.send(peer, start)
            while sending and left > 0:
                left -= len(block)
                sending = await attacker.send(peer, block)
            await attacker.hear(peer, 1.0, start)
            peer.close()

    await asyncio.gather(*(endless() for _ in range(8)))
    long = b"a" * attacker.share(16 * MB)
    for start, end in (
        (b"GET /schema HTTP/1.1\r\nhost: evergreen\r\nx-long: ", b"\r\n\r\n"),
        (b"GET /", b" HTTP/1.1\r\nhost: evergreen\r\n\r\n"),
        (b"POST /predict?", b" HTTP/1.1\r\nhost: evergreen\r\ncontent-length: 0\r\n\r\n"),
        (b"GET /schema HTTP/1.1\r\nhost: evergreen\r\n", b": 1\r\n\r\n"),
    ):
        await attacker.once((start, long, end))


async def bodies(attacker: Attacker) -> None:
    """Bodies of 16 MB of every bad kind on the three routes that read one, four at a time."""
    target = attacker.target
    size = round(target.body_bytes * attacker.scale)
    requests = [
        (path, body, extra)
        for path, name in (("/predict", "records"), ("/feedback", "labels"), (target.infer_path, "inputs"))
        for body, extra in _bad_bodies(name, size, target)
    ]
    random.Random(attacker.seed).shuffle(requests)

    async def one(path: str, make: Callable[[], bytes], extra: tuple[str, ...]) -> None:
        body = make()
        length = () if "transfer-encoding: chunked" in extra else (f"content-length: {len(body)}",)
        await attacker.once((_head("POST", path, "content-type: application/json", *length, *extra), body))

    await _together((one(*request) for request in requests), 4)


def _bad_bodies(name: str, size: int, target: Target) -> Iterator[tuple[Callable[[], bytes], tuple[str, ...]]]:
    """Bodies of about `size` bytes, made when they are sent, and the headers that go with each."""

    def filled(start: bytes, piece: bytes, end: bytes = b"") -> Callable[[], bytes]:
        return lambda: start + piece * ((size - len(start) - len(end)) // len(piece)) + end

    values: dict[str, tuple[bytes, bytes, bytes]] = {
        "nesting": (b"", b"[", b""),
        "objects": (b"", b'{"a":', b""),
        "string": (b'"', b"a", b'"'),
        "not utf-8": (b'"', b"\xff", b'"'),
        "surrogates": (b'"', b"\\ud800", b'"'),
        "digits": (b"", b"9", b""),
        "fraction": (b"0.", b"9", b""),
        "nulls": (b"[null", b",null", b"]"),
        "empty objects": (b"[{}", b",{}", b"]"),
        "wrong types": (b"[1", b',"a",true,[1],{"b":null},-1e5', b"]"),
        "NaN": (b"[NaN", b",NaN,Infinity", b"]"),
        "1e999": (b"[1e999", b",-1e999", b"]"),
        "repeated keys": (b'[{"a":1', b',"a":1', b"}]"),
        "unfinished": (b'[{"a":"', b'b":[{"a":"', b""),
    }
    key = name.encode()
    for start, piece, end in values.values():
        yield filled(start, piece, end), ()
        yield filled(b'{"%b":' % key + start, piece, end + b"}"), ()
    yield filled(b"", b"not JSON "), ()
    yield filled(b"", b"\x00"), ()
    yield filled(b'{"%b":[' % key, b" ", b"]}"), ()
    yield filled(b'{"%b":[],"%b":[' % (key, key), b"1,", b"1]}"), ()
    for valid in (target.predict, target.feedback, target.infer):
        for value in (b'"' + b"a" * size + b'"', b"9" * size):  # in the place of each kind of value
            for place in (rb'(?<=:)"[^"]*"', rb"(?<=:)-?[\d.]+"):
                yield lambda v=valid, p=place, w=value: re.sub(p, lambda _: w, v, count=1), ()
    one_name = json.loads(target.infer)["inputs"][0]["name"]
    tensor = f'{{"inputs":[{{"name":{json.dumps(one_name)},"datatype":"FP64",'.encode()
    part = size // 7
    yield lambda: tensor + b'"shape":[' + b"9" * part + b'],"data":[1]}]}', ()
    yield lambda: tensor + b'"shape":[' + b"9," * part + b'9],"data":[1]}]}', ()
    yield lambda: tensor + b'"shape":[' + b"1," * part + b'1],"data":[1]}]}', ()
    count = size // 8
    yield lambda: tensor + b'"shape":[%d],"data":[' % count + b"1.5e10," * (count - 1) + b"1]}]}", ()
    yield lambda: tensor + b'"shape":[%d],"data":[' % count + b"1," * (count - 1) + b"1]}]}", ()
    yield lambda: tensor + b'"shape":[1],"data":[' + b"[1]," * (size // 5) + b"[1]]}]}", ()
    yield lambda: b'{"inputs":[' + b'{"name":"a","shape":[1],"datatype":"FP64"},' * (size // 44) + b"{}]}", ()
    binary = tensor + b'"shape":[%d],"parameters":{"binary_data_size":%d}}]}'
    for claimed, header in ((size, "1"), (size, "9" * 30), (-1, "-1"), (size // 2, "0x10"), (10**30, ""), (size, "٣")):
        head = binary % (count, claimed)
        said = header.encode().decode("latin-1") or str(len(head))
        yield lambda h=head: h + bytes(size - len(h)), (f"inference-header-content-length: {said}",)
    strings = tensor.replace(b"FP64", b"BYTES") + b'"shape":[1],"parameters":{"binary_data_size":%d}}]}' % (size // 2)
    lie = struct.pack("<I", 2**32 - 1) + bytes(size // 2)
    yield lambda: strings + lie, (f"inference-header-content-length: {len(strings)}",)
    yield lambda: gzip.compress(bytes(20 * size), 1), ("content-encoding: gzip",)
    yield filled(b"", b"\x1f\x8b"), ("content-encoding: gzip",)
    yield lambda: bytes(target.body_bytes + 1), ()
    yield lambda: b"1\r\n \r\n" * (size // 6), ("transfer-encoding: chunked",)
    yield (
        lambda: (b"10000\r\n" + bytes(65536) + b"\r\n") * (2 * target.body_bytes // 65536),
        ("transfer-encoding: chunked",),
    )


async def manage(attacker: Attacker) -> None:
    """1.5 GB to the writes of `/manage` without a token, with a length said and in chunks."""
    left = attacker.share(1_500 * MB)
    block = b'{"why": "' + b"a" * (65536 - 9)
    chunk = b"10000\r\n" + block + b"\r\n"

    async def one(path: str, framing: str, piece: bytes) -> None:
        nonlocal left
        while left > 0:
            peer = await attacker.connect()
            if peer is None:
                return
            head = _head("POST", path, "content-type: application/json", framing)
            sending, room = await attacker.send(peer, head), 375 * MB
            while sending and left > 0 and room > 0:
                left -= len(piece)
                room -= len(piece)
                sending = await attacker.send(peer, piece)
            await attacker.hear(peer, 1.0, head)
            peer.close()

    await asyncio.gather(
        *(
            one(path, framing, piece)
            for path in ("/manage/models", "/manage/retrain")
            for framing, piece in ((f"content-length: {400 * MB}", block), ("transfer-encoding: chunked", chunk))
        )
    )


async def noise(attacker: Attacker) -> None:
    """Random bytes for 60 s: on new connections, behind valid requests, behind half a request line."""
    target, seconds = attacker.target, attacker.share(60)
    until = asyncio.get_running_loop().time() + seconds
    json_type = "content-type: application/json"
    valid = _head("POST", "/predict", json_type, f"content-length: {len(target.predict)}") + target.predict
    starts = (
        b"",
        valid,
        b"POST /predict HTTP/1.1\r\n",
        _head("POST", "/feedback", json_type, "content-length: 3000"),
        _head("POST", target.infer_path, json_type, "transfer-encoding: chunked"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    )

    async def one(number: int) -> None:
        chance = random.Random(f"{attacker.seed} {number}")
        while asyncio.get_running_loop().time() < until:
            peer = await attacker.connect()
            if peer is None:
                await asyncio.sleep(0.1)
                continue
            start = chance.choice(starts)
            data = start + chance.randbytes(chance.choice((1, 10, 300, 5_000, 60_000)))
            await attacker.send(peer, data)
            for _ in range(2 if start == valid else 1):
                await attacker.hear(peer, 0.5, data)
            peer.close()

    await asyncio.gather(*(one(number) for number in range(16)))


async def mutated(attacker: Attacker) -> None:
    """200,000 mutated requests over all routes and methods, 16 at a time; none of them is a valid write."""
    left = attacker.share(200_000)

    async def one(number: int) -> None:
        nonlocal left
        chance = random.Random(f"{attacker.seed} {number}")
        peer: Peer | None = None
        while left > 0:
            left -= 1
            if peer is None or peer.gone or peer.transport.is_closing():
                peer = await attacker.connect()
                if peer is None:
                    await asyncio.sleep(0.1)
                    continue
            request = mutant(chance, attacker.target)
            await attacker.send(peer, request)
            status = await attacker.hear(peer, 3.0, request, head=request.startswith(b"HEAD "))
            if status in (SILENT, "101") or peer.last or peer.heard:  # or more was answered than this one request
                peer.close()
                peer = None
        if peer is not None:
            peer.close()

    await asyncio.gather(*(one(number) for number in range(16)))


ATTACKS: Final[dict[str, Callable[[Attacker], Awaitable[None]]]] = {
    work.__name__: work for work in (nothing, half_sent, idle, headers, bodies, manage, noise, mutated)
}


# Mutated requests

DIGITS: Final = b"9" * 30
VALUES: Final = (
    b"null", b"true", b"0", b"-0", b"-1", b"1e999", b"1e308", b"5e-324", b"NaN", DIGITS, b"-" + DIGITS, b"0.1e-30",
    b"[]", b"{}", b'""', b'"\\u0000"', b'"\\ud800"', b'"\xed\xa0\x80"', b'"\xff"', '"\u0663"'.encode(),
    b'"\\u202e\\u202d"', b"1_000",
    b"9223372036854775807", b"-9223372036854775809", b"18446744073709551616", b'"' + b"a" * 2_000 + b'"', b"[[[[]]]]",
    b'"2026-02-30"', b'"0001-01-01T00:00:00Z"', b'"9999-12-31T23:59:59+14:00"', b'"=1+1"', b'"../../etc/passwd"',
)  # fmt: skip
PARTS: Final = (
    "1", "0", "-1", "9" * 30, "-" + "9" * 30, "%00", "1%00", "%ED%A0%80", "%D9%A3", "1e5", "1.0", "NaN", "%", "%zz",
    "%ff", "..%2f..%2fetc%2fpasswd", "a" * 300, "nobody", "1%0A", "%F0%9F%92%A9", "9223372036854775808", "+1", "",
)  # fmt: skip
QUERIES: Final = (
    "limit={}", "before={}", "kind={}", "why={}", "limit=1&limit={}", "{}", "{}={}", "before=1&limit={}", "model={}",
)  # fmt: skip
READS: Final = (
    "/", "/livez", "/readyz", "/healthz", "/metrics", "/schema", "/docs.json", "/docs", "/v2", "/v2/health/{}",
    "/v2/models/{}", "/v2/models/evergreen/versions/{}", "/v2/models/evergreen/versions/{}/ready", "/{}", "/manage",
    "/manage/models", "/manage/models/{}", "/manage/runs", "/manage/runs/{}", "/manage/drift", "/manage/status",
    "/manage/labels/{}", "/manage/reports/{}", "/manage/openapi.json", "/manage/{}", "/schema.json", "*", "//predict",
)  # fmt: skip
METHODS: Final = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "BREW")
TYPES: Final = (
    "application/json; charset=utf-16", "text/plain", "\xff", "application/x-www-form-urlencoded",
    "multipart/form-data", "application/octet-stream", "", "application/vnd.bentoml+pickle",
)  # fmt: skip
ODD: Final = (
    "upgrade: h2c\r\nconnection: Upgrade, HTTP2-Settings\r\nhttp2-settings: AAMAAABkAAQAAP__", "expect: 100-continue",
    "upgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-key: eA==\r\nsec-websocket-version: 13", "expect: tea",
    "content-encoding: gzip", "content-encoding: br, gzip", "x-request-id: \xff\x80", "x-request-id: " + "a" * 5_000,
    "inference-header-content-length: " + "9" * 30, "inference-header-content-length: -1", "cookie: a=\xff; $b",
    "inference-header-content-length: 10", "accept: text/html", "accept-encoding: gzip;q=nan", "range: bytes=0-,9-",
    "x-evergreen-who: \xff\xfe", "x-forwarded-for: \xff", "traceparent: 00-zz-zz-01", "host: [::1", "connection: close",
    "if-none-match: *", "x-http-method-override: DELETE", "te: trailers", "bentoml-payload-type: pickle", "a: " * 900,
    "content-type: application/json", "origin: null\r\naccess-control-request-method: POST", "x: \x0b\x01",
)  # fmt: skip
_VALUE: Final = re.compile(rb'(?<=[:\[,])\s*("(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null)')


def mutate(chance: random.Random, body: bytes) -> bytes:
    """A body near this one; half of the time it is still JSON."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at, length = chance.randrange(len(body) + 1), chance.choice((1, 2, 5, 20))
        match chance.randrange(8):
            case 0 | 1 | 2 | 3:
                places = list(_VALUE.finditer(body))
                if places:
                    start, end = chance.choice(places).span(1)
                    body = body[:start] + chance.choice(VALUES) + body[end:]
            case 4:
                body = body[:at] + chance.randbytes(length) + body[at + length :]
            case 5:
                body = body[:at] + body[at + length :]
            case 6:
                body = body[: at + length] + body[at:]
            case 7:
                body = body[:at] + chance.choice(VALUES) + body[at:]
    return body


def mutant(chance: random.Random, target: Target) -> bytes:
    """A whole mutated request. Nothing in it makes a valid write below `/manage`."""
    token = ""
    method, body = "GET", b""
    kind = chance.randrange(10)
    if kind < 6:
        path, valid = chance.choice(
            (("/predict", target.predict), ("/feedback", target.feedback), (target.infer_path, target.infer))
        )
        method, body = "POST", mutate(chance, valid)
    elif kind < 8:
        path = chance.choice(READS).replace("{}", chance.choice(PARTS))
    else:
        method = "POST"
        writes = ("retrain", "rollback", "erasures", "models/{}/promote", "models")
        path = "/manage/" + chance.choice(writes).replace("{}", chance.choice(PARTS))
        erasure = b'"why":"a","ids":["nobody"],"feature":"nothing","value":1}'
        body = b'{"nobody_takes_this":1,' + mutate(chance, erasure)
    if path.startswith("/manage"):
        pushes = path == "/manage/models" and method == "POST"  # with a token any body is a push
        token = chance.choice(("", "wrong", "\xff", "٣".encode().decode("latin-1"), target.token, target.token))
        token = "wrong" if pushes and token == target.token else token
    safe = token == target.token and method == "POST"  # has to stay the invalid write that it is
    if not safe and chance.random() < 0.1:
        method = chance.choice(METHODS)
        token = "wrong" if path.startswith("/manage") and method == "POST" else token
    if chance.random() < 0.2:
        path += "?" + chance.choice(QUERIES).replace("{}", chance.choice(PARTS))
    lines = [f"{method} {path} HTTP/1.{1 if safe else chance.choice('1111111110')}"]
    if chance.random() < 0.98:
        lines.append("host: evergreen")
    if token:
        lines.append(f"authorization: {chance.choice(('Bearer', 'bearer', 'Basic'))} {token}")
    content_type = "application/json" if chance.random() < 0.9 else chance.choice(TYPES)
    lines.append(f"content-type: {content_type}")
    while chance.random() < 0.15:
        odd = chance.choice(ODD)
        if not (safe and odd.startswith("upgrade")):  # a server that drops the body then has a valid write
            lines.append(odd)
    if body and chance.random() < 0.1:
        lines.append("transfer-encoding: chunked")
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    elif body or method == "POST":
        lines.append(f"content-length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def be_patient() -> None:
    """What an attacker computes is its own affair: it must not take the server's processor."""
    os.nice(5)


def valid_bodies(record: dict[str, Any], kinds: dict[str, str]) -> tuple[bytes, bytes, bytes]:
    """What `/predict`, `/feedback` and V2 take; `kinds` has the V2 datatype of each column."""
    inputs = [{"name": n, "shape": [1], "datatype": kinds[n], "data": [value]} for n, value in record.items()]
    return (
        json.dumps({"records": [record], "ids": ["hostile"]}).encode(),
        json.dumps({"labels": [{"id": "nobody", "label": 1, "observed_at": "2026-01-31T12:00:00Z"}]}).encode(),
        json.dumps({"inputs": inputs, "id": "hostile", "outputs": [{"name": "predictions"}]}).encode(),
    )
