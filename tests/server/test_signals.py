"""What a running server says of itself: a line for each thing that happens, and nothing of what it was sent."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import sample
from service.command.traffic import replay_traffic
from service.keys import known_token
from tests.artefacts import example_record
from tests.collector import Collector, collecting
from tests.real_server import SMALL, Server, wait_until

QUICK = {
    "SERVE__WORKERS": "2",
    **SMALL,
    "TRAINING__TRIALS": "1",
    "SCHEDULE__CHECK_INTERVAL_S": "1",
    "RETRAIN__COOLDOWN_S": "0",
    "RETRAIN__GROWTH": "50",  # trained when asked only
    "ADAPT__ENABLED": "false",  # its jobs would only take time
    "RETRAIN__MIN_LABELLED_ROWS": "100",
    "RETRAIN__MIN_NEW_LABELLED_ROWS": "50",
}
WORD, NUMBER, TOKEN = "Kanarienvogel", 48271.0625, "evg-canary-token-5d41402abc4b2a76"
"""What is sent as a category, as a number and as a token, and must stand in no log."""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("home"), TRACE__ENDPOINT=collector.url, TRACE__RATIO="0", **QUICK)
    try:
        yield server.start().wait_ready()
    finally:
        server.end()


def lines(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log_path.read_text().splitlines()]


def told(server: Server, event: str, **fields: Any) -> list[dict[str, Any]]:
    """The lines about this kind of event with these fields."""
    return [
        line
        for line in lines(server)
        if line.get("event") == event and all(line.get(name) == value for name, value in fields.items())
    ]


def heard(server: Server, event: str, seconds: float = 600.0, **fields: Any) -> dict[str, Any]:
    found: list[dict[str, Any]] = wait_until(event, lambda: told(server, event, **fields), seconds)
    return found[0]


def test_every_line_is_json_with_when_how_grave_and_who(server: Server) -> None:
    found = lines(server)

    assert {"serve", "controller", "api-1", "api-2"} <= {line["process"] for line in found}
    for line in found:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["at"])
        assert line["level"] in ("debug", "info", "warning", "error") and line["message"] and line["logger"]


def test_a_first_version_is_a_training_a_verdict_a_promotion_and_a_swap_in_each_worker(server: Server) -> None:
    heard(server, "lease_taken")
    first = heard(server, "promotion", version=1)
    started, ended = (heard(server, event, run=first["run"]) for event in ("training_started", "training_ended"))
    verdict = heard(server, "verdict", run=first["run"])
    assert started["kind"] == "bootstrap" and ended["seconds"] > 0 and ended["ok"]
    assert verdict["passed"] is True and set(verdict["gates"].values()) <= {True, False} and verdict["gates"]
    assert {line["process"] for line in told(server, "swap", version=1)} == {"api-1", "api-2"}


def test_a_training_and_a_sampled_request_are_spans_at_the_collector(server: Server, collector: Collector) -> None:
    number, caller = f"{7:032x}", "00f067aa0ba902b7"
    header = {"traceparent": f"00-{number}-{caller}-01"}
    answer = httpx.post(f"{server.url}/predict", json={"records": [example_record()]}, headers=header)

    assert answer.json()["trace_id"] == number
    spans = wait_until("the request's spans", lambda: collector.of(number))
    assert set(spans) == {"POST predict", "decode", "predict", "record"} and spans["POST predict"].parent == caller
    (run,) = wait_until("the run's", lambda: [one for one in collector.spans if one.name == "bootstrap"])
    steps = {"collect the data", "job", "read", "fit to judge", "fit to serve", "export", "gates", "roll out"}
    assert steps < set(collector.of(run.trace_id)) and run.attributes["evergreen.run"] == 1
    assert set(heard(server, "training_ended", run=1)["phases"]) > {"fit to judge", "gates"}


def test_a_check_and_a_training_that_was_asked_for_are_lines_with_their_numbers(server: Server) -> None:
    with server.client() as client:
        frame = sample.frame(400, start=sample.TRAINING_ROWS)
        replay_traffic(server.url, frame, target=sample.TARGET, rate=0.0, label_delay_s=0.0)
        check = heard(server, "check", version=1)
        assert {"check", "rows", "quality", "train"} <= set(check)
        again = client.retrain("to see it in the log")
        wait_until("the training", lambda: client.run(again)["state"] in ("done", "failed"), 600)
        outcome = client.run(again)["outcome"]
        line = heard(server, "promotion" if outcome == "promoted" else "refusal", run=again)
        assert line["outcome"] == outcome and line["trigger"] == "manual" and line["seconds"] > 0


def test_an_erasure_and_a_switch_are_lines_and_nothing_is_told_twice(server: Server) -> None:
    with server.client() as client:
        ids = client.predict([example_record()], ["to-erase"]).ids
        erased = client.erase(ids)
        assert heard(server, "erase", run=erased)["rows"]["predictions"] == 1
        assert heard(server, "run", run=client.switch_adaptation("off"))["outcome"] == "off"
    for event, key in (("promotion", "run"), ("verdict", "run"), ("check", "check"), ("training_ended", "run")):
        numbers = [line[key] for line in told(server, event)]
        assert len(numbers) == len(set(numbers)), f"a {event} stands in the log twice"


def test_every_answer_has_a_request_id_and_an_errors_line_has_the_same(server: Server) -> None:
    good = httpx.post(f"{server.url}/predict", json={"records": [example_record()]})
    bad = httpx.post(f"{server.url}/predict", json={"records": [example_record(age="old")]})
    named = httpx.post(f"{server.url}/feedback", json={"labels": []}, headers={"x-request-id": "mine-7"})
    others = [httpx.get(f"{server.url}{path}") for path in ("/readyz", "/schema", "/metrics", "/nowhere", "/v2")]
    others += [httpx.get(f"{server.url}/manage/runs"), httpx.get(f"{server.url}/v2/nowhere")]

    assert good.status_code == 200 and named.headers["x-request-id"] == "mine-7"
    ids = [answer.headers["x-request-id"] for answer in (good, bad, *others)]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", one) for one in ids)
    for answer, route in (
        (bad, "/predict"),
        (named, "/feedback"),
        (others[-2], "/manage/runs"),
        (others[-1], "unknown"),
    ):
        given = answer.headers["x-request-id"]
        (line,) = wait_until(
            "its line", lambda given=given: [one for one in lines(server) if one.get("request") == given]
        )
        assert (line["route"], line["status"]) == (route, answer.status_code)


def test_nothing_that_was_sent_stands_in_any_log(server: Server) -> None:
    record, url = example_record(), server.url
    category = next(name for name, value in record.items() if isinstance(value, str))
    number = next(name for name, value in record.items() if isinstance(value, float))
    good = {"records": [{**record, category: WORD, number: NUMBER}] * 30}
    assert httpx.post(f"{url}/predict", json=good).status_code == 200
    v2 = {"inputs": [{"name": name, "shape": [1], "datatype": WORD, "data": [NUMBER]} for name in record]}
    bearer = {"authorization": f"Bearer {TOKEN}"}
    for body in (
        {"records": [{**record, number: WORD}]},
        {"records": [{**record, category: NUMBER}]},
        {"records": [{**record, WORD: NUMBER}]},
        {"records": WORD},
        {"records": [record], "ids": [WORD * 100]},
        {"labels": [{"id": WORD, "label": [NUMBER]}]},
        {"labels": [{"id": "x", "label": WORD, "observed_at": WORD}]},
        v2,
        WORD,
    ):
        for path in ("/predict", "/feedback", "/v2/models/evergreen/infer", f"/v2/models/{WORD}/infer"):
            for headers in (
                {},
                bearer,
                {"content-type": WORD},
                {"content-encoding": WORD},
                {"x-request-id": WORD * 30},
            ):
                assert httpx.post(f"{url}{path}", json=body, headers=headers).status_code < 500
    for path in (f"/{WORD}", f"/manage/{WORD}", f"/manage/runs/{WORD}", f"/v2/{WORD}", f"/manage/runs?token={TOKEN}"):
        assert httpx.get(f"{url}{path}", headers=bearer).status_code < 500
    own = known_token(server.settings)
    for path in (f"/manage/{WORD}", f"/manage/runs/{WORD}", f"/manage/labels/{WORD}", f"/manage/models/{WORD}"):
        assert httpx.get(f"{url}{path}", headers={"authorization": f"Bearer {own}"}).status_code < 500
    for garbage in (b"\x16\x03\x01" + WORD.encode(), f"GET /{WORD} HTTP/9.9\r\n{TOKEN}\r\n\r\n".encode()):
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(garbage)
            raw.recv(1000)
    with server.client() as client:
        run = client.erase(feature=category, value=WORD, why="the customer asked")
        wait_until("the erasure", lambda: client.run(run)["state"] in ("done", "failed"), 600)
        before = len(told(server, "check"))
        wait_until("two checks", lambda: len(told(server, "check")) >= before + 2, 600)

    logs = [server.log_path, *(path for path in Path(server.home).rglob("*.log") if path != server.log_path)]
    for log in logs:
        text = log.read_text(errors="replace")
        assert len(text) > 1000
        for secret in (WORD, WORD.lower(), str(NUMBER), f"{NUMBER:g}", TOKEN, own):
            assert secret not in text, f"{secret} stands in {log}: {text[text.index(secret) - 300 :][:600]}"
