"""From a version to its data, run and answers, and back; tags and notes; two versions on the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import sqlalchemy as sa

from monitoring.store import predictions
from tests.lived import lived
from tests.paged import Paged, grown, here, there
from tests.places import TOKEN, Place, first
from training import lineage as module
from training.apart import Bounds
from training.comparison import compare
from training.lineage import NothingKnown, lineage, of_answer, of_run, of_snapshot
from training.marks import BadMark, marks, note, tag
from training.registry import UnknownVersion
from training.runs import UnknownRun
from training.same_rows import SameRows, same_rows

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

__all__ = ["first", "grown", "here", "lived", "there"]  # fixtures

BOUNDS = Bounds(longest_s=120.0)


def test_a_version_leads_to_its_data_its_run_and_its_answers(there: Paged) -> None:
    registry = there.place.registry
    found = lineage(there.engine, there.place.registry, 2)
    manifest = registry.manifest(2)

    assert (found.data.snapshot, found.data.rows) == (manifest.data.snapshot, manifest.data.known)
    assert (found.data.recorded, found.data.fitted) == (660, manifest.data.rows)
    assert found.made is not None and (found.made.run, found.made.kind, found.made.against) == (3, "retrain", 1)
    assert found.made.check == 2 and "quality lost" in found.made.why
    assert [(one.run, one.until) for one in found.served] == [(3, None)]
    with there.engine.connect() as connection:
        at = predictions.c.at
        wanted = sa.select(sa.func.count(), sa.func.min(at), sa.func.max(at)).where(predictions.c.version == 2)
        rows, since, until = connection.execute(wanted).one()
    assert (found.answers.rows, found.answers.since, found.answers.until) == (rows, since, until)
    assert (found.answers.more, found.answers.adaptations > 0) == (False, True)

    first = lineage(there.engine, there.place.registry, 1)
    assert (first.answers.rows, first.data.recorded, first.data.shared_with) == (660, 0, ())
    assert first.served[0].until == found.served[0].since


def test_of_many_answers_so_many_are_counted(here: Paged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_COUNTED", 100)

    found = lineage(here.engine, here.place.registry, 1).answers

    assert (found.rows, found.more) == (100, True)
    assert found.until is not None and found.since is not None and found.until - found.since > 600


def test_a_version_that_served_twice_has_two_times_and_each_answer_once(lived: Place) -> None:
    lived.ask("rollback")
    lived.now += 5
    lived.ask("promote", version=2)  # within the minute in which a swap may still be under way
    lived.answer(20, 12, moved=True)

    found = lineage(lived.engine, lived.registry, 2)

    assert [one.until is None for one in found.served] == [False, True]
    assert found.answers.rows == 300 + 150 + 20


def test_a_version_that_was_never_in_service_has_no_answers_and_none_are_looked_for(lived: Place) -> None:
    version = lived.registry.register(lived.registry.path(2), origin="push", now=lived.now)
    with lived.engine.begin() as connection:
        connection.execute(predictions.update().where(predictions.c.id == "11-149").values(version=version))

    assert lineage(lived.engine, lived.registry, version).answers.rows == 0
    with lived.engine.begin() as connection:  # retention: who was promoted when is not known any more
        connection.exec_driver_sql("delete from runs where kind != 'check'")
    assert lineage(lived.engine, lived.registry, version).answers.rows == 1
    data = of_snapshot(lived.engine, lived.registry, str(lived.registry.manifest(2).data.snapshot))
    assert [(one.version, one.how) for one in data.versions] == [(2, "was made from it"), (3, "was judged on it")]


def test_an_answer_leads_to_the_version_that_gave_it_and_to_those_that_learnt_from_it(lived: Place) -> None:
    snapshots = lived.loop.snapshots_dir

    old, new = (of_answer(lived.engine, lived.registry, id_, snapshots) for id_ in ("600-3", "11-3"))

    assert [(one.version, one.how) for one in old.versions] == [(1, "answered it"), (2, "learnt from it")]
    assert [(one.version, one.how) for one in new.versions] == [(2, "answered it")]
    assert (old.facts["adaptation"], new.facts["adaptation"]) == (None, 2)
    assert isinstance(old.facts["label"], bool)
    assert [one.how for one in of_answer(lived.engine, lived.registry, "600-3").versions] == ["answered it"]
    with pytest.raises(NothingKnown, match="no answer with the id 'nobody'"):
        of_answer(lived.engine, lived.registry, "nobody")


def test_after_an_erasure_an_answer_leads_nowhere(lived: Place) -> None:
    assert lived.ask("erase", ids=["600-3"]).outcome == "erased"

    with pytest.raises(NothingKnown, match="or was deleted or erased"):
        of_answer(lived.engine, lived.registry, "600-3", lived.loop.snapshots_dir)


def test_a_run_and_a_snapshot_lead_to_their_version(there: Paged) -> None:
    registry = there.place.registry
    digest = registry.manifest(2).data.snapshot
    assert digest is not None

    run, calm = of_run(there.engine, registry, 3), of_run(there.engine, registry, 4)
    data = of_snapshot(there.engine, registry, digest[:8])

    assert [(one.version, one.how) for one in run.versions] == [(2, "was made by it")]
    assert (run.facts["snapshot"], calm.versions) == (digest, ())
    assert (data.what, data.facts["runs"]) == (f"snapshot {digest}", [3])
    assert [(one.version, one.how) for one in data.versions] == [(2, "was made from it")]
    with pytest.raises(UnknownRun):
        of_run(there.engine, registry, 999)
    for odd in ("ab", "nothing", digest[:3], "0" * 12):
        with pytest.raises(NothingKnown):
            of_snapshot(there.engine, registry, odd)


def test_a_deleted_version_is_still_the_one_that_answered(lived: Place) -> None:
    with lived.engine.begin() as connection:
        connection.exec_driver_sql("delete from aliases where alias like 'previous%'")
    assert lived.registry.delete(1, TOKEN)

    found = of_answer(lived.engine, lived.registry, "600-3", lived.loop.snapshots_dir)

    assert [(one.version, one.origin) for one in found.versions] == [(1, "deleted"), (2, "retrain")]


def test_tags_and_notes_are_runs_that_say_who_and_when(there: Paged) -> None:
    engine, registry = there.engine, there.place.registry
    given: dict[str, Any] = {"engine": engine, "who": "ana", "now": 5.0}
    first = tag(registry, 2, ["prod", "fees-2026"], [], why="the fees", **given)
    tag(registry, 2, ["v7"], ["prod"], why="", **given)
    said = note(registry, 1, "learnt before the fees", **given)

    known = marks(engine)
    assert known[2].tags == ("fees-2026", "v7") and known[2].notes == ()
    assert [msgspec.to_builtins(one) for one in known[1].notes] == [
        {"run": said, "at": 5.0, "who": "ana", "text": "learnt before the fees"}
    ]
    told = there.get(f"/manage/runs/{first}")
    assert (told["kind"], told["outcome"], told["version"], told["who"], told["why"]) == (
        "tag", "tagged", 2, "ana", "the fees",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("add", "remove", "why"),
    [
        (["two words"], [], "letters, digits"),
        (["-x"], [], "letters, digits"),
        (["x" * 41], [], "letters, digits"),
        ([], ["never"], "has no tag never; it has none"),
        ([], [], "at least one"),
    ],
)
def test_a_tag_that_is_none_is_refused(here: Paged, add: list[str], remove: list[str], why: str) -> None:
    with pytest.raises(BadMark, match=why):
        tag(here.place.registry, 1, add, remove, engine=here.engine, who="ana", why="", now=5.0)
    with pytest.raises(UnknownVersion):
        tag(here.place.registry, 9, ["x"], [], engine=here.engine, who="ana", why="", now=5.0)
    for text in ("", "  ", "x" * 1001):
        with pytest.raises(BadMark, match="a note is a text"):
            note(here.place.registry, 1, text, engine=here.engine, who="ana", now=5.0)
    assert marks(here.engine) == {}


def test_tags_and_notes_outlive_the_runs_of_their_time(lived: Place) -> None:
    given: dict[str, Any] = {"engine": lived.engine, "who": "ana", "now": 5.0}
    tag(lived.registry, 2, ["prod"], [], why="", **given)
    note(lived.registry, 2, "kept", **given)

    assert lived.runs.prune(before=lived.now, runs_before=lived.now + 1, keep=1) > 0

    known = marks(lived.engine)[2]
    assert known.tags == ("prod",) and [one.text for one in known.notes] == ["kept"]


def asked(place: Place, a: int, b: int, rows: int = 400, snapshots: Path | None = None) -> SameRows:
    folder = snapshots or place.loop.snapshots_dir
    return same_rows(place.engine, place.registry, a, b, folder, rows=rows, bounds=BOUNDS)


def test_two_versions_are_asked_the_same_rows_and_labels_say_which_is_better(lived: Place) -> None:
    found = asked(lived, 1, 2, rows=600)

    assert (found.rows, found.asked, found.note) == (600, "the newest of the record", "")
    assert found.agree is not None and 0 < found.agree < 500 and found.identical < 20
    assert found.mean is not None and found.largest is not None and 0.1 < found.mean < found.largest <= 1
    labels = found.evidence
    assert labels is not None and (labels.rows, labels.metric) == (450, "log_loss")  # those that 2 did not learn
    assert labels.b < labels.a and labels.a - labels.b > 1.96 * labels.error
    assert found.shared == 700  # the rows of the source

    same = asked(lived, 2, 2, rows=300)
    assert (same.identical, same.agree, same.mean, same.largest) == (300, 300, 0.0, 0.0)


def test_without_a_record_the_rows_of_a_snapshot_are_asked(lived: Place, tmp_path: Path) -> None:
    with lived.engine.begin() as connection:
        connection.execute(predictions.delete())

    found = asked(lived, 1, 2)
    nothing = asked(lived, 1, 2, snapshots=tmp_path)

    assert (found.rows, found.asked, found.evidence) == (400, "of the snapshot of version 2", None)
    assert (nothing.rows, nothing.shared) == (0, None) and "no snapshot of them is on this host" in nothing.note


def test_versions_of_other_features_are_told_apart_and_not_asked(lived: Place, tmp_path: Path) -> None:
    from tests.training.test_reproduction import trains
    from tests.world import history
    from training import job
    from training.data import snapshot

    schema, frame = history(500, 0)
    assert job.run(trains(schema, snapshot(frame, lived.loop.snapshots_dir), tmp_path / "made")).ok
    assert lived.registry.register(tmp_path / "made", origin="bootstrap", now=1.0) == 3

    found = asked(lived, 2, 3)

    assert found.rows == 0 and "version 2 takes income, debt, purpose, which the other does not" in found.note
    both = compare(lived.engine, lived.registry, 2, 3)
    assert np.isin(["income", "city"], [row.feature for row in both.importance]).all()
