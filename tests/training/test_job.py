from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from monitoring.feature import AT, Task
from monitoring.schema import FeatureSchema
from tests.world import history
from training.adaptation import decode
from training.artefact import verify
from training.data import Snapshot, read_snapshot, snapshot
from training.fitting import fit_rows, refit
from training.job import THREAD_VARIABLES, main, run
from training.loaded import load_model
from training.pipeline import predict
from training.source import DataError
from training.spec import JobResult, JobSpec, read_result
from training.split import TrainPolicy, interleaved, split
from training.trust import load_pipeline

QUICK = {"max_iter": 15}
SMALL = {"min_holdout_rows": 100}


def job(schema: FeatureSchema, data: Snapshot, out: Path, **changes: Any) -> JobSpec:
    given: dict[str, Any] = {"kind": "train", "parameters": QUICK, "gates": SMALL, "created_at": 1.0, "nice": 0}
    content = msgspec.json.decode(schema.to_json())
    return JobSpec(out=str(out), snapshot=str(data.path), schema=content, **{**given, **changes})


def bootstrapped(tmp_path: Path, task: Task = "binary") -> tuple[FeatureSchema, Path, JobResult]:
    """(schema, artefact folder, result) of a first version."""
    schema, source = history(600, 0, task=task)
    result = run(job(schema, snapshot(source, tmp_path), tmp_path / "v1", origin="bootstrap"))
    assert result.ok, result.error
    return schema, tmp_path / "v1", result


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_when_the_rule_has_turned_a_retrained_model_replaces_the_champion(tmp_path: Path, task: Task) -> None:
    schema, champion, first = bootstrapped(tmp_path, task)
    assert first.passed
    assert first.until == 0.0
    _, frame = history(600, 800, task=task)
    data = snapshot(frame, tmp_path)
    result = run(job(schema, data, tmp_path / "v2", champion=str(champion)))
    assert result.ok, result.error
    assert result.passed, result.verdict
    assert result.quality.challenger > result.quality.champion
    assert result == read_result(tmp_path / "v2")
    assert [window.chosen for window in result.windows].count(True) == 1
    manifest = verify(tmp_path / "v2")
    assert manifest.verdict.passed
    assert manifest.twin.layout == "matrix"
    assert manifest.data.snapshot == data.digest
    assert manifest.data.until == result.until == frame["_at"].iloc[-1]  # the last fit learns what judged, too
    assert manifest.data.last_fit and manifest.data.holdout.since < result.until
    reference = pd.read_parquet(tmp_path / "v2" / "reference.parquet")
    assert reference.columns.tolist() == [*schema.names, "_at", "_label", "_holdout", "_prediction", "_score"]
    assert reference["_holdout"].sum() == manifest.data.holdout.rows == result.quality.rows


def test_when_nothing_has_changed_the_champion_stays(tmp_path: Path) -> None:
    schema, champion, _ = bootstrapped(tmp_path)
    _, frame = history(600, 400, turned=False)
    spec = job(
        schema, snapshot(frame, tmp_path), tmp_path / "v2", champion=str(champion), gates={**SMALL, "min_gain": 0.05}
    )
    result = run(spec)
    assert result.ok
    assert not result.passed
    assert result.verdict is not None
    assert "against the champion's" in result.verdict.reasons[0]


def test_the_manifest_and_the_snapshot_are_enough_to_train_the_same_model_again(tmp_path: Path) -> None:
    schema, champion, _ = bootstrapped(tmp_path)
    _, frame = history(600, 600)
    data = snapshot(frame, tmp_path)
    spec = job(
        schema, data, tmp_path / "v2", champion=str(champion), training={"trials": 3}, parameters={"max_iter": 12}
    )
    assert run(spec).ok
    manifest = verify(tmp_path / "v2")
    assert len(manifest.data.trials) == 3
    assert manifest.data.snapshot == data.digest and manifest.data.window is not None
    again = refit(manifest, data.path, schema)
    features = frame[list(schema.names)]
    assert np.array_equal(again.predict_proba(features), load_pipeline(tmp_path / "v2").predict_proba(features))


