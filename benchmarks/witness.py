"""What PostgreSQL itself writes down of a deployment: each write of a decision, from which host, under which token.

Triggers note it in the transaction of the write, so nothing that was decided is missing and nothing else is there. The
replicas do not know of it. `problems` says where more than one hand was at work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

TRIGGERS: Final = """
create table witness (
    seq bigserial primary key, at double precision not null, source text, what text not null, fact jsonb not null,
    token bigint, left_s double precision
);
create table hold_flip (seconds double precision);
create function note_fact() returns trigger language plpgsql as $$
declare
    fact jsonb := to_jsonb(new) - '{record,manifest,drift,quality,decision,served,whole}'::text[];
    held record;
begin
    if tg_table_name = 'aliases' and fact->>'alias' = 'champion' then
        perform pg_sleep(seconds) from hold_flip;
    end if;
    select token, expires_at into held from leases where name = 'controller';
    insert into witness (at, source, what, fact, token, left_s) values (
        extract(epoch from clock_timestamp()), host(inet_client_addr()), tg_table_name, fact, held.token,
        held.expires_at - extract(epoch from clock_timestamp())
    );
    return null;
end $$;
create trigger note_run after insert or update on runs for each row execute function note_fact();
create trigger note_alias after insert or update on aliases for each row execute function note_fact();
create trigger note_version after insert or update on versions for each row execute function note_fact();
create trigger note_check after insert on checks for each row execute function note_fact();
create trigger note_adaptation after insert on adaptations for each row execute function note_fact();
create trigger note_taken after insert on leases for each row execute function note_fact();
create trigger note_retaken after update on leases for each row when (old.token <> new.token)
    execute function note_fact();
"""

WORK: Final = ("bootstrap", "retrain", "push", "erase")
"""Kinds of runs of which one at a time is under way; moves of an alias may stand beside one."""
OF_ANYONE: Final = ("tag", "note", "erase_part", "retention_part")
"""Kinds of runs that are written without the lease: what people say, and what each home forgets by itself."""
CUT_SHORT: Final = ("interrupted", "crashed")
"""How a run ends that another holder of the lease than the one that began it writes an end to."""


class Fact(NamedTuple):
    """One row that was written."""

    seq: int
    at: float  # seconds since 1970 UTC, of the database
    source: str  # address of the host that wrote it
    what: str  # the table
    fact: dict[str, Any]  # the row, without its documents
    token: int | None  # of the lease, at this moment
    left_s: float | None  # until the lease runs out

    @property
    def decided(self) -> bool:
        """Whether only the holder of the lease may write it: anyone may ask for a run, and take a number."""
        if self.what == "runs":
            return bool(self.fact["state"] != "queued" and self.fact["kind"] not in OF_ANYONE)
        return self.what != "leases" and not (self.what == "aliases" and self.fact["alias"] == "counter")


class Flip(NamedTuple):
    """A moment from which another version is the champion."""

    at: float
    version: int


def install(engine: sa.Engine) -> None:
    """Begin to note; the tables are there already."""
    with engine.connect() as connection:
        connection.exec_driver_sql(TRIGGERS.replace("%", "%%"))


def facts(engine: sa.Engine) -> list[Fact]:
    """All that was noted, in the order of the writes."""
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("select seq, at, source, what, fact, token, left_s from witness order by seq")
        return [Fact(*row) for row in rows]


def flips(noted: Sequence[Fact]) -> list[Flip]:
    """Each change of the champion."""
    found: list[Flip] = []
    for one in noted:
        if one.what == "aliases" and one.fact["alias"] == "champion":
            version = int(one.fact["version"])
            if not found or found[-1].version != version:
                found.append(Flip(one.at, version))
    return found


def problems(noted: Sequence[Fact], besides: str = "") -> list[str]:
    """Where it was not one hand: nothing when all is well. What the host `besides` wrote is no decision.

    1. Who writes a decision is the host that took the token that the lease has at this moment, and the lease has not
       run out.
    2. Tokens never fall from one write to the next.
    3. A run ends under the token that it was begun with, or as cut short.
    4. Of trainings, pushes and erasures one at a time is under way.
    """
    wrong: list[str] = []
    taken: dict[int, str] = {}
    begun: dict[int, int] = {}  # run -> token
    under_way: dict[int, str] = {}
    newest = 0
    for one in noted:
        token = int(one.fact["token"]) if one.what == "leases" else one.token or 0
        if one.what == "leases":
            taken[token] = one.source
        elif not one.decided or one.source == besides:
            continue
        if token < newest:
            wrong.append(f"{_told(one)}: token {token} after {newest}")
        newest = max(newest, token)
        if one.what == "leases":
            continue
        if taken.get(token) != one.source:
            wrong.append(f"{_told(one)}: by {one.source}, and {taken.get(token)} holds token {token}")
        if one.left_s is None or one.left_s <= 0:
            wrong.append(f"{_told(one)}: the lease had run out {-(one.left_s or 0):.1f} s before")
        if one.what != "runs":
            continue
        run, kind, state = int(one.fact["id"]), str(one.fact["kind"]), str(one.fact["state"])
        if state == "running":
            begun[run] = token
            if kind in WORK:
                wrong += [f"{_told(one)}: run {other} was under way" for other in under_way if other != run]
                under_way[run] = kind
        elif state in ("done", "failed"):
            under_way.pop(run, None)
            if begun.get(run, token) != token and one.fact["outcome"] not in CUT_SHORT:
                wrong.append(f"{_told(one)}: begun with token {begun[run]}, ended with {token}")
    return wrong


def _told(one: Fact) -> str:
    row = " ".join(str(one.fact[name]) for name in ("id", "alias", "version", "kind", "state") if name in one.fact)
    return f"write {one.seq} ({one.what} {row})"
