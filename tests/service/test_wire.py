"""The short way from the socket: over real connections, what it answers is what the long way answers."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from monitoring.record import PREDICTION, Entry, iter_entries
from service.serving.front import Front
from service.serving.wire import SHORT_BYTES
from service.serving.worker import Worker
from tests.artefacts import example_record
from tests.wired import (
    KEEP_ALIVE_S,
    Answer,
    Served,
    artefact,
    example,
    read_answer,
    records,
    request,
    serving,
    stop_following,
    talk,
    worker,
    working,
)

__all__ = ["artefact", "worker"]  # fixtures


def comparable(answer: Answer) -> tuple[int, dict[str, str], Any]:
    """Without what is different each time."""
    headers = {name: value for name, value in answer.headers.items() if name not in ("date", "content-length")}
    if re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", headers.get("x-request-id", "")):
        headers["x-request-id"] = "made by the server"
    body = answer.json if answer.headers.get("content-type") == "application/json" else answer.body
    if isinstance(body, dict):
        body.pop("ids", None)
    return answer.status, headers, body


CONVERSATION = [
    request(records(1)),
    request(records(3), x_request_id="abc"),
    request(b"{"),
    request({"records": [example_record(age="old")]}, x_request_id="def"),
    request({"records": []}),
    request(b""),
    request(records(1), content_type="text/xml"),
    request(records(1), content_type="text/csv"),
    request(gzip.compress(json.dumps(records(2)).encode()), content_encoding="gzip"),
    request({**records(2), "ids": ["x", "y"]}, accept="text/html, text/csv;q=0.5"),
    request(json.dumps({**example(), "id": "one"}).encode(), content_type="application/x-ndjson"),
    request(records(1), accept="*/*"),
    request(records(1), path="/predict?a=1"),
    request(b"", path="/schema", method="GET"),
    request(b"", path="/nowhere", method="GET"),
    request(b"", method="GET"),
    request({"labels": [{"id": "x", "label": 1}]}, path="/feedback"),
    request(records(300)),
    request(records(2), expect="100-continue"),
    b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    b"4\r\n{\"re\r\n8\r\ncords\":[\r\n2\r\n]}\r\n0\r\n\r\n",
    request({"records": [example_record()], "ids": ["order-7"]}),
]  # fmt: skip


@pytest.fixture(scope="module")
def long_way(tmp_path_factory: pytest.TempPathFactory, artefact: Path) -> list[Answer]:
    """What uvicorn's own protocol and the lane answer to the conversation."""
    home = tmp_path_factory.mktemp("long")
    with working(home, artefact) as worker, serving(worker, short=False) as served:
        return [talk(served.port, [one], 1)[0] for one in CONVERSATION]


@pytest.mark.parametrize("seed", range(8))
def test_however_a_conversation_is_cut_up_it_is_answered_as_on_the_long_way_and_in_order(
    worker: Worker, long_way: list[Answer], seed: int
) -> None:
    chance = random.Random(seed)
    order = chance.sample(range(len(CONVERSATION)), len(CONVERSATION))
    whole = b"".join(CONVERSATION[number] for number in order)
    cuts = sorted(chance.sample(range(1, len(whole)), (0, 1, 5, 40)[seed % 4]))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    with serving(worker) as served:
        answers = talk(served.port, pieces, len(order), 0.001)

    assert [comparable(answer) for answer in answers] == [comparable(long_way[number]) for number in order]
    statuses = [answer.status for answer in long_way]
    assert statuses.count(200) == 11 and {202, 400, 404, 405, 415} <= set(statuses)


def test_many_connections_at_once_each_get_the_answer_they_would_get_alone(worker: Worker) -> None:
    bodies = [records(1 + number % 3, first=18 + number) for number in range(120)]

    async def everybody(port: int) -> list[Answer]:
        lines = [await asyncio.open_connection("127.0.0.1", port) for _ in bodies]
        for (_, writer), body in zip(lines, bodies, strict=True):
            writer.write(request(body, x_request_id=str(body["records"][0]["age"])))
        found = [await read_answer(reader) for reader, _ in lines]
        for _, writer in lines:
            writer.close()
        return found

    with serving(worker) as served:
        alone = [talk(served.port, [request(body)], 1)[0] for body in bodies]
        together = asyncio.run(everybody(served.port))

    assert [comparable(a)[2] for a in together] == [comparable(a)[2] for a in alone]
    assert [a.headers["x-request-id"] for a in together] == [str(body["records"][0]["age"]) for body in bodies]
    ids = [id_ for answer in (*alone, *together) for id_ in answer.json["ids"]]
    assert len(set(ids)) == len(ids)
    worker.log.close()  # type: ignore[union-attr]
    frames = [
        entry
        for path in sorted(worker.settings.spool_dir.glob("*.sealed"))
        for entry in iter_entries(path.read_bytes(), at_end=True)
        if isinstance(entry, Entry) and entry.kind == PREDICTION
    ]
    recorded = {bytes(entry.parts[0]): json.loads(bytes(entry.parts[1])) for entry in frames}
    assert {answer.body for answer in (*alone, *together)} == set(recorded)
    assert all(recorded[a.body] == body for a, body in zip(together, bodies, strict=True))


