"""The jobs under the lease: what breaks off is cleared up, and a database that is busy costs nobody the lease."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa

from monitoring.metrics import Metrics, total
from monitoring.store import aliases, leases, open_store
from service.configuration import load
from service.control.scheduler import Scheduler
from service.settings import Settings
from tests.places import Place, first, place
from tests.real_server import wait_until
from training.lease import Lease
from training.rollout import WorkerState, report_workers
from training.runs import Runs

__all__ = ["first", "place"]

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A short lease, checks without a pause, and no data that a first version could be trained from."""
    changed = {"SCHEDULE__LEASE_S": "1", "SCHEDULE__CHECK_INTERVAL_S": "0.1", "DATA__SOURCE": "absent.csv"}
    changed |= {"DATA__TARGET": "y"}
    return load(
        environ={"EVERGREEN_HOME": str(tmp_path), **{f"EVERGREEN_{name}": value for name, value in changed.items()}}
    )


@pytest.fixture
def scheduler(settings: Settings) -> Iterator[Scheduler]:
    with scheduling(settings, open_store(settings.store_url)) as made:
        yield made


@contextmanager
def scheduling(settings: Settings, engine: sa.Engine) -> Iterator[Scheduler]:
    metrics = Metrics(settings.var / "metrics", "controller-1")
    scheduler = Scheduler(settings, engine, metrics, "me")
    yield scheduler
    scheduler.close()
    metrics.close()
    engine.dispose()


@contextmanager
def working(scheduler: Scheduler) -> Iterator[list[bool]]:
    """The scheduler at work until the end of the block; what it said of being the leader."""
    stopping, told = threading.Event(), list[bool]()
    thread = threading.Thread(target=scheduler.run, args=(stopping, told.append))
    thread.start()
    try:
        wait_until("the lease", lambda: told == [True])
        yield told
    finally:
        stopping.set()
        thread.join()


