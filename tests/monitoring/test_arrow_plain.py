"""Arrow streams read without pyarrow: what is read is what `read_arrow` makes of them by pyarrow, or nothing is."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from monitoring import columns as module
from monitoring.arrow import DICTIONARY, messages
from monitoring.arrow_plain import MOST_PLANS, read_plain
from monitoring.columns import ArrowBatch, read_arrow
from monitoring.decode import InvalidRequest, RequestDecoder
from tests.artefacts import sample_schema

SCHEMA, FRAME, _ = sample_schema()
MOST = 1 << 20
NUMBERS = (pa.float64(), pa.float32(), pa.float16(), pa.int64(), pa.int32(), pa.uint8(), pa.uint64())
TEXTS = (
    pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int64(), pa.large_string()),
    pa.dictionary(pa.uint16(), pa.string()),
)  # fmt: skip


def decoder(**more: Any) -> RequestDecoder:
    return RequestDecoder(SCHEMA, 500, max_chars=50, **more)


def stream_of(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue()


def random_table(dice: random.Random, rows: int) -> pa.Table:
    """Columns in any order and of any type that their features take, some values missing."""
    missing, arrays = dice.choice((0.0, 0.0, 0.2, 1.0)), {}
    for feature in dice.sample(SCHEMA.features, len(SCHEMA.features)):

        def gone(value: Any) -> Any:
            return None if dice.random() < missing else value

        if feature.kind == "numeric":
            kind = dice.choice(NUMBERS)
            whole = not pa.types.is_floating(kind)
            values = [gone(dice.randrange(200) if whole else np.float16(dice.gauss(0, 9)).item()) for _ in range(rows)]
            if kind in (pa.int64(), pa.uint64()) and rows > 1:
                values[0] = 2**53 + 1  # no float64
        elif feature.kind == "boolean":
            kind, values = pa.bool_(), [gone(dice.random() < 0.5) for _ in range(rows)]
        else:
            kind = dice.choice(TEXTS)
            values = [gone(dice.choice((*feature.categories, "nie gesehen", "Straße 日本", ""))) for _ in range(rows)]
        arrays[feature.name] = pa.array(values, kind)
    if dice.random() < 0.5:
        arrays["id"] = pa.array([f"id-{row}" for row in range(rows)], dice.choice((pa.string(), pa.large_string())))
    return pa.table(arrays)


def by_pyarrow(one: RequestDecoder, body: bytes, patch: pytest.MonkeyPatch) -> ArrowBatch:
    with patch.context() as only:
        only.setattr(module, "read_plain", lambda *arguments: None)
        return read_arrow(one, body, MOST)


def assert_equal(found: ArrowBatch, expected: ArrowBatch) -> None:
    np.testing.assert_array_equal(found.numeric(), expected.numeric())
    assert (found.ids, found.n, found.categorical()) == (expected.ids, expected.n, expected.categorical())
    assert found.stream == expected.stream


def test_streams_in_the_usual_form_are_read_as_by_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    dice, one = random.Random(1), decoder()
    for rows in (1, 2, 7, 8, 9, 64, 300):
        for _ in range(12):
            table = random_table(dice, rows + 3).slice(dice.randrange(3), rows)
            body = stream_of(table.combine_chunks())
            assert read_plain(one, body, MOST, module._check_columns) is not None, table.schema

            assert_equal(read_arrow(one, body, MOST), by_pyarrow(decoder(), body, monkeypatch))
    assert 0 < len(one.plans) <= MOST_PLANS


def test_a_damaged_stream_is_read_as_by_pyarrow_or_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    dice, one, taken = random.Random(2), decoder(), 0
    for _ in range(1_500):
        whole = stream_of(random_table(dice, 20).combine_chunks())
        read_arrow(one, whole, MOST)  # what is kept of it is of no other stream
        body = bytearray(whole)
        for _ in range(dice.choice((1, 1, 2, 4))):
            at = dice.randrange(len(body))
            body[at] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, body[at] ^ (1 << dice.randrange(8))))
        if read_plain(one, bytes(body), MOST, module._check_columns) is None:
            continue
        taken += 1
        try:
            expected = by_pyarrow(decoder(), bytes(body), monkeypatch)
        except InvalidRequest as refused:
            with pytest.raises(InvalidRequest) as found:  # the ids are looked at by both
                read_arrow(one, bytes(body), MOST)
            assert found.value.message == refused.message
        else:
            assert_equal(read_arrow(one, bytes(body), MOST), expected)
    assert taken > 300


def good(**changes: Any) -> pa.Table:
    table = pa.Table.from_pylist([SCHEMA.example()] * 3)
    for name, array in changes.items():
        table = (
            table.drop_columns([name])
            if array is None
            else table.set_column(table.schema.get_field_index(name), name, array)
            if name in table.schema.names
            else table.append_column(name, array)
        )
    return table


def without_dictionary(body: bytes) -> bytes:
    (at,) = (one for one in messages(body) if one.kind == DICTIONARY)
    return body[: at.start] + body[at.body + at.size :]


NUMBER = next(feature.name for feature in SCHEMA.features if feature.kind == "numeric")
TEXT = next(feature.name for feature in SCHEMA.features if feature.kind == "categorical")
LEFT = {
    "no bytes": b"",
    "nothing but an end": b"\xff\xff\xff\xff" + bytes(4),
    "a schema alone": stream_of(good().slice(0, 0)),
    "compressed": stream_of(good(), compression="zstd"),
    "two batches": stream_of(pa.concat_tables([good(), good()])),
    "no rows": stream_of(good().slice(0, 0)),
    "views": stream_of(good(**{TEXT: pa.array(["a"] * 3, pa.string_view())})),
    "decimals": stream_of(good(**{NUMBER: pa.array([1, 2, 3], pa.decimal128(5, 2))})),
    "nulls": stream_of(good(**{NUMBER: pa.nulls(3)})),
    "an infinite number": stream_of(good(**{NUMBER: pa.array([1.0, np.inf, 2.0])})),
    "a number that is infinite as a float32": stream_of(good(**{NUMBER: pa.array([1.0, 1e39, 2.0])})),
    "a long text": stream_of(good(**{TEXT: pa.array(["x" * 51] * 3)})),
    "a long text in a dictionary": stream_of(good(**{TEXT: pa.array(["x" * 51] * 3).dictionary_encode()})),
    "a column too many": stream_of(good(other=pa.array([1, 2, 3]))),
    "a column is missing": stream_of(good(**{NUMBER: None})),
    "a wrong type": stream_of(good(**{NUMBER: pa.array(["1", "2", "3"])})),
    "a dictionary is missing": without_dictionary(stream_of(good(**{TEXT: pa.array(["a"] * 3).dictionary_encode()}))),
    "a null in a dictionary": stream_of(
        good(**{TEXT: pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(["a", None]))})
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", LEFT)
def test_what_is_not_in_the_usual_form_is_left_to_pyarrow(what: str) -> None:
    assert read_plain(decoder(), LEFT[what], MOST, module._check_columns) is None
    try:
        assert read_arrow(decoder(), LEFT[what], MOST).n
    except InvalidRequest as refused:
        assert refused.status in (400, 413, 422)


def test_texts_that_are_many_bytes_when_written_out_are_counted_exactly() -> None:
    words = pa.array(["😀" * 50, "b"])  # 200 bytes, and one
    few, many = (pa.DictionaryArray.from_arrays(pa.array([place] * 400, pa.int8()), words) for place in (1, 0))
    table = pa.Table.from_pylist([SCHEMA.example()] * 400)
    at = table.schema.get_field_index(TEXT)
    body = stream_of(table.set_column(at, TEXT, few))
    assert len(body) < 400 * 200

    assert read_plain(decoder(), body, len(body), module._check_columns) is None
    assert read_arrow(decoder(), body, len(body)).n == 400
    with pytest.raises(InvalidRequest, match="written out for each row"):
        read_arrow(decoder(), stream_of(table.set_column(at, TEXT, many)), len(body))


def test_dictionaries_of_one_schema_may_change_from_stream_to_stream() -> None:
    one = decoder()
    for text in ("car", "boat", "car"):
        column = pa.array([text] * 3).dictionary_encode()
        batch = read_arrow(one, stream_of(good(**{TEXT: column})), MOST)
        at = SCHEMA.categorical_names.index(TEXT)
        assert [row[at] for row in batch.categorical()] == [text] * 3
    assert len(one.plans) == 1


def test_a_client_with_many_schemas_does_not_fill_the_memory() -> None:
    one = decoder()
    for number in range(3 * MOST_PLANS):
        table = good().replace_schema_metadata({"number": str(number)})
        assert read_arrow(one, stream_of(table), MOST).n == 3
    assert len(one.plans) <= MOST_PLANS
