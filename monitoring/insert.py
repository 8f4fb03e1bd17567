"""Into the database: a batch of rows in one transaction, in SQLite's way or PostgreSQL's, nothing twice."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from monitoring.record import TableRows
from monitoring.spool import segment_day

if TYPE_CHECKING:
    import sqlalchemy as sa

Reached = dict[int, int]
"""Segment -> byte offset of its last entry that is stored."""

REPEAT_DAYS: Final = 1
"""On PostgreSQL, an id counts as a repeat of one of today or so many days before: each is a partition to look into."""
LABEL_DAYS: Final = 90
"""On PostgreSQL, how old the prediction of a matched label is at most, unless its id says when it was made."""
_TRIES: Final = 5
_logger = logging.getLogger(__name__)


def insert(engine: sa.Engine, rows: TableRows, reached: Reached) -> dict[str, int]:
    """Store the rows and how far their segments have come; counts by the names of `DrainResult`'s fields.

    Raises what the database raises: `is_poison` says whether the rows are to blame.
    """
    kind = _insert_sqlite if engine.dialect.name == "sqlite" else _insert_postgresql
    return kind(engine, rows, reached)


def is_poison(error: Exception) -> bool:
    """Whether the rows are to blame, not the connection or the server."""
    import sqlalchemy as sa

    if isinstance(error, sa.exc.DBAPIError) and error.orig is not None and isinstance(error.orig, Exception):
        error = error.orig
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(
        names
        & {
            "DataError",
            "IntegrityError",
            "OverflowError",
            "UnicodeEncodeError",
            "ValueError",
        }
    )


def last_stored(engine: sa.Engine, segment: int) -> int:
    """Byte offset of the segment's last entry in the store, -1 when none is: they are committed whole and in order."""
    import sqlalchemy as sa

    from monitoring import store

    with engine.connect() as connection:
        reached = connection.scalar(sa.select(store.drained.c.reached).where(store.drained.c.segment == segment))
        if reached is not None:
            return int(reached)
        # A store of the first release does not say, but has the rows themselves.
        last = [
            connection.scalar(
                sa.select(sa.func.max(table.c.position)).where(
                    table.c.day == segment_day(segment), table.c.segment == segment
                )
            )
            for table in (store.predictions, store.labels, store.rejections, store.dead_letters)
        ]
    return max(-1 if position is None else position >> 16 for position in last)


def forget_segments(engine: sa.Engine, segments: Sequence[int]) -> None:
    """Drop what is known of segments that are gone; best done, not needed."""
    import sqlalchemy as sa

    from monitoring import store

    try:
        with engine.begin() as connection:
            connection.execute(sa.delete(store.drained).where(store.drained.c.segment.in_(segments)))
    except sa.exc.SQLAlchemyError as error:
        _logger.warning("segments that are gone stay in the table `drained`: %s", error)


def _repeats(ids: list[str], stored: set[str]) -> int:
    """How many of the ids were seen before, in the store or earlier in the list."""
    return len(ids) - len(set(ids) - stored)


def _insert_sqlite(engine: sa.Engine, rows: TableRows, reached: Reached) -> dict[str, int]:
    from monitoring import store

    with engine.connect() as connection:
        raw: Any = connection.connection.driver_connection
        cursor = raw.cursor()
        # A segment is deleted after the commit, so the commit must survive a power failure, unlike with NORMAL.
        cursor.execute("pragma synchronous = full")
        try:
            cursor.execute("begin immediate")
            try:
                counts: dict[str, int] = {}

                def known(ids: list[str]) -> set[str]:
                    found = cursor.execute(
                        "select id from predictions where id in (select value from json_each(?))",
                        [json.dumps(ids)],
                    )
                    return {row[0] for row in found}

                def insert(table: sa.Table, values: Sequence[tuple[Any, ...]]) -> int:
                    if not values:
                        return 0
                    filled = width = len(table.columns)
                    # A None takes sqlite3 half as long as all other values of a row together (it looks for an adapter),
                    # and most rows end in one: a last column that is empty in all of them is not handed over.
                    while all(row[filled - 1] is None for row in values):
                        filled -= 1
                    marks = ", ".join(["?"] * filled + ["null"] * (width - filled))
                    cursor.executemany(
                        f"insert into {table.name} values ({marks}) on conflict do nothing",
                        (row[:filled] for row in values),  # plain tuples: quicker to read than named ones
                    )
                    return int(cursor.rowcount)

                if rows.predictions:
                    ids = [row.id for row in rows.predictions]
                    counts["repeated_ids"] = _repeats(ids, known(ids))
                    counts["predictions"] = insert(store.predictions, rows.predictions)
                if rows.labels:
                    counts["labels"] = insert(store.labels, rows.labels)
                    stored = known([row.id for row in rows.labels])
                    counts["matched_labels"] = sum(row.id in stored for row in rows.labels)
                    counts["unmatched_labels"] = len(rows.labels) - counts["matched_labels"]
                counts["rejections"] = insert(store.rejections, rows.rejections)
                counts["dead"] = insert(store.dead_letters, rows.dead)
                cursor.executemany("insert or replace into drained values (?, ?)", list(reached.items()))
                cursor.execute("commit")
            except BaseException:
                if raw.in_transaction:
                    cursor.execute("rollback")
                raise
        finally:
            cursor.execute("pragma synchronous = normal")
            cursor.close()
    return counts


