"""Servers under measurement: environments made for them, their processes found again, paused and ended.

Servers start processes that start processes. Each tree carries a mark of its own in its environment, by which all of it
is found, whatever sessions and groups it made.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil  # type: ignore[import-untyped]

MARK: Final = "BENCHMARK_FAMILY"


class CannotMeasure(Exception):
    """Raised when a server cannot be measured; the message is the reason that stands in the table."""


class Family:
    """The processes of one server: everything started with `environ`."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(8)
        self.environ = {MARK: self.mark}

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark:
                    found.append(process)
        return found

    def pause(self) -> None:
        """Nothing of it runs until `resume`: an idle server is not always idle."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def end(self) -> None:
        """Nothing of it is left; also what it starts while it is being ended."""
        self.resume()
        for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
            self._signal(number)
            _, alive = psutil.wait_procs(self.processes(), timeout=5)
            if not alive:
                return

    def _signal(self, number: signal.Signals) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)


def cores() -> tuple[int | None, int | None]:
    """A core for servers and one for the load generator; (None, None) on a machine with one."""
    found = sorted(os.sched_getaffinity(0))
    return (found[0], found[1]) if len(found) > 1 else (None, None)


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """What is started inside stays on `core` (its children too); None: anywhere."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def environment(cache: Path, name: str, requirements: tuple[str, ...]) -> Path:
    """The Python of an environment with `requirements`, made with uv unless an earlier run left it in `cache`.

    Raises `CannotMeasure` with the installer's own words.
    """
    digest = hashlib.sha256("\n".join((sys.version, *requirements)).encode()).hexdigest()[:10]
    folder = cache / f"{name}-{digest}"
    python, done = folder / "bin" / "python", folder / ".complete"
    if done.exists():
        return python
    uv = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
    if not Path(uv).exists():
        raise CannotMeasure("uv is not installed: it makes the peers' environments (`pip install uv`)")
    shutil.rmtree(folder, ignore_errors=True)
    commands = (
        [uv, "venv", "-q", "--python", sys.executable, str(folder)],
        [uv, "pip", "install", "-q", "--python", str(python), *requirements],
    )
    for command in commands:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            said = " ".join(result.stderr.split())
            raise CannotMeasure(f"cannot be installed: {said[-300:]}")
    done.touch()
    return python


def start(command: list[str], family: Family, environ: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
    """A server in `folder`, its words in `folder/log`, one thread for numeric libraries."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("EVERGREEN_", "BENTOML_", "PYTHON", "VIRTUAL_ENV"))}
    env |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "SKLEARN_ASSUME_FINITE": "1"}
    env |= environ | family.environ
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )


def last_words(log: Path) -> str:
    """The last lines of a log, for a reason."""
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return " / ".join(lines[-3:])[-400:]
    return "it said nothing"


def cpu_seconds(family: Family) -> float:
    """Processor seconds its living processes have used."""
    total = 0.0
    for process in family.processes():
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total
