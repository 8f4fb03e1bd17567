from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from monitoring.distance import distance_of
from monitoring.drift import MAX_REACH, DriftPolicy, detect
from monitoring.feature import Feature
from monitoring.past import NOTHING, codes_shown, distances_shown, missing_shown, numbers_shown
from monitoring.schema import FeatureSchema

SCHEMA = FeatureSchema((Feature("load", "numeric"),), "y", "regression")
POLICY = DriftPolicy()


def slow(rows: int, seed: int, memory: float = 0.995) -> np.ndarray:
    """An autoregression: consecutive rows resemble each other, the whole stays where it is."""
    noise = np.random.default_rng(seed).normal(0, np.sqrt(1 - memory**2), rows)
    values = np.empty(rows)
    values[0] = noise[0] / np.sqrt(1 - memory**2)
    for at in range(1, rows):
        values[at] = memory * values[at - 1] + noise[at]
    return values


def loads(values: np.ndarray, at: float | None = None) -> pd.DataFrame:
    frame = pd.DataFrame({"load": values.astype(np.float32)})
    return frame if at is None else frame.assign(_at=at + np.arange(len(frame), dtype=float))


def test_a_window_of_dependent_rows_differs_and_has_not_moved() -> None:
    moved = chance_alone = 0
    for seed in range(8):
        values = slow(6_000, seed)
        reference, window = loads(values[:5_000]), loads(values[5_000:])
        moved += detect(reference, window, SCHEMA, POLICY).features[0].drifted
        shuffled = reference.sample(frac=1, random_state=seed)  # its past is gone: only chance is left to compare with
        chance_alone += detect(shuffled, window, SCHEMA, POLICY).features[0].drifted
    assert (moved, chance_alone) == (0, 8)


def test_a_shift_that_the_past_never_showed_has_moved_although_rows_depend_on_each_other() -> None:
    values = slow(6_000, 1, memory=0.95)
    drift = detect(loads(values[:5_000]), loads(values[5_000:] + 1.5), SCHEMA, POLICY).features[0]
    assert drift.drifted and drift.score is not None
    assert drift.past > 0.1 and drift.times == pytest.approx(drift.score / drift.threshold)


@pytest.mark.parametrize("rows", [600, 2_000, 5_000])
def test_independent_rows_show_no_more_than_chance_at_the_window_s_length(rows: int) -> None:
    levels = []
    for seed in range(9):
        rng = np.random.default_rng(seed)
        columns = rng.normal(size=rows), rng.integers(0, 2, rows), rng.random(rows) < 0.3
        shown = (numbers_shown, codes_shown, missing_shown)
        levels.append([show(column, 1_000, 3.0).level for show, column in zip(shown, columns, strict=True)])  # type: ignore[operator]
    assert (np.median(levels, axis=0) < [0.14, 0.07, 0.09]).all()


def test_a_trend_goes_on_as_it_did_and_what_stands_still_does_not_grow() -> None:
    trend = np.linspace(-1.7, 1.7, 4_000)
    assert numbers_shown(trend, 500, 3.0).growth == pytest.approx(1.0, abs=0.05)
    assert numbers_shown(np.random.default_rng(1).permutation(trend), 500, 3.0).growth < 0.2
    shown = numbers_shown(trend, 500, 3.0)
    assert shown.at(2.0) == pytest.approx(2 * shown.level, rel=0.05) and shown.at(0.5) == shown.level


def test_what_the_past_shows_grows_with_the_gap_in_time_up_to_a_bound() -> None:
    values = np.concatenate([np.linspace(0, 1, 4_000) + np.random.default_rng(0).normal(0, 1, 4_000)])
    window = np.random.default_rng(1).normal(2.0, 1, 1_000)
    reference = loads(values, at=0.0)
    near, far, beyond = (
        detect(reference, loads(window, at=at), SCHEMA, POLICY).features[0].past for at in (4_000.0, 7_500.0, 1e9)
    )
    assert near < far < beyond <= near * MAX_REACH
    without = detect(loads(values), loads(window, at=1e9), SCHEMA, POLICY).features[0].past
    assert without < near


def test_seasons_of_a_category_and_of_missing_values_are_no_movement() -> None:
    season = np.arange(5_000) // 500 % 2
    schema = FeatureSchema((Feature("wind", "categorical"), Feature("load", "numeric")), "y", "regression")
    rng = np.random.default_rng(2)
    wind = np.where(rng.random(5_000) < np.where(season, 0.8, 0.2), "north", "south").astype(object)
    load = np.where(rng.random(5_000) < np.where(season, 0.6, 0.1), np.nan, rng.normal(size=5_000)).astype(np.float32)
    reference = pd.DataFrame({"wind": wind, "load": load})
    window = reference.iloc[:500].reset_index(drop=True)
    assert detect(reference, window, schema, POLICY).drifted == ()
    shuffled = reference.sample(frac=1, random_state=0)
    assert detect(shuffled, window, schema, POLICY).drifted == ("wind", "load")


def test_other_distances_know_the_past_too() -> None:
    values = slow(6_000, 4)
    quiet = DriftPolicy(numeric_test="psi", permutations=20)
    assert not detect(loads(values[:5_000]), loads(values[5_000:]), SCHEMA, quiet).features[0].drifted
    assert distances_shown(distance_of("psi", "num"), values, 1_000, 3.0).growth == 0.0


def test_a_reference_too_short_to_be_cut_shows_nothing() -> None:
    few = np.random.default_rng(0).normal(size=150)
    assert numbers_shown(few, 1_000, 3.0) == NOTHING
    assert codes_shown(np.zeros(150, np.int64), 1_000, 3.0) == NOTHING
    assert missing_shown(np.zeros(150, bool), 1_000, 3.0) == NOTHING
    assert distances_shown(distance_of("psi", "num"), few, 1_000, 3.0) == NOTHING
