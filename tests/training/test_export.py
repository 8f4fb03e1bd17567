from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
)
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.svm import LinearSVC
from skops.io._protocol import PROTOCOL

from monitoring.feature import Task
from tests.world import known
from training.artefact import ArtefactError, read_manifest, verify, write_manifest
from training.convert import convert
from training.export import export
from training.manifest import FormatError
from training.parity import check_rows
from training.pipeline import build, predict
from training.trust import UntrustedModel, load_pipeline, load_skops
from training.twin import Twin

NUMBERS, CATEGORIES = ["a", "b", "member", "joined"], ["city"]


def columns(numbers: Any, categories: Any) -> ColumnTransformer:
    return ColumnTransformer([("categories", categories, CATEGORIES), ("numbers", numbers, NUMBERS)])


def imputed() -> Any:
    return make_pipeline(SimpleImputer(), StandardScaler())


def one_hot() -> OneHotEncoder:
    return OneHotEncoder(handle_unknown="ignore")


def ordinal() -> OrdinalEncoder:
    return OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)


PUSHED: list[tuple[str, Task, Any]] = [
    ("logistic with scaler", "binary", make_pipeline(columns(imputed(), one_hot()), LogisticRegression())),
    ("three classes", "multiclass", make_pipeline(columns(imputed(), one_hot()), LogisticRegression())),
    ("ridge", "regression", make_pipeline(columns(imputed(), one_hot()), Ridge())),
    (
        "forest",
        "binary",
        make_pipeline(columns(SimpleImputer(), one_hot()), RandomForestClassifier(10, random_state=0)),
    ),
    (
        "boosting, categories first",
        "binary",
        make_pipeline(columns("passthrough", ordinal()), HistGradientBoostingClassifier(max_iter=20)),
    ),
]


@pytest.mark.parametrize(("task", "pipeline"), [(t, p) for _, t, p in PUSHED], ids=[name for name, _, _ in PUSHED])
def test_pipelines_of_the_usual_shapes_get_a_matrix_twin(tmp_path: Path, task: Task, pipeline: Any) -> None:
    schema, features, labels = known(400, task=task)
    pipeline.fit(features, labels)
    manifest = export(pipeline, schema, tmp_path, check_frame=features, manifest={})
    assert manifest.parity.agrees, manifest.parity
    assert manifest.twin.layout == "matrix"
    found, expected = Twin(tmp_path, verify(tmp_path)).predict_frame(features), predict(pipeline, features, schema)
    assert np.abs(found - expected).max() < 1e-5 * (expected.std() if task == "regression" else 1)


def test_a_bare_estimator_on_numbers_gets_a_twin() -> None:
    import pandas as pd

    from monitoring.schema import FeatureSchema

    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.normal(size=(200, 3)), columns=["x", "y", "z"]).assign(t=lambda f: f["x"] > 0)
    schema = FeatureSchema.infer(frame, "t")
    features = schema.canonical(frame)[["z", "x", "y"]]  # fitted in another order than the schema's
    model = LogisticRegression().fit(features.fillna(0), schema.labels(frame["t"]))
    _, plan, parity = convert(make_pipeline(SimpleImputer(), model).fit(features, frame["t"]), schema, features)
    assert parity.agrees, parity
    assert plan is not None
    assert [column["feature"] for column in plan["columns"]] == ["z", "x", "y"]


def test_a_pipeline_that_refuses_missing_values_gets_no_twin_that_would_answer_them() -> None:
    schema, features, labels = known(300)
    filled = features.fillna({"a": 0.0, "city": "Ulm"})
    pipeline = make_pipeline(columns("passthrough", one_hot()), LogisticRegression(max_iter=2000)).fit(filled, labels)
    model, plan, parity = convert(pipeline, schema, filled)
    assert model is None
    assert plan is None
    assert not parity.agrees
    assert "refuses rows with missing values" in parity.reason


