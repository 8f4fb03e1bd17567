"""Which model versions exist, and which of them is in service.

A version is a BentoML model `<name>:<integer>` below `models_dir` (so `bentoml models list/get/export` work on it) and
one row of the table `versions`. The table `aliases` names what runs; only the holder of the lease moves an alias, and
each move is one fenced statement. BentoML is imported here and in `service/app.py` only.

`register` leaves no half version, wherever it is cut off:

1. the number is taken from a counter in the database (cut off here: a number is skipped);
2. a lock file names it below `incoming/`, then the artefact is built there and synced to disk (`clean` deletes it);
3. one rename puts it into the model store (`clean` finds the lock file, sees no row and deletes the folder);
4. where replicas share a storage, its files are copied there (cut off here: files that nothing names);
5. one fenced insert writes the row: from here on the version exists (`clean` deletes the lock file only);
6. the lock file goes away and BentoML's `latest` is moved.

With a storage the artefacts on this host are a cache: `fetch` copies what it lacks, built and renamed in the same way.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import msgspec
import sqlalchemy as sa

from monitoring.errors import CannotGoOn, EvergreenError
from monitoring.files import write_atomically
from monitoring.store import aliases, db_now, versions
from training.artefact import MANIFEST, REFERENCE, ArtefactError, file_digest, read_manifest, verify
from training.lease import CONTROLLER, LeaseLost, check_fence, fence, insert_fenced, upsert, write_fenced
from training.manifest import Manifest, manifest_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd

    from training.storage import Storage

DEPTH: Final = 9
"""How many former champions are remembered, so that this many rollbacks in a row find one."""

BENTOML_FILES: Final = ("model.yaml",)
"""What BentoML keeps beside the files of an artefact."""

_REFERENCE_TO_BE: Final = f".{REFERENCE}"
_NOTHING: Final = 0  # versions start at 1; an alias with 0 names none
_FORMER: Final = ("previous", *(f"previous.{back}" for back in range(2, DEPTH + 1)))
_LIVE: Final = {"champion", "previous", "announced"}
_NAME: Final = re.compile(r"[a-z0-9]([-._a-z0-9]*[a-z0-9])?")


class NoChampion(EvergreenError, LookupError):
    """Raised when no version of the model is in service yet."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"the model {name!r} has no champion yet: run `evergreen train`, or push a model")


class NoPrevious(CannotGoOn, LookupError):
    """Raised when there is no former champion to roll back to."""

    def __init__(self, name: str, champion: int | None) -> None:
        self.name, self.champion = name, champion
        super().__init__(
            f"the model {name!r} has no champion before version {champion}: "
            "promote another version by its number (`evergreen promote VERSION`)"
        )


class UnknownVersion(CannotGoOn, LookupError):
    """Raised when the model has no such version, or its artefact is not on this host."""

    def __init__(self, name: str, version: int, known: Sequence[int] | None = None, where: Path | None = None) -> None:
        self.name, self.version = name, version
        if where is not None:
            what = (
                f"the artefact of {name!r} version {version} is not at {where}: where replicas run on several hosts, "
                "set `store.artefacts` on each of them; else copy it there"
            )
        elif known:
            what = f"the model {name!r} has no version {version}; there are {', '.join(map(str, known))}"
        else:
            what = f"the model {name!r} has no version {version}, and no other: run `evergreen train`"
        super().__init__(what)


class NotAnnounced(EvergreenError, RuntimeError):
    """Raised when a version is flipped to champion that is not the announced one."""

    def __init__(self, name: str, version: int, announced: int | None) -> None:
        self.name, self.version, self.announced = name, version, announced
        super().__init__(
            f"version {version} of {name!r} is not announced (announced is {announced}), the champion stays: "
            "promote it again, so that the workers load it first"
        )


@dataclass(frozen=True, slots=True)
class Version:
    """One row of the table `versions`."""

    version: int
    created_at: float  # seconds since 1970 UTC
    origin: str  # bootstrap | retrain | push
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class LiveSet:
    """What the aliases name at one moment; None where they name nothing."""

    champion: int | None = None
    previous: int | None = None
    announced: int | None = None  # to be loaded by every worker, not yet in service


