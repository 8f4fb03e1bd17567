"""The report of any check: asked for at a worker, made by the controller of the same replica, and gone in time."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from monitoring.retention import DAY_S
from monitoring.store import connect, ensure_days, leases, metadata, open_store, predictions
from service.configuration import load
from service.control.reports import Reports
from service.handover import Live, LiveVersion, write_live
from service.report_files import MOST_ASKED, ReportFiles
from service.serving.front import Front
from service.serving.management.application import application
from service.serving.worker import Worker
from service.settings import Settings
from tests.fronts import beyond, run
from tests.places import START, TOKEN, Place, first
from training import job
from training.artefact import REFERENCE
from training.cycle import run_cycle
from training.spec import JobResult, JobSpec
from training.subprocess_job import subprocess_job

__all__ = ["first"]  # a fixture

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

SECRET = "a-token-of-the-tests"


class Replica:
    """One replica of a deployment that has made a check: its worker, its controller's reports, its own `var`."""

    def __init__(self, place: Place, store_url: str, var: Path) -> None:
        self.place, self.settings = place, settings_of(store_url, var)
        champion = LiveVersion(1, str(place.registry.path(1)))
        write_live(self.settings.live_file, Live(model="credit", champion=champion))
        self.worker = Worker(self.settings, var / "run", "api-1")
        self.worker.start()
        self.front = Front(beyond, lambda: self.worker)
        self.files = ReportFiles(self.settings.reports_dir)
        self.reports = Reports(self.settings, place.engine, "me", lambda: False)
        self.draw_here()

    def close(self) -> None:
        application(self.worker).state.managed.engine.dispose()
        self.worker.close()

    def draw_here(self, around: Any = lambda: None) -> None:
        """Let jobs run in this process; `around` is called while one does."""

        def run_job(spec: JobSpec) -> JobResult:
            around()
            return job.run(spec)

        self.change(run_job=run_job, registry=self.place.registry)

    def change(self, **fields: Any) -> None:
        self.reports._loop = replace(self.reports._loop, **fields)

    def ask(self, check: int, accept: str = "application/json") -> httpx.Response:
        headers = {"authorization": f"Bearer {SECRET}", "accept": accept}
        return run(self.front, ("GET", f"/manage/reports/{check}", {"headers": headers}))[0]

    def asked_and_made(self, check: int) -> httpx.Response:
        assert self.ask(check).status_code == 202
        self.reports.turn()
        return self.ask(check)

    def sweep(self) -> None:
        self.reports._swept_at = float("-inf")
        self.reports.turn()


def settings_of(store_url: str, var: Path) -> Settings:
    changed = {"HOME": str(var), "STORE__URL": store_url, "STORE__VAR": str(var), "MODEL__NAME": "credit"}
    changed |= {"SECURITY__TOKEN": SECRET, "SERVE__WORKERS": "1", "DRIFT__MIN_ROWS": "100"}
    return load(environ={f"EVERGREEN_{name}": value for name, value in changed.items()})


@pytest.fixture
def place(first: Path, tmp_path: Path, store_url: str) -> Iterator[Place]:
    """A deployment of its own on either store, which has answered 300 rows and checked them: check 1."""
    home = tmp_path / "home"
    shutil.copytree(first, home)
    if store_url.startswith("sqlite"):
        shutil.copy(home / "evergreen.db", store_url.removeprefix("sqlite:///"))
    else:
        copy_rows(f"sqlite:///{home}/evergreen.db", store_url)
    place = Place(home, store_url)
    try:
        ensure_days(place.engine, [1])
        place.answer(300, 5, moved=False)
        run_cycle(place.loop)
        yield place
    finally:
        place.engine.dispose()


def copy_rows(source: str, target: str) -> None:
    old, new = connect(source), open_store(target)
    with old.connect() as read, new.begin() as write:
        for table in metadata.sorted_tables:
            rows = [dict(row._mapping) for row in read.execute(sa.select(table))]
            if rows and table is not leases:
                write.execute(sa.delete(table))
                write.execute(table.insert(), rows)
            elif rows:
                write.execute(table.insert(), [{**row, "expires_at": time.time() + DAY_S} for row in rows])
        write.exec_driver_sql("select setval(pg_get_serial_sequence('runs', 'id'), (select max(id) from runs))")
    old.dispose()
    new.dispose()


@pytest.fixture
def replica(place: Place, store_url: str, tmp_path: Path) -> Iterator[Replica]:
    replica = Replica(place, store_url, tmp_path / "a")
    yield replica
    replica.close()


