"""XGBoost's and LightGBM's models answer as their ONNX twins do, and without their libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import xgboost
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

from monitoring.feature import Task
from monitoring.schema import FeatureSchema
from tests.artefacts import modules_of_an_answer
from tests.world import known
from training.artefact import verify
from training.boosting import NotConvertible, check_tree, stand_in
from training.convert import convert
from training.export import export
from training.trust import UntrustedModel, load_pipeline
from training.twin import Twin

QUIET: dict[str, Any] = {"verbose": -1}
SMALL = [xgboost.XGBClassifier(n_estimators=5), lightgbm.LGBMClassifier(n_estimators=5, **QUIET)]
PACKAGES = ("xgboost.*", "lightgbm.*")


def fitted(model: Any, task: Task, encoder: Any = None, rows: int = 500) -> tuple[Any, FeatureSchema, Any]:
    """A pipeline that ends in the model, its schema, and canonical features with missing values among them."""
    schema, features, labels = known(rows, task=task)
    if task != "regression" and isinstance(model, xgboost.XGBModel):  # it takes no labels but 0, 1, …
        labels = np.array([schema.classes.index(label) for label in labels])
    if "poisson" in str(model.get_params().get("objective")):
        labels = labels - labels.min()
    encoder = encoder or OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    columns = ColumnTransformer(
        [("n", "passthrough", list(schema.numeric_names)), ("c", encoder, list(schema.categorical_names))]
    )
    return make_pipeline(columns, model).fit(features, labels), schema, features


CONVERTED: list[tuple[Any, Task]] = [
    (xgboost.XGBClassifier(n_estimators=20), "binary"),
    (xgboost.XGBClassifier(n_estimators=20), "multiclass"),
    (xgboost.XGBRegressor(n_estimators=20), "regression"),
    (xgboost.XGBRegressor(n_estimators=20, objective="count:poisson"), "regression"),
    (xgboost.XGBRFClassifier(n_estimators=20), "binary"),
    (lightgbm.LGBMClassifier(n_estimators=20, **QUIET), "binary"),
    (lightgbm.LGBMClassifier(n_estimators=20, **QUIET), "multiclass"),
    (lightgbm.LGBMRegressor(n_estimators=20, **QUIET), "regression"),
    (lightgbm.LGBMRegressor(n_estimators=20, objective="poisson", **QUIET), "regression"),
    (lightgbm.LGBMClassifier(n_estimators=20, boosting_type="dart", **QUIET), "binary"),
    (lightgbm.LGBMClassifier(n_estimators=2, min_child_samples=10_000, **QUIET), "binary"),  # trees of one leaf
]


@pytest.mark.parametrize(("model", "task"), CONVERTED, ids=lambda value: getattr(type(value), "__name__", ""))
def test_a_boosted_model_has_a_twin_that_answers_the_same(model: Any, task: Task) -> None:
    pipeline, schema, features = fitted(model, task)
    _, plan, parity = convert(pipeline, schema, features)
    assert parity.agrees, parity
    assert plan is not None
    assert plan["layout"] == "matrix"


def test_one_hot_categories_and_a_large_mean_have_a_twin_too() -> None:
    schema, features, labels = known(500, task="regression")
    columns = ColumnTransformer(
        [
            ("n", "passthrough", list(schema.numeric_names)),
            ("c", OneHotEncoder(handle_unknown="ignore"), list(schema.categorical_names)),
        ]
    )
    model = lightgbm.LGBMRegressor(n_estimators=20, **QUIET)
    pipeline = make_pipeline(columns, model).fit(features, labels + 1e6)
    assert convert(pipeline, schema, features)[2].agrees


def test_a_value_beside_a_threshold_goes_where_the_library_sends_it() -> None:
    import pandas as pd

    grid = np.float32(17_000) + np.arange(200, dtype=np.float32) * np.spacing(np.float32(17_000))
    frame = pd.DataFrame({"day": np.repeat(grid, 30), "y": np.repeat(np.arange(200) % 2, 30)})
    schema = FeatureSchema.infer(frame, "y")
    features = schema.canonical(frame)
    for model in (
        xgboost.XGBClassifier(n_estimators=20, max_bin=512),
        lightgbm.LGBMClassifier(n_estimators=20, **QUIET),
    ):
        pipeline = make_pipeline(ColumnTransformer([("n", "passthrough", ["day"])]), model).fit(features, frame["y"])
        parity = convert(pipeline, schema, features)[2]
        assert parity.agrees, parity
        assert np.ptp(pipeline.predict_proba(features)[:, 1]) > 0.1  # there are thresholds between neighbours


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (xgboost.XGBClassifier(n_estimators=2, booster="gblinear"), "booster='gblinear'"),
        (xgboost.XGBClassifier(n_estimators=2, missing=-999), "missing=-999"),
        (lightgbm.LGBMClassifier(n_estimators=2, zero_as_missing=True, **QUIET), "zero_as_missing"),
    ],
)
def test_what_no_twin_answers_like_is_named(model: Any, said: str) -> None:
    pipeline, schema, features = fitted(model, "binary")
    found, _, parity = convert(pipeline, schema, features)
    assert found is None
    assert said in parity.reason


def test_only_the_rounds_of_the_best_iteration_are_taken() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(400, 3)), generator.integers(0, 2, 400)
    model = xgboost.XGBClassifier(n_estimators=100, early_stopping_rounds=5)
    model.fit(x[:200], y[:200], eval_set=[(x[200:], y[200:])], verbose=False)
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    assert len(stand_in(model).forest.trees) == 1 + model.best_iteration + 1  # the first is the base


@pytest.mark.parametrize(("field", "value"), [("left", 0), ("left", 10**6), ("right", 1), ("feature", 99)])
def test_a_tree_that_leads_outside_or_in_a_circle_is_not_converted(field: str, value: int) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 3))
    tree = stand_in(xgboost.XGBClassifier(n_estimators=2).fit(x, x[:, 0] > 0)).forest.trees[1]
    changed = getattr(tree, field).copy()
    changed[0] = value
    with pytest.raises(NotConvertible, match="lead outside"):
        check_tree(tree._replace(**{field: changed}), 3)


@pytest.mark.parametrize("model", SMALL)
def test_a_version_answers_without_the_library_that_made_it(tmp_path: Path, model: Any) -> None:
    pipeline, schema, features = fitted(model, "binary")
    export(pipeline, schema, tmp_path, check_frame=features, manifest={})
    expected = pipeline.predict_proba(features)

    assert np.abs(Twin(tmp_path, verify(tmp_path)).predict_frame(features) - expected).max() < 1e-5
    assert not {"xgboost", "lightgbm", "sklearn", "pandas"} & modules_of_an_answer(tmp_path)


@pytest.mark.parametrize("model", SMALL)
def test_a_boosted_model_is_loaded_when_its_package_is_trusted(tmp_path: Path, model: Any) -> None:
    pipeline, schema, features = fitted(model, "binary")
    export(pipeline, schema, tmp_path, check_frame=features, manifest={})
    with pytest.raises(UntrustedModel, match=r"add '(xgboost|lightgbm)' to the setting `security.trusted_packages`"):
        load_pipeline(tmp_path)
    loaded = load_pipeline(tmp_path, PACKAGES)
    assert np.array_equal(loaded.predict_proba(features), pipeline.predict_proba(features))
