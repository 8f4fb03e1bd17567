"""The two BentoML services and nothing else: what `bentoml serve service.app:PredictionService` starts.

The settings are read once, here, when the module is imported: BentoML's decorators need them. Whatever costs anything
happens when a service is made, in its own process.
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")  # before bentoml is imported: it phones home otherwise

import bentoml

from monitoring import messages
from service import process
from service.configuration import load
from service.place import numeric_address
from service.serving import tuning, wire
from service.serving.front import Front
from service.serving.worker import Worker, set_worker, worker
from service.settings import SettingsError

os.umask(0o077)  # what is written here holds data: it is for this user alone
wire.install()
try:
    SETTINGS = load()
    SLOT = (
        bentoml.server_context.worker_index
    )  # None in the supervisor; a restarted worker has the slot of the one before
    messages.configure(SETTINGS.logging, "server" if SLOT is None else f"worker-{SLOT}")
    TREE = process.Tree.of(SETTINGS, supervisor=os.getpid() if SLOT is None else os.getppid())
except SettingsError as error:
    print(f"evergreen: {error}", file=sys.stderr)  # BentoML's own words only say that the import failed
    raise


@bentoml.service(name="Controller", workers=1, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Controller:
    """Drains the record, checks, retrains and promotes. It answers nothing: work happens in its threads."""

    def __init__(self) -> None:
        from service.control.controller import Controller as Work

        messages.configure(SETTINGS.logging, "controller")
        process.exit_with_parent(TREE)
        self.work = Work(SETTINGS, TREE)
        self.work.start()

    @bentoml.on_shutdown
    def stop(self) -> None:
        self.work.stop()


@bentoml.service(
    name="PredictionService",
    workers=SETTINGS.serve.workers,
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": [".*"]},
    traffic={"timeout": SETTINGS.serve.request_timeout_s},
    # What `bentoml serve` listens on without `--host`; BentoML's own default is every network.
    http={"host": numeric_address(SETTINGS.serve.host), "port": SETTINGS.serve.port},
    runner_probe={"enabled": False},
)
class PredictionService:
    """Predictions from the model in service. Every answered row is recorded."""

    if TREE.records:  # a server that only checks a candidate has nothing to drain and nothing to decide
        controller = bentoml.depends(Controller)

    def __init__(self) -> None:
        slot = f"api-{SLOT or 1}"
        messages.configure(SETTINGS.logging, slot)
        process.exit_with_parent(TREE)
        set_worker(Worker(SETTINGS, TREE.run_dir, slot, record=TREE.records))
        worker().start()
        tuning.tune()

    @bentoml.api(route="/predict")
    def predict(self, records: list[dict[str, Any]], ids: list[str] | None = None) -> dict[str, Any]:
        """Predict a batch of records. (The declaration; the fast lane answers.)"""
        raise bentoml.exceptions.InternalServerError("the fast lane did not take this request")

    @bentoml.api(route="/feedback")
    def feedback(self, labels: list[dict[str, Any]]) -> dict[str, Any]:
        """Send labels of earlier predictions. (The declaration; the fast lane answers.)"""
        raise bentoml.exceptions.InternalServerError("the fast lane did not take this request")

    @bentoml.on_shutdown
    def stop(self) -> None:
        worker().close()


PredictionService.add_asgi_middleware(Front, worker=worker)  # type: ignore[attr-defined]