def test_the_judged_model_can_be_made_again_too(tmp_path: Path) -> None:
    schema, champion, _ = bootstrapped(tmp_path)
    _, frame = history(600, 600)
    data = snapshot(frame, tmp_path)
    given: dict[str, Any] = {"champion": str(champion), "parameters": {"max_iter": 12}}
    assert run(job(schema, data, tmp_path / "v2", **given)).ok
    assert run(job(schema, data, tmp_path / "v3", training={"last_fit": False}, **given)).ok
    features = frame[list(schema.names)]
    served = load_pipeline(tmp_path / "v3")  # the judged model itself
    for version, judged in (("v2", True), ("v3", False), ("v3", True)):
        again = refit(verify(tmp_path / version), data.path, schema, judged=judged)
        assert np.array_equal(again.predict_proba(features), served.predict_proba(features))
    reference = pd.read_parquet(tmp_path / "v2" / "reference.parquet")
    said = served.predict_proba(reference[list(schema.names)].fillna(np.nan))[:, 1]
    assert np.allclose(said, reference["_score"])  # what drift and quality compare with never saw the rows that judge


def test_what_a_manifest_does_not_name_is_not_fitted_again(tmp_path: Path) -> None:
    schema, champion, _ = bootstrapped(tmp_path)
    _, frame = history(600, 300)
    other = snapshot(frame, tmp_path)
    with pytest.raises(DataError, match="was trained from"):
        refit(verify(champion), other.path, schema)


def test_neither_model_is_fitted_to_the_blocks_that_judge() -> None:
    schema, frame = history(300, 400)
    policy = TrainPolicy(block_rows=25)
    until = float(frame["_at"].iloc[399])  # the champion knows the first 100 record rows
    rows = split(frame, schema, policy, 50, champion_until=until)
    assert rows.holdout.tolist() == [*range(475, 500), *range(575, 600), *range(675, 700)]  # a quarter of the 300 newer
    assert sorted([*rows.train, *rows.holdout]) == rows.all.tolist() == list(range(700))
    assert rows.origin == "record"
    first = split(frame.iloc[:300], schema, policy, 20, first=True)
    assert first.holdout.tolist() == [*range(175, 200), *range(275, 300)]  # of the newest half
    assert first.origin == "source"


def test_blocks_lie_more_densely_when_there_are_few_rows_and_are_bounded_when_there_are_many() -> None:
    rows = np.arange(1000)
    assert len(interleaved(rows, TrainPolicy(), 200)) == 250
    assert len(interleaved(rows, TrainPolicy(), 400)) == 500
    assert interleaved(rows, TrainPolicy(max_holdout_rows=60), 20).tolist() == [*range(790, 800), *range(950, 1000)]


def test_rows_whose_labels_look_into_a_judging_block_do_not_train() -> None:
    schema, frame = history(300, 200)
    gap = 3 * float(frame["_at"].diff().iloc[1])
    rows = split(frame, schema, TrainPolicy(purge_s=gap), 50)
    first, last = int(rows.holdout[0]), int(rows.holdout[-1])
    assert {first - 3, first - 2, first - 1} <= set(range(500)) - set(rows.train.tolist()) - set(rows.holdout.tolist())
    assert first - 4 in rows.train and first - 1 in rows.all and last in rows.all


def test_rows_of_a_class_the_schema_lacks_judge_and_never_train() -> None:
    schema, frame = history(300, 200, task="multiclass")
    frame.loc[[5, 450, 499], "_label"] = "new"
    rows = split(frame, schema, TrainPolicy(), 20)
    assert 5 not in rows.train and 499 not in rows.train
    assert 499 in rows.holdout


def test_a_candidate_that_was_due_is_refused_only_when_it_is_probably_worse(tmp_path: Path) -> None:
    schema, champion, _ = bootstrapped(tmp_path)
    _, frame = history(600, 400, turned=False)
    spec = job(schema, snapshot(frame, tmp_path), tmp_path / "v2", champion=str(champion))
    hoped, due = run(spec), run(msgspec.structs.replace(spec, due=True, out=str(tmp_path / "v3")))
    assert not hoped.passed and "(0.9 is needed)" in hoped.verdict.reasons[0]
    assert "it was due, so 0.84 would refuse it" in next(g.reason for g in due.verdict.gates if g.name == "quality")


def test_the_champion_is_judged_by_what_it_served(tmp_path: Path) -> None:
    """An adapted champion is harder to beat than its raw output: where it did not serve, the raw output counts."""
    schema, champion, _ = bootstrapped(tmp_path)
    _, frame = history(600, 800)
    data = snapshot(frame, tmp_path)
    served = np.full((len(frame), 2), np.nan)
    truth = frame["_label"].to_numpy(dtype=int)
    served[700:] = np.where(np.eye(2)[truth[700:]] == 1, 0.999, 0.001)
    np.save(tmp_path / "served.npy", served)
    spec = job(schema, data, tmp_path / "v2", champion=str(champion), served=str(tmp_path / "served.npy"), due=True)
    result = run(spec)
    assert result.ok and not result.passed
    assert result.quality.champion > 0.95
    assert run(msgspec.structs.replace(spec, served=None, out=str(tmp_path / "v3"))).passed


