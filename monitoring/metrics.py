"""The Prometheus collectors: what each one is called, and the files the processes of one server share.

Every process of a server tree writes its values into memory-mapped files of one directory, named by service and worker
slot (`counter_api-1.db`). A replaced worker takes up the file of its slot: files do not pile up, and no counter turns
back. Values survive SIGKILL, because they live in the page cache.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from bisect import bisect_left
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_pack = struct.Struct("dd").pack

_FILE_KINDS: Final = ("counter", "histogram", "gauge_livemostrecent")
_FILE_BYTES: Final = 1 << 16
"""With which client_python begins a file; it doubles one that is full."""

LATENCY_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
SWAP_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
LONG_BUCKETS_S: Final = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)


class Metrics:
    """All collectors of one process.

    Args:
        directory: where the processes of this server keep their value files; created when missing.
        slot: who writes, unique in the directory among running processes: `api-1`, `controller-1`. No underscore.
    """

    def __init__(self, directory: Path, slot: str) -> None:
        if "_" in slot:
            raise ValueError(f"slot {slot!r}: an underscore would end the name early in the file's name; use '-'")
        directory.mkdir(parents=True, exist_ok=True)
        for stale in directory.glob(f"gauge_live*_{slot}.db"):  # the gauges of the process this one replaces
            stale.unlink(missing_ok=True)
        for kind in _FILE_KINDS:
            _reserve(directory / f"{kind}_{slot}.db")
        self.directory = directory
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
        from prometheus_client import CollectorRegistry, values

        # client_python chooses its mode when it is imported, by the environment; here the caller chooses.
        self._values: Any = values.MultiProcessValue(process_identifier=lambda: slot)  # type: ignore[no-untyped-call]
        values.ValueClass = self._values
        # Scrapes read the files; this registry only keeps the collectors out of the global one.
        self._registry = CollectorRegistry()
        self._add_requests()
        self._add_loop()

    def _add_requests(self) -> None:
        """Of requests, their rows and labels, and the model that answers."""
        self.requests = self._counter("requests", "HTTP requests answered", "route", "status")
        self.predictions = self._counter("predictions", "Rows predicted and answered", "version")
        self.tryouts = self._counter("tryout_rows", "Rows answered and, as the request asked, not recorded")
        self.prediction_seconds = self._histogram(
            "prediction_seconds",
            "Time from the whole request received to the answer encoded and recorded",
            LATENCY_BUCKETS_S,
        )
        self.log_records = self._counter("log_records", "Rows given to the prediction log", "outcome")
        self.labels = self._counter("labels", "Labels by what became of them", "outcome")
        self.source_rows = self._counter(
            "source_rows",
            "Labels, and rows of named sources, by token (`open`: none; its rows only when limited)",
            "source",
            "kind",
        )
        self.model_swaps = self._counter("model_swaps", "Changes of the model a worker answers with", "result")
        self.model_swap_seconds = self._histogram(
            "model_swap_seconds", "Time to load, verify and warm up a version or an adaptation", SWAP_BUCKETS_S
        )
        self.traces = self._counter(
            "traces", "Requests and runs whose spans were due, by what became of them", "outcome"
        )
        self.adaptation_number = self._gauge(
            "adaptation_number", "Adaptation in force of this version (0: none)", "version"
        )
        self.adaptation_swaps = self._counter(
            "adaptation_swaps", "Adaptations taken up by a worker, by what came of it", "result"
        )

    def _add_loop(self) -> None:
        """Of the record, checks, trainings and jobs."""
        self.log_spool_bytes = self._gauge("log_spool_bytes", "Bytes of recorded rows that are not yet in the store")
        self.log_spool_limit_bytes = self._gauge(
            "log_spool_limit_bytes", "Bytes that may wait in the spool (log.max_spool_bytes); above it rows are dropped"
        )
        self.log_drain_lag_seconds = self._gauge(
            "log_drain_lag_seconds", "Age of the oldest row that is not yet in the store"
        )
        self.drift_score = self._gauge(
            "drift_score", "Distance from the champion's reference at the last check", "feature"
        )
        self.drift_share = self._gauge("drift_share", "Share of features that drifted at the last check")
        self.drift_detected = self._gauge("drift_detected", "1 when the last check found drift")
        self.drift_news = self._gauge("drift_news", "1 when a movement began with the last check")
        self.adaptation_loss = self._gauge(
            "adaptation_loss",
            "Log loss (MSE) on matured rows answered while adapted; NaN: not known",
            "output",
        )
        self.adaptation_moved = self._gauge(
            "adaptation_moved", "Root mean square of how far the adaptation moves outputs (logits, or errors)"
        )
        self.adaptation_weight = self._gauge("adaptation_weight", "Weight of each expert", "expert")
        self.quality = self._gauge(
            "quality", "Quality of the newest matured rows that the champion answered, as served", "metric", "kind"
        )
        self.quality_state = self._gauge(
            "quality_state",
            "1 for what the last check knew of it (held, lost, not known yet), 0 for the others",
            "state",
        )
        self.label_delay = self._gauge("label_delay_seconds", "After so long a row is judged by its label")
        self.label_coverage = self._gauge("label_coverage", "Share of the rows older than that whose label is known")
        self.label_waiting = self._gauge("label_waiting_rows", "Rows not as old as that, of the newest 20,000")
        self.retrains = self._counter("retrains", "Trainings by what became of them", "trigger", "outcome")
        self.retrain_seconds = self._histogram("retrain_seconds", "Time of one training run", LONG_BUCKETS_S)
        self.rows_unfit = self._counter(
            "rows_unfit", "Rows and labels of the record that a reader left out because they do not fit", "where"
        )
        self.gate_results = self._counter("gate_results", "Verdicts of the gates", "gate", "result")
        self.deleted_rows = self._counter(
            "deleted_rows", "Rows of the record deleted by age or on request", "table", "why"
        )
        self.last_success = self._gauge(
            "last_success_timestamp_seconds", "When it last ended well (NaN: not yet)", "work"
        )
        self.job_failures = self._counter("job_failures", "Times that recurring work raised", "work")
        self.loop_paused = self._gauge("loop_paused", "1 while a person has paused checks, trainings and promotions")
        self.scheduler_leader = self._gauge("scheduler_leader", "1 while this replica holds the lease")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        from prometheus_client import Counter

        return Counter(f"evergreen_{name}", text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        from prometheus_client import Gauge

        return Gauge(f"evergreen_{name}", text, labels, registry=self._registry, multiprocess_mode="livemostrecent")

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        from prometheus_client import Histogram

        return Histogram(f"evergreen_{name}", text, registry=self._registry, buckets=buckets)

    def close(self) -> None:
        """Close the value files; the values stay in them. What `HotCounter` is told afterwards goes nowhere."""
        self._values.close_all_files()


class HotCounter:
    """One series of a counter, with an `inc` that costs a fraction of a microsecond.

    client_python takes a lock and asks for the process id at each increment. One event-loop thread writes here, and a
    slot is never shared, so neither is needed. The value goes to the same place of the same file.
    """

    __slots__ = ("_file", "_position", "_value")

    def __init__(self, series: Any) -> None:
        value = series._value
        self._file: Any = value._file
        self._position: int = value._file._positions[value._key]
        self._value: float = value._value

    def inc(self, amount: float = 1.0) -> None:
        self._value += amount
        memory = self._file._m
        if memory is not None:  # closed: a process at its end answers the last ones uncounted
            memory[self._position : self._position + 16] = _pack(self._value, 0.0)


class HotHistogram:
    """A histogram without labels: an observation is one bisection and a write, and a write more for all of a call."""

    __slots__ = ("_bounds", "_buckets", "_sum")

    def __init__(self, histogram: Any) -> None:
        self._bounds: list[float] = list(histogram._upper_bounds)
        self._buckets = [HotCounter(_Series(bucket)) for bucket in histogram._buckets]
        self._sum = HotCounter(_Series(histogram._sum))

    def observe(self, *seconds: float) -> None:
        self._sum.inc(sum(seconds))
        for one in seconds:
            self._buckets[bisect_left(self._bounds, one)].inc()


class _Series:
    def __init__(self, value: Any) -> None:
        self._value = value


def _reserve(path: Path) -> None:
    """Take the file's room on disk now: a process that writes into a hole of a mapped file dies when the disk is full.

    Raises `OSError` when there is no room.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if sys.platform == "linux":
            os.posix_fallocate(fd, 0, max(_FILE_BYTES, os.fstat(fd).st_size))
    finally:
        os.close(fd)


