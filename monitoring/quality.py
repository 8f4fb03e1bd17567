"""How good is the model? Quality measured from labels; whether it is still what it was says `monitoring/verdict.py`.

`measure` never raises for what a window may hold: one class only, a constant target, no rows, missing scores. A metric
that has no value there is left out of `Quality.metrics`, `Quality.value` is None when it was the chosen one, and
`Quality.note` says why. scikit-learn is imported inside the functions that use it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat

from monitoring.feature import Task

Metric = Literal["auc", "accuracy", "f1", "f1_macro", "log_loss", "brier", "r2", "mae", "rmse"]
Classes = Sequence[str | int | bool]
Array = npt.NDArray[np.float64]
_Codes = npt.NDArray[np.int64]

METRICS: Final[dict[Task, tuple[Metric, ...]]] = {
    "binary": ("auc", "accuracy", "f1", "log_loss", "brier"),
    "multiclass": ("accuracy", "f1_macro", "log_loss"),
    "regression": ("r2", "mae", "rmse"),
}
"""Metrics that can be chosen for each task; the first is the one that `auto` means."""

LOWER_IS_BETTER: Final = frozenset({"log_loss", "brier", "mae", "rmse"})

_RESAMPLES: Final = 200
_UNKNOWN: Final = -1  # code of a class the model does not have
_ABSENT: Final = -2  # code of a missing label or prediction


class QualityPolicy(BaseModel):
    """Which metric counts, and how much of it may be lost. Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Literal["auto"] | Metric = Field(
        "auto",
        description="metric that is watched; auto is AUC for binary (needs no cut-off), accuracy for multiclass, "
        "R² for regression",
    )
    window_rows: int = Field(
        1_000, ge=1, description="newest labelled rows measured; 1,000 know an AUC of 0.8 to 0.015 (standard error)"
    )
    judged_rows: int = Field(
        20_000,
        ge=100,
        description="newest matured rows of the champion that tell whether its quality held; a rare class needs many",
    )
    min_labels: int = Field(
        100, ge=1, description="labelled rows a verdict needs; at 100 an AUC of 0.8 is known to 0.045 (standard error)"
    )
    max_fall: float = Field(
        0.05, ge=0, description="fall of AUC, accuracy, F1, macro F1 or R², absolute, that is a loss of quality"
    )
    max_rise: float = Field(
        0.15,
        ge=0,
        description="rise of log loss, Brier score, MAE or RMSE that is a loss of quality, as a share of the "
        "champion's own: these have units",
    )
    label_delay: Literal["auto"] | NonNegativeFloat = Field(
        "auto",
        description="seconds after its answer from which a row is judged by its label; early labels are no sample of "
        "all. auto measures it from the record: 99 % of the labels that will ever come are there",
    )

    @property
    def delay_s(self) -> float | None:
        """`label_delay` in seconds; None when it is to be measured."""
        return None if self.label_delay == "auto" else self.label_delay


class Quality(msgspec.Struct, frozen=True):
    """How good predictions were."""

    metric: str
    value: float | None
    """The chosen metric; None when these rows do not define it."""
    higher_is_better: bool
    metrics: dict[str, float]
    """Every metric these rows define."""
    rows: int
    """Labelled rows measured."""
    error: float | None = None
    """Standard error of `value`."""
    kind: Literal["measured"] = "measured"
    usable: bool = False
    """Whether `value` exists and rests on at least `min_labels` rows."""
    note: str = ""

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, data: bytes) -> Quality:
        """Raises msgspec.ValidationError when `data` is not a Quality."""
        return msgspec.json.decode(data, type=cls)


def chosen_metric(task: Task, policy: QualityPolicy) -> Metric:
    """Name of the metric watched for a task. Raises ValueError when the policy names one that the task lacks."""
    if policy.metric == "auto":
        return METRICS[task][0]
    if policy.metric not in METRICS[task]:
        raise ValueError(f"metric {policy.metric} is not for {task}; choose auto or one of {', '.join(METRICS[task])}")
    return policy.metric


