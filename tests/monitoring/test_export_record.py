from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from monitoring.drain import Drainer
from monitoring.export import export
from monitoring.log import PredictionLog
from monitoring.schema import FeatureSchema
from monitoring.store import open_store
from monitoring.window import read_window
from tests.places import POLICY, append, append_label, record, world

DAY = 86_400.0
MONDAY = 20_416 * DAY  # 2025-11-24 UTC


@pytest.fixture
def schema() -> FeatureSchema:
    return FeatureSchema.infer(world(300, 0), "late")


def recorded(url: str, spool: Path, rows: int = 30) -> sa.Engine:
    """Three days, ten rows each, every second one with a label."""
    engine = open_store(url)
    log = PredictionLog(spool, POLICY)
    for row in range(rows):
        at = MONDAY + row * 3 * DAY / rows
        append(log, at, [f"r{row}"], [record("car" if row % 3 else "home", income=float(row))])
        if row % 2:
            append_label(log, at, f"r{row}")
    log.close()
    with Drainer(spool, engine) as drainer:
        drainer.drain(MONDAY)
    return engine


def test_an_export_is_the_window_again_one_file_a_day(store_url: str, tmp_path: Path, schema: FeatureSchema) -> None:
    engine = recorded(store_url, tmp_path / "spool")

    done = export(engine, schema, str(tmp_path / "out"), chunk_rows=7)

    assert (done.rows, done.labelled, done.skipped) == (30, 15, 0)
    assert done.files == tuple(f"day=2025-11-{day}/part-0.parquet" for day in (24, 25, 26))
    assert sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file()) == ["part-0.parquet"] * 3
    read = pd.read_parquet(tmp_path / "out").sort_values("_at", ignore_index=True)
    window = read_window(engine, schema)
    for name in (*schema.names, "_id", "_at", "_version", "_score"):
        assert read[name].tolist() == window[name].tolist(), name
    assert read["_adaptation"].isna().all()
    assert read["income"].dtype == np.float32
    assert [None if pd.isna(x) else x for x in read["_label"]] == [None if pd.isna(x) else x for x in window["_label"]]
    assert read["day"].astype(str).tolist() == ["2025-11-24"] * 10 + ["2025-11-25"] * 10 + ["2025-11-26"] * 10
    engine.dispose()


def test_exporting_a_day_again_replaces_it(sqlite_url: str, tmp_path: Path, schema: FeatureSchema) -> None:
    engine = recorded(sqlite_url, tmp_path / "spool")

    export(engine, schema, str(tmp_path / "out"))
    again = export(engine, schema, str(tmp_path / "out"), since=MONDAY + DAY, until=MONDAY + 2 * DAY)

    assert (again.rows, again.files) == (10, ("day=2025-11-25/part-0.parquet",))
    assert len(pd.read_parquet(tmp_path / "out")) == 30
    assert export(engine, schema, str(tmp_path / "out"), version=9).files == ()
    engine.dispose()


def test_any_fsspec_url_will_do(sqlite_url: str, tmp_path: Path, schema: FeatureSchema) -> None:
    import fsspec

    engine = recorded(sqlite_url, tmp_path / "spool", rows=3)

    done = export(engine, schema, "memory://record/of/credit")

    found = fsspec.filesystem("memory").glob("/record/of/credit/day=*/part-0.parquet")
    assert len(found) == len(done.files) == 3
    fsspec.filesystem("memory").rm("/record", recursive=True)
    engine.dispose()


def test_an_export_that_fails_leaves_no_file_of_that_day(
    sqlite_url: str, tmp_path: Path, schema: FeatureSchema
) -> None:
    engine = recorded(sqlite_url, tmp_path / "spool")

    def full(rows: int) -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        export(engine, schema, str(tmp_path / "out"), on_rows=full)

    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == []
    engine.dispose()
