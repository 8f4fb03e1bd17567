from __future__ import annotations

import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa

from monitoring.log import PredictionLog
from monitoring.retention import DAY_S, RetentionPolicy, compact, expire
from monitoring.store import labels, open_store, predictions, rejections
from tests.places import (
    NOW,
    POLICY,
    TOKEN,
    Place,
    append,
    append_label,
    drain,
    files_with,
    first,
    place,
    record,
)
from training.artefact import REFERENCE, verify
from training.cycle import run_retention

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

__all__ = ["first", "place"]  # fixtures


def count(engine: sa.Engine, table: sa.Table) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0)


def test_each_table_is_kept_as_long_as_its_own_days_say(store_url: str, tmp_path: Path) -> None:
    engine = open_store(store_url)
    log = PredictionLog(tmp_path / "spool", POLICY)
    for days_ago in (1, 5, 9):
        append(log, NOW - days_ago * DAY_S, [f"a{days_ago}"], [record("car")])
        append_label(log, NOW - days_ago * DAY_S, f"a{days_ago}")
    log.close()
    drain(tmp_path / "spool", engine)

    deleted = expire(engine, RetentionPolicy(predictions_days=2, labels_days=7).cutoffs(NOW))
    compact(engine)

    assert deleted == {"predictions": 2, "labels": 1, "rejections": 0, "dead_letters": 0}
    assert (count(engine, predictions), count(engine, labels)) == (1, 2)
    engine.dispose()


def test_zero_days_keep_for_ever(sqlite_url: str) -> None:
    policy = RetentionPolicy(rejections_days=0, dead_letters_days=0)

    assert policy.cutoffs(NOW) == {}
    assert expire(open_store(sqlite_url), policy.cutoffs(NOW)) == {}


def test_more_rows_than_one_transaction_takes_all_go(sqlite_url: str) -> None:
    engine = open_store(sqlite_url)
    row = {"day": 1, "segment": 1, "at": NOW, "route": "/predict", "status": 400, "count": 1, "reason": "unknown"}
    with engine.begin() as connection:
        connection.execute(rejections.insert(), [{**row, "position": at} for at in range(12_000)])

    assert expire(engine, {"rejections": NOW + 1}) == {"rejections": 12_000}
    engine.dispose()


def test_with_the_predictions_go_exported_days_pages_and_the_references_of_retired_versions(
    place: Place,
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    retired = place.registry.path(1)
    work = tmp_path / "work"
    shutil.copytree(retired, work)
    for _ in range(2):
        version = place.registry.register(work, origin="push", now=place.now)
    place.registry.announce(version, TOKEN)
    place.registry.flip(version, TOKEN)  # 1 is a former champion, 2 never was in service
    exports, reports = home / "exports", home / "reports"
    loop = replace(place.loop, exports=str(exports), reports_dir=reports)
    day = datetime.fromtimestamp(place.now, UTC).strftime("%Y-%m-%d")
    old, new = exports / f"day={day}", exports / "day=2999-01-01"
    for folder in (old, new, reports):
        folder.mkdir(parents=True)
        (folder / "3.html").write_text("x")
    os.utime(reports / "3.html", (place.now, place.now))
    place.now += 4 * DAY_S
    with place.engine.begin() as connection:
        connection.exec_driver_sql("update leases set expires_at = expires_at + 864000")

    run = run_retention(loop, RetentionPolicy(predictions_days=3))

    assert run is not None
    assert (run.document["exports"], run.document["reports"], run.document["versions"]) == (1, 1, [2])
    assert not old.exists() and new.exists() and not (reports / "3.html").exists()
    rows = {v: len(pd.read_parquet(place.registry.path(v) / REFERENCE)) for v in (1, 2, 3)}
    assert rows[1] == rows[3] > 0 == rows[2]
    manifest = verify(place.registry.path(2))
    assert manifest.reproducible is False and manifest == place.registry.manifest(2)
    assert run_retention(loop, RetentionPolicy(predictions_days=3)) is None


def test_copies_out_of_reach_are_named_and_tried_again_and_the_others_go(
    place: Place,
    tmp_path: Path,
) -> None:
    place.answer(20, 1, moved=False)
    loose = tmp_path / "home" / "snapshots" / "of-a-refused-candidate.parquet"
    loose.write_bytes(b"x")
    os.utime(loose, (place.now, place.now))
    loop = replace(place.loop, exports="no-such-protocol://bucket/record")
    place.now += 4 * DAY_S
    with place.engine.begin() as connection:
        connection.exec_driver_sql("update leases set expires_at = expires_at + 864000")

    run = run_retention(loop, RetentionPolicy(predictions_days=3))
    again = run_retention(loop, RetentionPolicy(predictions_days=3))

    assert run is not None and again is not None
    assert run.document["rows"]["predictions"] == 20 and run.document["snapshots"] == 1
    assert "no-such-protocol" in run.document["errors"]["exports"]
    assert list(again.document["errors"]) == ["exports"]


def test_retention_is_a_run_and_leaves_the_value_nowhere_but_keeps_the_champions_snapshot(
    place: Place,
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    loop = replace(place.loop, spool_dir=home / "spool")
    log = PredictionLog(home / "spool", POLICY)
    append(log, place.now, ["old-1"], [record("an old secret")])
    drain(home / "spool", place.engine)
    kept = [path.name for path in (home / "snapshots").glob("*.parquet")]
    assert kept
    loose = home / "snapshots" / "of-a-refused-candidate.parquet"
    loose.write_bytes(b"an old secret")
    for path in (home / "snapshots").glob("*.parquet"):
        os.utime(path, (place.now, place.now))
    assert run_retention(loop, RetentionPolicy(predictions_days=3)) is None
    place.now += 4 * DAY_S
    other = PredictionLog(home / "spool", POLICY)  # the first worker has had no request since: its segment is open
    append(other, place.now, ["new-1"], [record("car")])
    drain(home / "spool", place.engine)

    with place.engine.begin() as connection:  # the lease of the test ran a day; the clock above is not the database's
        connection.exec_driver_sql("update leases set expires_at = expires_at + 86400")
    run = run_retention(loop, RetentionPolicy(predictions_days=3))

    assert run is not None and (run.kind, run.outcome) == ("retention", "deleted")
    assert run.document["rows"] == {"predictions": 1, "rejections": 0, "dead_letters": 0, "unmatched_labels": 0}
    assert (run.document["snapshots"], run.document["spool_records"]) == (1, 1)
    assert [path.name for path in (home / "snapshots").glob("*.parquet")] == kept
    assert files_with(home, "an old secret") == []
    assert drain(home / "spool", place.engine).predictions == 0
    assert count(place.engine, predictions) == 1
    log.close()
    other.close()
