"""The facts of the sentence, read from the store of a real loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from monitoring.store import homes, leases
from service.handover import ControllerStatus, write_status
from service.serving.management.managed import Managed
from service.serving.management.sentence import Alert, Next
from service.serving.management.standing import standing
from tests.places import TOKEN, Place, first, place
from tests.working import working
from training.cycle import note_failure, run_cycle
from training.homes import HomeReport, report_home
from training.rollout import WorkerState, report_workers

__all__ = ["first", "place"]  # fixtures

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


@pytest.fixture
def here(place: Place, tmp_path: Path) -> Iterator[Managed]:
    """A deployment whose clock says now, after a check of 400 rows."""
    place.now = time.time() - 400
    place.answer(400, 1, moved=False)
    run_cycle(place.loop)
    with working(place, tmp_path / "home") as worker:
        settings, run_dir, home = worker.settings, worker.run_dir, worker.home
        yield Managed(settings, run_dir, home, place.engine, place.runs, place.registry)


def test_a_check_s_findings_are_the_facts(here: Managed, place: Place) -> None:
    found, (check,) = standing(here), here.runs.checks(limit=1)

    assert check.quality is not None and found.quality is not None
    assert found.version == 1 and found.served_since == place.registry.served_since()
    assert (found.quality.value, found.quality.rows) == (check.quality["value"], 400)
    assert found.quality.low is not None and found.quality.high is not None
    assert found.quality.low < check.quality["value"] < found.quality.high
    assert found.quality.holdout == pytest.approx(check.quality["compared"][0]["level"])
    assert (found.coverage, found.delay_s, found.alerts, found.paused) == (1.0, 0.0, (), None)
    due = "at 1,400 new labels (400 so far), sooner if quality is lost"
    assert found.next == Next(f"a check; a training {due}", check.at + 60)


def test_a_version_that_no_check_has_seen_has_no_quality(here: Managed, place: Place) -> None:
    place.answer(600, 2, moved=True)
    assert run_cycle(place.loop).outcome == "promoted"

    found = standing(here)

    assert (found.version, found.quality) == (2, None)
    assert found.next.what == "a check; it counts what the next training needs"


def test_a_run_under_way_comes_before_the_next_check(here: Managed, place: Place) -> None:
    run = place.runs.start("retrain", trigger="growth", who="c", why="d", now=place.now, token=TOKEN)

    assert standing(here).next == Next(f"run {run} (retrain, growth) is under way; a check follows it")


def test_what_is_wrong_is_an_alert(here: Managed, place: Place) -> None:
    controller = ControllerStatus(at=place.now, holder="me", drain_lag_s=700.0, store_error="connection refused")
    write_status(here.run_dir, controller)
    report_workers(place.engine, "r1", [WorkerState("r1", "api-2", 1, (1,), {2: "digest differs"})])
    place.now += 1
    failed = note_failure(place.loop, "check", OSError(28, "No space left on device"))

    assert standing(here).alerts == (
        Alert("r1/api-2 cannot load version 2: digest differs", "worker"),
        Alert("the store does not answer (connection refused)", "store"),
        Alert("the record waits for the store for 12 min", "record"),
        Alert("the last check failed: OSError: [Errno 28] No space left on device", "run", failed.id),
    )
    assert str(standing(here).alerts[-1]).endswith(f"No space left on device (run {failed.id})")
    assert standing(here, "ana: an audit").paused == "ana: an audit"


def test_drift_that_may_matter_is_an_alert(here: Managed, place: Place) -> None:
    place.answer(600, 3, moved=True, labelled=False)
    run_cycle(place.loop)

    told = [alert.text for alert in standing(here).alerts if alert.kind == "drift"]

    assert any(text.startswith("drift: income moved") and "may matter" in text for text in told), standing(here)


def test_a_check_that_does_not_come_is_an_alert_unless_the_loop_is_paused(here: Managed, place: Place) -> None:
    place.now = time.time() - 7200
    place.runs.check(at=place.now, version=1, drift=None, quality=None, decision={"train": False}, token=TOKEN)

    assert standing(here).alerts == (
        Alert("the check is overdue by 2 h: the machine is too busy, or no controller holds the lease", "run"),
    )
    assert standing(here, "ana").alerts == ()


def test_a_leader_whose_clock_is_a_minute_behind_is_not_late(here: Managed, place: Place) -> None:
    behind = 90.0
    place.now = time.time() - 60 - 40 - behind  # the check was due 40 s ago, by the right clock
    place.runs.check(at=place.now, version=1, drift=None, quality=None, decision={"train": False}, token=TOKEN)
    assert [alert.text.partition(":")[0] for alert in standing(here).alerts] == ["the check is overdue by 2 min"]

    report_home(place.engine, HomeReport(here.home, "alpha", "alpha:1", "0", 1, "", 0, 0.0), time.time())
    # The place's lease is held by "test", so that its replica leads.
    report_home(place.engine, HomeReport("bbbb", "beta", "test", "0", 1, "", 0, 0.0), time.time() - behind)
    with place.engine.begin() as connection:
        connection.execute(leases.update().values(holder="test:1"))

    assert standing(here).alerts == ()


def test_a_replica_that_is_away_and_an_erasure_that_waits_for_it_are_alerts(here: Managed, place: Place) -> None:
    for home in (here.home, "bbbb"):
        report_home(place.engine, HomeReport(home, "beta", home, "0", 1, "", 0, 0.0), time.time())
    place.loop = replace(place.loop, home=here.home)
    run = place.ask("erase", ids=["nobody"])
    with place.engine.begin() as connection:
        connection.execute(homes.update().values(seen_at=homes.c.seen_at - 120))

    assert [alert for alert in standing(here).alerts if alert.kind == "replica"] == [
        Alert(
            "the replica on beta (home bbbb) was last seen 2 min ago; `evergreen replicas gone` when it does not come "
            "back",
            "replica",
        ),
        Alert("an erasure waits for bbbb (on beta)", "replica", run.id),
    ]
