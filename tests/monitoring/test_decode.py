"""Requests: what is decoded, what is refused, and whether the refusal says where, what and what to do."""

from __future__ import annotations

import json
import keyword
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from monitoring.decode import Batch, InvalidRequest, RequestDecoder
from monitoring.feature import Feature, SchemaError
from monitoring.fits import FLOAT32_LIMIT, days_since_epoch
from monitoring.schema import FeatureSchema


def schema_of(*features: Feature) -> FeatureSchema:
    return FeatureSchema(features, "y", "regression")


SCHEMA = schema_of(
    Feature("age", "numeric", integer=True, minimum=18, maximum=52),
    Feature("city", "categorical", categories=("Bonn", "Ulm")),
    Feature("member", "boolean"),
    Feature("when", "datetime"),
    Feature("height cm", "numeric"),
)
DECODER = RequestDecoder(SCHEMA, 4)
GOOD: dict[str, Any] = {"age": 31, "city": "Bonn", "member": True, "when": "1970-01-02", "height cm": 170.5}


def body(*records: Any, **rest: Any) -> bytes:
    return json.dumps({"records": list(records), **rest}).encode()


def refused(data: bytes, decoder: RequestDecoder = DECODER) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        decoder.decode(data)
    return caught.value


# -- what is decoded ---------------------------------------------------------------------------------------------------


def test_a_batch_gives_the_values_in_schema_order() -> None:
    unknown = {"height cm": None, "when": None, "member": None, "city": None, "age": None}

    batch = DECODER.decode(body(GOOD, unknown, ids=["a", "b"]))

    assert (batch.n, batch.ids) == (2, ["a", "b"])
    assert batch.numeric().dtype == np.float32
    np.testing.assert_array_equal(batch.numeric(), np.array([[31, 1, 1, 170.5], [np.nan] * 4], np.float32))
    assert batch.categorical() == [("Bonn",), (None,)]


@pytest.mark.parametrize("rows", [1, 3])
def test_the_numeric_matrix_can_be_written_to(rows: int) -> None:
    for schema in (SCHEMA, schema_of(Feature("height cm", "numeric"))):
        record = {name: GOOD[name] for name in schema.names}
        matrix = RequestDecoder(schema, 4).decode(body(*[record] * rows)).numeric()

        assert matrix.flags.writeable
        assert matrix.shape == (rows, len(schema.numeric_names))


def test_ids_may_be_absent_or_null() -> None:
    assert DECODER.decode(body(GOOD)).ids is None
    assert DECODER.decode(body(GOOD, ids=None)).ids is None


@pytest.mark.parametrize(("sent", "taken"), [("1", 1.0), ("-0", 0.0), ("1e-400", 0.0), ("3.4028235e38", 3.4028235e38)])
def test_whole_tiny_and_large_numbers_are_numbers(sent: str, taken: float) -> None:
    decoder = RequestDecoder(schema_of(Feature("x", "numeric")), 1)

    assert decoder.decode(b'{"records":[{"x":%s}]}' % sent.encode()).numeric()[0, 0] == np.float32(taken)


def test_an_integer_feature_still_takes_fractions() -> None:
    assert DECODER.decode(body(GOOD | {"age": 31.5})).numeric()[0, 0] == 31.5


def test_unseen_categories_and_the_empty_string_are_values() -> None:
    batch = DECODER.decode(body(GOOD | {"city": "Atlantis"}, GOOD | {"city": ""}))

    assert batch.categorical() == [("Atlantis",), ("",)]


def test_of_a_repeated_key_the_last_one_wins() -> None:
    decoder = RequestDecoder(schema_of(Feature("x", "numeric")), 1)

    assert decoder.decode(b'{"records":[{"x":1,"x":2}]}').numeric()[0, 0] == 2
    assert refused(b'{"records":[{"x":"a","x":2}]}', decoder).message == 'records[0].x: expected a number, got "a"'


@pytest.mark.parametrize(
    ("sent", "days"),
    [
        ("1970-01-02", 1.0),
        ("1970-01-02T12:00:00", 1.5),
        ("1970-01-02 12:00:00Z", 1.5),
        ("1970-01-02T18:00:00+06:00", 1.5),
        ("1969-12-31T00:00:00Z", -1.0),
        ("9999-12-31", 2932896.0),
    ],
)
def test_datetimes_become_days_of_utc(sent: str, days: float) -> None:
    assert days_since_epoch(sent) == days
    assert DECODER.decode(body(GOOD | {"when": sent})).numeric()[0, 2] == days


