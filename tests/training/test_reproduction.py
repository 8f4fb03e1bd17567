"""Versions made again, from real deployments and in real processes; what cannot be made again is told."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
import skops.io

from monitoring.feature import Task
from monitoring.retention import DAY_S, RetentionPolicy
from monitoring.schema import FeatureSchema
from monitoring.store import open_store
from tests.lived import lived
from tests.paged import grown
from tests.places import TOKEN, Place, first, place, world
from tests.processes import python
from tests.world import history
from training import job
from training.apart import Bounds, WorkFailed
from training.artefact import SCHEMA
from training.cycle import run_retention
from training.data import Snapshot, prepare, snapshot
from training.pipeline import build
from training.registry import Registry
from training.reproduction import CannotReproduce, Reproduction, largest_difference, reproduce, same_bits
from training.spec import JobSpec
from training.trees import is_built

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

__all__ = ["first", "grown", "lived", "place"]  # fixtures

BOUNDS = Bounds(longest_s=120.0)
ENGINE = "trees" if is_built() else "onnx"


def again(place: Place, version: int, *, rows: int = 500, bounds: Bounds = BOUNDS) -> Reproduction:
    found = place.registry.get(version)
    return reproduce(
        found,
        place.registry.path(version),
        place.loop.snapshots_dir,
        rows=rows,
        bounds=bounds,
        store=place.engine.url.render_as_string(hide_password=False),
    )


def files_of(folder: Path) -> list[str]:
    """Names of the files below it, but for those of SQLite's log."""
    found = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if not name.endswith(("-wal", "-shm")))


def test_versions_are_made_again_bit_for_bit_and_so_is_what_they_answered_adapted_or_not(
    lived: Place, tmp_path: Path
) -> None:
    before = files_of(tmp_path / "home")

    one, two = again(lived, 1, rows=700), again(lived, 2, rows=400)

    assert (one.rows, one.identical, one.largest, one.same) == (700, 700, None, True)
    assert (one.served_by, one.estimator) == (ENGINE, "HistGradientBoostingClassifier")
    assert (one.changed, one.note) == ((), "")
    assert (one.recorded.rows, one.recorded.identical, one.recorded.adapted) == (660, 660, 0)
    assert (two.rows, two.identical, two.last_fit, two.same) == (400, 400, True, True)
    assert two.trained_on == lived.registry.manifest(2).data.rows
    assert (two.recorded.rows, two.recorded.identical, two.recorded.left_out) == (400, 400, 0)
    assert (two.recorded.adapted, two.recorded.adaptations) == (400, (1, 2))
    assert files_of(tmp_path / "home") == before  # nothing is left behind


def test_a_version_that_has_answered_nothing_is_made_again(place: Place) -> None:
    made = again(place, 1)

    assert (made.rows, made.same, made.recorded.rows) == (500, True, 0)


def test_answers_whose_adaptation_is_gone_are_left_out_and_counted(lived: Place) -> None:
    with lived.engine.begin() as connection:
        connection.exec_driver_sql("delete from adaptations where version = 2 and number = 1")

    recorded = again(lived, 2, rows=400).recorded

    assert recorded.rows == recorded.identical == recorded.adapted == 400 - recorded.left_out
    assert recorded.left_out > 0 and recorded.adaptations == (2,)


@pytest.mark.parametrize(("task", "last_fit"), [("multiclass", False), ("regression", True), ("regression", False)])
def test_every_task_and_the_judged_model_itself_are_made_again(tmp_path: Path, task: Task, last_fit: bool) -> None:
    schema, frame = history(500, 400, task=task, turned=False)
    data = snapshot(frame, tmp_path / "snapshots")
    training = {"last_fit": last_fit, "trials": 2, "min_rows": 100}

    made = made_again(trains(schema, data, tmp_path / "made", training=training), tmp_path)

    assert (made.last_fit, made.rows, made.identical) == (last_fit, 300, 300)
    assert (made.recorded.rows, made.same) == (0, True)


@pytest.mark.parametrize("family", ["forest", "extra_trees", "linear"])
def test_every_family_is_made_again(tmp_path: Path, family: str) -> None:
    schema, frame = history(500, 0)
    spec = trains(schema, snapshot(frame, tmp_path / "snapshots"), tmp_path / "made")

    made = made_again(msgspec.structs.replace(spec, parameters={"family": family}), tmp_path)

    assert (made.identical, made.rows) == (300, 300)
    assert made.estimator != "HistGradientBoostingClassifier"


def made_again(spec: JobSpec, folder: Path) -> Reproduction:
    """What comes of training as the spec says, and of making this again."""
    result = job.run(spec)
    assert result.ok, result.error
    registry = Registry(open_store(f"sqlite:///{folder}/evergreen.db"), folder / "bentoml" / "models", "credit")
    registry.register(Path(spec.out), origin="bootstrap", now=1.0)
    return reproduce(registry.get(1), registry.path(1), Path(spec.snapshot).parent, rows=300, bounds=BOUNDS)


def trains(schema: FeatureSchema, data: Snapshot, out: Path, **more: Any) -> JobSpec:
    """A training of a first version."""
    return JobSpec(
        kind="train",
        out=str(out),
        snapshot=str(data.path),
        schema=msgspec.json.decode(schema.to_json()),
        parameters={"max_iter": 15},
        gates={"min_holdout_rows": 100},
        seed=7,
        nice=0,
        **more,
    )


