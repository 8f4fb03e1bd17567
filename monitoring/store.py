"""The database: its tables, how it is opened, and which schema version it has.

SQLite (one host, WAL) and PostgreSQL are the same code; where they differ, the difference stands here. The tables are
made and changed by the steps in `monitoring/migrations`, which a test holds equal to what is declared below.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from monitoring.errors import EvergreenError

SCHEMA_VERSION: Final = 7
"""Format of the tables below. Bump it together with a new file in `monitoring/migrations/versions`, its number padded
to four digits being the revision; the file also sets `evergreen_meta.schema_version`."""

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_TAIL_S: Final = 3600.0
"""Seconds; a segment is older than this only when its worker's clock jumped."""
_SQLITE_WAIT_S: Final = 30.0
_TURN_STEPS: Final = 10_000
"""Of SQLite's machine, some half a millisecond: then whoever waits for the processor may have it. The kernel itself
looks at its clock's ticks only, every 4 ms at 250 Hz."""
_PATIENCE: Final = {
    "connect_timeout": 3,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
}
"""libpq's options, seconds and (the last) milliseconds: a database behind a dead link is given up soon, and found again
soon. Linux alone would wait for a quarter of an hour. What stands in the URL comes before it."""
_TOLD_TO_SERVER: Final = """
set tcp_keepalives_idle = 5; set tcp_keepalives_interval = 2; set tcp_keepalives_count = 3; set tcp_user_timeout = 5000
"""
"""The same for its side: of a host that was cut off it would keep a transaction, and its locks, for two hours."""
_LOCK: Final = 4702741
"""Advisory lock of whoever changes tables on PostgreSQL: two replicas may start at once."""

metadata = sa.MetaData()


def _row_key() -> list[sa.Column[int]]:
    """The key of a row out of the spool. It is made by the server and grows; the drain's conflicts are on it."""
    return [
        sa.Column("day", sa.Integer, primary_key=True),  # days since 1970-01-01 UTC, of the segment's birth
        sa.Column("segment", sa.BigInteger, primary_key=True),  # milliseconds since 1970 << 20 | 20 random bits
        sa.Column("position", sa.BigInteger, primary_key=True),  # byte offset of the entry << 16 | row in the entry
    ]


predictions = sa.Table(
    "predictions",
    metadata,
    *_row_key(),
    sa.Column("id", sa.Text, nullable=False, index=True),  # prediction id: UUIDv7, or the caller's own
    sa.Column("at", sa.Double, nullable=False, index=True),  # seconds since 1970 UTC, when it was answered
    sa.Column("version", sa.Integer, nullable=False),  # model version that answered
    sa.Column("features", sa.Text, nullable=False),  # the record as sent: a JSON object
    sa.Column("prediction", sa.Text, nullable=False),  # JSON scalar
    sa.Column("probabilities", sa.Text),  # JSON array in the order of the schema's classes, or NULL
    sa.Column("adaptation", sa.Integer),  # number of the version's adaptation in force, NULL when none was
    sa.Column("trace_id", sa.Text),  # W3C trace of the request, 32 hex digits; NULL when it was in none
    sqlite_with_rowid=False,
    postgresql_partition_by="RANGE (day)",  # a partition a day, made by the drain: `ensure_days`
)

labels = sa.Table(
    "labels",
    metadata,
    *_row_key(),
    sa.Column("id", sa.Text, nullable=False),  # prediction id it speaks of
    sa.Column("label", sa.Text, nullable=False),  # JSON scalar
    sa.Column("observed_at", sa.Double, nullable=False),  # seconds since 1970 UTC; the newest one counts
    sa.Column("received_at", sa.Double, nullable=False),
    sa.Column("source", sa.Text, nullable=False, server_default=""),  # name of the token it came with, '' for none
    sqlite_with_rowid=False,
)
# Where a window is joined label by label, the index alone answers. PostgreSQL joins tables by hash, and its index has
# no room for a long label.
sa.Index(
    "ix_labels_id_label",
    *(labels.c.id, labels.c.observed_at, labels.c.received_at, labels.c.label, labels.c.source),
).ddl_if(dialect="sqlite")
sa.Index("ix_labels_id", labels.c.id).ddl_if(dialect="postgresql")

