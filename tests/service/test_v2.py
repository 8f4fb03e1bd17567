"""The Open Inference Protocol: what it takes, what it answers, what it refuses and how."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

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
