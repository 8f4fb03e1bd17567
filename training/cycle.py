"""The loop: adapt, check, decide, train, judge, promote. Read it aloud and you know the product.

Every step takes a `Loop`: the values and places it needs, no settings, no environment. Every decision ends as a row in
`runs`, "no" included; `Runs.prune` says how long rows stay. Whatever goes wrong before the flip, the champion stays and
the row says why. `LeaseLost` and a database that is down come out of every step: acquire the lease again, then
`take_over`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
import sqlalchemy as sa

from monitoring.errors import CannotGoOn
from monitoring.feature import AT, LABEL, ORIGIN, VERSION
from monitoring.retention import RetentionPolicy
from monitoring.schema import FeatureSchema
from monitoring.window import read_window
from training.adaptations import Adaptations
from training.adapting import adapt, served_of, standing_of, start
from training.artefact import SCHEMA
from training.checking import Seen, check, matured_rows, maturity, past, unfit_rows
from training.data import assemble, read_snapshot, snapshot
from training.erasure import erase, forget_unfinished, over
from training.homes import declare_gone
from training.lease import LeaseLost
from training.loop import Loop
from training.manifest import NO_ACTION, Payload
from training.policy import Decision, decide
from training.registry import NoChampion
from training.rehearsal import rehearsed
from training.retention import retain
from training.rollout import READY_WITHIN_S, RolloutResult, promote, roll_back
from training.runs import PAUSES, Run
from training.source import DataError
from training.spec import JobSpec
from training.storage import StorageError, shared_push
from training.subprocess_job import JobCrashed, JobStopped

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

MOVES: Final = ("promote", "rollback", "adaptation", "gone", *PAUSES)
"""Kinds of runs that only move an alias or a switch: nobody wants to wait for a training to end before them."""

Story = dict[str, Any]
"""The record of a run, filled as it goes, so that a crash keeps what was known."""


# -- the loop ------------------------------------------------------------------------------------------------------


def run_cycle(loop: Loop, asked: Run | None = None) -> Run:
    """The run that came of one turn: a check, and when it decides so a candidate trained, judged and promoted.

    `asked` is a claimed run of kind "retrain": a person's wish. Raises `NoChampion` (then `bootstrap`).
    """
    champion = loop.registry.champion()
    labels = maturity(loop)
    matured = matured_rows(loop, champion, labels.matured_until)
    adapted = adapt(loop, champion, matured, labels)
    if adapted is not None:
        _tell(loop, "adapted", version=champion, adapted=adapted)
    seen = check(loop, champion, labels, matured, adapted)
    history = past(loop, seen, besides=asked)
    decision = decide(seen.drift, seen.quality, history, loop.clock(), loop.retrain, manual=asked is not None)
    check_id = _remember(loop, seen, decision)
    story: Story = {"check": check_id, "decision": asdict(decision)}
    if not decision.train:
        return _say_no(loop, asked, decision, champion, story)
    run = asked or _start(loop, "retrain", decision.trigger or "schedule", decision.why)

    def train() -> Ending:
        with _workplace(loop, run) as out:
            spec = _retrain_spec(loop, champion, out, story, due=decision.due)
            return _judge_and_promote(loop, run, spec, story, lost="kept")

    return _carry_out(loop, run, story, train)


def bootstrap(loop: Loop, asked: Run | None = None, *, over: bool = False) -> Run | None:
    """The run that trained the first version from the source; None when there is a champion already.

    With `over` a champion does not matter: the new version takes its place without being compared.
    """
    if not over and loop.registry.live().champion is not None:
        return (
            None if asked is None else _finish(loop, asked, Ending("done", NO_ACTION), {"error": "it has a champion"})
        )
    run = asked or _start(loop, "bootstrap", "start", f"the model {loop.registry.name!r} has no champion")
    story: Story = {}

    def train() -> Ending:
        with _workplace(loop, run) as out:
            spec = _bootstrap_spec(loop, out, story)
            return _judge_and_promote(loop, run, spec, story, lost="refused")

    return _carry_out(loop, run, story, train)


def run_push(loop: Loop, run: Run) -> Run:
    """The run of a pushed skops or ONNX file (`payload.path`): same gates, promoted if it wins, else refused and why.

    `payload.label` is the pusher's own name for it; with `payload.temporary` the file is deleted afterwards. Rows up to
    `payload.trained_until` do not judge it: it may have learnt them.
    """
    payload = run.record.payload
    story: Story = {}

    def judge() -> Ending:
        with _workplace(loop, run) as out:
            spec = _push_spec(loop, payload, out, story)
            return _judge_and_promote(loop, run, spec, story, lost="refused")

    try:
        return _carry_out(loop, run, story, judge)
    finally:
        if payload.temporary:
            Path(payload.path).unlink(missing_ok=True)
            with suppress(StorageError):  # a controller's start deletes it
                if loop.storage is not None:
                    loop.storage.delete(shared_push(payload.path))


def run_promote(loop: Loop, run: Run) -> Run:
    """The run that put the registered `payload.version` in service on a person's word, past the gates."""
    story: Story = {"gates": "not asked: a person promoted it"}

    def move() -> Ending:
        version = run.record.payload.version
        if version is None:
            raise DataError("which version is to be promoted was not said")
        return _roll_out(loop, story, lambda **how: promote(loop.registry, version, loop.token, **how), "promoted")

    return _carry_out(loop, run, story, move)


