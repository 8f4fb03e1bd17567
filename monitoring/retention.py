"""How long the record is kept, and what is deleted when that time is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field

from monitoring import store
from monitoring.errors import CannotGoOn
from monitoring.readers import readers
from monitoring.record import TABLES, Entry
from monitoring.spool import number_at

if TYPE_CHECKING:
    from collections.abc import Mapping

DAY_S: Final = 86_400.0
_ROWS_AT_ONCE: Final = 5000
"""A transaction this small lets the drain in between."""
_LABELS_AT_ONCE: Final = 1000
HELD_S: Final = 600.0
"""How long readers of the SQLite log are waited for; a backup or an export takes minutes."""
PAUSE_S: Final = 0.5
LOOK_MS: Final = 200


class RetentionPolicy(BaseModel):
    """How many whole days (UTC) each table keeps its rows: what was recorded on a day goes when it is so long over.

    And how much of everything else is kept, so that nothing grows for ever that nobody asked to keep.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    predictions_days: int = Field(
        0, ge=0, description="days; predictions, and their copies that no version in service needs (0: kept for ever)"
    )
    labels_days: int = Field(
        0, ge=0, description="days since receipt; late labels outlive predictions (0: kept while they name one)"
    )
    rejections_days: int = Field(30, ge=0, description="days; refused requests are of interest for weeks (0: kept)")
    dead_letters_days: int = Field(
        30, ge=0, description="days; what could not be stored may hold personal data (0: kept)"
    )

    unmatched_labels_days: int = Field(
        30, ge=0, description="days since receipt; a label whose prediction has not come by then, or is gone (0: kept)"
    )
    versions: int = Field(
        20,
        ge=1,
        description="versions; the newest ones, some MB each, beside those with an alias and the nine former champions",
    )
    snapshots_days: int = Field(
        7, ge=0, description="days; training data that no kept version was trained from, as of refused ones (0: kept)"
    )
    checks_days: int = Field(
        30, ge=1, description="days; checks, their `no` and their failures (the newest 1,000 stay in any case)"
    )
    runs_days: int = Field(
        730, ge=0, description="days; all other runs, who did what and why (0: kept; the newest 1,000 stay in any case)"
    )
    reports: int = Field(20, ge=1, description="pages on each replica; Evidently's, made when asked for, 4 MB each")
    workers_s: float = Field(
        3600.0, ge=60, description="seconds; rows of workers that are gone, each start makes new ones"
    )
    homes_days: int = Field(
        30,
        ge=0,
        description="days; a replica's home not seen for so long counts as gone for good: erasures do not wait "
        "for it any more, and it is refused should it come back (0: a person says so)",
    )
    drained_days: int = Field(
        90, ge=1, description="days; how far a spool's segment was stored, for a replica that comes back with its spool"
    )

    def cutoffs(self, now: float) -> dict[str, float]:
        """Table -> the midnight (seconds since 1970 UTC) before which its rows are deleted; tables kept are not in it.

        A midnight, so that PostgreSQL drops whole days and looks for single rows next to never.
        """
        today = now // DAY_S * DAY_S
        days = {
            "predictions": self.predictions_days,
            "labels": self.labels_days,
            "rejections": self.rejections_days,
            "dead_letters": self.dead_letters_days,
        }
        return {table: today - kept * DAY_S for table, kept in days.items() if kept}


_TABLES: Final[Mapping[str, tuple[sa.Table, sa.Column[float]]]] = {
    "predictions": (store.predictions, store.predictions.c.at),
    "labels": (store.labels, store.labels.c.received_at),
    "rejections": (store.rejections, store.rejections.c.at),
    "dead_letters": (store.dead_letters, store.dead_letters.c.at),
}


def expire(engine: sa.Engine, cutoffs: Mapping[str, float]) -> dict[str, int]:
    """Delete the rows older than their table's cutoff (seconds since 1970 UTC); deleted rows by table.

    A label goes by its receipt: a late one outlives its prediction. On PostgreSQL whole days of predictions are dropped
    with their partitions, and only what is left over is deleted row by row.
    """
    deleted = {}
    for name, before in cutoffs.items():
        table, at = _TABLES[name]
        key = store.key_columns(table)
        old = sa.select(*key).where(at < before).limit(_ROWS_AT_ONCE)
        delete = sa.delete(table).where(sa.tuple_(*key).in_(old))
        deleted[name] = store.drop_days(engine, before) if table is store.predictions else 0
        while True:
            with engine.begin() as connection:
                gone = connection.execute(delete).rowcount
            deleted[name] += gone
            if gone < _ROWS_AT_ONCE:
                break
    return deleted