rejections = sa.Table(
    "rejections",
    metadata,
    *_row_key(),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("route", sa.Text, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("count", sa.Integer, nullable=False),  # how many like this one it stands for
    sa.Column("reason", sa.Text, nullable=False),  # where and what, never a feature's value
    sqlite_with_rowid=False,
)

dead_letters = sa.Table(
    "dead_letters",
    metadata,
    *_row_key(),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("kind", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

drained = sa.Table(
    "drained",
    metadata,
    # How far each segment of the spool is stored, written together with its rows: they may be deleted before it is.
    sa.Column("segment", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("reached", sa.BigInteger, nullable=False),  # byte offset of the last entry in the store
    sqlite_with_rowid=False,
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),  # only grows
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("origin", sa.Text, nullable=False),  # bootstrap | retrain | push
    sa.Column("manifest", sa.Text, nullable=False),  # JSON: digests, data, parameters, seed, libraries, gates
)

aliases = sa.Table(
    "aliases",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),  # model name
    sa.Column("alias", sa.Text, primary_key=True),  # champion | previous | previous.2 … | announced | counter
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("weight", sa.Double, nullable=False, server_default="1"),  # not used
    sa.Column("changed_at", sa.Double, nullable=False),
)

adaptations = sa.Table(
    "adaptations",
    metadata,
    # What happened to the adaptations of each version; the newest row of a version says whether one is in force.
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),  # whose output it corrects
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),  # grows with each row of a version
    sa.Column("at", sa.Double, nullable=False),  # seconds since 1970 UTC
    sa.Column("kind", sa.Text, nullable=False),  # made | reverted | off | on
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("digest", sa.Text),  # SHA-256 of `served`, hex
    sa.Column("served", sa.LargeBinary),  # the bytes workers load, NULL unless made
    sa.Column("whole", sa.LargeBinary),  # with every expert, for scoring; NULL unless made
    sa.Column("record", sa.Text, nullable=False, server_default="{}"),  # JSON: evidence, weights
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("kind", sa.Text, nullable=False),  # check | retrain | push | promote | rollback | bootstrap | ...
    sa.Column("state", sa.Text, nullable=False, index=True),  # queued | running | done | failed
    sa.Column("outcome", sa.Text),  # promoted | kept | refused | no_action | crashed | rolled_back | ...
    sa.Column("trigger", sa.Text, nullable=False),  # drift | quality | schedule | manual | start
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("version", sa.Integer),  # version it made or moved to
    sa.Column("record", sa.Text, nullable=False, server_default="{}"),  # JSON: decision, data, gates, error
    sa.Index("ix_runs_kind", "kind", "id"),  # a run is made at every check: what else happened is found among them
)

checks = sa.Table(
    "checks",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.Double, nullable=False, index=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("drift", sa.Text),  # JSON of a DriftReport, or NULL when it could not be computed
    sa.Column("quality", sa.Text),  # JSON of a Quality, or NULL when no labels
    sa.Column("decision", sa.Text, nullable=False),  # JSON of a Decision
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("token", sa.BigInteger, nullable=False),  # grows with every change of holder
    sa.Column("expires_at", sa.Double, nullable=False),  # the database's clock, seconds since 1970 UTC
)

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("replica", sa.Text, primary_key=True),
    sa.Column("slot", sa.Text, primary_key=True),
    sa.Column("serving", sa.Integer),  # version of the champion it answers with, NULL before the first
    sa.Column("ready", sa.Text, nullable=False),  # JSON array of versions loaded and warm
    sa.Column("failed", sa.Text, nullable=False),  # JSON object version -> why it would not load
    sa.Column("seen_at", sa.Double, nullable=False),  # the database's clock
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),  # SHA-256 of the token, hex
    sa.Column("name", sa.Text, nullable=False),  # of its holder; a home's own is `admin`
    sa.Column("scopes", sa.Text, nullable=False),  # what it may do, between spaces
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("home", sa.Text, nullable=False, server_default=""),  # whose own it is, '' for one with a name
    sa.Column("revoked_at", sa.Double),  # the row stays, so that no copy of it comes back
)

