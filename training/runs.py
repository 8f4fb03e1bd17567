"""Every decision as a row: what was asked for, by whom, why, what came of it. A "no" is pruned sooner than the rest.

A run is `queued` (by a person or a check), `running` (claimed by the one holder of the lease), then `done` or
`failed`; an erasure is `waiting` in between while other homes have not done their part. Asking needs no lease;
claiming, starting and finishing are fenced with its token. Two kinds are a home's own, and need none: its part of an
erasure, and of the retention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec
import sqlalchemy as sa

from monitoring.errors import EvergreenError
from monitoring.store import checks, runs
from training.lease import CONTROLLER, fence, insert_fenced, write_fenced
from training.manifest import NO_ACTION, RunRecord, record_of
from training.policy import ALONE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

State = Literal["queued", "running", "waiting", "done", "failed"]

LOST: Final = "quality lost"
"""Begins the reasons of a check that found it so."""
_AT_ONCE: Final = 1000
"""Runs that are looked at together when repeated ones are folded."""
PAUSES: Final = ("pause", "resume")
"""Kinds of runs that say whether the loop works; the newest that ended well does."""
PART: Final = "erase_part"
"""Kind of the runs that ask a home for its part of an erasure: that home does it, whoever holds the lease."""
MARKS: Final = {"tag": "tagged", "note": "noted"}
"""Kinds of runs in which people say something of a version, and their outcomes: `training/marks.py`."""
_SAID_NO: Final = (runs.c.kind == "check") & (runs.c.outcome == NO_ACTION) & (runs.c.state == "done")
"""SQL: whether a run is a check that led to nothing."""


class UnknownRun(EvergreenError, LookupError):
    """Raised when no run has this id, or when it is not in the state that the step needs."""

    def __init__(self, run_id: int, state: str | None = None) -> None:
        self.run_id, self.state = run_id, state
        what = "does not exist" if state is None else f"is {state!r}, not running, and cannot be finished"
        super().__init__(f"run {run_id} {what}; `evergreen runs` lists them")


@dataclass(frozen=True, slots=True)
class Run:
    """One row of the table `runs`; times are seconds since 1970 UTC."""

    id: int
    kind: str  # check | retrain | push | promote | rollback | bootstrap | adaptation | pause | resume | tag | note | …
    state: State
    outcome: str | None  # promoted | kept | refused | no_action | crashed | rolled_back | erased | deleted | …
    trigger: str  # drift | quality | schedule | manual | start
    who: str
    why: str
    created_at: float
    started_at: float | None
    finished_at: float | None
    version: int | None  # version it made or moved to
    document: dict[str, Any]  # the record as it is stored

    @property
    def record(self) -> RunRecord:
        """The full story; what was asked for is its `payload`. Raises `FormatError`."""
        return record_of(self.document, f"the record of run {self.id}")


@dataclass(frozen=True, slots=True)
class Fold:
    """Checks in a row that said "no" in the same way, or one run of any kind."""

    run: Run  # the newest of them
    count: int
    first_id: int
    first_at: float  # when the oldest was created, seconds since 1970 UTC


class Folds(NamedTuple):
    """One page of a folded listing, newest first."""

    folds: tuple[Fold, ...]
    before: int | None
    """Id to page on from; None when nothing is older."""


@dataclass(slots=True)
class _Folding:
    """A fold while it grows."""

    manner: str | None
    newest_id: int
    count: int
    first_id: int
    first_at: float


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table `checks`: what was measured and what was decided from it."""

    id: int
    at: float
    version: int
    drift: dict[str, Any] | None
    quality: dict[str, Any] | None
    decision: dict[str, Any]


