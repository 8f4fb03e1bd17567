"""Model files as data: writing a pipeline with skops, and reading one back without running what it brings.

A pushed file may come from anyone: no pickle is ever loaded, only types on a list, and trees are checked first.
"""

from __future__ import annotations

import importlib.metadata
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from monitoring.errors import in_short
from training.artefact import PIPELINE, ArtefactError
from training.pipeline import parts_of

MAX_MODEL_BYTES: Final = 2 << 30
MAX_MODEL_RATIO: Final = 200
"""A skops file may unpack to this many bytes, and to this many times its own size: more is a zip bomb."""

_TREE_PREDICTOR: Final = "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"
DEFAULT_TRUSTED: Final = (_TREE_PREDICTOR, "numpy.dtype")
"""What skops does not trust by itself, and our own pipelines or a SimpleImputer (a dtype: plain data) need. Its reason
for the trees is that node indices are not checked before use: `load_skops` checks them, also those of
`sklearn.tree._tree.Tree` when that is put on the list."""


class UntrustedModel(ArtefactError):
    """Raised when a model file holds types that are not on the trust list; `types` names them."""

    def __init__(self, what: str, types: Sequence[str]) -> None:
        self.types = tuple(types)
        super().__init__(
            f"{what} holds types that are not trusted: {', '.join(types)}: when you trust the code behind them and "
            "the file's author, add them to the setting `trusted_types`"
        )


def to_skops(pipeline: Any) -> bytes:
    """The pipeline as the bytes of a skops file."""
    import skops.io

    content: bytes = skops.io.dumps(pipeline, compression=zipfile.ZIP_DEFLATED, compresslevel=1)
    return content


def load_pipeline(folder: Path, trusted: Iterable[str] = ()) -> Any:
    """The scikit-learn pipeline of an artefact folder (verify the folder first).

    `trusted` extends `DEFAULT_TRUSTED`. Raises as `load_skops` does.
    """
    return load_skops(folder / PIPELINE, trusted)


def load_skops(path: Path, trusted: Iterable[str] = ()) -> Any:
    """The object in a skops file, when it holds only types skops trusts, `DEFAULT_TRUSTED` and `trusted`.

    Never unpickles. Raises `UntrustedModel` naming the types, or `ArtefactError` for a file that is not skops, would
    unpack beyond `MAX_MODEL_BYTES`, or holds trees whose node indices lead outside of them.
    """
    import skops.io

    _check_zip(path)
    allowed = {*DEFAULT_TRUSTED, *trusted}
    try:
        found = skops.io.get_untrusted_types(file=path)
        if unknown := sorted(set(found) - allowed):
            raise UntrustedModel(str(path), unknown)
        model = skops.io.load(path, trusted=sorted(set(found) & allowed))
    except ArtefactError:
        raise
    except Exception as error:  # a crafted file can make skops fail anywhere
        raise ArtefactError(
            f"{path} cannot be loaded by skops {importlib.metadata.version('skops')}: "
            f"{type(error).__name__}: {in_short(error)}: write it with skops.io.dump and scikit-learn "
            f"{importlib.metadata.version('scikit-learn')}"
        ) from error
    _check_trees(model, path)
    return model


def _check_zip(path: Path) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise ArtefactError(f"{path} does not exist") from None
    remedy = "write it with skops.io.dump(model, path); pickle and joblib files are never loaded"
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


def _bounded(members: Sequence[zipfile.ZipInfo], size: int, path: Path) -> bool:
    unpacked = sum(member.file_size for member in members)
    if unpacked > MAX_MODEL_BYTES or unpacked > MAX_MODEL_RATIO * max(size, 1 << 16):
        raise ArtefactError(
            f"{path} has {size} bytes and would unpack to {unpacked}: more than {MAX_MODEL_BYTES} bytes or "
            f"{MAX_MODEL_RATIO} times its size is taken for a zip bomb"
        )
    return True


def _check_trees(model: Any, path: Path) -> None:
    """Raises `ArtefactError` for a tree whose indices lead outside of it.

    scikit-learn follows them without checking: it would read foreign memory, or never end.
    """
    import numpy as np
    from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor
    from sklearn.tree._tree import Tree

    def refuse(why: str) -> None:
        raise ArtefactError(f"{path} holds a tree whose {why}: it was not written by scikit-learn; train it again")

    for owner, tree in parts_of(model, (TreePredictor, Tree)):
        features = getattr(owner, "n_features_in_", getattr(owner, "_n_features", None))
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
            count, features = tree.node_count, tree.n_features
        if not count:
            refuse("nodes are missing")
        # Both kinds store parents before their children; so an index that does not grow is a cycle.
        if len(inner) and (
            min((left - inner).min(), (right - inner).min()) <= 0 or max(left.max(), right.max()) >= count
        ):
            refuse("node indices lead outside of it")
        if len(inner) and (
            not isinstance(features, (int, np.integer)) or feature.min() < 0 or feature.max() >= features
        ):
            refuse("feature indices lead outside of the row")
