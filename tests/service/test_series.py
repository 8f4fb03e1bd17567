"""The series of `/metrics`: there from the start, with names that Prometheus leaves to us, and true later."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitoring.metrics import Metrics, exposition
from monitoring.store import open_store
from service.configuration import load
from service.control.scheduler import Scheduler
from service.control.series import begin
from service.serving.routes import scrape
from service.serving.worker import Worker
from tests.wired import artefact, worker
from training.spec import Adapted

__all__ = ["artefact", "worker"]  # fixtures

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def series(text: str) -> Series:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Series, name: str, **labels: str) -> float:
    return found[f"evergreen_{name}", frozenset(labels.items())]


def test_no_label_is_one_that_prometheus_sets_itself(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, "api-1")
    labels = {label for one in vars(metrics).values() for label in getattr(one, "_labelnames", ())}
    metrics.close()

    assert "route" in labels and not labels & {"job", "instance"}


def test_swaps_are_measured_from_a_millisecond(worker: Worker) -> None:
    text = scrape(worker).decode()

    bounds = [
        float(dict(labels)["le"]) for name, labels in series(text) if name == "evergreen_model_swap_seconds_bucket"
    ]
    assert min(bounds) == 0.001 and len([bound for bound in bounds if bound <= 0.1]) >= 6


def test_a_workers_series_exist_before_the_first_request(worker: Worker) -> None:
    found = series(scrape(worker).decode())

    for route, good in (("/predict", "200"), ("/feedback", "202"), ("/v2/models/{model}/infer", "200")):
        for status in (good, "400", "422", "500", "503"):
            assert value(found, "requests_total", route=route, status=status) == 0
    for outcome in ("appended", "dropped"):
        assert value(found, "log_records_total", outcome=outcome) == 0
    for result in ("failed", "swapped", "ended"):
        assert value(found, "adaptation_swaps_total", result=result) == 0
    assert value(found, "model_swaps_total", result="failed") == 0
    assert value(found, "predictions_total", version="1") == 0
    assert value(found, "prediction_seconds_count") == 0


def test_what_the_server_is_made_of_is_a_series(worker: Worker) -> None:
    (built,) = [
        (labels, value) for (name, labels), value in series(scrape(worker).decode()).items() if "build_info" in name
    ]

    labels = dict(built[0])
    assert built[1] == 1 and set(labels) == {"version", "python", "bentoml", "sklearn"}
    assert labels["sklearn"][0].isdigit() and labels["bentoml"] == "1.4.39"


def test_the_controllers_series_exist_from_the_start_and_fit_the_room_that_was_taken(tmp_path: Path) -> None:
    settings = load(environ={"EVERGREEN_HOME": str(tmp_path)})
    metrics = Metrics(tmp_path / "metrics", "controller-1")

    begin(metrics, settings.adapt.names, settings.log.max_spool_bytes)

    found = series(exposition(metrics.directory).decode())
    sizes = {path.name: path.stat().st_size for path in metrics.directory.glob("*.db")}
    metrics.close()
    assert value(found, "job_failures_total", work="check") == value(found, "job_failures_total", work="drain") == 0
    assert math.isnan(value(found, "last_success_timestamp_seconds", work="retention"))
    assert value(found, "retrains_total", trigger="growth", outcome="promoted") == 0
    assert value(found, "gate_results_total", gate="segments", result="failed") == 0
    assert value(found, "log_records_total", outcome="dead_letter") == 0
    assert value(found, "scheduler_leader") == value(found, "drift_news") == value(found, "adaptation_moved") == 0
    assert math.isnan(value(found, "label_coverage")) and math.isnan(value(found, "adaptation_loss", output="served"))
    assert {sizes[name] for name in sizes} == {1 << 16}


def test_every_gate_there_is_has_its_series() -> None:
    from service.control.series import GATES
    from training.rehearsal import INFRA

    files = sorted((Path(__file__).parents[2] / "training").glob("*.py"))
    named = {name for file in files for name in re.findall(r'GateResult\(\s*"(\w+)"', file.read_text())}
    assert named | {INFRA} == set(GATES)


@pytest.mark.parametrize("ends", ["off", "promoted", "rolled_back"])
def test_what_was_known_of_an_adaptation_is_gone_when_another_output_is_served(tmp_path: Path, ends: str) -> None:
    settings = load(environ={"EVERGREEN_HOME": str(tmp_path)})
    metrics, engine = Metrics(tmp_path / "metrics", "controller-1"), open_store(settings.store_url)
    scheduler = Scheduler(settings, engine, metrics, "me")
    begin(metrics, settings.adapt.names, settings.log.max_spool_bytes)
    weights = {"identity": 0.25, settings.adapt.names[1]: 0.75}
    made = Adapted(made=True, rows=400, weights=weights, moved=1.5, raw_loss=0.7, served_loss=0.5)

    scheduler._on_event("adapted", {"version": 1, "adapted": made})
    before = series(exposition(metrics.directory).decode())
    number = scheduler_run(scheduler, ends)
    after = series(exposition(metrics.directory).decode())
    metrics.close()
    engine.dispose()

    assert number == 1
    assert value(before, "adaptation_moved") == 1.5 and value(before, "adaptation_loss", output="served") == 0.5
    assert value(before, "adaptation_weight", expert="identity") == 0.25
    assert value(after, "adaptation_moved") == 0
    assert math.isnan(value(after, "adaptation_loss", output="served"))
    assert {v for (name, _), v in after.items() if name == "evergreen_adaptation_weight"} == {0.0}


def scheduler_run(scheduler: Scheduler, outcome: str) -> int:
    """Tell the scheduler of a run that ended so; the run's id."""
    from training.lease import Lease
    from training.runs import Runs

    lease = Lease(scheduler.engine, holder="me", seconds=60)
    assert lease.acquire() and lease.token is not None
    given: dict[str, Any] = {"trigger": "manual", "who": "me", "why": "", "token": lease.token, "now": time.time()}
    runs = Runs(scheduler.engine)
    number = runs.note("adaptation", outcome=outcome, record={}, **given)
    scheduler._on_event("run_finished", {"run": runs.get(number)})
    return number
