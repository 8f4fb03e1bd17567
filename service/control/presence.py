"""What one home tells the others of itself, and takes over from them: once a second, in the thread of the mirror."""

from __future__ import annotations

import logging
import socket
import time
from typing import TYPE_CHECKING

from monitoring.errors import EvergreenError
from service import shared_keys, tokens
from service.process import DISTRIBUTION, installed_version
from service.secret_file import home_id
from training.homes import HomeGone, HomeReport, report_home

if TYPE_CHECKING:
    from collections.abc import Sequence

    import sqlalchemy as sa

    from service.handover import ControllerStatus, Live
    from service.settings import Settings
    from training.rollout import WorkerState

logger = logging.getLogger("evergreen.controller")


class Presence:
    """The home of one server, among those of the deployment."""

    def __init__(self, settings: Settings, engine: sa.Engine, replica: str) -> None:
        self._settings, self._engine, self._replica = settings, engine, replica
        self.home = home_id(settings)
        self._release = installed_version(DISTRIBUTION)
        self._has_keys = False
        self._trouble = ""
        self.gone = False
        """Whether a person said that this home does not come back."""

    def turn(self, live: Live, workers: Sequence[WorkerState], status: ControllerStatus) -> None:
        """Report this home, and follow the tokens and keys of all. Raises `SQLAlchemyError`."""
        serving = {worker.serving for worker in workers if worker.serving is not None}
        report = HomeReport(
            home=self.home,
            host=socket.gethostname(),
            replica=self._replica,
            release=self._release,
            serving=serving.pop() if len(serving) == 1 else None,
            why_not_ready=_why_not_ready(live, workers),
            spool_bytes=status.spool_bytes,
            lag_s=status.drain_lag_s,
        )
        allowed = report_home(self._engine, report, time.time())
        if not allowed and not self.gone:
            logger.error("%s", HomeGone(self.home, self._settings.var))
        self.gone = not allowed
        if self.gone:
            return
        try:
            tokens.follow(self._engine, self._settings, self.home)
            if not self._has_keys:
                shared_keys.follow(self._engine, self._settings)
                self._has_keys = True
            self._trouble = ""
        except (EvergreenError, OSError) as error:  # a full disk, say: aliases are mirrored all the same
            if str(error) != self._trouble:
                logger.error("tokens and keys are not followed: %s", error)
            self._trouble = str(error)


def _why_not_ready(live: Live, workers: Sequence[WorkerState]) -> str:
    if any(worker.serving is not None for worker in workers):
        return ""
    failed = [why for worker in workers for why in worker.failed.values()]
    return failed[0] if failed else live.problem or live.bootstrap or "no worker has a version in service"
