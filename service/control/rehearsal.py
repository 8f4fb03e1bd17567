"""The infra gate: a candidate answers recorded rows in a fresh server before it may be promoted.

The server is `evergreen serve` as it stands, with one worker, in a folder, on a loopback port and with a store of its
own. It records nothing, and its controller does nothing (role `gate`). It gives way to every other process here, and
is gone when this ends, however it ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec

from monitoring.schema import FeatureSchema
from service.handover import Live, LiveVersion, write_live
from service.place import free_port
from service.process import INSTALL_ROOT, SUPERVISOR
from service.settings import ROLE_VARIABLE, Settings, StoreSettings
from training.artefact import SCHEMA
from training.manifest import GateResult
from training.priority import end_with_parent, give_way
from training.rehearsal import INFRA, Rehearsal, compared, read_rehearsal
from training.subprocess_job import JobStopped

NICE: Final = 10
VERSION: Final = 0
"""Of the candidate in its server: it is registered only after it has passed."""
SINGLE: Final = 20
"""Records that are asked one by one, before all together: one row takes another road through the server than many."""
LOOK_EVERY_S: Final = 0.1
STOP_S: Final = 5.0
TAIL_CHARS: Final = 300


class _Failed(Exception):
    """Raised when the server cannot be asked; the message says what it said."""


def rehearse(
    settings: Settings,
    artefact: Path,
    *,
    stopped: Callable[[], bool] = lambda: False,
    meanwhile: Callable[[], None] = lambda: None,
) -> GateResult:
    """The verdict of the infra gate on a job's output folder, within `gates.infra_timeout_s`.

    `meanwhile` is called again and again while the server starts. Raises `JobStopped` when `stopped()` turns true.
    """
    asked = read_rehearsal(artefact)
    schema = FeatureSchema.from_json((artefact / SCHEMA).read_bytes())
    home = artefact.with_name("rehearsal")
    began = time.monotonic()
    deadline = began + settings.gates.infra_timeout_s
    try:
        with _server(settings, home, artefact) as (url, process):
            _wait_ready(url, process, home, deadline, stopped, meanwhile)
            said = _answers(url, asked, schema, settings.serve.max_records, deadline)
            return compared(asked, said, schema, time.monotonic() - began)
    except (_Failed, httpx.HTTPError, OSError) as error:
        why = str(error) or type(error).__name__
        return GateResult(INFRA, False, None, None, f"the candidate was not served by a fresh server: {why}")


@contextmanager
def _server(settings: Settings, home: Path, artefact: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """(address, process) of a server of its own that serves the artefact; gone afterwards."""
    store = StoreSettings(var=str(home / "var"))
    alone = settings.model_copy(update={"home": home, "bentoml_home": None, "store": store})
    alone.var.mkdir(parents=True)
    write_live(alone.live_file, Live(model=settings.model.name, champion=LiveVersion(VERSION, str(artefact))))
    port = free_port()
    env = {**os.environ, **alone.for_children(), ROLE_VARIABLE: "gate"}
    env |= {
        f"EVERGREEN_{name}": value
        for name, value in {
            "SERVE__HOST": "127.0.0.1",
            "SERVE__PORT": str(port),
            "SERVE__WORKERS": "1",
            "SERVE__STOP_TIMEOUT_S": "1",
            "STORE__URL": f"sqlite:///{alone.var}/evergreen.db",
            "SECURITY__TOKEN": "",
            "SECURITY__KEY": "",  # it shares no key: what it hashes is recorded nowhere
            "SECURITY__FORMER_KEY": "",
            "SECURITY__DATA_PLANE": "auto",  # this process may predict without a token
            "SECURITY__ROWS_PER_HOUR": "0",
            "TRACE__ENDPOINT": "",
        }.items()
    }
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.command.cli", "serve"],
            cwd=INSTALL_ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_quietly,
        )
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        _end(process, alone.var / "run")


def _quietly() -> None:
    """In the new process: it ends with this one, and everybody else comes first."""
    end_with_parent(signal.SIGKILL)
    give_way(NICE)


def _end(process: subprocess.Popen[bytes], runs: Path) -> None:
    """Stop the server in its own order; what is left after that is killed."""
    supervisors = [int(path.read_text()) for path in runs.glob(f"*/{SUPERVISOR}")]
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=STOP_S)
    if process.poll() is None:
        for group in (process.pid, *supervisors):  # each leads a session of its own
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
    process.wait()


def _wait_ready(
    url: str,
    process: subprocess.Popen[bytes],
    home: Path,
    deadline: float,
    stopped: Callable[[], bool],
    meanwhile: Callable[[], None],
) -> None:
    why = "it did not answer"
    while True:
        if stopped():
            raise JobStopped
        if process.poll() is not None:
            tail = " ".join((home / "server.log").read_text(errors="replace")[-TAIL_CHARS:].split())
            raise _Failed(f"it ended by itself with exit code {process.returncode}: {tail}")
        with suppress(httpx.TransportError):
            answer = httpx.get(f"{url}/readyz", timeout=2.0)
            if answer.status_code == 200:
                return
            why = _error(answer)
            if "does not load" in why:
                raise _Failed(why)
        if time.monotonic() >= deadline:
            raise _Failed(f"it was not ready in time (gates.infra_timeout_s): {why}")
        meanwhile()
        time.sleep(LOOK_EVERY_S)


def _answers(url: str, asked: Rehearsal, schema: FeatureSchema, most: int, deadline: float) -> list[Any]:
    """The server's answers in the order of the records: the first ones one by one, all others together."""
    single = [[record] for record in asked.records[:SINGLE]]
    others = asked.records[SINGLE:]
    key = "predictions" if schema.task == "regression" else "probabilities"
    said: list[Any] = []
    with httpx.Client(base_url=url, timeout=max(1.0, deadline - time.monotonic())) as http:
        for records in (*single, *(others[at : at + most] for at in range(0, len(others), most))):
            answer = http.post(
                "/predict",
                content=msgspec.json.encode({"records": records}),
                headers={"content-type": "application/json"},
            )
            if answer.status_code != 200:
                raise _Failed(f"it answered {answer.status_code} to recorded rows: {_error(answer)}")
            said += answer.json()[key]
            if time.monotonic() >= deadline:
                raise _Failed("it did not answer all rows in time (gates.infra_timeout_s)")
    return said


def _error(answer: httpx.Response) -> str:
    """What an answer that is no 200 says, for people."""
    try:
        return str(msgspec.json.decode(answer.content, type=dict[str, Any])["error"])[:TAIL_CHARS]
    except (msgspec.DecodeError, KeyError):
        return answer.text[:TAIL_CHARS]
