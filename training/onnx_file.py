"""A pushed ONNX file: what may stand in it, how it reads requests, and the model it is.

It reads one input a feature, named like it (float or string, n by 1), or one matrix of numbers whose columns are the
features. What the graph cannot say itself stands in its metadata: `feature_names` and `classes`, JSON lists;
`missing_category`, the text that stands for a missing category ("" by default); or `evergreen`, which the twins of our
own versions have, so that an exported twin can be pushed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

import msgspec
import numpy as np

from monitoring.decode import RequestDecoder
from monitoring.errors import in_short
from training.artefact import ArtefactError, plain
from training.interface import refuse_misfits
from training.manifest import Column, Input, Plan
from training.twin import Twin

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from monitoring.schema import FeatureSchema

PLAN: Final = "evergreen"
"""Key of the metadata under which a twin of our own says how it reads requests."""

_MATRIX: Final[Mapping[int, Literal["float32", "float64"]]] = {1: "float32", 11: "float64"}
_COLUMN: Final[Mapping[int, Literal["float", "string"]]] = {1: "float", 8: "string"}
"""ONNX's number of an element type -> what a matrix, or one column, may consist of."""

_OPERATORS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml"})
_BRANCHES: Final = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_CLASSES: Final = ("classlabels_strings", "classlabels_int64s", "classlabels_ints")
_TODO: Final = "see docs/pushing.md"


class OnnxModel:
    """A pushed graph; it answers canonical frames as a fitted pipeline does."""

    def __init__(self, content: bytes, plan: Plan, schema: FeatureSchema) -> None:
        self.content, self.plan = content, plan
        self.feature_names_in_ = list(schema.names)
        self.twin = Twin.of(content, plan, schema)
        if schema.classes:
            self.classes_ = list(schema.classes)

    def predict_proba(self, frame: pd.DataFrame) -> npt.NDArray[Any]:
        """Probabilities, n by classes in the schema's order."""
        return self.twin.predict_frame(frame)

    def predict(self, frame: pd.DataFrame) -> npt.NDArray[Any]:
        """The likeliest classes; for regression the values."""
        answers = self.twin.predict_frame(frame)
        return np.asarray(self.classes_, dtype=object)[answers.argmax(axis=1)] if answers.ndim == 2 else answers


class _Own(msgspec.Struct, frozen=True):
    """What `with_plan` wrote."""

    plan: Plan
    classes: tuple[str | int | bool, ...]


def is_onnx(path: Path) -> bool:
    """Whether the file begins as ONNX files do, with the number of their format."""
    with path.open("rb") as file:
        return file.read(1) == b"\x08"


def with_plan(content: bytes, plan: dict[str, Any], schema: FeatureSchema) -> bytes:
    """The model with metadata that say how it reads requests, and what its classes are."""
    import onnx

    model = onnx.load_from_string(content)
    said = {"plan": plain(plan), "classes": list(schema.classes)}
    onnx.helper.set_model_props(model, {PLAN: json.dumps(said)})
    written: bytes = model.SerializeToString()
    return written


