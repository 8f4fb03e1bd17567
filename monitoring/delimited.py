"""What did the client send, as CSV? A header with the names, commas, and quotes as in RFC 4180.

CSV has no types: the kind of its feature says what a text is read as. An empty field is a missing value.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any, Final

from monitoring.decode import Batch, InvalidRequest, RequestDecoder
from monitoring.feature import first_repeated, shown

_NUMERALS: Final = frozenset("0123456789+-.eE")
_BOOLEANS: Final = {"": None} | {
    text: value for value, word in ((True, "true"), (False, "false")) for text in (word, word.title(), word.upper())
}


def read_csv(decoder: RequestDecoder, body: bytes) -> Batch:
    """The batch in a CSV text; raises `InvalidRequest`, and nothing else, whatever the bytes are."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"the body is not UTF-8 text (byte {error.start}); send CSV in UTF-8"
        raise InvalidRequest(400, message, "not UTF-8") from None
    longest = (len(decoder.schema.features) + len(decoder.extra) + 1) * (decoder.max_chars * 2 + 4)
    rows = csv.reader(_lines(text, longest), strict=True)
    try:
        names = next(rows, [])
        if not names:
            message = f"the body is empty; begin with a line of names: {','.join(decoder.schema.names)[:200]}"
            raise InvalidRequest(400, message, "empty body")
        repeated = first_repeated(names)
        if repeated is not None:
            raise InvalidRequest(400, f"column {shown(repeated)}: sent twice", "a column twice")
        table = _rows(decoder, rows, len(names))
    except csv.Error as error:
        message = f"line {rows.line_num}: {error}; send CSV as RFC 4180 describes it"
        raise InvalidRequest(400, message, "not CSV") from None
    kinds = {feature.name: feature.kind for feature in decoder.schema.features}
    columns: dict[str, list[Any]] = dict(zip(names, map(list, zip(*table, strict=True)), strict=True))
    ids = columns.pop("id") if decoder.named_by in columns else None
    return decoder.from_columns(
        {name: _values(kinds.get(name), texts) for name, texts in columns.items()}, ids, "column"
    )


def _lines(text: str, longest: int) -> Iterator[str]:
    """The lines, none so long that its fields would take much memory before they are counted."""
    for line in io.StringIO(text, newline=""):
        if len(line) > longest:
            raise InvalidRequest(
                400, f"a line of {len(line)} characters; the longest may have {longest}", "a long line"
            )
        yield line


def _rows(decoder: RequestDecoder, rows: Iterator[list[str]], width: int) -> list[list[str]]:
    table: list[list[str]] = []
    for row in rows:
        if len(row) != width:
            if not row and width > 1:
                continue  # an empty line, as many programs leave at the end
            row = row or [""]
            if len(row) != width:
                message = f"records[{len(table)}]: {len(row)} fields; the header names {width} columns"
                raise InvalidRequest(400, message, "records[]: another number of fields")
        table.append(row)
        if len(table) > decoder.max_records:
            break
    decoder.check_count(len(table), "records")
    return table


def _values(kind: str | None, texts: list[str]) -> list[Any]:
    """A column in JSON values; a text that is no value of its kind stays a text, and is refused as one."""
    if kind == "numeric":
        return _numbers(texts)
    if kind == "boolean":
        return [_BOOLEANS.get(text, text) for text in texts]
    return [text or None for text in texts]


def _numbers(texts: list[str]) -> list[Any]:
    if _NUMERALS.issuperset("".join(texts)):
        try:
            return [float(text) if text else None for text in texts]
        except ValueError:
            pass  # one of them is none
    return [_number(text) for text in texts]


def _number(text: str) -> float | str | None:
    if not text:
        return None
    try:
        return float(text) if _NUMERALS.issuperset(text) else text
    except ValueError:
        return text