def run_rollback(loop: Loop, run: Run) -> Run:
    """The run that put the former champion in service again."""
    story: Story = {}

    def move() -> Ending:
        story["from"] = loop.registry.live().champion
        return _roll_out(loop, story, lambda **how: roll_back(loop.registry, loop.token, **how), "rolled_back")

    return _carry_out(loop, run, story, move)


def run_adaptation(loop: Loop, run: Run) -> Run:
    """The run that switched adaptations off (the champion's own output is served) or on again."""
    story: Story = {}

    def switch() -> Ending:
        champion, state = loop.registry.champion(), run.record.payload.state
        if not state:
            raise DataError("the run does not say whether adaptations are switched on or off: ask again")
        story["adaptation"] = Adaptations(loop.engine).add(
            champion, kind=state, who=run.who, why=run.why, now=loop.clock(), token=loop.token
        )
        return Ending("done", state, champion)

    return _carry_out(loop, run, story, switch)


def run_pause(loop: Loop, run: Run) -> Run:
    """The run that paused the loop, or resumed it: what is done about it is whoever turns the loop's to do."""
    return _carry_out(loop, run, {}, lambda: Ending("done", "paused" if run.kind == "pause" else "resumed"))


def run_gone(loop: Loop, run: Run) -> Run:
    """The run that counts a home as gone for good: nothing waits for it any more."""
    story: Story = {}

    def forget() -> Ending:
        home = declare_gone(loop.engine, run.record.payload.home, loop.token)
        story["home"], story["host"] = home.home, home.host
        return Ending("done", "gone")

    return _carry_out(loop, run, story, forget)


def run_erase(loop: Loop, run: Run) -> Run:
    """The run that forgot prediction ids, or a subject by a feature's value; see `training/erasure.py`."""
    story: Story = {}

    def forget() -> Ending:
        try:
            erase(loop, run, story)
        except sa.exc.StatementError as error:
            error.hide_parameters = True  # they are what is to be forgotten
            raise
        return Ending("waiting" if story["waits_for"] else "done", "erased")

    return _carry_out(loop, run, story, forget)


def run_retention(loop: Loop, policy: RetentionPolicy) -> Run | None:
    """The run that deleted what is older than the policy keeps; None when there was nothing to delete."""
    began, story = loop.clock(), retain(loop, policy)
    if not story:
        return None
    story["seconds"] = loop.clock() - began
    run_id = loop.runs.note(
        "retention",
        trigger="schedule",
        who=loop.who,
        why="older than [retention] keeps",
        outcome="deleted",
        record=story,
        now=loop.clock(),
        token=loop.token,
    )
    run = loop.runs.get(run_id)
    _tell(loop, "run_finished", run=run)
    return run


