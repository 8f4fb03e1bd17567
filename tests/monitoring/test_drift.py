from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from monitoring import distance
from monitoring.drift import DriftPolicy, DriftReport, FeatureDrift, detect
from monitoring.feature import Feature
from monitoring.schema import FeatureSchema

POLICY = DriftPolicy()
KINDS = {
    "age": "numeric",
    "income": "numeric",
    "hour": "numeric",
    "rare": "numeric",
    "tiny": "numeric",
    "holed": "numeric",
    "member": "boolean",
    "city": "categorical",
    "product": "categorical",
    "code": "categorical",
}
CITIES = [f"city{number}" for number in range(12)]
SCHEMA = FeatureSchema(
    features=tuple(
        Feature(name, kind, categories=tuple(sorted(CITIES)) if name == "city" else ())  # type: ignore[arg-type]
        for name, kind in KINDS.items()
    ),
    target="bought",
    task="binary",
    classes=(0, 1),
)


def frame(rows: int, seed: int) -> pd.DataFrame:
    """A canonical frame of columns that are hard on a drift test: skewed, rare, tiny, holed, of many categories."""
    rng = np.random.default_rng((rows, seed))
    columns = {
        "age": rng.normal(40, 12, rows),
        "income": np.where(rng.random(rows) < 0.9, 0, rng.lognormal(8, 1.5, rows)),
        "hour": rng.integers(0, 24, rows),
        "rare": rng.random(rows) < 0.003,
        "tiny": rng.normal(0, 1e-6, rows),
        "holed": np.where(rng.random(rows) < 0.4, np.nan, rng.normal(size=rows)),
        "member": rng.random(rows) < 0.3,
    }
    made = pd.DataFrame({name: np.asarray(values, dtype=np.float32) for name, values in columns.items()})
    made["city"] = rng.choice(np.array(CITIES, dtype=object), rows)
    made["product"] = np.array([f"p{number}" for number in np.minimum(rng.zipf(1.4, rows), 300)], dtype=object)
    made["code"] = np.array([f"id{number}" for number in rng.integers(0, 10**6, rows)], dtype=object)
    return made


def with_scores(made: pd.DataFrame, seed: int, a: float = 2.0) -> pd.DataFrame:
    scores = np.random.default_rng(seed).beta(a, 5, len(made))
    return made.assign(_score=scores, _prediction=(scores > 0.5).astype(np.int64))


def found(report: DriftReport, name: str) -> FeatureDrift:
    return next(feature for feature in report.features if feature.name == name)


@pytest.mark.parametrize(("rows", "checks"), [(200, 8), (500, 8), (1_000, 8), (20_000, 2)])
def test_nothing_drifts_when_nothing_moved_at_any_window_size(rows: int, checks: int) -> None:
    # The suite has time for these; DriftPolicy.noise_sigmas says what thousands of them gave.
    for seed in range(checks):
        report = detect(with_scores(frame(5_000, seed), seed), with_scores(frame(rows, seed), 99), SCHEMA, POLICY)
        assert (report.drifted, report.detected, report.reasons) == ((), False, ())
        assert report.prediction is not None and not report.prediction.drifted
        assert report.current_rows == rows


@pytest.mark.parametrize("rows", [200, 1_000, 20_000])
def test_a_shift_of_one_sigma_drifts_exactly_the_shifted_columns(rows: int) -> None:
    reference, current = frame(5_000, 1), frame(rows, 2)
    for name in ("age", "hour", "tiny"):
        current[name] += np.float32(reference[name].std())
    report = detect(reference, current, SCHEMA, POLICY)
    assert report.drifted == ("age", "hour", "tiny")
    assert all(found(report, name).causes == ("distribution",) for name in report.drifted)
    assert report.share == 0.3
    assert report.reasons == ("3 of 10 features drifted (share 0.2 is enough): age, hour, tiny",)


