"""A fitted ensemble of trees -> the arrays that the compiled engine answers from, when these answer the same.

The same to 1e-12 (`training.parity.EXACT`), which leaves room for the last bits of a logarithm or an exponential alone:
comparisons, leaves and the order in which these are added up are the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np

from monitoring.errors import in_short
from training.artefact import plain
from training.boosting import NotConvertible, is_boosted, stand_in
from training.manifest import Parity, Plan
from training.parity import answers_of, check_rows, compare_exactly
from training.pipeline import final_of
from training.trees import LEFT_ENDS, MISSING_LEFT, RIGHT_ENDS, Ensemble, Link, is_built, rounded_down
from training.twin import Twin

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from monitoring.schema import FeatureSchema

MAX_OUTPUTS: Final = 1000
"""Of a forest, each leaf of which has so many values."""


class NoEnsemble(ValueError):
    """Raised for a model that is not made of trees as the engine knows them; the message says what is other."""


class _Tree(NamedTuple):
    """One tree as its library has it, nodes by their index."""

    left: npt.NDArray[np.integer[Any]]
    right: npt.NDArray[np.integer[Any]]
    leaf: npt.NDArray[np.bool_]
    feature: npt.NDArray[np.integer[Any]]
    threshold: npt.NDArray[np.float32]
    missing_left: npt.NDArray[np.bool_]
    value: npt.NDArray[np.float64]  # nodes by values of a leaf
    column: int = 0


def flatten(
    pipeline: Any, schema: FeatureSchema, check_frame: pd.DataFrame, model: bytes, plan: dict[str, Any]
) -> tuple[bytes | None, Parity]:
    """The compiled trees of a pipeline whose twin is `model` with this `plan`, and how they compare with it.

    None instead of the bytes when the engine is not built here, when the pipeline is something else, or when its
    answers to the rows of the proof differ; the parity says which.
    """
    if not is_built():
        return None, Parity(0, None, False, "the compiled engine for trees is not built here: ONNX serves")
    found = msgspec.convert(plain(plan), Plan)
    rows = check_rows(check_frame, schema)
    try:
        content = ensemble_of(pipeline, found).encode()
        twin = Twin.of(model, found, schema, trees=content)
        parity = compare_exactly(answers_of(pipeline, rows, schema)[0], twin.predict_frame(rows))
    except (NoEnsemble, NotConvertible) as error:
        return None, Parity(len(rows), None, False, str(error))
    except Exception as error:  # of estimators that are not what their name says
        return None, Parity(len(rows), None, False, in_short(error))
    return (content if parity.agrees else None), parity


def ensemble_of(pipeline: Any, plan: Plan) -> Ensemble:
    """The trees at the end of a pipeline, which read the twin's matrix. Raises `NoEnsemble`, `NotConvertible`."""
    if plan.layout != "matrix" or plan.dtype != "float32":
        raise NoEnsemble(f"its twin reads {plan.layout} of {plan.dtype}, not one matrix of float32")
    return _of(final_of(pipeline), _fill(pipeline, plan))


def _fill(pipeline: Any, plan: Plan) -> npt.NDArray[np.float32]:
    """What stands before the trees for a missing value of each column of the matrix: asked, not read from options."""
    from sklearn.compose import ColumnTransformer

    fill = np.full(len(plan.columns), np.nan, np.float32)
    steps = [step for _, step in pipeline.steps[:-1]] if hasattr(pipeline, "steps") else []
    if len(steps) > 1:
        raise NoEnsemble(f"{len(steps)} steps stand before its trees")
    if not steps:
        return fill
    if not isinstance(steps[0], ColumnTransformer):
        return _filled(steps[0], fill)
    at = 0
    for _, transformer, selected in steps[0].transformers_:
        if isinstance(transformer, str) and transformer == "drop":
            continue
        width = len(range(*selected.indices(len(plan.columns)))) if isinstance(selected, slice) else np.size(selected)
        if np.asarray(selected).dtype == bool:
            width = int(np.count_nonzero(selected))
        columns = slice(at, at + width)
        at += width
        coded = any(column.codes is not None for column in plan.columns[columns])
        if not coded and not isinstance(transformer, str):
            fill[columns] = _filled(transformer, fill[columns])
    return fill


