"""The facts of `sentence.py`, read from the newest check, the registry, the runs and the controller's status."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from service.handover import read_status
from service.serving.management.sentence import Alert, KnownQuality, Next, Standing, duration
from training.homes import expected
from training.rollout import live_workers

if TYPE_CHECKING:
    from service.serving.management.deployment import Managed
    from training.homes import Home
    from training.runs import Check, Run

SIGMAS: Final = 1.96
"""Standard errors of an interval of 95 %."""
LATE_S: Final = 60.0
"""A record that waits longer for the store, and a check that is later than this, need a look."""
WORKER_ALIVE_S: Final = 10.0
AT_MOST_1: Final = ("auc", "accuracy", "f1", "f1_macro", "brier", "r2")
ANY_SIGN: Final = ("r2",)
"""The other metrics are never below 0."""


def standing(here: Managed, paused: str | None = None) -> Standing:
    """How the deployment stands now; `paused` says who paused the loop and why, None that it runs."""
    now, champion = time.time(), here.registry.live().champion
    newest = next(iter(here.runs.checks(limit=1)), None)
    known: Mapping[str, Any] = (newest.quality if newest else None) or {}
    labels = known.get("labels") or {}
    ahead = upcoming(newest, champion, here.runs.running(), here.settings.schedule.check_interval_s)
    return Standing(
        version=champion,
        why_none="" if champion is not None else _why_none(here),
        served_since=here.registry.served_since(),
        quality=quality_of(known) if newest is not None and newest.version == champion else None,
        coverage=labels.get("coverage"),
        delay_s=labels.get("delay_s"),
        next=ahead,
        paused=paused,
        doubts=_doubts(here, champion),
        alerts=(*_alerts(here, newest, ahead if paused is None else None, now), *_drift(newest, champion)),
    )


def paused_by(run: Run | None) -> str | None:
    """Who paused the loop and why, of the run that did."""
    return None if run is None else f"{run.who}: {run.why}" if run.why else run.who


def quality_of(known: Mapping[str, Any]) -> KnownQuality:
    """The quality that a check's row holds."""
    metric, value, error = known.get("metric", ""), known.get("value"), known.get("error")
    compared = (each for each in known.get("compared", ()) if each.get("metric") == metric)
    found = KnownQuality(
        state=known.get("state", "not known yet"),
        metric=metric,
        rows=known.get("rows", 0),
        holdout=next((each.get("level") for each in compared), None),
        why=known.get("words", "").partition(": ")[2] or known.get("note", ""),
    )
    if value is None or not known.get("usable"):
        return found
    low, high = (None, None) if error is None else interval_of(metric, value, error)
    return msgspec.structs.replace(found, value=value, low=low, high=high)


def interval_of(metric: str, value: float, error: float) -> tuple[float, float]:
    """The interval of 95 % around a value with this standard error, within what the metric can be."""
    low, high = value - SIGMAS * error, value + SIGMAS * error
    return low if metric in ANY_SIGN else max(0.0, low), min(1.0, high) if metric in AT_MOST_1 else high


def upcoming(newest: Check | None, champion: int | None, running: Run | None, interval_s: float) -> Next:
    """What happens next by itself, and what makes a training due; `newest` is the newest check of all."""
    if running is not None:
        return Next(f"run {running.id} ({running.kind}, {running.trigger}) is under way; a check follows it")
    if newest is None or champion is None:
        return Next(f"the first check, within {duration(interval_s)} of a version in service")
    moved = newest.drift or {}
    begun = [each for each in moved.get("findings", ()) if each.get("state") in ("began", "continues")]
    # As the scheduler does: what has begun and may matter makes the next check come sooner.
    hurry = any(e["state"] == "began" for e in begun) and any(e.get("matters") is not False for e in begun)
    at = newest.at + interval_s / (4 if hurry else 1)
    counted = newest.version == champion and not newest.decision.get("train")
    return Next(f"a check; {_due(newest) if counted else 'it counts what the next training needs'}", at)


