"""Lean reads of the record: how many labels, when they came, what was answered. No features, arrays only."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import sqlalchemy as sa

from monitoring.maturity import FEWEST, Maturity, measure
from monitoring.schema import FeatureSchema
from monitoring.store import key_columns, labels, predictions
from monitoring.window import (
    LABEL_ORDER,
    column_of,
    conditions_of,
    has_label,
    is_superseded,
    joins,
    matrix_of,
    snapshot_of,
    targets_of,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]


_AT_ONCE: Final = 4096
"""Rows that are text at one time; then they are numbers."""
DELAY_ROWS: Final = 20_000
"""Newest predictions that the delay of labels is measured from."""


class Answers(NamedTuple):
    """What a version answered, with the labels that came: n rows, oldest first."""

    at: Array
    """Seconds since 1970 UTC."""
    labels: npt.NDArray[Any]
    """Canonical: classes, or numbers for a regression."""
    answers: npt.NDArray[Any]
    """The same."""
    scores: Array | None
    """n x classes, NaN where there were none; None for a regression."""
    unfit: int = 0
    """Rows left out: their label, or their answer, is none of the schema's."""


def label_maturity(
    engine: sa.Engine,
    now: float,
    delay_s: float | None = None,
    sources: Collection[str] = (),
    *,
    rows: int = DELAY_ROWS,
) -> Maturity:
    """What is known of labels' delays at `now`; rows answered before its `matured_until` may be judged by their labels.

    The delay is `delay_s`, or measured from the newest `rows` predictions when it is None. When hardly any of them
    has a label yet, although there are so many, none of them is mature.
    """
    answered, known = label_times(engine, rows=rows, sources=sources)
    found = measure(answered, known, now, delay_s)
    if delay_s is None and not found.measured and len(answered) == rows and found.labels < FEWEST:
        return measure(answered, known, now, max(0.0, now - float(answered[0])))
    return found


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


def read_answers(
    engine: sa.Engine,
    schema: FeatureSchema,
    *,
    version: int,
    rows: int,
    until: float | None = None,
    sources: Collection[str] = (),
) -> Answers:
    """The newest `rows` rows with a label that this version answered before `until`: as they were answered.

    Of several labels the one observed last counts, and a label joins only the newest row with its id. With `sources`
    only the labels that came with a token of one of these names are looked at.
    """
    newest = tuple(column.desc() for column in (predictions.c.at, *key_columns(predictions)))
    label = (
        sa.select(labels.c.label)
        .where(joins(predictions, sources))
        .order_by(*(column.desc() for column in LABEL_ORDER))
        .limit(1)
        .correlate(predictions)
        .scalar_subquery()
    )
    wanted = (
        sa.select(predictions.c.at, predictions.c.prediction, predictions.c.probabilities, label)
        .where(*conditions_of(None, until, version), has_label(sources=sources), ~is_superseded())
        .order_by(*newest)
        .limit(rows)
    )
    found = [_arrays(schema, ())]
    unfit = 0
    with snapshot_of(engine) as connection:
        cursor: Any = connection.execute(wanted).cursor
        while chunk := cursor.fetchmany(_AT_ONCE):
            found.append(_arrays(schema, chunk))
            unfit += len(chunk) - len(found[-1].at)
        cursor.close()
    scores = None
    if schema.classes:
        scores = np.concatenate([each.scores for each in found if each.scores is not None])[::-1]
    at, truth, answers = (np.concatenate(column)[::-1] for column in list(zip(*found, strict=True))[:3])
    return Answers(at, truth, answers, scores, unfit)


def _arrays(schema: FeatureSchema, rows: Sequence[tuple[float, str, str | None, str]]) -> Answers:
    """The rows that fit, as arrays."""
    at, answered, chances, labelled = zip(*rows, strict=True) if rows else ((), (), (), ())
    truth, answers = targets_of(schema, labelled), targets_of(schema, answered)
    scores, fits = matrix_of(chances, len(schema.classes))
    fits &= np.array([a is not None and b is not None for a, b in zip(truth, answers, strict=True)], dtype=bool)
    keep = np.flatnonzero(fits).tolist()
    return Answers(
        np.array(at, dtype=np.float64)[keep],
        column_of(schema, [truth[row] for row in keep]),
        column_of(schema, [answers[row] for row in keep]),
        scores[keep] if schema.classes else None,
    )
