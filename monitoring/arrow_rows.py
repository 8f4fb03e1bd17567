"""An answered Arrow batch in the record: the answer as a stream beside the request's, and the rows they are stored as.

The door writes columns and makes no JSON; the drain turns them into the rows that the same batch sent as JSON becomes.
Of an answer the columns are the ids, the predictions and, of a classifier, the probabilities of each class in turn; the
metadata of its schema has `model`, `version`, `adaptation` and `trace_id`, and under `ids` whether the request's
column `id` gave them ("given") or the server ("made").
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from monitoring.arrow import (
    FAULTS,
    ROWS,
    flat,
    json_values,
    messages,
    numbers_array,
    packed,
    read,
    text_array,
    text_column,
    values_array,
    written,
)

ID_BYTES: Final = 36
"""Of an id that the server made: a UUID."""
GIVEN: Final = "given"
MADE: Final = "made"


def answer_stream(
    names: Sequence[str],
    ids: list[str] | bytes,
    output: npt.NDArray[Any],
    classes: Sequence[str | int | bool],
    told: Mapping[str, str],
) -> bytes:
    """The answer for n rows: `output` is n values of a regression, or n by classes probabilities.

    `names` are those of its columns: of the ids, the predictions, and each class's probabilities. Ids that are bytes
    are `ID_BYTES` of ASCII each, one behind the other.
    """
    columns = _values(output, classes)
    if columns and isinstance(ids, bytes) and "trace_id" not in told:
        dtypes = tuple(column.dtype for column in columns)
        return _layout(tuple(names), dtypes, len(output), tuple(told.items())).filled(ids, columns)
    arrays = [_id_array(ids)]
    if columns:
        arrays += map(values_array, columns)
    else:
        arrays.append(text_array([str(one) for one in classes]).take(numbers_array(output.argmax(axis=1))))
        arrays += map(numbers_array, output.astype(np.float64).T)
    return written(names, arrays, told)


def _values(output: npt.NDArray[Any], classes: Sequence[str | int | bool]) -> list[npt.NDArray[Any]]:
    """The columns behind the ids, n values each; none when the predictions are texts."""
    if output.ndim == 1:
        return [output.astype(np.float64)]
    if isinstance(classes[0], str):
        return []
    kind = bool if isinstance(classes[0], bool) else np.int64
    return [np.array(classes, kind)[output.argmax(axis=1)], *output.astype(np.float64).T]


def _id_array(ids: list[str] | bytes) -> pa.Array:
    if not isinstance(ids, bytes):
        return text_array(ids)
    ends = np.arange(len(ids) // ID_BYTES + 1, dtype=np.int32) * ID_BYTES
    return text_column(ends.tobytes(), ids)


class _Layout(NamedTuple):
    """A stream whose columns have no gaps and values of fixed width, and where in its bytes each of them begins."""

    stream: bytes
    places: list[int]

    def filled(self, ids: bytes, columns: Sequence[npt.NDArray[Any]]) -> bytes:
        """The stream with these values."""
        whole = bytearray(self.stream)
        parts = [np.frombuffer(ids, np.uint8), *map(packed, columns)]
        for part, start in zip(parts, self.places, strict=True):
            np.frombuffer(whole, part.dtype, len(part), start)[:] = part
        return bytes(whole)


@lru_cache(8)
def _layout(
    names: tuple[str, ...], dtypes: tuple[np.dtype[Any], ...], rows: int, told: tuple[tuple[str, str], ...]
) -> _Layout:
    """Whatever its values are, all other bytes of a stream of so many rows are the same."""
    arrays = [_id_array(bytes(ID_BYTES * rows)), *(values_array(np.zeros(rows, dtype)) for dtype in dtypes)]
    stream = written(names, arrays, dict(told))
    message = next(one for one in messages(stream) if one.kind == ROWS)
    first, count = message.head.table(2).items(2)
    offsets = struct.unpack_from(f"<{2 * count}q", stream, first)[::2]
    return _Layout(stream, [message.body + offsets[at] for at in (2, *range(4, count, 2))])  # a text has three buffers


class Rows(NamedTuple):
    """What a batch becomes in the store: JSON texts, one of each for a row."""

    version: int
    adaptation: int | None
    trace_id: str | None
    ids: list[str]
    features: list[str]
    predictions: list[str]
    probabilities: list[str] | None


def rows_of(answer: bytes | memoryview, request: bytes | memoryview) -> Rows:
    """The rows of a recorded batch. Raises `ValueError` for streams that are none, or do not belong together."""
    try:
        answered, told = read(answer)
        asked, _ = read(request)
        names = [name for name in asked.schema.names if name != "id" or told["ids"] != GIVEN]
        features = _objects(names, [json_values(asked.column(name)) for name in names])
        ids = answered.column(0).to_pylist()
        predictions = _lines(json_values(answered.column(1)))
        probabilities = None
        if answered.num_columns > 2:
            chances = list(map(flat, answered.columns[2:]))
            probabilities = _lines(np.column_stack(chances).tolist())
        adaptation = told.get("adaptation")
        found = Rows(
            int(told["version"]), None if adaptation is None else int(adaptation), told.get("trace_id"),
            ids, features, predictions, probabilities,
        )  # fmt: skip
    except (*FAULTS, KeyError) as error:
        raise ValueError(f"no batch of Arrow: {str(error).partition(chr(10))[0][:300]}") from error
    if len(features) != len(ids):
        raise ValueError(f"{len(features)} records, {len(ids)} answers")
    return found


def in_json(answer: bytes, request: bytes) -> tuple[bytes, bytes]:
    """The same batch as the two parts of a record in JSON. Raises `ValueError` as `rows_of`."""
    rows = rows_of(answer, request)
    whole = {
        "version": rows.version, "adaptation": rows.adaptation, "trace_id": rows.trace_id, "ids": rows.ids,
        "predictions": _raw(rows.predictions),
        "probabilities": None if rows.probabilities is None else _raw(rows.probabilities),
    }  # fmt: skip
    return msgspec.json.encode(whole), msgspec.json.encode({"records": _raw(rows.features)})


def _raw(texts: list[str]) -> list[msgspec.Raw]:
    return [msgspec.Raw(text.encode()) for text in texts]


def _objects(names: list[str], columns: list[list[Any]]) -> list[str]:
    """One JSON object a row."""
    return _lines(list(map(_record(tuple(names)), *columns)))


@lru_cache(16)
def _record(names: tuple[str, ...]) -> Any:
    fields = {f"f{at}": name for at, name in enumerate(names)}
    return msgspec.defstruct("Record", [(field, Any) for field in fields], rename=fields, gc=False)


def _lines(values: list[Any]) -> list[str]:
    """Each value in JSON. A line break within one is written as an escape."""
    return msgspec.json.Encoder().encode_lines(values).decode().split("\n")[:-1]
