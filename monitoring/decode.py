"""What did the client send? A request body becomes a `Batch`, or an `InvalidRequest` that names the path at fault.

The body is decoded once by a type generated from the schema (msgspec), which knows nothing of paths. Only when that
refuses is the body read a second time, slowly, to find the first thing wrong and say what to do about it.
API workers import this module: pandas is imported only inside `Batch.frame`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, repeat
from operator import attrgetter
from types import GenericAlias
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple, NoReturn, Protocol, cast

import msgspec
import numpy as np
import numpy.typing as npt

from monitoring.errors import EvergreenError
from monitoring.fits import (
    FLOAT32_LIMIT,
    ID_CHARS,
    INSTANT_CHARS,
    LONGEST_CATEGORY,
    days_since_epoch,
    feature_number,
)
from monitoring.nearest import nearest

if TYPE_CHECKING:
    import pandas as pd

    from monitoring.feature import Feature
    from monitoring.schema import FeatureSchema

LOOK_BYTES: Final = 4 * 2**20
"""Above it, what is wrong is said in the strict decoder's words: a second reading takes seconds and much memory."""

SHOWN_CHARS: Final = 40
SHOWN_NAMES: Final = 20

_Number = Annotated[float, msgspec.Meta(gt=-FLOAT32_LIMIT, lt=FLOAT32_LIMIT)]
_KEYS: Final = ("records", "ids", "record", "warnings")
_EXPECTED: Final = {
    "numeric": "a number",
    "boolean": "true or false",
    "categorical": "a string",
    "datetime": 'an ISO-8601 string such as "2026-01-31T12:00:00Z"',
}


class InvalidRequest(EvergreenError):
    """Raised when a request cannot be answered as sent; the client must change it.

    `status` is 400 (form), 413 (too many records) or 422 (well formed, but outside what a model can take).
    `message` is for the client and may quote the value sent. `reason` is for the log: it has no value, index or name
    the client chose, so it holds no personal data and takes few distinct values.
    """

    def __init__(self, status: int, message: str, reason: str = "") -> None:
        clean = message.encode("utf-8", "backslashreplace").decode()
        super().__init__(clean)
        self.status = status
        self.message = clean
        self.reason = reason or f"status {status}"


class MoreAsked(Exception):
    """Raised for a good body that asks for more than answers: `record` false, or `warnings`.

    `batch` is what it holds, by this `decoder`; `body` is the same without these keys. An exception, so that others pay
    nothing for it.
    """

    def __init__(self, decoder: RequestDecoder, batch: Batch, body: bytes, more: _More) -> None:
        super().__init__()
        self.decoder, self.batch, self.body = decoder, batch, body
        self.record, self.warnings = more.record is not False, more.warnings is True


class _Plain(msgspec.Struct, omit_defaults=True):
    records: msgspec.Raw
    ids: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _More(_Plain, forbid_unknown_fields=True):
    record: bool | msgspec.UnsetType = msgspec.UNSET
    warnings: bool | msgspec.UnsetType = msgspec.UNSET


class _Body(Protocol):
    records: list[Any]
    ids: list[str] | None