def work_off(loop: Loop, kinds: Collection[str] | None = None) -> Run | None:
    """The oldest queued run (of these kinds, when given), carried out; None when none is queued.

    `MOVES` may be worked off beside a training: each moves an alias, or a switch, in one statement.
    """
    if kinds is None or "erase" in kinds:
        for waited, story in over(loop):
            _finish(loop, waited, Ending("done", "erased"), story)
    run = loop.runs.claim(loop.token, loop.clock(), kinds)
    if run is None:
        return None
    if run.kind == "retrain":
        try:
            return run_cycle(loop, run)
        except NoChampion:
            return bootstrap(loop, run)
    if run.kind == "bootstrap":
        return bootstrap(loop, run)
    steps = {
        "push": run_push,
        "promote": run_promote,
        "rollback": run_rollback,
        "adaptation": run_adaptation,
        **dict.fromkeys(PAUSES, run_pause),
        "erase": run_erase,
        "gone": run_gone,
    }
    if run.kind in steps:
        return steps[run.kind](loop, run)
    return _finish(loop, run, Ending("failed", "refused"), {"error": f"nobody knows runs of kind {run.kind!r}"})


def reason(error: Exception) -> str:
    """What a run's record says of an exception that ended it; never the values a statement was given."""
    if isinstance(error, sa.exc.DBAPIError):
        said = f"{type(error).__name__}: {error.orig}"
    else:
        said = f"{type(error).__name__}: {error}"
    return "; ".join([said.strip(), *getattr(error, "__notes__", ())])[:2000]


def note_failure(loop: Loop, kind: str, error: Exception, times: int = 1) -> Run:
    """The run that says that a scheduled step (`check`, `retention`) ended by this exception, for the `times`-th time.

    Raises `LeaseLost`.
    """
    run_id = loop.runs.note(
        kind,
        trigger="schedule",
        who=loop.who,
        why=f"the {kind} failed",
        state="failed",
        outcome="crashed",
        record={"error": reason(error), "times": times},
        now=loop.clock(),
        token=loop.token,
    )
    run = loop.runs.get(run_id)
    _tell(loop, "run_finished", run=run)
    return run


def take_over(loop: Loop, why: str = "") -> tuple[int, ...]:
    """Ids of the runs that were left running, `failed` now; an announcement is withdrawn.

    Call it after the lease was acquired, and after any step raised with `why`, while no step of this loop is under way.
    """
    left = loop.runs.recover(loop.token, loop.clock(), why)
    loop.registry.withdraw(loop.token)
    loop.registry.clean()
    shutil.rmtree(loop.work_dir, ignore_errors=True)
    forget_unfinished(loop)
    return left


# -- check ---------------------------------------------------------------------------------------------------------


def _remember(loop: Loop, seen: Seen, decision: Decision) -> int:
    check_id = loop.runs.check(
        at=loop.clock(),
        version=seen.champion,
        drift=msgspec.to_builtins(seen.drift),
        quality=seen.known(),
        decision=asdict(decision),
        token=loop.token,
    )
    _tell(loop, "checked", check=check_id, seen=seen, decision=decision)
    return check_id


# -- what a job is given -------------------------------------------------------------------------------------------


def _bootstrap_spec(loop: Loop, out: Path, story: Story) -> JobSpec:
    prepared = loop.source()
    return _spec(loop, out, prepared.frame, prepared.schema, story, kind="train", origin="bootstrap")


def _retrain_spec(loop: Loop, champion: int, out: Path, story: Story, *, due: bool) -> JobSpec:
    known = _known(loop, champion, out, story)
    return _spec(loop, out, known.frame, known.schema, story, kind="train", origin="retrain", due=due, **known.champion)


def _push_spec(loop: Loop, payload: Payload, out: Path, story: Story) -> JobSpec:
    pushed = Path(payload.path)
    if not pushed.is_file() and loop.storage is not None:  # another host took it in
        pushed = out.with_name(pushed.name)
        loop.storage.get(shared_push(payload.path), pushed)
    if not pushed.is_file():
        raise DataError(f"the pushed file {pushed} is not on this host: push it again")
    given = {
        "kind": "judge",
        "origin": "push",
        "pushed": str(pushed),
        "pushed_until": payload.trained_until,
        "version": payload.label or None,
    }
    champion = loop.registry.live().champion
    if champion is None:
        prepared = loop.source()
        return _spec(loop, out, prepared.frame, prepared.schema, story, **given)
    known = _known(loop, champion, out, story)
    return _spec(loop, out, known.frame, known.schema, story, **known.champion, **given)


