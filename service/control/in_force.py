"""The adaptations in force as files beside the live file, so that a worker needs no store to answer with one."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Final

from monitoring.files import write_atomically
from service.handover import LiveAdaptation, Stamp, stamp_of
from training.adaptations import Adaptations, InForce, UnknownAdaptation

logger = logging.getLogger("evergreen.controller")

KEPT: Final = 20
"""Files, the newest ones: kilobytes each, for whoever wants to look at what has answered."""


class InForceFiles:
    """The folder `var/adaptations`, one file `<version>-<number>.adaptation` each. Used by one thread.

    `named` raises SQLAlchemy's errors while the store is down; a disk in trouble is logged, and what was named stays.
    """

    def __init__(self, folder: Path, adaptations: Adaptations) -> None:
        self.folder = folder
        self._adaptations = adaptations
        self._named: dict[int, tuple[LiveAdaptation, Stamp | None]] = {}  # by version; its file was whole then

    def named(self, version: int) -> LiveAdaptation | None:
        """What the workers should answer with for this version; its file is there."""
        found = self._adaptations.in_force(version)
        if found is None:
            self._named.pop(version, None)
            return None
        named, stamp = self._named.get(version, (None, None))
        same = named is not None and (named.number, named.digest) == found
        if named is not None and same and stamp is not None and stamp_of(Path(named.path)) == stamp:
            return named
        try:
            named = self._write(version, found)
            self._named[version] = named, stamp_of(Path(named.path))
        except UnknownAdaptation:  # pruned this moment: the next look finds another
            self._named.pop(version, None)
            named = None
        except OSError as error:
            logger.warning("%s cannot be written (%s); the workers keep what they answer with", self.folder, error)
        return named

    def _write(self, version: int, found: InForce) -> LiveAdaptation:
        path = self.folder / f"{version}-{found.number}.adaptation"
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != found.digest:
            write_atomically(path, self._adaptations.served(version, found.number), mode=0o600)
            self._forget_old(path)
        return LiveAdaptation(found.number, str(path), found.digest)

    def _forget_old(self, new: Path) -> None:
        needed = {new, *(Path(named.path) for named, _ in self._named.values())}
        files = sorted(self.folder.glob("*.adaptation"), key=lambda path: path.stat().st_mtime_ns)
        for old in files[:-KEPT]:
            if old not in needed:
                old.unlink(missing_ok=True)
