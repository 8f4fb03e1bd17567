"""Large bodies of every bad kind: refused in plain words, with bounded memory, and never by a 500."""

from __future__ import annotations

import asyncio
import json
import random
import tracemalloc
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from service.serving import large
from service.serving.front import Front
from tests.artefacts import example_record, make_artefact
from tests.wired import example, working

MB = 2**20
INFER = "/v2/models/evergreen/infer"

Json = st.recursive(
    st.text(alphabet='ab,"\\[]{}\n', max_size=8) | st.integers() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='a,"\\', max_size=3), inner, max_size=3)
    ),
    max_leaves=30,
)


def texts_in(value: Any) -> list[str]:
    """All strings, names too, as JSON writes them, without their quotes."""
    if isinstance(value, dict):
        return [json.dumps(name)[1:-1] for name in value] + [t for inner in value.values() for t in texts_in(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in texts_in(inner)]
    return [json.dumps(value)[1:-1]] if isinstance(value, str) else []


def values_in(value: Any) -> int:
    """Commas of the JSON text outside strings, and one."""
    children = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return max(1, len(children)) + sum(values_in(child) - 1 for child in children)


@given(Json, st.integers(1, 40))
def test_values_and_texts_are_measured_whatever_stands_in_them(value: Any, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large, "_CHUNK_BYTES", chunk)
        *_, found = large.measured(json.dumps(value).encode())
    assert found == (values_in(value), max(map(len, texts_in(value)), default=0))


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    home = tmp_path_factory.mktemp("home")
    make_artefact(home / "1")

    async def beyond(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("none of these is the framework's")

    with working(home, home / "1") as worker:
        yield Front(beyond, lambda: worker)


def post(app: Front, path: str, content: bytes, **headers: str) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post(path, content=content, headers={"content-type": "application/json", **headers})

    return asyncio.run(send())


def wrapped(path: str, value: bytes) -> bytes:
    """The value where a request of this path has its lists."""
    if path == "/predict":
        return b'{"records": [{"age": 1}], "ids": ' + value + b"}"
    if path == "/feedback":
        return b'{"labels": ' + value + b"}"
    return b'{"inputs": [{"name": "age", "shape": [1], "datatype": "FP64", "data": ' + value + b"}]}"


RECORD = json.dumps(example_record()).encode()
BAD = {
    "not JSON": b"x" * 15 * MB,
    "nested": b"[" * 15 * MB,
    "one string": b'["' + b"x" * 15 * MB + b'"]',
    "digits": b"[" + b"9" * 15 * MB + b"]",
    "nulls": b"[" + b"null," * 3_000_000 + b"null]",
    "short strings": b"[" + b'"ab",' * 3_000_000 + b'"ab"]',
    "zeros": b"[" + b"0," * 7_000_000 + b"0]",
    "objects": b"[" + b"{}," * 5_000_000 + b"{}]",
    "labels": b"[" + b'{"id":"a","label":1},' * 700_000 + b'{"id":"a","label":1}]',
    "repeated keys": b"[{" + b'"a":1,' * 2_500_000 + b'"a":1}]',
    "not UTF-8": b'["' + b"\xff" * 15 * MB + b'"]',
    "wide characters": b'["' + b"x" * 15 * MB + "\U0001f600".encode() + b'", 1]',
    "escapes": b'["' + b'\\"' * 7 * MB + b'"]',
}


@pytest.mark.parametrize("path", ["/predict", "/feedback", INFER])
@pytest.mark.parametrize("name", BAD)
def test_a_large_bad_body_is_refused_with_bounded_memory(app: Front, path: str, name: str) -> None:
    content = wrapped(path, BAD[name])
    tracemalloc.start()
    try:
        response = post(app, path, content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert response.status_code in (400, 413)
    assert len(response.content) < 2000
    assert peak < 64 * MB


def test_more_records_than_allowed_are_refused_before_they_are_made(app: Front) -> None:
    content = b'{"records": [' + b",".join([RECORD] * (15 * MB // len(RECORD))) + b"]}"
    tracemalloc.start()
    response = post(app, "/predict", content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert response.status_code == 413
    assert "10000" in response.json()["error"]
    assert peak < 64 * MB


def test_the_fault_in_a_large_body_is_named_with_its_place(app: Front) -> None:
    padding = " " * 5 * MB
    records = [example_record()] * 50 + [example_record(age="old")]
    response = post(app, "/predict", (json.dumps({"records": records}) + padding).encode())
    too_much = [example_record()] * 50 + [example_record(income=1e300)]
    unprocessable = post(app, "/predict", (json.dumps({"records": too_much}) + padding).encode())

    assert response.status_code == 400
    assert "records[50].age" in response.json()["error"]
    assert unprocessable.status_code == 422
    assert "records[50].income" in unprocessable.json()["error"]


def test_large_batches_are_answered_on_every_way(app: Front) -> None:
    records = [{**example(), "age": 18 + row % 60} for row in range(10_000)]
    answer = post(app, "/predict", json.dumps({"records": records}).encode()).json()
    labels = [{"id": id_, "label": 1} for id_ in answer["ids"]]
    taken = post(app, "/feedback", json.dumps({"labels": labels}).encode())
    kinds = {bool: "BOOL", int: "INT64", float: "FP64", str: "BYTES"}
    inputs = [
        {"name": name, "shape": [len(records)], "datatype": kinds[type(value)], "data": [r[name] for r in records]}
        for name, value in example().items()
    ]
    inferred = post(app, INFER, json.dumps({"inputs": inputs}).encode()).json()

    assert len(set(answer["ids"])) == 10_000
    assert (taken.status_code, taken.json()) == (202, {"accepted": 10_000})
    assert inferred["outputs"][0]["data"] == answer["predictions"]


SHAPES = {
    "digits": b"[" + b"9" * 2_400_000 + b"]",
    "dimensions": b"[" + b"9," * 1_000_000 + b"1]",
    "beyond": b"[18446744073709551616]",
    "negative": b"[-1]",
    "rows": b"[10001]",
    "none": b"[]",
    "two": b"[1, 2]",
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_v2_shape_is_looked_at_before_it_is_used(app: Front, name: str) -> None:
    tensor = b'{"name": "age", "datatype": "FP64", "data": [1], "shape": ' + SHAPES[name] + b"}"
    response = post(app, INFER, b'{"inputs": [' + tensor + b"]}")

    assert response.status_code in (400, 413)
    assert len(response.content) < 1000


@pytest.mark.parametrize("size", [10**30, -1, 2**62, 5])
def test_v2_binary_sizes_that_lie_are_refused(app: Front, size: int) -> None:
    for datatype in ("FP64", "BYTES"):
        tensor = {"name": "age", "shape": [1], "datatype": datatype, "parameters": {"binary_data_size": size}}
        head = json.dumps({"inputs": [tensor]}).encode()
        length = {"inference-header-content-length": str(len(head))}
        assert post(app, INFER, head + b"\0" * 4, **length).status_code == 400


def test_many_empty_binary_strings_are_not_all_read(app: Front) -> None:
    tensor = {"name": "city", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 12 * MB}}
    head = json.dumps({"inputs": [tensor]}).encode()
    length = {"inference-header-content-length": str(len(head))}
    tracemalloc.start()
    response = post(app, INFER, head + b"\0" * 12 * MB, **length)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert response.status_code == 400
    assert peak < 40 * MB


@pytest.mark.parametrize("path", ["/predict", "/feedback", INFER])
def test_bodies_that_are_no_text_are_no_error_of_ours(app: Front, path: str) -> None:
    chance = random.Random(7)
    for _ in range(200):
        content = bytes(chance.randrange(256) for _ in range(chance.randrange(60)))
        assert post(app, path, content).status_code == 400
        assert post(app, path, b'{"records": [{"\xff": 1}], "labels": [{"id": "\xff"}]}').status_code == 400


def test_an_error_of_ours_is_json_and_its_request_stands_in_the_log(
    app: Front, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = app.lane.worker.model

    class Broken:
        engine, version, adaptation = "onnx", 1, UNSET

        def __getattr__(self, name: str) -> Any:
            raise KeyError(name)

    # The worker's thread would bring the whole model back in the middle of the test.
    monkeypatch.setattr(type(model), "follow", lambda model, live, now: False)
    kept, model.current = model.current, Broken()  # type: ignore[assignment]
    try:
        answers = [post(app, path, b"{}", **{"x-request-id": "r-1"}) for path in ("/predict", INFER)]
        answers.append(post(app, "/predict", b"{}"))
    finally:
        model.current = kept

    assert [answer.status_code for answer in answers] == [500] * 3
    for answer in answers:
        given = answer.headers["x-request-id"]
        assert given in answer.json()["error"] and given in caplog.text
