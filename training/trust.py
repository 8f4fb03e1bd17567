"""Model files as data: writing a pipeline with skops, and reading one back without running what it brings.

A pushed file may come from anyone: no pickle is ever loaded, only known types, and trees are checked first.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from monitoring.errors import in_short
from training.artefact import PIPELINE, ArtefactError
from training.known_types import names_of_types, not_installed, untrusted
from training.pipeline import parts_of

MAX_MODEL_BYTES: Final = 2 << 30
MAX_MODEL_RATIO: Final = 200
"""A skops file may unpack to this many bytes, and to this many times its own size: more is a zip bomb."""


class UntrustedModel(ArtefactError):
    """Raised when a model file holds types that are not on the trust list; `types` names them."""

    def __init__(self, what: str, types: Sequence[str]) -> None:
        self.types = tuple(types)
        packages = {name.partition(".")[0] for name in types} - {"sklearn", "numpy", "scipy", *sys.stdlib_module_names}
        whole = f"add {_few(sorted(packages))} to the setting `security.trusted_packages`, or " if packages else ""
        super().__init__(
            f"{what} holds types that are not trusted: {', '.join(types)}: when you trust the code behind them and "
            f"the file's author, {whole}add the types to `security.trusted_types`"
        )


class NotInstalled(ArtefactError):
    """Raised when a model file needs packages that are trusted and not installed here."""

    def __init__(self, what: str, packages: Sequence[str]) -> None:
        extra = '"evergreen-serving[boosting]"' if set(packages) & {"xgboost", "lightgbm"} else " ".join(packages)
        super().__init__(
            f"{what} needs {', '.join(packages)}, which is trusted and not installed here: install it in the "
            f"environment of the service (pip install {extra}) and push again"
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def to_skops(pipeline: Any) -> bytes:
    """The pipeline as the bytes of a skops file."""
    import skops.io

    content: bytes = skops.io.dumps(pipeline, compression=zipfile.ZIP_DEFLATED, compresslevel=1)
    return content


def load_pipeline(folder: Path, trusted: Iterable[str] = ()) -> Any:
    """The scikit-learn pipeline of an artefact folder (verify the folder first).

    `trusted` adds to what is trusted anyway. Raises as `load_skops` does.
    """
    return load_skops(folder / PIPELINE, trusted)


def load_skops(path: Path, trusted: Iterable[str] = ()) -> Any:
    """The object in a skops file, when it holds only types that skops, `known_types` or `trusted` trust.

    `trusted` are names of types, and of packages as `package.*`.
    Never unpickles. Raises `UntrustedModel` naming the types, or `ArtefactError` for a file that is not skops, would
    unpack beyond `MAX_MODEL_BYTES`, or holds trees whose node indices lead outside of them.
    """
    import skops.io

    schema, trusted = check_form(path), tuple(trusted)
    if missing := not_installed(names_of_types(schema), trusted):
        raise NotInstalled(str(path), missing)
    try:
        found = set(skops.io.get_untrusted_types(file=path))
        if unknown := untrusted(found, schema, trusted):
            raise UntrustedModel(str(path), sorted(unknown))
        model = skops.io.load(path, trusted=sorted(found))
        _check_trees(model, path)
    except ArtefactError:
        raise
    except Exception as error:  # a crafted file can make skops fail anywhere
        raise ArtefactError(
            f"{path} cannot be loaded by skops {importlib.metadata.version('skops')}: "
            f"{type(error).__name__}: {in_short(error)}: write it with skops.io.dump and scikit-learn "
            f"{importlib.metadata.version('scikit-learn')}"
        ) from error
    return model


def check_form(path: Path) -> dict[str, Any]:
    """The file's `schema.json`. Raises `ArtefactError` for what is no skops file, or a bomb."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise ArtefactError(f"{path} does not exist") from None
    remedy = "write it with skops.io.dump(model, path), or as ONNX; pickle and joblib files are never loaded"
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            schema = json.loads(archive.read("schema.json")) if _bounded(members, size, path) else {}
    except ArtefactError:
        raise
    except (zipfile.BadZipFile, KeyError, ValueError, RecursionError, OSError, NotImplementedError, EOFError) as error:
        raise ArtefactError(f"{path} is not a skops file ({in_short(error)}): {remedy}") from None
    if not isinstance(schema, dict) or "__loader__" not in schema:
        raise ArtefactError(f"{path} is not a skops file (its schema.json has no __loader__): {remedy}")
    return schema


