"""A pushed ONNX file: read by its inputs and metadata, answering as it is, or refused with what to do."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from monitoring.feature import Task
from monitoring.schema import FeatureSchema
from tests.world import known
from training.artefact import PIPELINE, TWIN, ArtefactError, verify
from training.export import export
from training.loaded import load_model
from training.onnx_file import OnnxModel, is_onnx, load_onnx
from training.pipeline import build


@cache
def fitted(task: Task = "binary") -> tuple[Any, FeatureSchema, Any]:
    """A pipeline, its schema, and features without gaps: how a graph takes a missing value is its own affair."""
    schema, features, labels = known(400, task=task)
    whole = features.notna().all(axis=1)
    columns = ColumnTransformer(
        [
            ("n", StandardScaler(), list(schema.numeric_names)),
            ("c", OneHotEncoder(handle_unknown="ignore"), list(schema.categorical_names)),
        ]
    )
    final = LinearRegression() if task == "regression" else LogisticRegression()
    return make_pipeline(columns, final).fit(features[whole], labels[whole]), schema, features[whole]


def converted(pipeline: Any, inputs: list[tuple[str, Any]], *, zipmap: bool = False) -> Any:
    options = {id(pipeline.steps[-1][1]): {"zipmap": zipmap}} if hasattr(pipeline, "predict_proba") else None
    return convert_sklearn(pipeline, initial_types=inputs, options=options)


def by_column(schema: FeatureSchema, number: Any = FloatTensorType) -> list[tuple[str, Any]]:
    return [
        (name, number([None, 1]) if name in schema.numeric_names else StringTensorType([None, 1]))
        for name in schema.names
    ]


def written(model: Any, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def numbers_only(rows: int = 300) -> tuple[Any, FeatureSchema, Any]:
    import pandas as pd

    values = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
    frame = pd.DataFrame(values, columns=["a", "b", "c"]).assign(y=np.where(values[:, 0] > 0, "good", "bad"))
    schema = FeatureSchema.infer(frame, "y")
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    return pipeline.fit(frame[["a", "b", "c"]], frame["y"]), schema, schema.canonical(frame)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_graph_with_one_input_a_feature_answers_as_the_pipeline_it_was_made_of(tmp_path: Path, task: Task) -> None:
    pipeline, schema, features = fitted(task)
    path = written(converted(pipeline, by_column(schema)), tmp_path / "m.onnx")
    model = load_onnx(path, schema)
    expected = pipeline.predict(features) if task == "regression" else pipeline.predict_proba(features)
    found = model.predict(features) if task == "regression" else model.predict_proba(features)
    assert is_onnx(path)
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=1e-4, atol=1e-5)
    assert task == "regression" or model.predict(features).tolist() == pipeline.predict(features).tolist()


@pytest.mark.parametrize("number", [FloatTensorType, DoubleTensorType])
def test_a_graph_with_one_matrix_reads_the_features_in_its_order(tmp_path: Path, number: Any) -> None:
    pipeline, schema, features = numbers_only()
    model = converted(pipeline, [("X", number([None, 3]))])
    helper.set_model_props(model, {"classes": json.dumps(schema.classes)})
    in_order = load_onnx(written(model, tmp_path / "a.onnx"), schema)
    np.testing.assert_allclose(in_order.predict_proba(features), pipeline.predict_proba(features), atol=1e-5)
    assert in_order.predict(features).tolist() == pipeline.predict(features).tolist()

    other_way = make_pipeline(StandardScaler(), LogisticRegression())
    other_way.fit(features[["c", "b", "a"]], pipeline.predict(features))
    turned = converted(other_way, [("X", FloatTensorType([None, 3]))])
    helper.set_model_props(turned, {"feature_names": json.dumps(["c", "b", "a"])})
    named = load_onnx(written(turned, tmp_path / "b.onnx"), schema)
    expected = other_way.predict_proba(features[["c", "b", "a"]])
    np.testing.assert_allclose(named.predict_proba(features), expected, atol=1e-5)


def test_a_version_pushed_as_onnx_is_served_by_it_and_has_no_pipeline(tmp_path: Path) -> None:
    pipeline, schema, features = fitted()
    model = load_onnx(written(converted(pipeline, by_column(schema)), tmp_path / "m.onnx"), schema)
    export(model, schema, tmp_path / "v", check_frame=features, manifest={})
    manifest = verify(tmp_path / "v")
    assert TWIN in manifest.digests and PIPELINE not in manifest.digests
    answer = load_model(tmp_path / "v", manifest, schema).answer(features)
    np.testing.assert_allclose(answer, pipeline.predict_proba(features), atol=1e-5)


def test_the_twin_of_a_version_can_be_pushed_as_it_was_exported(tmp_path: Path) -> None:
    schema, features, labels = known(300)
    pipeline = build(schema, {"max_iter": 10}).fit(features, labels)
    export(pipeline, schema, tmp_path, check_frame=features, manifest={})
    again: OnnxModel = load_onnx(tmp_path / TWIN, schema)
    np.testing.assert_allclose(again.predict_proba(features), pipeline.predict_proba(features), atol=1e-5)


def changed(**how: Any) -> tuple[Any, FeatureSchema]:
    """A graph with one thing wrong, and the schema it is pushed to."""
    pipeline, schema, _ = fitted()
    if "number" in how:
        return converted(pipeline, by_column(schema, how["number"])), schema
    model = converted(pipeline, by_column(schema), zipmap=how.get("zipmap", False))
    if name := how.get("renamed"):
        for node in model.graph.node:
            node.input[:] = ["other" if given == name else given for given in node.input]
        next(one for one in model.graph.input if one.name == name).name = "other"
    if metadata := how.get("metadata"):
        helper.set_model_props(model, metadata)
    if how.get("loop"):
        body = helper.make_graph(
            [helper.make_node("Identity", ["go"], ["on"])],
            "body",
            [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("go", 9, [])],
            [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("z", 9, [])],
        )
        body.node.append(helper.make_node("Identity", ["go"], ["z"]))
        model.graph.node.append(helper.make_node("Loop", ["", ""], ["zs"], body=body))
    if how.get("external"):
        tensor = TensorProto(name="outside", data_type=1, dims=[2], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="/etc/hostname")
        model.graph.initializer.append(tensor)
    if how.get("foreign"):
        model.graph.node.append(helper.make_node("Anything", [model.graph.input[0].name], ["z"], domain="com.example"))
        model.opset_import.append(helper.make_opsetid("com.example", 1))
    return model, schema


WRONG: list[tuple[str, dict[str, Any], str]] = [
    (
        "another name",
        {"renamed": "a"},
        "does not take the features a; it wants features that requests do not have: other",
    ),
    ("whole numbers", {"number": Int64TensorType}, r"input 'a' is neither float nor string: .*FloatTensorType"),
    ("zipmap", {"zipmap": True}, "none of its outputs is a tensor of float: .*zipmap=False"),
    ("classes", {"metadata": {"classes": '["no", "yes"]'}}, r"its classes are \['no', 'yes'\], those of"),
    ("no list", {"metadata": {"classes": "nothing"}}, "metadata `classes` is not JSON"),
    ("no plan", {"metadata": {"evergreen": "[]"}}, "metadata `evergreen` are not those of a version"),
    ("loop", {"loop": True}, "the operators Loop, which may run for ever"),
    ("another file", {"external": True}, "keeps tensors in another file"),
    ("foreign", {"foreign": True}, "operators of com.example"),
]


@pytest.mark.parametrize(("how", "said"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_what_cannot_serve_is_named_with_what_to_do(tmp_path: Path, how: dict[str, Any], said: str) -> None:
    model, schema = changed(**how)
    with pytest.raises(ArtefactError, match=said):
        load_onnx(written(model, tmp_path / "m.onnx"), schema)


def test_scores_that_are_no_probabilities_are_refused(tmp_path: Path) -> None:
    _, schema, _ = numbers_only()
    node = helper.make_node("Gemm", ["X", "w"], ["probabilities"])
    weights = onnx.numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [None, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ArtefactError, match="does not say its classes"):
        load_onnx(written(model, tmp_path / "a.onnx"), schema)
    helper.set_model_props(model, {"classes": '["bad", "good"]'})
    with pytest.raises(ArtefactError, match="which are no probabilities"):
        load_onnx(written(model, tmp_path / "b.onnx"), schema)


def test_half_a_file_is_no_onnx_file(tmp_path: Path) -> None:
    model, schema = changed()
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString()[:-700])
    with pytest.raises(ArtefactError, match="not a valid ONNX file"):
        load_onnx(tmp_path / "m.onnx", schema)
