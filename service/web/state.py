"""`/page/state`: the deployment at a glance, of the same facts as `/manage/status`."""

from __future__ import annotations

import time
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import sqlalchemy as sa

from monitoring.answers import DELAY_ROWS
from monitoring.metrics import samples
from monitoring.quality import LOWER_IS_BETTER
from monitoring.store import db_now, leases, runs, versions
from service.handover import read_status
from service.serving.management.sentence import sentence
from service.serving.management.standing import WORKER_ALIVE_S, paused_by, quality_of, standing
from service.web.champion import task_of
from service.web.rows import labelled_sample
from service.web.shapes import (
    AdaptationNow,
    Alert,
    DelayHistogram,
    Job,
    Lease,
    NextStep,
    Paused,
    QualityNow,
    Record,
    ReplicaNow,
    RunningNow,
    StateForAll,
    WorkerNow,
)
from service.web.traffic import replica_of
from training.adaptation import IDENTITY
from training.adaptations import Adaptations
from training.homes import expected
from training.lease import CONTROLLER
from training.rollout import live_workers
from training.runs import PART

if TYPE_CHECKING:
    from collections.abc import Iterable

    from service.serving.management.deployment import Managed
    from training.homes import Home
    from training.rollout import WorkerState
    from training.runs import Check

DELAY_MOMENTS: Final = 20
DELAY_ROWS_EACH: Final = 50
DELAY_BINS: Final = 24


def state(here: Managed, revision: str, late: DelayHistogram | None) -> StateForAll:
    """`late` is what `delays` says."""
    now, live, paused = time.time(), here.registry.live(), here.runs.paused()
    stands = standing(here, paused_by(paused))
    newest = next(iter(here.runs.checks(limit=1)), None)
    known: dict[str, Any] = (newest.quality if newest is not None else None) or {}
    running, why_not = here.runs.running(), here.why_not_ready
    controller = read_status(here.run_dir)
    alive = live_workers(here.engine, WORKER_ALIVE_S)
    with here.engine.connect() as connection:
        queued = connection.scalar(sa.select(sa.func.count()).where(runs.c.state == "queued", runs.c.kind != PART)) or 0
        registered = connection.scalars(
            sa.select(versions.c.version)
            .where(versions.c.name == here.registry.name)
            .order_by(versions.c.version.desc())
        ).all()
        lease = _lease(connection, here)
    under_way = None
    if running is not None:
        under_way = RunningNow(
            run=running.id,
            kind=running.kind,
            trigger=running.trigger,
            since=running.started_at or running.created_at,
            queued=queued,
        )
    return StateForAll(
        revision=revision,
        at=now,
        model=here.settings.model.name,
        task=task_of(here),
        sentence=sentence(stands, now, UTC),
        version=live.champion,
        previous=live.previous,
        announced=live.announced,
        engine=here.model_engine(live.champion),
        served_since=stands.served_since,
        ready=not why_not,
        why_not_ready=why_not,
        quality=_quality(newest, known) if newest is not None and newest.version == live.champion else None,
        coverage=stands.coverage,
        delay_s=stands.delay_s,
        waiting=(known.get("labels") or {}).get("waiting"),
        next=NextStep(what=stands.next.what, at=None if paused is not None else stands.next.at),
        doubts=stands.doubts,
        adaptation=_adaptation(here, live.champion),
        alerts=tuple(Alert(text=one.text, kind=one.kind, run=one.run) for one in stands.needs),
        paused=None
        if paused is None
        else Paused(who=paused.who, why=paused.why, at=paused.finished_at or paused.created_at, run=paused.id),
        running=under_way,
        queued=queued,
        versions=tuple(registered),
        replicas=tuple(sorted({worker.replica for worker in alive})),
        homes=tuple(_replica(home, here) for home in expected(here.engine)),
        here=replica_of(here.run_dir),
        workers=_workers(alive),
        lease=lease,
        jobs=tuple(
            Job(name=job.name, last_success=job.last_success, next=job.next, failures=job.failures)
            for job in controller.jobs
        )
        if controller is not None and controller.leader
        else None,
        record=_record(here, late),
    )