def test_a_report_is_made_when_asked_for_by_a_job_and_then_kept(replica: Replica) -> None:
    replica.change(run_job=partial(subprocess_job, timeout_s=280), nice=0)

    asked, waiting = replica.ask(1), replica.ask(1, accept="text/html,*/*;q=0.8")
    assert (asked.status_code, asked.json()) == (202, {"check": 1, "waiting": 1})
    assert (asked.headers["retry-after"], asked.headers["location"]) == ("2", "1")
    assert waiting.status_code == 202 and waiting.headers["content-type"].startswith("text/html")
    assert '<meta http-equiv="refresh" content="2">' in waiting.text and "<script" not in waiting.text
    assert "default-src 'none'" in waiting.headers["content-security-policy"]

    replica.reports.turn()
    page = replica.ask(1)

    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "<title>Check 1 of 2023-11-14" in page.text and "300 rows that version 1 answered until" in page.text
    assert all(name in page.text for name in ("income", "debt", "purpose"))
    assert int(page.headers["content-length"]) == len(page.content) == replica.files.page(1).stat().st_size
    kept = {path.name for path in replica.settings.reports_dir.iterdir() if path.name != "work"}
    assert kept == {"1.html", "erasure", "lock"} and not any((replica.settings.reports_dir / "work").iterdir())
    assert replica.ask(1).content == page.content


def test_the_report_may_run_its_own_scripts_and_reach_nobody(replica: Replica) -> None:
    page = replica.asked_and_made(1)

    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["sandbox"].split() == ["allow-scripts", "allow-downloads"]  # no origin: no cookie, no storage
    assert policy["default-src"] == "'none'" and "connect-src" not in policy  # the default is its bound
    allowed = {source for value in policy.values() for source in value.split()}
    assert not [
        source for source in allowed if "." in source or "*" in source or source in ("http:", "https:", "'self'")
    ]
    assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=", page.text.partition("<body>")[0]) == []
    assert page.headers["cache-control"] == "no-store"


def test_a_check_that_is_not_there_or_compared_nothing_has_no_report(replica: Replica, place: Place) -> None:
    few = place.runs.check(
        at=place.now, version=1, drift=drift_of(place, skipped="7 rows"), quality=None, decision={}, token=TOKEN
    )
    other = place.runs.check(at=place.now, version=1, drift=None, quality=None, decision={}, token=TOKEN)

    assert replica.ask(999).status_code == 404 and "there is no check 999" in replica.ask(999).json()["error"]
    assert replica.files.asked() == []
    for check, words in ((few, "compared nothing (7 rows)"), (other, "by another release")):
        refused = replica.asked_and_made(check)
        assert (refused.status_code, words in refused.json()["error"]) == (404, True), refused.text


def drift_of(place: Place, **changed: Any) -> dict[str, Any]:
    return {**(place.runs.checks(limit=1)[0].drift or {}), **changed}


def forget_rows(place: Place, but: int = 0) -> None:
    with place.engine.begin() as connection:
        newest = sa.select(predictions.c.at).order_by(predictions.c.at.desc()).limit(1).offset(max(but - 1, 0))
        at = connection.scalar(newest) if but else place.now + 1
        connection.execute(sa.delete(predictions).where(predictions.c.at < at))


@pytest.mark.parametrize(
    ("left", "words"), [(0, "the rows of check 1 were"), (40, "only 40 of the 300 rows of check 1")]
)
def test_of_rows_that_retention_deleted_the_answer_is_410_with_the_day(
    replica: Replica, place: Place, left: int, words: str
) -> None:
    forget_rows(place, left)
    place.now += DAY_S
    for older_than in (START - DAY_S, place.now, place.now + DAY_S):
        place.runs.note(
            "retention", trigger="schedule", who="me", why="", outcome="deleted", now=place.now, token=TOKEN,
            record={"older_than": {"predictions": older_than}},
        )  # fmt: skip
    by = place.runs.list(kind="retention")[1].id
    day = datetime.fromtimestamp(place.now, UTC).strftime("%Y-%m-%d %H:%M")

    gone = replica.asked_and_made(1)

    assert gone.status_code == 410
    assert gone.json()["error"].startswith(words)
    assert gone.json()["error"].endswith(f"deleted on {day} UTC by retention (run {by})")


def test_of_a_version_that_was_deleted_the_answer_is_410(replica: Replica, place: Place) -> None:
    gone = place.runs.check(at=place.now, version=7, drift=drift_of(place), quality=None, decision={}, token=TOKEN)

    refused = replica.asked_and_made(gone)

    assert refused.status_code == 410 and "version 7" in refused.json()["error"]


def test_rows_that_are_left_in_part_are_drawn_and_the_page_says_so(replica: Replica, place: Place) -> None:
    forget_rows(place, 200)

    assert "200 of its 300 rows (others are gone)" in replica.asked_and_made(1).text


