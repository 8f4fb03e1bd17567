"""Rows that came since the last training, against schema and past: told, left out, or a reason not to train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from monitoring.feature import AT, LABEL, ORIGIN, Task
from monitoring.schema import FeatureSchema
from tests.training.test_job import bootstrapped, job
from tests.world import history
from training.artefact import verify
from training.data import read_snapshot, snapshot
from training.data_checks import DataCheckPolicy, DataStopped, Looked, look
from training.fitting import refit
from training.job import run
from training.trust import load_pipeline

SOURCE, RECORD = 600, 800
BAD = slice(SOURCE, SOURCE + 100)
"""An eighth of the new rows."""

Spoil = Callable[[pd.DataFrame], pd.DataFrame]


def world(task: Task = "binary") -> tuple[FeatureSchema, pd.DataFrame]:
    return history(SOURCE, RECORD, task=task, turned=False)


def looked(frame: pd.DataFrame, schema: FeatureSchema, unfit: int = 0, **policy: Any) -> Looked:
    return look(frame, schema, DataCheckPolicy(**policy), champion_until=0.0, unfit_rows=unfit)


def put(column: str, value: Any, rows: slice = BAD) -> Spoil:
    def spoil(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.copy()
        frame.iloc[rows, frame.columns.get_loc(column)] = value
        return frame

    return spoil


def repeated(frame: pd.DataFrame) -> pd.DataFrame:
    """Half of the new rows are one row, again and again."""
    frame = frame.copy()
    columns = [name for name in frame.columns if name not in (AT, ORIGIN)]
    frame.loc[SOURCE : SOURCE + RECORD // 2, columns] = frame.loc[[SOURCE] * (RECORD // 2 + 1), columns].to_numpy()
    return frame.infer_objects().astype({"a": np.float32, "b": np.float32})


def leaking(frame: pd.DataFrame) -> pd.DataFrame:
    """A feature that is filled in only once the label is known, as the newest rows have it."""
    new = frame[ORIGIN] == "record"
    known = frame[LABEL].astype(np.float32) * 3 + frame["b"] / 100
    return frame.assign(b=frame["b"].where(~new, known))


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_rows_like_those_before_are_not_told_of(task: Task) -> None:
    schema, frame = world(task)
    found = looked(frame, schema, **dict.fromkeys(("ranges", "missing", "duplicates"), "quarantine"))
    assert found.findings == () and len(found.left_out) == 0


@pytest.mark.parametrize(
    ("check", "spoil", "rows", "words"),
    [
        ("ranges", put("a", 1e6), 100, "'a' is far outside of"),
        ("missing", put("b", np.nan, slice(SOURCE, SOURCE + 200)), 200, "'b' is missing in 25% of 800 new rows"),
        ("duplicates", repeated, 400, "400 of 800 new rows repeat another one, label included"),
    ],
)
def test_what_is_odd_in_single_rows_is_told_left_out_or_stops(check: str, spoil: Spoil, rows: int, words: str) -> None:
    schema, frame = world()
    frame = spoil(frame)

    others = {"leak": "warn"}  # a row that is repeated often tells its label
    told = looked(frame, schema, **others)
    finding = next(found for found in told.findings if found.check == check)
    assert (finding.check, finding.action, finding.rows, len(told.left_out)) == (check, "warn", rows, 0)
    assert finding.words.startswith(words)

    apart = looked(frame, schema, **others, **{check: "quarantine", "max_quarantine": 0.6})
    assert len(apart.left_out) == rows
    assert (frame[ORIGIN].iloc[apart.left_out] == "record").all()
    assert apart.findings[0].words.endswith(": left out")

    with pytest.raises(DataStopped, match=f"the champion stays: {check}: ") as stopped:
        looked(frame, schema, **others, **{check: "stop"})
    assert [found.check for found in stopped.value.findings if found.action == "stop"] == [check]
    assert f'data_checks.{check} = "warn"' in str(stopped.value)


def test_a_quarantine_that_would_take_too_much_stops_the_training() -> None:
    schema, frame = world()
    with pytest.raises(DataStopped, match="400 of 800 new rows would be left out, more than 20%"):
        looked(repeated(frame), schema, duplicates="quarantine", leak="warn")


def test_rows_that_fit_no_type_of_the_schema_are_told_when_they_are_many() -> None:
    schema, frame = world()
    assert looked(frame, schema, unfit=20).findings == ()
    (finding,) = looked(frame, schema, unfit=200).findings
    assert (finding.check, finding.action, finding.rows) == ("types", "quarantine", 200)
    with pytest.raises(DataStopped, match="200 of 1,000 rows of the record do not fit"):
        looked(frame, schema, unfit=200, types="stop")


def test_a_feature_that_tells_the_label_alone_since_lately_stops_the_training_by_default() -> None:
    schema, frame = world()
    with pytest.raises(DataStopped, match=r"leak: 'b' alone tells the label \(accuracy above guessing 1.000 on"):
        looked(leaking(frame), schema)
    (finding,) = looked(leaking(frame), schema, leak="warn").findings
    assert finding.check == "leak" and finding.value == 1.0


def test_a_feature_that_always_told_the_label_is_the_owners_choice() -> None:
    schema, frame = world()
    always = frame.assign(b=frame[LABEL].astype(np.float32))
    assert [found for found in looked(always, schema).findings if found.check == "leak"] == []
    source = always.iloc[:SOURCE]
    (finding,) = look(source, schema, DataCheckPolicy(), champion_until=None).findings
    assert (finding.check, finding.action) == ("leak", "warn"), "a first version is served, with what is wrong said"


def test_a_class_that_is_gone_is_told_where_it_was_to_be_expected() -> None:
    schema, frame = world("multiclass")
    gone = frame[~((frame[ORIGIN] == "record") & (frame[LABEL] == "high"))].reset_index(drop=True)
    found = {finding.check: finding for finding in looked(gone, schema).findings}
    assert "has the label 'high'" in found["classes"].words
    few = frame.iloc[: SOURCE + 20]
    assert "classes" not in {finding.check for finding in looked(few, schema).findings}
    with pytest.raises(DataStopped, match="classes: no new row"):
        looked(gone, schema, classes="stop")


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_labels_that_move_suddenly_are_told_with_both_sides(task: Task) -> None:
    schema, frame = world(task)
    new = (frame[ORIGIN] == "record").to_numpy()
    moved = np.where(new & (np.arange(len(frame)) % 2 == 0), frame[LABEL].max(), frame[LABEL])
    (finding,) = looked(frame.assign(**{LABEL: moved.astype(frame[LABEL].dtype)}), schema).findings
    assert finding.check == "label_shift" and "before" in finding.words and "now" in finding.words
    with pytest.raises(DataStopped, match="label_shift"):
        looked(frame.assign(**{LABEL: moved.astype(frame[LABEL].dtype)}), schema, label_shift="stop")


def test_labels_that_always_came_and_went_are_no_news() -> None:
    schema, frame = world()
    season = (np.arange(len(frame)) // 300) % 2  # the classes take turns, in the past and now
    frame = frame.assign(**{LABEL: season.astype(np.int64)})
    later = look(frame, schema, DataCheckPolicy(leak="warn"), champion_until=float(frame[AT].iloc[1099]))
    assert "label_shift" not in {finding.check for finding in later.findings}


def test_rows_in_quarantine_neither_train_nor_judge_and_stay_in_the_snapshot(tmp_path: Path) -> None:
    schema, champion, _ = bootstrapped(tmp_path)
    frame = world()[1]
    frame = put("a", 1e6, slice(SOURCE + 650, SOURCE + 750))(frame)
    data = snapshot(frame, tmp_path)

    done = run(job(schema, data, tmp_path / "v2", champion=str(champion), data_checks={"ranges": "quarantine"}))

    assert done.ok, done.error
    (finding,) = done.data_checks
    assert (finding.check, finding.action, finding.rows) == ("ranges", "quarantine", 100)
    assert any(note.startswith("data check ranges: 'a' is far outside") for note in done.notes)
    manifest = verify(tmp_path / "v2")
    assert manifest.data.left_out == tuple(range(SOURCE + 650, SOURCE + 750))
    assert manifest.data.snapshot == data.digest and len(read_snapshot(data.path, schema)) == SOURCE + RECORD
    assert manifest.data.rows == SOURCE + RECORD - 100
    reference = pd.read_parquet(tmp_path / "v2" / "reference.parquet")
    assert reference["a"].max() < 100
    features = frame[list(schema.names)]
    again = refit(manifest, data.path, schema)
    assert np.array_equal(again.predict_proba(features), load_pipeline(tmp_path / "v2").predict_proba(features))


def test_a_stop_is_a_result_with_every_finding(tmp_path: Path) -> None:
    schema, champion, _ = bootstrapped(tmp_path)
    _, frame = history(SOURCE, RECORD)
    data = snapshot(leaking(put("a", 1e6)(frame)), tmp_path)

    done = run(job(schema, data, tmp_path / "v2", champion=str(champion)))

    assert not done.ok and done.error is not None and "the data checks stopped the training" in done.error
    assert [(found.check, found.action) for found in done.data_checks] == [("ranges", "warn"), ("leak", "stop")]
    assert not (tmp_path / "v2" / "manifest.json").exists()
