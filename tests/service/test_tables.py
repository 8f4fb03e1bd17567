"""Bodies people have: Arrow, CSV and NDJSON are answered, recorded and refused as the same rows in JSON are."""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import json
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from monitoring import store
from monitoring.arrow import look_into
from monitoring.columns import read_arrow
from monitoring.drain import Drainer
from monitoring.erase import Subject, blank_spool, entry_test, find
from monitoring.feature import Task
from monitoring.fits import FLOAT32_LIMIT
from monitoring.record import COLUMNS, MAGIC, PREDICTION, Entry, dead_letter, iter_entries
from service.configuration import load
from service.handover import Live, LiveVersion, write_live
from service.serving.front import Front
from service.serving.worker import Worker
from tests.bodies import source
from tests.fronts import nothing_beyond, run
from training.export import export
from training.pipeline import build

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
CSV = "text/csv"
NDJSON = "application/x-ndjson"
TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")
MOST = 200_000

TYPES = {
    "a": pa.float64(), "n": pa.int64(), "member": pa.bool_(), "city": pa.string(), "joined": pa.timestamp("us", "UTC"),
}  # fmt: skip


@pytest.fixture(scope="module", params=TASKS)
def artefact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(request.param, tmp_path_factory.mktemp("artefact") / "1")


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made("binary", tmp_path_factory.mktemp("binary") / "1")


def made(task: Task, folder: Path, **renamed: str) -> Path:
    prepared = source(task)
    features = [replace(feature, name=renamed.get(feature.name, feature.name)) for feature in prepared.schema.features]
    schema = replace(prepared.schema, features=tuple(features))
    frame = prepared.frame.rename(columns=renamed)
    pipeline = build(schema, {"max_iter": 10}, 0).fit(frame[list(schema.names)], frame["_label"])
    checked = frame[list(schema.names)].head(50)
    export(pipeline, schema, folder, check_frame=checked, manifest={"name": "evergreen"})
    return folder


class Place:
    """A worker's door and its spool; `stored` is what a drain has put into the store."""

    def __init__(self, home: Path, artefact: Path, store_url: str, **changes: str) -> None:
        changed = {f"EVERGREEN_{name}": value for name, value in changes.items()}
        self.settings = load(environ={"EVERGREEN_HOME": str(home), "EVERGREEN_STORE__URL": store_url, **changed})
        write_live(self.settings.live_file, Live(model="evergreen", champion=LiveVersion(1, str(artefact))))
        self.engine = store.open_store(store_url)
        self.worker = Worker(self.settings, home / "run", "api-1")
        self.worker.start()
        self.front = Front(nothing_beyond, lambda: self.worker)

    def close(self) -> None:
        self.worker.close()
        self.engine.dispose()

    def post(self, body: Any, kind: str = "application/json", **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        options = {"content": content, "headers": {"content-type": kind, **sent}}
        return run(self.front, ("POST", "/predict", options))[0]

    def refused(self, status: int, body: Any, kind: str = ARROW, **headers: str) -> str:
        answer = self.post(body, kind, **headers)
        assert answer.status_code == status, answer.text[:500]
        assert answer.headers["content-type"] == "application/json" and set(answer.json()) == {"error"}
        return str(answer.json()["error"])

    def entries(self) -> list[Entry]:
        found = [
            one
            for path in sorted(self.settings.spool_dir.glob("*.s*"))
            for one in iter_entries(path.read_bytes(), at_end=True)
        ]
        assert all(isinstance(one, Entry) for one in found)
        return [one for one in found if isinstance(one, Entry)]

    def drain(self) -> Any:
        with Drainer(self.settings.spool_dir, self.engine) as drainer:
            return drainer.drain(time.time())

    def stored(self) -> list[dict[str, Any]]:
        """Rows of the store, oldest first."""
        assert self.drain().dead == 0
        columns = store.predictions.c
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(store.predictions).order_by(columns.segment, columns.position))
            return [dict(row._mapping) for row in rows]


@pytest.fixture
def place(tmp_path: Path, binary: Path, sqlite_url: str) -> Iterator[Place]:
    found = Place(tmp_path, binary, sqlite_url, SERVE__MAX_REQUEST_BYTES=str(MOST), SERVE__MAX_RECORDS="500")
    yield found
    found.close()


def stream(table: pa.Table | pa.RecordBatch, rows_a_batch: int | None = None, **options: Any) -> bytes:
    sink = io.BytesIO()
    table = table if isinstance(table, pa.Table) else pa.Table.from_batches([table])
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, rows_a_batch)
    return sink.getvalue()


def table_of(records: list[dict[str, Any]], ids: list[str] | None = None, **types: pa.DataType) -> pa.Table:
    """The records with Arrow's types; texts of times become times."""
    columns = {}
    for name, kind in (TYPES | types).items():
        values = [record[name] for record in records]
        if pa.types.is_timestamp(kind):
            values = [None if value is None else datetime.fromisoformat(value) for value in values]
        columns[name] = pa.array(values, kind)
    if ids is not None:
        columns["id"] = pa.array(ids, pa.string())
    return pa.table(columns)


def in_csv(records: list[dict[str, Any]], ids: list[str] | None = None) -> bytes:
    text = io.StringIO()
    names = [*records[0], *(["id"] if ids else [])]
    writer = csv.writer(text)
    writer.writerow(names)
    for row, record in enumerate(records):
        writer.writerow([*record.values(), *([ids[row]] if ids else [])])
    return text.getvalue().encode()


def in_lines(records: list[dict[str, Any]], ids: list[str] | None = None) -> bytes:
    named = [{**record, **({"id": ids[row]} if ids else {})} for row, record in enumerate(records)]
    return "\n".join(map(json.dumps, named)).encode()


WAYS: dict[str, Callable[..., tuple[bytes, str]]] = {
    "Arrow": lambda records, ids=None: (stream(table_of(records, ids)), ARROW),
    "Arrow in batches": lambda records, ids=None: (stream(table_of(records, ids), 7), ARROW),
    "CSV": lambda records, ids=None: (in_csv(records, ids), CSV),
    "NDJSON": lambda records, ids=None: (in_lines(records, ids), NDJSON),
}


