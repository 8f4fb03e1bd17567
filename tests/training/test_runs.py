from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

import training.runs
from monitoring.store import open_store
from training.lease import CONTROLLER, Lease, LeaseLost
from training.manifest import NO_ACTION
from training.policy import ALONE
from training.runs import Runs, UnknownRun


@pytest.fixture
def engine(store_url: str) -> Iterator[sa.Engine]:
    engine = open_store(store_url)
    yield engine
    engine.dispose()


@pytest.fixture
def table(engine: sa.Engine) -> Runs:
    assert Lease(engine, CONTROLLER, "test", 60).acquire()
    return Runs(engine)


TOKEN = 1


def test_a_queued_run_is_claimed_oldest_first_and_only_once(table: Runs) -> None:
    first = table.queue("retrain", trigger="manual", who="ana", why="new prices", now=10.0, payload={"force": True})
    second = table.queue("rollback", trigger="manual", who="bo", why="complaints", now=11.0)

    claimed = table.claim(TOKEN, 12.0)
    assert claimed is not None
    assert (claimed.id, claimed.state, claimed.started_at, claimed.document) == (
        first,
        "running",
        12.0,
        {"payload": {"force": True}},
    )
    again = table.claim(TOKEN, 13.0)
    assert again is not None and again.id == second
    assert table.claim(TOKEN, 14.0) is None


def test_a_finished_run_keeps_what_was_asked_and_says_what_came_of_it(table: Runs) -> None:
    run_id = table.queue("retrain", trigger="manual", who="ana", why="new prices", now=10.0, payload={"force": True})
    table.claim(TOKEN, 12.0)

    run = table.finish(
        run_id,
        state="done",
        outcome="promoted",
        version=4,
        now=20.0,
        token=TOKEN,
        record={"gain": float("nan"), "gates": [{"name": "better", "passed": True}]},
    )

    assert run == table.get(run_id)
    assert (run.state, run.outcome, run.version, run.finished_at) == ("done", "promoted", 4, 20.0)
    assert run.document == {
        "payload": {"force": True},
        "gain": None,
        "gates": [{"name": "better", "passed": True}],
    }


def test_only_a_running_run_can_be_finished(table: Runs) -> None:
    run_id = table.queue("retrain", trigger="manual", who="ana", why="x", now=1.0)

    with pytest.raises(UnknownRun, match="is 'queued', not running"):
        table.finish(run_id, state="done", outcome="kept", now=2.0, token=TOKEN)
    with pytest.raises(UnknownRun, match="run 99 does not exist"):
        table.get(99)


def test_a_stale_holder_claims_starts_and_finishes_nothing(engine: sa.Engine, table: Runs) -> None:
    waiting = table.queue("retrain", trigger="manual", who="ana", why="x", now=1.0)
    mine = table.start("check", trigger="schedule", who="controller", why="every 60 s", now=1.0, token=TOKEN)
    stale = 0

    with pytest.raises(LeaseLost):
        table.claim(stale, 2.0)
    with pytest.raises(LeaseLost):
        table.start("check", trigger="schedule", who="x", why="y", now=2.0, token=stale)
    with pytest.raises(LeaseLost):
        table.finish(mine, state="done", outcome="kept", now=2.0, token=stale)
    with pytest.raises(LeaseLost):
        table.recover(stale, 2.0)
    assert (table.get(waiting).state, table.get(mine).state) == ("queued", "running")


def test_a_no_is_a_row_with_its_reasons(table: Runs) -> None:
    table.note(
        "check",
        trigger="schedule",
        who="controller",
        why="no drift: share 0.10 < 0.30",
        now=5.0,
        token=TOKEN,
        record={"reasons": ["no drift: share 0.10 < 0.30"]},
    )

    (row,) = table.list()
    assert (row.state, row.outcome, row.why) == ("done", NO_ACTION, "no drift: share 0.10 < 0.30")
    assert row.finished_at == 5.0


def test_runs_left_by_a_dead_controller_are_failed_with_the_reason(table: Runs) -> None:
    left = table.start("retrain", trigger="drift", who="controller", why="share 0.6", now=1.0, token=TOKEN)
    waiting = table.queue("retrain", trigger="manual", who="ana", why="x", now=2.0)

    assert table.recover(TOKEN, 9.0) == (left,)

    run = table.get(left)
    assert (run.state, run.outcome, run.finished_at) == ("failed", "interrupted", 9.0)
    assert "died or lost the lease" in run.document["error"]
    assert table.get(waiting).state == "queued"
    assert table.running() is None


def test_the_list_pages_newest_first_and_filters(table: Runs) -> None:
    ids = [table.queue(kind, trigger="manual", who="a", why="b", now=1.0) for kind in ("push", "retrain", "push")]

    assert [run.id for run in table.list(limit=2)] == [ids[2], ids[1]]
    assert [run.id for run in table.list(limit=2, before=ids[1])] == [ids[0]]
    assert [run.id for run in table.list(kind="push")] == [ids[2], ids[0]]


