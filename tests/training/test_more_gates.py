"""The gates beside quality: groups, calibration, edge rows, floor, size, twin and the owner's trusted rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import equalized_odds_difference, false_positive_rate_difference, true_positive_rate_difference

from tests.training.test_gates import gate, guesses, world
from training.calibration import calibration_error
from training.comparing import Truth
from training.edges import Edges, ask
from training.fairness import fairness
from training.gate_policy import GatePolicy
from training.gates import Answers, Trusted, judge

SENSITIVE = GatePolicy(sensitive=("group",))


def strict_for(labels: Any, strict: Any, strength: float, seed: int = 1) -> Any:
    """Answers that are as good as `guesses`, but say yes to fewer of the rows `strict`."""
    said = guesses(labels, strength, seed)
    chances = np.clip(said[:, 1] - np.where(strict, 0.35, 0.0), 0.001, 0.999)
    return np.column_stack([1 - chances, chances])


def test_one_that_is_better_overall_and_more_unfair_to_a_group_is_refused() -> None:
    schema, holdout, labels = world(rows=4000)
    left = (holdout["group"] == "left").to_numpy()
    champion, challenger = Answers(guesses(labels, 1)), Answers(strict_for(labels, left, 3))

    verdict = judge(challenger, champion, holdout, labels, schema, SENSITIVE)

    assert gate(verdict, "quality").passed
    found = gate(verdict, "fairness")
    assert not found.passed and not verdict.passed
    assert "true positive rate" in found.reason and "group=left" in found.reason
    assert "surely more than the champion's" in found.reason
    blind = judge(challenger, champion, holdout, labels, schema, GatePolicy())
    assert "fairness" not in [one.name for one in blind.gates], "nobody named a sensitive feature"


def test_the_differences_are_those_of_fairlearn() -> None:
    schema, holdout, labels = world(rows=4000)
    left = (holdout["group"] == "left").to_numpy()
    said = strict_for(labels, left, 2)
    given = {"y_pred": said.argmax(axis=1), "sensitive_features": holdout["group"].to_numpy()}
    for rates, expected in (
        (("true_positive_rate",), true_positive_rate_difference(labels, **given)),
        (("false_positive_rate",), false_positive_rate_difference(labels, **given)),
        (("true_positive_rate", "false_positive_rate"), equalized_odds_difference(labels, **given)),
    ):
        policy = GatePolicy(sensitive=("group",), fairness=rates)
        found = fairness(said, None, holdout, Truth.of(labels, schema), schema, policy)
        assert found.value == pytest.approx(expected)


def test_one_that_is_as_unfair_as_the_champion_is_not_refused_for_it() -> None:
    schema, holdout, labels = world(rows=4000)
    left = (holdout["group"] == "left").to_numpy()
    refused = 0
    for seed in range(20):
        champion, challenger = strict_for(labels, left, 2, seed), strict_for(labels, left, 2, seed + 100)
        found = fairness(challenger, champion, holdout, Truth.of(labels, schema), schema, SENSITIVE)
        assert found.value is not None and found.value > SENSITIVE.max_group_difference
        refused += not found.passed
    assert refused <= 4, "one in ten by chance"


@pytest.mark.parametrize("classes", [0, 3])
def test_quantities_and_more_classes_are_compared_by_their_errors(classes: int) -> None:
    schema, holdout, labels = world(classes, rows=2000)
    left = (holdout["group"] == "left").to_numpy()
    random = np.random.default_rng(0)
    if classes:
        even = np.eye(3)[labels]
        uneven = np.where(left[:, None], np.roll(even, 1, axis=1), even)
    else:
        even = labels + 0.1 * random.normal(size=len(labels))
        uneven = even + np.where(left, 2.0, 0.0)
    truth = Truth.of(labels, schema)
    assert fairness(even, even, holdout, truth, schema, SENSITIVE).passed
    found = fairness(uneven, even, holdout, truth, schema, SENSITIVE)
    assert not found.passed and found.reason.startswith("error ")


def test_groups_that_are_too_small_are_not_compared() -> None:
    schema, holdout, labels = world(rows=150)
    said = guesses(labels, 1)
    found = fairness(said, said, holdout, Truth.of(labels, schema), schema, SENSITIVE)
    assert found.passed and "no two groups have enough rows" in found.reason


def test_what_is_surer_than_it_may_be_is_refused_although_it_ranks_better() -> None:
    schema, holdout, labels = world(rows=4000)
    random = np.random.default_rng(3)
    chance = random.uniform(0.2, 0.8, len(labels))
    labels = (random.random(len(labels)) < chance).astype(int)
    honest = np.column_stack([1 - chance, chance])
    sure = np.where(chance > 0.5, 0.99, 0.01)
    verdict = judge(
        Answers(np.column_stack([1 - sure, sure])), Answers(honest), holdout, labels, schema, GatePolicy(), due=True
    )
    assert not gate(verdict, "calibration").passed
    assert gate(judge(Answers(honest), None, holdout, labels, schema, GatePolicy()), "calibration").passed


def test_few_rows_are_not_taken_for_a_bad_calibration() -> None:
    """A calibrated model of 200 rows has an error of some 0.1, all of it chance."""
    schema, _, _ = world()
    for seed in range(20):
        random = np.random.default_rng(seed)
        chance = random.random(200)
        labels = (random.random(200) < chance).astype(int)
        found = calibration_error(np.column_stack([1 - chance, chance]), Truth.of(labels, schema))
        assert found is not None
        assert found.value > 0.04 and found.value - found.by_chance < 0.05


def test_all_gates_are_asked_whatever_the_first_ones_say() -> None:
    schema, holdout, labels = world()
    few = slice(0, 100)
    verdict = judge(
        Answers(guesses(labels, 0)[few], size_mb=900.0, edges=Edges(10, ("a row is refused",))),
        Answers(guesses(labels, 3)[few], size_mb=1.0, edges=Edges(10)),
        holdout[few],
        labels[few],
        schema,
        GatePolicy(min_quality=0.9),
    )
    failed = {one.name for one in verdict.gates if not one.passed}
    assert {"holdout_rows", "quality", "floor", "edge_rows", "size"} <= failed
    assert all(one.value is not None for one in verdict.gates if one.name in failed)


def test_a_floor_holds_against_any_champion() -> None:
    schema, holdout, labels = world()
    pair = Answers(guesses(labels, 1)), Answers(guesses(labels, 0))
    found = gate(judge(*pair, holdout, labels, schema, GatePolicy(min_quality=0.95)), "floor")
    assert not found.passed and "not at least 0.95" in found.reason
    assert gate(judge(*pair, holdout, labels, schema, GatePolicy(min_quality=0.6)), "floor").passed
    assert "floor" not in [one.name for one in judge(*pair, holdout, labels, schema, GatePolicy()).gates]


def test_one_that_is_worse_on_the_trusted_rows_is_refused_however_good_the_record_calls_it() -> None:
    schema, holdout, labels = world()
    better, worse = Answers(guesses(labels, 3)), Answers(guesses(labels, 1))
    truth = Truth.of(labels, schema)
    poisoned = Trusted(guesses(1 - labels, 3), guesses(labels, 2), truth)
    verdict = judge(better, worse, holdout, labels, schema, GatePolicy(), trusted=poisoned)
    assert gate(verdict, "quality").passed
    assert not gate(verdict, "trusted_holdout").passed and not verdict.passed
    same = Trusted(guesses(labels, 2), guesses(labels, 2), truth)
    assert gate(judge(better, worse, holdout, labels, schema, GatePolicy(), trusted=same), "trusted_holdout").passed
    first = judge(better, None, holdout, labels, schema, GatePolicy(), trusted=Trusted(better.values, None, truth))
    assert "no champion to compare with" in gate(first, "trusted_holdout").reason


def test_a_twin_that_disagrees_refuses_what_was_trained_here_while_the_champion_has_one() -> None:
    schema, holdout, labels = world()
    odd = Answers(guesses(labels, 3), twin=False, parity="3 of 2000 rows differ", disagrees=True)
    with_twin, without = (Answers(guesses(labels, 1), twin=twin) for twin in (True, False))

    def passed(champion: Answers, must: str, *, trained: bool) -> bool:
        policy = GatePolicy.model_validate({"twin_must_agree": must})
        return gate(judge(odd, champion, holdout, labels, schema, policy, trained=trained), "parity").passed

    assert not passed(with_twin, "trained", trained=True)
    assert passed(with_twin, "trained", trained=False)
    assert not passed(with_twin, "always", trained=False)
    assert passed(with_twin, "never", trained=True)
    assert passed(without, "always", trained=True)


def test_rows_without_a_proper_answer_are_counted_and_the_first_is_described() -> None:
    schema, holdout, _ = world()

    def refuses(rows: pd.DataFrame) -> Any:
        if rows["age"].isna().any():
            raise ValueError("Input X contains NaN")
        return np.full((len(rows), 2), 0.5)

    def answers(said: Any) -> Any:
        return lambda rows: np.tile(said, (len(rows), 1))

    assert ask(answers([0.4, 0.6]), holdout, schema).wrong == ()
    missing = ask(refuses, holdout, schema)
    assert 0 < len(missing.wrong) < missing.rows
    assert missing.wrong[0] == "a row with 'age' missing is refused: Input X contains NaN"
    for said, words in (([np.nan, 1.0], "NaN or infinity"), ([0.9, 0.9], "[0.9, 0.9]"), ([-0.5, 1.5], "[-0.5, 1.5]")):
        found = ask(answers(said), holdout, schema)
        assert len(found.wrong) == found.rows and words in found.wrong[0]


def test_what_the_champion_cannot_answer_either_is_no_reason_to_keep_it() -> None:
    schema, holdout, labels = world()
    pair = guesses(labels, 3), guesses(labels, 1)

    def passed(new: int, old: int) -> bool:
        answers = [Answers(one, edges=Edges(40, ("x",) * bad)) for one, bad in zip(pair, (new, old), strict=True)]
        return gate(judge(*answers, holdout, labels, schema, GatePolicy()), "edge_rows").passed

    assert passed(0, 0) and passed(3, 3) and passed(1, 3)
    assert not passed(1, 0)
