from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from monitoring.moments import days_as_numbers, epoch_unit, iso_texts, named_as_time, written
from monitoring.schema import FeatureSchema

DAYS = pd.Series(pd.date_range("2026-01-20", periods=40, freq="D"))


@pytest.mark.parametrize(
    "form",
    ["%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%b-%Y", "%B %d, %Y", "%d.%m.%Y %H:%M", "%m/%d/%Y %I:%M %p", "%Y%m%d"],
)
def test_the_format_of_date_texts_is_found(form: str) -> None:
    assert written(DAYS.dt.strftime(form)) == ((form,), None)


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"])
def test_iso_texts_are_found_and_become_datetime_features(form: str) -> None:
    texts = DAYS.dt.strftime(form)

    assert written(texts).formats == ("ISO8601",)
    assert iso_texts(texts)
    schema = FeatureSchema.infer(pd.DataFrame({"d": texts, "y": [0, 1] * 20}), "y")
    assert [feature.kind for feature in schema.features] == ["datetime"]
    assert schema.canonical(pd.DataFrame({"d": texts[:1]}))["d"].iloc[0] == 20_473.0


def test_a_day_that_may_be_the_month_is_told_by_the_order_of_the_rows_or_not_at_all() -> None:
    assert written(pd.Series(["01/01/2026", "02/01/2026", "01/02/2026"])).formats == ("%d/%m/%Y",)
    assert written(pd.Series(["05/04/2026", "02/03/2026", "06/01/2026", "07/02/2026"])).formats == (
        "%d/%m/%Y",
        "%m/%d/%Y",
    )


def test_one_odd_text_among_dates_is_named() -> None:
    texts = DAYS.dt.strftime("%d.%m.%Y").where(DAYS.index != 7, "unknown")

    assert written(texts) == (("%d.%m.%Y",), "unknown")


@pytest.mark.parametrize("texts", [["red", "blue"], ["1.5", "2.5"], ["c-00001", "c-00002"], ["1", "2"], [], ["10:30"]])
def test_other_texts_are_no_dates(texts: list[str]) -> None:
    assert written(pd.Series(texts, dtype=object)).formats == ()
    assert not iso_texts(pd.Series(texts, dtype=object))


def test_numbers_since_1970_are_told_by_their_size() -> None:
    seconds = pd.Series(np.arange(1_700_000_000, 1_700_000_100))

    assert [epoch_unit(seconds * many) for many in (1, 1000, 10**6, 10**9)] == ["s", "ms", "us", "ns"]
    assert epoch_unit(seconds / 1000) is None and epoch_unit(pd.Series(["a"])) is None


def test_days_written_as_one_number_are_told_from_other_numbers() -> None:
    days = DAYS.dt.strftime("%Y%m%d").astype(int)

    assert days_as_numbers(days) and days_as_numbers(days.astype(float).where(days.index != 3))
    assert not days_as_numbers(days + 12) and not days_as_numbers(pd.Series([1, 2])) and not days_as_numbers(days + 0.5)


def test_names_that_say_time() -> None:
    assert all(map(named_as_time, ("timestamp", "pickup_time", "Date", "created_at", "ts")))
    assert not any(map(named_as_time, ("age", "category", "fnlwgt", "hats")))
