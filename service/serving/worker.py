"""One API worker's parts and its background thread: follow the live file and report."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import UNSET

from monitoring.log import PredictionLog
from monitoring.metrics import HotCounter, HotHistogram, Metrics
from service.handover import Live, Stamp, WorkerReport, read_live, read_reports, stamp_of, write_report
from service.keys import Keys, open_privacy
from service.process import CLOSING, STOPPING
from service.secret_file import home_id
from service.serving.door import close_door
from service.serving.predictor import LiveModel, ServedModel
from service.serving.readiness import WHY_STOPPING, FirstStart, why_no_model
from service.serving.sources import Sources
from service.settings import Settings
from service.tracing import open_tracer
from service.web.relay import Relay
from service.web.session import Sessions
from training.session import prepare

if TYPE_CHECKING:
    from monitoring.log import NewEntry

logger = logging.getLogger("evergreen.worker")

_REFUSED: Final = (400, 401, 403, 413, 415, 422, 429, 500, 503)
BEGIN_AT_ZERO: Final = {
    "/predict": (200, *_REFUSED),
    "/v2/models/{model}/infer": (200, *_REFUSED),
    "/feedback": (202, *_REFUSED),
}
"""Routes and statuses of `evergreen_requests_total` that exist before they were counted."""

REPORT_EVERY_S: Final = 2.0
MARKS_EVERY_S: Final = 0.1
"""How soon a worker knows that its server stops, however seldom it looks for another version."""


class Worker:
    """Everything a worker answers with; made in the worker's own process, closed when it stops.

    Args:
        settings: of this deployment.
        run_dir: folder of this server tree, shared by its processes and by no other server.
        slot: this process in the tree, `api-1`.
        record: False for a server that only checks a candidate (role `gate`): nothing it answers is recorded.
    """

    def __init__(self, settings: Settings, run_dir: Path, slot: str, *, record: bool = True) -> None:
        self.settings = settings
        self.home = home_id(settings)
        self.run_dir = run_dir
        self.slot = slot
        self.metrics = Metrics(run_dir / "metrics", slot)
        self.tracer = open_tracer(settings, slot, self.metrics) if record else None
        self.log = PredictionLog(settings.spool_dir, settings.log) if record else None
        self._batch_log: PredictionLog | None = None
        self.model = LiveModel(
            settings.serve.max_records,
            settings.security.trusted,
            on_load=self._count_load,
            on_adaptation=self._count_adaptation,
            extra=settings.privacy.names,
            max_chars=settings.serve.max_category_chars,
            engine=settings.serve.engine,
        )
        self.privacy = open_privacy(settings)
        self.keys = Keys(settings)
        self.sessions = Sessions(settings, self.keys)
        self.relay = Relay(settings, run_dir)
        self.sources = Sources(self.metrics, settings.security)
        self.live: Live | None = None
        self.stopping = False
        self._door_closed = False
        self._start = FirstStart(run_dir, slot, settings.serve.workers)
        self._live_stamp: Stamp | None = None
        self._damage = ""  # of the live file as it is now
        self._reported: WorkerReport | None = None
        self._unreported = False
        self._closed = threading.Event()
        self.prediction_seconds = HotHistogram(self.metrics.prediction_seconds)
        self.recorded = HotCounter(self.metrics.log_records.labels("appended"))
        self.dropped = HotCounter(self.metrics.log_records.labels("dropped"))
        self._begin_series()
        self._thread = threading.Thread(target=self._run, name="evergreen-follow", daemon=True)

    def _begin_series(self) -> None:
        """Let every series that can be named now exist before anything is counted: a rate needs a beginning."""
        metrics = self.metrics
        for route, statuses in BEGIN_AT_ZERO.items():
            for status in statuses:
                metrics.requests.labels(route, str(status))
        for outcome in ("accepted", "dropped"):
            metrics.labels.labels(outcome)
        for result in ("loaded", "failed", "swapped"):
            metrics.model_swaps.labels(result)
            metrics.adaptation_swaps.labels(result)
        metrics.adaptation_swaps.labels("ended")
        for outcome in ("sent", "dropped", "failed"):
            metrics.traces.labels(outcome)

    def start(self) -> None:
        """Look once at the live file, so that a worker with a champion is ready at once; then keep looking.

        Compiled trees need no onnxruntime, but an adaptation may: no request is to wait for its import.
        """
        if self.settings.adapt.enabled:
            prepare()
        self._look(time.time())
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and seal the record; every acknowledged row is in the spool already."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2)
        for log in (self.log, self._batch_log):
            if log is not None:
                log.close()
        if self.tracer is not None:
            self.tracer.close()
        (self.run_dir / "workers" / f"{self.slot}.json").unlink(missing_ok=True)
        self.metrics.close()

    def keep_batch(self, kind: int, entries: Sequence[NewEntry]) -> int:
        """Record a large request; how many of its rows are in the log.

        Called in the thread that answers such requests: it has a log of its own, which is there once it needs one.
        """
        if self._batch_log is None:
            self._batch_log = PredictionLog(self.settings.spool_dir, self.settings.log)
        # One write each: while it takes megabytes, the kernel gives the processor to nobody, not to the event loop
        return sum(self._batch_log.append_all(kind, time.time(), (entry,)) for entry in entries)

    @property
    def why_not_ready(self) -> str | None:
        """Why predictions should not be sent here now, or None when they can be answered.

        At a server's first start this is about all its workers: the next connection may be another's.
        """
        if self.stopping:
            return WHY_STOPPING
        if self.model.current is None:
            path = self.settings.live_file
            return why_no_model(self.run_dir, path, self.live, self._damage, self.model.failed, time.time())
        return self._start.waits_for()

    def _count_load(self, result: str, seconds: float) -> None:
        self.metrics.model_swaps.labels(result).inc()
        self.metrics.model_swap_seconds.observe(seconds)

    def _count_adaptation(self, result: str, seconds: float) -> None:
        self.metrics.adaptation_swaps.labels(result).inc()
        self.metrics.model_swap_seconds.observe(seconds)

    def _run(self) -> None:
        interval = self.settings.serve.poll_interval_s
        due = time.monotonic() + interval
        while not self._closed.wait(min(interval, MARKS_EVERY_S)):
            try:
                self._look_for_the_end()
                if time.monotonic() >= due:
                    self._look(time.time())
                    due = time.monotonic() + interval
            except Exception:  # the thread that keeps the model fresh must outlive a bad moment of the disk
                logger.exception("could not follow %s; the model in service stays", self.settings.live_file)

    def _look_for_the_end(self) -> None:
        if not self.stopping and (self.run_dir / STOPPING).exists():
            self.stopping = True
        if self.stopping and not self._door_closed and (self.run_dir / CLOSING).exists():
            self._door_closed = True
            close_door()

    def _look(self, now: float) -> None:
        self._look_for_the_end()
        self.keys.look()
        stamp = stamp_of(self.settings.live_file)
        if stamp != self._live_stamp:
            self._damage = ""
            try:
                self.live = read_live(self.settings.live_file) or self.live
            except msgspec.DecodeError as error:
                self._damage = str(error)
                logger.error("%s is damaged (%s); the model in service stays", self.settings.live_file, error)
            self._live_stamp = stamp
        if self.live is not None:
            before = self.model.current
            if self.model.follow(self.live, now):
                self._count_change(before, self.model.current)
        self._report(now)

    def _count_change(self, before: ServedModel | None, now: ServedModel | None) -> None:
        if now is None or now is before:
            return
        self.metrics.predictions.labels(str(now.version))
        if before is not None and before.version != now.version:
            self.metrics.model_swaps.labels("swapped").inc()
            self.metrics.adaptation_number.labels(str(before.version)).set(0)
        elif before is not None and before.adaptation != now.adaptation:
            self.metrics.adaptation_swaps.labels("ended" if now.adaptation is UNSET else "swapped").inc()
        self.metrics.adaptation_number.labels(str(now.version)).set(_number(now) or 0)

    def _report(self, now: float) -> None:
        current = self.model.current
        report = WorkerReport(
            slot=self.slot,
            pid=os.getpid(),
            at=now,
            serving=current.version if current else None,
            engine=current.engine if current else "",
            ready=self.model.ready,
            failed=self.model.failed,
            adaptation=_number(current),
            unadapted=self.model.unadapted,
            why_not_ready=self.why_not_ready or "",
            hour=self.sources.hour,
            sent=dict(self.sources.sent),
        )
        last = self._reported
        if last and now - last.at < REPORT_EVERY_S:
            if msgspec.structs.replace(report, at=last.at, hour=last.hour, sent=last.sent) == last:
                return
        elif self.sources.limited:
            self.sources.hear(read_reports(self.run_dir / "workers"), self.slot)
        try:
            write_report(self.run_dir / "workers", report)
        except OSError as error:  # a full disk: others know a little less, the model is followed all the same
            if not self._unreported:
                logger.warning("cannot report to %s: %s", self.run_dir / "workers", error)
            self._unreported = True
            return
        self._reported, self._unreported = report, False


def _number(model: ServedModel | None) -> int | None:
    return None if model is None or model.adaptation is UNSET else model.adaptation


_worker: Worker | None = None


def set_worker(worker: Worker) -> None:
    """Name the worker of this process."""
    global _worker
    _worker = worker


def worker() -> Worker:
    """The worker of this process; it exists from the service's start on."""
    if _worker is None:
        raise RuntimeError("no worker in this process: requests came before the service had started")
    return _worker
