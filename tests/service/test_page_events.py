"""What changes in the store is told to every open page within two seconds; streams are few and end with their token."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest
import sqlalchemy as sa

from monitoring.store import aliases, checks, workers
from service.web import events
from service.web.events import MOST_STREAMS
from service.web.frames import Asking
from service.web.page import BEHIND_S, Page
from service.web.parts import part
from tests.paged import Paged, desk, grown, here, there
from tests.real_server import wait_until
from tests.stand_in import TOKEN
from tests.wired import add_token, request, revoke_token, serving
from training.runs import Runs

__all__ = ["grown", "here", "there"]  # fixtures

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

WITHIN_S = 2.0
"""From the store having it to the page knowing it."""
NEVER = 1e9


@asynccontextmanager
async def listening(port: int, token: str = TOKEN) -> AsyncIterator[Callable[[], Awaitable[dict[str, Any] | None]]]:
    """A function that gives the next event's data, None when the server ended the stream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(b"", path="/page/events", method="GET", authorization=f"Bearer {token}"))
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).decode()
    assert " 200 " in head.split("\r\n")[0] and "text/event-stream" in head, head

    async def following() -> dict[str, Any] | None:
        while True:
            line = (await reader.readline()).decode()
            if not line:
                return None
            if line.startswith("data: "):
                found: dict[str, Any] = json.loads(line.removeprefix("data: "))
                return found
            if line.strip() == "0":  # the last chunk
                return None

    try:
        yield following
    finally:
        writer.close()


async def told(following: Callable[[], Awaitable[dict[str, Any] | None]], topic: str) -> None:
    """Returns when an event names this topic."""
    while True:
        event = await asyncio.wait_for(following(), 180)
        assert event is not None
        if topic in event["topics"]:
            return


@contextmanager
def looking() -> Iterator[list[float]]:
    """When the store was looked at, by whoever in this process."""
    looks: list[float] = []

    def count(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "max(checks.id)" in statement:
            looks.append(time.monotonic())

    sa.event.listen(sa.Engine, "before_cursor_execute", count)
    try:
        yield looks
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", count)


def a_run(there: Paged) -> None:
    Runs(there.engine).queue("retrain", trigger="manual", who="ana", why="", now=1.0)


def a_check(there: Paged) -> None:
    with there.engine.begin() as connection:
        row = connection.execute(sa.select(checks).order_by(checks.c.id.desc()).limit(1)).one()._asdict()
        connection.execute(checks.insert().values({**row, "id": row["id"] + 1}))


def a_flip(there: Paged) -> None:
    with there.engine.begin() as connection:
        connection.execute(aliases.update().where(aliases.c.alias == "champion").values(version=1))


def a_worker(there: Paged) -> None:
    with there.engine.begin() as connection:
        row = {"replica": "r", "slot": "api-1", "serving": 2, "ready": "[2]", "failed": "{}", "seen_at": time.time()}
        connection.execute(workers.insert().values(row))


@pytest.mark.parametrize(
    ("write", "topic"),
    [(a_run, "decisions"), (a_check, "drift"), (a_flip, "traffic"), (a_worker, "state")],
    ids=["a run", "a check", "a flip", "a worker"],
)
def test_a_write_to_the_store_is_told_after_the_next_look_and_one_is_taken_each_second(
    there: Paged, monkeypatch: pytest.MonkeyPatch, write: Any, topic: str
) -> None:
    monkeypatch.setattr(events, "STATE_EVERY_S", NEVER)  # only what has changed is told
    monkeypatch.setattr(events, "EVERY_S", NEVER)

    async def watch(port: int, looks: list[float]) -> int:
        async with listening(port) as following:
            first = await following()
            assert first is not None and first["revision"]
            while len(looks) < 3:  # what is told at first is over
                await asyncio.sleep(0.05)
            with suppress(TimeoutError):
                while True:
                    await asyncio.wait_for(following(), 0.2)
            write(there)
            before = len(looks)
            await told(following, topic)
            return len(looks) - before

    with looking() as looks, desk(there.worker), serving(there.worker) as served:
        taken = asyncio.run(watch(served.port, looks))
    assert taken <= 3  # two more may begin before this busy machine has delivered it
    assert 2 * events.LOOK_EVERY_S <= WITHIN_S


def test_one_look_a_second_serves_all_streams_and_none_is_taken_when_nobody_listens(here: Paged) -> None:
    async def watch(port: int, looks: list[float]) -> float:
        began = time.monotonic()
        async with listening(port) as one, listening(port) as two, listening(port) as three:
            for following in (one, two, three):
                assert await following() is not None
            await asyncio.sleep(4)
            while len(looks) < 3:
                await asyncio.sleep(0.05)
            return time.monotonic() - began

    with looking() as looks, desk(here.worker), serving(here.worker) as served:
        took, seen = asyncio.run(watch(served.port, looks)), len(looks)
        wait_until("the end of looking", lambda: time.monotonic() - looks[-1] > 3 * events.LOOK_EVERY_S)

    assert seen <= took + 4  # each stream looks as it begins; three that went on would have three times as many


def test_more_streams_than_a_server_has_are_told_to_poll(here: Paged) -> None:
    async def watch(port: int) -> tuple[bytes, bytes]:
        streams = [listening(port) for _ in range(MOST_STREAMS)]
        for stream in streams:
            await stream.__aenter__()
        answers: list[bytes] = []
        while len(answers) < 2 or b" 503 " in answers[-1]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request(b"", path="/page/events", method="GET", authorization=f"Bearer {TOKEN}"))
            answers.append(await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60))
            writer.close()
            if len(answers) == 1:  # one leaves, another may come
                await streams.pop().__aexit__(None, None, None)
            await asyncio.sleep(0.1)
        for stream in streams:
            await stream.__aexit__(None, None, None)
        return answers[0], answers[-1]

    with desk(here.worker), serving(here.worker) as served:
        refused, taken = asyncio.run(watch(served.port))

    assert b" 503 " in refused and b"retry-after" in refused.lower()
    assert b" 200 " in taken