secrets = sa.Table(
    "secrets",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),  # privacy | session
    sa.Column("mark", sa.Text, nullable=False),  # what the key is recognised by
    sa.Column("wrapped", sa.LargeBinary),  # the key, readable with `[security] key` only; NULL: on its home alone
    sa.Column("wrapped_by", sa.Text, nullable=False, server_default=""),  # name of the key that wrapped it
)

homes = sa.Table(
    "homes",
    metadata,
    # Every `var` of the deployment; a replica is the server that runs on one.
    sa.Column("home", sa.Text, primary_key=True),
    sa.Column("host", sa.Text, nullable=False),  # name of its machine
    sa.Column("replica", sa.Text, nullable=False),  # its server, as in `workers` and in the lease's holder
    sa.Column("release", sa.Text, nullable=False),  # of Evergreen
    sa.Column("serving", sa.Integer),  # version that its workers answer with, NULL for none or several
    sa.Column("why_not_ready", sa.Text, nullable=False),  # '' when it answers predictions
    sa.Column("spool_bytes", sa.BigInteger, nullable=False),  # that wait for the store
    sa.Column("lag_s", sa.Double, nullable=False),  # how long the oldest of them waits
    sa.Column("ahead_s", sa.Double, nullable=False),  # its clock before the database's
    sa.Column("seen_at", sa.Double, nullable=False),  # the database's clock
    sa.Column("gone_at", sa.Double),  # the database's clock: when a person said that it does not come back
)

meta = sa.Table("evergreen_meta", metadata, sa.Column("schema_version", sa.Integer, nullable=False))


class StoreTooNew(EvergreenError, RuntimeError):
    """Raised when the database was written by a newer Evergreen than this one."""

    def __init__(self, found: int) -> None:
        super().__init__(
            f"the store has schema version {found}, this program knows {SCHEMA_VERSION}: "
            "upgrade evergreen, or point [store] url at another database"
        )


def db_now(engine: sa.Engine) -> sa.ColumnElement[float]:
    """SQL expression: the database's clock in seconds since 1970 UTC."""
    if engine.dialect.name == "sqlite":
        return sa.literal_column("((julianday('now') - 2440587.5) * 86400.0)", sa.Double)
    return sa.literal_column("extract(epoch from clock_timestamp())::double precision", sa.Double)


def store_now(engine: sa.Engine) -> float:
    """The database's clock, in seconds since 1970 UTC: what hosts whose clocks differ have in common."""
    with engine.connect() as connection:
        return float(connection.execute(sa.select(db_now(engine))).scalar_one())


def key_columns(table: sa.FromClause) -> tuple[sa.ColumnElement[int], ...]:
    """The columns of a table, or of a query on it, that are the key of a row out of the spool, in its order."""
    return table.c.day, table.c.segment, table.c.position


def insert_where(table: sa.Table, values: Mapping[str, Any], condition: sa.ColumnElement[bool]) -> sa.Insert:
    """An INSERT of one row that writes only while `condition` holds, in one statement: a fence, say."""
    columns = [table.c[name] for name in values]
    # The casts give PostgreSQL the types of parameters that stand in a SELECT.
    row = sa.select(*(sa.cast(sa.literal(values[c.name], c.type), c.type) for c in columns))
    return table.insert().from_select(columns, row.where(condition))


def open_store(url: str) -> sa.Engine:
    """An engine on `url`, its tables made or brought up to this program's schema version.

    Several processes may start at once: one changes the tables, in one transaction, the others wait for it.
    Raises `StoreTooNew` when the tables were written by a newer program, and SQLAlchemy's `OperationalError` when the
    database cannot be reached.
    """
    engine = connect(url)
    try:
        with engine.connect() as connection:
            found = _schema_version(connection)
        if found < SCHEMA_VERSION:
            _migrate(engine)
        elif found > SCHEMA_VERSION:
            raise StoreTooNew(found)
    except BaseException:
        engine.dispose()
        raise
    return engine


def ensure_days(engine: sa.Engine, days: Iterable[int]) -> None:
    """On PostgreSQL, the partitions of `predictions` for these days (since 1970-01-01 UTC); on SQLite nothing.

    A new one is made beside and then attached, which stops neither readers nor writers of the others.
    """
    if engine.dialect.name != "postgresql":
        return
    with engine.begin() as connection:
        if not (missing := set(days) - set(stored_days(connection))):
            return
        connection.execute(sa.text(f"select pg_advisory_xact_lock({_LOCK})"))
        for day in sorted(missing - set(stored_days(connection))):  # another replica may have made it meanwhile
            connection.exec_driver_sql(f"create table {partition_name(day)} (like predictions)")
            connection.exec_driver_sql(
                f"alter table predictions attach partition {partition_name(day)} for values from ({day}) to ({day + 1})"
            )


