"""`/docs.json`: the OpenAPI document of the service, made from the live schema, with every status it can answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from monitoring.fits import ID_CHARS, INSTANT_CHARS

if TYPE_CHECKING:
    from service.worker import Worker

TROUBLE: Final = {
    "400": "Malformed: the message names the place, `records[3].age`",
    "405": "Another method than POST",
    "413": "Too many records, or too many bytes",
    "415": "Another content type than application/json",
    "500": "An error of ours",
    "503": "No model in service yet, too many requests in flight, or stopping: see Retry-After",
}


def document(worker: Worker) -> dict[str, Any]:
    """The OpenAPI 3.1 document for the version this worker serves."""
    model = worker.model.current
    assert model is not None
    record = model.schema.json_schema(model.decoder.max_chars)
    target = record.pop("$defs", {}).get("label", {})
    ids = {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": ID_CHARS}}
    answer: dict[str, Any] = {
        "model": {"type": "string"},
        "version": {"type": "integer"},
        "ids": ids,
        "predictions": {"type": "array", "items": target or {}},
    }
    if model.classes:
        answer["probabilities"] = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
        answer["classes"] = {"type": "array", "const": list(model.classes)}
    label = {
        "type": "object",
        "required": ["id", "label"],
        "additionalProperties": False,
        "properties": {
            "id": ids["items"],
            "label": target or {"type": ["string", "number", "boolean"]},
            "observed_at": {
                "type": ["string", "number", "null"],
                "maxLength": INSTANT_CHARS,
                "description": "ISO 8601 or seconds since 1970, at most five minutes ahead of the server's clock",
            },
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Evergreen: {model.name}", "version": str(model.version)},
        "paths": {
            "/predict": {
                "post": _operation(
                    "predict",
                    "Predict records; a batch is answered whole or refused whole",
                    {
                        "type": "object",
                        "required": ["records"],
                        "additionalProperties": False,
                        "properties": {
                            "records": {
                                "type": "array",
                                "items": {"$ref": "#/components/schemas/Record"},
                                "minItems": 1,
                                "maxItems": worker.settings.serve.max_records,
                            },
                            "ids": {"anyOf": [ids, {"type": "null"}]},
                        },
                    },
                    "200",
                    {"type": "object", "required": ["model", "version", "ids", "predictions"], "properties": answer},
                    {**TROUBLE, "422": "A well-formed value that the model cannot take"},
                )
            },
            "/feedback": {
                "post": _operation(
                    "feedback",
                    "Send labels of earlier predictions; they are matched later",
                    {
                        "type": "object",
                        "required": ["labels"],
                        "additionalProperties": False,
                        "properties": {
                            "labels": {
                                "type": "array",
                                "items": label,
                                "minItems": 1,
                                "maxItems": worker.settings.serve.max_records,
                            }
                        },
                    },
                    "202",
                    {"type": "object", "required": ["accepted"], "properties": {"accepted": {"type": "integer"}}},
                    TROUBLE,
                )
            },
            "/schema": {"get": _page("schema", "The live features as JSON Schema")},
            "/readyz": {"get": _page("readyz", "Whether predictions can be answered")},
        },
        "components": {
            "schemas": {
                "Record": {key: value for key, value in record.items() if key not in ("$schema", "$id")},
                "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
            }
        },
    }


def _operation(
    name: str, summary: str, request: dict[str, Any], status: str, answer: dict[str, Any], trouble: dict[str, str]
) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": {
            status: {"description": "Done", "content": {"application/json": {"schema": answer}}},
            **{code: _error(text) for code, text in trouble.items()},
        },
    }


def _page(name: str, summary: str) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": "The page"}, "503": _error("No model in service")},
    }


def _error(text: str) -> dict[str, Any]:
    return {
        "description": text,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
