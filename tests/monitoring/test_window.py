from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from monitoring import store
from monitoring.drain import Drainer
from monitoring.log import LogPolicy, PredictionLog
from monitoring.record import FEEDBACK, PREDICTION
from monitoring.schema import FeatureSchema
from monitoring.window import (
    StoredLabel,
    iter_window,
    label_status,
    read_window,
)

FRAME = pd.DataFrame(
    {
        "age": [20, 30, 40, 50],
        "member": [True, False, True, None],
        "city": ["Bonn", "Ulm", None, "Bonn"],
        "since": pd.to_datetime(["2024-01-01", "2024-02-01", None, "2024-03-01"]),
    }
)
SCHEMA = FeatureSchema.infer(FRAME.assign(paid=[0, 1, 0, 1]), "paid")
RECORD = {"age": 41.5, "member": True, "city": "Bonn", "since": "1970-01-02"}
OWN = ["_id", "_at", "_version", "_adaptation", "_prediction", "_score", "_label", "_observed_at", "_source"]


class Record:
    """A store with what the tests put into it, through the log and the drain."""

    def __init__(self, engine: sa.Engine, spool: Path) -> None:
        self.engine = engine
        self._spool = spool

    def predict(self, id_: str, at: float, record: dict[str, Any] | None = None, **answer: Any) -> None:
        given = {"version": 1, "ids": [id_], "predictions": [1], "probabilities": [[0.25, 0.75]]} | answer
        asked = {"records": [record or RECORD]}
        self._keep(PREDICTION, at, json.dumps(given).encode(), json.dumps(asked).encode())

    def label(self, id_: str, label: Any, at: float = 100.0, **more: Any) -> None:
        body = {"labels": [{"id": id_, "label": label} | more]}
        self._keep(FEEDBACK, at, json.dumps(body).encode())

    def _keep(self, kind: int, at: float, *parts: bytes) -> None:
        log = PredictionLog(self._spool, LogPolicy(fsync="never"))
        assert log.append(kind, at, 1, *parts)
        log.close()

    def stored(self) -> sa.Engine:
        with Drainer(self._spool, self.engine) as drainer:
            assert drainer.drain(0.0).dead == 0
        return self.engine


@pytest.fixture
def record(store_url: str, tmp_path: Path) -> Iterator[Record]:
    engine = store.open_store(store_url)
    yield Record(engine, tmp_path / "spool")
    engine.dispose()


def test_an_empty_record_gives_an_empty_frame_with_all_columns_and_types(record: Record) -> None:
    frame = read_window(record.stored(), SCHEMA)

    assert list(frame.columns) == [*SCHEMA.names, *OWN]
    assert len(frame) == 0
    assert frame["age"].dtype == np.float32
    assert list(iter_window(record.engine, SCHEMA)) == []


def test_a_row_comes_back_canonical_with_its_answer(record: Record) -> None:
    record.predict("a", 5.0)
    record.predict("b", 6.0, {"age": None, "member": None, "city": None, "since": None}, predictions=[0])

    frame = read_window(record.stored(), SCHEMA)

    pd.testing.assert_frame_equal(
        frame[list(SCHEMA.names)],
        SCHEMA.frame([RECORD, {"age": None, "member": None, "city": None, "since": None}]),
    )
    assert frame[["_id", "_at", "_version", "_prediction", "_score"]].to_numpy().tolist() == [
        ["a", 5.0, 1, 1, 0.75],
        ["b", 6.0, 1, 0, 0.75],
    ]
    assert frame["_label"].tolist() == [None, None]
    assert frame["_observed_at"].isna().all()
    assert (frame.attrs["skipped"], frame.attrs["unfit_labels"]) == (0, 0)


def test_each_row_says_which_adaptation_was_in_force(record: Record) -> None:
    record.predict("before", 1.0)
    record.predict("with", 2.0, adaptation=17)
    assert read_window(record.stored(), SCHEMA, until=1.5)["_adaptation"].dtype == np.float64

    found = read_window(record.engine, SCHEMA)["_adaptation"].tolist()

    assert np.isnan(found[0])
    assert found[1] == 17.0


