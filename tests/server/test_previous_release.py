"""What the release before left on disk opens here: `tests/data/release_0.1.0.md` says how it was made."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import sample
from service.command.traffic import replay_traffic
from tests.artefacts import example_record
from tests.real_server import ROOT, SMALL, Server, wait_until

RELEASE = ROOT / "tests" / "data" / "release_0.1.0.tar.xz"
RAN_IN = "/tmp/evergreen-0.1.0"
PREDICTIONS, LABELS, UNLABELLED = 975, 960, 15
"""What the old server acknowledged: 900 of each are in its store, the others in its spool."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("old")
    with tarfile.open(RELEASE) as archive:
        archive.extractall(home, filter="data")
    live = home / "var" / "live.json"
    live.write_text(live.read_text().replace(RAN_IN, str(home)))
    return home


@pytest.fixture(scope="module")
def answers(home: Path) -> list[dict[str, Any]]:
    """The requests, and what the old server answered."""
    found: list[dict[str, Any]] = json.loads((home / "answers.json").read_text())
    return found


@pytest.fixture(scope="module")
def server(home: Path, answers: list[dict[str, Any]]) -> Iterator[Server]:
    assert rows(home) == (900, 900)
    server = Server(home, **SMALL | {"DATA__FIRST": "320"}, SERVE__WORKERS="1", SCHEDULE__CHECK_INTERVAL_S="600")
    try:
        yield server.start().wait_ready()
    finally:
        server.end()


def rows(home: Path) -> tuple[int, int]:
    """(predictions, labels) in the store; each row is there at most once by its key."""
    with closing(sqlite3.connect(home / "var" / "evergreen.db")) as store:
        predictions, labels = (
            store.execute(f"select count(*), count(distinct id) from {t}").fetchone() for t in ("predictions", "labels")
        )
    assert predictions[0] == predictions[1], "a prediction is there twice"
    return predictions[0], labels[0]


def command(server: Server, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "service.command.cli", *arguments, "--json"],
        cwd=ROOT,
        env=server.env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_only_the_old_spool_held_is_drained_once(server: Server) -> None:
    wait_until("the drain", lambda: rows(server.home) == (PREDICTIONS, LABELS))


def test_the_same_champion_answers_the_same_predictions(server: Server, answers: list[dict[str, Any]]) -> None:
    wait_until("the drain", lambda: rows(server.home) == (PREDICTIONS, LABELS))  # before rows of today join

    assert len(answers) == 5
    for kept in answers:
        today = httpx.post(f"{server.url}/predict", json={"records": kept["request"]["records"]}).json()
        assert today["version"] == kept["answer"]["version"] == 2
        assert today["classes"] == kept["answer"]["classes"]
        assert today["predictions"] == kept["answer"]["predictions"]
        assert today["probabilities"] == [pytest.approx(row, abs=1e-6) for row in kept["answer"]["probabilities"]]


def test_its_runs_and_models_are_listed(server: Server) -> None:
    runs, models = command(server, "runs"), command(server, "models")

    assert [(run["kind"], run["outcome"], run["version"]) for run in runs if run["id"] <= 2] == [
        ("push", "promoted", 2),
        ("bootstrap", "promoted", 1),
    ]
    assert (models["champion"], models["previous"]) == (2, 1)
    assert [(model["version"], model["origin"]) for model in models["models"]] == [(2, "push"), (1, "bootstrap")]
    assert command(server, "runs", "2")["record"]["verdict"]["passed"]


def test_it_retrains_on_old_and_new_rows_and_goes_back_to_the_first_version(server: Server) -> None:
    frame = sample.frame(500, start=5000)
    sent = replay_traffic(server.url, frame, target=sample.TARGET, rate=0.0, label_delay_s=0.0)
    wait_until("the drain", lambda: rows(server.home)[1] == LABELS + 500)
    with server.client() as client:
        trained = client.wait(client.retrain("after the upgrade"), timeout_s=600)
        client.wait(client.promote(1, "the first once more"), timeout_s=600)
        models = client.models()

    def answering() -> int:
        answer = httpx.post(f"{server.url}/predict", json={"records": [example_record()]})
        return int(answer.json()["version"])

    wait_until("the worker's change", lambda: answering() == 1)  # it follows the store within its poll interval

    assert sent.ok
    assert trained["state"] == "done", trained
    assert trained["record"]["data"]["record_rows"] == PREDICTIONS - UNLABELLED + 500
    assert [gate["name"] for gate in trained["record"]["verdict"]["gates"]][:2] == [
        "holdout_rows",
        "quality",  # against the champion of the old release
    ]
    assert models["champion"] == 1
