"""The fast layer through a real store: made at checks, scored by what answered, taken back when it harms."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import sqlalchemy as sa

from monitoring.store import labels, leases, predictions
from tests.places import Place, adapted, first, place, world
from training.adaptation import IDENTITY
from training.adaptations import Adaptations
from training.cycle import run_cycle
from training.experts import AdaptPolicy
from training.gate_policy import GatePolicy
from training.job import run
from training.lease import CONTROLLER, Lease, LeaseLost
from training.policy import RetrainPolicy
from training.spec import JobResult, JobSpec
from training.subprocess_job import subprocess_job

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # importing bentoml warns

__all__ = ["first", "place"]  # fixtures


def kinds(place: Place, version: int = 1) -> list[str]:
    return [event.kind for event in Adaptations(place.engine).list(version)]


def test_a_turned_world_is_adapted_to_within_a_few_checks(place: Place) -> None:
    for seed in range(1, 7):
        place.answer(300, seed, moved=True)
        found = adapted(place.loop)
        assert found is not None and found.made
    assert kinds(place) == ["made"] * 6
    newest = Adaptations(place.engine).newest(1)
    assert newest is not None
    weights = newest.record["weights"]
    assert weights[IDENTITY] < 0.1, weights
    assert newest.record["served_loss"] < 0.6 * newest.record["raw_loss"]
    assert newest.record["slope"] < 0 and "the opposite of the model" in newest.why
    assert newest.record["until"] == place.now


def test_the_quality_of_the_raw_output_is_judged_beside_that_of_the_served_one(place: Place) -> None:
    loop, checked = replace(place.loop, retrain=RetrainPolicy(growth=0, on_quality=False)), []
    for seed in range(1, 9):
        place.answer(300, seed, moved=True)
        run_cycle(loop)
        checked.append(next(iter(loop.runs.checks(limit=1))).quality or {})

    last = checked[-1]
    assert last["raw"]["state"] == "lost" and last["raw"]["words"].startswith("quality lost: raw AUC 0.")
    assert last["words"].startswith(f"quality {last['state']}: served ")
    raw, served = (compared["fall"]["value"] for compared in (last["raw"]["compared"][0], last["compared"][0]))
    assert raw < served, "the adaptation turned the answers round; the champion's own are as wrong as before"
    place.answer(40, 9, moved=True)
    run_cycle(loop)  # too few new rows for another adaptation
    assert (next(iter(loop.runs.checks(limit=1))).quality or {})["raw"] == last["raw"]


def test_a_stationary_world_keeps_the_champion_as_it_is(place: Place) -> None:
    for seed in range(1, 6):
        place.answer(300, seed, moved=False)
        adapted(place.loop)
    newest = Adaptations(place.engine).newest(1)
    assert newest is not None
    assert newest.record["served_loss"] < 1.03 * newest.record["raw_loss"]
    assert "reverted" not in kinds(place)


def test_nothing_is_made_of_few_rows_or_without_new_ones_or_when_switched_off(place: Place) -> None:
    place.answer(80, 1, moved=True)
    assert adapted(place.loop) is None
    place.answer(200, 2, moved=True)
    assert adapted(replace(place.loop, adapt=AdaptPolicy(enabled=False))) is None
    assert adapted(place.loop) is not None
    assert adapted(place.loop) is None, "no row has matured since"
    place.answer(60, 3, moved=True)
    Adaptations(place.engine).add(1, kind="off", who="ana", why="x", now=place.now, token=place.loop.token)
    assert adapted(place.loop) is None
    Adaptations(place.engine).add(1, kind="on", who="ana", why="x", now=place.now, token=place.loop.token)
    assert adapted(place.loop) is not None
    assert kinds(place) == ["made", "on", "off", "made"]


def test_rows_that_are_not_mature_do_not_count(place: Place) -> None:
    place.answer(300, 1, moved=True)
    matured = place.now
    place.answer(300, 2, moved=True)
    found = adapted(place.loop, until=matured + 0.5)
    assert found is not None and found.rows == 300


def test_each_row_is_scored_by_what_was_in_force_when_it_was_answered(place: Place) -> None:
    place.answer(300, 1, moved=True)
    made = adapted(place.loop)
    assert made is not None and not any(made.standing.values()), "nothing answered while an expert was in force"
    place.answer(300, 2, moved=True)
    second = adapted(place.loop)
    assert second is not None and second.compared == 300
    assert second.standing["shift-300"] != 0


def test_labels_that_were_too_late_for_a_training_teach_the_version_that_came_of_it(place: Place) -> None:
    place.answer(600, 1, moved=True)
    began = place.now
    place.answer(300, 2, moved=True, labelled=False)  # by version 1
    assert place.ask("retrain").outcome == "promoted"
    assert (place.registry.champion(), place.registry.manifest(2).until) == (2, began)
    assert kinds(place, 2) == ["made"], "it starts with one"
    assert adapted(place.loop, 2) is None, "version 2 has answered nothing, and no label has come"

    came = [
        {"day": 1, "segment": 7, "position": at << 16, "id": f"2-{at}", "label": "true" if late else "false"}
        for at, late in enumerate(world(300, 2, moved=True)["late"])
    ]
    with place.engine.begin() as connection:
        connection.execute(
            labels.insert(), [{**one, "observed_at": place.now, "received_at": place.now} for one in came]
        )
    found = adapted(place.loop, 2)

    assert found is not None and (found.made, found.rows, found.compared) == (True, 300, 0)
    assert any(found.standing.values()), "they score what version 2 started with"
    assert found.raw is not None and found.raw.state == "not known yet", "quality is that of its own answers"
    assert next(iter(place.runs.checks(limit=1, version=2)), None) is None
    run_cycle(place.loop)
    (seen,) = place.runs.checks(limit=1, version=2)
    assert seen.quality is not None and seen.quality["slices"]["rows"] == 0, "groups are those of its own answers"


def test_labels_from_elsewhere_move_nothing(place: Place) -> None:
    trusting = replace(place.loop, gates=GatePolicy(min_holdout_rows=100, label_sources=("backoffice",)))
    place.answer(300, 1, moved=True)
    assert adapted(trusting) is None
    with place.engine.begin() as connection:
        connection.execute(labels.update().values(source="backoffice"))
    assert adapted(trusting) is not None


def test_poison_from_a_trusted_source_is_taken_back_once_it_surely_harms(place: Place) -> None:
    """Labels are turned round for a while: the output follows them, within its bound. When true ones come back, what
    it had learnt does harm, and the raw output serves again until 1,000 rows have matured."""
    cautious = AdaptPolicy(rate=1.0, identity_prior=0.01, half_life_rows=100_000, guard_alpha=0.05)
    loop = replace(place.loop, adapt=cautious)
    for seed in range(1, 4):
        place.answer(300, seed, moved=False)
        with place.engine.begin() as connection:
            turned = sa.case((labels.c.label == "true", "false"), else_="true")
            connection.execute(labels.update().where(labels.c.id.like(f"{seed}-%")).values(label=turned))
        adapted(loop)
    poisoned = Adaptations(place.engine).newest(1)
    assert poisoned is not None and poisoned.record["slope"] < 0
    for seed in range(4, 12):
        place.answer(300, seed, moved=False)
        found = adapted(loop)
        if found is not None and found.harm:
            break
    assert kinds(place)[0] == "reverted"
    newest = Adaptations(place.engine).newest(1)
    assert newest is not None and "loses" in newest.why and "chance explains" in newest.why
    assert Adaptations(place.engine).in_force(1) is None
    place.answer(500, 21, moved=False)
    assert adapted(loop) is None, "it rests"
    place.answer(600, 22, moved=False)
    again = adapted(loop)
    assert again is not None and again.made and not any(again.standing.values()), "from nothing"


def test_a_job_that_dies_leaves_what_was_in_force_and_the_check_goes_on(place: Place) -> None:
    place.answer(300, 1, moved=False)
    assert adapted(place.loop) is not None
    place.answer(300, 2, moved=False)
    killed = replace(place.loop, run_job=partial(subprocess_job, timeout_s=0.0))
    assert adapted(killed) is None
    assert kinds(place) == ["made"]
    quiet = replace(killed, retrain=RetrainPolicy(on_quality=False, min_labelled_rows=10**6))
    assert run_cycle(quiet).kind == "check"


def test_a_replica_that_lost_its_lease_during_the_job_puts_nothing_in_force(place: Place) -> None:
    place.answer(300, 1, moved=True)
    other = Lease(place.engine, CONTROLLER, "another replica", 60)

    def robbed(spec: JobSpec) -> JobResult:
        with place.engine.begin() as connection:
            connection.execute(leases.update().values(expires_at=0.0))
        assert other.acquire()
        return run(spec)

    with pytest.raises(LeaseLost, match="another replica"):
        adapted(replace(place.loop, run_job=robbed))
    assert kinds(place) == [] and Adaptations(place.engine).in_force(1) is None
    assert list(place.loop.work_dir.iterdir()) == [], "its work files are gone"

    assert other.token is not None
    found = adapted(replace(place.loop, token=other.token))
    assert found is not None and found.made
    assert kinds(place) == ["made"]


@contextmanager
def no_file_may_grow_beyond(size: int) -> Iterator[None]:
    """As a full disk: writing more fails with an OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("where", ["rows", "folder"])
