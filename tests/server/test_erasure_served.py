"""An erasure on a real server: nothing is left on its disk, and predictions are answered all the while."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pandas as pd
import pytest
from evergreen_client import Client

from tests.artefacts import example_record
from tests.places import files_with
from tests.real_server import ROOT, SMALL, Server, wait_until

SECRET = 54321.75  # exact in float32: the same digits in JSON and in a frame
IDS = [f"anna-{row}" for row in range(20)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, trained: Callable[[Path], Path]) -> Iterator[Server]:
    home = trained(tmp_path_factory.mktemp("erasure"))
    server = Server(home, **SMALL, SERVE__WORKERS="2", EXPORT__TO="exports")
    try:
        yield server.start().wait_ready()
    finally:
        server.end()


def command(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service.command.cli", *arguments],
        cwd=ROOT,
        env=server.env,
        capture_output=True,
        text=True,
    )


def test_predictions_are_served_while_a_subject_is_erased_and_nothing_of_it_is_left(server: Server) -> None:
    number = next(name for name, value in example_record().items() if isinstance(value, float))
    with server.client() as client:
        for id_ in IDS:
            client.predict([example_record(**{number: SECRET})], [id_])
        client.predict([example_record()] * 500)
        client.feedback([{"id": id_, "label": 1} for id_ in IDS])
        wait_until("the drain", lambda: httpx.get(f"{server.url}/livez") and _labels(client, IDS[-1]) == "matched")
        exported = json.loads(command(server, "export", "--json").stdout)
        assert (exported["rows"], exported["labelled"]) == (520, 20)
        assert {path.split("/")[0] for path in files_with(server.home / "exports", str(SECRET))} != set()
        assert files_with(server.home / "var" / "spool", str(SECRET))

        stop, statuses = threading.Event(), list[int]()

        def ask() -> None:
            while not stop.is_set():
                answer = httpx.post(f"{server.url}/predict", json={"records": [example_record()]})
                statuses.append(answer.status_code)

        asker = threading.Thread(target=ask)
        asker.start()
        done = command(server, "erase", "--feature", number, "--value", str(SECRET), "--why", "asked to", "--wait")
        stop.set()
        asker.join()

    assert done.returncode == 0, done.stdout + done.stderr
    assert "done, erased" in done.stdout
    assert set(statuses) == {200} and len(statuses) > 10
    # A page that was being drawn meanwhile is thrown away, with the rows it was drawn from.
    drawn = server.home / "var" / "reports" / "work"
    wait_until("the end of such a page", lambda: not any(drawn.glob("*")))
    assert files_with(server.home, str(SECRET), *IDS) == []
    frame = pd.read_parquet(server.home / "exports")
    assert len(frame) == 500
    deleted = 'evergreen_deleted_rows_total{table="predictions",why="erase"} 20.0'
    assert deleted in httpx.get(f"{server.url}/metrics").text


def test_an_erasure_that_names_nobody_is_refused(server: Server) -> None:
    for body in ({}, {"ids": []}, {"feature": "amount"}, {"ids": ["a"], "feature": "amount", "value": 1}):
        answer = httpx.post(
            f"{server.url}/manage/erasures",
            json=body,
            headers={"authorization": f"Bearer {(server.home / 'var' / 'token').read_text().strip()}"},
        )
        assert answer.status_code == 400 and '"ids"' in answer.json()["error"], body
    assert command(server, "erase").returncode == 2


def _labels(client: Client, id_: str) -> str:
    found = client.prediction(id_)
    return "matched" if found["predictions"] and found["labels"] else "waiting"
