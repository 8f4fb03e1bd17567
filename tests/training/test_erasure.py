from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from monitoring.erase import Subject, blank_spool, entry_test, erase_rows, find, undrained
from monitoring.export import export, locked
from monitoring.log import PredictionLog
from monitoring.record import PREDICTION
from monitoring.schema import FeatureSchema
from monitoring.store import connect, dead_letters, labels, open_store, predictions, runs
from monitoring.window import read_window
from service.serving.management.rows import Erasure
from tests.places import NOW, POLICY, TOKEN, Place, append, append_label, drain, files_with, first, place, record
from tests.processes import python
from training.artefact import REFERENCE, SCHEMA, file_digest, verify
from training.cycle import take_over
from training.data import assemble, snapshot
from training.erasure import _agree

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

__all__ = ["first", "place"]  # fixtures

ANNA = "anna@example.org"


class Traces:
    """A deployment in which Anna's one row has spread to every place that rows go to."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place, self.home = place, folder
        self.spool, self.exports, self.reports = folder / "spool", folder / "exports", folder / "reports"
        place.loop = replace(place.loop, spool_dir=self.spool, reports_dir=self.reports, exports=str(self.exports))
        place.answer(50, 1, moved=False)
        self.log = PredictionLog(self.spool, POLICY)
        append(self.log, place.now, ["anna-1", "bob-1"], [record(ANNA, 3.25), record("car")])
        append_label(self.log, place.now, "anna-1")
        append_label(self.log, place.now, "bob-1")
        assert self.log.append(PREDICTION, place.now, 1, b'{"broken', json.dumps(record(ANNA)).encode())
        self.drain()
        artefact = place.registry.path(1)
        self.schema = FeatureSchema.from_json((artefact / SCHEMA).read_bytes())
        window = read_window(place.engine, self.schema, labelled=True)
        taken = snapshot(assemble(self.schema, None, window), place.loop.snapshots_dir)
        reference = pd.read_parquet(artefact / REFERENCE)
        hers = window[window["_id"] == "anna-1"][list(self.schema.names)].assign(_label=True, _holdout=True)
        pd.concat([reference, hers], ignore_index=True).to_parquet(artefact / REFERENCE, index=False)
        digests = {REFERENCE: file_digest(artefact / REFERENCE)}
        manifest = place.registry.manifest(1).changed(data={"snapshot": taken.digest}, digests=digests)
        place.registry.amend(1, manifest, TOKEN)
        export(place.engine, self.schema, str(self.exports))
        self.reports.mkdir()
        (self.reports / "7.html").write_text(f"<p>{ANNA}</p>")

    def drain(self) -> Any:
        return drain(self.spool, self.place.engine, self.place.now)

    def stored(self, table: sa.Table) -> int:
        with self.place.engine.connect() as connection:
            return int(connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0)


@pytest.fixture
def traces(place: Place, tmp_path: Path) -> Iterator[Traces]:
    traces = Traces(place, tmp_path / "home")
    yield traces
    traces.log.close()


@pytest.mark.parametrize("whom", [{"ids": ["anna-1"]}, {"feature": "purpose", "value": ANNA}], ids=["id", "value"])
def test_after_an_erasure_the_value_is_nowhere(traces: Traces, whom: dict[str, Any]) -> None:
    before = files_with(traces.home, ANNA, "anna-1")
    assert {path.split("/")[0] for path in before} >= {"spool", "exports", "snapshots", "bentoml", "reports"}
    reference = traces.place.registry.path(1) / REFERENCE
    rows = len(pd.read_parquet(reference))
    if "ids" in whom:  # the letter that nobody could read names no id
        blank_spool(traces.spool, traces.place.engine, lambda frame, _: bytes(frame.parts[0]) == b'{"broken')
        with traces.place.engine.begin() as connection:
            connection.execute(sa.delete(dead_letters))

    run = traces.place.ask("erase", **whom)

    assert (run.state, run.outcome) == ("done", "erased"), run.document
    assert files_with(traces.home, ANNA, "anna-1") == []
    assert run.document["rows"] == {"predictions": 1, "labels": 1, "dead_letters": int("value" in whom)}
    assert run.document["snapshot_rows"] == 1 and sum(run.document["exports"].values()) == 1
    assert run.document["versions"] == [{"version": 1, "snapshot_rows": 1, "reference_rows": 1}]
    assert len(pd.read_parquet(reference)) == rows - 1
    manifest = verify(reference.parent)
    assert manifest == traces.place.registry.manifest(1)
    assert manifest.reproducible is False and manifest.erasure == run.id
    assert (traces.place.loop.snapshots_dir / f"{manifest.data.snapshot}.parquet").is_file()
    assert traces.stored(predictions) == 51 and traces.stored(labels) == 51


def test_what_was_erased_does_not_come_back_with_a_new_drainer_and_the_rest_is_not_doubled(traces: Traces) -> None:
    traces.place.ask("erase", ids=["anna-1"])

    again = traces.drain()

    assert (again.predictions, again.labels, again.dead, again.torn) == (0, 0, 0, 0)
    append(traces.log, traces.place.now, ["eve-1"], [record("car")])
    assert traces.drain().predictions == 1


def test_the_run_does_not_say_who_was_meant_also_when_its_process_died(traces: Traces) -> None:
    loop = traces.place.loop
    whom = {"feature": "purpose", "value": ANNA}
    run_id = loop.runs.queue("erase", trigger="manual", who="ana", why="asked", now=NOW, payload=whom)
    assert loop.runs.claim(TOKEN, NOW) is not None

    assert take_over(loop) == (run_id,)

    run = loop.runs.get(run_id)
    assert run.outcome == "interrupted" and "payload" not in run.document
    with traces.place.engine.connect() as connection:
        assert not connection.scalar(sa.select(sa.func.count()).where(runs.c.record.contains(ANNA)))


def test_an_erasure_waits_for_the_drain_and_then_erases_nothing_by_halves(traces: Traces) -> None:
    append(traces.log, traces.place.now, ["anna-2"], [record(ANNA)])

    run = traces.place.ask("erase", feature="purpose", value=ANNA)

    assert (run.state, run.outcome) == ("failed", "refused")
    assert "1 records still wait in the spool" in run.document["error"]
    assert traces.stored(predictions) == 52


def test_what_is_recorded_after_asking_stays(store_url: str, tmp_path: Path) -> None:
    engine = open_store(store_url)
    log = PredictionLog(tmp_path / "spool", POLICY)
    append(log, NOW, ["a"], [record(ANNA)])
    append(log, NOW + 10, ["a"], [record(ANNA)])
    assert undrained(tmp_path / "spool", engine, NOW) == 1
    drain(tmp_path / "spool", engine)
    subject = Subject(feature="purpose", value=ANNA)

    found = find(engine, subject, NOW + 1)
    blanked = blank_spool(tmp_path / "spool", engine, entry_test(subject, found.ids, NOW + 1))
    erased = erase_rows(engine, subject, found.ids, NOW + 1)

    assert (found.ids, len(found.rows), blanked) == ({"a"}, 1, 1)
    assert erased == {"predictions": 1, "labels": 0, "dead_letters": 0}
    with engine.connect() as connection:
        assert connection.scalars(sa.select(predictions.c.at)).all() == [NOW + 10]
    log.close()
    engine.dispose()


def test_a_long_number_means_itself_and_not_its_neighbour(sqlite_url: str, tmp_path: Path) -> None:
    engine = open_store(sqlite_url)
    log = PredictionLog(tmp_path / "spool", POLICY)
    number = 1234567890123456789
    for id_, value in (("hers", number), ("another's", number - 21)):
        append(log, NOW, [id_], [{"who": value}])
    drain(tmp_path / "spool", engine)

    asked = Erasure.model_validate_json(json.dumps({"feature": "who", "value": number}))

    assert find(engine, Subject(feature=asked.feature, value=asked.value), NOW).ids == {"hers"}
    log.close()
    engine.dispose()


@pytest.mark.parametrize("value", ["René", "O'Hara", 'a "quoted" one', 41.0, "😀"])
@pytest.mark.parametrize("escaped", [False, True])
def test_dead_letters_are_found_however_their_json_is_written(sqlite_url: str, value: Any, escaped: bool) -> None:
    engine = open_store(sqlite_url)
    shown = 41 if value == 41.0 else value
    texts = [json.dumps({"größe": shown}, ensure_ascii=escaped), json.dumps({"größe": "Bob"}, ensure_ascii=escaped)]
    row = {"day": 1, "segment": 1, "at": NOW, "kind": 1, "reason": "poison"}
    with engine.begin() as connection:
        letters = [{**row, "position": at, "payload": text.encode()} for at, text in enumerate(texts)]
        connection.execute(dead_letters.insert(), letters)

    assert erase_rows(engine, Subject(feature="größe", value=value), [], NOW)["dead_letters"] == 1
    engine.dispose()


@pytest.mark.parametrize("step", ["write_fenced", "write_atomically", "Path.replace"])
def test_an_erasure_cut_off_while_it_changes_a_version_leaves_it_whole_and_can_be_asked_for_again(
    traces: Traces, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    registry, folder = traces.place.registry, traces.place.registry.path(1)

    class Killed(BaseException):
        pass

    def killed(path: Path, *_: object) -> Any:
        if step != "Path.replace" or path.parent == folder:
            raise Killed
        return replaced(path, *_)

    replaced = Path.replace
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("pathlib.Path.replace" if step == "Path.replace" else f"training.registry.{step}", killed)
        traces.place.ask("erase", feature="purpose", value=ANNA)
    assert [path.name for path in folder.glob(f".{REFERENCE}")] == [f".{REFERENCE}"]

    take_over(traces.place.loop)

    verify(folder)
    assert list(folder.glob(f".{REFERENCE}")) == []
    run = traces.place.ask("erase", feature="purpose", value=ANNA)
    assert (run.state, run.outcome) == ("done", "erased"), run.document
    assert files_with(traces.home, ANNA, "anna-1") == []
    assert verify(folder) == registry.manifest(1)


def test_an_erasure_cut_off_at_the_manifest_does_not_spoil_the_next_ones(
    traces: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = traces.place.registry.path(1)

    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("training.registry.write_atomically", no_room)
        run = traces.place.ask("erase", feature="purpose", value=ANNA)
    assert (run.state, run.outcome) == ("failed", "crashed")
    assert verify(folder) != traces.place.registry.manifest(1)

    bob = traces.place.ask("erase", ids=["bob-1"])

    assert (bob.state, bob.outcome) == ("done", "erased"), bob.document
    assert verify(folder) == traces.place.registry.manifest(1)
    traces.place.ask("erase", feature="purpose", value=ANNA)
    assert files_with(traces.home, ANNA, "anna-1") == []
    assert verify(folder) == traces.place.registry.manifest(1)


def test_an_erasure_does_not_wait_for_ever_for_an_export(traces: Traces, tmp_path: Path) -> None:
    traces.place.loop = replace(traces.place.loop, exports_lock=tmp_path / "export.lock")

    with locked(tmp_path / "export.lock", traces.place.engine):
        run = traces.place.ask("erase", ids=["anna-1"])

    assert (run.state, run.outcome) == ("failed", "refused")
    assert "let it end, or stop it, then ask again" in run.document["error"]
    assert traces.place.ask("erase", ids=["anna-1"]).outcome == "erased"


@pytest.mark.parametrize(
    ("stored", "sent", "same"),
    [
        (np.float32(41), 41, True),
        (np.float32(41), 42, False),
        (np.float32(1), True, True),
        (None, None, True),
        (float("nan"), None, True),
        ("car", None, False),
        (None, "car", False),
        ("car", "car", True),
        ("41", 41, False),
    ],
)
def test_a_stored_value_agrees_with_what_was_sent(stored: Any, sent: Any, same: bool) -> None:
    assert _agree(stored, sent) is same


@pytest.mark.parametrize("whom", [{"ids": ["anna-1"]}, {"feature": "purpose", "value": ANNA}], ids=["id", "value"])
def test_snapshots_of_a_version_whose_folder_was_deleted_are_searched(traces: Traces, whom: dict[str, Any]) -> None:
    registry = traces.place.registry
    copied = registry.path(1).with_name("gone")
    registry.path(1).rename(copied)  # only its row is left, and names the snapshot

    run = traces.place.ask("erase", **whom)

    assert run.document["not_here"] == [1]
    assert run.document["snapshot_rows"] == 1
    assert files_with(traces.place.loop.snapshots_dir, ANNA) == []


def test_what_killed_writers_left_is_gone_too(traces: Traces) -> None:
    loop = traces.place.loop
    left = [loop.snapshots_dir / "abc.writing", traces.reports / "9.html.77.tmp"]
    day = next(path for path in traces.exports.iterdir())
    left.append(day / "part-0.parquet.writing")
    for path in left:
        path.write_text(ANNA)

    traces.place.ask("erase", feature="purpose", value=ANNA)

    assert [path for path in left if path.exists()] == []
    assert files_with(traces.home, ANNA) == []


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [("41", ["text", "number"]), (41, ["number"]), (True, ["truth"]), ("true", ["truth"]), (1, []), ("4", [])],
)
def test_a_value_given_as_text_also_means_what_it_spells(
    sqlite_url: str, tmp_path: Path, wanted: Any, meant: list[str]
) -> None:
    engine = open_store(sqlite_url)
    log = PredictionLog(tmp_path / "spool", POLICY)
    values = {"text": "41", "number": 41.0, "truth": True, "absent": None}
    for id_, value in values.items():
        append(log, NOW, [id_], [{"who": value}])
    drain(tmp_path / "spool", engine)

    assert find(engine, Subject(feature="who", value=wanted), NOW).ids == set(meant)

    log.close()
    engine.dispose()


READER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("begin")
connection.execute("select count(*) from predictions").fetchall()
print("reading", flush=True)
sys.stdin.readline()
"""


