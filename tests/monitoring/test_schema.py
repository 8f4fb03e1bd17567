"""The feature schema: what is inferred from a training frame, the canonical form, labels, and the published schema."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.decode import RequestDecoder
from monitoring.feature import MAX_CATEGORIES, RESERVED_COLUMNS, Feature, SchemaError
from monitoring.json_schema import json_schema
from monitoring.schema import FeatureSchema


def infer_one(values: Any, **arguments: Any) -> Feature:
    """The feature inferred from one column, beside a target of two classes."""
    column = pd.Series(values) if not isinstance(values, pd.Series) else values
    frame = pd.DataFrame({"x": column, "y": [index % 2 for index in range(len(column))]})
    return FeatureSchema.infer(frame, "y", **arguments).features[0]


def infer_target(values: Any, **arguments: Any) -> FeatureSchema:
    frame = pd.DataFrame({"x": np.arange(len(values), dtype=float), "y": values})
    return FeatureSchema.infer(frame, "y", **arguments)


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "when": pd.to_datetime(["2026-01-01", "2026-01-02", None, "2026-01-04"]),
            "age": [31, 52, 18, 40],
            "member": pd.array([True, None, False, True], dtype="boolean"),
            "city": ["Bonn", None, "", "Ulm"],
            "score": [0.5, np.nan, -1.0, 2.0],
            "paid": ["no", "yes", "no", "yes"],
        }
    )


@pytest.fixture
def schema(frame: pd.DataFrame) -> FeatureSchema:
    return FeatureSchema.infer(frame, "paid")


# -- kinds -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind", "integer", "nullable"),
    [
        (pd.Series([1, 2], dtype="int8"), "numeric", True, False),
        (pd.Series([1, None], dtype="Int64"), "numeric", True, True),
        (pd.Series([1.5, None], dtype="Float64"), "numeric", False, True),
        (pd.Series([1.0, np.nan]), "numeric", False, True),
        (pd.Series([1, None], dtype=object), "numeric", True, True),
        (pd.Series([Decimal("1.5"), None], dtype=object), "numeric", False, True),
        (pd.Series([np.nan, np.nan]), "numeric", False, True),
        (pd.Series([1, 2], dtype="int64[pyarrow]"), "numeric", True, False),
        (pd.Series([True, False]), "boolean", False, False),
        (pd.Series([True, None], dtype="boolean"), "boolean", False, True),
        (pd.Series([True, None], dtype=object), "boolean", False, True),
        (pd.Series([None, np.False_], dtype=object), "boolean", False, True),
        (pd.Series(pd.to_datetime(["2026-01-01", None])), "datetime", False, True),
        (pd.Series(pd.to_datetime(["2026-01-01", "2026-01-02"], utc=True)), "datetime", False, False),
        (pd.Series([date(2026, 1, 1), None], dtype=object), "datetime", False, True),
        (pd.Series([datetime(2026, 1, 1), date(2026, 1, 2)], dtype=object), "datetime", False, False),
        (pd.Series(pd.to_datetime(["2026-01-01", None]), dtype="timestamp[us][pyarrow]"), "datetime", False, True),
        (pd.Series(["a", None]), "categorical", False, True),
        (pd.Series(["a", pd.NA], dtype="string"), "categorical", False, True),
        (pd.Series(["a", None], dtype="string[pyarrow]"), "categorical", False, True),
        (pd.Series(["a", 1], dtype=object), "categorical", False, False),
        (pd.Series([None, None], dtype=object), "categorical", False, True),
        (pd.Series([1, 2], dtype="category"), "categorical", False, False),
    ],
    ids=str,
)
def test_a_kind_follows_from_the_values(values: pd.Series, kind: str, integer: bool, nullable: bool) -> None:
    feature = infer_one(values)

    assert (feature.kind, feature.integer, feature.nullable) == (kind, integer, nullable)


def test_ranges_are_those_of_the_values_as_float32() -> None:
    feature = infer_one([0.1, 0.7, np.nan])

    assert feature.minimum == float(np.float32(0.1))
    assert feature.maximum == float(np.float32(0.7))


def test_ranges_of_a_datetime_are_days() -> None:
    feature = infer_one(pd.Series(pd.to_datetime(["1970-01-02", "1970-01-11"])))

    assert (feature.minimum, feature.maximum) == (1.0, 10.0)


def test_a_constant_column_has_one_value_as_its_range() -> None:
    feature = infer_one([3, 3, 3])

    assert (feature.minimum, feature.maximum) == (3.0, 3.0)


def test_columns_without_one_value_have_no_range_and_no_categories() -> None:
    assert infer_one(pd.Series([np.nan, np.nan])).minimum is None
    assert infer_one(pd.Series([pd.NaT, pd.NaT])).maximum is None
    assert infer_one(pd.Series([None, None], dtype=object)).categories == ()


def test_the_empty_string_is_a_category_and_the_missing_markers_are_none() -> None:
    feature = infer_one(pd.Series(["b", "", None, np.nan, pd.NA, "a"], dtype=object))

    assert feature.categories == ("", "a", "b")
    assert feature.nullable


def test_categories_that_are_not_text_become_text() -> None:
    assert infer_one(pd.Series([10, 9, 9], dtype="category")).categories == ("10", "9")
    assert infer_one(pd.Series([5.0, "5", 2.5, True], dtype=object)).categories == ("2.5", "5", "True")


def test_only_the_most_frequent_categories_are_kept() -> None:
    rare = [f"rare{index:04}" for index in range(MAX_CATEGORIES + 500)]
    feature = infer_one(pd.Series([*rare, "zebra", "zebra"]))

    assert len(feature.categories) == MAX_CATEGORIES
    assert "zebra" in feature.categories
    assert feature.categories == tuple(sorted(feature.categories))
    assert "rare0000" in feature.categories, "ties are kept in alphabetical order"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (pd.Series(pd.to_timedelta([1, 2], unit="s")), "timedelta64"),
        ([1j, 2j], "complex128"),
        ([[1], [2]], "got [1] of type list"),
        ([1.0, np.inf], "inf is infinite or outside float32"),
        ([1.0, -1e300], "-1e+300 is infinite or outside float32"),
        (pd.Series([1, 10**400], dtype=object), "fits float32"),
        ([b"raw", b"bytes"], "of type bytes"),
    ],
    ids=str,
)
def test_values_that_no_model_can_take_are_refused_by_name(values: Any, words: str) -> None:
    with pytest.raises(SchemaError) as caught:
        infer_one(values)

    assert '"x"' in str(caught.value)
    assert words in str(caught.value)


# -- columns -----------------------------------------------------------------------------------------------------------


def test_an_unknown_target_or_ignored_column_is_named_with_the_nearest_one(frame: pd.DataFrame) -> None:
    with pytest.raises(SchemaError, match='target column "payed" is not in the data; did you mean "paid"'):
        FeatureSchema.infer(frame, "payed")
    with pytest.raises(SchemaError, match='ignored column "wen" is not in the data; did you mean "when"'):
        FeatureSchema.infer(frame, "paid", ignore=["wen"])
    with pytest.raises(SchemaError, match="the columns are when, age"):
        FeatureSchema.infer(frame, "zzzzzz")


def test_ignored_columns_are_no_features(frame: pd.DataFrame) -> None:
    assert FeatureSchema.infer(frame, "paid", ignore=("when", "city")).names == ("age", "member", "score")
    assert "when" not in FeatureSchema.infer(frame, "paid", ignore="when").names


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (["a", "a", "y"], 'column "a" appears twice'),
        (["a", 7, "y"], "column name 7 is not a string"),
        (["a", "", "y"], "its name is empty"),
        (["a", 'b"c', "y"], "rename it"),
        (["a", "b\\c", "y"], "rename it"),
        (["a", "b\nc", "y"], "rename it"),
        (["a", "b\udc00", "y"], "not valid Unicode"),
        (["a", "_id", "y"], "uses that name"),
    ],
)
def test_unusable_column_names_are_refused(columns: list[Any], words: str) -> None:
    frame = pd.DataFrame([[1, 2, 0], [3, 4, 1]], columns=columns)

    with pytest.raises(SchemaError, match=words):
        FeatureSchema.infer(frame, "y")


def test_reserved_names_may_be_ignored() -> None:
    frame = pd.DataFrame({"a": [1, 2], "_id": [3, 4], "y": [0, 1]})

    assert FeatureSchema.infer(frame, "y", ignore=RESERVED_COLUMNS & set(frame.columns)).names == ("a",)


def test_a_frame_without_rows_or_features_is_refused(frame: pd.DataFrame) -> None:
    with pytest.raises(SchemaError, match="no rows"):
        FeatureSchema.infer(frame.head(0), "paid")
    with pytest.raises(SchemaError, match="no feature"):
        FeatureSchema.infer(frame[["paid"]], "paid")
    with pytest.raises(SchemaError, match="target and cannot be ignored"):
        FeatureSchema.infer(frame, "paid", ignore=["paid"])


# -- target ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        ([True, False, True], "binary", (False, True)),
        (pd.array([True, False], dtype="boolean"), "binary", (False, True)),
        (["b", "a", "b"], "binary", ("a", "b")),
        (["b", "a", "c"], "multiclass", ("a", "b", "c")),
        ([0, 1, 1], "binary", (0, 1)),
        ([0.0, 1.0, 1.0], "binary", (0, 1)),
        ([2, 10, 3], "multiclass", (2, 3, 10)),
        (pd.array([3, 1, 2], dtype="Int64"), "multiclass", (1, 2, 3)),
        (list(range(20)), "multiclass", tuple(range(20))),
        (list(range(21)), "regression", ()),
        ([0.5, 1.5, 2.5], "regression", ()),
        ([0.5, 1.5, 0.5], "regression", ()),
        (np.linspace(0, 1, 30), "regression", ()),
    ],
    ids=str,
)
def test_the_task_follows_from_the_target(values: Any, task: str, classes: tuple[Any, ...]) -> None:
    schema = infer_target(values)

    assert (schema.task, schema.classes) == (task, classes)
    assert [type(value) for value in schema.classes] == [type(value) for value in classes]


def test_classes_stand_in_the_order_of_scikit_learn() -> None:
    values = ["b", "B", "ä", "a", "10", "9"]

    assert list(infer_target(values).classes) == np.unique(np.array(values, dtype=object)).tolist()


def test_the_task_can_be_given() -> None:
    assert infer_target([1, 2, 3], task="regression").classes == ()
    assert infer_target([1, 1, 1], task="regression").task == "regression"
    assert infer_target([0, 1], task="multiclass").task == "multiclass"
    assert infer_target(list(range(30)), task="multiclass").classes == tuple(range(30))


@pytest.mark.parametrize(
    ("values", "task", "words"),
    [
        (["a", "a"], None, "one class only"),
        ([True, True], None, "one class only"),
        ([1, 1], None, "one class only"),
        (["a", "b", "c"], "binary", "3 distinct values"),
        (["a", "b"], "regression", "holds text, such as"),
        ([True, False], "regression", "holds booleans"),
        ([0.5, 1.0], "multiclass", "whole numbers, strings or booleans"),
        (["a", None], None, "missing in 1 of 2 rows: drop"),
        ([1.0, np.nan], None, "missing in 1 of 2 rows"),
        ([1.0, np.inf], None, r"expected finite numbers within ±1e\+30, got inf"),
        (pd.to_datetime(["2026-01-01", "2026-01-02"]), None, "holds dates"),
        ([0, 1], "ranking", "must be one of binary, multiclass, regression"),
    ],
    ids=str,
)
def test_targets_that_cannot_be_learned_are_refused(values: Any, task: Any, words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        infer_target(values, task=task)


# -- storage -----------------------------------------------------------------------------------------------------------


def test_a_schema_survives_its_file(schema: FeatureSchema) -> None:
    assert FeatureSchema.from_json(schema.to_json()) == schema
    assert FeatureSchema.from_json(schema.to_json()).to_json() == schema.to_json()


def test_the_digest_is_of_names_kinds_and_target_and_not_of_ranges(frame: pd.DataFrame, schema: FeatureSchema) -> None:
    moved = frame.assign(age=frame["age"] + 1000, city=["Köln", "Trier", "Köln", "Trier"])
    renamed = frame.rename(columns={"age": "years"})

    assert FeatureSchema.infer(moved, "paid").digest == schema.digest
    assert FeatureSchema.infer(renamed, "paid").digest != schema.digest
    assert FeatureSchema.infer(frame[frame.columns[::-1]], "paid").digest != schema.digest
    assert FeatureSchema.infer(frame.assign(age=["a", "b", "c", "d"]), "paid").digest != schema.digest
    assert FeatureSchema.infer(frame.assign(paid=["no", "oh", "no", "oh"]), "paid").digest != schema.digest
    assert len(schema.digest) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"features": []},
        {"classes": ["no"]},
        {"classes": ["no", 1]},
        {"classes": []},
        {"task": "regression"},
        {"target": "age"},
        {"task": "ranking"},
    ],
    ids=str,
)
def test_a_schema_file_that_contradicts_itself_is_refused(schema: FeatureSchema, change: dict[str, Any]) -> None:
    content = json.loads(schema.to_json()) | change

    with pytest.raises(SchemaError):
        FeatureSchema.from_json(json.dumps(content).encode())


def test_a_file_that_is_no_schema_is_refused() -> None:
    for data in (b"", b"[]", b"\xff", b'{"features":1}', b"[" * 100_000):
        with pytest.raises(SchemaError, match="not a feature schema"):
            FeatureSchema.from_json(data)


def test_importing_the_schema_loads_no_pandas() -> None:
    code = "import sys, monitoring.schema; print(*(set(sys.modules) & {'pandas','sklearn','evidently','sqlalchemy'}))"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


# -- canonical frames --------------------------------------------------------------------------------------------------


def test_a_canonical_frame_has_float32_and_text_in_schema_order(schema: FeatureSchema, frame: pd.DataFrame) -> None:
    shuffled = frame[["score", "paid", "city", "age", "when", "member"]].set_index(pd.Index([7, 8, 9, 10]))

    canonical = schema.canonical(shuffled)

    assert list(canonical.columns) == ["when", "age", "member", "city", "score"]
    assert list(canonical.index) == [7, 8, 9, 10]
    assert [str(dtype) for dtype in canonical.dtypes] == ["float32", "float32", "float32", "object", "float32"]
    np.testing.assert_array_equal(canonical["when"], np.array([20454, 20455, np.nan, 20457], np.float32))
    np.testing.assert_array_equal(canonical["member"], np.array([1, np.nan, 0, 1], np.float32))
    assert canonical["city"].tolist()[0] == "Bonn"
    assert canonical["city"].tolist()[1] is np.nan
    assert canonical["city"].tolist()[2] == ""


def test_a_canonical_frame_is_its_own_canonical_form(schema: FeatureSchema, frame: pd.DataFrame) -> None:
    canonical = schema.canonical(frame)

    pd.testing.assert_frame_equal(schema.canonical(canonical), canonical)


def test_the_given_frame_is_left_alone(schema: FeatureSchema, frame: pd.DataFrame) -> None:
    before = frame.copy(deep=True)

    canonical = schema.canonical(frame)
    canonical.loc[:, "age"] = np.nan
    canonical.loc[:, "city"] = "Rome"

    pd.testing.assert_frame_equal(frame, before)


def test_an_empty_frame_has_an_empty_canonical_form(schema: FeatureSchema, frame: pd.DataFrame) -> None:
    for empty in (schema.canonical(frame.head(0)), schema.frame([])):
        assert empty.shape == (0, 5)
        assert [str(dtype) for dtype in empty.dtypes] == ["float32", "float32", "float32", "object", "float32"]


def test_datetimes_of_any_make_become_days_of_utc() -> None:
    zone = timezone(timedelta(hours=6))
    schema = FeatureSchema((Feature("x", "datetime"),), "y", "regression")
    columns = [
        pd.Series(pd.to_datetime(["1970-01-02 12:00"])),
        pd.Series(pd.to_datetime(["1970-01-02 18:00+06:00"])),
        pd.Series(pd.to_datetime(["1970-01-02 12:00"])).astype("datetime64[s]"),
        pd.Series([datetime(1970, 1, 2, 18, tzinfo=zone)], dtype=object),
        pd.Series([datetime(1970, 1, 2, 12)], dtype=object),
        pd.Series([np.datetime64("1970-01-02T12:00")], dtype=object),
        pd.Series(["1970-01-02T12:00:00Z"]),
        pd.Series(["1970-01-02T18:00+06:00"], dtype="category"),
        pd.Series(pd.to_datetime(["1970-01-02 12:00"]), dtype="timestamp[us][pyarrow]"),
        pd.Series(pd.to_datetime(["1970-01-02 12:00"], utc=True), dtype="timestamp[us, UTC][pyarrow]"),
        pd.Series([1.5], dtype=np.float32),
    ]
    for column in columns:
        assert schema.canonical(pd.DataFrame({"x": column}))["x"].tolist() == [1.5]


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("age", ["1", "2", "3", "4"], 'column "age": expected a number, got "1"'),
        ("age", [1, "old", 3, 4], 'column "age": expected a number, got "old"'),
        ("age", [True, False, True, True], 'column "age": expected a number, got True'),
        ("age", [1, True, 3, None], 'column "age": expected a number, got True'),
        ("age", [1.0, np.inf, 2.0, 3.0], 'column "age": inf is infinite'),
        ("age", pd.to_datetime(["2026-01-01"] * 4), 'column "age": expected a number, got Timestamp'),
        ("member", ["yes", "no", "no", "no"], 'column "member": expected True or False, got "yes"'),
        ("member", [0, 1, 2, 0], 'column "member": expected True, False, 1 or 0, got 2'),
        ("member", [True, "x" * 100, None, False], 'column "member": expected True or False, got "x+…$'),
        ("when", ["2026-01-01", "soon", None, ""], 'column "when": expected a date or an ISO-8601 string, got "soon"'),
        ("when", [True, False, True, True], 'column "when": expected a date'),
        ("city", [["Bonn"], None, "a", "b"], 'column "city": expected text, got .* of type list'),
    ],
)
def test_the_first_bad_value_of_a_column_is_named(
    schema: FeatureSchema, frame: pd.DataFrame, column: str, value: Any, words: str
) -> None:
    with pytest.raises(SchemaError, match=words):
        schema.canonical(frame.assign(**{column: value}))


def test_a_missing_or_repeated_column_is_named(schema: FeatureSchema, frame: pd.DataFrame) -> None:
    with pytest.raises(SchemaError, match='column "age" is missing from the data'):
        schema.canonical(frame.drop(columns="age"))
    with pytest.raises(SchemaError, match='column "age" appears twice'):
        schema.canonical(pd.concat([frame, frame[["age"]]], axis=1))


def test_records_become_the_same_frame_as_the_data_they_came_from(schema: FeatureSchema, frame: pd.DataFrame) -> None:
    records: list[dict[str, Any]] = [
        {"when": "2026-01-01T00:00:00Z", "age": 31, "member": True, "city": "Bonn", "score": 0.5},
        {"when": "2026-01-02", "age": 52.0, "member": None, "city": None, "score": None},
        {"when": None, "age": 18, "member": False, "city": "", "score": -1},
        {"when": "2026-01-04T02:00:00+02:00", "age": 40, "member": True, "city": "Ulm", "score": 2.0},
    ]

    pd.testing.assert_frame_equal(schema.frame(records), schema.canonical(frame))


def test_records_of_an_earlier_schema_lack_the_new_features(schema: FeatureSchema) -> None:
    frame = schema.frame([{"age": 31, "retired_feature": 1}])

    assert frame["age"].tolist() == [31.0]
    assert frame.drop(columns="age").isna().all(axis=None)


def test_records_with_a_value_of_another_kind_are_refused_by_name(schema: FeatureSchema) -> None:
    with pytest.raises(SchemaError, match='column "age": expected a number, got "old"'):
        schema.frame([{"age": 1}, {"age": "old"}])
    with pytest.raises(SchemaError, match='column "age": expected a number that fits float32'):
        schema.frame([{"age": 10**400}])


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "n": st.none()
                | st.floats(width=32, allow_nan=False, allow_infinity=False)
                | st.integers(-(2**70), 2**70),
                "b": st.none() | st.booleans(),
                "c": st.none() | st.text(max_size=5),
                "t": st.none() | st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)).map(datetime.isoformat),
            }
        ),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=25, deadline=None)
def test_any_valid_record_reads_the_same_through_the_decoder_and_through_the_log(records: list[dict[str, Any]]) -> None:
    schema = FeatureSchema(
        (Feature("n", "numeric"), Feature("b", "boolean"), Feature("c", "categorical"), Feature("t", "datetime")),
        "y",
        "regression",
    )

    batch = RequestDecoder(schema, 10).decode(json.dumps({"records": records}).encode())

    pd.testing.assert_frame_equal(batch.frame(), schema.frame(records))
    pd.testing.assert_frame_equal(schema.canonical(batch.frame()), batch.frame())


# -- labels ------------------------------------------------------------------------------------------------------------


def test_labels_have_the_dtype_of_the_classes() -> None:
    text = infer_target(["a", "b", "a"])
    flag = infer_target([True, False, True])
    count = infer_target([1, 2, 3])
    amount = infer_target([0.5, 1.5, 2.5])

    assert text.labels(pd.Series(["b", "new"])).tolist() == ["b", "new"]
    assert text.labels(pd.Series(["b"], dtype="category")).dtype == object
    assert flag.labels([True, False]).dtype == np.bool_
    assert flag.labels(pd.Series([True, False], dtype=object)).tolist() == [True, False]
    assert count.labels(pd.Series([1.0, 7.0])).tolist() == [1, 7]
    assert count.labels(pd.array([1, 2], dtype="Int64")).dtype == np.int64
    assert count.labels([2**62 + 1]).tolist() == [2**62 + 1]
    assert amount.labels([1, 2.5]).tolist() == [1.0, 2.5]
    assert amount.labels(pd.Series([1, 2])).dtype == np.float64
    assert count.labels([]).tolist() == []


@pytest.mark.parametrize(
    ("classes", "values", "words"),
    [
        ([1, 2, 3], [1.5], "expected whole numbers"),
        ([1, 2, 3], [True], r"expected whole numbers \(the classes are 1, 2, 3\), got True"),
        ([1, 2, 3], ["1"], r'expected whole numbers \(the classes are 1, 2, 3\), got "1"'),
        ([True, False], [1], "expected True or False, got 1"),
        ([0.5, 1.5, 2.5], [1e31], r"expected finite numbers within ±1e\+30, got 1e\+31"),
        (["a", "b"], ["a", None], "missing in 1 of 2 rows"),
        (["a", "b"], [["a"]], "of type list"),
    ],
    ids=str,
)
def test_labels_of_another_type_are_refused(classes: list[Any], values: list[Any], words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        infer_target(classes).labels(values)


@pytest.mark.parametrize(
    ("classes", "good", "bad"),
    [
        (["a", "b"], ["a", "b"], ["never seen", "", "a" * 5000, 1, True, None, ["a"], {}]),
        ([True, False], [True, False], [1, 0, "true", None, 1.0]),
        ([1, 2, 3], [1, 2, 3.0], [7, -5, 2**63 - 1, 1.5, True, "1", None, float("nan"), float("inf"), 2**63, 10**400]),
        (
            [0.5, 1.5, 2.5],
            [1, -2.5, 1e30, -(10**30)],
            [1.1e30, -(2**101), True, "1", None, float("nan"), float("inf"), 10**400, [1]],
        ),
    ],
    ids=str,
)
def test_a_label_is_of_the_targets_type_and_one_of_its_classes(
    classes: list[Any], good: list[Any], bad: list[Any]
) -> None:
    schema = infer_target(classes)

    assert [schema.check_label(value) for value in good] == [None] * len(good)
    for value in bad:
        reason = schema.check_label(value)
        assert reason and len(reason) < 120, value
    assert len(schema.labels(good)) == len(good), "what is accepted can be stored as a label"


# -- JSON Schema -------------------------------------------------------------------------------------------------------


def test_the_json_schema_describes_one_record(schema: FeatureSchema) -> None:
    document = json_schema(schema)

    json.dumps(document, allow_nan=False)
    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert document["required"] == list(schema.names) == list(document["properties"])
    assert document["additionalProperties"] is False
    assert document["properties"]["age"]["type"] == ["number", "null"]
    assert document["properties"]["age"]["x-evergreen"]["maximum"] == 52
    assert document["properties"]["age"]["description"].startswith("whole numbers from 18 to 52 in training")
    assert document["properties"]["member"]["type"] == ["boolean", "null"]
    assert document["properties"]["when"]["format"] == "date-time"
    assert "2026-01-01T00:00:00Z" in document["properties"]["when"]["description"]
    assert document["properties"]["city"]["examples"] == ["", "Bonn", "Ulm"]
    assert "enum" not in json.dumps(document["properties"]), "unseen categories are accepted"
    assert document["properties"]["city"]["maxLength"] == 1024
    assert json_schema(schema, 20)["properties"]["city"]["maxLength"] == 20
    assert document["$defs"]["label"] == {"title": "paid", "type": "string", "enum": ["no", "yes"]}
    assert document["x-evergreen"]["classes"] == ["no", "yes"]


def test_every_example_is_accepted_by_the_decoder(schema: FeatureSchema) -> None:
    document = json_schema(schema)
    decoder = RequestDecoder(schema, 10)
    for name, column in document["properties"].items():
        for example in column["examples"]:
            decoder.decode(json.dumps({"records": [schema.example() | {name: example}]}).encode())
    assert decoder.decode(json.dumps({"records": document["examples"]}).encode()).n == 1


def test_columns_never_present_in_training_are_described_too() -> None:
    frame = pd.DataFrame({"a": [np.nan, np.nan], "b": [None, None], "c": [pd.NaT, pd.NaT], "y": [0.5, 1.5]})
    schema = FeatureSchema.infer(frame, "y")

    assert schema.example() == {"a": None, "b": None, "c": None}
    assert all("never present in training" in p["description"] for p in json_schema(schema)["properties"].values())
    assert json_schema(schema)["$defs"]["label"]["type"] == "number"
