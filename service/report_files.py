"""The files between workers and controller by which a check's page is asked for and found: `var/reports`."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from monitoring.files import write_atomically

REFUSED_S: Final = 60.0
"""So long a refusal stands; after that the page is tried again when somebody asks."""

MOST_ASKED: Final = 20
"""Pages that may wait on one replica: each takes some ten seconds."""

_ASKED, _PAGE, _REFUSED, _APPLIED = ".asked", ".html", ".refused", "erasure"


class Refused(msgspec.Struct, frozen=True):
    """Why a check has no page."""

    status: int
    error: str


class ReportFiles:
    """The folder with the pages of one replica, what is asked for, and what was refused."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def page(self, check: int) -> Path:
        return self.folder / f"{check}{_PAGE}"

    def ask(self, check: int) -> bool:
        """Ask the controller for a page; False when too many wait already."""
        path = self.folder / f"{check}{_ASKED}"
        if not path.exists():
            if len(self.asked()) >= MOST_ASKED:
                return False
            write_atomically(path, b"", durable=False, mode=0o600)
        return True

    def asked(self) -> list[int]:
        """The checks whose page is asked for, the oldest wish first."""
        found = sorted((stat.st_mtime, int(path.stem)) for path, stat in self._files(_ASKED))
        return [check for _, check in found]

    def refuse(self, check: int, refused: Refused) -> None:
        write_atomically(self.folder / f"{check}{_REFUSED}", msgspec.json.encode(refused), durable=False, mode=0o600)

    def refused(self, check: int) -> Refused | None:
        """Why there is no page, when the controller said so lately."""
        path = self.folder / f"{check}{_REFUSED}"
        try:
            if time.time() - path.stat().st_mtime > REFUSED_S:
                return None
            return msgspec.json.decode(path.read_bytes(), type=Refused)
        except FileNotFoundError:
            return None

    def settle(self, check: int) -> None:
        """The wish is fulfilled, or refused."""
        (self.folder / f"{check}{_ASKED}").unlink(missing_ok=True)

    def keep(self, check: int, drawn: Path, at: float) -> None:
        """Put a drawn page in place. Its age is that of the rows it shows, by which retention goes."""
        os.utime(drawn, (time.time(), at))
        os.replace(drawn, self.page(check))
        (self.folder / f"{check}{_REFUSED}").unlink(missing_ok=True)

    def trim(self, most: int, before: float) -> None:
        """Delete the pages of rows from before `before`, of the others all but the `most` that were made last, and
        refusals that no longer stand."""
        pages = sorted(self._files(_PAGE), key=lambda found: -found[1].st_atime)
        old = [path for at, (path, stat) in enumerate(pages) if at >= most or stat.st_mtime < before]
        over = time.time() - REFUSED_S
        for path in [*old, *(path for path, stat in self._files(_REFUSED) if stat.st_mtime < over)]:
            path.unlink(missing_ok=True)

    def forget(self, erasure: int) -> bool:
        """Delete all pages when this erasure (the id of its run) is not the last one known here; whether it was not."""
        known = self.folder / _APPLIED
        if known.is_file() and known.read_text() == str(erasure):
            return False
        for path, _ in self._files(_PAGE):
            path.unlink(missing_ok=True)
        write_atomically(known, str(erasure).encode(), mode=0o600)
        return True

    def _files(self, ending: str) -> list[tuple[Path, os.stat_result]]:
        found = []
        for path in self.folder.glob(f"[0-9]*{ending}"):
            with suppress(FileNotFoundError):
                found.append((path, path.stat()))
        return found
