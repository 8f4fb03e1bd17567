"""What a model takes and gives in the Open Inference Protocol: one tensor a column; and how a request is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import numpy as np

if TYPE_CHECKING:
    from service.serving.predictor import ServedModel

VERSION: Final = "0.1.0"
PLATFORMS: Final = {"trees": "evergreen_trees", "onnx": "onnx_onnxv1", "scikit-learn": "scikit-learn"}
"""By what answers."""
DATATYPES: Final = {"numeric": "FP64", "boolean": "BOOL", "categorical": "BYTES", "datetime": "BYTES"}
TAKEN: Final = {
    "numeric": frozenset({"FP64", "FP32", "INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8"}),
    "boolean": frozenset({"BOOL"}),
    "categorical": frozenset({"BYTES"}),
    "datetime": frozenset({"BYTES"}),
}
BINARY: Final = {
    name: np.dtype(code)
    for name, code in {
        "FP64": "<f8", "FP32": "<f4", "BOOL": "?", "INT64": "<i8", "INT32": "<i4", "INT16": "<i2", "INT8": "i1",
        "UINT64": "<u8", "UINT32": "<u4", "UINT16": "<u2", "UINT8": "u1",
    }.items()
}  # fmt: skip


class Parameters(msgspec.Struct, frozen=True):
    binary_data_size: int | None = None


class Tensor(msgspec.Struct):
    name: str
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(max_length=2)]
    datatype: str
    data: list[Any] | None = None
    parameters: Parameters = Parameters()


class RequestedOutput(msgspec.Struct):
    name: str


class InferRequest(msgspec.Struct):
    inputs: list[Tensor]
    id: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    outputs: Annotated[list[RequestedOutput], msgspec.Meta(max_length=16)] | None = None


def metadata(model: ServedModel) -> dict[str, Any]:
    """What the protocol says of a model: its inputs, one a feature, and its outputs."""
    outputs: list[dict[str, Any]] = [{"name": "predictions", "datatype": output_type(model), "shape": [-1]}]
    if model.classes:
        outputs.append({"name": "probabilities", "datatype": "FP64", "shape": [-1, len(model.classes)]})
    outputs.append({"name": "ids", "datatype": "BYTES", "shape": [-1]})
    return {
        "name": model.name,
        "versions": [str(model.version)],
        "platform": PLATFORMS[model.engine],
        "inputs": [{"name": f.name, "datatype": DATATYPES[f.kind], "shape": [-1]} for f in model.schema.features],
        "outputs": outputs,
    }


def output_type(model: ServedModel) -> str:
    """Datatype of the predictions."""
    if model.schema.task == "regression":
        return "FP64"
    if all(isinstance(value, bool) for value in model.classes):
        return "BOOL"
    return "INT64" if all(isinstance(value, int) for value in model.classes) else "BYTES"