def records_of(rows: int, seed: int = 0) -> list[dict[str, Any]]:
    dice = random.Random(seed)
    cities = ["Ulm", "Bonn", "x" * 1024, "elsewhere", 'Zürich, "CH"', "a\nb", "\u2028", "nan"]

    def one() -> dict[str, Any]:
        us = dice.randrange(-(10**16), 4 * 10**16)
        moment = datetime.fromtimestamp(us // 10**6, UTC).replace(microsecond=us % 10**6)
        found = {
            "a": dice.choice([dice.gauss(0, 1), dice.uniform(-1e30, 1e30), -0.0, 5e-324, 3.4028235e38]),
            "n": dice.choice([dice.randrange(-300, 300), 2**53 + 1, -(2**63)]),
            "member": dice.random() < 0.5,
            "city": dice.choice(cities),
            "joined": moment.isoformat(),
        }
        return {name: None if dice.random() < 0.1 else value for name, value in found.items()}

    return [one() for _ in range(rows)]


def comparable(row: dict[str, Any]) -> dict[str, Any]:
    """A stored row without what differs from request to request; times as moments, numbers as doubles."""
    features = json.loads(row["features"])
    if features["joined"] is not None:
        features["joined"] = datetime.fromisoformat(features["joined"])
    features["n"] = None if features["n"] is None else float(features["n"])
    return {
        "features": features, "prediction": row["prediction"], "probabilities": row["probabilities"],
        "version": row["version"], "adaptation": row["adaptation"],
    }  # fmt: skip


# -- parity ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_every_kind_is_answered_and_stored_as_json_is(way: str, artefact: Path, tmp_path: Path, store_url: str) -> None:
    place = Place(tmp_path, artefact, store_url)
    records = records_of(300)
    ids = [f"order-{row}" for row in range(300)]
    body, kind = WAYS[way](records, ids)

    expected = place.post({"records": records, "ids": [f"json-{row}" for row in range(300)]}).json()
    found = place.post(body, kind, accept="application/json")

    assert found.status_code == 200, found.text[:500]
    answer = found.json()
    assert answer["ids"] == ids
    for name in ("model", "version", "predictions", "probabilities", "classes"):
        assert answer.get(name) == expected.get(name), name
    stored = place.stored()
    assert [row["id"] for row in stored[300:]] == ids
    assert list(map(comparable, stored[300:])) == list(map(comparable, stored[:300]))
    place.close()


@pytest.mark.parametrize("way", WAYS)
def test_answers_come_in_kind_and_say_what_json_says(way: str, artefact: Path, tmp_path: Path, sqlite_url: str) -> None:
    place = Place(tmp_path, artefact, sqlite_url)
    records = records_of(20, seed=1)
    expected = place.post({"records": records}).json()
    body, kind = WAYS[way](records)

    answer = place.post(body, kind)

    assert answer.status_code == 200, answer.text[:300]
    assert answer.headers["content-type"] == kind
    assert (answer.headers["evergreen-model"], answer.headers["evergreen-version"]) == ("evergreen", "1")
    ids, predictions, probabilities = read_answer(answer)
    assert predictions == expected["predictions"] and probabilities == expected.get("probabilities")
    assert [row["id"] for row in place.stored()[20:]] == ids
    place.close()


def read_answer(answer: httpx.Response) -> tuple[list[str], list[Any], list[list[float]] | None]:
    """Ids, predictions and probabilities of an answer of any kind but JSON."""
    kind = answer.headers["content-type"]
    if kind == NDJSON:
        lines = [json.loads(line) for line in answer.text.splitlines()]
        chances = [line["probabilities"] for line in lines] if "probabilities" in lines[0] else None
        return [line["id"] for line in lines], [line["prediction"] for line in lines], chances
    if kind == CSV:
        names, *rows = csv.reader(io.StringIO(answer.text))
        table = {name: [row[at] for row in rows] for at, name in enumerate(names)}
        predictions = [json.loads(one) if one[0] in "-0123456789" else one for one in table["prediction"]]
        columns: list[list[Any]] = [list(map(float, table[name])) for name in names[2:]]
    else:
        with pa.ipc.open_stream(answer.content) as reader:
            read = reader.read_all()
        table, names = read.to_pydict(), read.schema.names
        predictions, columns = table["prediction"], [table[name] for name in names[2:]]
        assert read.schema.metadata[b"version"] == b"1" and read.schema.metadata[b"model"] == b"evergreen"
    assert names[:2] == ["id", "prediction"] and all(name.startswith("probability_") for name in names[2:])
    return table["id"], predictions, list(map(list, zip(*columns, strict=True))) if columns else None


def test_accept_chooses_the_answer_whatever_the_body_is(place: Place) -> None:
    body = {"records": [GOOD]}
    for accept, kind in {
        "text/csv": CSV, ARROW: ARROW, NDJSON: NDJSON, "application/json": JSON, "*/*": JSON, "text/html": JSON,
        "": JSON, "application/*;q=0.1, text/csv;q=0.5": CSV, "text/csv;q=0, */*": JSON, f"{ARROW};q=wrong": JSON,
    }.items():  # fmt: skip
        assert place.post(body, accept=accept).headers["content-type"] == kind, accept
    for kind, sent in (
        (ARROW, stream(table_of([GOOD]))),
        (CSV, in_csv([GOOD])),
        (NDJSON, in_lines([GOOD])),
    ):
        assert place.post(sent, kind, accept="text/html").headers["content-type"] == kind
        for accept in (JSON, ARROW, CSV, NDJSON):
            answer = place.post(sent, kind, accept=accept)
            assert (answer.status_code, answer.headers["content-type"]) == (200, accept)
    assert len({row["id"] for row in place.stored()}) == 10 + 3 * 5


# -- Arrow's types -----------------------------------------------------------------------------------------------------

GOOD = {"a": 1.5, "n": 7, "member": True, "city": "Ulm", "joined": "2026-01-31T12:00:00+00:00"}
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
LARGEST = float(np.nextafter(FLOAT32_LIMIT, 0))
COLUMNS_AND_JSON: dict[str, tuple[str, pa.Array, list[Any]]] = {
    **{f"{kind}": ("a", pa.array([1, None, 100], kind), [1, None, 100])
       for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())},
    "uint64 beyond int64": ("a", pa.array([2**64 - 1, 2**63 + 1, 3], pa.uint64()), [2**64 - 1, 2**63 + 1, 3]),
    "int64 beyond 2^53": ("a", pa.array([2**53 + 1, -(2**63), 2**63 - 1]), [2**53 + 1, -(2**63), 2**63 - 1]),
    # As a double it lies in the middle between two of float32, as an integer above it.
    "int64 that is rounded twice": ("a", pa.array([2**54 + 2**30 + 1, 1, 2]), [2**54 + 2**30 + 1, 1, 2]),
    "the largest number": ("a", pa.array([LARGEST, 1, 2]), [LARGEST, 1, 2]),
    "float16": ("a", pa.array(np.array([0.1, 65504, np.nan], np.float16)), [float(np.float16(0.1)), 65504.0, None]),
    "float32": ("a", pa.array([0.1, None, 3.4028235e38], pa.float32()),
                [float(np.float32(0.1)), None, 3.4028234663852886e38]),
    "float64 with NaN": ("a", pa.array([0.1, float("nan"), None], pa.float64()), [0.1, None, None]),
    "decimal32": ("a", pa.array([Decimal("0.1"), None, Decimal("-7.25")], pa.decimal32(5, 2)), [0.1, None, -7.25]),
    "decimal128": ("a", pa.array([Decimal("0.1"), Decimal("12345678901234567.89"), None], pa.decimal128(20, 2)),
                   [0.1, 12345678901234567.89, None]),
    "decimal256": ("a", pa.array([Decimal("1e30"), None, Decimal(3)], pa.decimal256(40, 0)), [1e30, None, 3.0]),
    "no value at all": ("a", pa.nulls(3), [None, None, None]),
    "bool": ("member", pa.array([True, None, False]), [True, None, False]),
    "no truth at all": ("member", pa.nulls(3), [None, None, None]),
    "large_string": ("city", pa.array(["Ulm", None, ""], pa.large_string()), ["Ulm", None, ""]),
    "string_view": ("city", pa.array(["Ulm", None, "longer than twelve bytes"], pa.string_view()),
                    ["Ulm", None, "longer than twelve bytes"]),
    "dictionary": ("city", pa.array(["Ulm", None, "Ulm"]).dictionary_encode(), ["Ulm", None, "Ulm"]),
    "dictionary of int8, large": ("city", pa.DictionaryArray.from_arrays(pa.array([1, 1, None], pa.int8()),
                                  pa.array(["unused", "Bonn"], pa.large_string())), ["Bonn", "Bonn", None]),
    "dictionary of uint64, views": ("city", pa.DictionaryArray.from_arrays(pa.array([1, 1, None], pa.uint64()),
                                    pa.array(["unused", "Bonn"], pa.string_view())), ["Bonn", "Bonn", None]),
    "dictionary with a null in it": ("city", pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.int32()),
                                     pa.array(["Ulm", None, "Bonn"])), ["Ulm", None, "Bonn"]),
    "dictionary that is empty": ("city", pa.DictionaryArray.from_arrays(pa.array([None] * 3, pa.int32()),
                                 pa.array([], pa.string())), [None, None, None]),
    "no text at all": ("city", pa.nulls(3), [None, None, None]),
    **{f"timestamp[{unit}{zone and f', {zone}'}]": ("joined", pa.array([NOON, None, NOON.replace(year=1931)],
                                                    pa.timestamp(unit, zone or None)),
       ["2026-01-31T12:00:00Z", None, "1931-01-31T12:00:00Z"])
       for unit in ("s", "ms", "us", "ns") for zone in ("", "UTC", "Europe/Berlin", "+14:00")},
    "the first and last moment": ("joined", pa.array([-62_135_596_800_000_000, 253_402_300_799_999_999, None],
                                  pa.timestamp("us")), ["0001-01-01", "9999-12-31T23:59:59.999999Z", None]),
    "nanoseconds": ("joined", pa.array([1_600_000_000_123_456_789, -1, None], pa.timestamp("ns")),
                    ["2020-09-13T12:26:40.123456Z", "1969-12-31T23:59:59.999999Z", None]),
    "date32": ("joined", pa.array([date(2026, 1, 31), None, date(1, 1, 1)], pa.date32()),
               ["2026-01-31", None, "0001-01-01"]),
    "date64": ("joined", pa.array([date(2026, 1, 31), None, date(9999, 12, 31)], pa.date64()),
               ["2026-01-31", None, "9999-12-31"]),
    "times as text": ("joined", pa.array(["2026-W05-6", None, "2026-01-31T13:00+01:00"]),
                      ["2026-W05-6", None, "2026-01-31T13:00+01:00"]),
    "no time at all": ("joined", pa.nulls(3), [None, None, None]),
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS_AND_JSON)
def test_a_column_of_every_type_is_what_its_values_are_in_json(name: str, place: Place) -> None:
    feature, column, values = COLUMNS_AND_JSON[name]
    records = [{**GOOD, feature: value} for value in values]
    table = table_of([GOOD] * 3)
    table = table.set_column(table.schema.names.index(feature), feature, column)
    expected = place.post({"records": records}).json()

    whole, cut = place.post(stream(table), ARROW), place.post(stream(table, 2), ARROW)

    assert (whole.status_code, cut.status_code) == (200, 200), whole.text + cut.text
    model = place.worker.model.current
    assert model is not None
    read, decoded = (
        read_arrow(model.decoder, stream(table), MOST),
        model.decoder.decode(json.dumps({"records": records}).encode()),
    )
    assert np.array_equal(read.numeric(), decoded.numeric(), equal_nan=True)
    assert read.categorical() == decoded.categorical()
    pd.testing.assert_frame_equal(read.frame(), decoded.frame())
    for answer in (whole, cut):
        assert read_answer(answer)[1:] == (expected["predictions"], expected["probabilities"])
    rows = list(map(comparable, place.stored()))
    for row in rows:  # a text without a zone, or of a date, is a moment in UTC
        moment = row["features"]["joined"]
        row["features"]["joined"] = moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)
    assert rows[:3] == rows[3:6] == rows[6:]


