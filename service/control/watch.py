"""What goes wrong in the workers and needs a person: rows lost from the record, a version that does not load.

It knows what it has seen itself: after a restart of the controller a trouble that lasts is told as a new one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from monitoring.alerts import EventState
from service.handover import WorkerReport

logger = logging.getLogger("evergreen.watch")

QUIET_S: Final = 60.0
"""After so long without a dropped row it is over."""


class Tell(Protocol):
    def __call__(self, event: str, facts: Mapping[str, Any], state: EventState) -> None: ...


class Watch:
    """Looks at the workers every few seconds and tells each trouble twice: when it begins, and when it has ended.

    Args:
        tell: told (event, facts, state): `record_dropped` and `version_failed`.
        dropped_rows: the counter's value now; rows dropped before are not reported.
    """

    def __init__(self, tell: Tell, dropped_rows: float) -> None:
        self._tell = tell
        self._dropped_rows = self._before = dropped_rows
        self._dropped_at: float | None = None
        self._failed: dict[tuple[str, str], str] = {}

    def look(self, dropped_rows: float, reports: Sequence[WorkerReport], now: float) -> None:
        """`dropped_rows`: how many rows and labels all workers have dropped; `now` in seconds of any clock."""
        if dropped_rows > self._dropped_rows:
            if self._dropped_at is None:
                self._say_dropped(dropped_rows, "began")
            self._dropped_at = now
        elif self._dropped_at is not None and now - self._dropped_at >= QUIET_S:
            self._say_dropped(dropped_rows, "ended")
            self._before, self._dropped_at = dropped_rows, None
        self._dropped_rows = dropped_rows
        failed = {(report.slot, version): why for report in reports for version, why in report.failed.items()}
        for place in failed.keys() - self._failed.keys():
            self._say_failed(place, failed[place], "began")
        for place in self._failed.keys() - failed.keys():
            self._say_failed(place, self._failed[place], "ended")
        self._failed = failed

    def _say_dropped(self, dropped_rows: float, state: EventState) -> None:
        lost = int(dropped_rows - self._before)
        logger.error("%d rows were answered and not recorded: the disk or the spool is full", lost)
        why = "the disk is full, or the spool has [log] max_spool_bytes"
        self._tell("record_dropped", {"trouble": "record_dropped", "rows": lost, "why": why}, state)

    def _say_failed(self, place: tuple[str, str], why: str, state: EventState) -> None:
        slot, version = place
        facts = {"trouble": f"version_failed/{version}/{slot}", "version": int(version), "worker": slot, "why": why}
        self._tell("version_failed", facts, state)
