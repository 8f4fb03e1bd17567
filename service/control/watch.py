"""What goes wrong in the workers and needs a person: rows lost from the record, a version that does not load."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from service.handover import WorkerReport

logger = logging.getLogger("evergreen.watch")

REMIND_EVERY_S: Final = 600.0
"""How often it is reported again while rows go on being dropped."""


class Watch:
    """Looks at the workers every few seconds and reports each problem once.

    Args:
        alarm: told (event, facts): `record_dropped` and `version_failed`.
        dropped_rows: the counter's value now; rows dropped before are not reported.
    """

    def __init__(self, alarm: Callable[[str, Mapping[str, Any]], None], dropped_rows: float) -> None:
        self._alarm = alarm
        self._dropped_rows = dropped_rows
        self._told_rows = dropped_rows
        self._told_at = float("-inf")
        self._failed: set[tuple[str, str]] = set()

    def look(self, dropped_rows: float, reports: Sequence[WorkerReport], now: float) -> None:
        """`dropped_rows`: how many rows and labels all workers have dropped; `now` in seconds of any clock."""
        dropping = dropped_rows > self._dropped_rows
        self._dropped_rows = dropped_rows
        if dropping and now - self._told_at >= REMIND_EVERY_S:
            lost = int(dropped_rows - self._told_rows)
            logger.error("%d rows were answered and not recorded: the disk or the spool is full", lost)
            self._alarm(
                "record_dropped", {"rows": lost, "why": "the disk is full, or the spool has [log] max_spool_bytes"}
            )
            self._told_rows, self._told_at = dropped_rows, now
        failed = {(report.slot, version): why for report in reports for version, why in report.failed.items()}
        for (slot, version), why in failed.items():
            if (slot, version) not in self._failed:
                self._alarm("version_failed", {"version": int(version), "worker": slot, "why": why})
        self._failed = set(failed)
