"""A fitted scikit-learn pipeline -> its ONNX twin, when one can be made that answers the same.

What skl2onnx loses is avoided here: categories become tables of codes, thresholds and baselines are prepared first.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from monitoring.errors import in_short
from training.artefact import plain
from training.blame import refused_row
from training.manifest import Parity, Plan
from training.onnx_file import with_plan
from training.parity import CHECK_ROWS, UNSEEN, answers_of, check_rows, compare
from training.pipeline import final_of, names_of, parts_of
from training.trees import rounded_down
from training.twin import Twin

if TYPE_CHECKING:
    import pandas as pd

    from monitoring.schema import FeatureSchema

MAX_TREE_NODES: Final = 200_000
"""Larger forests get no twin: skl2onnx handles some 10,000 nodes a second, in Python."""

_ROW_BY_ROW: Final = frozenset(
    {
        "Add",
        "ArrayFeatureExtractor",
        "Cast",
        "Concat",
        "Identity",
        "Imputer",
        "LabelEncoder",
        "OneHotEncoder",
        "Reshape",
    }
    | {"TreeEnsembleClassifier", "TreeEnsembleRegressor", "ZipMap"}
)
"""ONNX operators that look at each row by itself, in one order."""


def convert(
    pipeline: Any, schema: FeatureSchema, check_frame: pd.DataFrame
) -> tuple[bytes | None, dict[str, Any] | None, Parity]:
    """The ONNX model, the manifest's `twin` entry and the parity; the first two are None when no conversion agrees.

    Tried in this order: one float32 matrix (the fastest), one float64 matrix (linear models on large numbers), one
    input a column.
    """
    rows = check_rows(check_frame, schema)
    reasons: list[str] = []
    last = Parity(len(rows), None, False, "")
    try:
        expected = answers_of(pipeline, rows, schema)
    except Exception as error:  # any pipeline of a user's own making
        return (
            None,
            None,
            Parity(
                len(rows),
                None,
                False,
                "the pipeline itself refuses rows with missing values, unseen categories or extreme numbers, which "
                f"its twin would answer: {refused_row(pipeline, rows, schema, error)}; "
                "add an imputer, or handle_unknown to the encoder",
            ),
        )
    for layout in (_float32_matrix, _float64_matrix, _columns):
        try:
            with _quiet():
                model, plan = layout(pipeline, schema)
            twin = Twin.of(model, msgspec.convert(plain(plan), Plan), schema)
            parity = compare(expected, twin.predict_frame(rows), schema, min(len(check_frame), CHECK_ROWS))
        except _NoConversion as error:
            reasons.append(f"{layout.__name__[1:]}: {error}")
            continue
        except Exception as error:  # skl2onnx and onnxruntime raise anything
            reasons.append(f"{layout.__name__[1:]}: {in_short(error)}")
            continue
        if parity.agrees:
            return with_plan(model, plan, schema), plan, parity
        last = parity
        reasons.append(f"{layout.__name__[1:]}: {parity.reason}")
    return None, None, msgspec.structs.replace(last, reason="; ".join(reasons))


class _NoConversion(Exception):
    """Raised when a pipeline does not have the shape a layout needs."""


def _float32_matrix(pipeline: Any, schema: FeatureSchema) -> tuple[bytes, dict[str, Any]]:
    return _as_matrix(pipeline, schema, double=False)


def _float64_matrix(pipeline: Any, schema: FeatureSchema) -> tuple[bytes, dict[str, Any]]:
    return _as_matrix(pipeline, schema, double=True)


def _as_matrix(pipeline: Any, schema: FeatureSchema, *, double: bool) -> tuple[bytes, dict[str, Any]]:
    """Everything before the matrix is a table of codes for each categorical column; the rest is ONNX."""
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    numeric_pipeline, columns = _split(pipeline, schema)
    if double and hasattr(final_of(numeric_pipeline), "forest"):
        raise _NoConversion("XGBoost and LightGBM compare what comes as float32")
    if double and _splits_on_missing(numeric_pipeline):
        raise _NoConversion("a tree splits on missing values, on which skl2onnx 1.20 never returns")
    kind = DoubleTensorType if double else FloatTensorType
    model = _to_onnx(numeric_pipeline, [("X", kind([None, len(columns)]))])
    plan: dict[str, Any] = {"layout": "matrix", "columns": columns, "input": "X", "output": _output(model, schema)}
    plan["row_by_row"] = _is_row_by_row(model)
    if double:
        plan["dtype"] = "float64"
    return model.SerializeToString(), plan


def _columns(pipeline: Any, schema: FeatureSchema) -> tuple[bytes, dict[str, Any]]:
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    inputs = [(n, FloatTensorType([None, 1]) if n in schema.numeric_names else StringTensorType([None, 1]))
              for n in names_of(pipeline, schema)]  # fmt: skip
    model = _to_onnx(_prepared(pipeline), inputs)
    present = {i.name for i in model.graph.input}
    return model.SerializeToString(), {
        "layout": "columns",
        "inputs": [
            {"feature": n, "input": n, "type": "float" if n in schema.numeric_names else "string"}
            for n, _ in inputs
            if n in present
        ],
        "missing_category": "",
        "output": _output(model, schema),
        "row_by_row": _is_row_by_row(model),
    }


def _is_row_by_row(model: Any) -> bool:
    """Whether each row's answer is the same to the last bit whatever other rows are predicted with it.

    Trees compare and add up row by row; a product of matrices may add in another order when it has more rows.
    """
    return {node.op_type for node in model.graph.node} <= _ROW_BY_ROW


def _to_onnx(model: Any, inputs: list[tuple[str, Any]]) -> Any:
    from skl2onnx import convert_sklearn

    _know_boosted_trees()
    nodes = _tree_nodes(model)
    if nodes > MAX_TREE_NODES:
        raise _NoConversion(f"its trees have {nodes} nodes, more than {MAX_TREE_NODES} are not converted")
    final = final_of(model)
    probable = hasattr(final, "predict_proba") or (hasattr(final, "forest") and hasattr(final, "classes_"))
    options = {id(final): {"zipmap": False}} if probable else None
    converted = convert_sklearn(model, initial_types=inputs, options=options)
    _send_missing(converted, final)
    offset = getattr(final, "evergreen_offset", None)
    exponential = getattr(final, "evergreen_exponential", False)
    return converted if offset is None else _add_offset(converted, offset, exponential=exponential)


def _send_missing(converted: Any, final: Any) -> None:
    """Have the trees of a forest send a missing value where scikit-learn does; skl2onnx sends all of them right."""
    import numpy as np
    from onnx import helper

    each = np.ravel(final.estimators_) if hasattr(final, "estimators_") else [final]
    trees = [estimator.tree_ for estimator in each if hasattr(estimator, "tree_")]
    if not any(np.any(tree.missing_go_to_left) for tree in trees):
        return
    for node in converted.graph.node:
        found = {attribute.name: attribute for attribute in node.attribute}
        if "nodes_treeids" not in found:
            continue
        places = zip(found["nodes_treeids"].ints, found["nodes_nodeids"].ints, strict=True)
        left = [int(trees[tree].missing_go_to_left[at]) for tree, at in places]
        if "nodes_missing_value_tracks_true" in found:
            node.attribute.remove(found["nodes_missing_value_tracks_true"])
        node.attribute.append(helper.make_attribute("nodes_missing_value_tracks_true", left))


def _know_boosted_trees() -> None:
    """Have skl2onnx convert the trees of XGBoost and LightGBM as `training.boosting` has them."""
    from skl2onnx import update_registered_converter
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
    from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes

    from training.boosting import BoostedClassifier, BoostedRegressor, onnx_attributes

    def write(scope: Any, operator: Any, container: Any, kind: str, outputs: list[str]) -> None:
        attributes = onnx_attributes(operator.raw_operator.forest, classifier=kind == "TreeEnsembleClassifier")
        given, name = operator.inputs[0].full_name, scope.get_unique_operator_name(kind)
        container.add_node(kind, given, outputs, op_domain="ai.onnx.ml", op_version=1, name=name, **attributes)

    def classifier(scope: Any, operator: Any, container: Any) -> None:
        write(scope, operator, container, "TreeEnsembleClassifier", operator.output_full_names)

    def regressor(scope: Any, operator: Any, container: Any) -> None:
        from onnx import TensorProto

        forest = operator.raw_operator.forest
        steps: list[tuple[str, list[str], dict[str, Any]]] = []
        if forest.offset:
            offset = scope.get_unique_variable_name("offset")
            container.add_initializer(offset, TensorProto.DOUBLE, [1], [forest.offset])
            steps += [("Cast", [], {"to": TensorProto.DOUBLE}), ("Add", [offset], {})]
        steps += [("Exp", [], {})] if forest.link == "EXP" else []
        names = [scope.get_unique_variable_name("sum") for _ in steps] + operator.output_full_names
        write(scope, operator, container, "TreeEnsembleRegressor", names[:1])
        for (kind, more, attributes), given, found in zip(steps, names, names[1:], strict=False):
            name = scope.get_unique_operator_name(kind)
            container.add_node(kind, [given, *more], found, op_version=13, name=name, **attributes)

    def one_column(operator: Any) -> None:
        kind = DoubleTensorType if operator.raw_operator.forest.offset else FloatTensorType
        operator.outputs[0].type = kind([None, 1])

    options = {"zipmap": [True, False, "columns"], "nocl": [True, False]}
    shapes = calculate_linear_classifier_output_shapes
    for stand_in, shape, converter, known in (
        (BoostedClassifier, shapes, classifier, options),
        (BoostedRegressor, one_column, regressor, None),
    ):
        name = f"Evergreen{stand_in.__name__}"
        update_registered_converter(stand_in, name, shape, converter, overwrite=True, options=known)


def _tree_nodes(model: Any) -> int:
    from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor
    from sklearn.tree._tree import Tree

    trees = parts_of(model, (TreePredictor, Tree))
    return sum(len(tree.nodes) if isinstance(tree, TreePredictor) else int(tree.node_count) for _, tree in trees)


def _splits_on_missing(model: Any) -> bool:
    """Whether a tree splits "missing" from "present": with that infinite threshold skl2onnx never returns."""
    import numpy as np
    from sklearn.tree._tree import Tree

    return any(not np.isfinite(tree.threshold).all() for _, tree in parts_of(model, (Tree,)))


def _output(model: Any, schema: FeatureSchema) -> str:
    names = [output.name for output in model.graph.output]
    if schema.task == "regression":
        return str(names[0])
    found = [name for name in names if "probab" in name]
    if not found:
        raise _NoConversion(f"the converted model answers {names}, no probabilities")
    return str(found[0])


def _split(pipeline: Any, schema: FeatureSchema) -> tuple[Any, list[dict[str, Any]]]:
    """A pipeline that reads one matrix of numbers, and what stands in each column of that matrix."""
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    names = names_of(pipeline, schema)
    steps = list(pipeline.steps) if hasattr(pipeline, "steps") else []
    first = steps[0][1] if len(steps) > 1 else None
    if not isinstance(first, ColumnTransformer):
        if schema.categorical_names:
            raise _NoConversion("categorical features without a ColumnTransformer as the first step")
        return _prepared(pipeline), [{"feature": name} for name in names]

    columns: list[dict[str, Any]] = []
    surrogates: list[tuple[str, Any, list[int]]] = []
    for step, transformer, selected in first.transformers_:
        if isinstance(transformer, str) and transformer == "drop":
            continue
        chosen = _selected(selected, names)
        if not chosen:
            continue
        tables, surrogate = _tables(step, transformer, chosen, schema)
        surrogates.append((step, surrogate, list(range(len(columns), len(columns) + len(chosen)))))
        columns += [
            {"feature": name} if table is None else {"feature": name, **table}
            for name, table in zip(chosen, tables, strict=True)
        ]
    rest = _prepared(Pipeline(steps[1:]) if len(steps) > 2 else steps[-1][1])
    if all(surrogate == "passthrough" for _, surrogate, _ in surrogates):
        return rest, columns  # nothing is left of the ColumnTransformer: its output is the matrix itself

    import numpy as np

    reads_matrix = ColumnTransformer([(n, "passthrough", c) for n, _, c in surrogates], sparse_threshold=0.0)
    reads_matrix.fit(np.zeros((2, len(columns)), dtype=np.float32))
    reads_matrix.transformers_ = surrogates
    inner = rest.steps if hasattr(rest, "steps") else [("model", rest)]
    return Pipeline([("columns", reads_matrix), *inner]), columns


def _selected(selected: Any, names: list[str]) -> list[str]:
    import numpy as np

    if isinstance(selected, str):
        return [selected]
    if isinstance(selected, slice):
        raise _NoConversion("a ColumnTransformer that selects by slice")
    values = np.asarray(selected)
    if values.dtype == bool:
        return [name for name, wanted in zip(names, values.tolist(), strict=True) if wanted]
    return [names[value] if isinstance(value, int) else str(value) for value in values.tolist()]


def _tables(
    step: str, transformer: Any, chosen: list[str], schema: FeatureSchema
) -> tuple[list[dict[str, Any] | None], Any]:
    """The code table of each chosen column (None: a number as it is), and the transformer of those codes."""
    import numpy as np
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

    categorical = [name in schema.categorical_names for name in chosen]
    if not any(categorical):
        return [None] * len(chosen), transformer if isinstance(transformer, str) else _nameless(transformer)
    if isinstance(transformer, str) or not all(categorical):
        numbers, words = ([n for n, word in zip(chosen, categorical, strict=True) if word is w] for w in (False, True))
        together = f"for numbers ({_few(numbers)}) and categories ({_few(words)}) together" if numbers else ""
        raise _NoConversion(f"the transformer {step!r} {together or f'passes categories on ({_few(words)})'}")
    if isinstance(transformer, OrdinalEncoder):
        return [_ordinal(transformer, chosen, at) for at in range(len(chosen))], "passthrough"
    if isinstance(transformer, OneHotEncoder):
        found = [_one_hot(transformer, chosen, at) for at in range(len(chosen))]
        codes = OneHotEncoder(
            categories=[np.arange(width, dtype=np.float32) for _, width in found],
            handle_unknown="ignore",
            sparse_output=False,
        )
        return [table for table, _ in found], codes.fit(np.zeros((1, len(chosen)), dtype=np.float32))
    raise _NoConversion(
        f"the transformer {step!r}: {type(transformer).__name__} on categorical features ({_few(chosen)})"
    )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + ("…" if len(names) > 3 else "")


def _ordinal(encoder: Any, chosen: list[str], at: int) -> dict[str, Any]:
    """The codes as the encoder itself gives them: asked, not deduced from its options."""
    import numpy as np

    known, said = _asked(encoder, chosen, at)
    return _table(known, np.asarray(said, dtype=np.float64)[:, at].tolist())


def _one_hot(encoder: Any, chosen: list[str], at: int) -> tuple[dict[str, Any], int]:
    """The column that the encoder itself marks for each category (-1: none), and how many it has for this feature."""
    import numpy as np

    known, said = _asked(encoder, chosen, at)
    width, begin = encoder._n_features_outs[at], sum(encoder._n_features_outs[:at])
    if not width:
        raise _NoConversion(f"the encoder of {chosen[at]} makes no column of it")
    own = np.asarray(said.todense() if hasattr(said, "todense") else said)[:, begin : begin + width]
    return _table(known, np.where(own.any(axis=1), own.argmax(axis=1), -1).astype(float).tolist()), int(width)


def _asked(encoder: Any, chosen: list[str], at: int) -> tuple[list[str], Any]:
    """The categories that the encoder knows of a column; what it says of these, of a missing and of an unseen one."""
    import numpy as np
    import pandas as pd

    known = [value for value in encoder.categories_[at] if isinstance(value, str)]
    asked: list[Any] = [*known, np.nan, UNSEEN]
    filler = [next((v for v in c if isinstance(v, str)), np.nan) for c in encoder.categories_]
    frame = pd.DataFrame(
        {
            name: pd.Series(asked if other == at else [filler[other]] * len(asked), dtype=object)
            for other, name in enumerate(chosen)
        }
    )
    try:
        return known, encoder.transform(frame)
    except ValueError as error:
        raise _NoConversion(
            f"the encoder of {chosen[at]} refuses missing or unseen values: {in_short(error)}"
        ) from None


def _table(known: list[str], codes: list[float]) -> dict[str, Any]:
    return {"codes": dict(zip(known, codes[:-2], strict=True)), "missing": codes[-2], "unknown": codes[-1]}


def _nameless(transformer: Any) -> Any:
    """A copy without its column names, so that skl2onnx counts columns instead."""
    transformer = copy.deepcopy(transformer)
    for step in [transformer, *(step for _, step in getattr(transformer, "steps", []))]:
        if hasattr(step, "__dict__"):
            step.__dict__.pop("feature_names_in_", None)
    return transformer


def _prepared(model: Any) -> Any:
    """A copy of the model that converts to ONNX without loss.

    - The thresholds of histogram gradient boosting are float64 midpoints; skl2onnx rounds them to the nearest float32,
      which lies on the wrong side of a float32 value now and then. Rounded down, every float32 comparison is the same.
    - A regression's baseline (of a forest: the mean of its first tree's root) is taken out and added again in float64:
      a sum of float32 loses the digits of a small variation on a large mean.
    - skl2onnx knows of random forests alone that a calibration reads their probabilities: extra trees, which answer in
      the same way, pass for one there.
    - XGBoost and LightGBM give way to an estimator that holds their trees as arrays.
    """
    import numpy as np
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import (
        ExtraTreesClassifier,
        ExtraTreesRegressor,
        HistGradientBoostingClassifier,
        HistGradientBoostingRegressor,
        RandomForestClassifier,
        RandomForestRegressor,
    )

    from training.boosting import is_boosted, stand_in

    model = _nameless(model)
    final = final_of(model)
    if is_boosted(final):
        trees = stand_in(final)
        if final is model:
            return trees
        model.steps[-1] = (model.steps[-1][0], trees)
        return model
    for _, boosting in parts_of(model, (HistGradientBoostingClassifier, HistGradientBoostingRegressor)):
        if not hasattr(boosting, "_predictors"):
            continue  # what a calibration was given to fit a copy of
        if boosting.is_categorical_ is not None:
            raise _NoConversion("skl2onnx does not convert HistGradientBoosting with categorical_features")
        for stage in boosting._predictors:
            for tree in stage:
                nodes = tree.nodes.copy()
                nodes["num_threshold"] = rounded_down(nodes["num_threshold"])
                tree.nodes = nodes
    if isinstance(final, HistGradientBoostingRegressor) and final.loss in (
        "squared_error",
        "absolute_error",
        "quantile",
        "poisson",
    ):
        final.evergreen_offset = float(np.asarray(final._baseline_prediction).reshape(-1)[0])
        final._baseline_prediction = np.zeros_like(final._baseline_prediction)
        final.evergreen_exponential = final.loss == "poisson"
        final.loss = "squared_error"  # what skl2onnx adds up is the same
    if isinstance(final, (RandomForestRegressor, ExtraTreesRegressor)) and final.n_outputs_ == 1:
        final.evergreen_offset = float(final.estimators_[0].tree_.value[0, 0, 0])
        for each in final.estimators_:
            each.tree_.value[:] -= final.evergreen_offset
    if isinstance(final, CalibratedClassifierCV):
        for _, forest in parts_of(final, (ExtraTreesClassifier,)):
            forest.__class__ = RandomForestClassifier
    if getattr(final, "classes_", None) is not None and np.asarray(final.classes_).dtype == bool:
        final.classes_ = final.classes_.astype(np.int64)  # only the probabilities are read
    return model


def _add_offset(model: Any, offset: float, *, exponential: bool) -> Any:
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    output = graph.output[0]
    graph.initializer.append(numpy_helper.from_array(np.array([offset], dtype=np.float64), "evergreen_offset"))
    graph.node.append(helper.make_node("Cast", [output.name], ["evergreen_wide"], to=TensorProto.DOUBLE))
    found = "evergreen_log" if exponential else "evergreen_value"
    graph.node.append(helper.make_node("Add", ["evergreen_wide", "evergreen_offset"], [found]))
    if exponential:
        graph.node.append(helper.make_node("Exp", [found], ["evergreen_value"]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("evergreen_value", TensorProto.DOUBLE, [None, 1]))
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and log lines skl2onnx emits for every conversion; its errors still come through."""
    logger = logging.getLogger("skl2onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logger.setLevel(level)
