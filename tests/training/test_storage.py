"""Two hosts with homes of their own, one store, one storage: what one makes the other has, whole or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from monitoring.files import UNFINISHED
from monitoring.store import open_store, versions
from tests.places import Place
from training.artefact import REFERENCE, read_manifest, verify, write_manifest
from training.cache import shrink
from training.cycle import bootstrap, take_over
from training.lease import CONTROLLER, Lease
from training.registry import Registry, UnknownVersion
from training.snapshots import Snapshots
from training.storage import Storage, StorageError

TOKEN = 1

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # importing bentoml warns


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = open_store(f"sqlite:///{tmp_path}/evergreen.db")
    assert Lease(engine, CONTROLLER, "test", 600).acquire()
    yield engine
    engine.dispose()


@pytest.fixture(params=["folder", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A mounted folder, and an object store as fsspec sees one."""
    return Storage(str(tmp_path / "shared") if request.param == "folder" else f"memory://{tmp_path.name}")


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    folder = tmp_path / "artefact"
    folder.mkdir()
    (folder / "model.skops").write_bytes(b"weights")
    (folder / "schema.json").write_bytes(b"{}")
    pd.DataFrame({"income": [1.0, 2.0]}).to_parquet(folder / REFERENCE)
    write_manifest(folder, {"task": "binary", "seed": 7})
    return folder


def host(engine: sa.Engine, tmp_path: Path, name: str, storage: Storage | None) -> Registry:
    return Registry(engine, tmp_path / name / "bentoml" / "models", "credit", storage=storage)


def registered(registry: Registry, artefact: Path) -> int:
    return registry.register(artefact, origin="retrain", now=1.0, token=TOKEN)


def rows_of(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(sa.select(sa.func.count()).select_from(versions)) or 0)


def test_a_version_of_one_host_is_fetched_by_another(
    engine: sa.Engine, tmp_path: Path, artefact: Path, storage: Storage
) -> None:
    one, other = (host(engine, tmp_path, name, storage) for name in ("one", "other"))
    version = registered(one, artefact)
    with pytest.raises(UnknownVersion, match=r"store\.artefacts"):
        other.path(version)

    fetched = other.fetch(version)

    assert fetched == other.path(version) and verify(fetched) == one.manifest(version)
    assert sorted(path.name for path in fetched.iterdir()) == sorted(path.name for path in one.path(version).iterdir())
    assert other.clean() == () and other.path(version) == fetched


def test_what_is_not_what_the_store_names_never_becomes_a_version_here(
    engine: sa.Engine, tmp_path: Path, artefact: Path, storage: Storage
) -> None:
    version = registered(host(engine, tmp_path, "one", storage), artefact)
    other = host(engine, tmp_path, "other", storage)
    (swapped,) = (name for name in storage.names(f"models/credit/{version}") if name.endswith("model.skops"))
    (tmp_path / "another").write_bytes(b"other weights")
    storage.put(tmp_path / "another", swapped)

    with pytest.raises(StorageError, match="is not the file that the store names"):
        other.fetch(version)
    with pytest.raises(UnknownVersion):
        other.path(version)

    storage.put(artefact / "model.skops", swapped)
    assert verify(other.fetch(version)) == other.manifest(version)


def test_without_its_storage_no_version_is_registered_and_what_is_here_still_serves(
    engine: sa.Engine, tmp_path: Path, artefact: Path
) -> None:
    (tmp_path / "shared").mkdir()
    one = host(engine, tmp_path, "one", Storage(str(tmp_path / "shared")))
    here = one.path(registered(one, artefact))
    (tmp_path / "shared").rename(tmp_path / "away")
    (tmp_path / "shared").write_bytes(b"no folder")

    with pytest.raises(StorageError, match="could not be written"):
        registered(one, artefact)

    assert rows_of(engine) == 1 and one.fetch(1) == here
    assert [path.name for path in here.parent.iterdir() if path.name.isdecimal()] == ["1"], "no half version"
    with pytest.raises(StorageError, match="could not be read"):
        host(engine, tmp_path, "other", Storage(str(tmp_path / "shared"))).fetch(1)


def test_who_takes_the_lease_asks_nothing_of_the_storage(tmp_path: Path) -> None:
    open_store(f"sqlite:///{tmp_path}/evergreen.db").dispose()
    place = Place(tmp_path)
    assert Lease(place.engine, CONTROLLER, "test", 600).acquire()
    storage = Storage(str(tmp_path / "shared"))
    loop = replace(place.loop, storage=storage, registry=host(place.engine, tmp_path, "one", storage))
    assert bootstrap(loop) is not None
    unfinished = loop.snapshots_dir / f".x{UNFINISHED}"
    unfinished.touch()
    (tmp_path / "shared").rename(tmp_path / "away")
    (tmp_path / "shared").write_bytes(b"no folder")

    take_over(loop)

    assert not unfinished.exists(), "what lies on this host is cleared up"
    with pytest.raises(StorageError):
        loop.registry.settle_shared(TOKEN)
    place.engine.dispose()


