from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import r2_score, roc_auc_score

from monitoring.schema import FeatureSchema
from training.comparing import Truth, difference, metric_of, score
from training.gate_policy import GatePolicy
from training.gates import Answers, judge
from training.latency import Latency, timed
from training.manifest import GateResult, Verdict

ROWS = 600


def world(classes: int = 2, rows: int = ROWS, seed: int = 0) -> tuple[FeatureSchema, pd.DataFrame, Any]:
    """(schema, holdout features, labels); `classes` 0 is a regression."""
    random = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "age": random.integers(18, 80, rows),
            "group": random.choice(np.array(["left", "right"], dtype=object), rows),
            "member": random.random(rows) < 0.5,
            "y": random.normal(size=rows) if not classes else np.arange(rows) % classes,
        }
    )
    task = {0: "regression", 2: "binary"}.get(classes, "multiclass")
    schema = FeatureSchema.infer(frame, "y", task=task)  # type: ignore[arg-type]
    return schema, schema.canonical(frame), schema.labels(frame["y"])


def guesses(labels: Any, strength: float, seed: int = 1) -> Any:
    """Probabilities of two classes; `strength` 0 is noise, 3 nearly knows."""
    random = np.random.default_rng(seed)
    positive = 1 / (1 + np.exp(-(strength * (labels - 0.5) + random.normal(size=len(labels)))))
    return np.column_stack([1 - positive, positive])


def gate(verdict: Verdict, name: str) -> GateResult:
    return next(result for result in verdict.gates if result.name == name)


POLICY = GatePolicy()


def test_a_clearly_better_challenger_passes_every_gate() -> None:
    schema, holdout, labels = world()
    verdict = judge(Answers(guesses(labels, 3)), Answers(guesses(labels, 1)), holdout, labels, schema, POLICY)
    assert verdict.passed
    assert [result.name for result in verdict.gates] == [
        "holdout_rows",
        "quality",
        "segments",
        "calibration",
        "latency",
        "parity",
    ]
    assert "against the champion's" in gate(verdict, "quality").reason


def test_the_champion_itself_does_not_replace_the_champion() -> None:
    schema, holdout, labels = world()
    same = Answers(guesses(labels, 2))
    verdict = judge(same, same, holdout, labels, schema, POLICY)
    assert not verdict.passed
    assert gate(verdict, "quality").value == 0.0
    assert verdict.reasons == (gate(verdict, "quality").reason,)


def test_a_gain_that_may_be_luck_is_not_enough() -> None:
    schema, holdout, labels = world()
    champion, challenger = guesses(labels, 1, seed=1), guesses(labels, 1.02, seed=2)
    verdict = judge(Answers(challenger), Answers(champion), holdout, labels, schema, GatePolicy(confidence=0.999))
    assert not gate(verdict, "quality").passed


def test_a_gain_smaller_than_asked_for_is_not_enough() -> None:
    schema, holdout, labels = world()
    pair = Answers(guesses(labels, 3)), Answers(guesses(labels, 1))
    assert gate(judge(*pair, holdout, labels, schema, POLICY), "quality").passed
    assert not gate(judge(*pair, holdout, labels, schema, GatePolicy(min_gain=0.5)), "quality").passed


def test_the_same_arguments_give_the_same_verdict() -> None:
    schema, holdout, labels = world()
    pair = Answers(guesses(labels, 1.1)), Answers(guesses(labels, 1, seed=4))
    assert judge(*pair, holdout, labels, schema, POLICY) == judge(*pair, holdout, labels, schema, POLICY)


def test_one_that_was_due_passes_unless_it_is_probably_worse() -> None:
    schema, holdout, labels = world()
    same = Answers(guesses(labels, 2))
    assert judge(same, same, holdout, labels, schema, POLICY, due=True).passed
    worse = judge(Answers(guesses(labels, 1)), same, holdout, labels, schema, POLICY, due=True)
    assert not worse.passed
    assert "it was due, so 0.84 would refuse it" in worse.reasons[0]


