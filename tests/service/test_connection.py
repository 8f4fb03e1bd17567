"""What a connection may hold, and for how long: half requests, long heads, answers nobody reads."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.serving.answer import Lane
from service.serving.connection import HEAD_BYTES
from service.serving.front import Front
from service.serving.worker import Worker
from tests.real_server import wait_until
from tests.wired import Answer, Served, artefact, read_answer, records, request, serving, talk, working

__all__ = ["artefact"]  # a fixture

INFER = "/v2/models/evergreen/infer"
TIMEOUT_S = 1.0
PATIENT_S = 120.0
"""The read timeout of a worker whose clients are only as slow as this machine."""
OURS = r"[0-9a-f]{12}-[0-9a-f]+"
"""An id of a request that came without a usable one."""


@pytest.fixture(params=[PATIENT_S])
def worker(tmp_path: Path, artefact: Path, request: pytest.FixtureRequest) -> Iterator[Worker]:
    limits = {"READ_TIMEOUT_S": str(request.param), "MAX_PENDING_BYTES": "200000", "MAX_CONNECTIONS": "32"}
    with working(tmp_path, artefact, **{f"SERVE__{name}": value for name, value in limits.items()}) as made:
        yield made


impatient = pytest.mark.parametrize("worker", [TIMEOUT_S], indirect=True)


@pytest.fixture
def served(worker: Worker) -> Iterator[Served]:
    with serving(worker) as found:
        yield found


def lane_of(served: Served) -> Lane:
    front = served.server.config.app
    assert isinstance(front, Front)
    return front.lane


async def converse(port: int, sent: bytes) -> tuple[Answer | None, bytes, float]:
    """The first answer to these bytes (None: none came), all that followed until the end, and seconds until then."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.monotonic()
    writer.write(sent)
    try:
        answer = await asyncio.wait_for(read_answer(reader), 60)
    except asyncio.IncompleteReadError:
        answer = None
    rest = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    return answer, rest, time.monotonic() - began


HALF = {
    "half a head": request(records(1))[:40],
    "no body": request(records(1))[:-200],
    "half a body": request(records(1))[:-1],
    "half a long body": request(records(300))[:-1],
    "chunks without an end": request(b"", transfer_encoding="chunked", content_length="") + b"4\r\n{\"re\r\n",
    "feedback": request({"labels": []}, path="/feedback")[:-1],
    "v2": request({"inputs": []}, path=INFER)[:-1],
    "nowhere": request(b"{}", path="/nowhere")[:-1],
}  # fmt: skip


@impatient
@pytest.mark.parametrize("name", HALF)
def test_a_request_that_never_becomes_whole_ends_with_408(worker: Worker, served: Served, name: str) -> None:
    answer, rest, seconds = asyncio.run(converse(served.port, HALF[name]))

    assert answer is not None and rest == b""
    if name == "nowhere":
        assert answer.status == 404  # before the body
    else:
        assert answer.status == 408
        assert "read_timeout_s" in answer.json["error"]
        assert answer.headers["connection"] == "close"
    assert seconds > TIMEOUT_S * 0.4
    lane = lane_of(served)
    wait_until("the room of the body is given back", lambda: lane.held == lane.in_flight == 0)


def test_a_slow_client_whose_request_becomes_whole_in_time_is_answered(served: Served) -> None:
    whole = request(records(1))
    pieces = [whole[start : start + 40] for start in range(0, len(whole), 40)]

    assert talk(served.port, pieces, 1, 0.01)[0].status == 200


@impatient
def test_a_connection_without_a_first_byte_is_closed_without_a_word(served: Served) -> None:
    answer, rest, _ = asyncio.run(converse(served.port, b"\r\n\r\n"))

    assert (answer, rest) == (None, b"")


def test_hundreds_of_half_requests_delay_nobody(served: Served, worker: Worker) -> None:
    async def run() -> list[int]:
        half = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(24)]
        for number, (_, writer) in enumerate(half):
            writer.write(request(records(1), path=("/predict", "/feedback", INFER)[number % 3])[:-1])
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        statuses = []
        for _ in range(50):
            writer.write(request(records(1)))
            statuses.append((await read_answer(reader)).status)
        for _, other in (*half, (reader, writer)):
            other.close()
        return statuses

    assert asyncio.run(run()) == [200] * 50


