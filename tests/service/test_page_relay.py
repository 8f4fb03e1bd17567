"""What the page shows is made once, by the controller, for all workers; when it is away each worker makes its own."""

from __future__ import annotations

import asyncio
import socket
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service.serving.worker import Worker
from service.web import relay
from service.web.frames import SOCKET, Asking
from tests.paged import Paged, desk, grown, here
from tests.service.test_page_events import listening
from tests.stand_in import TOKEN
from tests.wired import add_token, serving

__all__ = ["grown", "here"]  # fixtures

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

PARTS = (
    *("/page/quality", "/page/decisions?limit=2", "/page/drift", "/page/segments", "/page/distribution"),
    *("/page/runs/1", "/page/versions/1/2", "/page/drift/3/income", "/page/drift/3/prediction"),
    *("/page/runs/99", "/page/no/such", "/page/drift/3/no%2Fsuch", "/page/quality?since=never"),
    "/page/quality?" + "&".join(f"x{n}=1" for n in range(30)),
)


@contextmanager
def statements() -> Iterator[Counter[str]]:
    """What is asked of any store of this process meanwhile."""
    found: Counter[str] = Counter()

    def count(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        found[statement] += 1

    sa.event.listen(sa.Engine, "before_cursor_execute", count)
    try:
        yield found
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", count)


@contextmanager
def says_nothing(run_dir: Path, *, closes: bool) -> Iterator[list[float]]:
    """A controller that lets everybody in and answers nobody; when it did."""
    met: list[float] = []
    kept: list[socket.socket] = []
    (run_dir / SOCKET).unlink(missing_ok=True)
    with relay.reached(run_dir) as path, socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        door.listen()

        def let_in() -> None:
            while True:
                try:
                    one = door.accept()[0]
                except OSError:
                    return
                met.append(time.monotonic())
                if closes:
                    one.close()
                else:
                    kept.append(one)

        thread = threading.Thread(target=let_in)
        thread.start()
        try:
            yield met
        finally:
            door.shutdown(socket.SHUT_RDWR)
            thread.join()
            for one in kept:
                one.close()


def test_controller_and_worker_answer_alike(here: Paged) -> None:
    def answers() -> list[tuple[int, Any, str | None]]:
        found = [here.ask("GET", path) for path in PARTS]
        return [(one.status_code, one.json(), one.headers.get("etag")) for one in found]

    alone = answers()
    with desk(here.worker):
        together = answers()

    assert together == alone
    assert [status for status, _, _ in alone] == [200] * 9 + [404] * 3 + [400] * 2


def test_what_all_pages_of_all_workers_ask_for_is_made_once(here: Paged) -> None:
    other = Worker(here.worker.settings, here.worker.run_dir, "api-2", record=False)
    other.start()

    async def ask() -> list[bytes]:
        each = [worker.relay.part(Asking("/page/decisions")) for worker in (here.worker, other) for _ in range(10)]
        return [made.body for made in await asyncio.gather(*each)]

    try:
        with desk(here.worker), statements() as asked:
            bodies = asyncio.run(ask())
    finally:
        other.close()

    assert len(set(bodies)) == 1
    counted = [times for statement, times in asked.items() if "count(*)" in statement and "FROM runs" in statement]
    assert counted == [1]


def test_the_state_is_the_same_for_all_but_says_who_asks(here: Paged) -> None:
    tokens = [
        add_token(here.worker.settings.tokens_file, name, [scope]) for name, scope in (("v", "read"), ("p", "push"))
    ]
    here.worker.keys.look()
    with desk(here.worker):
        admin, viewer = (here.get("/page/state", token=token) for token in (TOKEN, tokens[0]))
        refused = [here.ask("GET", "/page/state", token=token).status_code for token in (tokens[1], "wrong", None)]

    assert (viewer.pop("name"), viewer.pop("scopes")) == ("v", ["read"])
    assert (admin.pop("name"), "operate" in admin.pop("scopes")) == ("admin", True)
    admin.pop("at"), viewer.pop("at")
    assert admin == viewer
    assert refused == [403, 403, 401]


def test_nobody_else_may_open_the_socket_and_its_path_may_be_long(here: Paged) -> None:
    deep = here.worker.run_dir / ("d" * 120)
    deep.mkdir()
    worker = Worker(here.worker.settings, deep, "api-1", record=False)
    try:
        with desk(worker), statements() as asked:
            found = asyncio.run(worker.relay.part(Asking("/page/segments")))
            mode = (deep / SOCKET).stat().st_mode
        assert worker.relay._own is None and asked and found.body
    finally:
        worker.close()

    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600


@pytest.mark.parametrize("closes", [True, False], ids=["closes at once", "hangs"])
def test_a_controller_that_says_nothing_is_done_without(
    here: Paged, monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    monkeypatch.setattr(relay, "WITHIN_S", 0.3)
    with says_nothing(here.worker.run_dir, closes=closes) as met:
        for path in ("/page/segments", "/page/quality"):
            assert here.ask("GET", path).status_code == 200
        events = here.ask("GET", "/page/events")

    assert events.status_code == 503 and "poll /page/state" in events.json()["error"]
    assert len(met) == (3 if closes else 2)  # parts are not asked of one that hangs for a while


def test_a_worker_hands_on_again_as_soon_as_there_is_a_controller(here: Paged) -> None:
    assert here.ask("GET", "/page/segments").status_code == 200
    assert here.worker.relay._own is not None
    with desk(here.worker):
        assert here.ask("GET", "/page/segments").status_code == 200
        assert here.worker.relay._own is None  # what it made them with is let go of


def test_a_stream_ends_with_the_controller_without_a_word_and_there_is_none_without(
    here: Paged, caplog: pytest.LogCaptureFixture
) -> None:
    async def watch(port: int, stopping: threading.Event) -> None:
        async with listening(port) as following:
            assert await following() is not None
            stopping.set()
            while await asyncio.wait_for(following(), 10) is not None:
                pass

    with serving(here.worker) as served:
        with desk(here.worker) as stopping:
            asyncio.run(watch(served.port, stopping))
        assert here.ask("GET", "/page/events").status_code == 503
    assert not [record for record in caplog.records if record.name == "asyncio" and record.levelname == "ERROR"]


def test_one_who_may_not_make_a_socket_says_so_and_leaves_the_page_to_the_workers(
    here: Paged, caplog: pytest.LogCaptureFixture
) -> None:
    from service.web.desk import serve

    (here.worker.run_dir / SOCKET).mkdir()  # in its place, and no file

    asyncio.run(serve(here.worker.settings, here.worker.run_dir, threading.Event()))

    assert "each worker makes its page" in caplog.text
    assert here.ask("GET", "/page/segments").status_code == 200


def test_a_part_that_cannot_be_made_is_an_error_of_ours_and_the_next_one_is_made(
    here: Paged, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from service.web import parts

    def broken(*_: Any) -> None:
        raise RuntimeError("a mistake")

    with desk(here.worker):
        monkeypatch.setattr(parts, "segments", broken)
        answer = here.ask("GET", "/page/segments")
        monkeypatch.undo()
        again = here.ask("GET", "/page/segments")

    assert answer.status_code == 500 and "controller's log" in answer.json()["error"]
    assert "a mistake" in caplog.text
    assert again.status_code == 200
