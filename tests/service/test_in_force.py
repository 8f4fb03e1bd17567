"""From the store to the workers: the controller leaves the adaptation in force as a file that the live file names."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from monitoring.store import open_store
from service import tokens
from service.configuration import load
from service.control.controller import Controller
from service.control.in_force import KEPT, InForceFiles
from service.handover import read_live
from service.process import Tree
from service.serving.front import Front
from service.serving.worker import Worker
from service.settings import Settings
from tests.adapted import make_adaptation
from tests.artefacts import make_artefact
from tests.fronts import beyond, run
from tests.real_server import wait_until
from tests.wired import artefact, records
from training.adaptation import Adaptation
from training.adaptations import Adaptations
from training.lease import CONTROLLER, Lease
from training.registry import Registry

__all__ = ["artefact"]  # a fixture

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # importing bentoml warns
TOKEN = 1


@pytest.fixture(scope="module")
def adaptation(artefact: Path) -> Adaptation:
    return make_adaptation(artefact)


class House:
    """One server without its processes: store, registry with a champion, mirror thread, one worker."""

    def __init__(self, home: Path, artefact: Path, adaptation: Adaptation, sqlite_url: str) -> None:
        self.settings: Settings = load(
            environ={"EVERGREEN_HOME": str(home), "EVERGREEN_STORE__URL": sqlite_url, "EVERGREEN_SERVE__WORKERS": "1"}
        )
        self.engine = open_store(self.settings.store_url)
        assert Lease(self.engine, CONTROLLER, "test", 600).acquire()
        self.adaptation = adaptation
        self.adaptations = Adaptations(self.engine)
        self.registry = Registry(self.engine, self.settings.models_dir, self.settings.model.name)
        self.controller = Controller(self.settings, Tree(home / "run", "serve"))
        self.promote(self.registry.register(artefact, origin="push", now=1.0, token=TOKEN))
        self._mirror = threading.Thread(target=self.controller._mirror)
        self._mirror.start()
        wait_until("the live file", self.settings.live_file.exists)
        self.worker = Worker(self.settings, home / "run", "api-1")
        self.worker.start()

    def close(self) -> None:
        self.worker.close()
        self.controller._stopping.set()
        self._mirror.join()
        self.controller.metrics.close()
        self.engine.dispose()

    def promote(self, version: int) -> None:
        self.registry.announce(version, TOKEN)
        self.registry.flip(version, TOKEN)

    def make(self, version: int = 1, **changes: Any) -> int:
        found = msgspec.structs.replace(self.adaptation, **changes)
        weights = {"weights": dict(zip([e.name for e in found.experts], found.weights, strict=True))}
        return self.adaptations.add(
            version, kind="made", who="loop", why="a check", served=found, whole=found, record=weights,
            now=time.time(), token=TOKEN,
        )  # fmt: skip

    def serves(self, version: int, number: int | None) -> None:
        def there() -> bool:
            current = self.worker.model.current
            answer = self.ask("POST", "/predict", records(1)).json()
            told = (answer.get("version"), answer.get("adaptation"))
            return current is not None and told == (version, number)

        wait_until(f"version {version} with adaptation {number}", there)

    def ask(self, method: str, path: str, body: Any = None, token: str = "") -> httpx.Response:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return run(Front(beyond, lambda: self.worker), (method, path, {"json": body, "headers": headers}))[0]


@pytest.fixture
def house(tmp_path: Path, artefact: Path, adaptation: Adaptation, sqlite_url: str) -> Iterator[House]:
    made = House(tmp_path, artefact, adaptation, sqlite_url)
    yield made
    made.close()


def test_what_is_made_comes_into_force_and_a_promotion_drops_it(house: House, tmp_path: Path) -> None:
    house.serves(1, None)

    assert [house.make(), house.make()] == [1, 2]
    house.serves(1, 2)

    live = read_live(house.settings.live_file)
    assert live is not None and live.champion is not None and live.champion.adaptation is not None
    path = Path(live.champion.adaptation.path)
    assert path == house.settings.adaptations_dir / "1-2.adaptation"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes() == house.adaptations.served(1, 2)

    make_artefact(tmp_path / "second", seed=2)
    house.promote(house.registry.register(tmp_path / "second", origin="push", now=1.0, token=TOKEN))
    house.serves(2, None)
    house.promote(1)
    house.serves(1, 2)

    house.adaptations.add(1, kind="reverted", who="loop", why="it was worse", now=time.time(), token=TOKEN)
    house.serves(1, None)


def test_a_person_switches_it_off_and_on_and_both_are_runs(house: House) -> None:
    from service.control.deployment import assemble
    from training.cycle import MOVES, work_off

    with tokens.store_of(house.settings) as store:
        boss, reader = (tokens.add(store, name, [name], 1.0) for name in ("operate", "read"))
    house.worker.keys.look()
    loop = assemble(house.settings, house.engine, TOKEN, "test", on_event=lambda *_: None, stopped=lambda: False)
    house.make()
    house.serves(1, 1)
    shown = house.ask("GET", "/manage/adaptation", token=reader).json()
    assert (shown["version"], shown["in_force"], shown["enabled"]) == (1, 1, True)
    assert shown["adaptations"][0]["weights"].keys() == {e.name for e in house.adaptation.experts}

    assert house.ask("POST", "/manage/adaptation", {"state": "off"}, token=reader).status_code == 403
    assert house.ask("POST", "/manage/adaptation", {"state": "maybe"}, token=boss).status_code == 400
    asked = house.ask("POST", "/manage/adaptation", {"state": "off", "why": "an audit"}, token=boss)
    assert asked.status_code == 202
    done = work_off(loop, MOVES)

    assert done is not None and done.id == asked.json()["run"]
    assert (done.kind, done.state, done.outcome, done.who, done.why) == (
        "adaptation",
        "done",
        "off",
        "operate",
        "an audit",
    )
    house.serves(1, None)
    shown = house.ask("GET", "/manage/adaptation", token=reader).json()
    assert (shown["in_force"], shown["enabled"], shown["adaptations"][0]["kind"]) == (None, False, "off")
    assert house.ask("GET", "/manage/status", token=reader).json()["adaptation"] is None

    house.ask("POST", "/manage/adaptation", {"state": "on"}, token=boss)
    done = work_off(loop, MOVES)
    assert done is not None and done.outcome == "on"
    assert house.make() == 4
    house.serves(1, 4)
    status = house.ask("GET", "/manage/status", token=reader).json()
    assert (status["adaptation"], status["unadapted"]) == (4, {})


def test_a_file_that_is_damaged_or_gone_is_written_again_and_old_ones_go(house: House) -> None:
    files = InForceFiles(house.settings.adaptations_dir, house.adaptations)
    for _ in range(KEPT + 5):
        number = house.make()
        files.named(1)
    named = files.named(1)
    assert named is not None and named.number == number
    left = sorted(int(path.stem.partition("-")[2]) for path in house.settings.adaptations_dir.glob("*.adaptation"))
    assert len(left) <= KEPT + 1 and left[-1] == number

    for damage in (lambda: Path(named.path).write_bytes(b"x"), lambda: Path(named.path).unlink()):
        damage()
        assert files.named(1) == named
        assert Path(named.path).read_bytes() == house.adaptations.served(1, number)


def test_a_disk_that_is_full_leaves_what_was_named(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    files = InForceFiles(house.settings.var / "others", house.adaptations)
    house.make()
    before = files.named(1)
    house.make()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("service.control.in_force.write_atomically", full)
    assert files.named(1) == before
    monkeypatch.undo()
    after = files.named(1)
    assert after is not None and after.number == 2


def test_a_worker_that_starts_while_the_store_is_down_answers_with_it(house: House) -> None:
    house.make()
    house.serves(1, 1)
    house.controller._stopping.set()
    down = house.settings.model_copy(
        update={"store": house.settings.store.model_copy(update={"url": "postgresql+psycopg://127.0.0.1:1/x"})}
    )
    again = Worker(down, house.controller.tree.run_dir, "api-2")
    again.start()
    try:
        assert again.why_not_ready is None
        assert again.model.current is not None and again.model.current.adaptation == 1
    finally:
        again.close()
