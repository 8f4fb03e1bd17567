"""The Open Inference Protocol in `/docs.json`: tensors in JSON, and in its binary extension."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from service.serving.described import ADAPTATION, BODY, TRACE_ID, JsonObject, errors, json_content, page, ref
from service.serving.tensors import BINARY, DATATYPES, PLATFORMS, TAKEN, VERSION, metadata

if TYPE_CHECKING:
    from service.serving.described import Described

HEAD_LENGTH: Final = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "description": "With binary tensors: how many bytes of the body are its JSON head",
    "schema": {"type": "integer", "minimum": 0},
}

_INFER: Final = """One input a feature, `[n]` or `[n, 1]`, at most {most} rows; null (or NaN) is an unknown value.

**JSON**: the values stand in `data`.

**Binary** (`tritonclient` sends it unless told otherwise): an input has `parameters.binary_data_size` in the place of
`data`. Its bytes stand behind the JSON head, in the order of the inputs, little-endian; a string (BYTES) is its length
in four bytes, then UTF-8. `Inference-Header-Content-Length` says where the head ends. The two forms may be mixed.

The answer is JSON; `outputs` picks some of it. The rows are recorded as those of `/predict`: the output `ids` has the
ids that labels name.
"""


def paths(of: Described) -> JsonObject:
    """The routes of the protocol."""
    name = of.model.name
    model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "enum": [name]}}
    version = {
        "name": "version",
        "in": "path",
        "required": True,
        "description": "A version that this worker holds",
        "schema": {"type": "string", "pattern": "^[1-9][0-9]{0,8}$"},
        "example": str(of.model.version),
    }
    server = {"name": "evergreen", "version": VERSION, "extensions": ["binary_tensor_data"]}
    ready = page(
        "v2_ready", "health", "Whether predictions can be answered", json_content(ref("Ready"), {"ready": True})
    )
    ready["responses"]["503"] = {  # the protocol has a form of its own for this
        "description": "No model in service yet, or stopping",
        "content": json_content(ref("Ready"), {"ready": False}),
    }
    found: JsonObject = {
        "/v2": {"get": page("v2", "V2", "Which protocol this is", json_content({"type": "object"}, server))},
        "/v2/health/live": {
            "get": page(
                "v2_live", "health", "Whether this worker runs", json_content({"type": "object"}, {"live": True})
            )
        },
        "/v2/health/ready": {"get": ready},
    }
    for path, operation, parameters, whose in (
        ("/v2/models/{model}", "v2_model", [model], "the version in service"),
        ("/v2/models/{model}/versions/{version}", "v2_version", [model, version], "one version"),
    ):
        about = json_content(ref("ModelMetadata"), metadata(of.model))
        there = json_content(ref("ModelReady"), {"name": name, "ready": True})
        missing = ("404", "503")
        found[path] = {
            "parameters": parameters,
            "get": page(operation, "V2", f"Inputs and outputs of {whose}", about, missing),
        }
        found[f"{path}/ready"] = {
            "parameters": parameters,
            "get": page(f"{operation}_ready", "V2", f"Whether {whose} is loaded", there, missing),
        }
        found[f"{path}/infer"] = {"parameters": parameters, "post": _infer(of, f"{operation}_infer", whose)}
    return found


def _infer(of: Described, name: str, whose: str) -> JsonObject:
    body = {"inputs": inputs(of)}
    first = of.model.schema.names[0]
    return {
        "operationId": name,
        "tags": ["V2"],
        "summary": f"Predict tensors with {whose}",
        "description": _INFER.format(most=of.most),
        "security": of.security,
        "parameters": [HEAD_LENGTH],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": ref("InferRequest"),
                    "examples": {
                        "one": {"summary": "One row", "value": body},
                        "ids": {
                            "summary": "Only the predictions",
                            "value": {**body, "id": "call-1", "outputs": [{"name": "predictions"}]},
                        },
                    },
                },
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        },
        "responses": {
            "200": {"description": "The outputs", "content": json_content(ref("InferAnswer"), _answer(of))},
            **errors(*BODY, "404", "422", messages={"400": f"input '{first}': 2 values for shape [1]"}),
        },
    }


def inputs(of: Described) -> list[JsonObject]:
    """One row of tensors, with values typical of the training data."""
    return [
        {"name": feature.name, "shape": [1], "datatype": DATATYPES[feature.kind], "data": [of.record[feature.name]]}
        for feature in of.model.schema.features
    ]


def _answer(of: Described) -> JsonObject:
    data: dict[str, list[Any]] = {"predictions": [of.answered], "probabilities": of.chances, "ids": ["order-17"]}
    outputs = [
        {**output, "shape": [1 if side < 0 else side for side in output["shape"]], "data": data[output["name"]]}
        for output in metadata(of.model)["outputs"]
    ]
    return {"model_name": of.model.name, "model_version": str(of.model.version), "outputs": outputs}


def shapes(of: Described) -> JsonObject:
    """The protocol's requests and answers, with this model's inputs."""
    kinds = {feature.kind for feature in of.model.schema.features}
    taken = sorted({datatype for kind in kinds for datatype in TAKEN[kind]})
    shape = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 2}
    described = {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"type": "string"},
            "datatype": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer"}, "description": "-1: any number of rows"},
        },
    }
    return {
        "Ready": {"type": "object", "required": ["ready"], "properties": {"ready": {"type": "boolean"}}},
        "ModelReady": {
            "type": "object",
            "required": ["name", "ready"],
            "properties": {"name": {"type": "string"}, "ready": {"type": "boolean"}},
        },
        "TensorMetadata": described,
        "ModelMetadata": {
            "type": "object",
            "required": ["name", "versions", "platform", "inputs", "outputs"],
            "properties": {
                "name": {"type": "string"},
                "versions": {"type": "array", "items": {"type": "string"}},
                "platform": {"type": "string", "enum": list(PLATFORMS.values())},
                "inputs": {"type": "array", "items": ref("TensorMetadata")},
                "outputs": {"type": "array", "items": ref("TensorMetadata")},
            },
        },
        "InferInput": {
            "type": "object",
            "required": ["name", "shape", "datatype"],
            "properties": {
                "name": {"type": "string", "enum": list(of.model.schema.names)},
                "shape": shape,
                "datatype": {"type": "string", "enum": taken},
                "data": {"type": "array", "description": "Row by row; absent when it is binary"},
                "parameters": {
                    "type": "object",
                    "properties": {
                        "binary_data_size": {
                            "type": ["integer", "null"],
                            "description": f"Bytes behind the head. Binary can be {', '.join(sorted(BINARY))}, BYTES",
                        }
                    },
                },
            },
        },
        "InferRequest": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "inputs": {"type": "array", "items": ref("InferInput")},
                "id": {"type": "string", "maxLength": 1024, "description": "Sent back"},
                "outputs": {
                    "type": ["array", "null"],
                    "maxItems": 16,
                    "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
                },
                "parameters": {"type": "object", "description": "Of other servers; not looked at"},
            },
        },
        "InferOutput": {
            "type": "object",
            "required": ["name", "shape", "datatype", "data"],
            "properties": {
                "name": {"type": "string"},
                "shape": shape,
                "datatype": {"type": "string"},
                "data": {"type": "array"},
            },
        },
        "InferAnswer": {
            "type": "object",
            "required": ["model_name", "model_version", "outputs"],
            "properties": {
                "model_name": {"type": "string"},
                "model_version": {"type": "string"},
                "id": {"type": "string"},
                "outputs": {"type": "array", "items": ref("InferOutput")},
                "parameters": {"type": "object", "properties": {"adaptation": ADAPTATION, "trace_id": TRACE_ID}},
            },
        },
    }
