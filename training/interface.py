"""Does a pushed model take what requests bring, and answer what the schema promises?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.artefact import ArtefactError

if TYPE_CHECKING:
    from monitoring.schema import FeatureSchema
    from training.skops_file import Said


def check_interface(pipeline: Any, schema: FeatureSchema) -> None:
    """Raises `ArtefactError` naming every way in which a pushed model does not fit the schema."""
    import numpy as np

    needed = ("predict",) if schema.task == "regression" else ("predict", "predict_proba")
    problems = [f"it has no method {method}" for method in needed if not callable(getattr(pipeline, method, None))]
    names = getattr(pipeline, "feature_names_in_", None)
    if names is None:
        problems.append("it has no feature_names_in_: fit it to a DataFrame with the schema's columns")
    else:
        problems += _names([str(name) for name in names], schema)
    classes = getattr(pipeline, "classes_", None)
    if classes is not None:
        problems += _classes(np.asarray(classes).tolist(), schema, counted=counts_classes(pipeline))
    elif schema.task != "regression":
        problems.append(f"it has no classes_; the task is {schema.task}")
    _refuse(problems)


def check_said(said: Said, schema: FeatureSchema) -> None:
    """The same, of what a file says of its model before that is loaded."""
    problems = []
    if said.features is not None:
        problems += _names(said.features, schema)
    elif said.width is not None and said.width != len(schema.names):
        problems.append(f"it was fitted to {said.width} feature(s), requests have {len(schema.names)}")
    if said.classes is not None:
        problems += _classes(said.classes, schema, counted=False)
    _refuse(problems)


def refuse_misfits(features: list[str], classes: list[Any] | None, schema: FeatureSchema) -> None:
    """The same, of a model that says itself which features it reads and what it answers."""
    booleans = bool(schema.classes) and isinstance(schema.classes[0], bool)  # ONNX has them as 0 and 1
    found = None if classes is None else _classes(classes, schema, counted=booleans)
    _refuse(_names(features, schema) + (found or []))


def counts_classes(pipeline: Any) -> bool:
    """Whether the model is of XGBoost, which takes no labels but 0, 1, …: the schema's classes in their order."""
    final = pipeline.steps[-1][1] if hasattr(pipeline, "steps") else pipeline
    return type(final).__module__.partition(".")[0] == "xgboost"


def _names(found: list[str], schema: FeatureSchema) -> list[str]:
    problems = []
    if missing := [name for name in schema.names if name not in found]:
        problems.append(f"it does not take the features {', '.join(missing)}")
    if extra := [name for name in found if name not in schema.names]:
        problems.append(f"it wants features that requests do not have: {', '.join(extra)}")
    return problems


def _classes(found: list[Any], schema: FeatureSchema, *, counted: bool) -> list[str]:
    if schema.task == "regression":
        return ["it is a classifier, the task is a regression"]
    expected = list(schema.classes)
    same = found == expected and [type(value) for value in found] == [type(value) for value in expected]
    if same or (counted and found == list(range(len(expected)))):
        return []
    return [f"its classes are {found}, those of {schema.target!r} are {expected}"]


def _refuse(problems: list[str]) -> None:
    if problems:
        todo = "fit it to the features and labels that GET /schema names"
        raise ArtefactError(f"the pushed model does not fit: {'; '.join(problems)}: {todo}")
