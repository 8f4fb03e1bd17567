"""Deletes pushed files that belong to no run: a worker that is killed while one arrives leaves it behind.

So may one that is killed between sharing a file and queueing its run: what replicas share is swept, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from monitoring.retention import DAY_S
from monitoring.store import runs
from training.storage import PUSHES, StorageError

if TYPE_CHECKING:
    from service.settings import Settings
    from training.storage import Storage

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
        wanted = _wanted(engine)  # once they are known to be whole: their runs are queued by now
        gone = [path for path in left if not any(path.name in record for record in wanted)]
        for path in gone:
            path.unlink(missing_ok=True)
    if gone:
        logger.warning("%d pushed files that belong to no run were deleted from %s", len(gone), settings.pushes_dir)
    return len(gone)


def sweep_shared(storage: Storage, engine: sa.Engine) -> int:
    """Delete what was shared a day ago or longer and belongs to no queued or running run; how many. It may be away."""
    try:
        names = storage.names(PUSHES)
        wanted = _wanted(engine)
        keep = [name for name in names if any(Path(name).name in record for record in wanted)]
        return storage.expire(PUSHES, time.time() - DAY_S, keep)
    except StorageError as error:
        logger.warning("pushed files that belong to no run stay in the shared storage for now: %s", error)
        return 0


def _wanted(engine: sa.Engine) -> list[str]:
    """The records of the runs that have a pushed file before them."""
    of = sa.select(runs.c.record).where(runs.c.kind == "push", runs.c.state.in_(["queued", "running"]))
    with engine.connect() as connection:
        return list(connection.scalars(of))
