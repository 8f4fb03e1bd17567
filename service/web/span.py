"""Which part of a history is asked for, and which few of its many checks are shown: chosen by id, none read before."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import sqlalchemy as sa

from monitoring.store import checks
from service.serving.request import Reject
from service.web.shapes import MOST_POINTS, Span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LATEST_S: Final = 1e11
"""Seconds since 1970: the year 5138; nothing later is meant."""


class Asked(NamedTuple):
    """since <= at < until, seconds since 1970 UTC; None: from the beginning, up to now."""

    since: float | None = None
    until: float | None = None

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Asked:
        """Raises `Reject`."""
        asked = cls(_moment(query, "since"), _moment(query, "until"))
        if asked.since is not None and asked.until is not None and asked.since >= asked.until:
            raise Reject(
                400, f"since={asked.since:g} is not before until={asked.until:g}: send them the other way round"
            )
        return asked

    def conditions(self, at: sa.ColumnElement[float]) -> list[sa.ColumnElement[bool]]:
        found = [] if self.since is None else [at >= self.since]
        return found if self.until is None else [*found, at < self.until]


def _moment(query: Mapping[str, str], name: str) -> float | None:
    given = query.get(name)
    if not given:
        return None
    try:
        found = float(given)
    except ValueError:
        found = math.nan
    if not math.isfinite(found) or not -LATEST_S < found < LATEST_S:
        raise Reject(400, f"{name}={given[:40]}: send seconds since 1970 UTC, such as {name}=1764200000")
    return found


def whole_number(query: Mapping[str, str], name: str, least: int, most: int) -> int | None:
    """A number of the query, None when it is not there. Raises `Reject`."""
    given = query.get(name)
    if given is None:
        return None
    if not (given.isascii() and given.isdecimal() and len(given) < 12 and least <= int(given) <= most):
        raise Reject(400, f"{name}={given[:40]}: send a whole number from {least} to {most}")
    return int(given)


def with_ids(connection: sa.Connection, columns: Sequence[sa.Column[Any]], ids: Sequence[int]) -> Sequence[sa.Row[Any]]:
    """These columns of the rows of one table with these ids, in the order of the ids. Hundreds of ids stand in the
    statement as they are: as many parameters would cost more than the rows."""
    if not ids:
        return []
    table = columns[0].table
    wanted = sa.select(*columns).where(sa.text(f"id in ({', '.join(str(int(each)) for each in ids)})"))
    return connection.execute(wanted.order_by(table.c.id), execution_options={"compiled_cache": None}).all()


def chosen_checks(connection: sa.Connection, asked: Asked, most: int = MOST_POINTS) -> tuple[list[int], Span]:
    """Ids of at most `most` checks spread evenly over the span, oldest first, its newest among them."""
    oldest, newest = (
        connection.scalar(sa.select(checks.c.at).order_by(order).limit(1))
        for order in (checks.c.at, checks.c.at.desc())
    )
    edge = sa.select(checks.c.id).where(*asked.conditions(checks.c.at)).order_by
    first = sa.select(sa.func.min(checks.c.id)) if asked.since is None else edge(checks.c.at).limit(1)
    last = sa.select(sa.func.max(checks.c.id)) if asked.until is None else edge(checks.c.at.desc()).limit(1)
    ends = [connection.scalar(end) for end in (first, last)]
    if None in ends:
        return [], Span(since=oldest, until=newest, of=0)
    # Ids grow by one a check, so they count them: to count the rows would take longer than all the rest. Where some are
    # missing (a transaction that was rolled back took one), a point is missing.
    low, high = sorted(ends)  # a clock may have been put back
    if high - low < most:
        ids = list(
            connection.scalars(sa.select(checks.c.id).where(checks.c.id.between(low, high)).order_by(checks.c.id))
        )
        return ids, Span(since=oldest, until=newest, of=len(ids))
    ids = np.unique(np.linspace(low, high, most).round().astype(np.int64)).tolist()
    return ids, Span(since=oldest, until=newest, of=high - low + 1)
