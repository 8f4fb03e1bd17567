from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import training.registry
from monitoring.store import aliases, open_store, versions
from training.artefact import ArtefactError, verify, write_manifest
from training.lease import CONTROLLER, Lease, LeaseLost
from training.registry import DEPTH, LiveSet, NoChampion, NoPrevious, NotAnnounced, Registry, UnknownVersion

TOKEN = 1

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # importing bentoml warns


@pytest.fixture
def engine(store_url: str) -> Iterator[sa.Engine]:
    engine = open_store(store_url)
    assert Lease(engine, CONTROLLER, "test", 60).acquire()
    yield engine
    engine.dispose()


@pytest.fixture
def registry(engine: sa.Engine, tmp_path: Path) -> Registry:
    return Registry(engine, tmp_path / "bentoml" / "models", "credit")


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    folder = tmp_path / "artefact"
    folder.mkdir()
    (folder / "model.skops").write_bytes(b"weights")
    (folder / "schema.json").write_bytes(b"{}")
    write_manifest(folder, {"task": "binary", "seed": 7})
    (folder / "result.json").write_bytes(b"{}")  # what the job says of itself does not belong to the version
    return folder


def in_service(registry: Registry, artefact: Path, count: int) -> None:
    """Versions 1 to `count`, each champion after the other."""
    for _ in range(count):
        version = registry.register(artefact, origin="retrain", now=1.0, token=TOKEN)
        registry.announce(version, TOKEN)
        registry.flip(version, TOKEN)


def on_disk(registry: Registry) -> list[str]:
    """Every folder and file below the BentoML home, except what is inside a version."""
    root = registry.models_dir.parent
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if not p.relative_to(root).parts[3:])


def test_a_version_is_a_bentoml_model_that_its_own_command_knows(
    registry: Registry, artefact: Path, tmp_path: Path
) -> None:
    if registry._engine.dialect.name != "sqlite":
        pytest.skip("the model store is a folder with either database")
    assert registry.register(artefact, origin="bootstrap", now=5.0) == 1
    assert registry.register(artefact, origin="retrain", now=6.0) == 2

    home = {**os.environ, "BENTOML_HOME": str(registry.models_dir.parent), "BENTOML_DO_NOT_TRACK": "True"}
    bentoml = [sys.executable, "-m", "bentoml", "models"]
    listed = subprocess.run([*bentoml, "list", "-o", "json"], env=home, capture_output=True, text=True, check=True)
    exported = subprocess.run(
        [*bentoml, "export", "credit:latest", str(tmp_path / "out.bentomodel")],
        env=home,
        capture_output=True,
        text=True,
        check=True,
    )

    assert sorted(model["tag"] for model in json.loads(listed.stdout)) == ["credit:1", "credit:2"]
    assert "credit:2" in exported.stdout


def test_a_registered_version_has_its_files_its_row_and_its_manifest(registry: Registry, artefact: Path) -> None:
    version = registry.register(artefact, origin="bootstrap", now=5.0, token=TOKEN)

    path = registry.path(version)
    assert {file.name for file in path.iterdir()} == {"model.skops", "schema.json", "manifest.json", "model.yaml"}
    assert verify(path) == registry.manifest(version)
    (row,) = registry.list()
    assert (row.version, row.created_at, row.origin, row.manifest.seed) == (1, 5.0, "bootstrap", 7)
    assert registry.get(version) == row


def test_versions_only_grow_also_after_deletions(engine: sa.Engine, registry: Registry, artefact: Path) -> None:
    for _ in range(3):
        registry.register(artefact, origin="retrain", now=1.0)
    shutil.rmtree(registry.path(3))
    with engine.begin() as connection:
        connection.execute(versions.delete().where(versions.c.version == 3))

    assert registry.register(artefact, origin="retrain", now=2.0) == 4


def test_a_new_database_beside_old_artefacts_starts_above_them(
    engine: sa.Engine, registry: Registry, artefact: Path
) -> None:
    for _ in range(3):
        registry.register(artefact, origin="retrain", now=1.0)
    with engine.begin() as connection:
        connection.execute(versions.delete())
        connection.execute(aliases.delete())

    assert registry.register(artefact, origin="retrain", now=2.0) == 4


