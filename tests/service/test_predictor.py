"""The live model: a swap is one assignment, and whatever is wrong with a version, the one in service goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from service.configuration import load
from service.handover import Live, LiveVersion, WorkerReport, read_live, read_reports, write_live, write_report
from service.serving.predictor import LONGEST_BACKOFF_S, LiveModel
from service.serving.worker import Worker
from tests.artefacts import example_record, make_artefact
from tests.server.test_end_to_end import WORKER_MODULES


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artefacts 1 and 2 of the same schema, fitted to different rows."""
    folder = tmp_path_factory.mktemp("versions")
    make_artefact(folder / "1", seed=1)
    make_artefact(folder / "2", seed=2)
    return folder


def live(versions: Path, champion: int, announced: int | None = None) -> Live:
    def version(number: int | None) -> LiveVersion | None:
        return None if number is None else LiveVersion(number, str(versions / str(number)))

    return Live("evergreen", champion=version(champion), announced=version(announced))


def predict(model: LiveModel) -> tuple[int, float]:
    current = model.current
    assert current is not None
    batch = current.decoder.decode(json.dumps({"records": [example_record()]}).encode())
    _, probabilities = current.predict(batch)
    assert probabilities is not None
    return current.version, probabilities[0][1]


def test_an_announced_version_is_loaded_and_warm_before_it_serves(versions: Path) -> None:
    model = LiveModel(100)
    model.follow(live(versions, 1), now=0.0)

    model.follow(live(versions, 1, announced=2), now=1.0)
    held = (model.ready, predict(model)[0])
    model.follow(live(versions, 2), now=2.0)

    assert held == ((1, 2), 1)
    assert predict(model)[0] == 2
    assert model.ready == (2,)


def test_a_version_is_loaded_where_one_row_a_request_is_the_most(versions: Path) -> None:
    model = LiveModel(1)
    model.follow(live(versions, 1), now=0.0)
    assert predict(model)[0] == 1


def test_a_changed_file_keeps_the_old_model_and_is_retried_later_and_later(versions: Path, tmp_path: Path) -> None:
    shutil.copytree(versions, tmp_path / "copy")
    with (tmp_path / "copy" / "2" / "model.onnx").open("ab") as file:
        file.write(b"x")
    outcomes: list[str] = []
    model = LiveModel(100, on_load=lambda result, seconds: outcomes.append(result))
    model.follow(live(tmp_path / "copy", 1), now=0.0)

    for now in (1.0, 2.0, 5.9, 6.1, 10.0, 16.2):
        model.follow(live(tmp_path / "copy", 2), now=now)

    assert predict(model)[0] == 1
    assert "was changed: expected sha256" in model.failed["2"]
    assert outcomes == ["loaded", "failed", "failed", "failed"]  # at 1.0, 6.1 and 16.2: after 5 s, then 10 s
    model.follow(live(tmp_path / "copy", 2), now=16.2 + LONGEST_BACKOFF_S)
    assert outcomes.count("failed") == 4


def test_a_version_with_other_features_keeps_the_old_model(versions: Path, tmp_path: Path) -> None:
    shutil.copytree(versions, tmp_path / "copy")
    folder = tmp_path / "copy" / "2"
    schema = json.loads((folder / "schema.json").read_bytes())
    schema["features"][0]["name"] = "years"
    (folder / "schema.json").write_text(json.dumps(schema))
    manifest = json.loads((folder / "manifest.json").read_bytes())
    from training.artefact import write_manifest

    for column in manifest["twin"]["columns"]:
        column["feature"] = (
            column["feature"].replace("age", "years") if column["feature"] == "age" else column["feature"]
        )
    write_manifest(folder, manifest)
    model = LiveModel(100)
    model.follow(live(tmp_path / "copy", 1), now=0.0)

    model.follow(live(tmp_path / "copy", 2), now=1.0)

    assert predict(model)[0] == 1
    assert "missing ['age'], new ['years']" in model.failed["2"]


def test_swaps_under_concurrent_reads_never_mix_versions(versions: Path) -> None:
    model = LiveModel(100)
    expected = {}
    for version in (1, 2):
        model.follow(live(versions, version), now=0.0)
        expected[version] = predict(model)[1]
    wrong: list[tuple[int, float]] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            version, probability = predict(model)
            if probability != expected[version]:
                wrong.append((version, probability))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for turn in range(20):
        model.follow(live(versions, 1 + turn % 2), now=0.0)
    done.set()
    for reader in readers:
        reader.join()

    assert expected[1] != expected[2]
    assert wrong == []


def test_a_worker_started_while_the_store_is_down_serves_what_was_live(versions: Path, tmp_path: Path) -> None:
    settings = load(
        environ={
            "EVERGREEN_HOME": str(tmp_path),
            "EVERGREEN_STORE__URL": "postgresql+psycopg://127.0.0.1:1/x",
            "EVERGREEN_SERVE__WORKERS": "1",
        }
    )
    write_live(settings.live_file, live(versions, 2))

    worker = Worker(settings, tmp_path / "run", "api-1")
    worker.start()
    try:
        assert worker.why_not_ready is None
        assert predict(worker.model)[0] == 2
        assert [report.serving for report in read_reports(tmp_path / "run" / "workers")] == [2]
    finally:
        worker.close()


def test_a_damaged_live_file_keeps_what_is_served(versions: Path, tmp_path: Path) -> None:
    settings = load(environ={"EVERGREEN_HOME": str(tmp_path)})
    write_live(settings.live_file, live(versions, 1))
    worker = Worker(settings, tmp_path / "run", "api-1")
    worker.start()
    try:
        settings.live_file.write_bytes(b'{"model": "ever')
        worker._look(0.0)
        assert predict(worker.model)[0] == 1
    finally:
        worker.close()


def test_the_reports_of_processes_that_are_gone_are_left_out(tmp_path: Path) -> None:
    import os

    write_report(tmp_path, WorkerReport("api-1", os.getpid(), 0.0, serving=3))
    write_report(tmp_path, WorkerReport("api-2", 2**22 + 1, 0.0, serving=3))

    assert [report.slot for report in read_reports(tmp_path)] == ["api-1"]


def test_a_live_file_is_read_as_it_was_written(versions: Path, tmp_path: Path) -> None:
    written = live(versions, 1, announced=2)

    write_live(tmp_path / "live.json", written)

    assert read_live(tmp_path / "live.json") == written
    assert [v.version for v in written.wanted()] == [1, 2]
    assert read_live(tmp_path / "none.json") is None


def test_a_worker_that_answers_by_trees_has_onnxruntime_only_where_outputs_may_be_adapted(
    versions: Path, tmp_path: Path
) -> None:
    write_live(load(environ={"EVERGREEN_HOME": str(tmp_path)}).live_file, live(versions, 1))

    def imported(adapt: str) -> set[str]:
        done = subprocess.run(
            [sys.executable, "-c", WORKER_MODULES, str(tmp_path)],
            env={**os.environ, "EVERGREEN_ADAPT__ENABLED": adapt},
            capture_output=True,
            text=True,
            check=True,
        )
        return set(json.loads(done.stdout.splitlines()[-1]))

    assert "onnxruntime" in imported("true")
    assert "onnxruntime" not in imported("false")
