"""What happens in the loop, as lines of the log: one for each check, adaptation, training, verdict, and run that ends.

A line names run, version and numbers. Reasons that quote groups of customers, or an error's words, stand in the run's
record only: a log holds no value out of a row.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from monitoring.news import sentence

if TYPE_CHECKING:
    from training.runs import Run
    from training.spec import Adapted, JobResult

logger = logging.getLogger("evergreen.loop")

ENDINGS: Final = {
    "promoted": "promotion",
    "rolled_back": "rollback",
    "kept": "refusal",
    "refused": "refusal",
    "erased": "erase",
    "deleted": "retention",
    "paused": "pause",
    "resumed": "resume",
}
"""Outcome of a run -> what its line is about; of other outcomes it is `run`."""


def write(name: str, fields: Mapping[str, Any]) -> None:
    """The line of an event of `training/cycle.py`."""
    if name == "checked":
        _checked(fields)
    elif name == "training_started":
        run, spec = fields["run"], fields["spec"]
        told = {"event": "training_started", "run": run.id, "kind": run.kind, "trigger": run.trigger}
        logger.info("run %d (%s): the job begins", run.id, run.kind, extra=told | {"origin": spec.origin})
    elif name == "training_ended":
        _ended(fields["run"], fields["result"])
    elif name == "judged":
        _judged(fields["run"], fields["result"])
    elif name == "adapted":
        _adapted(fields["version"], fields["adapted"])
    elif name == "run_finished" and (fields["run"].kind != "check" or fields["run"].state == "failed"):
        _finished(fields["run"])


def _checked(fields: Mapping[str, Any]) -> None:
    seen, decision = fields["seen"], fields["decision"]
    drift, verdict = seen.drift, seen.quality.verdict
    told = {
        "event": "check",
        "check": fields["check"],
        "version": seen.champion,
        "rows": drift.current_rows,
        "drifted_share": drift.share,
        "news": [finding.name for finding in drift.findings if finding.state == "began"] or None,
        "quality": verdict.state,
        "labels_waiting": seen.labels.waiting,
        "train": decision.train,
        "trigger": decision.trigger,
    }
    words = (fields["check"], seen.champion, verdict.state, "a training is due" if decision.train else "no training")
    logger.info("check %d of version %d: %s; quality is %s; %s", *words[:2], sentence(drift), *words[2:], extra=told)


def _ended(run: Run, result: JobResult) -> None:
    told = {"event": "training_ended", "run": run.id, "kind": run.kind, "ok": result.ok, "seconds": result.seconds}
    told["phases"] = {phase.name: round(phase.seconds, 3) for phase in result.phases} or None
    how = "ended" if result.ok else "ended without a candidate"
    logger.info("run %d (%s): the job %s after %.1f s", run.id, run.kind, how, result.seconds, extra=told)


def _judged(run: Run, result: JobResult) -> None:
    gates = {gate.name: gate.passed for gate in result.verdict.gates} if result.verdict else {}
    failed = [name for name, passed in gates.items() if not passed]
    told = {"event": "verdict", "run": run.id, "kind": run.kind, "passed": result.passed, "gates": gates}
    words = f"failed: {', '.join(failed)}" if failed else "all passed"
    words += "; it is taken all the same" if failed and result.passed else ""  # a first version
    logger.info("run %d (%s): gates %s", run.id, run.kind, words, extra=told)


def _adapted(version: int, found: Adapted) -> None:
    told = {
        "event": "adaptation_reverted" if found.harm else "adaptation",
        "version": version,
        "made": found.made,
        "rows": found.rows,
        "moved": found.moved,
        "raw_loss": found.raw_loss,
        "served_loss": found.served_loss,
    }
    if found.harm:
        logger.warning("the adaptation of version %d did harm and is taken back", version, extra=told)
    elif found.made:
        words = (version, found.rows, found.moved)
        logger.info("version %d is adapted to %d rows: outputs are moved by %.3g", *words, extra=told)


def _finished(run: Run) -> None:
    told = {
        "event": ENDINGS.get(run.outcome or "", "run"),
        "run": run.id,
        "kind": run.kind,
        "outcome": run.outcome,
        "version": run.version,
        "trigger": run.trigger,
        "seconds": _seconds(run),
        "rows": run.record.rows or None,
    }
    more = "" if run.version is None else f", version {run.version}"
    level = logging.ERROR if run.state == "failed" else logging.INFO
    hint = f"; `evergreen runs {run.id}` says why" if run.state == "failed" or told["event"] == "refusal" else ""
    logger.log(level, "run %d (%s): %s%s%s", run.id, run.kind, run.outcome or run.state, more, hint, extra=told)


def _seconds(run: Run) -> float | None:
    if run.started_at is None or run.finished_at is None:
        return None
    return round(run.finished_at - run.started_at, 3)
