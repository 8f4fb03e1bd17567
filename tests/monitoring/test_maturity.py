"""When is a row old enough to be judged by its label?"""

from __future__ import annotations

import numpy as np
import pytest

from monitoring.maturity import FEWEST, delay, measure


def stream(late: np.ndarray, span: float, *, labelled: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """Moments of answers evenly over `span` seconds, and of the labels that are there at its end."""
    answered = np.linspace(0, span, len(late))
    told = np.random.default_rng(1).random(len(late)) < labelled
    return answered, np.where(told & (answered + late <= span), answered + late, np.nan)


def early_positives(rows: int) -> np.ndarray:
    """A third is told at once (a cancellation), the others after a stay of 800 seconds."""
    random = np.random.default_rng(0)
    return np.where(random.random(rows) < 0.3, random.exponential(20, rows), 800 + random.normal(0, 20, rows))


@pytest.mark.parametrize("span", [1_000, 2_000, 50_000])
@pytest.mark.parametrize(
    "late",
    [np.full(5_000, 500.0), np.random.default_rng(0).uniform(0, 900, 5_000), early_positives(5_000)],
    ids=["always the same", "even", "positives early"],
)
def test_the_delay_is_found_although_new_rows_can_only_show_short_ones(late: np.ndarray, span: float) -> None:
    found = delay(*stream(late, span), span)
    assert found == pytest.approx(np.quantile(late, 0.99), rel=0.02)


def test_a_mean_of_what_is_known_would_be_fooled_by_early_positives() -> None:
    late = early_positives(5_000)
    answered, known = stream(late, 1_000)
    naive = np.nanquantile(known - answered, 0.5)
    assert naive < 100 < 800 < (delay(answered, known, 1_000) or 0)


def test_rows_are_mature_when_their_age_has_the_delay() -> None:
    answered, known = stream(np.full(1_000, 100.0), 1_000, labelled=1.0)
    found = measure(answered, known, 1_000)
    assert found.measured and found.delay_s == pytest.approx(100)
    assert found.coverage == pytest.approx(1.0)
    assert found.waiting == pytest.approx(100, abs=1)
    assert (answered < found.matured_until).sum() == 1_000 - found.waiting


def test_a_setting_is_taken_as_it_is() -> None:
    answered, known = stream(np.full(1_000, 100.0), 1_000)
    found = measure(answered, known, 1_000, setting=250.0)
    assert (found.delay_s, found.measured, found.waiting) == (250.0, False, 250)


def test_with_few_labels_it_is_said_to_be_unknown() -> None:
    answered = np.arange(100.0)
    known = np.full(100, np.nan)
    known[: FEWEST - 1] = 50.0
    assert delay(answered, known, 100) is None
    assert not measure(answered, known, 100).measured
    assert measure(np.array([]), np.array([]), 100).coverage is None


def test_the_first_late_labels_are_enough_to_wait_for_the_others() -> None:
    late = early_positives(5_000)
    found = []
    for now in range(700, 1_000, 5):
        answered = np.arange(float(now))
        known = np.where(answered + late[:now] <= now, answered + late[:now], np.nan)
        if (known - answered > 500).sum() >= 10:
            found.append(measure(answered, known, now).delay_s)
    assert len(found) > 20 and min(found) > 700


def test_labels_from_before_their_prediction_count_as_known_at_once() -> None:
    answered = np.arange(1_000.0)
    assert delay(answered, answered - 10, 1_000) == 0.0
