"""Tokens: made, found, refused and revoked; what each may do; whose labels are whose."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest

from monitoring.drain import Drainer
from monitoring.store import open_store
from monitoring.window import label_status, read_window
from service import keys, tokens
from service.configuration import load
from service.keys import Keys, TokenError, management_token
from service.serving.front import Front
from service.serving.gate import BODY_BYTES
from service.serving.worker import Worker
from tests.artefacts import example_record, sample_schema
from tests.fronts import nothing_beyond
from tests.wired import add, artefact, records, request, revoke_token, serving, talk, worker_with_store, working
from training.artefact import PIPELINE

__all__ = ["artefact", "worker_with_store"]  # fixtures

INFER = "/v2/models/evergreen/infer"
ELSEWHERE = ("10.1.2.3", 4321)
HERE = ("127.0.0.1", 4321)


def ask(
    worker: Worker,
    method: str,
    path: str,
    body: Any = None,
    *,
    token: str = "",
    client: tuple[str, int] = HERE,
    **headers: str,
) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(Front(nothing_beyond, lambda: worker), client=client)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as asking:
            given = {"content-type": "application/json", **headers}
            if token:
                given["authorization"] = f"Bearer {token}"
            content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
            return await asking.request(method, path, content=content, headers=given)

    return asyncio.run(send())


def test_only_the_hash_of_a_token_is_kept_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    settings = load(environ={"EVERGREEN_HOME": str(tmp_path)})
    with tokens.store_of(settings) as store:
        made = [tokens.add(store, name, ["feedback", "predict"], 5.0) for name in ("crm", "shop")]

    path = settings.tokens_file
    for kept in (path.read_bytes(), (settings.var / "evergreen.db").read_bytes()):
        assert all(token.encode() not in kept for token in made)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [(t.name, t.scopes, t.created_at) for t in sorted(keys.read(path), key=lambda token: token.name)] == [
        ("crm", ("predict", "feedback"), 5.0),
        ("shop", ("predict", "feedback"), 5.0),
    ]
    assert len(set(made)) == 2 and all(len(token) >= 43 for token in made)


@pytest.mark.parametrize(
    ("name", "scopes", "words"),
    [
        ("admin", ["read"], "another than admin"),
        ("", ["read"], "no name"),
        ('x"y', ["read"], "no name"),
        ("crm", ["write"], "no scope"),
        ("crm", [], "needs a scope"),
    ],
)
def test_what_cannot_be_a_token_is_said(tmp_path: Path, name: str, scopes: list[str], words: str) -> None:
    with tokens.store_of(load(environ={"EVERGREEN_HOME": str(tmp_path)})) as store:
        with pytest.raises(TokenError, match=words):
            tokens.add(store, name, scopes, 0.0)
        with pytest.raises(TokenError, match="there is no token"):
            tokens.revoke(store, "crm", 0.0)


def test_tokens_change_without_a_restart_and_a_damaged_file_changes_nothing(tmp_path: Path) -> None:
    settings = load(environ={"EVERGREEN_HOME": str(tmp_path)})
    known = Keys(settings)

    def add(at: float) -> str:
        with tokens.store_of(settings) as store:
            return tokens.add(store, "crm", ["feedback"], at)

    def revoke(**which: bool) -> int:
        with tokens.store_of(settings) as store:
            return tokens.revoke(store, "crm", 9.0, **which)

    token = add(1.0)
    header = f"Bearer {token}".encode()
    with pytest.raises(keys.Denied, match="not, or no longer"):
        known.require("feedback", header)

    known.look()
    assert known.require("feedback", header) == "crm"
    assert known.require("operate", f"bearer {management_token(settings).value}".encode()) == "admin"

    settings.tokens_file.write_text("{")
    known.look()
    assert known.require("feedback", header) == "crm"

    second, third = add(2.0), add(3.0)
    known.look()
    assert {known.require("feedback", f"Bearer {each}".encode()) for each in (token, second, third)} == {"crm"}
    assert revoke(old=True) == 2
    known.look()
    assert known.require("feedback", f"Bearer {third}".encode()) == "crm"
    assert revoke() == 1
    known.look()
    for each in (token, second, third):
        with pytest.raises(keys.Denied):
            known.require("feedback", f"Bearer {each}".encode())


@pytest.mark.parametrize(("plane", "here", "there"), [("auto", 200, 401), ("open", 200, 200), ("tokens", 401, 401)])
def test_who_may_predict_without_a_token(tmp_path: Path, artefact: Path, plane: str, here: int, there: int) -> None:
    with working(tmp_path, artefact, SECURITY__DATA_PLANE=plane) as worker:
        body = {"records": [example_record()]}
        for path in ("/predict", INFER):
            content = body if path == "/predict" else {"inputs": []}
            good = 200 if path == "/predict" else 400
            for client, status in (
                (HERE, here),
                (("::1", 1), here),
                (("::ffff:127.0.0.1", 1), here),
                (ELSEWHERE, there),
            ):
                answer = ask(worker, "POST", path, content, client=client)
                assert answer.status_code == (good if status == 200 else status)
        proxied = ask(worker, "POST", "/predict", body, **{"x-forwarded-for": "203.0.113.7"})
        assert proxied.status_code == there
        with serving(worker) as served:
            for sent, status in ((request(body), here), (request(body, x_forwarded_for="203.0.113.7"), there)):
                assert talk(served.port, [sent], 1)[0].status == status


@pytest.mark.parametrize("short", [True, False])
def test_a_token_that_is_sent_must_be_good_also_where_none_is_needed(worker: Worker, short: bool) -> None:
    good, other = add(worker, "app", "predict"), add(worker, "crm", "feedback")

    with serving(worker, short=short) as served:
        statuses = [
            talk(served.port, [request(records(1), authorization=given)], 1)[0].status
            for given in (f"Bearer {good}", f"Bearer {other}", "Bearer x", "Basic abc", "Bearer ")
        ]
        revoke_token(worker.settings.tokens_file, "app")
        worker.keys.look()
        after = talk(served.port, [request(records(1), authorization=f"Bearer {good}")], 1)[0]

    assert statuses == [200, 403, 403, 401, 401]
    assert after.status == 403 and "evergreen token" in after.json["error"]


def test_labels_keep_the_name_of_their_source_and_only_trusted_ones_join(worker: Worker) -> None:
    token = add(worker, "crm", "feedback")
    body = {"records": [example_record()] * 3, "ids": ["a", "b", "c"]}
    assert ask(worker, "POST", "/predict", body).status_code == 200

    def label(id_: str, value: int, at: float, given: str = "") -> None:
        sent = {"labels": [{"id": id_, "label": value, "observed_at": at}]}
        assert ask(worker, "POST", "/feedback", sent, token=given).status_code == 202

    label("a", 1, 10.0, token)
    label("a", 0, 20.0)  # a later correction from nobody knows whom
    label("b", 0, 10.0)
    engine = open_store(worker.settings.store_url)
    with Drainer(worker.settings.spool_dir, engine) as drainer:
        assert drainer.drain(0.0).labels == 3

    schema = sample_schema()[0]
    assert [label.source for label in label_status(engine, "a").labels] == ["", "crm"]
    everyone = read_window(engine, schema, labelled=True)
    trusted = read_window(engine, schema, labelled=True, sources=("crm",))
    assert dict(zip(everyone["_id"], everyone["_label"], strict=True)) == {"a": 0, "b": 0}
    assert dict(zip(trusted["_id"], trusted["_label"], strict=True)) == {"a": 1}
    assert len(read_window(engine, schema, sources=("crm",))) == 3
    engine.dispose()


def test_a_source_may_be_limited_and_the_workers_of_a_server_tell_each_other(tmp_path: Path, artefact: Path) -> None:
    limits = {"SECURITY__ROWS_PER_HOUR": "5", "SECURITY__LABELS_PER_HOUR": "2"}
    with working(tmp_path, artefact, **limits) as worker:
        token = add(worker, "app", "predict", "feedback")
        rows = {"records": [example_record()] * 3}
        answers = [ask(worker, "POST", "/predict", rows, token=given) for given in (token, "", token, "")]
        assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
        assert "app" in answers[2].json()["error"] and "rows_per_hour" in answers[2].json()["error"]
        assert 1 <= int(answers[2].headers["retry-after"]) <= 3600
        with serving(worker) as served:
            assert talk(served.port, [request(rows)], 1)[0].status == 429
        labels = {"labels": [{"id": "a", "label": 1}, {"id": "b", "label": 1}]}
        assert [ask(worker, "POST", "/feedback", labels, token=token).status_code for _ in range(2)] == [202, 429]

        second = Worker(worker.settings, worker.run_dir, "api-2")
        try:
            worker._reported = None
            worker._look(2e9)
            second._look(2e9)  # says something, and hears nothing of this hour yet
            second.sources._turn(worker.sources.hour)
            second._reported = None
            second._look(2e9 + 10)
            assert ask(second, "POST", "/predict", rows, token=token).status_code == 429
        finally:
            second.close()


SCOPED = [
    ("GET", "/manage/models", "read"),
    ("GET", "/manage/openapi.json", "read"),
    ("GET", "/manage/adaptation", "read"),
    ("POST", "/manage/models", "push"),
    ("POST", "/manage/retrain", "operate"),
    ("POST", "/manage/erasures", "operate"),
]


@pytest.mark.parametrize(("method", "path", "scope"), SCOPED)
def test_each_call_of_manage_needs_its_scope(
    worker: Worker, artefact: Path, method: str, path: str, scope: str
) -> None:
    others = [each for each in keys.SCOPES if each != scope]
    with_all_but_it, with_it = add(worker, "others", *others), add(worker, "one", scope)
    body = {"ids": ["a"]} if "erasures" in path else {} if method == "POST" else None
    body = (artefact / PIPELINE).read_bytes() if scope == "push" else body

    assert ask(worker, method, path, body).status_code == 401
    assert ask(worker, method, path, body, token="x").status_code == 403
    refused = ask(worker, method, path, body, token=with_all_but_it)
    assert refused.status_code == 403 and scope in refused.json()["error"] and "others" in refused.json()["error"]
    assert ask(worker, method, path, body, token=with_it).status_code in (200, 202)


def test_the_name_of_the_token_stands_in_the_run_whatever_a_header_says(worker: Worker) -> None:
    boss, reader = add(worker, "boss", "operate"), add(worker, "eve", "read")

    run = ask(worker, "POST", "/manage/retrain", {"why": "new"}, token=boss, **{"x-evergreen-who": "mallory"}).json()
    found = ask(worker, "GET", f"/manage/runs/{run['run']}", token=reader).json()

    assert (found["who"], found["why"]) == ("boss", "new")


def test_manage_looks_at_the_token_and_the_length_before_the_body(worker: Worker) -> None:
    token = add(worker, "boss", "operate", "push")
    read = 0

    async def run(path: str, given: str, size: int, length: bool) -> tuple[int, int]:
        nonlocal read
        read, status = 0, 0

        async def receive() -> dict[str, Any]:
            nonlocal read
            read += 2**16
            return {"type": "http.request", "body": b" " * 2**16, "more_body": read < size}

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)

        headers = [(b"authorization", b"Bearer " + given.encode())] if given else []
        headers += [(b"content-type", b"application/json")]
        headers += [(b"content-length", b"%d" % size)] if length else []
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
        await Front(nothing_beyond, lambda: worker)({**scope, "headers": headers, "client": HERE}, receive, send)
        return status, read

    for path in ("/manage/retrain", "/manage/models"):
        for given, status in (("", 401), ("x", 403)):
            assert asyncio.run(run(path, given, 2**30, True)) == (status, 0)
            assert asyncio.run(run(path, given, 2**30, False)) == (status, 0)
    assert asyncio.run(run("/manage/retrain", token, 2**30, True)) == (413, 0)
    status, read = asyncio.run(run("/manage/retrain", token, 2**30, False))
    assert status == 413 and read <= BODY_BYTES + 2**17
    assert asyncio.run(run("/manage/models", token, 2**31, True)) == (413, 0)


BAD = [
    ("GET", "/manage/runs/999999999999999999999999999999", None),
    ("GET", "/manage/runs/٣", None),
    ("GET", "/manage/runs?before=999999999999999999999999999999", None),
    ("GET", "/manage/runs?kind=%00", None),
    ("GET", "/manage/runs?limit=1e400", None),
    ("GET", "/manage/models/999999999999999999999999999999", None),
    ("GET", "/manage/models/-1", None),
    ("GET", "/manage/labels/%00", None),
    ("GET", "/manage/labels/%ff%ed%a0%80", None),
    ("GET", "/manage/reports/../../etc/passwd", None),
    ("GET", "/manage/reports/9999999999999999999", None),
    ("POST", "/manage/models/99999999999999999999/promote", {}),
    ("POST", "/manage/models?why=%00", b"x"),
    ("POST", "/manage/retrain", b'{"why": "\\u0000"}'),
    ("POST", "/manage/retrain", b'{"why": "\\ud800"}'),
    ("POST", "/manage/retrain", b"\xff"),
    ("POST", "/manage/retrain", b"[" * 100_000),
    ("POST", "/manage/retrain", b'{"why": ' + b"9" * 10_000 + b"}"),
    ("POST", "/manage/erasures", b'{"ids": ["\\u0000"]}'),
    ("POST", "/manage/erasures", b'{"ids": ["\\udfff"]}'),
    ("POST", "/manage/erasures", b'{"feature": "age", "value": NaN}'),
    ("POST", "/manage/erasures", b'{"feature": "age", "value": 1e999}'),
    ("POST", "/manage/erasures", b'{"feature": "\\ud800", "value": "x"}'),
    ("POST", "/manage/erasures", b'{"feature": "age", "value": [1]}'),
    ("DELETE", "/manage/models", None),
]


def test_bad_input_of_manage_is_a_4xx_that_says_what(store_url: str, tmp_path: Path, artefact: Path) -> None:
    open_store(store_url).dispose()
    with working(tmp_path, artefact, STORE__URL=store_url) as worker:
        token = management_token(worker.settings).value
        for method, path, body in BAD:
            answer = ask(worker, method, path, body, token=token)
            found = (method, path, body, answer.status_code, answer.text)
            assert 400 <= answer.status_code < 500 or "labels" in path, found
            assert answer.status_code < 500, found
            assert answer.status_code == 200 or set(answer.json()) == {"error"}, found
            assert len(answer.content) < 3000, found


def test_an_error_of_ours_in_manage_is_json_with_the_request_in_the_log(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    token = management_token(worker.settings).value
    engine = open_store(worker.settings.store_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("insert into runs (kind, state, trigger, who, why, created_at, record) "
                                   "values ('check', 'done', 'x', 'x', 'x', 1, 'not json')")  # fmt: skip
    engine.dispose()

    answers = [ask(worker, "GET", "/manage/runs", token=token, **given) for given in ({"x-request-id": "r-7"}, {})]

    for answer in answers:
        assert answer.status_code == 500
        assert answer.headers["x-request-id"] in answer.json()["error"]
        assert answer.headers["x-request-id"] in caplog.text
    assert answers[0].headers["x-request-id"] == "r-7"


def test_interrupted_pushes_leave_nothing_and_leftovers_are_swept(worker: Worker, artefact: Path) -> None:
    from service.control.pushes import sweep

    token = add(worker, "ci", "push")

    async def interrupted() -> None:
        sent = iter([b"x" * 1000, b"y" * 1000])

        async def receive() -> dict[str, Any]:
            part = next(sent, None)
            if part is None:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": part, "more_body": True}

        async def send(message: Any) -> None:
            raise AssertionError("nobody is there to be answered")

        headers = [(b"authorization", b"Bearer " + token.encode()), (b"content-length", b"5000")]
        path = "/manage/models"
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
        await Front(nothing_beyond, lambda: worker)({**scope, "headers": headers, "client": HERE}, receive, send)

    folder = worker.settings.pushes_dir
    asyncio.run(interrupted())
    assert ask(worker, "POST", "/manage/models", b"", token=token).status_code == 400
    assert list(folder.iterdir()) == []

    queued = ask(worker, "POST", "/manage/models", (artefact / PIPELINE).read_bytes(), token=token)
    assert queued.status_code == 202
    (folder / "left.skops").write_bytes(b"of a worker that was killed")
    engine = open_store(worker.settings.store_url)
    with (folder / "arriving.skops").open("wb") as arriving:
        import fcntl

        fcntl.flock(arriving, fcntl.LOCK_EX)
        assert sweep(worker.settings, engine) == 1
        assert len(list(folder.iterdir())) == 2
    assert sweep(worker.settings, engine) == 1
    assert len(list(folder.iterdir())) == 1
    engine.dispose()
