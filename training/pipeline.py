"""Building a scikit-learn pipeline, fitting and asking it; the space its parameters are searched in."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd
    from sklearn.pipeline import Pipeline

    from monitoring.schema import FeatureSchema


class Parameters(BaseModel):
    """Parameters of the histogram gradient boosting at the end of the pipeline (scikit-learn's names)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(0.1, gt=0, le=1, description="shrinkage of each tree; scikit-learn's default")
    max_leaf_nodes: int = Field(31, ge=2, le=255, description="leaves of one tree; scikit-learn's default")
    max_iter: int = Field(100, ge=1, le=1000, description="trees (of each class); 100 answer one row in about 20 µs")
    min_samples_leaf: int = Field(20, ge=1, description="rows; smaller leaves learn noise")
    l2_regularization: float = Field(0.0, ge=0, description="penalty on leaf values; scikit-learn's default")
    max_bins: int = Field(255, ge=2, le=255, description="bins of one feature; scikit-learn's maximum")


SPACE: Final[Mapping[str, tuple[str, float, float]]] = {
    "learning_rate": ("log", 0.03, 0.3),
    "max_leaf_nodes": ("integer", 7, 63),
    "max_iter": ("integer", 50, 300),
    "min_samples_leaf": ("integer", 5, 60),
    "l2_regularization": ("linear", 0.0, 10.0),
}
"""Search space: parameter -> (scale, lowest, highest). 300 trees of 63 leaves still answer one row in under 50 µs."""


def fit(
    schema: FeatureSchema,
    features: pd.DataFrame,
    labels: npt.NDArray[Any],
    parameters: Parameters | Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Pipeline:
    """`build`, fitted to canonical features and labels, passing over the columns without any value.

    scikit-learn 1.9 cannot bin such a column ("window shape cannot be larger than input array shape").
    """
    empty = [name for name in schema.names if features[name].isna().all()]
    return build(schema, parameters, seed, leave_out=empty).fit(features[list(schema.names)], labels)


def build(
    schema: FeatureSchema,
    parameters: Parameters | Mapping[str, Any] | None = None,
    seed: int = 0,
    *,
    leave_out: Collection[str] = (),
) -> Pipeline:
    """An unfitted pipeline that takes canonical frames of `schema` (see `FeatureSchema.canonical`).

    Numbers pass as they are, missing ones too; categories become ordinal codes (unseen ones -1); then histogram
    gradient boosting. No scaler stands before the trees: float32 thresholds would flip in the ONNX twin. Early stopping
    is off: it would hold back random, not the newest, rows. The same seed and rows give the same model. Features in
    `leave_out` are taken and not used.
    Raises pydantic's `ValidationError` for an unknown parameter or one out of range.
    """
    import numpy as np
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OrdinalEncoder

    settings = parameters if isinstance(parameters, Parameters) else Parameters.model_validate(parameters or {})
    columns: list[tuple[str, Any, list[str]]] = []
    numbers = [name for name in schema.numeric_names if name not in leave_out]
    categories = [name for name in schema.categorical_names if name not in leave_out]
    if not numbers and not categories:
        raise ValueError(f"none of the {len(schema.names)} features has a value: there is nothing to learn from")
    if numbers:
        columns.append(("numbers", "passthrough", numbers))
    if categories:
        encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, dtype=np.float32)
        columns.append(("categories", encoder, categories))
    boosting = HistGradientBoostingRegressor if schema.task == "regression" else HistGradientBoostingClassifier
    model = boosting(**settings.model_dump(), early_stopping=False, random_state=seed)
    return Pipeline([("columns", ColumnTransformer(columns)), ("model", model)])


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
