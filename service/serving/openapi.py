"""`/docs.json`: the OpenAPI document of the service, made from the live schema, with every status it can answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from monitoring.fits import ID_CHARS, INSTANT_CHARS
from monitoring.json_schema import json_schema

if TYPE_CHECKING:
    from service.serving.worker import Worker

WORDS: Final = {
    "400": "Malformed: the message names the place, `records[3].age`",
    "401": "A token is needed, and none was sent",
    "403": "This token may not do this",
    "404": "No such model or version here",
    "405": "Another method than this one",
    "408": "The request was not whole in time",
    "413": "Too many records, or too many bytes",
    "414": "The path and query are too long",
    "415": "Another content type than application/json, or a compressed body",
    "422": "A well-formed value that the model cannot take",
    "429": "Too many rows or labels from this source in this hour: see Retry-After",
    "431": "The headers are too long",
    "500": "An error of ours",
    "503": "No model in service yet, too many requests in flight, or stopping: see Retry-After",
}
READ: Final = ("401", "403", "405", "408", "414", "431", "500", "503")
"""What every route may answer."""
WRITE: Final = (*READ, "400", "413", "415", "429")

ID: Final = {"type": "string", "minLength": 1, "maxLength": ID_CHARS}
TENSOR: Final = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 2},
        "datatype": {"type": "string"},
        "data": {"type": "array"},
        "parameters": {"type": "object"},
    },
}
INFER: Final = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "inputs": {"type": "array", "items": TENSOR},
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": {"type": "object", "required": ["name"]}},
        "parameters": {"type": "object"},
    },
}
TRACE_ID: Final = {
    "type": "string",
    "pattern": "^[0-9a-f]{32}$",
    "description": "The trace of the request's `traceparent`, or one that began here; absent without either",
}
INFERRED: Final = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": TENSOR},
        "parameters": {
            "type": "object",
            "properties": {"adaptation": {"type": "integer"}, "trace_id": TRACE_ID},
            "description": "Which adaptation of the version's output answered, in which trace; absent without either",
        },
    },
}
ABOUT_MODEL: Final = {"type": "object", "required": ["name", "versions", "platform", "inputs", "outputs"]}


def document(worker: Worker) -> dict[str, Any]:
    """The OpenAPI 3.1 document for the version this worker serves."""
    model = worker.model.current
    assert model is not None
    record = json_schema(model.schema, model.decoder.max_chars)
    target = record.pop("$defs", {}).get("label", {})
    most = worker.settings.serve.max_records
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Evergreen: {model.name}", "version": str(model.version)},
        "paths": {
            "/predict": {"post": _predict(model.classes, target, most)},
            "/feedback": {"post": _feedback(target, most)},
            "/schema": {"get": _page("schema", "The live features as JSON Schema")},
            "/readyz": {"get": _page("readyz", "Whether predictions can be answered", kind="text/plain")},
            **_v2(model.name),
        },
        "components": {
            "schemas": {
                "Record": {key: value for key, value in record.items() if key not in ("$schema", "$id")},
                "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
            },
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _predict(classes: Sequence[Any], target: dict[str, Any], most: int) -> dict[str, Any]:
    """`/predict`: at most `most` records a request, each answered with a value of `target`."""
    ids = {"type": "array", "items": ID}
    answer: dict[str, Any] = {
        "model": {"type": "string"},
        "version": {"type": "integer"},
        "adaptation": {
            "type": "integer",
            "description": "Number of the adaptation of this version's output; absent when none is in force",
        },
        "trace_id": TRACE_ID,
        "ids": ids,
        "predictions": {"type": "array", "items": target},
    }
    if classes:
        answer["probabilities"] = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
        answer["classes"] = {"type": "array", "const": list(classes)}
    records = {"type": "array", "items": {"$ref": "#/components/schemas/Record"}, "minItems": 1, "maxItems": most}
    return _operation(
        "predict",
        "Predict records; a batch is answered whole or refused whole",
        {
            "type": "object",
            "required": ["records"],
            "additionalProperties": False,
            "properties": {"records": records, "ids": {"anyOf": [ids, {"type": "null"}]}},
        },
        "200",
        {"type": "object", "required": ["model", "version", "ids", "predictions"], "properties": answer},
        (*WRITE, "422"),
    )


def _feedback(target: dict[str, Any], most: int) -> dict[str, Any]:
    """`/feedback`: at most `most` labels a request, each a value of `target`."""
    label = {
        "type": "object",
        "required": ["id", "label"],
        "additionalProperties": False,
        "properties": {
            "id": ID,
            "label": target or {"type": ["string", "number", "boolean"]},
            "observed_at": {
                "type": ["string", "number", "null"],
                "maxLength": INSTANT_CHARS,
                "description": "ISO 8601 or seconds since 1970, at most five minutes ahead of the server's clock",
            },
        },
    }
    return _operation(
        "feedback",
        "Send labels of earlier predictions; they are matched later",
        {
            "type": "object",
            "required": ["labels"],
            "additionalProperties": False,
            "properties": {"labels": {"type": "array", "items": label, "minItems": 1, "maxItems": most}},
        },
        "202",
        {"type": "object", "required": ["accepted"], "properties": {"accepted": {"type": "integer"}}},
        WRITE,
    )


def _v2(model: str) -> dict[str, Any]:
    """The routes of the Open Inference Protocol."""
    named = [
        {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "enum": [model]}},
        {
            "name": "version",
            "in": "path",
            "required": True,
            "schema": {"type": "string", "pattern": "^[1-9][0-9]{0,8}$"},
        },
    ]
    found: dict[str, Any] = {
        "/v2": {"get": _page("v2", "Which protocol this is")},
        "/v2/health/live": {"get": _page("v2_live", "Whether the server runs")},
        "/v2/health/ready": {"get": _page("v2_ready", "Whether predictions can be answered", own_form=True)},
    }
    for path, name, parameters in (
        ("/v2/models/{model}", "v2_model", named[:1]),
        ("/v2/models/{model}/versions/{version}", "v2_version", named),
    ):
        infer = _operation(f"{name}_infer", "Predict tensors", INFER, "200", INFERRED, (*WRITE, "404", "422"))
        found[path] = {"parameters": parameters, "get": _page(name, "Inputs and outputs", ABOUT_MODEL, ("404",))}
        found[f"{path}/ready"] = {
            "parameters": parameters,
            "get": _page(f"{name}_ready", "Whether it is loaded", more=("404",)),
        }
        found[f"{path}/infer"] = {"parameters": parameters, "post": infer}
    return found


def _operation(
    name: str, summary: str, request: dict[str, Any], status: str, answer: dict[str, Any], trouble: tuple[str, ...]
) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "security": [{}, {"bearer": []}],  # a token is needed from elsewhere, or where `security.data_plane` says so
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": {
            status: {"description": "Done", "content": {"application/json": {"schema": answer}}},
            **{code: _error(code) for code in sorted(trouble)},
        },
    }


def _page(
    name: str,
    summary: str,
    answer: dict[str, Any] | None = None,
    more: tuple[str, ...] = (),
    *,
    kind: str = "application/json",
    own_form: bool = False,
) -> dict[str, Any]:
    schema = answer or {"type": "string" if kind == "text/plain" else "object"}
    responses = {
        "200": {"description": "The page", "content": {kind: {"schema": schema}}},
        **{code: _error(code) for code in sorted((*READ, *more))},
    }
    if own_form:  # the protocol has a form of its own for this
        responses["503"]["content"]["application/json"]["schema"] = {"type": "object"}
    return {"operationId": name, "summary": summary, "responses": responses}


def _error(code: str) -> dict[str, Any]:
    return {
        "description": WORDS[code],
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
