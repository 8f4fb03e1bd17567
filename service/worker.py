"""One API worker's parts and its background thread: follow the live file and report."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import Final

import msgspec

from monitoring.log import PredictionLog
from monitoring.metrics import HotCounter, HotHistogram, Metrics
from service.live import Live, WorkerReport, read_live, write_report
from service.predictor import LiveModel
from service.privacy import open_privacy
from service.settings import Settings

logger = logging.getLogger("evergreen.worker")

REPORT_EVERY_S: Final = 2.0


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
        self.run_dir = run_dir
        self.slot = slot
        self.metrics = Metrics(run_dir / "metrics", slot)
        self.log = PredictionLog(settings.spool_dir, settings.log) if record else None
        self.model = LiveModel(
            settings.serve.max_records,
            tuple(settings.security.trusted_types),
            on_swap=self._count_swap,
            extra=settings.privacy.names,
            max_chars=settings.serve.max_category_chars,
        )
        self.privacy = open_privacy(settings)
        self.live: Live | None = None
        self.stopping = False
        self._live_stamp: tuple[int, int] | None = None
        self._reported: WorkerReport | None = None
        self._unreported = False
        self._closed = threading.Event()
        self.prediction_seconds = HotHistogram(self.metrics.prediction_seconds)
        self.recorded = HotCounter(self.metrics.log_records.labels("appended"))
        self.dropped = HotCounter(self.metrics.log_records.labels("dropped"))
        self._thread = threading.Thread(target=self._run, name="evergreen-follow", daemon=True)

    def start(self) -> None:
        """Look once at the live file, so that a worker with a champion is ready at once; then keep looking."""
        self._look(time.time())
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and seal the record; every acknowledged row is in the spool already."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2)
        if self.log is not None:
            self.log.close()
        (self.run_dir / "workers" / f"{self.slot}.json").unlink(missing_ok=True)
        self.metrics.close()

    @property
    def why_not_ready(self) -> str | None:
        """Why predictions cannot be answered by this worker now, or None when they can."""
        if self.stopping:
            return "stopping: this server finishes its requests in flight; send new ones to another replica"
        if self.model.current is not None:
            return None
        if self.model.failed:
            version, reason = next(iter(self.model.failed.items()))
            return f"no model in service: version {version} does not load: {reason}"
        detail = self.live.bootstrap if self.live and self.live.bootstrap else "the first version is being trained"
        return f"no model in service yet: {detail}; see `evergreen runs`"

    def _count_swap(self, result: str, seconds: float) -> None:
        self.metrics.model_swaps.labels(result).inc()
        self.metrics.model_swap_seconds.observe(seconds)

    def _run(self) -> None:
        interval = self.settings.serve.poll_interval_s
        while not self._closed.wait(interval):
            try:
                self._look(time.time())
            except Exception:  # the thread that keeps the model fresh must outlive a bad moment of the disk
                logger.exception("could not follow %s; the model in service stays", self.settings.live_file)

    def _look(self, now: float) -> None:
        if not self.stopping and (self.run_dir / "stopping").exists():
            self.stopping = True
        stamp = _stamp(self.settings.live_file)
        if stamp != self._live_stamp:
            try:
                self.live = read_live(self.settings.live_file) or self.live
            except msgspec.DecodeError as error:
                logger.error("%s is damaged (%s); the model in service stays", self.settings.live_file, error)
            self._live_stamp = stamp
        if self.live is not None:
            before = self.model.current
            self.model.follow(self.live, now)
            if before is not None and self.model.current is not before:
                self.metrics.model_swaps.labels("swapped").inc()
        self._report(now)

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
        )
        last = self._reported
        if last and now - last.at < REPORT_EVERY_S and msgspec.structs.replace(report, at=last.at) == last:
            return
        try:
            write_report(self.run_dir / "workers", report)
        except OSError as error:  # a full disk: others know a little less, the model is followed all the same
            if not self._unreported:
                logger.warning("cannot report to %s: %s", self.run_dir / "workers", error)
            self._unreported = True
            return
        self._reported, self._unreported = report, False


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_ino
