"""An erasure over two homes of one store and one storage: each does its part, and the run waits until both have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from monitoring.export import ExportsBusy, export, locked
from monitoring.log import PredictionLog
from monitoring.retention import RetentionPolicy
from monitoring.store import connect, homes, open_store, predictions, runs
from tests.places import POLICY, TOKEN, Place, append, append_label, drain, files_with, first, place, record
from tests.training.test_erasure import ANNA, Traces
from training.cycle import work_off
from training.here import retain_here, work_off_parts
from training.homes import HomeReport, report_home
from training.loop import Loop
from training.registry import Registry
from training.runs import Run, Runs
from training.snapshots import Snapshots
from training.storage import Storage

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

__all__ = ["first", "place"]  # fixtures

HERS = {"feature": "purpose", "value": ANNA}


class Other:
    """A second home, which has copies of everything, and answered a row of Anna's itself."""

    def __init__(self, traces: Traces, folder: Path, storage: Storage) -> None:
        place = traces.place
        self.folder, self.engine = folder, place.engine
        registry = Registry(place.engine, folder / "bentoml" / "models", "credit", storage=storage)
        self.loop: Loop = replace(
            place.loop,
            home="bbbb",
            token=0,
            storage=storage,
            registry=registry,
            snapshots_dir=folder / "snapshots",
            spool_dir=folder / "spool",
            reports_dir=folder / "reports",
            exports=str(folder / "exports"),
            exports_lock=folder / "export.lock",
        )
        registry.fetch(1)
        assert Snapshots(folder / "snapshots", storage).path(registry.manifest(1).data.snapshot or "").is_file()
        self.log = PredictionLog(folder / "spool", POLICY)
        append(self.log, place.now, ["anna-2"], [record(ANNA, 4.5)])
        append_label(self.log, place.now, "anna-2")
        self.drain()
        (folder / "reports").mkdir()
        (folder / "reports" / "9.html").write_text(f"<p>{ANNA}</p>")
        export(place.engine, traces.schema, str(folder / "exports"))

    def drain(self) -> Any:
        return drain(self.folder / "spool", self.engine, 1e10)

    def does_its_part(self) -> int:
        return len(work_off_parts(self.loop, set()))


class Hosts:
    def __init__(self, traces: Traces, tmp_path: Path) -> None:
        self.traces, self.place, self.shared = traces, traces.place, tmp_path / "shared"
        storage = Storage(str(self.shared))
        registry = Registry(self.place.engine, traces.home / "bentoml" / "models", "credit", storage=storage)
        self.place.loop = replace(self.place.loop, home="aaaa", storage=storage, registry=registry)
        registry.share()
        self.place.loop.snapshots.share([registry.manifest(1).data.snapshot or ""])
        self.other = Other(traces, tmp_path / "other", storage)
        for home, host in (("aaaa", "alpha"), ("bbbb", "beta")):
            report_home(self.place.engine, HomeReport(home, host, f"{host}:1", "0", 1, "", 0, 0.0), 0.0)
            self.clock(home, 0.0)

    def clock(self, home: str, ahead_s: float) -> None:
        with self.place.engine.begin() as connection:
            connection.execute(homes.update().where(homes.c.home == home).values(ahead_s=ahead_s))

    def erase(self, **whom: Any) -> Run:
        return self.place.ask("erase", **whom)

    def goes_on(self, run: Run) -> Run:
        while work_off(self.place.loop) is not None:
            pass
        return self.place.runs.get(run.id)

    def stored(self) -> list[str]:
        with self.place.engine.connect() as connection:
            return [id_ for id_ in connection.scalars(sa.select(predictions.c.id)) if id_.startswith("anna")]

    def told(self) -> bool:
        with self.place.engine.connect() as connection:
            return bool(connection.scalar(sa.select(sa.func.count()).where(runs.c.record.contains(ANNA))))


@pytest.fixture
def hosts(place: Place, tmp_path: Path) -> Iterator[Hosts]:
    traces = Traces(place, tmp_path / "home")
    made = Hosts(traces, tmp_path)
    yield made
    made.other.log.close()
    traces.log.close()


