"""The lease: which one of many replicas may decide, and the fence that stops everyone else's writes.

Only the database's clock counts; a process with a wrong clock, or one that was stopped for a minute and wakes up
believing it still holds the lease, cannot write: `fence` makes the lease row part of the very statement that writes.
Source: Kleppmann, "How to do distributed locking" (2016), fencing tokens.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, Literal

import sqlalchemy as sa

from monitoring.errors import EvergreenError
from monitoring.store import db_now, insert_where, leases

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.dialects.postgresql import Insert as PostgresInsert
    from sqlalchemy.dialects.sqlite import Insert as SqliteInsert
    from sqlalchemy.sql.dml import UpdateBase

CONTROLLER: Final = "controller"
"""Name of the lease under which runs are claimed and aliases are moved."""

LeaseState = Literal["free", "held", "unsure", "lost"]


class LeaseLost(EvergreenError, RuntimeError):
    """Raised when a fenced write was refused because its token no longer holds the unexpired lease."""

    def __init__(self, name: str, token: int, found: tuple[str, int, float] | None) -> None:
        self.name, self.token, self.found = name, token, found
        if found is None:
            now = "nobody ever took it"
        elif found[1] != token:
            now = f"{found[0]!r} took it with token {found[1]}"
        elif found[2] < -1e8:  # `release` sets the end to 1970
            now = "it was released"
        else:
            now = f"it ran out {max(0.0, -found[2]):.1f} s ago"
        super().__init__(
            f"the lease {name!r} is not held with token {token} ({now}); nothing was written: "
            "let the holder do this work, or acquire the lease again and start over"
        )


class Lease:
    """One holder's side of a lease that lasts `seconds` after each renewal, by the database's clock.

    `acquire`, `renew` and `release` never raise on a database in trouble: they answer False and say why in `reason`.
    `token` is what fenced writes carry; it is larger with every change of holder.
    """

    def __init__(self, engine: sa.Engine, name: str = CONTROLLER, holder: str = "", seconds: float = 30.0) -> None:
        if not holder:
            raise ValueError("a lease needs a holder: a name of this process that an SRE recognises, like host:pid")
        if seconds <= 0:
            raise ValueError(f"a lease must last longer than 0 s, got {seconds}")
        self.name, self.holder, self.seconds = name, holder, seconds
        self.token: int | None = None
        self.state: LeaseState = "free"
        self.reason = "not asked for yet"
        self._engine = engine
        self._sure_until = 0.0  # time.monotonic()

    @property
    def held(self) -> bool:
        """True when the last word from the database was that this holder has the lease.

        A hint for the caller's loop; what protects the data is the fence.
        """
        return self.state == "held"

    @property
    def sure(self) -> bool:
        """True while nobody else can have taken it: less than `seconds` have passed since it was asked for.

        By this process's own clock, so also while the database does not answer, or an answer is waited for.
        """
        return self.held and time.monotonic() < self._sure_until

    def acquire(self) -> bool:
        """True when this holder has the lease now: renewed, or taken because it was free or had run out."""
        if self.token is not None:
            if self.renew():
                return True
            if self.token is not None:  # the database did not answer; a second question would only wait again
                return False
        asked, now = time.monotonic(), db_now(self._engine)
        row = upsert(self._engine, leases).values(
            name=self.name, holder=self.holder, token=1, expires_at=now + self.seconds
        )
        take = row.on_conflict_do_update(
            index_elements=[leases.c.name],
            set_={"holder": self.holder, "token": leases.c.token + 1, "expires_at": now + self.seconds},
            where=leases.c.expires_at <= now,
        ).returning(leases.c.token)
        try:
            with autocommit(self._engine) as connection:
                token = connection.scalar(take)
                holder = None if token is not None else _found(connection, self._engine, self.name)
        except sa.exc.SQLAlchemyError as error:
            return self._say("free", f"the database did not answer: {_first_line(error)}")
        if token is None:
            who = f"{holder[0]!r} holds it for {holder[2]:.1f} s more" if holder else "it was taken in this moment"
            return self._say("free", who)
        self.token = int(token)
        return self._hold(asked)

    def renew(self) -> bool:
        """True when the lease was prolonged. False: lost to another (`state` "lost"), or unknown ("unsure").

        A lease that ran out and that nobody took meanwhile is renewed with the same token.
        """
        if self.token is None:
            return self._say("free", "not held; acquire it first")
        asked = time.monotonic()
        statement = (
            leases.update()
            .where(leases.c.name == self.name, leases.c.token == self.token)
            .values(expires_at=db_now(self._engine) + self.seconds)
        )
        try:
            with autocommit(self._engine) as connection:
                renewed = connection.execute(statement).rowcount
                found = None if renewed else _found(connection, self._engine, self.name)
        except sa.exc.SQLAlchemyError as error:
            return self._say("unsure", f"the database did not answer: {_first_line(error)}")
        if not renewed:
            self.token = None
            return self._say("lost", f"{found[0]!r} took it with token {found[1]}" if found else "its row is gone")
        return self._hold(asked)

    def release(self) -> bool:
        """True when the lease is free for others at once; False leaves it to run out."""
        token, self.token = self.token, None
        if token is None:
            return self._say("free", "not held")
        statement = leases.update().where(leases.c.name == self.name, leases.c.token == token).values(expires_at=0.0)
        try:
            with autocommit(self._engine) as connection:
                released = connection.execute(statement).rowcount == 1
        except sa.exc.SQLAlchemyError as error:
            return self._say("free", f"the database did not answer: {_first_line(error)}; the lease will run out")
        self._say("free", "released" if released else "it was already taken by another")
        return released

    def _hold(self, asked: float) -> bool:
        self.state, self.reason, self._sure_until = "held", "", asked + self.seconds
        return True

    def _say(self, state: LeaseState, reason: str) -> bool:
        self.state, self.reason = state, reason
        return False


def fence(engine: sa.Engine, token: int, name: str = CONTROLLER) -> sa.ColumnElement[bool]:
    """SQL condition: `token` holds the unexpired lease. Put it into the WHERE of the one statement that writes.

    On PostgreSQL it also locks the lease row until that statement is through, so that nobody can take the lease
    between the check and the write; on SQLite a writing statement has the database to itself from its start.
    """
    row = sa.select(sa.literal(1)).where(
        leases.c.name == name, leases.c.token == token, leases.c.expires_at > db_now(engine)
    )
    return row.with_for_update(read=True).exists()


def write_fenced(engine: sa.Engine, statement: UpdateBase, token: int, name: str = CONTROLLER) -> Sequence[sa.Row[Any]]:
    """The rows that one autocommitted `statement` returned; it carries `fence(engine, token)` and a RETURNING.

    No rows means that the statement's own conditions did not hold. Raises `LeaseLost` when it was the fence that
    kept it from writing.
    """
    with autocommit(engine) as connection:
        rows = connection.execute(statement).all()
        if not rows:
            found = _found(connection, engine, name)
            if found is None or found[1] != token or found[2] <= 0:
                raise LeaseLost(name, token, found)
    return rows


def check_fence(engine: sa.Engine, token: int, name: str = CONTROLLER) -> None:
    """Return while `token` holds the lease: before what no statement of the database can fence. Raises `LeaseLost`."""
    with autocommit(engine) as connection:
        found = _found(connection, engine, name)
    if found is None or found[1] != token or found[2] <= 0:
        raise LeaseLost(name, token, found)


def insert_fenced(
    engine: sa.Engine,
    table: sa.Table,
    values: Mapping[str, Any],
    token: int,
    name: str = CONTROLLER,
    *,
    only_if: sa.ColumnElement[bool] | None = None,
) -> sa.Row[Any] | None:
    """The new row of `table`, with all its columns; None when `only_if` did not hold.

    Raises `LeaseLost`; nothing is written then.
    """
    condition = fence(engine, token, name)
    insert = insert_where(table, values, condition if only_if is None else sa.and_(condition, only_if))
    rows = write_fenced(engine, insert.returning(*table.c), token, name)
    return rows[0] if rows else None


def upsert(engine: sa.Engine, table: sa.Table) -> PostgresInsert | SqliteInsert:
    """An INSERT into `table` that knows ON CONFLICT, in the dialect of `engine`."""
    if engine.dialect.name == "sqlite":
        from sqlalchemy.dialects.sqlite import insert as sqlite_insert

        return sqlite_insert(table)
    from sqlalchemy.dialects.postgresql import insert as postgres_insert

    return postgres_insert(table)


def autocommit(engine: sa.Engine) -> sa.Connection:
    """A connection on which each statement commits by itself: a process stopped between two holds no lock."""
    return engine.execution_options(isolation_level="AUTOCOMMIT").connect()


def _found(connection: sa.Connection, engine: sa.Engine, name: str) -> tuple[str, int, float] | None:
    """Holder, token and seconds left of the lease `name`."""
    left = leases.c.expires_at - db_now(engine)
    row = connection.execute(sa.select(leases.c.holder, leases.c.token, left).where(leases.c.name == name)).first()
    return None if row is None else (row[0], int(row[1]), float(row[2]))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
