"""The files between the controller and the workers of one server: live versions, workers' reports, its status.

The controller mirrors the aliases of the store into `var/live.json`; the workers look at that file's stat a few times a
second and never speak to the database. So a worker restarted while the store is down serves at once, and a prediction
never waits for a lock of a table. In the other direction each worker keeps one small file saying what it serves.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import msgspec

from monitoring.files import write_atomically
from service.process import alive

logger = logging.getLogger("evergreen.handover")

FORMAT: Final = 1

Stamp = tuple[int, int, int]
"""What changes when a file is replaced or written to: time, inode, size."""


class LiveAdaptation(msgspec.Struct, frozen=True):
    """An adaptation of a version's output and the file that holds it (absolute)."""

    number: int
    path: str
    digest: str
    """SHA-256 of the file, hex."""


class LiveVersion(msgspec.Struct, frozen=True):
    """A version to hold in memory and the folder of its artefact (absolute)."""

    version: int
    path: str
    adaptation: LiveAdaptation | None = None
    """In force; None: it answers with its own output."""


class Live(msgspec.Struct, frozen=True):
    """What runs under which alias."""

    model: str
    champion: LiveVersion | None = None
    announced: LiveVersion | None = None
    bootstrap: str = ""
    """How the training of the first version goes, or how it ended without one."""
    problem: str = ""
    """Why the champion cannot be named, when there is one; the one before it may stand in its place meanwhile."""
    format: int = FORMAT

    def wanted(self) -> tuple[LiveVersion, ...]:
        """Every version a worker should have loaded and warm, the champion first, each once."""
        named = (self.champion, self.announced)
        return tuple({v.version: v for v in named if v is not None}.values())


class WorkerReport(msgspec.Struct, frozen=True):
    """What one worker says of itself."""

    slot: str
    pid: int
    at: float
    serving: int | None = None
    engine: str = ""
    ready: tuple[int, ...] = ()
    failed: dict[str, str] = {}
    adaptation: int | None = None
    """Number of the adaptation in force of the version it serves."""
    unadapted: str = ""
    """Why it does not have the one it should have."""
    why_not_ready: str = ""
    """Why predictions should not be sent to it, "" when they can be answered."""
    hour: int = 0
    """The hour that `sent` counts, in hours since 1970."""
    sent: dict[str, int] = {}
    """Rows and labels that each source sent in that hour, as `labels/crm`; only while they are limited."""


def write_live(path: Path, live: Live) -> None:
    """Replace the live file; a reader sees the old one or the new one, whole."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(live), indent=2), mode=0o600)


def read_live(path: Path) -> Live | None:
    """The live file's content, or None when there is none yet.

    Raises `msgspec.DecodeError` when it is not one of ours.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Live)
    except FileNotFoundError:
        return None


class LiveFile:
    """The live file as its one writer keeps it: written again when it is gone, damaged or says something else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: Stamp | None = None
        self._there: Live | None = None  # what stands in it, as far as its stamp is `_stamp`

    def keep(self, live: Live) -> None:
        """Leave `live` in the file. Raises OSError when it cannot be written."""
        if self._stamp is None or stamp_of(self.path) != self._stamp:
            try:
                self._there = read_live(self.path)
            except msgspec.DecodeError as error:
                logger.warning("%s is damaged (%s): it is written anew", self.path, error)
                self._there = None
        if self._there != live:
            write_live(self.path, live)
        self._stamp, self._there = stamp_of(self.path), live


def stamp_of(path: Path) -> Stamp | None:
    """The stamp of a file, None when it is not there."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def write_report(folder: Path, report: WorkerReport) -> None:
    """Write into `folder` what a worker serves."""
    write_atomically(folder / f"{report.slot}.json", msgspec.json.encode(report), durable=False, mode=0o600)


def read_reports(folder: Path) -> list[WorkerReport]:
    """What the running workers of this server say; those whose process has gone are left out."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            report = msgspec.json.decode(path.read_bytes(), type=WorkerReport)
        except (FileNotFoundError, msgspec.DecodeError):
            continue  # replaced or removed at this moment; the next look sees it
        if alive(report.pid):
            found.append(report)
    return found


STATUS: Final = "controller.json"


class JobStatus(msgspec.Struct, frozen=True):
    """A scheduled job of the replica that holds the lease; times are seconds since 1970 UTC."""

    name: str
    last_success: float | None = None
    """Since this server started."""
    next: float | None = None
    failures: int = 0


class ControllerStatus(msgspec.Struct, frozen=True):
    """The status of the controller of one server."""

    at: float
    leader: bool = False
    holder: str = ""
    spool_bytes: int = 0
    drain_lag_s: float = 0.0
    store_error: str = ""
    lacks: str = ""
    """Which artefact this replica does not have, and why; "" when it has all that it should serve."""
    jobs: tuple[JobStatus, ...] = ()
    """Of the replica that holds the lease."""


def write_status(run_dir: Path, status: ControllerStatus) -> None:
    """Write the controller's status into the server's folder."""
    write_atomically(run_dir / STATUS, msgspec.json.encode(status), durable=False, mode=0o600)


def read_status(run_dir: Path) -> ControllerStatus | None:
    """The controller's last status, None before its first."""
    try:
        return msgspec.json.decode((run_dir / STATUS).read_bytes(), type=ControllerStatus)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
