from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn import metrics as sk

from monitoring.quality import METRICS, Quality, QualityPolicy, chosen_metric, measure

POLICY = QualityPolicy()
BINARY = (0, 1)
COLORS = ("blue", "green", "red")


def window(rows: int, seed: int, *, lost: float = 0.0) -> tuple[Any, Any, Any]:
    """Labels, predictions and calibrated scores; a share `lost` of the labels is drawn without regard to the score."""
    rng = np.random.default_rng((rows, seed))
    scores = rng.beta(0.6, 0.9, rows)
    labels = (rng.random(rows) < np.where(rng.random(rows) < lost, 0.4, scores)).astype(np.int64)
    return labels, (scores >= 0.5).astype(np.int64), scores


def numbers(rows: int, seed: int, *, noise: float = 1.0) -> tuple[Any, Any]:
    rng = np.random.default_rng((rows, seed))
    labels = rng.normal(10, 3, rows)
    return labels, labels + rng.normal(0, noise, rows)


def test_binary_metrics_are_those_of_scikit_learn() -> None:
    labels, predictions, scores = window(1_000, 1)
    quality = measure(labels, predictions, scores, "binary", BINARY, POLICY)
    assert quality.metrics == pytest.approx(
        {
            "auc": sk.roc_auc_score(labels, scores),
            "accuracy": sk.accuracy_score(labels, predictions),
            "f1": sk.f1_score(labels, predictions),
            "log_loss": sk.log_loss(labels, scores),
            "brier": sk.brier_score_loss(labels, scores),
            "positive_rate": labels.mean(),
            "predicted_positive_rate": predictions.mean(),
        }
    )
    assert (quality.metric, quality.value, quality.rows) == ("auc", quality.metrics["auc"], 1_000)
    assert (quality.usable, quality.higher_is_better, quality.kind, quality.note) == (True, True, "measured", "")
    assert Quality.from_json(quality.to_json()) == quality


def test_multiclass_metrics_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    chances = rng.dirichlet([1, 1, 2], 600)
    labels = np.array([COLORS[rng.choice(3, p=row)] for row in chances], dtype=object)
    predictions = np.array(COLORS, dtype=object)[chances.argmax(axis=1)]
    rows = np.empty(600, dtype=object)
    rows[:] = list(chances)
    quality = measure(labels, predictions, rows, "multiclass", COLORS, POLICY)
    assert quality.metrics == pytest.approx(
        {
            "accuracy": sk.accuracy_score(labels, predictions),
            "f1_macro": sk.f1_score(labels, predictions, average="macro"),
            "log_loss": sk.log_loss(labels, chances, labels=list(COLORS)),
        }
    )
    assert quality.value == quality.metrics["accuracy"]


def test_regression_metrics_are_those_of_scikit_learn() -> None:
    labels, predictions = numbers(500, 3)
    quality = measure(labels, predictions, None, "regression", (), POLICY)
    assert quality.metrics == pytest.approx(
        {
            "r2": sk.r2_score(labels, predictions),
            "mae": sk.mean_absolute_error(labels, predictions),
            "rmse": sk.root_mean_squared_error(labels, predictions),
            "bias": (predictions - labels).mean(),
        }
    )
    assert quality.value == quality.metrics["r2"]


@pytest.mark.parametrize("metric", METRICS["binary"])
def test_the_standard_error_of_a_binary_metric_is_the_spread_of_fresh_windows(metric: Any) -> None:
    policy = QualityPolicy(metric=metric)
    qualities = [measure(*window(400, seed), "binary", BINARY, policy) for seed in range(60)]
    spread = np.std([quality.value for quality in qualities if quality.value is not None], ddof=1)
    assert np.mean([quality.error for quality in qualities]) == pytest.approx(spread, rel=0.35)


@pytest.mark.parametrize("metric", METRICS["regression"])
def test_the_standard_error_of_a_regression_metric_is_the_spread_of_fresh_windows(metric: Any) -> None:
    policy = QualityPolicy(metric=metric)
    qualities = [measure(*numbers(400, seed), None, "regression", (), policy) for seed in range(60)]
    spread = np.std([quality.value for quality in qualities if quality.value is not None], ddof=1)
    assert np.mean([quality.error for quality in qualities]) == pytest.approx(spread, rel=0.35)


def test_labels_and_classes_match_across_ints_floats_and_booleans() -> None:
    quality = measure([1.0, 0.0, True, np.int64(0)], [True, False, 1, 1.0], None, "binary", (False, True), POLICY)
    assert quality.metrics["accuracy"] == 0.75


@pytest.mark.parametrize("label", [0, 1])
def test_a_window_of_one_class_has_no_auc_and_says_so(label: int) -> None:
    _, predictions, scores = window(200, 4)
    quality = measure(np.full(200, label), predictions, scores, "binary", BINARY, POLICY)
    assert (quality.value, quality.error, quality.usable) == (None, None, False)
    assert "AUC is undefined: all 200 labels are of one class" in quality.note
    assert {"accuracy", "log_loss", "brier", "positive_rate"} <= quality.metrics.keys()


