"""XGBoost's and LightGBM's trees as plain arrays: what their ONNX twin is made of.

Read from what both libraries write of a fitted model, so that neither is imported here. A twin's comparisons are those
of the library, to the last bit: XGBoost compares float32 with `<`; LightGBM compares float64 with `<=`, and a threshold
rounded down to float32 splits float32 values alike. What a library does otherwise (categories, linear leaves, dropped
trees) is refused with its name.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from training.trees import rounded_down

if TYPE_CHECKING:
    import numpy.typing as npt

LIBRARIES: Final = ("xgboost", "lightgbm")

_LOG: Final = ("poisson", "gamma", "tweedie", "count:poisson", "reg:gamma", "reg:tweedie")
_IDENTITY: Final = (
    *("regression", "regression_l1", "huber", "fair", "quantile", "mape"),
    *("reg:squarederror", "reg:absoluteerror", "reg:pseudohubererror", "reg:quantileerror"),
)
"""Objectives whose prediction is the sum of the leaves, and those whose prediction is its exponential."""


class NotConvertible(ValueError):
    """Raised for trees that no twin answers like; the message says for what in them."""


class Tree(NamedTuple):
    """One tree, nodes by their index; a leaf has `left` -1."""

    left: npt.NDArray[np.int64]  # where a true comparison leads
    right: npt.NDArray[np.int64]
    feature: npt.NDArray[np.int64]
    threshold: npt.NDArray[np.float32]
    missing_left: npt.NDArray[np.bool_]
    value: npt.NDArray[np.float64]  # of the leaves
    column: int  # of the answer, to which it adds


class Forest(NamedTuple):
    """The trees, and how their sum becomes the answer."""

    trees: list[Tree]
    columns: int  # of the sum
    mode: str  # BRANCH_LT | BRANCH_LEQ
    link: str  # NONE | LOGISTIC | SOFTMAX | EXP
    features: int
    offset: float = 0.0  # added in float64; 0: the sum stays float32


class BoostedClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Stands in a pipeline for a fitted classifier of one of the libraries while the pipeline becomes ONNX."""

    def __init__(self, forest: Forest | None = None) -> None:
        self.forest = forest


class BoostedRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """The same for a regressor."""

    def __init__(self, forest: Forest | None = None) -> None:
        self.forest = forest


def is_boosted(model: Any) -> bool:
    """Whether this is an estimator of XGBoost or LightGBM."""
    return any(kind.__module__.partition(".")[0] in LIBRARIES for kind in type(model).__mro__)


def stand_in(model: Any) -> Any:
    """An estimator with the trees of a fitted XGBoost or LightGBM estimator. Raises `NotConvertible`."""
    forest = _xgboost(model) if hasattr(model, "get_booster") else _lightgbm(model)
    for tree in forest.trees:
        check_tree(tree, forest.features)
    made: Any
    if hasattr(model, "predict_proba"):
        if forest.link not in ("LOGISTIC", "SOFTMAX"):
            raise NotConvertible(f"{type(model).__name__} with an objective whose answer is no probability")
        made = BoostedClassifier(forest)
        made.classes_ = np.arange(max(forest.columns, 2))  # only the probabilities are read
    else:
        made = BoostedRegressor(forest)
    made.n_features_in_ = forest.features
    return made