def test_a_job_that_fails_is_a_500_that_is_tried_again_a_minute_later(replica: Replica) -> None:
    replica.change(run_job=lambda spec: JobResult(ok=False, error="out of memory at 10 MB"))
    failed = replica.asked_and_made(1)
    assert failed.status_code == 500 and "out of memory at 10 MB" in failed.json()["error"]

    refusal = replica.settings.reports_dir / "1.refused"
    os.utime(refusal, (time.time() - 61, time.time() - 61))
    replica.draw_here()

    assert replica.asked_and_made(1).status_code == 200
    assert not refusal.exists()


def test_a_damaged_reference_fails_its_own_report_only(replica: Replica, place: Place) -> None:
    other = place.runs.check(at=place.now, version=1, drift=drift_of(place), quality=None, decision={}, token=TOKEN)
    reference = place.registry.path(1) / REFERENCE
    content = reference.read_bytes()
    reference.write_bytes(b"no Parquet")
    assert replica.ask(1).status_code == 202
    replica.reports.turn()
    failed = replica.ask(1)
    reference.write_bytes(content)

    assert failed.status_code == 500 and "the report of check 1 could not be made" in failed.json()["error"]
    assert replica.asked_and_made(other).status_code == 200


def test_after_an_erasure_no_page_from_before_is_left_on_any_replica(replica: Replica, place: Place) -> None:
    assert replica.asked_and_made(1).status_code == 200

    place.ask("erase", ids=["5-3"])  # by a replica elsewhere
    replica.sweep()

    assert not replica.files.page(1).exists()
    assert "299 of its 300 rows" in replica.asked_and_made(1).text
    replica.sweep()
    assert replica.files.page(1).exists()


def test_a_page_that_is_drawn_across_an_erasure_is_drawn_again(replica: Replica, place: Place) -> None:
    erased = []

    def erase_once() -> None:
        if not erased:
            erased.append(place.ask("erase", ids=["5-3"]).outcome)

    replica.draw_here(erase_once)

    assert replica.asked_and_made(1).status_code == 202 and erased == ["erased"]
    assert not replica.files.page(1).exists() and replica.files.asked() == [1]
    replica.reports.turn()
    assert "299 of its 300 rows" in replica.ask(1).text


def test_each_replica_makes_its_own(replica: Replica, place: Place, store_url: str, tmp_path: Path) -> None:
    other = Replica(place, store_url, tmp_path / "b")
    try:
        assert replica.asked_and_made(1).status_code == 200
        assert other.ask(1).status_code == 202
        other.reports.turn()
        assert other.ask(1).status_code == 200
    finally:
        other.close()


def test_two_controllers_of_one_folder_do_not_stand_in_each_others_way(replica: Replica) -> None:
    other = Reports(replica.settings, replica.place.engine, "next", lambda: False)
    left = replica.settings.reports_dir / "work" / "report-7" / "window.parquet"
    left.parent.mkdir(parents=True)
    left.write_text("rows of a controller that was killed")
    during = list[bool]()

    def other_turn() -> None:
        other.turn()
        during.append((replica.settings.reports_dir / "work" / "report-1" / "window.parquet").exists())

    replica.draw_here(other_turn)

    assert replica.asked_and_made(1).status_code == 200
    assert during == [True] and not left.exists()


def test_wishes_and_pages_are_bounded(replica: Replica, place: Place) -> None:
    for _ in range(MOST_ASKED + 1):
        place.runs.check(at=place.now, version=1, drift=drift_of(place), quality=None, decision={}, token=TOKEN)
    answers = [replica.ask(check) for check in range(1, MOST_ASKED + 2)]
    assert [answer.status_code for answer in answers] == [202] * MOST_ASKED + [503]
    assert answers[-1].headers["retry-after"] == "10"
    assert replica.ask(1).status_code == 202  # who asked already is not turned away

    now = time.time()
    for check in range(1, 5):
        drawn = replica.settings.reports_dir / "drawn"
        drawn.write_text("x")
        replica.files.keep(check, drawn, now - (100 if check == 4 else 0))
        os.utime(replica.files.page(check), (now + check, replica.files.page(check).stat().st_mtime))
    replica.files.trim(most=2, before=now - 50)

    assert [check for check in range(1, 5) if replica.files.page(check).exists()] == [3]


def test_a_store_that_does_not_answer_leaves_the_wish(replica: Replica, caplog: pytest.LogCaptureFixture) -> None:
    assert replica.ask(1).status_code == 202
    with replica.place.engine.begin() as connection:
        connection.exec_driver_sql("alter table checks rename to elsewhere")
    for _ in range(3):
        replica.reports.turn()
    assert caplog.text.count("the store does not answer") == 1 and replica.files.asked() == [1]

    with replica.place.engine.begin() as connection:
        connection.exec_driver_sql("alter table elsewhere rename to checks")
    replica.reports.turn()
    assert replica.ask(1).status_code == 200
