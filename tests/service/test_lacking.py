"""A replica whose storage does not have, or does not give, the version in service goes on with the one before."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitoring.store import open_store
from service.configuration import load
from service.control.controller import Controller
from service.handover import Live, read_live, read_status
from service.process import Tree
from tests.real_server import wait_until
from tests.wired import artefact
from training.lease import CONTROLLER, Lease
from training.registry import Registry
from training.storage import Storage

__all__ = ["artefact"]  # a fixture

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # importing bentoml warns
TOKEN = 1


class Host:
    """The mirror thread of one replica, and the registry of another that shares a folder with it."""

    def __init__(self, folder: Path, sqlite_url: str) -> None:
        self.shared = folder / "shared"
        environ = {"HOME": str(folder / "home"), "STORE__URL": sqlite_url, "STORE__ARTEFACTS": str(self.shared)}
        self.settings = load(environ={f"EVERGREEN_{name}": value for name, value in environ.items()})
        self.engine = open_store(sqlite_url)
        assert Lease(self.engine, CONTROLLER, "test", 600).acquire()
        models = folder / "other" / "models"
        self.other = Registry(self.engine, models, self.settings.model.name, storage=Storage(str(self.shared)))
        self.run_dir = folder / "run"
        self.begin()

    def begin(self) -> None:
        self.controller = Controller(self.settings, Tree(self.run_dir, "serve"))
        self._mirror = threading.Thread(target=self.controller._mirror)
        self._mirror.start()

    def end(self) -> None:
        self.controller._stopping.set()
        self._mirror.join()
        self.controller.metrics.close()

    def promoted(self, artefact: Path) -> int:
        version = self.other.register(artefact, origin="push", now=1.0, token=TOKEN)
        self.other.announce(version, TOKEN)
        self.other.flip(version, TOKEN)
        return version

    def names(self, version: int, problem: str) -> Live:
        def there() -> Live | None:
            live = read_live(self.settings.live_file)
            found = live is not None and live.champion is not None and live.champion.version == version
            return live if found and live is not None and problem in live.problem else None

        found: Live = wait_until(f"version {version} with {problem!r}", there)
        return found


@pytest.fixture
def host(tmp_path: Path, sqlite_url: str) -> Iterator[Host]:
    made = Host(tmp_path, sqlite_url)
    yield made
    made.end()
    made.engine.dispose()


def test_while_a_version_cannot_be_fetched_the_one_before_is_named_also_after_a_restart(
    host: Host, artefact: Path
) -> None:
    assert host.promoted(artefact) == 1
    assert host.names(1, "").problem == ""

    away = host.shared.with_name("away")
    second = host.other.register(artefact, origin="push", now=1.0, token=TOKEN)
    (host.shared / "models" / "evergreen" / str(second)).rename(away)
    host.other.announce(second, TOKEN)
    host.other.flip(second, TOKEN)

    why = host.names(1, "could not be read").problem
    assert f"/models/evergreen/{second}/" in why
    assert why.endswith("version 1 answers until then")
    wait_until("the status", lambda: (said := read_status(host.run_dir)) and said.lacks == why)

    host.end()
    host.begin()
    host.names(1, "version 1 answers until then")

    away.rename(host.shared / "models" / "evergreen" / str(second))
    assert host.names(second, "").problem == ""
    wait_until("the status", lambda: (said := read_status(host.run_dir)) and said.lacks == "")
