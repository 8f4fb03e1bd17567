"""Stores of earlier releases are brought up to date with their rows, by one process, and newer ones are refused."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from monitoring import store
from monitoring.retention import expire
from monitoring.window import label_status
from tests.processes import python

FIRST_RELEASE = Path(__file__).parents[1] / "data"
DAYS = (20_000, 20_001, 20_400)


def write_first_release(url: str) -> None:
    """A database as schema version 1 wrote it, with three days of predictions, their labels, and a run."""
    engine = store.connect(url)
    with engine.begin() as connection:
        script = (FIRST_RELEASE / f"schema_1.{engine.dialect.name}.sql").read_text()
        for statement in script.split("\n\n"):
            connection.exec_driver_sql(statement)
        for day in DAYS:
            for position in range(3):
                key: dict[str, Any] = {
                    "day": day,
                    "segment": day << 40,
                    "position": position,
                    "id": f"{day}-{position}",
                }
                connection.execute(
                    store.predictions.insert().values(
                        **key,
                        at=day * 86_400.0 + position,
                        version=1,
                        features='{"age": 1}',
                        prediction="1",
                        probabilities="[0.5, 0.5]",
                    )
                )
                connection.execute(store.labels.insert().values(**key, label="0", observed_at=1.0, received_at=2.0))
        connection.execute(
            store.runs.insert().values(
                id=7, kind="check", state="done", trigger="manual", who="ana", why="because", created_at=1.0
            )
        )
    engine.dispose()


LATER = (store.labels.c.source, store.predictions.c.adaptation, store.predictions.c.trace_id)
"""Columns that the first release did not have."""
NEW = (store.adaptations, store.tokens, store.secrets, store.homes)
"""Tables that it did not have."""


def content(engine: sa.Engine) -> dict[str, list[tuple[Any, ...]]]:
    with engine.connect() as connection:
        return {
            table.name: sorted(
                tuple(row)
                for row in connection.execute(
                    sa.select(*(c for c in table.c if not any(c is later for later in LATER)))
                )
            )
            for table in store.metadata.sorted_tables
            if table not in (store.meta, store.drained, *NEW)
        }


def shape(engine: sa.Engine) -> dict[str, Any]:
    """Everything the database says of our tables, but how a partition is called."""
    inspector = sa.inspect(engine)
    return {
        name: {
            "columns": [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in inspector.get_columns(name)],
            "key": inspector.get_pk_constraint(name)["constrained_columns"],
            "indexes": sorted(
                (str(i["name"]), tuple(map(str, i["column_names"]))) for i in inspector.get_indexes(name)
            ),
        }
        for name in store.metadata.tables
    }


def version(engine: sa.Engine) -> int | None:
    with engine.connect() as connection:
        return connection.scalar(sa.select(store.meta.c.schema_version))


@pytest.mark.parametrize("first_release", [False, True])
def test_the_steps_make_the_tables_that_the_program_declares(
    store_url: str, first_release: bool, tmp_path: Path
) -> None:
    if first_release:
        write_first_release(store_url)
    engine = store.open_store(store_url)
    made = shape(engine)

    with engine.begin() as connection:
        store.metadata.drop_all(connection)
        store.metadata.create_all(connection)

    assert made == shape(engine)
    engine.dispose()


def test_a_store_of_the_first_release_keeps_every_row(store_url: str) -> None:
    write_first_release(store_url)
    old = store.connect(store_url)
    before = content(old)
    old.dispose()

    engine = store.open_store(store_url)

    assert len(before["predictions"]) == 9
    assert content(engine) == before
    assert version(engine) == store.SCHEMA_VERSION
    status = label_status(engine, "20400-1")
    assert (status.outcome, status.labels[0].source) == ("matched", "")
    with engine.connect() as connection:  # what nothing was known of is NULL
        assert set(connection.scalars(sa.select(store.predictions.c.adaptation))) == {None}
        assert connection.execute(sa.select(store.adaptations)).all() == []
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            assert store.stored_days(connection) == list(DAYS)
    engine.dispose()
    store.open_store(store_url).dispose()  # and again: nothing to do


def test_a_migrated_store_takes_rows_and_gives_up_days(store_url: str) -> None:
    write_first_release(store_url)
    engine = store.open_store(store_url)
    store.ensure_days(engine, [20_400, 20_500])
    new = {"day": 20_500, "segment": 1, "position": 1, "id": "new", "at": 20_500 * 86_400.0, "version": 2}
    with engine.begin() as connection:
        connection.execute(store.predictions.insert().values(**new, features="{}", prediction="1"))

    deleted = expire(engine, {"predictions": 20_400 * 86_400.0 + 1})  # two whole days, and one row of a third

    assert deleted == {"predictions": 7}
    assert sorted(row[3] for row in content(engine)["predictions"]) == ["20400-1", "20400-2", "new"]
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            assert store.stored_days(connection) == [20_400, 20_500]
    engine.dispose()


def test_a_store_of_a_newer_program_is_refused_and_left_alone(store_url: str) -> None:
    engine = store.open_store(store_url)
    with engine.begin() as connection:
        connection.execute(store.meta.update().values(schema_version=store.SCHEMA_VERSION + 1))

    with pytest.raises(store.StoreTooNew, match=r"upgrade evergreen, or point \[store\] url at another database"):
        store.open_store(store_url)

    assert version(engine) == store.SCHEMA_VERSION + 1
    engine.dispose()


def test_a_step_that_fails_changes_nothing(store_url: str) -> None:
    write_first_release(store_url)
    old = store.connect(store_url)
    name = "ix_labels_id_label" if old.dialect.name == "sqlite" else "predictions_20400"
    with old.begin() as connection:  # in the way of the second step
        on = "checks (at)" if old.dialect.name == "sqlite" else ""
        connection.exec_driver_sql(f"create index {name} on {on}" if on else f"create table {name} (x int)")
    before = content(old)

    with pytest.raises(sa.exc.DBAPIError, match="already exists"):
        store.open_store(store_url)

    assert (version(old), content(old)) == (1, before)
    assert not sa.inspect(old).has_table("alembic_version")
    with old.begin() as connection:
        connection.exec_driver_sql(f"drop index {name}" if old.dialect.name == "sqlite" else f"drop table {name}")
    old.dispose()
    engine = store.open_store(store_url)
    assert content(engine) == before
    engine.dispose()


def test_a_database_that_may_not_be_written_is_said_at_once(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(sa.exc.OperationalError):
        store.open_store(f"sqlite:///{tmp_path}/evergreen.db")


OPENER = """
import sys
import alembic.config
from monitoring.store import open_store
print("ready", flush=True)
sys.stdin.readline()
open_store(sys.argv[1])
"""


@pytest.mark.parametrize("first_release", [False, True])
def test_several_processes_may_start_at_once(store_url: str, first_release: bool) -> None:
    if first_release:
        write_first_release(store_url)
    with contextlib.ExitStack() as stack:
        openers = [stack.enter_context(python(OPENER, store_url)) for _ in range(3)]
        for opener in openers:
            assert opener.stdout is not None and opener.stdout.readline() == "ready\n"
        for opener in openers:
            assert opener.stdin is not None
            opener.stdin.write("go\n")
            opener.stdin.flush()

        assert [(opener.communicate(timeout=600)[0], opener.returncode) for opener in openers] == [("", 0)] * 3

    engine = store.open_store(store_url)
    assert version(engine) == store.SCHEMA_VERSION
    assert len(content(engine)["predictions"]) == (9 if first_release else 0)
    engine.dispose()


def test_two_replicas_may_make_the_partition_of_a_day_at_once(postgres_url: str) -> None:
    import threading

    engine = store.open_store(postgres_url)
    together = threading.Barrier(4)
    failed: list[BaseException] = []

    def ensure() -> None:
        together.wait()
        try:
            store.ensure_days(engine, [1, 2, 3])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=ensure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    with engine.connect() as connection:
        assert store.stored_days(connection) == [1, 2, 3]
        indexed = connection.exec_driver_sql("select count(*) from pg_indexes where tablename = 'predictions_2'")
        assert indexed.scalar() == 3  # the key, the id and the time
    engine.dispose()


def test_a_step_is_shipped_with_the_program() -> None:
    import tomllib

    from setuptools import find_packages

    root = Path(store.__file__).parent.parent
    wanted = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    shipped = find_packages(str(root), include=wanted["include"])
    folders = {path.parent.relative_to(root) for path in (root / "monitoring").rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} <= set(shipped)


def test_an_up_to_date_store_is_opened_without_a_write(sqlite_url: str) -> None:
    store.open_store(sqlite_url).dispose()
    other = sqlite3.connect(sa.make_url(sqlite_url).database or "", isolation_level=None)
    other.execute("begin immediate")

    store.open_store(sqlite_url).dispose()  # a writer at work does not hold it up

    other.execute("rollback")
    other.close()


def test_a_row_is_inserted_only_while_its_condition_holds(store_url: str) -> None:
    engine = store.open_store(store_url)
    free = ~sa.select(store.leases).exists()
    row = {"name": "here", "holder": "me", "token": 2**40, "expires_at": 1.5}

    with engine.begin() as connection:
        for name in ("here", "there"):
            connection.execute(store.insert_where(store.leases, row | {"name": name}, free))
        found = connection.execute(sa.select(store.leases)).one()
    engine.dispose()

    assert tuple(found) == ("here", "me", 2**40, 1.5)


def test_a_silent_database_is_given_up_in_seconds_unless_the_url_says_otherwise(postgres_url: str) -> None:
    def options(url: str) -> dict[str, str]:
        engine = store.connect(url)
        with engine.connect() as connection:
            driver: Any = connection.connection.dbapi_connection
            found: dict[str, str] = driver.info.get_parameters()
        engine.dispose()
        return found

    given = sa.make_url(postgres_url).update_query_dict({"connect_timeout": "9"}).render_as_string(hide_password=False)

    usual, chosen = options(postgres_url), options(given)
    assert (usual["tcp_user_timeout"], usual["connect_timeout"]) == ("5000", "3")
    assert (chosen["tcp_user_timeout"], chosen["connect_timeout"]) == ("5000", "9")
