"""A large body is cut between its records, and nobody can tell from the answer, the record or an error."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.decode import InvalidRequest, RequestDecoder
from monitoring.drain import Drainer
from monitoring.store import open_store, predictions
from service.serving import pieces as module
from service.serving.front import Front
from service.serving.pieces import pieces
from tests.artefacts import make_artefact, sample_schema
from tests.wired import working

SCHEMA, _, _ = sample_schema()
DECODER = RequestDecoder(SCHEMA, 500)

Text = st.text(alphabet='ab},{[]"\\ :é', max_size=12)
Records = st.lists(
    st.builds(
        lambda purpose, age: {**SCHEMA.example(), "purpose": purpose, "age": age}, Text | st.none(), st.integers(0, 99)
    ),
    min_size=1,
    max_size=12,
)
"""Whose texts look like the ends of records."""


def dumped(body: dict[str, Any], indent: int | None, separators: tuple[str, str]) -> bytes:
    return json.dumps(body, indent=indent, separators=separators, ensure_ascii=False).encode()


@settings(deadline=None)
@given(Records, st.booleans(), st.sampled_from([None, 1]), st.sampled_from([(",", ":"), (" , ", " : ")]), Text)
def test_the_pieces_hold_the_rows_of_the_whole_whatever_stands_in_them(
    records: list[dict[str, Any]], named: bool, indent: int | None, separators: tuple[str, str], text: str
) -> None:
    body: dict[str, Any] = {"records": records}
    if named:
        body["ids"] = [f"{row}-{text}" for row in range(len(records))]
    content = dumped(body, indent, separators)
    whole = DECODER.decode(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES", 1)
        found = pieces(DECODER, content)

    assert [record for piece in found for record in piece.batch.records] == whole.records
    assert [id_ for piece in found for id_ in piece.batch.ids or ()] == (whole.ids or [])
    for piece in found:
        assert DECODER.decode(piece.body).records == piece.batch.records
    assert sum(piece.batch.n for piece in found) == len(records)
    if not any(mark in text for mark in ("}", "{")) and not any("}" in str(r["purpose"]) for r in records):
        assert len(found) == len(records)


BAD: dict[str, Any] = {
    "an unknown column": {"records": [SCHEMA.example()] * 5 + [{**SCHEMA.example(), "x": 1}]},
    "a wrong type": {"records": [SCHEMA.example()] * 5 + [{**SCHEMA.example(), "age": "old"}]},
    "too many records": {"records": [SCHEMA.example()] * 501},
    "too few ids": {"records": [SCHEMA.example()] * 5, "ids": ["a"]},
    "an empty id": {"records": [SCHEMA.example()] * 2, "ids": ["a", ""]},
    "an id that is no text": {"records": [SCHEMA.example()] * 2, "ids": ["a", 1]},
    "an unknown member": {"records": [SCHEMA.example()] * 5, "names": ["a"]},
    "records twice": b'{"records": [%b], "records": [%b, 3]}' % ((json.dumps(SCHEMA.example()).encode(),) * 2),
    "an object in a record": {"records": [{**SCHEMA.example(), "age": [{"a": 1}, {"b": 2}]}] * 3},
    "a torn body": json.dumps({"records": [SCHEMA.example()] * 5}).encode()[:-30],
    "a record of nothing": b'{"records": [{}, {}]}',
    "not UTF-8": b'{"records": [{"purpose": "\xff"}, {"purpose": "\xff"}]}',
}


@pytest.mark.parametrize("name", BAD)
def test_a_fault_is_told_as_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = BAD[name] if isinstance(BAD[name], bytes) else json.dumps(BAD[name]).encode()
    monkeypatch.setattr(module, "PIECE_BYTES", 1)
    with pytest.raises(InvalidRequest) as whole:
        DECODER.decode(content)
    with pytest.raises(InvalidRequest) as cut:
        pieces(DECODER, content)

    assert (cut.value.status, cut.value.message) == (whole.value.status, whole.value.message)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Front, Any]]:
    home = tmp_path_factory.mktemp("home")
    make_artefact(home / "1")

    async def beyond(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("none of these is the framework's")

    with working(home, home / "1") as worker:
        yield Front(beyond, lambda: worker), worker


def post(app: Front, body: dict[str, Any]) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            headers = {"content-type": "application/json"}
            return await client.post("/predict", content=json.dumps(body).encode(), headers=headers)

    return asyncio.run(send())


@pytest.mark.parametrize("named", [True, False])
def test_the_answer_and_the_record_are_those_of_small_requests(
    place: tuple[Front, Any], tmp_path: Path, named: bool
) -> None:
    app, worker = place
    records = [{**SCHEMA.example(), "age": 18 + row % 60, "purpose": f"}},{{{row}"} for row in range(3_000)]
    ids = [f"row-{named}-{row}" for row in range(len(records))]
    large = post(app, {"records": records} | ({"ids": ids} if named else {})).json()
    small = [post(app, {"records": records[at : at + 100]}).json() for at in range(0, len(records), 100)]
    worker.log.close()
    engine = open_store(f"sqlite:///{tmp_path}/store.db")
    with Drainer(worker.settings.spool_dir, engine) as drainer:
        drainer.drain(2e9)
    with engine.connect() as connection:
        stored = {row.id: row for row in connection.execute(predictions.select())}

    assert large["predictions"] == [value for one in small for value in one["predictions"]]
    assert large["probabilities"] == [row for one in small for row in one["probabilities"]]
    assert {name: large[name] for name in ("model", "version", "classes")} == {
        name: small[0][name] for name in ("model", "version", "classes")
    }
    assert len(set(large["ids"])) == 3_000 and (not named or large["ids"] == ids)
    for at, id_ in enumerate(large["ids"]):
        row = stored[id_]
        assert json.loads(row.features) == records[at]
        assert json.loads(row.prediction) == large["predictions"][at]
        assert json.loads(row.probabilities) == large["probabilities"][at]
