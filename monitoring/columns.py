"""What did the client send, as an Arrow stream? Its columns become what a model reads, with the strictness of JSON.

No object is made of a row: numbers go from column to column, and of texts only the distinct ones are looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from monitoring.arrow import (
    FAULTS,
    Coded,
    coded,
    is_number,
    is_text,
    is_time,
    json_values,
    look_into,
    moments,
    numbers,
    one_batch,
    repeats,
    text_array,
    text_bytes,
    written,
)
from monitoring.arrow_plain import read_plain
from monitoring.decode import InvalidRequest, RequestDecoder, extra_problem, ids_problem, step, value_problem
from monitoring.feature import Feature, first_repeated, shown
from monitoring.fits import days_since_epoch

if TYPE_CHECKING:
    import pandas as pd

    from monitoring.schema import FeatureSchema

_TAKEN: Final[dict[str, tuple[str, Callable[[pa.DataType], bool]]]] = {
    "numeric": ("integers, floats or decimals", is_number),
    "boolean": ("bool", pa.types.is_boolean),
    "categorical": ("strings, or a dictionary of strings", is_text),
    "datetime": ("timestamps, dates, or ISO-8601 strings", lambda kind: is_time(kind) or is_text(kind)),
}


class ArrowBatch:
    """The checked rows of one Arrow body: to a model what `monitoring.decode.Batch` is, and made of columns."""

    __slots__ = ("_numeric", "_schema", "_texts", "ids", "n", "stream")

    def __init__(
        self,
        schema: FeatureSchema,
        ids: list[str] | None,
        numeric: npt.NDArray[np.float32],
        texts: list[Coded],
        stream: bytes,
    ) -> None:
        self._schema, self._numeric, self._texts = schema, numeric, texts
        self.ids, self.n = ids, len(numeric)
        self.stream = stream
        """What the record keeps of the request: an Arrow stream of its features."""

    def numeric(self) -> npt.NDArray[np.float32]:
        """n rows by the schema's `numeric_names`, as `Batch.numeric`."""
        return self._numeric

    def coded(self) -> list[Coded]:
        """The texts, in the order of the schema's `categorical_names`."""
        return self._texts

    def categorical(self) -> list[tuple[str | None, ...]]:
        """One tuple a row, as `Batch.categorical`."""
        columns = [one.put(one.values, None).tolist() for one in self._texts]
        return list(zip(*columns, strict=True)) if columns else [()] * self.n

    def tuples(self) -> None:
        return None

    def frame(self) -> pd.DataFrame:
        """The canonical frame, as `Batch.frame`."""
        import pandas as pd

        schema = self._schema
        columns: dict[str, Any] = dict(zip(schema.numeric_names, self._numeric.T, strict=True))
        for name, texts in zip(schema.categorical_names, self._texts, strict=True):
            columns[name] = texts.put(texts.values, np.nan)
        return pd.DataFrame({name: columns[name] for name in schema.names}, columns=list(schema.names), copy=True)


def read_arrow(
    decoder: RequestDecoder,
    body: bytes,
    most_bytes: int,
    recorded: Callable[[str, list[Any]], list[str | None] | None] = lambda name, values: None,
) -> ArrowBatch:
    """The batch in an Arrow IPC stream; raises `InvalidRequest`, and nothing else, whatever the bytes are.

    `most_bytes` bounds what is compressed within the stream, unpacked, and its texts, written out for each row.
    `recorded` says what the record keeps of a column that no model sees, by its name and values: None is nothing.
    """
    spread, repeated = 0, list[int]()

    def check_texts(batch: pa.RecordBatch) -> None:
        nonlocal spread
        spread += sum(text_bytes(batch.column(at)) for at in repeated)
        _check_bytes(spread, most_bytes, "with its texts written out for each row")

    plain = read_plain(decoder, body, most_bytes, _check_columns)
    if plain is not None:
        problem = None if plain.ids is None else ids_problem(plain.ids, len(plain.ids))
        if problem:
            raise problem
        return ArrowBatch(decoder.schema, plain.ids, plain.matrix, plain.texts, body)
    try:
        inside = look_into(body)
        decoder.check_count(inside.rows, "records")
        if inside.batches > decoder.max_records:
            raise InvalidRequest(413, f"the body has {inside.batches} batches; send fewer", "too many batches")
        _check_bytes(inside.size, most_bytes, "unpacked")
        with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
            found = reader.schema
            with_ids = _check_columns(decoder, found.names, found.types)
            repeated = [at for at, kind in enumerate(found.types) if repeats(kind)]
            batch = one_batch(reader, check_texts)
        if batch.num_rows != inside.rows:
            raise ValueError(f"{inside.rows} rows announced, {batch.num_rows} found")
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        return _checked(decoder, columns, with_ids, recorded, None if inside.packed else body)
    except InvalidRequest:
        raise
    except FAULTS as error:
        words = str(error).partition("\n")[0][:200]
        message = f"the body is no whole Arrow IPC stream: {words}; send what pyarrow.ipc.new_stream writes"
        raise InvalidRequest(400, message, "no Arrow stream") from error


def _check_bytes(size: int, most: int, what: str) -> None:
    if size > most:
        message = f"the body has {size} bytes {what}; send at most {most} ([serve] max_request_bytes)"
        raise InvalidRequest(413, message, "too many bytes")


