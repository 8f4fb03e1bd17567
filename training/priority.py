"""What a process asks of the kernel: who comes first on the processor, how much it may take, to end with its parent.

Work that nobody waits for gives way; work that someone waits for is not kept waiting.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import sys
import threading
from pathlib import Path
from typing import Final

AUTOGROUP = Path("/proc/self/autogroup")
PR_SET_PDEATHSIG: Final = 1
THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""What bounds a process's threads, if it is set before NumPy and scikit-learn are imported."""
PROMPT_NS: Final = 100_000
"""Shortest time slice that Linux gives."""
PATIENT_NS: Final = 1_000_000
"""Longer than that, so that who is prompt interrupts it at once, and over at the clock's next tick."""


def give_way(nice: int) -> None:
    """Set this process's nice value to at least `nice` (0 to 19) against every other process of the machine, for good.

    With the Linux scheduler's autogroups (`kernel.sched_autogroup_enabled`, the default of most distributions) a nice
    value only counts among processes of one session, and the workers of a server each have a session of their own:
    so the value is given to the group as well. Source: sched(7), "The autogroup feature".
    """
    now = max(nice, os.getpriority(os.PRIO_PROCESS, 0))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, now)
    _take_turns_of(PATIENT_NS)
    with contextlib.suppress(OSError):
        AUTOGROUP.write_text(str(now))


def let_first(nice: int) -> None:
    """Have this thread alone give way to the others of its process, as to every other: Linux gives each its own value.

    Elsewhere nothing happens. Source: setpriority(2), "C library/kernel differences".
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
        _take_turns_of(PATIENT_NS)  # it had its starter's


def bound_memory(mb: int) -> None:
    """Have this process get at most so many MB of private writable memory, for good; 0: unbounded.

    A bound on address space would also count shared libraries and untouched stacks.
    """
    if mb:
        limit = mb << 20
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def end_with_parent(number: int) -> None:
    """Have the kernel send this process the signal `number` when its parent ends, however that ends. Linux only.

    Elsewhere nothing happens. Source: prctl(2), PR_SET_PDEATHSIG.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


class _Attributes(ctypes.Structure):
    """`struct sched_attr`, version 0."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def be_prompt() -> bool:
    """Whether this thread, and those it starts, will interrupt others as soon as there is something to do.

    Linux lets who runs finish a slice of some 3 ms, whatever its nice value, unless who wakes up has a shorter one: so
    this asks for the shortest. It gets no more of the processor by that. Linux 6.12 and newer; False elsewhere.
    Source: sched(7) and sched_setattr(2); the kernel's `kernel/sched/features.h`, RUN_TO_PARITY and PREEMPT_SHORT.
    """
    return _take_turns_of(PROMPT_NS)


def _take_turns_of(slice_ns: int) -> bool:
    """Whether this thread, and those it starts, have time slices of this length."""
    number = {"x86_64": 314, "aarch64": 274}.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return False
    wanted = _Attributes(ctypes.sizeof(_Attributes), os.SCHED_OTHER, 0, os.getpriority(os.PRIO_PROCESS, 0), 0, slice_ns)
    refused: int = ctypes.CDLL(None, use_errno=True).syscall(number, 0, ctypes.byref(wanted), 0)
    return not refused
