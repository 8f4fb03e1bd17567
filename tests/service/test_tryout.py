"""`/predict` with `record` false and with `warnings`: the same answers, on the short way and on the long one."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from evergreen_client import Client

from monitoring.store import open_store
from service.serving.worker import Worker
from tests.artefacts import example_record
from tests.places import drain
from tests.wired import artefact, serving, working

__all__ = ["artefact"]  # a fixture

ODD = {"income": 10_000_000, "purpose": "yacht"}


class Tried(NamedTuple):
    worker: Worker
    url: str


@pytest.fixture(params=["short", "long"])
def tried(request: pytest.FixtureRequest, tmp_path: Path, artefact: Path) -> Iterator[Tried]:
    with working(tmp_path, artefact) as worker:
        open_store(worker.settings.store_url).dispose()
        with serving(worker, short=request.param == "short") as server:
            yield Tried(worker, f"http://127.0.0.1:{server.port}")


def counted(url: str, series: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(series))


def stored(tried: Tried) -> dict[str, str]:
    """The features of each prediction in the store, once all that was recorded is there."""
    assert tried.worker.log is not None
    tried.worker.log.close()
    engine = open_store(tried.worker.settings.store_url)
    drain(tried.worker.settings.spool_dir, engine, time.time())
    engine.dispose()
    with sqlite3.connect(tried.worker.settings.home / "var" / "evergreen.db") as connection:
        found = dict(connection.execute("select id, features from predictions").fetchall())
    connection.close()
    return found


@pytest.mark.parametrize("rows", [1, 400, 3_000])
def test_a_try_out_is_answered_by_the_same_model_counted_and_not_stored(tried: Tried, rows: int) -> None:
    records = [example_record()] * rows
    with Client(tried.url) as client:
        usual = client.predict(records)
        recent = tried.worker.model.recent_body
        tryout = client.predict(records, [f"try-{row}" for row in range(rows)], record=False)
        accepted = client.feedback([{"id": "try-0", "label": 1}])

    assert (tryout.version, tryout.probabilities, tryout.predictions) == (1, usual.probabilities, usual.predictions)
    assert tryout.ids[0] == "try-0" and accepted == 1  # a label of an id that nobody knows
    assert tried.worker.model.recent_body == recent  # nothing is kept of it, not even to warm up with
    assert counted(tried.url, "evergreen_tryout_rows_total") == rows
    assert counted(tried.url, "evergreen_predictions_total{") == rows
    assert counted(tried.url, 'evergreen_requests_total{route="/predict",status="200"}') == 2
    assert set(stored(tried)) == set(usual.ids)


def test_warnings_are_in_the_answer_when_they_are_asked_for_and_the_record_is_as_ever(tried: Tried) -> None:
    records = [example_record(), example_record(**ODD)]
    with Client(tried.url) as client:
        usual = client.predict(records)
        warned = client.predict(records, warnings=True)
        nothing = client.predict([example_record()], record=False, warnings=True)

    assert (usual.warnings, nothing.warnings) == (None, [])
    assert warned.probabilities == usual.probabilities and warned.warnings is not None
    assert [(one.column, one.kind, one.rows, one.count) for one in warned.warnings] == [
        ("income", "range", [1], 1),
        ("purpose", "category", [1], 1),
    ]
    assert warned.warnings[0].message.startswith("1e+07 is outside what training saw, ")
    found = stored(tried)
    assert set(found) == {*usual.ids, *warned.ids}
    assert [found[each] for each in warned.ids] == [found[each] for each in usual.ids]


def test_what_is_not_asked_for_may_be_said(tried: Tried) -> None:
    body: dict[str, Any] = {"warnings": False, "records": [example_record()], "record": True, "ids": None}

    answer = httpx.post(f"{tried.url}/predict", json=body)

    assert answer.status_code == 200 and "warnings" not in answer.json()
    assert set(stored(tried)) == set(answer.json()["ids"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"record": "no"}, 'record: expected true or false, got "no"'),
        ({"warnings": None}, "warnings: expected true or false, got null"),
        (
            {"recrod": False},
            "recrod: unknown key; the keys are records, ids, record and warnings; did you mean record?",
        ),
        (
            {"record": False, "records": [{**example_record(), "income": "much"}]},
            "records[0].income: expected a number",
        ),
        ({"warnings": True, "ids": ["a", "b"]}, "ids: 2 ids for 1 records; send one for each record"),
        ({"record": False, "records": []}, "records: empty"),
        ({"records": [{**example_record(), "record": 1}]}, "records[0].record: unknown feature"),
        ({"records": [{**example_record(), "income": "warnings"}]}, "records[0].income: expected a number"),
        ({"record": False, "records": [{**example_record(), "record": 1}]}, "records[0].record: unknown feature"),
    ],
)
def test_what_is_asked_for_wrongly_is_refused_with_its_place(tried: Tried, change: dict[str, Any], said: str) -> None:
    answer = httpx.post(f"{tried.url}/predict", json={"records": [example_record()], **change})

    assert answer.status_code == 400 and answer.json()["error"].startswith(said)
    assert stored(tried) == {}


def test_a_try_out_may_be_answered_as_csv(tried: Tried) -> None:
    body = {"records": [example_record()] * 2, "ids": ["a", "b"], "record": False}

    answer = httpx.post(f"{tried.url}/predict", json=body, headers={"accept": "text/csv"})

    assert answer.headers["content-type"] == "text/csv" and [line[:2] for line in answer.text.splitlines()[1:]] == [
        "a,",
        "b,",
    ]
    assert stored(tried) == {}