def _insert_postgresql(engine: sa.Engine, rows: TableRows, reached: Reached) -> dict[str, int]:
    from psycopg.errors import CheckViolation, UniqueViolation

    from monitoring import store

    insert = _copy_in
    for _ in range(_TRIES):
        try:
            return _copy_postgresql(engine, rows, reached, insert)
        except UniqueViolation:  # stored by somebody else meanwhile: rare, and slower to get round
            insert = _copy_around_conflicts
        except CheckViolation:  # the first rows of a day, or a late one of a day that retention has dropped
            store.ensure_days(engine, {row.day for row in rows.predictions})
    raise RuntimeError(f"the rows or their days' partitions came and went {_TRIES} times; is retention running wild?")


def _copy_in(cursor: Any, table: sa.Table, values: Sequence[tuple[Any, ...]]) -> int:
    _copy(cursor, table, table.name, values)
    return len(values)


def _copy_around_conflicts(cursor: Any, table: sa.Table, values: Sequence[tuple[Any, ...]]) -> int:
    cursor.execute(f"create temp table pending (like {table.name}) on commit drop")
    _copy(cursor, table, "pending", values)
    cursor.execute(f"insert into {table.name} select * from pending on conflict do nothing")
    inserted = int(cursor.rowcount)
    cursor.execute("drop table pending")
    return inserted


def _copy(cursor: Any, table: sa.Table, into: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Send the rows as one text, which is put together column by column: a third of the cost of row by row.

    Raises `ValueError` for a text with a zero character, which PostgreSQL has no room for.
    """
    import sqlalchemy as sa

    if table.name == "dead_letters":  # bytes need the driver's own words
        with cursor.copy(f"copy {into} from stdin") as copy:
            for row in rows:
                copy.write_row(row)
        return
    columns = [
        _escaped(values) if isinstance(column.type, sa.Text) else _numbers(values)
        for column, values in zip(table.columns, zip(*rows, strict=True), strict=True)
    ]
    with cursor.copy(f"copy {into} from stdin") as copy:
        copy.write("\n".join(map("\t".join, zip(*columns, strict=True))).encode() + b"\n")


def _numbers(values: Sequence[Any]) -> list[str]:
    """The numbers as COPY reads them; None is its NULL."""
    written = list(map(str, values))
    return ["\\N" if one == "None" else one for one in written] if "None" in written else written


def _escaped(texts: Sequence[str | None]) -> list[str]:
    """The texts as COPY reads them; None is its NULL."""
    if texts[0] is None and texts.count(None) == len(texts):
        return ["\\N"] * len(texts)
    whole = "\0".join("" if text is None else text for text in texts)
    for character, escape in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        if character in whole:
            whole = whole.replace(character, escape)
    escaped = whole.split("\0")
    if len(escaped) != len(texts):
        raise ValueError("PostgreSQL cannot store text with a zero character (0x00)")
    if None in texts:
        escaped = ["\\N" if text is None else done for text, done in zip(texts, escaped, strict=True)]
    return escaped


def _copy_postgresql(
    engine: sa.Engine,
    rows: TableRows,
    reached: Reached,
    insert: Callable[[Any, sa.Table, Sequence[tuple[Any, ...]]], int],
) -> dict[str, int]:
    from monitoring import store

    counts: dict[str, int] = {}
    with engine.connect() as connection:
        raw: Any = connection.connection.driver_connection
        with raw.transaction(), raw.cursor() as cursor:
            # The parent first, as who drops a partition does, and none is dropped until the rows are in.
            cursor.execute("lock table only predictions in access share mode")
            days = store.stored_days(connection)
            # Thousands of ids at once look to the planner as if the whole table had to be read, for each batch.
            cursor.execute("set local enable_seqscan = off")

            def known(ids: Iterable[str], first: int, last: int) -> set[str]:
                """Those of the ids that are stored in these days, from the newest on until all are found.

                Partition by partition: a condition on the day leads the planner to the key, and so to every row.
                """
                missing, found = set(ids), set()
                for day in reversed([day for day in days if first <= day <= last]):
                    if not missing:
                        break
                    ask = f"select id from {store.partition_name(day)} where id = any(%s)"
                    found |= {row[0] for row in cursor.execute(ask, [list(missing)])}
                    missing -= found
                return found

            if rows.predictions:
                ids = [row.id for row in rows.predictions]
                newest = max(row.day for row in rows.predictions)
                counts["repeated_ids"] = _repeats(ids, known(ids, newest - REPEAT_DAYS, newest))
                counts["predictions"] = insert(cursor, store.predictions, rows.predictions)
            if rows.labels:
                counts["labels"] = insert(cursor, store.labels, rows.labels)
                today = max(row.day for row in rows.labels)
                stored = set()
                for made, some in _by_day([row.id for row in rows.labels]):
                    first, last = (today - LABEL_DAYS, today + 1) if made is None else (made - 1, made + 1)
                    stored |= known(some, first, last)
                counts["matched_labels"] = sum(row.id in stored for row in rows.labels)
                counts["unmatched_labels"] = len(rows.labels) - counts["matched_labels"]
            if rows.rejections:
                counts["rejections"] = insert(cursor, store.rejections, rows.rejections)
            if rows.dead:
                counts["dead"] = insert(cursor, store.dead_letters, rows.dead)
            cursor.executemany(
                "insert into drained values (%s, %s) on conflict (segment) do update set reached = excluded.reached",
                list(reached.items()),
            )
    return counts


def _by_day(ids: Sequence[str]) -> list[tuple[int | None, list[str]]]:
    """The ids by the day they were made: a UUIDv7 says it, of others nobody knows (None)."""
    of_day: dict[int | None, list[str]] = {}
    for id_ in ids:
        of_day.setdefault(_day_of(id_), []).append(id_)
    return list(of_day.items())


def _day_of(id_: str) -> int | None:
    if len(id_) != 36 or id_[14] != "7" or id_[8] != "-" or id_[13] != "-":
        return None
    try:
        return int(id_[:8] + id_[9:13], 16) // 86_400_000
    except ValueError:
        return None
