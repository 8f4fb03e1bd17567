"""The fast layer in a real server: two workers and a controller adapt the champion's output while labels come in."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from monitoring.schema import FeatureSchema
from monitoring.store import connect
from service import sample
from service.command.cli import app
from service.command.traffic import Answered, TrafficSummary, replay_traffic
from service.handover import WorkerReport, read_reports
from service.keys import known_token
from tests.artefacts import example_record
from tests.real_server import SMALL, Server, wait_until
from training.adaptation import Adapter, decode
from training.adaptations import Adaptations
from training.artefact import SCHEMA, read_manifest
from training.twin import Rows, Twin

WORKERS, CLIENTS, BATCH = 2, 4, 30
EAGER = {
    "SERVE__WORKERS": str(WORKERS),
    **SMALL,
    "SCHEDULE__CHECK_INTERVAL_S": "1",
    "SCHEDULE__LEASE_S": "3",
    "RETRAIN__ON_QUALITY": "false",
    "RETRAIN__GROWTH": "0",
}
"""Version 1 stays: what is looked at here is what happens between trainings."""


class Traffic:
    """Rows of a world that changed since the first version was trained, and their labels, until `stop`."""

    def __init__(self, server: Server) -> None:
        self.frame = sample.frame(60_000, start=sample.TRAINING_ROWS, scenario="abrupt")
        self.answers: list[Answered] = []
        self.summary: TrafficSummary | None = None
        self._server, self._enough = server, threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def _send(self) -> None:
        self.summary = replay_traffic(
            self._server.url,
            self.frame,
            target=sample.TARGET,
            rate=150.0,
            batch=BATCH,
            clients=CLIENTS,
            label_delay_s=0.2,
            retry_s=30.0,
            keep_answers=False,
            on_answer=self.answers.append,
            stop=self._enough,
        )

    def stop(self) -> TrafficSummary:
        self._enough.set()
        self._thread.join()
        assert self.summary is not None
        return self.summary


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, trained: Callable[[Path], Path]) -> Iterator[Server]:
    server = Server(trained(tmp_path_factory.mktemp("adapts")), **EAGER)
    try:
        yield server.start().wait_ready()
    finally:
        server.end()


@pytest.fixture(scope="module")
def traffic(server: Server) -> Iterator[Traffic]:
    traffic = Traffic(server)
    yield traffic
    traffic.stop()


def reports(server: Server) -> list[WorkerReport]:
    """What the workers say of themselves."""
    return [r for folder in (server.home / "var" / "run").glob("*/workers") for r in read_reports(folder)]


def in_force(server: Server, at_least: int = 1) -> int | None:
    """The least number that a worker answers with, once all of them have one of at least this number."""
    numbers = [report.adaptation or 0 for report in reports(server)]
    return min(numbers) if len(numbers) == WORKERS and min(numbers) >= at_least else None


def ask(server: Server) -> dict[str, Any]:
    """An answer over a connection of its own, from whichever worker takes it."""
    found: dict[str, Any] = httpx.post(f"{server.url}/predict", json={"records": [example_record()]}).json()
    return found


def events(server: Server) -> list[dict[str, Any]]:
    with server.client() as client:
        found: list[dict[str, Any]] = client.adaptation(100)["adaptations"]
    return found


def right(server: Server, frame: pd.DataFrame, answers: list[Answered]) -> None:
    """Every answer is what the version and the adaptation that it names predict for its rows."""
    settings = server.settings
    stored = Adaptations(connect(settings.store_url))
    for named in {(answer.version, answer.adaptation) for answer in answers}:
        version, number = named
        artefact = settings.models_dir / settings.model.name / str(version)
        schema = FeatureSchema.from_json((artefact / SCHEMA).read_bytes())
        mine = [answer for answer in answers if (answer.version, answer.adaptation) == named]
        rows = [row for answer in mine for row in range(answer.first_row, answer.first_row + len(answer.ids))]
        batch = Rows(schema.canonical(frame.iloc[rows]), schema.numeric_names, schema.categorical_names)
        output, x = Twin(artefact, read_manifest(artefact)).predict_with_matrix(batch)
        if number is not None:
            output = Adapter(decode(stored.served(version, number))).apply(output, x)
        said = [chances for answer in mine for chances in answer.probabilities or []]
        np.testing.assert_allclose(said, output, rtol=0, atol=1e-6, err_msg=f"version {version}, adaptation {number}")


def test_adaptations_come_into_force_and_answers_and_the_record_name_the_one_that_made_them(
    server: Server, traffic: Traffic
) -> None:
    number = wait_until("an adaptation in all workers", lambda: in_force(server))
    wait_until("answers with it", lambda: len([a for a in list(traffic.answers) if a.adaptation]) >= 20)
    wait_until("another one in all workers", lambda: in_force(server, number + 1))

    assert all(ask(server).get("adaptation", 0) > number for _ in range(20))
    answers = list(traffic.answers)
    named = {each: answer.adaptation for answer in answers for each in answer.ids}
    assert None in named.values() and len(set(named.values())) > 1, "raw at first, adapted later"
    right(server, traffic.frame, answers)
    wait_until("the answered rows in the store", lambda: named.keys() <= recorded(server).keys())
    stored = recorded(server)
    assert {each: stored[each] for each in named} == named


def recorded(server: Server) -> dict[str, int | None]:
    """The number of the adaptation by prediction id, as it stands in the record."""
    with sqlite3.connect(f"file:{server.home}/var/evergreen.db?mode=ro", uri=True) as connection:
        found = dict(connection.execute("select id, adaptation from predictions").fetchall())
    connection.close()
    return found


def test_metrics_say_what_the_adaptation_does(server: Server, traffic: Traffic) -> None:
    def measured() -> dict[str, float]:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        split = [line.rsplit(" ", 1) for line in lines if line.startswith("evergreen_adaptation_")]
        return {name: float(value) for name, value in split}

    wait_until("a loss", lambda: measured()['evergreen_adaptation_loss{output="served"}'] > 0)
    number = wait_until("an adaptation in all workers", lambda: in_force(server))
    found = measured()

    assert found['evergreen_adaptation_loss{output="raw"}'] > 0
    assert found["evergreen_adaptation_moved"] > 0
    weights = [value for name, value in found.items() if name.startswith("evergreen_adaptation_weight{")]
    assert len(weights) > 2 and sum(weights) == pytest.approx(1.0)
    assert found['evergreen_adaptation_number{version="1"}'] >= number


def test_after_a_killed_worker_and_a_killed_controller_the_adaptation_is_in_force_again(
    server: Server, traffic: Traffic
) -> None:
    number = wait_until("an adaptation in all workers", lambda: in_force(server))
    controller, worker = (server.children(name)[0].pid for name in ("Controller", "PredictionService"))
    os.kill(controller, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)

    wait_until("the worker's return", lambda: in_force(server, number) and worker not in pids(server))
    assert all(ask(server).get("adaptation", 0) >= number for _ in range(20))
    wait_until("the controller's return", lambda: [p for p in server.children("Controller") if p.pid != controller])
    newest = events(server)[0]["number"]
    wait_until("an adaptation of the new controller", lambda: in_force(server, newest + 1))
    right(server, traffic.frame, list(traffic.answers))


def pids(server: Server) -> set[int]:
    return {report.pid for report in reports(server)}


def test_switched_off_the_raw_output_serves_and_none_is_made_until_on(server: Server, traffic: Traffic) -> None:
    switch(server, "off", "an audit")
    wait_until("the raw output everywhere", lambda: all(report.adaptation is None for report in reports(server)))
    known, checks, at = events(server), last_check(server), len(traffic.answers)

    assert all("adaptation" not in ask(server) for _ in range(20))
    assert [known[0][name] for name in ("kind", "why")] == ["off", "an audit"]
    wait_until("two more checks", lambda: last_check(server) >= checks + 2)
    assert events(server) == known
    wait_until("more answers", lambda: len(traffic.answers) >= at + 20)
    raw = list(traffic.answers)[at + 2 * CLIENTS :]  # requests that were under way have ended
    assert {answer.adaptation for answer in raw} == {None}
    right(server, traffic.frame, raw)

    switch(server, "on")
    number = wait_until("an adaptation in all workers", lambda: in_force(server, known[0]["number"] + 2))
    assert ask(server)["adaptation"] >= number

    summary = traffic.stop()
    assert summary.labels_sent > 0
    assert summary.rows_failed <= CLIENTS * BATCH, "only requests in flight on the killed worker may fail"


def switch(server: Server, state: str, why: str = "") -> None:
    given = ["adaptation", state, "--why", why, "--url", server.url, "--token", known_token(server.settings)]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output


def last_check(server: Server) -> int:
    with server.client() as client:
        return max((int(check["id"]) for check in client.drift(limit=1)), default=0)
