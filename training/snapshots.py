"""Snapshots by their digest: those of this host, and those that replicas share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from monitoring.retention import expire_files
from training.data import Snapshot, snapshot

if TYPE_CHECKING:
    from collections.abc import Collection

    import pandas as pd

    from training.storage import Storage

FOLDER: Final = "snapshots"
"""In the storage."""
ENDING: Final = ".parquet"


class Snapshots:
    """A folder on this host; with a storage it is a cache of what lies there."""

    def __init__(self, folder: Path, storage: Storage | None = None) -> None:
        self._folder, self._storage = folder, storage

    def take(self, frame: pd.DataFrame) -> Snapshot:
        """The snapshot of these rows, shared before anything names it. Raises `StorageError`."""
        taken = snapshot(frame, self._folder)
        if self._storage is not None:
            self._storage.put(taken.path, _name(taken.digest))
        return taken

    def path(self, digest: str) -> Path:
        """Where it is on this host, fetched when it is not here yet; no file is there when nobody has it.

        Raises `StorageError` when the storage does not answer: whether somebody has it is not known then.
        """
        path = self._folder / f"{digest}{ENDING}"
        if not path.is_file() and self._storage is not None and _name(digest) in self._storage.names(FOLDER):
            self._storage.get(_name(digest), path)
        return path

    def share(self, digests: Collection[str]) -> None:
        """Put those of this host into the storage that it lacks: of before there was one. Raises `StorageError`."""
        if self._storage is None:
            return
        there = set(self._storage.names(FOLDER))
        for digest in digests:
            path = self._folder / f"{digest}{ENDING}"
            if _name(digest) not in there and path.is_file():
                self._storage.put(path, _name(digest))

    def here(self) -> dict[str, Path]:
        """The files on this host by digest."""
        return {path.stem: path for path in self._folder.glob(f"*{ENDING}")}

    def evict(self, digest: str) -> bool:
        """Whether it is no longer on this host: it can be fetched again. Raises `StorageError`."""
        if self._storage is None or _name(digest) not in self._storage.names(FOLDER):
            return False
        (self._folder / f"{digest}{ENDING}").unlink(missing_ok=True)
        return True

    def digests(self) -> tuple[str, ...]:
        """Of all that this host or the storage has, in order."""
        there = () if self._storage is None else self._storage.names(FOLDER)
        return tuple(sorted(self.here().keys() | {Path(name).stem for name in there if name.endswith(ENDING)}))

    def replace(self, digest: str, left: pd.DataFrame) -> Snapshot:
        """The snapshot of what is left of one, as old as that: retention goes by age. The old one stays."""
        taken, aged = self.take(left), self.path(digest).stat()
        os.utime(taken.path, (aged.st_atime, aged.st_mtime))
        return taken

    def forget(self, digest: str) -> bool:
        """It is gone, here and in the storage; whether this host had it."""
        path = self._folder / f"{digest}{ENDING}"
        held = path.is_file()
        path.unlink(missing_ok=True)
        if self._storage is not None:
            self._storage.delete(_name(digest))
        return held

    def expire(self, before: float, keep: Collection[str]) -> int:
        """Delete those older than `before` (seconds since 1970 UTC) but `keep`, by digest; how many."""
        gone = expire_files(self._folder, f"*{ENDING}", before, keep=keep)
        if self._storage is None:
            return gone
        kept = {_name(digest) for digest in keep}
        return max(gone, self._storage.expire(FOLDER, before, kept))


def _name(digest: str) -> str:
    return f"{FOLDER}/{digest}{ENDING}"