def check_graph(path: Path) -> Any:
    """The model in an ONNX file, as `onnx` has it; nothing runs.

    Raises `ArtefactError` for what is no ONNX file, is not whole in it, or holds what could run for ever.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
        outside = any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model))
        if not outside:
            onnx.checker.check_model(model)
    except Exception as error:  # protobuf and onnx share no class of errors
        raise ArtefactError(
            f"{path} is not a valid ONNX file ({in_short(error)}): write it anew with onnx.save"
        ) from None
    if outside:
        raise ArtefactError(f"{path} keeps tensors in another file: onnx.save(…, save_as_external_data=False)")
    graph = model.graph
    if model.functions or (found := sorted({node.op_type for node in graph.node} & _BRANCHES)):
        what = "functions of its own" if model.functions else f"the operators {', '.join(found)}"
        raise ArtefactError(f"{path} has {what}, which may run for ever and are not taken: export it without them")
    if strangers := sorted({node.domain for node in graph.node} - _OPERATORS):
        raise ArtefactError(
            f"{path} has operators of {', '.join(strangers)}: only those of ai.onnx and ai.onnx.ml run here"
        )
    return model


def load_onnx(path: Path, schema: FeatureSchema) -> OnnxModel:
    """The model in a pushed ONNX file that takes the schema's features and answers an ordinary record.

    Raises `ArtefactError`: what does not fit, and what to do.
    """
    model = check_graph(path)
    metadata = {one.key: one.value for one in model.metadata_props}
    content: bytes = model.SerializeToString()
    own = _json(metadata, PLAN)
    if own is None:
        plan, classes = _plan(model.graph, schema, metadata), _classes(model.graph, metadata)
    else:
        try:
            said = msgspec.convert(own, _Own)
        except msgspec.ValidationError as error:
            _misfit(f"its metadata `{PLAN}` are not those of a version ({error}): export the version again")
        plan, classes = said.plan, list(said.classes)
    if schema.task != "regression" and not classes:
        _misfit("it does not say its classes: add them as metadata `classes`, a JSON list, in the order of its columns")
    read = _features(plan)
    unread = [name for name in schema.names if name not in read] if own is not None else []  # that model left them out
    refuse_misfits([*read, *unread], classes if schema.classes else None, schema)
    try:
        found = OnnxModel(content, plan, schema)
        _check_answers(found.twin, schema)
    except ArtefactError:
        raise
    except Exception as error:  # onnxruntime's errors share no class
        raise ArtefactError(f"the pushed model cannot answer a record: {in_short(error)}: {_TODO}") from error
    return found


def _features(plan: Plan) -> list[str]:
    """The features that a plan reads, each once."""
    return list(dict.fromkeys(one.feature for one in (plan.columns if plan.layout == "matrix" else plan.inputs)))


def _plan(graph: Any, schema: FeatureSchema, metadata: dict[str, str]) -> Plan:
    given = {tensor.name for tensor in graph.initializer}
    inputs = [one for one in graph.input if one.name not in given]
    output = _output(graph, schema)
    if len(inputs) == 1 and (len(schema.names) > 1 or inputs[0].name != schema.names[0]):
        return _matrix(inputs[0], output, schema, metadata)
    columns = []
    for one in inputs:
        kind = _COLUMN.get(one.type.tensor_type.elem_type)
        if kind is None:
            _misfit(f"its input {one.name!r} is neither float nor string: convert it with FloatTensorType([None, 1])")
        if one.name in schema.names and (kind == "float") != (one.name in schema.numeric_names):
            comes = "a number (float)" if kind == "string" else "text (string)"
            _misfit(f"its input {one.name!r} is {kind}, and requests bring {comes}")
        columns.append(Input(one.name, one.name, kind))
    missing = metadata.get("missing_category", "")
    return Plan(layout="columns", inputs=tuple(columns), output=output, missing_category=missing)


def _matrix(one: Any, output: str, schema: FeatureSchema, metadata: dict[str, str]) -> Plan:
    if schema.categorical_names:
        words = ", ".join(schema.categorical_names)
        _misfit(f"its one input {one.name!r} takes numbers, and {words} come as text: give it one input a feature")
    kind = _MATRIX.get(one.type.tensor_type.elem_type)
    if kind is None:
        _misfit(f"its input {one.name!r} is neither float nor double: convert it with FloatTensorType([None, n])")
    names = _json(metadata, "feature_names")
    names = list(schema.names) if names is None else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        _misfit("its metadata `feature_names` is no JSON list of names")
    width = one.type.tensor_type.shape.dim[-1].dim_value if one.type.tensor_type.shape.dim else 0
    if width and width != len(names):
        _misfit(f"its input {one.name!r} takes {width} numbers, and the features are {len(names)}: {', '.join(names)}")
    columns = tuple(Column(name) for name in names)
    return Plan(layout="matrix", columns=columns, input=one.name, output=output, dtype=kind)


def _output(graph: Any, schema: FeatureSchema) -> str:
    """The name of what the graph answers: probabilities, or values."""
    numbers = [one.name for one in graph.output if one.type.tensor_type.elem_type in _MATRIX]
    if not numbers:
        _misfit("none of its outputs is a tensor of float: convert it with the option zipmap=False")
    return str(next((name for name in numbers if "probab" in name), numbers[-1 if schema.classes else 0]))


def _classes(graph: Any, metadata: dict[str, str]) -> list[Any] | None:
    said = _json(metadata, "classes")
    if isinstance(said, list):
        return said
    found = None
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in _CLASSES and (attribute.ints or attribute.strings):
                found = list(attribute.ints) or [text.decode(errors="replace") for text in attribute.strings]
    return found


def _check_answers(twin: Twin, schema: FeatureSchema) -> None:
    """Raises `ArtefactError` when three ordinary records do not get three answers of the schema's form."""
    records = json.dumps({"records": [schema.example()] * 3}).encode()
    said = twin.predict(RequestDecoder(schema, 3).decode(records))
    expected = (3, len(schema.classes)) if schema.classes else (3,)
    if said.shape != expected:
        _misfit(
            f"it answers three records with the shape {said.shape}, expected {expected}; its first dimension is free?"
        )
    if not np.isfinite(said).all():
        _misfit("it answers an ordinary record with NaN or infinity")
    if schema.classes and (np.abs(said.sum(axis=1) - 1).max() > 1e-3 or said.min() < 0):
        _misfit(f"it answers {said[0].tolist()} for the classes, which are no probabilities: export predict_proba")


def _tensors(model: Any) -> Iterator[Any]:
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _json(metadata: dict[str, str], key: str) -> Any:
    try:
        return json.loads(metadata[key]) if key in metadata else None
    except (ValueError, RecursionError):
        _misfit(f"its metadata `{key}` is not JSON")


def _misfit(problem: str) -> NoReturn:
    raise ArtefactError(f"the pushed model does not fit: {problem}: {_TODO}")
