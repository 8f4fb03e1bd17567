from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.fits import moment
from monitoring.record import (
    FEEDBACK,
    HEADER_BYTES,
    MAGIC,
    MAX_ROWS,
    PREDICTION,
    REJECTION,
    Damage,
    Entry,
    TableRows,
    decode_entry,
    encode_header,
    has_magic,
    iter_entries,
    time_of,
)

SEGMENT = 1_700_000_000_000 << 20 | 5


def record(*parts: bytes, kind: int = PREDICTION, rows: int = 1, at: float = 7.5) -> bytes:
    return encode_header(kind, at, rows, parts) + b"".join(parts)


def test_the_kinds_of_records_keep_their_numbers() -> None:
    assert (PREDICTION, FEEDBACK, REJECTION) == (1, 2, 3), "spools on disk hold them"


def prediction(ids: list[str] | None = None, rows: int = 1, **answer: object) -> bytes:
    given = {"version": 3, "ids": ids, "predictions": [1] * rows, "probabilities": [[0.25, 0.75]] * rows} | answer
    asked = {"records": [{"age": 40 + row, "city": None} for row in range(rows)]}
    return record(json.dumps(given).encode(), json.dumps(asked).encode(), rows=rows)


def rows_of(data: bytes) -> TableRows:
    rows = TableRows()
    for entry in iter_entries(data):
        assert isinstance(entry, Entry)
        decode_entry(entry, SEGMENT, rows)
    return rows


def test_a_record_comes_back_with_its_kind_time_rows_and_parts() -> None:
    (entry,) = iter_entries(record(b"answer", b"request", kind=PREDICTION, rows=12, at=7.5), base=100)

    assert isinstance(entry, Entry)
    assert (entry.offset, entry.end) == (100, 100 + HEADER_BYTES + 13)
    assert (entry.kind, entry.rows, entry.at) == (PREDICTION, 12, 7.5)
    assert [bytes(part) for part in entry.parts] == [b"answer", b"request"]


@pytest.mark.parametrize("cut", [1, 3, 4, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 5])
def test_an_unfinished_record_is_waited_for_and_is_torn_once_nothing_can_follow(cut: int) -> None:
    whole = record(b"first")
    data = whole + record(b"second")[:cut]

    assert [found.end for found in iter_entries(data)] == [len(whole)]
    *_, last = iter_entries(data, at_end=True)
    assert last == Damage(len(whole), len(data), data[len(whole) :], torn=True)


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_one_bad_byte_costs_at_most_one_record(place: int, change: int) -> None:
    records = [record(f"payload {number}".encode() * 9, b"{}") for number in range(4)]
    data = bytearray(b"".join(records))
    place %= len(data)
    data[place] ^= change

    found = list(iter_entries(bytes(data), at_end=True))

    assert sum(isinstance(one, Entry) for one in found) == 3
    (damage,) = (one for one in found if isinstance(one, Damage))
    assert damage.offset <= place < damage.end
    assert [one.end for one in found[:-1]] == [one.offset for one in found[1:]]  # nothing is passed over unsaid


@given(st.binary(max_size=200))
def test_any_bytes_are_accounted_for(data: bytes) -> None:
    found = list(iter_entries(MAGIC + data, at_end=True))
    assert found[0].offset == 0
    assert found[-1].end == len(data) + len(MAGIC)


@given(
    st.binary(max_size=20), st.binary(max_size=20), st.sampled_from([MAGIC, MAGIC[:3], MAGIC[1:], MAGIC[:2] * 80, b""])
)
def test_the_mark_is_found_wherever_it_begins(before: bytes, behind: bytes, between: bytes) -> None:
    data = before + between + behind
    assert has_magic(data) == (MAGIC in data)
    assert has_magic(data + MAGIC) and has_magic(MAGIC + data)


def test_damage_behind_which_more_may_follow_never_passes_over_the_start_of_a_magic() -> None:
    damaged = b"x" * 50
    whole = record(b"payload")
    for cut in range(1, len(whole)):
        (damage,) = iter_entries(damaged + whole[:cut])
        assert isinstance(damage, Damage)
        assert damage.end <= len(damaged)


@pytest.mark.parametrize("rows", [0, MAX_ROWS + 1])
def test_a_batch_that_row_keys_cannot_count_is_refused(rows: int) -> None:
    with pytest.raises(ValueError, match=f"got {rows} rows"):
        encode_header(PREDICTION, 0.0, rows, (b"",))


def test_the_time_of_a_record_is_told_from_its_header_alone() -> None:
    assert time_of(record(b"x", at=12.5)[:HEADER_BYTES]) == 12.5
    assert time_of(b"y" * HEADER_BYTES) is None
    assert time_of(b"") is None


