"""What was answered and what is known of it, read without features; on both stores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from monitoring import store
from monitoring.answers import count_labelled, label_maturity, label_times, read_answers
from monitoring.schema import FeatureSchema

BINARY = FeatureSchema.infer(pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": [True, False, True]}), "y")
NUMBER = FeatureSchema.infer(pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": [1.5, 2.25, 9.125]}), "y", task="regression")


@pytest.fixture
def engine(store_url: str) -> Iterator[sa.Engine]:
    engine = store.open_store(store_url)
    store.ensure_days(engine, [1])
    yield engine
    engine.dispose()


def predict(engine: sa.Engine, ids: list[str], at: list[float], first: int = 0, version: int = 1, **more: Any) -> None:
    given = {"day": 1, "segment": 1, "version": version, "features": "{}", "prediction": "true"}
    given |= {"probabilities": "[0.25,0.75]", **more}
    rows = [{**given, "position": first + n, "id": i, "at": t} for n, (i, t) in enumerate(zip(ids, at, strict=True))]
    with engine.begin() as connection:
        connection.execute(store.predictions.insert(), rows)


def label(
    engine: sa.Engine, ids: list[str], received: list[float], first: int = 0, value: Any = True, **more: Any
) -> None:
    given = {"day": 1, "segment": 1, "label": json.dumps(value), "observed_at": 0.0, **more}
    when = enumerate(zip(ids, received, strict=True))
    rows = [{**given, "position": first + n, "id": i, "received_at": t} for n, (i, t) in when]
    with engine.begin() as connection:
        connection.execute(store.labels.insert(), rows)


def test_the_newest_rows_with_the_receipt_of_their_first_label(engine: sa.Engine) -> None:
    predict(engine, ["a", "b", "c", "d"], [4.0, 1.0, 2.0, 3.0])
    label(engine, ["a", "c", "c"], [9.0, 8.0, 7.0])

    answered, known = label_times(engine, rows=3)

    assert answered.tolist() == [2.0, 3.0, 4.0]
    assert known[[0, 2]].tolist() == [7.0, 9.0] and np.isnan(known[1])
    assert np.isnan(label_times(engine, rows=3, sources=("crm",))[1]).all()


def test_rows_are_mature_as_long_after_their_answer_as_labels_take(engine: sa.Engine) -> None:
    at = [float(n) for n in range(200)]
    predict(engine, [f"{n}" for n in range(200)], at)
    label(engine, [f"{n}" for n in range(150)], [n + 50.0 for n in range(150)])

    found = label_maturity(engine, 200.0)

    assert (found.measured, found.delay_s, found.labels, found.coverage) == (True, 50.0, 150, 150 / 151)
    assert found.waiting == 49
    assert count_labelled(engine, most=1_000, until=found.matured_until) == 150
    assert count_labelled(engine, most=1_000, since=100.0, until=found.matured_until) == 50
    assert count_labelled(engine, most=7) == 7
    assert count_labelled(engine, most=1_000, version=2) == 0
    fixed = label_maturity(engine, 200.0, 120.0)
    assert (fixed.measured, fixed.delay_s, fixed.waiting) == (False, 120.0, 119)


def test_where_labels_come_later_than_all_that_is_looked_at_nothing_of_it_is_mature(engine: sa.Engine) -> None:
    predict(engine, [f"{n}" for n in range(200)], [float(n) for n in range(200)])
    label(engine, [f"{n}" for n in range(60)], [n + 140.0 for n in range(60)])

    found = label_maturity(engine, 200.0, rows=100)

    assert (found.measured, found.delay_s, found.labels) == (False, 100.0, 0)
    assert count_labelled(engine, most=1_000, until=found.matured_until) == 60


def test_answers_come_with_the_label_that_counts_and_without_what_does_not_fit(engine: sa.Engine) -> None:
    predict(engine, ["a", "b", "c", "d", "e"], [1.0, 2.0, 3.0, 4.0, 5.0])
    predict(engine, ["b"], [6.0], first=10, prediction="false", probabilities="[0.75,0.25]")
    predict(engine, ["f"], [7.0], first=11, version=2)
    label(engine, ["a", "b", "c", "d", "f"], [9.0] * 5, source="crm")
    label(engine, ["a"], [9.5], first=10, value=False, observed_at=1.0)
    label(engine, ["c"], [9.5], first=11, value="odd", observed_at=1.0)

    found = read_answers(engine, BINARY, version=1, rows=10)

    assert found.at.tolist() == [1.0, 4.0, 6.0] and found.unfit == 1
    assert found.labels.tolist() == [False, True, True]
    assert found.answers.tolist() == [True, True, False]
    assert found.scores is not None and found.scores.tolist() == [[0.25, 0.75], [0.25, 0.75], [0.75, 0.25]]
    assert read_answers(engine, BINARY, version=1, rows=10, sources=("crm",)).labels.tolist() == [True] * 4
    assert read_answers(engine, BINARY, version=1, rows=2, until=5.0).at.tolist() == [4.0]
    nothing = read_answers(engine, BINARY, version=9, rows=10)
    assert (len(nothing.at), len(nothing.labels), nothing.scores.shape) == (0, 0, (0, 2))  # type: ignore[union-attr]


def test_numbers_have_no_scores(engine: sa.Engine) -> None:
    predict(engine, ["a", "b"], [1.0, 2.0], prediction="2.5", probabilities=None)
    label(engine, ["a", "b"], [3.0, 3.0], value=2)

    found = read_answers(engine, NUMBER, version=1, rows=10)

    assert found.scores is None
    assert (found.answers.tolist(), found.labels.tolist()) == ([2.5, 2.5], [2.0, 2.0])