def test_categories_that_change_their_shares_drift() -> None:
    reference, current = frame(5_000, 1), frame(1_000, 2)
    current["member"] = 1 - current["member"]
    current.loc[current["city"].isin(CITIES[:4]), "city"] = "city11"
    report = detect(reference, current, SCHEMA, POLICY)
    assert report.drifted == ("member", "city")
    assert found(report, "member").test == "jensenshannon"


@pytest.mark.parametrize(("reference_rows", "rows", "side"), [(5_000, 199, "window"), (150, 1_000, "reference")])
def test_too_few_rows_are_skipped_with_the_reason(reference_rows: int, rows: int, side: str) -> None:
    current = frame(rows, 2)
    current["age"] += 1_000
    report = detect(frame(reference_rows, 1), current, SCHEMA, POLICY)
    assert report.skipped == f"the {side} has {min(reference_rows, rows)} rows; drift needs at least 200"
    assert (report.features, report.prediction, report.detected) == ((), None, False)


def test_an_empty_window_is_skipped() -> None:
    report = detect(frame(500, 1), frame(500, 1).iloc[:0], SCHEMA, POLICY)
    assert report.skipped is not None and not report.detected


def test_the_same_arguments_give_the_same_report_and_json_keeps_it_whole() -> None:
    reference, current = with_scores(frame(6_000, 1), 1), with_scores(frame(300, 2), 2, a=4.0)
    current["city"] = None
    report = detect(reference, current, SCHEMA, POLICY, seed=7)
    assert report == detect(reference, current, SCHEMA, POLICY, seed=7)
    assert DriftReport.from_json(report.to_json()) == report
    assert report.reference_rows == POLICY.reference_rows


def test_the_frames_given_are_not_changed() -> None:
    reference, current = with_scores(frame(500, 1), 1), with_scores(frame(500, 2), 2)
    before = reference.copy(), current.copy()
    detect(reference, current, SCHEMA, POLICY)
    pd.testing.assert_frame_equal(reference, before[0])
    pd.testing.assert_frame_equal(current, before[1])


def test_more_missing_values_are_a_drift_of_their_own() -> None:
    reference, current = frame(5_000, 1), frame(1_000, 2)
    current.loc[:299, ["age", "city"]] = np.nan
    current.loc[:49, "hour"] = np.nan
    report = detect(reference, current, SCHEMA, POLICY)
    assert report.drifted == ("age", "city")
    assert found(report, "age").causes == ("missing",)
    assert found(report, "age").note == "missing values went from 0% to 30%"
    assert (found(report, "age").missing_reference, found(report, "age").missing_current) == (0.0, 0.3)
    assert found(report, "hour").missing_current == 0.05


def test_a_column_that_went_missing_or_came_back_drifts_without_a_score() -> None:
    reference, current = frame(500, 1), frame(500, 2)
    current["age"] = np.float32("nan")
    reference["city"] = None
    reference["hour"] = current["hour"] = np.float32("nan")
    report = detect(reference, current, SCHEMA, POLICY)
    assert report.drifted == ("age", "city")
    assert found(report, "age").score is None
    assert found(report, "age").note.startswith("missing everywhere in the window")
    assert found(report, "city").note.startswith("missing everywhere in the reference")
    assert found(report, "hour").note == "missing everywhere on both sides"


def test_a_column_with_a_handful_of_values_is_not_measured() -> None:
    reference, current = frame(500, 1), frame(500, 2)
    reference.loc[10:, "age"] = np.nan
    current.loc[12:, "age"] = np.nan
    age = found(detect(reference, current, SCHEMA, POLICY), "age")
    assert (age.score, age.drifted) == (None, False)
    assert age.note == "10 values in the reference, 12 in the window; a distance needs 30 on both sides"


def test_a_constant_column_drifts_only_when_the_window_differs_from_it() -> None:
    reference, current = frame(500, 1), frame(500, 2)
    for name in ("age", "hour", "city"):
        reference[name] = current[name] = "paris" if name == "city" else np.float32(3)
    current.loc[:249, "hour"] = 4
    current["income"] = np.float32(0)
    report = detect(reference, current, SCHEMA, POLICY)
    assert report.drifted == ("hour",)
    assert found(report, "hour").note == "constant 3 in the reference, different in 50% of the window"
    assert found(report, "age").score == 0.0
    assert found(report, "income").note == "constant in the window"