def _filled(transformer: Any, missing: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    import pandas as pd

    names = getattr(transformer, "feature_names_in_", None)
    row: Any = missing.reshape(1, -1) if names is None else pd.DataFrame([missing], columns=names)
    said = np.asarray(transformer.transform(row), dtype=np.float32).reshape(-1)
    if said.shape != missing.shape:
        raise NoEnsemble(f"{type(transformer).__name__} makes {len(said)} columns of {len(missing)}")
    return said


def _of(final: Any, fill: npt.NDArray[np.float32]) -> Ensemble:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import (
        ExtraTreesClassifier,
        ExtraTreesRegressor,
        GradientBoostingClassifier,
        GradientBoostingRegressor,
        HistGradientBoostingClassifier,
        HistGradientBoostingRegressor,
        RandomForestClassifier,
        RandomForestRegressor,
    )
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    if isinstance(final, CalibratedClassifierCV):
        return _calibrated(final, fill)
    if isinstance(final, (HistGradientBoostingClassifier, HistGradientBoostingRegressor)):
        return _histogram(final, fill)
    if isinstance(final, (GradientBoostingClassifier, GradientBoostingRegressor)):
        return _gradient(final, fill)
    if isinstance(final, (RandomForestClassifier, ExtraTreesClassifier, RandomForestRegressor, ExtraTreesRegressor)):
        return _mean(final.estimators_, fill)
    if isinstance(final, (DecisionTreeClassifier, DecisionTreeRegressor)):
        return _mean([final], fill)
    if is_boosted(final):
        return _lightgbm(final, fill)
    raise NoEnsemble(f"{type(final).__name__} is no ensemble of trees that the compiled engine knows")


def _histogram(final: Any, fill: npt.NDArray[np.float32]) -> Ensemble:
    if final.is_categorical_ is not None:
        raise NoEnsemble("it splits on sets of categories")
    trees = []
    for stage in final._predictors:
        for column, predictor in enumerate(stage):
            nodes = predictor.nodes
            trees.append(
                _Tree(
                    nodes["left"].astype(np.int64),
                    nodes["right"].astype(np.int64),
                    nodes["is_leaf"] != 0,
                    nodes["feature_idx"].astype(np.int64),
                    rounded_down(nodes["num_threshold"]),
                    nodes["missing_go_to_left"] != 0,
                    nodes["value"][:, None],
                    column,
                )
            )
    return _ensemble(trees, fill, np.ravel(final._baseline_prediction), _link(final._loss))


def _gradient(final: Any, fill: npt.NDArray[np.float32]) -> Ensemble:
    from sklearn.dummy import DummyClassifier, DummyRegressor

    if not (isinstance(final.init_, (DummyClassifier, DummyRegressor)) or final.init_ == "zero"):
        raise NoEnsemble(f"it begins with what {type(final.init_).__name__} says of a row")
    begin = np.ravel(final._raw_predict_init(np.zeros((1, final.n_features_in_), np.float32)))
    trees = [
        _of_tree(estimator.tree_, column, scale=final.learning_rate)
        for stage in final.estimators_
        for column, estimator in enumerate(stage)
    ]
    return _ensemble(trees, fill, begin, _link(final._loss))


def _mean(estimators: Sequence[Any], fill: npt.NDArray[np.float32]) -> Ensemble:
    """The mean of plain trees: of their values, or of the share that each class has in a leaf."""
    if estimators[0].n_outputs_ != 1:
        raise NoEnsemble("it answers several targets at once")
    trees = [_of_tree(each.tree_) for each in estimators]
    outputs = trees[0].value.shape[1]
    if outputs > MAX_OUTPUTS:
        raise NoEnsemble(f"{outputs} classes, more than {MAX_OUTPUTS}")
    return _ensemble(trees, fill, np.zeros(outputs), "identity", len(trees))


def _calibrated(final: Any, fill: npt.NDArray[np.float32]) -> Ensemble:
    """Platt's sigmoid on the sums of a boosting, or on the means of a forest."""
    parts = final.calibrated_classifiers_
    if len(parts) != 1 or parts[0].method != "sigmoid":
        raise NoEnsemble(f"it is calibrated by {len(parts)} models with method {parts[0].method!r}")
    inner = parts[0].estimator
    if not np.array_equal(inner.classes_, parts[0].classes):
        raise NoEnsemble("it was calibrated for other classes than it was fitted to")
    found = _of(inner, fill)
    if found.link == "identity" and len(found.base) == 2:  # both shares of a class are told, one is calibrated
        found = found._replace(base=found.base[1:], value=found.value[:, 1:])
    slope, intercept = (np.array([getattr(each, name) for each in parts[0].calibrators]) for name in ("a_", "b_"))
    return found._replace(
        link="logistic" if len(found.base) == 1 else "each logistic", slope=slope, intercept=intercept
    )


def _lightgbm(final: Any, fill: npt.NDArray[np.float32]) -> Ensemble:
    forest = stand_in(final).forest
    if forest.mode != "BRANCH_LEQ":
        raise NoEnsemble(f"{type(final).__name__} adds up in float32")
    links: dict[str, Link] = {"NONE": "identity", "EXP": "exp", "LOGISTIC": "logistic", "SOFTMAX": "softmax"}
    trees = [
        _Tree(t.left, t.right, t.left < 0, t.feature, t.threshold, t.missing_left, t.value[:, None], t.column)
        for t in forest.trees
    ]
    return _ensemble(trees, fill, np.full(forest.columns, forest.offset), links[forest.link])


def _link(loss: Any) -> Link:
    name = type(loss.link).__name__
    known: dict[str, Link] = {
        "IdentityLink": "identity",
        "LogLink": "exp",
        "LogitLink": "logistic",
        "MultinomialLogit": "softmax",
    }
    if name not in known:
        raise NoEnsemble(f"the link of its loss is {name}")
    return known[name]


def _of_tree(tree: Any, column: int = 0, scale: float = 1.0) -> _Tree:
    """A plain tree of scikit-learn."""
    return _Tree(
        tree.children_left,
        tree.children_right,
        tree.children_left < 0,
        tree.feature,
        rounded_down(tree.threshold),
        tree.missing_go_to_left != 0,
        scale * tree.value[:, 0, :],
        column,
    )


def _ensemble(
    trees: Sequence[_Tree],
    fill: npt.NDArray[np.float32],
    base: npt.NDArray[np.float64],
    link: Link,
    divisor: int = 1,
) -> Ensemble:
    walks = [_walk(tree) for tree in trees]
    return Ensemble(
        fill=fill,
        base=np.asarray(base, np.float64),
        slope=np.full(len(base), -1.0),
        intercept=np.zeros(len(base)),
        inner=np.array([len(nodes) for nodes, _ in walks], np.uint32),
        column=np.array([tree.column for tree in trees], np.uint32),
        threshold=np.concatenate([tree.threshold[nodes] for tree, (nodes, _) in zip(trees, walks, strict=True)]),
        feature=np.concatenate([tree.feature[nodes] for tree, (nodes, _) in zip(trees, walks, strict=True)]),
        flags=np.concatenate([_flags(tree, nodes) for tree, (nodes, _) in zip(trees, walks, strict=True)]),
        value=np.concatenate([tree.value[leaves] for tree, (_, leaves) in zip(trees, walks, strict=True)]),
        link=link,
        divisor=float(divisor),
    )


def _walk(tree: _Tree) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The nodes and the leaves of a tree, each in the order of a walk from the left."""
    left, right, ends = tree.left.tolist(), tree.right.tolist(), tree.leaf.tolist()
    nodes: list[int] = []
    leaves: list[int] = []
    waiting = [0]
    while waiting:
        at = waiting.pop()
        if ends[at]:
            leaves.append(at)
        else:
            nodes.append(at)
            waiting += (right[at], left[at])
    return np.array(nodes, np.int64), np.array(leaves, np.int64)


def _flags(tree: _Tree, nodes: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    found = np.where(tree.missing_left[nodes], MISSING_LEFT, 0)
    found |= np.where(tree.leaf[tree.left[nodes]], LEFT_ENDS, 0)
    found |= np.where(tree.leaf[tree.right[nodes]], RIGHT_ENDS, 0)
    return found.astype(np.uint8)
