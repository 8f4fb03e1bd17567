"""The controller's series as they are before anything has happened: a rate or an alert needs a beginning.

A counter begins at 0. So does a gauge of which 0 is true; one that is not known yet is NaN, and no alert is above or
below that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, get_args

from monitoring.evidence import State
from monitoring.metrics import Metrics
from training.policy import Trigger

WORK: Final = ("commands", "moves", "check", "prune", "retention", "drain", "mirror", "watch", "reports", "lead")
"""What the controller does again and again: the scheduler's jobs, and its own threads."""

TRIGGERS: Final = (*get_args(Trigger), "start")
OUTCOMES: Final = ("promoted", "kept", "refused", "failed", "crashed", "stopped", "not_loaded", "rolled_back")
GATES: Final = (
    *("holdout_rows", "baseline", "quality", "trusted_holdout", "floor", "segments", "fairness", "calibration"),
    *("edge_rows", "latency", "size", "parity", "infra"),
)
FORGOTTEN: Final = {
    "erase": ("predictions", "labels", "dead_letters"),
    "retention": ("predictions", "labels", "rejections", "dead_letters", "unmatched_labels"),
}


def begin(metrics: Metrics, experts: Iterable[str], max_spool_bytes: int) -> None:
    """Let every series of the controller exist.

    `experts`: all that an adaptation may be made of. `max_spool_bytes`: what the spool may hold.
    """
    metrics.log_spool_limit_bytes.set(max_spool_bytes)
    for outcome in ("stored", "repeated_id", "dead_letter", "torn"):
        metrics.log_records.labels(outcome)
    for outcome in ("matched", "unmatched"):
        metrics.labels.labels(outcome)
    for trigger in TRIGGERS:
        for outcome in OUTCOMES:
            metrics.retrains.labels(trigger, outcome)
    for gate in GATES:
        for result in ("passed", "failed"):
            metrics.gate_results.labels(gate, result)
    for where in ("drift", "quality", "training"):
        metrics.rows_unfit.labels(where)
    for why, tables in FORGOTTEN.items():
        for table in tables:
            metrics.deleted_rows.labels(table, why)
    for work in WORK:
        metrics.job_failures.labels(work)
        metrics.last_success.labels(work).set(math.nan)
    for outcome in ("sent", "dropped", "failed"):
        metrics.traces.labels(outcome)
    for state in get_args(State):
        metrics.quality_state.labels(state).set(0)
    for gauge in (
        metrics.log_spool_bytes,
        metrics.log_drain_lag_seconds,
        metrics.drift_detected,
        metrics.drift_news,
        metrics.label_waiting,
        metrics.scheduler_leader,
        metrics.loop_paused,
    ):
        gauge.set(0)
    for unknown in (metrics.drift_share, metrics.label_delay, metrics.label_coverage):
        unknown.set(math.nan)
    no_adaptation(metrics, experts)


def no_adaptation(metrics: Metrics, experts: Iterable[str]) -> None:
    """Nothing is moved, no expert has a weight, and of a loss nothing is known."""
    metrics.adaptation_moved.set(0)
    for output in ("raw", "served"):
        metrics.adaptation_loss.labels(output).set(math.nan)
    for expert in experts:
        metrics.adaptation_weight.labels(expert).set(0)