def test_bodies_that_are_not_whole_are_bounded_together_and_given_back(served: Served, worker: Worker) -> None:
    many, waits = request(records(500)), set[str]()
    assert 60_000 < len(many) < 200_000

    async def run() -> tuple[list[int], int]:
        lines = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(8)]
        for number, (_, writer) in enumerate(lines):  # alternately by the long and the short way
            writer.write(many[:-1] if number % 2 else request(records(100))[:-1])
            await writer.drain()
        while not (refused := [reader for reader, _ in lines if reader._buffer]):  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
        held = lane.held
        answers = [await read_answer(reader) for reader in refused]
        waits.update(answer.headers["retry-after"] for answer in answers)
        statuses = [answer.status for answer in answers]
        for _, writer in lines:
            writer.transport.abort()
        return statuses, held

    talk(served.port, [request(records(1))], 1)
    lane = lane_of(served)
    statuses, held = asyncio.run(run())

    assert statuses and set(statuses) == {503}
    assert waits == {"1"}
    assert 0 < held <= 200_000
    wait_until("the room of the bodies is given back", lambda: lane.held == lane.in_flight == 0)
    assert talk(served.port, [many], 1)[0].status == 200


LONG_HEADS = {
    "one long header": (b"GET /livez HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 3 * HEAD_BYTES, 431),
    "a long header that ends": (b"GET /livez HTTP/1.1\r\nx-long: " + b"a" * HEAD_BYTES + b"\r\n\r\n", 431),
    "many headers": (b"GET /livez HTTP/1.1\r\n" + b"".join(b"x-%d: y\r\n" % n for n in range(30_000)), 431),
    "a long URL": (b"GET /" + b"a" * 3 * HEAD_BYTES, 414),
    "a long URL that ends": (b"GET /" + b"a" * (HEAD_BYTES + 1) + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414),
}


@pytest.mark.parametrize("name", LONG_HEADS)
@pytest.mark.parametrize("behind", [b"", request(records(1)), request(b"", path="/schema", method="GET")])
def test_heads_are_bounded(served: Served, name: str, behind: bytes) -> None:
    sent, status = LONG_HEADS[name]

    async def run() -> list[Answer]:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(behind)
        found = [await read_answer(reader)] if behind else []
        writer.write(sent)
        found.append(await asyncio.wait_for(read_answer(reader), 60))
        assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()
        return found

    *before, last = asyncio.run(run())
    assert [answer.status for answer in before] == ([200] if behind else [])
    assert (last.status, last.headers["connection"]) == (status, "close")
    assert str(HEAD_BYTES) in last.json["error"]


def test_a_head_just_within_the_bound_is_read_however_it_is_cut(served: Served) -> None:
    body = json.dumps(records(1)).encode()
    whole = request(body, x_long="a" * (HEAD_BYTES - 300))
    for size in (len(whole), 10_000, 1000):
        pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
        assert talk(served.port, [*pieces, request(body)], 2, 0.002)[1].status == 200


def test_an_offer_of_another_protocol_is_not_taken_up(served: Served) -> None:
    """`curl --http2` and Java's client offer h2c with a POST; a websocket client offers that."""
    h2c = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2_settings": "AAMAAABkAAQCAAAAAAIAAAAA"}
    chunked = {"transfer_encoding": "chunked", "content_length": ""}
    body = json.dumps(records(1)).encode()
    sent = [
        request(records(1), **h2c),
        request(records(300), **h2c),
        request(b"", **h2c, **chunked) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
        request(b"", path="/livez", method="GET", connection="upgrade", upgrade="websocket"),
        request(records(2), **{**h2c, "connection": "Upgrade, HTTP2-Settings, close"}),
    ]

    answers = talk(served.port, [b"".join(sent)], 5)

    assert [answer.status for answer in answers] == [200] * 5
    assert [len(answer.json["ids"]) for answer in (*answers[:3], answers[4])] == [1, 300, 1, 2]
    assert answers[4].headers["connection"] == "close"


def test_what_is_no_http_and_what_is_for_proxies_is_refused_in_our_words(served: Served) -> None:
    for sent, status in (
        (b"\x16\x03\x01\x02\x00\x01", 400),
        (b"GET /a b c HTTP/1.1\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}", 400),
        (b"POST /predict HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n{}", 400),
        (b"CONNECT example:80 HTTP/1.1\r\nhost: x\r\n\r\n", 405),
    ):
        answer, rest, _ = asyncio.run(converse(served.port, sent))
        assert answer is not None and (answer.status, rest) == (status, b"")
        assert set(answer.json) == {"error"}


def test_chunks_that_are_none_end_their_request_at_once(served: Served, worker: Worker) -> None:
    head = request(b"", transfer_encoding="chunked", content_length="")
    for path in ("/predict", "/feedback", INFER, "/nowhere"):
        sent = head.replace(b"/predict", path.encode()) + b'4\r\n{"re\r\nzz\r\n'
        answer, rest, seconds = asyncio.run(converse(served.port, sent))

        assert answer is not None and rest == b"" and seconds < PATIENT_S
        assert answer.status in ((400, 404) if path == "/nowhere" else (400,))
    lane = lane_of(served)
    wait_until("the room of the body is given back", lambda: lane.held == lane.in_flight == 0)


def test_junk_behind_requests_under_way_waits_for_their_answers(served: Served) -> None:
    for first in (request(records(1)), request(records(300)), request(b"", path="/schema", method="GET")):
        answer, rest, _ = asyncio.run(converse(served.port, first + b"\x00\x01junk\r\n\r\n"))

        assert answer is not None and answer.status == 200
        assert rest == b"" or rest.startswith(b"HTTP/1.1 400 ")


def test_bodies_in_another_compression_are_refused_with_what_to_do(served: Served) -> None:
    for path in ("/predict", "/feedback", INFER):
        answer = talk(served.port, [request(records(1), path=path, content_encoding="br")], 1)[0]
        assert answer.status == 415
        assert all(words in answer.json["error"] for words in ("'br'", "gzip or zstd", "without Content-Encoding"))
    assert talk(served.port, [request(records(1), content_encoding="identity")], 1)[0].status == 200


def test_an_answer_that_closes_reaches_a_client_that_is_still_sending(tmp_path: Path, artefact: Path) -> None:
    async def run(port: int) -> Answer:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(b"", content_length="90000000"))
        for _ in range(40):
            writer.write(b" " * 50_000)
            await asyncio.sleep(0.005)
        answer = await asyncio.wait_for(read_answer(reader), 60)
        writer.close()
        return answer

    with working(tmp_path, artefact) as worker, serving(worker) as served:
        answer = asyncio.run(run(served.port))

    assert (answer.status, answer.headers["connection"]) == (413, "close")