def test_one_wild_value_neither_drifts_nor_hides_a_shift() -> None:
    reference, current = frame(5_000, 1), frame(1_000, 2)
    current.loc[0, ["age", "hour"]] = np.float32(1e30)
    current.loc[1, "age"] = np.float32("inf")
    current.loc[2:, "hour"] += np.float32(reference["hour"].std())
    assert detect(reference, current, SCHEMA, POLICY).drifted == ("hour",)


def test_unseen_categories_and_numbers_outside_the_training_range_are_counted() -> None:
    ranged = FeatureSchema(
        (Feature("age", "numeric", minimum=0, maximum=99), SCHEMA.features[7]), "bought", "regression"
    )
    reference, current = frame(500, 1), frame(500, 2)
    reference["age"], current["age"] = reference["age"].clip(0, 99), current["age"].clip(0, 99)
    current.loc[:6, "age"] = -1
    current.loc[:3, "age"] = 120
    current.loc[:2, "city"] = "atlantis"
    current.loc[3:4, "city"] = None
    report = detect(reference, current, ranged, POLICY)
    assert report.drifted == ()
    assert found(report, "age").outside == 7
    assert found(report, "city").unseen == 3


def test_a_new_category_with_a_third_of_the_rows_drifts_also_among_thousands() -> None:
    reference, current = frame(5_000, 1), frame(1_000, 2)
    current.loc[:332, "code"] = "unknown"
    report = detect(reference, current, SCHEMA, POLICY)
    assert report.drifted == ("code",)
    assert "all but the 50 most frequent in one bucket" in found(report, "code").note


def test_two_drifted_features_of_ten_are_detected_and_one_is_not() -> None:
    reference, current = frame(5_000, 1), frame(1_000, 2)
    current["age"] += 12
    one = detect(reference, current, SCHEMA, POLICY)
    current["hour"] += 7
    two = detect(reference, current, SCHEMA, POLICY)
    assert (one.drifted, one.detected) == (("age",), False)
    assert (two.drifted, two.detected) == (("age", "hour"), True)


def test_a_key_feature_is_enough_alone_and_an_ignored_one_never_counts() -> None:
    reference, current = frame(5_000, 1), frame(1_000, 2)
    current["age"] += 12
    key = detect(reference, current, SCHEMA, DriftPolicy(key_features=("age",)))
    ignored = detect(reference, current, SCHEMA, DriftPolicy(ignored_features=("age",), share=0.01))
    assert key.reasons == ("key features drifted: age",)
    assert (ignored.drifted, ignored.share, ignored.detected) == (("age",), 0.0, False)


def test_a_date_is_measured_and_not_counted_because_it_moves_with_the_clock() -> None:
    dated = FeatureSchema((Feature("day", "datetime"), SCHEMA.features[0]), "bought", "regression")
    reference, current = frame(500, 1), frame(500, 2)
    days = np.random.default_rng(0).permutation(np.linspace(20_000, 20_130, 1_000, dtype=np.float32))
    reference["day"], current["day"] = days[:500], days[500:] + 100
    report = detect(reference, current, dated, POLICY)
    assert (report.drifted, report.share, report.detected) == (("day",), 0.0, False)
    assert detect(reference, current, dated, DriftPolicy(key_features=("day",))).detected


def test_a_drifted_prediction_is_detected_although_no_feature_moved() -> None:
    reference, current = with_scores(frame(5_000, 1), 1), with_scores(frame(1_000, 2), 2, a=4.0)
    report = detect(reference, current, SCHEMA, POLICY)
    assert report.prediction is not None and report.prediction.test == "wasserstein"
    assert (report.drifted, report.detected, report.share) == ((), True, 0.0)
    assert report.reasons[0].startswith("the prediction drifted: wasserstein ")
    assert not detect(reference, current, SCHEMA, DriftPolicy(prediction=False)).detected


