from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline

from monitoring.decode import RequestDecoder
from monitoring.feature import Task
from monitoring.schema import FeatureSchema
from tests.artefacts import modules_of_an_answer
from tests.world import known, raw
from training.artefact import ArtefactError
from training.convert import convert
from training.export import export
from training.pipeline import build, predict
from training.twin import Twin

TASKS: list[Task] = ["binary", "multiclass", "regression"]


def records(rows: int, schema: FeatureSchema) -> list[dict[str, Any]]:
    """What a client would send."""
    frame = raw(rows, seed=9)[list(schema.names)]
    frame["joined"] = frame["joined"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    sent: list[dict[str, Any]] = json.loads(frame.to_json(orient="records"))
    sent[0] |= {"city": "a place nobody has seen", "a": None}
    sent[1] |= {"city": None, "member": None, "joined": None, "a": 1e30, "b": -3e38}
    return sent


@pytest.mark.parametrize("task", TASKS)
def test_a_twin_answers_requests_as_the_pipeline_does(tmp_path: Path, task: Task) -> None:
    schema, features, labels = known(500, task=task)
    pipeline = build(schema, {"max_iter": 30}).fit(features, labels)
    manifest = export(pipeline, schema, tmp_path, check_frame=features, manifest={})
    twin, decoder = Twin(tmp_path, manifest), RequestDecoder(schema, 1000)
    sent = records(200, schema)
    expected = predict(pipeline, schema.frame(sent), schema)
    scale = expected.std() if task == "regression" else 1.0
    assert manifest.twin.layout == "matrix"
    together = twin.predict(decoder.decode(json.dumps({"records": sent}).encode()))
    assert together.shape == expected.shape
    assert np.abs(together - expected).max() < 1e-5 * scale
    for row in range(20):  # one row takes its own road
        alone = twin.predict(decoder.decode(json.dumps({"records": [sent[row]]}).encode()))
        assert np.array_equal(alone[0], together[row])
    assert manifest.twin.row_by_row
    for group in (2, 7, 51, 64):  # onnxruntime goes through the trees another way above 50 rows
        part = twin.predict(decoder.decode(json.dumps({"records": sent[:group]}).encode()))
        assert np.array_equal(part, together[:group])


def test_a_model_that_multiplies_matrices_is_not_row_by_row(tmp_path: Path) -> None:
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression

    schema, features, labels = known(300)
    numbers = make_column_transformer((SimpleImputer(), ["a", "b"]))
    pipeline = make_pipeline(numbers, LogisticRegression()).fit(features, labels)

    manifest = export(pipeline, schema, tmp_path, check_frame=features, manifest={})

    assert manifest.twin, manifest.parity
    assert manifest.twin.row_by_row is False


@pytest.mark.parametrize("name", ["RandomForestClassifier", "ExtraTreesClassifier", "RandomForestRegressor"])
def test_a_forest_that_has_learnt_missing_values_has_a_twin(name: str) -> None:
    import sklearn.ensemble
    from sklearn.compose import make_column_transformer

    schema, features, labels = known(600, task="regression" if "Regressor" in name else "binary")
    assert features["a"].isna().any()
    columns = make_column_transformer(("passthrough", ["a", "b"]))
    final = getattr(sklearn.ensemble, name)(20, min_samples_leaf=5, random_state=0)
    pipeline = make_pipeline(columns, final).fit(features, labels)
    assert any(tree.tree_.missing_go_to_left.any() for tree in final.estimators_)

    assert convert(pipeline, schema, features)[2].agrees


def test_float32_neighbours_fall_on_the_side_of_a_threshold_where_the_pipeline_puts_them(tmp_path: Path) -> None:
    import pandas as pd

    grid = np.float32(17_000) + np.arange(200, dtype=np.float32) * np.spacing(np.float32(17_000))
    frame = pd.DataFrame({"day": np.repeat(grid, 30), "y": np.repeat(np.arange(200) % 2, 30)})
    schema = FeatureSchema.infer(frame, "y")
    features = schema.canonical(frame)
    pipeline = build(schema).fit(features, schema.labels(frame["y"]))
    manifest = export(pipeline, schema, tmp_path, check_frame=features, manifest={})
    assert manifest.parity.agrees, manifest.parity
    twin = Twin(tmp_path, manifest)
    assert np.abs(twin.predict_frame(features) - pipeline.predict_proba(features)).max() < 1e-5


def test_threads_share_a_twin(tmp_path: Path) -> None:
    schema, features, labels = known(300)
    pipeline = build(schema, {"max_iter": 10}).fit(features, labels)
    twin = Twin(tmp_path, export(pipeline, schema, tmp_path, check_frame=features, manifest={}))
    batches = [RequestDecoder(schema, 10).decode(json.dumps({"records": [r]}).encode()) for r in records(50, schema)]
    alone = [twin.predict(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(twin.predict, batches * 4))
    assert all(np.array_equal(a, b) for a, b in zip(alone * 4, together, strict=True))


def test_a_version_without_a_twin_says_why(tmp_path: Path) -> None:
    schema, features, labels = known(200)
    pipeline = build(schema, {"max_iter": 5}).fit(features, labels)
    written = export(pipeline, schema, tmp_path, check_frame=features, manifest={})
    manifest = written.changed(twin=None, parity={"agrees": False, "reason": "7 of 100 rows differ"})
    with pytest.raises(ArtefactError, match="7 of 100 rows differ"):
        Twin(tmp_path, manifest)


def test_a_broken_twin_is_an_artefact_error(tmp_path: Path) -> None:
    schema, features, labels = known(200)
    pipeline = build(schema, {"max_iter": 5}).fit(features, labels)
    manifest = export(pipeline, schema, tmp_path, check_frame=features, manifest={})
    (tmp_path / "model.onnx").write_bytes(b"not onnx")
    with pytest.raises(ArtefactError, match="onnxruntime"):
        Twin(tmp_path, manifest, "onnx")


def test_a_worker_loads_and_asks_a_twin_without_the_heavy_libraries(tmp_path: Path) -> None:
    schema, features, labels = known(200)
    pipeline = build(schema, {"max_iter": 5}).fit(features, labels)
    export(pipeline, schema, tmp_path, check_frame=features, manifest={})
    heavy = {"pandas", "sklearn", "skops", "skl2onnx", "optuna", "scipy", "evidently"}
    assert not heavy & modules_of_an_answer(tmp_path)