@pytest.mark.parametrize("end", ["revoked", "stopping"])
def test_a_stream_ends_with_its_token_and_with_the_server(here: Paged, end: str) -> None:
    token = add_token(here.worker.settings.tokens_file, "viewer", ["read"])
    here.worker.keys.look()

    async def watch(port: int) -> None:
        async with listening(port, token) as following:
            assert await following() is not None
            if end == "revoked":
                revoke_token(here.worker.settings.tokens_file, "viewer")
                here.worker.keys.look()
            else:
                here.worker.stopping = True
            while await asyncio.wait_for(following(), 60) is not None:
                pass

    with desk(here.worker), serving(here.worker) as served:
        asyncio.run(watch(served.port))


def test_while_the_store_is_down_streams_stay_and_tell_again_when_it_is_back(here: Paged) -> None:
    def rename(old: str, new: str) -> None:
        with here.engine.begin() as connection:
            connection.execute(sa.text(f"alter table {old} rename to {new}"))

    async def watch(port: int) -> None:
        async with listening(port) as following:
            assert await following() is not None
            rename("runs", "runs_elsewhere")
            await asyncio.sleep(2.5)
            rename("runs_elsewhere", "runs")
            a_run(here)
            await told(following, "decisions")

    with desk(here.worker), serving(here.worker) as served:
        asyncio.run(watch(served.port))


def test_a_stream_that_is_quiet_says_that_it_is_there(here: Paged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEEP_ALIVE_S", 0.5)
    monkeypatch.setattr(events, "STATE_EVERY_S", 3600.0)
    monkeypatch.setattr(events, "EVERY_S", 3600.0)

    async def watch(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(b"", path="/page/events", method="GET", authorization=f"Bearer {TOKEN}"))
        found = await asyncio.wait_for(reader.readuntil(b": still here"), 60)
        writer.close()
        return found

    with desk(here.worker), serving(here.worker) as served:
        assert b"event: changed" in asyncio.run(watch(served.port))


def test_who_was_told_by_another_server_is_answered_with_what_that_one_has_seen(here: Paged) -> None:
    page = Page(here.worker.settings, here.worker.run_dir)

    async def decisions(known: str = "") -> bytes:
        return (await part(page, Asking("/page/decisions", known=known))).body

    async def ask() -> None:
        before = await decisions()
        a_run(here)
        page.looked_at = time.monotonic() + 5  # as if it had just looked: a moment before the run was there
        assert await decisions() == await decisions(page.revision) == before
        page.looked_at = time.monotonic() - BEHIND_S
        assert await decisions("what the other server said") != before

    asyncio.run(ask())