class Known(NamedTuple):
    """What a candidate may learn from, and what it must beat."""

    schema: FeatureSchema
    frame: pd.DataFrame
    champion: dict[str, Any]  # the fields of `JobSpec` that describe it


def _known(loop: Loop, champion: int, out: Path, story: Story) -> Known:
    """The champion's source rows with the labelled record; and beside `out`, what it served for each of them."""
    folder, manifest = loop.registry.fetch(champion), loop.registry.manifest(champion)
    schema = FeatureSchema.from_json((folder / SCHEMA).read_bytes())
    labels = maturity(loop)
    record = read_window(
        loop.engine,
        schema,
        rows=loop.training.max_rows,
        until=labels.matured_until,
        labelled=True,
        sources=loop.gates.label_sources,
    )
    story["unfit_rows"] = unfit_rows(record)
    before = loop.snapshots.path(manifest.data.snapshot) if manifest.data.snapshot else None
    source = None
    if before is not None and before.is_file():
        known = read_snapshot(before, schema)
        source = known[known[ORIGIN] == "source"]
    else:
        story["notes"] = [f"the champion's snapshot {before or ''} is gone: only the record was used"]
    frame = assemble(schema, source, record)
    given = {
        "champion": str(folder),
        "champion_until": manifest.until,
        "delay_s": labels.delay_s,
        "waiting": labels.waiting,
        "served": _write_served(frame, record, schema, champion, out.with_name("served.npy")),
        "standing": standing_of(loop),
        "unfit_rows": story["unfit_rows"],
    }
    return Known(schema, frame, given)


def _write_served(frame: pd.DataFrame, record: pd.DataFrame, schema: FeatureSchema, champion: int, path: Path) -> str:
    """The file with what the champion served for each row of a snapshot frame, NaN where it did not answer."""
    labelled = record[record[LABEL].notna()]
    said = served_of(labelled, schema)
    said[(labelled[VERSION] != champion).to_numpy()] = np.nan
    served = np.full((len(frame), *said.shape[1:]), np.nan)
    served[(frame[ORIGIN] == "record").to_numpy()] = said  # `assemble` keeps their order
    np.save(path, served)
    return str(path)


def _spec(loop: Loop, out: Path, frame: pd.DataFrame, schema: FeatureSchema, story: Story, **given: Any) -> JobSpec:
    taken = loop.snapshots.take(frame)
    if loop.trusted_rows is not None:
        trusted = snapshot(loop.trusted_rows(schema), out.with_name("trusted"))
        given["trusted_holdout"] = str(trusted.path)
        story["trusted_holdout"] = {"digest": trusted.digest, "rows": trusted.rows}
    story["data"] = {
        "snapshot": taken.digest,
        "rows": taken.rows,
        "record_rows": int((frame[ORIGIN] == "record").sum()),
        "from": float(frame[AT].iloc[0]),
        "until": float(frame[AT].iloc[-1]),
    }
    return JobSpec(
        out=str(out),
        snapshot=str(taken.path),
        schema=msgspec.json.decode(schema.to_json()),
        name=loop.registry.name,
        training=loop.training.model_dump(mode="json"),
        data_checks=loop.data_checks.model_dump(mode="json"),
        created_at=loop.clock(),
        git=loop.git,
        **loop.job_terms(),
        **given,
    )


@contextmanager
def _workplace(loop: Loop, run: Run) -> Iterator[Path]:
    """The output folder of the run's job, gone afterwards: what is kept is in the model store by then."""
    folder = loop.work_dir / f"run-{run.id}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder / "artefact"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# -- judge, register, promote, record ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ends."""

    state: Literal["done", "failed", "waiting"]
    outcome: str
    version: int | None = None


