"""The two OpenAPI documents and the server say the same: each route stands in one of them, with each status it answers.

A real server is asked well and badly, over its socket; what it answers must be described, and what is described must
have been answered.
"""

from __future__ import annotations

import asyncio
import json
import re
import struct
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import schemathesis

from monitoring.store import connect, metadata, open_store
from service.report_files import MOST_ASKED, Refused, ReportFiles
from service.serving.management.application import application
from service.serving.pages import PAGES
from service.serving.routes import FRAMEWORK, TEMPLATES, template
from service.serving.worker import Worker
from tests.wired import Served, add_token, artefact, read_answer, request, serving, working
from training.artefact import PIPELINE
from training.homes import HomeReport, report_home
from training.lease import CONTROLLER, Lease
from training.registry import Registry
from training.runs import Runs

__all__ = ["artefact"]  # a fixture

Document = dict[str, Any]
Seen = dict[tuple[str, str], set[str]]
"""(method, path of a document) -> statuses."""

DOCUMENTS = ("/docs.json", "/manage/openapi.json")
FILLED = {
    "model": "evergreen",
    "version": "1",
    "other": "2",
    "run_id": "1",
    "check_id": "1",
    "home": "0a1b2c3d4e5f6071",
    "prediction_id": "order-17",
}
WRITTEN_BY_OTHERS = {"500"}
"""An error of ours has no request that asks for it."""


class Talk:
    """One server, and what its routes answered."""

    def __init__(self, served: Served, seen: Seen, token: str) -> None:
        self.port, self.seen, self.token = served.port, seen, token

    def ask(self, method: str, path: str, *sent: bytes) -> list[str]:
        """Statuses of these requests to an operation, each on a connection of its own, all at once."""

        async def one(content: bytes) -> str:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(content)
            answer = await asyncio.wait_for(read_answer(reader), 20)
            writer.close()
            if answer.status == 405:
                assert answer.headers["allow"] and method not in answer.headers["allow"]
            if answer.status == 401:
                assert answer.headers["www-authenticate"] == "Bearer"
            if answer.status >= 400 and (method, path, answer.status) != ("get", "/v2/health/ready", 503):
                assert set(answer.json) == {"error"}, answer
            return str(answer.status)

        async def everyone() -> list[str]:
            return await asyncio.gather(*map(one, sent))

        found = asyncio.run(everyone())
        self.seen[method, path].update(found)
        return found

    def said(self, path: str) -> Any:
        async def one() -> Any:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(self.request("get", path))
            answer = await asyncio.wait_for(read_answer(reader), 20)
            writer.close()
            return answer.json

        return asyncio.run(one())

    def request(self, method: str, path: str, body: Any = b"", **headers: str) -> bytes:
        for name, value in FILLED.items():
            path = path.replace(f"{{{name}}}", value)
        given = {"authorization": f"Bearer {self.token}", **headers}
        return request(body, path=path, method=method.upper(), **given)