NAMES = [
    "class", "None", "_private", "__init__", "with space", "dotted.name", "dash-ed", "größe", "年齢", "1st", "records",
    "ids", "f0", "f1", "$ref", "a/b", "<tag>", "self", "n" * 300, "🌲", "'", "{}", "%s", "\x7f", " ", "mro", "__dict__",
]  # fmt: skip


def test_any_column_name_works_and_is_kept_apart() -> None:
    assert keyword.iskeyword(NAMES[0])
    features = [Feature(name, "categorical" if at % 2 else "numeric") for at, name in enumerate(NAMES)]
    schema = FeatureSchema.from_json(schema_of(*features).to_json())
    record = {name: name if at % 2 else at for at, name in enumerate(NAMES)}

    batch = RequestDecoder(schema, 2).decode(body(record))

    assert batch.numeric().tolist() == [[float(at) for at in range(0, len(NAMES), 2)]]
    assert batch.categorical() == [tuple(NAMES[1::2])]
    assert json.loads(batch.to_json()) == {"records": [record]}
    assert list(batch.frame().columns) == NAMES


@pytest.mark.parametrize("kind", ["numeric", "categorical", "boolean", "datetime"])
@pytest.mark.parametrize("rows", [1, 3])
def test_one_feature_alone_works(kind: Any, rows: int) -> None:
    value = {"numeric": 2.0, "categorical": "a", "boolean": True, "datetime": "1970-01-02"}[kind]
    batch = RequestDecoder(schema_of(Feature("x", kind)), 3).decode(body(*[{"x": value}] * rows))

    if kind == "categorical":
        assert batch.categorical() == [("a",)] * rows
        assert batch.numeric().shape == (rows, 0)
    else:
        assert batch.categorical() == [()] * rows
        assert batch.numeric().tolist() == [[2.0 if kind == "numeric" else 1.0]] * rows
    assert batch.frame().shape == (rows, 1)


def test_names_that_json_must_escape_are_refused_when_the_schema_is_made() -> None:
    for name in ('a"b', "a\\b", "a\nb", "a\x00b", "", "_label"):
        with pytest.raises(SchemaError, match="rename it"):
            Feature(name, "numeric")


def test_a_decoder_needs_room_for_a_record() -> None:
    with pytest.raises(ValueError, match="max_records is 0"):
        RequestDecoder(SCHEMA, 0)


# -- what is refused ---------------------------------------------------------------------------------------------------