def test_dictionaries_may_grow_and_change_between_batches(place: Place) -> None:
    tables = [
        table_of([GOOD]).set_column(3, "city", pa.array([text]).dictionary_encode()) for text in ("Ulm", "Bonn", "Ulm")
    ]
    for deltas in (False, True):
        sink = io.BytesIO()
        options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=deltas, unify_dictionaries=False)
        with pa.ipc.new_stream(sink, tables[0].schema, options=options) as writer:
            for table in tables:
                writer.write_table(table)
        answer = place.post(sink.getvalue(), ARROW)
        assert answer.status_code == 200, answer.text
    assert [json.loads(row["features"])["city"] for row in place.stored()] == ["Ulm", "Bonn", "Ulm"] * 2


# -- refused -----------------------------------------------------------------------------------------------------------

FOUR = [GOOD] * 4


def with_value(name: str, column: pa.Array) -> bytes:
    table = table_of(FOUR)
    return stream(table.set_column(table.schema.names.index(name), name, column))


def with_rows(**changes: Any) -> list[dict[str, Any]]:
    return [*FOUR[:3], {**GOOD, **changes}]


REFUSED: dict[str, tuple[str, bytes, int, str]] = {
    "no rows": (ARROW, stream(table_of(FOUR).slice(0, 0)), 400, "records: empty; send at least one record"),
    "no batch": (ARROW, stream(table_of(FOUR).slice(0, 0), 1), 400, "records: empty"),
    "too many rows": (ARROW, stream(table_of([GOOD] * 501)), 413, "501 records, more than the 500 allowed at once"),
    "too many batches": (ARROW, stream(pa.table({"a": pa.nulls(501)}), 1), 413, "501 records"),
    "a column less": (ARROW, stream(table_of(FOUR).drop_columns(["n"])), 400, 'column "n": missing; send nulls'),
    "a column more": (ARROW, with_value("a", pa.nulls(4)).replace(b"city", b"ctiy"), 400, "did you mean city?"),
    "a column twice": (
        ARROW,
        stream(pa.Table.from_arrays([pa.nulls(1), pa.nulls(1)], names=["a", "a"])),
        400,
        'column "a": sent twice',
    ),
    "text for a number": (
        ARROW,
        with_value("a", pa.array(["1"] * 4)),
        400,
        'column "a": a numeric feature takes integers, floats or decimals; got Arrow\'s string',
    ),
    "bool for a number": (ARROW, with_value("a", pa.array([True] * 4)), 400, "got Arrow's bool"),
    "number for bool": (
        ARROW,
        with_value("member", pa.array([1] * 4)),
        400,
        'column "member": a boolean feature takes',
    ),
    "number for text": (ARROW, with_value("city", pa.array([1] * 4)), 400, "strings, or a dictionary of strings"),
    "dictionary of numbers": (ARROW, with_value("a", pa.array([1] * 4).dictionary_encode()), 400, "got Arrow's dict"),
    "binary": (ARROW, with_value("city", pa.array([b"x"] * 4)), 400, "got Arrow's binary"),
    "list": (ARROW, with_value("city", pa.array([["x"]] * 4)), 400, "got Arrow's list"),
    "struct": (ARROW, with_value("a", pa.array([{"x": 1}] * 4)), 400, "got Arrow's struct"),
    "duration": (ARROW, with_value("joined", pa.array([1] * 4, pa.duration("s"))), 400, "timestamps, dates, or ISO"),
    "time of day": (ARROW, with_value("joined", pa.array([1] * 4, pa.time32("s"))), 400, "got Arrow's time32"),
    "extension": (
        ARROW,
        with_value("city", pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"x" * 16] * 4, pa.binary(16)))),
        400,
        'column "city"',
    ),
    "beyond float32": (
        ARROW,
        with_value("a", pa.array([1, 2, 3e38, 1e39])),
        422,
        "records[3].a: 1e+39 is too large; the model takes float32 numbers, up to ±3.4e38",
    ),
    "the smallest number beyond": (ARROW, with_value("a", pa.array([FLOAT32_LIMIT] * 4)), 422, "records[0].a: 3.40"),
    "infinite": (ARROW, with_value("a", pa.array([1, 2, float("-inf"), 1], pa.float32())), 422, "records[2].a: -Inf"),
    "half infinite": (ARROW, with_value("a", pa.array(np.array([1, np.inf] * 2, np.float16))), 422, "records[1].a"),
    "a large decimal": (
        ARROW,
        with_value("a", pa.array([Decimal(1)] * 3 + [Decimal("1e60")], pa.decimal256(70, 0))),
        422,
        "records[3].a: 1e+60",
    ),
    "a long category": (ARROW, with_value("city", pa.array(["a"] * 3 + ["x" * 1025])), 400, "records[3].city: "),
    "a long view": (ARROW, with_value("city", pa.array(["x" * 1025] * 4, pa.string_view())), 400, "records[0].city: "),
    "a long word of a dictionary": (
        ARROW,
        with_value("city", pa.array(["a", "a", "x" * 1025, "a"]).dictionary_encode()),
        400,
        "records[2].city: ",
    ),
    "no time": (
        ARROW,
        with_value("joined", pa.array(["2026-01-31"] * 2 + ["yesterday"] * 2)),
        400,
        'records[2].joined: expected an ISO-8601 string such as "2026-01-31T12:00:00Z", got "yesterday"',
    ),
    "a year 10000": (
        ARROW,
        with_value("joined", pa.array([0, 253_402_300_800, 0, 0], pa.timestamp("s"))),
        422,
        "records[1].joined: a time outside the years 1 to 9999",
    ),
    "an id less": (ARROW, stream(table_of(FOUR, ["a", "b", "c", None])), 400, "ids[3]: expected a string, got null"),
    "an empty id": (ARROW, stream(table_of(FOUR, ["a", "", "c", "d"])), 400, "ids[1]: expected 1 to 128 characters"),
    "ids that are numbers": (
        ARROW,
        stream(table_of(FOUR).append_column("id", pa.array([1] * 4))),
        400,
        "the ids takes",
    ),
    "a file, not a stream": (
        ARROW,
        b"ARROW1\0\0" + stream(table_of(FOUR)),
        400,
        "no message of Arrow begins at byte 0",
    ),
    "nothing": (ARROW, b"", 400, "it is cut short at byte 0"),
    "something behind": (ARROW, stream(table_of(FOUR)) + b"more", 400, "4 bytes follow its end"),
    "JSON": (ARROW, json.dumps({"records": FOUR}).encode(), 400, "no whole Arrow IPC stream"),
    "CSV: text for a number": (CSV, in_csv(with_rows(a="old")), 400, 'records[3].a: expected a number, got "old"'),
    "CSV: NaN": (CSV, in_csv(with_rows(a="nan")), 400, 'records[3].a: expected a number, got "nan"'),
    "CSV: underscore": (CSV, in_csv(with_rows(a="1_0")), 400, "records[3].a: expected a number"),
    "CSV: other digits": (CSV, in_csv(with_rows(a="٣")), 400, "records[3].a: expected a number"),
    "CSV: not quite a number": (CSV, in_csv(with_rows(a="1-2")), 400, "records[3].a: expected a number"),
    "CSV: yes": (CSV, in_csv(with_rows(member="yes")), 400, "records[3].member: expected true or false"),
    "CSV: beyond float32": (CSV, in_csv(with_rows(a="1e39")), 422, "records[3].a: 1e+39 is too large"),
    "CSV: infinite": (CSV, in_csv(with_rows(a="1e400")), 422, "records[3].a: Infinity is too large"),
    "CSV: no time": (CSV, in_csv(with_rows(joined="x")), 400, "records[3].joined: expected an ISO-8601 string"),
    "CSV: long": (CSV, in_csv(with_rows(city="x" * 1025)), 400, "records[3].city: "),
    "CSV: a column less": (CSV, in_csv([{"a": 1, "n": 2}]), 400, 'column "member": missing'),
    "CSV: a column more": (CSV, in_csv([{**GOOD, "ctiy": 1}]), 400, 'column "ctiy": unknown column'),
    "CSV: a column twice": (CSV, b"a,a\n1,2\n", 400, 'column "a": sent twice'),
    "CSV: a field more": (CSV, in_csv(FOUR) + b"1,2,3\n", 400, "records[4]: 3 fields; the header names 5 columns"),
    "CSV: an open quote": (CSV, in_csv(FOUR) + b'"Ulm', 400, "line 6: unexpected end of data"),
    "CSV: no rows": (CSV, in_csv(FOUR).splitlines(True)[0], 400, "records: empty"),
    "CSV: nothing": (CSV, b"", 400, "the body is empty; begin with a line of names: a,n,member"),
    "CSV: not UTF-8": (CSV, b"a\n\xff\n", 400, "not UTF-8 text (byte 2)"),
    "CSV: too many": (CSV, in_csv([GOOD] * 501), 413, "501 records"),
    "CSV: an id twice as long": (CSV, in_csv(FOUR, ["a", "b", "c", "x" * 129]), 400, "ids[3]: expected 1 to 128"),
    "CSV: a long line": (CSV, b"," * 100_000, 400, "a line of 100000 characters"),
    "NDJSON: text for a number": (
        NDJSON,
        in_lines(with_rows(a="old")),
        400,
        'records[3].a: expected a number, got "old"',
    ),
    "NDJSON: a feature less": (NDJSON, in_lines([*FOUR, {"a": 1}]), 400, "records[4].n: missing; send null"),
    "NDJSON: a feature more": (NDJSON, in_lines(with_rows(ctiy=1)), 400, "records[3].ctiy: unknown feature"),
    "NDJSON: beyond float32": (NDJSON, in_lines(with_rows(a=1e39)), 422, "records[3].a: 1e+39 is too large"),
    "NDJSON: NaN": (NDJSON, in_lines(with_rows(a=float("nan"))), 400, "records[3].a: NaN is not JSON"),
    "NDJSON: no object": (NDJSON, in_lines(FOUR) + b"\n[1]", 400, "records[4]: expected an object"),
    "NDJSON: two on a line": (NDJSON, in_lines(FOUR).replace(b"\n", b" "), 400, "records[0]: the body is not JSON"),
    "NDJSON: one over two lines": (
        NDJSON,
        json.dumps(GOOD, indent=1).encode(),
        400,
        "records[0]: the body is not JSON",
    ),
    "NDJSON: nothing": (NDJSON, b"\n\n", 400, "records: empty"),
    "NDJSON: not UTF-8": (NDJSON, in_lines(FOUR).replace(b"Ulm", b"\xff"), 400, "not UTF-8"),
    "NDJSON: too many": (NDJSON, in_lines([GOOD] * 501), 413, "501 records"),
    "NDJSON: an id less": (NDJSON, in_lines(FOUR, list("abcd")) + b"\n" + in_lines([GOOD]), 400, "4 ids for 5 records"),
    "NDJSON: an id that is a number": (NDJSON, in_lines(with_rows(id=3)), 400, "ids[0]: expected a string, got 3"),
    "NDJSON: a time": (NDJSON, in_lines(with_rows(joined="x")), 400, "records[3].joined: expected an ISO-8601"),
    "NDJSON: deep": (NDJSON, b"[" * 60_000, 400, "records[0]: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_with_its_row_and_column(name: str, place: Place) -> None:
    kind, body, status, words = REFUSED[name]

    assert words in place.refused(status, body, kind)

    assert place.entries() == []


def test_a_stream_cut_anywhere_is_refused_and_nothing_of_it_recorded(place: Place) -> None:
    whole = stream(table_of(FOUR, list("abcd"), city=pa.dictionary(pa.int8(), pa.string())), 2)

    for end in range(0, len(whole), 4):
        assert "no whole Arrow IPC stream" in place.refused(400, whole[:end])

    assert place.entries() == [] and place.post(whole, ARROW).status_code == 200


def test_damaged_streams_get_an_answer_that_is_no_error_of_ours(place: Place) -> None:
    dice = random.Random(0)
    table = table_of(FOUR * 5, [f"id-{row}" for row in range(20)], city=pa.dictionary(pa.int8(), pa.string()))
    sound = [
        stream(table),
        stream(table, 7, compression="zstd"),
        stream(table_of([{**GOOD, "a": 2}] * 4, a=pa.decimal128(10, 2), city=pa.string_view()), 2),
    ]
    seen = set()
    for _ in range(1500):
        body = bytearray(dice.choice(sound))
        for _ in range(dice.randrange(1, 4)):
            at, width = dice.randrange(len(body)), dice.choice([1, 4, 8])
            body[at : at + width] = dice.choice([dice.randbytes(width), b"\xff" * width, b"\0" * width])[
                : len(body) - at
            ]
        answer = place.post(bytes(body), ARROW)
        seen.add(answer.status_code)
        assert answer.status_code in (200, 400, 413, 422), answer.text
    assert {200, 400} <= seen
    assert place.drain().dead == 0


# -- bombs -------------------------------------------------------------------------------------------------------------


def test_what_unpacks_to_more_than_a_body_may_have_is_refused_without_unpacking_it(place: Place) -> None:
    table = table_of([{**GOOD, "city": "x" * 1024}] * 400)
    words = "bytes unpacked; send at most 200000 ([serve] max_request_bytes)"
    for codec in ("zstd", "lz4"):
        small = stream(table, compression=codec)
        assert len(small) < 20_000
        assert words in place.refused(413, small)
        assert place.post(stream(table.slice(0, 20), compression=codec), ARROW).status_code == 200


def test_few_bytes_that_stand_for_many_texts_are_refused(place: Place) -> None:
    words = "bytes with its texts written out for each row"
    texts = pa.array(["x" * 1000])
    dictionary = pa.DictionaryArray.from_arrays(pa.array([0] * 400, pa.int8()), texts)
    assert words in place.refused(413, with_rows_of(dictionary))
    view = struct.pack("<i4sii", 1000, b"xxxx", 0, 0)
    views = pa.Array.from_buffers(
        pa.string_view(), 400, [None, pa.py_buffer(view * 400), pa.py_buffer(b"x" * 1000)], null_count=0
    )
    assert words in place.refused(413, with_rows_of(views))


def with_rows_of(city: pa.Array) -> bytes:
    return stream(table_of([GOOD] * len(city)).set_column(3, "city", city))


def test_a_column_that_says_it_has_more_rows_than_bytes_is_not_believed(place: Place) -> None:
    body = stream(pa.table({"a": pa.nulls(3)}))
    for rows in (4, 10**9, 2**62, -1):
        lied = body.replace(struct.pack("<q", 3), struct.pack("<q", rows))
        assert place.post(lied, ARROW).status_code in (400, 413)


# -- compressed as a whole ---------------------------------------------------------------------------------------------


def packed(body: bytes, encoding: str) -> bytes:
    if encoding == "gzip":
        return gzip.compress(body)
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, encoding) as out:
        out.write(body)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_compressed_bodies_of_every_kind_are_answered(encoding: str, place: Place) -> None:
    json_body = json.dumps({"records": FOUR}).encode()
    bodies = [(json_body, JSON), *(WAYS[way](FOUR) for way in WAYS)]
    for body, kind in bodies:
        answer = place.post(packed(body, encoding), kind, content_encoding=encoding)
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind), answer.text
    label = json.dumps({"labels": [{"id": "x", "label": 0}]}).encode()
    headers = {"content-type": JSON, "content-encoding": encoding}
    labelled = run(place.front, ("POST", "/feedback", {"content": packed(label, encoding), "headers": headers}))[0]
    assert labelled.status_code == 202
    assert len(place.stored()) == len(bodies) * 4 and place.front.lane.held == 0


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_compressed_bodies_are_bounded_and_broken_ones_refused(encoding: str, place: Place) -> None:
    body = json.dumps({"records": FOUR}).encode()
    small = packed(body, encoding)
    bomb = packed(b"[" * 50_000_000, encoding)
    assert len(bomb) < MOST
    assert "more than 200000 bytes when it is unpacked" in place.refused(413, bomb, JSON, content_encoding=encoding)
    assert place.post(packed(body.ljust(MOST), encoding), JSON, content_encoding=encoding).status_code == 200
    assert place.refused(413, packed(body.ljust(MOST + 1), encoding), JSON, content_encoding=encoding)
    for end in range(0, len(small), 3):
        assert f"no whole {encoding} stream" in place.refused(400, small[:end], JSON, content_encoding=encoding)
    for broken in (small + b"more", b"\0" + small, small[:20] + b"\xff\xff\xff\xff" + small[24:], body):
        place.refused(400, broken, JSON, content_encoding=encoding)
    many = packed(b"", encoding) * 5_000
    place.refused(400, many + small, JSON, content_encoding=encoding)
    assert len(place.stored()) == 4 and place.front.lane.held == 0


