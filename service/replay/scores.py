"""How good answers were: the metric, the loss and the calibration of a whole stream, and the metric over time."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from monitoring.feature import Task

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

METRIC: Final[dict[Task, str]] = {"binary": "auc", "multiclass": "accuracy", "regression": "r2"}
LOSS: Final[dict[Task, str]] = {"binary": "log loss", "multiclass": "log loss", "regression": "mse"}
BINS: Final = 15
CLIP: Final = 1e-4
"""Probabilities are clipped to it before their logarithm is taken, as an adaptation does."""


class Scores(msgspec.Struct, frozen=True):
    """None where the rows do not define it. `metric`: higher is better; the other two: lower is better."""

    metric: float | None
    loss: float | None
    calibration: float | None
    """Expected calibration error; None for a regression."""


class Stretch(msgspec.Struct, frozen=True):
    """The metric on consecutive rows, with the 95 % interval that chance gives it."""

    start: int
    stop: int
    value: float | None
    low: float | None
    high: float | None


def score(output: Array, truth: npt.NDArray[Any], task: Task) -> Scores:
    """Scores of n outputs (n by classes, or n values) against class numbers, or values.

    Rows of an unknown class (-1) do not count. Calibration error: 15 bins of equally many rows, the mean distance
    between said and seen (Naeini et al. 2015); of several classes that of the one that was said.
    """
    output, truth = _scored(output, truth, task)
    if not len(truth):
        return Scores(None, None, None)
    value, _ = _metric(output, truth, task)
    if task == "regression":
        return Scores(value, float(np.mean((output - truth) ** 2)), None)
    chance = np.clip(output[np.arange(len(truth)), truth], CLIP, 1 - CLIP)
    if task == "binary":
        said, right = output[:, 1], truth == 1
    else:
        said, right = output.max(axis=1), output.argmax(axis=1) == truth
    return Scores(value, float(-np.log(chance).mean()), _calibration_error(said, right))


def over_time(output: Array, truth: npt.NDArray[Any], task: Task, rows: int) -> list[Stretch]:
    """The metric on each stretch of `rows` consecutive rows; the last one may be up to half as long again.

    Standard errors: AUC by Hanley & McNeil 1982, accuracy binomial, R² linearised as a ratio of means.
    """
    stretches = max(1, round(len(truth) / rows))
    bounds = [round(at * len(truth) / stretches) for at in range(stretches + 1)]
    found = []
    for start, stop in pairwise(bounds):
        value, error = _metric(*_scored(output[start:stop], truth[start:stop], task), task)
        if value is None or error is None:
            found.append(Stretch(start, stop, value, None, None))
            continue
        found.append(Stretch(start, stop, value, value - 1.96 * error, min(1.0, value + 1.96 * error)))
    return found


def _scored(output: Array, truth: npt.NDArray[Any], task: Task) -> tuple[Array, npt.NDArray[Any]]:
    if task == "regression":
        return output, truth
    known = truth >= 0
    return output[known], truth[known]


def _metric(output: Array, truth: npt.NDArray[Any], task: Task) -> tuple[float | None, float | None]:
    """The metric and its standard error; None where it is not defined."""
    n = len(truth)
    if n < 2:
        return None, None
    if task == "multiclass":
        value = float(np.mean(output.argmax(axis=1) == truth))
        return value, math.sqrt(value * (1 - value) / n)
    if task == "regression":
        off, spread = (output - truth) ** 2, (truth - truth.mean()) ** 2
        if not spread.sum() > 0:
            return None, None
        ratio = float(off.sum() / spread.sum())
        return 1 - ratio, float(np.std(off - ratio * spread) / (spread.mean() * math.sqrt(n)))
    positives = int((truth == 1).sum())
    negatives = n - positives
    if not positives or not negatives:
        return None, None
    from scipy.stats import rankdata

    ranks = rankdata(output[:, 1])[truth == 1].sum()
    auc = float((ranks - positives * (positives + 1) / 2) / (positives * negatives))
    one, two = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (one - auc**2) + (negatives - 1) * (two - auc**2)
    return auc, math.sqrt(max(variance, 0.0) / (positives * negatives))


def _calibration_error(said: Array, right: npt.NDArray[np.bool_]) -> float:
    order = np.argsort(said, kind="stable")
    bins = np.array_split(order, min(BINS, len(order)))
    return float(sum(len(b) * abs(said[b].mean() - right[b].mean()) for b in bins) / len(order))
