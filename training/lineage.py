"""Where a version comes from and what came of it: its data, its run, its answers; and from each of these back to it.

Imported by API workers: the store alone is asked. Only `holders`, which opens snapshots, reads files.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import sqlalchemy as sa

from monitoring.errors import CannotGoOn
from monitoring.feature import AT, ORIGIN
from monitoring.store import adaptations, key_columns, predictions, runs
from monitoring.window import label_status
from training.comparison import MAKING, made_by
from training.runs import Runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.registry import Registry, Version

MOST_COUNTED: Final = 100_000
"""Answers of a version that are counted at most."""
_SWAP_S: Final = 60.0
"""Seconds around a promotion in which workers may still, or already, answer with the other version."""
_DIGEST: Final = frozenset("0123456789abcdef")


How = Literal[
    "answered it",
    "learnt from it",
    "was made by it",
    "was put in service by it",
    "was made from it",
    "was judged on it",
]


class NothingKnown(CannotGoOn, LookupError):
    """Raised when no version is known of an answer, or of a snapshot."""


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """What a version was trained from; null: not known, as of a pushed one."""

    snapshot: str | None
    """Its digest, which is its content's."""
    rows: int | None
    """Of the snapshot."""
    recorded: int | None
    """Of these, from the record; the others are the source's."""
    fitted: int | None
    since: float | None
    """Of the rows fitted, seconds since 1970 UTC (negative: by their order in the source)."""
    until: float | None
    shared_with: tuple[int, ...]
    """Other versions made from the same snapshot."""


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """The run that made it."""

    run: int
    kind: str
    trigger: str
    who: str
    why: str
    check: int | None
    """That decided it."""
    against: int | None
    """The champion it took over from."""


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A time in service."""

    since: float
    until: float | None
    """None: it still is."""
    run: int


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """What it answered, as far as the record has it."""

    rows: int
    more: bool
    """There are more than were counted."""
    since: float | None
    until: float | None
    adaptations: int
    """Made of its output."""


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """From a version to its data, its run and its answers."""

    version: int
    data: Data
    made: Made | None
    """None: the run is gone, or the version was registered without one."""
    served: tuple[Served, ...]
    answers: Answered


class Related(msgspec.Struct, frozen=True, kw_only=True):
    """A version, and what it has to do with what was asked for."""

    version: int
    how: How
    created_at: float
    origin: str


class Traced(msgspec.Struct, frozen=True, kw_only=True):
    """From an answer, a run or a snapshot to the versions."""

    what: str
    """`answer loan-7`, `run 3`, `snapshot 73f7d9…`."""
    facts: dict[str, Any]
    versions: tuple[Related, ...]


# -- from a version --------------------------------------------------------------------------------------------------


def lineage(engine: sa.Engine, registry: Registry, version: int) -> Lineage:
    """Raises `UnknownVersion`."""
    found = registry.get(version)
    everything = registry.list()
    with engine.connect() as connection:
        made = made_by(connection, version)
        times = _times(connection)
        count = sa.select(sa.func.count()).where(adaptations.c.version == version, adaptations.c.kind == "made")
        adapted = int(connection.scalar(count) or 0)
    run = None if made is None else Runs(engine).get(made)
    record = None if run is None else run.record
    given = None if record is None else record.data
    data = found.manifest.data
    spans = [
        Served(since=since, until=until, run=by) for number, since, until, by in times if number == version
    ]  # fmt: skip
    return Lineage(
        version=version,
        data=Data(
            snapshot=data.snapshot,
            rows=data.known,
            recorded=None if given is None else given.record_rows,
            fitted=data.rows,
            since=data.since,
            until=data.until,
            shared_with=tuple(
                one.version
                for one in everything
                if data.snapshot and one.version != version and one.manifest.data.snapshot == data.snapshot
            ),
        ),
        made=None
        if run is None or record is None
        else Made(
            run=run.id,
            kind=run.kind,
            trigger=run.trigger,
            who=run.who,
            why=run.why,
            check=record.check,
            against=None if record.rollout is None else record.rollout.previous,
        ),
        served=tuple(spans),
        answers=_answers(engine, version, _looked_at(found, spans, times), adapted),
    )


def _times(connection: sa.Connection) -> list[tuple[int, float, float | None, int]]:
    """(version, since, until, run) of each time in service, oldest first."""
    flips = (
        sa.select(runs.c.version, runs.c.finished_at, runs.c.id)
        .where(runs.c.kind.in_((*MAKING, "promote", "rollback")), runs.c.outcome.in_(("promoted", "rolled_back")))
        .where(runs.c.version.is_not(None))
        .order_by(runs.c.finished_at, runs.c.id)
    )
    moves = [(row.version, float(row.finished_at), row.id) for row in connection.execute(flips)]
    ends: list[float | None] = [later[1] for _, later in pairwise(moves)]
    return [(version, at, end, run) for (version, at, run), end in zip(moves, [*ends, None], strict=False)]


def _looked_at(
    version: Version, served: Sequence[Served], times: Sequence[tuple[int, float, float | None, int]]
) -> list[tuple[float, float | None]]:
    """When a version may have answered: its times in service, where the runs of those are kept."""
    if served:
        return [(one.since, one.until) for one in served]
    if times and version.created_at > times[0][1]:  # every promotion since is known, and it had none
        return []
    return [(version.created_at, times[0][1] if times else None)]


def _answers(engine: sa.Engine, version: int, spans: Sequence[tuple[float, float | None]], adapted: int) -> Answered:
    """Counted within these times: the index on times leads to the rows, no history is read whole."""
    looks = [(since - _SWAP_S, None if until is None else until + _SWAP_S) for since, until in spans]
    rows, first, last = 0, None, None
    for since, until in _apart(looks):
        its = [predictions.c.version == version, predictions.c.at >= since]
        if until is not None:
            its.append(predictions.c.at < until)
        few = sa.select(sa.literal(1)).where(*its).limit(MOST_COUNTED + 1 - rows).subquery()
        edge = sa.select(predictions.c.at).where(*its).limit(1)
        with engine.connect() as connection:
            found = int(connection.scalar(sa.select(sa.func.count()).select_from(few)) or 0)
            if not found:
                continue
            rows += found
            first = connection.scalar(edge.order_by(predictions.c.at)) if first is None else first
            last = connection.scalar(edge.order_by(predictions.c.at.desc()))
        if rows > MOST_COUNTED:
            break
    more = rows > MOST_COUNTED
    return Answered(rows=min(rows, MOST_COUNTED), more=more, since=first, until=last, adaptations=adapted)


def _apart(spans: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """The same moments, each once: those of a version that was put in service twice in a minute overlap."""
    found: list[tuple[float, float | None]] = []
    for since, until in sorted(spans, key=lambda span: span[0]):
        before = found[-1][1] if found else since - 1
        if found and (before is None or since <= before):
            found[-1] = (found[-1][0], None if before is None or until is None else max(before, until))
        else:
            found.append((since, until))
    return found


# -- to a version ----------------------------------------------------------------------------------------------------


def of_answer(engine: sa.Engine, registry: Registry, id: str, snapshots: Path | None = None) -> Traced:
    """The version that gave an answer; and, where `snapshots` is given, those that have learnt from it since.

    Raises `NothingKnown`.
    """
    status = label_status(engine, id)
    if status.version is None or status.at is None:
        raise NothingKnown(
            f"the record has no answer with the id {id!r}: it is not stored yet, or was deleted or erased"
        )
    newest = (predictions.c.at.desc(), *(column.desc() for column in key_columns(predictions)))
    wanted = sa.select(predictions.c.adaptation).where(predictions.c.id == id).order_by(*newest).limit(1)
    with engine.connect() as connection:
        adaptation = connection.scalar(wanted)
    known = {version.version: version for version in registry.list()}
    found = [_related(known.get(status.version), status.version, "answered it")]
    if snapshots is not None:
        for one in holders(known.values(), status.at, snapshots):
            # Of one that was not fitted again after it was judged, some rows only judged.
            how: How = "learnt from it" if one.manifest.data.last_fit else "was made from it"
            found.append(_related(one, one.version, how))
    facts = {
        "at": status.at,
        "prediction": status.prediction,
        "version": status.version,
        "adaptation": adaptation,
        "label": status.labels[0].label if status.labels else None,
        "answers_with_this_id": status.predictions,
    }
    return Traced(what=f"answer {id}", facts=facts, versions=tuple(found))


def of_run(engine: sa.Engine, registry: Registry, run_id: int) -> Traced:
    """What a run made, or put in service. Raises `UnknownRun`."""
    run = Runs(engine).get(run_id)
    known = {version.version: version for version in registry.list()}
    record = run.record
    how: How = "was made by it" if run.kind in MAKING else "was put in service by it"
    moved = run.kind in MAKING or run.outcome in ("promoted", "rolled_back")
    number = record.version if run.kind in MAKING and record.version is not None else run.version
    facts = {
        "kind": run.kind,
        "outcome": run.outcome or run.state,
        "trigger": run.trigger,
        "who": run.who,
        "why": run.why,
        "snapshot": None if record.data is None else record.data.snapshot,
    }
    related = (_related(known.get(number), number, how),) if moved and number is not None else ()
    return Traced(what=f"run {run_id}", facts=facts, versions=related)


def of_snapshot(engine: sa.Engine, registry: Registry, digest: str) -> Traced:
    """The versions made from a snapshot whose digest begins so, and the runs that took it. Raises `NothingKnown`."""
    if len(digest) < 6 or not set(digest) <= _DIGEST:
        raise NothingKnown(f"a snapshot is named by at least 6 of the hexadecimal digits of its digest, got {digest!r}")
    versions = [one for one in registry.list() if (one.manifest.data.snapshot or "").startswith(digest)]
    took: list[int] = []
    whole = {one.manifest.data.snapshot for one in versions}
    for run in (run for kind in MAKING for run in Runs(engine).list(kind=kind, limit=1000)):
        data = run.record.data
        if data is not None and data.snapshot.startswith(digest):
            took.append(run.id)
            whole.add(data.snapshot)
    if not whole:
        raise NothingKnown(
            f"no version and no run has a snapshot {digest}…; `evergreen models show V` names a version's"
        )
    if len(whole) > 1:
        raise NothingKnown(f"{len(whole)} snapshots begin with {digest}: give more of the digest")
    name = whole.pop()
    related = tuple(
        _related(one, one.version, "was judged on it" if one.origin == "push" else "was made from it")
        for one in reversed(versions)
    )
    return Traced(what=f"snapshot {name}", facts={"runs": sorted(took)}, versions=related)


def _related(version: Version | None, number: int, how: How) -> Related:
    """`version` None: it is not registered any more."""
    return Related(
        version=number,
        how=how,
        created_at=0.0 if version is None else version.created_at,
        origin="deleted" if version is None else version.origin,
    )


def holders(versions: Any, at: float, snapshots: Path) -> list[Version]:
    """The versions made from the row of the record that was answered at `at`, of those whose snapshot is here."""
    import pyarrow.parquet as parquet

    found = []
    for version in sorted(versions, key=lambda one: one.version):
        window, path = version.manifest.data.window, snapshots / f"{version.manifest.data.snapshot}.parquet"
        if window is None or version.origin == "push" or not path.is_file():
            continue
        rows = parquet.read_table(path, columns=[AT, ORIGIN]).slice(window.start, window.stop - window.start)
        recorded = zip(rows.column(AT).to_pylist(), rows.column(ORIGIN).to_pylist(), strict=True)
        if (at, "record") in set(recorded):
            found.append(version)
    return found