def onnx_attributes(forest: Forest, *, classifier: bool) -> dict[str, Any]:
    """The attributes of the ONNX operator TreeEnsembleClassifier, or TreeEnsembleRegressor, with these trees."""
    sizes = [len(tree.left) for tree in forest.trees]
    number = np.repeat(np.arange(len(sizes)), sizes)
    within = np.concatenate([np.arange(size) for size in sizes])
    left, right, feature, threshold, missing, value = (
        np.concatenate([tree[field] for tree in forest.trees]) for field in range(6)
    )
    leaves = np.flatnonzero(left < 0)
    of = np.repeat([tree.column for tree in forest.trees], sizes)[leaves]
    what = "class" if classifier else "target"
    attributes: dict[str, Any] = {
        "nodes_treeids": number.tolist(),
        "nodes_nodeids": within.tolist(),
        "nodes_featureids": np.where(left < 0, 0, feature).tolist(),
        "nodes_values": np.where(left < 0, np.float32(0), threshold).astype(np.float32).tolist(),
        "nodes_modes": ["LEAF" if leaf else forest.mode for leaf in (left < 0).tolist()],
        "nodes_truenodeids": np.maximum(left, 0).tolist(),
        "nodes_falsenodeids": np.maximum(right, 0).tolist(),
        "nodes_missing_value_tracks_true": missing.astype(np.int64).tolist(),
        f"{what}_treeids": number[leaves].tolist(),
        f"{what}_nodeids": within[leaves].tolist(),
        f"{what}_ids": of.tolist(),
        f"{what}_weights": value[leaves].astype(np.float32).tolist(),
    }
    if classifier:
        attributes |= {"classlabels_int64s": list(range(max(forest.columns, 2))), "post_transform": forest.link}
    else:
        attributes |= {"n_targets": forest.columns, "post_transform": "NONE"}
    return attributes


def _xgboost(model: Any) -> Forest:
    missing = getattr(model, "missing", None)
    if missing is not None and not math.isnan(float(missing)):
        raise NotConvertible(f"XGBoost with missing={missing!r}; requests bring a missing value as NaN")
    booster = model.get_booster()
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    kind = learner["gradient_booster"]["name"]
    if kind != "gbtree":
        raise NotConvertible(f"XGBoost with booster={kind!r}; a twin is made of booster='gbtree'")
    parameters, objective = learner["learner_model_param"], learner["objective"]["name"]
    columns = max(int(parameters["num_class"]), 1)
    base = [float(part) for part in parameters["base_score"].strip("[]").split(",")]
    base = base * columns if len(base) == 1 else base
    if objective in ("binary:logistic", "reg:logistic") and columns == 1:
        link, base = "LOGISTIC", [math.log(base[0] / (1 - base[0]))]
    elif objective == "multi:softprob":
        link = "SOFTMAX"
    elif objective in _LOG:
        link, base = "EXP", [math.log(part) for part in base]
    elif objective in _IDENTITY:
        link = "NONE"
    else:
        raise NotConvertible(f"XGBoost with objective={objective!r}")
    content = learner["gradient_booster"]["model"]
    best = booster.attr("best_iteration")
    stop = len(content["trees"]) if best is None else content["iteration_indptr"][int(best) + 1]
    # The sum begins with the base, as a tree of one leaf: float32 rounds it as XGBoost does, who adds up in this order.
    trees = [_leaf(part, column) for column, part in enumerate(base)]
    for tree, column in zip(content["trees"][:stop], content["tree_info"], strict=False):
        if any(tree["split_type"]) or int(tree["tree_param"]["size_leaf_vector"]) > 1:
            raise NotConvertible("XGBoost with categorical splits, or with vectors in its leaves")
        left = np.asarray(tree["left_children"], dtype=np.int64)
        condition = np.asarray(tree["split_conditions"], dtype=np.float32)
        trees.append(
            Tree(
                left,
                np.asarray(tree["right_children"], dtype=np.int64),
                np.asarray(tree["split_indices"], dtype=np.int64),
                condition,
                np.asarray(tree["default_left"]) != 0,
                condition.astype(np.float64),
                int(column),
            )
        )
    return Forest(trees, columns, "BRANCH_LT", link, int(parameters["num_feature"]))


