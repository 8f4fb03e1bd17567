"""Two homes on one PostgreSQL, as on two hosts: what one trains both serve, when they share their artefacts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from evergreen_client import Client, StatusError

from monitoring.store import open_store, predictions
from service import sample
from service.command.traffic import replay_traffic
from service.keys import known_token
from service.secret_file import home_id
from tests.artefacts import example_record
from tests.real_server import SMALL, Server, wait_until

QUICK = {
    "SERVE__WORKERS": "1",
    **SMALL,
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


def replica(servers: ExitStack, home: Path, url: str, shared: Path | None, **more: str) -> Server:
    home.mkdir(exist_ok=True)
    artefacts = {"STORE__ARTEFACTS": str(shared)} if shared is not None else {}
    server = Server(home, STORE__URL=url, **artefacts, **{**QUICK, **more})
    servers.callback(server.end)
    return server


def typed(server: Server, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*server.command, *command], cwd=server.cwd, env=server.env, capture_output=True, text=True, timeout=600
    )


def readiness(server: Server) -> str:
    with suppress(httpx.TransportError):
        return httpx.get(f"{server.url}/readyz", timeout=60).text
    return ""


def serves(server: Server) -> int | None:
    answer = httpx.post(f"{server.url}/predict", json={"records": [example_record()]}, timeout=60)
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
        run = client.wait(client.retrain("for the test"), timeout_s=600)
        assert (run["state"], run["outcome"]) == ("done", "promoted"), run
    wait_until("the new version on both", lambda: (serves(one), serves(two)) == (run["version"], run["version"]))

    judging = sample.frame(600, start=sample.TRAINING_ROWS + 1_500)
    assert replay_traffic(one.url, judging, target=sample.TARGET, rate=0.0, label_delay_s=0.0).ok
    model = (one.settings.models_dir / "evergreen" / "1" / "model.skops").read_bytes()
    for server in (one, two):  # one of both does not lead
        with server.client() as client:
            pushed = client.wait(client.push(model), timeout_s=600)
            assert pushed["record"].get("verdict", {}).get("gates"), pushed["record"]
        assert not list(server.settings.pushes_dir.iterdir())
    assert not list((shared / "pushes").iterdir())

    assert two.stop() == 0
    shutil.rmtree(two.home)
    again = replica(servers, tmp_path / "two", postgres_url, shared).start().wait_ready()
    assert serves(again) == run["version"]
    with again.client() as client:
        kinds = [one["kind"] for one in client.runs(50)]
    assert kinds.count("bootstrap") == 1
    made = typed(again, "models", "reproduce", str(run["version"]))  # its snapshot is fetched, too
    assert made.returncode == 0 and "identical bit for bit" in made.stdout, made.stdout + made.stderr


def test_a_host_whose_storage_is_away_goes_on_with_what_it_has_also_after_a_restart(
    tmp_path: Path, postgres_url: str, shared: Path, servers: ExitStack
) -> None:
    one = replica(servers, tmp_path / "one", postgres_url, shared).start().wait_ready()
    assert one.stop() == 0
    shared.rename(tmp_path / "away")
    shared.write_bytes(b"no folder")

    one.start().wait_ready()

    assert serves(one) == 1
    two = replica(servers, tmp_path / "two", postgres_url, shared).start()
    why = wait_until("a reason", lambda: (said := readiness(two)) and "could not be read" in said and said)
    assert "no model in service: " in why and "models/evergreen/1/" in why
    with one.client() as client:
        run = client.wait(client.retrain("for the test"), timeout_s=600)
        assert (run["state"], run["outcome"]) == ("done", "no_action"), "it leads: the other one lacks the champion"
        assert run["who"] != "" and "labelled rows" in run["record"]["error"]


def test_a_second_host_that_shares_nothing_is_refused_with_the_setting_to_make(
    tmp_path: Path, postgres_url: str, servers: ExitStack
) -> None:
    one = replica(servers, tmp_path / "one", postgres_url, None).start().wait_ready()
    two = replica(servers, tmp_path / "two", postgres_url, None)

    ended = typed(two, "serve")

    assert ended.returncode == 1
    assert "version 1 serves, and was made on another host" in ended.stderr and "[store] artefacts" in ended.stderr
    assert serves(one) == 1


def test_every_replica_answers_manage_alike_knows_the_others_and_does_its_part_of_an_erasure(
    tmp_path: Path, postgres_url: str, shared: Path, servers: ExitStack
) -> None:
    own = {"SECURITY__TOKEN": "", "SECURITY__KEY": "k" * 32, "PRIVACY__HASH": '["email"]'}
    one = replica(servers, tmp_path / "one", postgres_url, shared, **own).start().wait_ready()
    two = replica(servers, tmp_path / "two", postgres_url, shared, **own)
    two.env["PYTHONPATH"] = a_minute_ahead(tmp_path / "clock")
    two.start().wait_ready()
    with one.client() as client:
        wait_until("both report", lambda: len(client.replicas()) == 2)
        assert sorted(round(home["ahead_s"] / 30) for home in client.replicas()) == [0, 2]

    for here, there in ((one, two), (two, one)):  # each home's own token, on the other
        with Client(there.url, known_token(here.settings)) as client:
            wait_until("the other's token is known", lambda client=client: says(client) is None)
    token = typed(one, "token", "add", "ana", "--scope", "read").stdout.strip()
    with Client(two.url, token) as client:
        wait_until("the token is known on the other replica", lambda: says(client) is None)

    records = {"records": [{**example_record(), "email": "ana@example.org"}]}
    for server in (one, two):
        assert httpx.post(f"{server.url}/predict", json=records, timeout=60).status_code == 200
    engine = open_store(postgres_url)
    servers.callback(engine.dispose)
    hashes = sa.select(predictions.c.features)

    def recorded() -> list[str]:
        with engine.connect() as connection:
            found = [json.loads(text).get("email") for text in connection.scalars(hashes)]
        return [value for value in found if value]

    wait_until("both rows", lambda: len(recorded()) == 2)
    assert len(set(recorded())) == 1 and recorded()[0].startswith("h:")

    with httpx.Client(base_url=one.url) as browser:  # a cookie of one replica is good on the other
        assert browser.post("/page/session", json={"token": token}).status_code == 200
        cookie = browser.cookies["evergreen_session"]
    cookies = {"cookie": f"evergreen_session={cookie}"}
    assert httpx.get(f"{two.url}/page/state", headers=cookies, timeout=60).status_code == 200

    assert typed(two, "token", "revoke", "ana").returncode == 0
    for server in (one, two):
        with Client(server.url, token) as client:
            wait_until("the token is gone", lambda client=client: "403" in (says(client) or ""))

    table = typed(two, "replicas")
    assert table.returncode == 0 and table.stdout.count("ready") == 2 and table.stdout.count("leads") == 1, table
    killed(two)
    with one.client() as client:
        run = client.erase(feature="email", value="ana@example.org", why="asked to")  # as both replicas hash it
        wait_until(
            "the other is away", lambda: [home["away"] for home in client.replicas() if not home["here"]] == [True]
        )
        wait_until("the lease is taken", lambda: leads(client) == [True])
        wait_until("the erasure waits", lambda: client.run(run)["state"] == "waiting")
        (names,) = client.run(run)["record"]["waits_for"]
        assert home_id(two.settings) in names and any(names in alert for alert in client.status()["alerts"])
        assert recorded() == []
        two.start().wait_ready()
        assert client.wait(run, timeout_s=600)["outcome"] == "erased"
        (part,) = client.runs(5, kind="erase_part")
        assert (part["state"], part["outcome"]) == ("done", "erased")
    assert not any(b"ana@" in path.read_bytes() for path in two.settings.spool_dir.glob("*"))

    killed(one)
    with two.client() as client:
        wait_until("the lease is taken", lambda: leads(client) == [True])
        away = [home["away"] for home in client.replicas()]
        assert sorted(away) == [False, True]
        (gone,) = [home["home"] for home in client.replicas() if home["away"]]
        assert client.wait(client.gone(gone, "for the test"), timeout_s=600)["outcome"] == "gone"
        assert len(client.replicas()) == 1
    again = typed(one, "serve")
    assert again.returncode == 1 and "said to be gone for good" in again.stderr, again.stderr


def a_minute_ahead(folder: Path) -> str:
    """A folder for PYTHONPATH: every Python that starts with it has a clock that is a minute ahead."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import time\nright = time.time\ntime.time = lambda: right() + 60\n")
    return str(folder)


def killed(server: Server) -> None:
    """Its parent and with it all of its processes, as when a host loses its power."""
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()


def says(client: Client) -> str | None:
    """None when the service tells its status to this client, else what it says instead."""
    try:
        client.status()
    except StatusError as error:
        return str(error)
    return None


def leads(client: Client) -> list[bool]:
    return [home["leads"] for home in client.replicas() if not home["away"]]


def test_a_second_host_that_would_hash_otherwise_is_refused_with_the_setting_to_make(
    tmp_path: Path, postgres_url: str, shared: Path, servers: ExitStack
) -> None:
    privacy = {"PRIVACY__HASH": '["email"]'}
    one = replica(servers, tmp_path / "one", postgres_url, shared, **privacy).start().wait_ready()

    ended = typed(replica(servers, tmp_path / "two", postgres_url, shared, **privacy), "serve")

    assert ended.returncode == 2 and "EVERGREEN_SECURITY__KEY" in ended.stderr, ended.stderr
    assert serves(one) == 1
