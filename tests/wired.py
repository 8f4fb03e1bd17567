"""A worker's lane behind a real uvicorn on the loopback interface, and what to say to it, byte by byte."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from monitoring.store import open_store
from service import keys
from service.configuration import load
from service.handover import Live, LiveVersion, write_live
from service.serving.front import Front
from service.serving.wire import LaneProtocol
from service.serving.worker import Worker
from tests.artefacts import example_record, make_artefact

KEEP_ALIVE_S = 4


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artefact") / "1"
    make_artefact(folder)
    return folder


@contextmanager
def working(home: Path, artefact: Path, **settings: str) -> Iterator[Worker]:
    """A worker with a champion; `settings` as SERVE__MAX_RECORDS="10"."""
    changed = {f"EVERGREEN_{name}": value for name, value in settings.items()}
    found = load(environ={"EVERGREEN_HOME": str(home), "EVERGREEN_SERVE__WORKERS": "1", **changed})
    write_live(found.live_file, Live(model="evergreen", champion=LiveVersion(1, str(artefact))))
    worker = Worker(found, home / "run", "api-1")
    worker.start()
    try:
        yield worker
    finally:
        worker.close()


def stop_following(worker: Worker) -> None:
    """From now on this worker looks at the live file only when the test says so."""
    worker._closed.set()
    worker._thread.join()


@pytest.fixture
def worker(tmp_path: Path, artefact: Path) -> Iterator[Worker]:
    with working(tmp_path, artefact) as made:
        yield made


@pytest.fixture(name="worker")
def worker_with_store(tmp_path: Path, artefact: Path) -> Iterator[Worker]:
    """The same, beside a store."""
    with working(tmp_path, artefact) as made:
        open_store(made.settings.store_url).dispose()
        yield made


def add(worker: Worker, name: str, *scopes: str) -> str:
    """A new token with this name, which the worker knows already."""
    token = add_token(worker.settings.tokens_file, name, scopes)
    worker.keys.look()
    return token


def add_token(path: Path, name: str, scopes: Sequence[str]) -> str:
    """A new token in a host's file, as its controller copies it there."""
    made, token = keys.make(name, scopes, 0.0)
    keys.write(path, (*keys.read(path), made))
    return token


def revoke_token(path: Path, name: str) -> None:
    """The tokens of this name are gone from a host's file."""
    keys.write(path, [token for token in keys.read(path) if token.name != name])


class Served(NamedTuple):
    port: int
    server: uvicorn.Server
    loop: asyncio.AbstractEventLoop


async def elsewhere(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
    await send({"type": "http.response.body", "body": b"framework"})


@contextmanager
def serving(worker: Worker, *, short: bool = True) -> Iterator[Served]:
    """uvicorn with the lane, on a free port of the loopback interface; `short` False: with uvicorn's own protocol."""
    front = Front(elsewhere, lambda: worker)

    class Protocol(LaneProtocol):  # what it keeps for its class is this server's alone
        pass

    Protocol.front = front
    protocol: type[asyncio.Protocol] = Protocol if short else HttpToolsProtocol
    config = uvicorn.Config(
        front,
        host="127.0.0.1",
        port=0,
        http=protocol,
        ws="none",
        lifespan="off",
        log_level="critical",
        log_config=None,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve()

    thread = threading.Thread(target=_run, args=(run,), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.005)
    try:
        yield Served(server.servers[0].sockets[0].getsockname()[1], server, loops[0])
    finally:
        server.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive()


def _run(main: Callable[[], Any]) -> None:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    while head[0].startswith("HTTP/1.1 100"):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
    return Answer(int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"])))


def talk(port: int, pieces: list[bytes], answers: int, pause_s: float = 0.0) -> list[Answer]:
    """What one connection is answered when it sends these pieces."""

    async def run() -> list[Answer]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)
        found = [await asyncio.wait_for(read_answer(reader), 60) for _ in range(answers)]
        writer.close()
        return found

    return asyncio.run(run())


def request(body: Any, *, path: str = "/predict", method: str = "POST", version: str = "1.1", **headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"host": "x", "content-type": "application/json", "content-length": str(len(content))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    return f"{method} {path} HTTP/{version}\r\n{lines}\r\n".encode() + content


@cache
def example() -> dict[str, Any]:
    return example_record()


def records(rows: int, first: int = 20) -> dict[str, Any]:
    return {"records": [{**example(), "age": first + row} for row in range(rows)]}
