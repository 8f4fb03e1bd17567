"""Held, lost or not known yet: said as often as one looks, and seldom wrong."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss, r2_score, roc_auc_score

from monitoring.evidence import Fall, Influences, boundary, judge, spread, while_doubling
from monitoring.influence import of_classes, of_numbers

ALLOWED = 0.1
ONE_LOOK = 6.18 / ALLOWED**2
"""Rows with which one look of a test with 5 % false alarms finds a fall of twice the allowed one in 80 of 100 cases."""


def looks(rows: np.ndarray, most: int = 20_000) -> list[tuple[int, Fall]]:
    """What is said every 100 rows of a stream whose metric is the mean of these numbers, against the level 0."""
    said = []
    for end in range(100, len(rows) + 1, 100):
        begin = max(0, end - most)
        part = rows[begin:end]

        def measured(n: int, part: np.ndarray = part) -> Influences:
            return Influences(float(part[-n:].mean()), part[-n:] - part[-n:].mean())

        said.append((end, judge(measured, len(part), begin, 0.0, 0.01, ALLOWED)))
    return said


def test_a_stream_that_stays_as_it_is_is_held_and_never_lost() -> None:
    random = np.random.default_rng(0)
    states = [fall.state for _ in range(20) for _, fall in looks(random.normal(0, 1, 10_000))]
    assert states.count("lost") == 0
    assert states.count("held") > len(states) / 2
    assert states[0] == "not known yet"


@pytest.mark.parametrize("before", [0, 6_000])
def test_a_fall_of_twice_the_allowed_is_lost_soon_after_it_began(before: int) -> None:
    random = np.random.default_rng(1)
    needed = []
    for _ in range(20):
        rows = random.normal(0, 1, before + 4_000)
        rows[before:] -= 2 * ALLOWED
        needed.append(next((end - before for end, fall in looks(rows) if fall.state == "lost"), 10**9))
    assert min(needed) > 0
    assert np.quantile(needed, 0.8) <= 3 * ONE_LOOK


def test_a_fall_of_what_is_allowed_is_never_held() -> None:
    random = np.random.default_rng(2)
    assert all(fall.state != "held" for _ in range(20) for _, fall in looks(random.normal(-ALLOWED, 1, 8_000)))


def test_it_says_how_many_rows_more_will_tell() -> None:
    random = np.random.default_rng(3)
    _, fall = looks(random.normal(0, 1, 400))[-1]
    assert fall.state == "not known yet"
    assert fall.low is not None and fall.high is not None and fall.low < 0 < ALLOWED < fall.high
    assert fall.more_rows is not None and 100 < fall.more_rows < 5_000


def test_rows_that_resemble_their_neighbours_are_fewer_than_they_look() -> None:
    random = np.random.default_rng(4)
    repeated = np.repeat(random.normal(0, 1, 100), 50)
    assert spread(repeated) > 4 * spread(random.normal(0, 1, 5_000))


def test_nothing_defined_is_not_known() -> None:
    assert judge(lambda n: None, 500, 0, 0.8, 0.01, ALLOWED).state == "not known yet"
    assert judge(lambda n: None, 0, 0, 0.8, 0.01, ALLOWED) == Fall("not known yet", 0)


def test_no_look_exceeds_the_boundary_more_often_than_it_may() -> None:
    random = np.random.default_rng(5)
    sums = np.cumsum(random.normal(0, 1, (2_000, 3_000)), axis=1)
    rows = np.arange(1, 3_001)
    limits = np.array([boundary(int(n), 0.05, 300) for n in rows]) * np.sqrt(rows)
    assert (sums[:, 100:] > limits[100:]).any(axis=1).mean() <= 0.05


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_no_look_while_rows_double_exceeds_its_boundary_more_often_than_it_may_and_little_is_given_away(
    alpha: float,
) -> None:
    random = np.random.default_rng(6)
    sums = random.normal(0, 10, (20_000, 1)) + np.cumsum(random.normal(0, 1, (20_000, 100)), axis=1)
    exceeded = (sums > while_doubling(alpha) * np.sqrt(np.arange(101, 201))).any(axis=1).mean()
    assert 0.75 * alpha < exceeded <= 1.05 * alpha
    assert while_doubling(alpha) < 0.9 * boundary(100, alpha, 100)


def test_values_are_those_of_scikit_learn_and_influences_say_what_a_row_moves() -> None:
    random = np.random.default_rng(6)
    truth = random.integers(0, 2, 500)
    p = np.clip(0.3 * truth + random.random(500) * 0.7, 0.01, 0.99).round(2)
    chances = np.column_stack([1 - p, p])
    expected = {
        "auc": roc_auc_score(truth, p),
        "accuracy": accuracy_score(truth, p > 0.5),
        "f1": f1_score(truth, p > 0.5),
        "log_loss": -log_loss(truth, p),
        "brier": -brier_score_loss(truth, p),
    }
    for metric, value in expected.items():
        found = of_classes(metric, truth, chances)  # type: ignore[arg-type]
        assert found is not None
        assert found.value == pytest.approx(value), metric
        assert found.rows.mean() == pytest.approx(0, abs=1e-9)
        once_more = of_classes(metric, np.append(truth, truth[7]), np.vstack([chances, chances[7]]))  # type: ignore[arg-type]
        assert once_more is not None
        assert (once_more.value - value) * 500 == pytest.approx(found.rows[7], abs=0.02), metric


def test_the_same_for_numbers() -> None:
    random = np.random.default_rng(7)
    truth = random.normal(5, 2, 500)
    answers = truth + random.normal(0.1, 1, 500)
    found = of_numbers("r2", truth, answers)
    assert found is not None and found.value == pytest.approx(r2_score(truth, answers))
    for metric in ("r2", "mae", "rmse"):
        found = of_numbers(metric, truth, answers)  # type: ignore[arg-type]
        more = of_numbers(metric, np.append(truth, truth[3]), np.append(answers, answers[3]))  # type: ignore[arg-type]
        assert found is not None and more is not None
        assert (more.value - found.value) * 500 == pytest.approx(found.rows[3], abs=0.03), metric


def test_the_influences_of_auc_give_its_standard_error() -> None:
    random = np.random.default_rng(8)
    values, errors = [], []
    for _ in range(300):
        truth = (random.random(400) < 0.2).astype(int)
        p = 1 / (1 + np.exp(-(random.normal(0, 1, 400) + 1.2 * truth)))
        found = of_classes("auc", truth, np.column_stack([1 - p, p]))
        assert found is not None
        values.append(found.value)
        errors.append(found.rows.std() / 20)
    assert np.std(values) == pytest.approx(np.mean(errors), rel=0.12)


@pytest.mark.parametrize("truth", [np.zeros(50, int), np.ones(50, int), np.zeros(0, int)], ids=["0", "1", "none"])
def test_one_class_only_has_no_auc(truth: np.ndarray) -> None:
    assert of_classes("auc", truth, np.full((len(truth), 2), 0.5)) is None
    assert of_numbers("r2", np.ones(len(truth)), np.ones(len(truth))) is None
