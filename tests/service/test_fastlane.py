"""The prediction path over real ASGI: what is answered, what is refused and how, what stands in the record."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from monitoring.drain import Drainer
from monitoring.store import open_store, predictions
from service.configuration import load
from service.handover import Live, LiveVersion, write_live
from service.serving.front import Front
from service.serving.ids import apart, new_ids, new_ids_in_a_row
from service.serving.worker import Worker
from service.settings import Settings
from tests.artefacts import example_record, make_artefact, sample_schema
from tests.fronts import beyond, post, run
from training.trees import is_built

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artefact") / "1"
    make_artefact(folder)
    return folder


def settings_at(home: Path, **changes: str) -> Settings:
    return load(environ={"EVERGREEN_HOME": str(home), **changes})


@pytest.fixture
def worker(tmp_path: Path, artefact: Path) -> Iterator[Worker]:
    settings = settings_at(tmp_path, EVERGREEN_SERVE__MAX_IN_FLIGHT="4", EVERGREEN_SERVE__MAX_REQUEST_BYTES="2000000")
    write_live(settings.live_file, Live(model="evergreen", champion=LiveVersion(1, str(artefact))))
    worker = Worker(settings, tmp_path / "run", "api-1")
    worker.start()
    yield worker
    worker.close()


@pytest.fixture
def app(worker: Worker) -> Front:
    return Front(beyond, lambda: worker)


def error_of(response: httpx.Response) -> str:
    assert set(response.json()) == {"error"}
    return str(response.json()["error"])


def test_a_prediction_is_what_scikit_learn_predicts(app: Front, artefact: Path) -> None:
    from training.trust import load_pipeline

    schema, features, _ = sample_schema()
    records = [
        {
            name: (bool(value) if name in ("owns_home", "returning") else value) if value == value else None
            for name, value in zip(schema.names, row, strict=True)
        }
        for row in features.head(300).itertuples(index=False)
    ]

    answer = post(app, "/predict", {"records": records}).json()

    expected = load_pipeline(artefact).predict_proba(features.head(300))
    assert np.abs(np.array(answer["probabilities"]) - expected).max() < 1e-5
    assert answer["predictions"] == expected.argmax(axis=1).tolist()
    assert (answer["model"], answer["version"], answer["classes"]) == ("evergreen", 1, [0, 1])
    assert len(set(answer["ids"])) == 300


def test_ids_given_by_the_caller_are_kept_and_the_request_id_is_echoed(app: Front) -> None:
    response = post(app, "/predict", {"records": [example_record()], "ids": ["order-7"]}, **{"x-request-id": "abc"})

    assert response.json()["ids"] == ["order-7"]
    assert response.headers["x-request-id"] == "abc"


BAD = {
    "wrong type": (
        {"records": [example_record()] * 3 + [example_record(age="old")]},
        400,
        'records[3].age: expected a number, got "old"',
    ),
    "boolean for a number": (
        {"records": [example_record(age=True)]},
        400,
        "records[0].age: expected a number, got true",
    ),
    "unknown feature": ({"records": [example_record(agee=1)]}, 400, "records[0].agee: unknown feature"),
    "absent feature": ({"records": [{"age": 1}]}, 400, "missing; send null"),
    "empty": ({"records": []}, 400, "records: empty"),
    "too many": ({"records": [example_record()] * 10_001}, 413, "10001 records"),
    "not json": (b'{"records": [', 400, "not JSON"),
    "nan": (json.dumps({"records": [example_record(age=float("nan"))]}).encode(), 400, "NaN"),
    "infinity": (json.dumps({"records": [example_record(age=float("inf"))]}).encode(), 400, "Infinity"),
    "beyond float32": ({"records": [example_record(income=1e300)]}, 422, "records[0].income"),
    "too many bytes": (b" " * 3_000_000, 413, "max_request_bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_what_where_and_what_to_do(app: Front, name: str) -> None:
    body, status, words = BAD[name]
    if name == "too many":
        app_limit = app._worker().settings.serve.max_request_bytes
        assert app_limit < len(json.dumps(body)), "the byte limit answers first here"
        words = "max_request_bytes"

    response = post(app, "/predict", body)

    assert response.status_code == status
    assert words in error_of(response)


def test_10_001_records_are_refused_with_413(tmp_path: Path, artefact: Path) -> None:
    settings = settings_at(tmp_path)
    write_live(settings.live_file, Live(model="evergreen", champion=LiveVersion(1, str(artefact))))
    worker = Worker(settings, tmp_path / "run", "api-1")
    worker.start()
    try:
        response = post(Front(beyond, lambda: worker), "/predict", {"records": [example_record()] * 10_001})
    finally:
        worker.close()

    assert response.status_code == 413
    assert "10001 records, more than the 10000 allowed" in error_of(response)


def test_other_content_types_methods_and_paths_are_refused(app: Front) -> None:
    form, get, unknown = run(
        app,
        ("POST", "/predict", {"data": {"age": "1"}}),
        ("GET", "/predict", {}),
        ("GET", "/nowhere/at/all", {}),
    )

    assert form.status_code == 415
    assert "application/json" in error_of(form)
    assert get.status_code == 405
    assert get.headers["allow"] == "POST"
    assert unknown.status_code == 404
    assert "no such route" in error_of(unknown)


def test_what_belongs_to_the_framework_reaches_it(app: Front) -> None:
    assert run(app, ("GET", "/schema.json", {}))[0].text == "framework"


def test_without_a_champion_predictions_wait_with_503_and_retry_after(tmp_path: Path) -> None:
    worker = Worker(settings_at(tmp_path), tmp_path / "run", "api-1")
    worker.start()
    app = Front(beyond, lambda: worker)
    try:
        predict = post(app, "/predict", {"records": [{}]})
        ready, live = run(app, ("GET", "/readyz", {}), ("GET", "/livez", {}))
    finally:
        worker.close()

    assert (predict.status_code, ready.status_code, live.status_code) == (503, 503, 200)
    assert predict.headers["retry-after"] == "1"
    assert "no model in service yet" in error_of(ready)


def test_a_server_that_is_stopping_is_not_ready_and_closes_connections(app: Front, worker: Worker) -> None:
    worker.stopping = True

    predict = post(app, "/predict", {"records": [example_record()]})

    assert predict.status_code == 200
    assert predict.headers["connection"] == "close"
    assert run(app, ("GET", "/readyz", {}))[0].status_code == 503


def test_more_requests_in_flight_than_allowed_get_503_at_once(app: Front, worker: Worker) -> None:
    release = threading.Event()
    current = worker.model.current
    assert current is not None

    def slow(batch: Any) -> Any:
        assert release.wait(60)
        return current.run(batch)

    worker.model.current = replace(current, engine="scikit-learn", run=slow)

    async def overload() -> list[int]:
        headers = {"content-type": "application/json"}
        content = json.dumps({"records": [example_record()]}).encode()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            waiting = [asyncio.create_task(client.post("/predict", content=content, headers=headers)) for _ in range(4)]
            while app.lane.in_flight < 4:
                await asyncio.sleep(0.005)
            refused = await client.post("/predict", content=content, headers=headers)
            release.set()
            return [refused.status_code, *[(await task).status_code for task in waiting]]

    assert asyncio.run(overload()) == [503, 200, 200, 200, 200]
    assert app.lane.in_flight == app.lane.held == 0


@pytest.mark.parametrize("path", ["/predict", "/feedback", "/v2/models/evergreen/infer"])
def test_requests_that_are_not_whole_are_not_in_flight(app: Front, path: str) -> None:
    async def overload() -> int:
        release = asyncio.Event()

        async def slow_body() -> AsyncIterator[bytes]:
            yield b"{"
            await release.wait()
            yield b"}"

        headers = {"content-type": "application/json"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            waiting = [asyncio.create_task(client.post(path, content=slow_body(), headers=headers)) for _ in range(40)]
            await asyncio.sleep(0.05)
            answer = await client.post("/predict", json={"records": [example_record()]})
            release.set()
            assert {(await task).status_code for task in waiting} <= {400, 503}
            return answer.status_code

    assert asyncio.run(overload()) == 200
    assert app.lane.in_flight == app.lane.held == 0


def test_every_answered_row_stands_in_the_record_as_it_was_answered(app: Front, worker: Worker) -> None:
    answers = [post(app, "/predict", {"records": [example_record(age=20 + i)] * (i + 1)}).json() for i in range(5)]
    post(app, "/predict", {"records": []})
    engine = open_store(worker.settings.store_url)

    with Drainer(worker.settings.spool_dir, engine) as drainer:
        result = drainer.drain(0.0)

    with engine.connect() as connection:
        rows = {row.id: row for row in connection.execute(predictions.select())}
    sent = {i: (a, n) for a in answers for n, i in enumerate(a["ids"])}
    assert set(rows) == set(sent)
    for row_id, (answer, n) in sent.items():
        assert json.loads(rows[row_id].probabilities) == answer["probabilities"][n]
        assert json.loads(rows[row_id].features)["age"] == 19 + len(answer["ids"])
    assert result.predictions == 15


def test_labels_of_the_wrong_form_or_type_are_refused_and_the_others_accepted(app: Front) -> None:
    good = post(app, "/feedback", {"labels": [{"id": "a", "label": 1, "observed_at": "2026-01-31T12:00:00Z"}]})
    bad = [
        post(app, "/feedback", body)
        for body in (
            {"labels": []},
            {"labels": [{"id": "a", "label": "yes"}]},
            {"labels": [{"id": "", "label": 1}]},
            {"labels": [{"id": "a\u0000b", "label": 1}]},
            {"labels": [{"label": 1}]},
            {"labels": [{"id": "a", "label": 1, "observed_at": "yesterday"}]},
            {"labels": [{"id": "a", "label": None}]},
        )
    ]

    assert (good.status_code, good.json()) == (202, {"accepted": 1})
    assert [response.status_code for response in bad] == [400] * 7
    assert all(error_of(response) for response in bad)


def test_metrics_count_what_clients_saw_with_bounded_labels(app: Front) -> None:
    for _ in range(3):
        post(app, "/predict", {"records": [example_record()] * 2})
    post(app, "/predict", b"{")
    run(app, *[("GET", f"/random/{i}", {}) for i in range(50)])

    text = run(app, ("GET", "/metrics", {}))[0].text

    assert 'evergreen_requests_total{route="/predict",status="200"} 3.0' in text
    assert 'evergreen_requests_total{route="/predict",status="400"} 1.0' in text
    assert 'evergreen_requests_total{route="unknown",status="404"} 50.0' in text
    assert 'evergreen_predictions_total{version="1"} 6.0' in text
    assert "evergreen_prediction_seconds_count 3.0" in text
    engine = "trees" if is_built() else "onnx"
    assert f'evergreen_model_info{{model="evergreen",version="1",engine="{engine}",worker="api-1"}} 1' in text
    assert "/random" not in text


def test_prediction_ids_are_uuid7_that_grow() -> None:
    ids = new_ids(10_000)

    parsed = [uuid.UUID(i) for i in ids]
    assert ids == sorted(ids)
    assert len(set(ids)) == 10_000
    assert {p.version for p in parsed} == {7}
    assert {p.variant for p in parsed} == {uuid.RFC_4122}
    assert str(parsed[0]) == ids[0]


def test_a_rejection_is_recorded_as_a_count_without_any_value(app: Front, worker: Worker) -> None:
    async def broken_client() -> None:
        headers = {"content-type": "application/json"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            for secret in ("s3cret-1", "s3cret-2"):
                body = json.dumps({"records": [example_record(age=secret)]})
                await client.post("/predict", content=body, headers=headers)
            app._lane._flush_rejections()  # type: ignore[union-attr]

    asyncio.run(broken_client())

    written = b"".join(path.read_bytes() for path in worker.settings.spool_dir.glob("*.seg"))
    assert b"s3cret" not in written
    assert b'"count":2' in written


OUTERMOST = """
import asyncio
import uvicorn
import service.app as service
application = service.PredictionService.to_asgi(is_main=True)

