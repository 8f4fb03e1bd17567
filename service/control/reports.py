"""The pages of checks, made when asked for: by each replica for its own workers, one at a time, in a job of its own.

A replica that somebody asks for a page that another one made makes it again: the pages are no shared state, and they
go by themselves, by age, by number and after every erasure.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from monitoring.errors import first_line, in_short
from service.control.deployment import assemble
from service.report_files import Refused, ReportFiles
from service.settings import Settings
from training.reporting import NoReport, RowsGone, report
from training.runs import Check
from training.spec import JobError
from training.subprocess_job import JobCrashed, JobStopped, subprocess_job

logger = logging.getLogger("evergreen.reports")

LOOK_EVERY_S: Final = 0.5
SWEEP_EVERY_S: Final = 5.0
MOST_S: Final = 900.0
"""Of one page: it takes some ten seconds, more on a machine that has much else to do."""
_NO_TOKEN: Final = 0
"""Nothing is written to the store, so no lease is held."""


class Reports:
    """Makes and keeps the pages of one replica.

    Args:
        settings: of this deployment.
        engine: the store.
        who: name of this process.
        stopped: ends a job that is under way.
    """

    def __init__(self, settings: Settings, engine: sa.Engine, who: str, stopped: Callable[[], bool]) -> None:
        self.settings, self.files = settings, ReportFiles(settings.reports_dir)
        loop = assemble(settings, engine, _NO_TOKEN, who, on_event=lambda *_: None, stopped=stopped)
        run_job = partial(subprocess_job, timeout_s=min(settings.training.timeout_s, MOST_S), stopped=stopped)
        work_dir = settings.reports_dir / "work"  # the loop's own is cleared with the lease
        self._loop = replace(loop, work_dir=work_dir, run_job=run_job)
        self._swept_at = float("-inf")
        self._store_down = False

    def turn(self) -> None:
        """Make what is asked for, and delete what is to go. A store that does not answer is said once."""
        try:
            with self._alone() as alone:
                if alone:
                    self._work()
            self._store_down = False
        except JobStopped:
            logger.info("a report is made after the next start: the server stops")
        except sa.exc.SQLAlchemyError as error:
            if not self._store_down:
                logger.warning("the store does not answer (%s); reports wait for it", first_line(error))
            self._store_down = True

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether no other controller works in this folder: of a server that stops while the next one starts."""
        self.files.folder.mkdir(parents=True, exist_ok=True)
        with (self.files.folder / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def _work(self) -> None:
        if self._swept_at < 0:  # the first turn: what one that was killed has left holds rows
            shutil.rmtree(self._loop.work_dir, ignore_errors=True)
        for check in self.files.asked():
            self._make(check)
        if time.monotonic() - self._swept_at >= SWEEP_EVERY_S:
            self.files.forget(self._erasure())
            self.files.trim(self.settings.retention.reports, self._kept_since())
            self._swept_at = time.monotonic()

    def _make(self, number: int) -> None:
        check = self._loop.runs.checked(number)
        try:
            if check is None:
                raise NoReport(f"there is no check {number} any more")
            if check.at < self._kept_since():
                raise RowsGone(
                    f"the rows of check {number} are older than {self.settings.retention.predictions_days} days, "
                    "and go with the next turn of retention ([retention] predictions_days)"
                )
            if self._draw(check):
                logger.info("the report of check %d is made", number)
                self.files.settle(number)
            return
        except RowsGone as error:
            refused = Refused(410, str(error))
        except NoReport as error:
            refused = Refused(404, str(error))
        except (JobStopped, sa.exc.SQLAlchemyError):
            raise  # it is made later
        except (JobError, JobCrashed) as error:
            logger.error("the report of check %d could not be made: %s", number, error)
            refused = Refused(500, f"the report of check {number} could not be made: {error}")
        except Exception as error:  # of a damaged file, say: the next wish is not kept waiting by it
            logger.exception("the report of check %d could not be made", number)
            refused = Refused(500, f"the report of check {number} could not be made: {in_short(error)}")
        self.files.refuse(number, refused)
        self.files.settle(number)

    def _draw(self, check: Check) -> bool:
        """Whether the page is there; not when an erasure ended meanwhile: it may show what was to be forgotten."""
        before, kept = self._erasure(), False

        def keep(drawn: Path) -> None:
            nonlocal kept
            if self._erasure() == before:
                self.files.forget(before)
                self.files.keep(check.id, drawn, check.at)
                kept = True

        report(self._loop, check, keep)
        return kept

    def _erasure(self) -> int:
        """The newest erasure that has ended, 0 when there was none. A page from before it is not kept."""
        return self._loop.runs.newest_ended("erase")

    def _kept_since(self) -> float:
        return self.settings.retention.cutoffs(time.time()).get("predictions", 0.0)
