"""Child processes of the tests: whatever happens, none is left, and no failed assertion waits for one."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil


@contextlib.contextmanager
def python(program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs `program`, its standard streams as pipes of text; killed at the end of the block.

    What it forked is killed, too, and a stopped process as well as a running one.
    """
    command = [sys.executable, "-c", program, *map(str, arguments)]
    pipe = subprocess.PIPE
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()
            process.kill()
            with contextlib.suppress(OSError):  # what is still buffered for a dead reader
                if process.stdin is not None:
                    process.stdin.close()