def test_replicas_that_register_at_once_get_different_numbers(
    engine: sa.Engine, registry: Registry, artefact: Path
) -> None:
    replicas = [Registry(engine, registry.models_dir, "credit") for _ in range(4)]

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda one: one.register(artefact, origin="retrain", now=1.0, token=TOKEN), replicas))

    assert sorted(got) == [1, 2, 3, 4]
    assert [known.version for known in registry.list()] == [4, 3, 2, 1]


class Killed(BaseException):
    """The process ends here: nothing that catches an exception tidies up."""


@pytest.mark.parametrize(
    ("step", "after", "exists"),
    [
        ("Registry._build", False, False),
        ("Registry._build", True, False),
        ("_sync", True, False),
        ("_sync_folder", True, False),
        ("Registry._insert", False, False),
        ("Registry._insert", True, True),
        ("write_atomically", False, True),
    ],
)
def test_wherever_a_registration_is_killed_there_is_no_half_version(
    registry: Registry, artefact: Path, monkeypatch: pytest.MonkeyPatch, step: str, after: bool, exists: bool
) -> None:
    registry.register(artefact, origin="bootstrap", now=1.0, token=TOKEN)
    whole = on_disk(registry)
    owner, _, name = f"training.registry.{step}".rpartition(".")
    holder: Any = training.registry.Registry if owner.endswith("Registry") else training.registry
    real = getattr(holder, name)

    def killed(*args: Any, **kwargs: Any) -> None:
        if after:
            real(*args, **kwargs)
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(holder, name, killed)
        registry.register(artefact, origin="retrain", now=2.0, token=TOKEN)

    assert [known.version for known in registry.list()] == ([2, 1] if exists else [1])
    registry.clean()
    if exists:
        assert verify(registry.path(2)) == registry.manifest(2)
        assert on_disk(registry) == sorted([*whole, "models/credit/2"])
    else:
        assert on_disk(registry) == whole
    assert registry.register(artefact, origin="retrain", now=3.0, token=TOKEN) == 3
    assert registry.clean() == ()