def test_the_newest_rows_are_chosen_and_given_oldest_first(record: Record) -> None:
    for at in (5.0, 1.0, 4.0, 2.0, 3.0):
        record.predict(f"at {at}", at, version=int(at) % 2)

    engine = record.stored()

    assert read_window(engine, SCHEMA)["_at"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert read_window(engine, SCHEMA, rows=2)["_at"].tolist() == [4.0, 5.0]
    assert read_window(engine, SCHEMA, since=2.0, until=4.0)["_at"].tolist() == [2.0, 3.0]
    assert read_window(engine, SCHEMA, version=1, rows=2)["_at"].tolist() == [3.0, 5.0]


def test_the_label_observed_last_counts_whatever_the_order_of_arrival(record: Record) -> None:
    record.label("early", 1, at=1.0)
    record.predict("early", 2.0)
    record.predict("corrected", 3.0)
    record.label("corrected", 0, at=10.0, observed_at=9.0)
    record.label("corrected", 1, at=11.0, observed_at="1970-01-01T00:00:05Z")
    record.predict("tied", 4.0)
    record.label("tied", 0, at=13.0, observed_at=7.0)
    record.label("tied", 1, at=12.0, observed_at=7.0)
    record.predict("never", 5.0)

    frame = read_window(record.stored(), SCHEMA)

    assert frame["_label"].tolist() == [1, 0, 0, None]
    assert frame["_observed_at"].tolist()[:3] == [1.0, 9.0, 7.0]


def test_a_label_joins_only_the_newest_prediction_with_its_id(record: Record) -> None:
    record.predict("twice", 1.0)
    record.predict("once", 2.0)
    record.predict("twice", 3.0)
    record.label("twice", 1)
    record.label("once", 0)
    engine = record.stored()

    assert read_window(engine, SCHEMA)["_label"].tolist() == [None, 0, 1]
    assert read_window(engine, SCHEMA, until=2.5)["_label"].tolist() == [None, 0]  # the newer one counts unseen, too
    assert read_window(engine, SCHEMA, labelled=True)["_at"].tolist() == [2.0, 3.0]


def test_labelled_rows_are_the_newest_labelled_ones_in_the_canonical_type(record: Record) -> None:
    for number in range(6):
        record.predict(f"{number}", float(number))
    for number in (0, 2, 3):
        record.label(f"{number}", number % 2)

    frame = read_window(record.stored(), SCHEMA, labelled=True, rows=2)

    assert frame["_id"].tolist() == ["2", "3"]
    assert frame["_label"].dtype == np.int64


def test_rows_this_schema_cannot_read_are_left_out_and_counted(record: Record) -> None:
    record.predict("good", 1.0)
    record.predict("good with more", 2.0, RECORD | {"color": "red"}, version=2)
    lacking = {name: value for name, value in RECORD.items() if name != "city"}
    record.predict("lacking", 3.0, lacking, version=3)
    record.predict("other type", 4.0, RECORD | {"age": "old"}, version=4)
    record.predict("no date", 5.0, RECORD | {"since": "some day"}, version=4)
    record.predict("good of a bad version", 6.0, version=4)
    record.predict("other answer", 7.0, predictions=["yes"], version=5)
    record.predict("other classes", 8.0, probabilities=[[0.1, 0.2, 0.7]], version=6)
    record.predict("good again", 9.0)

    frame = read_window(record.stored(), SCHEMA)

    assert frame["_id"].tolist() == ["good", "good with more", "good of a bad version", "good again"]
    assert frame["age"].tolist() == [41.5] * 4
    assert frame.attrs["skipped"] == 5


def test_a_label_of_another_type_is_taken_as_absent_and_counted(record: Record) -> None:
    record.predict("a", 1.0)
    record.predict("b", 2.0)
    record.label("a", "yes")
    record.label("b", 1)
    engine = record.stored()

    frame = read_window(engine, SCHEMA)
    assert frame["_label"].tolist() == [None, 1]
    assert frame.attrs["unfit_labels"] == 1
    assert read_window(engine, SCHEMA, labelled=True)["_id"].tolist() == ["b"]


def test_a_multiclass_window_has_all_probabilities(record: Record) -> None:
    schema = FeatureSchema.infer(FRAME.assign(kind=["x", "y", "z", "x"]), "kind")
    record.predict("a", 1.0, predictions=["z"], probabilities=[[0.1, 0.2, 0.7]])
    record.label("a", "y")

    frame = read_window(record.stored(), schema)

    assert (frame["_prediction"].tolist(), frame["_label"].tolist()) == (["z"], ["y"])
    assert frame["_score"].isna().all()
    assert frame["_probabilities"][0].tolist() == [0.1, 0.2, 0.7]


def test_a_regression_window_is_of_numbers(record: Record) -> None:
    schema = FeatureSchema.infer(FRAME.assign(price=[1.5, 2.5, 3.0, 4.0]), "price")
    record.predict("a", 1.0, predictions=[2.25], probabilities=None)
    record.predict("b", 2.0, predictions=[3], probabilities=None)
    record.label("a", 7)

    frame = read_window(record.stored(), schema)

    assert frame["_prediction"].tolist() == [2.25, 3.0]
    assert frame["_label"].dtype == np.float64
    assert frame["_label"].tolist()[0] == 7.0
    assert frame["_score"].isna().all()


def test_chunks_put_together_are_the_window(record: Record) -> None:
    for number in range(25):
        record.predict(f"{number}", float(number // 3))  # many at the same moment
        if number % 2:
            record.label(f"{number}", number % 2)
    engine = record.stored()

    whole = read_window(engine, SCHEMA, since=1.0)
    chunks = list(iter_window(engine, SCHEMA, chunk_rows=4, since=1.0))

    assert [len(chunk) for chunk in chunks[:-1]] == [4] * (len(chunks) - 1)
    pd.testing.assert_frame_equal(pd.concat(chunks, ignore_index=True), whole, check_dtype=False)


def test_the_status_of_a_label_tells_its_history(record: Record) -> None:
    record.predict("a", 1.0, version=1)
    record.predict("a", 2.0, version=2, predictions=[0])
    record.label("a", 0, at=10.0, observed_at=5.0)
    record.label("a", 1, at=11.0, observed_at=4.0)
    record.label("only label", 1)
    record.predict("only prediction", 3.0)
    engine = record.stored()

    status = label_status(engine, "a")
    assert (status.predictions, status.version, status.at, status.prediction) == (2, 2, 2.0, 0)
    assert status.labels == (StoredLabel(0, 5.0, 10.0), StoredLabel(1, 4.0, 11.0))
    assert [label_status(engine, id_).outcome for id_ in ("a", "only label", "only prediction", "nothing")] == [
        "matched",
        "unmatched",
        "waiting",
        "unknown",
    ]