def _lightgbm(model: Any) -> Forest:
    head, *blocks = model.booster_.model_to_string().split("\nTree=")
    facts = _facts(head)
    objective, *options = facts.get("objective", "?").split(" ")
    columns = int(facts["num_tree_per_iteration"])
    scale = 1.0
    if objective == "binary":
        link = "LOGISTIC"
        scale = float(dict(option.partition(":")[::2] for option in options).get("sigmoid", 1.0))
    elif objective == "multiclass":
        link = "SOFTMAX"
    elif objective in _LOG:
        link = "EXP"
    elif objective in _IDENTITY and "sqrt" not in options:
        link = "NONE"
    else:
        raise NotConvertible(f"LightGBM with the objective {facts.get('objective')!r}")
    if "\naverage_output" in head:
        raise NotConvertible("LightGBM with boosting_type='rf'")
    blocks = [block.partition("\n\n\n")[0] for block in blocks]
    trees = [_lightgbm_tree(_facts(block), number % columns, scale) for number, block in enumerate(blocks)]
    offset = 0.0
    if link in ("NONE", "EXP"):
        # The first tree holds the mean. A sum of float32 loses the digits of a small variation on a large one, LightGBM
        # adds up in float64: the mean is taken out, and added in float64.
        ends = trees[0].left < 0
        offset = float(trees[0].value[ends].mean())
        trees[0] = trees[0]._replace(value=np.where(ends, trees[0].value - offset, 0.0))
    return Forest(trees, columns, "BRANCH_LEQ", link, int(facts["max_feature_idx"]) + 1, offset)


def _facts(text: str) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in text.splitlines())


def _lightgbm_tree(facts: dict[str, str], column: int, scale: float) -> Tree:
    """LightGBM counts inner nodes and leaves apart, a leaf as the negative of what comes after it; here they follow."""
    if int(facts.get("num_cat", 0)) or int(facts.get("is_linear", 0)):
        raise NotConvertible("LightGBM with categorical splits or linear trees")
    leaves = np.array(facts["leaf_value"].split(), dtype=np.float64) * scale
    inner = int(facts["num_leaves"]) - 1
    if not inner:
        return _leaf(leaves[0], column)
    kinds = np.array(facts["decision_type"].split(), dtype=np.int64)
    missing = kinds >> 2 & 3  # 0: as zero, 1: zero is missing, 2: NaN
    if (missing == 1).any():
        raise NotConvertible("LightGBM with zero_as_missing")
    exact = np.array(facts["threshold"].split(), dtype=np.float64)
    threshold = rounded_down(exact)
    children = [np.array(facts[side].split(), dtype=np.int64) for side in ("left_child", "right_child")]
    left, right = (np.where(side < 0, inner + ~side, side) for side in children)
    ends = np.full(len(leaves), -1)
    return Tree(
        np.concatenate([left, ends]),
        np.concatenate([right, ends]),
        np.concatenate([np.array(facts["split_feature"].split(), dtype=np.int64), np.zeros(len(leaves), np.int64)]),
        np.concatenate([threshold, np.zeros(len(leaves), np.float32)]),
        np.concatenate([np.where(missing == 2, kinds & 2 != 0, exact >= 0), np.zeros(len(leaves), np.bool_)]),
        np.concatenate([np.zeros(inner), leaves]),
        column,
    )


def _leaf(value: float, column: int) -> Tree:
    end, none = np.full(1, -1), np.zeros(1, np.int64)
    return Tree(end, end, none, np.zeros(1, np.float32), np.zeros(1, np.bool_), np.full(1, value), column)


def check_tree(tree: Tree, features: int) -> None:
    """Raises `NotConvertible` for a tree that leads outside of itself or of the row, or in a circle."""
    nodes = len(tree.left)
    reached = np.zeros(nodes, dtype=np.int64)
    level = np.zeros(1, dtype=np.int64)
    while len(level):
        reached[level] += 1
        inner = level[tree.left[level] >= 0]
        level = np.concatenate([tree.left[inner], tree.right[inner]])
        if ((level <= 0) | (level >= nodes)).any() or len(np.unique(level)) < len(level) or reached[level].any():
            raise NotConvertible("a tree whose nodes lead outside of it, or in a circle")
    inner = np.flatnonzero(tree.left >= 0)
    if ((tree.feature[inner] < 0) | (tree.feature[inner] >= features)).any():
        raise NotConvertible("a tree whose features lead outside of the row")
