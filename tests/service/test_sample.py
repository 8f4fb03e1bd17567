from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from monitoring.schema import FeatureSchema
from service import sample

FIRST, THEN = slice(4000, 6000), slice(6000, 8000)


def schema_of(frame: pd.DataFrame) -> FeatureSchema:
    return FeatureSchema.infer(frame, sample.TARGET, ignore=(sample.TIME, sample.LABEL_DELAY))


def fitted(frame: pd.DataFrame) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    model = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=15, early_stopping=False, random_state=0)
    with threadpool_limits(1):  # more threads than idle cores take minutes
        return model.fit(matrix(frame), frame[sample.TARGET])


def auc(model: Any, frame: pd.DataFrame) -> float:
    from sklearn.metrics import roc_auc_score
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        return float(roc_auc_score(frame[sample.TARGET], model.predict_proba(matrix(frame))[:, 1]))


def matrix(frame: pd.DataFrame) -> Any:
    """Features as numbers; categories by their place in the alphabet of the whole stream."""
    features = frame[list(sample.FEATURES)].copy()
    for name in sample.CATEGORICAL:
        known = {value: i for i, value in enumerate(sorted(sample.frame(2000)[name].dropna().unique()))}
        features[name] = features[name].map(known)
    return features.astype(float).to_numpy()


def rows(scenario: sample.Scenario, part: slice) -> pd.DataFrame:
    return sample.frame(part.stop - part.start, start=part.start, scenario=scenario)


@pytest.fixture(scope="module")
def first_model() -> Any:
    return fitted(sample.training_frame())


# The story


def test_a_row_is_the_same_however_it_is_read() -> None:
    whole = sample.frame(3000, start=500, seed=3, scenario="gradual", at_row=1000, over_rows=1500)

    chunks = sample.stream(3000, start=500, seed=3, scenario="gradual", at_row=1000, over_rows=1500, chunk_rows=277)

    pd.testing.assert_frame_equal(pd.concat(list(chunks)), whole)
    one = sample.frame(1, start=1777, seed=3, scenario="gradual", at_row=1000, over_rows=1500)
    pd.testing.assert_frame_equal(one, whole.loc[[1777]])


def test_another_seed_is_another_stream() -> None:
    assert not sample.frame(100, seed=1).equals(sample.frame(100, seed=2))


def test_no_rows_are_an_empty_frame_with_the_same_columns() -> None:
    assert list(sample.frame(0, start=5).columns) == list(sample.frame(5).columns)
    assert len(sample.frame(0, start=5)) == 0


def test_the_training_frame_has_all_kinds_missing_values_and_a_fifth_of_defaults() -> None:
    frame = sample.training_frame()
    schema = schema_of(frame.assign(**{sample.LABEL_DELAY: 0.0}))

    kinds = {feature.name: feature.kind for feature in schema.features}
    assert schema.names == sample.FEATURES
    assert {name for name, kind in kinds.items() if kind == "boolean"} == set(sample.BOOLEAN)
    assert {name for name, kind in kinds.items() if kind == "categorical"} == set(sample.CATEGORICAL)
    assert (schema.task, schema.classes) == ("binary", (0, 1))
    assert {f.name for f in schema.features if f.nullable} == {"debt_ratio", "history_years", "savings", "employment"}
    assert sample.LABEL_DELAY not in frame.columns
    assert sample.SENSITIVE in schema.categorical_names
    assert 0.15 < frame[sample.TARGET].mean() < 0.25


def test_rows_are_in_time_order_and_labels_are_late() -> None:
    frame = sample.frame(5000)

    assert frame[sample.TIME].is_monotonic_increasing
    assert frame[sample.LABEL_DELAY].mean() == pytest.approx(sample.MEAN_LABEL_DELAY_S, rel=0.02)
    assert frame[sample.LABEL_DELAY].min() > 0


def test_income_has_a_heavy_tail() -> None:
    income = sample.frame(20_000)["income"]

    assert income.max() > 20 * income.median()


def test_an_unknown_scenario_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match='no scenario "sudden"; there are none, abrupt, gradual'):
        sample.frame(1, scenario="sudden")  # type: ignore[arg-type]


# The scenarios


@pytest.mark.parametrize("scenario", ["abrupt", "gradual", "recurring", "harmless"])
def test_before_its_row_a_scenario_changes_nothing(scenario: sample.Scenario) -> None:
    pd.testing.assert_frame_equal(sample.frame(4000, scenario=scenario), sample.frame(4000))


def test_a_model_is_good_where_nothing_moves(first_model: Any) -> None:
    assert auc(first_model, rows("none", FIRST)) > 0.78
    assert auc(first_model, rows("none", THEN)) > 0.78


def test_an_abrupt_drift_costs_the_old_model_more_than_a_tenth_and_a_retrain_wins_it_back(first_model: Any) -> None:
    before = auc(first_model, rows("none", THEN))
    after = rows("abrupt", THEN)

    assert auc(first_model, after) < before - 0.1
    assert auc(fitted(rows("abrupt", slice(4000, 4600))), after) > before - 0.05
    assert auc(fitted(rows("abrupt", FIRST)), after) > before


def test_an_abrupt_drift_moves_features_too() -> None:
    old, new = rows("none", FIRST), rows("abrupt", FIRST)

    moved = np.log(new["income"]).mean() - np.log(old["income"]).mean()
    assert moved > 0.2 * np.log(old["income"]).std()
    assert (new["purpose"] == "home").mean() > (old["purpose"] == "home").mean() + 0.08


def test_a_gradual_drift_is_halfway_after_half_its_rows() -> None:
    old, half, whole = (
        sample.frame(2000, start=4000 + at, scenario="gradual", over_rows=10_000)["amount"].median()
        for at in (-2000, 4000, 10_000)
    )

    assert old < half < whole


def test_a_recurring_drift_goes_and_comes_back() -> None:
    stream = sample.frame(6000, scenario="recurring", at_row=1000, over_rows=2000)

    still = sample.frame(6000)
    pd.testing.assert_frame_equal(stream.loc[3000:4999], still.loc[3000:4999])
    assert not stream.loc[1000:2999].equals(still.loc[1000:2999])
    assert not stream.loc[5000:].equals(still.loc[5000:])


def test_a_harmless_drift_moves_features_and_the_old_model_stays_as_good(first_model: Any) -> None:
    moved = rows("harmless", slice(4000, 8000))

    pd.testing.assert_frame_equal(
        moved[list(sample.FEATURES)], rows("abrupt", slice(4000, 8000))[list(sample.FEATURES)]
    )
    assert auc(first_model, moved) > auc(first_model, rows("none", slice(4000, 8000))) - 0.02
