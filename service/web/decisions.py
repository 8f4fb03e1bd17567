"""`/page/decisions`: what was decided, newest first, checks that said "no" in the same way folded into one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from monitoring.store import runs
from service.web.shapes import Decision, Decisions
from service.web.told import chips, sentence_of, story_of

if TYPE_CHECKING:
    from service.serving.management.deployment import Managed
    from training.runs import Fold


def decisions(here: Managed, before: int | None, limit: int, noes: bool) -> Decisions:
    """At most `limit` lines older than the run `before`; without `noes` checks that led to nothing are left out."""
    found = here.runs.folded(limit=limit, before=before, noes=noes)
    with here.engine.connect() as connection:
        total = connection.scalar(sa.select(sa.func.count()).select_from(runs)) or 0
    return Decisions(decisions=tuple(map(_decision, found.folds)), before=found.before, total=total)


def _decision(fold: Fold) -> Decision:
    newest, told = fold.run, story_of(fold.run.document)
    took = None
    if newest.started_at is not None and newest.finished_at is not None:
        took = newest.finished_at - newest.started_at
    return Decision(
        kind=newest.kind,
        state=newest.state,
        outcome=newest.outcome,
        run=newest.id,
        first=fold.first_id,
        count=fold.count,
        since=fold.first_at,
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