class Batch:
    """The decoded rows of one request: 1 to `max_records` records, and the ids the client gave them (or None)."""

    __slots__ = ("_decoder", "_numeric", "ids", "n", "records")

    def __init__(
        self,
        decoder: RequestDecoder,
        records: list[Any],
        ids: list[str] | None,
        numeric: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self._decoder = decoder
        self._numeric = numeric
        self.records = records
        self.ids = ids
        self.n = len(records)

    @classmethod
    def joined(cls, batches: Sequence[Batch]) -> Batch:
        """The rows of several batches of one decoder as one; it has no ids."""
        first = batches[0]
        records = list(chain.from_iterable([batch.records for batch in batches]))
        parts = [batch._numeric for batch in batches if batch._numeric is not None]
        return cls(first._decoder, records, None, np.concatenate(parts) if parts else None)

    def numeric(self) -> npt.NDArray[np.float32]:
        """Float32, n rows by the schema's `numeric_names`: booleans 0/1, datetimes in days, missing NaN."""
        if self._numeric is not None:
            return self._numeric
        decoder = self._decoder
        get = decoder._get_numeric
        if self.n == 1:
            return np.array((get(self.records[0]),), np.float32)
        width = decoder._numeric_width
        flat = np.fromiter(chain.from_iterable(map(get, self.records)), np.float32, self.n * width)
        return flat.reshape(self.n, width)

    def tuples(self) -> list[tuple[Any, ...]] | None:
        """Each row's values in the schema's order (behind them those of no feature); None where some are datetimes."""
        return None if self._decoder._instants else list(map(msgspec.structs.astuple, self.records))

    def categorical(self) -> list[tuple[str | None, ...]]:
        """One tuple a row, in the order of the schema's `categorical_names`; missing is None."""
        return list(map(self._decoder._get_categorical, self.records))

    def coded(self) -> None:
        """Its texts are not coded (those of an Arrow body are)."""

    def frame(self) -> pd.DataFrame:
        """The canonical frame of `FeatureSchema.canonical`: n rows, the features in schema order."""
        import pandas as pd

        schema = self._decoder.schema
        columns: dict[str, Any] = dict(zip(schema.numeric_names, self.numeric().T, strict=True))
        rows = self.categorical()
        for position, name in enumerate(schema.categorical_names):
            column = np.empty(self.n, dtype=object)
            column[:] = [np.nan if row[position] is None else row[position] for row in rows]
            columns[name] = column
        return pd.DataFrame({name: columns[name] for name in schema.names}, columns=list(schema.names), copy=True)

    def to_json(self) -> bytes:
        """The canonical request body, `{"records":[…]}` with `"ids":[…]` when there are some."""
        body: dict[str, Any] = {"records": self.records}
        if self.ids is not None:
            body["ids"] = self.ids
        return msgspec.json.encode(body)


class RequestDecoder:
    """Turns the body of `POST /predict`, or the columns of a V2 request, into a `Batch` of at most `max_records` rows.

    Any column name works: the generated record type calls its fields f0, f1, … and msgspec renames them on the wire.
    `extra` names columns a record may have that no model sees: text, a number, true, false or null.
    `max_chars` bounds the text of a category and of an extra column; more is refused.
    Records are not tracked by the garbage collector (`gc=False`): they hold only strings and numbers.
    """

    def __init__(
        self, schema: FeatureSchema, max_records: int, extra: Sequence[str] = (), *, max_chars: int = LONGEST_CATEGORY
    ) -> None:
        if max_records < 1:
            raise ValueError(f"max_records is {max_records}; a request needs room for at least 1 record")
        self.schema = schema
        self.max_records = max_records
        self.max_chars = max_chars
        text: Any = Annotated[str, msgspec.Meta(max_length=max_chars)]
        types: dict[str, Any] = {
            "numeric": _Number | None,
            "boolean": bool | None,
            "categorical": text | None,
            "datetime": Annotated[str, msgspec.Meta(max_length=INSTANT_CHARS)] | None,
        }
        self.extra = tuple(extra)
        self.plans: dict[bytes, Any] = {}
        """What was worked out about forms that are not JSON: see `monitoring.arrow_plain`."""
        self._features: dict[str, Feature] = {feature.name: feature for feature in schema.features}
        fields = {feature.name: f"f{position}" for position, feature in enumerate(schema.features)}
        self._extra = {name: f"x{position}" for position, name in enumerate(extra)}
        known: list[Any] = [(fields[feature.name], types[feature.kind]) for feature in schema.features]
        self._record: Callable[..., Any] = msgspec.defstruct(
            "Record",
            [*known, *((field, text | _Number | bool | None, None) for field in self._extra.values())],
            rename={field: name for name, field in (fields | self._extra).items()},
            forbid_unknown_fields=True,
            gc=False,
        )
        ident = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_CHARS)]
        body = msgspec.defstruct(
            "Body",
            [
                ("records", Annotated[list[self._record], msgspec.Meta(min_length=1, max_length=max_records)]),  # type: ignore[name-defined]
                ("ids", list[ident] | None, None),
            ],
            forbid_unknown_fields=True,
        )
        line = self._record
        if self.named_by is not None:
            named = ("id", ident | msgspec.UnsetType, msgspec.UNSET)
            line = msgspec.defstruct("Line", [named], bases=(line,), forbid_unknown_fields=True, gc=False)
        self._decode_lines = cast(Callable[[bytes], list[Any]], msgspec.json.Decoder(line).decode_lines)
        self._columns = msgspec.defstruct(
            "Columns",
            [(fields[feature.name], GenericAlias(list, (types[feature.kind],))) for feature in schema.features],
            rename={field: name for name, field in fields.items()},
            forbid_unknown_fields=True,
        )
        self._get_columns = _tuple_getter(list(fields.values()))
        self._decode = cast(Callable[[bytes], _Body], msgspec.json.Decoder(body).decode)
        numeric = schema.numeric_names
        self._numeric_width = len(numeric)
        self._get_numeric = _tuple_getter([fields[name] for name in numeric])
        self._get_categorical = _tuple_getter([fields[name] for name in schema.categorical_names])
        self._texts = tuple(at for at, f in enumerate(schema.features) if f.kind in ("categorical", "datetime"))
        self._instants = tuple(at for at, name in enumerate(numeric) if self._features[name].kind == "datetime")

    def decode(self, body: bytes) -> Batch:
        """The batch in a JSON body; raises `InvalidRequest`, whatever the bytes are, or `MoreAsked`."""
        try:
            request = self._decode(body)
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors, and so is bad UTF-8
            self._raise_more_asked(body)
            self._refuse(body, error)
        records, ids = request.records, request.ids
        if ids is not None and (len(ids) != len(records) or not "".join(ids).isprintable()):
            self._refuse(body)
        if not self._instants:
            return Batch(self, records, ids)
        try:
            return Batch(self, records, ids, self._with_instants(records))
        except (ValueError, OverflowError) as error:
            self._refuse(body, error)

    def decode_lines(self, body: bytes) -> Batch:
        """The batch in NDJSON: a record on each line, beside its features perhaps its id (see `named_by`).

        Raises `InvalidRequest`, and nothing else, for the same faults as `decode`, in the same words.
        """
        try:
            lines = self._decode_lines(body)
        except (ValueError, RecursionError) as error:
            self._refuse_lines(body, error)
        self.check_count(len(lines), "records")
        # msgspec takes any white space for the end of a line.
        plain = body.count(b"\n") + (not body.endswith(b"\n")) == len(lines)
        if not plain and sum(1 for line in body.split(b"\n") if line.strip()) != len(lines):
            self._refuse_lines(body)
        records, ids = lines, None
        if self.named_by is not None:
            ids = [line.id for line in lines if line.id is not msgspec.UNSET] or None
        if ids is not None:
            if len(ids) != len(lines) or not "".join(ids).isprintable():
                self._refuse_lines(body)
            records = [self._record(*msgspec.structs.astuple(line)[:-1]) for line in lines]
        try:
            return Batch(self, records, ids, self._with_instants(records) if self._instants else None)
        except (ValueError, OverflowError) as error:
            self._refuse_lines(body, error)

    @property
    def named_by(self) -> str | None:
        """Name of the column, or of a line's key, that gives the ids; None where a feature or other column has it."""
        return None if "id" in self._features or "id" in self._extra else "id"

    def from_columns(
        self, columns: dict[str, list[Any]], ids: list[str] | None = None, noun: Literal["input", "column"] = "input"
    ) -> Batch:
        """The batch of one list of JSON values for each feature, all of one length; NaN counts as missing.

        Raises `InvalidRequest` for the same faults as `decode`; its messages name the input: `input "age"[3]: …`, or,
        of a `noun` "column", the value in its row: `records[3].age: …`.
        """
        given = {name: columns[name] for name in self._features if name in columns}
        others = [columns.get(name) if noun == "column" else None for name in self._extra]
        try:
            if len(given) + len(others) - others.count(None) != len(columns):
                self._checked(columns, noun)
            lists = self._get_columns(msgspec.convert(given, self._columns))
            for at in self._texts:
                "".join(filter(None, lists[at])).encode()  # refuses lone surrogates, which no JSON body can carry on
        except (ValueError, RecursionError):
            lists = self._get_columns(msgspec.convert(self._checked(columns, noun), self._columns))
        rows = len(lists[0])
        if not 1 <= rows <= self.max_records:
            self.check_count(rows, "inputs" if noun == "input" else "records")
        if any(len(values) != rows for values in lists):
            self._checked(columns, noun)
        if ids is not None:
            problem = ids_problem(ids, rows)
            if problem:
                raise problem
        for name, values in zip(self._extra, others, strict=True):
            for row, value in enumerate(values or ()):
                wrong = extra_problem(value, self.max_chars)
                if wrong:
                    raise wrong.at(f"records[{row}]{step(name)}", "records[]: an extra column")
        records = list(map(self._record, *lists, *(repeat(None) if one is None else one for one in others)))
        if not self._instants:
            return Batch(self, records, ids)
        try:
            return Batch(self, records, ids, self._with_instants(records))
        except (ValueError, OverflowError):
            self._checked(columns, noun)
            raise

    def _checked(self, columns: dict[str, list[Any]], noun: str) -> dict[str, list[Any]]:
        """The features' columns with null for NaN; raises `InvalidRequest` for the first fault in them."""
        for name in columns:
            if name not in self._features and (noun == "input" or name not in self._extra):
                raise self.unknown(f"{noun} {_shown(name)}", name, noun)
        first = next(iter(self._features))
        checked = {}
        for name, feature in self._features.items():
            where = f"{noun} {_shown(name)}"
            if name not in columns:
                message = f"{where}: missing; send one {noun} for each feature: {self._names()}"
                raise InvalidRequest(400, message, f"{where}: missing")
            values = columns[name]
            if not isinstance(values, list):
                raise InvalidRequest(400, f"{where}: expected a list, got {_shown(values)}", f"{where}: not a list")
            if len(values) != len(columns[first]):
                message = (
                    f"{where}: {len(values)} values, but {noun} {_shown(first)} has {len(columns[first])}; "
                    f"every {noun} needs one value for each row"
                )
                raise InvalidRequest(400, message, f"{noun}s of unequal length")
            checked[name] = [None if value != value else value for value in values]
            for row, value in enumerate(checked[name]):
                problem = value_problem(feature, value, self.max_chars)
                if problem and noun == "input":
                    raise problem.at(f"{where}[{row}]", where)
                if problem:
                    raise problem.at(f"records[{row}]{step(name)}", f"records[]{step(name)}")
        return checked

    def _with_instants(self, records: list[Any]) -> npt.NDArray[np.float32]:
        """The numeric matrix of a schema with datetimes; raises ValueError when one is not ISO-8601."""
        rows = [list(self._get_numeric(record)) for record in records]
        for row in rows:
            for at in self._instants:
                if row[at] is not None:
                    row[at] = days_since_epoch(row[at])
        return np.array(rows, dtype=np.float32)

    def _raise_more_asked(self, body: bytes) -> None:
        """Raise `MoreAsked`, or `InvalidRequest`, when the body asks for more than answers in the right way."""
        if b'"record"' not in body and b'"warnings"' not in body:
            return
        try:
            more = msgspec.json.decode(body, type=_More)
        except (ValueError, RecursionError):
            return
        if more.record is msgspec.UNSET and more.warnings is msgspec.UNSET:
            return  # the words stand elsewhere in it
        plain = msgspec.json.encode(_Plain(more.records, more.ids))
        raise MoreAsked(self, self.decode(plain), plain, more)

    # -- the second, slow reading: what exactly is wrong? --------------------------------------------------------------

    def _refuse(self, body: bytes, error: Exception | None = None) -> NoReturn:
        if error is not None and len(body) > LOOK_BYTES:
            raise self._in_short(error) from None
        try:
            self._check(_parse(body, self._expected()))
        except InvalidRequest as problem:
            raise problem from None
        except RecursionError:
            raise InvalidRequest(
                400, f"the body is nested too deeply; {self._expected()}", "nested too deeply"
            ) from None
        # Reached only if the strict reader refuses what the slow one has no words for.
        raise InvalidRequest(400, f"the body was refused: {error}; {self._expected()}", "refused") from None

    def _refuse_lines(self, body: bytes, error: Exception | None = None) -> NoReturn:
        """The same, of NDJSON."""
        if error is not None and len(body) > LOOK_BYTES:
            raise self._in_short(error) from None
        lines = [line for line in body.split(b"\n") if line.strip()]
        self.check_count(len(lines), "records")
        named = self.named_by
        ids = []
        for index, line in enumerate(lines):
            path = f"records[{index}]"
            try:
                record = _parse(line, "each line is one record, an object")
            except InvalidRequest as problem:
                raise InvalidRequest(400, f"{path}: {problem.message}", problem.reason) from None
            except RecursionError:
                raise InvalidRequest(400, f"{path}: nested too deeply", "nested too deeply") from None
            if isinstance(record, _Object):
                ids += [value for key, value in record if key == named]
                record = _Object(pair for pair in record if pair[0] != named)
            self._check_record(path, record)
        problem_of_ids = ids_problem(ids, len(lines)) if ids else None
        if problem_of_ids is not None:
            raise problem_of_ids
        raise InvalidRequest(400, f"the body was refused: {error}; send one record a line", "refused") from None

    def _in_short(self, error: Exception) -> InvalidRequest:
        """What the strict decoder says, for a body that is too large to be read a second time."""
        words, _, place = str(error).partition(" - at `$")
        path = place.strip("`.")
        if path == "records" and "length <=" in words:
            message = f"records: more than the {self.max_records} allowed at once; send smaller batches"
            return InvalidRequest(413, message, "records: too many records")
        beyond = "out of range" in words or "Expected `float` <" in words or "Expected `float` >" in words
        message = f"{path}: {words}" if path else f"the body is refused: {words}"
        return InvalidRequest(422 if beyond else 400, f"{message[:300]}; {self._expected()}", "a large body refused")

    def _check(self, body: Any) -> None:
        """Raise `InvalidRequest` for the first fault in a body as `_parse` gives it."""
        if not isinstance(body, _Object):
            raise InvalidRequest(400, f"{self._expected()}; got {_shown(body)}", "body is not an object")
        keys = [key for key, _ in body]
        for key in keys:
            if key not in _KEYS:
                known = f"{', '.join(_KEYS[:-1])} and {_KEYS[-1]}"
                message = f"{_key(key)}: unknown key; the keys are {known}{_nearest(key, _KEYS)}"
                raise InvalidRequest(400, message, "unknown key")
        if "records" not in keys:
            raise InvalidRequest(400, f"records: missing; {self._expected()}", "records: missing")
        rows = 0
        for key, value in body:
            if key in ("record", "warnings") and not isinstance(value, bool):
                raise InvalidRequest(400, f"{key}: expected true or false, got {_shown(value)}", f"{key}: not a bool")
            if key == "records":
                if not isinstance(value, list) or isinstance(value, _Object):
                    raise InvalidRequest(
                        400, f"records: expected a list of objects, got {_shown(value)}", "records: not a list"
                    )
                self.check_count(len(value), "records")
                rows = len(value)
                for index, record in enumerate(value):
                    self._check_record(f"records[{index}]", record)
        for key, value in body:
            if key == "ids" and value is not None:
                problem = ids_problem(value, rows)
                if problem:
                    raise problem

    def check_count(self, count: int, what: str) -> None:
        """Raise `InvalidRequest` for no rows, or for too many."""
        if count == 0:
            raise InvalidRequest(400, f"{what}: empty; send at least one record", f"{what}: empty")
        if count > self.max_records:
            raise InvalidRequest(
                413,
                f"{what}: {count} records, more than the {self.max_records} allowed at once; send smaller batches",
                f"{what}: too many records",
            )

    def _check_record(self, path: str, record: Any) -> None:
        if not isinstance(record, _Object):
            raise InvalidRequest(
                400,
                f"{path}: expected an object with one value for each feature, got {_shown(record)}",
                "records[]: not an object",
            )
        present = set()
        for name, value in record:
            feature = self._features.get(name)
            if feature is None and name in self._extra:
                problem = extra_problem(value, self.max_chars)
                if problem:
                    raise problem.at(path + step(name), "records[]: an extra column")
                continue
            if feature is None:
                raise self.unknown(path + step(name), name, "feature")
            present.add(name)
            problem = value_problem(feature, value, self.max_chars)
            if problem:
                raise problem.at(path + step(name), "records[]" + step(name))
        for name in self._features:
            if name not in present:
                raise InvalidRequest(
                    400,
                    f"{path}{step(name)}: missing; send null when the value is unknown",
                    f"records[]{step(name)}: missing",
                )

    def unknown(self, path: str, name: str, noun: str) -> InvalidRequest:
        """What a client is told of a name that is no feature's."""
        return InvalidRequest(
            400,
            f"{path}: unknown {noun}; the features are {self._names()}{_nearest(name, list(self._features))}",
            f"unknown {noun}",
        )

    def _names(self) -> str:
        names = list(self._features)
        more = len(names) - SHOWN_NAMES
        return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more (GET /schema lists them)" if more > 0 else "")

    def _expected(self) -> str:
        record = self.schema.example(self.max_chars)
        short = dict(list(record.items())[:2])
        text = json.dumps(short, ensure_ascii=False)
        if len(record) > len(short):
            text = text[:-1] + ", …}"
        return f'expected an object such as {{"records": [{text}]}}'


