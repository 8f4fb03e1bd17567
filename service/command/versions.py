"""`evergreen models show | compare | tag | note | lineage | reproduce`: from the store and the files of this host.

`show`, `compare`, `tag` and `note` can be asked of a running service instead (`--url`): `Client` has methods of the
same names and answers. What two versions predict, and a version made again, need the artefacts: only here.
"""

from __future__ import annotations

import getpass
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from monitoring.errors import EvergreenError
from monitoring.store import open_store
from service.control.deployment import registry, storage
from service.versions import one_version
from training.comparison import compare
from training.lineage import Traced, of_answer, of_run, of_snapshot
from training.marks import note, tag
from training.registry import Registry, UnknownVersion
from training.snapshots import Snapshots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.settings import Settings
    from training.apart import Bounds
    from training.reproduction import Reproduction


class NoStore(EvergreenError, LookupError):
    """Raised when this folder has no store, so no versions either."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"there is no store at {path}, so no version: run `evergreen train` first, or name the deployment's "
            "settings with --config, or a running service with --url"
        )


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions of the deployment in this folder; no server needs to run."""

    settings: Settings
    engine: sa.Engine
    registry: Registry

    def version(self, version: int) -> dict[str, Any]:
        """As `GET /manage/models/{version}`. Raises `UnknownVersion`."""
        return one_version(self.engine, self.registry, version)

    def compare(self, a: int, b: int, rows: int = 0) -> dict[str, Any]:
        """As `GET /manage/models/{a}/compare/{b}`, with `predictions` on so many of the same rows (0: None).

        Raises `UnknownVersion`, and `WorkFailed` when one of both cannot be asked.
        """
        found: dict[str, Any] = msgspec.to_builtins(compare(self.engine, self.registry, a, b))
        return {**found, "predictions": self._same_rows(a, b, rows) if rows else None}

    def tag(self, version: int, add: Sequence[str], remove: Sequence[str], why: str) -> int:
        """The run that put tags on, or took them off. Raises `UnknownVersion` and `BadMark`."""
        return tag(self.registry, version, add, remove, engine=self.engine, who=_who(), why=why, now=time.time())

    def note(self, version: int, text: str) -> int:
        """The run that holds the note. Raises `UnknownVersion` and `BadMark`."""
        return note(self.registry, version, text, engine=self.engine, who=_who(), now=time.time())

    def lineage(self, *, answer: str = "", run: int | None = None, snapshot: str = "") -> Traced:
        """Which versions an answer, a run or a snapshot leads to. Raises `NothingKnown` and `UnknownRun`."""
        if answer:
            return of_answer(self.engine, self.registry, answer, self.settings.snapshots_dir)
        if run is not None:
            return of_run(self.engine, self.registry, run)
        return of_snapshot(self.engine, self.registry, snapshot)

    def reproduce(self, version: int, rows: int) -> Reproduction:
        """The version made again, and compared. Raises `CannotReproduce`, `UnknownVersion` and `WorkFailed`."""
        from training.reproduction import reproduce

        known = self.registry.get(version)
        if known.manifest.data.snapshot is not None:
            shared = Snapshots(self.settings.snapshots_dir, storage(self.settings))
            shared.path(known.manifest.data.snapshot)  # fetched, when only another host has it
        return reproduce(
            known,
            self.registry.fetch(version),
            self.settings.snapshots_dir,
            rows=rows,
            bounds=self._bounds(),
            trusted=self.settings.security.trusted,
            store=self.settings.store_url,
        )

    def _same_rows(self, a: int, b: int, rows: int) -> dict[str, Any]:
        from training.same_rows import SameRows, same_rows

        try:
            found = same_rows(
                self.engine,
                self.registry,
                a,
                b,
                self.settings.snapshots_dir,
                rows=rows,
                bounds=self._bounds(),
                sources=tuple(self.settings.gates.label_sources),
                trusted=self.settings.security.trusted,
            )
        except UnknownVersion as error:  # its artefact is on another host: the rest is told all the same
            found = SameRows(note=str(error))
        told: dict[str, Any] = msgspec.to_builtins(found)
        return told

    def _bounds(self) -> Bounds:
        from training.apart import Bounds

        given = self.settings.training
        return Bounds(threads=given.threads, memory_mb=given.memory_mb, nice=given.nice, longest_s=given.timeout_s)


@contextmanager
def versions_of(settings: Settings) -> Iterator[Versions]:
    """The versions of this deployment. Raises `NoStore` where there is none yet, and makes none."""
    url = sa.make_url(settings.store_url)
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).is_file():
        raise NoStore(url.database)
    engine = open_store(settings.store_url)
    try:
        yield Versions(settings, engine, registry(settings, engine))
    finally:
        engine.dispose()


def _who() -> str:
    """Who types the command: there is no token that names them."""
    try:
        return f"{getpass.getuser()} on {socket.gethostname()}"
    except (KeyError, OSError):  # a user without a name, in a container
        return f"somebody on {socket.gethostname()}"
