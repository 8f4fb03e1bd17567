"""Signing in to the page: a cookie for a token, ended with it; writes need a header; a reader changes nothing."""

from __future__ import annotations

import asyncio
import json
import logging
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest

from monitoring.store import open_store
from service import keys
from service.serving.front import Front
from service.serving.worker import Worker
from service.web.session import COOKIE, FAILURES, LASTS_S, Sessions
from tests.fronts import nothing_beyond
from tests.wired import add, artefact, request, revoke_token, serving, talk, worker_with_store, working
from training.runs import Runs

__all__ = ["artefact", "worker_with_store"]  # fixtures


def ask(
    worker: Worker, method: str, path: str, body: Any = None, *, base: str = "http://page", **headers: str
) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(Front(nothing_beyond, lambda: worker))
        async with httpx.AsyncClient(transport=transport, base_url=base) as client:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            return await client.request(method, path, json=body, headers=given)

    return asyncio.run(send())


def sign_in(worker: Worker, token: str, **more: Any) -> tuple[dict[str, Any], str]:
    """What the session is, and the cookie."""
    answer = ask(worker, "POST", "/page/session", {"token": token}, **more)
    assert answer.status_code == 200, answer.text
    return answer.json(), answer.headers["set-cookie"].partition(";")[0]


def test_a_token_becomes_a_cookie_that_scripts_cannot_read_and_other_sites_cannot_send(worker: Worker) -> None:
    token = add(worker, "ana", "read", "operate")

    answer = ask(worker, "POST", "/page/session", {"token": token})

    told = answer.json()
    assert (told["name"], set(told["scopes"])) == ("ana", {"read", "operate"})
    assert told["csrf"] and told["expires_at"] > 0
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=") and token not in cookie
    assert {"HttpOnly", "SameSite=Strict", "Path=/", f"Max-Age={LASTS_S}"} <= set(cookie.split("; ")[1:])
    assert "Secure" not in cookie
    assert answer.headers["cache-control"] == "no-store"
    again = ask(worker, "GET", "/page/session", cookie=cookie.partition(";")[0])
    assert again.json() == told


@pytest.mark.parametrize("way", [{"base": "https://page"}, {"x_forwarded_proto": "https"}])
def test_the_cookie_of_a_request_by_https_is_sent_by_https_alone(worker: Worker, way: dict[str, str]) -> None:
    token = add(worker, "ana", "read")

    answer = ask(worker, "POST", "/page/session", {"token": token}, **way)  # type: ignore[arg-type]

    assert "; Secure" in answer.headers["set-cookie"]


def test_who_is_not_signed_in_gets_no_data_and_no_session(worker: Worker) -> None:
    assert ask(worker, "GET", "/page/session").status_code == 401
    assert ask(worker, "GET", "/page/state").status_code == 401
    assert ask(worker, "GET", "/page/events").status_code == 401
    forged = ask(worker, "GET", "/page/state", cookie=f"{COOKIE}=e30.{'0' * 64}")
    assert forged.status_code == 401 and "sign in" in forged.json()["error"]


