"""Which homes have done their part of an erasure, and which it still waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.homes import expected, told
from training.runs import PART, UnknownRun

if TYPE_CHECKING:
    from collections.abc import Collection

    from monitoring.erase import Subject
    from training.loop import Loop
    from training.runs import Run


def ask_others(
    loop: Loop,
    run: Run,
    subject: Subject,
    ids: Collection[str],
    *,
    asked_at: float,
    until: float,
    snapshots: Collection[str],
) -> None:
    """Ask every other home for its part of the erasure `run`: those that are away find it when they are back.

    `ids` are all that are meant, `snapshots` the digests of those that are gone. Raises `LeaseLost`.
    """
    for home in expected(loop.engine):
        if home.home == loop.home:
            continue
        payload = {
            "home": home.home,
            "of": run.id,
            "ids": sorted({*ids, *subject.ids}),
            "feature": subject.feature,
            "value": subject.value,
            "hidden": subject.hidden,
            "asked_at": asked_at,
            "until": until,
            "snapshots": sorted(snapshots),
        }
        loop.runs.ask(
            PART,
            trigger=run.trigger,
            who=run.who,
            why=f"part of erasure {run.id} on {home.host}",
            now=loop.clock(),
            payload=payload,
            token=loop.token,
        )


def waits_for(loop: Loop, of: int) -> tuple[str, ...]:
    """The homes, by id and host, that have not done their part of erasure `of`.

    The part of a home that is gone for good ends here. Raises nothing of its own; it writes without the lease.
    """
    known = {home.home: home for home in expected(loop.engine)}
    open_ = []
    for part in _parts(loop, of, "queued"):
        home = known.get(part.record.payload.home)
        if home is None:
            gone = {"payload": _redacted(part), "error": "its home is gone for good"}
            loop.runs.finish_part(part.id, state="failed", outcome="gone", now=loop.clock(), record=gone)
        else:
            open_.append(told([home]))
    return tuple(open_)


def done_by(loop: Loop, of: int) -> dict[str, Any]:
    """What each home did for erasure `of`, by its id."""
    return {part.record.payload.home: {"run": part.id, "outcome": part.outcome} for part in _parts(loop, of, None)}


def asked_of(loop: Loop) -> list[Run]:
    """The parts that this home is asked for and has not done, oldest first.

    Not while the erasure itself is under way: what is still in the store then is not late.
    """
    mine = [part for part in _parts(loop, None, "queued") if part.record.payload.home == loop.home]
    return [part for part in mine if _state(loop, part.record.payload.of) not in ("queued", "running")]


def end(loop: Loop, part: Run, story: dict[str, Any]) -> None:
    """The part is done; its run does not say any more who was meant."""
    record = {**story, "payload": _redacted(part)}
    loop.runs.finish_part(part.id, state="done", outcome="erased", now=loop.clock(), record=record)


def _redacted(part: Run) -> dict[str, Any]:
    return {"home": part.record.payload.home, "of": part.record.payload.of}


def _parts(loop: Loop, of: int | None, state: str | None) -> list[Run]:
    found = loop.runs.list(kind=PART, state=state, limit=100_000)
    return [part for part in reversed(found) if of is None or part.record.payload.of == of]


def _state(loop: Loop, of: int | None) -> str:
    try:
        return "done" if of is None else loop.runs.get(of).state
    except UnknownRun:  # pruned since
        return "done"