def test_features_and_answers_are_kept_as_they_travelled() -> None:
    asked = b'{"records":[ {"age": 1.50, "name":"\\u00e4\xc3\xa4"} ,{"age":null,"name":""}],"ids":["a","b"]}'
    answer = b'{"model":"m","version":9,"ids":["a","b"],"predictions":["x",2],"probabilities":[[0.10,0.9],[1,0]]}'

    rows = rows_of(record(answer, asked, rows=2)).predictions

    assert [row.features for row in rows] == ['{"age": 1.50, "name":"\\u00e4ä"}', '{"age":null,"name":""}']
    assert [(row.id, row.version, row.prediction, row.probabilities) for row in rows] == [
        ("a", 9, '"x"', "[0.10,0.9]"),
        ("b", 9, "2", "[1,0]"),
    ]
    assert [row.position for row in rows] == [0, 1]
    assert rows[0].day == 1_700_000_000 // 86_400


def test_every_row_of_an_answer_keeps_the_adaptation_that_was_in_force() -> None:
    asked, adapted = b'{"records":[{},{}]}', b'{"version":9,"adaptation":17,"ids":["a","b"],"predictions":[1,2]}'

    assert [row.adaptation for row in rows_of(record(adapted, asked, rows=2)).predictions] == [17, 17]
    assert [row.adaptation for row in rows_of(prediction(["a"])).predictions] == [None]  # as of earlier releases


def test_a_regression_has_no_probabilities() -> None:
    (row,) = rows_of(prediction(["a"], probabilities=None)).predictions
    assert row.probabilities is None


def test_rows_without_ids_get_unique_ones() -> None:
    rows = rows_of(prediction(None, rows=3) + prediction(None, rows=3)).predictions
    assert len({row.id for row in rows}) == 6


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (record(b"not json", b"{}"), "JSON is malformed"),
        (record(b"{}", b"{}"), "missing required field"),
        (prediction(["a"], rows=2), "1 ids"),
        (prediction(["a"], predictions=[1, 2]), "2 predictions"),
        (prediction(["a"], probabilities=[]), "0 probabilities"),
        (prediction(["i" * 129]), "length <= 128"),
        (record(b'{"version":3,"predictions":[1]}'), "index out of range"),
        (record(b"{}", kind=FEEDBACK), "missing required field"),
        (record(b'{"labels":[]}', kind=FEEDBACK), "0 labels"),
        (record(b"{}", kind=REJECTION), "missing required field"),
        (record(b"{}", kind=99), "unknown kind"),
        (record(b'{"version":3,"ids":["\xff"],"predictions":[1]}', b'{"records":[{}]}'), "UTF-8"),
    ],
)
def test_what_cannot_be_understood_becomes_a_dead_letter_with_the_reason(data: bytes, reason: str) -> None:
    rows = rows_of(data)
    assert len(rows) == 1
    assert reason.lower() in rows.dead[0].reason.lower()


def test_a_label_is_observed_when_it_says_or_else_when_it_came() -> None:
    labels = [
        {"id": "a", "label": 1},
        {"id": "b", "label": "x", "observed_at": 5},
        {"id": "c", "label": True, "observed_at": "1970-01-01T00:01:00+00:00"},
        {"id": "d", "label": 1.5, "observed_at": None},
    ]
    rows = rows_of(record(json.dumps({"labels": labels}).encode(), kind=FEEDBACK, rows=4, at=7.5))

    assert [(row.id, row.label, row.observed_at, row.received_at) for row in rows.labels] == [
        ("a", "1", 7.5, 7.5),
        ("b", '"x"', 5.0, 7.5),
        ("c", "true", 60.0, 7.5),
        ("d", "1.5", 7.5, 7.5),
    ]


def test_one_bad_label_does_not_take_the_others_with_it() -> None:
    labels = [
        {"id": "a", "label": [1]},
        {"id": "b", "label": 1, "observed_at": "tomorrow"},
        {"id": "c", "label": None},
        {"id": "d", "label": 1},
    ]
    rows = rows_of(record(json.dumps({"labels": labels}).encode(), kind=FEEDBACK, rows=4))

    assert [row.id for row in rows.labels] == ["d"]
    assert [row.position for row in rows.labels + rows.dead] == [3, 0, 1, 2]
    assert "tomorrow" in rows.dead[1].reason


def test_a_time_without_a_zone_is_utc() -> None:
    assert moment("1970-01-02") == moment("1970-01-02T00:00:00") == 86_400.0
    assert moment("1970-01-01T02:00:00+02:00") == 0.0


@pytest.mark.parametrize(
    "sent", [math.inf, 1e300, -1e12, "2026-02-30", "٢٠٢٦-01-31", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59-14:00"]
)
def test_what_is_no_time_of_the_years_1_to_9999_is_refused(sent: float | str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"got {str(sent)!r}")):
        moment(sent)
