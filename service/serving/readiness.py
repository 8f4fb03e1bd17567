"""Why predictions cannot be answered: the true reason, from what this worker and the others of its server know."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from service.handover import Live, read_reports, read_status

logger = logging.getLogger("evergreen.readiness")

WHY_STOPPING: Final = "stopping: this server finishes its requests in flight; send new ones to another replica"
STARTED: Final = "started"
"""File of the run folder: every worker of this server has served, or said why it cannot."""
SILENT_S: Final = 15.0
"""A controller writes its status several times a second; one that is older than this is not relied on."""


def why_no_model(
    run_dir: Path, live_file: Path, live: Live | None, damage: str, failed: Mapping[str, str], now: float
) -> str:
    """Why a worker without a model has none.

    Args:
        live: what it last read from the live file, None when it never could.
        damage: why the file as it is now cannot be read, "" when it can or is not there.
        failed: versions that would not load, with the reason.
    """
    champion = live.champion if live is not None else None
    if champion is not None and str(champion.version) in failed:
        return f"no model in service: version {champion.version} does not load: {failed[str(champion.version)]}"
    if champion is not None:
        return f"version {champion.version} is being loaded"
    if live is not None and live.problem:
        return f"no model in service: {live.problem}"
    if live is not None and live.bootstrap:
        return f"no model in service yet: {live.bootstrap}; see `evergreen runs`"
    if damage:
        found = f"{live_file}, which names the version, is damaged ({damage})"
    elif live is None:
        found = f"there is no {live_file} yet, which names the version"
    else:
        found = "there is no version yet"
    return f"no model in service yet: {found}; {_controller(run_dir, now)}"


def _controller(run_dir: Path, now: float) -> str:
    status = read_status(run_dir)
    if status is None:
        return "the controller has not said anything yet"
    if now - status.at > SILENT_S:
        return f"the controller has said nothing for {now - status.at:.0f} s"
    if status.store_error:
        return f"the store does not answer ({status.store_error})"
    return "the controller is at work, and has not said that a first version is being trained; see `evergreen runs`"


class FirstStart:
    """A server's first start: until all its workers have spoken, each one's readiness is that of all.

    Afterwards (a file says so, also to a worker that comes back) each speaks for itself.

    Args:
        run_dir: of this server.
        slot: of the worker that asks; it knows about itself.
        workers: how many this server has.
    """

    def __init__(self, run_dir: Path, slot: str, workers: int) -> None:
        self._folder, self._mark, self._slot = run_dir / "workers", run_dir / STARTED, slot
        self._workers = workers
        self._over = False

    def waits_for(self) -> str | None:
        """What this server still waits for before it is ready, None when for nothing."""
        if self._over or self._mark.exists():
            self._over = True
            return None
        spoken = {r.slot for r in read_reports(self._folder) if r.serving is not None or r.failed} | {self._slot}
        missing = self._workers - len(spoken)
        if missing > 0:
            return f"starting: {missing} of {self._workers} workers of this server have no version in service yet"
        self._over = True
        try:
            self._mark.touch()
        except OSError as error:  # a full disk: every worker finds out by itself
            logger.warning("cannot write %s: %s", self._mark, error)
        return None
