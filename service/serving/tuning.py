"""What a worker asks of its interpreter and its machine, so that requests are answered promptly."""

from __future__ import annotations

import contextlib
import gc
import logging
import resource
import sys
from typing import Final

from training.priority import be_prompt

SWITCH_INTERVAL_S: Final = 0.0001
FILES_BESIDE: Final = 256
"""Files a worker has open beside its connections, and those being accepted, at most."""


def tune() -> None:
    """Take from the hot path what it should not pay for again and again; called once, when everything is loaded.

    A thread that loads a model or answers `/manage` gives the interpreter back after 0.1 ms, not 5.
    Collections of garbage would walk through the hundreds of thousands of objects that the imports left, and uvicorn
    would format a line of access log for each request only to find that nobody listens.
    """
    logging.getLogger("uvicorn.access").propagate = False
    be_prompt()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()


def bounded_connections(wanted: int) -> int:
    """How many of `wanted` connections this process may have open, once it may open all the files it can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS: the hard limit may be more than it gives
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return wanted if soft == resource.RLIM_INFINITY else max(16, min(wanted, soft - FILES_BESIDE))
