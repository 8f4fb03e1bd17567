"""`/page/runs/{id}`: one run's story, its parts as data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from monitoring.store import runs
from service.web.shapes import Compared, Learned, Link, Phase, Rows, Story, Trial, Tried
from service.web.told import chips, sentence_of, story_of
from training.registry import UnknownVersion

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.serving.management.deployment import Managed
    from training.manifest import Manifest, RunRecord
    from training.runs import Run


def story(here: Managed, run_id: int) -> Story:
    """Raises `UnknownRun`, and `FormatError` for a record of a newer release."""
    run = here.runs.get(run_id)
    record = run.record
    made = None
    if record.version is not None:
        try:
            made = here.registry.manifest(record.version)
        except UnknownVersion:  # deleted since
            made = None
    with here.engine.connect() as connection:
        newer = connection.scalar(sa.select(sa.func.min(runs.c.id)).where(runs.c.id > run_id))
        older = connection.scalar(sa.select(sa.func.max(runs.c.id)).where(runs.c.id < run_id))
    verdict, quality, data = record.verdict, record.quality, record.data
    return Story(
        id=run.id,
        kind=run.kind,
        state=run.state,
        outcome=run.outcome,
        trigger=run.trigger,
        who=run.who,
        why=run.why,
        sentence=sentence_of(run, story_of(run.document)),
        created_at=run.created_at,
        started_at=run.started_at,
        finished_at=run.finished_at,
        version=run.version,
        error=record.error,
        stderr=record.stderr,
        notes=(*record.notes, *(record.job.notes if record.job is not None else ())),
        decision=record.decision.reasons if record.decision is not None else (),
        due=record.decision.due if record.decision is not None and record.decision.train else None,
        phases=tuple(_phases(run, record)),
        gates=chips(verdict.gates) if verdict is not None else (),
        passed=None if verdict is None else verdict.passed,
        quality=None
        if quality is None
        else Compared(
            metric=quality.metric,
            challenger=quality.challenger,
            champion=quality.champion,
            error=quality.error,
            rows=quality.rows,
            metrics=quality.metrics,
        ),
        windows=tuple(
            Tried(name=one.name, rows=one.rows, sigmas=one.sigmas, chosen=one.chosen)
            for one in (record.job.windows if record.job is not None else ())
        ),
        trials=trials_of(made) if made is not None else (),
        data=None
        if data is None
        else Learned(
            snapshot=data.snapshot, rows=data.rows, record_rows=data.record_rows, since=data.since, until=data.until
        ),
        judged=_judged(record, made),
        unfit_rows=record.unfit_rows,
        rollout=run.document.get("rollout"),
        links=tuple(_links(here, run, record)),
        record=run.document,
        newer=newer,
        older=older,
    )


def _phases(run: Run, record: RunRecord) -> Iterator[Phase]:
    """What is known of how the time went; a job's length is measured, and it ends before the rollout begins."""
    if run.started_at is None:
        return
    if run.started_at > run.created_at:
        yield _phase("waiting", run.created_at, run.started_at)
    if run.finished_at is None:
        return
    rollout = record.rollout.waited_s if record.rollout is not None else 0.0
    moved = max(run.started_at, run.finished_at - rollout)
    judged = moved
    if record.job is not None:
        judged = max(run.started_at, moved - record.job.seconds)
        if judged > run.started_at:
            yield _phase("data", run.started_at, judged)
        yield _phase("training and judging", judged, moved)
    elif moved > run.started_at or record.rollout is None:
        yield _phase("the rest", run.started_at, moved)
    if record.rollout is not None:
        yield _phase("taking into service", moved, run.finished_at)


def _phase(name: str, since: float, to: float) -> Phase:
    return Phase(name=name, since=since, to=to, seconds=to - since)


def trials_of(made: Manifest) -> tuple[Trial, ...]:
    """The study of a version, in the order tried; the best is not chosen when it was not surely better."""
    found = []
    for number, trial in enumerate(made.data.trials, 1):
        parameters = dict(trial.get("parameters", {}))
        chosen = parameters == made.parameters
        found.append(Trial(number=number, value=trial.get("score"), parameters=parameters, chosen=chosen))
    return tuple(found)


def _judged(record: RunRecord, made: Manifest | None) -> tuple[Rows, ...]:
    found = []
    if made is not None and made.data.rows:
        found.append(Rows(use="training", rows=made.data.rows))
    if record.quality is not None:
        found.append(Rows(use="judging", rows=record.quality.rows))
    return tuple(found)


def _links(here: Managed, run: Run, record: RunRecord) -> Iterator[Link]:
    if record.check is not None:
        yield Link(text=f"check {record.check}", kind="check", check=record.check)
        yield Link(text=f"Evidently's report of check {record.check}", kind="report", check=record.check)
    if run.version is not None:
        yield Link(text=f"version {run.version}", kind="version", version=run.version)
        before = record.rollout.previous if record.rollout is not None else None
        if before is not None and before != run.version:
            text = f"versions {before} and {run.version} side by side"
            yield Link(text=text, kind="versions", version=before, other=run.version)
