"""Work in a process of its own that leaves nothing behind: asked and answered over its pipes, no file is written.

For what somebody waits for and nothing is kept of: a version trained again, two versions asked the same rows. The
process is bounded in threads, memory and time, and gone with everything it started, however this one ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from monitoring.errors import EvergreenError
from training.priority import THREAD_VARIABLES, bound_memory, end_with_parent, give_way

_LAST_WORDS: Final = 300


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What the process may take."""

    threads: int = 1
    memory_mb: int = 0  # of private memory; 0: unbounded
    nice: int = 0
    longest_s: float = 1800.0


class WorkFailed(EvergreenError, RuntimeError):
    """Raised when the process cannot do what it was asked for, or ended without an answer; nothing was changed."""


class _Answer(msgspec.Struct, frozen=True):
    """`error` "": what was asked for is in `found`."""

    error: str = ""
    found: msgspec.Raw = msgspec.Raw(b"null")


class _Request(msgspec.Struct, frozen=True):
    bounds: Bounds
    parent: int
    """Process id of who asks."""
    asked: msgspec.Raw


Asked = TypeVar("Asked", bound=msgspec.Struct)
Found = TypeVar("Found", bound=msgspec.Struct)


def ask(module: str, asked: msgspec.Struct, kind: type[Found], bounds: Bounds) -> Found:
    """What `python -m module` answers, which calls `answer`. Raises `WorkFailed`."""
    request = msgspec.json.encode(_Request(bounds, os.getpid(), msgspec.Raw(msgspec.json.encode(asked))))
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=Path(__file__).resolve().parents[1],
        env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(bounds.threads))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        said, words = process.communicate(request, timeout=bounds.longest_s)
    except subprocess.TimeoutExpired:
        raise WorkFailed(
            f"it took longer than {bounds.longest_s:g} s and was ended: raise `training.timeout_s`"
        ) from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        raise WorkFailed(_ended(process.returncode, words, bounds))
    answer = msgspec.json.decode(said, type=_Answer)
    if answer.error:
        raise WorkFailed(answer.error)
    return msgspec.json.decode(answer.found, type=kind)


def _ended(code: int, words: bytes, bounds: Bounds) -> str:
    last = words.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    limit = f"; it may take {bounds.memory_mb} MB (`training.memory_mb`)" if bounds.memory_mb else ""
    return f"the process that was to do it {how}{limit}. Its last words: {last[0][:_LAST_WORDS]}"


def answer(kind: type[Asked], work: Callable[[Asked], msgspec.Struct]) -> int:
    """Do the work that was asked for on standard input, and answer on standard output; the exit code."""
    import resource

    request = msgspec.json.decode(sys.stdin.buffer.read(), type=_Request)
    bounds = request.bounds
    end_with_parent(signal.SIGKILL)
    if os.getppid() != request.parent:  # it ended while this process was starting: nobody waits for the answer
        return 1
    give_way(bounds.nice)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    bound_memory(bounds.memory_mb)
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what a library prints must not stand in the answer
        try:
            found = _Answer(found=msgspec.Raw(msgspec.json.encode(work(msgspec.json.decode(request.asked, type=kind)))))
        except EvergreenError as error:
            found = _Answer(error=str(error))
        except MemoryError:
            found = _Answer(error=f"out of memory at {bounds.memory_mb} MB: raise `training.memory_mb`")
        out.write(msgspec.json.encode(found))
    return 0
