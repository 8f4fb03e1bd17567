"""Deletes pushed files that belong to no run: a worker that is killed while one arrives leaves it behind."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from typing import TYPE_CHECKING

import sqlalchemy as sa

from monitoring.store import runs

if TYPE_CHECKING:
    from service.settings import Settings

logger = logging.getLogger("evergreen.pushes")


def sweep(settings: Settings, engine: sa.Engine) -> int:
    """Delete the pushed files that nobody is writing and that belong to no queued or running run; how many."""
    with contextlib.ExitStack() as stack:
        left = []
        for path in settings.pushes_dir.iterdir() if settings.pushes_dir.is_dir() else ():
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.append(path)
        with engine.connect() as connection:  # once they are known to be whole: their runs are queued by now
            wanted = connection.scalars(
                sa.select(runs.c.record).where(runs.c.kind == "push", runs.c.state.in_(["queued", "running"]))
            ).all()
        gone = [path for path in left if not any(path.name in record for record in wanted)]
        for path in gone:
            path.unlink(missing_ok=True)
    if gone:
        logger.warning("%d pushed files that belong to no run were deleted from %s", len(gone), settings.pushes_dir)
    return len(gone)
