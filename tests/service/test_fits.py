"""What the door accepts, every room can take; what was recorded past the door is left out and counted."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from monitoring.drift import DriftPolicy, detect
from monitoring.export import export
from monitoring.feature import Task
from monitoring.metrics import Metrics, total
from monitoring.report import write_html
from monitoring.schema import FeatureSchema
from monitoring.store import ensure_days, labels, predictions
from monitoring.window import read_window
from service.control.scheduler import Scheduler
from tests.bodies import Place, drain, fill, source, through
from tests.places import checked
from training import cycle, job
from training.artefact import SCHEMA
from training.data import snapshot
from training.spec import JobSpec

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # importing bentoml warns

BODIES = 100
"""Accepted ones of each task and store: 600 in all. `make soak` sends 20,000 and more."""

LONG = "x" * 400_000
MB = 2**20


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_whatever_the_door_accepts_every_room_takes(task: Task, store_url: str, tmp_path: Path) -> None:
    found = through(tmp_path / "home", store_url, task, BODIES)

    assert found["accepted"] >= BODIES and found["unfit"] == 0


# -- past the door -------------------------------------------------------------------------------------------------

GOOD = {"a": 1.0, "n": 2, "member": True, "city": "Ulm", "joined": "2021-01-01"}
UNREADABLE = {
    "a category of 400,000 characters": {**GOOD, "city": LONG},
    "a number outside float32": {**GOOD, "a": 1e39},
    "an integer of 400 digits": {**GOOD, "n": 10**400},
    "a year 10000": {**GOOD, "joined": "10000-01-01"},
    "a list for a number": {**GOOD, "a": [1]},
    "a feature less": {"a": 1.0},
}
DIGITS = "1" * 5000
TEXTS = {"no object": "3", "no JSON": "{", "5,000 digits": f'{{"a":{DIGITS}}}', "nested": "[" * 9000 + "]" * 9000}
ODD_LABELS = ["9223372036854775808", DIGITS, "1e300", '"text"', "[1]", "null", "true", json.dumps("x" * 5000)]


@pytest.fixture
def place(store_url: str, tmp_path: Path) -> Iterator[Place]:
    place = Place.make(tmp_path / "home", store_url, "binary")
    yield place
    place.close()


def put(place: Place, features: list[str], labelled: list[str], **changes: str) -> None:
    """Rows of an older release, straight into the store; label i belongs to row i."""
    key = {"day": int(time.time() // 86_400), "segment": 1}
    answer = {"at": time.time(), "version": 1, "prediction": "0", "probabilities": "[0.5,0.5]", **changes}
    rows = [
        {**key, "position": i << 16, "id": f"past-{i}", "features": text, **answer} for i, text in enumerate(features)
    ]
    known = [
        {**key, "position": i << 16, "id": f"past-{i}", "label": text, "observed_at": 1.0, "received_at": time.time()}
        for i, text in enumerate(labelled)
    ]
    if place.engine.dialect.name == "postgresql":
        ensure_days(place.engine, {key["day"]})
    with place.engine.begin() as connection:
        connection.execute(predictions.insert(), rows)
        connection.execute(labels.insert(), known)


def test_rows_that_do_not_fit_are_left_out_and_counted_in_every_room(place: Place, tmp_path: Path) -> None:
    fill(place, 1, 0)
    drain(place)
    live = [*map(json.dumps, UNREADABLE.values()), *TEXTS.values()]
    put(place, live + [json.dumps(GOOD)] * len(ODD_LABELS), ["0"] * len(live) + ODD_LABELS)
    metrics = Metrics(tmp_path / "metrics", "controller-1")
    scheduler = Scheduler(place.worker.settings, place.engine, metrics, "test")
    # An hour later the labels are mature, however late they came on a slow machine, and if its clock stepped back.
    place.loop = replace(place.loop, on_event=scheduler._on_event, clock=lambda: time.time() + 3600)

    run = cycle.run_cycle(place.loop)

    assert run.state == "done"
    schema = FeatureSchema.from_json((place.loop.registry.path(1) / SCHEMA).read_bytes())
    window = read_window(place.engine, schema)
    assert window.attrs["skipped"] == len(live)
    # 2**63, 5,000 digits, a float beyond int64, texts, a list, null, a truth value: none is a whole number of int64.
    assert window.attrs["unfit_labels"] == len(ODD_LABELS)
    # Quality reads answers and labels, no features.
    for where, expected in (("drift", len(live) + len(ODD_LABELS)), ("quality", len(ODD_LABELS))):
        assert total(metrics.directory, "evergreen_rows_unfit_total", {"where": where}) == expected, where
    done = export(place.engine, schema, str(tmp_path / "out"), chunk_rows=3)
    assert (done.rows, done.skipped) == (len(window), len(live))
    for value in ("3", LONG, "1" * 5000, 10**400):
        place.loop.runs.queue("erase", trigger="manual", who="a", why="b", now=time.time(), payload=_by(value))
        ended = cycle.work_off(place.loop)
        assert ended is not None and ended.state == "done", ended
    metrics.close()


def _by(value: Any) -> dict[str, Any]:
    return {"feature": "city", "value": value} if isinstance(value, str) else {"feature": "a", "value": str(value)}


# -- memory --------------------------------------------------------------------------------------------------------


def peak(work: Callable[[], Any]) -> int:
    """Bytes that `work` held at its worst."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_one_category_of_400_kb_costs_a_check_a_training_and_a_page_a_few_copies(tmp_path: Path) -> None:
    data = source("binary")
    frame = data.frame.copy()
    frame.loc[[5, 200], "city"] = [LONG, LONG + "y"]
    features = list(data.schema.names)
    spec = JobSpec(
        kind="train", out=str(tmp_path / "out"), snapshot=str(snapshot(frame, tmp_path).path),
        schema=json.loads(data.schema.to_json()), training={"min_rows": 50}, gates={"min_holdout_rows": 30},
    )  # fmt: skip
    policy = DriftPolicy(min_rows=50)
    works: dict[str, Callable[[], Any]] = {
        "drift": lambda: detect(frame[features], data.frame[features], data.schema, policy),
        "page": lambda: write_html(frame[features], data.frame[features], data.schema, tmp_path / "page.html"),
        "training": lambda: job.run(spec),
    }
    for work in works.values():
        work()  # imports
    assert {name: used // MB for name, used in ((n, peak(w)) for n, w in works.items()) if used > 40 * MB} == {}
    result = job.run(spec)
    assert result.ok, result.error


def test_a_category_of_400_kb_in_the_store_costs_a_check_a_few_copies(place: Place) -> None:
    put(place, [json.dumps({**GOOD, "a": at / 100}) for at in range(300)], ["0"] * 300)
    with_none = peak(lambda: checked(place.loop))
    with place.engine.begin() as connection:
        connection.execute(
            predictions.update().where(predictions.c.id == "past-7").values(features=json.dumps({**GOOD, "city": LONG}))
        )

    assert peak(lambda: checked(place.loop)) < with_none + 10 * MB
