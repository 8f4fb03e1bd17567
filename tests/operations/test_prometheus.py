"""A real Prometheus and Alertmanager over a real server under traffic; run by `make test-operations`."""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import re
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest

from service import sample
from service.command.traffic import replay_traffic
from service.control.watch import QUIET_S
from tests.artefacts import example_record
from tests.deploy.test_rules import DASHBOARD, ROOT, queries, rules
from tests.ports import free_port
from tests.real_server import Server, wait_until
from tests.webhook import Got, receiving

SECRET = "whsec_" + base64.b64encode(b"a key of the test alone").decode()
TRAFFIC_S = 180.0
RATE = 100.0
SPOOL_BYTES = 2_000_000  # 40 s of the traffic: a busy machine drains late, and loses nothing before it is to


def is_signed(got: Got) -> bool:
    signed = f"{got.head['webhook-id']}.{got.head['webhook-timestamp']}.".encode() + got.body
    expected = base64.b64encode(hmac.digest(b"a key of the test alone", signed, "sha256")).decode()
    return got.head["webhook-signature"] == f"v1,{expected}"


@pytest.fixture(scope="module")
def receiver() -> Iterator[tuple[str, list[Got]]]:
    """(URL of a receiver of webhooks, what it got)."""
    with receiving() as found:
        yield found


@pytest.fixture(scope="module")
def evergreen(tmp_path_factory: pytest.TempPathFactory, receiver: tuple[str, list[Got]]) -> Iterator[Server]:
    server = Server(
        tmp_path_factory.mktemp("home"),
        SERVE__WORKERS="2",
        TRAINING__TRIALS="0",
        SCHEDULE__CHECK_INTERVAL_S="10",
        LOG__MAX_SPOOL_BYTES=str(SPOOL_BYTES),
        ALERTS__WEBHOOK_URL=f"{receiver[0]}/evergreen",
        ALERTS__WEBHOOK_SECRET=SECRET,
    )
    try:
        yield server.start().wait_ready()
    finally:
        server.end()