WITHOUT_AGE = {name: value for name, value in GOOD.items() if name != "age"}
EXAMPLE = 'expected an object such as {"records": [{"age": 35, "city": "Bonn", …}]}'


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (body(GOOD, GOOD | {"age": "old"}), 400, 'records[1].age: expected a number, got "old"'),
        (body(GOOD | {"age": True}), 400, "records[0].age: expected a number, got true"),
        (body(GOOD | {"age": [1]}), 400, "records[0].age: expected a number, got a list"),
        (body(GOOD | {"age": {"x": 1}}), 400, "records[0].age: expected a number, got an object"),
        (body(GOOD | {"city": 5}), 400, "records[0].city: expected a string, got 5"),
        (body(GOOD | {"city": True}), 400, "records[0].city: expected a string, got true"),
        (body(GOOD | {"member": 1}), 400, "records[0].member: expected true or false, got 1"),
        (body(GOOD | {"member": "true"}), 400, 'records[0].member: expected true or false, got "true"'),
        (body(GOOD | {"height cm": "x"}), 400, 'records[0]["height cm"]: expected a number, got "x"'),
        (
            body(GOOD | {"age": "x" * 1000}),
            400,
            f'records[0].age: expected a number, got "{"x" * 38}…',
        ),
        (
            body(GOOD, GOOD | {"when": "soon"}),
            400,
            'records[1].when: expected an ISO-8601 string such as "2026-01-31T12:00:00Z", got "soon"',
        ),
        (
            body(GOOD | {"when": 20454}),
            400,
            'records[0].when: expected an ISO-8601 string such as "2026-01-31T12:00:00Z", got 20454',
        ),
        (body(WITHOUT_AGE), 400, "records[0].age: missing; send null when the value is unknown"),
        (
            body(GOOD | {"agee": 1}),
            400,
            "records[0].agee: unknown feature; the features are age, city, member, when, height cm; did you mean age?",
        ),
        (body(GOOD, 5), 400, "records[1]: expected an object with one value for each feature, got 5"),
        (body(), 400, "records: empty; send at least one record"),
        (body(*[GOOD] * 5), 413, "records: 5 records, more than the 4 allowed at once; send smaller batches"),
        (b'{"records":{"age":1}}', 400, "records: expected a list of objects, got an object"),
        (b'{"records":null}', 400, "records: expected a list of objects, got null"),
        (
            b'{"recrods":[]}',
            400,
            "recrods: unknown key; the keys are records, ids, record and warnings; did you mean records?",
        ),
        (
            body(GOOD, **{"model version": 3}),
            400,
            '"model version": unknown key; the keys are records, ids, record and warnings',
        ),
        (b"{}", 400, f"records: missing; {EXAMPLE}"),
        (b"[]", 400, f"{EXAMPLE}; got a list"),
        (b"3", 400, f"{EXAMPLE}; got 3"),
        (b"null", 400, f"{EXAMPLE}; got null"),
        (b'"records"', 400, f'{EXAMPLE}; got "records"'),
        (b"", 400, f"the body is empty; {EXAMPLE}"),
        (b" \n", 400, f"the body is empty; {EXAMPLE}"),
        (
            b'{"records":\n[}',
            400,
            f"the body is not JSON: expecting value at line 2, column 2; {EXAMPLE}",
        ),
        (b'{"records":"\xff"}', 400, "the body is not UTF-8 text (byte 12); send JSON in UTF-8"),
        (b"[" * 100_000, 400, f"the body is nested too deeply; {EXAMPLE}"),
        (body(GOOD, ids=["a", "b"]), 400, "ids: 2 ids for 1 records; send one for each record, or leave ids out"),
        (body(GOOD, ids="a"), 400, 'ids: expected a list of strings (one for each record) or null, got "a"'),
        (body(GOOD, ids=[1]), 400, "ids[0]: expected a string, got 1"),
        (body(GOOD, GOOD, ids=["a", None]), 400, "ids[1]: expected a string, got null"),
        (body(GOOD, ids=[""]), 400, "ids[0]: expected 1 to 128 characters, got 0"),
        (body(GOOD, ids=["i" * 129]), 400, "ids[0]: expected 1 to 128 characters, got 129"),
        (body(GOOD, ids=["a\x00b"]), 400, 'ids[0]: "a\\u0000b" has characters that cannot be printed'),
        (
            body(GOOD | {"city": "\ud800"}),
            400,
            'records[0].city: "\\ud800" has half of a surrogate pair (\\ud800 to \\udfff); send whole characters',
        ),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_a_refusal_says_where_what_and_what_to_do(data: bytes, status: int, message: str) -> None:
    problem = refused(data)

    assert (problem.status, problem.message) == (status, message)
    assert str(problem) == message


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        ("NaN", 400, "NaN is not JSON; send null when the value is unknown"),
        ("Infinity", 400, "Infinity is not JSON; send null when the value is unknown"),
        ("-Infinity", 400, "-Infinity is not JSON; send null when the value is unknown"),
        ("1e300", 422, "1e+300 is too large; the model takes float32 numbers, up to ±3.4e38"),
        ("-1e400", 422, "-1e400 is too large; the model takes float32 numbers, up to ±3.4e38"),
        (
            repr(FLOAT32_LIMIT),
            422,
            "3.4028235677973366e+38 is too large; the model takes float32 numbers, up to ±3.4e38",
        ),
        ("9" * 5000, 422, f"{'9' * 39}… is too large; the model takes float32 numbers, up to ±3.4e38"),
    ],
)
def test_a_number_that_float32_cannot_hold_is_refused(sent: str, status: int, words: str) -> None:
    data = body(GOOD, GOOD | {"height cm": "?"}).replace(b'"?"', sent.encode())

    assert (refused(data).status, refused(data).message) == (status, f'records[1]["height cm"]: {words}')


def test_the_largest_double_that_float32_can_hold_is_taken() -> None:
    largest = math.nextafter(FLOAT32_LIMIT, 0)

    matrix = DECODER.decode(body(GOOD | {"age": largest}, GOOD | {"age": -largest})).numeric()

    assert np.isfinite(matrix).all()


