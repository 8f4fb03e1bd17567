"""The drain: carries what the workers appended from the spool into the store, each row exactly once.

A segment is read while its worker still appends to it. It is deleted only when nobody can append any more (sealed, or
its owner's lock is free: a dead worker's) and everything in it has been committed. Row keys are made of the segment and
the byte offset, so that reading again after a crash at any point inserts nothing twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Final, Self

import msgspec

from monitoring.errors import EvergreenError, first_line
from monitoring.insert import Reached, forget_segments, insert, is_poison, last_stored
from monitoring.record import (
    DAMAGED,
    HEADER_BYTES,
    Damage,
    DeadLetter,
    Entry,
    TableRows,
    dead_letter,
    decode_entry,
    iter_entries,
    needed_bytes,
    row_key,
    time_of,
)
from monitoring.spool import SEALED, clear_newborns, open_segment, owner_is_gone, segments

if TYPE_CHECKING:
    import sqlalchemy as sa

_CHUNK_BYTES: Final = 4 * 2**20
_OPEN_SEGMENTS: Final = 64
TELL_EVERY_S: Final = 1.0
_TURN_S: Final = 0.0005
"""Beside one other at work on its core a process that yields so often had 30 % of it, every 13 µs 1 % (Linux 6.18)."""
_logger = logging.getLogger(__name__)


class SpoolBusy(EvergreenError, RuntimeError):
    """Raised when another process already drains this spool directory."""

    def __init__(self, directory: Path, holder: str) -> None:
        super().__init__(
            f"the spool {directory} is being drained by {holder or 'another process'}: "
            "stop that server, or give this one a directory of its own ([store] var)"
        )


class DrainFailed(EvergreenError, RuntimeError):
    """Raised when the database fails in the middle of a drain. Nothing is lost or doubled by it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(
            f"the store cannot take the record now ({first_line(error)}); the spool keeps it until the next drain"
        )


def check_free(directory: Path) -> None:
    """Raise `SpoolBusy` when a process drains this spool directory just now."""
    directory.mkdir(parents=True, exist_ok=True)
    os.close(_take_lock(directory))