def measure(
    labels: Sequence[Any] | npt.NDArray[Any],
    predictions: Sequence[Any] | npt.NDArray[Any],
    scores: Sequence[Any] | npt.NDArray[Any] | None,
    task: Task,
    classes: Classes,
    policy: QualityPolicy,
    *,
    seed: int = 0,
) -> Quality:
    """Quality of predictions against labels.

    `labels` and `predictions` have n entries: classes, or numbers for a regression; a row where either is missing is
    left out. `scores` are the probabilities of `classes[1]` (binary: n, or n x 2), of all classes (multiclass: n x K,
    rows may be None), or None; rows with a missing score are left out of auc, log_loss and brier only. A label the
    model has no class for counts as a wrong answer in accuracy and is left out of the others, and is noted.

    Metrics: binary auc, accuracy, f1, log_loss, brier, positive_rate (of the labels), predicted_positive_rate;
    multiclass accuracy, f1_macro, log_loss; regression r2, mae, rmse, bias (mean of prediction minus label).
    Standard errors: AUC by Hanley & McNeil 1982; accuracy binomial with Agresti & Coull's two extra successes and
    failures; means of per-row losses by their deviation; f1, f1_macro and r2 by 200 bootstrap resamples drawn with
    `seed` (Efron 1979).

    Raises ValueError for lengths that differ, an unknown metric for the task, and classes that do not fit the task.
    """
    metric = chosen_metric(task, policy)
    if len(labels) != len(predictions) or (scores is not None and len(scores) != len(labels)):
        lengths = f"{len(labels)} labels, {len(predictions)} predictions"
        raise ValueError(f"{lengths}{'' if scores is None else f', {len(scores)} scores'}: they must be as many")
    rng = np.random.default_rng(seed)
    if task == "regression":
        return _measured_regression(as_floats(labels), as_floats(predictions), metric, policy, rng)
    _check_classes(task, classes)
    truth, answer = as_codes(labels, classes), as_codes(predictions, classes)
    chances = None if scores is None else as_chances(scores, len(classes))
    return _measured_classes(truth, answer, chances, task, metric, policy, rng)


def _measured_classes(
    truth: _Codes,
    answer: _Codes,
    chances: Array | None,
    task: Task,
    metric: Metric,
    policy: QualityPolicy,
    rng: np.random.Generator,
) -> Quality:
    from sklearn.metrics import roc_auc_score

    present = (truth != _ABSENT) & (answer != _ABSENT)
    truth, answer = truth[present], answer[present]
    n = len(truth)
    if not n:
        return _quality(metric, {}, {}, 0, policy, ["no row has both a label and a prediction"])
    notes = []
    metrics: dict[str, float] = {"accuracy": float((truth == answer).mean())}
    errors: dict[str, float] = {"accuracy": _accuracy_error(metrics["accuracy"], n)}
    known = truth != _UNKNOWN
    if not known.all():
        notes.append(f"{np.count_nonzero(~known)} labels are of a class the model does not have")
    truth, answer = truth[known], answer[known]
    if len(truth):
        if task == "binary":
            metrics["positive_rate"] = float((truth == 1).mean())
            metrics["predicted_positive_rate"] = float((answer == 1).mean())
        name = "f1" if task == "binary" else "f1_macro"
        value = _f1(truth, answer, np.ones(len(truth)), task)
        if value is None:
            notes.append(f"{name} is undefined: no positive label and no positive prediction")
        else:
            metrics[name] = value
            if metric == name:
                errors[name] = _f1_error(truth, answer, task, rng)
    if chances is None:
        return _quality(metric, metrics, errors, n, policy, [*notes, "no scores were given"])

    chances = chances[present][known]
    scored = np.isfinite(chances).all(axis=1)
    if not scored.all():
        notes.append(f"{np.count_nonzero(~scored)} rows have no score")
    truth, chances = truth[scored], chances[scored]
    if len(truth):
        losses = -np.log(np.clip(chances[np.arange(len(truth)), truth], 1e-15, 1.0))
        metrics["log_loss"], errors["log_loss"] = float(losses.mean()), _deviation_error(losses)
    if len(truth) and task == "binary":
        squares = (chances[:, 1] - truth) ** 2
        metrics["brier"], errors["brier"] = float(squares.mean()), _deviation_error(squares)
        positives = int(np.count_nonzero(truth == 1))
        if 0 < positives < len(truth):
            metrics["auc"] = float(roc_auc_score(truth, chances[:, 1]))
            errors["auc"] = _auc_error(metrics["auc"], positives, len(truth) - positives)
        else:
            notes.append(f"AUC is undefined: all {len(truth)} labels are of one class")
    rows = len(truth) if metric in ("auc", "log_loss", "brier") else n
    return _quality(metric, metrics, errors, rows, policy, notes)


