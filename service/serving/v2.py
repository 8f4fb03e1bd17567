"""The Open Inference Protocol (V2) on the same predictor: one named input a column.

Source: github.com/kserve/open-inference-protocol, REST; tensors may also come in its binary extension, which
`tritonclient` uses unless told otherwise. NaN is a missing number; null a missing value of any kind in JSON.
"""

from __future__ import annotations

import re
import struct
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from monitoring.decode import InvalidRequest
from service.serving.answer import INLINE_BYTES, INLINE_ROWS, MOST_TEXT_BYTES, Asked
from service.serving.asgi import Receive, Scope, Send
from service.serving.large import check_values
from service.serving.request import JSON as IN_JSON
from service.serving.request import LENGTH_DIGITS, TRACEPARENT, Reject, body_encoding
from service.serving.routes import JSON, respond, template
from service.serving.tensors import BINARY, TAKEN, VERSION, InferRequest, Tensor, metadata, output_type

if TYPE_CHECKING:
    from monitoring.columns import ArrowBatch
    from service.serving.answer import Lane
    from service.serving.predictor import ServedModel


COLUMN_BYTES: Final = 16 * 1024
"""Requests with binary tensors above this size, some 150 rows, are columns from end to end."""

_VERSION: Final = re.compile(r"[0-9]{1,9}")
_decode = msgspec.json.Decoder(InferRequest).decode


