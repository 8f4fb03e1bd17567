"""Who keeps SQLite's log from being emptied: processes in the middle of reading the database."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_READ_LOCKS: Final = range(124, 128)
"""Bytes of the `-shm` file that a reader of the log locks one of (SQLite's file format, "WAL-index format"); byte 123
is for those who read the database file alone, and hold nobody up."""


def readers(database: Path) -> list[str]:
    """The processes that hold the log of this SQLite file, `process 123 (sqlite3 evergreen.db)`.

    Empty when there is none, or this system does not tell (no `/proc/locks`, another host or container).
    """
    try:
        inode = database.with_name(f"{database.name}-shm").stat().st_ino
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return []
    found: dict[int, str] = {}
    for line in lines:
        fields = line.replace("-> ", "").split()  # 1: POSIX ADVISORY READ 123 00:1f:4567 124 124
        if len(fields) < 8 or fields[1] != "POSIX" or fields[5].rpartition(":")[2] != str(inode):
            continue
        first, last = int(fields[6]), int(fields[7]) if fields[7] != "EOF" else _READ_LOCKS[-1]
        if first <= _READ_LOCKS[-1] and last >= _READ_LOCKS[0]:
            found[int(fields[4])] = _named(int(fields[4]))
    return [found[pid] for pid in sorted(found)]


def _named(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        words = "gone by now"
    return f"process {pid} ({words[:100]})"