def test_a_pipeline_whose_twin_differs_gets_none_and_the_reason() -> None:
    schema, features, labels = known(300)
    boosting = HistGradientBoostingClassifier(max_iter=5, categorical_features=[0])
    pipeline = make_pipeline(columns("passthrough", ordinal()), boosting).fit(features, labels)
    model, _, parity = convert(pipeline, schema, features)
    assert model is None
    assert "categorical_features" in parity.reason


def test_the_check_rows_hold_missing_unseen_and_extreme_values_of_every_feature() -> None:
    schema, features, _ = known(50)
    made = check_rows(features, schema).iloc[50:]
    for name in schema.names:
        assert made[name].isna().any()
    assert (made["city"] == "").any()
    assert made["b"].abs().max() == np.float32(1e30)
    assert made.isna().all(axis=1).any()


def test_a_changed_file_is_named_with_both_digests(tmp_path: Path) -> None:
    schema, features, labels = known(200)
    pipeline = build(schema, {"max_iter": 3}).fit(features, labels)
    manifest = export(pipeline, schema, tmp_path, check_frame=features, reference=features, manifest={"name": "m"})
    assert set(manifest.digests) - {"trees.bin"} == {"model.skops", "model.onnx", "schema.json", "reference.parquet"}
    assert verify(tmp_path) == manifest
    with (tmp_path / "model.onnx").open("ab") as file:
        file.write(b" ")
    with pytest.raises(
        ArtefactError, match=rf"model\.onnx was changed: expected sha256 {manifest.digests['model.onnx']}"
    ):
        verify(tmp_path)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(ArtefactError, match=r"model\.onnx does not exist"):
        verify(tmp_path)


