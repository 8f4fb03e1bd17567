"""Scheduled work, done by the one replica that holds the lease: checks, retraining, what people asked for, pruning."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args

import msgspec
import sqlalchemy as sa
from apscheduler.schedulers.background import BackgroundScheduler

from monitoring.errors import first_line, without_values
from monitoring.evidence import State
from monitoring.messages import said
from monitoring.metrics import Metrics
from monitoring.retention import DAY_S, forget_drained
from monitoring.spool import segments
from service.control import chronicle
from service.control.alarm import Alarm
from service.control.deployment import assemble
from service.control.open_troubles import OpenTroubles
from service.control.pushes import sweep_shared
from service.control.series import no_adaptation
from service.control.spans import RunSpans
from service.control.troubles import adaptation_troubles, drift_troubles, quality_troubles
from service.handover import JobStatus
from service.report_files import ReportFiles
from service.settings import Settings
from training.adaptations import Adaptations
from training.cycle import MOVES, bootstrap, note_failure, reason, run_cycle, run_retention, take_over, work_off
from training.erasure import forget_unfinished_shared
from training.lease import Lease, LeaseLost
from training.loop import Loop
from training.registry import NoChampion, Registry
from training.rollout import forget_workers, live_workers
from training.runs import PAUSES
from training.source import shown
from training.storage import StorageError

if TYPE_CHECKING:
    from monitoring.traces import Tracer
    from training.runs import Run
    from training.spec import Adapted

logger = logging.getLogger("evergreen.scheduler")

COMMANDS_EVERY_S: Final = 0.5
WORK: Final = ("bootstrap", "retrain", "push", "erase")
WHILE_PAUSED: Final = ("erase",)
"""What of `WORK` is done while the loop is paused; a person's moves are done, too."""
PRUNE_EVERY_S: Final = 3600.0
RETAIN_EVERY_S: Final = 3600.0
RETRY_BOOTSTRAP_S: Final = 60.0
REMIND_EVERY_S: Final = 3600.0
"""How often a job that fails again for the same reason is reported: each hour, not at each check."""
NOTED: Final = ("check", "retention")
"""Jobs whose failure gets a row in `runs`."""


JOB_FAILED: Final = "job_failed"
"""The trouble of a job of `NOTED`, from its first failure until it ends well."""
LEADS_ELSEWHERE: Final = 3
"""Times the lease's length without it: a server that only starts again has it back sooner."""
UNADAPTS: Final = ("off", "promoted", "rolled_back")
"""Outcomes of runs after which another output is served: what was known of the adaptation before says nothing of it."""


class Failure(NamedTuple):
    """Failures of one job in a row, all for the same reason."""

    reason: str
    times: int
    noted_at: float  # time.monotonic() of its last row


