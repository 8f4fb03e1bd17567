"""Traffic: rows of a file or of the sample, sent to a running service in time order, their labels sent back later.

Rows go out in batches at a steady rate over a few connections; a row's label follows once its delay is over, so that
labels arrive late and, with delays that differ, out of order. Only what the service's `/schema` names is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import msgspec
from evergreen_client import AsyncClient, EvergreenClientError, Wanted
from evergreen_client.frames import json_columns, json_labels, records_of

from service.command.rows import RowsError

if TYPE_CHECKING:
    import pandas as pd

    from monitoring.feature import Task
    from monitoring.quality import Quality


LABELS_A_REQUEST: Final = 1000
REQUESTS_A_SECOND: Final = 20
"""When no batch is given, it is chosen for this: few enough to hold any rate, enough to look like a stream."""
MOST_ROWS_A_REQUEST: Final = 1000
REASONS_KEPT: Final = 5

_TICK_S: Final = 0.05
_encode: Final = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class Answered:
    """One acknowledged request with the true labels: enough to measure the quality of each version."""

    first_row: int
    """Position of its first row in the replayed frame."""
    at: float
    """Seconds since 1970, when the answer came."""
    version: int
    ids: list[str]
    predictions: list[Any]
    probabilities: list[list[float]] | None
    """Rows by classes, in the order of the schema's classes; None for regression."""
    labels: list[Any]
    """The true labels; None where the frame has none."""
    adaptation: int | None = None
    """Of the version's output; None: its own output was served."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replay has come."""

    rows: int
    rows_sent: int
    rows_failed: int
    labels_sent: int
    labels_failed: int
    labels_waiting: int
    wait_s: float
    """Seconds until the last label known by now is due."""
    versions: dict[int, int]


