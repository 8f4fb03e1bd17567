"""A job in a process of its own: bounded in time, and gone with everything it started, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from monitoring.errors import EvergreenError
from training.spec import JobResult, JobSpec, read_result

TAIL_CHARACTERS: Final = 4000


class JobCrashed(EvergreenError, RuntimeError):
    """Raised when a job ended without a result: killed, out of time, or broken. `tail` is the end of its stderr."""

    def __init__(self, reason: str, tail: str) -> None:
        self.reason, self.tail = reason, tail
        last = tail.strip().splitlines()[-1:] or ["it wrote nothing to stderr"]
        super().__init__(f"the job {reason}; the champion stays. Its last words: {last[0][:300]}")


class JobStopped(EvergreenError, RuntimeError):
    """Raised when a job was ended because this process stops, or the loop was paused."""

    def __init__(self) -> None:
        super().__init__(
            "the training was ended because the server stops, or the loop was paused; "
            "it is decided again after the next start, or once the loop is resumed"
        )


def subprocess_job(
    spec: JobSpec,
    *,
    timeout_s: float,
    stopped: Callable[[], bool] = lambda: False,
    meanwhile: Callable[[], None] = lambda: None,
) -> JobResult:
    """The result of `python -m training.job` in a process group of its own, with the install root as directory.

    The whole group is killed after `timeout_s` seconds (`JobCrashed`), when `stopped()` turns true (`JobStopped`), and
    when this call is left in any other way. Raises `JobCrashed` also when the process leaves no result. The file of
    the specification and the process's stderr are kept beside `spec.out`. `meanwhile` is called ten times a second
    while the job runs: what can be done beside it, in this thread.
    """
    out = Path(spec.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    given, said = out.with_name("spec.json"), out.with_name("stderr.txt")
    given.write_bytes(msgspec.json.encode(spec))
    with said.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "training.job", str(given)],
            cwd=Path(__file__).resolve().parents[1],
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        reason = _wait(process, time.monotonic() + timeout_s, timeout_s, stopped, meanwhile)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    result = None if reason else read_result(out)
    if result is None:
        raise JobCrashed(reason or _ended(process.returncode), _tail(said))
    return result


def _wait(
    process: subprocess.Popen[bytes],
    ends: float,
    timeout_s: float,
    stopped: Callable[[], bool],
    meanwhile: Callable[[], None],
) -> str:
    """Why the job must be killed; "" when it ended by itself."""
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)
            return ""
        if stopped():
            raise JobStopped
        if time.monotonic() >= ends:
            return f"was killed: it took longer than {timeout_s:g} s"
        meanwhile()


def _ended(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed by SIGKILL, perhaps by the kernel for want of memory"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code} and without a result"


def _tail(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(errors="replace")[-TAIL_CHARACTERS:]
    return ""
