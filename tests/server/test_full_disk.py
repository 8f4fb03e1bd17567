"""A disk that is really full, under a real server: predictions are answered, every missing row is counted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from monitoring.store import predictions
from tests.artefacts import example_record
from tests.real_server import SMALL, Server, wait_until
from tests.webhook import Got, receiving


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 300 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def alerts() -> Iterator[tuple[str, list[Got]]]:
    """(URL of a webhook, what it was sent)."""
    with receiving() as (url, got):
        yield f"{url}/hook", got


def fill(disk: Path) -> Path:
    """A file that leaves no byte free."""
    path = disk / "everything-else"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    assert os.statvfs(disk).f_bavail == 0
    return path


def counted(server: Server, outcome: str) -> int:
    page = httpx.get(f"{server.url}/metrics").text.splitlines()
    (line,) = [line for line in page if line.startswith(f'evergreen_log_records_total{{outcome="{outcome}"}}')]
    return int(float(line.split()[-1]))


def test_on_a_full_disk_predictions_are_answered_and_each_missing_row_is_counted_and_told(
    small_disk: Path, alerts: tuple[str, list[Got]], trained: Callable[[Path], Path]
) -> None:
    url, sent = alerts
    body = {"records": [example_record()] * 50}
    server = Server(trained(small_disk), **SMALL, SERVE__WORKERS="2", ALERTS__WEBHOOK_URL=url)
    answered = 0

    def predict(requests: int) -> None:
        nonlocal answered
        for _ in range(requests):
            assert httpx.post(f"{server.url}/predict", json=body, timeout=60).status_code == 200
            answered += 50

    try:
        server.start().wait_ready()
        workers = {process.pid for process in server.children("PredictionService")}
        assert len(workers) == 2
        predict(10)
        filler = fill(small_disk)
        predict(40)
        for number in range(200):  # series that were not counted before need room, too
            httpx.get(f"{server.url}/{'v2/models/' * (number % 2)}{number}")
        label = {"labels": [{"id": "x", "label": 1}]}

        def labelled() -> httpx.Response | None:  # the drain may have made room for one
            answer = httpx.post(f"{server.url}/feedback", json=label, timeout=60)
            return answer if answer.status_code != 202 else None

        refused = wait_until("a label without room", labelled)
        wait_until("the alert", lambda: [one for one in sent if one.event["event"] == "record_dropped"])
        filler.unlink()
        before = counted(server, "appended")
        wait_until("recording again", lambda: predict(1) or counted(server, "appended") > before)
        engine = sa.create_engine(server.settings.store_url)

        def stored() -> int:
            with engine.connect() as connection:
                return connection.scalar(sa.select(sa.func.count()).select_from(predictions)) or 0

        wait_until("the drain", lambda: stored() == counted(server, "appended"))
        rows = stored()
        engine.dispose()
        dropped = counted(server, "dropped")
        same_workers = workers == {process.pid for process in server.children("PredictionService")}
    finally:
        server.end()

    assert refused.status_code == 503 and "send them again" in refused.json()["error"]
    assert dropped > 0
    assert answered - rows == dropped
    assert same_workers, "a worker died"