def test_other_encodings_and_kinds_are_refused_with_what_there_is(place: Place) -> None:
    words = place.refused(415, b"", JSON, content_encoding="br")
    assert "gzip or zstd" in words
    words = place.refused(415, b"", "application/parquet")
    assert all(kind in words for kind in (JSON, ARROW, CSV, NDJSON))
    headers = {"content-type": CSV}
    assert run(place.front, ("POST", "/feedback", {"content": b"", "headers": headers}))[0].status_code == 415


# -- the record --------------------------------------------------------------------------------------------------------


def test_a_batch_in_arrow_is_recorded_as_it_came_in_one_entry(place: Place) -> None:
    body = stream(table_of(records_of(100)))

    answer = place.post(body, ARROW)

    (entry,) = place.entries()
    assert (entry.kind, entry.rows) == (COLUMNS, 100)
    assert [bytes(part) for part in entry.parts] == [answer.content, body]
    assert place.drain().predictions == 100 and place.drain().predictions == 0


def test_a_compressed_stream_is_recorded_unpacked(place: Place) -> None:
    """What is forgotten must be found: no value of a row may stand in the spool in other bytes than its own."""
    assert place.post(stream(table_of([GOOD] * 50), compression="zstd"), ARROW).status_code == 200

    assert b"Ulm" in bytes(place.entries()[0].parts[1])
    assert len(place.stored()) == 50


