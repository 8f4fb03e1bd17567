"""`/page/quality`: what the labels said at each check, what was promised, and what happened meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import sqlalchemy as sa

from monitoring.quality import LOWER_IS_BETTER
from monitoring.store import adaptations, checks, runs
from service.serving.management.standing import quality_of
from service.web.champion import task_of
from service.web.shapes import MOST_POINTS, LossSeries, Mark, Quality, QualitySeries
from service.web.span import Asked, chosen_checks, with_ids
from service.web.told import sentence_of, story_of

if TYPE_CHECKING:
    from service.serving.management.deployment import Managed

MARKED: Final = ("retrain", "bootstrap", "push", "promote", "rollback", "adaptation", "pause", "resume")
"""Kinds of runs that are marked; whatever failed is, too."""


class _Compared(msgspec.Struct):
    metric: str = ""
    level: float | None = None


class _Labels(msgspec.Struct):
    coverage: float | None = None
    delay_s: float | None = None


class Known(msgspec.Struct):
    """What a check's row says of quality, as far as a series shows it; what is not named is not decoded."""

    metric: str = ""
    value: float | None = None
    error: float | None = None
    rows: int = 0
    usable: bool = False
    state: str = "not known yet"
    words: str = ""
    note: str = ""
    compared: tuple[_Compared, ...] = ()
    labels: _Labels = msgspec.field(default_factory=_Labels)


def quality(here: Managed, asked: Asked) -> Quality:
    with here.engine.connect() as connection:
        ids, span = chosen_checks(connection, asked)
        rows = with_ids(connection, (checks.c.id, checks.c.at, checks.c.version, checks.c.quality), ids)
        losses = _losses(connection, asked, here)
        marks = _marks(connection, asked)
    decode = msgspec.json.Decoder(Known).decode
    known = [decode(row.quality) if row.quality is not None else Known() for row in rows]
    metric = next((each.metric for each in reversed(known) if each.metric), None)
    shown = [quality_of(msgspec.to_builtins(each)) if each.metric == metric else None for each in known]
    return Quality(
        metric=metric,
        higher_is_better=metric not in LOWER_IS_BETTER,
        span=span,
        series=QualitySeries(
            at=tuple(row.at for row in rows),
            check=tuple(row.id for row in rows),
            version=tuple(row.version for row in rows),
            served=tuple(None if each is None else each.value for each in shown),
            low=tuple(None if each is None else each.low for each in shown),
            high=tuple(None if each is None else each.high for each in shown),
            holdout=tuple(None if each is None else each.holdout for each in shown),
            rows=tuple(None if each is None else each.rows for each in shown),
            state=tuple(each.state for each in known),
            coverage=tuple(each.labels.coverage for each in known),
            delay_s=tuple(each.labels.delay_s for each in known),
        ),
        losses=losses,
        marks=marks,
    )


def _losses(connection: sa.Connection, asked: Asked, here: Managed) -> LossSeries:
    table = adaptations.c
    found = connection.execute(
        sa.select(table.at, table.version, table.number, table.record)
        .where(table.kind.in_(("made", "reverted")), *asked.conditions(table.at))
        .order_by(table.at.desc())
        .limit(MOST_POINTS)
    ).all()[::-1]
    told: list[tuple[Any, dict[str, Any]]] = [(row, msgspec.json.decode(row.record)) for row in found]
    told = [(row, record) for row, record in told if record.get("compared")]
    return LossSeries(
        metric="mse" if task_of(here) == "regression" else "log_loss",
        at=tuple(row.at for row, _ in told),
        version=tuple(row.version for row, _ in told),
        number=tuple(row.number for row, _ in told),
        served=tuple(record.get("served_loss") for _, record in told),
        raw=tuple(record.get("raw_loss") for _, record in told),
        rows=tuple(record.get("compared", 0) for _, record in told),
    )


def _marks(connection: sa.Connection, asked: Asked) -> tuple[Mark, ...]:
    table = runs.c
    # Indexes answer each from the newest on: what failed by its state, what was done by its kind.
    ids: set[int] = set()
    for kind in (None, *MARKED):
        which = [table.state == "failed"] if kind is None else [table.kind == kind, table.state != "failed"]
        wanted = sa.select(table.id).where(*which, *asked.conditions(table.created_at))
        ids |= set(connection.scalars(wanted.order_by(table.id.desc()).limit(MOST_POINTS)))
    newest = sorted(ids)[-MOST_POINTS:]
    found = [
        Mark(
            at=row.finished_at,
            kind=_mark_of(row.kind, row.state, row.outcome),
            run=row.id,
            version=row.version,
            text=sentence_of(row, story_of(row.record)),
        )
        for row in with_ids(connection, list(table), newest)
        if row.finished_at is not None and row.outcome != "no_action"
    ]
    made = adaptations.c
    events = connection.execute(
        sa.select(made.at, made.version, made.number, made.kind, made.why)
        .where(made.kind.in_(("made", "reverted")), *asked.conditions(made.at))
        .order_by(made.at.desc())
        .limit(MOST_POINTS)
    )
    found += [
        Mark(
            at=row.at,
            kind="alert" if row.kind == "reverted" else "adaptation",
            run=None,
            version=row.version,
            text=f"adaptation {row.number} of version {row.version} was {row.kind}: {row.why}",
        )
        for row in events
    ]
    return tuple(sorted(found, key=lambda mark: mark.at)[-MOST_POINTS:])


def _mark_of(kind: str, state: str, outcome: str | None) -> Any:
    if state == "failed":
        return "refusal" if outcome == "refused" else "alert"
    if kind in ("pause", "resume"):
        return "pause"
    if kind in ("rollback", "adaptation"):
        return kind
    if outcome == "promoted":
        return "promotion"
    return "refusal" if outcome in ("kept", "refused") else "training"
