"""The jobs under the lease: what breaks off is cleared up, and a database that is busy costs nobody the lease."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from monitoring.metrics import Metrics
from monitoring.store import aliases, open_store
from service.control.scheduler import Scheduler
from service.settings import Settings, load
from tests.real_server import wait_until
from training.lease import CONTROLLER, LeaseLost
from training.loop import Loop

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(environ={"EVERGREEN_HOME": str(tmp_path), "EVERGREEN_SCHEDULE__LEASE_S": "1"})


@pytest.fixture
def scheduler(settings: Settings) -> Iterator[Scheduler]:
    """One whose database gives up waiting after a tenth of a second, and which trains no first model."""
    open_store(settings.store_url).dispose()
    engine = sa.create_engine(settings.store_url, connect_args={"timeout": 0.1})
    metrics = Metrics(settings.var / "metrics", "controller-1")
    scheduler = Scheduler(settings, engine, metrics, "me")
    scheduler._bootstrap_after = float("inf")
    yield scheduler
    scheduler.close()
    metrics.close()
    engine.dispose()


def test_a_run_whose_lease_ran_out_is_failed_by_the_next_turn_of_the_same_holder(scheduler: Scheduler) -> None:
    assert scheduler.lease.acquire()
    scheduler._begin()
    assert scheduler._jobs is not None
    scheduler._jobs.pause()
    loop = scheduler._loop
    assert loop is not None
    run = loop.runs.start("retrain", trigger="manual", who="me", why="asked", now=time.time(), token=loop.token)

    def lost(loop: Loop) -> None:
        raise LeaseLost(CONTROLLER, loop.token, None)

    assert scheduler.lease.renew()
    scheduler._guarded("check", lost)

    def cleared_up() -> bool:
        scheduler._guarded("commands", scheduler._commands)  # does nothing while another step is under way
        return loop.runs.running() is None

    wait_until("the clearing up", cleared_up, 20)
    ended = loop.runs.get(run)
    assert (ended.state, ended.outcome) == ("failed", "crashed")
    assert ended.record.error.startswith("LeaseLost: the lease 'controller' is not held")
    assert loop.runs.running() is None


def test_while_the_database_is_busy_the_work_goes_on_and_is_not_cleared_up(
    scheduler: Scheduler, settings: Settings
) -> None:
    stopping, told = threading.Event(), list[bool]()
    thread = threading.Thread(target=scheduler.run, args=(stopping, told.append))
    thread.start()
    wait_until("the lease", lambda: told == [True], 20)
    loop = scheduler._loop
    other = sqlite3.connect(settings.var / "evergreen.db", isolation_level=None)

    other.execute("begin immediate")  # as a VACUUM would: nobody else writes
    wait_until("a renewal that failed", lambda: scheduler.lease.state == "unsure", 20)
    time.sleep(1.0)
    during = (list(told), scheduler._loop is loop)
    other.execute("rollback")
    other.close()
    wait_until("a renewal", lambda: scheduler.lease.state == "held", 20)
    after = (list(told), scheduler._loop is loop)
    stopping.set()
    thread.join()

    assert during == after == ([True], True)


def begun(scheduler: Scheduler) -> Loop:
    assert scheduler.lease.acquire()
    scheduler._begin()
    assert scheduler._jobs is not None and scheduler._loop is not None
    scheduler._jobs.pause()
    return scheduler._loop


def test_a_run_that_the_store_broke_off_says_by_which_error(scheduler: Scheduler, settings: Settings) -> None:
    loop = begun(scheduler)
    run = loop.runs.queue("promote", trigger="manual", who="me", why="", now=time.time(), payload={"version": 7})
    with sqlite3.connect(settings.var / "evergreen.db") as other:
        # As a full disk, a lost table or a lock do: the run cannot be finished when its step has ended.
        other.execute(
            "create trigger full before update on runs when new.finished_at is not null "
            "begin select raise(abort, 'the disk is full'); end"
        )
    other.close()

    scheduler._guarded("moves", scheduler._moves)
    assert loop.runs.get(run).state == "running"
    with sqlite3.connect(settings.var / "evergreen.db") as other:
        other.execute("drop trigger full")
    other.close()

    def cleared_up() -> bool:
        scheduler.lease.renew()
        scheduler._guarded("commands", scheduler._commands)
        return loop.runs.running() is None

    wait_until("the clearing up", cleared_up, 20)
    ended = loop.runs.get(run)
    assert (ended.state, ended.outcome) == ("failed", "crashed")
    assert "the disk is full" in ended.record.error
    assert "the run had ended as refused: the model 'evergreen' has no version 7" in ended.record.error


def test_a_check_that_fails_is_a_run_and_an_alert_once_a_spell(scheduler: Scheduler, settings: Settings) -> None:
    loop, told = begun(scheduler), list[tuple[str, dict[str, object]]]()
    scheduler.alarm = lambda event, facts: told.append((event, dict(facts)))  # type: ignore[assignment]

    def name_a_champion(version: int) -> None:
        with scheduler.engine.begin() as connection:
            connection.execute(sa.delete(aliases))
            row = {"name": "evergreen", "alias": "champion", "version": version, "changed_at": 0.0}
            connection.execute(aliases.insert().values(row))

    name_a_champion(5)  # its artefact is not on this host
    for _ in range(5):
        scheduler.lease.renew()
        scheduler._guarded("check", scheduler._check)
    name_a_champion(6)  # another reason
    for _ in range(5):
        scheduler.lease.renew()
        scheduler._guarded("check", scheduler._check)
    scheduler._guarded("check", lambda loop: None)  # it goes well again
    scheduler._guarded("check", scheduler._check)

    found = [(run.state, run.outcome, run.record.error) for run in loop.runs.list(kind="check")]
    assert [(state, outcome) for state, outcome, _ in found] == [("failed", "crashed")] * 3
    assert ["version 6" in error for *_, error in found] == [True, True, False]
    assert all(error.startswith("UnknownVersion: the artefact of") for *_, error in found)
    assert [event for event, _ in told] == ["run"] * 3
    assert all("UnknownVersion" in str(facts["error"]) and facts["kind"] == "check" for _, facts in told)
    assert loop.runs.prune(before=time.time() + 1, keep=1) == 2


def test_while_the_store_is_down_a_failed_check_is_an_alert_all_the_same(
    scheduler: Scheduler, settings: Settings
) -> None:
    begun(scheduler)
    told = list[dict[str, object]]()
    scheduler.alarm = lambda event, facts: told.append(dict(facts))  # type: ignore[assignment]
    with sqlite3.connect(settings.var / "evergreen.db") as other:
        for table in ("aliases", "runs"):
            other.execute(f"drop table {table}")
    other.close()

    for _ in range(3):
        scheduler.lease.renew()
        scheduler._guarded("check", scheduler._check)

    (once,) = (facts for facts in told if facts["kind"] == "check")  # the retention of the start may fail, too
    assert once["run"] is None and "no such table: aliases" in str(once["error"])