def test_a_difference_is_known_as_well_as_resampling_rows_knows_it() -> None:
    """The paired bootstrap (Efron & Tibshirani 1993, chapter 16) is what the influences stand for."""
    schema, _, labels = world()
    new, old, truth = guesses(labels, 1.3), guesses(labels, 1, seed=4), Truth.of(labels, schema)
    for metric in ("auc", "log_loss", "accuracy"):
        found = difference(new, old, truth, metric)
        random = np.random.default_rng(3)
        gains = []
        for _ in range(400):
            rows = random.integers(0, ROWS, ROWS)
            part = Truth(truth.values[rows], truth.classes)
            gains.append(score(new[rows], part, metric) - score(old[rows], part, metric))
        assert found.gain == pytest.approx(score(new, truth, metric) - score(old, truth, metric))
        assert found.error == pytest.approx(np.std(gains), rel=0.35)


def test_rows_that_resemble_their_neighbours_are_worth_fewer_rows() -> None:
    schema, _, labels = world()
    new, old = guesses(labels, 1.3), guesses(labels, 1, seed=4)
    apart = difference(new, old, Truth.of(labels, schema), "log_loss")
    ten = difference(np.repeat(new, 10, 0), np.repeat(old, 10, 0), Truth.of(np.repeat(labels, 10), schema), "log_loss")
    assert ten.error > 0.6 * apart.error  # independent rows would give 0.32


def test_among_many_segments_one_that_loses_by_chance_does_not_stop_a_challenger() -> None:
    schema, holdout, labels = world(rows=4000)
    random = np.random.default_rng(1)
    many = holdout.assign(group=random.choice(np.array([f"g{n}" for n in range(20)], dtype=object), 4000))
    refused = 0
    for seed in range(20):
        champion, challenger = guesses(labels, 2, seed=seed), guesses(labels, 2.2, seed=seed + 100)
        verdict = judge(Answers(challenger), Answers(champion), many, labels, schema, GatePolicy(max_segment_loss=0.0))
        refused += not gate(verdict, "segments").passed
    assert refused <= 2  # each of its 23 groups alone, at 90 %, would refuse nearly always


def test_two_columns_that_mark_the_same_rows_are_one_group() -> None:
    schema, holdout, labels = world()
    holdout["member"] = (holdout["group"] == "left").astype("boolean")
    verdict = judge(Answers(guesses(labels, 3)), Answers(guesses(labels, 1)), holdout, labels, schema, POLICY)
    assert "none of 2 segments" in gate(verdict, "segments").reason


def test_a_first_version_must_beat_the_constant() -> None:
    schema, holdout, labels = world()
    good = judge(Answers(guesses(labels, 2)), None, holdout, labels, schema, POLICY)
    assert good.passed
    assert [result.name for result in good.gates] == ["holdout_rows", "baseline", "calibration", "parity"]
    constant = judge(Answers(np.full((ROWS, 2), 0.5)), None, holdout, labels, schema, POLICY)
    assert not constant.passed
    assert "it has learnt nothing" in gate(constant, "baseline").reason


def test_too_few_rows_or_one_class_are_not_judged() -> None:
    schema, holdout, labels = world()
    few = judge(Answers(guesses(labels, 3)[:100]), None, holdout[:100], labels[:100], schema, POLICY)
    assert not few.passed
    assert "100 labelled rows, 200 are needed" in few.reasons[0]
    ones = np.ones_like(labels)
    one = judge(Answers(guesses(ones, 3)), Answers(guesses(ones, 1)), holdout, ones, schema, POLICY)
    assert not one.passed
    assert "labels of the holdout are 1" in one.reasons[0]


def test_a_segment_that_gets_worse_stops_a_challenger_that_is_better_overall() -> None:
    schema, holdout, labels = world()
    champion, challenger = guesses(labels, 1.5), guesses(labels, 4, seed=2)
    left = (holdout["group"] == "left").to_numpy()
    challenger[left] = guesses(labels[left], 0, seed=3)
    challenger[~left] = np.eye(2)[labels[~left]]
    verdict = judge(Answers(challenger), Answers(champion), holdout, labels, schema, POLICY)
    assert not gate(verdict, "segments").passed
    assert "group=left" in gate(verdict, "segments").reason


