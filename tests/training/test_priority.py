"""Who comes first on the processor: read back from the kernel."""

from __future__ import annotations

import ctypes
import os
import platform
from concurrent.futures import ThreadPoolExecutor

import pytest

from training import priority
from training.priority import PATIENT_NS, PROMPT_NS, be_prompt, let_first

GETATTR = {"x86_64": 315, "aarch64": 275}.get(platform.machine())


def told() -> tuple[int, int]:
    """Nice value and time slice of this thread, in ns. Source: sched_getattr(2)."""
    found = priority._Attributes()
    refused = ctypes.CDLL(None).syscall(GETATTR, 0, ctypes.byref(found), ctypes.sizeof(found), 0)
    assert not refused
    return found.nice, found.runtime


@pytest.mark.skipif(GETATTR is None or os.uname().sysname != "Linux", reason="Linux alone gives slices of one's own")
def test_a_thread_that_lets_others_first_has_a_longer_slice_than_the_prompt_one_that_started_it() -> None:
    def patient() -> list[tuple[int, int]]:
        before = told()
        let_first(15)
        return [before, told()]

    def prompt() -> list[tuple[int, int]]:
        if not be_prompt() or not told()[1]:
            return []
        with ThreadPoolExecutor(1) as threads:
            return [told(), *threads.submit(patient).result(), told()]

    nice, _ = told()
    with ThreadPoolExecutor(1) as threads:
        found = threads.submit(prompt).result()
    if not found:
        pytest.skip("this kernel gives no slices, or does not tell them (before Linux 6.12)")
    mine, inherited, patient_now, mine_still = found
    assert mine == inherited == mine_still == (nice, PROMPT_NS)
    assert patient_now == (15, PATIENT_NS)