@contextlib.contextmanager
def running(url: str, *command: str) -> Iterator[str]:
    """A program that answers at `url`/-/ready while the block runs."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

        def ready() -> bool:
            if process.poll() is not None:
                log.seek(0)
                raise AssertionError(f"{command[0]} ended: {log.read()[-2000:]}")
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{url}/-/ready", timeout=2).status_code == 200
            return False

        try:
            wait_until(command[0], ready, 60)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=20)


@pytest.fixture(scope="module")
def prometheus(
    tmp_path_factory: pytest.TempPathFactory, evergreen: Server, receiver: tuple[str, list[Got]]
) -> Iterator[str]:
    """URL of a Prometheus with our rules and configuration, that looks every second."""
    folder = tmp_path_factory.mktemp("prometheus")
    alerting = msgspec.yaml.decode((ROOT / "deploy/alertmanager/alertmanager.yml").read_bytes())
    alerting["route"]["group_wait"] = "1s"
    alerting["receivers"][0]["webhook_configs"][0]["url"] = f"{receiver[0]}/alertmanager"
    (folder / "alertmanager.yml").write_bytes(msgspec.yaml.encode(alerting))
    watching = msgspec.yaml.decode((ROOT / "deploy/prometheus/prometheus.yml").read_bytes())
    watching["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    watching["rule_files"] = [str(ROOT / "deploy/prometheus/rules.yml")]
    watching["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{evergreen.port}"]}]
    alerts = f"127.0.0.1:{free_port()}"
    watching["alerting"]["alertmanagers"][0]["static_configs"] = [{"targets": [alerts]}]
    (folder / "prometheus.yml").write_bytes(msgspec.yaml.encode(watching))
    address = f"127.0.0.1:{free_port()}"
    with (
        running(
            f"http://{alerts}",
            "prometheus-alertmanager",
            f"--config.file={folder}/alertmanager.yml",
            f"--storage.path={folder}/alerts",
            f"--web.listen-address={alerts}",
            "--cluster.listen-address=",
        ),
        running(
            f"http://{address}",
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/series",
            f"--web.listen-address={address}",
        ) as url,
    ):
        yield url


class Lived(NamedTuple):
    """What happened while there was traffic."""

    lost: float


@pytest.fixture(scope="module")
def lived(evergreen: Server, prometheus: str) -> Lived:
    """Three minutes of traffic with labels; in their middle the store takes nothing until rows are lost."""
    until = time.monotonic() + TRAFFIC_S
    frame = sample.frame(int(TRAFFIC_S * RATE), start=sample.TRAINING_ROWS)
    traffic = threading.Thread(
        target=replay_traffic,
        args=(evergreen.url, frame),
        kwargs={"target": sample.TARGET, "rate": RATE, "label_delay_s": 2.0},
    )
    traffic.start()
    wait_until(
        "a check of quality", lambda: ask(prometheus, 'evergreen_quality_state{state="not known yet"} == 1'), 120
    )
    body = {"records": [example_record()] * 50}
    with contextlib.closing(sqlite3.connect(evergreen.home / "var" / "evergreen.db", timeout=60)) as other:
        other.isolation_level = None
        other.execute("begin immediate")

        def predicted() -> float:
            for _ in range(20):
                assert httpx.post(f"{evergreen.url}/predict", json=body, timeout=20).status_code == 200
            return lost(prometheus)

        wait_until("a lost row", predicted, 60)
        other.execute("rollback")
    traffic.join()
    time.sleep(max(0.0, until - time.monotonic()))
    return Lived(lost(prometheus))


def lost(prometheus: str) -> float:
    return float(ask(prometheus, 'sum(evergreen_log_records_total{outcome="dropped"})')[0]["value"][1])


def ask(prometheus: str, query: str) -> list[dict[str, Any]]:
    """What Prometheus finds now. An AssertionError when it does not understand."""
    answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": query}, timeout=20).json()
    assert answer["status"] == "success", f"{query}: {answer}"
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def filled(query: str) -> str:
    """A query of the dashboard as Grafana sends it."""
    for name, value in (("$job", "evergreen"), ("$__rate_interval", "1m"), ("$__range", "5m")):
        query = query.replace(name, value)
    assert "$" not in query, query
    return query


def test_every_series_of_rules_and_dashboard_exists_under_traffic(prometheus: str, lived: Lived) -> None:
    asked = [*(rule["expr"] for rule in rules()), *queries()]
    names = sorted({name for query in asked for name in re.findall(r"\bevergreen_\w+", query)})

    assert len(names) > 25
    assert [name for name in names if not ask(prometheus, name)] == []


def test_every_query_of_the_dashboard_is_answered(prometheus: str, lived: Lived) -> None:
    found = {query: len(ask(prometheus, filled(query))) for query in queries()}
    empty = [query for query, series in found.items() if not series]

    # What has not happened has no series: nothing failed, nothing was trained, no gate refused.
    assert all(" > 0" in query for query in empty), empty
    assert json.loads(DASHBOARD.read_text())["uid"] == "evergreen"


def test_lost_rows_fire_at_prometheus_and_reach_people_by_alertmanager(
    prometheus: str, receiver: tuple[str, list[Got]], lived: Lived
) -> None:
    assert lived.lost > 0
    firing = [
        each["labels"]["alertname"]
        for each in httpx.get(f"{prometheus}/api/v1/alerts", timeout=20).json()["data"]["alerts"]
        if each["state"] == "firing"
    ]

    def told() -> list[str]:
        sent = [each.event for each in receiver[1] if each.path == "/alertmanager"]
        return [alert["labels"]["alertname"] for event in sent for alert in event["alerts"]]

    assert "EvergreenRowsLost" in firing
    wait_until("the notice", lambda: "EvergreenRowsLost" in told(), 60)


def test_one_signed_event_tells_of_the_loss_and_one_of_its_end(receiver: tuple[str, list[Got]], lived: Lived) -> None:
    def sent() -> list[Got]:
        ours = [each for each in receiver[1] if each.path == "/evergreen"]
        return [each for each in ours if each.event["event"] == "record_dropped"]

    wait_until("the end of the loss", lambda: any(each.event["state"] == "ended" for each in sent()), 3 * QUIET_S)
    assert [each.event["state"] for each in sent()] == ["began", "ended"]
    assert all(is_signed(each) for each in sent())
    assert [each.head["ce-type"] for each in sent()] == [
        "evergreen.record_dropped.began",
        "evergreen.record_dropped.ended",
    ]
    began, ended = (each.event for each in sent())
    assert began["trouble"] == ended["trouble"]
    assert ended["rows"] >= began["rows"] > 0


def test_the_shipped_configurations_are_valid() -> None:
    for command in (
        ["promtool", "check", "config", str(ROOT / "deploy/prometheus/prometheus.yml")],
        ["amtool", "check-config", str(ROOT / "deploy/alertmanager/alertmanager.yml")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
