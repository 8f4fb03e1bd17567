"""Building a scikit-learn pipeline of any family, fitting it and asking it."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from training.families import Boosting, Classifier, ExtraTrees, Forest, Linear, Own, Parameters, parameters_of
from training.own_pipeline import build_own

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd
    from sklearn.pipeline import Pipeline

    from monitoring.schema import FeatureSchema

CALIBRATION_FOLDS: Final = 3
"""Each costs a fit; the answers that the sigmoid is fitted to come from models that did not learn those rows."""
_MISSING: Final = -1e30
"""What a random forest reads for a missing number: below all others, so that a split can tell it from them."""


def fit(
    schema: FeatureSchema,
    features: pd.DataFrame,
    labels: npt.NDArray[Any],
    parameters: Parameters | Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Pipeline:
    """`build`, fitted to canonical features and labels, passing over the columns without any value.

    scikit-learn 1.9 cannot bin such a column ("window shape cannot be larger than input array shape"). Calibration
    needs two rows of each class; with fewer the model answers uncalibrated. Raises `JobError` when a pipeline of the
    user's own cannot be fitted.
    """
    import numpy as np
    from sklearn.exceptions import ConvergenceWarning

    given, names = parameters_of(parameters), list(schema.names)
    if isinstance(given, Own):
        return build_own(given, schema, features[names], labels, seed)
    folds = CALIBRATION_FOLDS
    if isinstance(given, Classifier) and given.calibration != "none" and schema.task != "regression":
        folds = min(folds, int(np.unique(labels, return_counts=True)[1].min()))
        if folds < 2:
            given = given.model_copy(update={"calibration": "none"})
    empty = [name for name in names if features[name].isna().all()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # how good it is where it stopped, the gates measure
        return build(schema, given, seed, leave_out=empty, folds=folds).fit(features[names], labels)


def build(
    schema: FeatureSchema,
    parameters: Parameters | Mapping[str, Any] | None = None,
    seed: int = 0,
    *,
    leave_out: Collection[str] = (),
    folds: int = CALIBRATION_FOLDS,
) -> Pipeline:
    """An unfitted pipeline that takes canonical frames of `schema` (see `FeatureSchema.canonical`).

    Boosting: numbers pass as they are, missing ones too; categories become ordinal codes (unseen ones -1). No scaler
    stands before trees: float32 thresholds would flip in the ONNX twin. Early stopping is off: it would hold back
    random, not the newest, rows. Forests: the same with missing values filled in. Linear: medians for missing numbers,
    scaled; one column a category. The same seed and rows give the same model. Features in `leave_out` are taken and not
    used. Raises pydantic's `ValidationError` for an unknown parameter or one out of range.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    given = parameters_of(parameters)
    numbers = [name for name in schema.numeric_names if name not in leave_out]
    categories = [name for name in schema.categorical_names if name not in leave_out]
    if not numbers and not categories:
        raise ValueError(f"none of the {len(schema.names)} features has a value: there is nothing to learn from")
    columns: list[tuple[str, Any, list[str]]] = []
    if numbers:
        columns.append(("numbers", _numbers(given), numbers))
    if categories:
        columns.append(("categories", _categories(given), categories))
    return Pipeline([("columns", ColumnTransformer(columns)), ("model", _model(given, schema, seed, folds))])


def _numbers(given: Parameters) -> Any:
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    match given:
        case Forest():
            return SimpleImputer(strategy="constant", fill_value=_MISSING)
        case ExtraTrees():
            return SimpleImputer(strategy="median")  # it draws thresholds between the extremes: a constant would be one
        case Linear():
            return make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    return "passthrough"


def _categories(given: Parameters) -> Any:
    import numpy as np
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

    if isinstance(given, Linear):
        return OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=given.max_categories)
    filled = {} if isinstance(given, Boosting) else {"encoded_missing_value": -2}
    return OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, dtype=np.float32, **filled)


def _model(given: Parameters, schema: FeatureSchema, seed: int, folds: int) -> Any:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import (
        ExtraTreesClassifier,
        ExtraTreesRegressor,
        HistGradientBoostingClassifier,
        HistGradientBoostingRegressor,
        RandomForestClassifier,
        RandomForestRegressor,
    )
    from sklearn.linear_model import LogisticRegression, Ridge

    regression = schema.task == "regression"
    own = given.model_dump(exclude={"family", "calibration", "class_weight"})
    weight = None if given.model_dump().get("class_weight") != "balanced" else "balanced"
    weighed = {} if regression else {"class_weight": weight}
    model: Any
    match given:
        case Forest():
            kind = RandomForestRegressor if regression else RandomForestClassifier
            model = kind(**own, **weighed, random_state=seed)
        case ExtraTrees():
            kind = ExtraTreesRegressor if regression else ExtraTreesClassifier
            model = kind(**own, **weighed, random_state=seed)
        case Linear() if regression:
            model = Ridge(alpha=given.penalty)
        case Linear():
            model = LogisticRegression(C=1 / given.penalty, max_iter=500, **weighed)
        case _:
            kind = HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier
            if not regression:
                own.pop("loss")
            model = kind(**own, **weighed, early_stopping=False, random_state=seed)
    if regression or given.model_dump().get("calibration") != "sigmoid":
        return model
    return CalibratedClassifierCV(model, method="sigmoid", cv=folds, ensemble=False)


def predict(pipeline: Any, frame: pd.DataFrame, schema: FeatureSchema) -> npt.NDArray[Any]:
    """What the pipeline says of a canonical frame: probabilities, rows by classes; for regression float64 values.

    A pushed model may have been fitted to the columns in another order: it gets them in its own.
    """
    import numpy as np

    frame = frame[names_of(pipeline, schema)]
    if schema.task == "regression":
        return np.asarray(pipeline.predict(frame), dtype=np.float64).reshape(-1)
    answer: npt.NDArray[Any] = np.asarray(pipeline.predict_proba(frame))
    return answer


def final_of(pipeline: Any) -> Any:
    """The estimator at the end of a pipeline; a model that is no pipeline is its own."""
    return pipeline.steps[-1][1] if hasattr(pipeline, "steps") else pipeline


def names_of(pipeline: Any, schema: FeatureSchema) -> list[str]:
    """The features in the order the pipeline was fitted to; the schema's when it does not say."""
    names = getattr(pipeline, "feature_names_in_", None)
    return list(schema.names) if names is None else [str(name) for name in names]


def parts_of(model: Any, wanted: tuple[type, ...]) -> Iterator[tuple[Any, Any]]:
    """(owner, object) for each object of the wanted types within `model`; the owner is the estimator around it.

    An object of several owners comes once for each.
    """
    import numpy as np
    from sklearn.base import BaseEstimator

    seen: set[tuple[int, int]] = set()
    stack: list[tuple[Any, Any]] = [(None, model)]
    while stack:
        owner, value = stack.pop()
        if (id(owner), id(value)) in seen or isinstance(value, (str, bytes, int, float, bool, type(None))):
            continue
        seen.add((id(owner), id(value)))
        if isinstance(value, wanted):
            yield owner, value
        if isinstance(value, BaseEstimator):
            owner = value
        if isinstance(value, Mapping):
            stack += [(owner, item) for item in value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)) or (
            isinstance(value, np.ndarray) and value.dtype == object
        ):
            stack += [(owner, item) for item in (value.ravel() if isinstance(value, np.ndarray) else value)]
        elif hasattr(value, "__dict__"):
            stack += [(owner, item) for item in vars(value).values()]
