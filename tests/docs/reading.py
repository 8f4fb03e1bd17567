"""One reader of one page: an empty folder, a shell in a terminal, and the servers that the page starts."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx

from tests.docs.pages import ROOT, Step
from tests.ports import free_port

SERVES: Final = re.compile(r"^evergreen serve\b")
MADE: Final = re.compile(r"^make (\w+)")
SHOWN_PORT: Final = re.compile(r"\b(localhost|127\.0\.0\.1):3000\b")
"""Where a page has the service; here it is on a free port."""
END: Final = "\x01"


class Reader:
    """Runs the commands of a page one after the other in `folder`, as they are printed.

    Only the port is another one. `evergreen serve` goes on beside the other commands until the page stops it, or ends.
    """

    def __init__(self, folder: Path, *, patience_s: float = 300.0, environ: dict[str, str] | None = None) -> None:
        self.folder, self.patience_s = folder, patience_s
        self.port = free_port()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("EVERGREEN_", "BENTOML_"))}
        self.env = kept | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}",
            "EVERGREEN_SERVE__PORT": str(self.port),
            "OMP_NUM_THREADS": "1",
            "EVERGREEN_TRAINING__NICE": "0",  # on a busy machine a training of low priority takes minutes
            "TERM": "dumb",  # people see tables and cut lines, but no bars that move
            "COLUMNS": "120",
            **(environ or {}),
        }
        self.server: subprocess.Popen[bytes] | None = None
        self.log = folder.parent / f"{folder.name}.log"
        self.terminal, theirs = pty.openpty()
        self.shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        self.shell.kill()
        self.shell.wait()
        assert self.shell.stdin is not None
        self.shell.stdin.close()
        os.close(self.terminal)

    def write(self, name: str, text: str) -> None:
        """A file that the page shows."""
        (self.folder / name).write_text(SHOWN_PORT.sub(rf"\1:{self.port}", text))

    def run(self, step: Step) -> tuple[int, str]:
        """Exit code and what was printed; of a server 0 once it is ready, and its log until then, or until its end."""
        command = MADE.sub(lambda made: _recipe(made[1]), step.command)
        if not SERVES.match(command):
            return self._typed(SHOWN_PORT.sub(rf"\1:{self.port}", command))
        self._serve(command)
        if step.stopped:
            self.stop()
        return 0, self.log.read_text()

    def _typed(self, command: str) -> tuple[int, str]:
        typed = self.folder.parent / f"{self.folder.name}.sh"
        typed.write_text(command + "\n")
        assert self.shell.stdin is not None
        line = f"(exit ${{status:-0}}); . '{typed}' </dev/null; status=$?; printf '{END}%s{END}' $status\n"
        self.shell.stdin.write(line.encode())
        self.shell.stdin.flush()
        printed, deadline = b"", time.monotonic() + self.patience_s
        while printed.count(END.encode()) < 2:
            ready, _, _ = select.select([self.terminal], [], [], max(deadline - time.monotonic(), 0.0))
            more = os.read(self.terminal, 65536) if ready else b""
            if not more:
                raise AssertionError(f"`{command}` did not end within {self.patience_s:.0f} s; until then it printed:\n"
                                     + printed.decode(errors="replace"))  # fmt: skip
            printed += more
        text, status, _ = printed.decode(errors="replace").rsplit(END, 2)
        return int(status), text.replace("\r\n", "\n")

    def _serve(self, command: str) -> None:
        assert self.server is None, f"`{command}`: the page has not stopped the server before"
        with self.log.open("wb") as log:
            self.server = subprocess.Popen(
                ["bash", "-c", f"exec {command}"], cwd=self.folder, env=self.env, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + self.patience_s
        while time.monotonic() < deadline:
            assert self.server.poll() is None, f"`{command}` ended: {self.log.read_text()[-3000:]}"
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/readyz", timeout=2, trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                pass  # not there yet
            time.sleep(0.2)
        raise AssertionError(f"`{command}` is not ready: {self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        """Stop the server, as Ctrl-C does; nothing of it is left."""
        if self.server is None:
            return
        if self.server.poll() is None:
            self.server.send_signal(signal.SIGINT)
            try:
                self.server.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.server.kill()
                self.server.wait()
                raise
        self.server = None


def _recipe(target: str) -> str:
    """What `make` runs of ours for a target: its only line in the Makefile."""
    found = re.search(rf"^{target}: \$\(READY\)\n\t\$\(BIN\)/(.+)\n\n", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found, f"`make {target}` is more than one command of ours: mark its block with no-run"
    return found[1]