async def answer_v2(lane: Lane, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer any path below `/v2`."""
    path, method = scope["path"], scope["method"]
    parts = [part for part in path.split("/") if part][1:]
    wanted = "POST" if parts[-1:] == ["infer"] else "GET"
    if method != wanted:
        raise Reject(405, f"{template(path)} takes {wanted}, not {method}", allow=wanted)
    status, body = await _route(lane, parts, scope, receive)
    await respond(send, status, msgspec.json.encode(body) if isinstance(body, dict) else body, JSON)


async def _route(lane: Lane, parts: list[str], scope: Scope, receive: Receive) -> tuple[int, dict[str, Any] | bytes]:
    worker = lane.worker
    match parts:
        case []:
            return 200, {"name": "evergreen", "version": VERSION, "extensions": ["binary_tensor_data"]}
        case ["health", "live"]:
            return 200, {"live": True}
        case ["health", "ready"]:
            ready = worker.why_not_ready is None
            return (200 if ready else 503), {"ready": ready}
        case ["models", name, *rest]:
            version, rest = (rest[1], rest[2:]) if rest[:1] == ["versions"] and len(rest) > 1 else (None, rest)
            model = _model(lane, name, version)
            match rest:
                case []:
                    return 200, metadata(model)
                case ["ready"]:
                    return 200, {"name": name, "ready": True}
                case ["infer"]:
                    return 200, await _infer(lane, model, scope, receive)
    raise Reject(404, f"{scope['path'][:80]!r}: no such route of the V2 protocol; see /v2/models/{{model}}")


def _model(lane: Lane, name: str, version: str | None) -> ServedModel:
    ours = lane.worker.settings.model.name
    if name != ours:
        raise Reject(404, f"model {name[:60]!r} is not served here; this deployment serves {ours!r}")
    current = lane.worker.model.current
    if current is None:
        raise Reject(503, lane.worker.why_not_ready or "not ready", 1)
    if version is None:
        return current
    held = lane.worker.model.get(int(version)) if _VERSION.fullmatch(version) else None
    if held is None:
        loaded = ", ".join(map(str, lane.worker.model.ready))
        raise Reject(404, f"version {version[:20]!r} of {ours!r} is not loaded; loaded are {loaded}")
    return held


async def _infer(lane: Lane, model: ServedModel, scope: Scope, receive: Receive) -> bytes:
    header, traceparent, encoding = None, b"", b""
    for name, value in scope["headers"]:
        if name == b"inference-header-content-length":
            header = value
        elif name == TRACEPARENT:
            traceparent = value
        elif name == b"content-encoding":
            encoding = body_encoding(value)
    source = lane.source("predict", scope)
    async with lane.whole_body(scope, receive, encoding) as body:
        started = time.perf_counter()

        def read() -> tuple[InferRequest, Asked | ArrowBatch]:
            request, binary = _read(body, header, model)
            if large and header is not None:
                from service.serving.binary import read_columns

                columns = read_columns(model, request, binary, lane.max_bytes)
                if columns is not None:
                    return request, columns
            batch = model.decoder.from_columns(_columns(request, binary, model))
            return request, Asked(batch, batch.to_json(), started, source, lane.trace_of(traceparent))

        large = len(body) > (INLINE_BYTES if header is None else COLUMN_BYTES)
        request, asked = await lane.in_thread(read) if large else read()
        if isinstance(asked, Asked):
            answer, rows = await lane.predict(model, asked), asked.batch.n
        else:
            from service.serving.tables import answer_columns

            answered = await lane.answer_large(
                model, source, started, lambda: answer_columns(lane, model, IN_JSON, asked, traceparent)[1]
            )
            answer, rows = answered.body, answered.rows
        if rows > INLINE_ROWS:
            return await lane.in_thread(lambda: _answer(request, model, answer))
        return _answer(request, model, answer)


def _answer(request: InferRequest, model: ServedModel, predicted: bytes) -> bytes:
    """What `/predict` answers, as this protocol has it."""
    answer = msgspec.json.decode(predicted)
    n = len(answer["predictions"])
    outputs: list[dict[str, Any]] = [
        {"name": "predictions", "datatype": output_type(model), "shape": [n], "data": answer["predictions"]}
    ]
    if "probabilities" in answer:
        flat = [p for row in answer["probabilities"] for p in row]
        outputs.append({"name": "probabilities", "datatype": "FP64", "shape": [n, len(model.classes)], "data": flat})
    outputs.append({"name": "ids", "datatype": "BYTES", "shape": [n], "data": answer["ids"]})
    if request.outputs:
        known = {output["name"]: output for output in outputs}
        outputs = [known[wanted.name] for wanted in request.outputs]
    found: dict[str, Any] = {"model_name": model.name, "model_version": str(model.version), "outputs": outputs}
    if request.id:
        found["id"] = request.id
    if told := {name: answer[name] for name in ("adaptation", "trace_id") if name in answer}:
        found["parameters"] = told
    return msgspec.json.encode(found)


def _read(body: bytes, header: bytes | None, model: ServedModel) -> tuple[InferRequest, memoryview]:
    """The JSON head of a request, and the binary tensors behind it. Raises `InvalidRequest`."""
    rows, columns = model.decoder.max_records, len(model.schema.names)
    length = len(body)
    if header is not None:
        if not header.isdigit() or len(header) > LENGTH_DIGITS or int(header) > len(body):
            raise InvalidRequest(
                400, f"Inference-Header-Content-Length: {header[:40]!r} is not a length in this body", "v2"
            )
        length = int(header)
    head, binary = body[:length], memoryview(body)[length:]
    check_values(head, (rows + 8) * columns + 64, MOST_TEXT_BYTES, f"{rows} rows hold no more; send fewer")
    try:
        request = _decode(head)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors, and so is bad UTF-8
        example = '{"inputs": [{"name": "age", "shape": [1], "datatype": "FP64", "data": [42]}, ...]}'
        raise InvalidRequest(400, f"{str(error)[:300]}; send {example}", "v2: not an inference request") from error
    offered = [output["name"] for output in metadata(model)["outputs"]]
    for wanted in request.outputs or ():  # before anything is predicted and recorded
        if wanted.name not in offered:
            raise InvalidRequest(400, f"output {wanted.name[:60]!r}: unknown; there are {', '.join(offered)}", "output")
    return request, binary


def _columns(request: InferRequest, binary: memoryview, model: ServedModel) -> dict[str, list[Any]]:
    kinds = {feature.name: feature.kind for feature in model.schema.features}
    columns: dict[str, list[Any]] = {}
    at = 0
    for tensor in request.inputs:
        size = tensor.parameters.binary_data_size
        shape = tensor.shape
        if not shape or (len(shape) == 2 and shape[1] != 1):
            raise _bad(tensor, f"shape {shape} is not one column; send [n] or [n, 1]")
        if shape[0] > model.decoder.max_records:
            raise _bad(tensor, f"{shape[0]} rows; send at most {model.decoder.max_records} at once", 413)
        if tensor.name in columns:
            raise _bad(tensor, "sent twice")
        kind = kinds.get(tensor.name)
        if kind is not None and tensor.datatype not in TAKEN[kind]:
            raise _bad(
                tensor,
                f"datatype {tensor.datatype[:20]!r}; this {kind} column takes {', '.join(sorted(TAKEN[kind]))}",
            )
        if size is not None:
            if size < 0 or at + size > len(binary):
                raise _bad(tensor, f"binary_data_size {size}; {len(binary) - at} bytes are left in the body")
            values = _binary(tensor, binary[at : at + size])
            at += size
        else:
            values = _flat(tensor)
        if len(values) != shape[0]:
            raise _bad(tensor, f"{len(values)} values for shape {shape}")
        if kind == "numeric" and bool in set(map(type, values)):
            raise _bad(tensor, "a boolean in a numeric column")
        columns[tensor.name] = values
    return columns


def _flat(tensor: Tensor) -> list[Any]:
    if tensor.data is None:
        raise _bad(tensor, "no data; send `data`, or binary data with `binary_data_size`")
    if len(tensor.shape) == 2 and tensor.data and isinstance(tensor.data[0], list):
        return [value for row in tensor.data for value in (row if isinstance(row, list) else [row])]
    return tensor.data


def _binary(tensor: Tensor, data: memoryview) -> list[Any]:
    if tensor.datatype == "BYTES":
        values: list[str] = []
        at = 0
        try:
            while at < len(data) and len(values) <= tensor.shape[0]:
                (length,) = struct.unpack_from("<I", data, at)
                if at + 4 + length > len(data):
                    raise _bad(tensor, "its binary strings are cut short")
                values.append(str(data[at + 4 : at + 4 + length], "utf-8"))
                at += 4 + length
        except (struct.error, UnicodeDecodeError) as error:
            raise _bad(tensor, f"its binary strings cannot be read: {error}") from error
        return values
    kind = BINARY.get(tensor.datatype)
    if kind is None:
        raise _bad(
            tensor, f"datatype {tensor.datatype[:20]!r} has no binary form here; there are {', '.join(BINARY)}, BYTES"
        )
    width = kind.itemsize
    if len(data) != tensor.shape[0] * width:
        raise _bad(
            tensor, f"{len(data)} bytes; shape {tensor.shape} of {tensor.datatype} has {tensor.shape[0] * width}"
        )
    found: list[Any] = np.frombuffer(data, kind).tolist()
    return found


def _bad(tensor: Tensor, problem: str, status: int = 400) -> InvalidRequest:
    return InvalidRequest(status, f"input {tensor.name[:60]!r}: {problem}", "v2: malformed input")
