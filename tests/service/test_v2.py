"""The Open Inference Protocol: what it takes, what it answers, what it refuses and how."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from monitoring.drain import Drainer
from monitoring.store import open_store, predictions
from service.configuration import load
from service.handover import Live, LiveVersion, write_live
from service.serving.front import Front
from service.serving.worker import Worker
from tests.artefacts import example_record, make_artefact, sample_schema
from training.trees import is_built


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    home = tmp_path_factory.mktemp("home")
    make_artefact(home / "1")
    settings = load(environ={"EVERGREEN_HOME": str(home), "EVERGREEN_SERVE__WORKERS": "1"})
    write_live(settings.live_file, Live(model="evergreen", champion=LiveVersion(1, str(home / "1"))))
    worker = Worker(settings, home / "run", "api-1")
    worker.start()

    async def beyond(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("nothing below /v2 belongs to the framework")

    yield Front(beyond, lambda: worker)
    worker.close()


def ask(app: Front, method: str, path: str, **options: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


def request(**changed: dict[str, Any]) -> dict[str, Any]:
    """One row, every column; keyword arguments change a column's tensor."""
    schema, _, _ = sample_schema()
    kinds = {"numeric": "FP64", "boolean": "BOOL", "categorical": "BYTES"}
    record = example_record()
    tensors = []
    for feature in schema.features:
        tensor = {"name": feature.name, "shape": [1], "datatype": kinds[feature.kind], "data": [record[feature.name]]}
        tensors.append({**tensor, **changed.get(feature.name, {})})
    return {"inputs": tensors}


INFER = "/v2/models/evergreen/infer"


def test_health_and_metadata_name_every_column(app: Front) -> None:
    schema, _, _ = sample_schema()

    metadata = ask(app, "GET", "/v2/models/evergreen").json()

    assert ask(app, "GET", "/v2/health/ready").json() == {"ready": True}
    assert ask(app, "GET", "/v2/models/evergreen/versions/1/ready").status_code == 200
    assert [tensor["name"] for tensor in metadata["inputs"]] == list(schema.names)
    assert metadata["platform"] == ("evergreen_trees" if is_built() else "onnx_onnxv1")
    assert metadata["versions"] == ["1"]


def test_it_predicts_what_predict_predicts(app: Front) -> None:
    plain = ask(app, "POST", "/predict", json={"records": [example_record()]}).json()

    answer = ask(app, "POST", INFER, json={**request(), "id": "abc"}).json()

    outputs = {output["name"]: output for output in answer["outputs"]}
    assert answer["id"] == "abc"
    assert answer["model_version"] == "1"
    assert outputs["probabilities"]["data"] == plain["probabilities"][0]
    assert outputs["probabilities"]["shape"] == [1, 2]
    assert outputs["predictions"]["data"] == plain["predictions"]
    assert len(outputs["ids"]["data"][0]) == 36


def test_null_and_nan_are_missing_values(app: Front) -> None:
    missing = ask(app, "POST", "/predict", json={"records": [example_record(savings=None)]}).json()
    nan = struct.pack("<d", float("nan"))
    head = json.dumps(request(savings={"data": None, "parameters": {"binary_data_size": len(nan)}})).encode()

    null = ask(app, "POST", INFER, json=request(savings={"data": [None]})).json()
    binary = ask(
        app, "POST", INFER, content=head + nan, headers={"inference-header-content-length": str(len(head))}
    ).json()

    for answer in (null, binary):
        outputs = {output["name"]: output["data"] for output in answer["outputs"]}
        assert outputs["probabilities"] == missing["probabilities"][0]


def test_only_the_outputs_asked_for_are_sent(app: Front) -> None:
    answer = ask(app, "POST", INFER, json={**request(), "outputs": [{"name": "predictions"}]}).json()

    assert [output["name"] for output in answer["outputs"]] == ["predictions"]


BAD = {
    "wrong datatype": (request(age={"datatype": "BYTES", "data": ["x"]}), 'datatype'),
    "string in numbers": (request(age={"data": ["old"]}), "age"),
    "boolean in numbers": (request(age={"data": [True]}), "boolean in a numeric column"),
    "count": (request(age={"data": [1, 2]}), "2 values for shape [1]"),
    "shape": (request(age={"shape": [1, 2], "data": [1, 2]}), "is not one column"),
    "unknown column": ({"inputs": [*request()["inputs"], {**request()["inputs"][0], "name": "years"}]}, "years"),
    "absent column": ({"inputs": request()["inputs"][1:]}, "missing"),
    "sent twice": ({"inputs": [*request()["inputs"], request()["inputs"][0]]}, "sent twice"),
    "no data": (request(age={"data": None}), "no data"),
    "cut binary": (request(age={"data": None, "parameters": {"binary_data_size": 8}}), "bytes are left"),
    "other shape of request": ({"records": []}, "inputs"),
    "unknown output": ({**request(), "outputs": [{"name": "shap"}]}, "unknown; there are"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_what_and_where(app: Front, name: str) -> None:
    body, words = BAD[name]

    response = ask(app, "POST", INFER, json=body)

    assert response.status_code == 400
    assert words in response.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/evergreen/versions/9", 404),
        ("GET", "/v2/models/evergreen/versions/x/ready", 404),
        ("GET", "/v2/nothing/here", 404),
        ("GET", INFER, 405),
        ("POST", "/v2/health/live", 405),
    ],
)
def test_what_is_not_there_is_said(app: Front, method: str, path: str, status: int) -> None:
    response = ask(app, method, path)

    assert response.status_code == status
    assert response.json()["error"]