def _check_columns(decoder: RequestDecoder, names: list[str], kinds: list[pa.DataType]) -> bool:
    """Whether there is a column of ids. Raises `InvalidRequest` for a column that is missing, unknown, or no fit."""
    known = {feature.name: feature for feature in decoder.schema.features}
    repeated = first_repeated(names)
    if repeated is not None:
        raise InvalidRequest(400, f"column {shown(repeated)}: sent twice", "a column twice")
    for name, kind in zip(names, kinds, strict=True):
        feature = known.get(name)
        if feature is not None:
            expected, fits = _TAKEN[feature.kind]
            what = f"a {feature.kind} feature"
        elif name == decoder.named_by:
            what, expected, fits = "the ids", "strings", is_text
        elif name in decoder.extra:
            what, expected, fits = "a column for the record", "strings, numbers or bool", _is_plain
        else:
            raise decoder.unknown(f"column {shown(name)}", name, "column")
        if not fits(kind) and not pa.types.is_null(kind):
            message = f"column {shown(name)}: {what} takes {expected}; got Arrow's {str(kind)[:60]}"
            raise InvalidRequest(400, message, "a column of another type")
    for name in known:
        if name not in names:
            message = f"column {shown(name)}: missing; send nulls when its values are unknown"
            raise InvalidRequest(400, message, "a column is missing")
    return decoder.named_by in names


def _is_plain(kind: pa.DataType) -> bool:
    return is_text(kind) or is_number(kind) or bool(pa.types.is_boolean(kind))


@np.errstate(over="ignore", invalid="ignore")
def _checked(
    decoder: RequestDecoder,
    columns: dict[str, pa.Array],
    with_ids: bool,
    recorded: Callable[[str, list[Any]], list[str | None] | None],
    body: bytes | None,
) -> ArrowBatch:
    """The batch of columns whose types fit; `body` is what is recorded of it unless that has to be written anew.

    NaN is missing, as in JSON null is. A double of `monitoring.fits.FLOAT32_LIMIT` and beyond is infinite as a float32.
    """
    schema = decoder.schema
    ids = _ids(columns.pop("id")) if with_ids else None
    at = {name: place for place, name in enumerate(schema.numeric_names)}
    rows = len(next(iter(columns.values())))
    matrix = np.empty((rows, len(at)), np.float32)
    texts = []
    for feature in schema.features:
        column = columns[feature.name]
        if feature.kind == "categorical":
            texts.append(_texts(feature, column, decoder.max_chars))
        elif feature.kind == "datetime":
            matrix[:, at[feature.name]] = _days(feature, column, decoder.max_chars)
        else:
            matrix[:, at[feature.name]] = numbers(column)
    if np.isinf(matrix).any():
        _refuse_numbers(schema, columns, decoder.max_chars)
    if others := [name for name in columns if name in decoder.extra]:
        kept = {name: recorded(name, _extra(name, columns.pop(name), decoder.max_chars)) for name in others}
        columns |= {name: text_array(values) for name, values in kept.items() if values is not None}
    if others or body is None:
        body = written(list(columns), columns.values())
    return ArrowBatch(schema, ids, matrix, texts, body)


def _ids(column: pa.Array) -> list[str]:
    found = coded(column)
    ids: list[str] = found.put(found.values, None).tolist()
    problem = ids_problem(ids, len(ids))
    if problem:
        raise problem
    return ids


def _refuse_numbers(schema: FeatureSchema, columns: dict[str, pa.Array], max_chars: int) -> None:
    """Raise the words for the first number that is infinite, or becomes so as a float32."""
    for feature in schema.features:
        if feature.kind == "numeric":
            values = numbers(columns[feature.name])
            bad = np.isinf(values.astype(np.float32))
            if bad.any():
                row = int(np.argmax(bad))
                _refuse(feature, row, values[row].item(), max_chars)


def _days(feature: Feature, column: pa.Array, max_chars: int) -> npt.NDArray[np.float64]:
    if not is_time(column.type):
        return _days_of_texts(feature, coded(column), max_chars)
    found = moments(column)
    if found.outside.any():
        row = int(np.argmax(found.outside))
        message = f"records[{row}]{step(feature.name)}: a time outside the years 1 to 9999; send null, or another"
        raise InvalidRequest(422, message, f"records[]{step(feature.name)}: outside the years 1 to 9999")
    return found.days()


def _days_of_texts(feature: Feature, texts: Coded, max_chars: int) -> npt.NDArray[np.float64]:
    days = np.full(len(texts.values) + 1, np.nan)
    for at, text in enumerate(texts.values):
        if not value_problem(feature, text, max_chars):
            days[at] = days_since_epoch(text)
        elif (row := texts.row_of(at)) >= 0:
            _refuse(feature, row, text, max_chars)
    found: npt.NDArray[np.float64] = days[texts.codes]
    return found


def _texts(feature: Feature, column: pa.Array, max_chars: int) -> Coded:
    texts = coded(column)
    if max(map(len, texts.values), default=0) > max_chars:
        for at, text in enumerate(texts.values):
            if len(text) > max_chars and (row := texts.row_of(at)) >= 0:
                _refuse(feature, row, text, max_chars)
    return texts


def _refuse(feature: Feature, row: int, value: Any, max_chars: int) -> None:
    """Raise the words that JSON has for this value in this row."""
    problem = value_problem(feature, value, max_chars)
    assert problem is not None, "what is refused here does not fit"
    raise problem.at(f"records[{row}]{step(feature.name)}", f"records[]{step(feature.name)}")


def _extra(name: str, column: pa.Array, max_chars: int) -> list[Any]:
    """The values of a column that no model sees, each looked at as in JSON."""
    values = json_values(column)
    for row, value in enumerate(values):
        problem = extra_problem(value, max_chars)
        if problem:
            raise problem.at(f"records[{row}]{step(name)}", "records[]: an extra column")
    return values
