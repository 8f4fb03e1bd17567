"""Two homes on one PostgreSQL, as on two hosts: what one trains both serve, when they share their artefacts."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from service import sample
from service.command.traffic import replay_traffic
from tests.artefacts import example_record
from tests.real_server import Server, wait_until

QUICK = {
    "SERVE__WORKERS": "1",
    "DATA__FIRST": "700",
    "TRAINING__TRIALS": "0",
    "TRAINING__NICE": "0",
    "SCHEDULE__CHECK_INTERVAL_S": "600",
    "SECURITY__TOKEN": "the-token-of-both-replicas",
}


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    return tmp_path / "shared"


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[ExitStack]:
    with ExitStack() as started:
        yield started


def replica(servers: ExitStack, home: Path, url: str, shared: Path | None) -> Server:
    home.mkdir(exist_ok=True)
    artefacts = {"STORE__ARTEFACTS": str(shared)} if shared is not None else {}
    server = Server(home, STORE__URL=url, **artefacts, **QUICK)
    servers.callback(server.end)
    return server


def typed(server: Server, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*server.command, *command], cwd=server.cwd, env=server.env, capture_output=True, text=True, timeout=300
    )


def serves(server: Server) -> int | None:
    answer = httpx.post(f"{server.url}/predict", json={"records": [example_record()]}, timeout=10)
    return answer.json()["version"] if answer.status_code == 200 else None


def test_what_one_host_trains_both_serve_and_a_wiped_host_is_back_without_a_training(
    tmp_path: Path, postgres_url: str, shared: Path, servers: ExitStack
) -> None:
    one = replica(servers, tmp_path / "one", postgres_url, shared).start().wait_ready()
    two = replica(servers, tmp_path / "two", postgres_url, shared).start().wait_ready()
    assert (serves(one), serves(two)) == (1, 1)

    frame = sample.frame(1_500, start=sample.TRAINING_ROWS)
    assert replay_traffic(two.url, frame, target=sample.TARGET, rate=0.0, label_delay_s=0.0).ok
    with two.client() as client:  # whichever of both holds the lease
        run = client.wait(client.retrain("for the test"), timeout_s=180)
        assert (run["state"], run["outcome"]) == ("done", "promoted"), run
    wait_until("the new version on both", lambda: (serves(one), serves(two)) == (run["version"], run["version"]))

    assert two.stop() == 0
    shutil.rmtree(two.home)
    again = replica(servers, tmp_path / "two", postgres_url, shared).start().wait_ready()
    assert serves(again) == run["version"]
    with again.client() as client:
        kinds = [one["kind"] for one in client.runs(50)]
    assert kinds.count("bootstrap") == 1
    made = typed(again, "models", "reproduce", str(run["version"]))  # its snapshot is fetched, too
    assert made.returncode == 0 and "identical bit for bit" in made.stdout, made.stdout + made.stderr


def test_a_second_host_that_shares_nothing_is_refused_with_the_setting_to_make(
    tmp_path: Path, postgres_url: str, servers: ExitStack
) -> None:
    one = replica(servers, tmp_path / "one", postgres_url, None).start().wait_ready()
    two = replica(servers, tmp_path / "two", postgres_url, None)

    ended = typed(two, "serve")

    assert ended.returncode == 1
    assert "version 1 serves, and was made on another host" in ended.stderr and "[store] artefacts" in ended.stderr
    assert serves(one) == 1
