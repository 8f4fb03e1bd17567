"""`/page/decisions`: what was decided, newest first, checks that say the same folded into one line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from monitoring.store import runs
from service.web.shapes import Decision, Decisions
from service.web.span import with_ids
from service.web.told import chips, sentence_of, story_of

if TYPE_CHECKING:
    from service.serving.management.deployment import Managed

MOST_READ: Final = 2000
"""Runs looked at for one page of decisions: a page may be shorter than asked for, and goes on from there."""
_AT_ONCE: Final = 500
_NUMBERS: Final = re.compile(r"\d[\d,. %]*")

_LINE: Final = tuple(column for column in runs.c if column.name != "record")


def decisions(here: Managed, before: int | None, limit: int) -> Decisions:
    folded: list[list[Any]] = []
    read, goes_on = 0, True
    with here.engine.connect() as connection:
        total = connection.scalar(sa.select(sa.func.count()).select_from(runs)) or 0
        while goes_on and read < MOST_READ and len(folded) <= limit:
            wanted = sa.select(*_LINE).order_by(runs.c.id.desc()).limit(_AT_ONCE)
            if before is not None:
                wanted = wanted.where(runs.c.id < before)
            rows = connection.execute(wanted).all()
            for row in rows:
                if folded and _same(folded[-1][0], row):
                    folded[-1].append(row)
                else:
                    folded.append([row])
                before = row.id
            read, goes_on = read + len(rows), len(rows) == _AT_ONCE
        if len(folded) > limit:
            before, goes_on = folded[limit - 1][-1].id, True
        shown = folded[:limit]
        newest = [group[0].id for group in shown]
        records = {row.id: row.record for row in with_ids(connection, (runs.c.id, runs.c.record), newest)}
    return Decisions(
        decisions=tuple(_decision(group, records[group[0].id]) for group in shown),
        before=before if goes_on and shown else None,
        total=total,
    )


def _same(newer: Any, older: Any) -> bool:
    """Whether both are checks that ended alike, for the same reason but for its numbers."""
    if newer.kind != "check" or older.kind != "check":
        return False
    alike = ("state", "outcome", "version", "trigger")
    if any(getattr(newer, name) != getattr(older, name) for name in alike):
        return False
    return newer.why == older.why or _NUMBERS.sub("#", newer.why) == _NUMBERS.sub("#", older.why)


def _decision(group: list[Any], record: str) -> Decision:
    newest, oldest = group[0], group[-1]
    told = story_of(record)
    took = None
    if newest.started_at is not None and newest.finished_at is not None:
        took = newest.finished_at - newest.started_at
    return Decision(
        kind=newest.kind,
        state=newest.state,
        outcome=newest.outcome,
        run=newest.id,
        first=oldest.id,
        count=len(group),
        since=oldest.created_at,
        to=newest.finished_at or newest.created_at,
        version=newest.version,
        trigger=newest.trigger,
        who=newest.who,
        why=newest.why,
        sentence=sentence_of(newest, told),
        chips=chips(told.verdict.gates) if told.verdict is not None else (),
        check=told.check,
        seconds=took,
    )
