"""What a file holds becomes what the service takes: the same values as training reads from the same file."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from evergreen_client.files.values import fitted, texts

from monitoring.decode import RequestDecoder
from monitoring.feature import Feature
from monitoring.schema import FeatureSchema

UTC = datetime.UTC
MOMENT = datetime.datetime(2026, 1, 31, 12, 30, 15, 250_000, tzinfo=UTC)

FITTING: list[tuple[str, Any, list[Any]]] = [
    ("numeric", pa.array([1, None, 3]), [1.0, None, 3.0]),
    ("numeric", pa.array([1.5, float("nan"), None]), [1.5, None, None]),
    ("numeric", pa.array([Decimal("1.50"), None]), [1.5, None]),
    ("numeric", pa.array(["1", " 2.5 ", "-3e4", None]), [1.0, 2.5, -30000.0, None]),
    ("numeric", pa.array(["7", "8"]).dictionary_encode(), [7.0, 8.0]),
    ("numeric", pa.nulls(2), [None, None]),
    ("boolean", pa.array([True, None, False]), [True, None, False]),
    ("boolean", pa.array(["true", "False", "TRUE", "0", None]), [True, False, True, False, None]),
    ("boolean", pa.array([1, 0, None]), [True, False, None]),
    ("boolean", pa.array([1.0, 0.0, None]), [True, False, None]),
    ("categorical", pa.array(["a", None, ""]), ["a", None, ""]),
    ("categorical", pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
    ("categorical", pa.array(["a", None], pa.large_string()), ["a", None]),
    ("categorical", pa.array([3, None]), ["3", None]),
    ("categorical", pa.array([3.0, 2.5, None, float("nan")]), ["3", "2.5", None, None]),
    ("categorical", pa.array([True, False]), ["True", "False"]),
    ("categorical", pa.nulls(1), [None]),
    ("datetime", pa.array([MOMENT, None]), ["2026-01-31T12:30:15.250000Z", None]),
    ("datetime", pa.array([MOMENT], pa.timestamp("ns", "Europe/Berlin")), ["2026-01-31T12:30:15.250000Z"]),
    ("datetime", pa.array([MOMENT.replace(tzinfo=None)], pa.timestamp("ms")), ["2026-01-31T12:30:15.250000Z"]),
    ("datetime", pa.array([datetime.date(2026, 1, 31)]), ["2026-01-31T00:00:00.000000Z"]),
    ("datetime", pa.array(["2026-01-31 12:00", None]), ["2026-01-31 12:00", None]),
]


@pytest.mark.parametrize(("kind", "column", "expected"), FITTING)
def test_a_value_that_fits_is_sent_in_its_form(kind: str, column: Any, expected: list[Any]) -> None:
    found, faults = fitted(column, kind)

    assert (found.to_pylist(), faults) == (expected, {})


def of_a_csv_file(kind: str, column: Any) -> bool:
    """Whether pandas would make numbers of it before training sees it."""
    plain = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return kind in ("numeric", "boolean") and bool(pa.types.is_string(plain))


@pytest.mark.parametrize(("kind", "column"), [one[:2] for one in FITTING if not of_a_csv_file(*one[:2])])
def test_the_service_reads_of_it_what_training_reads_of_the_same_column(kind: Any, column: Any) -> None:
    schema = FeatureSchema((Feature(name="x", kind=kind),), target="y", task="regression")
    trained = schema.canonical(pd.DataFrame({"x": column.to_pandas()}))["x"]

    sent = fitted(column, kind)[0].to_pylist()
    served = RequestDecoder(schema, 100).from_columns({"x": sent}).frame()["x"]

    pd.testing.assert_series_equal(served, trained, check_names=False)


@pytest.mark.parametrize(
    ("kind", "column", "row", "problem"),
    [
        ("numeric", pa.array(["1", "old"]), 1, 'expected a number, got "old"'),
        ("numeric", pa.array(["1_000"]), 0, 'expected a number, got "1_000"'),
        ("numeric", pa.array([1.0, float("-inf")]), 1, "-Infinity is no finite number; leave it empty when it is"),
        ("numeric", pa.array(["inf"]), 0, '"inf" is no finite number'),
        ("numeric", pa.array([True]), 0, "expected a number, got true"),
        ("numeric", pa.array([None, [1]]), 1, "expected a number, got [1]"),
        ("boolean", pa.array(["yes"]), 0, 'expected true or false, got "yes"'),
        ("boolean", pa.array([0, 2]), 1, "expected true or false, got 2"),
        ("datetime", pa.array([20260131]), 0, "expected a date, or its text in ISO 8601"),
        ("categorical", pa.array([["a"]]), 0, 'expected text, got ["a"]'),
        ("categorical", pa.array([b"\x80"]), 0, "expected text, got "),
    ],
)
def test_a_value_that_does_not_fit_is_a_fault_and_missing(kind: str, column: Any, row: int, problem: str) -> None:
    found, faults = fitted(column, kind)

    assert list(faults) == [row] and faults[row].startswith(problem)
    assert found[row].as_py() is None and len(found) == len(column)


def test_a_decimal_comma_is_read_where_the_file_has_one() -> None:
    assert fitted(pa.array(["1,5", "2"]), "numeric", ",")[0].to_pylist() == [1.5, 2.0]


def test_every_float_is_read_from_text_as_it_is() -> None:
    numbers = np.random.default_rng(0).normal(size=1000) * 10.0 ** np.arange(-150, 150, 0.3)

    assert fitted(pa.array([repr(float(number)) for number in numbers]), "numeric")[0].to_pylist() == numbers.tolist()


def test_ids_are_texts() -> None:
    assert texts(pa.array([7, None]))[0].to_pylist() == ["7", None]