async def main():
    messages = asyncio.Queue()
    messages.put_nowait({"type": "lifespan.startup"})
    sent = []
    async def send(message):
        sent.append(message["type"])
    running = asyncio.create_task(application({"type": "lifespan", "asgi": {}, "state": {}}, messages.get, send))
    while not sent:
        await asyncio.sleep(0.05)
    layers, layer = [], application.middleware_stack
    while layer is not None:
        layers.append(type(layer).__name__)
        layer = getattr(layer, "app", None)
    config = uvicorn.Config(application, log_config=None)  # as BentoML's worker makes it: without naming a protocol
    config.load()
    protocol = config.http_protocol_class
    connection = protocol(config=config, server_state=uvicorn.server.ServerState(), app_state={})
    connection.connection_made(asyncio.Transport(extra={"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}))
    front = protocol.front
    print(connection.app is front, front.stack is config.loaded_app, layers.count("Front"), protocol.__name__)
    messages.put_nowait({"type": "lifespan.shutdown"})
    await running
    print(sent)

asyncio.run(main())
"""


def test_inside_bentoml_the_front_stands_before_its_tracing_and_timeout_layers(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("EVERGREEN_", "BENTOML_"))}
    environ |= {"EVERGREEN_HOME": str(tmp_path), "EVERGREEN_ROLE": "gate"}

    done = subprocess.run(
        [sys.executable, "-c", OUTERMOST], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=600
    )

    assert "['lifespan.startup.complete', 'lifespan.shutdown.complete']" in done.stdout, done.stderr[-2000:]
    assert "True True 1 LaneProtocol" in done.stdout


@pytest.mark.parametrize("many", [2, 4095, 4096, 4097, 10_000])
def test_ids_in_a_row_are_what_a_list_of_them_is(many: int) -> None:
    noise = bytes.fromhex("0123456789abcdef0fff")

    row, ids = new_ids_in_a_row(many, noise), new_ids(many, noise)

    assert [one[13:] for one in apart(row)] == [one[13:] for one in ids]  # before that stands the time
    assert all(uuid.UUID(one).version == 7 for one in (apart(row)[0], apart(row)[-1]))
    assert apart(row) == sorted(set(apart(row)))
