"""Does a pushed model take what requests bring, and answer what the schema promises?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.artefact import ArtefactError

if TYPE_CHECKING:
    from monitoring.schema import FeatureSchema


def check_interface(pipeline: Any, schema: FeatureSchema) -> None:
    """Raises `ArtefactError` naming every way in which a pushed model does not fit the schema."""
    import numpy as np

    needed = ("predict",) if schema.task == "regression" else ("predict", "predict_proba")
    problems = [f"it has no method {method}" for method in needed if not callable(getattr(pipeline, method, None))]
    names = getattr(pipeline, "feature_names_in_", None)
    if names is None:
        problems.append("it has no feature_names_in_: fit it to a DataFrame with the schema's columns")
    else:
        found = [str(name) for name in names]
        if missing := [name for name in schema.names if name not in found]:
            problems.append(f"it does not take the features {', '.join(missing)}")
        if extra := [name for name in found if name not in schema.names]:
            problems.append(f"it wants features that requests do not have: {', '.join(extra)}")
    classes = getattr(pipeline, "classes_", None)
    if schema.task == "regression":
        if classes is not None:
            problems.append("it is a classifier, the task is a regression")
    elif classes is None:
        problems.append(f"it has no classes_; the task is {schema.task}")
    else:
        found_classes = np.asarray(classes).tolist()
        same = found_classes == list(schema.classes) and list(map(type, found_classes)) == list(
            map(type, schema.classes)
        )
        if not same:
            problems.append(f"its classes are {found_classes}, those of {schema.target!r} are {list(schema.classes)}")
    if problems:
        todo = "fit it to the features and labels that GET /schema names"
        raise ArtefactError(f"the pushed model does not fit: {'; '.join(problems)}: {todo}")
