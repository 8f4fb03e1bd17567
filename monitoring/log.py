"""The prediction log: what an API worker appends to, durably, before it answers.

Each worker owns one open segment at a time in the spool directory and holds `flock` on it for life: a stopped owner
keeps it, a killed one releases it at once. `drain.py` carries the segments into the store.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from monitoring.record import encode_header
from monitoring.spool import OPEN, SEALED, begin_segment, segment_path, spool_bytes

NewEntry = tuple[int, tuple[bytes, ...]]
"""Rows, and the one or two JSON parts that hold them: an entry before it is written."""

_LOOK_EVERY_S: Final = 1.0
_logger = logging.getLogger(__name__)


class LogPolicy(BaseModel):
    """When a segment ends, when it is forced to disk, and how much may wait for the store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    segment_bytes: int = Field(
        16 * 2**20,
        ge=1,
        description="bytes; a drain re-reads at most this after a restart",
    )
    segment_seconds: float = Field(60.0, gt=0, description="seconds; the spool is then freed within about a minute")
    fsync: Literal["never", "interval", "always"] = Field(
        "interval",
        description="only against power failure: the death of any process loses nothing even with `never`",
    )
    fsync_interval_s: float = Field(1.0, gt=0, description="seconds; what a power failure can cost with `interval`")
    max_spool_bytes: int = Field(
        4 * 2**30,
        ge=1,
        description="bytes in the directory; above it answers go out, rows are dropped and counted",
    )


