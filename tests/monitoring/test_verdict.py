"""Held, lost or not known yet: of classes and numbers, in metric and loss, and the sentence that says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from monitoring.maturity import measure as maturity
from monitoring.quality import QualityPolicy
from monitoring.verdict import FEWEST_TO_HOLD, Outputs, QualityVerdict, judge_quality

POLICY = QualityPolicy()


def stream(rows: int, seed: int, positives: float = 0.5, flipped_from: int | None = None) -> Outputs:
    """Answers of a model that is right about its chances; from a row on the concept may be the opposite."""
    random = np.random.default_rng((rows, seed))
    truth = random.random(rows) < positives
    score = random.normal(0, 1, rows) + 1.5 * truth
    if flipped_from is not None:
        score[flipped_from:] = random.normal(0, 1, rows - flipped_from) + 1.5 * ~truth[flipped_from:]
    p = 1 / (1 + np.exp(-(np.log(positives / (1 - positives)) + 1.5 * score - 1.5**2 / 2)))
    return Outputs(truth, p > 0.5, np.column_stack([1 - p, p]))


def part(given: Outputs, rows: Any) -> Outputs:
    scores = None if given.scores is None else given.scores[rows]
    return Outputs(given.labels[rows], given.answers[rows], scores)


def judged(given: Outputs, holdout: Outputs, **more: Any) -> QualityVerdict:
    return judge_quality(given, holdout, "binary", (False, True), POLICY, **more)


def test_a_quality_that_stays_is_held_in_metric_and_loss() -> None:
    verdict = judged(stream(6_000, 1), stream(2_000, 2))

    assert verdict.state == "held"
    assert [(each.metric, each.fall.state) for each in verdict.compared] == [("auc", "held"), ("log_loss", "held")]
    assert verdict.words.startswith("quality held: served AUC 0.8")
    assert verdict.words.endswith(" at most, 0.05 allowed") and " rows answered, 0.8" in verdict.words
    assert verdict.compared[1].allowed == pytest.approx(0.15 * (verdict.compared[1].level or 0))


def test_a_lost_relation_is_lost_and_says_by_how_much_at_least() -> None:
    verdict = judged(stream(2_000, 1, flipped_from=1_000), stream(2_000, 2), output="raw")

    assert verdict.state == "lost"
    assert verdict.words.startswith("quality lost: raw AUC 0.")
    assert "on the champion's holdout; the fall is at least 0." in verdict.words


def test_probabilities_that_are_wrong_in_an_order_that_is_right_are_lost_in_loss_alone() -> None:
    given = stream(4_000, 1)
    p = np.clip(given.scores[:, 1] ** 4, 1e-6, 1 - 1e-6)  # type: ignore[index,operator,call-overload]
    verdict = judged(Outputs(given.labels, given.answers, np.column_stack([1 - p, p])), stream(2_000, 2))

    assert verdict.state == "lost"
    assert [each.fall.state for each in verdict.compared] == ["held", "lost"]
    assert "served log loss" in verdict.words and "the rise is at least" in verdict.words


def test_what_is_not_known_is_said_with_what_chance_can_do_and_how_many_labels_will_tell() -> None:
    verdict = judged(stream(1_000, 1, positives=0.02), stream(30_000, 2, positives=0.02))

    assert verdict.state == "not known yet"
    positives = int(np.sum(stream(1_000, 1, positives=0.02).labels))
    assert f"on 1,000 rows answered ({positives} of them positive)" in verdict.words
    assert "a fall of up to 0." in verdict.words and verdict.words.endswith(" more labels will tell")
    small = judged(stream(20_000, 1), stream(150, 2))
    assert small.state == "not known yet" and small.words.endswith("; the holdout is too small to tell")


def test_too_few_rows_or_labels_of_one_class_only_say_so() -> None:
    holdout = stream(2_000, 2)
    few = judged(part(stream(2_000, 1), slice(40)), holdout)
    assert few.words == "quality not known yet: 40 rows answered have a matured label, 100 are needed"
    assert judged(part(stream(2_000, 1), slice(0)), holdout).words.startswith("quality not known yet: 0 rows")
    rare = judged(stream(1_000, 1, positives=0.004), holdout)
    found = int(np.sum(stream(1_000, 1, positives=0.004).labels))
    assert rare.words == f"quality not known yet: {found} positives among 1,000 rows answered, 10 are needed"
    alone = part(stream(4_000, 1), stream(4_000, 1).labels)
    assert "0 negatives among" in judged(alone, holdout).words
    unlike = judged(stream(1_000, 1), alone)
    assert unlike.words == (
        "quality not known yet: AUC is not defined on the champion's holdout, there is nothing to compare with"
    )


def test_a_rare_class_whose_concept_flips_is_never_held_afterwards_and_soon_lost() -> None:
    holdout = stream(5_000, 0, positives=0.014)
    for seed in range(1, 4):
        rows = stream(16_000, seed, positives=0.014, flipped_from=8_000)
        told = [(end, judged(part(rows, slice(end)), holdout).state) for end in range(8_200, 16_001, 200)]
        first = next(end for end, state in told if state == "lost")
        assert np.sum(rows.labels[8_000:first]) <= 60
        assert "held" not in {state for _, state in told}


def test_a_level_from_few_positives_is_too_small_to_say_that_quality_held() -> None:
    holdout = stream(2_000, 0, positives=0.014)
    truth = stream(20_000, 1, positives=0.014).labels
    p = np.where(truth, 0.9, 0.001)
    better = Outputs(truth, p > 0.5, np.column_stack([1 - p, p]))

    verdict = judged(better, holdout)

    assert int(np.sum(holdout.labels)) < FEWEST_TO_HOLD
    assert verdict.state == "not known yet" and verdict.words.endswith("; the holdout is too small to tell")
    assert judged(better, stream(20_000, 0, positives=0.014)).state == "held"


def test_a_stream_whose_positives_report_early_does_not_alarm() -> None:
    """One row a second; a positive is told after some 20 s (a cancellation), a negative after some 800 (a stay)."""
    rows = stream(4_000, 1, positives=0.3)
    random = np.random.default_rng(5)
    late = np.where(rows.labels, random.exponential(20, 4_000), 800 + random.normal(0, 20, 4_000))
    answered, holdout = np.arange(4_000.0), stream(2_000, 2, positives=0.3)
    states, naive = [], []
    for now in range(40, 3_001, 20):
        known = np.where(answered + late <= now, answered + late, np.nan)[:now]
        found = maturity(answered[:now], known, now)
        mature = np.flatnonzero((answered[:now] < found.matured_until) & ~np.isnan(known))
        states.append(judged(part(rows, mature), holdout).state)
        naive.append(judged(part(rows, np.flatnonzero(~np.isnan(known))), holdout).state)
    assert "lost" in naive
    assert "lost" not in states
    assert states[-1] == "held"


def test_windows_begin_where_they_began_when_older_rows_are_not_read_any_more() -> None:
    rows, holdout = stream(12_000, 1, flipped_from=11_700), stream(2_000, 2)

    whole = judged(rows, holdout)
    newest = judged(part(rows, slice(4_000, None)), holdout, before=8_000 - 4_000)

    assert newest.state == whole.state == "lost"
    assert [each.fall for each in newest.compared] == [each.fall for each in whole.compared]


def test_several_classes_and_a_label_that_the_model_does_not_know() -> None:
    random = np.random.default_rng(3)
    classes = ("blue", "green", "red")

    def answers(rows: int, right: float) -> Outputs:
        truth = random.integers(0, 3, rows)
        chances = np.full((rows, 3), (1 - right) / 2)
        chances[np.arange(rows), truth] = right
        wrong = random.random(rows) > right
        chances[wrong] = np.roll(chances[wrong], 1, axis=1)
        labels = np.array(classes, dtype=object)[truth]
        labels[0] = "pink"
        return Outputs(labels, np.array(classes, dtype=object)[chances.argmax(axis=1)], chances)

    holdout = answers(3_000, 0.8)
    held = judge_quality(answers(8_000, 0.8), holdout, "multiclass", classes, POLICY)
    assert held.state == "held" and [each.metric for each in held.compared] == ["accuracy", "log_loss"]
    bare = judge_quality(holdout._replace(scores=None), holdout._replace(scores=None), "multiclass", classes, POLICY)
    assert [each.metric for each in bare.compared] == ["accuracy"]
    lost = judge_quality(answers(2_000, 0.6), holdout, "multiclass", classes, POLICY)
    assert lost.state == "lost" and "served accuracy 0." in lost.words


def test_numbers_are_compared_in_r2_and_in_the_root_of_the_squared_error() -> None:
    random = np.random.default_rng(4)

    def answers(rows: int, noise: float) -> Outputs:
        truth = random.normal(10, 3, rows)
        return Outputs(truth, truth + random.normal(0, noise, rows), None)

    holdout = answers(2_000, 1.0)
    held = judge_quality(answers(4_000, 1.0), holdout, "regression", (), POLICY)
    assert held.state == "held" and [each.metric for each in held.compared] == ["r2", "rmse"]
    lost = judge_quality(answers(1_000, 1.6), holdout, "regression", (), POLICY)
    assert lost.state == "lost"
    once = judge_quality(answers(1_000, 1.6), holdout, "regression", (), QualityPolicy(metric="rmse"))
    assert [each.metric for each in once.compared] == ["rmse"] and "served RMSE 1." in once.words
    constant = Outputs(np.ones(500), np.ones(500), None)
    assert judge_quality(constant, holdout, "regression", (), QualityPolicy(metric="r2")).state == "not known yet"
