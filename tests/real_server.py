"""A real Evergreen server in a process of its own: on loopback, on a free port, stopped by its process id."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
from evergreen_client import Client

from service.configuration import load
from service.keys import known_token
from tests.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"DATA__FIRST": "700", "TRAINING__TRIALS": "0", "TRAINING__NICE": "0"}
"""A first version that is trained in seconds, also where much else runs: of low priority it would wait for all that."""


def wait_until(what: str, condition: Callable[[], Any], seconds: float = 300.0) -> Any:
    """The condition's first true value; an AssertionError naming `what` when it does not come."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.1)


class Server:
    """`evergreen serve` in `home` with the given settings (`SERVE__WORKERS="1"`)."""

    prefix: tuple[str, ...] = ()
    """What stands before the command: where else it is to run."""
    command: tuple[str, ...] = (sys.executable, "-m", "service.command.cli")
    cwd = ROOT

    def __init__(self, home: Path, *, environ: dict[str, str] | None = None, **settings: str) -> None:
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {
            name: value for name, value in os.environ.items() if not name.startswith(("EVERGREEN_", "BENTOML_"))
        }
        self.env |= {"EVERGREEN_HOME": str(home), "EVERGREEN_SERVE__PORT": str(self.port), "OMP_NUM_THREADS": "1"}
        # One more server for each retraining; `test_end_to_end.py` and `test_rehearsal.py` have it.
        self.env["EVERGREEN_GATES__INFRA"] = "false"
        self.env |= {f"EVERGREEN_{name}": value for name, value in settings.items()}
        self.env |= environ or {}
        self.log_path = home / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> Any:
        return load(environ={name: value for name, value in self.env.items() if name.startswith("EVERGREEN_")})

    def start(self) -> Server:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *self.command, "serve"],
                cwd=self.cwd,
                env=self.env,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self

    def wait_ready(self, seconds: float = 600.0) -> Server:
        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"the server ended: {self.log_path.read_text()[-3000:]}"
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{self.url}/readyz", timeout=10).status_code == 200
            return False

        wait_until("readiness", ready, seconds)
        return self

    def client(self) -> Client:
        return Client(self.url, known_token(self.settings), retry_s=0)  # what fails is seen

    def children(self, service: str | None = None) -> list[psutil.Process]:
        """The server's worker processes, of one BentoML service when named."""
        assert self.process is not None
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                command = child.cmdline()
                if "_bentoml_impl.worker.service" in command and (service is None or service in command):
                    found.append(child)
        return found

    def stop(self) -> int:
        """Stop by SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=180)

    def end(self) -> None:
        """Whatever happened, nothing of this server is left."""
        if self.process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(timeout=30)
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()