def test_a_manifest_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="is not an artefact folder"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ArtefactError, match="is not JSON"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(FormatError, match=r"manifest.json was written by a newer release: it has format 99.*upgrade"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(
        '{"format": 1, "digests": {"model.skops": "", "schema.json": "", "../x": ""}}'
    )
    (tmp_path / "model.skops").write_bytes(b"")
    with pytest.raises(ArtefactError):
        verify(tmp_path)


def test_a_manifest_holds_plain_json_whatever_numbers_it_is_given(tmp_path: Path) -> None:
    written = write_manifest(tmp_path, {"quality": {"auc": np.float64("nan"), "rows": np.int64(3)}, "x": (1.5, np.inf)})
    assert json.loads((tmp_path / "manifest.json").read_bytes()) == written.document
    assert written.document["quality"] == {"auc": None, "rows": 3}
    assert written.document["x"] == [1.5, None]


def test_our_own_pipeline_loads_with_the_default_trust(tmp_path: Path) -> None:
    schema, features, labels = known(200)
    pipeline = build(schema, {"max_iter": 3}).fit(features, labels)
    export(pipeline, schema, tmp_path, check_frame=features, manifest={})
    assert np.array_equal(load_pipeline(tmp_path).predict_proba(features), pipeline.predict_proba(features))


def twice(values: Any) -> Any:
    return 2 * values


def test_untrusted_types_are_named_with_the_setting(tmp_path: Path) -> None:
    path = tmp_path / "own.skops"
    skops.io.dump(FunctionTransformer(twice).fit([[0.0]]), path)
    name = f"{twice.__module__}.twice"
    with pytest.raises(UntrustedModel, match="trusted_types`") as caught:
        load_skops(path)
    assert caught.value.types == (name,)
    assert load_skops(path, [name]).transform(np.ones((1, 1))) == 2


@pytest.mark.parametrize(
    "model",
    [
        RandomForestClassifier(3),
        ExtraTreesClassifier(3),
        GradientBoostingClassifier(n_estimators=3),
        HistGradientBoostingClassifier(max_iter=3),
        make_pipeline(StandardScaler(), SimpleImputer(), LogisticRegression()),
        CalibratedClassifierCV(LinearSVC()),
        GaussianProcessClassifier(),
        BaggingClassifier(n_estimators=3, max_features=0.5),
        StackingClassifier([("a", LogisticRegression()), ("b", RandomForestClassifier(2))]),
    ],
    ids=lambda model: type(model).__name__,
)
def test_estimators_of_scikit_learn_are_trusted(tmp_path: Path, model: Any) -> None:
    features = np.random.default_rng(0).normal(size=(60, 4))
    model.fit(features, features[:, 0] > 0)
    skops.io.dump(model, tmp_path / "model.skops")
    again = load_skops(tmp_path / "model.skops")
    expected = model.predict_proba(features)
    assert np.array_equal(again.predict_proba(features), expected)


@pytest.mark.parametrize(
    ("module", "name", "loader"),
    [
        ("sklearn.gaussian_process.kernels", "RBF", "ConstructorFromReduceNode"),  # a trusted class that is called
        ("sklearn.gaussian_process.kernels", "RBF", "ListNode"),
        ("sklearn.linear_model._logistic", "LogisticRegression", "LossNode"),
        ("sklearn.tree._tree", "Tree", "ConstructorFromReduceNode"),
        ("sklearn.datasets._openml", "fetch_openml", "FunctionNode"),  # a function
        ("sklearn.datasets._base", "load_files", "TypeNode"),
        ("sklearn.svm._base", "np", "TypeNode"),  # what a module has imported
        ("sklearn.neighbors._kd_tree", "KDTree", "ObjectNode"),  # compiled: it trusts its numbers
        ("sklearn.utils._testing", "TempMemmap", "ObjectNode"),
        ("sklearn.ensemble._hist_gradient_boosting.predictor", "TreePredictor", "ListNode"),
        ("sklearn.tests.random_seed", "pytest_configure", "FunctionNode"),  # of a module that is not imported
        ("builtins", "eval", "FunctionNode"),
        ("os", "system", "FunctionNode"),
    ],
)
def test_nothing_of_scikit_learn_that_could_run_is_trusted(tmp_path: Path, module: str, name: str, loader: str) -> None:
    nothing = {"__class__": "tuple", "__module__": "builtins", "__loader__": "TupleNode", "content": []}
    crafted = {"__class__": name, "__module__": module, "__loader__": loader, "protocol": PROTOCOL, "content": nothing}
    crafted |= {"__reduce__": {"args": nothing}} if loader == "LossNode" else {}
    crafted |= {"content": []} if loader == "ListNode" else {}
    with zipfile.ZipFile(tmp_path / "model.skops", "w") as archive:
        archive.writestr("schema.json", json.dumps(crafted))
    with pytest.raises(UntrustedModel, match=rf"not trusted: {module}\.{name}:"):
        load_skops(tmp_path / "model.skops")


class Bomb:
    """Would leave a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "model.skops", tmp_path / "was_run"
    path.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ArtefactError, match=r"not a skops file.*pickle and joblib files are never loaded"):
        load_skops(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.pkl", pickle.dumps(Bomb(mark)))
    with pytest.raises(ArtefactError, match="not a skops file"):
        load_skops(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "schema",
    ["", "[]", "{}", '{"__loader__": 3}', '{"__loader__": "no such"}', '{"__loader__": "MethodNode"}', "[" * 100_000],
)
def test_garbage_is_a_clear_error(tmp_path: Path, schema: str) -> None:
    path = tmp_path / "model.skops"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("schema.json", schema)
    with pytest.raises(ArtefactError, match=r"model\.skops"):
        load_skops(path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "model.skops"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", b"0" * 50_000_000)
    with pytest.raises(ArtefactError, match="zip bomb"):
        load_skops(path)


@pytest.mark.parametrize(("field", "value"), [("left", 1_000_000), ("right", 0), ("feature_idx", 50)])
def test_a_tree_that_points_outside_of_itself_is_refused(tmp_path: Path, field: str, value: int) -> None:
    schema, features, labels = known(200)
    pipeline = build(schema, {"max_iter": 2}).fit(features, labels)
    pipeline[-1]._predictors[1][0].nodes[field][0] = value
    skops.io.dump(pipeline, tmp_path / "model.skops")
    with pytest.raises(ArtefactError, match="holds a tree whose"):
        load_skops(tmp_path / "model.skops")


def wider(forest: Any) -> None:
    forest.n_features_in_ = 2


def no_width(forest: Any) -> None:
    del forest.estimators_[0].n_features_in_


def more_answers(forest: Any) -> None:
    forest.estimators_ = np.hstack([forest.estimators_] * 50)


@pytest.mark.parametrize(
    ("kind", "crafted", "said"),
    [
        (RandomForestClassifier, wider, "rows are wider than those of its forest"),
        (RandomForestClassifier, no_width, "number of features is missing"),
        (GradientBoostingClassifier, wider, "rows are wider than those of its forest"),
        (GradientBoostingClassifier, more_answers, "answers do not fit its forest"),
    ],
)
def test_a_forest_that_would_lead_its_trees_outside_of_the_row_is_refused(
    tmp_path: Path, kind: Any, crafted: Callable[[Any], None], said: str
) -> None:
    features = np.random.default_rng(0).normal(size=(60, 4))
    forest = kind(n_estimators=3).fit(features, features[:, 3] > 0)
    crafted(forest)
    skops.io.dump(forest, tmp_path / "model.skops")
    with pytest.raises(ArtefactError, match=said):
        load_skops(tmp_path / "model.skops")


@pytest.mark.parametrize(
    ("numbers", "categories", "said"),
    [
        (
            StandardScaler(),
            OneHotEncoder(handle_unknown="ignore"),
            r"LogisticRegression does not take column 'a' \(value nan; numbers come as float32\): .*add an imputer",
        ),
        (
            imputed(),
            OneHotEncoder(handle_unknown="error"),
            r"'columntransformer' > 'categories' > OneHotEncoder does not take column 'city' \(value .*come as text\)",
        ),
    ],
)
def test_the_column_and_the_transformer_that_keep_a_pipeline_from_a_twin_are_named(
    numbers: Any, categories: Any, said: str
) -> None:
    schema, features, labels = known(300)
    features = features.fillna({name: 0.0 for name in NUMBERS}).fillna({"city": "Rome"})
    pipeline = make_pipeline(columns(numbers, categories), LogisticRegression()).fit(features, labels)
    model, _, parity = convert(pipeline, schema, features)
    assert model is None
    assert re.search(said, parity.reason), parity.reason


def test_a_transformer_of_numbers_and_categories_together_is_named_with_both() -> None:
    schema, features, labels = known(300)
    together = ColumnTransformer([("both", OneHotEncoder(handle_unknown="ignore"), ["member", "city"])])
    pipeline = make_pipeline(together, LogisticRegression()).fit(features, labels)
    _, _, parity = convert(pipeline, schema, features)
    assert "the transformer 'both' for numbers (member) and categories (city) together" in parity.reason


@pytest.mark.parametrize(
    "encoder",
    [
        OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=3),
        OneHotEncoder(handle_unknown="ignore", min_frequency=0.2),
        OneHotEncoder(handle_unknown="ignore", drop="first"),
    ],
    ids=["unseen as rare", "rare together", "one dropped"],
)
def test_whatever_a_one_hot_encoder_does_with_rare_and_unseen_categories_its_twin_does(encoder: Any) -> None:
    schema, features, labels = known(600)
    rare = features["city"].where(np.arange(600) % 40 != 0, "Hagen").where(np.arange(600) % 50 != 0, "Moers")
    features = features.assign(city=rare)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the encoder: unseen categories are encoded as zeros
        pipeline = make_pipeline(columns(imputed(), encoder), LogisticRegression()).fit(features, labels)
        model, plan, parity = convert(pipeline, schema, features)
    assert model is not None and plan is not None and parity.agrees, parity
    assert plan["layout"] == "matrix"


@pytest.mark.parametrize("kind", [RandomForestRegressor, ExtraTreesRegressor])
def test_a_forest_of_numbers_with_a_large_mean_has_a_twin(kind: Any) -> None:
    schema, features, labels = known(600, task="regression")
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2)
    pipeline = make_pipeline(columns(SimpleImputer(), codes), kind(10, random_state=0)).fit(features, labels + 1e5)
    model, _, parity = convert(pipeline, schema, features)
    assert model is not None and parity.agrees, parity
    assert abs(pipeline.predict(features).mean() - labels.mean() - 1e5) < 1  # the conversion left the model as it was
