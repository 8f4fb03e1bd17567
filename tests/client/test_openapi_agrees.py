"""What the client asks for stands in the OpenAPI documents, and what it says of the answers is what they say."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest
from evergreen_client import Answers, AsyncClient, Client, StatusError, managed

from tests.client.conftest import Served
from tests.places import record
from tests.stand_in import TOKEN, listening
from training.artefact import PIPELINE

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


class Asked(NamedTuple):
    method: str
    path: str
    status: int


CALLS: dict[str, Callable[[Client], Any]] = {
    "predict": lambda client: client.predict([record("car")]),
    "feedback": lambda client: client.feedback([{"id": "loan-1", "label": True, "observed_at": "2026-01-31"}]),
    "schema": lambda client: client.schema(),
    "wanted": lambda client: client.wanted(),
    "metrics": lambda client: client.metrics(),
    "readiness": lambda client: client.readiness(),
    "status": lambda client: client.status(),
    "prediction": lambda client: client.prediction("loan 1"),
    "models": lambda client: client.models(),
    "version": lambda client: client.version(1),
    "compare": lambda client: client.compare(1, 1),
    "tag": lambda client: client.tag(1, ["fees-2026"], why="the new fees are in it"),
    "note": lambda client: client.note(1, "learnt the new fees"),
    "runs": lambda client: client.runs(5, kind="bootstrap", trigger="start", since=1.5, folded=True),
    "drift": lambda client: client.drift(5),
    "run": lambda client: client.run(1),
    "retrain": lambda client: client.retrain("the fees change"),
    "rollback": lambda client: client.rollback("the fees change"),
    "pause": lambda client: client.pause("an audit"),
    "resume": lambda client: client.resume("it is over"),
    "erase": lambda client: client.erase(["loan-1"], why="asked by the customer"),
    "replicas": lambda client: client.replicas(),
    "gone": lambda client: client.gone("a home/of before", "sold"),
    "adaptation": lambda client: client.adaptation(5),
    "switch_adaptation": lambda client: client.switch_adaptation("off", "an audit"),
    "promote": lambda client: client.promote(1, "on my word"),
    "push": lambda client: client.push(b"", "mine"),
    "wait": lambda client: client.wait(1, timeout_s=5),
}
"""Each method of the client, called."""

NOT_AS_THINGS_STAND = {"rollback": 409, "resume": 409, "gone": 404, "push": 400}
"""What this deployment refuses: there is one version, the loop is not paused, no such home, an empty file."""


@pytest.fixture
def asked(served: Served) -> Iterator[tuple[str, list[Asked]]]:
    """The service behind an address at which every request is written down with its answer's status."""
    seen: list[Asked] = []

    async def writing_down(scope: Any, receive: Any, send: Any) -> None:
        async def noting(message: Any) -> None:
            if message["type"] == "http.response.start":
                seen.append(Asked(scope["method"].lower(), scope["raw_path"].decode(), message["status"]))
            await send(message)

        await served.front(scope, receive, noting)

    with listening(writing_down) as url:
        yield url, seen


def documents(url: str) -> dict[str, Any]:
    """The paths and schemas of both documents, together."""
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {TOKEN}"}) as http:
        both = [http.get(path).raise_for_status().json() for path in ("/docs.json", "/manage/openapi.json")]
    schemas = {name: shape for each in both for name, shape in each["components"]["schemas"].items()}
    return {"paths": both[0]["paths"] | both[1]["paths"], "schemas": schemas}


def operation(found: dict[str, Any], one: Asked) -> dict[str, Any] | None:
    """What the documents say of the method and path that were asked for."""
    for path, methods in found["paths"].items():
        if re.fullmatch(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path)), one.path) and one.method in methods:
            described: dict[str, Any] = methods[one.method]
            return described
    return None


def test_every_method_of_the_client_is_called_here() -> None:
    public = {name for name, _ in inspect.getmembers(Client, inspect.isfunction) if not name.startswith("_")}

    assert public - {"close", "predict_file"} == set(CALLS)  # its own tests are beside this file


def test_both_clients_have_the_same_methods_with_the_same_signatures() -> None:
    for name in CALLS:
        one, other = getattr(Client, name), getattr(AsyncClient, name)
        assert inspect.signature(one) == inspect.signature(other) and inspect.iscoroutinefunction(other)
        assert one.__doc__ and one.__doc__ == other.__doc__


def test_each_request_of_the_client_and_its_answer_are_described(asked: tuple[str, list[Asked]]) -> None:
    url, seen = asked
    found = documents(url)
    seen.clear()
    with Client(url, TOKEN, retry_s=0) as client:
        for name, call in CALLS.items():
            before = len(seen)
            try:
                call(client)
            except StatusError as error:
                assert error.status == NOT_AS_THINGS_STAND.get(name), f"{name}: {error}"
            else:
                assert name not in NOT_AS_THINGS_STAND
            assert len(seen) > before or name == "wanted", f"{name} asked for nothing"

    for one in seen:
        described = operation(found, one)
        assert described is not None, f"{one.method} {one.path} is in no document"
        assert str(one.status) in described["responses"], f"{one} is not described"


def test_a_path_that_no_document_has_is_seen(asked: tuple[str, list[Asked]]) -> None:
    assert operation(documents(asked[0]), Asked("get", "/manage/models/1/sold", 200)) is None
    assert operation(documents(asked[0]), Asked("delete", "/manage/status", 200)) is None


# Types


