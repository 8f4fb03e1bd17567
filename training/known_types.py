"""Which types a pushed model file may hold although skops does not know them: scikit-learn's own, as plain data, and
those of packages that the operator trusts."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

LOADERS: Final[Mapping[str, frozenset[str]]] = {
    "sklearn.tree._tree.Tree": frozenset({"TreeNode"}),
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor": frozenset({"ObjectNode"}),
    "sklearn.utils._bunch.Bunch": frozenset({"DictNode"}),  # a dict, of voting and stacking
    "numpy.dtype": frozenset({"DTypeNode"}),  # of every SimpleImputer
    "collections.OrderedDict": frozenset({"DictNode", "TypeNode"}),  # of LightGBM: a dict, and what makes one
}
"""Type -> the ways in which skops may build it. The content of both trees is checked after loading."""

PARTS: Final = frozenset(
    {
        "sklearn.base.BaseEstimator",
        "sklearn._loss.link.BaseLink",
        "sklearn._loss.loss.BaseLoss",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.compose._column_transformer.make_column_selector",
        "sklearn.gaussian_process.kernels.Kernel",
        "sklearn.model_selection._split.BaseCrossValidator",
        "sklearn.model_selection._split.BaseShuffleSplit",
        "sklearn.neural_network._stochastic_optimizers.BaseOptimizer",
    }
)
"""What a fitted estimator of scikit-learn is made of: these classes and those that scikit-learn derives from them."""


PACKAGE: Final = ".*"
"""Ends a name on the trust list that stands for everything a package defines."""

_RESTORED: Final = frozenset({"ObjectNode"})
_OF_A_PACKAGE: Final = frozenset({"ObjectNode", "FunctionNode", "TypeNode"})
"""The ways in which skops may build what a trusted package defines: restored, or named; never called with arguments."""


def untrusted(found: set[str], schema: Any, trusted: Collection[str] = ()) -> set[str]:
    """Which of the types that skops does not trust (`found`) stay untrusted; `schema` is the file's `schema.json`.

    `trusted` are names of types, and of packages as `package.*`: what such a package itself defines is trusted, not
    what it has imported from elsewhere. Trusted is also a type that is scikit-learn's own and that the file brings as
    nothing but data:

    - It is a class, defined under that name in a module of scikit-learn that skops has imported: nothing is imported
      because a file says so, and a function, or what a module has imported from elsewhere, is not trusted.
    - It is a part of fitted estimators (`PARTS`) written in Python, every class it inherits from is scikit-learn's,
      and it has no restoring code of its own: skops makes an empty instance, fills its `__dict__`, and calls nothing.
    - The file has it built in just this way ("ObjectNode"): skops's other loaders would call it with arguments.

    This is how skops itself trusts the public estimators. What is compiled (KDTree, the distances) trusts its numbers,
    so it is refused, but for the trees of `LOADERS`, whose numbers `training.trust` checks.
    """
    found = found - set(trusted)
    loaders = _loaders(schema, found)
    return {
        name
        for name in found
        if not loaders.get(name, {""}) <= (LOADERS.get(name) or (_RESTORED if _is_plain(name) else frozenset()))
        and not (is_of(name, trusted) and loaders.get(name, {""}) <= _OF_A_PACKAGE and _is_defined(name))
    }


def is_of(name: str, trusted: Collection[str]) -> bool:
    """Whether the type of this name is in a package that is trusted as a whole."""
    return f"{name.partition('.')[0]}{PACKAGE}" in trusted


def not_installed(names: Collection[str], trusted: Collection[str]) -> list[str]:
    """The trusted packages among those of `names` that are not installed here; nothing is imported."""
    packages = {name.partition(".")[0] for name in names if is_of(name, trusted)}
    return sorted(package for package in packages if importlib.util.find_spec(package) is None)


def _is_defined(name: str) -> bool:
    """Whether a trusted package itself defines what has this name, which imports the module it is in."""
    module, _, attribute = name.rpartition(".")
    if not module or "__main__" in module.split("."):
        return False
    try:
        found = vars(importlib.import_module(module)).get(attribute)
    except ImportError:
        return False
    return str(getattr(found, "__module__", "")).partition(".")[0] == module.partition(".")[0]


def _is_plain(name: str) -> bool:
    """Whether the type of this name is a part of scikit-learn's estimators that is restored without running code."""
    module, _, attribute = name.rpartition(".")
    if not module.startswith("sklearn.") or module.startswith(("sklearn.externals.", "sklearn.utils.")):
        return False
    kind = vars(sys.modules.get(module, object)).get(attribute)
    if not isinstance(kind, type) or _named(kind) != name:
        return False
    ancestors = kind.__mro__[:-1]
    return (
        any(_named(ancestor) in PARTS for ancestor in ancestors)
        and all(a.__module__.startswith("sklearn.") or _named(a) == "abc.ABC" for a in ancestors)
        and not any("__new__" in vars(a) for a in ancestors)
        and all("__setstate__" not in vars(a) or _named(a) == "sklearn.base.BaseEstimator" for a in ancestors)
    )


def _named(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _loaders(schema: Any, wanted: set[str]) -> dict[str, set[str]]:
    """By which loaders the file has each of the wanted types built."""
    found: dict[str, set[str]] = {}
    for name, loader in _nodes(schema):
        if name in wanted:
            found.setdefault(name, set()).add(loader)
    return found


def names_of_types(schema: Any) -> set[str]:
    """The types and functions that a file names in its `schema.json`."""
    return {name for name, loader in _nodes(schema) if loader != "JsonNode"}


def _nodes(schema: Any) -> Iterator[tuple[str, str]]:
    """(type, loader) of each object in the file."""
    stack = [schema]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if "__loader__" in value:
                yield f"{value.get('__module__')}.{value.get('__class__')}", str(value["__loader__"])
            stack += value.values()
        elif isinstance(value, list):
            stack += value
