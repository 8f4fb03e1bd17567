"""A paused loop checks, trains and promotes nothing by itself; predictions and what people do by hand go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from monitoring.metrics import Metrics
from monitoring.store import open_store
from service.configuration import load
from service.control.scheduler import Scheduler
from service.settings import Settings
from tests.paged import Paged, grown, paged
from tests.places import Place
from tests.real_server import wait_until
from tests.service.test_scheduler import working
from training.cycle import work_off
from training.lease import CONTROLLER, Lease
from training.runs import Run, Runs

__all__ = ["grown"]  # a fixture

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


@pytest.fixture
def here(grown: Path, tmp_path: Path) -> Iterator[Paged]:
    with paged(grown, tmp_path / "home") as found:
        yield found


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Checks ten times a second, and no data that a first version could be trained from."""
    changed = {"SCHEDULE__LEASE_S": "5", "SCHEDULE__CHECK_INTERVAL_S": "0.1", "DATA__SOURCE": "absent.csv"}
    changed |= {"DATA__TARGET": "y"}
    return load(
        environ={"EVERGREEN_HOME": str(tmp_path), **{f"EVERGREEN_{name}": value for name, value in changed.items()}}
    )


def queued(engine: sa.Engine, kind: str, why: str = "") -> int:
    return Runs(engine).queue(kind, trigger="manual", who="ana", why=why, now=time.time())


def test_a_paused_loop_neither_trains_nor_bootstraps_until_it_is_resumed_also_after_a_restart(
    settings: Settings,
) -> None:
    engine = open_store(settings.store_url)
    pause = queued(engine, "pause", "an audit")
    metrics = Metrics(settings.var / "metrics", "controller-1")
    known = Runs(engine)
    try:
        scheduler = Scheduler(settings, engine, metrics, "first")
        with working(scheduler):
            wait_until("the pause", lambda: known.get(pause).state == "done")
            assert metrics.loop_paused._value.get() == 1
        scheduler.close()
        asked, before = queued(engine, "retrain"), known.list(kind="bootstrap")
        scheduler = Scheduler(settings, engine, metrics, "second")
        with working(scheduler):
            time.sleep(2)
            assert known.get(asked).state == "queued"
            assert known.list(kind="bootstrap") == before  # a start without a champion trains one at once
            jobs = {job.name: job for job in scheduler.jobs()}
            assert jobs["check"].next is None and jobs["commands"].next is not None
        scheduler.close()
        scheduler = Scheduler(settings, engine, metrics, "third")
        with working(scheduler):
            resume = queued(engine, "resume")
            wait_until("the resumption", lambda: known.get(resume).state == "done")
            wait_until("the training's turn", lambda: known.get(asked).state != "queued")
            assert metrics.loop_paused._value.get() == 0
            assert {job.name: job for job in scheduler.jobs()}["check"].next is not None
        scheduler.close()
    finally:
        metrics.close()
        engine.dispose()


def test_pausing_is_asked_for_with_a_reason_stands_in_status_and_refuses_trainings(here: Paged) -> None:
    asked = here.ask("POST", "/manage/pause", json={"why": "an audit"})
    assert asked.status_code == 202
    assert here.get("/page/state")["paused"] is None  # nobody has done it yet
    done = _worked_off(here.place)

    assert (done.kind, done.outcome, done.who, done.why) == ("pause", "paused", "admin", "an audit")
    status = here.get("/manage/status")
    assert status["paused"] == "admin: an audit" and "paused" in status["sentence"]
    time.sleep(1.1)
    state = here.get("/page/state")
    assert (state["paused"]["who"], state["paused"]["why"], state["paused"]["run"]) == ("admin", "an audit", done.id)
    assert state["next"]["at"] is None and "paused" in state["sentence"]
    for path, options in (("retrain", {"json": {}}), ("pause", {"json": {}}), ("models", {"content": b"PK"})):
        refused = here.ask("POST", f"/manage/{path}", **options)
        assert refused.status_code == 409 and "an audit" in refused.json()["error"], path
    assert here.ask("POST", "/manage/rollback", json={}).status_code == 202  # by hand

    assert here.ask("POST", "/manage/resume", json={"why": "it is over"}).status_code == 202
    _worked_off(here.place), _worked_off(here.place)
    assert here.get("/manage/status")["paused"] is None
    again = here.ask("POST", "/manage/resume", json={})
    assert again.status_code == 409 and "not paused" in again.json()["error"]
    kinds = [decision["kind"] for decision in here.get("/page/decisions")["decisions"][:3]]
    assert kinds == ["resume", "rollback", "pause"]


def test_what_says_that_the_loop_is_paused_is_never_pruned(here: Paged) -> None:
    here.place.runs.queue("pause", trigger="manual", who="ana", why="long ago", now=1.0)
    paused = _worked_off(here.place)
    for at in range(5):
        here.place.ask("adaptation", state="on" if at % 2 else "off")

    here.place.runs.prune(before=here.place.now + 1e6, runs_before=here.place.now + 1e6, keep=1)

    found = here.place.runs.paused()
    assert found is not None and found.id == paused.id


def test_a_loop_that_was_never_paused_is_not(store_url: str) -> None:
    engine = open_store(store_url)
    known = Runs(engine)

    assert known.paused() is None
    queued(engine, "pause")
    assert known.paused() is None
    lease = Lease(engine, CONTROLLER, "me", 60)
    assert lease.acquire() and lease.token is not None
    for kind, outcome in (("pause", "paused"), ("resume", "resumed"), ("pause", "paused")):
        known.note(kind, trigger="manual", who="ana", why=outcome, now=1.0, token=lease.token, outcome=outcome)
        found = known.paused()
        assert (found is not None) == (outcome == "paused")
    known.note(
        "pause", trigger="manual", who="me", why="", now=1.0, token=lease.token, outcome="crashed", state="failed"
    )
    assert found is not None and known.paused() == found
    engine.dispose()


def _worked_off(place: Place) -> Run:
    run = work_off(place.loop)
    assert run is not None
    return run
