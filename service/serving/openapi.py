"""`/docs.json`: the OpenAPI document of the data plane, made from the live schema, with every status it can answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from monitoring.fits import ID_CHARS, INSTANT_CHARS
from monitoring.json_schema import json_schema
from service.serving import openapi_tables, openapi_v2
from service.serving.described import (
    ADAPTATION,
    BODY,
    ERROR,
    TRACE_ID,
    Described,
    JsonObject,
    errors,
    json_content,
    page,
    ref,
)
from service.serving.seen import MOST_ROWS

if TYPE_CHECKING:
    from service.serving.worker import Worker

ID: Final = {"type": "string", "minLength": 1, "maxLength": ID_CHARS}

TAGS: Final = (
    ("predictions", "Predictions, the labels that come later, and what the model takes"),
    ("V2", "The Open Inference Protocol, for clients of KServe and Triton"),
    ("health", "For load balancers, orchestrators and Prometheus"),
)

_ABOUT: Final = """Predictions of the model in service, and the labels that come later.

Errors are `{"error": "what, where, and what to do"}`. An `X-Request-Id` that is sent is sent back. From this machine no
token is needed unless `security.data_plane` says so; from elsewhere `evergreen token add NAME --scope predict` (or
`feedback`) makes one. The management of the service is described in [its own document](docs#management).
"""


def document(worker: Worker) -> dict[str, Any]:
    """The OpenAPI 3.1 document for the version this worker serves."""
    model = worker.model.current
    assert model is not None
    record = json_schema(model.schema, model.decoder.max_chars)
    target = record.pop("$defs", {}).get("label", {})
    bearer: JsonObject = {"bearer": []}
    security = {"auto": [{}, bearer], "open": [{}, bearer], "tokens": [bearer]}[worker.settings.security.data_plane]
    of = Described(model, target, worker.settings.serve.max_records, security)
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Evergreen: {model.name}", "version": str(model.version), "description": _ABOUT},
        "tags": [{"name": name, "description": words} for name, words in TAGS],
        "paths": {
            "/predict": {"post": _predict(of)},
            "/feedback": {"post": _feedback(of)},
            **_pages(of),
            **openapi_v2.paths(of),
        },
        "components": {
            "schemas": {
                "Record": {key: value for key, value in record.items() if key not in ("$schema", "$id")},
                "Error": ERROR,
                **_shapes(of),
                **openapi_v2.shapes(of),
            },
            "parameters": {"RequestId": REQUEST_ID},
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token with the scope `predict`, or `feedback` for labels",
                }
            },
        },
    }


REQUEST_ID: Final = {
    "name": "X-Request-Id",
    "in": "header",
    "description": "Sent back with the answer; what is longer, or has other characters, is left out",
    "schema": {"type": "string", "pattern": "^[!-~]{1,200}$"},
}
ECHOED: Final = {"X-Request-Id": {"description": "As it was sent", "schema": {"type": "string"}}}


ENCODING: Final = {
    "name": "Content-Encoding",
    "in": "header",
    "description": "How the body is compressed; unpacked it is bounded by `serve.max_request_bytes`, too",
    "schema": {"type": "string", "enum": ["gzip", "zstd", "identity"]},
}
ACCEPT: Final = {
    "name": "Accept",
    "in": "header",
    "description": "Which kind the answer is; one that names none of them gets the kind of the body",
    "schema": {"type": "string"},
}
_PREDICT: Final = """At most {most} records. Each prediction is recorded under its id, for the label to come.

The body is JSON, an Arrow IPC stream, CSV or NDJSON, by its `Content-Type`; all are checked alike, and the answer comes
in the same kind unless `Accept` names another of the four. Errors are JSON. In the three others a column (or key) `id`
holds the ids, unless the model has a feature of that name.
"""


def _predict(of: Described) -> JsonObject:
    body = {"records": [of.record]}
    answer = {"model": of.model.name, "version": of.model.version, "ids": ["order-17"], "predictions": [of.answered]}
    if of.model.classes:
        answer |= {"probabilities": [of.chances], "classes": list(of.model.classes)}
    first = of.model.schema.names[0]
    messages = {"400": f"records[0].{first}: missing; every feature is required, null stands for an unknown value"}
    return {
        "operationId": "predict",
        "tags": ["predictions"],
        "summary": "Predict records; a batch is answered whole or refused whole",
        "description": _PREDICT.format(most=of.most),
        "security": of.security,
        "parameters": [{"$ref": "#/components/parameters/RequestId"}, ENCODING, ACCEPT],
        "requestBody": {
            "required": True,
            "content": {
                **openapi_tables.bodies(of),
                "application/json": {
                    "schema": ref("PredictRequest"),
                    "examples": {
                        "one": {"summary": "One record", "value": body},
                        "named": {"summary": "With an id of yours", "value": {**body, "ids": ["order-17"]}},
                        "tried": {
                            "summary": "A try-out, with warnings",
                            "value": {**body, "record": False, "warnings": True},
                        },
                    },
                },
            },
        },
        "responses": {
            "200": {
                "description": "The answers, in the order of the records",
                "headers": {**ECHOED, **openapi_tables.HEADERS},
                "content": {**json_content(ref("PredictAnswer"), answer), **openapi_tables.answers(of)},
            },
            **errors(*BODY, "422", messages=messages),
        },
    }


def _feedback(of: Described) -> JsonObject:
    label = {"id": "order-17", "label": of.answered}
    timed = {**label, "observed_at": "2026-01-31T12:00:00Z"}
    return {
        "operationId": "feedback",
        "tags": ["predictions"],
        "summary": "Send labels of earlier predictions; they are matched later",
        "description": f"At most {of.most} labels. A label may come before its prediction, and may correct another.",
        "security": of.security,
        "parameters": [{"$ref": "#/components/parameters/RequestId"}],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": ref("FeedbackRequest"),
                    "examples": {
                        "now": {"summary": "Observed now", "value": {"labels": [label]}},
                        "earlier": {"summary": "Observed earlier", "value": {"labels": [timed]}},
                    },
                }
            },
        },
        "responses": {
            "202": {
                "description": "They stand in the record",
                "headers": ECHOED,
                "content": json_content(ref("Accepted"), {"accepted": 1}),
            },
            **errors(*BODY, messages={"400": 'labels[0].label: "often" is not a class of this model'}),
        },
    }


def _shapes(of: Described) -> JsonObject:
    """The requests and answers of `/predict` and `/feedback`, for at most `of.most` records and labels."""
    ids = {"type": "array", "items": ID}
    answer: JsonObject = {
        "model": {"type": "string"},
        "version": {"type": "integer"},
        "adaptation": ADAPTATION,
        "trace_id": TRACE_ID,
        "ids": ids,
        "predictions": {"type": "array", "items": of.target},
    }
    answer["warnings"] = {
        "type": "array",
        "items": ref("Warned"),
        "description": "Only when they were asked for, and in JSON",
    }
    if of.model.classes:
        answer["probabilities"] = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
        answer["classes"] = {"type": "array", "const": list(of.model.classes)}
    records = {"type": "array", "items": ref("Record"), "minItems": 1, "maxItems": of.most}
    label = {
        "type": "object",
        "required": ["id", "label"],
        "additionalProperties": False,
        "properties": {
            "id": ID,
            "label": of.target or {"type": ["string", "number", "boolean"]},
            "observed_at": {
                "type": ["string", "number", "null"],
                "maxLength": INSTANT_CHARS,
                "description": "ISO 8601 or seconds since 1970, at most five minutes ahead of the server's clock",
            },
        },
    }
    return {
        "PredictRequest": {
            "type": "object",
            "required": ["records"],
            "additionalProperties": False,
            "properties": {
                "records": records,
                "ids": {"anyOf": [ids, {"type": "null"}]},
                "record": {
                    "type": "boolean",
                    "default": True,
                    "description": "false for a try-out: it is answered, and not recorded; a label finds no prediction",
                },
                "warnings": {
                    "type": "boolean",
                    "default": False,
                    "description": "Whether the answer tells what of the records lies outside what training saw",
                },
            },
        },
        "PredictAnswer": {
            "type": "object",
            "required": ["model", "version", "ids", "predictions"],
            "properties": answer,
        },
        "Warned": {
            "type": "object",
            "description": "What of one column lies outside what training saw",
            "required": ["column", "kind", "count", "rows", "message"],
            "properties": {
                "column": {"type": "string"},
                "kind": {"enum": ["category", "range"]},
                "count": {"type": "integer", "description": "Rows that it is said of"},
                "rows": {"type": "array", "items": {"type": "integer"}, "maxItems": MOST_ROWS},
                "message": {"type": "string"},
            },
        },
        "Label": label,
        "FeedbackRequest": {
            "type": "object",
            "required": ["labels"],
            "additionalProperties": False,
            "properties": {
                "labels": {"type": "array", "items": ref("Label"), "minItems": 1, "maxItems": of.most},
            },
        },
        "Accepted": {
            "type": "object",
            "required": ["accepted"],
            "properties": {"accepted": {"type": "integer", "description": "How many labels"}},
        },
    }


def _pages(of: Described) -> JsonObject:
    """What is known of the model, and what machines ask for."""
    text = {"text/plain": {"schema": {"type": "string"}}}
    live = page("livez", "health", "Whether this worker runs", text)
    return {
        "/schema": {
            "get": page(
                "schema",
                "predictions",
                "The live features as JSON Schema",
                json_content({"type": "object", "required": ["model", "version", "properties"]}),
                ("503",),
            )
        },
        "/docs.json": {
            "get": page("docs", "predictions", "This document", json_content({"type": "object"}), ("503",)),
        },
        "/livez": {"get": live},
        "/healthz": {"get": {**live, "operationId": "healthz"}},
        "/readyz": {
            "get": page("readyz", "health", "Whether predictions can be answered, and if not why", text, ("503",)),
        },
        "/metrics": {
            "get": page(
                "metrics",
                "health",
                "What Prometheus reads",
                text,
                description="All processes of this server; docs/reference/metrics.md has a table of the series.",
            ),
        },
    }