def kinds_of(annotation: Any) -> set[str]:
    """JSON types that a Python annotation allows."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Required, typing.NotRequired):
        return kinds_of(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(kinds_of, typing.get_args(annotation)))
    if annotation is Any:
        return {"any"}
    if typing.is_typeddict(annotation) or origin is dict:
        return {"object"}
    if origin in (list, tuple) or annotation is list:
        return {"array"}
    known = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
    return {known[annotation], *(["integer"] if annotation is float else [])}


def kinds_in(shape: dict[str, Any], schemas: dict[str, Any]) -> set[str]:
    """JSON types that a schema allows; "any" when it says nothing of them."""
    if "$ref" in shape:
        return kinds_in(schemas[shape["$ref"].rpartition("/")[2]], schemas)
    if "anyOf" in shape:
        return set().union(*(kinds_in(each, schemas) for each in shape["anyOf"]))
    if "const" in shape or "enum" in shape:
        values = shape["enum"] if "enum" in shape else [shape["const"]]
        return set().union(*(kinds_of(type(value)) for value in values))
    said = shape.get("type", "any")
    return set(said) if isinstance(said, list) else {said}


def shape_of(schema: dict[str, Any], schemas: dict[str, Any]) -> tuple[set[str], dict[str, Any]]:
    """Required keys and properties of an object's schema, those of its parts too."""
    if "$ref" in schema:
        return shape_of(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    required, properties = set(schema.get("required", ())), dict(schema.get("properties", {}))
    for part in schema.get("allOf", ()):
        more, others = shape_of(part, schemas)
        required, properties = required | more, others | properties
    return required, properties


def wrong(kind: Any, schema: dict[str, Any], schemas: dict[str, Any]) -> list[str]:
    """Where a kind of answer promises what its schema does not."""
    required, properties = shape_of(schema, schemas)
    hints, sure = typing.get_type_hints(kind), getattr(kind, "__required_keys__", frozenset())
    found = [f"{kind.__name__}.{name} may be absent" for name in sorted(sure - required)]
    for name, annotation in hints.items():
        if name in properties:
            allowed, said = kinds_of(annotation), kinds_in(properties[name], schemas)
            if "any" not in said and not said <= allowed:
                found.append(f"{kind.__name__}.{name} is said to be {sorted(allowed)}, and may be {sorted(said)}")
    return found


def answer_of(found: dict[str, Any], path: str, status: str = "200") -> dict[str, Any]:
    content: dict[str, Any] = found["paths"][path]["get" if status == "200" else "post"]["responses"][status]["content"]
    shape: dict[str, Any] = content["application/json"]["schema"]
    return shape


def test_the_answer_types_are_those_of_the_documents(served: Served) -> None:
    found = documents(served.url)
    schemas = found["schemas"]
    pairs = [
        (managed.Status, answer_of(found, "/manage/status")),
        (managed.Models, answer_of(found, "/manage/models")),
        (managed.Version, schemas["Version"]),
        (managed.VersionInFull, answer_of(found, "/manage/models/{version}")),
        (managed.Note, schemas["KeptNote"]),
        (managed.Comparison, answer_of(found, "/manage/models/{version}/compare/{other}")),
        (managed.Run, answer_of(found, "/manage/runs/{run_id}")),
        (managed.Run, schemas["Run"]),
        (managed.Check, schemas["Check"]),
        (managed.Prediction, answer_of(found, "/manage/labels/{prediction_id}")),
        (managed.Replica, schemas["Replica"]),
        (Answers, schemas["PredictAnswer"]),
    ]

    assert [each for kind, schema in pairs for each in wrong(kind, schema, schemas)] == []
    answered = schemas["PredictAnswer"]
    assert set(Answers.__struct_fields__) == set(answered["properties"])
    sure = [f.name for f in msgspec.structs.fields(Answers) if f.required]
    assert sure == answered["required"]
    for path, methods in found["paths"].items():
        if path.startswith("/manage/") and "post" in methods:
            (status,) = (status for status in methods["post"]["responses"] if status.startswith("2"))
            assert methods["post"]["responses"][status]["content"]["application/json"]["schema"], path


def test_a_promise_that_a_document_does_not_keep_is_seen() -> None:
    class Odd(typing.TypedDict):
        id: str
        more: int

    schema = {"required": ["id"], "properties": {"id": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}

    assert wrong(Odd, schema, {}) == [
        "Odd.more may be absent",
        "Odd.id is said to be ['string'], and may be ['null', 'string']",
    ]


def test_the_answers_of_a_worker_are_of_the_types_that_the_client_says(served: Served) -> None:
    with Client(served.url, TOKEN) as client:
        client.note(1, "a note")
        client.retrain("so that there is a run")
        told: list[tuple[Any, Any]] = [
            (managed.Status, client.status()),
            (managed.Models, client.models()),
            (managed.VersionInFull, client.version(1)),
            (managed.ComparisonHere, client.compare(1, 1)),
            (list[managed.Run], client.runs(folded=True)),
            (list[managed.Check], client.drift()),
            (managed.Run, client.run(1)),
            (managed.Prediction, client.prediction("loan-1")),
            (list[managed.Replica], client.replicas()),
            (managed.Adaptations, client.adaptation()),
        ]
        pushed = client.push((served.place.registry.path(1) / PIPELINE).read_bytes(), "its own model")

    for kind, answer in told:
        assert msgspec.convert(answer, kind) == answer  # no key is without a name, none of another type
    assert served.place.runs.get(pushed).kind == "push"
