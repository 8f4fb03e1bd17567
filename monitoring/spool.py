"""The spool's segments as files: how they are named, which of them lie there, how one is begun and opened.

A segment's number is `milliseconds since 1970 << 20 | 20 random bits`, its file `<number in 16 hex digits>.<state>`.
Its worker holds `flock` on it for life: a stopped owner keeps it, a killed one releases it at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

OPEN: Final = ".seg"
"""Locked by the worker that appends to it."""
SEALED: Final = ".sealed"
"""Nothing will be appended to it any more."""
NEWBORN: Final = ".new"
"""Not locked yet; becomes `.seg` once it is."""


def number_at(at: float) -> int:
    """The least number of a segment born at `at` (seconds since 1970 UTC)."""
    return int(at * 1000) << 20


def segment_day(segment: int) -> int:
    """Days since 1970-01-01 UTC of the segment's birth, from its number."""
    return (segment >> 20) // 86_400_000


def segment_path(directory: Path, segment: int, suffix: str) -> Path:
    """Where the segment lies while it has this suffix."""
    return directory / f"{segment:016x}{suffix}"


def segments(directory: Path) -> dict[int, Path]:
    """The segments in the directory, open and sealed, oldest first; none when there is no such directory."""
    found: dict[int, Path] = {}
    with contextlib.suppress(FileNotFoundError):
        for file in _files(directory):
            path = Path(file.path)
            with contextlib.suppress(ValueError):  # a file of somebody else
                found[int(path.stem, 16)] = path
    return dict(sorted(found.items()))


def spool_bytes(directory: Path) -> int:
    """Bytes of all segments in the directory, drained or not. Raises `OSError` when there is no such directory."""
    total = 0
    for file in _files(directory):
        with contextlib.suppress(FileNotFoundError):  # deleted by the drain meanwhile
            total += file.stat().st_size
    return total


def open_segment(path: Path, flags: int = os.O_RDONLY) -> tuple[int, Path] | None:
    """A descriptor of the segment and its path now: its worker may have sealed it since `path` was listed.

    None when it is gone: drained, or sealed between our two looks.
    """
    for name in (path, path.with_suffix(SEALED)):
        with contextlib.suppress(FileNotFoundError):
            return os.open(name, flags | os.O_CLOEXEC), name
    return None


def begin_segment(directory: Path, now: float) -> tuple[int, int]:
    """(descriptor, number) of a fresh segment to append to, locked by us. Raises `OSError`.

    It gets its name `.seg` only once it is locked: the drain, which takes an unlocked `.seg` for a dead worker's, never
    sees it in between. If the drain clears the newborn away as litter, the rename fails and we start again.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tries = 3
    while True:
        tries -= 1
        segment = number_at(now) | random.SystemRandom().getrandbits(20)
        newborn = segment_path(directory, segment, NEWBORN)
        fd = os.open(newborn, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(newborn, segment_path(directory, segment, OPEN))
            return fd, segment
        except OSError:
            os.close(fd)
            with contextlib.suppress(OSError):
                newborn.unlink()
            if not tries:
                raise


def clear_newborns(directory: Path) -> None:
    """Remove the segments whose workers died before they were named, unless one is being born this instant.

    Should its worker lock it just after us, its rename fails, and it begins another one.
    """
    for path in directory.glob(f"*{NEWBORN}"):
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if owner_is_gone(fd):
                    path.unlink(missing_ok=True)
            finally:
                os.close(fd)


def owner_is_gone(fd: int) -> bool:
    """Whether nobody holds the segment's lock; from now on we do, until `fd` is closed."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _files(directory: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(directory) as files:
        for file in files:
            if file.name.endswith((OPEN, SEALED)):
                yield file
