"""Values as a feature takes them: numbers, booleans, texts and ISO times; or a fault in words.

A column comes and goes as an Arrow array; missing values are null. pyarrow is imported inside the functions.
"""

from __future__ import annotations

import json
from typing import Any, Final

Faults = dict[int, str]
"""Row of a batch -> what is wrong with its value."""

_YES: Final = ("true", "True", "TRUE", "1", "1.0")
_NO: Final = ("false", "False", "FALSE", "0", "0.0")
_SHOWN_CHARS: Final = 40


def fitted(column: Any, kind: str, decimal: str = ".") -> tuple[Any, Faults]:
    """The column as a feature of this kind (numeric, boolean, datetime, categorical) is sent; where a value does not
    fit it is null, and a fault."""
    import pyarrow as pa

    column = plain(column)
    if pa.types.is_null(column.type):
        return column.cast({"numeric": pa.float64(), "boolean": pa.bool_()}.get(kind, pa.string())), {}
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    return _KINDS[kind](column, decimal)


def plain(column: Any) -> Any:
    """The column as it is, without a dictionary."""
    import pyarrow as pa

    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def texts(column: Any) -> tuple[Any, Faults]:
    """The column as texts, as ids and categories are: whole numbers without ".0"."""
    return fitted(column, "categorical")


def shown(value: Any) -> str:
    """A value as JSON, cut to 40 characters."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"


def _numeric(column: Any, decimal: str) -> tuple[Any, Faults]:
    import pyarrow as pa
    import pyarrow.compute as pc

    faults: Faults = {}
    if pa.types.is_string(column.type):
        plain = pc.utf8_trim_whitespace(column)
        if decimal != ".":
            plain = pc.replace_substring(plain, decimal, ".")
        try:
            numbers = pc.cast(plain, pa.float64())
        except pa.ArrowInvalid:
            numbers, faults = _one_by_one(plain, column)
    elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        numbers = pc.cast(column, pa.float64(), safe=False)
    else:
        return _all_unfit(column, pa.float64(), "a number")
    odd = pc.fill_null(pc.is_inf(numbers), False)
    for row in pc.indices_nonzero(odd).to_pylist():
        faults.setdefault(row, f"{shown(column[row].as_py())} is no finite number; leave it empty when it is unknown")
    numbers = pc.if_else(pc.or_(odd, pc.is_nan(numbers)), pa.scalar(None, pa.float64()), numbers)
    return numbers, faults


def _one_by_one(plain: Any, column: Any) -> tuple[Any, Faults]:
    import pyarrow as pa
    import pyarrow.compute as pc

    values: list[float | None] = []
    faults: Faults = {}
    for row, text in enumerate(plain):
        try:
            values.append(pc.cast(text, pa.float64()).as_py())
        except pa.ArrowInvalid:
            values.append(None)
            faults[row] = f"expected a number, got {shown(column[row].as_py())}"
    return pa.array(values, pa.float64()), faults


def _boolean(column: Any, decimal: str) -> tuple[Any, Faults]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_boolean(column.type):
        return column, {}
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        written = pc.cast(column, pa.string())
    elif pa.types.is_string(column.type):
        written = pc.utf8_trim_whitespace(column)
    else:
        return _all_unfit(column, pa.bool_(), "true or false")
    yes, no = (pc.is_in(written, pa.array(words)) for words in (_YES, _NO))
    known = pc.or_(yes, no)
    values = pc.if_else(known, yes, pa.scalar(None, pa.bool_()))
    odd = pc.indices_nonzero(pc.and_(pc.invert(known), pc.is_valid(written))).to_pylist()
    return values, {row: f"expected true or false, got {shown(column[row].as_py())}" for row in odd}


def _datetime(column: Any, decimal: str) -> tuple[Any, Faults]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_string(column.type):
        return column, {}  # the service reads ISO 8601, and says what is not
    if not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
        return _all_unfit(column, pa.string(), 'a date, or its text in ISO 8601 such as "2026-01-31T12:00:00Z"')
    moments = pc.cast(column, pa.timestamp("us", getattr(column.type, "tz", None)), safe=False)
    moments = pc.cast(moments, pa.timestamp("us"), safe=False)  # UTC
    return pc.binary_join_element_wise(pc.strftime(moments, "%Y-%m-%dT%H:%M:%S"), "Z", ""), {}


def _categorical(column: Any, decimal: str) -> tuple[Any, Faults]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_string(column.type):
        return column, {}
    if pa.types.is_integer(column.type):
        return pc.cast(column, pa.string()), {}
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
        return _all_unfit(column, pa.string(), "text")
    values = [None if value is None or value != value else _text(value) for value in column.to_pylist()]
    return pa.array(values, pa.string()), {}


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _all_unfit(column: Any, kind: Any, expected: str) -> tuple[Any, Faults]:
    import pyarrow as pa

    rows = {
        row: f"expected {expected}, got {shown(value)}"
        for row, value in enumerate(column.to_pylist())
        if value is not None
    }
    return pa.nulls(len(column), kind), rows


_KINDS: Final = {"numeric": _numeric, "boolean": _boolean, "datetime": _datetime, "categorical": _categorical}