def test_the_list_asks_for_a_trigger_and_a_time(table: Runs) -> None:
    for at, trigger in enumerate(("manual", "quality", "manual")):
        table.queue("retrain", trigger=trigger, who="a", why="b", now=float(at))

    assert [run.created_at for run in table.list(trigger="manual")] == [2.0, 0.0]
    assert [run.created_at for run in table.list(since=1.0)] == [2.0, 1.0]
    assert [run.created_at for run in table.list(since=1.0, trigger="manual", kind="retrain")] == [2.0]


def no(table: Runs, at: float, why: str = "quality held: auc 0.8; no drift", version: int = 1) -> int:
    return table.note("check", trigger="schedule", who="c", why=why, now=at, token=TOKEN, version=version)


def test_checks_that_say_no_in_the_same_way_are_folded_and_nothing_else_is(table: Runs) -> None:
    first = no(table, 1.0)
    no(table, 2.0, "quality not known yet: auc 0.79; no drift")
    no(table, 3.0, f"quality held: auc 0.79; age moved, matters; {ALONE}")
    no(table, 4.0, "quality lost: auc 0.6; no drift")
    table.queue("retrain", trigger="manual", who="ana", why="one", now=5.0)
    table.queue("retrain", trigger="manual", who="ana", why="one", now=6.0)
    table.note(
        "check", trigger="schedule", who="c", why="it failed", state="failed", outcome="crashed", now=7, token=TOKEN
    )
    no(table, 8.0, "quality held: auc 0.8")
    last = no(table, 9.0, "quality held: auc 0.8", version=2)

    folds = table.folded().folds

    assert [(f.run.created_at, f.count, f.first_at) for f in folds] == [
        *((at, 1, at) for at in (9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0)),
        (2.0, 2, 1.0),
    ]
    assert (folds[0].run, folds[-1].first_id) == (table.get(last), first)


def test_folds_are_counted_by_the_limit_however_many_runs_they_hold(
    table: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.runs, "_AT_ONCE", 3)
    for at in range(10):
        no(table, float(at))
    asked = table.queue("push", trigger="manual", who="ana", why="mine", now=10.0)
    for at in range(11, 18):
        no(table, float(at))

    def folded(**how: Any) -> tuple[list[tuple[str, int]], int | None]:
        found = table.folded(**how)
        return [(fold.run.kind, fold.count) for fold in found.folds], found.before

    assert folded(limit=2) == ([("check", 7), ("push", 1)], asked)
    assert folded(limit=3) == ([("check", 7), ("push", 1), ("check", 10)], None)
    assert folded(before=asked) == ([("check", 10)], None)
    assert folded(kind="check", since=5.0) == ([("check", 12)], None)
    assert folded(trigger="growth") == ([], None)


def test_checks_that_led_to_nothing_are_left_out_on_request_and_nothing_else_is(table: Runs) -> None:
    no(table, 1.0)
    queued = table.queue("retrain", trigger="manual", who="ana", why="one", now=2.0)
    no(table, 3.0)
    crashed = {"state": "failed", "outcome": "crashed", "trigger": "schedule", "who": "c", "token": TOKEN}
    failed = [table.note("check", why="it failed", now=at, **crashed) for at in (4.0, 5.0)]
    no(table, 6.0)

    assert [fold.run.id for fold in table.folded(noes=False).folds] == [*failed[::-1], queued]
    assert table.folded(noes=False, limit=2).before == failed[0]


def test_pruning_bounds_the_noes_and_keeps_every_act_and_the_newest(table: Runs) -> None:
    acted = table.start("retrain", trigger="drift", who="c", why="d", now=0.0, token=TOKEN)
    table.finish(acted, state="failed", outcome="crashed", now=0.5, token=TOKEN)
    for at in range(10):
        table.note("check", trigger="schedule", who="c", why="no drift", now=float(at), token=TOKEN)
        table.check(at=float(at), version=1, drift=None, quality=None, decision={"train": False}, token=TOKEN)

    assert table.prune(before=8.0, keep=3) == 14  # 7 of each: the ones at 7, 8 and 9 are the newest three

    assert [run.created_at for run in table.list()] == [9.0, 8.0, 7.0, 0.0]
    assert [check.at for check in table.checks()] == [9.0, 8.0, 7.0]
    assert table.prune(before=100.0, keep=3) == 0
    with pytest.raises(ValueError, match="at least 1"):
        table.prune(before=1.0, keep=0)


def test_a_check_comes_back_as_it_was_stored(table: Runs) -> None:
    table.check(at=1.0, version=1, drift={"share": 0.5}, quality=None, decision={"train": True}, token=TOKEN)
    table.check(at=2.0, version=2, drift=None, quality={"value": 0.7}, decision={"train": False}, token=TOKEN)

    newest, oldest = table.checks()
    assert (newest.version, newest.drift, newest.quality, newest.decision) == (
        2,
        None,
        {"value": 0.7},
        {"train": False},
    )
    assert table.checks(version=1) == (oldest,)
