"""How much each source sends in an hour: counted for metrics, and limited when a limit is set."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Literal

from monitoring.errors import EvergreenError
from monitoring.metrics import HotCounter
from service.keys import OPEN

if TYPE_CHECKING:
    from monitoring.metrics import Metrics
    from service.handover import WorkerReport
    from service.settings import SecuritySettings

Kind = Literal["predictions", "labels"]

HOUR_S: Final = 3600


class OverLimit(EvergreenError):
    """Raised when a source has sent what it may in this hour; `retry_after_s` until the next one begins."""

    def __init__(self, source: str, kind: Kind, limit: int, retry_after_s: int) -> None:
        who = f"the token {source!r}" if source else "clients without a token"
        key = "rows_per_hour" if kind == "predictions" else "labels_per_hour"
        super().__init__(f"{who} may send {limit} {kind} an hour ([security] {key}); try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Sources:
    """What this worker was sent by whom, and, from their reports, what the others of its server were.

    A limit holds over the workers of one server within the seconds that reports take; each replica has its own.
    """

    def __init__(self, metrics: Metrics, security: SecuritySettings) -> None:
        self._metrics = metrics
        self._limits: dict[Kind, int] = {"predictions": security.rows_per_hour, "labels": security.labels_per_hour}
        self.limited = any(self._limits.values())
        self._counters: dict[tuple[Kind, str], HotCounter] = {}
        self.hour = 0
        self.sent: Counter[str] = Counter()
        self._others: Counter[str] = Counter()

    def take(self, kind: Kind, source: str, rows: int) -> None:
        """Count rows or labels that a source sends. Raises `OverLimit` when they are more than it may."""
        if limit := self._limits[kind]:
            now = time.time()
            self._turn(int(now // HOUR_S))
            name = f"{kind}/{source}"
            if self.sent[name] + self._others[name] + rows > limit:
                raise OverLimit(source, kind, limit, max(1, int(HOUR_S - now % HOUR_S)))
            self.sent[name] += rows
        try:
            self._counters[kind, source].inc(rows)
        except KeyError:
            series = self._metrics.source_rows.labels(source or OPEN, kind)
            self._counters[kind, source] = HotCounter(series)
            self._counters[kind, source].inc(rows)

    def hear(self, reports: Iterable[WorkerReport], slot: str) -> None:
        """Take the other workers' counts of this hour from their reports."""
        others: Counter[str] = Counter()
        for report in reports:
            if report.slot != slot and report.hour == self.hour:
                others.update(report.sent)
        self._others = others

    def _turn(self, hour: int) -> None:
        if hour != self.hour:
            self.hour, self.sent, self._others = hour, Counter(), Counter()
