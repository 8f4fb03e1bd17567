"""A few rows of a record of many: read at moments spread over a span, never all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import sqlalchemy as sa

from monitoring.store import key_columns, labels, predictions
from monitoring.window import LABEL_ORDER
from service.web.shapes import Span
from service.web.span import Asked

DAY_S: Final = 86_400.0
NEWEST: Final = tuple(column.desc() for column in (predictions.c.at, *key_columns(predictions)))


def span_of(connection: sa.Connection) -> Span:
    """When the first and the last row of the record were answered."""
    at = predictions.c.at
    oldest, newest = (connection.scalar(sa.select(at).order_by(order).limit(1)) for order in (at.asc(), at.desc()))
    return Span(since=oldest, until=newest, of=None)


def edges_of(span: Span, asked: Asked, bins: int) -> list[float]:
    """`bins` + 1 moments, equally far apart, over what is asked for of what there is; none when there is nothing."""
    if span.since is None or span.until is None:
        return []
    since = span.since if asked.since is None else max(asked.since, span.since)
    until = span.until + 0.001 if asked.until is None else min(asked.until, span.until + 0.001)
    return np.linspace(since, until, bins + 1).tolist() if since < until else []


def _each(connection: sa.Connection, columns: Sequence[Any], edges: Sequence[float], rows: int) -> Iterator[Any]:
    """For each edge, these columns of the first rows answered from it on and before the next.

    On PostgreSQL the partitions of those days are looked at alone: a row's day is that of its segment's birth, an hour
    before it at most.
    """
    at = predictions.c.at
    then = [at >= sa.bindparam("since", type_=sa.Double), at < sa.bindparam("until", type_=sa.Double)]
    if connection.dialect.name == "postgresql":
        then.append(predictions.c.day.between(sa.bindparam("first"), sa.bindparam("last")))
    wanted = sa.select(*columns).where(*then).order_by(at).limit(rows)
    for since, until in pairwise(edges):
        days = {"first": int(since // DAY_S) - 1, "last": int(until // DAY_S)}
        yield connection.execute(wanted, {"since": since, "until": until, **days}).all()


def sample(connection: sa.Connection, edges: list[float], rows: int) -> list[list[Any]]:
    """The first rows from each edge on, before the next: (at, prediction, probabilities, label or None)."""
    label = (
        sa.select(labels.c.label)
        .where(labels.c.id == predictions.c.id)
        .order_by(*(column.desc() for column in LABEL_ORDER))
        .limit(1)
        .correlate(predictions)
        .scalar_subquery()
    )
    columns = predictions.c.at, predictions.c.prediction, predictions.c.probabilities, label.label("label")
    return [list(group) for group in _each(connection, columns, edges, rows)]


def labelled_sample(
    connection: sa.Connection, newest: int, moments: int, rows: int
) -> list[tuple[float, float | None]]:
    """(answered, label first received or None) of rows at moments spread over the time of the newest `newest` rows."""
    at = predictions.c.at
    span = span_of(connection)
    first = connection.scalar(sa.select(at).order_by(at.desc()).limit(1).offset(newest))
    received = (
        sa.select(sa.func.min(labels.c.received_at))
        .where(labels.c.id == predictions.c.id)
        .correlate(predictions)
        .scalar_subquery()
    )
    edges = edges_of(span, Asked(since=first), moments)
    return [(row[0], row[1]) for group in _each(connection, (at, received), edges, rows) for row in group]


def paces(connection: sa.Connection, edges: list[float], most: int) -> list[tuple[int, float | None]]:
    """(rows from each edge on before the next, counted up to `most`; when the last one counted was answered, None
    where fewer were counted). One statement, in which each bin costs a look or two into an index.
    """
    given = ", ".join(f"({a!r}, {b!r})" for a, b in pairwise(edges))
    looks = (
        f"with given(x, y) as (values {given}), "
        "looks as (select cast(x as double precision) as a, cast(y as double precision) as b from given) "
    )
    if connection.dialect.name == "postgresql":  # the days as in `_each`
        inside = "at >= a and at < b and day between cast(a / 86400 as integer) - 1 and cast(b / 86400 as integer)"
        few = f"select count(*) as rows, max(at) as newest from (select at from predictions where {inside} order by at"
        wanted = (
            f"{looks} select rows, newest from looks, lateral ({few} limit {int(most)}) as few) as counted order by a"
        )
    else:  # SQLite has no LATERAL
        few = "from predictions where at >= a and at < b"
        wanted = (
            f"{looks} select (select count(*) from (select 1 {few} limit {int(most)})), "
            f"(select at {few} order by at limit 1 offset {int(most) - 1}) from looks order by a"
        )
    found = connection.execute(sa.text(wanted), execution_options={"compiled_cache": None})
    return [(int(rows), newest if rows == most else None) for rows, newest in found]
