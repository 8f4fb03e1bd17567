"""What the replicas of a deployment share, seen from one of them, in a thread of its own.

It copies what this replica lacks, and first, once, puts in what this host made before anything was shared; then it
keeps what this host has within its bounds. A storage that hangs holds up nothing: the workers go on with what is here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from monitoring.errors import EvergreenError, first_line
from training.cache import shrink

if TYPE_CHECKING:
    from training.registry import Registry
    from training.snapshots import Snapshots

logger = logging.getLogger("evergreen.controller")

RETRY_S: Final = 2.0
SHRINK_EVERY_S: Final = 60.0


class Fetching:
    """One piece of work at a time; what did not go well is tried again every `RETRY_S` seconds.

    Args:
        registry: the versions, of this host and shared.
        snapshots: the same of snapshots.
        cache_bytes: what this host keeps of what is shared, at most.
        at_work: whether a job of this host may be reading snapshots.
    """

    def __init__(
        self, registry: Registry, snapshots: Snapshots, cache_bytes: int, at_work: Callable[[], bool] = lambda: False
    ) -> None:
        self._registry, self._snapshots = registry, snapshots
        self._cache_bytes, self._at_work_here = cache_bytes, at_work
        self._at_work: threading.Thread | None = None
        self._said: dict[int, str] = {}  # by version: why it is not here
        self._shared = False
        self._again_at = self._shrink_at = 0.0

    def turn(self, lacking: int | None) -> str:
        """Go on with what is to be done; why the version `lacking` is not here yet, "" when none is lacking."""
        busy, now = self._at_work is not None and self._at_work.is_alive(), time.monotonic()
        due = lacking is not None or (self._registry.shared and (not self._shared or now >= self._shrink_at))
        if not busy and due and now >= self._again_at:
            self._at_work = threading.Thread(target=self._work, args=(lacking,), name="evergreen-fetch", daemon=True)
            self._at_work.start()
        if lacking is None:
            return ""
        return self._said.get(lacking, f"version {lacking} is not on this host yet: it is being fetched")

    def _work(self, lacking: int | None) -> None:
        try:
            if lacking is not None:
                self._registry.fetch(lacking)
                self._said.pop(lacking, None)
            elif not self._shared:
                self._share()
            else:
                self._shrink_at = time.monotonic() + SHRINK_EVERY_S
                self._shrink()
        except (EvergreenError, OSError, sa.exc.SQLAlchemyError) as error:
            self._again_at = time.monotonic() + RETRY_S
            if lacking is not None:
                self._said[lacking] = first_line(error)
            elif not self._shared:
                logger.warning("what this host has cannot be shared with the other replicas yet: %s", first_line(error))

    def _share(self) -> None:
        put = self._registry.share()
        self._snapshots.share([v.manifest.data.snapshot for v in self._registry.list() if v.manifest.data.snapshot])
        self._shared = True
        if put:
            logger.info("versions %s of this host are shared with the other replicas now", ", ".join(map(str, put)))

    def _shrink(self) -> None:
        gone = shrink(self._registry, self._snapshots, self._cache_bytes, at_work=self._at_work_here())
        if gone.names:
            words = (", ".join(gone.names), gone.freed)
            logger.info("%s left this host, which keeps store.cache_bytes: %d bytes; they are shared", *words)