def test_a_fetch_that_broke_off_goes_on_with_what_it_lacks(
    engine: sa.Engine, tmp_path: Path, artefact: Path, storage: Storage
) -> None:
    one, other = (host(engine, tmp_path, name, storage) for name in ("one", "other"))
    version = registered(one, artefact)
    names = {name.rpartition("-")[2]: name for name in storage.names(f"models/credit/{version}")}
    storage.delete(names["schema.json"])
    with pytest.raises(StorageError, match=r"schema\.json could not be read"):
        other.fetch(version)
    with pytest.raises(UnknownVersion):
        other.path(version)

    storage.put(artefact / "schema.json", names["schema.json"])
    storage.delete(names["model.skops"])  # fetched before it broke off: it is not asked for again
    assert verify(other.fetch(version)) == one.manifest(version)
    assert not list((tmp_path / "other" / "bentoml" / "incoming").iterdir())


def test_a_host_keeps_so_much_and_what_went_is_fetched_again(
    engine: sa.Engine, tmp_path: Path, artefact: Path, storage: Storage
) -> None:
    one, other = (host(engine, tmp_path, name, storage) for name in ("one", "other"))
    snapshots = Snapshots(tmp_path / "other" / "snapshots", storage)
    versions = [registered(one, artefact) for _ in range(3)]
    for version in versions:
        other.fetch(version)
        time.sleep(0.02)  # their age is told by the file system's clock
    one.announce(versions[0], TOKEN)
    taken = snapshots.take(pd.DataFrame({"a": [1.0]}))

    assert shrink(other, snapshots, 10**9, at_work=False) == ((), 0)
    gone = shrink(other, snapshots, 0, at_work=True)
    assert gone.names == ("version 2", "version 3") and gone.freed > 0
    assert set(other.here()) == {1}, "it is announced"
    assert snapshots.here() == {taken.digest: taken.path}, "a training may read it"

    assert shrink(other, snapshots, 0, at_work=False).names == (f"snapshot {taken.digest[:12]}",)
    assert verify(other.fetch(versions[1])) == other.manifest(versions[1])
    assert snapshots.path(taken.digest).is_file()


def test_what_only_this_host_has_never_leaves_it(
    engine: sa.Engine, tmp_path: Path, artefact: Path, storage: Storage
) -> None:
    version = registered(host(engine, tmp_path, "one", None), artefact)
    one = host(engine, tmp_path, "one", storage)
    snapshots = Snapshots(tmp_path / "snapshots")
    snapshots.take(pd.DataFrame({"a": [1.0]}))

    assert shrink(one, Snapshots(tmp_path / "snapshots", storage), 0, at_work=False) == ((), 0)
    assert set(one.here()) == {version} and len(snapshots.here()) == 1


def test_an_erased_reference_is_gone_from_the_storage_too(
    engine: sa.Engine, tmp_path: Path, artefact: Path, storage: Storage
) -> None:
    one, other = (host(engine, tmp_path, name, storage) for name in ("one", "other"))
    version = registered(one, artefact)
    before = set(storage.names(f"models/credit/{version}"))

    one.amend(version, one.manifest(version).changed(reproducible=False), TOKEN, pd.DataFrame({"income": [1.0]}))

    after = set(storage.names(f"models/credit/{version}"))
    assert len(before - after) == len(after - before) == 1
    assert len(pd.read_parquet(other.fetch(version) / REFERENCE)) == 1
    assert read_manifest(other.path(version)).reproducible is False

    storage.put(artefact / REFERENCE, min(before - after))  # as when the amending host had died before it deleted it
    one.settle_shared(TOKEN)
    assert set(storage.names(f"models/credit/{version}")) == after

    assert one.delete(version, TOKEN)
    assert storage.names(f"models/credit/{version}") == ()


def test_what_a_host_made_before_anything_was_shared_is_put_there_once(
    engine: sa.Engine, tmp_path: Path, artefact: Path, storage: Storage
) -> None:
    version = registered(host(engine, tmp_path, "one", None), artefact)
    one, other = (host(engine, tmp_path, name, storage) for name in ("one", "other"))

    assert other.share() == (), "it has none"
    assert (one.share(), one.share()) == ((version,), ())
    assert verify(other.fetch(version)) == one.manifest(version)


def test_snapshots_are_shared_replaced_forgotten_and_expire(tmp_path: Path, storage: Storage) -> None:
    frame = pd.DataFrame({"a": np.arange(5.0)})
    one, other = (Snapshots(tmp_path / name, storage) for name in ("one", "other"))
    taken = one.take(frame)
    assert one.digests() == other.digests() == (taken.digest,)
    assert pd.read_parquet(other.path(taken.digest)).equals(frame)
    assert not other.path("absent").exists()

    year_ago = time.time() - 365 * 86_400
    os.utime(taken.path, (year_ago, year_ago))
    left = one.replace(taken.digest, frame.head(3))
    one.forget(taken.digest)
    assert one.digests() == (left.digest,)
    assert not Snapshots(tmp_path / "third", storage).path(taken.digest).exists()
    assert left.path.stat().st_mtime == pytest.approx(year_ago), "it is as old as the one it took the place of"

    assert one.expire(time.time() + 60, keep=(left.digest,)) == 0
    assert one.expire(time.time() + 60, keep=()) == 1
    assert Snapshots(tmp_path / "fourth", storage).digests() == ()


def test_a_kind_of_storage_that_is_not_installed_is_told_with_what_to_do() -> None:
    with pytest.raises(StorageError, match=r"store\.artefacts = 'gs://bucket' cannot be used.*install"):
        Storage("gs://bucket")
    with pytest.raises(StorageError, match="nothing-such"):
        Storage("nothing-such://bucket")
