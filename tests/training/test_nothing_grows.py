"""With default settings nothing grows for ever, after however many retrainings, restarts and labels."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa

from monitoring import store
from monitoring.retention import DAY_S, RetentionPolicy, expire_unmatched, forget_drained
from tests.places import TOKEN, Place, first, place
from training.cycle import run_cycle, run_retention
from training.data import snapshot
from training.registry import DEPTH, UnknownVersion
from training.rollout import WorkerState, forget_workers, report_workers

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

__all__ = ["first", "place"]  # fixtures


def size(folder: Path) -> tuple[int, int]:
    """(bytes, files)."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files), len(files)


def test_after_two_hundred_retrainings_var_has_stopped_growing_and_rollbacks_still_work(
    place: Place,
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    work, manifest = tmp_path / "work", place.registry.path(1) / "manifest.json"
    shutil.copytree(manifest.parent, work)
    known = json.loads(manifest.read_text())
    policy, sizes, versions = RetentionPolicy(), list[tuple[int, int]](), [1]
    with place.engine.begin() as connection:
        connection.exec_driver_sql("update leases set expires_at = expires_at + 1e9")

    for number in range(200):
        place.now += 4 * DAY_S
        frame = pd.DataFrame({"_at": [float(row) for row in range(500)], "x": [float(number)] * 500})
        taken = snapshot(frame, home / "snapshots")
        os.utime(taken.path, (place.now, place.now))
        known["data"] = {**known["data"], "snapshot": taken.digest}
        (work / "manifest.json").write_text(json.dumps(known))
        run = place.runs.start("retrain", trigger="manual", who="me", why="", now=place.now, token=TOKEN)
        version = place.registry.register(work, origin="retrain", now=place.now, token=TOKEN)
        if number % 3:  # every third one loses
            place.registry.announce(version, TOKEN)
            place.registry.flip(version, TOKEN)
            versions.append(version)
        record = {"verdict": known, "data": known["data"]}
        place.runs.finish(run, state="done", outcome="kept", now=place.now, token=TOKEN, record=record)
        run_retention(place.loop, policy)
        place.runs.prune(before=place.now - 30 * DAY_S, runs_before=place.now - policy.runs_days * DAY_S, keep=50)
        with place.engine.connect() as connection:
            connection.exec_driver_sql("pragma wal_checkpoint(truncate)")
        sizes.append(size(home))

    print("bytes and files after 20, 60, 120, 180, 200:", [sizes[at - 1] for at in (20, 60, 120, 180, 200)])
    bytes_, files = zip(*sizes, strict=True)
    settled = 1 + int(policy.runs_days / 4)  # the two years for which runs are kept are over
    assert settled < 190
    assert max(files[settled:]) <= max(files[30:settled]) + 2
    assert max(bytes_[settled:]) <= max(bytes_[:settled]) * 1.02
    kept = {version.version for version in place.registry.list()}
    assert kept == set(range(201 - policy.versions + 1, 202)) | set(versions[-DEPTH - 1 :])
    assert {int(path.name) for path in (place.registry.models_dir / "credit").iterdir() if path.is_dir()} == kept
    assert len(list((home / "snapshots").glob("*.parquet"))) <= len(kept) + 2
    assert not list((place.registry.models_dir.parent / "incoming").iterdir())
    deleted = [v for run in place.runs.list(kind="retention", limit=500) for v in run.document["deleted_versions"]]
    assert deleted and not set(deleted) & kept

    for former in reversed(versions[-DEPTH - 1 : -1]):
        assert place.registry.rollback(TOKEN).champion == former
        place.registry.path(former)
    with pytest.raises(UnknownVersion):
        place.registry.announce(deleted[0], TOKEN)


def test_the_record_of_a_deleted_version_is_read_as_before(place: Place, tmp_path: Path) -> None:
    work = tmp_path / "work"
    place.answer(150, 1, moved=False)
    shutil.copytree(place.registry.path(1), work)
    for _ in range(DEPTH + 1):  # the version that answered is not even a former champion any more
        version = place.registry.register(work, origin="retrain", now=place.now, token=TOKEN)
        place.registry.announce(version, TOKEN)
        place.registry.flip(version, TOKEN)

    run = run_retention(place.loop, RetentionPolicy(versions=1))
    place.answer(150, 2, moved=False)
    checked = run_cycle(place.loop)
    erased = place.ask("erase", ids=["1-0"])

    assert run is not None and run.document["deleted_versions"] == [1]
    assert checked.state == "done"
    assert place.runs.checks(limit=1)[0].quality is not None
    assert (erased.outcome, erased.document["rows"]["predictions"]) == ("erased", 1)


def test_a_deletion_that_was_cut_off_is_finished_by_the_next_holder(
    place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = tmp_path / "work"
    shutil.copytree(place.registry.path(1), work)
    version = place.registry.register(work, origin="retrain", now=place.now, token=TOKEN)

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.registry.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        place.registry.delete(version, TOKEN)
    monkeypatch.undo()
    assert place.registry.path(version).is_dir()

    assert len(place.registry.clean()) == 1
    assert not (place.registry.models_dir / "credit" / str(version)).exists()
    assert not place.registry.delete(1, TOKEN), "the champion stays"


@pytest.fixture
def engine(store_url: str) -> Iterator[sa.Engine]:
    engine = store.open_store(store_url)
    yield engine
    engine.dispose()


def test_workers_of_servers_that_are_gone_leave_no_rows(engine: sa.Engine) -> None:
    count = sa.select(sa.func.count()).select_from(store.workers)
    for start in range(50):
        report_workers(engine, f"host:{start}", [WorkerState(f"host:{start}", slot) for slot in ("api-1", "api-2")])
        with engine.begin() as connection:  # an hour and a half goes by
            connection.execute(store.workers.update().values(seen_at=store.workers.c.seen_at - 5400))
        forget_workers(engine, RetentionPolicy().workers_s)
        with engine.connect() as connection:
            assert (connection.scalar(count) or 0) <= 2


def test_labels_that_name_no_prediction_go_in_time_and_no_others(engine: sa.Engine) -> None:
    now = 1_700_000_000.0
    key = {"day": 1, "segment": 1}
    answer = {"at": now, "version": 1, "features": "{}", "prediction": "1"}
    store.ensure_days(engine, [1])
    with engine.begin() as connection:
        connection.execute(
            store.predictions.insert(), [{**key, **answer, "position": n, "id": f"known-{n}"} for n in range(1500)]
        )
        rows = [{**key, "position": n, "id": f"known-{n}", "received_at": now - 40 * DAY_S} for n in range(1500)]
        rows += [{**key, "position": 5000 + n, "id": f"lost-{n}", "received_at": now - 40 * DAY_S} for n in range(1100)]
        rows += [{**key, "position": 9000 + n, "id": f"early-{n}", "received_at": now - DAY_S} for n in range(3)]
        connection.execute(store.labels.insert(), [{**row, "label": "1", "observed_at": now} for row in rows])

    assert expire_unmatched(engine, now - 30 * DAY_S) == 1100
    assert expire_unmatched(engine, now - 30 * DAY_S) == 0
    with engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(store.labels)) == 1503


def test_segments_long_gone_are_forgotten_but_not_those_still_in_the_spool(engine: sa.Engine) -> None:
    old, here, new = (int(at * 1000) << 20 for at in (1_600_000_000, 1_600_000_001, 1_700_000_000))
    with engine.begin() as connection:
        connection.execute(store.drained.insert(), [{"segment": one, "reached": 1} for one in (old, here, new)])

    assert forget_drained(engine, 1_690_000_000.0, keep={here}) == 1
    with engine.connect() as connection:
        assert set(connection.scalars(sa.select(store.drained.c.segment))) == {here, new}


def test_without_anything_to_delete_there_is_no_run(place: Place) -> None:
    assert run_retention(replace(place.loop), RetentionPolicy()) is None