def test_the_reason_for_the_log_holds_nothing_that_the_client_chose() -> None:
    secrets = [
        body(GOOD | {"age": "secret"}),
        body(GOOD | {"secret": 1}),
        body(GOOD, secret=1),
        body(GOOD, ids=["secret", "secret"]),
        body(GOOD | {"when": "secret"}),
        b'"secret"',
        b"secret",
    ]
    for data in secrets:
        problem = refused(data)
        assert problem.reason
        assert "secret" not in problem.reason
    assert refused(secrets[0]).reason == "records[].age: expected a number, got a string"


def test_a_wide_schema_is_not_listed_in_full() -> None:
    decoder = RequestDecoder(schema_of(*[Feature(f"x{at}", "numeric") for at in range(500)]), 1)

    message = refused(body({"y": 1}), decoder).message

    assert "x19 and 480 more (GET /schema lists them)" in message
    assert len(message) < 400


# -- columns -----------------------------------------------------------------------------------------------------------

COLUMNS: dict[str, list[Any]] = {name: [value, None] for name, value in GOOD.items()}


def test_columns_make_the_same_batch_as_records() -> None:
    records = [GOOD, dict.fromkeys(GOOD)]

    batch = DECODER.from_columns(COLUMNS, ["a", "b"])

    assert (batch.n, batch.ids) == (2, ["a", "b"])
    assert json.loads(batch.to_json()) == {"records": records, "ids": ["a", "b"]}
    pd.testing.assert_frame_equal(batch.frame(), DECODER.decode(body(*records)).frame())


def test_a_nan_in_a_column_is_a_missing_value() -> None:
    batch = DECODER.from_columns(COLUMNS | {"age": [float("nan"), 2]})

    assert json.loads(batch.to_json())["records"][0]["age"] is None
    assert np.isnan(batch.numeric()[0, 0])
    assert batch.numeric()[1, 0] == 2


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"age": [1, "old"]}, 400, 'input "age"[1]: expected a number, got "old"'),
        ({"age": [True, 1]}, 400, 'input "age"[0]: expected a number, got true'),
        (
            {"age": [1e300, 1]},
            422,
            'input "age"[0]: 1e+300 is too large; the model takes float32 numbers, up to ±3.4e38',
        ),
        ({"age": [1, math.inf]}, 422, 'input "age"[1]: Infinity is too large; the model takes float32'),
        ({"age": [10**400, 1]}, 422, 'input "age"[0]: an integer of more than 77 digits is too large'),
        ({"city": [1, "a"]}, 400, 'input "city"[0]: expected a string, got 1'),
        ({"city": ["a", "\ud800"]}, 400, 'input "city"[1]: "\\ud800" has half of a surrogate pair'),
        ({"city": ["a", float("nan")]}, None, ""),
        ({"member": [0, 1]}, 400, 'input "member"[0]: expected true or false, got 0'),
        ({"when": ["soon", None]}, 400, 'input "when"[0]: expected an ISO-8601 string'),
        ({"when": "soon"}, 400, 'input "when": expected a list, got "soon"'),
        (
            {"city": ["a"]},
            400,
            'input "city": 1 values, but input "age" has 2; every input needs one value for each row',
        ),
        ({"agee": [1, 2]}, 400, 'input "agee": unknown input; the features are age, city'),
    ],
    ids=str,
)
def test_a_fault_in_a_column_names_the_input(change: dict[str, Any], status: int | None, message: str) -> None:
    if status is None:
        assert DECODER.from_columns(COLUMNS | change).categorical()[1] == (None,)
        return
    with pytest.raises(InvalidRequest) as caught:
        DECODER.from_columns(COLUMNS | change)

    assert caught.value.status == status
    assert caught.value.message.startswith(message)


def test_missing_inputs_empty_inputs_and_too_many_rows_are_refused() -> None:
    faults: list[tuple[dict[str, list[Any]], list[str] | None, int, str]] = [
        ({"age": [1]}, None, 400, 'input "city": missing; send one input for each feature: age, city'),
        ({}, None, 400, 'input "age": missing'),
        ({name: [] for name in GOOD}, None, 400, "inputs: empty; send at least one record"),
        ({name: [None] * 5 for name in GOOD}, None, 413, "inputs: 5 records, more than the 4 allowed at once"),
        (COLUMNS, ["a"], 400, "ids: 1 ids for 2 records"),
    ]
    for columns, ids, status, message in faults:
        with pytest.raises(InvalidRequest) as caught:
            DECODER.from_columns(columns, ids)
        assert caught.value.status == status
        assert caught.value.message.startswith(message)


