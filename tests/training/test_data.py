from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from monitoring.feature import SchemaError
from tests.world import history, raw
from training.data import assemble, content_digest, prepare, read_snapshot, snapshot
from training.source import DataError, load_source


@pytest.mark.parametrize("name", ["data.parquet", "data.csv", "data.csv.gz"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    frame = raw(50)[["a", "b", "y"]]
    path = tmp_path / name
    frame.to_parquet(path) if name.endswith("parquet") else frame.to_csv(path, index=False)
    pd.testing.assert_frame_equal(load_source(path), frame)


def test_a_file_that_cannot_be_read_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.csv does not exist: give a file, a folder"):
        load_source(tmp_path / "absent.csv")
    with pytest.raises(DataError, match="is a folder"):
        load_source(tmp_path)
    (tmp_path / "data.xlsx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"is none of .parquet"):
        load_source(tmp_path / "data.xlsx")
    (tmp_path / "broken.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"broken\.parquet cannot be read"):
        load_source(tmp_path / "broken.parquet")
    (tmp_path / "empty.csv").write_text("a,y\n")
    with pytest.raises(DataError, match="has no rows"):
        load_source(tmp_path / "empty.csv")
    (tmp_path / "good.csv").write_text("a,y\n1,2\n")
    with pytest.raises(DataError, match="has no column 'target'; it has a, y"):
        load_source(tmp_path / "good.csv", columns=["target"])


def test_unlabelled_rows_are_left_out_and_rows_brought_into_time_order() -> None:
    frame = raw(40)
    frame["y"] = frame["y"].astype("float64")
    frame.loc[[3, 5], "y"] = np.nan
    frame.loc[7, "when"] = pd.NaT
    frame["empty"] = np.nan
    frame["constant"] = 1
    frame = pd.concat([frame, frame.iloc[[0]]]).iloc[::-1]
    data = prepare(frame, target="y", time="when")
    assert (len(frame), len(data.frame)) == (41, 38)
    assert data.frame["_label"].notna().all()
    assert {"empty", "constant"} <= set(data.schema.names)
    assert (np.diff(data.frame["_at"]) >= 0).all()
    assert data.frame.columns.tolist() == [*data.schema.names, "_at", "_label", "_origin"]
    assert "when" not in data.schema.names


def test_without_a_time_column_the_row_order_counts_and_lies_before_every_record() -> None:
    data = prepare(raw(10).drop(columns="when"), target="y")
    assert data.frame["_at"].tolist() == list(range(-10, 0))


def test_a_missing_target_or_no_label_at_all_is_said() -> None:
    with pytest.raises(DataError, match="target column 'z' is not in the data"):
        prepare(raw(5), target="z")
    with pytest.raises(DataError, match="none of the 5 rows has a label in 'y'"):
        prepare(raw(5).assign(y=np.nan), target="y")
    with pytest.raises(DataError, match="time column 'city' holds neither numbers nor ISO-8601 dates"):
        prepare(raw(5).assign(city="Ulm"), target="y", time="city")


@pytest.mark.parametrize("form", ["%d.%m.%Y", "%m/%d/%Y", "ms"])
def test_times_in_other_writings_give_the_same_rows_in_the_same_order(form: str) -> None:
    days = pd.Series(pd.date_range("2026-01-20", periods=40, freq="D"))
    frame = raw(40).assign(when=days)
    texts = days.astype("datetime64[ms]").astype("int64") if form == "ms" else days.dt.strftime(form)

    expected = prepare(frame, target="y", time="when").frame
    found = prepare(frame.assign(when=texts).sample(frac=1, random_state=0), target="y", time="when").frame

    pd.testing.assert_frame_equal(found, expected)


def test_a_time_whose_day_may_be_the_month_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="'when': is '05/04/2026' written %d/%m/%Y or %m/%d/%Y"):
        prepare(raw(4).assign(when=["05/04/2026", "02/03/2026", "06/01/2026", "07/02/2026"]), target="y", time="when")


def test_an_infinite_number_is_refused_by_the_schema() -> None:
    frame = raw(5)
    frame.loc[2, "b"] = np.inf
    with pytest.raises(SchemaError, match='"b"'):
        prepare(frame, target="y", time="when")


def test_a_snapshot_is_named_by_its_content_and_reads_back_the_same(tmp_path: Path) -> None:
    schema, frame = history(60, 40)
    first, again = snapshot(frame, tmp_path), snapshot(frame.copy(), tmp_path)
    assert first == again
    assert first.path == tmp_path / f"{first.digest}.parquet"
    assert [path.name for path in tmp_path.iterdir()] == [first.path.name]
    back = read_snapshot(first.path, schema)
    pd.testing.assert_frame_equal(back, frame)
    assert content_digest(back) == first.digest


def test_any_change_of_a_value_changes_the_digest() -> None:
    _, frame = history(30, 0)
    digests = {content_digest(frame)}
    for column, value in (
        ("a", 9.0),
        ("city", "Bern"),
        ("city", np.nan),
        ("_label", 1 - frame["_label"][4]),
        ("_at", 0.0),
    ):
        changed = frame.copy()
        changed.loc[4, "city"] = "Ulm"
        changed.loc[4, column] = value
        digests.add(content_digest(changed))
    digests.add(content_digest(frame.iloc[::-1]))
    digests.add(content_digest(frame.rename(columns={"a": "c"})))
    assert len(digests) == 8


def test_a_snapshot_that_is_not_one_is_refused(tmp_path: Path) -> None:
    schema, frame = history(30, 0)
    frame.drop(columns="_at").to_parquet(tmp_path / "no_at.parquet")
    with pytest.raises(DataError, match="has no column '_at'"):
        read_snapshot(tmp_path / "no_at.parquet", schema)
    frame.iloc[::-1].to_parquet(tmp_path / "reversed.parquet", index=False)
    with pytest.raises(DataError, match="not in time order"):
        read_snapshot(tmp_path / "reversed.parquet", schema)


def test_the_record_is_put_after_the_source_and_its_unlabelled_rows_left_out() -> None:
    schema, source = history(20, 0)
    window = source.head(6).assign(_at=source["_at"].max() + np.arange(6.0), _id="x", _version=1)
    window["_label"] = window["_label"].astype(object).where(np.arange(6) != 2, None)
    together = assemble(schema, source, window)
    assert together["_origin"].tolist() == ["source"] * 20 + ["record"] * 5
    with pytest.raises(DataError, match="nothing to train on"):
        assemble(schema, None, None)