def told_of_checks(scheduler: Scheduler, told: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """What the scheduler tells people of its checks from now on, behind what was `told` before."""
    heard = [] if told is None else told

    def alarm(event: str, facts: Mapping[str, Any], state: str = "happened") -> None:
        if facts.get("kind") == "check":
            heard.append({"event": event, "state": state, **facts})

    scheduler.alarm = alarm  # type: ignore[assignment]
    return heard


def execute(settings: Settings, statement: str) -> None:
    with closing(sqlite3.connect(settings.var / "evergreen.db", isolation_level=None)) as other:
        other.execute(statement)


def name_a_champion(scheduler: Scheduler, version: int | None) -> None:
    with scheduler.engine.begin() as connection:
        connection.execute(sa.delete(aliases))
        if version is not None:
            row = {"name": "evergreen", "alias": "champion", "version": version, "changed_at": 0.0}
            connection.execute(aliases.insert().values(row))


def checks_failed(scheduler: Scheduler) -> float:
    return total(scheduler.metrics.directory, "evergreen_job_failures_total", {"work": "check"})


def last_success(scheduler: Scheduler) -> float:
    """When a check last ended well; 0 before."""
    return total(scheduler.metrics.directory, "evergreen_last_success_timestamp_seconds", {"work": "check"})


def fails_on(scheduler: Scheduler, times: int) -> None:
    """Wait for so many more checks that fail."""
    before = checks_failed(scheduler)
    wait_until(f"{times} checks that fail", lambda: checks_failed(scheduler) >= before + times)


def ended(scheduler: Scheduler, run: int) -> Any:
    runs = Runs(scheduler.engine)
    # A first version is tried and refused beside it: no data is there.
    wait_until("the end of the run", lambda: runs.get(run).state == "failed" and runs.running() is None)
    return runs.get(run)


def queue_a_promotion(scheduler: Scheduler) -> int:
    """Of a version that does not exist."""
    runs = Runs(scheduler.engine)
    return runs.queue("promote", trigger="manual", who="me", why="", now=time.time(), payload={"version": 7})


def test_a_run_whose_lease_ran_out_is_failed_by_the_next_turn_of_the_same_holder(
    scheduler: Scheduler, settings: Settings
) -> None:
    execute(
        settings,
        "create trigger late after update on runs when new.state = 'running' and new.kind = 'promote' "
        "begin update leases set expires_at = 0; end",
    )
    with working(scheduler) as told:
        token = scheduler.lease.token
        run = ended(scheduler, queue_a_promotion(scheduler))

        assert (told, scheduler.lease.token) == ([True], token)
    assert (run.state, run.outcome) == ("failed", "crashed")
    assert run.record.error.startswith("LeaseLost: the lease 'controller' is not held")


def test_while_the_database_is_busy_the_work_goes_on_and_is_not_cleared_up(settings: Settings) -> None:
    open_store(settings.store_url).dispose()
    impatient = sa.create_engine(settings.store_url, connect_args={"timeout": 0.1})
    with scheduling(settings, impatient) as scheduler, working(scheduler) as told:
        token = scheduler.lease.token
        with closing(sqlite3.connect(settings.var / "evergreen.db", isolation_level=None)) as other:
            other.execute("begin immediate")  # as a VACUUM would: nobody else writes
            wait_until("a renewal that failed", lambda: scheduler.lease.state == "unsure")
            time.sleep(1.0)
            during = (list(told), scheduler.lease.token)
            other.execute("rollback")
        wait_until("a renewal", lambda: scheduler.lease.state == "held")

        assert during == (told, scheduler.lease.token) == ([True], token)


def test_who_lacks_the_champion_leaves_the_lease_to_a_replica_that_answers_with_it(settings: Settings) -> None:
    engine = open_store(settings.store_url)
    scheduler = Scheduler(
        settings, engine, Metrics(settings.var / "metrics", "controller-1"), "me:1", lacks_champion=lambda: True
    )
    name_a_champion(scheduler, 5)
    report_workers(engine, "other", [WorkerState("other", "api-1", serving=5)])
    stopping, told = threading.Event(), list[bool]()
    thread = threading.Thread(target=scheduler.run, args=(stopping, told.append))
    thread.start()
    try:
        time.sleep(2.0)  # six turns
        assert (told, scheduler.lease.token) == ([], None)

        report_workers(engine, "other", [])  # nobody could do better now
        wait_until("the lease", lambda: told == [True])

        report_workers(engine, "other", [WorkerState("other", "api-1", serving=5)])
        wait_until("the lease's end", lambda: told == [True, False])
        assert Lease(engine, holder="other:2", seconds=30).acquire(), "it was given back, not left to run out"
    finally:
        stopping.set()
        thread.join()
        scheduler.close()
        scheduler.metrics.close()
        engine.dispose()


def test_a_run_that_the_store_broke_off_says_by_which_error(scheduler: Scheduler, settings: Settings) -> None:
    # As a full disk, a lost table or a lock do: the run cannot be finished when its step has ended.
    execute(
        settings,
        "create trigger full before update on runs when new.outcome = 'refused' and new.kind = 'promote' "
        "begin select raise(abort, 'the disk is full'); end",
    )
    with working(scheduler):
        run = ended(scheduler, queue_a_promotion(scheduler))

    assert (run.state, run.outcome) == ("failed", "crashed")
    assert "the disk is full" in run.record.error
    assert "the run had ended as refused: the model 'evergreen' has no version 7" in run.record.error


def test_a_check_that_fails_is_a_run_for_each_reason_and_one_trouble_with_an_end(scheduler: Scheduler) -> None:
    told = told_of_checks(scheduler)
    name_a_champion(scheduler, 5)  # its artefact is not on this host
    with working(scheduler):
        fails_on(scheduler, 5)
        name_a_champion(scheduler, 6)  # another reason
        fails_on(scheduler, 5)
        name_a_champion(scheduler, None)  # nothing to check: it goes well again
        wait_until("a check that goes well", lambda: last_success(scheduler) > 0)
        name_a_champion(scheduler, 6)
        fails_on(scheduler, 2)

    runs = Runs(scheduler.engine)
    found = [(run.state, run.outcome, run.record.error) for run in runs.list(kind="check")]
    assert [(state, outcome) for state, outcome, _ in found] == [("failed", "crashed")] * 3
    assert ["version 6" in error for *_, error in found] == [True, True, False]
    assert all(error.startswith("UnknownVersion: the artefact of") for *_, error in found)
    assert [(facts["event"], facts["state"]) for facts in told] == [
        ("job_failed", "began"),
        ("job_failed", "ended"),
        ("job_failed", "began"),
    ]
    assert {facts["trouble"] for facts in told} == {"job_failed/check"}
    assert ["UnknownVersion" in facts.get("error", "") for facts in told] == [True, False, True]
    assert runs.prune(before=time.time() + 1, keep=1) == 2


def test_a_check_that_fails_over_restarts_is_told_once_and_once_when_it_ends_well(settings: Settings) -> None:
    told = list[dict[str, Any]]()
    for _ in range(2):
        with scheduling(settings, open_store(settings.store_url)) as scheduler:
            told_of_checks(scheduler, told)
            name_a_champion(scheduler, 5)
            with working(scheduler):
                fails_on(scheduler, 2)
    with scheduling(settings, open_store(settings.store_url)) as scheduler:
        told_of_checks(scheduler, told)
        name_a_champion(scheduler, None)
        with working(scheduler):
            wait_until("a check that goes well", lambda: len(told) > 1)

    assert [(facts["event"], facts["state"]) for facts in told] == [("job_failed", "began"), ("job_failed", "ended")]
    assert "ended well again" in told[1]["why"]


def test_a_replica_that_leads_no_more_ends_the_trouble_of_its_jobs(settings: Settings) -> None:
    with scheduling(settings, open_store(settings.store_url)) as scheduler:
        told = told_of_checks(scheduler)
        name_a_champion(scheduler, 5)
        with working(scheduler):
            fails_on(scheduler, 2)
            with scheduler.engine.begin() as connection:
                connection.execute(leases.update().values(holder="another", token=99, expires_at=time.time() + 3600))
            wait_until("the end", lambda: len(told) > 1)

    assert [facts["state"] for facts in told] == ["began", "ended"]
    assert told[1]["why"] == "another replica does the scheduled work"


def test_while_the_store_is_down_a_failed_check_is_an_alert_all_the_same(
    scheduler: Scheduler, settings: Settings
) -> None:
    told = told_of_checks(scheduler)
    with working(scheduler):
        for table in ("runs", "aliases"):
            execute(settings, f"drop table {table}")
        fails_on(scheduler, 3)

    (once,) = told
    assert "no such table: aliases" in once["error"]


def test_beside_a_training_checks_go_on_and_decide_to_wait(place: Place, tmp_path: Path) -> None:
    place.answer(600, 3, moved=True)
    with place.engine.begin() as connection:
        connection.execute(leases.update().values(expires_at=0.0))
    wish = place.runs.queue("retrain", trigger="manual", who="ana", why="", now=place.now, payload={})
    changed = {"MODEL__NAME": "credit", "STORE__VAR": str(tmp_path / "home"), "SCHEDULE__CHECK_INTERVAL_S": "1"}
    changed |= {"TRAINING__NICE": "0", "RETRAIN__MIN_LABELLED_ROWS": "300"}
    environ = {
        "EVERGREEN_HOME": str(tmp_path / "home"),
        **{f"EVERGREEN_{key}": value for key, value in changed.items()},
    }
    settings = load(environ=environ)

    def said() -> list[str]:
        return [run.why for run in place.runs.list(kind="check", limit=1_000)]

    with scheduling(settings, open_store(settings.store_url)) as scheduler, working(scheduler):
        training = wait_until("the training's process", lambda: job_of(wish))
        training.suspend()
        try:
            wait_until("two checks that wait", lambda: sum(f"run {wish} is under way" in why for why in said()) > 1)
        finally:
            training.resume()
        wait_until("the end of the training", lambda: place.runs.get(wish).state == "done")

    assert place.runs.get(wish).outcome in ("promoted", "kept")


def job_of(run: int) -> psutil.Process | None:
    """The process of this run's training, a child of this one."""
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "training.job" in child.cmdline() and f"/run-{run}/" in child.cmdline()[-1]:
                return child
    return None