def test_cleaning_leaves_a_registration_under_way_alone(
    registry: Registry, artefact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, cleaned = training.registry._sync, []

    def meanwhile(folder: Path) -> None:
        cleaned.append(registry.clean())
        sync(folder)

    monkeypatch.setattr(training.registry, "_sync", meanwhile)

    version = registry.register(artefact, origin="retrain", now=1.0, token=TOKEN)

    assert cleaned == [()]
    verify(registry.path(version))


def test_a_stale_holder_registers_nothing(registry: Registry, artefact: Path) -> None:
    with pytest.raises(LeaseLost):
        registry.register(artefact, origin="retrain", now=1.0, token=0)

    assert registry.list() == []
    assert on_disk(registry) == ["incoming", "models", "models/credit"]


def test_a_damaged_artefact_is_refused(registry: Registry, artefact: Path) -> None:
    (artefact / "model.skops").write_bytes(b"changed")

    with pytest.raises(ArtefactError, match=r"model\.skops was changed"):
        registry.register(artefact, origin="push", now=1.0)
    assert registry.list() == []


def test_a_name_that_bentoml_would_not_take_is_refused(engine: sa.Engine, tmp_path: Path) -> None:
    for name in ("Credit", "a/b", "", "-x", "x" * 64):
        with pytest.raises(ValueError, match="cannot be a BentoML tag"):
            Registry(engine, tmp_path, name)


def test_unknown_versions_name_the_known_ones(registry: Registry, artefact: Path) -> None:
    with pytest.raises(UnknownVersion, match="and no other: run `evergreen train`"):
        registry.get(1)
    registry.register(artefact, origin="push", now=1.0)
    registry.register(artefact, origin="push", now=1.0)

    with pytest.raises(UnknownVersion, match="no version 7; there are 2, 1"):
        registry.announce(7, TOKEN)
    with pytest.raises(
        UnknownVersion, match=r"is not at .*credit/7: where replicas run on several hosts, set `store.artefacts`"
    ):
        registry.path(7)


def test_before_the_first_promotion_nothing_is_live(registry: Registry) -> None:
    assert registry.live() == LiveSet() and registry.served_since() is None
    with pytest.raises(NoChampion, match="run `evergreen train`"):
        registry.champion()
    with pytest.raises(NoPrevious, match="no champion before version None"):
        registry.rollback(TOKEN)


def test_an_announced_version_is_not_in_service_until_it_is_flipped(registry: Registry, artefact: Path) -> None:
    in_service(registry, artefact, 1)
    registry.register(artefact, origin="retrain", now=1.0)

    since = registry.served_since()
    assert since is not None

    registry.announce(2, TOKEN)
    assert registry.live() == LiveSet(champion=1, announced=2)
    assert registry.served_since() == since
    assert registry.flip(2, TOKEN) == LiveSet(champion=2, previous=1)
    assert registry.champion() == 2
    assert (registry.served_since() or 0.0) > since


def test_a_withdrawn_version_cannot_be_flipped(registry: Registry, artefact: Path) -> None:
    in_service(registry, artefact, 1)
    registry.register(artefact, origin="retrain", now=1.0)
    registry.announce(2, TOKEN)
    registry.withdraw(TOKEN)

    with pytest.raises(NotAnnounced, match=r"version 2 .* is not announced \(announced is None\), the champion stays"):
        registry.flip(2, TOKEN)
    assert registry.live() == LiveSet(champion=1)


def test_repeated_rollbacks_go_further_back_and_never_forward(registry: Registry, artefact: Path) -> None:
    in_service(registry, artefact, 3)

    assert registry.rollback(TOKEN) == LiveSet(champion=2, previous=1)
    assert registry.rollback(TOKEN) == LiveSet(champion=1)
    with pytest.raises(NoPrevious, match="no champion before version 1: promote another version"):
        registry.rollback(TOKEN)
    assert registry.champion() == 1


def test_after_a_rollback_a_new_champion_follows_the_one_rolled_back_to(registry: Registry, artefact: Path) -> None:
    in_service(registry, artefact, 2)
    registry.rollback(TOKEN)

    in_service(registry, artefact, 1)

    assert registry.live() == LiveSet(champion=3, previous=1)
    assert registry.rollback(TOKEN) == LiveSet(champion=1)


def test_only_so_many_former_champions_are_remembered(registry: Registry, artefact: Path) -> None:
    registry.register(artefact, origin="retrain", now=1.0)
    registry.register(artefact, origin="retrain", now=1.0)
    for turn in range(DEPTH + 4):
        registry.announce(turn % 2 + 1, TOKEN)
        registry.flip(turn % 2 + 1, TOKEN)

    for _ in range(DEPTH):
        registry.rollback(TOKEN)
    with pytest.raises(NoPrevious):
        registry.rollback(TOKEN)


def test_a_stale_holder_moves_no_alias(registry: Registry, artefact: Path) -> None:
    in_service(registry, artefact, 2)
    registry.register(artefact, origin="retrain", now=1.0)
    registry.announce(3, TOKEN)
    before = registry.live()

    for move in (
        lambda: registry.flip(3, 0),
        lambda: registry.announce(1, 0),
        lambda: registry.withdraw(0),
        lambda: registry.rollback(0),
    ):
        with pytest.raises(LeaseLost):
            move()
    assert registry.live() == before


def test_a_reader_never_sees_half_a_flip(engine: sa.Engine, registry: Registry, artefact: Path) -> None:
    in_service(registry, artefact, 2)
    seen: set[tuple[int | None, int | None]] = set()
    over = threading.Event()

    def watch() -> None:
        reader = Registry(engine, registry.models_dir, "credit")
        while not over.is_set():
            live = reader.live()
            seen.add((live.champion, live.previous))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for turn in range(12):
        registry.announce(turn % 2 + 1, TOKEN)
        registry.flip(turn % 2 + 1, TOKEN)
    over.set()
    watcher.join()

    assert seen <= {(1, 2), (2, 1)}