@impatient
def test_a_client_that_reads_nothing_is_let_go(served: Served) -> None:
    async def run() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1024)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(180):
                while True:
                    writer.write(request(b"", path="/metrics", method="GET") * 50)
                    await writer.drain()
                    await asyncio.sleep(0.05)
        writer.transport.abort()

    asyncio.run(run())
    assert talk(served.port, [request(records(1))], 1)[0].status == 200


def test_beyond_the_limit_the_connections_that_rest_give_way_to_new_ones(served: Served) -> None:
    async def run() -> list[int]:
        busy = await asyncio.open_connection("127.0.0.1", served.port)
        statuses, idle = [], []
        for _ in range(100):
            idle.append(await asyncio.open_connection("127.0.0.1", served.port))
            busy[1].write(request(records(1)))
            statuses.append((await read_answer(busy[0])).status)
        async with asyncio.timeout(180):
            while len(served.server.server_state.connections) > 32:
                await asyncio.sleep(0.01)
        for _, writer in (busy, *idle):
            writer.close()
        return statuses

    assert asyncio.run(run()) == [200] * 100


def test_strange_request_ids_are_not_echoed(served: Served) -> None:
    for path in ("/predict", "/feedback"):
        for given in ("a" * 300, "\u00e4", "a b"):
            answer = talk(served.port, [request(b"{}", path=path, x_request_id=given)], 1)[0]
            assert answer.status == 400 and re.fullmatch(OURS, answer.headers["x-request-id"])
