"""The loop: check, decide, train, judge, promote. Read it aloud and you know the product.

Every step takes a `Loop`: the values and places it needs, no settings, no environment. Every decision ends as a row in
`runs`, "no" included; `Runs.prune` says how long rows stay. Whatever goes wrong before the flip, the champion stays and
the row says why. `LeaseLost` and a database that is down come out of every step: acquire the lease again, then
`take_over`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import sqlalchemy as sa

from monitoring.drift import DriftPolicy, DriftReport, detect
from monitoring.errors import CannotGoOn
from monitoring.feature import AT, LABEL, ORIGIN
from monitoring.news import Labels, told
from monitoring.quality import fell, measure
from monitoring.retention import RetentionPolicy
from monitoring.schema import FeatureSchema
from monitoring.window import read_window
from training.adaptations import Adaptations
from training.artefact import REFERENCE, SCHEMA
from training.data import DataError, assemble, read_snapshot, snapshot
from training.erasure import erase, forget_unfinished
from training.lease import LeaseLost
from training.loop import Loop
from training.policy import Decision, History, QualityCheck, decide
from training.registry import NoChampion
from training.retention import retain
from training.rollout import READY_WITHIN_S, RolloutResult, promote, roll_back
from training.runs import NO_ACTION, Run
from training.spec import JobSpec
from training.subprocess_job import JobCrashed, JobStopped

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

TRAININGS: Final = ("bootstrap", "retrain")
"""Kinds of runs that fit a model; the cool-down counts from them."""

MOVES: Final = ("promote", "rollback", "adaptation")
"""Kinds of runs that only move an alias or a switch: nobody wants to wait for a training to end before them."""

Story = dict[str, Any]
"""The record of a run, filled as it goes, so that a crash keeps what was known."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one check found."""

    champion: int
    drift: DriftReport
    quality: QualityCheck
    labelled_rows: int  # counted up to what the policies ask for
    labelled_at: tuple[float, ...]  # when each of them was answered
    schema: FeatureSchema
    reference: pd.DataFrame = field(repr=False, compare=False)  # what the window was compared with
    window: pd.DataFrame = field(repr=False, compare=False)
    unfit: Mapping[str, int]  # rows and labels that were left out, by what they were read for


# -- the loop ------------------------------------------------------------------------------------------------------


def run_cycle(loop: Loop, asked: Run | None = None) -> Run:
    """The run that came of one turn: a check, and when it decides so a candidate trained, judged and promoted.

    `asked` is a claimed run of kind "retrain": a person's wish. Raises `NoChampion` (then `bootstrap`).
    """
    champion = loop.registry.champion()
    seen = check(loop, champion)
    history = past(loop, seen, besides=asked)
    decision = decide(seen.drift, seen.quality, history, loop.clock(), loop.retrain, manual=asked is not None)
    check_id = _remember(loop, seen, decision)
    story: Story = {"check": check_id, "decision": asdict(decision)}
    if not decision.train:
        return _say_no(loop, asked, decision, champion, story)
    run = asked or _start(loop, "retrain", decision.trigger or "schedule", decision.why)

    def train() -> Ending:
        with _workplace(loop, run) as out:
            spec = _retrain_spec(loop, champion, out, story)
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
    """The run of a pushed skops file (`payload.path`): same gates, promoted if it wins, else refused and why.

    `payload.label` is the pusher's own name for it; with `payload.temporary` the file is deleted afterwards.
    """
    pushed = Path(run.record.payload.path)
    story: Story = {}

    def judge() -> Ending:
        with _workplace(loop, run) as out:
            spec = _push_spec(loop, pushed, run.record.payload.label or None, out, story)
            return _judge_and_promote(loop, run, spec, story, lost="refused")

    try:
        return _carry_out(loop, run, story, judge)
    finally:
        if run.record.payload.temporary:
            pushed.unlink(missing_ok=True)


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


def run_erase(loop: Loop, run: Run) -> Run:
    """The run that forgot prediction ids, or a subject by a feature's value; see `training/erasure.py`."""
    story: Story = {}

    def forget() -> Ending:
        try:
            erase(loop, run, story)
        except sa.exc.StatementError as error:
            error.hide_parameters = True  # they are what is to be forgotten
            raise
        return Ending("done", "erased")

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
        "erase": run_erase,
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