def _judge_and_promote(loop: Loop, run: Run, spec: JobSpec, story: Story, *, lost: str) -> Ending:
    """Run the job, and when its verdict is good register the artefact and bring it into service."""
    _tell(loop, "training_started", run=run, spec=spec)
    result = loop.run_job(spec)
    _tell(loop, "training_ended", run=run, spec=spec, result=result)
    story["job"] = {"seconds": result.seconds, "windows": result.windows, "notes": result.notes}
    if result.data_checks:
        story["data_checks"] = msgspec.to_builtins(result.data_checks)
    if not result.ok:
        story["error"] = result.error
        refused = spec.kind == "judge" or any(found.action == "stop" for found in result.data_checks)
        return Ending("done", "refused") if refused else Ending("failed", "failed")
    if loop.rehearse is not None and spec.champion is not None:
        result = rehearsed(Path(spec.out), result, loop.rehearse)
    story["quality"] = result.quality
    story["verdict"] = msgspec.to_builtins(result.verdict)
    _tell(loop, "judged", run=run, result=result)
    if not result.passed:
        return Ending("done", lost)
    version = loop.registry.register(Path(spec.out), origin=spec.origin, now=loop.clock(), token=loop.token)
    story["version"] = version
    start(loop, version, spec)
    return _roll_out(loop, story, lambda **how: promote(loop.registry, version, loop.token, **how), "promoted")


def _roll_out(loop: Loop, story: Story, move: Callable[..., RolloutResult], outcome: str) -> Ending:
    result = move(live_workers=loop.live_workers, timeout_s=READY_WITHIN_S, sleep=loop.sleep, clock=loop.clock)
    story["rollout"] = asdict(result)
    if result.flipped:
        return Ending("done", outcome, result.version)
    if result.failed:
        story["error"] = result.reason
        return Ending("failed", "not_loaded", result.version)
    return Ending("done", NO_ACTION, result.version)


def _carry_out(loop: Loop, run: Run, story: Story, work: Callable[[], Ending]) -> Run:
    """The finished run: as `work` ended it, or failed with the reason, the champion untouched."""
    try:
        ending = work()
    except LeaseLost:
        raise  # the next holder fails this run; nothing can be written here
    except JobStopped as error:
        story["error"], ending = str(error), Ending("failed", "stopped")
    except JobCrashed as error:
        story["error"], story["stderr"], ending = str(error), error.tail, Ending("failed", "crashed")
    except CannotGoOn as error:
        story["error"], ending = str(error), Ending("failed", "refused")
    except Exception as error:  # of a library, or a fault of ours: the row must say it, the log has the trace
        logger.exception("run %d (%s) failed", run.id, run.kind)
        story["error"], ending = f"{type(error).__name__}: {error}", Ending("failed", "crashed")
        with suppress(sa.exc.SQLAlchemyError):  # a connection that broke during the flip leaves open whether it flipped
            story["champion"] = loop.registry.live().champion
    return _finish(loop, run, ending, story)


def _finish(loop: Loop, run: Run, ending: Ending, story: Story) -> Run:
    if ending.state == "waiting":
        return loop.runs.wait(run.id, story, loop.token)
    try:
        ended = loop.runs.finish(
            run.id,
            state=ending.state,
            outcome=ending.outcome,
            version=ending.version,
            record=story,
            now=loop.clock(),
            token=loop.token,
        )
    except Exception as error:
        if "error" in story:  # else what went wrong first would be known to nobody
            error.add_note(f"the run had ended as {ending.outcome}: {story['error']}")
        raise
    _tell(loop, "run_finished", run=ended)
    return ended


def _say_no(loop: Loop, asked: Run | None, decision: Decision, champion: int, story: Story) -> Run:
    if asked is not None:
        return _finish(loop, asked, Ending("done", NO_ACTION, champion), {**story, "error": decision.why})
    run_id = loop.runs.note(
        "check",
        trigger=decision.trigger or "schedule",
        who=loop.who,
        why=decision.why,
        version=champion,
        record=story,
        now=loop.clock(),
        token=loop.token,
    )
    run = loop.runs.get(run_id)
    _tell(loop, "run_finished", run=run)
    return run


def _start(loop: Loop, kind: str, trigger: str, why: str) -> Run:
    return loop.runs.get(
        loop.runs.start(kind, trigger=trigger, who=loop.who, why=why, now=loop.clock(), token=loop.token)
    )


def _tell(loop: Loop, event: str, **fields: Any) -> None:
    try:
        loop.on_event(event, fields)
    except Exception:  # side work never breaks main work
        logger.exception("the listener failed on the event %r", event)