def _quality(newest: Check, known: dict[str, Any]) -> QualityNow:
    found = quality_of(known)
    return QualityNow(
        state=found.state,  # type: ignore[arg-type]
        metric=found.metric,
        higher_is_better=found.metric not in LOWER_IS_BETTER,
        value=found.value,
        low=found.low,
        high=found.high,
        rows=found.rows,
        holdout=found.holdout,
        why=found.why,
        at=newest.at,
        check=newest.id,
    )


def _adaptation(here: Managed, champion: int | None) -> AdaptationNow:
    table = Adaptations(here.engine)
    switch = table.switch()
    newest = None if champion is None else table.newest(champion)
    in_force = None if champion is None else table.in_force(champion)
    made = newest if in_force is not None else None
    event = switch if switch is not None and switch.kind == "off" else newest
    record = {} if made is None else made.record
    weights = {name: float(weight) for name, weight in (record.get("weights") or {}).items()}
    if not here.settings.adapt.enabled:
        how = "never"
    elif switch is not None and switch.kind == "off":
        how = "off"
    else:
        how = "none" if made is None else "in force"
    return AdaptationNow(
        state=how,  # type: ignore[arg-type]
        number=None if in_force is None else in_force.number,
        since=None if event is None else event.at,
        weight=1.0 - weights.get(IDENTITY, 0.0) if weights else None,
        weights=weights,
        raw_loss=record.get("raw_loss"),
        served_loss=record.get("served_loss"),
        compared=record.get("compared", 0),
        who="" if event is None else event.who,
        why="" if event is None else event.why,
    )


def _workers(alive: Iterable[WorkerState]) -> tuple[WorkerNow, ...]:
    return tuple(
        WorkerNow(
            replica=worker.replica,
            slot=worker.slot,
            serving=worker.serving,
            ready=tuple(worker.ready),
            failed={str(version): why for version, why in worker.failed.items()},
        )
        for worker in alive
    )


def _replica(home: Home, here: Managed) -> ReplicaNow:
    known = {name: getattr(home, name) for name in ReplicaNow.__struct_fields__ if name != "here"}
    return ReplicaNow(**known, here=home.home == here.home)


def _lease(connection: sa.Connection, here: Managed) -> Lease | None:
    row = connection.execute(
        sa.select(leases.c.holder, leases.c.expires_at).where(
            leases.c.name == CONTROLLER, leases.c.expires_at > db_now(here.engine)
        )
    ).first()
    if row is None:
        return None
    mine = str(row.holder).startswith(f"{replica_of(here.run_dir)}:")
    return Lease(holder=row.holder, expires_at=row.expires_at, here=mine)


def _record(here: Managed, late: DelayHistogram | None) -> Record:
    controller = read_status(here.run_dir)
    counted = samples(here.metrics_dir, ("log_records", "labels", "rows_unfit"))

    def of(name: str, outcome: str | None) -> int:
        series = counted.get(f"evergreen_{name}_total", {})
        return int(sum(value for place, value in series.items() if outcome in (None, dict(place).get("outcome"))))

    return Record(
        spool_bytes=None if controller is None else controller.spool_bytes,
        lag_s=None if controller is None else controller.drain_lag_s,
        drops=of("log_records", "dropped") + of("labels", "dropped"),
        unfit=of("rows_unfit", None),
        dead_letters=of("log_records", "dead_letter"),
        delays=late,
    )


def delays(here: Managed) -> DelayHistogram | None:
    """None while no row has a label."""
    with here.engine.connect() as connection:
        rows = labelled_sample(connection, DELAY_ROWS, DELAY_MOMENTS, DELAY_ROWS_EACH)
    late = np.array([max(0.0, received - at) for at, received in rows if received is not None])
    if not len(late):
        return None
    low, high = max(float(late.min()), 0.001), max(float(late.max()), 0.002)
    edges = np.geomspace(low, high * 1.001, DELAY_BINS + 1) if high > low else np.array([low, high * 2])
    counts = np.histogram(np.maximum(late, low), edges)[0]
    return DelayHistogram(
        edges_s=tuple(edges.tolist()),
        labels=tuple(counts.tolist()),
        rows=len(rows),
        without=len(rows) - len(late),
    )