def test_behind_an_answer_that_closes_the_connection_nothing_is_done(worker: Worker) -> None:
    async def run(port: int) -> tuple[list[int], bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        too_many = request({"records": [{}] * 10_001})
        assert len(too_many) < SHORT_BYTES
        writer.write(request(records(1)) + too_many + request(records(1)) + request(b"", path="/schema", method="GET"))
        found = [(await read_answer(reader)).status for _ in range(2)]
        rest = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        return found, rest

    with serving(worker) as served:
        answered = asyncio.run(run(served.port))
        page = talk(served.port, [request(b"", path="/metrics", method="GET")], 1)[0].body.decode()

    assert answered == ([200, 413], b"")
    assert worker.log is not None and worker.log.appended_rows == 1
    assert 'evergreen_requests_total{route="/predict",status="200"} 1.0' in page
    assert 'route="/schema"' not in page


def test_bodies_are_bounded_on_the_short_way_too(tmp_path: Path, artefact: Path) -> None:
    with working(tmp_path, artefact, SERVE__MAX_REQUEST_BYTES="2000") as worker, serving(worker) as served:
        large = talk(served.port, [request(records(40))], 1)[0]
        longest = talk(served.port, [request(b"", content_length="0" * 5000 + "2") + b"{}"], 1)[0]
        v2 = request(b"{}", path="/v2/models/evergreen/infer", inference_header_content_length="1" * 5000)
        header = talk(served.port, [v2], 1)[0]

    assert (large.status, longest.status, header.status) == (413, 400, 400)
    assert "2000" in large.json["error"]


def test_what_is_counted_is_what_was_answered(worker: Worker) -> None:
    with serving(worker) as served:
        talk(served.port, [request(records(2)) * 5 + request(b"{") * 3], 8)
        page = talk(served.port, [request(b"", path="/metrics", method="GET")], 1)[0].body.decode()

    assert 'evergreen_requests_total{route="/predict",status="200"} 5.0' in page
    assert 'evergreen_requests_total{route="/predict",status="400"} 3.0' in page
    assert 'evergreen_predictions_total{version="1"} 10.0' in page
    assert 'evergreen_log_records_total{outcome="appended"} 10.0' in page
    assert "evergreen_prediction_seconds_count 5.0" in page


def test_a_client_that_closes_or_speaks_http_1_0_is_answered_and_let_go(worker: Worker) -> None:
    async def last_words(port: int, sent: bytes) -> tuple[Answer, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        answer = await read_answer(reader)
        rest = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        return answer, rest

    with serving(worker) as served:
        for sent in (request(records(1), connection="close"), request(records(1), version="1.0")):
            answer, rest = asyncio.run(last_words(served.port, sent))
            assert (answer.status, answer.headers["connection"], rest) == (200, "close", b"")


def test_an_idle_connection_is_closed_and_a_busy_one_is_not(worker: Worker) -> None:
    async def run(port: int) -> tuple[list[int], float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        statuses = []
        for turn in range(4):
            long = {"path": "/schema", "method": "GET"} if turn % 3 == 2 else {}
            writer.write(request(b"" if long else records(1), **long))
            began = time.monotonic()
            statuses.append((await read_answer(reader)).status)
            await asyncio.sleep(0.4 * KEEP_ALIVE_S)
        assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()
        return statuses, time.monotonic() - began

    with serving(worker) as served:
        statuses, waited = asyncio.run(run(served.port))

    assert statuses == [200] * 4
    assert waited > 0.8 * KEEP_ALIVE_S


def test_a_request_that_begins_when_the_connection_would_be_closed_is_answered(worker: Worker) -> None:
    async def run(port: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(records(1)))
        await read_answer(reader)
        await asyncio.sleep(0.7 * KEEP_ALIVE_S)
        whole = request(records(1))
        writer.write(whole[:30])  # in the middle of the headers
        await asyncio.sleep(0.7 * KEEP_ALIVE_S)
        writer.write(whole[30:])
        answer = await asyncio.wait_for(read_answer(reader), 60)
        writer.close()
        return answer.status

    with serving(worker) as served:
        assert asyncio.run(run(served.port)) == 200


async def begun(served: Served) -> None:
    """Returns when the server holds a part of a body, and what came beside it has had its time."""
    front = served.server.config.app
    assert isinstance(front, Front)
    while not front.lane.held:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)


def test_a_request_under_way_when_the_server_ends_is_answered(worker: Worker) -> None:
    async def run(served: Served) -> Answer:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        whole = request(records(2))
        writer.write(whole[:-20])
        await begun(served)
        served.server.should_exit = True
        await asyncio.sleep(0.5)
        writer.write(whole[-20:])
        answer = await asyncio.wait_for(read_answer(reader), 60)
        writer.close()
        return answer

    with serving(worker) as served:
        answer = asyncio.run(run(served))

    assert (answer.status, answer.headers["connection"]) == (200, "close")


def test_a_long_request_under_way_when_the_server_ends_closes_its_connection(worker: Worker) -> None:
    async def run(served: Served) -> tuple[Answer, Answer]:
        lines = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(2)]
        many = json.dumps({"records": [dict.fromkeys(example())] * 257}, separators=(",", ":")).encode()
        assert len(many) < SHORT_BYTES  # begun the short way, and too many rows for it
        whole = [request(many), request(b"{")]
        for (_, writer), one in zip(lines, whole, strict=True):
            writer.write(one[:-1])
        await begun(served)
        served.server.should_exit = True
        await asyncio.sleep(0.5)
        for (_, writer), one in zip(lines, whole, strict=True):
            writer.write(one[-1:])
        found = [await asyncio.wait_for(read_answer(reader), 60) for reader, _ in lines]
        for _, writer in lines:
            writer.close()
        return found[0], found[1]

    with serving(worker) as served:
        long, refused = asyncio.run(run(served))

    assert (long.status, long.headers["connection"]) == (200, "close")
    assert (refused.status, refused.headers["connection"]) == (400, "close")


def test_while_stopping_connections_are_closed_with_their_answer(worker: Worker) -> None:
    worker.stopping = True

    with serving(worker) as served:
        answer = talk(served.port, [request(records(1))], 1)[0]

    assert (answer.status, answer.headers["connection"]) == (200, "close")


def test_a_client_that_leaves_before_its_answer_harms_nobody(worker: Worker) -> None:
    async def run(port: int) -> Answer:
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request(records(1)))
            writer.transport.abort()
        return (await asyncio.to_thread(talk, port, [request(records(1))], 1))[0]

    with serving(worker) as served:
        assert asyncio.run(run(served.port)).status == 200