def check(loop: Loop, champion: int) -> Seen:
    """Drift and quality of what the champion answered lately, against its own reference and holdout."""
    import pandas as pd

    folder = loop.registry.path(champion)
    schema = FeatureSchema.from_json((folder / SCHEMA).read_bytes())
    reference = pd.read_parquet(folder / REFERENCE)
    window = read_window(loop.engine, schema, rows=loop.drift.window_rows, version=champion)
    compared = _comparable(reference, loop.drift)

    wanted = max(loop.quality.window_rows, loop.retrain.min_labelled_rows, loop.retrain.min_new_labelled_rows)
    labelled = read_window(loop.engine, schema, rows=wanted, labelled=True, sources=loop.gates.label_sources)
    answered = labelled[labelled["_version"] == champion].tail(loop.quality.window_rows)
    quality = _quality(loop, schema, reference[reference["_holdout"]], answered)
    drift = told(
        detect(compared, window, schema, loop.drift, seed=loop.seed),
        _drift_before(loop, champion),
        loop.drift,
        importance=loop.registry.manifest(champion).document.get("importance"),
        labels=_labels_say(quality, answered),
    )
    unfit = {"drift": unfit_rows(window), "quality": unfit_rows(labelled)}
    return Seen(champion, drift, quality, len(labelled), tuple(labelled[AT].tolist()), schema, compared, window, unfit)


def unfit_rows(window: pd.DataFrame) -> int:
    """How many rows of the record this window left out, and how many labels: they do not fit its schema."""
    return int(window.attrs["skipped"] + window.attrs["unfit_labels"])


def past(loop: Loop, seen: Seen, besides: Run | None = None) -> History:
    """What the decision needs to know of the past; `besides` is the run that asks."""
    checks = loop.runs.checks(limit=loop.retrain.confirmations, version=seen.champion)
    trainings = [run for kind in TRAININGS for run in loop.runs.list(kind=kind, limit=50)]
    trainings = sorted((run for run in trainings if run.state in ("done", "failed")), key=lambda run: -run.id)
    trainings = [run for run in trainings if run.outcome not in (NO_ACTION, "stopped")]
    crashes = next((at for at, run in enumerate(trainings) if run.state == "done"), len(trainings))
    data = trainings[crashes].record.data if crashes < len(trainings) else None
    until = data.until if data is not None else None
    running = loop.runs.running()
    return History(
        last_trained_at=trainings[0].finished_at if trainings else None,
        labelled_rows=seen.labelled_rows,
        new_labelled_rows=sum(until is None or at > until for at in seen.labelled_at),
        crashes=crashes,
        drift_checks=_in_a_row(bool((c.drift or {}).get("detected")) for c in checks),
        quality_checks=_in_a_row(bool((c.quality or {}).get("lost")) for c in checks),
        running=running.id if running is not None and (besides is None or running.id != besides.id) else None,
    )


def _comparable(reference: pd.DataFrame, policy: DriftPolicy) -> pd.DataFrame:
    """The champion's reference, with its answers to rows it was not fitted to: it is surer of the others.

    Without any answer when there are fewer such rows than drift needs.
    """
    unseen = reference["_holdout"] & (reference["_holdout"].sum() >= policy.min_rows)
    answers = {name: reference[name].astype(object).where(unseen, None) for name in ("_prediction", "_score")}
    return reference.assign(**answers)


def _drift_before(loop: Loop, champion: int) -> DriftReport | None:
    """What the champion's last check found of drift; None at its first, and when another release wrote it otherwise."""
    for last in loop.runs.checks(limit=1, version=champion):
        with suppress(msgspec.ValidationError):
            return msgspec.convert(last.drift, DriftReport)
    return None


def _labels_say(quality: QualityCheck, answered: pd.DataFrame) -> Labels | None:
    """What the labels say of the champion, and of when; None when they do not say."""
    if not quality.measured.usable or quality.reference is None:
        return None
    return Labels(held=quality.lost is None, middle_at=float(answered[AT].median()))


def _quality(loop: Loop, schema: FeatureSchema, holdout: pd.DataFrame, answered: pd.DataFrame) -> QualityCheck:
    def measured(frame: pd.DataFrame) -> Any:
        scores = frame["_score"].to_numpy() if schema.task == "binary" else frame.get("_probabilities")
        if schema.task == "regression":
            scores = None
        answers = frame["_prediction"].to_numpy()
        return measure(
            frame[LABEL].to_numpy(), answers, scores, schema.task, schema.classes, loop.quality, seed=loop.seed
        )

    then, now = measured(holdout), measured(answered)
    if then.value is None:
        return QualityCheck(now)
    return QualityCheck(now, then.value, fell(then.value, now, loop.quality, reference_error=then.error or 0.0))