def test_the_mark_of_an_entry_within_a_batch_is_no_entry(place: Place) -> None:
    mark = struct.unpack("<d", MAGIC + b"\0\0\0@")[0]
    assert place.post(stream(table_of([{**GOOD, "a": mark}, GOOD], ["one", "two"])), ARROW).status_code == 200

    (entry,) = place.entries()
    assert entry.kind == PREDICTION and MAGIC not in b"".join(entry.parts)
    rows = place.stored()
    assert [row["id"] for row in rows] == ["one", "two"]
    assert json.loads(rows[0]["features"])["a"] == mark and "id" not in json.loads(rows[0]["features"])


def test_a_torn_batch_at_the_end_of_a_dead_workers_segment_is_no_row(place: Place) -> None:
    body = stream(table_of(FOUR))
    for _ in range(3):
        assert place.post(body, ARROW).status_code == 200
    place.worker.close()
    (path,) = place.settings.spool_dir.glob("*.sealed")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 100])

    done = place.drain()

    assert (done.predictions, done.torn, done.dead, done.deleted_segments) == (8, 1, 0, 1)
    assert place.drain().predictions == 0


def test_one_damaged_batch_costs_no_other(place: Place) -> None:
    for _ in range(3):
        assert place.post(stream(table_of(FOUR)), ARROW).status_code == 200
    place.worker.close()
    (path,) = place.settings.spool_dir.glob("*.sealed")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    done = place.drain()

    assert (done.predictions, done.dead) == (8, 1)