def test_a_sensitive_number_is_judged_by_its_quartiles() -> None:
    schema, holdout, labels = world()
    champion, challenger = guesses(labels, 2), np.eye(2)[labels]
    old = (holdout["age"] > 66).to_numpy()
    challenger[old] = guesses(labels[old], 0)
    blind = judge(Answers(challenger), Answers(champion), holdout, labels, schema, POLICY)
    assert gate(blind, "segments").passed
    seeing = judge(Answers(challenger), Answers(champion), holdout, labels, schema, GatePolicy(sensitive=("age",)))
    assert not gate(seeing, "segments").passed
    assert "age in (" in gate(seeing, "segments").reason
    with pytest.raises(ValueError, match="sensitive features"):
        judge(Answers(challenger), Answers(champion), holdout, labels, schema, GatePolicy(sensitive=("race",)))


def test_a_slow_challenger_fails_unless_it_is_within_the_budget() -> None:
    schema, holdout, labels = world()
    said = guesses(labels, 3), guesses(labels, 1)

    def latency(one_row_ms: float) -> bool:
        found = Latency(one_row_ms, 0.05, 10.0, 5.0, one_row_ms / 0.05, 2.0)
        verdict = judge(Answers(said[0], found), Answers(said[1]), holdout, labels, schema, POLICY)
        return gate(verdict, "latency").passed

    assert latency(0.1)
    assert latency(19.0)
    assert not latency(25.0)


def test_the_twin_is_told_and_never_decides() -> None:
    schema, holdout, labels = world()
    for twin in (True, False, None):
        verdict = judge(Answers(guesses(labels, 2), twin=twin), None, holdout, labels, schema, POLICY)
        assert verdict.passed
        assert gate(verdict, "parity").passed


def test_scores_are_those_of_scikit_learn() -> None:
    schema, _, labels = world()
    said = guesses(labels, 1).round(2)  # with ties
    assert score(said, Truth.of(labels, schema), "auc") == pytest.approx(roc_auc_score(labels, said[:, 1]))
    numbers, _, values = world(classes=0)
    predicted = values + np.random.default_rng(5).normal(size=ROWS)
    assert score(predicted, Truth.of(values, numbers), "r2") == pytest.approx(r2_score(values, predicted))


@pytest.mark.parametrize("classes", [0, 3])
def test_regressions_and_several_classes_are_judged_too(classes: int) -> None:
    schema, holdout, labels = world(classes)
    random = np.random.default_rng(0)
    if classes:
        good, poor = (np.eye(3)[labels] + noise * random.random((ROWS, 3)) for noise in (0.2, 3))
        good, poor = (said / said.sum(axis=1, keepdims=True) for said in (good, poor))
    else:
        good, poor = labels + 0.1 * random.normal(size=ROWS), labels + 0.5 * random.normal(size=ROWS)
    assert judge(Answers(good), Answers(poor), holdout, labels, schema, POLICY).passed
    assert not judge(Answers(poor), Answers(good), holdout, labels, schema, POLICY).passed


def test_a_label_of_a_class_the_model_never_saw_counts_against_both() -> None:
    schema, _, labels = world(classes=3)
    changed = np.where(np.arange(ROWS) < 60, 9, labels)
    assert score(np.eye(3)[labels], Truth.of(changed, schema), "accuracy") == pytest.approx(0.9)


def test_a_metric_that_does_not_fit_the_task_is_refused() -> None:
    with pytest.raises(ValueError, match="use accuracy, or auto"):
        metric_of("multiclass", GatePolicy(metric="auc"))


class Clock:
    """Time that passes only while a model answers, each call as long as its list says, then again from the front."""

    def __init__(self) -> None:
        self.now = 0.0

    def taking(self, *seconds: float) -> Callable[[], None]:
        calls = itertools.cycle(seconds)

        def call() -> None:
            self.now += next(calls)

        return call


def test_a_machine_that_is_slow_now_and_then_does_not_decide_about_latency() -> None:
    clock = Clock()
    noisy = clock.taking(1, 1, 50, 1, 1)  # one call in five meets somebody else's work
    found = timed((noisy, clock.taking(4)), (clock.taking(1), clock.taking(1)), clock=lambda: clock.now)
    assert (found.one_row_ms, found.one_row_ratio) == (1000.0, 1.0)
    assert (found.batch_ms, found.champion_batch_ms, found.batch_ratio) == (4000.0, 1000.0, 4.0)