def _remember(loop: Loop, seen: Seen, decision: Decision) -> int:
    drift: Story = msgspec.to_builtins(seen.drift)
    quality: Story = {
        **msgspec.to_builtins(seen.quality.measured),
        "reference": seen.quality.reference,
        "lost": seen.quality.lost,
    }
    check_id = loop.runs.check(
        at=loop.clock(),
        version=seen.champion,
        drift=drift,
        quality=quality,
        decision=asdict(decision),
        token=loop.token,
    )
    _tell(loop, "checked", check=check_id, seen=seen, decision=decision)
    return check_id


def _in_a_row(found: Iterator[bool]) -> int:
    count = 0
    for one in found:
        if not one:
            break
        count += 1
    return count


# -- what a job is given -------------------------------------------------------------------------------------------


def _bootstrap_spec(loop: Loop, out: Path, story: Story) -> JobSpec:
    prepared = loop.source()
    return _spec(loop, out, prepared.frame, prepared.schema, story, kind="train", origin="bootstrap")


def _retrain_spec(loop: Loop, champion: int, out: Path, story: Story) -> JobSpec:
    folder, schema, frame, until = _known(loop, champion, story)
    return _spec(
        loop, out, frame, schema, story, kind="train", origin="retrain", champion=str(folder), champion_until=until
    )


def _push_spec(loop: Loop, pushed: Path, label: str | None, out: Path, story: Story) -> JobSpec:
    if not pushed.is_file():
        raise DataError(f"the pushed file {pushed} is not on this host: push it again")
    given = {"kind": "judge", "origin": "push", "pushed": str(pushed), "version": label}
    champion = loop.registry.live().champion
    if champion is None:
        prepared = loop.source()
        return _spec(loop, out, prepared.frame, prepared.schema, story, **given)
    folder, schema, frame, until = _known(loop, champion, story)
    return _spec(loop, out, frame, schema, story, champion=str(folder), champion_until=until, **given)


def _known(loop: Loop, champion: int, story: Story) -> tuple[Path, FeatureSchema, pd.DataFrame, float]:
    """The champion's folder and schema; its snapshot's source rows with the labelled record; its `until`."""
    folder, manifest = loop.registry.path(champion), loop.registry.manifest(champion)
    schema = FeatureSchema.from_json((folder / SCHEMA).read_bytes())
    record = read_window(
        loop.engine, schema, rows=loop.training.max_rows, labelled=True, sources=loop.gates.label_sources
    )
    story["unfit_rows"] = unfit_rows(record)
    before = loop.snapshots_dir / f"{manifest.data.snapshot}.parquet"
    source = None
    if before.is_file():
        known = read_snapshot(before, schema)
        source = known[known[ORIGIN] == "source"]
    else:
        story["notes"] = [f"the champion's snapshot {before} is gone: only the record was used"]
    return folder, schema, assemble(schema, source, record), manifest.until


def _spec(loop: Loop, out: Path, frame: pd.DataFrame, schema: FeatureSchema, story: Story, **given: Any) -> JobSpec:
    taken = snapshot(frame, loop.snapshots_dir)
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
        gates=loop.gates.model_dump(mode="json"),
        trusted=loop.trusted,
        seed=loop.seed,
        threads=loop.threads,
        memory_mb=loop.memory_mb,
        nice=loop.nice,
        created_at=loop.clock(),
        git=loop.git,
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

    state: Literal["done", "failed"]
    outcome: str
    version: int | None = None


def _judge_and_promote(loop: Loop, run: Run, spec: JobSpec, story: Story, *, lost: str) -> Ending:
    """Run the job, and when its verdict is good register the artefact and bring it into service."""
    _tell(loop, "training_started", run=run, spec=spec)
    result = loop.run_job(spec)
    story["job"] = {"seconds": result.seconds, "windows": result.windows, "notes": result.notes}
    if not result.ok:
        story["error"] = result.error
        return Ending("done", "refused") if spec.kind == "judge" else Ending("failed", "failed")
    story["quality"] = result.quality
    story["verdict"] = msgspec.to_builtins(result.verdict)
    _tell(loop, "judged", run=run, result=result)
    if not result.passed:
        return Ending("done", lost)
    version = loop.registry.register(Path(spec.out), origin=spec.origin, now=loop.clock(), token=loop.token)
    story["version"] = version
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
