"""What goes wrong in the workers and needs a person: rows lost from the record, a version that does not load."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from service.control.open_troubles import OpenTroubles
from service.handover import WorkerReport

logger = logging.getLogger("evergreen.watch")

QUIET_S: Final = 60.0
"""After so long without a dropped row it is over; so long after a start a worker may have said nothing yet."""
DROPPED: Final = "record_dropped"
FAILED: Final = "version_failed"


class Watch:
    """Looks at the workers every few seconds and tells each trouble twice: when it begins, and when it has ended.

    Args:
        troubles: what is open, also from before a restart: `record_dropped` and `version_failed`.
        dropped_rows: the counter's value now; rows dropped before are not reported.
        now: the clock of `look`.
    """

    def __init__(self, troubles: OpenTroubles, dropped_rows: float, now: float) -> None:
        self._troubles = troubles
        self._since = now
        left = troubles.of(DROPPED)
        self._dropped_rows = dropped_rows
        self._before = dropped_rows - (left[0]["rows"] if left else 0)
        self._dropped_at = now if left else None

    def look(self, dropped_rows: float, reports: Sequence[WorkerReport], now: float) -> None:
        """`dropped_rows`: how many rows and labels all workers have dropped; `now` in seconds of any clock."""
        if dropped_rows > self._dropped_rows:
            if self._dropped_at is None:
                self._troubles.began(DROPPED, self._lost(dropped_rows))
            self._dropped_at = now
        elif self._dropped_at is not None and now - self._dropped_at >= QUIET_S:
            self._troubles.ended(DROPPED, self._lost(dropped_rows))
            self._before, self._dropped_at = dropped_rows, None
        self._dropped_rows = dropped_rows
        self._look_at_versions(reports, now)

    def _lost(self, dropped_rows: float) -> dict[str, Any]:
        lost = int(dropped_rows - self._before)
        logger.error("%d rows were answered and not recorded: the disk or the spool is full", lost)
        why = "the disk is full, or the spool has [log] max_spool_bytes"
        return {"trouble": DROPPED, "rows": lost, "why": why}

    def _look_at_versions(self, reports: Sequence[WorkerReport], now: float) -> None:
        failing = set[str]()
        for report in reports:
            for version, why in report.failed.items():
                trouble = f"{FAILED}/{version}/{report.slot}"
                failing.add(trouble)
                facts = {"trouble": trouble, "version": int(version), "worker": report.slot, "why": why}
                self._troubles.began(FAILED, facts)
        # A worker that has just started has not tried yet, and one that is on its way has no report.
        answering = {report.slot for report in reports if report.ready}
        absent_counts = now - self._since >= QUIET_S
        there = {report.slot for report in reports}
        for known in self._troubles.of(FAILED):
            over = known["worker"] in answering or (absent_counts and known["worker"] not in there)
            if over and known["trouble"] not in failing:
                self._troubles.ended(known["trouble"])