class _Object(list[tuple[str, Any]]):
    """A JSON object as its pairs: repeated keys are kept, since the strict decoder checks each of them."""


class _Literal(str):
    """The text of a number that is no finite double: NaN, Infinity, -Infinity or one like 1e400."""


def _parse(body: bytes, expected: str) -> Any:
    """The body as JSON, with objects as `_Object` and impossible numbers as `_Literal`; `InvalidRequest` otherwise."""
    if not body.strip():
        raise InvalidRequest(400, f"the body is empty; {expected}", "empty body")
    try:
        text = bytes(body).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            400, f"the body is not UTF-8 text (byte {error.start}); send JSON in UTF-8", "not UTF-8"
        ) from None
    try:
        return json.loads(
            text, object_pairs_hook=_Object, parse_constant=_Literal, parse_float=_number, parse_int=_number
        )
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            400,
            f"the body is not JSON: {error.msg[:1].lower()}{error.msg[1:]} at line {error.lineno}, "
            f"column {error.colno}; {expected}",
            "not JSON",
        ) from None


def _number(text: str) -> Any:
    value = float(text)
    if not math.isfinite(value):
        return _Literal(text)
    return int(text) if text.lstrip("-").isdigit() and len(text) < 20 else value


class Problem(NamedTuple):
    """What is wrong with one value, before it is known where it stands."""

    status: int
    message: str
    reason: str

    def at(self, path: str, where: str) -> InvalidRequest:
        return InvalidRequest(self.status, f"{path}: {self.message}", f"{where}: {self.reason}")