@dataclass(frozen=True, slots=True)
class TrafficSummary:
    """The result of a replay. A row or label counts as sent when its request got a 2xx answer, else as failed."""

    rows: int
    rows_sent: int
    rows_failed: int
    requests: int
    retries: int
    """Requests sent again that were not answered, or that the service was too busy for; only with `retry_s`."""
    labels_sent: int
    labels_failed: int
    versions: dict[int, int]
    """Rows answered by each version, in the order the versions were first seen."""
    p50_ms: float
    p99_ms: float
    sending_s: float
    """Seconds until the last row was answered; sending labels took the rest of `duration_s`."""
    duration_s: float
    reasons: dict[str, int]
    """Why requests failed, with counts."""
    stopped: bool = False
    """Whether it was stopped before all rows were sent."""
    task: Task = "binary"
    classes: tuple[Any, ...] = ()
    answers: tuple[Answered, ...] = field(default=(), repr=False)

    @property
    def ok(self) -> bool:
        return not self.rows_failed and not self.labels_failed

    def quality(self, version: int | None = None) -> Quality | None:
        """How good the answers kept were, of all versions or of one; None where no label is known."""
        answers = [answer for answer in self.answers if version is None or answer.version == version]
        return measure_answers(answers, self.task, self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the answers, and instead of them how good they were."""
        fields: dict[str, Any] = {
            name: getattr(self, name) for name in self.__slots__ if name not in ("answers", "classes", "versions")
        }
        fields["versions"] = {str(version): rows for version, rows in self.versions.items()}
        measured = {"all": self.quality()} | {str(version): self.quality(version) for version in self.versions}
        fields["quality"] = {
            name: {"metric": each.metric, "value": each.value, "rows": each.rows}
            for name, each in measured.items()
            if each is not None and each.value is not None
        }
        return fields


def measure_answers(answers: Sequence[Answered], task: Task, classes: tuple[Any, ...]) -> Quality | None:
    """The measured quality of answers against the labels known of their rows; None where there is none."""
    from monitoring.quality import QualityPolicy, measure

    known: list[tuple[Any, Any, Any]] = []
    for answer in answers:
        chances: Sequence[Any] = answer.probabilities or [None] * len(answer.ids)
        rows = zip(answer.labels, answer.predictions, chances, strict=True)
        known += [row for row in rows if row[0] is not None]
    if not known:
        return None
    labels, predictions, scores = (list(each) for each in zip(*known, strict=True))
    return measure(labels, predictions, None if task == "regression" else scores, task, classes, QualityPolicy())


def replay_traffic(
    url: str,
    frame: pd.DataFrame,
    *,
    target: str,
    rate: float,
    label_delay_s: float | Sequence[float] | None = 0.0,
    batch: int | None = None,
    clients: int = 4,
    retry_s: float = 0.0,
    timeout_s: float = 30.0,
    ids_out: Path | None = None,
    token: str = "",
    keep_answers: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    on_answer: Callable[[Answered], None] | None = None,
    stop: threading.Event | None = None,
) -> TrafficSummary:
    """Send `frame` (rows in the order of sending) to the service at `url` and return the result.

    Args:
        target: column of the labels; it and every column `/schema` does not name stay here.
        rate: rows a second; 0 means as fast as the service answers.
        label_delay_s: seconds from a row's answer to its label, one for all or one a row; None sends no labels.
        batch: rows a request; chosen from the rate when None.
        clients: requests in flight at most.
        retry_s: how long a request is repeated that failed on its way, or that the service was too busy for.
        ids_out: file that gets a JSON line `{"id", "version", "row"}` for each acknowledged row.
        token: sent along, where one is needed to predict and label.
        on_progress: called after each answer and while labels wait; on_answer: after each answer.
        stop: once set, no further rows are sent and the labels go out at once.

    Raises an `EvergreenClientError` when nothing answers at `url`, or the frame lacks a feature (`BadRecords`);
    `RowsError` when it lacks the target.
    """
    return asyncio.run(
        _replay(
            url,
            frame,
            target=target,
            rate=rate,
            label_delay_s=label_delay_s,
            batch=batch or batch_for(rate),
            clients=clients,
            retry_s=retry_s,
            timeout_s=timeout_s,
            ids_out=ids_out,
            token=token,
            keep_answers=keep_answers,
            on_progress=on_progress,
            on_answer=on_answer,
            stop=stop or threading.Event(),
        )
    )


def batch_for(rate: float) -> int:
    """Rows a request for `rate` rows a second."""
    if rate <= 0:
        return 200
    return max(1, min(MOST_ROWS_A_REQUEST, math.ceil(rate / REQUESTS_A_SECOND)))


@dataclass(slots=True)
class _Tally:
    rows_sent: int = 0
    rows_failed: int = 0
    requests: int = 0
    labels_sent: int = 0
    labels_failed: int = 0
    versions: dict[int, int] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    answers: list[Answered] = field(default_factory=list)


async def _replay(
    url: str,
    frame: pd.DataFrame,
    *,
    target: str,
    rate: float,
    label_delay_s: float | Sequence[float] | None,
    batch: int,
    clients: int,
    retry_s: float,
    timeout_s: float,
    ids_out: Path | None,
    token: str,
    keep_answers: bool,
    on_progress: Callable[[Progress], None] | None,
    on_answer: Callable[[Answered], None] | None,
    stop: threading.Event,
) -> TrafficSummary:
    with contextlib.ExitStack() as open_files:
        out = open_files.enter_context(ids_out.open("w")) if ids_out else None
        async with AsyncClient(url, token, timeout_s=timeout_s, retry_s=retry_s, connections=clients + 1) as client:
            wanted = await client.wanted()
            if label_delay_s is not None and target not in frame.columns:
                raise RowsError(f'the data has no column "{target}" to send labels from')
            replay = _Replay(client, frame, wanted, target, label_delay_s, out)
            replay.keep_answers, replay.on_progress, replay.on_answer = keep_answers, on_progress, on_answer
            return await replay.run(rate, batch, clients, stop)


class _Replay:
    """One replay: clients that take batches in turn, and one that sends labels when they are due."""

    keep_answers = True
    on_progress: Callable[[Progress], None] | None = None
    on_answer: Callable[[Answered], None] | None = None

    def __init__(
        self,
        client: AsyncClient,
        frame: pd.DataFrame,
        wanted: Wanted,
        target: str,
        label_delay_s: float | Sequence[float] | None,
        out: TextIO | None,
    ) -> None:
        self.client = client
        self.wanted = wanted
        self.rows = len(frame)
        self.out = out
        self.row_numbers = frame.index.tolist()
        json_columns(frame.iloc[:1], wanted.kinds)  # a missing feature is said before anything is sent
        self.frame = frame
        self.labels = json_labels(frame[target], wanted.classes) if target in frame.columns else [None] * len(frame)
        self.delays: Sequence[float] | None
        if label_delay_s is None or isinstance(label_delay_s, (int, float)):
            self.delays = None if label_delay_s is None else [float(label_delay_s)] * len(frame)
        else:
            self.delays = [float(delay) for delay in label_delay_s]
        self.due: list[tuple[float, int, str, Any]] = []
        self.last_due = 0.0
        self.tally = _Tally()

    async def run(self, rate: float, batch: int, clients: int, stop: threading.Event) -> TrafficSummary:
        began = time.monotonic()
        starts = iter(range(0, self.rows, batch))
        ended = asyncio.Event()
        labelling = asyncio.create_task(self._send_labels(ended, stop))
        sending = [asyncio.create_task(self._send_rows(starts, batch, rate, began, stop)) for _ in range(clients)]
        try:
            await asyncio.gather(*sending)
            sending_s = time.monotonic() - began
            ended.set()
            await labelling
        finally:
            for task in (labelling, *sending):
                task.cancel()
            await asyncio.gather(labelling, *sending, return_exceptions=True)
        self._tell()
        tally = self.tally
        ordered = sorted(tally.latencies)
        return TrafficSummary(
            rows=self.rows,
            rows_sent=tally.rows_sent,
            rows_failed=tally.rows_failed,
            requests=tally.requests,
            retries=self.client.repeated,
            labels_sent=tally.labels_sent,
            labels_failed=tally.labels_failed,
            versions=tally.versions,
            p50_ms=round(1000 * _quantile(ordered, 0.50), 3),
            p99_ms=round(1000 * _quantile(ordered, 0.99), 3),
            sending_s=round(sending_s, 3),
            duration_s=round(time.monotonic() - began, 3),
            reasons=tally.reasons,
            stopped=tally.rows_sent + tally.rows_failed < self.rows,
            task=self.wanted.task,
            classes=self.wanted.classes,
            answers=tuple(sorted(tally.answers, key=lambda answer: answer.first_row)),
        )

    async def _send_rows(
        self, starts: Iterator[int], batch: int, rate: float, began: float, stop: threading.Event
    ) -> None:
        for start in starts:
            due = began + start / rate if rate > 0 else 0.0
            while (left := due - time.monotonic()) > 0 and not stop.is_set():
                await asyncio.sleep(min(left, 0.25))
            if stop.is_set():
                return
            await self._send_batch(start, min(start + batch, self.rows))
            if rate <= 0:
                await asyncio.sleep(0)

    async def _send_batch(self, start: int, end: int) -> None:
        tally = self.tally
        records = records_of(self.frame.iloc[start:end], self.wanted.kinds)
        tally.requests += 1
        sent = time.perf_counter()
        try:
            answer = await self.client.predict(records)
        except EvergreenClientError as error:
            tally.rows_failed += end - start
            self._because(error)
            self._tell()
            return
        tally.latencies.append(time.perf_counter() - sent)
        ids, version = answer.ids, answer.version
        tally.rows_sent += end - start
        tally.versions[version] = tally.versions.get(version, 0) + end - start
        if self.out is not None:
            for position, each in enumerate(ids, start):
                line = {"id": each, "version": version, "row": self.row_numbers[position]}
                self.out.write(_encode(line).decode() + "\n")
            self.out.flush()
        if self.delays is not None:
            now = time.monotonic()
            for position, each in enumerate(ids, start):
                label = self.labels[position]
                if label is not None:
                    due = now + self.delays[position]
                    self.last_due = max(self.last_due, due)
                    heapq.heappush(self.due, (due, position, each, label))
        if self.keep_answers or self.on_answer is not None:
            answered = Answered(
                first_row=start,
                at=time.time(),
                version=version,
                ids=ids,
                predictions=answer.predictions,
                probabilities=answer.probabilities,
                labels=self.labels[start:end],
                adaptation=answer.adaptation,
            )
            if self.keep_answers:
                tally.answers.append(answered)
            if self.on_answer is not None:
                self.on_answer(answered)
        self._tell()

    async def _send_labels(self, ended: asyncio.Event, stop: threading.Event) -> None:
        told = 0.0
        while self.due or not ended.is_set():
            now = time.monotonic()
            ready: list[dict[str, Any]] = []
            while self.due and len(ready) < LABELS_A_REQUEST and (self.due[0][0] <= now or stop.is_set()):
                _, _, each, label = heapq.heappop(self.due)
                ready.append({"id": each, "label": label})
            if not ready:
                if now - told >= 0.25:
                    told = now
                    self._tell()
                left = self.due[0][0] - now if self.due else _TICK_S
                await asyncio.sleep(max(0.0, min(left, _TICK_S)))
                continue
            self.tally.requests += 1
            try:
                await self.client.feedback(ready)
                self.tally.labels_sent += len(ready)
            except EvergreenClientError as error:
                self.tally.labels_failed += len(ready)
                self._because(error)
            if len(ready) < LABELS_A_REQUEST:
                await asyncio.sleep(_TICK_S)  # gather a few more rather than send each alone

    def _because(self, error: Exception) -> None:
        words = str(error)
        reasons = self.tally.reasons
        if words not in reasons and len(reasons) >= REASONS_KEPT:
            words = "other reasons"
        reasons[words] = reasons.get(words, 0) + 1

    def _tell(self) -> None:
        if self.on_progress is None:
            return
        tally = self.tally
        self.on_progress(
            Progress(
                rows=self.rows,
                rows_sent=tally.rows_sent,
                rows_failed=tally.rows_failed,
                labels_sent=tally.labels_sent,
                labels_failed=tally.labels_failed,
                labels_waiting=len(self.due),
                wait_s=max(0.0, self.last_due - time.monotonic()) if self.due else 0.0,
                versions=dict(tally.versions),
            )
        )


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Nearest-rank quantile; 0 when there is nothing."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0
