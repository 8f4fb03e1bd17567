"""An adaptation in service: what is answered is exactly what it makes of the champion's output, on every way."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pyarrow as pa
import pytest

from monitoring.drain import Drainer
from monitoring.schema import FeatureSchema
from monitoring.store import open_store
from monitoring.window import read_window
from service.handover import Live, LiveAdaptation, LiveVersion, read_live, read_reports, write_live
from service.serving.front import Front
from service.serving.worker import Worker
from tests.adapted import leave, make_adaptation, put_in_force
from tests.artefacts import make_artefact
from tests.fronts import beyond, post
from tests.wired import (
    artefact,
    example,
    read_answer,
    records,
    request,
    serving,
    stop_following,
    talk,
    worker,
    working,
)
from training.adaptation import Adaptation, Adapter
from training.artefact import read_manifest, write_manifest
from training.twin import Rows, Twin

__all__ = ["artefact", "worker"]  # fixtures
SCHEMA_FILE = "schema.json"


@pytest.fixture(scope="module")
def adaptation(artefact: Path) -> Adaptation:
    return make_adaptation(artefact)


@pytest.fixture
def adapted(worker: Worker, artefact: Path, adaptation: Adaptation) -> Worker:
    put_in_force(worker, artefact, adaptation)
    return worker


def expected(artefact: Path, adaptation: Adaptation | None, asked: list[dict[str, Any]]) -> list[list[float]]:
    """Probabilities from the twin and `Adapter.apply`, without the service."""
    schema = FeatureSchema.from_json((artefact / SCHEMA_FILE).read_bytes())
    rows = Rows(schema.frame(asked), schema.numeric_names, schema.categorical_names)
    raw, x = Twin(artefact, read_manifest(artefact)).predict_with_matrix(rows)
    return (raw if adaptation is None else Adapter(adaptation).apply(raw, x)).tolist()


def ask(worker: Worker, body: Any, path: str = "/predict") -> httpx.Response:
    return post(Front(beyond, lambda: worker), path, body)


@pytest.mark.parametrize("rows", [1, 5, 300, 3000])  # on the event loop, in a thread, and over 128 kB
def test_every_answer_is_the_champion_s_output_adapted(
    adapted: Worker, artefact: Path, adaptation: Adaptation, rows: int
) -> None:
    asked = records(rows)["records"]

    answer = ask(adapted, {"records": asked}).json()

    assert answer["adaptation"] == 17
    assert answer["probabilities"] == expected(artefact, adaptation, asked)
    assert answer["predictions"] == [int(np.argmax(row)) for row in answer["probabilities"]]
    assert answer["probabilities"] != expected(artefact, None, asked)


@pytest.mark.parametrize("rows", [1, 300])
def test_an_answer_in_arrow_is_adapted_and_stored_so(
    adapted: Worker, artefact: Path, adaptation: Adaptation, rows: int
) -> None:
    asked = records(rows)["records"]
    table = pa.Table.from_pylist(asked)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)

    kind = {"content-type": "application/vnd.apache.arrow.stream"}
    answer = post(Front(beyond, lambda: adapted), "/predict", sink.getvalue(), **kind)

    assert answer.headers["evergreen-adaptation"] == "17"
    with pa.ipc.open_stream(answer.content) as reader:
        found = reader.read_all()
    assert found.schema.metadata[b"adaptation"] == b"17"
    chances = [list(row) for row in zip(*(found[name].to_pylist() for name in found.schema.names[2:]), strict=True)]
    assert chances == expected(artefact, adaptation, asked)
    engine = open_store(adapted.settings.store_url)
    with Drainer(adapted.settings.spool_dir, engine) as drainer:
        assert drainer.drain(1.0).predictions == rows
    schema = FeatureSchema.from_json((artefact / SCHEMA_FILE).read_bytes())
    assert set(read_window(engine, schema)["_adaptation"]) == {17}
    engine.dispose()


def test_the_number_stands_behind_the_version_and_is_absent_without_one(
    worker: Worker, artefact: Path, adaptation: Adaptation
) -> None:
    raw = ask(worker, records(1)).content
    put_in_force(worker, artefact, adaptation)
    served = ask(worker, records(1)).content

    assert raw.startswith(b'{"model":"evergreen","version":1,"ids":[')
    assert served.startswith(b'{"model":"evergreen","version":1,"adaptation":17,"ids":[')


def test_on_the_short_way_many_at_once_are_each_answered_as_alone(
    adapted: Worker, artefact: Path, adaptation: Adaptation
) -> None:
    bodies = [records(1 + number % 3, first=18 + number) for number in range(120)]

    async def everybody(port: int) -> list[Any]:
        lines = [await asyncio.open_connection("127.0.0.1", port) for _ in bodies]
        for (_, writer), body in zip(lines, bodies, strict=True):
            writer.write(request(body))
        found = [await read_answer(reader) for reader, _ in lines]
        for _, writer in lines:
            writer.close()
        return found

    with serving(adapted) as served:
        together = [answer.json for answer in asyncio.run(everybody(served.port))]
        alone = [talk(served.port, [request(body)], 1)[0].json for body in bodies[:20]]
    with serving(adapted, short=False) as served:
        long_way = [talk(served.port, [request(body)], 1)[0].json for body in bodies[:20]]

    for answer, body in zip(together, bodies, strict=True):
        assert answer["adaptation"] == 17
        assert answer["probabilities"] == expected(artefact, adaptation, body["records"])
    for others in (alone, long_way):
        assert [a["probabilities"] for a in others] == [a["probabilities"] for a in together[:20]]


@pytest.mark.parametrize("path", ["/v2/models/evergreen/infer", "/v2/models/evergreen/versions/1/infer"])
def test_the_v2_protocol_goes_through_it_and_says_so(
    adapted: Worker, artefact: Path, adaptation: Adaptation, path: str
) -> None:
    schema = FeatureSchema.from_json((artefact / SCHEMA_FILE).read_bytes())
    kinds = {"numeric": "FP64", "boolean": "BOOL", "categorical": "BYTES"}
    inputs = [
        {"name": f.name, "shape": [1], "datatype": kinds[f.kind], "data": [example()[f.name]]} for f in schema.features
    ]

    answer = ask(adapted, {"inputs": inputs, "id": "7"}, path).json()

    assert answer["parameters"] == {"adaptation": 17}
    probabilities = next(output for output in answer["outputs"] if output["name"] == "probabilities")
    assert [probabilities["data"]] == expected(artefact, adaptation, [example()])


def test_the_record_says_which_adaptation_answered(worker: Worker, artefact: Path, adaptation: Adaptation) -> None:
    ask(worker, {**records(1), "ids": ["before"]})
    put_in_force(worker, artefact, adaptation)
    ask(worker, {**records(2), "ids": ["a", "b"]})
    engine = open_store(worker.settings.store_url)
    with Drainer(worker.settings.spool_dir, engine) as drainer:
        assert drainer.drain(0.0).predictions == 3

    frame = read_window(engine, worker.model.current.schema)  # type: ignore[union-attr]

    numbers = dict(zip(frame["_id"], frame["_adaptation"], strict=True))
    assert np.isnan(numbers.pop("before")) and numbers == {"a": 17.0, "b": 17.0}
    scores = dict(zip(frame["_id"], frame["_score"], strict=True))
    assert scores["a"] == pytest.approx(expected(artefact, adaptation, records(1)["records"])[0][1], rel=1e-12)
    engine.dispose()


def test_metrics_and_the_report_name_it(adapted: Worker, artefact: Path) -> None:
    from monitoring.metrics import exposition

    def said() -> str:
        return exposition(adapted.metrics.directory).decode()

    assert 'evergreen_adaptation_number{version="1"} 17.0' in said()
    assert 'evergreen_adaptation_swaps_total{result="swapped"} 1.0' in said()
    assert 'evergreen_model_swaps_total{result="swapped"} 0.0' in said()
    assert [(r.serving, r.adaptation, r.unadapted) for r in reports(adapted)] == [(1, 17, "")]

    write_live(adapted.settings.live_file, Live("evergreen", LiveVersion(1, str(artefact))))
    adapted._look(1.0)

    assert 'evergreen_adaptation_number{version="1"} 0.0' in said()
    assert 'evergreen_adaptation_swaps_total{result="ended"} 1.0' in said()
    assert [(r.serving, r.adaptation) for r in reports(adapted)] == [(1, None)]
    assert "adaptation" not in ask(adapted, records(1)).json()


def reports(worker: Worker) -> list[Any]:
    return read_reports(worker.run_dir / "workers")


BROKEN = {
    "changed": (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), {}, "was changed: expected sha256"),
    "gone": (lambda path: path.unlink(), {}, "No such file"),
    "of another version": (lambda path: None, {"version": 2}, "is of another model"),
    "of another task": (lambda path: None, {"task": "regression"}, "is of another model"),
    "with another number": (lambda path: None, {"number": 3}, "is of another model"),
    "of other columns": (lambda path: None, {"columns": 13}, "reads other columns"),
    "no graph": (lambda path: None, {"graph": b"x"}, "cannot load"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_one_leaves_what_is_in_force_and_is_retried_later_and_later(
    adapted: Worker, artefact: Path, adaptation: Adaptation, case: str
) -> None:
    stop_following(adapted)
    damage, changes, why = BROKEN[case]
    before = adapted.model.current
    broken = msgspec.structs.replace(adaptation, **{"number": 18, **changes})
    named = leave(adapted.settings.adaptations_dir / "new", broken)
    damage(Path(named.path))
    named = LiveAdaptation(18, named.path, named.digest)
    tried: list[str] = []
    adapted.model.on_adaptation = lambda result, seconds: tried.append(result)
    write_live(adapted.settings.live_file, Live("evergreen", LiveVersion(1, str(artefact), named)))

    for now in (1.0, 2.0, 5.9, 6.1, 10.0, 16.2):
        adapted._look(now)

    assert tried == ["failed"] * 3  # at 1.0, 6.1 and 16.2: after 5 s, then 10 s
    assert adapted.model.current is before
    assert ask(adapted, records(1)).json()["adaptation"] == 17
    assert why in adapted.model.unadapted
    adapted._reported = None
    adapted._look(16.3)
    assert why in reports(adapted)[0].unadapted and reports(adapted)[0].adaptation == 17

    put_in_force(adapted, artefact, msgspec.structs.replace(adaptation, number=19))
    assert (adapted.model.unadapted, ask(adapted, records(1)).json()["adaptation"]) == ("", 19)


def test_with_a_broken_one_at_start_the_raw_output_is_served(
    tmp_path: Path, artefact: Path, adaptation: Adaptation
) -> None:
    with working(tmp_path, artefact) as first:
        settings, run = first.settings, first.run_dir
    named = msgspec.structs.replace(leave(settings.adaptations_dir, adaptation), digest="0" * 64)
    write_live(settings.live_file, Live("evergreen", LiveVersion(1, str(artefact), named)))
    worker = Worker(settings, run, "api-1")
    worker.start()
    try:
        assert worker.why_not_ready is None
        assert "adaptation" not in ask(worker, records(1)).json()
    finally:
        worker.close()


def test_another_version_drops_it_and_brings_its_own(
    adapted: Worker, artefact: Path, adaptation: Adaptation, tmp_path: Path
) -> None:
    make_artefact(tmp_path / "2", seed=2)
    first, second = LiveVersion(1, str(artefact)), LiveVersion(2, str(tmp_path / "2"))
    own = make_adaptation(tmp_path / "2", number=1, version=2, seed=2)
    with_own = LiveVersion(2, str(tmp_path / "2"), leave(adapted.settings.adaptations_dir, own))
    live_file = adapted.settings.live_file

    write_live(live_file, Live("evergreen", second))
    adapted._look(1.0)
    raw = ask(adapted, records(1)).json()
    write_live(live_file, Live("evergreen", first, announced=with_own))
    adapted._look(2.0)
    back = ask(adapted, records(1)).json()
    write_live(live_file, Live("evergreen", with_own))
    adapted._look(3.0)
    served = ask(adapted, records(1)).json()

    assert (raw["version"], "adaptation" in raw) == (2, False)
    assert (back["version"], "adaptation" in back) == (1, False)
    assert (served["version"], served["adaptation"]) == (2, 1)  # from the flip on: it was warm before
    assert served["probabilities"] == expected(tmp_path / "2", own, records(1)["records"])


def test_the_slow_engine_is_adapted_too(tmp_path: Path, adaptation: Adaptation) -> None:
    folder = tmp_path / "1"
    manifest = make_artefact(folder)
    schema = FeatureSchema.from_json((folder / SCHEMA_FILE).read_bytes())
    write_manifest(folder, {**manifest.document, "twin": None})
    numbers = msgspec.structs.replace(  # what reads the numbers only: the recalibrations
        adaptation, experts=adaptation.experts[:2], weights=(0.5, 0.5), columns=0, graph=b""
    )
    from training.pipeline import predict
    from training.trust import load_pipeline

    with working(tmp_path / "home", folder) as worker:
        put_in_force(worker, folder, numbers)
        asked = records(40)["records"]
        answer = ask(worker, {"records": asked}).json()

    assert answer["adaptation"] == 17
    raw = predict(load_pipeline(folder), schema.frame(asked), schema)
    assert answer["probabilities"] == Adapter(numbers).apply(raw, None).tolist()


def test_a_live_file_of_an_earlier_release_names_none(tmp_path: Path) -> None:
    path = tmp_path / "live.json"
    path.write_text('{"model": "m", "champion": {"version": 3, "path": "/x"}, "format": 1}')
    found = read_live(path)
    assert found is not None and found.champion == LiveVersion(3, "/x", None)


@pytest.fixture
def home(tmp_path: Path, artefact: Path, adaptation: Adaptation) -> Iterator[Path]:
    with working(tmp_path, artefact) as worker:
        put_in_force(worker, artefact, adaptation)
    yield tmp_path


def test_a_worker_answers_with_it_without_a_store_scikit_learn_or_pandas(home: Path) -> None:
    code = """
import sys
from pathlib import Path
from service.serving.worker import Worker
from service.configuration import load
settings = load(environ={"EVERGREEN_HOME": sys.argv[1], "EVERGREEN_STORE__URL": "postgresql+psycopg://127.0.0.1:1/x"})
worker = Worker(settings, Path(sys.argv[1]) / "run", "api-1")
worker.start()
print(worker.model.current.adaptation, worker.why_not_ready)
print([m for m in ("sklearn", "pandas", "scipy", "onnx", "skops") if m in sys.modules])
worker.close()
"""
    said = subprocess.run([sys.executable, "-c", code, str(home)], capture_output=True, text=True, timeout=600)
    lines = said.stdout.splitlines()
    assert lines[0].startswith("17 "), said.stderr
    assert json.loads(lines[1].replace("'", '"')) == [], said.stderr