def test_an_erasure_waits_for_the_other_home_and_is_done_when_that_has_done_its_part(hosts: Hosts) -> None:
    other = hosts.other
    before = {path.split("/")[0] for path in files_with(other.folder, ANNA, "anna-2")}
    assert before >= {"spool", "exports", "snapshots", "bentoml", "reports"}

    run = hosts.erase(**HERS)

    assert (run.state, run.record.waits_for) == ("waiting", ("bbbb (on beta)",)), run.document
    assert hosts.stored() == [] and files_with(hosts.shared, ANNA) == []
    assert {Path(path).name for path in files_with(hosts.traces.home, ANNA)} <= {"evergreen.db", "evergreen.db-wal"}
    assert hosts.goes_on(run).state == "waiting"

    assert other.does_its_part() == 1

    assert files_with(other.folder, ANNA, "anna-2") == []
    (part,) = hosts.place.runs.list(kind="erase_part")
    assert (part.state, part.outcome, part.document["payload"]) == ("done", "erased", {"home": "bbbb", "of": run.id})
    assert part.document["spool_records"] == 2 and part.document["snapshots"] == part.document["reports"] == 1
    assert "late_rows" not in part.document
    done = hosts.goes_on(run)
    assert (done.state, done.outcome, done.record.waits_for) == ("done", "erased", ()), done.document
    assert done.document["homes"] == {"bbbb": {"run": part.id, "outcome": "erased"}}
    assert not hosts.told() and files_with(hosts.traces.home, ANNA) == []
    assert other.does_its_part() == 0


def test_no_home_puts_what_was_erased_back_into_the_storage(hosts: Hosts) -> None:
    hosts.erase(**HERS)

    hosts.other.loop.registry.share()  # as at its start, with the copies of before
    hosts.other.loop.snapshots.share([hosts.place.registry.manifest(1).data.snapshot or ""])

    assert files_with(hosts.shared, ANNA) == []
    hosts.other.does_its_part()
    assert files_with(hosts.other.folder, ANNA) == []


def test_rows_that_a_home_had_not_stored_when_it_was_asked_are_erased_when_it_is_back(hosts: Hosts) -> None:
    append(hosts.other.log, hosts.place.now, ["anna-3"], [record(ANNA, 5.5)])  # it is away: nothing drains it

    run = hosts.erase(**HERS)
    said: set[str] = set()
    assert work_off_parts(hosts.other.loop, said) == []
    assert len(said) == 1 and "1 records still wait in the spool" in said.pop()
    assert hosts.goes_on(run).state == "waiting"

    hosts.other.drain()
    assert hosts.stored() == ["anna-3"]
    assert hosts.other.does_its_part() == 1
    assert files_with(hosts.other.folder, ANNA, "anna-3") == []

    assert hosts.goes_on(run).state == "done"
    late = hosts.place.runs.list(kind="erase")[0]
    assert late.id != run.id and (late.state, late.why) == ("waiting", f"came into the store after erasure {run.id}")
    assert hosts.stored() == []
    assert hosts.other.does_its_part() == 1 and hosts.goes_on(late).state == "done"
    assert not hosts.told()


@pytest.mark.parametrize("ahead_s", [60.0, -60.0])
def test_a_clock_that_is_a_minute_wrong_leaves_no_row_of_before(hosts: Hosts, ahead_s: float) -> None:
    hosts.clock("bbbb", ahead_s)
    answered = hosts.place.now - 5 + ahead_s  # by the clock of the other home
    append(hosts.other.log, answered, ["anna-4"], [record(ANNA, 6.5)])
    hosts.other.drain()

    run = hosts.erase(**HERS, asked_at=hosts.place.now)

    assert hosts.stored() == []
    assert hosts.other.does_its_part() == 1 and hosts.goes_on(run).state == "done"
    assert files_with(hosts.other.folder, ANNA, "anna-4") == []


def test_a_home_that_is_gone_is_waited_for_no_more_and_its_part_says_so(hosts: Hosts) -> None:
    run = hosts.erase(**HERS)
    with hosts.place.engine.begin() as connection:
        connection.execute(homes.update().where(homes.c.home == "bbbb").values(seen_at=homes.c.seen_at - 60))

    gone = hosts.place.ask("gone", home="bbbb")

    assert (gone.state, gone.outcome, gone.document["host"]) == ("done", "gone", "beta"), gone.document
    assert hosts.goes_on(run).state == "done"
    (part,) = hosts.place.runs.list(kind="erase_part")
    assert (part.state, part.outcome) == ("failed", "gone") and not hosts.told()


