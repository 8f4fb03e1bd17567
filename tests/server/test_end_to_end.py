"""The whole product as its users meet it: a real BentoML server with two workers and a controller, over HTTP."""

from __future__ import annotations

import gc
import json
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from evergreen_client import Refused

from service import sample
from service.command.traffic import TrafficSummary, replay_traffic
from tests.artefacts import example_record, sample_schema
from tests.real_server import ROOT, SMALL, Server, wait_until

QUICK = {
    "SERVE__WORKERS": "2",
    **SMALL,
    "TRAINING__TRIALS": "1",
    "SCHEDULE__CHECK_INTERVAL_S": "600",
    "RETRAIN__COOLDOWN_S": "0",
    "GATES__INFRA": "true",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # As inside a container that `bentoml containerize` made: BentoML would then respawn no killed process.
    server = Server(tmp_path_factory.mktemp("home"), environ={"BENTOML_CONTAINERIZED": "true"}, **QUICK)
    try:
        yield server.start().wait_ready()
    finally:
        server.end()


def send(server: Server, rows: int, start: int = sample.TRAINING_ROWS, **options: Any) -> TrafficSummary:
    frame = sample.frame(rows, start=start)
    given = {"rate": 0.0, "label_delay_s": 0.0, **options}
    return replay_traffic(server.url, frame, target=sample.TARGET, **given)


def stored_ids(server: Server) -> Counter[str]:
    with sqlite3.connect(f"file:{server.home}/var/evergreen.db?mode=ro", uri=True) as connection:
        found = Counter(row[0] for row in connection.execute("select id from predictions"))
    connection.close()
    return found


def every_acknowledged_row_is_stored_once(server: Server, summary: TrafficSummary) -> bool:
    stored = stored_ids(server)
    return all(stored[i] == 1 for answer in summary.answers for i in answer.ids)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # bentoml's own, of pathspec and pydantic
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # and its client's temporary folder
def test_three_clients_get_the_same_predictions(server: Server) -> None:
    import bentoml
    import tritonclient.http as triton

    schema, _, _ = sample_schema()
    record = example_record()
    plain = httpx.post(f"{server.url}/predict", json={"records": [record]}).json()

    with bentoml.SyncHTTPClient(server.url) as client:
        theirs = client.predict(records=[record])
    inputs = []
    for feature in schema.features:
        value = record[feature.name]
        if feature.kind == "categorical":
            kind, array = "BYTES", np.array([str(value).encode()], dtype=object)
        elif feature.kind == "boolean":
            kind, array = "BOOL", np.array([value], dtype=bool)
        else:
            kind, array = "FP64", np.array([value], dtype=np.float64)
        tensor = triton.InferInput(feature.name, [1], kind)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as protocol:
        assert protocol.is_server_ready()
        assert protocol.is_model_ready("evergreen")
        metadata = protocol.get_model_metadata("evergreen")
        answer = protocol.infer("evergreen", inputs)

    del client
    gc.collect()
    assert theirs["probabilities"] == plain["probabilities"]
    assert answer.as_numpy("probabilities").tolist() == plain["probabilities"]
    assert answer.as_numpy("predictions").tolist() == plain["predictions"]
    assert [i["name"] for i in metadata["inputs"]] == list(schema.names)


def test_workers_have_not_imported_what_they_do_not_need(server: Server) -> None:
    """A worker with an ONNX twin lives without the training's libraries."""
    forbidden = ("evidently", "optuna", "plotly", "apscheduler", "sklearn", "skops", "pandas", "skl2onnx", "scipy")
    workers = server.children("PredictionService")
    assert len(workers) == 2
    for worker in workers:
        mapped = {Path(m.path).parts for m in worker.memory_maps() if "site-packages" in m.path}
        packages = {parts[parts.index("site-packages") + 1] for parts in mapped}
        assert not packages & set(forbidden)
        assert worker.memory_info().rss < 200 * 2**20

    loaded = subprocess.run(
        [os.sys.executable, "-c", WORKER_MODULES, str(server.home)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not set(json.loads(loaded.stdout.splitlines()[-1])) & set(forbidden)


WORKER_MODULES = """
import json, os, sys
from pathlib import Path
os.environ["EVERGREEN_HOME"] = sys.argv[1]
import tempfile
import service.app
from service.serving.answer import Lane
from service.serving.worker import Worker
worker = Worker(service.app.SETTINGS, Path(tempfile.mkdtemp()), "api-9", record=False)
worker.start()
assert worker.model.current is not None and worker.model.current.engine != "scikit-learn"
body = json.dumps({"records": [worker.model.current.schema.example()]}).encode()
import asyncio
asyncio.run(Lane(worker).predict_body(body, "", b""))
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_metrics_equal_what_clients_counted_over_a_killed_worker(server: Server) -> None:
    before = predictions_counted(server)
    summary = send(server, 500)
    assert summary.ok
    victim = server.children("PredictionService")[0]

    os.kill(victim.pid, signal.SIGKILL)
    again = send(server, 500, start=sample.TRAINING_ROWS + 500, retry_s=20.0)

    assert again.ok
    assert predictions_counted(server) - before == 1000
    wait_until("the killed worker's return", lambda: len(server.children("PredictionService")) == 2)
    assert predictions_counted(server) - before == 1000
    files = [path.name for path in (server.home / "var" / "run").glob("*/metrics/*.db")]
    assert {name.rsplit("_", 1)[1] for name in files} <= {"api-1.db", "api-2.db", "controller-1.db"}


def predictions_counted(server: Server) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("evergreen_predictions_total{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def test_killed_workers_and_controller_lose_no_acknowledged_row(server: Server) -> None:
    summaries: list[TrafficSummary] = []
    traffic = threading.Thread(
        target=lambda: summaries.append(
            send(server, 4000, start=sample.TRAINING_ROWS + 2000, rate=300.0, retry_s=20.0, batch=10)
        )
    )
    traffic.start()
    for service in ("PredictionService", "Controller"):
        time.sleep(3)
        os.kill(server.children(service)[0].pid, signal.SIGKILL)
    traffic.join()

    summary = summaries[0]
    wait_until("the controller's return", lambda: server.children("Controller"))
    acknowledged = {one for answer in summary.answers for one in answer.ids}
    wait_until("each acknowledged row", lambda: acknowledged <= stored_ids(server).keys())
    # What a worker wrote down and was killed before answering was sent again under the same ids; nothing else is twice.
    twice = {one: times for one, times in stored_ids(server).items() if times > 1}
    assert set(twice.values()) <= {2} and len(twice) <= 10 * summary.retries
    assert summary.rows_failed <= 4 * 10, "only requests in flight on the killed worker may fail"


def test_a_better_pushed_pipeline_is_promoted_and_others_are_refused_with_reasons(
    server: Server, tmp_path: Path
) -> None:
    import skops.io
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    assert send(server, 2500, start=sample.TRAINING_ROWS + 10_000).ok
    wait_until("labels in the store", lambda: count(server, "labels") >= 2500)

    def pipeline(rows: int, features: list[str], **parameters: Any) -> bytes:
        frame = sample.training_frame(rows, seed=0)
        numbers = [f for f in features if f not in sample.CATEGORICAL]
        words = [f for f in features if f in sample.CATEGORICAL]
        encode = ColumnTransformer(
            [
                ("numbers", "passthrough", numbers),
                ("words", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), words),
            ]
        )
        model = make_pipeline(encode, HistGradientBoostingClassifier(max_iter=60, random_state=0, **parameters))
        model.fit(frame[features], frame[sample.TARGET])
        return skops.io.dumps(model)

    every = list(sample.FEATURES)
    with server.client() as client:
        worse = client.wait(client.push(pipeline(60, every, max_leaf_nodes=2), "worse"), timeout_s=600)
        with pytest.raises(Refused, match=f"does not take the features {every[-1]}"):
            client.push(pipeline(800, every[:-1]), "other schema")
        with pytest.raises(Refused, match="is not a skops file"):
            client.push(b"\x80\x04\x95\x00\x00", "pickle")
        champion = client.models()["champion"]
        better = client.wait(client.push(pipeline(8000, every), "better"), timeout_s=600)
        status = wait_until("version in service", lambda: all_serve(client.status(), better["version"]))

    assert champion == 1
    assert worse["outcome"] == "refused"
    assert "quality" in json.dumps(worse["record"])
    assert better["outcome"] == "promoted"
    assert status["champion"] == better["version"]
    assert (
        httpx.post(f"{server.url}/predict", json={"records": [example_record()]}).json()["version"] == better["version"]
    )


def all_serve(status: dict[str, Any], version: int) -> Any:
    return status if {worker["serving"] for worker in status["workers"]} == {version} else None


def count(server: Server, table: str) -> int:
    with sqlite3.connect(f"file:{server.home}/var/evergreen.db?mode=ro", uri=True) as connection:
        found: int = connection.execute(f"select count(*) from {table}").fetchone()[0]
    connection.close()
    return found


def test_a_retrain_by_hand_ends_as_a_run_with_reasons_and_a_rollback_brings_the_former_back(server: Server) -> None:
    known = count(server, "labels")
    assert send(server, 1500, start=sample.TRAINING_ROWS + 15_000).ok
    wait_until("labels in the store", lambda: count(server, "labels") >= known + 1500)

    with server.client() as client:
        before = client.models()["champion"]
        retrain = client.wait(client.retrain("by hand"), timeout_s=600)
        rollback = client.wait(client.rollback("I want the old one"), timeout_s=600)
        status = wait_until("version in service", lambda: all_serve(client.status(), rollback["version"]))

    assert retrain["state"] == "done", retrain
    assert retrain["outcome"] in ("promoted", "kept")
    assert retrain["record"]["verdict"]["gates"][-1]["name"] == "infra"
    assert rollback["outcome"] == "rolled_back"
    assert rollback["why"] == "I want the old one"
    in_service_before = retrain["version"] if retrain["outcome"] == "promoted" else before
    assert status["champion"] == rollback["version"] != in_service_before


def test_the_management_api_wants_its_token(server: Server) -> None:
    none = httpx.get(f"{server.url}/manage/models")
    wrong = httpx.get(f"{server.url}/manage/models", headers={"authorization": "Bearer wrong"})
    token = server.home / "var" / "token"

    assert (none.status_code, wrong.status_code) == (401, 403)
    assert "bearer token" in none.json()["error"]
    assert token.stat().st_mode & 0o777 == 0o600
    said = server.log_path.read_text()
    assert token.read_text().strip() not in said and f"management token: kept in {token}" in said


def test_a_second_server_on_the_same_folder_is_refused(server: Server) -> None:
    second = Server(server.home, **QUICK)
    second.log_path = server.home / "second.log"
    try:
        second.start()
        assert second.process is not None
        assert second.process.wait(timeout=180) == 1
        assert "is being drained by" in second.log_path.read_text()
    finally:
        second.end()


def test_a_stop_finishes_drains_and_leaves_nothing_behind(server: Server) -> None:
    summary = send(server, 300, start=sample.TRAINING_ROWS + 20_000)
    wait_until("two workers and the controller", lambda: len(server.children()) == 3)
    family = server.children()

    assert server.stop() == 0

    assert summary.ok
    assert every_acknowledged_row_is_stored_once(server, summary)
    assert not any(process.is_running() and process.status() != "zombie" for process in family)
    assert list((server.home / "var" / "spool").glob("*.s*")) == []
    assert list((server.home / "var" / "run").iterdir()) == []


def test_after_a_restart_the_same_version_serves_and_orphans_of_a_killed_server_end(server: Server) -> None:
    live = json.loads((server.home / "var" / "live.json").read_text())

    server.start().wait_ready()
    answer = httpx.post(f"{server.url}/predict", json={"records": [example_record()]}).json()
    family = server.children()
    assert len(family) == 3, "two workers and the controller"
    assert server.process is not None
    server.process.kill()
    server.process.wait()

    assert answer["version"] == live["champion"]["version"]
    wait_until("the end of all children", lambda: not any(p.is_running() and p.status() != "zombie" for p in family))
    server.start().wait_ready()