def _take_lock(directory: Path) -> int:
    """The locked descriptor of the directory's one drainer. Raises `SpoolBusy`."""
    lock = os.open(directory / "drain.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 200, 0).decode("utf-8", "replace").strip()
        os.close(lock)
        raise SpoolBusy(directory, holder) from None
    return lock


class DrainResult(msgspec.Struct, frozen=True):
    """What one drain did. Rows already stored by an earlier drain are not counted again."""

    predictions: int = 0
    labels: int = 0
    rejections: int = 0
    dead: int = 0
    torn: int = 0
    """Unfinished writes of killed workers: requests that were never answered."""
    repeated_ids: int = 0
    """Predictions whose id is stored already, or came earlier in the same batch; every row is kept."""
    matched_labels: int = 0
    unmatched_labels: int = 0
    """Labels kept although no prediction with their id is stored (yet)."""
    deleted_segments: int = 0
    bytes_left: int = 0
    oldest_at: float | None = None
    """When the oldest entry still waiting was written; None when none waits."""


class Backlog(msgspec.Struct, frozen=True):
    """What waits in the spool."""

    spool_bytes: int
    """Bytes of all segments on disk, those already stored included."""
    bytes_left: int
    oldest_at: float | None


class _Progress:
    """How far one segment has been stored."""

    __slots__ = ("_stored", "offset", "resume", "suspect")

    def __init__(self, resume: int) -> None:
        self.offset = 0
        self.resume = resume  # entries that begin up to here were committed by an earlier drainer
        self.suspect = -1  # where an open segment looked damaged last time
        self._stored = -1

    def stored(self, fd: int) -> int:
        """Where the entries end that an earlier drainer committed."""
        if self._stored < 0:
            resume = self.resume
            self._stored = 0 if resume < 0 else resume + needed_bytes(os.pread(fd, HEADER_BYTES, resume), 0)
        return self._stored


class _Batch:
    """Entries on their way into one transaction."""

    def __init__(self) -> None:
        self.rows = TableRows()
        self.announced = 0  # rows that its entries say they hold, and damage: quicker to count than `rows`
        self.entries: list[tuple[Entry, int]] = []  # with their segments
        self.torn = 0
        self.ends: dict[int, int] = {}
        self.reached: Reached = {}


class Drainer:
    """The one drainer of a spool directory, from construction to `close`. Not for several threads at once.

    `on_progress` is told the backlog from the start of the first drain on, then about once a second while one lasts.
    Raises `SpoolBusy` when another process drains it.
    """

    def __init__(
        self,
        directory: Path,
        engine: sa.Engine,
        *,
        batch_rows: int = 10_000,
        on_progress: Callable[[Backlog], None] = lambda backlog: None,
    ) -> None:
        self._directory = directory
        self._engine = engine
        self._batch_rows = batch_rows
        self._on_progress = on_progress
        self._told_at = self._turned_at = float("-inf")
        self._progress: dict[int, _Progress] = {}
        self._counts: dict[str, int] = {}
        self._refusal = ""
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = _take_lock(directory)
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another process drain the directory."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def drain(self, now: float) -> DrainResult:
        """Store everything that lay in the spool when the call began, and delete the segments that are finished.

        Raises `DrainFailed` for any error of the database: the next call goes on where this one stopped, and its result
        includes what this one had committed.
        """
        batch = _Batch()
        with contextlib.ExitStack() as stack:
            if gc.isenabled():  # nothing here is cyclic, and it would walk the rows of a batch over and over
                gc.disable()
                stack.callback(gc.enable)
            clear_newborns(self._directory)
            present = segments(self._directory)
            for forgotten in self._progress.keys() - present.keys():
                del self._progress[forgotten]
            for segment in present:
                self._known(segment)
            self._tell()
            finished: list[tuple[Path, int]] = []  # whose locks we hold until they are deleted
            stack.callback(_close_all, finished)
            for segment, listed in present.items():
                opened = open_segment(listed)
                if opened is None:
                    continue  # sealed under our eyes; the next drain finds it under its new name
                fd, path = opened
                # In this order: once the owner is known to be gone, everything it wrote is there to be read.
                final = path.suffix == SEALED or owner_is_gone(fd)
                if final:
                    finished.append((path, fd))
                try:
                    for found in _unread(self._known(segment), fd, final):
                        self._take(batch, segment, found, now)
                        self._give_turn()
                        if batch.announced >= self._batch_rows:
                            self._commit(batch)
                            batch = _Batch()
                finally:
                    if not final:
                        os.close(fd)
                if len(finished) >= _OPEN_SEGMENTS:  # after an outage there may be thousands
                    self._commit(batch)
                    batch = _Batch()
                    self._delete(finished)
            self._commit(batch)
            self._delete(finished)
        backlog = self.backlog()
        counts, self._counts = self._counts, {}
        return DrainResult(**counts, bytes_left=backlog.bytes_left, oldest_at=backlog.oldest_at)

    def backlog(self) -> Backlog:
        """What waits in the spool; asks no database, so it also works while that is down."""
        return backlog(self._directory, self._progress)

    def rows_waiting(self) -> int:
        """Rows in the spool that are not known to be stored; asks no database, and reads all that waits.

        Of segments that were never asked for, because the database is away, all rows count.
        """
        return rows_waiting(self._directory, self._progress)

    def _give_turn(self) -> None:
        """Let whoever waits for the processor have it, as in the middle of a statement: see `store.py`."""
        at = time.monotonic()
        if at - self._turned_at >= _TURN_S:
            os.sched_yield()
            self._turned_at = at

    def _known(self, segment: int) -> _Progress:
        progress = self._progress.get(segment)
        if progress is None:
            try:
                resume = last_stored(self._engine, segment)
            except Exception as error:
                raise DrainFailed(error) from error
            progress = self._progress[segment] = _Progress(resume)
        return progress

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told_at >= TELL_EVERY_S:
            self._on_progress(self.backlog())
            self._told_at = now

    def _take(self, batch: _Batch, segment: int, found: Entry | Damage, now: float) -> None:
        batch.ends[segment] = found.end
        if found.offset <= self._progress[segment].resume:
            return
        batch.reached[segment] = found.offset
        if isinstance(found, Entry):
            batch.entries.append((found, segment))
            batch.announced += found.rows
            decode_entry(found, segment, batch.rows)
        elif found.torn:
            batch.torn += 1
        else:
            batch.announced += 1
            length = found.end - found.offset
            _logger.error("%d damaged bytes at byte %d of segment %016x", length, found.offset, segment)
            reason = f"{length} bytes are no record; the first {len(found.data)} are kept"
            key = row_key(segment, found.offset)
            batch.rows.dead.append(DeadLetter(*key, now, DAMAGED, reason, found.data))

    def _commit(self, batch: _Batch) -> None:
        """Store the batch and remember how far it reached."""
        try:
            if not self._store(batch.rows, batch.reached):
                self._store_one_by_one(batch)
        except Exception as error:
            raise DrainFailed(error) from error
        self._count(torn=batch.torn)
        for segment, end in batch.ends.items():
            self._progress[segment].offset = end
        self._tell()

    def _store(self, rows: TableRows, reached: Reached) -> bool:
        """Whether the rows are stored; False when the database refuses one of them for what it is."""
        if not len(rows):
            return True
        try:
            counts = insert(self._engine, rows, reached)
        except Exception as error:
            if not is_poison(error):
                raise
            self._refusal = str(error)
            return False
        self._count(**counts)
        return True

    def _store_one_by_one(self, batch: _Batch) -> None:
        """Each entry in a transaction of its own; the ones the database refuses become dead letters.

        In the order in which they lie in the spool: what is stored of a segment is all that came before.
        """
        damage = [letter for letter in batch.rows.dead if letter.kind == DAMAGED]
        ones: list[tuple[int, int, Entry | DeadLetter]] = [(s, e.offset, e) for e, s in batch.entries]
        ones += [(letter.segment, letter.position >> 16, letter) for letter in damage]
        for segment, offset, one in sorted(ones, key=lambda found: found[:2]):
            rows, reached = TableRows(), {segment: offset}
            if isinstance(one, DeadLetter):
                rows.dead.append(one)
            else:
                decode_entry(one, segment, rows)
            if not self._store(rows, reached) and isinstance(one, Entry):
                refused = TableRows()
                refused.dead.append(dead_letter(one, segment, f"the database refuses it: {self._refusal}"))
                self._store(refused, reached)

    def _count(self, **counts: int) -> None:
        for name, count in counts.items():
            self._counts[name] = self._counts.get(name, 0) + count

    def _delete(self, finished: list[tuple[Path, int]]) -> None:
        """Delete these segments, let their locks go, and empty the list."""
        gone = []
        while finished:
            path, fd = finished.pop()
            segment = int(path.stem, 16)
            try:
                path.unlink()
            except FileNotFoundError:  # a dead worker's segment that was renamed just before it died
                path.with_suffix(SEALED).unlink(missing_ok=True)
            except OSError as error:
                _logger.warning("the drained segment %s cannot be deleted: %s", path, error)
                continue
            finally:
                os.close(fd)
            self._progress.pop(segment, None)
            self._count(deleted_segments=1)
            gone.append(segment)
        if gone:
            forget_segments(self._engine, gone)


def _unread(progress: _Progress, fd: int, final: bool) -> Iterator[Entry | Damage]:
    """Entries behind the remembered offset, up to what is in the file now, a few megabytes at a time."""
    size = os.fstat(fd).st_size
    offset, length = progress.offset, _CHUNK_BYTES
    while offset < size:
        data = os.pread(fd, min(length, size - offset), offset)
        if not data:
            return
        whole = offset + len(data) >= size
        began = offset
        for found in iter_entries(data, offset, at_end=final and whole):
            if isinstance(found, Damage) and not final and progress.suspect != found.offset:
                # Perhaps the worker has just cut a short write off and written over it: look again next time.
                progress.suspect = found.offset
                return
            yield found
            offset = found.end
        if whole:
            return
        length = _CHUNK_BYTES
        if offset == began:  # one entry is longer than the chunk
            length = max(2 * len(data), needed_bytes(data, 0))


def backlog(directory: Path, known: Mapping[int, _Progress] = MappingProxyType({})) -> Backlog:
    """What waits in a spool; of segments that are not `known`, all that is in them."""
    total, left, oldest = 0, 0, None
    for segment, path in segments(directory).items():
        opened = open_segment(path)
        if opened is None:
            continue
        fd, _ = opened
        try:
            size = os.fstat(fd).st_size
            progress = known.get(segment)
            offset = 0 if progress is None else max(progress.offset, progress.stored(fd))
            total += size
            if size > offset:
                left += size - offset
                at = time_of(os.pread(fd, HEADER_BYTES, offset))
                oldest = at if oldest is None or (at is not None and at < oldest) else oldest
        finally:
            os.close(fd)
    return Backlog(total, left, oldest)


def rows_waiting(directory: Path, known: Mapping[int, _Progress] = MappingProxyType({})) -> int:
    """Rows in a spool that are not known to be stored, read one by one; of segments that are not `known`, all."""
    rows = 0
    for segment, path in segments(directory).items():
        opened = open_segment(path)
        if opened is None:
            continue
        progress = known.get(segment) or _Progress(-1)
        try:
            for found in _unread(progress, opened[0], final=True):
                if isinstance(found, Entry) and found.offset > progress.resume:
                    rows += found.rows
        finally:
            os.close(opened[0])
    return rows


def _close_all(opened: Iterable[tuple[Path, int]]) -> None:
    for _, fd in opened:
        os.close(fd)