def test_another_manifest_makes_another_model_and_says_by_how_much(lived: Place) -> None:
    manifest = lived.registry.manifest(1)
    libraries = {**manifest.libraries, "numpy": "1.0", "scikit-learn": "0.1"}
    parameters = {**manifest.parameters, "learning_rate": 0.2}
    changed = manifest.changed(parameters=parameters, libraries=libraries, machine="Plan9 z80")
    lived.registry.amend(1, changed, TOKEN)

    one = again(lived, 1)

    assert not one.same and one.identical < 50 and one.largest is not None and one.largest > 0.01
    assert {each.name for each in one.changed} == {"numpy", "scikit-learn", "machine"}
    assert next(each.then for each in one.changed if each.name == "machine") == "Plan9 z80"


def test_a_pushed_version_cannot_be_made_again_and_why(place: Place) -> None:
    place.answer(400, 7, moved=True)
    schema = FeatureSchema.from_json((place.registry.path(1) / SCHEMA).read_bytes())
    frame = world(600, 8, moved=True)
    path = place.loop.snapshots_dir.parent / "mine.skops"
    skops.io.dump(build(schema, {"max_iter": 30}).fit(schema.canonical(frame), schema.labels(frame["late"])), path)
    assert place.ask("push", path=str(path)).version == 2

    with pytest.raises(CannotReproduce, match=r"version 2 was pushed: .*only its pusher knows.*models export 2"):
        again(place, 2)


def test_rows_that_were_erased_are_missed_and_the_run_is_named(lived: Place) -> None:
    erased = lived.ask("erase", ids=["600-3", "600-4"])
    assert erased.outcome == "erased"

    with pytest.raises(WorkFailed, match=rf"2 of the [\d,]+ rows it was made from were erased by run {erased.id}"):
        again(lived, 2)


def test_a_snapshot_that_is_gone_is_told_with_what_to_do(lived: Place) -> None:
    digest = lived.registry.manifest(2).data.snapshot
    (lived.loop.snapshots_dir / f"{digest}.parquet").rename(lived.loop.snapshots_dir / "elsewhere")

    with pytest.raises(CannotReproduce, match=rf"{digest}.*copy the file from there, or from a backup"):
        again(lived, 2)


def test_what_retention_deleted_is_told(lived: Place, tmp_path: Path) -> None:
    rows = prepare(world(500, 3), target="late")
    spec = trains(rows.schema, snapshot(rows.frame, lived.loop.snapshots_dir), tmp_path / "made")
    assert job.run(spec).ok
    assert lived.registry.register(tmp_path / "made", origin="retrain", now=lived.now) == 3  # never in service
    os.utime(spec.snapshot, (lived.now, lived.now))
    lived.now += 4 * DAY_S
    with lived.engine.begin() as connection:
        connection.exec_driver_sql("update leases set expires_at = expires_at + 864000")
    run = run_retention(lived.loop, RetentionPolicy(predictions_days=3))
    assert run is not None and run.document["snapshots"] == 1 and run.document["versions"] == [3]

    with pytest.raises(CannotReproduce, match="retention deleted it with rows of its age"):
        again(lived, 3)


def test_another_file_in_the_snapshots_place_is_seen(lived: Place) -> None:
    one, two = (lived.registry.manifest(number).data.snapshot for number in (1, 2))
    (lived.loop.snapshots_dir / f"{two}.parquet").replace(lived.loop.snapshots_dir / f"{one}.parquet")

    with pytest.raises(WorkFailed, match=f"version 1 cannot be made again: .*content {two}"):
        again(lived, 1)


def test_one_that_takes_too_long_or_too_much_is_ended(lived: Place) -> None:
    with pytest.raises(WorkFailed, match=r"longer than 0\.05 s"):
        again(lived, 1, bounds=Bounds(longest_s=0.05))
    with pytest.raises(WorkFailed, match=r"training\.memory_mb"):
        again(lived, 1, bounds=Bounds(memory_mb=16))


def test_killed_in_the_middle_it_leaves_nothing_behind(lived: Place, tmp_path: Path) -> None:
    before = files_of(tmp_path / "home")
    program = """
import sys
from pathlib import Path
from tests.places import Place
from tests.training.test_reproduction import again
print("ready", flush=True)
while True:
    again(Place(Path(sys.argv[1])), 2)
"""
    with python(program, tmp_path / "home") as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        child = _child_of(process.pid)
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs([child], timeout=180)
        assert not alive

    assert files_of(tmp_path / "home") == before


def _child_of(pid: int) -> psutil.Process:
    while True:
        found = psutil.Process(pid).children()
        if found:
            return found[0]
        time.sleep(0.01)


def test_bits_are_compared_not_values() -> None:
    a = np.array([[0.1, 0.9], [np.nan, 0.0], [0.0, 1.0]])
    b = np.array([[0.1, 0.9], [np.nan, 0.0], [-0.0, 1.0]])

    assert same_bits(a, b).tolist() == [True, True, False]
    assert not same_bits(a, a.astype(np.float32)).any()
    assert same_bits(np.empty((0, 2)), np.empty((0, 2))).tolist() == []
    assert largest_difference(a, np.nextafter(a, 2)) < 1e-15
