"""The image's health check says what the server on the configured address says, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.deploy.manifests import DEPLOY
from tests.ports import free_port


@pytest.fixture(params=[200, 503])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """(port, status) of something that answers `/livez` with it, and everything else with 404."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param if self.path == "/livez" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as answering:
        thread = threading.Thread(target=answering.serve_forever)
        thread.start()
        yield answering.server_port, request.param
        answering.shutdown()
        thread.join()


def alive(home: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    environ = {"EVERGREEN_HOME": str(home), "http_proxy": "http://127.0.0.1:9", **environ}
    command = [sys.executable, "-IS", DEPLOY / "alive.py"]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=600)


def test_it_asks_the_address_in_the_environment_else_in_the_file(tmp_path: Path, server: tuple[int, int]) -> None:
    port, status = server
    (tmp_path / "evergreen.toml").write_text(f'[serve]\nhost = "127.0.0.1"\nport = {port}\n')

    by_file = alive(tmp_path)
    by_variable = alive(tmp_path, EVERGREEN_SERVE__PORT=str(port), EVERGREEN_SERVE__HOST="0.0.0.0")
    elsewhere = alive(tmp_path, EVERGREEN_SERVE__PORT=str(free_port()))

    assert by_file.returncode == by_variable.returncode == (0 if status == 200 else 1)
    assert elsewhere.returncode == 1 and "does not answer" in elsewhere.stderr
    assert (f"answers /livez with {status}" in by_file.stderr) == (status != 200)


def test_without_a_server_on_the_usual_port_of_a_container_it_says_so(tmp_path: Path) -> None:
    nobody = alive(tmp_path, EVERGREEN_SERVE__HOST="127.0.0.1", EVERGREEN_SERVE__PORT=str(free_port()))

    assert nobody.returncode == 1
    assert "does not answer" in nobody.stderr
