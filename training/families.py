"""The families of models that a training may choose from: the parameters of each, and where a search looks for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

OWN_PIPELINE: Final = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
"""Pattern of `mypkg.module:function`."""


class Parameters(BaseModel):
    """What a pipeline is built from; `parameters_of` reads it back from a manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str = ""

    def trees(self, classes: int) -> int:
        """How many trees the model has at most, 0 when it is none of trees; `classes`: 0 for a regression."""
        return 0


class Classifier(Parameters):
    """What every family of ours has for a classification; a regression leaves it alone."""

    calibration: Literal["none", "sigmoid"] = Field(
        "none", description="Platt's sigmoid, fitted to answers of three folds; isotonic has no ONNX twin that agrees"
    )
    class_weight: Literal["none", "balanced"] = Field(
        "none", description="balanced: each class weighs the same, however rare; then calibrate, or it says too much"
    )


class Boosting(Classifier):
    """Parameters of histogram gradient boosting (scikit-learn's names)."""

    family: Literal["boosting"] = "boosting"
    learning_rate: float = Field(0.1, gt=0, le=1, description="shrinkage of each tree; scikit-learn's default")
    max_leaf_nodes: int = Field(31, ge=2, le=255, description="leaves of one tree; scikit-learn's default")
    max_iter: int = Field(100, ge=1, le=1000, description="trees (of each class); 100 answer one row in about 20 µs")
    min_samples_leaf: int = Field(20, ge=1, description="rows; smaller leaves learn noise")
    l2_regularization: float = Field(0.0, ge=0, description="penalty on leaf values; scikit-learn's default")
    max_bins: int = Field(255, ge=2, le=255, description="bins of one feature; scikit-learn's maximum")
    max_features: float = Field(1.0, gt=0, le=1, description="share of the features that each split looks at")
    loss: Literal["squared_error", "poisson"] = Field(
        "squared_error", description="of a regression; poisson: for numbers that are never negative, causes multiply"
    )

    def trees(self, classes: int) -> int:
        return self.max_iter * (classes if classes > 2 else 1)


class _Bagged(Classifier):
    n_estimators: int = Field(100, ge=1, le=1000, description="trees; more only settle the answer")
    max_leaf_nodes: int = Field(500, ge=2, description="leaves of one tree; bounds the file and the ONNX twin")
    min_samples_leaf: int = Field(3, ge=1, description="rows; smaller leaves learn noise")
    max_features: float = Field(0.5, gt=0, le=1, description="share of the features that each split looks at")

    def trees(self, classes: int) -> int:
        return self.n_estimators


class Forest(_Bagged):
    """Parameters of a random forest (scikit-learn's names)."""

    family: Literal["forest"] = "forest"


class ExtraTrees(_Bagged):
    """Parameters of extremely randomised trees (scikit-learn's names)."""

    family: Literal["extra_trees"] = "extra_trees"


class Linear(Classifier):
    """Parameters of logistic regression, or of ridge regression."""

    family: Literal["linear"] = "linear"
    penalty: float = Field(1.0, gt=0, description="ridge's alpha, 1 / C of logistic regression: larger is simpler")
    max_categories: int = Field(100, ge=2, description="columns that one feature becomes; rarer categories share one")


class Own(Parameters):
    """A pipeline that a function of the user's builds: it decides everything."""

    family: Literal["own"] = "own"
    pipeline: str = Field(pattern=OWN_PIPELINE, description="`mypkg.module:function`")
    package: str = Field("", description="the distribution that brought it, and its version; for information")


class Range(NamedTuple):
    """Where a parameter is looked for."""

    scale: Literal["log", "integer", "log integer", "linear"]
    low: float
    high: float


_BAGGED_SPACE: Final = {
    "max_leaf_nodes": Range("log integer", 32, 1000),
    "min_samples_leaf": Range("log integer", 1, 30),
    "max_features": Range("linear", 0.2, 1.0),
}
FAMILIES: Final[Mapping[str, type[Parameters]]] = {
    "boosting": Boosting, "forest": Forest, "extra_trees": ExtraTrees, "linear": Linear
}  # fmt: skip
SPACES: Final[Mapping[str, Mapping[str, Range]]] = {
    "boosting": {
        "learning_rate": Range("log", 0.02, 0.3),
        "max_leaf_nodes": Range("integer", 7, 63),
        "max_iter": Range("log integer", 50, 500),
        "min_samples_leaf": Range("log integer", 5, 60),
        "l2_regularization": Range("linear", 0.0, 10.0),
        "max_features": Range("linear", 0.3, 1.0),
    },
    "forest": _BAGGED_SPACE,
    "extra_trees": _BAGGED_SPACE,
    "linear": {"penalty": Range("log", 1e-3, 1e3)},
}
"""Family -> parameter -> where it is looked for. What is not named keeps its value."""


def parameters_of(given: Parameters | Mapping[str, Any] | None) -> Parameters:
    """The parameters in a mapping such as a manifest's; boosting where no family is named (before 0.3 there was no
    other).

    Raises pydantic's `ValidationError` for an unknown parameter or one out of range, `ValueError` for a family that
    nobody knows.
    """
    if isinstance(given, Parameters):
        return given
    given = given or {}
    family = str(given.get("family", "boosting"))
    kind: type[Parameters] | None = Own if family == "own" else FAMILIES.get(family)
    if kind is None:
        raise ValueError(f"no family of models is called {family!r}: there are {', '.join(FAMILIES)} and own")
    return kind.model_validate(dict(given))
