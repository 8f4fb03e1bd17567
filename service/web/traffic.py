"""`/page/traffic`: how many rows came when, how fast this replica answers, and which version answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import sqlalchemy as sa

from monitoring.store import runs
from service.process import SUPERVISOR
from service.web.meter import Meter
from service.web.rows import edges_of, paces, span_of
from service.web.shapes import MOST_POINTS, Rate, Ribbon, Traffic
from service.web.span import Asked

if TYPE_CHECKING:
    from pathlib import Path

    from service.serving.management.deployment import Managed

BINS: Final = 64
LOOKS: Final = 2
"""Of each bin."""
COUNTED: Final = 250
"""Rows of a look that are counted; of more, the pace of these is taken for that of the whole look."""
MOVES: Final = ("bootstrap", "retrain", "push", "promote", "rollback")


def traffic(here: Managed, meter: Meter, asked: Asked) -> Traffic:
    with here.engine.connect() as connection:
        span = span_of(connection)
        rate = _rate(connection, edges_of(span, asked, BINS * LOOKS))
        versions = _ribbon(connection, asked)
    return Traffic(
        replica=replica_of(here.run_dir),
        rate=rate,
        recent=meter.recent(),
        totals=meter.totals(_began(here.run_dir)),
        versions=versions,
        span=span,
    )


def replica_of(run_dir: Path) -> str:
    """The name of this replica in the table of workers."""
    import socket

    return f"{socket.gethostname()}:{run_dir.name}"


def _began(run_dir: Path) -> float | None:
    try:
        return (run_dir / SUPERVISOR).stat().st_mtime
    except OSError:  # under plain `bentoml serve` there is no such file
        return None


def _rate(connection: sa.Connection, edges: list[float]) -> Rate:
    if not edges:
        return Rate(at=(), rows_s=(), exact=(), bin_s=None)
    width = edges[1] - edges[0]
    rows, exact = [], []
    for since, (count, last) in zip(edges, paces(connection, edges, COUNTED), strict=False):
        exact.append(last is None)
        # So many rows came until the last one counted; when all came at one moment, no more than these is known.
        took = 0.0 if last is None else last - since
        rows.append(count * width / took if took > 0 else float(count))
    by_bin = np.array(rows).reshape(BINS, LOOKS).sum(axis=1) / (width * LOOKS)
    return Rate(
        at=tuple(edges[:-1:LOOKS]),
        rows_s=tuple(by_bin.tolist()),
        exact=tuple(all(exact[at : at + LOOKS]) for at in range(0, BINS * LOOKS, LOOKS)),
        bin_s=width * LOOKS,
    )


def _ribbon(connection: sa.Connection, asked: Asked) -> tuple[Ribbon, ...]:
    table = runs.c
    found: list[Any] = []
    for kind in MOVES:
        wanted = sa.select(table.id, table.version, table.finished_at).where(
            table.kind == kind, table.outcome.in_(("promoted", "rolled_back"))
        )
        found += connection.execute(wanted.order_by(table.id.desc()).limit(MOST_POINTS)).all()
    moves = sorted((row for row in found if row.version is not None), key=lambda row: (row.finished_at, row.id))
    ends = [*(row.finished_at for row in moves[1:]), None][: len(moves)]
    shown = [
        Ribbon(version=row.version, since=row.finished_at, to=end, run=row.id)
        for row, end in zip(moves, ends, strict=True)
        if (asked.since is None or end is None or end >= asked.since)
        and (asked.until is None or row.finished_at < asked.until)
    ]
    return tuple(shown[-MOST_POINTS:])