def _bounded(members: Sequence[zipfile.ZipInfo], size: int, path: Path) -> bool:
    unpacked = sum(member.file_size for member in members)
    if unpacked > MAX_MODEL_BYTES or unpacked > MAX_MODEL_RATIO * max(size, 1 << 16):
        raise ArtefactError(
            f"{path} has {size} bytes and would unpack to {unpacked}: more than {MAX_MODEL_BYTES} bytes or "
            f"{MAX_MODEL_RATIO} times its size is taken for a zip bomb"
        )
    return True


def _check_trees(model: Any, path: Path) -> None:
    """Raises `ArtefactError` for a tree whose indices lead outside of it, of the row, or of its forest's answer.

    scikit-learn follows them without checking: it would read foreign memory, or never end.
    """
    import numpy as np
    from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor
    from sklearn.tree._tree import Tree

    def refuse(why: str) -> NoReturn:
        raise ArtefactError(f"{path} holds a tree whose {why}: it was not written by scikit-learn; train it again")

    for owner, tree in parts_of(model, (TreePredictor, Tree)):
        features = getattr(owner, "n_features_in_", None)
        if not isinstance(features, (int, np.integer)):
            refuse("number of features is missing")
        if isinstance(tree, TreePredictor):
            nodes = tree.nodes
            inner = np.flatnonzero(nodes["is_leaf"] == 0)
            left, right = nodes["left"][inner].astype(np.int64), nodes["right"][inner].astype(np.int64)
            feature = nodes["feature_idx"][inner].astype(np.int64)
            categorical = nodes["is_categorical"][inner] != 0
            bitsets = min(len(tree.binned_left_cat_bitsets), len(tree.raw_left_cat_bitsets))
            if categorical.any() and nodes["bitset_idx"][inner][categorical].max() >= bitsets:
                refuse("category sets are missing")
            count = len(nodes)
        else:
            inner = np.flatnonzero(tree.children_left != -1)
            left, right, feature = tree.children_left[inner], tree.children_right[inner], tree.feature[inner]
            count = tree.node_count
            if tree.n_features > features:
                refuse("rows are wider than those of its estimator")
        if not count:
            refuse("nodes are missing")
        # Both kinds store parents before their children; so an index that does not grow is a cycle.
        if len(inner) and (
            min((left - inner).min(), (right - inner).min()) <= 0 or max(left.max(), right.max()) >= count
        ):
            refuse("node indices lead outside of it")
        if len(inner) and (feature.min() < 0 or feature.max() >= min(features, getattr(tree, "n_features", features))):
            refuse("feature indices lead outside of the row")
    for forest in _forests(model):
        width = min([forest.n_features_in_, *map(len, getattr(forest, "estimators_features_", ()))])
        trees = [estimator.tree_ for estimator in np.asarray(forest.estimators_, dtype=object).ravel()]
        if any(tree.n_features > width for tree in trees):
            refuse("rows are wider than those of its forest")
        if hasattr(forest, "_raw_predict_init"):  # gradient boosting: compiled code adds up what the trees say
            start = forest._raw_predict_init(np.zeros((1, width), dtype=np.float32))
            if start.shape != (1, forest.estimators_.shape[1]) or any(tree.value.shape[1:] != (1, 1) for tree in trees):
                refuse("answers do not fit its forest")


def _forests(model: Any) -> Iterator[Any]:
    """The estimators in `model` that hand a row to their trees without letting these check its width."""
    from sklearn.ensemble import IsolationForest
    from sklearn.ensemble._forest import BaseForest
    from sklearn.ensemble._gb import BaseGradientBoosting

    for _, found in parts_of(model, (BaseForest, BaseGradientBoosting, IsolationForest)):
        if hasattr(found, "estimators_"):  # else it is not fitted: what a bagging was given, for example
            yield found
