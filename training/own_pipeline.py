"""A pipeline of the user's own, from a function in a package that is installed beside this program.

The training process is `python -m training.job`, started from the install root with the server's environment: it finds
what `pip install` put into the environment, or what stands on `PYTHONPATH`, and nothing that merely lies beside
`evergreen.toml`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from training.families import Own
from training.spec import JobError

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from monitoring.schema import FeatureSchema


def own_parameters(name: str) -> Own:
    """What the manifest says of a pipeline `mypkg.module:function`. Raises `JobError` when it cannot be imported."""
    _function(name)
    return Own(pipeline=name, package=_distribution(name))


def build_own(given: Own, schema: FeatureSchema, features: pd.DataFrame, labels: npt.NDArray[Any], seed: int) -> Any:
    """What `function(schema, seed)` returned, fitted to these canonical features and labels.

    Raises `JobError` when it cannot be imported, returns nothing that can be fitted and asked, or raises.
    """
    function = _function(given.pipeline)
    asked = "predict" if schema.task == "regression" else "predict_proba"
    try:
        pipeline = function(schema, seed)
    except Exception as error:  # code of the user's own
        raise JobError(f"training.pipeline {given.pipeline}: the function raised {_said(error)}") from error
    if not hasattr(pipeline, "fit") or not hasattr(pipeline, asked):
        raise JobError(
            f"training.pipeline {given.pipeline}: the function returned {type(pipeline).__name__}, which has no `fit` "
            f"or no `{asked}`: return an unfitted scikit-learn estimator"
        )
    try:
        fitted = pipeline.fit(features, labels)
    except Exception as error:  # code of the user's own
        raise JobError(f"training.pipeline {given.pipeline}: its `fit` raised {_said(error)}") from error
    classes = getattr(fitted, "classes_", schema.classes)
    if schema.task != "regression" and list(classes) != list(schema.classes):
        raise JobError(
            f"training.pipeline {given.pipeline}: it has the classes {', '.join(map(str, classes))}, the schema has "
            f"{', '.join(map(str, schema.classes))} in this order: fit it to the labels as they come"
        )
    return fitted


def _function(name: str) -> Any:
    module, _, attribute = name.partition(":")
    where = (
        "the training process imports it: install the package into the environment that `evergreen` runs in "
        "(`pip install`), or name its folder in PYTHONPATH before `evergreen serve`"
    )
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise JobError(f"training.pipeline {name}: there is no module {error.name!r}; {where}") from None
        raise JobError(f"training.pipeline {name}: importing it raised {_said(error)}") from error
    except Exception as error:  # code of the user's own
        raise JobError(f"training.pipeline {name}: importing it raised {_said(error)}") from error
    function = getattr(found, attribute, None)
    if not callable(function):
        raise JobError(f"training.pipeline {name}: {module} ({found.__file__}) has no function {attribute!r}")
    return function


def _distribution(name: str) -> str:
    """The name and version of the distribution that brought the module; "" when none did."""
    top = name.partition(":")[0].partition(".")[0]
    owners = importlib.metadata.packages_distributions().get(top, [])
    return f"{owners[0]} {importlib.metadata.version(owners[0])}" if owners else ""


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