def test_a_first_version_is_served_with_what_is_wrong_with_it_said(tmp_path: Path) -> None:
    schema, frame = history(400, 0)
    frame["_label"] = np.random.default_rng(0).integers(0, 2, len(frame))  # nothing to learn
    result = run(job(schema, snapshot(frame, tmp_path), tmp_path / "v1"))
    assert result.ok and result.passed
    assert not result.verdict.passed
    assert "it has learnt nothing" in result.verdict.reasons[0]


@pytest.mark.parametrize("late", [0, 200])
def test_a_new_version_starts_with_an_adaptation_from_answers_by_models_of_what_was_known_before(
    tmp_path: Path, late: int
) -> None:
    schema, champion, _ = bootstrapped(tmp_path)
    _, frame = history(600, 1200)
    delay_s = float(frame[AT].iloc[-1] - frame[AT].iloc[-1 - late])
    given = {"champion": str(champion), "standing": {"shift-1000": 3.0}, "delay_s": delay_s, "waiting": late}
    spec = job(schema, snapshot(frame, tmp_path), tmp_path / "v2", **given)
    assert run(spec).ok
    whole = decode((tmp_path / "adaptation.whole").read_bytes())
    manifest, data = verify(tmp_path / "v2"), read_snapshot(Path(spec.snapshot), schema)
    learnt, newest = manifest.data.window, manifest.data.window.rows // 4
    assert {expert.name: expert.rows for expert in whole.experts}["shift-3000"] == newest
    with np.load(tmp_path / "v2" / "unseen.npz") as unseen:
        rows, answers = unseen["rows"], unseen["said"]
    assert (rows == np.arange(learnt.stop - newest, learnt.stop)).all()
    for part in [np.flatnonzero(np.arange(newest) * 8 // newest == fold) for fold in range(8)]:
        before = data.iloc[learnt.start : rows[part[0]] - max(late - 1, 0)]
        fitted = fit_rows(before, schema, manifest.parameters, manifest.seed)
        said = predict(fitted, data.iloc[rows[part]][list(schema.names)], schema)
        np.testing.assert_allclose(answers[part], said, atol=1e-6)
    weights = {expert.name: weight for expert, weight in zip(whole.experts, whole.weights, strict=True)}
    assert weights["shift-1000"] > weights["shift-300"]
    off = msgspec.structs.replace(spec, adapt={"enabled": False}, out=str(tmp_path / "off" / "v3"))
    assert run(off).ok
    assert not (tmp_path / "off" / "adaptation.whole").exists()


def test_too_few_new_labels_are_said_and_leave_no_artefact(tmp_path: Path) -> None:
    schema, champion, _ = bootstrapped(tmp_path)
    _, frame = history(600, 30)
    result = run(job(schema, snapshot(frame, tmp_path), tmp_path / "v2", champion=str(champion)))
    assert not result.ok
    assert not result.passed
    assert "there are 30 labelled record rows newer than the champion's" in str(result.error)
    assert [path.name for path in (tmp_path / "v2").iterdir()] == ["result.json"]


def test_a_column_without_a_value_in_the_window_does_not_stop_the_training(tmp_path: Path) -> None:
    schema, champion, _ = bootstrapped(tmp_path)
    _, frame = history(600, 600)
    frame.loc[600:, ["joined", "city"]] = np.nan
    result = run(job(schema, snapshot(frame, tmp_path), tmp_path / "v2", champion=str(champion)))
    assert result.ok, result.error
    assert verify(tmp_path / "v2").parity.agrees


def test_a_changed_champion_is_an_error_and_not_a_comparison(tmp_path: Path) -> None:
    schema, champion, _ = bootstrapped(tmp_path)
    (champion / "model.skops").write_bytes(b"something else")
    _, frame = history(600, 400)
    result = run(job(schema, snapshot(frame, tmp_path), tmp_path / "v2", champion=str(champion)))
    assert not result.ok
    assert "was changed: expected sha256" in str(result.error)


# -- pushed models --------------------------------------------------------------------------------------------------


def pushed(path: Path, frame: pd.DataFrame, schema: FeatureSchema, estimator: Any = None, **names: str) -> Path:
    """A skops file of a pipeline as a user would push it, fitted to a frame's features; `names` renames columns."""
    numbers = ["a", "b", "member", "joined"]
    columns = ColumnTransformer(
        [
            ("numbers", SimpleImputer(), [names.get(name, name) for name in numbers]),
            ("city", OneHotEncoder(handle_unknown="ignore"), ["city"]),
        ]
    )
    pipeline = make_pipeline(columns, LogisticRegression(max_iter=2000) if estimator is None else estimator)
    skops.io.dump(pipeline.fit(frame[list(schema.names)].rename(columns=names), frame["_label"]), path)
    return path


def test_a_pushed_model_is_judged_on_the_newest_record(tmp_path: Path) -> None:
    schema, champion, _ = bootstrapped(tmp_path)
    _, frame = history(600, 800)
    model = pushed(tmp_path / "p.skops", frame.iloc[600:1200], schema)
    spec = job(
        schema, snapshot(frame, tmp_path), tmp_path / "v2", kind="judge", pushed=str(model), champion=str(champion),
        origin="push", version="mine-7",
    )  # fmt: skip
    result = run(spec)
    assert result.ok, result.error
    assert result.passed, result.verdict
    manifest = verify(tmp_path / "v2")
    assert (manifest.origin, manifest.label, manifest.estimator) == ("push", "mine-7", "LogisticRegression")
    assert manifest.twin.layout == "matrix"
    features = frame[list(schema.names)]
    assert predict(load_pipeline(tmp_path / "v2"), features, schema).shape == (len(frame), 2)
    assert result.until == frame["_at"].iloc[-1]


def test_without_new_labels_a_pushed_model_is_judged_where_the_champion_was(tmp_path: Path) -> None:
    schema, champion, _ = bootstrapped(tmp_path)
    _, frame = history(600, 20)
    model = pushed(tmp_path / "p.skops", frame.iloc[:400], schema)
    spec = job(
        schema, snapshot(frame, tmp_path), tmp_path / "v2", kind="judge", pushed=str(model), champion=str(champion)
    )
    result = run(spec)
    assert result.ok, result.error
    assert "judged on 100 rows of the stretch that the champion itself was judged on" in result.notes[0]
    assert result.quality.rows == verify(champion).data.holdout.rows == 100


@pytest.mark.parametrize(
    ("names", "labels", "said"),
    [
        ({"b": "c"}, None, "it does not take the features b; it wants features that requests do not have: c"),
        ({}, ["no", "yes"], r"its classes are \['no', 'yes'\], those of 'y' are \[0, 1\]"),
    ],
)
def test_a_pushed_model_that_does_not_fit_the_schema_is_refused_by_name(
    tmp_path: Path, names: dict[str, str], labels: list[str] | None, said: str
) -> None:
    schema, frame = history(300, 0)
    fitted = frame if labels is None else frame.assign(_label=np.array(labels, dtype=object)[frame["_label"]])
    model = pushed(tmp_path / "p.skops", fitted, schema, **names)
    result = run(job(schema, snapshot(frame, tmp_path), tmp_path / "v1", kind="judge", pushed=str(model)))
    assert not result.ok
    assert re.search(said, str(result.error)), result.error


def test_a_pushed_model_of_untrusted_types_is_refused_until_they_are_trusted(tmp_path: Path) -> None:
    schema, frame = history(400, 0)
    selected = make_pipeline(SelectKBest(f_classif, k=2), LogisticRegression(max_iter=2000))
    model = pushed(tmp_path / "p.skops", frame, schema, selected)
    spec = job(schema, snapshot(frame, tmp_path), tmp_path / "v1", kind="judge", pushed=str(model))
    refused = run(spec)
    assert not refused.ok
    name = f"{f_classif.__module__}.f_classif"
    assert name in str(refused.error)
    assert "trusted_types`" in str(refused.error)
    assert run(msgspec.structs.replace(spec, trusted=(name,))).ok


def test_a_pushed_forest_is_judged_and_answers_as_scikit_learn_does(tmp_path: Path) -> None:
    schema, frame = history(400, 0)
    path = pushed(tmp_path / "p.skops", frame, schema, RandomForestClassifier(20, random_state=0))
    result = run(job(schema, snapshot(frame, tmp_path), tmp_path / "v1", kind="judge", pushed=str(path)))
    assert result.ok, result.error
    manifest = verify(tmp_path / "v1")
    assert manifest.estimator == "RandomForestClassifier"
    features = frame[list(schema.names)]
    expected = skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path)).predict_proba(features)
    answer = load_model(tmp_path / "v1", manifest, schema).answer(features)
    np.testing.assert_allclose(answer, expected, atol=1e-5)


