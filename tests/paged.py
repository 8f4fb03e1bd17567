"""A deployment with a past, its page asked in this process: on SQLite, or the same rows on PostgreSQL."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import sqlalchemy as sa

from monitoring.store import connect, ensure_days, metadata, open_store, predictions
from service.serving.front import Front
from service.serving.worker import Worker
from service.web.desk import serve
from service.web.frames import SOCKET
from tests.fronts import nothing_beyond
from tests.fronts import run as requests
from tests.once import once
from tests.places import Place
from tests.real_server import wait_until
from tests.stand_in import TOKEN
from tests.working import working
from training.cycle import bootstrap, run_cycle
from training.lease import CONTROLLER, Lease


class Paged(NamedTuple):
    """A worker of a deployment."""

    front: Front
    worker: Worker
    engine: sa.Engine
    place: Place

    def ask(self, method: str, path: str, *, token: str | None = TOKEN, **options: Any) -> httpx.Response:
        headers = dict(options.pop("headers", {}))
        if token is not None:
            headers.setdefault("authorization", f"Bearer {token}")
        return requests(self.front, (method, path, {**options, "headers": headers}))[0]

    def get(self, path: str, **options: Any) -> Any:
        """The parsed answer of the page; it must be a 200."""
        answer = self.ask("GET", path, **options)
        assert answer.status_code == 200, (path, answer.text)
        return answer.json()


@pytest.fixture(scope="session")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment with a past: three checks, and a training that was promoted as version 2."""
    return once(tmp_path_factory, "grown", _grow)


def _grow(home: Path) -> None:
    open_store(f"sqlite:///{home}/evergreen.db").dispose()
    place = Place(home)
    assert Lease(place.engine, CONTROLLER, "test", 86_400).acquire()
    assert bootstrap(place.loop) is not None
    for rows, moved in ((60, False), (600, True)):
        place.answer(rows, rows, moved=moved)
        ended = run_cycle(place.loop)
    assert (ended.outcome, place.registry.live().previous) == ("promoted", 1)
    place.answer(300, 7, moved=True)
    run_cycle(place.loop)
    with place.engine.begin() as connection:
        connection.exec_driver_sql("pragma wal_checkpoint(truncate)")
    place.engine.dispose()


@contextmanager
def paged(deployment: Path, home: Path, store_url: str | None = None) -> Iterator[Paged]:
    """A copy of a deployment in `home`; its store copied to `store_url` when that is another kind of one."""
    shutil.copytree(deployment, home)
    place = Place(home)
    url = f"sqlite:///{home}/evergreen.db"
    if store_url is not None and not store_url.startswith("sqlite"):
        url = store_url
        copy(place.engine, url)
    engine = connect(url)
    try:
        with working(place, home, url) as worker:
            yield Paged(Front(nothing_beyond, lambda: worker), worker, engine, place)
    finally:
        engine.dispose()
        place.engine.dispose()


@pytest.fixture
def there(grown: Path, tmp_path: Path, store_url: str) -> Iterator[Paged]:
    """Three checks, two versions, a promotion; on both kinds of store."""
    with paged(grown, tmp_path / "home", store_url) as found:
        yield found


@pytest.fixture
def here(grown: Path, tmp_path: Path) -> Iterator[Paged]:
    """The same, on SQLite."""
    with paged(grown, tmp_path / "home") as found:
        yield found


@contextmanager
def desk(worker: Worker) -> Iterator[threading.Event]:
    """The page's part of a controller beside this worker; setting the event ends it."""
    stopping = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(serve(worker.settings, worker.run_dir, stopping)))
    (worker.run_dir / SOCKET).unlink(missing_ok=True)
    thread.start()
    try:
        wait_until("the page's socket", (worker.run_dir / SOCKET).exists)
        yield stopping
    finally:
        stopping.set()
        thread.join()


def copy(source: sa.Engine, url: str) -> None:
    """All rows of a store into an empty one at `url`."""
    target = open_store(url)
    with source.connect() as old:
        ensure_days(target, {int(at // 86_400) for at in old.scalars(sa.select(predictions.c.at))})
        with target.begin() as new:
            for table in metadata.sorted_tables:
                if table.name == "evergreen_meta":
                    continue
                rows = [row._asdict() for row in old.execute(sa.select(table))]
                if table is predictions:  # `Place` answers on no day in particular
                    rows = [{**row, "day": int(row["at"] // 86_400)} for row in rows]
                if rows:
                    new.execute(table.insert(), rows)
            for name in ("runs", "checks"):
                new.exec_driver_sql(
                    f"select setval(pg_get_serial_sequence('{name}', 'id'), (select max(id) from {name}))"
                )
    target.dispose()