def total(directory: Path, name: str, labels: Mapping[str, str]) -> float:
    """The value of one counter, summed over all processes that share `directory`; 0 before it was first counted."""
    return _all_processes(directory).get_sample_value(name, dict(labels)) or 0.0


Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]
"""Name of a sample -> its labels -> its value."""


def samples(directory: Path, names: Collection[str]) -> Samples:
    """The samples of these counters and histograms, summed over all processes that share `directory`.

    A histogram's buckets are not cumulative. Only what is asked for is decoded: it costs a fraction of a scrape.
    """
    from prometheus_client.mmap_dict import MmapedDict

    wanted = [f'["evergreen_{name}"'.encode() for name in names]
    found: Samples = {}
    for path in (*directory.glob("counter_*.db"), *directory.glob("histogram_*.db")):
        for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):  # type: ignore[no-untyped-call]
            if not any(key.encode().startswith(each) for each in wanted):
                continue
            _, sample, labels, _ = json.loads(key)
            series = found.setdefault(sample, {})
            place = tuple(sorted(labels.items()))
            series[place] = series.get(place, 0.0) + value
    return found


def exposition(directory: Path) -> bytes:
    """What a scrape of this server answers: the text format over all processes that share `directory`.

    Source: prometheus_client's multiprocess collector, histogram samples in the order of the exposition format.
    """
    from prometheus_client import generate_latest

    return generate_latest(_all_processes(directory))


def _all_processes(directory: Path) -> CollectorRegistry:
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(directory))  # type: ignore[no-untyped-call]
    return registry
