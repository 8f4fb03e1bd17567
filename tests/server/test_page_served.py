"""The page of a real server: its controller makes what it shows, and its workers do while the controller is away."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

import httpx
import pytest

from service.web.frames import SOCKET
from tests.real_server import Server, wait_until

PARTS = ("state", "quality", "decisions", "drift", "distribution", "segments", "traffic")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(
        tmp_path_factory.mktemp("page"), SERVE__WORKERS="2", TRAINING__TRIALS="1", SCHEDULE__CHECK_INTERVAL_S="3600"
    )
    try:
        yield found.start().wait_ready()
    finally:
        found.end()


def asked(server: Server, part: str) -> httpx.Response:
    """On a connection of its own: any worker may take it."""
    token = (server.home / "var" / "token").read_text().strip()
    return httpx.get(f"{server.url}/page/{part}", headers={"authorization": f"Bearer {token}"}, timeout=30)


def listened(server: Server) -> int:
    """The status of a line of events."""
    token = (server.home / "var" / "token").read_text().strip()
    with httpx.stream("GET", f"{server.url}/page/events", headers={"authorization": f"Bearer {token}"}) as line:
        return line.status_code


def readers(server: Server) -> set[str]:
    """The services whose processes have the store open."""
    return {
        name
        for name in ("Controller", "PredictionService")
        for process in server.children(name)
        if any(file.path.endswith("evergreen.db") for file in process.open_files())
    }


def test_only_the_controller_reads_the_store_for_the_page_and_its_death_is_bridged(server: Server) -> None:
    answers = [asked(server, part) for part in PARTS for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200] * len(answers), answers
    assert listened(server) == 200
    assert readers(server) == {"Controller"}
    (door,) = (server.home / "var" / "run").glob(f"*/{SOCKET}")
    assert stat.S_IMODE(door.stat().st_mode) == 0o600

    controller = server.children("Controller")[0]
    os.kill(controller.pid, 9)
    controller.wait(10)
    answers = [asked(server, part) for part in PARTS]
    assert [answer.status_code for answer in answers] == [200] * len(PARTS), answers
    assert listened(server) == 503
    assert "PredictionService" in readers(server)

    wait_until("the controller's return", lambda: listened(server) == 200)
    for _ in range(20):
        assert asked(server, "state").status_code == 200
    wait_until("that workers let go of the store", lambda: asked(server, "state") and readers(server) == {"Controller"})