# -- anything at all ---------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, "records", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
VALUES = JSON | st.sampled_from(["1970-01-02T00:00Z", "24:00", 1e300, 2**64, 10**400, "", -0.0, "\ud800", "\x00"])
RECORDS = st.fixed_dictionaries(
    {
        "age": st.none() | st.integers(-(2**66), 2**66) | st.floats(-1e38, 1e38),
        "city": st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
        "member": st.none() | st.booleans(),
        "when": st.none() | st.datetimes().map(lambda value: value.isoformat()),
        "height cm": st.none() | st.floats(-1e38, 1e38),
    }
)


def check_any(data: bytes) -> Batch | None:
    """Bytes are a batch with the very values that `json.loads` reads, or a refusal in words, and nothing else."""
    try:
        batch = DECODER.decode(data)
    except InvalidRequest as problem:
        assert problem.status in (400, 413, 422)
        assert problem.message
        assert problem.reason
        assert len(problem.message) < 400
        problem.message.encode()
        assert "body was refused" not in problem.message, "the second reading found no fault"
        return None
    plain = json.loads(data)
    assert 1 <= batch.n <= 4
    assert batch.ids == plain.get("ids")
    assert batch.categorical() == [(record["city"],) for record in plain["records"]]
    expected = [
        [
            math.nan if value is None else days_since_epoch(value) if isinstance(value, str) else float(value)
            for value in (record["age"], record["member"], record["when"], record["height cm"])
        ]
        for record in plain["records"]
    ]
    np.testing.assert_array_equal(batch.numeric(), np.array(expected, dtype=np.float32))
    again = DECODER.decode(batch.to_json())
    np.testing.assert_array_equal(again.numeric(), batch.numeric())
    assert (again.categorical(), again.ids) == (batch.categorical(), batch.ids)
    return batch


@given(st.binary(max_size=60))
@example(b'\xef\xbb\xbf{"records":[]}')
@example('{"records":[]}'.encode("utf-16"))
@example(b'{"records":[]}\x00')
@example(b'{"records":[],}')
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_are_refused_in_words(data: bytes) -> None:
    assert check_any(data) is None


@given(JSON)
@settings(max_examples=100, deadline=None)
def test_arbitrary_json_is_refused_in_words(value: Any) -> None:
    assert check_any(json.dumps(value).encode()) is None


@given(
    st.lists(RECORDS, min_size=1, max_size=4),
    st.none() | st.lists(st.text("abc-é", min_size=1, max_size=5), min_size=4, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_a_valid_request_is_decoded_to_what_plain_json_reads(records: list[Any], ids: list[str] | None) -> None:
    rest = {} if ids is None else {"ids": ids[: len(records)]}

    assert check_any(body(*records, **rest)) is not None


@given(st.lists(RECORDS, min_size=1, max_size=3), st.sampled_from([*GOOD, "x", None]), VALUES)
@settings(max_examples=150, deadline=None)
def test_a_request_with_one_value_replaced_is_a_batch_or_is_refused_in_words(
    records: list[Any], name: str | None, value: Any
) -> None:
    records[-1] = value if name is None else records[-1] | {name: value}

    check_any(body(*records))
    check_any(body(*records[:1], **{"ids": value}))


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_request_with_bytes_cut_or_changed_is_a_batch_or_is_refused_in_words(data: st.DataObject) -> None:
    good = body(GOOD, GOOD | {"city": "Köln"}, ids=["a", "b"])
    start = data.draw(st.integers(0, len(good) - 1))
    end = data.draw(st.integers(start, min(len(good), start + 12)))
    patch = data.draw(
        st.binary(max_size=4) | st.sampled_from([b'"', b"{", b"1e999", b"NaN", b"null", b"\\u0061", b"\\ud83d"])
    )

    check_any(good[:start] + patch + good[end:])


@given(st.dictionaries(st.sampled_from([*GOOD, "x"]), st.lists(VALUES, max_size=3), max_size=6), JSON)
@settings(max_examples=150, deadline=None)
def test_arbitrary_columns_are_a_batch_or_are_refused_in_words(columns: dict[str, list[Any]], other: Any) -> None:
    for given_columns in (columns, COLUMNS | columns, COLUMNS | {"age": other}):
        try:
            batch = DECODER.from_columns(given_columns)
        except InvalidRequest as problem:
            assert problem.status in (400, 413, 422)
            assert problem.message.encode()
            continue
        again = DECODER.decode(batch.to_json())
        np.testing.assert_array_equal(again.numeric(), batch.numeric())
        assert again.categorical() == batch.categorical()