def test_batches_of_all_kinds_and_labels_are_drained_in_small_batches_exactly_once(place: Place) -> None:
    for way in WAYS:
        body, kind = WAYS[way](FOUR)
        assert place.post(body, kind).status_code == 200
    place.post({"records": FOUR})
    first = Drainer(place.settings.spool_dir, place.engine, batch_rows=3)
    with first:
        assert first.drain(time.time()).predictions == 20
    with Drainer(place.settings.spool_dir, place.engine, batch_rows=1) as again:
        assert again.drain(time.time()).predictions == 0


def test_a_batch_with_a_value_that_is_to_be_forgotten_leaves_the_open_segment_too(place: Place) -> None:
    assert place.post(stream(table_of([{**GOOD, "city": "Anna's own"}, GOOD])), ARROW).status_code == 200
    assert place.post(stream(table_of(FOUR)), ARROW).status_code == 200
    anna = Subject(feature="city", value="Anna's own")
    assert place.drain().predictions == 6 and len(find(place.engine, anna, time.time()).rows) == 1

    test = entry_test(anna, frozenset(), time.time())
    assert blank_spool(place.settings.spool_dir, place.engine, test) == 1

    assert [entry.rows for entry in place.entries()] == [0, 4]
    assert b"Anna" not in b"".join(path.read_bytes() for path in place.settings.spool_dir.glob("*.s*"))


