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
from monitoring.store import open_store
from service.scheduler import Scheduler
from service.settings import Settings, load
from tests.server import wait_until
from training.cycle import Loop
from training.lease import CONTROLLER, LeaseLost

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
    assert (loop.runs.get(run).state, loop.runs.get(run).outcome) == ("failed", "interrupted")
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