def _due(newest: Check) -> str:
    """What makes a training due, as the check counted it."""
    decision = newest.decision
    ahead: Mapping[str, Any] = decision.get("ahead") or {}
    wanted, quality = decision.get("trigger"), (newest.quality or {}).get("state")
    if wanted:
        against = "; ".join(decision.get("reasons", ())[-1:])
        return f"a training is wanted ({wanted}) and waits: {against}"
    ways = []
    if (rows := ahead.get("rows_due")) is not None:
        new = ahead.get("new_rows", 0)
        ways.append(f"at {rows:,} new labels ({new:,} so far)")
    if ahead.get("due_at") is not None:
        ways.append(f"by age in {duration(max(0.0, ahead['due_at'] - newest.at))}")
    if quality != "lost":
        ways.append("sooner if quality is lost" if ways else "if quality is lost")
    return f"a training {', '.join(ways)}" if ways else "a training comes only when a person asks for it"


def _why_none(here: Managed) -> str:
    """Why no version is in service, without saying that none is."""
    why = here.why_not_ready
    return why.partition(": ")[2] if why.startswith("no model in service") else why


def _doubts(here: Managed, champion: int | None) -> tuple[str, ...]:
    """What the gates had against the champion: it is served all the same when it was the first version."""
    verdict = None if champion is None else here.registry.manifest(champion).verdict
    return () if verdict is None or verdict.passed else verdict.reasons


def _alerts(here: Managed, newest: Check | None, ahead: Next | None, now: float) -> Iterator[Alert]:
    """What a person should look at; `ahead` is None while no check is expected."""
    for worker in live_workers(here.engine, WORKER_ALIVE_S):
        for version, why in worker.failed.items():
            yield Alert(f"{worker.name} cannot load version {version}: {why}", "worker")
    for report in here.workers:
        if report.unadapted:
            yield Alert(f"{report.slot} does not have the adaptation in force: {report.unadapted}", "adaptation")
    controller = read_status(here.run_dir)
    if controller is not None and controller.store_error:
        yield Alert(f"the store does not answer ({controller.store_error})", "store")
    if controller is not None and controller.lacks:
        yield Alert(controller.lacks, "store")
    if controller is not None and controller.drain_lag_s > LATE_S:
        yield Alert(f"the record waits for the store for {duration(controller.drain_lag_s)}", "record")
    homes = expected(here.engine)
    for home in homes:
        if home.away and home.home != here.home:
            yield Alert(
                f"the replica on {home.host} (home {home.home}) was last seen {duration(home.seen_s)} ago; "
                "`evergreen replicas gone` when it does not come back",
                "replica",
            )
    for run in here.runs.list(kind="erase", state="waiting", limit=10):
        yield Alert(f"an erasure waits for {', '.join(run.record.waits_for)}", "replica", run.id)
    failed = next(iter(here.runs.list(kind="check", limit=1)), None)
    if failed is not None and failed.state == "failed" and (newest is None or failed.created_at > newest.at):
        yield Alert(f"the last check failed: {failed.record.error}", "run", failed.id)
    elif ahead is not None and ahead.at is not None and (late_s := _of_leader(homes, here, now) - ahead.at) > LATE_S:
        late = duration(late_s)
        why = "the machine is too busy, or no controller holds the lease"
        yield Alert(f"the check is overdue by {late}: {why}", "run")


def _of_leader(homes: Iterable[Home], here: Managed, now: float) -> float:
    """This moment by the clock of the replica that leads: checks carry its time."""
    mine = next((home.ahead_s for home in homes if home.home == here.home), 0.0)
    return now - mine + next((home.ahead_s for home in homes if home.leads), mine)


def _drift(newest: Check | None, champion: int | None) -> Iterator[Alert]:
    """What moved under the version in service, and matters, or may."""
    if newest is None or newest.version != champion:
        return
    for finding in (newest.drift or {}).get("findings", ()):
        if finding.get("state") in ("began", "continues") and finding.get("matters") is not False:
            yield Alert(f"drift: {finding['sentence']}", "drift")