def drop_days(engine: sa.Engine, before: float) -> int:
    """On PostgreSQL, drop the partitions of `predictions` that end before `before`; how many rows went with them.

    A day's last segment may run on past midnight: rows of up to `_TAIL_S` behind `before` go with it. Should a clock
    have jumped, so that there are later ones, the partition stays. Each is dropped in a transaction of its own, which
    waits for those who read or write `predictions` and holds up new ones.
    """
    if engine.dialect.name != "postgresql":
        return 0
    with engine.connect() as connection:
        days = [day for day in stored_days(connection) if (day + 1) * 86_400 <= before]
    rows = 0
    for day in days:
        with engine.begin() as connection:
            # The parent first, as readers and writers do: nobody then waits in a circle.
            connection.exec_driver_sql("lock table only predictions in access exclusive mode")
            if day not in stored_days(connection):  # another replica was first
                continue
            newest = connection.exec_driver_sql(f"select max(at) from {partition_name(day)}").scalar()
            if newest is None or newest < before + _TAIL_S:
                rows += connection.exec_driver_sql(f"select count(*) from {partition_name(day)}").scalar_one()
                connection.exec_driver_sql(f"drop table {partition_name(day)}")
    return rows


def stored_days(connection: sa.Connection) -> list[int]:
    """The days that PostgreSQL has a partition of `predictions` for, oldest first."""
    names = connection.exec_driver_sql(
        "select relname from pg_inherits join pg_class on pg_class.oid = inhrelid "
        "where inhparent = 'predictions'::regclass"
    ).scalars()
    return sorted(int(name.removeprefix("predictions_")) for name in names)


def partition_name(day: int) -> str:
    """The table that holds the predictions of this day on PostgreSQL."""
    return f"predictions_{int(day)}"


def _schema_version(connection: sa.Connection) -> int:
    """0 for an empty database."""
    if not sa.inspect(connection).has_table(meta.name):
        return 0
    return connection.scalar(sa.select(meta.c.schema_version)) or 0


def _migrate(engine: sa.Engine) -> None:
    """Take every step from the schema version found to this program's, in one transaction and by one process only."""
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    script = ScriptDirectory.from_config(config)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text(f"select pg_advisory_xact_lock({_LOCK})"))
        else:
            connection.exec_driver_sql("begin immediate")
        found = _schema_version(connection)  # another process may have been first
        if found > SCHEMA_VERSION:
            raise StoreTooNew(found)
        with EnvironmentContext(config, script, fn=lambda current, _: script._upgrade_revs("head", current)) as context:
            context.configure(connection=connection)
            if found and not context.get_context().get_current_heads():  # the first release kept no revision
                context.get_context().stamp(script, f"{found:04d}")
            context.run_migrations()


def connect(url: str) -> sa.Engine:
    """An engine on `url`; nothing is created but a SQLite file's folder."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        patience = {name: value for name, value in _PATIENCE.items() if name not in parsed.query}
        engine = sa.create_engine(parsed, pool_pre_ping=True, pool_size=5, connect_args=patience)
        sa.event.listen(engine, "connect", _tell_server)
        return engine
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(parsed, connect_args={"timeout": 30})
    sa.event.listen(engine, "connect", _sqlite_pragmas)
    return engine


def _tell_server(connection: Any, _record: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(_TOLD_TO_SERVER)
    connection.commit()


def _sqlite_pragmas(connection: object, _record: object) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined]
    connection.set_progress_handler(os.sched_yield, _TURN_STEPS)  # type: ignore[attr-defined]
    for pragma in ("busy_timeout=30000", "synchronous=NORMAL", "temp_store=MEMORY"):
        cursor.execute(f"PRAGMA {pragma}")
    until = time.monotonic() + _SQLITE_WAIT_S
    while True:  # SQLite does not wait when two processes change a new file's journal at once
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
    cursor.close()