class Registry:
    """The versions and aliases of one model."""

    def __init__(
        self,
        engine: sa.Engine,
        models_dir: Path,
        name: str,
        lease: str = CONTROLLER,
        *,
        storage: Storage | None = None,
    ) -> None:
        if len(name) > 63 or _NAME.fullmatch(name) is None:
            raise ValueError(
                f"the model name {name!r} cannot be a BentoML tag: use at most 63 of a-z, 0-9, '-', '_' and '.', "
                "with a letter or digit at both ends"
            )
        self.name = name
        self.models_dir = models_dir
        self._engine = engine
        self._lease = lease
        self._storage = storage
        self._incoming = models_dir.parent / "incoming"  # beside it: BentoML takes each folder inside for a model

    @property
    def shared(self) -> bool:
        """Whether replicas on several hosts share the artefacts."""
        return self._storage is not None

    # -- versions ------------------------------------------------------------------------------------------------

    def register(self, folder: Path, *, origin: str, now: float, token: int | None = None) -> int:
        """The number of the new version whose artefact `folder` was copied into the model store.

        With a `token` the version appears only while its lease is held, else `LeaseLost` is raised. Raises
        `ArtefactError` when the folder is incomplete or does not match its digests. Whatever is raised, no half
        version is left in sight; see the top of this file for each step.
        """
        manifest = verify(folder)
        version = self._next_version()
        with self._claimed(version) as work:
            built = self._build(folder, version, manifest, origin, work)
            verify(built)  # a copy cut short by a full disk is found here, not by a worker
            _sync(built)
            home = self.models_dir / self.name / str(version)
            home.parent.mkdir(parents=True, exist_ok=True)
            built.rename(home)
            _sync_folder(home.parent)
            if self._storage is not None:
                for file in _files(manifest):
                    self._storage.put(home / file, self._stored(version, file, manifest))
            self._insert(version, manifest, origin, now, token)
        with suppress(OSError):  # a convenience of `bentoml models get NAME`, which makes it anew when it is missing
            write_atomically(self.models_dir / self.name / "latest", str(self._newest_on_disk()).encode())
        return version

    def list(self) -> list[Version]:
        """Every registered version, newest first."""
        wanted = (
            sa.select(versions.c.version, versions.c.created_at, versions.c.origin, versions.c.manifest)
            .where(versions.c.name == self.name)
            .order_by(versions.c.version.desc())
        )
        with self._engine.connect() as connection:
            return [_version(row) for row in connection.execute(wanted)]

    def get(self, version: int) -> Version:
        """The registered version with this number. Raises `UnknownVersion`."""
        wanted = sa.select(versions.c.version, versions.c.created_at, versions.c.origin, versions.c.manifest).where(
            versions.c.name == self.name, versions.c.version == version
        )
        with self._engine.connect() as connection:
            row = connection.execute(wanted).first()
        if row is None:
            raise UnknownVersion(self.name, version, [known.version for known in self.list()])
        return _version(row)

    def manifest(self, version: int) -> Manifest:
        """The manifest of a registered version. Raises `UnknownVersion`."""
        return self.get(version).manifest

    def path(self, version: int) -> Path:
        """The artefact folder of `version` on this host; the database is not asked. Raises `UnknownVersion`."""
        home = self.models_dir / self.name / str(version)
        if not (home / MANIFEST).is_file():
            raise UnknownVersion(self.name, version, where=home)
        return home

    def fetch(self, version: int) -> Path:
        """The artefact folder of `version` on this host, copied from the storage when it is not here yet.

        Raises `UnknownVersion` when nobody has it, and `StorageError`.
        """
        try:
            return self.path(version)
        except UnknownVersion:
            if self._storage is None:
                raise
        manifest = self.manifest(version)
        lock, work, home = self._places(version)
        with _locked(lock):  # what is whole stays in `work` when it breaks off, and the next one goes on from there
            with suppress(UnknownVersion):  # another process of this host was faster
                return self.path(version)
            wanted = _files(manifest)
            for left in work.iterdir() if work.is_dir() else ():
                if left.name not in wanted:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            for file in wanted:
                digest = manifest.digests.get(file)
                if digest is None or not (work / file).is_file() or file_digest(work / file) != digest:
                    self._storage.get(self._stored(version, file, manifest), work / file, digest)
            write_atomically(work / MANIFEST, _formatted(manifest))
            verify(work)
            _sync(work)
            home.parent.mkdir(parents=True, exist_ok=True)
            work.rename(home)
            _sync_folder(home.parent)
            lock.unlink(missing_ok=True)
        return home

    def here(self) -> dict[int, Path]:
        """The folders of the versions on this host."""
        folder = self.models_dir / self.name
        return {int(path.name): path for path in folder.iterdir() if path.name.isdecimal()} if folder.is_dir() else {}

    def evict(self, version: int) -> bool:
        """Whether its artefact is no longer on this host: it can be fetched again, and no alias names it.

        Raises `StorageError`.
        """
        if self._storage is None or version in self.named():
            return False
        known = self.get(version)
        there = self._storage.names(f"models/{self.name}/{version}")
        if not {self._stored(version, file, known.manifest) for file in _files(known.manifest)} <= set(there):
            return False
        lock, work, home = self._places(version)
        with _locked(lock):
            shutil.rmtree(work, ignore_errors=True)
            home.rename(work)  # at once: whoever looks sees it whole or not at all
            shutil.rmtree(work)
            lock.unlink(missing_ok=True)
        return True

    def named(self) -> set[int]:
        """Every version that an alias names: in service, announced, or a former champion."""
        wanted = sa.select(aliases.c.version).where(aliases.c.name == self.name, aliases.c.alias != "counter")
        with self._engine.connect() as connection:
            return set(connection.scalars(wanted)) - {_NOTHING}

    def share(self) -> tuple[int, ...]:
        """The versions of this host that the storage lacked, and has now: those from before there was one.

        Raises `StorageError`.
        """
        return () if self._storage is None else tuple(v.version for v in self.list() if self._share(self._storage, v))

    def follow(self) -> tuple[int, ...]:
        """The versions whose copies on this host were not as the store says, and are now.

        An erasure or the retention on another host gave them another reference and manifest, or deleted them. Nothing
        is done without a storage: what is here is all there is then. Raises `StorageError`.
        """
        folder = self.models_dir / self.name
        if self._storage is None or not folder.is_dir():
            return ()
        self.clean()  # what was fetched by halves
        known = {version.version: version.manifest for version in self.list()}
        here = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
        return tuple(
            number
            for number in here
            if (self._refresh(self._storage, number, known[number]) if number in known else self._drop(number))
        )

    def _refresh(self, storage: Storage, version: int, manifest: Manifest) -> bool:
        """Whether the copy of a version was amended elsewhere: it is as there now."""
        try:
            home = self.path(version)
        except UnknownVersion:
            return False
        wanted, there = manifest.digests.get(REFERENCE), home / REFERENCE
        if read_manifest(home) == manifest and wanted == (file_digest(there) if there.is_file() else None):
            return False
        if wanted is not None:
            storage.get(self._stored(version, REFERENCE, manifest), home / _REFERENCE_TO_BE, wanted)
        _settle(home, manifest)
        return True

    def _drop(self, version: int) -> bool:
        """Whether the copy of a version that the store does not have is gone; not while one is being registered."""
        self._incoming.mkdir(parents=True, exist_ok=True)
        lock = self._incoming / f"{self.name}-{version}.lock"
        with lock.open("a") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            if self._exists(version):
                return False
            shutil.rmtree(self.models_dir / self.name / str(version), ignore_errors=True)
            lock.unlink(missing_ok=True)
        return True

    def _share(self, storage: Storage, version: Version) -> bool:
        there = storage.names(f"models/{self.name}/{version.version}")
        files = {file: self._stored(version.version, file, version.manifest) for file in _files(version.manifest)}
        lacking = {file: name for file, name in files.items() if name not in there}
        try:
            home = self.path(version.version)
        except UnknownVersion:
            return False
        for file, name in lacking.items():
            wanted = version.manifest.digests.get(file)
            if wanted is None or file_digest(home / file) == wanted:  # else it was amended, on another host
                storage.put(home / file, name)
        now = {self._stored(v.version, file, v.manifest) for v in self.list() for file in _files(v.manifest)}
        for name in lacking.values():
            if name not in now:  # amended or deleted while it was put there
                storage.delete(name)
        return bool(lacking)

    def _stored(self, version: int, file: str, manifest: Manifest) -> str:
        """Its name in the storage. By its digest, as an erasure puts another reference beside the one it replaces."""
        digest = manifest.digests.get(file)
        return f"models/{self.name}/{version}/{file if digest is None else f'{digest[:16]}-{file}'}"

    def amend(self, version: int, manifest: Manifest, token: int, reference: pd.DataFrame | None = None) -> None:
        """Put `manifest`, and `reference` when one is given, in the place of the version's own (an erasure, retention).

        In this order: the reference beside the old one, the store, the manifest on this host, the reference. Cut off
        anywhere, `settle` makes the artefact whole: as the store says. Raises `LeaseLost`, `UnknownVersion`.
        """
        folder, before = self.path(version), self.manifest(version)
        if reference is not None:
            reference.to_parquet(folder / _REFERENCE_TO_BE, index=False)
            digest = file_digest(folder / _REFERENCE_TO_BE)
            manifest = manifest.changed(digests={REFERENCE: digest})
            if self._storage is not None:
                self._storage.put(folder / _REFERENCE_TO_BE, self._stored(version, REFERENCE, manifest))
        change = (
            versions.update()
            .where(
                versions.c.name == self.name,
                versions.c.version == version,
                fence(self._engine, token, self._lease),
            )
            .values(manifest=_text(manifest))
        )
        write_fenced(self._engine, change.returning(versions.c.version), token, self._lease)
        _settle(folder, manifest)
        # By its name: who was stopped for long and is not the holder any more must not take what another put there.
        replaced = self._stored(version, REFERENCE, before)
        if self._storage is not None and replaced != self._stored(version, REFERENCE, manifest):
            self._storage.delete(replaced)

    def delete(self, version: int, token: int) -> bool:
        """Whether the version is gone: its row, and its artefact on this host. One that an alias names stays.

        The row first, in one fenced statement; cut off after it, `clean` deletes the artefact. Raises `LeaseLost`.
        """
        named = sa.exists().where(aliases.c.name == self.name, aliases.c.alias != "counter")
        row = versions.delete().where(
            versions.c.name == self.name,
            versions.c.version == version,
            ~named.where(aliases.c.version == versions.c.version),
            fence(self._engine, token, self._lease),
        )
        lock, _, home = self._places(version)
        with _locked(lock):
            gone = bool(write_fenced(self._engine, row.returning(versions.c.version), token, self._lease))
            if gone and home.is_dir():
                shutil.rmtree(home)
            if gone and self._storage is not None:
                self._storage.delete(f"models/{self.name}/{version}")
            lock.unlink(missing_ok=True)
        return gone

    def settle(self) -> None:
        """Bring artefacts of this host to what the store says of them, where an `amend` was cut off."""
        for version in self.list():
            with suppress(UnknownVersion):  # it is on another host
                _settle(self.path(version.version), version.manifest)

    def settle_shared(self, token: int) -> None:
        """Delete what the storage has of a version and its manifest does not name: it holds rows that were erased.

        Raises `StorageError` and `LeaseLost`.
        """
        for version in self.list() if self._storage is not None else ():
            assert self._storage is not None
            there = self._storage.names(f"models/{self.name}/{version.version}")
            manifest = self.manifest(version.version)  # asked behind the names: a newer one is in neither
            named = {self._stored(version.version, file, manifest) for file in _files(manifest)}
            for name in there:
                if name not in named:
                    self.check_held(token)
                    self._storage.delete(name)

    def check_held(self, token: int) -> None:
        """Return while the lease is held with this token. Raises `LeaseLost`."""
        check_fence(self._engine, token, self._lease)

    def clean(self) -> tuple[str, ...]:
        """What registrations of dead processes had left behind, and is deleted now; those under way are left alone.

        `training.cycle.take_over` calls it: whenever the lease was acquired, and after a step broke off.
        """
        gone: list[str] = []
        for lock in sorted(self._incoming.glob(f"{self.name}-*.lock")):
            number = lock.stem.rpartition("-")[2]
            if lock.stem != f"{self.name}-{number}" or not number.isdecimal():
                continue
            with lock.open("a") as held:
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:  # its process is at work
                    continue
                work, home = lock.with_suffix(""), self.models_dir / self.name / number
                for left in (work,) if self._exists(int(number)) else (work, home):
                    if left.is_dir():
                        shutil.rmtree(left)
                        gone.append(str(left))
                lock.unlink(missing_ok=True)
        return tuple(gone)

    def _next_version(self) -> int:
        """A number that no version had or will have; one statement, so two replicas never get the same."""
        floor = self._newest_on_disk()  # above the counter when the store was made anew beside old artefacts
        row = upsert(self._engine, aliases).values(
            name=self.name, alias="counter", version=floor + 1, changed_at=db_now(self._engine)
        )
        grown = sa.case((aliases.c.version > floor, aliases.c.version), else_=floor) + 1
        take = row.on_conflict_do_update(index_elements=[aliases.c.name, aliases.c.alias], set_={"version": grown})
        with self._engine.begin() as connection:
            return int(connection.execute(take.returning(aliases.c.version)).scalar_one())

    def _newest_on_disk(self) -> int:
        return max(self.here(), default=_NOTHING)

    @contextmanager
    def _claimed(self, version: int) -> Iterator[Path]:
        """A working folder that `clean` leaves alone while this process lives, gone when the block is left.

        When the block fails and the version's row was surely not written, the folder in the model store goes as well;
        otherwise (the connection broke, the process was interrupted) everything is left to `clean`, which asks.
        """
        lock, work, home = self._places(version)
        with _locked(lock):
            try:
                yield work
            except (OSError, ArtefactError, LeaseLost):
                shutil.rmtree(home, ignore_errors=True)
                shutil.rmtree(work, ignore_errors=True)
                lock.unlink(missing_ok=True)
                raise
            shutil.rmtree(work, ignore_errors=True)
            lock.unlink(missing_ok=True)

    def _places(self, version: int) -> tuple[Path, Path, Path]:
        """(lock file, working folder, where the artefact belongs) of a version."""
        self._incoming.mkdir(parents=True, exist_ok=True)
        work = self._incoming / f"{self.name}-{version}"
        return self._incoming / f"{work.name}.lock", work, self.models_dir / self.name / str(version)

    def _build(self, folder: Path, version: int, manifest: Manifest, origin: str, work: Path) -> Path:
        """The BentoML model `<name>:<version>` inside `work`, with the files that the manifest lists."""
        os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")  # must be set before the import: it phones home
        from bentoml._internal.models import ModelStore  # no public name takes a path
        from bentoml.models import create

        store = ModelStore(work)
        labels = {"origin": origin, "task": manifest.task}
        with create(f"{self.name}:{version}", labels=labels, _model_store=store) as model:
            for file in (*manifest.digests, MANIFEST):
                shutil.copyfile(folder / file, model.path_of(file))
        return work / self.name / str(version)

    def _insert(self, version: int, manifest: Manifest, origin: str, now: float, token: int | None) -> None:
        values = {
            "name": self.name,
            "version": version,
            "created_at": now,
            "origin": origin,
            "manifest": _text(manifest),
        }
        if token is None:
            with self._engine.begin() as connection:
                connection.execute(versions.insert().values(values))
            return
        insert_fenced(self._engine, versions, values, token, self._lease)

    def _exists(self, version: int) -> bool:
        wanted = sa.select(sa.literal(1)).where(versions.c.name == self.name, versions.c.version == version)
        with self._engine.connect() as connection:
            return connection.scalar(wanted) is not None

    # -- aliases -------------------------------------------------------------------------------------------------

    def live(self) -> LiveSet:
        """What the aliases name now, read in one statement."""
        wanted = sa.select(aliases.c.alias, aliases.c.version).where(aliases.c.name == self.name)
        with self._engine.connect() as connection:
            named = {row.alias: row.version for row in connection.execute(wanted) if row.version}
        return LiveSet(**{alias: named[alias] for alias in named.keys() & _LIVE})

    def champion(self) -> int:
        """The version in service. Raises `NoChampion`."""
        champion = self.live().champion
        if champion is None:
            raise NoChampion(self.name)
        return champion

    def served_since(self) -> float | None:
        """When the version in service took over, seconds since 1970 UTC by the database; None before the first."""
        wanted = sa.select(aliases.c.changed_at).where(
            aliases.c.name == self.name, aliases.c.alias == "champion", aliases.c.version != _NOTHING
        )
        with self._engine.connect() as connection:
            found = connection.scalar(wanted)
        return None if found is None else float(found)

    def announce(self, version: int, token: int) -> None:
        """Ask every worker to load `version`. Raises `UnknownVersion` and `LeaseLost`."""
        there = sa.exists().where(versions.c.name == self.name, versions.c.version == version)
        if not self._set({"announced": sa.literal(version)}, token, there):  # retention may delete one at any moment
            self.get(version)

    def withdraw(self, token: int) -> None:
        """Announce nothing any more. Raises `LeaseLost`."""
        self._set({"announced": sa.literal(_NOTHING)}, token)

    def flip(self, version: int, token: int) -> LiveSet:
        """The live set in which the announced `version` is champion and the champion is `previous`; one statement.

        Raises `NotAnnounced` when another version is announced, or none, and `LeaseLost`.
        """
        was = ("champion", *_FORMER)
        moved = self._set(
            {
                "champion": self._named("announced"),
                **{older: self._named(newer) for newer, older in pairwise(was)},
                "announced": sa.literal(_NOTHING),
            },
            token,
            self._named("announced") == version,
        )
        if not moved:
            raise NotAnnounced(self.name, version, self.live().announced)
        return self.live()

    def rollback(self, token: int) -> LiveSet:
        """The live set in which the former champion is champion again; one statement.

        `previous` is then the champion before that one, so repeated rollbacks go further back (`DEPTH` at most) and
        never forward to the version that was rolled back; `promote` it by its number for that. Raises `NoPrevious`
        and `LeaseLost`.
        """
        was = ("champion", *_FORMER)
        moved = self._set(
            {
                **{newer: self._named(older) for newer, older in pairwise(was)},
                _FORMER[-1]: sa.literal(_NOTHING),
                "announced": sa.literal(_NOTHING),
            },
            token,
            self._named("previous") > _NOTHING,
        )
        if not moved:
            raise NoPrevious(self.name, self.live().champion)
        return self.live()

    def _named(self, alias: str) -> sa.ColumnElement[int]:
        """SQL: the version that `alias` names before the statement, `_NOTHING` when it names none."""
        before = aliases.alias()
        version = sa.select(before.c.version).where(before.c.name == self.name, before.c.alias == alias)
        return sa.func.coalesce(version.scalar_subquery(), _NOTHING)

    def _set(
        self, moves: dict[str, sa.ColumnElement[int]], token: int, condition: sa.ColumnElement[bool] | None = None
    ) -> bool:
        """True when every alias in `moves` was set, all in one fenced statement; False when `condition` was not met.

        The right sides see the aliases as they were before. The fence stands once, so it is asked once.
        """
        rows = sa.union_all(
            *(
                sa.select(sa.literal(alias, sa.Text).label("alias"), version.label("version"))
                for alias, version in moves.items()
            )
        ).subquery("moves")
        source = sa.select(
            sa.literal(self.name, sa.Text), rows.c.alias, rows.c.version, sa.literal(1.0), db_now(self._engine)
        ).where(fence(self._engine, token, self._lease), sa.true() if condition is None else condition)
        insert = upsert(self._engine, aliases).from_select(list(aliases.c), source)
        write = insert.on_conflict_do_update(
            index_elements=[aliases.c.name, aliases.c.alias],
            set_={"version": insert.excluded.version, "changed_at": insert.excluded.changed_at},
        )
        return bool(write_fenced(self._engine, write.returning(aliases.c.alias), token, self._lease))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """`path` exists and is locked by this process; a death of any kind releases it."""
    while True:
        with path.open("a") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if path.exists() and path.stat().st_ino == os.fstat(held.fileno()).st_ino:
                yield
                return
            # `clean` deleted it between `open` and `flock`: take a new one


