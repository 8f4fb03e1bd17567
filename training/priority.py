"""Giving way to serving: the priority of work that nobody waits for."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

AUTOGROUP = Path("/proc/self/autogroup")


def give_way(nice: int) -> None:
    """Set this process's nice value to at least `nice` (0 to 19) against every other process of the machine, for good.

    With the Linux scheduler's autogroups (`kernel.sched_autogroup_enabled`, the default of most distributions) a nice
    value only counts among processes of one session, and the workers of a server each have a session of their own:
    so the value is given to the group as well. Source: sched(7), "The autogroup feature".
    """
    now = max(nice, os.getpriority(os.PRIO_PROCESS, 0))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, now)
    with contextlib.suppress(OSError):
        AUTOGROUP.write_text(str(now))
