"""Lean reads of the record: how many labels, when they came, what was answered. No features, arrays only."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import sqlalchemy as sa

from monitoring.store import labels, predictions
from monitoring.window import conditions_of, has_label, joins, snapshot_of

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]


def count_labelled(
    engine: sa.Engine,
    *,
    most: int,
    since: float | None = None,
    until: float | None = None,
    version: int | None = None,
    sources: Collection[str] = (),
) -> int:
    """Prediction ids with a label, counted up to `most`; `since` <= answered < `until`, seconds since 1970 UTC.

    With `sources` only the labels that came with a token of one of these names count.
    """
    conditions = conditions_of(since, until, version)
    found = sa.select(predictions.c.id).distinct().where(*conditions, has_label(sources=sources)).limit(most).subquery()
    with snapshot_of(engine) as connection:
        return int(connection.scalar(sa.select(sa.func.count()).select_from(found)) or 0)


def label_times(engine: sa.Engine, *, rows: int, sources: Collection[str] = ()) -> tuple[Array, Array]:
    """When the newest `rows` predictions were answered, and when the first label of each was received (NaN: not yet).

    Seconds since 1970 UTC, oldest first; which version answered does not matter.
    """
    newest = sa.select(predictions.c.id, predictions.c.at).order_by(predictions.c.at.desc()).limit(rows).subquery()
    received = (
        sa.select(sa.func.min(labels.c.received_at)).where(joins(newest, sources)).correlate(newest).scalar_subquery()
    )
    with snapshot_of(engine) as connection:
        found = connection.execute(sa.select(newest.c.at, received)).cursor
        pairs = np.array(found.fetchall(), dtype=np.float64).reshape(-1, 2)
        found.close()
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    return pairs[:, 0], pairs[:, 1]
