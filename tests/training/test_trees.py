"""The compiled engine for trees answers as scikit-learn does to 1e-12, refuses what is damaged, and is optional."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import sklearn.ensemble
import xgboost
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from benchmarks import fuzz_trees, sanitized
from benchmarks.trees import hard_rows
from monitoring.decode import Batch, RequestDecoder
from monitoring.feature import Task
from monitoring.schema import FeatureSchema
from tests.artefacts import example_record, make_artefact, modules_of_an_answer
from tests.real_server import ROOT
from tests.world import known, raw
from training.artefact import TREES, file_digest, verify, write_manifest
from training.export import export
from training.flatten import ensemble_of
from training.manifest import Column, Plan
from training.parity import EXACT
from training.pipeline import fit, predict
from training.trees import Ensemble, Trees, is_built, ways
from training.twin import Rows, Twin

pytestmark = pytest.mark.skipif(not is_built(), reason="the compiled engine is not built here: there was no compiler")

FAMILIES: list[tuple[Task, dict[str, Any]]] = [
    ("binary", {"family": "boosting", "max_iter": 30}),
    ("multiclass", {"family": "boosting", "max_iter": 15}),
    ("regression", {"family": "boosting", "max_iter": 30}),
    ("regression", {"family": "boosting", "max_iter": 30, "loss": "poisson"}),
    ("binary", {"family": "boosting", "max_iter": 30, "max_leaf_nodes": 63, "min_samples_leaf": 2}),
    ("binary", {"family": "boosting", "max_iter": 10, "max_leaf_nodes": 200, "min_samples_leaf": 1}),
    ("binary", {"family": "boosting", "max_iter": 20, "calibration": "sigmoid"}),
    ("multiclass", {"family": "boosting", "max_iter": 20, "calibration": "sigmoid"}),
    ("binary", {"family": "boosting", "max_iter": 1}),
    ("binary", {"family": "boosting", "max_iter": 5, "min_samples_leaf": 10_000}),  # trees of one leaf
    *((task, {"family": family, "n_estimators": 20}) for family in ("forest", "extra_trees")
      for task in ("binary", "multiclass", "regression")),
    ("binary", {"family": "forest", "n_estimators": 20, "max_leaf_nodes": 40, "class_weight": "balanced"}),
    ("binary", {"family": "forest", "n_estimators": 20, "calibration": "sigmoid"}),
    ("multiclass", {"family": "extra_trees", "n_estimators": 20, "calibration": "sigmoid"}),
]  # fmt: skip


def apart(found: Any, expected: Any) -> float:
    """The largest difference, of a number above 1 as a part of it."""
    return float((np.abs(found - expected) / np.maximum(1, np.abs(expected))).max())


@pytest.mark.parametrize(("task", "parameters"), FAMILIES, ids=str)
def test_every_family_that_is_trained_answers_requests_as_scikit_learn_does(
    tmp_path: Path, task: Task, parameters: dict[str, Any]
) -> None:
    schema, features, labels = known(500, task=task)
    pipeline = fit(schema, features, labels, parameters)

    manifest = export(pipeline, schema, tmp_path, check_frame=features, manifest={})

    assert manifest.trees is not None and manifest.trees.agrees, manifest.trees
    assert manifest.engine == "trees" and TREES in manifest.digests
    twin, decoder = Twin(tmp_path, verify(tmp_path)), RequestDecoder(schema, 1000)
    assert twin.engine == "trees"
    frame = raw(300, seed=9)[list(schema.names)]
    frame["joined"] = frame["joined"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    sent = json.loads(frame.to_json(orient="records"))
    sent[0] |= {"city": "a place nobody has seen", "a": None}
    sent[1] |= {"city": None, "member": None, "joined": None, "a": 1e30, "b": -3e38}
    expected = predict(pipeline, schema.frame(sent), schema)
    together = twin.predict(decoder.decode(json.dumps({"records": sent}).encode()))
    assert together.shape == expected.shape and together.dtype == np.float64
    assert apart(together, expected) <= EXACT
    for many in (1, 2, 15, 16, 17, 63, 64, 65, 130):  # walks, tiles, and tiles with a rest
        part = twin.predict(decoder.decode(json.dumps({"records": sent[:many]}).encode()))
        assert np.array_equal(part, together[:many])


PUSHED: list[tuple[str, Task, Any]] = [
    ("gradient boosting", "binary", sklearn.ensemble.GradientBoostingClassifier(n_estimators=20)),
    ("gradient boosting", "multiclass", sklearn.ensemble.GradientBoostingClassifier(n_estimators=10)),
    ("gradient boosting", "regression", sklearn.ensemble.GradientBoostingRegressor(n_estimators=20)),
    ("calibrated", "binary", CalibratedClassifierCV(sklearn.ensemble.GradientBoostingClassifier(n_estimators=9),
                                                    ensemble=False, cv=3)),
    ("one tree", "multiclass", DecisionTreeClassifier(random_state=0)),
    ("one tree", "regression", DecisionTreeRegressor(max_leaf_nodes=20, random_state=0)),
    ("LightGBM", "multiclass", lightgbm.LGBMClassifier(n_estimators=10, verbose=-1)),
    ("LightGBM", "regression", lightgbm.LGBMRegressor(n_estimators=20, verbose=-1)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "task", "model"), PUSHED, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("imputed", ["median", "constant"])
def test_pushed_trees_answer_as_their_library_does(
    tmp_path: Path, name: str, task: Task, model: Any, imputed: str
) -> None:
    schema, features, labels = known(500, task=task)
    ordinal = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2)
    columns = ColumnTransformer(
        [
            ("n", SimpleImputer(strategy=imputed, fill_value=-5.5), list(schema.numeric_names)),
            ("c", ordinal, list(schema.categorical_names)),
        ]
    )
    pipeline = make_pipeline(columns, model).fit(features, labels)

    manifest = export(pipeline, schema, tmp_path, check_frame=features, manifest={})

    assert manifest.engine == "trees", (manifest.trees, manifest.parity)
    assert apart(Twin(tmp_path, manifest).predict_frame(features), predict(pipeline, features, schema)) <= EXACT


@pytest.mark.parametrize("name", ["RandomForestClassifier", "ExtraTreesClassifier", "RandomForestRegressor"])
def test_a_forest_sends_missing_values_where_it_learnt_to(tmp_path: Path, name: str) -> None:
    schema, features, labels = known(600, task="regression" if "Regressor" in name else "binary")
    columns = ColumnTransformer([("n", "passthrough", ["a", "b"])])
    forest = getattr(sklearn.ensemble, name)(20, min_samples_leaf=5, random_state=0)
    pipeline = make_pipeline(columns, forest).fit(features, labels)
    assert any(tree.tree_.missing_go_to_left.any() for tree in forest.estimators_)

    manifest = export(pipeline, schema, tmp_path, check_frame=features, manifest={})

    assert manifest.engine == "trees", manifest.trees
    assert apart(Twin(tmp_path, manifest).predict_frame(features), predict(pipeline, features, schema)) <= EXACT


def plain(model: Any, x: Any) -> Ensemble:
    """The arrays of a model that reads these columns as they are."""
    columns = tuple(Column(str(number)) for number in range(x.shape[1]))
    return ensemble_of(model, Plan(layout="matrix", output="", columns=columns))


@pytest.mark.parametrize("leaves", [2, 8, 31, 32, 33, 63, 64, 65, 255])
def test_thresholds_hit_exactly_and_their_neighbours_fall_where_scikit_learn_puts_them(leaves: int) -> None:
    rng = np.random.default_rng(leaves)
    x = rng.normal(size=(2000, 4)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    y = np.nansum(x, axis=1) > 0
    model = sklearn.ensemble.HistGradientBoostingClassifier(
        max_iter=20, max_leaf_nodes=leaves, min_samples_leaf=1, random_state=0
    ).fit(x, y)
    arrays = plain(model, x)
    assert int(arrays.inner.max()) + 1 == min(leaves, 179)  # the rows give no more
    rows = hard_rows(rng, 20_000, [arrays.threshold[arrays.feature == column] for column in range(4)])
    expected, trees = model.predict_proba(rows), Trees(arrays.encode())

    answers = [trees.predict(rows, way) for way in (None, *ways())]

    assert apart(answers[0], expected) <= EXACT
    assert all(np.array_equal(answers[0], other) for other in answers[1:])


def test_a_classifier_of_one_class_and_no_rows_at_all_are_answered() -> None:
    x = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    model = sklearn.ensemble.RandomForestClassifier(5).fit(x, np.zeros(50))

    trees = Trees(plain(model, x).encode())

    assert np.array_equal(trees.predict(x), model.predict_proba(x))
    assert trees.predict(x[:0]).shape == (0, 1)


OTHERS = [
    (make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()), "2 steps stand before its trees"),
    (make_pipeline(SimpleImputer(), LogisticRegression()), "LogisticRegression is no ensemble of trees"),
    (xgboost.XGBClassifier(n_estimators=3), "XGBClassifier adds up in float32"),
    (make_pipeline(StandardScaler(), sklearn.ensemble.HistGradientBoostingClassifier(max_iter=3)), ""),
    (
        CalibratedClassifierCV(sklearn.ensemble.HistGradientBoostingClassifier(max_iter=3), cv=2),
        "calibrated by 2 models",
    ),
    (sklearn.ensemble.AdaBoostClassifier(n_estimators=3), ""),
]


@pytest.mark.parametrize(("model", "why"), OTHERS, ids=lambda value: type(value).__name__)
def test_what_the_engine_does_not_know_is_served_by_onnx_and_says_why(tmp_path: Path, model: Any, why: str) -> None:
    schema, features, labels = known(400)
    numbers = features[list(schema.numeric_names)].fillna(0)
    schema = schema.infer(numbers.assign(y=labels), "y")
    features = schema.canonical(numbers)
    pipeline = model.fit(features, labels)

    manifest = export(pipeline, schema, tmp_path, check_frame=features, manifest={})

    assert manifest.engine != "trees" and TREES not in manifest.digests
    assert manifest.trees is not None and not manifest.trees.agrees and why in manifest.trees.reason
    if manifest.twin is not None:
        assert Twin(tmp_path, manifest).engine == "onnx"


def test_one_hot_categories_before_trees_are_onnx_s(tmp_path: Path) -> None:
    schema, features, labels = known(400)
    columns = ColumnTransformer(
        [("n", "passthrough", ["a"]), ("c", OneHotEncoder(handle_unknown="ignore"), list(schema.categorical_names))]
    )
    model = sklearn.ensemble.HistGradientBoostingClassifier(max_iter=5)
    pipeline = make_pipeline(columns, model).fit(features, labels)

    assert export(pipeline, schema, tmp_path, check_frame=features, manifest={}).engine == "onnx"


def test_requests_become_the_matrix_that_the_slow_way_makes_of_them(tmp_path: Path) -> None:
    make_artefact(tmp_path, iterations=5)
    twin = Twin(tmp_path, verify(tmp_path))
    schema = FeatureSchema.from_json((tmp_path / "schema.json").read_bytes())
    decoder = RequestDecoder(schema, 1000, ("note",))
    records: list[dict[str, Any]] = [example_record(age=age) for age in (17, 17.1, -3.4e38, 1e-45, None)]
    records += [
        {**example_record(), name: value} for name in schema.categorical_names for value in (None, "", "unseen")
    ]
    records += [example_record(returning=value, owns_home=None, note="only recorded") for value in (True, False, None)]

    for sent in (records, records[:1], records[-1:]):
        batch = decoder.decode(json.dumps({"records": sent}).encode())
        slow = twin.encode(batch.numeric(), batch.categorical())
        assert np.array_equal(twin._matrix_of(batch), slow, equal_nan=True)
        assert np.array_equal(twin.predict(batch), twin.predict_matrix(slow))
    joined = Batch.joined([decoder.decode(json.dumps({"records": sent}).encode()) for sent in (records, records[:3])])
    assert np.array_equal(twin._matrix_of(joined)[-3:], twin._matrix_of(joined)[:3], equal_nan=True)


def test_rows_that_do_not_fit_the_matrix_are_refused() -> None:
    from training._trees import encode

    out = np.empty((1, 2), np.float32)
    encode([(True, "b")], (0, 1), (None, ({"b": 7.0}, -1.0)), out)
    assert out.tolist() == [[1.0, 7.0]]
    wrong: list[tuple[Any, ...]] = [
        ([(1.0, "b")], (0, 2), (None, None), out),  # no such place
        ([(1.0, "b")], (0, 1), (None, None), out),  # no number
        ([(1.0, [])], (0, 1), (None, ({}, 0.0)), out),  # no category
        ([(1.0, "b")] * 2, (0, 1), (None, None), out),  # no room
        ([(1.0, "b")], (0, 1), (None,), out),
        ([(1.0, "b")], (0, 1), (None, None), np.empty((1, 2))),
    ]
    for arguments in wrong:
        with pytest.raises((ValueError, TypeError, IndexError)):
            encode(*arguments)


# -- what is damaged --------------------------------------------------------------------------------------------------


def small() -> Ensemble:
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    return plain(sklearn.ensemble.RandomForestClassifier(3, max_leaf_nodes=5, random_state=0).fit(x, x[:, 0] > 0), x)


def with_number(at: int, kind: str, value: float) -> bytes:
    content = bytearray(small().encode())
    struct.pack_into(kind, content, at, value)
    return bytes(content)


NAN, NODES = float("nan"), len(small().threshold)
DAMAGED: list[tuple[bytes, str]] = [
    (b"", "shorter than its head"),
    (b"x" * 500, "does not begin as compiled trees do"),
    (small().encode()[:-1], "length is not what its counts say"),
    (small().encode() + b"\0", "length is not what its counts say"),
    (with_number(8, "<I", 2), "format is not 1"),
    (with_number(12, "<I", 0), "a count in it is 0 or too large"),
    (with_number(20, "<I", 2**32 - 1), "a count in it is 0 or too large"),
    (with_number(24, "<I", 2**30), "a count in it is 0 or too large"),
    (with_number(28, "<I", 3), "neither one value nor one for each output"),
    (with_number(32, "<I", 9), "link is unknown"),
    (with_number(40, "<d", NAN), "divisor"),
    (with_number(48, "<d", NAN), "not finite"),
    (small()._replace(value=np.full_like(small().value, np.inf)).encode(), "not finite"),
    (small()._replace(fill=np.full(3, np.inf, np.float32)).encode(), "not finite"),
    (small()._replace(threshold=np.full(NODES, np.nan, np.float32)).encode(), "with no number"),
    (small()._replace(feature=np.full(NODES, 3, np.uint32)).encode(), "a feature that there is not"),
    (small()._replace(flags=np.full(NODES, 8, np.uint8)).encode(), "flags that this release does not know"),
    (small()._replace(column=np.full(3, 2, np.uint32)).encode(), "an output that there is not"),
    (small()._replace(inner=small().inner + np.array([0, 1, 0], np.uint32)).encode(), "another number of nodes"),
    (small()._replace(flags=np.zeros(NODES, np.uint8)).encode(), "ends before all of its leaves"),
    (small()._replace(flags=np.full(NODES, 6, np.uint8)).encode(), "nodes that nothing leads to"),
]


@pytest.mark.parametrize(("content", "why"), DAMAGED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_damaged_file_is_refused_with_what_is_wrong(content: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Trees(content)


def test_a_matrix_of_another_form_is_refused() -> None:
    trees, x = Trees(small().encode()), np.zeros((4, 3), np.float32)

    for wrong in (x.astype(np.float64), x[:, :2].copy(), np.asfortranarray(x), x[0]):
        with pytest.raises((ValueError, BufferError)):
            trees.predict(wrong)
    with pytest.raises(ValueError, match="no way"):
        trees.predict(x, "another")


def test_no_damaged_file_ends_the_process_under_address_sanitizer() -> None:
    if reason := sanitized.why_not():
        pytest.skip(reason)
    said: list[str] = []

    problem = fuzz_trees.run(3_000, 1, said.append)

    assert problem == ""
    assert said[0].startswith("3,000 files under AddressSanitizer") and "0 answered" not in said[0]


def test_a_version_whose_trees_cannot_be_used_is_answered_by_onnx(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    schema, features, labels = known(300)
    pipeline = fit(schema, features, labels, {"max_iter": 5})
    manifest = export(pipeline, schema, tmp_path, check_frame=features, manifest={})
    (tmp_path / TREES).write_bytes((tmp_path / TREES).read_bytes()[:-1])
    write_manifest(tmp_path, manifest.document)  # whoever made the file says that it is whole

    twin = Twin(tmp_path, verify(tmp_path))

    assert twin.engine == "onnx" and "length is not what its counts say" in caplog.text
    assert apart(twin.predict_frame(features), predict(pipeline, features, schema)) < 1e-5


def test_trees_of_another_model_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    schema, features, labels = known(300)
    manifest = export(
        fit(schema, features, labels, {"max_iter": 5}), schema, tmp_path, check_frame=features, manifest={}
    )
    (tmp_path / TREES).write_bytes(small().encode())

    assert Twin(tmp_path, manifest).engine == "onnx" and "3 features and 2 columns" in caplog.text


# -- where it is not built --------------------------------------------------------------------------------------------

ASK = """
import json, pathlib, sys
from monitoring.schema import FeatureSchema
from training.artefact import verify
from training.trees import is_built
from training.twin import Rows, Twin
import pandas as pd
folder = pathlib.Path(sys.argv[1])
schema = FeatureSchema.from_json((folder / "schema.json").read_bytes())
twin = Twin(folder, verify(folder))
frame = schema.frame(json.loads(sys.argv[2]))
print(json.dumps([is_built(), twin.engine, twin.predict_frame(frame).tolist()]))
"""


def ask(where: Path, folder: Path, records: list[dict[str, Any]]) -> tuple[bool, str, Any]:
    """What the packages in `where` answer: (whether the engine is built, which answers, the answers)."""
    env = os.environ | {"PYTHONPATH": f"{where}{os.pathsep}{sysconfig.get_path('purelib')}"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", ASK, str(folder), json.dumps(records)],
        env=env, cwd=where, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    built, engine, answers = json.loads(done.stdout)
    return built, engine, np.array(answers)


def test_a_machine_without_a_compiler_installs_everything_and_answers_by_onnx(tmp_path: Path) -> None:
    schema, features, labels = known(300)
    pipeline = fit(schema, features, labels, {"max_iter": 5})
    export(pipeline, schema, tmp_path / "1", check_frame=features, manifest={})
    source = tmp_path / "source"
    for package in ("service", "training", "monitoring"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-c", "from setuptools.build_meta import build_wheel as b; b('..')"]
    env = os.environ | {"CC": "/nonexistent/cc", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(build, cwd=source, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
        archive.extractall(tmp_path / "installed")
    records = [schema.example(), schema.example() | {"a": None}]

    there, here = ask(tmp_path / "installed", tmp_path / "1", records), ask(ROOT, tmp_path / "1", records)

    assert there[:2] == (False, "onnx") and here[:2] == (True, "trees")
    assert np.abs(there[2] - here[2]).max() < 1e-5


def test_a_version_made_before_there_were_compiled_trees_is_answered_by_onnx(tmp_path: Path) -> None:
    schema, features, labels = known(300)
    written = export(
        fit(schema, features, labels, {"max_iter": 5}), schema, tmp_path, check_frame=features, manifest={}
    )
    document = dict(written.document)
    del document["trees"]
    (tmp_path / TREES).unlink()
    manifest = write_manifest(tmp_path, document)

    assert manifest.trees is None and Twin(tmp_path, verify(tmp_path)).engine == "onnx"


def test_onnx_answers_where_it_is_asked_for(tmp_path: Path) -> None:
    schema, features, labels = known(300)
    pipeline = fit(schema, features, labels, {"max_iter": 5})
    manifest = export(pipeline, schema, tmp_path, check_frame=features, manifest={})
    rows = Rows(features, schema.numeric_names, schema.categorical_names)

    onnx, trees = Twin(tmp_path, manifest, "onnx"), Twin(tmp_path, manifest)

    assert (onnx.engine, trees.engine) == ("onnx", "trees")
    (one, matrix), (other, same) = onnx.predict_with_matrix(rows), trees.predict_with_matrix(rows)
    assert np.abs(one - other).max() < 1e-5
    assert np.array_equal(matrix, same, equal_nan=True)


def test_compiled_trees_need_no_onnxruntime_and_no_scikit_learn(tmp_path: Path) -> None:
    schema, features, labels = known(200)
    export(fit(schema, features, labels, {"max_iter": 5}), schema, tmp_path, check_frame=features, manifest={})

    imported = modules_of_an_answer(tmp_path)

    assert "training._trees" in imported
    assert not {"onnxruntime", "sklearn", "pandas", "scipy"} & imported


def test_threads_share_compiled_trees() -> None:
    from concurrent.futures import ThreadPoolExecutor

    trees = Trees(small().encode())
    x = np.random.default_rng(1).normal(size=(5_000, 3)).astype(np.float32)
    alone = trees.predict(x)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: trees.predict(x), range(40)))

    assert all(np.array_equal(alone, each) for each in together)


def test_the_digest_of_the_trees_stands_in_the_manifest(tmp_path: Path) -> None:
    schema, features, labels = known(200)
    manifest = export(
        fit(schema, features, labels, {"max_iter": 5}), schema, tmp_path, check_frame=features, manifest={}
    )

    assert manifest.digests[TREES] == file_digest(tmp_path / TREES)