# -- large requests in binary ------------------------------------------------------------------------------------------

ROWS = 3_000


def records(rows: int) -> list[dict[str, Any]]:
    one, purposes = example_record(), ("car", "Straße", "", "a\nb")
    return [
        {**one, "age": 18.5 + row % 60, "purpose": purposes[row % 4], "owns_home": row % 3 == 0} for row in range(rows)
    ]


def binary(rows: list[dict[str, Any]], **changed: tuple[str, bytes]) -> tuple[bytes, dict[str, str]]:
    """Content and headers with every column as a binary tensor; keyword arguments: another datatype and bytes."""
    schema, _, _ = sample_schema()
    inputs, parts = [], []
    for feature in schema.features:
        values = [row[feature.name] for row in rows]
        if feature.kind == "categorical":
            texts = [value.encode() for value in values]
            datatype, data = "BYTES", b"".join(struct.pack("<I", len(text)) + text for text in texts)
        elif feature.kind == "boolean":
            datatype, data = "BOOL", bytes(values)
        else:
            datatype, data = "FP64", struct.pack(f"<{len(values)}d", *values)
        datatype, data = changed.get(feature.name, (datatype, data))
        shape = [len(rows), 1] if feature.name == "age" else [len(rows)]
        size = {"binary_data_size": len(data)}
        inputs.append({"name": feature.name, "shape": shape, "datatype": datatype, "parameters": size})
        parts.append(data)
    head = json.dumps({"inputs": inputs, "id": "abc"}).encode()
    return head + b"".join(parts), {"inference-header-content-length": str(len(head))}


def test_a_large_binary_request_is_answered_and_recorded_as_the_same_rows_in_json(app: Front, tmp_path: Path) -> None:
    asked = records(ROWS)
    whole = struct.pack(f"<{ROWS}i", *(row["age"].__floor__() for row in asked))
    plain = ask(app, "POST", "/predict", json={"records": asked}).json()
    content, headers = binary(asked)

    answer = ask(app, "POST", INFER, content=content, headers=headers).json()
    other = ask(app, "POST", INFER, content=(of := binary(asked, age=("INT32", whole)))[0], headers=of[1]).json()
    floored = ask(app, "POST", "/predict", json={"records": [{**r, "age": r["age"].__floor__()} for r in asked]}).json()

    outputs = {output["name"]: output for output in answer["outputs"]}
    assert (answer["id"], answer["model_version"]) == ("abc", "1")
    assert outputs["predictions"]["data"] == plain["predictions"]
    assert outputs["probabilities"]["data"] == [value for row in plain["probabilities"] for value in row]
    assert {o["name"]: o["data"] for o in other["outputs"]}["predictions"] == floored["predictions"]
    worker = app.lane.worker
    engine = open_store(f"sqlite:///{tmp_path}/store.db")
    with Drainer(worker.settings.spool_dir, engine) as drainer:
        drainer.drain(2e9)
    with engine.connect() as connection:
        stored = {row.id: row for row in connection.execute(predictions.select())}
    for at, (ours, theirs) in enumerate(zip(outputs["ids"]["data"], plain["ids"], strict=True)):
        assert json.loads(stored[ours].features) == json.loads(stored[theirs].features) == asked[at]
        assert json.loads(stored[ours].prediction) == plain["predictions"][at]


LARGE_BAD = {
    "not UTF-8": ({"purpose": ("BYTES", (struct.pack("<I", 1) + b"\xff") * ROWS)}, 'input "purpose"'),
    "cut strings": ({"purpose": ("BYTES", b"\xff\xff\xff\xff" * ROWS)}, "cut short"),
    "a string too few": ({"purpose": ("BYTES", (struct.pack("<I", 1) + b"x") * (ROWS - 1))}, "2999 values"),
    "a number too few": ({"age": ("FP64", bytes(8 * (ROWS - 1)))}, "bytes; shape"),
    "infinite": ({"age": ("FP64", struct.pack("<d", float("inf")) * ROWS)}, 'input "age"[0]'),
    "a long string": ({"purpose": ("BYTES", (struct.pack("<I", 2000) + b"x" * 2000) * ROWS)}, 'input "purpose"[0]'),
    "another datatype": ({"age": ("BYTES", (struct.pack("<I", 1) + b"1") * ROWS)}, "datatype"),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE_BAD)
def test_a_large_binary_request_is_refused_in_the_words_of_this_protocol(app: Front, name: str) -> None:
    changed, words = LARGE_BAD[name]
    content, headers = binary(records(ROWS), **changed)

    response = ask(app, "POST", INFER, content=content, headers=headers)

    assert response.status_code in (400, 422), response.text[:300]
    assert words in response.json()["error"].replace("'", '"')
