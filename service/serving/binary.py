"""Requests of the V2 protocol whose tensors are all binary: columns, read and recorded as an Arrow stream's are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from monitoring.decode import InvalidRequest
from service.serving.tensors import BINARY, TAKEN

if TYPE_CHECKING:
    from monitoring.columns import ArrowBatch
    from service.serving.predictor import ServedModel
    from service.serving.tensors import InferRequest


def read_columns(model: ServedModel, request: InferRequest, binary: memoryview, most_bytes: int) -> ArrowBatch | None:
    """The rows of a request; None for one with tensors in JSON, and for what is wrong, of which `v2.py` has the words.

    `most_bytes` bounds the texts.
    """
    try:
        from training._records import texts
    except ImportError:
        return None
    from monitoring.arrow import text_column, values_array, written
    from monitoring.columns import read_arrow

    kinds = {feature.name: feature.kind for feature in model.schema.features}
    rows, at, columns = next((tensor.shape[:1] for tensor in request.inputs), [0]), 0, {}
    for tensor in request.inputs:
        size, kind, dtype = tensor.parameters.binary_data_size, kinds.get(tensor.name), BINARY.get(tensor.datatype)
        taken = kind is not None and tensor.datatype in TAKEN[kind] and tensor.name not in columns
        if not taken or size is None or size < 0 or tensor.shape not in (rows, [*rows, 1]):
            return None
        data = binary[at : at + size]
        at += size
        if dtype is None:
            found = texts(data, *rows)
            if found is None:
                return None
            columns[tensor.name] = text_column(*found)
        elif len(data) == rows[0] * dtype.itemsize:
            columns[tensor.name] = values_array(np.frombuffer(data, dtype))
        else:
            return None
    if columns.keys() != kinds.keys():
        return None
    try:
        return read_arrow(model.decoder, written(list(kinds), [columns[name] for name in kinds]), most_bytes)
    except InvalidRequest:
        return None