def test_a_full_disk_leaves_what_was_in_force_and_the_next_check_makes_one(
    where: str, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.answer(300, 1, moved=True)
    assert adapted(place.loop) is not None
    place.answer(300, 2, moved=True)
    if where == "rows":
        with no_file_may_grow_beyond(4_096):
            assert adapted(place.loop) is None
    else:
        (place.loop.work_dir.parent / "file").touch()
        assert adapted(replace(place.loop, work_dir=place.loop.work_dir.parent / "file")) is None
    assert "no adaptation of version 1 was made" in caplog.text
    in_force = Adaptations(place.engine).in_force(1)
    assert in_force is not None and in_force.number == 1
    assert adapted(place.loop) is not None
    assert kinds(place) == ["made", "made"]


def test_a_new_version_starts_with_an_adaptation_of_experts_that_are_known_already(place: Place) -> None:
    for seed in range(1, 4):
        place.answer(400, seed, moved=True)
        adapted(place.loop)
    before = Adaptations(place.engine).newest(1)
    assert before is not None
    run = place.ask("retrain")
    assert (run.outcome, run.version) == ("promoted", 2), run.document
    begun = Adaptations(place.engine).list(2)
    assert [event.kind for event in begun] == ["made"]
    standing, weights = begun[0].record["standing"], begun[0].record["weights"]
    assert standing.keys() >= {"shift-300", "scale-300", "residual-1000"} and weights[IDENTITY] < 0.3
    place.answer(120, 9, moved=True)
    with place.engine.connect() as connection:
        assert set(connection.scalars(sa.select(predictions.c.adaptation).where(predictions.c.version == 2))) == {1}
    found = adapted(place.loop, 2)
    assert found is not None and np.isfinite(found.served_loss or np.nan)
    newest = Adaptations(place.engine).newest(2)
    assert newest is not None
    assert "residual-1000" in newest.record["weights"], "made from the rows it started with, too: it answered only 120"