def test_a_home_that_is_at_work_cannot_be_said_to_be_gone(hosts: Hosts) -> None:
    run = hosts.place.ask("gone", home="bbbb")

    assert (run.state, run.outcome) == ("failed", "refused") and "stop it first" in run.document["error"]
    with hosts.place.engine.begin() as connection:
        connection.execute(homes.update().values(seen_at=homes.c.seen_at - 40 * 86_400))
    work_off(hosts.place.loop)
    assert hosts.place.ask("gone", home="cccc").outcome == "refused"


def test_a_home_nobody_saw_for_so_long_counts_as_gone(hosts: Hosts) -> None:
    from training.retention import retain

    run = hosts.erase(**HERS)
    with hosts.place.engine.begin() as connection:
        connection.execute(homes.update().where(homes.c.home == "bbbb").values(seen_at=homes.c.seen_at - 31 * 86_400))
    assert "gone_homes" not in retain(hosts.place.loop, RetentionPolicy(homes_days=0))

    assert retain(hosts.place.loop, RetentionPolicy())["gone_homes"] == 1

    assert hosts.goes_on(run).state == "done"


def test_an_erasure_that_broke_off_is_finished_by_the_homes_that_were_asked(hosts: Hosts) -> None:
    append(hosts.other.log, hosts.place.now, ["anna-5"], [record(ANNA, 7.5)])
    hosts.other.drain()
    loop = hosts.place.loop
    broken = replace(loop, runs=Breaking(loop.engine))
    hosts.place.runs.queue("erase", trigger="manual", who="ana", why="", now=hosts.place.now, payload=HERS)
    run = work_off(broken)
    assert run is not None and (run.state, run.outcome) == ("failed", "crashed")
    assert hosts.stored() != []  # it broke off before the source

    assert hosts.other.does_its_part() == 1

    assert hosts.goes_on(run).state == "failed"
    assert hosts.stored() == []  # by the run that the part asked for
    assert hosts.other.does_its_part() == 1 and not hosts.told()


class Breaking(Runs):
    """Its store goes away once the other homes were asked."""

    def redact(self, *given: Any, **named: Any) -> None:
        raise OSError("the disk is gone")


def test_what_grew_old_goes_on_every_home(hosts: Hosts) -> None:
    other = replace(hosts.other.loop, clock=lambda: hosts.place.now + 40 * 86_400)
    hosts.other.drain()

    story = retain_here(other, RetentionPolicy(predictions_days=30, labels_days=30))

    assert story["spool_records"] == 2 and story["exports"] >= 1, story
    (run,) = hosts.place.runs.list(kind="retention_part")
    assert (run.outcome, run.document["payload"]) == ("deleted", {"home": "bbbb"})
    assert files_with(hosts.other.folder / "spool", ANNA) == []
    assert retain_here(other, RetentionPolicy(predictions_days=30, labels_days=30)) == {}


def test_a_version_that_was_deleted_elsewhere_goes_from_every_copy_and_one_being_made_stays(hosts: Hosts) -> None:
    registry = hosts.other.loop.registry
    made = hosts.place.loop.registry.register(registry.path(1), origin="push", now=1.0, token=TOKEN)
    registry.fetch(made)
    hosts.place.loop.registry.delete(made, TOKEN)

    with registry._claimed(made):  # as while it is being registered here
        assert registry.follow() == ()
    registry.models_dir.joinpath("credit", str(made)).mkdir(exist_ok=True)
    assert registry.follow() == (made,)

    assert not (registry.models_dir / "credit" / str(made)).exists()
    assert registry.path(1).is_dir() and registry.follow() == ()


def test_two_hosts_do_not_export_to_one_place_at_once(tmp_path: Path, postgres_url: str) -> None:
    engines = [open_store(postgres_url), connect(postgres_url)]
    try:
        with (
            locked(tmp_path / "one.lock", engines[0]),
            pytest.raises(ExportsBusy, match="the store is locked"),
            locked(tmp_path / "two.lock", engines[1], wait_s=0.5, sleep=lambda seconds: None),
        ):
            pass
        with locked(tmp_path / "two.lock", engines[1], wait_s=0.5):  # free again
            pass
    finally:
        for engine in engines:
            engine.dispose()