def value_problem(feature: Feature, value: Any, max_chars: int) -> Problem | None:
    """Why one JSON value does not fit its feature, or None."""
    if value is None:
        return None
    expected = _EXPECTED[feature.kind]
    if feature.kind == "numeric":
        if isinstance(value, _Literal | int | float) and not isinstance(value, bool):
            return _number_problem(value, "the model takes float32 numbers, up to ±3.4e38")
    elif feature.kind == "boolean":
        if isinstance(value, bool):
            return None
    elif isinstance(value, str) and not isinstance(value, _Literal):
        problem = _text_problem(value, max_chars if feature.kind == "categorical" else INSTANT_CHARS)
        if problem or feature.kind == "categorical" or _is_instant(value):
            return problem
    return Problem(400, f"expected {expected}, got {_shown(value)}", f"expected {expected}, got {_type_name(value)}")


def extra_problem(value: Any, max_chars: int) -> Problem | None:
    """Why one JSON value cannot stand in a column that no model sees, or None."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, _Literal | int | float):
        return _number_problem(value, "send numbers up to ±3.4e38")
    if isinstance(value, str):
        return _text_problem(value, max_chars)
    return Problem(400, f"expected text, a number, true, false or null, got {_shown(value)}", "another type")


def _number_problem(value: Any, remedy: str) -> Problem | None:
    if isinstance(value, _Literal) and value.lstrip("-") in ("NaN", "Infinity"):
        return Problem(400, f"{value} is not JSON; send null when the value is unknown", str(value))
    if feature_number(value):
        return None
    return Problem(422, f"{_shown(value)} is too large; {remedy}", "outside float32")


def _text_problem(value: str, max_chars: int) -> Problem | None:
    if not _is_unicode(value):
        message = f"{_shown(value)} has half of a surrogate pair (\\ud800 to \\udfff); send whole characters"
        return Problem(400, message, "lone surrogate")
    if len(value) > max_chars:
        return Problem(400, f"{len(value):,} characters; send at most {max_chars:,}", "too long")
    return None


def ids_problem(ids: Any, rows: int) -> InvalidRequest | None:
    if not isinstance(ids, list) or isinstance(ids, _Object):
        return InvalidRequest(
            400, f"ids: expected a list of strings (one for each record) or null, got {_shown(ids)}", "ids: not a list"
        )
    for index, value in enumerate(ids):
        if not isinstance(value, str) or isinstance(value, _Literal):
            return InvalidRequest(400, f"ids[{index}]: expected a string, got {_shown(value)}", "ids[]: not a string")
        if not 1 <= len(value) <= ID_CHARS:
            return InvalidRequest(
                400,
                f"ids[{index}]: expected 1 to {ID_CHARS} characters, got {len(value)}",
                "ids[]: too short or too long",
            )
        if not value.isprintable():
            return InvalidRequest(
                400, f"ids[{index}]: {_shown(value)} has characters that cannot be printed", "ids[]: not printable"
            )
    if len(ids) != rows:
        return InvalidRequest(
            400, f"ids: {len(ids)} ids for {rows} records; send one for each record, or leave ids out", "ids: count"
        )
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False


def _is_instant(text: str) -> bool:
    try:
        days_since_epoch(text)
        return True
    except (ValueError, OverflowError):
        return False


def _shown(value: Any) -> str:
    """A value as JSON, cut to 40 characters; objects and lists by their kind only."""
    if isinstance(value, _Object | dict):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, _Literal):
        text = str(value)
    elif isinstance(value, str):
        text = json.dumps(value[: SHOWN_CHARS + 1], ensure_ascii=False)
    elif isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        text = "an integer of more than 77 digits"  # Python refuses to print very long ones
    else:
        try:
            text = json.dumps(value)
        except (TypeError, ValueError):
            text = repr(value)
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"


def _type_name(value: Any) -> str:
    if isinstance(value, _Object | dict):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, _Literal | int | float):
        return "a number"
    return "a string" if isinstance(value, str) else "another type"


def _key(name: str) -> str:
    """A name as the client would write it in a path: bare when it is plain, quoted when not."""
    return name if name.isidentifier() and len(name) <= SHOWN_CHARS else _shown(name)


def step(name: str) -> str:
    return f".{name}" if name.isidentifier() and len(name) <= SHOWN_CHARS else f"[{_shown(name)}]"


def _nearest(name: str, known: Iterable[str]) -> str:
    found = nearest(name, known)
    return f"; did you mean {found}?" if found else ""


def _tuple_getter(fields: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """`attrgetter` that gives a tuple for any number of fields (bare, it gives a scalar for one and fails for none)."""
    if not fields:
        return lambda record: ()
    get = attrgetter(*fields)
    return (lambda record: (get(record),)) if len(fields) == 1 else get