def _measured_regression(
    truth: Array, answer: Array, metric: Metric, policy: QualityPolicy, rng: np.random.Generator
) -> Quality:
    present = np.isfinite(truth) & np.isfinite(answer)
    truth, answer = truth[present], answer[present]
    n = len(truth)
    if not n:
        return _quality(metric, {}, {}, 0, policy, ["no row has both a label and a prediction"])
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is left out by _quality
        metrics, errors = _regression_metrics(truth, answer - truth, metric, rng)
    notes = [] if "r2" in metrics else [f"R² is undefined: all {n} labels are {truth[0]:g}"]
    return _quality(metric, metrics, errors, n, policy, notes)


def _regression_metrics(
    truth: Array, residuals: Array, metric: Metric, rng: np.random.Generator
) -> tuple[dict[str, float], dict[str, float]]:
    rmse = float(np.sqrt((residuals**2).mean()))
    metrics = {"mae": float(np.abs(residuals).mean()), "rmse": rmse, "bias": float(residuals.mean())}
    errors = {"mae": _deviation_error(np.abs(residuals))}
    # Delta method: the error of a square root is that of its argument over twice the root.
    errors["rmse"] = _deviation_error(residuals**2) / (2 * rmse) if rmse else 0.0
    if truth.min() < truth.max():
        metrics["r2"] = _r2(truth, residuals)
        if metric == "r2":
            errors["r2"] = _r2_error(truth, residuals, rng)
    return metrics, errors


def _quality(
    metric: Metric,
    metrics: dict[str, float],
    errors: dict[str, float],
    rows: int,
    policy: QualityPolicy,
    notes: list[str],
) -> Quality:
    metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
    value = metrics.get(metric)
    error = errors.get(metric)
    if value is not None and rows < policy.min_labels:
        notes = [*notes, f"{rows} rows; a verdict needs {policy.min_labels}"]
    return Quality(
        metric=metric,
        value=value,
        higher_is_better=metric not in LOWER_IS_BETTER,
        metrics=metrics,
        rows=rows,
        error=error if error is not None and math.isfinite(error) else None,
        usable=value is not None and rows >= policy.min_labels,
        note="; ".join(notes),
    )


def _check_classes(task: Task, classes: Classes) -> None:
    if len(classes) < 2 or (task == "binary" and len(classes) != 2):
        raise ValueError(
            f"a {task} task has {'two' if task == 'binary' else 'two or more'} classes, got {list(classes)}"
        )


def as_codes(values: Sequence[Any] | npt.NDArray[Any], classes: Classes) -> _Codes:
    """Index of each value's class; -1 for a class that is not there, -2 for a missing value.

    1, 1.0, numpy's 1 and True are one class, as labels come back from a window with gaps as floats.
    """
    index: dict[Any, int] = {name: position for position, name in enumerate(classes)}
    listed = values.tolist() if isinstance(values, np.ndarray) else list(values)
    return np.fromiter(
        (_ABSENT if value is None or value != value else index.get(value, _UNKNOWN) for value in listed),
        np.int64,
        len(listed),
    )


