"""What can go wrong when a file is scored; each message says what, where, and what to do."""

from __future__ import annotations

from pathlib import Path

from evergreen_client.errors import EvergreenClientError


class FileError(EvergreenClientError):
    """Raised when a file cannot be read, scored or written."""


class Unreadable(FileError):
    """Raised when a file cannot be read, or has not what is asked for."""


class CannotResume(FileError):
    """Raised when an output exists already, or was begun otherwise."""


class BadRow(FileError):
    """Raised when a row cannot be answered; `row` counts from 1, the header not among them."""

    def __init__(self, source: str, row: int, problem: str) -> None:
        self.row, self.problem = row, problem
        super().__init__(f"{source}, row {row:,}: {problem}; correct it, or let such rows be skipped (--bad-rows skip)")


def no_room(path: Path, error: OSError) -> FileError:
    """An error of the disk in words that say that nothing is lost."""
    return FileError(
        f"{path} cannot be written ({error.strerror or error}): make room, then give the same command again; it goes "
        "on behind the last rows that are safe"
    )
