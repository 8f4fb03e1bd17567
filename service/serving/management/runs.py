"""What was checked and decided, and how the deployment stands."""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query

from service.handover import read_status
from service.serving.management.adaptation import in_force
from service.serving.management.managed import LARGEST_ID, Here, NumberInPath, Text
from service.serving.management.replicas import shown
from service.serving.management.sentence import sentence
from service.serving.management.standing import paused_by, standing
from training.rollout import live_workers
from training.runs import Check, Run

router = APIRouter()


@router.get("/manage/runs")
def list_runs(
    here: Here,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    before: Annotated[int | None, Query(ge=1, le=LARGEST_ID)] = None,
    kind: Annotated[Text | None, Query(max_length=100)] = None,
    trigger: Annotated[Text | None, Query(max_length=100)] = None,
    since: Annotated[float | None, Query(ge=0, allow_inf_nan=False)] = None,
    folded: bool = False,
) -> dict[str, Any]:
    """Decisions, newest first; `before` pages on, `since` is in seconds since 1970 UTC.

    `folded` makes checks in a row that said "no" in the same way one entry: the newest of them, `count`, and the
    `first_id` and `first_at` of the oldest, from which to page on.
    """
    asked: dict[str, Any] = {"limit": limit, "before": before, "kind": kind, "trigger": trigger, "since": since}
    if not folded:
        return {"runs": [_run(run) for run in here.runs.list(**asked)]}
    folds = here.runs.folded(**asked).folds
    return {"runs": [{**_run(f.run), "count": f.count, "first_id": f.first_id, "first_at": f.first_at} for f in folds]}


@router.get("/manage/runs/{run_id}")
def run(here: Here, run_id: NumberInPath) -> dict[str, Any]:
    """One decision with its full story."""
    return _run(here.runs.get(run_id))


@router.get("/manage/drift")
def drift(here: Here, limit: Annotated[int, Query(ge=1, le=1000)] = 1) -> dict[str, Any]:
    """The newest checks: drift by feature, quality, and what was decided."""
    return {"checks": [{"id": check.id, **_check(check)} for check in here.runs.checks(limit=limit)]}


@router.get("/manage/status")
def status(here: Here) -> dict[str, Any]:
    """The deployment at a glance."""
    live = here.registry.live()
    stands = standing(here, paused_by(here.runs.paused()))
    checks = here.runs.checks(limit=1)
    controller = read_status(here.run_dir)
    local = here.workers
    return {
        "sentence": sentence(stands, time.time()),
        "model": here.settings.model.name,
        "champion": live.champion,
        "previous": live.previous,
        "announced": live.announced,
        "engine": here.model_engine(live.champion),
        "adaptation": in_force(here, live.champion),
        "served_since": stands.served_since,
        "quality": msgspec.to_builtins(stands.quality),
        "coverage": stands.coverage,
        "delay_s": stands.delay_s,
        "next": msgspec.to_builtins(stands.next),
        "paused": stands.paused,
        "alerts": [str(alert) for alert in stands.alerts],
        "doubts": list(stands.doubts),
        "unadapted": {report.slot: report.unadapted for report in local if report.unadapted},
        "ready": not here.why_not_ready,
        "workers": [
            {"replica": w.replica, "slot": w.slot, "serving": w.serving, "ready": list(w.ready), "failed": w.failed}
            for w in live_workers(here.engine, 10.0)
        ]
        or [
            {"replica": "this", "slot": r.slot, "serving": r.serving, "ready": list(r.ready), "failed": r.failed}
            for r in local
        ],
        "replicas": shown(here),
        "leader": controller.leader if controller else None,
        "spool_bytes": controller.spool_bytes if controller else None,
        "drain_lag_s": controller.drain_lag_s if controller else None,
        "last_check": _check(checks[0]) if checks else None,
        "runs": [_run(run, whole=False) for run in here.runs.list(limit=5)],
    }


def _run(run: Run, *, whole: bool = True) -> dict[str, Any]:
    shown = {name: getattr(run, name) for name in Run.__dataclass_fields__}
    document = shown.pop("document")
    if whole:
        shown["record"] = document
    return shown


def _check(check: Check) -> dict[str, Any]:
    return {name: getattr(check, name) for name in ("at", "version", "drift", "quality", "decision")}
