"""What this home has to forget, in a thread of its own: its parts of erasures, and each hour what grew old on it."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from monitoring.errors import CannotGoOn, first_line
from service.control.deployment import assemble
from training.here import retain_here, work_off_parts

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.settings import Settings

logger = logging.getLogger("evergreen.controller")

LOOK_EVERY_S: Final = 1.0
RETAIN_EVERY_S: Final = 3600.0
NO_LEASE: Final = 0
"""A token that no lease has: nothing here writes what needs one."""


class OwnPart:
    """One home's turns; what does not go well is tried again at the next."""

    def __init__(self, settings: Settings, engine: sa.Engine, who: str, stopped: Callable[[], bool]) -> None:
        made = assemble(settings, engine, NO_LEASE, who, on_event=lambda name, fields: None, stopped=stopped)
        self._loop = replace(made, sleep=self._sleep)
        self._stopped = stopped
        self._policy = settings.retention
        self._retain_at = 0.0
        self._said: set[str] = set()

    def turn(self) -> None:
        """Do what is to be done now."""
        try:
            work_off_parts(self._loop, self._said)
            if time.monotonic() >= self._retain_at:
                self._retain_at = time.monotonic() + RETAIN_EVERY_S
                retain_here(self._loop, self._policy)
        except sa.exc.SQLAlchemyError as error:  # the others say that the store is away
            logger.debug("what this home has to forget waits for the store: %s", first_line(error))
        except (CannotGoOn, OSError) as error:
            logger.warning("what this home has to forget waits: %s", first_line(error))

    def _sleep(self, seconds: float) -> None:
        if not self._stopped():
            time.sleep(seconds)
