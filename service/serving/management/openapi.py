"""`/manage/openapi.json`: the OpenAPI document of the management API, with the token and every status it can answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from monitoring.window import LabelStatus
from service.process import DISTRIBUTION, installed_version
from service.serving.described import ANY, ERROR, JsonObject, errors, json_content, page, ref
from service.web.session import COOKIE, CSRF_HEADER
from training import marks
from training.comparison import Comparison
from training.homes import Home
from training.lineage import Lineage
from training.runs import Check, Run

if TYPE_CHECKING:
    from fastapi import FastAPI

PATH: Final = "/manage/openapi.json"

_ABOUT: Final = """What people do to the service: each write is a run with a name and a reason, and slow work is queued.

Each request needs a token: the one in `var/token`, or one of `evergreen token add NAME --scope read` (or `operate`,
`push`). A write answers 202 and the run that will do it; `GET /manage/runs/{run_id}` says what came of it. Predictions
and labels are described in [their own document](docs#predictions).
"""

EXAMPLES: Final[dict[str, Any]] = {
    "Why": {"why": "the fees change on Monday"},
    "Switch": {"state": "off", "why": "an audit"},
    "Erasure": {"ids": ["order-17"], "why": "asked by the customer"},
    "Accepted": {"run": 41},
    "Tags": {"add": ["fees-2026"], "remove": [], "why": "the new fees are in it"},
    "Note": {"text": "learnt the new fees"},
    "BeingMade": {"check": 17, "waiting": 1},
}
"""Of a component: what a person would send, or get."""

KNOWN_OR_NOT: Final = "/manage/labels/{prediction_id}"
"""Also of an id that nobody has sent it says what is known: nothing."""

_NAMED: Final = {
    "type": "object",
    "required": ["version", "created_at", "origin", "estimator", "quality", "engine", "snapshot", "tags"],
}

ANSWERS: Final[dict[str, JsonObject]] = {
    "/manage/models": {
        "type": "object",
        "required": ["model", "champion", "previous", "announced", "models"],
        "properties": {
            "model": {"type": "string"},
            **{name: {"type": ["integer", "null"]} for name in ("champion", "previous", "announced")},
            "models": {"type": "array", "items": ref("Version")},
        },
    },
    "/manage/models/{version}": {
        "allOf": [ref("Version"), {"type": "object", "required": ["manifest", "lineage", "notes"]}],
        "properties": {"lineage": ref("Lineage"), "notes": {"type": "array", "items": ref("KeptNote")}},
    },
    "/manage/models/{version}/compare/{other}": ref("Comparison"),
    "/manage/runs": {
        "type": "object",
        "required": ["runs"],
        "properties": {"runs": {"type": "array", "items": ref("Run")}},
    },
    "/manage/runs/{run_id}": ref("Run"),
    "/manage/drift": {
        "type": "object",
        "required": ["checks"],
        "properties": {"checks": {"type": "array", "items": ref("Check")}},
    },
    "/manage/labels/{prediction_id}": ref("LabelStatus"),
    "/manage/replicas": {
        "type": "object",
        "required": ["replicas"],
        "properties": {"replicas": {"type": "array", "items": ref("Replica")}},
    },
    "/manage/status": {
        "type": "object",
        "required": ["model", "champion", "previous", "ready", "workers", "replicas", "runs"],
        "properties": {
            "model": {"type": "string"},
            **{name: {"type": ["integer", "null"]} for name in ("champion", "previous", "adaptation")},
            "ready": {"type": "boolean"},
            "workers": {"type": "array", "items": {"type": "object"}},
            "replicas": {"type": "array", "items": ref("Replica")},
            "runs": {"type": "array", "items": {"type": "object"}, "description": "The newest five"},
        },
    },
}
"""Of a GET: the shape of its 200, where its function says only that it is an object."""


def document(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document of these routes, completed: its 422 is a 400 here, and the rest of what can happen."""
    found = get_openapi(title=app.title, version=installed_version(DISTRIBUTION), description=_ABOUT, routes=app.routes)
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            scope = "read" if method == "get" else "push" if path == "/manage/models" else "operate"
            operation["tags"] = [scope]
            first, _, more = operation["description"].partition("\n")
            operation["summary"] = first.removesuffix(".")
            operation["description"] = f"{more}\n\nNeeds a token with the scope `{scope}`.".strip()
            operation["responses"] = _responses(path, method, operation)
    found["paths"][PATH] = {"get": page("openapi", "read", "This document", json_content({"type": "object"}))}
    responses = found["paths"][PATH]["get"]["responses"]
    responses |= errors("401", "403")
    del found["paths"][PATH]["get"]["security"]
    schemas = found["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for name, example in EXAMPLES.items():
        if name in schemas:
            schemas[name]["examples"] = [example]
    schemas |= {"Error": ERROR, "Version": _NAMED, **_shapes()}
    found["tags"] = [{"name": name, "description": f"With the scope `{name}`"} for name in ("read", "operate", "push")]
    found["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "A token with the scope that the route needs"},
        "session": {
            "type": "apiKey",
            "in": "cookie",
            "name": COOKIE,
            "description": f"Who signed in at the page; each write needs the header `{CSRF_HEADER.decode()}`, too",
        },
    }
    found["security"] = [{"bearer": []}, {"session": []}]
    return found


def _responses(path: str, method: str, operation: JsonObject) -> JsonObject:
    """What the route says of itself, and what can happen to any request on its way."""
    own = {status: told for status, told in operation["responses"].items() if status != "422"}
    shape = ANSWERS.get(path) if method == "get" else None
    if shape is not None:
        own["200"] = {**own["200"], "content": json_content(shape)}
    for status, told in own.items():
        if status >= "400" and "content" not in told:
            told["content"] = json_content(ref("Error"))
    statuses = {*ANY, "401", "403", "503"}
    if "{" in path and path != KNOWN_OR_NOT:
        statuses.add("404")
    if method == "post":
        statuses.add("413")
    return {**errors(*statuses - own.keys()), **own}


def _shapes() -> JsonObject:
    """The shapes of a run, a check and a label, from what they are."""
    shapes: JsonObject = {}
    for kind, renamed in ((Run, {"document": "record"}), (Check, {})):
        shape = TypeAdapter(kind).json_schema()
        properties = {renamed.get(name, name): value for name, value in shape["properties"].items()}
        required = [renamed.get(name, name) for name in shape["required"]]
        shapes[kind.__name__] = {**shape, "properties": properties, "required": required}
    home = TypeAdapter(Home).json_schema()
    more = {"away": {"type": "boolean"}, "here": {"type": "boolean"}}
    shapes["Replica"] = {**home, "properties": home["properties"] | more, "required": [*home["required"], *more]}
    told = [LabelStatus, Lineage, Comparison, marks.Note]
    _, known = msgspec.json.schema_components(told, ref_template="#/components/schemas/{name}")
    known["KeptNote"] = known.pop("Note")  # `Note` is what is sent
    return {**shapes, **known}