def test_every_answer_has_one_request_id_and_a_refusal_s_line_has_the_same(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    _, cookie = sign_in(worker, add(worker, "ana", "read"))
    good = ask(worker, "GET", "/page/session", cookie=cookie, x_request_id="mine")
    assert (good.status_code, good.headers.get_list("x-request-id")) == (200, ["mine"])
    for method, path, status in (("GET", "/page/nothing", 404), ("POST", "/page/state", 405)):
        caplog.clear()
        answer = ask(worker, method, path, cookie=cookie)
        made = answer.headers.get_list("x-request-id")
        assert (answer.status_code, len(made)) == (status, 1)
        lines = [record for record in caplog.records if hasattr(record, "request")]
        assert [line.request for line in lines] == made  # type: ignore[attr-defined]
        assert not [line for line in lines if path in line.getMessage()]


def test_a_wrong_token_is_refused_and_never_logged(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        answer = ask(worker, "POST", "/page/session", {"token": "a-wrong-one-7351"})

    assert answer.status_code == 401 and "set-cookie" not in answer.headers
    assert "failed" in caplog.text and "7351" not in caplog.text
    assert "7351" not in answer.text


@pytest.mark.parametrize("body", [{"tokn": "x"}, {"token": 5}, [], "x"])
def test_a_sign_in_that_is_none_is_malformed(worker: Worker, body: Any) -> None:
    answer = ask(worker, "POST", "/page/session", body)

    assert answer.status_code == 400 and "token" in answer.json()["error"]


def test_many_failed_sign_ins_have_to_wait_and_a_good_one_after_the_wait_is_taken(worker: Worker) -> None:
    token, sessions = add(worker, "ana", "read"), worker.sessions
    for at in range(FAILURES):
        with pytest.raises(keys.Denied):
            sessions.sign_in("wrong", "10.0.0.9", 1000.0 + at)

    with pytest.raises(Exception, match="failed sign-ins") as refused:
        sessions.sign_in(token, "10.0.0.9", 1010.0)

    assert refused.value.status == 429 and refused.value.retry_after_s == 51  # type: ignore[attr-defined]
    assert sessions.sign_in(token, "10.0.0.8", 1010.0)[0].name == "ana"  # another address is not held up
    assert sessions.sign_in(token, "10.0.0.9", 1062.0)[0].name == "ana"


def test_every_worker_of_the_deployment_understands_the_cookie_and_another_deployment_does_not(
    worker: Worker, tmp_path_factory: pytest.TempPathFactory, artefact: Path
) -> None:
    token = add(worker, "ana", "read")
    _, cookie = sign_in(worker, token)

    second = Sessions(worker.settings, keys.Keys(worker.settings))

    assert second.asker({b"cookie": cookie.encode()}).name == "ana"
    assert stat.S_IMODE((worker.settings.var / "session.key").stat().st_mode) == 0o600
    with working(tmp_path_factory.mktemp("other"), artefact) as other:
        keys.write_atomically(other.settings.tokens_file, worker.settings.tokens_file.read_bytes(), mode=0o600)
        other.keys.look()
        with pytest.raises(keys.Denied):
            other.sessions.asker({b"cookie": cookie.encode()})


def test_a_revoked_token_ends_its_sessions(worker: Worker) -> None:
    _, cookie = sign_in(worker, add(worker, "ana", "read"))
    assert ask(worker, "GET", "/page/session", cookie=cookie).status_code == 200

    revoke_token(worker.settings.tokens_file, "ana")
    worker.keys.look()

    for path in ("/page/session", "/page/state", "/manage/status"):
        assert ask(worker, "GET", path, cookie=cookie).status_code == 401


def test_a_session_ends_after_its_time(worker: Worker) -> None:
    token = add(worker, "ana", "read")
    asker, cookie = worker.sessions.sign_in(token, "here", 1000.0)
    header = {b"cookie": f"{COOKIE}={cookie}".encode()}

    assert worker.sessions.asker(header, 1000.0 + LASTS_S - 1) == asker
    with pytest.raises(keys.Denied):
        worker.sessions.asker(header, 1000.0 + LASTS_S)


@pytest.mark.parametrize("place", ["content", "signature", "order"])
def test_a_changed_cookie_is_none(worker: Worker, place: str) -> None:
    _, cookie = sign_in(worker, add(worker, "ana", "read"))
    name, _, value = cookie.partition("=")
    content, _, signature = value.partition(".")
    turned = {
        "content": f"{content[:-2]}AA.{signature}",
        "signature": f"{content}.{'0' * len(signature)}",
        "order": f"{signature}.{content}",
    }[place]

    assert ask(worker, "GET", "/page/session", cookie=f"{name}={turned}").status_code == 401


def test_a_write_with_the_cookie_needs_the_header_and_stands_in_the_runs_with_who_and_why(worker: Worker) -> None:
    session, cookie = sign_in(worker, add(worker, "ana", "read", "operate"))
    told = {"why": "the fees changed"}

    without = ask(worker, "POST", "/manage/retrain", told, cookie=cookie)
    wrong = ask(worker, "POST", "/manage/retrain", told, cookie=cookie, x_evergreen_csrf="0" * 64)
    done = ask(worker, "POST", "/manage/retrain", told, cookie=cookie, x_evergreen_csrf=session["csrf"])

    assert (without.status_code, wrong.status_code, done.status_code) == (403, 403, 202), done.text
    assert "x-evergreen-csrf" in without.json()["error"]
    engine = open_store(worker.settings.store_url)
    found = Runs(engine).list()
    engine.dispose()
    assert [(run.kind, run.who, run.why, run.state) for run in found] == [
        ("retrain", "ana", "the fees changed", "queued")
    ]


def test_the_header_of_another_session_does_not_do(worker: Worker) -> None:
    _, cookie = sign_in(worker, add(worker, "ana", "read", "operate"))
    other, _ = sign_in(worker, add(worker, "ben", "read", "operate"))

    answer = ask(worker, "POST", "/manage/retrain", {"why": ""}, cookie=cookie, x_evergreen_csrf=other["csrf"])

    assert answer.status_code == 403


def test_a_reader_sees_everything_and_changes_nothing(worker: Worker) -> None:
    session, cookie = sign_in(worker, add(worker, "viewer", "read"))

    assert ask(worker, "GET", "/manage/status", cookie=cookie).status_code == 200
    assert ask(worker, "GET", "/page/state", cookie=cookie).json()["scopes"] == ["read"]
    for path in ("retrain", "rollback", "pause", "resume", "models/1/promote", "adaptation", "erasures"):
        answer = ask(worker, "POST", f"/manage/{path}", {"why": "x"}, cookie=cookie, x_evergreen_csrf=session["csrf"])
        assert answer.status_code == 403, path
    engine = open_store(worker.settings.store_url)
    assert Runs(engine).list() == []
    engine.dispose()


def test_who_may_only_predict_does_not_see_the_page(worker: Worker) -> None:
    _, cookie = sign_in(worker, add(worker, "shop", "predict"))

    answer = ask(worker, "GET", "/page/state", cookie=cookie)

    assert answer.status_code == 403 and "read" in answer.json()["error"]


def test_signing_out_takes_the_cookie_back(worker: Worker) -> None:
    _, cookie = sign_in(worker, add(worker, "ana", "read"))

    answer = ask(worker, "DELETE", "/page/session", cookie=cookie)

    assert answer.status_code == 204
    assert "Max-Age=0" in answer.headers["set-cookie"]


def test_a_bearer_token_needs_no_header(worker: Worker) -> None:
    token = add(worker, "ci", "read", "operate")

    assert ask(worker, "GET", "/page/state", authorization=f"Bearer {token}").status_code == 200
    assert ask(worker, "POST", "/manage/retrain", {}, authorization=f"Bearer {token}").status_code == 202


def test_over_a_socket_the_page_s_files_come_without_a_token_and_its_data_does_not(worker: Worker) -> None:
    token = add(worker, "ana", "read")
    with serving(worker) as served:
        pages = talk(
            served.port, [request(b"", path="/", method="GET"), request(b"", path="/page/state", method="GET")], 2
        )
        signed = talk(served.port, [request({"token": token}, path="/page/session")], 1)[0]
        cookie = signed.headers["set-cookie"].partition(";")[0]
        state = talk(served.port, [request(b"", path="/page/state", method="GET", cookie=cookie)], 1)[0]

    assert [page.status for page in pages] == [200, 401]
    policy = pages[0].headers["content-security-policy"]
    assert "script-src 'self'" in policy and "unsafe" not in policy
    assert state.status == 200 and json.loads(state.body)["name"] == "ana"