def operations(document: Document) -> Iterator[tuple[str, str, Document]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method != "parameters":
                yield method, path, operation


def examples(document: Document, operation: Document) -> list[bytes]:
    """The bodies that the document gives as examples; one empty body for an operation without any."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return [b""]
    if "examples" in content:
        return [json.dumps(example["value"]).encode() for example in content["examples"].values()]
    schema = content["schema"]
    schema = next((one for one in schema.get("anyOf", [schema]) if "$ref" in one), schema)
    shape = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return [json.dumps(example).encode() for example in shape["examples"]]


def well_asked(talk: Talk, document: Document, model: bytes = b"") -> None:
    for method, path, operation in operations(document):
        if path == "/manage/models" and method == "post":
            talk.ask(method, path, talk.request(method, path, model))
            continue
        bodies = examples(document, operation)
        found = talk.ask(method, path, *(talk.request(method, path, body) for body in bodies))
        success = {status for status in operation["responses"] if status < "300"}
        if "requestBody" in operation and not path.startswith("/manage"):  # each example is true
            assert {*found} <= success, (method, path, found)


def badly_asked(talk: Talk, document: Document) -> None:
    """What can be wrong with a request to any route, and with a body."""
    for method, path, operation in operations(document):
        good = examples(document, operation)[0]
        whole = talk.request(method, path, good)
        line = whole.partition(b"\r\n")[0]
        sent = [
            whole.replace(b"\r\n", b"\r\nno header\r\n", 1),
            whole.replace(b"\r\n", b"\r\nx: " + b"y" * 20_000 + b"\r\n", 1),
            whole.replace(line, line.replace(b" HTTP", b"?" + b"y" * 20_000 + b" HTTP"), 1),
            whole[: whole.index(b"\r\n\r\n")],
            talk.request("patch", path, good),
        ]
        if operation.get("security", True):
            sent += [talk.request(method, path, good, authorization=given) for given in ("", "Bearer other")]
        if method == "post":
            sent += [
                talk.request(method, path, b"{"),
                talk.request(method, path, b"[]"),
                whole.replace(b"content-length: %d" % len(good), b"content-length: 99999999999"),
                talk.request(method, path, good, content_encoding="br"),
                talk.request(method, path, good, content_type="text/xml"),
                talk.request(method, path, b'{"why": 5}'),
            ]
        talk.ask(method, path, *sent)


def tables_gone(url: str) -> None:
    engine = connect(url)
    with engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            table.drop(connection)
    engine.dispose()


@contextmanager
def server(home: Path, artefact: Path, seen: Seen, **settings: str) -> Iterator[tuple[Worker, Talk]]:
    """A worker behind a socket; who asks needs a token."""
    home.mkdir()
    changed = {"SECURITY__DATA_PLANE": "tokens", "SECURITY__TOKEN": "t", "SERVE__READ_TIMEOUT_S": "1", **settings}
    with working(home, artefact, **changed) as worker, serving(worker) as served:
        add_token(worker.settings.tokens_file, "all", ["predict", "feedback", "read", "operate", "push"])
        yield worker, Talk(served, seen, "t")
        application(worker).state.managed.engine.dispose()


def exactly(document: Document, seen: Seen) -> list[str]:
    """Where document and server differ."""
    wrong = []
    for method, path, operation in operations(document):
        described, found = {*operation["responses"]}, seen[method, path]
        wrong += [f"{method} {path} answers {status}, which is not described" for status in sorted(found - described)]
        never = described - found - WRITTEN_BY_OTHERS
        wrong += [f"{method} {path} never answers {status}, which is described" for status in sorted(never)]
    return wrong


def test_the_data_plane_answers_what_its_document_says_and_nothing_else(tmp_path: Path, artefact: Path) -> None:
    seen: Seen = defaultdict(set)
    with server(tmp_path / "a", artefact, seen, SERVE__MAX_RECORDS="40") as (_, talk):
        document = talk.said("/docs.json")
        well_asked(talk, document)
        badly_asked(talk, document)
        for method, path, operation in operations(document):
            if method == "post":
                body = json.loads(examples(document, operation)[0])
                sent = (too_many(body, 41), beyond_float32(body))
                talk.ask(method, path, *(talk.request(method, path, one) for one in sent))
            if "{" in path:
                filled = path.replace("{version}", "99") if "{version}" in path else path.replace("{model}", "other")
                bodies = examples(document, operation)
                talk.ask(method, path, talk.request(method, filled, bodies[0]))
        binary, head_bytes = in_binary(document)
        path = "/v2/models/{model}/infer"
        sent = talk.request("post", path, binary, inference_header_content_length=head_bytes, content_type="x/y")
        assert talk.ask("post", path, sent) == ["200"]
    with server(tmp_path / "b", artefact, seen, SECURITY__ROWS_PER_HOUR="1", SECURITY__LABELS_PER_HOUR="1") as (
        _,
        talk,
    ):
        for method, path, operation in operations(document):
            if method == "post":
                sent = talk.request(method, path, examples(document, operation)[0])
                for _ in range(2):
                    talk.ask(method, path, sent)
    nothing = tmp_path / "nothing"  # as before the first version
    with server(tmp_path / "c", nothing, seen, SERVE__MAX_PENDING_BYTES="65536") as (_, talk):
        long = b" " * 70_000
        for method, path, operation in operations(document):
            body = examples(document, operation)[0]
            talk.ask(method, path, talk.request(method, path, body + long if method == "post" else body))

    assert exactly(document, seen) == []


def too_many(body: Document, rows: int) -> Document:
    """A request of so many rows or labels."""
    if "inputs" in body:
        return {"inputs": [{**one, "shape": [rows], "data": one["data"] * rows} for one in body["inputs"]]}
    return {name: value * rows for name, value in body.items()}


def beyond_float32(body: Document) -> Document:
    """A request whose `age` is a number, but none that a model can take; labels stay as they are."""
    if "inputs" in body:
        return {"inputs": [{**one, "data": [1e300]} if one["name"] == "age" else one for one in body["inputs"]]}
    return {"records": [{**one, "age": 1e300} for one in body["records"]]} if "records" in body else body


def in_binary(document: Document) -> tuple[bytes, str]:
    """The first example of an inference, its strings and first number in binary; and the length of its head."""
    operation = document["paths"]["/v2/models/{model}/infer"]["post"]
    body, tail = json.loads(examples(document, operation)[0]), b""
    for one in body["inputs"]:
        if one["datatype"] in ("FP64", "BYTES"):
            value = one.pop("data")[0]
            raw = struct.pack("<d", value) if one["datatype"] == "FP64" else value.encode()
            raw = raw if one["datatype"] == "FP64" else struct.pack("<I", len(raw)) + raw
            one["parameters"] = {"binary_data_size": len(raw)}
            tail += raw
    head = json.dumps(body).encode()
    return head + tail, str(len(head))


def test_the_management_answers_what_its_document_says_and_nothing_else(tmp_path: Path, artefact: Path) -> None:
    seen: Seen = defaultdict(set)
    with server(tmp_path / "a", artefact, seen) as (worker, talk):
        settings = worker.settings
        engine = open_store(settings.store_url)
        document = talk.said("/manage/openapi.json")
        model = (artefact / PIPELINE).read_bytes()
        well_asked(talk, document, model)  # nothing is there yet
        token = prepare(Registry(engine, settings.models_dir, "evergreen"), Runs(engine), engine, artefact)
        well_asked(talk, document, model)
        badly_asked(talk, document)
        for method, path, operation in operations(document):
            body = examples(document, operation)[0]
            for odd in ("0", "999", "x"):
                filled = re.sub(r"\{(version|other|run_id|check_id|home)\}", odd, path)
                long = filled.replace("{prediction_id}", "y" * 600)
                if long != path:
                    talk.ask(method, path, talk.request(method, long, body))
            if operation.get("parameters"):
                talk.ask(method, path, talk.request(method, f"{path}?limit=0&why={'y' * 1001}", body or b"PK"))
        reports(talk, ReportFiles(settings.reports_dir), Runs(engine))
        pause(Runs(engine), token)
        well_asked(talk, document, model)
        engine.dispose()
        tables_gone(settings.store_url)
        well_asked(talk, document, model)

    assert exactly(document, seen) == []


def prepare(registry: Registry, runs: Runs, engine: Any, artefact: Path) -> int:
    """Two versions, each in service in its turn, and a check; the token of the lease."""
    lease = Lease(engine, CONTROLLER, "test", 600)
    assert lease.acquire() and lease.token is not None
    for _ in range(2):
        version = registry.register(artefact, origin="push", now=time.time())
        registry.announce(version, lease.token)
        registry.flip(version, lease.token)
    runs.check(at=time.time(), version=1, drift=None, quality=None, decision={}, token=lease.token)
    report_home(engine, HomeReport(FILLED["home"], "alpha", "alpha:1", "0", 2, "", 0, 0.0), time.time())
    return lease.token


def pause(runs: Runs, token: int) -> None:
    """What the controller writes down when it has paused the loop."""
    given: dict[str, Any] = {"trigger": "manual", "who": "admin", "why": "an audit", "record": {}}
    runs.note("pause", outcome="paused", now=time.time(), token=token, **given)


def reports(talk: Talk, files: ReportFiles, runs: Runs) -> None:
    """What the controller says of the one check's report, in its place; and more wishes than it takes."""
    sent = talk.request("get", "/manage/reports/1")
    path = "/manage/reports/{check_id}"
    for status in (404, 410, 500):
        files.refuse(1, Refused(status, "no"))
        assert talk.ask("get", path, sent) == [str(status)]
    drawn = files.folder / "drawn"
    drawn.write_text("<html>")
    files.keep(1, drawn, time.time())
    assert talk.ask("get", path, sent) == ["200"]
    files.page(1).unlink()
    files.settle(1)
    for check in range(2, MOST_ASKED + 2):
        assert files.ask(check)
    assert talk.ask("get", path, sent) == ["503"]


# -- the documents themselves ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory, artefact: Path) -> dict[str, Document]:
    with server(tmp_path_factory.mktemp("documents") / "d", artefact, defaultdict(set)) as (_, talk):
        return {path: talk.said(path) for path in DOCUMENTS}


def served_paths() -> set[str]:
    """Every path that `TEMPLATES` knows, `*` for what may be any; without those that are the page's own (`/page/`)."""
    found = set()
    for pattern, _ in TEMPLATES:
        paths = [""]
        for piece in re.findall(r"\(([^()]*)\)(\??)|\[\^/\]\+|([^()\[]+)", pattern.pattern):
            choices, optional, plain = piece
            if choices:
                more = [choice.replace("[^/]+", "*").replace("\\", "") for choice in choices.split("|")]
                more += [""] if optional else []
            else:
                more = [plain.replace("\\", "")] if plain else ["*"]
            paths = [path + one for path in paths for one in more]
        found |= {path for path in paths if not path.startswith("/page/")}
    return found


def test_each_route_of_the_server_stands_in_exactly_one_document(documents: dict[str, Document]) -> None:
    described = [re.sub(r"\{[^}]*\}", "*", path) for document in documents.values() for path in document["paths"]]

    assert sorted(described) == sorted(served_paths() - {*PAGES, FRAMEWORK})
    assert [path for path in described if template(path) == "unknown"] == []


@pytest.mark.parametrize("path", DOCUMENTS)
def test_a_document_is_valid_and_its_examples_are_of_their_shapes(documents: dict[str, Document], path: str) -> None:
    document = documents[path]
    schemathesis.openapi.from_dict(document).validate()
    names = [operation["operationId"] for *_, operation in operations(document)]
    assert len({*names}) == len(names)
    assert all(operation["summary"] and operation["tags"] for *_, operation in operations(document))
    tags = {tag["name"] for tag in document["tags"]}
    assert {tag for *_, operation in operations(document) for tag in operation["tags"]} == tags

    checked = 0
    for part, where in parts(document):
        if "example" in part and "schema" in part:
            jsonschema_rs.validate({**part["schema"], "components": document["components"]}, part["example"])
            checked += 1
        if "$ref" in part:
            assert part["$ref"].startswith("#/"), where
            found = document
            for name in part["$ref"][2:].split("/"):
                found = found[name]
    for name, shape in document["components"]["schemas"].items():
        jsonschema_rs.meta.validate(shape)
        for example in shape.get("examples", []):
            jsonschema_rs.validate({**shape, "components": document["components"]}, example), name
    assert checked > 30


def parts(value: Any, where: str = "") -> Iterator[tuple[Document, str]]:
    if isinstance(value, dict):
        yield value, where
    for name, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from parts(inner, f"{where}/{name}")