@pytest.mark.parametrize("names", [("yes", "no", "perhaps"), (1, 2, 3)])
def test_predicted_classes_are_compared_as_categories_when_there_are_no_scores(names: tuple[object, ...]) -> None:
    rng = np.random.default_rng(3)
    schema = FeatureSchema(SCHEMA.features[:1], "answer", "multiclass", classes=names)  # type: ignore[arg-type]
    reference, current = frame(1_000, 1)[["age"]], frame(1_000, 2)[["age"]]
    reference["_prediction"] = rng.choice(np.array(names), 1_000, p=[0.6, 0.3, 0.1])
    current["_prediction"] = rng.choice(np.array(names, dtype=object), 1_000, p=[0.6, 0.3, 0.1])
    reference["_score"] = current["_score"] = np.nan
    steady = detect(reference, current, schema, POLICY).prediction
    current["_prediction"] = rng.choice(np.array(names, dtype=object), 1_000, p=[0.1, 0.3, 0.6])
    moved = detect(reference, current, schema, POLICY).prediction
    assert steady is not None and (steady.test, steady.drifted) == ("jensenshannon", False)
    assert moved is not None and moved.drifted


def test_a_regression_compares_predicted_numbers() -> None:
    schema = FeatureSchema(SCHEMA.features[:1], "price", "regression")
    reference, current = frame(1_000, 1)[["age"]], frame(1_000, 2)[["age"]]
    reference["_prediction"], current["_prediction"] = reference["age"] * 2.0, current["age"] * 2.0 + 24
    report = detect(reference, current, schema, POLICY)
    assert report.prediction is not None and report.prediction.test == "wasserstein"
    assert (report.drifted, report.prediction.drifted) == ((), True)


@pytest.mark.parametrize("numeric", ["wasserstein", "jensenshannon", "psi"])
@pytest.mark.parametrize("categorical", ["jensenshannon", "psi"])
def test_every_test_that_can_be_chosen_tells_moved_from_unmoved(numeric: str, categorical: str) -> None:
    policy = DriftPolicy(numeric_test=numeric, categorical_test=categorical, permutations=20)
    reference, current = frame(2_000, 1), frame(1_000, 2)
    assert detect(reference, current, SCHEMA, policy).drifted == ()
    current["age"] += 12
    current["member"] = 1 - current["member"]
    assert detect(reference, current, SCHEMA, policy).drifted == ("age", "member")


def test_the_fast_splits_are_distributed_as_evidently_s_distances_of_splits() -> None:
    reference, current = frame(400, 1), frame(200, 2)
    old, new = (side["age"].to_numpy(np.float64) / 12 for side in (reference, current))
    slow = distance._splits(distance.distance_of("wasserstein", "num"), old, new, 300, np.random.default_rng(1))
    fast = distance._wasserstein_splits(old, new, 300, np.random.default_rng(2))
    assert (fast.mean(), fast.std()) == pytest.approx((slow.mean(), slow.std()), rel=0.12)
    a, b = (side["city"].str.removeprefix("city").to_numpy(dtype=np.int64) for side in (reference, current))
    slow = distance._splits(distance.distance_of("jensenshannon", "cat"), a, b, 300, np.random.default_rng(1))
    fast = distance._jensenshannon_splits(a, b, 300, np.random.default_rng(2))
    assert (fast.mean(), fast.std()) == pytest.approx((slow.mean(), slow.std()), rel=0.12)


def test_a_frame_without_a_feature_and_a_policy_with_a_stranger_are_refused_by_name() -> None:
    whole = frame(500, 1)
    with pytest.raises(ValueError, match=r"the window has no column age; make it with FeatureSchema\.canonical"):
        detect(whole, whole.drop(columns="age"), SCHEMA, POLICY)
    with pytest.raises(ValueError, match="key_features names agee; the features are age, income"):
        detect(whole, whole, SCHEMA, DriftPolicy(key_features=("agee",)))
    with pytest.raises(ValidationError, match="treshold"):
        DriftPolicy(treshold=0.2)  # type: ignore[call-arg]
