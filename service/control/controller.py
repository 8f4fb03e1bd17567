"""One process of each replica drains the record, mirrors the aliases and, when it holds the lease, decides.

Seven threads that do not depend on each other: the drain, the mirror between store and workers, the watch over the
workers, the reports that people ask for, what this home has to forget, the page, and the scheduler, whose jobs run only
while this replica holds the lease. Each outlives a store that is down: it says so once, and goes on when the store is
back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec
import sqlalchemy as sa

from monitoring.drain import Drainer, DrainFailed, SpoolBusy, backlog
from monitoring.messages import said
from monitoring.metrics import Metrics, total
from monitoring.spool import segments
from monitoring.store import open_store
from service.control.alarm import Alarm
from service.control.deployment import registry, storage
from service.control.fetching import Fetching
from service.control.in_force import InForceFiles
from service.control.open_troubles import OpenTroubles
from service.control.own_part import LOOK_EVERY_S as PART_EVERY_S
from service.control.own_part import OwnPart
from service.control.presence import Presence
from service.control.pushes import sweep
from service.control.reports import LOOK_EVERY_S, Reports
from service.control.scheduler import Scheduler
from service.control.series import begin
from service.control.watch import Watch
from service.handover import ControllerStatus, Live, LiveFile, LiveVersion, read_live, read_reports, write_status
from service.keys import management_token
from service.process import Tree, forget_trees
from service.secret_file import home_id
from service.settings import Settings
from service.tracing import open_tracer
from service.web.desk import serve
from training.adaptations import Adaptations
from training.homes import SEEN_S, is_gone
from training.priority import give_way
from training.registry import Registry, UnknownVersion
from training.rollout import WorkerState, report_workers
from training.snapshots import Snapshots

if TYPE_CHECKING:
    from monitoring.drain import Backlog, DrainResult

logger = logging.getLogger("evergreen.controller")

STORE_RETRY_S: Final = 1.0
REPORT_EVERY_S: Final = 1.0
WATCH_EVERY_S: Final = 5.0
CONTROLLER_NICE: Final = 10
"""The workers come first: a late drain or check harms nobody, a late answer does."""


class Controller:
    """The work of the controller process of one server.

    Args:
        settings: of this deployment.
        tree: the server it belongs to.
    """

    def __init__(self, settings: Settings, tree: Tree) -> None:
        self.settings = settings
        self.tree = tree
        self.metrics = Metrics(tree.run_dir / "metrics", "controller-1")
        begin(self.metrics, settings.adapt.names, settings.log.max_spool_bytes)
        self.tracer = open_tracer(settings, "controller", self.metrics)
        self.replica = f"{socket.gethostname()}:{tree.run_dir.name}"
        self.status = ControllerStatus(at=time.time(), holder=self.replica)
        self._stopping = threading.Event()
        self._drained = threading.Event()
        self._missing: set[str] = set()  # why artefacts are not here
        self._lacks_champion = False
        self._former: list[str] = []  # replicas that servers of this home were, which could not say that they end
        self._threads: list[threading.Thread] = []
        self._engine: sa.Engine | None = None
        self._engine_lock = threading.Lock()
        self._status_lock = threading.Lock()
        self.scheduler: Scheduler | None = None

    def start(self) -> None:
        """Start the threads and return at once: a service whose start hangs is never ready."""
        give_way(CONTROLLER_NICE)
        self._former = [f"{socket.gethostname()}:{name}" for name in forget_trees(self.settings.var / "run")]
        if management_token(self.settings).new:  # under plain `bentoml serve`; `evergreen serve` has said it already
            logger.info("management token: kept in %s", self.settings.token_file)
        threads = {"drain": self._drain, "mirror": self._mirror, "watch": self._watch, "reports": self._reports}
        threads["own part"] = self._own_part
        threads["page"] = self._page
        threads["lead"] = self._lead
        for name, work in threads.items():
            thread = threading.Thread(target=self._guard, args=(name, work), name=f"evergreen-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Stop deciding, then drain until every worker has sealed its record or the time is up."""
        self._stopping.set()
        self._drained.wait(timeout=self.settings.serve.stop_timeout_s * 0.8)
        for thread in self._threads:
            thread.join(timeout=2)
        if self.tracer is not None:
            self.tracer.close()

    # --- the threads ---------------------------------------------------------------------------------------------

    def _guard(self, name: str, work: Callable[[], None]) -> None:
        """A thread must not end silently: without the drain the spool only grows."""
        while not self._stopping.is_set():
            try:
                work()
                return
            except SpoolBusy as error:
                logger.error("%s", error)
                self._stopping.wait(10)
            except Exception:
                logger.exception("the %s thread failed; it starts again in 5 s", name)
                self.metrics.job_failures.labels(name).inc()
                self._stopping.wait(5)

    def engine(self) -> sa.Engine | None:
        """The store with its tables, or None when the controller stops before the store answers."""
        said = False
        while True:
            with self._engine_lock:
                if self._engine is not None:
                    return self._engine
                try:
                    self._engine = open_store(self.settings.store_url)
                    return self._engine
                except sa.exc.SQLAlchemyError as error:
                    reason = str(error).splitlines()[0]
            if not said:
                logger.warning("the store does not answer (%s); predictions go on, trying again", reason)
                said = True
            self._say(store_error=reason)
            self._say_waiting(backlog(self.settings.spool_dir))
            if self._stopping.wait(STORE_RETRY_S):
                return None

    def _drain(self) -> None:
        engine = self.engine()
        if engine is None:
            self._drained.set()
            return
        failing = False
        home, checked = home_id(self.settings), float("-inf")
        try:
            with Drainer(self.settings.spool_dir, engine, on_progress=self._say_waiting) as drainer:
                while True:
                    stopping = self._stopping.is_set()
                    try:
                        # Nobody can say so of a home that was seen within `SEEN_S`; `Presence` tells people.
                        if time.monotonic() - checked > SEEN_S / 2:
                            if is_gone(engine, home):
                                return
                            checked = time.monotonic()
                        self._count(drainer.drain(time.time()))
                        failing = False
                    except Exception as error:  # any trouble of the store: the spool keeps the rows
                        if not failing:
                            logger.warning("%s", error if isinstance(error, DrainFailed) else said(error))
                        failing = True
                        self._say_waiting(drainer.backlog())
                        if stopping:
                            return
                    # Sealed ones, too: the last worker may have sealed its segment just behind this drain.
                    if stopping and not segments(self.settings.spool_dir):
                        return
                    self._stopping.wait(self.settings.schedule.drain_interval_s)
                    if stopping:
                        time.sleep(0.05)
        finally:
            self._drained.set()

    def _count(self, result: DrainResult) -> None:
        metrics = self.metrics
        if result.predictions:
            metrics.log_records.labels("stored").inc(result.predictions)
        if result.repeated_ids:
            metrics.log_records.labels("repeated_id").inc(result.repeated_ids)
        if result.dead:
            metrics.log_records.labels("dead_letter").inc(result.dead)
        if result.torn:
            metrics.log_records.labels("torn").inc(result.torn)
        if result.matched_labels:
            metrics.labels.labels("matched").inc(result.matched_labels)
        if result.unmatched_labels:
            metrics.labels.labels("unmatched").inc(result.unmatched_labels)
        self._say_backlog(result.bytes_left, result.oldest_at)

    def _say_waiting(self, waiting: Backlog) -> None:
        self._say_backlog(waiting.bytes_left, waiting.oldest_at)

    def _say_backlog(self, bytes_left: int, oldest_at: float | None) -> None:
        lag = 0.0 if oldest_at is None else max(0.0, time.time() - oldest_at)
        self.metrics.log_spool_bytes.set(bytes_left)
        self.metrics.log_drain_lag_seconds.set(lag)
        self._say(spool_bytes=bytes_left, drain_lag_s=lag)

    def _mirror(self) -> None:
        """Copy the aliases to the workers, and the workers' states to the store."""
        engine = self.engine()
        if engine is None:
            return
        shared = registry(self.settings, engine)
        snapshots = Snapshots(self.settings.snapshots_dir, storage(self.settings))
        lacking = Fetching(shared, snapshots, self.settings.store.cache_bytes, self._trains)
        adaptations = InForceFiles(self.settings.adaptations_dir, Adaptations(engine))
        file, live = LiveFile(self.settings.live_file), self._left()
        reported: tuple[float, list[WorkerState]] = (0.0, [])
        presence = Presence(self.settings, engine, self.replica)
        trouble = ""
        self._take_out(engine, *self._former)
        while not self._stopping.wait(self.settings.schedule.sync_interval_s):
            try:
                live = self._live(shared, lacking, adaptations, live)
                file.keep(live)
                states = [
                    WorkerState(self.replica, r.slot, r.serving, r.ready, {int(v): why for v, why in r.failed.items()})
                    for r in read_reports(self.tree.run_dir / "workers")
                ]
                now = time.monotonic()
                if states != reported[1] or now - reported[0] >= REPORT_EVERY_S:
                    report_workers(engine, self.replica, states)
                    presence.turn(live, states, self.status)
                    reported = (now, states)
                if trouble or self.status.store_error:
                    self._say(store_error="")
                trouble = ""
            except (sa.exc.SQLAlchemyError, OSError) as error:
                if not trouble and isinstance(error, OSError):
                    logger.warning("%s cannot be written (%s); the workers keep what they serve", file.path, error)
                elif not trouble:
                    logger.warning("the store does not answer (%s); the workers keep what they serve", said(error))
                trouble = str(error).splitlines()[0]
                if isinstance(error, sa.exc.SQLAlchemyError):
                    self._say(store_error=trouble)
                    self._keep(file, live)
        self._take_out(engine, self.replica)

    def _take_out(self, engine: sa.Engine, *replicas: str) -> None:
        """Nobody looks for the workers of these replicas any more; when the store is away, not for long."""
        with suppress(sa.exc.SQLAlchemyError):
            for replica in replicas:
                report_workers(engine, replica, ())

    def _keep(self, file: LiveFile, live: Live | None) -> None:
        """Keep the live file as the store last said, so that a worker that restarts while the store is down serves."""
        if live is not None:
            with suppress(OSError):  # said as soon as the store answers again
                file.keep(live)

    def _watch(self) -> None:
        """Report problems of the workers. It needs neither the store nor the disk: they may be the problem."""
        troubles = OpenTroubles(self.settings.var / "troubles-of-workers.json", Alarm(self.settings))
        watch = Watch(troubles, self._dropped_rows(), time.monotonic())
        while not self._stopping.wait(WATCH_EVERY_S):
            watch.look(self._dropped_rows(), read_reports(self.tree.run_dir / "workers"), time.monotonic())

    def _dropped_rows(self) -> float:
        dropped = {"outcome": "dropped"}
        return sum(
            total(self.metrics.directory, f"evergreen_{name}_total", dropped) for name in ("log_records", "labels")
        )

    def _left(self) -> Live | None:
        """What the live file says from before this start."""
        try:
            left = read_live(self.settings.live_file)
        except (OSError, msgspec.DecodeError):
            return None
        return left if left is not None and left.model == self.settings.model.name else None

    def _trains(self) -> bool:
        """Whether a job may be at work on this host."""
        return any(self.settings.work_dir.glob("*"))

    def _live(self, shared: Registry, lacking: Fetching, adaptations: InForceFiles, before: Live | None) -> Live:
        """What the workers should have: as the store says, as far as it is on this host.

        While the champion is not, what was named `before` goes on, also in a worker that starts now.
        """
        named = shared.live()

        problems: dict[int, str] = {}

        def version(number: int | None) -> LiveVersion | None:
            if number is None:
                return None
            try:
                return LiveVersion(number, str(shared.path(number)), adaptations.named(number))
            except UnknownVersion:
                problems[number] = lacking.turn(number)
                return None

        champion, announced = version(named.champion), version(named.announced)
        if not problems:
            lacking.turn(None)
        problem = problems.get(named.champion or 0, "")
        self._lacks_champion = bool(problem)
        if problem and before is not None and before.champion is not None:
            with suppress(UnknownVersion):
                shared.path(before.champion.version)
                champion = before.champion
                problem += f"; version {champion.version} answers until then"
                problems[named.champion or 0] = problem
        for told in set(problems.values()) - self._missing:  # once each, not five times a second
            logger.error("%s", told)
        if self._missing != set(problems.values()):
            self._missing = set(problems.values())
            self._say(lacks="; ".join(problems.values()))
        return Live(
            model=self.settings.model.name,
            champion=champion,
            announced=announced,
            bootstrap=self.scheduler.bootstrap_state if self.scheduler and named.champion is None else "",
            problem=problem,
        )

    def _reports(self) -> None:
        """Make the pages that this replica's workers are asked for."""
        engine = self.engine()
        if engine is None:
            return
        reports = Reports(self.settings, engine, self.replica, self._stopping.is_set)
        while not self._stopping.wait(LOOK_EVERY_S):
            reports.turn()

    def _own_part(self) -> None:
        """Forget on this home what it is asked to, whoever leads."""
        engine = self.engine()
        if engine is None or is_gone(engine, home_id(self.settings)):
            return
        part = OwnPart(self.settings, engine, self.replica, self._stopping.is_set)
        while not self._stopping.wait(PART_EVERY_S):
            part.turn()

    def _page(self) -> None:
        """Make what the page of this server shows; its workers hand it on."""
        asyncio.run(serve(self.settings, self.tree.run_dir, self._stopping))

    def _lead(self) -> None:
        engine = self.engine()
        if engine is None:
            return
        sweep(self.settings, engine)
        holder = f"{self.replica}:{os.getpid()}"
        self.scheduler = Scheduler(
            self.settings, engine, self.metrics, holder, self.tracer, lacks_champion=lambda: self._lacks_champion
        )
        try:
            self.scheduler.run(self._stopping, lambda leader: self._say(leader=leader))
        finally:
            self.scheduler.close()

    def _say(self, **changed: object) -> None:
        with self._status_lock:
            jobs = self.scheduler.jobs() if self.scheduler is not None else ()
            self.status = msgspec.structs.replace(self.status, at=time.time(), jobs=jobs, **changed)
            try:
                write_status(self.tree.run_dir, self.status)
            except OSError as error:  # a full disk: the status is only for people
                logger.debug("status not written: %s", error)
