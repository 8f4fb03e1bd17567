from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from monitoring.feature import Feature
from monitoring.schema import FeatureSchema
from training.importance import importance

SCHEMA = FeatureSchema(
    (Feature("debt", "numeric"), Feature("city", "categorical"), Feature("noise", "numeric")),
    "late",
    "binary",
    classes=(0, 1),
)


def rows(count: int) -> pd.DataFrame:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"debt": random.normal(size=count), "noise": random.normal(size=count)}).astype(np.float32)
    frame["city"] = random.choice(np.array(["bern", "oslo"], dtype=object), count)
    return frame


def answer(frame: pd.DataFrame) -> Any:
    chance = 1 / (1 + np.exp(-2 * frame["debt"].to_numpy() - 0.5 * (frame["city"] == "oslo").to_numpy()))
    return np.column_stack([1 - chance, chance])


def test_shares_add_up_and_follow_what_the_model_leans_on() -> None:
    shares = importance(answer, rows(3_000), SCHEMA)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["debt"] > 0.7 > shares["city"] > 0.05 and shares["noise"] == 0.0


def test_the_same_seed_gives_the_same_shares_and_the_frame_stays_as_it_was() -> None:
    frame = rows(500)
    before = frame.copy()
    assert importance(answer, frame, SCHEMA, seed=3) == importance(answer, frame, SCHEMA, seed=3)
    pd.testing.assert_frame_equal(frame, before)


def test_only_so_many_rows_are_asked_for() -> None:
    asked = list[int]()

    def counting(frame: pd.DataFrame) -> Any:
        asked.append(len(frame))
        return frame["debt"].to_numpy()

    importance(counting, rows(3_000), SCHEMA, rows=200)
    assert asked == [200] * 4


def test_a_constant_answer_and_no_rows_give_zeros() -> None:
    nothing = {"debt": 0.0, "city": 0.0, "noise": 0.0}
    assert importance(lambda frame: np.ones(len(frame)), rows(50), SCHEMA) == nothing
    assert importance(answer, rows(50).iloc[:0], SCHEMA) == nothing
