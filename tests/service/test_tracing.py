"""A caller's trace: kept with the record, told in the answer, and continued in spans over OTLP where it is sampled."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from monitoring.drain import Drainer
from monitoring.store import open_store, predictions
from monitoring.traces import MOST_WAITING, Told, TracePolicy, Tracer, trace_of
from service.control.spans import RunSpans
from service.serving.worker import Worker
from tests.artefacts import example_record
from tests.collector import Collector, collecting
from tests.ports import free_port
from tests.real_server import ROOT, wait_until
from tests.wired import artefact, records, request, serving, talk, worker, working
from training.phases import Phase
from training.runs import Run
from training.spec import JobResult

__all__ = ["artefact", "worker"]  # fixtures

INFER = "/v2/models/evergreen/infer"
V2 = {"inputs": [
    {"name": name, "shape": [1], "data": [value],
     "datatype": "BOOL" if isinstance(value, bool) else "BYTES" if isinstance(value, str) else "FP64"}
    for name, value in example_record().items()
]}  # fmt: skip
CALLER = "00f067aa0ba902b7"


def parent(number: int, flag: str = "01") -> str:
    return f"00-{number:032x}-{CALLER}-{flag}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


@pytest.mark.parametrize(("header", "sampled"), [
    (b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", True),
    (b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", False),
    (b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03", True),  # level 2: a random trace id
    (b"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes", True),
    (b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-no", None),
    (b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None),
    (b"00-00000000000000000000000000000000-00f067aa0ba902b7-01", None),
    (b"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", None),
    (b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", None),
    (b"", None),
    (b"\xff" * 200, None),
])  # fmt: skip
def test_a_traceparent_is_read_as_w3c_says(header: bytes, sampled: bool | None) -> None:
    found = trace_of(header)

    assert (None if found is None else found.sampled) is sampled


def test_the_trace_stands_in_the_answer_and_in_the_record_on_every_way(worker: Worker) -> None:
    said = [
        request(records(1), traceparent=parent(1)),
        request(records(2), traceparent=parent(2, "00")),
        request(records(1)),
        request(records(1), traceparent="nonsense"),
        request(records(1), path="/predict?long=way", traceparent=parent(5)),
        request(V2, path=INFER, traceparent=parent(6)),
        request(records(2_500), traceparent=parent(7)),
    ]
    with serving(worker) as served:
        answers = [answer.json for answer in talk(served.port, said, len(said), 0.01)]
    worker.close()
    engine = open_store(worker.settings.store_url)
    with Drainer(worker.settings.spool_dir, engine) as drainer:
        drainer.drain(time.time())
    with engine.connect() as connection:
        stored = Counter(connection.scalars(sa.select(predictions.c.trace_id)))
    engine.dispose()

    told = [one.get("trace_id") or one.get("parameters", {}).get("trace_id") for one in answers]
    expected = [f"{number:032x}" if number else None for number in (1, 2, 0, 0, 5, 6, 7)]
    assert told == expected
    assert stored == {None: 2, expected[0]: 1, expected[1]: 2, expected[4]: 1, expected[5]: 1, expected[6]: 2_500}


def test_sampled_requests_become_spans_below_the_callers_and_others_do_not(
    tmp_path: Path, artefact: Path, collector: Collector
) -> None:
    said = [
        request(records(3), traceparent=parent(1)),
        request(records(1), traceparent=parent(2, "00")),
        request(records(1)),
        request(records(300), traceparent=parent(4)),
        request(V2, path=INFER, traceparent=parent(5)),
        request(b'{"records": []}', traceparent=parent(6)),
        request(records(2_500), traceparent=parent(7)),
    ]
    with (
        working(tmp_path, artefact, TRACE__ENDPOINT=collector.url, TRACE__RATIO="0") as worker,
        serving(worker) as served,
    ):
        before = time.time_ns()
        answers = talk(served.port, said, len(said), 0.01)
        wait_until("the spans", lambda: len({span.trace_id for span in collector.spans}) == 5)
        after = time.time_ns()

    assert [answer.status for answer in answers] == [200, 200, 200, 200, 200, 400, 200]
    assert collector.paths == {"/v1/traces"}
    for number, rows in ((1, 3), (4, 300), (5, 1), (7, 2_500)):
        spans = collector.of(f"{number:032x}")
        whole = spans.pop("POST predict")
        assert set(spans) == {"decode", "predict", "record"}
        assert whole.parent == CALLER and whole.kind == 2 and not whole.failed
        assert whole.attributes == {
            "http.response.status_code": 200, "evergreen.version": 1, "evergreen.rows": rows
        }  # fmt: skip
        assert whole.service == "evergreen/evergreen"
        slack = 5 * 10**9  # two clocks, read one after the other
        assert before - slack <= whole.begin < whole.end <= after + slack
        steps = [spans[name] for name in ("decode", "predict", "record")]
        assert all(
            step.parent == whole.span_id and whole.begin <= step.begin <= step.end <= whole.end for step in steps
        )
        assert steps[0].end <= steps[1].begin and steps[1].end <= steps[2].begin
    (refused,) = collector.of(f"{6:032x}").values()
    assert refused.failed and refused.attributes["http.response.status_code"] == 400 and refused.parent == CALLER


def test_of_requests_without_a_trace_the_ratio_begins_one(tmp_path: Path, artefact: Path, collector: Collector) -> None:
    with (
        working(tmp_path, artefact, TRACE__ENDPOINT=collector.url, TRACE__RATIO="1") as worker,
        serving(worker) as served,
    ):
        (answer,) = talk(served.port, [request(records(1))], 1)
        spans = wait_until("its spans", lambda: collector.of(answer.json["trace_id"]))

    assert spans["POST predict"].parent == "" and len(spans) == 4


@pytest.mark.parametrize("collector_is", ["gone", "silent"])
def test_a_collector_that_does_not_answer_delays_nobody_and_what_is_lost_is_counted(
    tmp_path: Path, artefact: Path, collector: Collector, collector_is: str
) -> None:
    url = collector.url if collector_is == "silent" else f"http://127.0.0.1:{free_port()}"
    collector.hold.clear()
    said = [request(records(1), traceparent=parent(number + 1)) for number in range(MOST_WAITING + 500)]
    with working(tmp_path, artefact, TRACE__ENDPOINT=url) as worker, serving(worker) as served:
        answers = talk(served.port, [b"".join(said)], len(said))
        tracer = worker.tracer
        assert tracer is not None and len(tracer._waiting) <= MOST_WAITING
        times = sorted(tracer_take(tracer, number) for number in range(2 * MOST_WAITING))
        collector.hold.set()
        lost = wait_until("the count", lambda: sum(traces_counted(worker, name) for name in ("dropped", "failed")))

    assert {answer.status for answer in answers} == {200}
    assert times[-len(times) // 4] < 0.5, "giving a span away waits for nobody (but at times for a processor)"
    assert lost > 0


def tracer_take(tracer: Tracer, number: int) -> float:
    began = time.perf_counter()
    tracer.take(Told("x", f"{number + 1:032x}", "", 1.0, 2.0, (), {}))
    return time.perf_counter() - began


def traces_counted(worker: Worker, outcome: str) -> float:
    from monitoring.metrics import total

    return total(worker.metrics.directory, "evergreen_traces_total", {"outcome": outcome})


def test_a_training_is_a_trace_with_its_steps(collector: Collector) -> None:
    counted = Counter[str]()
    tracer = Tracer(
        TracePolicy(endpoint=collector.url), "controller", "evergreen", lambda *told: counted.update([told[0]])
    )
    spans, now = RunSpans(tracer), time.time()
    given: dict[str, Any] = {"trigger": "growth", "who": "me", "why": "", "created_at": now - 5, "started_at": now - 4}
    run = Run(7, "retrain", "running", None, version=None, document={}, finished_at=None, **given)
    ended = Run(7, "retrain", "done", "promoted", version=3, document={}, finished_at=now, **given)

    spans.hear("training_started", {"run": run})
    job = JobResult(ok=True, phases=(Phase("tune", now - 3, now - 2), Phase("gates", now - 2, now - 1)))
    spans.hear("training_ended", {"run": run, "result": job})
    spans.hear("run_finished", {"run": ended})
    spans.hear("run_finished", {"run": ended})  # told once
    wait_until("the spans", lambda: collector.spans)
    tracer.close()

    by_name = {span.name: span for span in collector.spans}
    whole = by_name.pop("retrain")
    assert set(by_name) == {"collect the data", "job", "tune", "gates", "roll out"} and len(collector.spans) == 6
    assert {span.parent for span in by_name.values()} == {whole.span_id} and whole.parent == ""
    assert whole.attributes["evergreen.run"] == 7 and whole.attributes["evergreen.version"] == 3
    assert counted == {"sent": 1}


def test_the_endpoint_may_come_from_opentelemetrys_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318/")
    assert TracePolicy().url == "http://127.0.0.1:4318/v1/traces"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:4318/elsewhere")
    assert TracePolicy().url == "http://127.0.0.1:4318/elsewhere"
    assert TracePolicy(endpoint="http://c:1").url == "http://c:1/v1/traces"


WITHOUT = """
import sys, time
from pathlib import Path
from tests.wired import records, request, serving, talk, working

with working(Path(sys.argv[1]), Path(sys.argv[2])) as worker, serving(worker) as served:
    (answer,) = talk(served.port, [request(records(1), traceparent=sys.argv[3])], 1)
    assert answer.json["trace_id"] == f"{1:032x}"
    assert worker.tracer is None
found = sorted(name for name in sys.modules if name.startswith("opentelemetry"))
assert not found, found
"""


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported(tmp_path: Path, artefact: Path) -> None:
    command = [sys.executable, "-c", WITHOUT, str(tmp_path), str(artefact), parent(1)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)

    assert done.returncode == 0, done.stderr
