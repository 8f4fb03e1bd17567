"""What a real server leaves open, shows to people, and repairs by itself; and how it stops."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from service import sample
from service.command.traffic import replay_traffic
from service.handover import read_live
from service.keys import known_token
from tests.artefacts import example_record
from tests.real_server import SMALL, Server, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, trained: Callable[[Path], Path]) -> Iterator[Server]:
    home = trained(tmp_path_factory.mktemp("house"))
    server = Server(
        home,
        **SMALL,
        SCHEDULE__CHECK_INTERVAL_S="3",
        EXPORT__TO="exports",
    )
    umask = os.umask(0o022)  # whoever starts it is not careful
    try:
        yield server.start().wait_ready()
    finally:
        os.umask(umask)
        server.end()


def files_under(folder: Path) -> list[Path]:
    """The folder and all in it, while a run may take its own away."""
    return [folder, *(Path(root) / name for root, folders, files in os.walk(folder) for name in folders + files)]


def open_to_others(paths: Iterable[Path]) -> list[Path]:
    found = []
    for path in paths:
        with suppress(FileNotFoundError):  # a run's temporary file
            if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                found.append(path)
    return found


def test_the_pages_load_nothing_from_elsewhere_and_say_so_to_the_browser(server: Server) -> None:
    with httpx.Client(base_url=server.url) as client:
        seen, left = set[str](), ["/"]
        while left:
            path = left.pop()
            if path in seen:
                continue
            seen.add(path)
            answer = client.get(path)
            assert answer.status_code == 200, path
            if not answer.headers["content-type"].startswith("text/html"):
                continue
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self';")
            assert "frame-ancestors 'none'; base-uri 'none'; form-action 'none'" in policy
            assert (answer.headers["x-content-type-options"], answer.headers["referrer-policy"]) == (
                "nosniff",
                "no-referrer",
            )
            links = [link for link in re.findall(r'(?:src|href)="([^"]*)"', answer.text) if link != "data:,"]
            assert not [link for link in links if "//" in link]
            assert "<script>" not in answer.text
            left += [str(answer.url.join(link).path) for link in links]

        assert {"/docs", "/docs/docs.js", "/docs/swagger-ui-bundle.js", "/page/static/app.js"} <= seen
        assert client.head("/").status_code == 200
        for gone in ("/static_content/index.css", "/assets/x.js", "/docs/", "/docs/../settings.py", "/docs/index.html"):
            assert client.get(gone).status_code == 404, gone
        assert client.get("/schema.json").status_code == 200, "BentoML's client asks for it"
        page = client.get("/metrics").text
    assert 'route="page"' in page and "docs/index.html" not in page


def test_nothing_below_var_is_readable_by_others_after_a_check_and_a_training(server: Server) -> None:
    frame = sample.frame(1500, start=sample.TRAINING_ROWS)
    assert replay_traffic(server.url, frame, target=sample.TARGET, rate=0.0, label_delay_s=0.0).ok
    with server.client() as client:
        run = client.wait(client.retrain("for the test"), timeout_s=600)
        wait_until("a check", client.drift)
    assert run["state"] == "done", run

    there = files_under(server.home / "var")
    assert len(there) > 30
    names = {path.name for path in there}
    assert {"evergreen.db", "token", "snapshots", "spool", "model.skops", "reference.parquet", "live.json"} <= names
    assert open_to_others(there) == []


def test_the_report_of_a_check_is_made_by_the_controller_while_the_service_answers(server: Server) -> None:
    token = known_token(server.settings)
    headers = {"authorization": f"Bearer {token}", "accept": "text/html"}
    with server.client() as client, httpx.Client(base_url=server.url, headers=headers, timeout=60) as browser:
        kept, waits = server.home / "var" / "reports", list[int]()

        def without_report() -> list[int]:
            compared = [check["id"] for check in client.drift(50) if not check["drift"]["skipped"]]
            return [check for check in compared if not (kept / f"{check}.html").exists()]

        check = wait_until("a check", without_report)[0]
        path = f"/manage/reports/{check}"

        def made() -> httpx.Response | None:
            assert browser.post("/predict", json={"records": [example_record()]}).status_code == 200
            answer = browser.get(path)
            waits.append(answer.status_code)
            return None if answer.status_code == 202 else answer

        page = wait_until("the report", made)

    assert page.status_code == 200 and f"<title>Check {check} of " in page.text, page.text[:500]
    assert waits[0] == 202 and len(page.content) > 10**6
    assert open_to_others(files_under(kept)) == []


def test_the_token_is_nowhere_in_what_the_server_says_only_its_file(server: Server) -> None:
    said, token = server.log_path.read_text(), (server.home / "var" / "token").read_text().strip()

    assert f"management token: kept in {server.home}/var/token" in said
    assert token not in said


@pytest.mark.parametrize("harm", ["gone", "damaged"])
def test_a_worker_that_restarts_after_the_live_file_was_lost_serves_again(server: Server, harm: str) -> None:
    live = server.home / "var" / "live.json"

    if harm == "gone":
        live.unlink()
    else:
        live.write_bytes(b'{"model": "ever')
    victim = server.children("PredictionService")[0]
    os.kill(victim.pid, signal.SIGKILL)
    wait_until("the file", lambda: live.exists() and live.stat().st_size > 50)
    wait_until("the worker's return", lambda: len(server.children("PredictionService")) == 2)
    deadline = time.monotonic() + 3
    statuses = []
    while time.monotonic() < deadline:  # a connection each: both workers are asked
        statuses.append(httpx.get(f"{server.url}/readyz").status_code)
        statuses.append(httpx.post(f"{server.url}/predict", json={"records": [example_record()]}).status_code)

    healed = read_live(live)
    assert healed is not None and healed.champion is not None
    assert statuses.count(200) >= len(statuses) - 2, statuses  # while it imports, it does not listen yet


def test_a_stop_under_new_connections_resets_nobody(server: Server) -> None:
    body = json.dumps({"records": [example_record()]}).encode()
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    seen, over = Counter[str](), threading.Event()

    def ask_once() -> str:
        try:
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        except ConnectionRefusedError:
            return "refused"
        try:
            with connection:
                connection.sendall(head.encode() + body)
                return connection.recv(65536)[9:12].decode() or "closed without an answer"
        except OSError as error:
            return repr(error)

    def ask() -> None:
        while not over.is_set():
            found = ask_once()
            seen[found] += 1
            if found == "refused":
                return

    askers = [threading.Thread(target=ask) for _ in range(16)]
    for asker in askers:
        asker.start()
    wait_until("traffic", lambda: seen["200"] > 200)
    assert server.stop() == 0
    over.set()
    for asker in askers:
        asker.join()

    assert seen.keys() == {"200", "refused"}, seen
