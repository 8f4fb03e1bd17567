"""A real server and batches in Arrow: what it answered is stored once, also when its worker is killed meanwhile."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pyarrow as pa
import pytest
import sqlalchemy as sa

from monitoring.store import connect, dead_letters, predictions
from service import sample
from tests.real_server import SMALL, Server, wait_until

ARROW = "application/vnd.apache.arrow.stream"
ROWS = 500


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, trained: Callable[[Path], Path]) -> Iterator[Server]:
    server = Server(
        trained(tmp_path_factory.mktemp("batches")), SERVE__WORKERS="1", SCHEDULE__CHECK_INTERVAL_S="600", **SMALL
    )
    try:
        yield server.start().wait_ready()
    finally:
        server.end()


@pytest.fixture(scope="module")
def table() -> pa.Table:
    frame = sample.training_frame(ROWS, 5).drop(columns=[sample.TARGET, sample.TIME])
    return pa.Table.from_pandas(frame, preserve_index=False)


def stream(table: pa.Table, ids: list[str]) -> bytes:
    sink = io.BytesIO()
    table = table.append_column("id", pa.array(ids))
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def stored(server: Server) -> Counter[str]:
    engine = connect(server.settings.store_url)
    with engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(dead_letters)) == 0
        found = Counter(connection.scalars(sa.select(predictions.c.id)))
    engine.dispose()
    return found


def test_a_table_is_answered_alike_in_every_kind_and_a_wrong_one_says_where(server: Server, table: pa.Table) -> None:
    ids = [f"kind-{row}" for row in range(ROWS)]
    body = stream(table, ids)
    url, packed = f"{server.url}/predict", {"content-type": ARROW, "content-encoding": "gzip"}

    answer = httpx.post(url, content=gzip.compress(body), headers=packed, timeout=60)
    in_json = httpx.post(url, content=body, headers={"content-type": ARROW, "accept": "application/json"}, timeout=60)
    in_csv = httpx.post(url, content=body, headers={"content-type": ARROW, "accept": "text/csv"}, timeout=60)

    assert (answer.status_code, answer.headers["content-type"]) == (200, ARROW)
    with pa.ipc.open_stream(answer.content) as reader:
        found = reader.read_all()
    assert found["id"].to_pylist() == ids == in_json.json()["ids"]
    assert found["prediction"].to_pylist() == in_json.json()["predictions"]
    chances = [list(row) for row in zip(*(found[name].to_pylist() for name in found.schema.names[2:]), strict=True)]
    assert chances == in_json.json()["probabilities"]
    rows = list(csv.reader(io.StringIO(in_csv.text)))
    assert [list(map(float, row[2:])) for row in rows[1:]] == chances

    wrong = table.set_column(0, table.schema.names[0], pa.array([1.0] * 41 + [1e39] * (ROWS - 41)))
    refused = httpx.post(url, content=stream(wrong, ids), headers={"content-type": ARROW}, timeout=60)
    assert refused.status_code == 422 and refused.json()["error"].startswith(f"records[41].{table.schema.names[0]}: ")
    wait_until("all rows are stored", lambda: stored(server).total() == 3 * ROWS)


def test_every_batch_that_was_answered_is_stored_once_though_its_worker_is_killed(
    server: Server, table: pa.Table
) -> None:
    answered: list[str] = []
    before, headers = stored(server).total(), {"content-type": ARROW}
    for turn in range(3):
        (worker,) = server.children("PredictionService")
        killing = threading.Timer(0.3, worker.kill)  # once a first batch is answered
        number = 0
        with contextlib.suppress(httpx.TransportError), httpx.Client(base_url=server.url, timeout=60) as client:
            while number == 0 or killing.is_alive():
                ids = [f"{turn}-{number}-{row}" for row in range(ROWS)]
                answer = client.post("/predict", content=stream(table, ids), headers=headers)
                assert answer.status_code == 200, answer.text
                answered += ids
                number += 1
                if number == 1:
                    killing.start()
        assert number, "not one batch was answered"
        killing.join()
        wait_until("the worker is gone", lambda worker=worker: not worker.is_running())
        server.wait_ready()

    assert len(answered) >= 3 * ROWS
    wait_until("what was answered is stored", lambda: set(answered) <= set(stored(server)))
    found = stored(server)
    assert found.total() >= before + len(answered)
    assert all(times == 1 for id_, times in found.items() if not id_.startswith("kind-"))
