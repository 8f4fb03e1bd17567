"""An answered Arrow batch in the record: the answer as a stream beside the request's, and the rows they are stored as.

The door writes columns and makes no JSON; the drain turns them into the rows that the same batch sent as JSON becomes.
Of an answer the columns are the ids, the predictions and, of a classifier, the probabilities of each class in turn; the
metadata of its schema has `model`, `version`, `adaptation` and `trace_id`, and under `ids` whether the request's
column `id` gave them ("given") or the server ("made").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from monitoring.arrow import FAULTS, flat, json_values, numbers_array, read, text_array, written

GIVEN: Final = "given"
MADE: Final = "made"


def answer_stream(
    names: Sequence[str],
    ids: list[str],
    output: npt.NDArray[Any],
    classes: Sequence[str | int | bool],
    told: Mapping[str, str],
) -> bytes:
    """The answer for n rows: `output` is n values of a regression, or n by classes probabilities.

    `names` are those of its columns: of the ids, the predictions, and each class's probabilities.
    """
    columns = [text_array(ids)]
    if output.ndim == 1:
        columns.append(numbers_array(output.astype(np.float64)))
    else:
        columns.append(_class_array(classes).take(numbers_array(output.argmax(axis=1))))
        columns += map(numbers_array, output.astype(np.float64).T)
    return written(names, columns, told)


def _class_array(classes: Sequence[str | int | bool]) -> pa.Array:
    if isinstance(classes[0], str):
        return text_array([str(one) for one in classes])
    array = numbers_array(np.array(classes, np.int64))
    return array.cast(pa.bool_()) if isinstance(classes[0], bool) else array


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