def test_large_bodies_and_those_of_a_model_without_twin_go_the_long_way(worker: Worker, artefact: Path) -> None:
    from dataclasses import replace

    stop_following(worker)
    body = records(200)
    assert len(json.dumps(body)) < SHORT_BYTES < len(json.dumps(records(400)))

    with serving(worker) as served:
        large = talk(served.port, [request(records(400))], 1)[0]
        current = worker.model.current
        assert current is not None
        worker.model.current = replace(current, engine="scikit-learn")
        slow = talk(served.port, [request(body)], 1)[0]
        worker.model.current = None
        none = talk(served.port, [request(body)], 1)[0]

    assert (large.status, len(large.json["predictions"])) == (200, 400)
    assert (slow.status, len(slow.json["predictions"])) == (200, 200)
    assert (none.status, none.headers["retry-after"]) == (503, "1")


def test_one_request_without_a_finite_answer_does_not_spoil_the_others_of_its_turn(worker: Worker) -> None:
    from dataclasses import replace

    import numpy as np

    current = worker.model.current
    assert current is not None

    def run(batch: Any) -> Any:
        answers = current.run(batch)
        answers[[record.f0 == 99 for record in batch.records]] = np.nan
        return answers

    assert current.row_by_row and current.schema.names[0] == "age"
    worker.model.current = replace(current, run=run)
    ages = [30, 99, 31, 99, 32]

    async def everybody(port: int) -> list[Answer]:
        lines = [await asyncio.open_connection("127.0.0.1", port) for _ in ages]
        for (_, writer), age in zip(lines, ages, strict=True):
            writer.write(request(records(1, age)))
        found = [await read_answer(reader) for reader, _ in lines]
        for _, writer in lines:
            writer.close()
        return found

    with serving(worker) as served:
        answers = asyncio.run(everybody(served.port))

    assert [answer.status for answer in answers] == [200, 422, 200, 422, 200]
    assert "no finite answer" in answers[1].json["error"]
    assert worker.log is not None and worker.log.appended_rows == 3