def test_rows_that_a_pushed_model_has_learnt_do_not_judge_it(tmp_path: Path) -> None:
    schema, champion, _ = bootstrapped(tmp_path)
    _, frame = history(600, 800)
    memory = RandomForestClassifier(20, random_state=0)  # knows every row that it has learnt
    model = pushed(tmp_path / "p.skops", frame.iloc[600:1250], schema, memory)
    until = float(frame[AT].iloc[1249])
    spec = job(
        schema, snapshot(frame, tmp_path), tmp_path / "v2", kind="judge", pushed=str(model), champion=str(champion)
    )
    unknown = run(spec)
    told = run(msgspec.structs.replace(spec, pushed_until=until))
    early = run(msgspec.structs.replace(spec, pushed_until=float(frame[AT].iloc[1349])))

    assert "is not known: push it with --trained-until" in unknown.notes[-1]
    assert told.ok, told.error
    assert told.quality.rows == 150  # all later rows
    assert verify(tmp_path / "v2").data.holdout.since > until
    assert told.quality.challenger < unknown.quality.challenger
    assert "judged on rows after" in told.notes[0]
    assert not early.ok
    assert "cannot be judged yet: 50 labelled rows are later than" in str(early.error)
    assert "judging needs 100" in str(early.error)


def test_the_first_version_is_not_judged_by_rows_it_has_learnt_either(tmp_path: Path) -> None:
    schema, frame = history(400, 0)
    model = pushed(tmp_path / "p.skops", frame.iloc[:200], schema)
    spec = job(schema, snapshot(frame, tmp_path), tmp_path / "v1", kind="judge", pushed=str(model))
    result = run(msgspec.structs.replace(spec, pushed_until=float(frame[AT].iloc[199])))
    assert result.ok, result.error
    assert result.quality.rows == 200


