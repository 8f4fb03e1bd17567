from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from monitoring.feature import Task
from monitoring.schema import FeatureSchema
from tests.world import known
from training.convert import convert
from training.pipeline import SPACE, Parameters, build, fit
from training.tune import search

TASKS: list[Task] = ["binary", "multiclass", "regression"]


@pytest.mark.parametrize("task", TASKS)
def test_the_same_rows_and_seed_give_the_same_model(task: Task) -> None:
    schema, features, labels = known(400, task=task)
    first, second = (build(schema, {"max_iter": 10}, seed=3).fit(features, labels) for _ in range(2))
    assert np.array_equal(first.predict(features), second.predict(features))


def test_classes_come_out_in_the_order_of_the_schema() -> None:
    schema, features, labels = known(400, task="multiclass")
    pipeline = build(schema, {"max_iter": 5}).fit(features, labels)
    assert pipeline.classes_.tolist() == list(schema.classes) == ["high", "low", "middle"]


def test_empty_constant_and_many_valued_columns_are_taken() -> None:
    rows = 1500
    frame = pd.DataFrame(
        {
            "empty": np.full(rows, np.nan),
            "nothing": np.array([None] * rows, dtype=object),
            "constant": 7,
            "same": "x",
            "id": [f"k{i}" for i in range(rows)],
            "x": np.arange(rows) % 17,
            "y": np.arange(rows) % 2 == 0,
        }
    )
    schema = FeatureSchema.infer(frame, "y")
    pipeline = fit(schema, schema.canonical(frame), schema.labels(frame["y"]), {"max_iter": 5})
    assert pipeline.feature_names_in_.tolist() == list(schema.names)
    assert convert(pipeline, schema, schema.canonical(frame))[2].agrees
    unseen = schema.frame([{"id": "never", "same": None, "empty": 3.0, "nothing": "now", "constant": None, "x": 1}])
    assert pipeline.predict_proba(unseen).shape == (1, 2)


def test_an_unknown_parameter_is_refused_by_name() -> None:
    schema, _, _ = known(50)
    with pytest.raises(ValidationError, match="n_estimators"):
        build(schema, {"n_estimators": 5})


def test_a_search_without_trials_keeps_the_defaults_and_leaves_optuna_alone() -> None:
    before = "optuna" in sys.modules
    study = search(lambda parameters: pytest.fail("fitted"), trials=0)
    assert Parameters.model_validate(study.parameters) == Parameters()
    assert ("optuna" in sys.modules) == before


def test_a_search_is_repeatable_bounded_and_never_worse_than_its_start() -> None:
    def score(parameters: Parameters) -> float:
        return -abs(parameters.learning_rate - 0.05) - abs(parameters.max_leaf_nodes - 20) / 100

    first, second = (search(score, trials=8, seed=5) for _ in range(2))
    assert first == second
    assert len(first.trials) == 8
    assert first.trials[0] == (Parameters().model_dump(), score(Parameters()))
    assert first.score == max(value for _, value in first.trials) >= score(Parameters())
    assert all(low <= first.parameters[name] <= high for name, (_, low, high) in SPACE.items())
