"""How much better are one model's answers than another's to the same rows, and how far may that be chance?

Differences are paired: both models answer the same rows, so what is hard for both cancels out. How far chance moves a
difference comes from each row's influence on it, and from blocks of neighbouring rows (`monitoring/evidence.py`).
pandas and scikit-learn are not imported here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec
import numpy as np

from monitoring.evidence import Influences, spread
from monitoring.influence import of_classes, of_numbers

if TYPE_CHECKING:
    import numpy.typing as npt

    from monitoring.schema import FeatureSchema
    from training.gate_policy import GatePolicy

Metric = Literal["auc", "accuracy", "r2"]
Measure = Literal["auc", "accuracy", "r2", "log_loss", "mse"]
LOSSES: Final[dict[str, Measure]] = {"binary": "log_loss", "multiclass": "log_loss", "regression": "mse"}
"""What decides between two models: a loss sees every row, a metric of ranks or hits only what crosses a line."""
PRIMARY: Final[dict[str, Metric]] = {"binary": "auc", "multiclass": "accuracy", "regression": "r2"}


def metric_of(task: str, policy: GatePolicy) -> Metric:
    """The metric that decides. Raises ValueError for one that does not fit the task."""
    metric = PRIMARY[task] if policy.metric == "auto" else policy.metric
    fits = {"binary": ("auc", "accuracy"), "multiclass": ("accuracy",), "regression": ("r2",)}[task]
    if metric not in fits:
        raise ValueError(f"metric {metric!r} does not fit a {task} task: use {' or '.join(fits)}, or auto")
    return metric


class Truth(msgspec.Struct, frozen=True):
    """Labels as numbers: the position in the schema's classes (-1: a class the model never saw), or the value."""

    values: Any
    classes: tuple[Any, ...]

    @classmethod
    def of(cls, labels: npt.NDArray[Any], schema: FeatureSchema) -> Truth:
        if schema.task == "regression":
            return cls(np.asarray(labels, dtype=np.float64), ())
        position = {value: at for at, value in enumerate(schema.classes)}
        return cls(np.array([position.get(label, -1) for label in labels.tolist()], dtype=np.int64), schema.classes)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def known(self) -> Any:
        """Which labels the models have a class for (every number of a regression): one boolean a row."""
        return self.values >= 0 if self.classes else np.ones(len(self.values), dtype=bool)


def score(values: npt.NDArray[Any], truth: Truth, metric: Measure) -> float:
    """The metric of a model's answers; NaN where it is undefined (one class only, constant labels, no rows)."""
    found = influences(values, truth, metric)
    return math.nan if found is None else found.value


def influences(values: npt.NDArray[Any], truth: Truth, metric: Measure) -> Influences | None:
    """The metric of a model's answers and each row's influence on it; larger is better, so losses are negative.

    A row of a class that the models never saw is a wrong answer for `accuracy`, and does not count in the others. None
    where the metric is undefined.
    """
    if not truth.classes:
        return of_numbers(metric, truth.values, np.asarray(values, dtype=np.float64))
    known = truth.known | (metric == "accuracy")
    return of_classes(metric, truth.values[known], np.asarray(values, dtype=np.float64)[known])


class Difference(NamedTuple):
    """How much better a challenger is than a champion on the same rows."""

    new: float
    old: float
    error: float
    """Standard error of `new` - `old`."""

    @property
    def gain(self) -> float:
        return self.new - self.old

    def chance_above(self, gain: float) -> float:
        """Probability that the true gain is above this one."""
        if not self.error:
            return 1.0 if self.gain > gain else 0.0 if self.gain < gain else 0.5
        return 0.5 * (1 + math.erf((self.gain - gain) / self.error / math.sqrt(2)))


def difference(new: npt.NDArray[Any], old: npt.NDArray[Any], truth: Truth, metric: Measure) -> Difference | None:
    """The paired difference of two models' answers to the same rows, None where the metric is undefined."""
    first, second = influences(new, truth, metric), influences(old, truth, metric)
    if first is None or second is None:
        return None
    rows = first.rows - second.rows
    return Difference(first.value, second.value, spread(rows) / math.sqrt(len(rows)))