def expire_unmatched(engine: sa.Engine, before: float) -> int:
    """Delete the labels received before `before` whose id no stored prediction has; how many.

    Every old label is looked at, a few at a time: about a minute for ten million.
    """
    table, deleted = store.labels, 0
    key = sa.tuple_(*store.key_columns(table))
    old = sa.select(*store.key_columns(table), table.c.id)
    old = old.where(table.c.received_at < before).order_by(*store.key_columns(table))
    last: tuple[int, ...] = (-1, -1, -1)
    while True:
        with engine.connect() as connection:
            some = connection.execute(old.where(key > sa.tuple_(*last)).limit(_LABELS_AT_ONCE)).all()
            ids = {row.id for row in some}
            known = set(connection.scalars(sa.select(store.predictions.c.id).where(store.predictions.c.id.in_(ids))))
        if not some:
            return deleted
        last = tuple(some[-1][:3])
        unmatched = [tuple(row[:3]) for row in some if row.id not in known]
        if unmatched:
            with engine.begin() as connection:
                deleted += connection.execute(sa.delete(table).where(key.in_(unmatched))).rowcount


def forget_drained(engine: sa.Engine, before: float, keep: Collection[int]) -> int:
    """Delete what is known of segments born before `before` that are not in `keep` (still in the spool); how many."""
    table = store.drained
    old = sa.select(table.c.segment).where(table.c.segment < number_at(before))
    with engine.connect() as connection:
        gone = [segment for segment in connection.scalars(old) if segment not in keep]
    for start in range(0, len(gone), _LABELS_AT_ONCE):
        with engine.begin() as connection:
            connection.execute(sa.delete(table).where(table.c.segment.in_(gone[start : start + _LABELS_AT_ONCE])))
    return len(gone)


def is_expired(entry: Entry, cutoffs: Mapping[str, float]) -> bool:
    """Whether everything an entry of the spool became is older than its table's cutoff."""
    table = TABLES.get(entry.kind, "dead_letters")
    return table in cutoffs and entry.at < cutoffs[table]


def expire_files(folder: Path, pattern: str, before: float, keep: Collection[str] = ()) -> int:
    """Delete the files written before `before` (seconds since 1970 UTC), but none whose stem is in `keep`; how many."""
    gone = 0
    for path in sorted(folder.glob(pattern)):
        if path.stem not in keep and path.stat().st_mtime < before:
            path.unlink(missing_ok=True)
            gone += 1
    return gone


class LogHeld(CannotGoOn, RuntimeError):
    """Raised when what was deleted could not be cleared out of SQLite's log, because others went on reading it."""

    def __init__(self, who: str, waited_s: float) -> None:
        super().__init__(
            f"the rows are deleted, but the SQLite log could not be emptied in {waited_s:.0f} s: {who} reads the "
            "database; end that, and ask again"
        )


def compact(
    engine: sa.Engine,
    *,
    sleep: Callable[[float], None] = time.sleep,
    on_wait: Callable[[str], None] = lambda who: None,
) -> None:
    """Give up what deleted rows left behind: SQLite is rewritten and its log emptied, PostgreSQL is vacuumed.

    Until then deleted values can still be read in the file. On SQLite writers wait while it is rewritten (the spool
    keeps what is answered); it needs free disk of the size of the database. Whoever reads the log meanwhile is waited
    for, up to `HELD_S`, and `on_wait` is told whom. Raises `LogHeld`.
    """
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        if engine.dialect.name != "sqlite":
            for table in (*_TABLES, store.runs.name):  # a run that asks for an erasure says who is meant
                connection.exec_driver_sql(f"vacuum {table}")
            return
        usual = connection.exec_driver_sql("pragma busy_timeout").scalar_one()
        connection.exec_driver_sql("pragma secure_delete = on")
        connection.exec_driver_sql("pragma temp_store = file")  # a copy of the database has no place in memory
        try:
            connection.exec_driver_sql("vacuum")
            # While SQLite waits for a reader here, it lets nobody write: with the usual 30 s the lease ran out, and the
            # run with it. So it looks for a moment, and the waiting is done here.
            connection.exec_driver_sql(f"pragma busy_timeout = {LOOK_MS}")
            waited = 0.0
            while connection.exec_driver_sql("pragma wal_checkpoint(truncate)").one()[0]:
                who = ", ".join(readers(Path(engine.url.database or ""))) or "somebody"
                if waited >= HELD_S:
                    raise LogHeld(who, waited)
                on_wait(who)
                sleep(PAUSE_S)
                waited += PAUSE_S
        finally:
            connection.exec_driver_sql(f"pragma busy_timeout = {int(usual)}")
            connection.exec_driver_sql("pragma secure_delete = off")
            connection.exec_driver_sql("pragma temp_store = memory")
