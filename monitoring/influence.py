"""Each metric as a value and the influence of every row on it, so that one theory serves all of them. NumPy alone.

The influence of row i is what the metric would gain, times n, if the row were counted once more (Hampel 1974). Larger
is better for all of them: losses and errors come negated. The AUC's are its placement values (DeLong et al. 1988).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from monitoring.evidence import Influences

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]


def of_classes(metric: str, truth: npt.NDArray[np.int64], chances: Array) -> Influences | None:
    """A metric of `monitoring.quality` for n class numbers (0 to K - 1; 1 is positive) and n by K probabilities.

    None when these rows do not define it: no rows, or one class only for `auc`, no positive at all for `f1`.
    """
    n = len(truth)
    if not n:
        return None
    if metric == "auc":
        return _auc(truth == 1, chances[:, 1])
    if metric in ("f1", "f1_macro"):
        return _f1(truth, chances.argmax(axis=1), range(chances.shape[1]) if metric == "f1_macro" else (1,))
    if metric == "accuracy":
        each = (chances.argmax(axis=1) == truth).astype(np.float64)
    elif metric == "log_loss":
        each = np.log(np.clip(chances[np.arange(n), truth], 1e-15, 1.0))
    else:
        each = -((chances[:, 1] - truth) ** 2)
    value = float(each.mean())
    return Influences(value, each - value)


def of_numbers(metric: str, truth: Array, answers: Array) -> Influences | None:
    """A metric of `monitoring.quality`, or `mse`, for n values and n predictions.

    None without rows, and for `r2` of a constant target.
    """
    n = len(truth)
    if not n:
        return None
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        errors = answers - truth
        squares = errors**2
        if metric == "mse":
            found = Influences(-float(squares.mean()), squares.mean() - squares)
        elif metric == "mae":
            found = Influences(-float(np.abs(errors).mean()), -(np.abs(errors) - np.abs(errors).mean()))
        elif metric == "rmse":
            root = float(np.sqrt(squares.mean()))
            found = Influences(-root, -(squares - root**2) / (2 * root) if root else np.zeros(n))
        else:
            around = (truth - truth.mean()) ** 2
            total = float(around.mean())
            value = 1 - float(squares.mean()) / total if total else float("nan")
            found = Influences(value, (around * (1 - value) - squares) / total if total else np.zeros(n))
    return found if np.isfinite(found.value) and np.isfinite(found.rows).all() else None


def _auc(positive: npt.NDArray[np.bool_], scores: Array) -> Influences | None:
    n, positives = len(scores), int(positive.sum())
    if not 0 < positives < n:
        return None
    values, places = np.unique(scores, return_inverse=True)
    ups = np.bincount(places, weights=positive, minlength=len(values))
    downs = np.bincount(places, weights=~positive, minlength=len(values))
    below = np.cumsum(downs) - downs / 2  # negatives a positive of this score beats, ties by half
    above = positives - (np.cumsum(ups) - ups / 2)
    placed = np.where(positive, below[places] / (n - positives), above[places] / positives)
    value = float(placed[positive].mean())
    share = positives / n
    return Influences(value, (placed - value) / np.where(positive, share, 1 - share))


def _f1(
    truth: npt.NDArray[np.int64], answer: npt.NDArray[np.intp], classes: range | tuple[int, ...]
) -> Influences | None:
    values, rows = [], np.zeros(len(truth))
    for one in classes:
        is_, said = truth == one, answer == one
        total = float((is_.astype(float) + said).mean())
        if not total:
            continue
        value = 2 * float((is_ & said).mean()) / total
        values.append(value)
        rows += (2 * (is_ & said) - value * (is_.astype(float) + said)) / total
    return Influences(float(np.mean(values)), rows / len(values)) if values else None