def test_a_batch_that_only_the_database_refuses_is_kept_as_text_in_which_values_are_found(place: Place) -> None:
    assert place.post(stream(table_of(FOUR, list("abcd"))), ARROW).status_code == 200

    letter = dead_letter(place.entries()[0], 1 << 40, "the database refuses it")

    assert letter.kind == COLUMNS and letter.payload.decode().splitlines()[3].startswith('d {"a":1.5,"n":7,')


def test_columns_for_the_record_alone_are_hashed_or_dropped_and_no_value_of_them_stays(
    tmp_path: Path, binary: Path, sqlite_url: str
) -> None:
    changes = {"PRIVACY__HASH": '["who"]', "PRIVACY__DROP": '["phone"]'}
    place = Place(tmp_path, binary, sqlite_url, **changes)
    hidden = [{**GOOD, "who": who, "phone": "0170 5550"} for who in ("anna", None, "anna", "41")]
    table = table_of(FOUR).append_column("who", pa.array([row["who"] for row in hidden]).dictionary_encode())
    table = table.append_column("phone", pa.array(["0170 5550"] * 4))
    ways = {"JSON": ({"records": hidden}, JSON), "Arrow": (stream(table), ARROW)}
    ways |= {"CSV": (in_csv(hidden), CSV), "NDJSON": (in_lines(hidden), NDJSON)}
    for body, kind in ways.values():
        answer = place.post(body, kind)
        assert answer.status_code == 200, answer.text
    numbers = table_of(FOUR).append_column("who", pa.array([41, None, 41, 41]))
    assert place.post(stream(numbers), ARROW).status_code == 200
    assert 'column "who": a column for the record takes' in place.refused(
        400, stream(table_of(FOUR).append_column("who", pa.array([[1]] * 4)))
    )
    assert "records[0].who" in place.refused(
        400, stream(table_of(FOUR).append_column("who", pa.array(["x" * 1025] * 4)))
    )

    spooled = b"".join(path.read_bytes() for path in place.settings.spool_dir.glob("*.s*"))
    assert b"anna" not in spooled and b"0170" not in spooled
    whos = [json.loads(row["features"])["who"] for row in place.stored()]
    assert all("phone" not in row["features"] for row in place.stored())
    assert whos[:4] == whos[4:8] == whos[8:12] == whos[12:16] and whos[0].startswith("h:") and whos[1] is None
    assert whos[16:] == [whos[3], None, whos[3], whos[3]]
    place.close()