def as_floats(values: Sequence[Any] | npt.NDArray[Any]) -> Array:
    """Numbers; NaN for a missing one."""
    if isinstance(values, np.ndarray) and values.dtype == np.float64:
        return values
    listed = values.tolist() if isinstance(values, np.ndarray) else list(values)
    return np.array([np.nan if value is None else value for value in listed], dtype=np.float64)


def as_chances(scores: Sequence[Any] | npt.NDArray[Any], width: int) -> Array:
    """Probabilities as an n x K array; missing rows are NaN."""
    if isinstance(scores, np.ndarray) and scores.ndim == 2 and scores.shape[1] == width:
        return scores.astype(np.float64, copy=False)
    listed = list(scores)
    if width == 2 and all(row is None or np.ndim(row) == 0 for row in listed):
        p = as_floats(np.asarray(listed, dtype=object))
        return np.column_stack([1 - p, p])
    chances = np.full((len(listed), width), np.nan)
    for position, row in enumerate(listed):
        if row is None or np.ndim(row) == 0:
            continue
        if len(row) != width:
            raise ValueError(f"scores[{position}] has {len(row)} probabilities for {width} classes")
        chances[position] = [np.nan if value is None else value for value in row]
    return chances


def _auc_error(auc: float, positives: float, negatives: float) -> float:
    """Standard error of an area under the ROC curve (Hanley & McNeil 1982, Radiology 143:29)."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (q1 - auc**2) + (negatives - 1) * (q2 - auc**2)
    return math.sqrt(max(variance, 0.0) / (positives * negatives))


def _accuracy_error(accuracy: float, rows: int) -> float:
    """Standard error of a share (Agresti & Coull 1998: two more right and two more wrong, so that 0 is not certain)."""
    share = (accuracy * rows + 2) / (rows + 4)
    return math.sqrt(share * (1 - share) / (rows + 4))


def _deviation_error(losses: Array) -> float:
    return float(losses.std(ddof=1) / math.sqrt(len(losses))) if len(losses) > 1 else 0.0


def _f1(truth: _Codes, answer: _Codes, weights: npt.NDArray[Any], task: Task) -> float | None:
    """F1 of class 1 (binary), or the plain mean over the classes that occur (multiclass, as scikit-learn does).

    `weights` is how often each pair of label and prediction occurs.
    """
    width = int(max(truth.max(), answer.max())) + 1
    right, known = truth == answer, answer >= 0
    hits = np.bincount(truth[right], weights[right], minlength=width)
    total = np.bincount(truth, weights, minlength=width) + np.bincount(answer[known], weights[known], minlength=width)
    if task == "binary":
        return float(2 * hits[1] / total[1]) if width > 1 and total[1] else None
    return float((2 * hits[total > 0] / total[total > 0]).mean())


def _f1_error(truth: _Codes, answer: _Codes, task: Task, rng: np.random.Generator) -> float:
    """Deviation of F1 over bootstrap resamples, drawn as counts of the cells of the confusion matrix."""
    cells, counts = np.unique(np.column_stack([truth, answer]), axis=0, return_counts=True)
    draws = rng.multinomial(len(truth), counts / len(truth), size=_RESAMPLES)
    return float(np.std([_f1(cells[:, 0], cells[:, 1], draw, task) or 0.0 for draw in draws], ddof=1))


def _r2(truth: Array, residuals: Array) -> float:
    spread = float(((truth - truth.mean()) ** 2).sum())
    return 1 - float((residuals**2).sum()) / spread if spread else math.nan


def _r2_error(truth: Array, residuals: Array, rng: np.random.Generator) -> float:
    n = len(truth)
    values = []
    for _ in range(_RESAMPLES):
        rows = rng.integers(0, n, n)
        values.append(_r2(truth[rows], residuals[rows]))
    return float(np.nanstd(values, ddof=1))