def test_a_window_without_positives_anywhere_has_no_f1() -> None:
    quality = measure([0] * 200, [0] * 200, None, "binary", BINARY, QualityPolicy(metric="f1"))
    assert (quality.value, quality.usable) == (None, False)
    assert quality.note == "f1 is undefined: no positive label and no positive prediction; no scores were given"


def test_a_constant_target_has_no_r2_and_keeps_its_errors() -> None:
    quality = measure([5.0] * 200, [6.0] * 200, None, "regression", (), POLICY)
    assert (quality.value, quality.usable, quality.note) == (None, False, "R² is undefined: all 200 labels are 5")
    assert quality.metrics == {"mae": 1.0, "rmse": 1.0, "bias": 1.0}


@pytest.mark.parametrize(
    ("task", "classes", "scores"),
    [("binary", BINARY, []), ("multiclass", COLORS, []), ("regression", (), None), ("binary", BINARY, None)],
)
def test_an_empty_window_is_a_quality_without_value(task: Any, classes: Any, scores: Any) -> None:
    quality = measure([], [], scores, task, classes, POLICY)
    assert (quality.value, quality.metrics, quality.rows, quality.usable) == (None, {}, 0, False)
    assert quality.note == "no row has both a label and a prediction"


def test_rows_without_label_prediction_or_score_are_left_out() -> None:
    labels, predictions, scores = window(300, 5)
    holed, gone = labels.astype(object), scores.copy()
    holed[:50] = None
    gone[50:60] = np.nan
    quality = measure(holed, predictions, gone, "binary", BINARY, POLICY)
    assert quality.metrics["accuracy"] == sk.accuracy_score(labels[50:], predictions[50:])
    assert quality.metrics["auc"] == pytest.approx(sk.roc_auc_score(labels[60:], scores[60:]))
    assert (quality.rows, quality.note) == (240, "10 rows have no score")


def test_a_window_without_any_score_still_has_its_accuracy() -> None:
    labels, predictions, _ = window(300, 5)
    quality = measure(labels, predictions, np.full(300, np.nan), "binary", BINARY, POLICY)
    assert (quality.value, quality.usable) == (None, False)
    assert quality.metrics["accuracy"] == sk.accuracy_score(labels, predictions)
    accuracy = QualityPolicy(metric="accuracy")
    assert measure(labels, predictions, None, "binary", BINARY, accuracy).usable


def test_a_label_of_a_class_the_model_lacks_is_a_wrong_answer() -> None:
    rows: Any = [None, [0.2, 0.2, 0.6], [0.1, 0.8, 0.1], [0.7, 0.2, 0.1]]
    quality = measure(
        ["blue", "red", "green", "pink"], ["blue", "red", "green", "blue"], rows, "multiclass", COLORS, POLICY
    )
    assert quality.metrics["accuracy"] == 0.75
    assert quality.metrics["f1_macro"] == 1.0
    assert quality.note.startswith("1 labels are of a class the model does not have; 1 rows have no score")


def test_numbers_that_overflow_leave_a_metric_out_instead_of_failing() -> None:
    quality = measure([1.0, 2.0, 3.0], [1e300, -1e300, 1e300], None, "regression", (), POLICY)
    assert quality.value is None and "rmse" not in quality.metrics
    assert Quality.from_json(quality.to_json()) == quality


def test_too_few_labels_have_a_value_and_no_verdict() -> None:
    labels, predictions, scores = window(99, 6, lost=1.0)
    quality = measure(labels, predictions, scores, "binary", BINARY, POLICY)
    assert quality.value is not None and not quality.usable
    assert quality.note == "99 rows; a verdict needs 100"


def test_what_cannot_be_measured_is_refused_with_its_reason() -> None:
    with pytest.raises(ValueError, match="metric r2 is not for binary; choose auto or one of auc, accuracy"):
        chosen_metric("binary", QualityPolicy(metric="r2"))
    with pytest.raises(ValueError, match="3 labels, 2 predictions: they must be as many"):
        measure([1, 0, 1], [1, 0], None, "binary", BINARY, POLICY)
    with pytest.raises(ValueError, match="a binary task has two classes"):
        measure([1], [1], None, "binary", (0, 1, 2), POLICY)
    with pytest.raises(ValueError, match=r"scores\[1\] has 2 probabilities for 3 classes"):
        measure(["red"] * 2, ["red"] * 2, [[0.2, 0.2, 0.6], [0.5, 0.5]], "multiclass", COLORS, POLICY)
    with pytest.raises(ValidationError, match="max_fal"):
        QualityPolicy(max_fal=0.1)  # type: ignore[call-arg]
