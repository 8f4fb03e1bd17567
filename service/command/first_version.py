"""`evergreen train`: the first version, without a running service."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Final

from monitoring.errors import EvergreenError
from monitoring.store import open_store
from service.control.deployment import assemble
from service.handover import Live, LiveVersion, write_live
from service.settings import Settings
from training.cycle import bootstrap, take_over
from training.lease import Lease
from training.registry import Registry

TRIALS: Final = 20
"""Enough to come to each family of models: 26 s of processor time on 900 rows of five features."""


class TrainRefused(EvergreenError, RuntimeError):
    """Raised when a first version must not be trained now; the message says what to do instead."""


@dataclass(frozen=True, slots=True)
class Trained:
    """The result of the first training."""

    version: int | None
    promoted: bool
    reasons: tuple[str, ...]
    next: str = ""
    """What to do when it has learnt nothing."""


def train(settings: Settings, *, force: bool = False) -> Trained:
    """Train from the configured data and put the version in service if it passes the gates.

    With `force` also when there is a champion: it is replaced without a comparison. Raises `TrainRefused` when a
    running service holds the lease, or there is a champion already.
    """
    engine = open_store(settings.store_url)
    registry = Registry(engine, settings.models_dir, settings.model.name)
    champion = registry.live().champion
    if champion is not None and not force:
        raise TrainRefused(
            f"version {champion} is in service already: `evergreen retrain` asks the running service for a better one, "
            "`evergreen train --force` starts over from the configured data"
        )
    lease = Lease(engine, holder=f"evergreen train on {socket.gethostname()}:{os.getpid()}", seconds=3600.0)
    if not lease.acquire():
        raise TrainRefused(
            f"a service works on this store ({lease.reason}): it trains the first version by itself, see "
            "`evergreen runs`; or stop it first"
        )
    try:
        assert lease.token is not None
        loop = assemble(
            settings, engine, lease.token, lease.holder, on_event=lambda name, fields: None, stopped=lambda: False
        )
        take_over(loop)
        run = bootstrap(loop, over=champion is not None)
        assert run is not None
        if run.outcome == "promoted" and run.version is not None:
            path = str(registry.path(run.version))
            write_live(settings.live_file, Live(settings.model.name, LiveVersion(run.version, path)))
        verdict = run.record.verdict
        reasons = tuple(gate.reason for gate in verdict.gates) if verdict else (str(run.record.error),)
        notes = run.record.job.notes if run.record.job is not None else ()
        learnt = verdict is None or all(gate.passed for gate in verdict.gates if gate.name == "baseline")
        said = "" if learnt else advice(settings.training.trials)
        return Trained(run.version, run.outcome == "promoted", (*reasons, *notes), said)
    finally:
        lease.release()


def advice(trials: int) -> str:
    """What to do about a version that is no better than a constant; `trials` that the training had."""
    more = "more labelled rows, or features that are known before the label is and tell of it"
    if trials:
        return f"give it {more}; then `evergreen train --force`"
    return (
        f"EVERGREEN_TRAINING__TRIALS={TRIALS} evergreen train --force, which tries forests and linear models, too "
        f"([training] trials keeps it); or give it {more}"
    )