def test_a_pushed_file_that_is_no_skops_file_is_refused(tmp_path: Path) -> None:
    schema, frame = history(300, 0)
    (tmp_path / "p.skops").write_bytes(b"\x80\x04.")
    spec = job(schema, snapshot(frame, tmp_path), tmp_path / "v1", kind="judge", pushed=str(tmp_path / "p.skops"))
    assert "is not a skops file" in str(run(spec).error)


# -- the process ----------------------------------------------------------------------------------------------------


def test_the_process_trains_within_its_bounds_and_writes_a_result(tmp_path: Path) -> None:
    schema, frame = history(400, 0)
    spec = job(schema, snapshot(frame, tmp_path), tmp_path / "v1", memory_mb=4096)
    (tmp_path / "spec.json").write_bytes(msgspec.json.encode(spec))
    command = [sys.executable, "-m", "training.job", str(tmp_path / "spec.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = read_result(tmp_path / "v1")
    assert result is not None
    assert result.passed
    assert verify(tmp_path / "v1").seed == 0


def test_the_exit_code_says_whether_there_is_a_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in THREAD_VARIABLES:
        monkeypatch.setenv(variable, "1")  # main() sets them for good: give them back
    schema, frame = history(300, 0)
    spec = job(schema, snapshot(frame, tmp_path), tmp_path / "v1")
    (tmp_path / "good.json").write_bytes(msgspec.json.encode(spec))
    lacking = msgspec.structs.replace(spec, snapshot=str(tmp_path / "none.parquet"), out=str(tmp_path / "v2"))
    (tmp_path / "bad.json").write_bytes(msgspec.json.encode(lacking))
    assert main([str(tmp_path / "good.json")]) == 0
    assert main([str(tmp_path / "bad.json")]) == 1
    assert main([str(tmp_path / "absent.json")]) == 2
    failed = read_result(tmp_path / "v2")
    assert failed is not None
    assert "does not exist" in str(failed.error)
    assert read_result(tmp_path / "v3") is None


def test_a_training_beyond_its_memory_ends_with_the_reason_or_without_a_result(tmp_path: Path) -> None:
    schema, frame = history(300, 0)
    spec = job(schema, snapshot(frame, tmp_path), tmp_path / "v1", memory_mb=40)
    (tmp_path / "spec.json").write_bytes(msgspec.json.encode(spec))
    command = [sys.executable, "-m", "training.job", str(tmp_path / "spec.json")]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
    result = read_result(tmp_path / "v1")
    assert result is None or not result.ok
