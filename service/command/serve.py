"""`evergreen serve`: start the BentoML server in the right environment, and stop it in the right order.

The parent process stays beside BentoML's supervisor, because it guarantees three things: the environment (own
metrics folder, no container mode, absolute paths, one thread a worker), the order of stopping with an end to it, and
that nothing outlives it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from monitoring.drain import check_free
from monitoring.errors import EvergreenError
from monitoring.messages import configure
from service.command.drain import drain
from service.command.shared import check_shared, take_part
from service.command.trained_on import trained_on
from service.keys import management_token
from service.place import check_packages, check_port, numeric_address
from service.process import CLOSING, INSTALL_ROOT, STOPPING, SUPERVISOR
from service.settings import ROLE_VARIABLE, RUN_DIR_VARIABLE, Settings
from training.priority import end_with_parent

logger = logging.getLogger("evergreen.serve")

NOTICE_S: Final = 1.0
"""How long `/readyz` answers 503 before requests are refused: load balancers ask about that often."""

QUIET_S: Final = 0.5
"""How long, after that, new connections are refused before the listener closes: its queue is still served."""


def environment(settings: Settings, run_dir: Path, role: str, base: Mapping[str, str]) -> dict[str, str]:
    """The environment of every process of the server: what the user set (`base`), and what the server needs."""
    env = dict(base)
    for name in ("BENTOML_CONTAINERIZED", "BENTOCLOUD_DEPLOYMENT_URL"):
        env.pop(name, None)  # container mode respawns no killed worker
    env |= settings.for_children()
    env |= {
        "EVERGREEN_SERVE__HOST": settings.serve.host,  # options of the command may stand above file and environment
        "EVERGREEN_SERVE__PORT": str(settings.serve.port),
        "EVERGREEN_SERVE__WORKERS": str(settings.serve.workers),
        "BENTOML_DO_NOT_TRACK": "True",
        RUN_DIR_VARIABLE: str(run_dir),
        ROLE_VARIABLE: role,
        "PYTHONUNBUFFERED": "1",
    }
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        env.setdefault(name, "1")  # OpenMP threads took one predict from 5 to 1,170 ms on two busy cores
    env.setdefault("MALLOC_ARENA_MAX", "2")
    env.setdefault("UV_TCP_SINGLE_ACCEPT", "1")  # else the worker that wakes up first takes a whole pool of connections
    return env


def run(
    settings: Settings,
    *,
    role: str = "serve",
    say: Callable[[str], None] | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT; the exit code: 0 after an orderly stop, 1 when the server ended by itself, or when
    rows are left in the spool although `serve.drain_timeout_s` was given to store them.

    `say` is told what a person should read; without it, it is printed, or is a line of the log where that is JSON.
    Raises `ServeError` when it cannot start, `monitoring.drain.SpoolBusy` when a server runs on this `var` already.
    """
    chosen = configure(settings.logging, "serve")
    say = say or (logger.info if chosen == "json" else print)
    check_packages(Path.cwd())
    check_port(settings.serve.host, settings.serve.port)
    if role == "serve":
        check_free(settings.spool_dir)
        check_shared(settings)
        take_part(settings)
        say(f"trains on {trained_on(settings)}")
    settings.models_dir.mkdir(parents=True, exist_ok=True)
    run_dir = settings.var / "run" / secrets.token_hex(6)
    (run_dir / "workers").mkdir(parents=True)
    if management_token(settings).new:
        say(f"management token: kept in {settings.token_file}")
    if settings.security.data_plane == "open" and not settings.gates.label_sources:
        say(
            "warning: [security] data_plane is open: anyone who reaches this service can send labels, and so teach the "
            "model; `evergreen doctor` says what to do"
        )
    env = environment(settings, run_dir, role, os.environ)
    command = [
        *(sys.executable, "-m", "bentoml", "serve", "service.app:PredictionService"),
        *("--working-dir", str(INSTALL_ROOT)),
        *("--host", numeric_address(settings.serve.host), "--port", str(settings.serve.port)),
        *("--timeout-graceful-shutdown", str(max(1, round(settings.serve.stop_timeout_s)))),
    ]
    stop_asked: list[int] = []
    previous = {
        s: signal.signal(s, lambda number, _: stop_asked.append(number)) for s in (signal.SIGTERM, signal.SIGINT)
    }
    child = subprocess.Popen(
        command,
        cwd=INSTALL_ROOT,
        env=env,
        start_new_session=True,
        preexec_fn=lambda: end_with_parent(signal.SIGKILL),
        stdin=subprocess.DEVNULL,
    )
    (run_dir / SUPERVISOR).write_text(str(child.pid))
    say(f"evergreen serves http://{settings.serve.host}:{settings.serve.port} (stop with Ctrl-C)")
    try:
        while not stop_asked:
            if child.poll() is not None:
                say(f"the server ended by itself with exit code {child.returncode}; its messages are above")
                return 1
            time.sleep(0.1)
        stop(child, run_dir, settings.serve.stop_timeout_s)
        return _drain_rest(settings, say, lambda: len(stop_asked) > 1) if role == "serve" else 0
    finally:
        _kill_tree(child)
        for number, handler in previous.items():
            signal.signal(number, handler)
        shutil.rmtree(run_dir, ignore_errors=True)


def _drain_rest(settings: Settings, say: Callable[[str], None], hurried: Callable[[], bool]) -> int:
    """Store what the stopped server has left in its spool; the exit code. A second signal (`hurried`) ends it."""
    seconds = settings.serve.drain_timeout_s
    try:
        drained = drain(settings, seconds, say=say, enough=hurried)
    except EvergreenError as error:
        say(str(error))
        return 1
    if not drained.rows_left:
        return 0
    say(drained.sentence)
    return 1 if seconds else 0


def stop(child: subprocess.Popen[bytes], run_dir: Path, timeout_s: float) -> None:
    """Stop in order: tell the load balancer, refuse new connections, finish requests, drain; within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    for mark, seconds in ((STOPPING, NOTICE_S), (CLOSING, QUIET_S)):
        (run_dir / mark).touch()
        _wait(child, min(seconds, timeout_s / 4))
    if child.poll() is None:
        child.terminate()
        _wait(child, deadline - time.monotonic())
    _kill_tree(child)


def _wait(child: subprocess.Popen[bytes], seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=max(0.0, seconds))


def _kill_tree(child: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the server: nothing else runs in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