def test_an_erasure_waits_for_a_reader_says_who_it_is_and_lets_others_write_meanwhile(traces: Traces) -> None:
    database = str(traces.place.engine.url.database)
    with python(READER, database) as reader:
        assert reader.stdin is not None and reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"

        def write(seconds: float) -> None:
            """As the drain and the lease do, between two looks of the erasure; were it locked out, this would raise."""
            with connect(traces.place.engine.url.render_as_string()).begin() as connection:
                connection.exec_driver_sql("update evergreen_meta set schema_version = schema_version")
            slept.append(seconds)
            if len(slept) == 4:
                reader.stdin.write("\n")  # type: ignore[union-attr]
                reader.stdin.flush()  # type: ignore[union-attr]
                reader.wait()

        slept: list[float] = []
        traces.place.loop = replace(traces.place.loop, sleep=write)
        run = traces.place.ask("erase", ids=["anna-1"])

    assert run.outcome == "erased", run.document
    assert f"process {reader.pid} (" in run.document["waited_for"]
    assert len(slept) == 4


def test_an_erasure_that_a_reader_never_lets_end_says_who_it_was(traces: Traces) -> None:
    with python(READER, traces.place.engine.url.database) as reader:
        assert reader.stdout is not None and reader.stdout.readline() == "reading\n"
        hurried = replace(traces.place.loop, sleep=lambda seconds: None)
        traces.place.loop = hurried
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("monitoring.retention.HELD_S", 1.0)
            run = traces.place.ask("erase", ids=["anna-1"])

    assert (run.state, run.outcome) == ("failed", "refused")
    assert f"process {reader.pid} (" in run.document["error"] and "anna" not in json.dumps(run.document)