class Runs:
    """The tables `runs` and `checks` of one store."""

    def __init__(self, engine: sa.Engine, lease: str = CONTROLLER) -> None:
        self._engine, self._lease = engine, lease

    def queue(
        self, kind: str, *, trigger: str, who: str, why: str, now: float, payload: Mapping[str, Any] | None = None
    ) -> int:
        """Id of a new run that waits for the holder of the lease; anyone may ask, so it is not fenced."""
        values = {"kind": kind, "state": "queued", "trigger": trigger, "who": who, "why": why, "created_at": now}
        return self._asked(values, payload)

    def ask(
        self, kind: str, *, trigger: str, who: str, why: str, now: float, payload: Mapping[str, Any], token: int
    ) -> int:
        """Id of a new run that waits for whom its payload names, asked by the holder of the lease. Raises `LeaseLost`.

        No holder claims it: its kind is among none of theirs.
        """
        values = {"kind": kind, "state": "queued", "trigger": trigger, "who": who, "why": why, "created_at": now}
        return self._insert(token, **values, record=as_json({"payload": dict(payload)}))

    def finish_part(
        self, run_id: int, *, state: Literal["done", "failed"], outcome: str, now: float, record: Mapping[str, Any]
    ) -> None:
        """A home has done its part, or never will; only once, whoever says so first."""
        end = runs.update().where(runs.c.id == run_id, runs.c.state == "queued")
        with self._engine.begin() as connection:
            connection.execute(end.values(state=state, outcome=outcome, finished_at=now, record=as_json(record)))

    def say(self, kind: str, *, who: str, why: str, outcome: str, now: float, record: Mapping[str, Any]) -> int:
        """Id of a run that a home did by itself, over as it is written."""
        values = {"kind": kind, "state": "done", "outcome": outcome, "trigger": "schedule", "who": who, "why": why}
        times = dict.fromkeys(("created_at", "started_at", "finished_at"), now)
        with self._engine.begin() as connection:
            row = runs.insert().values(**values, **times, record=as_json(record)).returning(runs.c.id)
            return int(connection.execute(row).scalar_one())

    def mark(self, kind: str, version: int, *, who: str, why: str, now: float, **payload: Any) -> int:
        """Id of a run of a kind in `MARKS`, over as it is written; anyone may write one, so it is not fenced."""
        values = {"kind": kind, "state": "done", "outcome": MARKS[kind], "trigger": "manual", "who": who, "why": why}
        times = dict.fromkeys(("created_at", "started_at", "finished_at"), now)
        return self._asked({**values, **times, "version": version}, {"version": version, **payload})

    def _asked(self, values: Mapping[str, Any], payload: Mapping[str, Any] | None) -> int:
        record = as_json({"payload": dict(payload)} if payload else {})
        with self._engine.begin() as connection:
            row = runs.insert().values(**values, record=record).returning(runs.c.id)
            return int(connection.execute(row).scalar_one())

    def waits(self, kinds: Collection[str]) -> bool:
        """Whether a run of these kinds is queued."""
        wanted = sa.select(sa.literal(1)).where(runs.c.state == "queued", runs.c.kind.in_(kinds)).limit(1)
        with self._engine.connect() as connection:
            return connection.scalar(wanted) is not None

    def claim(self, token: int, now: float, kinds: Collection[str] | None = None) -> Run | None:
        """The oldest queued run (of these kinds, when given), now running; None when none waits. Raises `LeaseLost`."""
        oldest = sa.select(sa.func.min(runs.c.id)).where(runs.c.state == "queued")
        oldest = oldest.where(runs.c.kind != PART if kinds is None else runs.c.kind.in_(kinds))
        # Read first: asking every second must not make every second a write transaction.
        with self._engine.connect() as connection:
            waiting = connection.scalar(oldest)
        if waiting is None:
            return None
        take = (
            runs.update()
            .where(runs.c.id == waiting, runs.c.state == "queued", self._fence(token))
            .values(state="running", started_at=now)
            .returning(*runs.c)
        )
        rows = write_fenced(self._engine, take, token, self._lease)
        return _run(rows[0]) if rows else None

    def start(self, kind: str, *, trigger: str, who: str, why: str, now: float, token: int) -> int:
        """Id of a new run that is running already, begun by the holder of the lease itself. Raises `LeaseLost`."""
        return self._insert(
            token,
            kind=kind,
            state="running",
            trigger=trigger,
            who=who,
            why=why,
            created_at=now,
            started_at=now,
        )

    def note(
        self,
        kind: str,
        *,
        trigger: str,
        who: str,
        why: str,
        now: float,
        token: int,
        outcome: str = NO_ACTION,
        state: Literal["done", "failed"] = "done",
        version: int | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> int:
        """Id of a run that was over the moment it was decided, such as a check's "no". Raises `LeaseLost`."""
        return self._insert(
            token,
            kind=kind,
            state=state,
            outcome=outcome,
            trigger=trigger,
            who=who,
            why=why,
            created_at=now,
            started_at=now,
            finished_at=now,
            version=version,
            record=as_json(dict(record or {})),
        )

    def redact(self, run_id: int, payload: Mapping[str, Any], token: int) -> None:
        """Put `payload` in the place of what a running run was asked with. Raises `LeaseLost`."""
        change = (
            runs.update()
            .where(runs.c.id == run_id, runs.c.state == "running", self._fence(token))
            .values(record=as_json({"payload": dict(payload)}))
        )
        write_fenced(self._engine, change.returning(runs.c.id), token, self._lease)

    def wait(self, run_id: int, record: Mapping[str, Any], token: int) -> Run:
        """The run, which goes on when others have done their part; `record` is added. Raises `LeaseLost`."""
        return self._change(run_id, {"state": "waiting"}, record, token)

    def finish(
        self,
        run_id: int,
        *,
        state: Literal["done", "failed"],
        outcome: str,
        now: float,
        token: int,
        version: int | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> Run:
        """The run as it ended; `record` is added to what stands there. Raises `LeaseLost` and `UnknownRun`."""
        ended = {"state": state, "outcome": outcome, "version": version, "finished_at": now}
        return self._change(run_id, ended, record or {}, token)

    def _change(self, run_id: int, values: Mapping[str, Any], record: Mapping[str, Any], token: int) -> Run:
        before = self.get(run_id)
        change = (
            runs.update()
            .where(runs.c.id == run_id, runs.c.state.in_(("running", "waiting")), self._fence(token))
            .values(**values, record=as_json({**before.document, **record}))
            .returning(*runs.c)
        )
        rows = write_fenced(self._engine, change, token, self._lease)
        if not rows:
            raise UnknownRun(run_id, self.get(run_id).state)
        return _run(rows[0])

    def get(self, run_id: int) -> Run:
        """The run with this id. Raises `UnknownRun`."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(*runs.c).where(runs.c.id == run_id)).first()
        if row is None:
            raise UnknownRun(run_id)
        return _run(row)

    def list(
        self,
        *,
        limit: int = 50,
        before: int | None = None,
        kind: str | None = None,
        state: str | None = None,
        outcome: str | None = None,
        trigger: str | None = None,
        since: float | None = None,
    ) -> list[Run]:
        """At most `limit` runs, newest first; `before` is the id to page on from.

        `since` (seconds since 1970 UTC) leaves out those created earlier.
        """
        equal = {"kind": kind, "state": state, "outcome": outcome, "trigger": trigger}
        wanted = _wanted(runs.c, equal, before, since).limit(limit)
        with self._engine.connect() as connection:
            return [_run(row) for row in connection.execute(wanted)]

    def newest_ended(self, kind: str) -> int:
        """Id of the newest run of this kind that has ended; 0 when there is none."""
        ended = sa.select(sa.func.max(runs.c.id)).where(runs.c.kind == kind, runs.c.finished_at.is_not(None))
        with self._engine.connect() as connection:
            return int(connection.scalar(ended) or 0)

    def folded(
        self,
        *,
        limit: int = 50,
        before: int | None = None,
        kind: str | None = None,
        trigger: str | None = None,
        since: float | None = None,
        noes: bool = True,
    ) -> Folds:
        """As `list`, with checks in a row that said "no" in the same way as one; at most `limit` of these.

        Without `noes` these checks are left out.
        """
        wanted = _wanted((runs.c.id, runs.c.created_at, _manner()), {"kind": kind, "trigger": trigger}, before, since)
        if not noes:
            wanted = wanted.where(~_SAID_NO)
        folds: list[_Folding] = []
        goes_on, page = False, wanted.limit(_AT_ONCE)
        with self._engine.connect() as connection:
            while not goes_on and (rows := connection.execute(page).all()):
                for run_id, created_at, manner in rows:
                    if folds and manner is not None and manner == folds[-1].manner:
                        last = folds[-1]
                        last.count, last.first_id, last.first_at = last.count + 1, run_id, created_at
                    elif goes_on := len(folds) == limit:
                        break
                    else:
                        folds.append(_Folding(manner, run_id, 1, run_id, created_at))
                if folds[-1].count >= _AT_ONCE and not goes_on:
                    _to_its_end(connection, wanted, folds[-1])
                page = wanted.where(runs.c.id < folds[-1].first_id).limit(_AT_ONCE)
            whole = sa.select(*runs.c).where(runs.c.id.in_([fold.newest_id for fold in folds]))
            newest = {row.id: _run(row) for row in connection.execute(whole)}  # retention may have deleted one
        return Folds(
            tuple(
                Fold(newest[fold.newest_id], fold.count, fold.first_id, float(fold.first_at))
                for fold in folds
                if fold.newest_id in newest
            ),
            folds[-1].first_id if goes_on else None,
        )

    def running(self) -> Run | None:
        """The run that is under way, None when there is none."""
        with self._engine.connect() as connection:
            row = connection.execute(
                sa.select(*runs.c).where(runs.c.state == "running").order_by(runs.c.id.desc()).limit(1)
            ).first()
        return None if row is None else _run(row)

    def paused(self) -> Run | None:
        """The run that paused the loop, None while it works."""
        newest = sa.select(sa.func.max(runs.c.id)).where(
            runs.c.kind.in_(PAUSES), runs.c.outcome.in_(("paused", "resumed"))
        )
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(*runs.c).where(runs.c.id == newest.scalar_subquery())).first()
        return None if row is None or row.kind != "pause" else _run(row)

    def recover(self, token: int, now: float, why: str = "") -> tuple[int, ...]:
        """Ids of the runs that were left running; they are `failed` now.

        By a dead or replaced holder: `interrupted`. By this one, whose step ended by an exception that could not be
        written down at the time: `crashed`, with `why`. Call it after the lease was acquired, before anything is
        started with its token. Raises `LeaseLost`.
        """
        with self._engine.connect() as connection:
            left = [_run(row) for row in connection.execute(sa.select(*runs.c).where(runs.c.state == "running"))]
        error = why or "the process that ran it died or lost the lease; the champion was not changed by it after that"
        for run in left:
            asked = {} if run.kind == "erase" else run.document  # whom it meant must not stay behind: ask again
            end = (
                runs.update()
                .where(runs.c.id == run.id, runs.c.state == "running", self._fence(token))
                .values(
                    state="failed",
                    outcome="crashed" if why else "interrupted",
                    finished_at=now,
                    record=as_json({**asked, "error": error}),
                )
                .returning(runs.c.id)
            )
            write_fenced(self._engine, end, token, self._lease)
        return tuple(run.id for run in left)

    def check(
        self,
        *,
        at: float,
        version: int,
        drift: Mapping[str, Any] | None,
        quality: Mapping[str, Any] | None,
        decision: Mapping[str, Any],
        token: int,
    ) -> int:
        """Id of the stored check. Raises `LeaseLost`."""
        values = {
            "at": at,
            "version": version,
            "drift": None if drift is None else as_json(drift),
            "quality": None if quality is None else as_json(quality),
            "decision": as_json(decision),
        }
        return int(self._new(checks, values, token).id)

    def checks(self, *, limit: int = 50, version: int | None = None) -> tuple[Check, ...]:
        """At most `limit` checks, newest first."""
        wanted = sa.select(*checks.c).order_by(checks.c.id.desc()).limit(limit)
        if version is not None:
            wanted = wanted.where(checks.c.version == version)
        with self._engine.connect() as connection:
            return tuple(_check(row) for row in connection.execute(wanted))

    def checked(self, check_id: int) -> Check | None:
        """The check with this id; None when there is none, or it was pruned."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(*checks.c).where(checks.c.id == check_id)).first()
        return None if row is None else _check(row)

    def prune(self, *, before: float, runs_before: float | None = None, keep: int = 1000) -> int:
        """How many rows were deleted: checks, their "no" runs and their failures, the newest `keep` of each excepted.

        All older than `before`. A run that did something (trained, promoted, refused, rolled back) goes when it ended
        before `runs_before`; without that it stays.
        """
        if keep < 1:  # the newest id must survive: SQLite gives the largest id plus one
            raise ValueError(f"keep must be at least 1, got {keep}")
        deleted = 0
        said_no = (runs.c.outcome == NO_ACTION) & (runs.c.state == "done")
        with self._engine.begin() as connection:
            for table, old in (
                (runs, (runs.c.created_at < before) & (said_no | (runs.c.kind == "check"))),
                (
                    runs,  # but for what says whether the loop works, or is said of a version
                    sa.false()
                    if runs_before is None
                    else (runs.c.finished_at < runs_before) & runs.c.kind.not_in((*PAUSES, *MARKS)),
                ),
                (checks, checks.c.at < before),
            ):
                newest = sa.select(table.c.id).order_by(table.c.id.desc()).limit(1).offset(keep - 1).scalar_subquery()
                deleted += connection.execute(table.delete().where(old, table.c.id < newest)).rowcount
        return deleted

    def _fence(self, token: int) -> sa.ColumnElement[bool]:
        return fence(self._engine, token, self._lease)

    def _insert(self, token: int, **values: Any) -> int:
        values.setdefault("record", "{}")
        return int(self._new(runs, values, token).id)

    def _new(self, table: sa.Table, values: Mapping[str, Any], token: int) -> sa.Row[Any]:
        row = insert_fenced(self._engine, table, values, token, self._lease)
        assert row is not None  # there is no condition but the fence
        return row


def as_json(value: Mapping[str, Any]) -> str:
    """JSON text; NaN and infinity become null, numpy's scalars numbers, anything else unknown its text."""
    return msgspec.json.encode(value, enc_hook=lambda odd: odd.item() if hasattr(odd, "item") else str(odd)).decode()


def _wanted(
    columns: Iterable[sa.ColumnElement[Any]], equal: Mapping[str, str | None], before: int | None, since: float | None
) -> sa.Select[Any]:
    """The runs that a listing asks for, newest first."""
    wanted = sa.select(*columns).order_by(runs.c.id.desc())
    wanted = wanted.where(*(runs.c[name] == value for name, value in equal.items() if value is not None))
    if before is not None:
        wanted = wanted.where(runs.c.id < before)
    return wanted if since is None else wanted.where(runs.c.created_at >= since)


def _to_its_end(connection: sa.Connection, wanted: sa.Select[Any], fold: _Folding) -> None:
    """Let the store count the rest of a long fold: a calm month has 43,000 checks."""
    older = wanted.where(runs.c.id < fold.first_id)
    other = connection.scalar(older.where(_manner().is_distinct_from(fold.manner)).limit(1)) or 0
    alike = (
        older.where(runs.c.id > other)
        .order_by(None)
        .with_only_columns(sa.func.count(), sa.func.min(runs.c.id), sa.func.min(runs.c.created_at))
    )
    count, first_id, first_at = connection.execute(alike).one()
    if count:
        fold.count, fold.first_id, fold.first_at = fold.count + count, first_id, first_at


def _manner() -> sa.ColumnElement[str | None]:
    """SQL: how a check said "no", alike for those that a reader need not tell apart; NULL for any other run."""
    version = sa.func.coalesce(sa.cast(runs.c.version, sa.Text), "")
    lost = sa.case((runs.c.why.startswith(LOST), " lost"), else_="")
    told = sa.case((runs.c.why.endswith(ALONE), " told"), else_="")
    return sa.case((_SAID_NO, version + " " + runs.c.trigger + lost + told))


def _run(row: sa.Row[Any]) -> Run:
    values = row._asdict()
    document = values.pop("record")
    for name in ("created_at", "started_at", "finished_at"):  # SQLite's RETURNING gives 3 for a stored 3.0
        values[name] = None if values[name] is None else float(values[name])
    return Run(**values, document=msgspec.json.decode(document))


def _check(row: sa.Row[Any]) -> Check:
    values = row._asdict()
    for name in ("drift", "quality", "decision"):
        values[name] = None if values[name] is None else msgspec.json.decode(values[name])
    return Check(**values)