def _version(row: Any) -> Version:
    manifest = manifest_of(msgspec.json.decode(row.manifest), f"the manifest of version {row.version} in the store")
    return Version(row.version, row.created_at, row.origin, manifest)


def _text(manifest: Manifest) -> str:
    return msgspec.json.encode(manifest.document).decode()


def _files(manifest: Manifest) -> tuple[str, ...]:
    """All files of a version but its manifest, which the store has."""
    return (*manifest.digests, *BENTOML_FILES)


def _formatted(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest.document), indent=2)


def _sync(folder: Path) -> None:
    """The files of `folder` are on the disk, not only in the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _settle(folder: Path, manifest: Manifest) -> None:
    """Put the manifest, and the reference that it names, in their places; a reference that it does not name is deleted.

    A manifest whose reference is not to be had stays out, so that the artefact is whole in any case.
    """
    to_be, wanted = folder / _REFERENCE_TO_BE, manifest.digests.get(REFERENCE)
    named = to_be.exists() and file_digest(to_be) == wanted
    if read_manifest(folder) != manifest:
        there = folder / REFERENCE
        if named or wanted == (file_digest(there) if there.is_file() else None):
            write_atomically(folder / MANIFEST, _formatted(manifest))
    if named:
        to_be.replace(folder / REFERENCE)
    else:
        to_be.unlink(missing_ok=True)