class PredictionLog:
    """One thread's end of the spool: `append`, and `close` when it appends no more.

    An acknowledged append survives the death of every process; with `fsync="interval"` a thread of its own bounds what
    a power failure costs. Trouble never raises: rows are dropped, counted in `dropped_rows` and logged once per spell.
    """

    def __init__(
        self,
        directory: Path,
        policy: LogPolicy,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.appended_rows = 0
        self.dropped_rows = 0
        self.full = False
        """Whether rows are being dropped because the spool has reached `max_spool_bytes`."""
        self._directory = directory
        self._policy = policy
        self._clock = clock
        self._always = policy.fsync == "always"
        self._fd = -1
        self._segment = 0
        self._end = 0  # bytes of whole entries in the segment; all the appends it will ever acknowledge lie below
        self._seal_bytes = policy.segment_bytes
        self._seal_at = float("-inf")
        self._look_at = float("-inf")
        self._dropping = False
        self._dropped_seen = 0
        self._written = 0  # grows with every write, so that sync() knows whether there is anything to do
        self._synced = 0
        self._retired: deque[int] = (
            deque()
        )  # sealed descriptors; closed by sync() alone, so it never meets a reused one
        self._sync_lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        directory.mkdir(parents=True, exist_ok=True)
        if policy.fsync == "interval":
            self._thread = threading.Thread(target=self._sync_forever, name="prediction-log-fsync", daemon=True)
            self._thread.start()

    def append(self, kind: int, at: float, rows: int, *parts: bytes) -> bool:
        """True when the entry (`rows` rows in one or two JSON parts, see `record.py`) is in the log.

        False when it was dropped and counted. `at` is the present in seconds since 1970 UTC.
        """
        return self.append_all(kind, at, ((rows, parts),)) == rows

    def append_all(self, kind: int, at: float, entries: Sequence[NewEntry]) -> int:
        """`append` of several entries with one write; how many of their rows are in the log, the others were dropped.

        At most 300 entries: a write takes 1,024 buffers (IOV_MAX).
        """
        if at >= self._look_at or self._end >= self._seal_bytes:
            self._look(at)
        if self.full:
            return self._drop(entries, "the spool has reached max_spool_bytes")
        rows = 0
        buffers: list[bytes] = []
        try:
            for count, parts in entries:
                rows += count
                buffers.append(encode_header(kind, at, count, parts))
                buffers += parts
        except ValueError as error:
            return self._drop(entries, error)
        total = sum(map(len, buffers))
        written = 0
        try:
            written = os.writev(self._fd, buffers)
            if self._always:
                os.fdatasync(self._fd)
        except OSError as error:
            return self._append_anew(entries, buffers, written, error)
        if written != total:
            why = f"{written} of {total} bytes were written"
            return self._append_anew(entries, buffers, written, why)
        self._end += total
        self._written += 1
        self.appended_rows += rows
        return rows

    def sync(self) -> None:
        """Force what was appended so far to disk. Safe from another thread than the one that appends."""
        with self._sync_lock:
            written = self._written
            if self._policy.fsync == "never" or written == self._synced:
                self._close_retired()
                return
            fd = self._fd  # stays open until _close_retired below, even when its segment is sealed this instant
            try:
                if fd >= 0:
                    os.fdatasync(fd)
                self._close_retired()
                directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.fsync(directory)
                finally:
                    os.close(directory)
                self._synced = written
            except OSError as error:
                _logger.warning("the prediction log could not be forced to disk: %s", error)

    def close(self) -> None:
        """Seal the segment, so that the drain can delete it. Appending afterwards opens another one."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._seal()
        with self._sync_lock:
            self._close_retired()

    # --- once a second, and when a segment is full -------------------------------------------------------------

    def _look(self, at: float) -> None:
        self._look_at = at + _LOOK_EVERY_S
        if self._fd >= 0:
            if os.fstat(self._fd).st_nlink == 0:
                _logger.error(
                    "the open segment was deleted from %s by someone else: its rows are lost",
                    self._directory,
                )
                self._seal()
            elif self._end >= self._seal_bytes or (at >= self._seal_at and self._end > 0):
                self._seal()
        try:
            self.full = spool_bytes(self._directory) >= self._policy.max_spool_bytes
        except OSError:
            self.full = False  # whatever is wrong, the write will meet it and say so
        if self._dropping and self.dropped_rows == self._dropped_seen:
            _logger.warning("the prediction log in %s takes rows again", self._directory)
            self._dropping = False
        self._dropped_seen = self.dropped_rows
        if self._fd < 0 and not self.full:
            with contextlib.suppress(OSError):  # the write then fails and says why
                self._open(at)

    def _open(self, at: float) -> None:
        """Own a fresh segment."""
        self._fd, self._segment = begin_segment(self._directory, self._clock())
        self._end = 0
        self._seal_at = at + self._policy.segment_seconds

    def _seal(self) -> None:
        """Give the segment up. Should the rename fail, closing it unlocks it, which tells the drain the same."""
        if self._fd < 0:
            return
        path = segment_path(self._directory, self._segment, OPEN)
        with contextlib.suppress(OSError):
            if self._end:
                path.rename(path.with_suffix(SEALED))
            else:
                path.unlink()
        self._retired.append(self._fd)
        self._fd, self._end = -1, 0
        if self._thread is None:
            with self._sync_lock:
                self._close_retired()

    def _close_retired(self) -> None:
        while self._retired:
            fd = self._retired.popleft()
            try:
                if self._policy.fsync != "never":
                    os.fdatasync(fd)
            except OSError as error:
                _logger.warning("a sealed segment could not be forced to disk: %s", error)
            finally:
                os.close(fd)

    def _sync_forever(self) -> None:
        while not self._stop.wait(self._policy.fsync_interval_s):
            self.sync()

    # --- when a write fails ------------------------------------------------------------------------------------

    def _append_anew(self, entries: Sequence[NewEntry], buffers: list[bytes], written: int, why: object) -> int:
        """Undo the failed write, and try once more in a fresh segment unless this one was fresh; the rows kept.

        What a failed write left behind is cut off; where even that fails, nothing more goes into this segment, so that
        the next row is never glued to a torn one, and the entries that are whole in it count as written. A segment that
        is empty and still refuses is kept: a full disk does not breed segments.
        """
        kept = 0
        for fresh in (False, True):
            if fresh:
                try:
                    self._open(self._look_at)
                    written = 0
                    written = os.writev(self._fd, buffers)
                    if self._always:
                        os.fdatasync(self._fd)
                    if written == sum(map(len, buffers)):
                        return kept + self._keep(entries, buffers)
                except OSError as error:
                    why = error
            if self._fd < 0:
                continue
            if self._cut_back():
                if self._end == 0:
                    break
            else:
                whole, pieces = _whole(entries, buffers, written)
                kept += self._keep(entries[:whole], buffers[:pieces])
                entries, buffers = entries[whole:], buffers[pieces:]
            self._seal()
        return kept + self._drop(entries, why)

    def _keep(self, entries: Sequence[NewEntry], buffers: list[bytes]) -> int:
        rows = sum(count for count, _ in entries)
        self._end += sum(map(len, buffers))
        self._written += 1
        self.appended_rows += rows
        return rows

    def _cut_back(self) -> bool:
        try:
            os.ftruncate(self._fd, self._end)
        except OSError:
            return False
        return True

    def _drop(self, entries: Sequence[NewEntry], why: object) -> int:
        self.dropped_rows += sum(count for count, _ in entries)
        if not self._dropping:
            _logger.error("the prediction log drops rows in %s: %s", self._directory, why)
            self._dropping = True
        return 0


def _whole(entries: Sequence[NewEntry], buffers: list[bytes], written: int) -> tuple[int, int]:
    """How many of the entries, and of their buffers, lie wholly within the bytes written."""
    end = pieces = 0
    for whole, (_, parts) in enumerate(entries):
        more = pieces + 1 + len(parts)
        end += sum(map(len, buffers[pieces:more]))
        if end > written:
            return whole, pieces
        pieces = more
    return len(entries), pieces
