"""Bringing a version into service in two phases: every live worker has it loaded and warm, then the alias flips.

The workers' states come from the table `workers`, which each replica's controller fills.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from monitoring.store import db_now, workers
from training.lease import upsert

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from training.registry import LiveSet, Registry

ALIVE_S: Final = 10.0
"""Seconds; a worker not seen for longer is not waited for. circus respawns a killed one in 7 to 8 s."""

KNOWN_S: Final = 600.0
"""Seconds; one not seen for so long is not looked for any more. A server's orderly stop takes its workers out."""

READY_WITHIN_S: Final = 30.0
"""Seconds a promotion waits for silent workers: several times what loading and warming a version takes."""

POLL_S: Final = 0.25
"""Seconds between two looks at the workers; half of their own poll for what is announced."""


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What one API worker last said of itself."""

    replica: str
    slot: str
    serving: int | None = None
    ready: tuple[int, ...] = ()  # versions loaded and warm
    failed: Mapping[int, str] = field(default_factory=dict)  # version -> why it would not load
    silent_s: float = field(default=0.0, compare=False)  # since it was last seen

    @property
    def name(self) -> str:
        """`replica/slot`, as it stands in results."""
        return f"{self.replica}/{self.slot}"


@dataclass(frozen=True, slots=True)
class RolloutResult:
    """How a promotion or a rollback ended."""

    flipped: bool
    version: int  # the one that was to come into service
    champion: int | None  # the one in service now
    previous: int | None
    ready: tuple[str, ...]  # workers that had it loaded
    not_ready: tuple[str, ...]  # workers without it (silent until the timeout, or not reached); they swap by themselves
    failed: dict[str, str]  # worker -> why it could not load it
    waited_s: float
    reason: str


def promote(
    registry: Registry,
    version: int,
    token: int,
    *,
    live_workers: Callable[[], Sequence[WorkerState]],
    timeout_s: float,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> RolloutResult:
    """The result of announcing `version`, waiting for the workers, and flipping the champion to it.

    One worker that cannot load it stops the promotion: the announcement is withdrawn and the champion stays. A worker
    that is merely silent for `timeout_s` does not: it is named in `not_ready`, and swaps once it has loaded it. So is
    one that was not seen for `ALIVE_S`, as its host is cut off or dead, and nothing waits for it. Without live workers
    it flips at once. Raises `UnknownVersion` and `LeaseLost`; the champion stays then, too.
    """
    was = registry.live()
    if was.champion == version:
        return _result(was, version, flipped=False, reason=f"version {version} is the champion already")
    return _roll(registry, version, token, lambda: registry.flip(version, token), live_workers, timeout_s, sleep, clock)


def roll_back(
    registry: Registry,
    token: int,
    *,
    live_workers: Callable[[], Sequence[WorkerState]],
    timeout_s: float,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> RolloutResult:
    """The result of bringing the former champion back, in the same two phases as `promote`.

    Raises `NoPrevious`, `UnknownVersion` and `LeaseLost`; the champion stays then.
    """
    was = registry.live()
    if was.previous is None:
        registry.rollback(token)  # raises NoPrevious, or LeaseLost
    assert was.previous is not None
    return _roll(registry, was.previous, token, lambda: registry.rollback(token), live_workers, timeout_s, sleep, clock)


def _roll(
    registry: Registry,
    version: int,
    token: int,
    flip: Callable[[], LiveSet],
    live_workers: Callable[[], Sequence[WorkerState]],
    timeout_s: float,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> RolloutResult:
    registry.announce(version, token)
    try:
        return _wait_and_flip(registry, version, token, flip, live_workers, timeout_s, sleep, clock)
    except BaseException:
        with suppress(Exception):  # else the next holder of the lease withdraws it
            registry.withdraw(token)
        raise


def _wait_and_flip(
    registry: Registry,
    version: int,
    token: int,
    flip: Callable[[], LiveSet],
    live_workers: Callable[[], Sequence[WorkerState]],
    timeout_s: float,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> RolloutResult:
    began = clock()
    while True:
        known = live_workers()
        states = [state for state in known if state.silent_s <= ALIVE_S]
        away = tuple(state.name for state in known if state.silent_s > ALIVE_S)
        unreached = f"; not reached: {', '.join(away)}" if away else ""
        waited_s = clock() - began
        ready = tuple(state.name for state in states if version in state.ready or state.serving == version)
        failed = {state.name: state.failed[version] for state in states if version in state.failed}
        silent = tuple(state.name for state in states if state.name not in ready and state.name not in failed)
        if failed:
            registry.withdraw(token)
            who, why = next(iter(failed.items()))
            reason = f"{len(failed)} of {len(states)} workers could not load version {version}; {who}: {why}"
            return _result(registry.live(), version, False, reason, ready, (*silent, *away), failed, waited_s)
        if not silent:
            reason = f"all {len(states)} live workers had it loaded" if states else "no live workers to wait for"
            return _result(flip(), version, True, reason + unreached, ready, away, {}, waited_s)
        if waited_s >= timeout_s:
            reason = f"{len(silent)} of {len(states)} workers were not ready after {timeout_s:g} s: {', '.join(silent)}"
            return _result(flip(), version, True, reason + unreached, ready, (*silent, *away), {}, waited_s)
        sleep(min(POLL_S, max(0.0, timeout_s - waited_s)))


def _result(
    live: LiveSet,
    version: int,
    flipped: bool,
    reason: str,
    ready: tuple[str, ...] = (),
    not_ready: tuple[str, ...] = (),
    failed: dict[str, str] | None = None,
    waited_s: float = 0.0,
) -> RolloutResult:
    return RolloutResult(
        flipped, version, live.champion, live.previous, ready, not_ready, failed or {}, waited_s, reason
    )


# -- the table of workers ------------------------------------------------------------------------------------------


def report_workers(engine: sa.Engine, replica: str, states: Sequence[WorkerState]) -> None:
    """Store what the workers of `replica` said, seen now by the database's clock; its other rows are deleted.

    Hand in only workers that are alive: being handed in is what makes them count as seen.
    """
    gone = workers.delete().where(workers.c.replica == replica, workers.c.slot.not_in([s.slot for s in states]))
    with engine.begin() as connection:
        connection.execute(gone)
        for state in states:
            row = upsert(engine, workers).values(
                replica=replica,
                slot=state.slot,
                serving=state.serving,
                ready=json.dumps(list(state.ready)),
                failed=json.dumps({str(version): why for version, why in state.failed.items()}),
                seen_at=db_now(engine),
            )
            connection.execute(
                row.on_conflict_do_update(
                    index_elements=[workers.c.replica, workers.c.slot],
                    set_={name: row.excluded[name] for name in ("serving", "ready", "failed", "seen_at")},
                )
            )


def live_workers(engine: sa.Engine, within_s: float = ALIVE_S) -> tuple[WorkerState, ...]:
    """The workers of all replicas that were seen within `within_s` seconds, by the database's clock."""
    wanted = (
        sa.select(*workers.c, (db_now(engine) - workers.c.seen_at).label("silent_s"))
        .where(workers.c.seen_at > db_now(engine) - within_s)
        .order_by(workers.c.replica, workers.c.slot)
    )
    with engine.connect() as connection:
        return tuple(_state(row) for row in connection.execute(wanted))


def forget_workers(engine: sa.Engine, older_than_s: float = 3600.0) -> int:
    """How many rows of workers not seen for `older_than_s` seconds were deleted."""
    with engine.begin() as connection:
        return connection.execute(workers.delete().where(workers.c.seen_at < db_now(engine) - older_than_s)).rowcount


def _state(row: Any) -> WorkerState:
    failed = {int(version): str(why) for version, why in json.loads(row.failed).items()}
    ready = tuple(json.loads(row.ready))
    return WorkerState(row.replica, row.slot, row.serving, ready, failed, max(0.0, float(row.silent_s)))