def test_where_a_feature_is_named_id_the_ids_are_made(tmp_path: Path, sqlite_url: str) -> None:
    place = Place(tmp_path, made("binary", tmp_path / "model", a="id"), sqlite_url)
    records = [{"id": record["a"], **{name: record[name] for name in record if name != "a"}} for record in FOUR]
    table = table_of(FOUR).rename_columns(["id", "n", "member", "city", "joined"])
    for body, kind in ((stream(table), ARROW), (in_csv(records), CSV), (in_lines(records), NDJSON)):
        answer = place.post(body, kind)
        assert answer.status_code == 200, answer.text
        assert all(len(id_) == 36 for id_ in read_answer(answer)[0])
    assert [json.loads(row["features"])["id"] for row in place.stored()] == [1.5] * 12
    place.close()


def test_a_model_that_scikit_learn_answers_takes_arrow_too(place: Place, binary: Path) -> None:
    from dataclasses import replace as changed

    from service.serving.predictor import _scikit_learn

    records = records_of(50)
    current = place.worker.model.current
    assert current is not None
    run_ = _scikit_learn(binary, current.schema, ())
    place.worker.model.current = changed(current, engine="scikit-learn", run=run_)
    expected = place.post({"records": records}).json()

    assert read_answer(place.post(stream(table_of(records)), ARROW))[1:] == (
        expected["predictions"],
        expected["probabilities"],
    )


def test_a_refused_batch_is_recorded_as_a_count_without_any_value(place: Place) -> None:
    async def three() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(place.front), base_url="http://test") as client:
            for body, kind in ((with_value("a", pa.array([1e39] * 4)), ARROW), (in_csv(with_rows(a="old")), CSV)):
                assert (await client.post("/predict", content=body, headers={"content-type": kind})).status_code >= 400
            async with asyncio.timeout(180):  # they are counted once a second
                while place.front.lane._rejections:
                    await asyncio.sleep(0.05)

    asyncio.run(three())
    place.drain()
    with place.engine.connect() as connection:
        rows = connection.execute(sa.select(store.rejections)).all()
    assert sorted(row.reason for row in rows) == [
        "records[].a: expected a number, got a string",
        "records[].a: outside float32",
    ]


def test_who_sends_no_arrow_pays_for_none_and_who_does_not_for_pandas(binary: Path) -> None:
    program = (
        "import sys, pathlib, json\n"
        "from service.serving.front import Front; from service.serving import worker, group, wire\n"
        "from monitoring.decode import RequestDecoder; from monitoring.schema import FeatureSchema\n"
        "from training.artefact import verify; from training.twin import Twin\n"
        "folder = pathlib.Path(sys.argv[1]); twin = Twin(folder, verify(folder))\n"
        "schema = FeatureSchema.from_json((folder / 'schema.json').read_bytes())\n"
        "decoder = RequestDecoder(schema, 500)\n"
        "twin.predict(decoder.decode(json.dumps({'records': [schema.example()]}).encode()))\n"
        "assert not {'pyarrow', 'pandas'} & sys.modules.keys()\n"
        "from monitoring.columns import read_arrow; from monitoring.arrow_rows import answer_stream\n"
        "batch = read_arrow(decoder, sys.stdin.buffer.read(), 10**7)\n"
        "answer_stream(['id', 'prediction', '0', '1'], batch.ids, twin.predict(batch), schema.classes, {})\n"
        "assert 'pyarrow' in sys.modules and 'pandas' not in sys.modules\n"
    )
    records = records_of(20)
    body = stream(table_of(records, [f"id-{row}" for row in range(20)], city=pa.dictionary(pa.int8(), pa.string())), 7)
    command = [sys.executable, "-W", "ignore", "-c", program, str(binary)]
    done = subprocess.run(command, input=body, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_generated_streams_are_told_from_their_heads_as_pyarrow_reads_them() -> None:
    """The bound on what a stream unpacks to stands on this."""
    dice = random.Random(3)
    for _ in range(60):
        records = records_of(dice.randrange(1, 60), dice.randrange(10**6))
        table = table_of(records, city=dice.choice([pa.string(), pa.dictionary(pa.int16(), pa.string())]))
        size, packing = dice.randrange(1, 30), dice.choice([None, "zstd", "lz4"])
        inside = look_into(stream(table, size, compression=packing))
        batches = -(-len(records) // size)
        plain = look_into(stream(table, size))
        assert (inside.rows, inside.batches) == (len(records), batches)
        assert inside.packed == (packing is not None)
        assert inside.size <= plain.size <= inside.size + 64 * 2 * len(TYPES) * 2 * batches  # buffers end on 64 bytes


def test_the_examples_of_the_document_are_true(place: Place) -> None:
    document = run(place.front, ("GET", "/docs.json", {}))[0].json()
    predict = document["paths"]["/predict"]["post"]
    asked, answered = predict["requestBody"]["content"], predict["responses"]["200"]["content"]
    assert sorted(asked) == sorted(answered) == sorted([JSON, ARROW, CSV, NDJSON])

    for kind in (CSV, NDJSON):
        answer = place.post(asked[kind]["example"].encode(), kind)
        assert answer.status_code == 200, answer.text
        example = httpx.Response(200, text=answered[kind]["example"], headers={"content-type": kind})
        (found, shown) = (read_answer(one) for one in (answer, example))
        assert found[0] == shown[0] == ["order-17"]
        assert len(found[2][0]) == len(shown[2][0]) == 2  # type: ignore[index]
    headers = predict["responses"]["200"]["headers"]
    assert {name.lower() for name in headers} >= {name for name in answer.headers if name.startswith("evergreen-")}