class Scheduler:
    """APScheduler's jobs under the lease.

    Args:
        settings: of this deployment.
        engine: the store.
        metrics: of the controller process.
        holder: name of this process in the lease.
        tracer: told of trainings.
        lacks_champion: whether the version in service is not on this host.
    """

    def __init__(
        self,
        settings: Settings,
        engine: sa.Engine,
        metrics: Metrics,
        holder: str,
        tracer: Tracer | None = None,
        *,
        lacks_champion: Callable[[], bool] = lambda: False,
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.metrics = metrics
        self.holder = holder
        self.bootstrap_state = ""
        self.alarm = Alarm(settings)
        self._troubles = OpenTroubles(settings.var / "troubles-of-jobs.json", lambda *told: self.alarm(*told))
        self._led_at = time.monotonic()  # when the lease was last held here, or this process began
        self._spans = None if tracer is None else RunSpans(tracer)
        self.lease = Lease(engine, holder=holder, seconds=settings.schedule.lease_s)
        self._lacks_champion = lacks_champion
        self._aside_until = 0.0  # time.monotonic(); so long the lease is left to others
        self._aside = ""  # why it is
        self._stopping: threading.Event = threading.Event()
        self._jobs: BackgroundScheduler | None = None
        self._loop: Loop | None = None
        self._turn = threading.Lock()  # one step of the loop at a time
        self._move = threading.Lock()  # promotions and rollbacks by hand do not wait for a training
        self._broken: Exception | None = None  # what the last step ended by, while its run may look under way
        self._failures: dict[str, Failure] = {}  # by job: its failures since it last ended well
        self._store_down = False  # logged once, until a job ends well again
        self._reported = 0  # the version whose drift was last asked to be shown as a page
        self._bootstrap_after = 0.0
        self._looks_at = 0.0  # time.monotonic() when the next check is due, also beside a training
        self._labels_seen_on = 0.0  # day on which labels without a prediction were last looked for
        # While true, nothing is checked, trained or promoted by itself; only the holder of the lease changes it.
        self._paused = False
        self._last: dict[str, JobStatus] = {}  # by job: how it went since this process began

    def run(self, stopping: threading.Event, say_leader: Callable[[bool], None]) -> None:
        """Hold the lease when it is free and work while it is held, until `stopping`."""
        self._stopping = stopping
        leading = False
        while not stopping.is_set():
            held = self._hold(leading)
            if held != leading:
                leading = held
                told = {"event": "lease_taken" if held else "lease_lost", "holder": self.holder}
                words = "scheduled work runs here" if held else "scheduled work stops here: %s"
                logger.log(logging.INFO if held else logging.WARNING, words, *self._reason(held), extra=told)
                (self._begin if held else self._end)()
                self.metrics.scheduler_leader.set(int(held))
                say_leader(held)
            elif held and self._loop is not None and self._loop.token != self.lease.token:
                self._end()
                self._begin()
            if held:
                self._led_at = time.monotonic()
            elif time.monotonic() - self._led_at > LEADS_ELSEWHERE * self.settings.schedule.lease_s:
                for facts in self._troubles.of(JOB_FAILED):  # who leads now tells of its own
                    self._troubles.ended(facts["trouble"], {"why": "another replica does the scheduled work"})
            stopping.wait(self.settings.schedule.lease_s / 3)

    def close(self) -> None:
        """Stop the jobs, end a training under way, and free the lease for another replica."""
        self._end()
        self.lease.release()
        self.metrics.scheduler_leader.set(0)

    def _hold(self, leading: bool) -> bool:
        """Whether the lease is held now; one that another replica can make more of is left to it."""
        self._aside = self._why_aside()
        if self._aside:
            if leading:
                self.lease.release()
            return False
        # While SQLite is being rewritten, nobody else can have taken it either; and every write is fenced.
        return self.lease.acquire() or (leading and self.lease.state == "unsure" and self._alone)

    @property
    def _alone(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    def _why_aside(self) -> str:
        """Why another replica should lead; "" when none could do better than this one."""
        if time.monotonic() < self._aside_until:
            return "the shared storage does not answer this replica"
        if self._lacks_champion() and self._others():
            return "the version in service is not on this host"
        return ""

    def _others(self) -> bool:
        """Whether another replica answers with the version in service, and so could lead."""
        replica = self.holder.rpartition(":")[0]
        try:
            champion = Registry(self.engine, self.settings.models_dir, self.settings.model.name).live().champion
            return any(one.replica != replica and one.serving == champion for one in live_workers(self.engine))
        except sa.exc.SQLAlchemyError:
            return False

    def _reason(self, held: bool) -> tuple[str, ...]:
        return () if held else (self._aside or self.lease.reason,)

    def _begin(self) -> None:
        token = self.lease.token
        assert token is not None
        self._loop = assemble(
            self.settings,
            self.engine,
            token,
            self.holder,
            on_event=self._on_event,
            stopped=lambda: self._stopping.is_set() or self.lease.token != token or self._paused,
            meanwhile=self._look_beside_a_training,
        )
        self._pause(self._loop.runs.paused() is not None)
        left = take_over(self._loop, "" if self._broken is None else reason(self._broken))
        self._broken = None
        if left:
            logger.warning("runs %s were left by the holder before; they count as failed", ", ".join(map(str, left)))
        logging.getLogger("apscheduler").setLevel(logging.ERROR)  # a turn skipped because the last one runs is no news
        jobs = BackgroundScheduler(
            job_defaults={"max_instances": 1, "coalesce": True, "misfire_grace_time": None}, timezone="UTC"
        )
        for name, work, seconds in (
            ("commands", self._commands, COMMANDS_EVERY_S),
            ("moves", self._moves, COMMANDS_EVERY_S),
            ("check", self._check, self.settings.schedule.check_interval_s),
        ):
            jobs.add_job(self._guarded, "interval", seconds=seconds, args=(name, work), id=name)
        for name, work, seconds in (
            ("prune", self._prune, PRUNE_EVERY_S),
            ("retention", self._retain, RETAIN_EVERY_S),
        ):
            jobs.add_job(
                self._guarded,
                "interval",
                seconds=seconds,
                next_run_time=datetime.now(UTC),  # at start too: a server that restarts each day would never come to it
                args=(name, work),
                id=name,
            )
        jobs.start()
        self._jobs = jobs

    def _end(self) -> None:
        if self._jobs is not None:
            self._jobs.shutdown(wait=False)
            self._jobs = None
        self._loop = None

    # --- the jobs ------------------------------------------------------------------------------------------------

    def _guarded(self, name: str, work: Callable[[Loop], None]) -> None:
        """One turn of a job: what it raises is counted and logged, and the next turn comes as planned.

        Nothing begins while another replica may have the lease already: its renewal is not answered, or this process
        was stopped.
        """
        loop = self._loop
        if loop is None or self._stopping.is_set() or not (self.lease.sure or self._alone):
            return
        try:
            work(loop)
        except LeaseLost as error:
            self._broken = error  # when it is renewed with the same token, nobody else fails the run
            logger.warning("%s: %s", name, error)
        except sa.exc.SQLAlchemyError as error:
            self._broken = error
            self._fails(loop, name, error)
            self.metrics.job_failures.labels(name).inc()
            self._ended(name, well=False)
            if not self._store_down:
                logger.warning("%s: the store does not answer (%s)", name, first_line(error))
            self._store_down = True
        except Exception as error:
            self._broken = error
            self.metrics.job_failures.labels(name).inc()
            self._ended(name, well=False)
            logger.error("the job %r failed (%s)", name, said(error), exc_info=error)
            self._fails(loop, name, error)
        else:
            self._store_down = False
            self._failures.pop(name, None)
            self._troubles.ended(f"{JOB_FAILED}/{name}", {"why": f"a {name} ended well again"})
            self.metrics.last_success.labels(name).set(time.time())
            self._ended(name, well=True)

    def _fails(self, loop: Loop, name: str, error: Exception) -> None:
        """An alert the first time; a row in `runs` then, when the reason changes, and each hour it lasts."""
        if name not in NOTED:
            return  # what the others do has a run of its own, which says it
        facts = {"trouble": f"{JOB_FAILED}/{name}", "kind": name, "why": f"the {name} failed"}
        self._troubles.began(JOB_FAILED, facts, error=reason(error))
        before, now = self._failures.get(name), time.monotonic()
        times = before.times + 1 if before is not None and before.reason == reason(error) else 1
        noted_at = before.noted_at if before is not None and times > 1 else float("-inf")
        if now - noted_at >= REMIND_EVERY_S:
            noted_at = now
            try:
                note_failure(loop, name, error, times)
            except (LeaseLost, sa.exc.SQLAlchemyError) as lost:  # the next holder's checks speak for themselves
                logger.warning("the failed %s could not be written down: %s", name, first_line(lost))
        self._failures[name] = Failure(reason(error), times, noted_at)

    def _commands(self, loop: Loop) -> None:
        if not self._turn.acquire(blocking=False):
            return  # a step is under way; what is queued waits for it
        try:
            self._mend(loop)
            if not self._can_work(loop):
                return
            while not self._stopping.is_set() and work_off(loop, WHILE_PAUSED if self._paused else WORK) is not None:
                pass
            if not self._paused and loop.registry.live().champion is None and time.monotonic() >= self._bootstrap_after:
                self._bootstrap(loop)
        finally:
            self._turn.release()

    def _can_work(self, loop: Loop) -> bool:
        """Whether this replica reaches what the work that waits needs, or no other replica could do it either."""
        if loop.storage is None or not loop.runs.waits(WORK):
            return True
        try:
            loop.storage.answers()
        except StorageError as error:
            if self._others():
                logger.warning("the work that waits is left to another replica: %s", error)
                self._aside_until = time.monotonic() + 3 * self.settings.schedule.lease_s
                return False
        return True

    def _moves(self, loop: Loop) -> None:
        with self._move:
            while not self._stopping.is_set() and work_off(loop, MOVES) is not None:
                pass

    def _mend(self, loop: Loop) -> None:
        """After a step broke off, its run must not look as if it were still under way."""
        if self._broken is not None and self._move.acquire(blocking=False):
            try:
                take_over(loop, reason(self._broken))
                self._broken = None
            finally:
                self._move.release()

    def _bootstrap(self, loop: Loop) -> None:
        self.bootstrap_state = f"the first version is being trained from {shown(self.settings.data.source)}"
        run = bootstrap(loop)
        if run is not None and run.outcome != "promoted":
            self._bootstrap_after = time.monotonic() + RETRY_BOOTSTRAP_S
            told = run.record
            why = told.error or ("; ".join(told.verdict.reasons) if told.verdict else None)
            self.bootstrap_state = f"training the first version ended as {run.outcome} (run {run.id}): {why}"[:500]
            words = (run.outcome, run.id, without_values(why or ""))
            logger.error("training the first version ended as %s (run %d): %s", *words, extra={"run": run.id})

    def _check(self, loop: Loop) -> None:
        with self._turn:
            self._look(loop)

    def _look(self, loop: Loop) -> None:
        if self._paused:
            return
        self._looks_at = time.monotonic() + self.settings.schedule.check_interval_s
        with suppress(NoChampion):  # the first version is on its way
            run_cycle(loop)

    def _look_beside_a_training(self) -> None:
        """The check that is due while a training is under way, in its thread: it adapts, and decides to wait."""
        if time.monotonic() >= self._looks_at:
            self._guarded("check", self._look)

    def _prune(self, loop: Loop) -> None:
        now, policy = time.time(), self.settings.retention
        loop.runs.prune(
            before=now - policy.checks_days * DAY_S,
            runs_before=now - policy.runs_days * DAY_S if policy.runs_days else None,
        )
        Adaptations(self.engine).prune(now - policy.checks_days * DAY_S, keep_newest=100, token=loop.token)
        forget_workers(self.engine, policy.workers_s)
        if loop.storage is not None:
            sweep_shared(loop.storage, self.engine)
            with suppress(StorageError):  # erasures and retention ask again, and say so
                forget_unfinished_shared(loop)
        here = segments(self.settings.spool_dir).keys()
        forget_drained(self.engine, now - policy.drained_days * DAY_S, keep=here)

    def _retain(self, loop: Loop) -> None:
        policy, today = self.settings.retention, time.time() // DAY_S
        if today == self._labels_seen_on:  # until midnight none is older than it was
            policy = policy.model_copy(update={"unmatched_labels_days": 0})
        with self._turn:
            run_retention(loop, policy)
        self._labels_seen_on = today

    # --- what happened, for metrics and alerts --------------------------------------------------------------------

    def _on_event(self, name: str, fields: Mapping[str, Any]) -> None:
        chronicle.write(name, fields)
        if self._spans is not None:
            self._spans.hear(name, fields)
        if name == "checked":
            self._count_check(fields)
        elif name == "judged":
            for gate in fields["result"].verdict.gates:
                self.metrics.gate_results.labels(gate.name, "passed" if gate.passed else "failed").inc()
            self.metrics.retrain_seconds.observe(fields["result"].seconds)
            if fields["result"].passed and not fields["result"].verdict.passed:
                why = "; ".join(fields["result"].verdict.reasons)
                self.alarm("doubtful_version", {"run": fields["run"].id, "why": f"a first version is served: {why}"})
        elif name == "adapted":
            self._count_adaptation(fields["version"], fields["adapted"])
        elif name == "run_finished":
            self._count_run(fields["run"])

    def _check_sooner(self) -> None:
        """The next check comes after a quarter of the usual time: something has begun that may matter."""
        if self._jobs is not None:
            seconds = self.settings.schedule.check_interval_s / 4
            self._jobs.modify_job("check", next_run_time=datetime.now(UTC) + timedelta(seconds=seconds))
            self._looks_at = time.monotonic() + seconds

    def _count_adaptation(self, version: int, found: Adapted) -> None:
        for output, loss in (("raw", found.raw_loss), ("served", found.served_loss)):
            if loss is not None:
                self.metrics.adaptation_loss.labels(output).set(loss)
        self.metrics.adaptation_moved.set(found.moved)
        for expert in self.settings.adapt.names:
            self.metrics.adaptation_weight.labels(expert).set(found.weights.get(expert, 0.0))
        if found.harm:
            self.alarm("adaptation_reverted", {"version": version, "why": found.harm})
        if found.made or found.harm:  # else no row of it says how it stands now
            for trouble in adaptation_troubles(Adaptations(self.engine), self.settings.adapt):
                self.alarm(*trouble)

    def _count_check(self, fields: Mapping[str, Any]) -> None:
        metrics, seen = self.metrics, fields["seen"]
        drift, quality = seen.drift, seen.quality.measured
        for where, rows in seen.unfit.items():
            metrics.rows_unfit.labels(where).inc(rows)
        for feature in drift.features:
            if feature.score is not None:
                metrics.drift_score.labels(feature.name).set(feature.score)
        metrics.drift_share.set(drift.share)
        metrics.drift_detected.set(int(drift.detected))
        for metric, value in quality.metrics.items():
            metrics.quality.labels(metric, quality.kind).set(value)
        for state in get_args(State):
            metrics.quality_state.labels(state).set(int(state == seen.quality.verdict.state))
        metrics.label_delay.set(seen.labels.delay_s)
        metrics.label_waiting.set(seen.labels.waiting)
        if seen.labels.coverage is not None:
            metrics.label_coverage.set(seen.labels.coverage)
        metrics.drift_news.set(int(drift.news))
        if drift.news and seen.champion != self._reported:
            self._reported = seen.champion
            with suppress(OSError):  # a full disk, say: whoever opens the report asks for it again
                ReportFiles(self.settings.reports_dir).ask(fields["check"])
        if drift.news and drift.matters:
            self._check_sooner()
        verdict = seen.quality.verdict
        for trouble in (
            *drift_troubles(drift, seen.champion),
            *quality_troubles(self.engine, fields["check"], seen.champion, verdict.state, verdict.words),
        ):
            self.alarm(*trouble)

    def _pause(self, paused: bool) -> None:
        self._paused = paused
        self.metrics.loop_paused.set(int(paused))

    def jobs(self) -> tuple[JobStatus, ...]:
        """How the jobs went and when they come next, by name; none while this replica does not hold the lease."""
        jobs = self._jobs
        if jobs is None:
            return ()
        found = []
        for job in jobs.get_jobs():
            known = self._last.get(job.id, JobStatus(job.id))
            waits = self._paused and job.id == "check"
            at = None if waits or job.next_run_time is None else job.next_run_time.timestamp()
            found.append(msgspec.structs.replace(known, next=at))
        return tuple(sorted(found, key=lambda job: job.name))

    def _ended(self, name: str, *, well: bool) -> None:
        known = self._last.get(name, JobStatus(name))
        if well:
            self._last[name] = msgspec.structs.replace(known, last_success=time.time())
        else:
            self._last[name] = msgspec.structs.replace(known, failures=known.failures + 1)

    def _count_run(self, run: Run) -> None:
        told = run.record
        if run.outcome in ("paused", "resumed"):
            self._pause(run.kind == "pause")
        self.metrics.rows_unfit.labels("training").inc(told.unfit_rows)
        forgets = run.kind in ("erase", "retention")
        for table, rows in told.rows.items() if forgets else ():
            self.metrics.deleted_rows.labels(table, run.kind).inc(rows)
        if run.state == "done" and run.outcome in UNADAPTS:
            no_adaptation(self.metrics, self.settings.adapt.names)
        if run.state == "failed" and run.kind in NOTED:
            return  # the trouble of that job says it
        if run.kind != "check":
            if not forgets and run.kind not in ("check", "adaptation", *PAUSES):
                self.metrics.retrains.labels(run.trigger, run.outcome or run.state).inc()
            facts = {"run": run.id, "kind": run.kind, "outcome": run.outcome, "version": run.version, "why": run.why}
            self.alarm("run", {**facts, "error": told.error})
