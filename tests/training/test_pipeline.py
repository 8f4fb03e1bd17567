from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from monitoring.feature import Task
from monitoring.schema import FeatureSchema
from tests.world import known
from training.convert import convert
from training.families import FAMILIES, parameters_of
from training.manifest import Plan
from training.parity import check_rows
from training.pipeline import build, fit, predict
from training.trust import load_skops, to_skops
from training.twin import Twin

TASKS: list[Task] = ["binary", "multiclass", "regression"]


@pytest.mark.parametrize("task", TASKS)
def test_the_same_rows_and_seed_give_the_same_model(task: Task) -> None:
    schema, features, labels = known(400, task=task)
    first, second = (build(schema, {"max_iter": 10}, seed=3).fit(features, labels) for _ in range(2))
    assert np.array_equal(first.predict(features), second.predict(features))


def test_classes_come_out_in_the_order_of_the_schema() -> None:
    schema, features, labels = known(400, task="multiclass")
    pipeline = build(schema, {"max_iter": 5}).fit(features, labels)
    assert pipeline.classes_.tolist() == list(schema.classes) == ["high", "low", "middle"]


def test_empty_constant_and_many_valued_columns_are_taken() -> None:
    rows = 1500
    frame = pd.DataFrame(
        {
            "empty": np.full(rows, np.nan),
            "nothing": np.array([None] * rows, dtype=object),
            "constant": 7,
            "same": "x",
            "id": [f"k{i}" for i in range(rows)],
            "x": np.arange(rows) % 17,
            "y": np.arange(rows) % 2 == 0,
        }
    )
    schema = FeatureSchema.infer(frame, "y")
    pipeline = fit(schema, schema.canonical(frame), schema.labels(frame["y"]), {"max_iter": 5})
    assert pipeline.feature_names_in_.tolist() == list(schema.names)
    assert convert(pipeline, schema, schema.canonical(frame))[2].agrees
    unseen = schema.frame([{"id": "never", "same": None, "empty": 3.0, "nothing": "now", "constant": None, "x": 1}])
    assert pipeline.predict_proba(unseen).shape == (1, 2)


def test_an_unknown_parameter_is_refused_by_name() -> None:
    schema, _, _ = known(50)
    with pytest.raises(ValidationError, match="n_estimators"):
        build(schema, {"n_estimators": 5})


EACH = [
    pytest.param(task, family, calibration, id=f"{task}-{family}-{calibration}")
    for task in TASKS
    for family in FAMILIES
    for calibration in ("none", "sigmoid")
    if task != "regression" or calibration == "none"
]
FEW = {"boosting": {"max_iter": 20}, "forest": {"n_estimators": 10}, "extra_trees": {"n_estimators": 10}, "linear": {}}


@pytest.mark.parametrize(("task", "family", "calibration"), EACH)
def test_every_family_is_repeatable_survives_its_file_and_has_a_twin(
    tmp_path: Path, task: Task, family: str, calibration: str
) -> None:
    schema, features, labels = known(900, task=task)
    given = {"family": family, "calibration": calibration, **FEW[family]}
    pipeline, again = (fit(schema, features, labels, given, seed=2) for _ in range(2))
    (tmp_path / "model.skops").write_bytes(to_skops(pipeline))
    loaded = load_skops(tmp_path / "model.skops")
    expected = predict(pipeline, features, schema)
    assert np.array_equal(predict(again, features, schema), expected)
    assert np.array_equal(predict(loaded, features, schema), expected)
    model, plan, parity = convert(pipeline, schema, features)
    assert model is not None and plan is not None and parity.agrees, parity
    assert plan["layout"] == "matrix" and plan["row_by_row"] == (family != "linear" and calibration == "none")
    twin = Twin.of(model, msgspec.convert(plan, Plan), schema)
    rows = check_rows(features, schema)
    assert twin.predict_frame(rows).shape == predict(pipeline, rows, schema).shape


def test_counts_are_learnt_with_poissons_loss_and_the_twin_answers_the_same() -> None:
    schema, features, labels = known(900, task="regression")
    counts = np.exp((labels - 1000) / 20)
    pipeline = fit(schema, features, counts, {"loss": "poisson", "max_iter": 40})
    model, plan, parity = convert(pipeline, schema, features)
    assert model is not None and plan is not None and parity.agrees, parity
    assert pipeline.predict(features).min() > 0
    assert pipeline[-1].loss == "poisson"  # the conversion left the model as it was


def test_what_a_manifest_holds_of_the_parameters_builds_the_same_pipeline() -> None:
    schema, features, labels = known(300)
    for family in FAMILIES:
        given = parameters_of({"family": family, "calibration": "sigmoid", "class_weight": "balanced"})
        assert parameters_of(msgspec.json.decode(msgspec.json.encode(given.model_dump()))) == given
    before = {"learning_rate": 0.1, "max_leaf_nodes": 31, "max_iter": 5, "min_samples_leaf": 20, "max_bins": 255}
    old = fit(schema, features, labels, {**before, "l2_regularization": 0.0})  # as a manifest of 0.2 has them
    assert np.array_equal(
        old.predict_proba(features), fit(schema, features, labels, {"max_iter": 5}).predict_proba(features)
    )


def test_a_family_that_nobody_knows_is_named_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match="'svm': there are boosting, forest, extra_trees, linear and own"):
        parameters_of({"family": "svm"})


def test_rare_categories_share_a_column_of_the_linear_model_and_its_twin_knows() -> None:
    random = np.random.default_rng(0)
    common = random.choice(["x", "y", "z"], 1000)
    frame = pd.DataFrame(
        {"word": np.where(random.random(1000) < 0.9, common, random.integers(0, 300, 1000).astype(str))}
    )
    schema = FeatureSchema.infer(frame.assign(t=frame["word"] == "x"), "t")
    features, labels = schema.canonical(frame), schema.labels(frame["word"] == "x")
    pipeline = fit(schema, features, labels, {"family": "linear", "max_categories": 4})
    model, plan, parity = convert(pipeline, schema, features)
    assert model is not None and plan is not None and parity.agrees, parity
    assert pipeline[:-1].transform(features).shape[1] == 4
    codes = plan["columns"][0]["codes"]
    assert (
        len(set(codes.values())) == 4 and plan["columns"][0]["unknown"] == codes[next(w for w in codes if w.isdigit())]
    )


def test_a_class_with_too_few_rows_for_a_calibration_is_answered_uncalibrated() -> None:
    schema, features, labels = known(300)
    rows = np.append(np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:1])
    given = {"max_iter": 5, "calibration": "sigmoid"}
    fitted = fit(schema, features.iloc[rows], labels[rows], given)
    assert type(fitted[-1]).__name__ == "HistGradientBoostingClassifier"


def test_a_rare_class_that_weighs_as_much_as_the_others_is_still_said_to_be_rare_once_calibrated() -> None:
    schema, features, labels = known(3000)
    rare = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:150]])
    features, labels = features.iloc[rare], labels[rare]
    share = float((labels == 1).mean())
    for family in FAMILIES:
        given = {"family": family, "class_weight": "balanced", **FEW[family]}
        weighed, calibrated = (
            fit(schema, features, labels, {**given, "calibration": calibration}) for calibration in ("none", "sigmoid")
        )
        assert abs(calibrated.predict_proba(features)[:, 1].mean() - share) < 0.25 * share
        assert weighed.predict_proba(features)[:, 1].mean() > 1.25 * share
