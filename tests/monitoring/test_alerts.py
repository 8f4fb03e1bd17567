from __future__ import annotations

import base64
import hmac
import logging
import socket
import threading
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest

from monitoring.alerts import Event, send, signing_key

EVENT = Event("0190-a", "drift", "began", "a b/c", 1_790_000_000.25, {"share": 0.3, "features": ("age",)})
BODY = {
    "event": "drift",
    "state": "began",
    "id": "0190-a",
    "model": "a b/c",
    "at": 1_790_000_000.25,
    "share": 0.3,
    "features": ["age"],
}


class Receiver(ThreadingHTTPServer):
    """A webhook on loopback that answers with the given statuses, the last one for ever, and keeps what it got."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses = [200]
        self.got: list[Any] = []
        self.heads: list[Message] = []
        self.bodies: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hooks/s3cret"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.heads.append(self.headers)
        self.server.bodies.append(body)
        self.server.got.append((self.path, self.headers["content-type"], msgspec.json.decode(body)))
        statuses = self.server.statuses
        self.send_response(statuses.pop(0) if len(statuses) > 1 else statuses[0])
        self.send_header("location", "/elsewhere")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_an_event_arrives_once_as_json(receiver: Receiver) -> None:
    assert send(receiver.url, EVENT, 5)
    assert receiver.got == [("/hooks/s3cret", "application/json", BODY)]


def test_an_event_is_a_cloud_event_whose_data_is_the_body(receiver: Receiver) -> None:
    send(receiver.url, EVENT, 5)

    head = receiver.heads[0]
    assert {name: head[name] for name in head if name.startswith("ce-")} == {
        "ce-specversion": "1.0",
        "ce-id": "0190-a",
        "ce-source": "/evergreen/a%20b%2Fc",
        "ce-type": "evergreen.drift.began",
        "ce-time": "2026-09-21T14:13:20.250000+00:00",
    }
    assert "webhook-signature" not in head


def test_with_a_secret_the_receiver_can_check_who_sent_it_also_on_a_retry(receiver: Receiver) -> None:
    receiver.statuses = [503, 204]
    secret = "whsec_" + base64.b64encode(b"twenty-four random bytes").decode()

    assert send(receiver.url, EVENT, 5, secret=secret, sleep=lambda _: None)

    for head, body in zip(receiver.heads, receiver.bodies, strict=True):
        signed = f"{head['webhook-id']}.{head['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.digest(b"twenty-four random bytes", signed, "sha256")).decode()
        assert head["webhook-signature"] == f"v1,{expected}"
        assert (head["webhook-id"], head["webhook-timestamp"]) == ("0190-a", "1790000000")


def test_a_secret_is_base64_behind_its_prefix_or_the_text_itself() -> None:
    assert signing_key("whsec_YWJj") == b"abc"
    assert signing_key("a plain secret") == b"a plain secret"
    with pytest.raises(ValueError, match="what follows whsec_ is no base64"):
        signing_key("whsec_not base64!")


def test_a_receiver_in_trouble_is_tried_again_after_the_given_pauses(receiver: Receiver) -> None:
    receiver.statuses = [503, 429, 204]
    pauses: list[float] = []
    assert send(receiver.url, EVENT, 5, backoff_s=(0.5, 2.0), sleep=pauses.append)
    assert pauses == [0.5, 2.0]
    assert len(receiver.got) == 3


def test_a_receiver_that_stays_in_trouble_is_given_up_after_two_retries(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.statuses = [500]
    assert not send(receiver.url, EVENT, 5, sleep=lambda _: None)
    assert len(receiver.got) == 3
    assert caplog.messages == [f"alert not sent to 127.0.0.1:{receiver.server_port}: status 500 after 3 attempt(s)"]


@pytest.mark.parametrize("status", [302, 307, 400, 404])
def test_an_answer_that_a_retry_cannot_change_is_final_and_redirects_are_not_followed(
    receiver: Receiver, status: int
) -> None:
    receiver.statuses = [status]
    assert not send(receiver.url, EVENT, 5, sleep=lambda _: None)
    assert len(receiver.got) == 1


def test_the_secret_in_the_address_is_never_logged(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    send(receiver.url, EVENT, 5)
    receiver.statuses = [404]
    send(receiver.url, EVENT, 5)
    send("ftp://host/s3cret", EVENT, 5)
    assert len(caplog.messages) == 2
    assert "s3cret" not in caplog.text


def test_nobody_listening_is_false_and_not_an_error(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert not send(f"http://127.0.0.1:{port}/", EVENT, 5, sleep=lambda _: None)
    assert caplog.messages == [f"alert not sent to 127.0.0.1:{port}: ConnectError after 3 attempt(s)"]


def test_a_receiver_that_never_answers_is_given_up_at_the_timeout(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts into its backlog, reads nothing
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        assert not send(url, EVENT, 0.05, backoff_s=())
    assert "ReadTimeout after 1 attempt(s)" in caplog.text


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("file:///etc/passwd", "the webhook's address begins with file; use http:// or https://"),
        ("hooks.example.org/a", "the webhook's address begins with no scheme; use http:// or https://"),
        ("https:///a", "the webhook's address has no host; write it like https://host/path"),
        ("http://host:port/a", "Port could not be cast to integer value as 'port'"),
        ("http://[::1/a", "Invalid IPv6 URL"),
    ],
)
def test_an_address_that_is_no_webhook_is_refused(url: str, problem: str, caplog: pytest.LogCaptureFixture) -> None:
    assert not send(url, EVENT, 5)
    assert caplog.messages == [f"alert not sent: {problem}"]


def test_an_event_that_is_no_json_is_refused(receiver: Receiver) -> None:
    assert not send(receiver.url, EVENT._replace(facts={"why": object()}), 5)
    assert receiver.got == []
