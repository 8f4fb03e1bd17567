"""Which columns does the model take? Names, kinds, order, ranges and categories, inferred from a training frame.

A feature has three forms, and this module is where they meet: what a training frame holds (any pandas dtype), what a
client sends (JSON), and the canonical form both become (float32 or str, missing = NaN), which drift, quality and
training read. API workers import this module: pandas is imported only inside the functions that take frames.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from monitoring import fits
from monitoring.errors import CannotGoOn
from monitoring.fits import CATEGORY_CHARS, FLOAT32_LIMIT, INSTANT_CHARS, days_since_epoch
from monitoring.nearest import nearest

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "FORMAT",
    "MAX_CATEGORIES",
    "RESERVED_COLUMNS",
    "Feature",
    "FeatureSchema",
    "Kind",
    "SchemaError",
    "Task",
    "days_since_epoch",
]

Kind = Literal["numeric", "boolean", "categorical", "datetime"]
Task = Literal["binary", "multiclass", "regression"]

FORMAT: Final = 1
"""Format of schema.json. Bump it when an older Evergreen would misread a new file; keep reading the old ones."""

MAX_CATEGORIES: Final = 1000
"""Categories remembered for one feature, the most frequent ones: enough to compare, small enough to ship."""

MAX_CLASSES_FROM_INTEGERS: Final = 20
"""An integer target with at most this many distinct values is taken as classes, one with more as a quantity."""

RESERVED_COLUMNS: Final = frozenset(
    {
        "_id",
        "_at",
        "_version",
        "_prediction",
        "_score",
        "_probabilities",
        "_label",
        "_observed_at",
        "_source",
        "_holdout",
        "_origin",
    }
)
"""Columns that the recorded window and the reference add beside the features."""

_SCALARS: Final = (str, bool, int, float, Decimal, np.generic, date)
_NUMBERS: Final = (int, float, Decimal, np.integer, np.floating)
_SHOWN_CHARS: Final = 40


class SchemaError(CannotGoOn, ValueError):
    """Raised when a frame, its columns or a schema file cannot be what a model is trained on."""


class Feature(msgspec.Struct, frozen=True):
    """One column that the model takes. `minimum` and `maximum` are of the training data, as float32 sees them."""

    name: str
    kind: Kind
    nullable: bool = False  # training data had missing values
    integer: bool = False  # training data had whole numbers only by type; requests may still send fractions
    minimum: float | None = None  # numeric: as is; datetime: days since 1970-01-01 UTC; None when never present
    maximum: float | None = None
    categories: tuple[str, ...] = ()  # sorted; the 1000 most frequent

    def __post_init__(self) -> None:
        problem = _name_problem(self.name)
        if problem:
            raise SchemaError(f"column {_show(self.name)} cannot be a feature: {problem}")


class FeatureSchema(msgspec.Struct, frozen=True):
    """The features of a model in order, and its target. Two schemas with one `digest` take the same requests."""

    features: tuple[Feature, ...]
    target: str
    task: Task
    classes: tuple[str | int | bool, ...] = ()  # of classifiers, as JSON values in the order of scikit-learn's classes_
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise SchemaError(
                f"the schema has format {self.format}, this Evergreen reads {FORMAT}: use the release that wrote it"
            )
        if not self.features:
            raise SchemaError("there is no feature: a model needs at least one column besides the target")
        repeated = _first_repeated(self.names)
        if repeated is not None:
            raise SchemaError(f"column {_show(repeated)} appears twice: rename or drop one of them")
        if self.target in self.names:
            raise SchemaError(f"column {_show(self.target)} is the target and cannot be a feature too")
        if self.task == "regression":
            if self.classes:
                raise SchemaError("a regression has no classes: leave `classes` empty")
        elif len({type(value) for value in self.classes}) != 1:
            raise SchemaError(f"classes must be all strings, all integers or all booleans, got {self.classes!r}")
        elif len(self.classes) < 2 or (self.task == "binary" and len(self.classes) != 2):
            needs = "exactly 2" if self.task == "binary" else "at least 2"
            raise SchemaError(
                f"target {_show(self.target)} has {len(self.classes)} distinct value(s), {_some(self.classes)}; "
                f"a {self.task} task needs {needs}"
            )

    # -- birth and storage ---------------------------------------------------------------------------------------------

    @classmethod
    def infer(
        cls, frame: pd.DataFrame, target: str, *, ignore: Iterable[str] = (), task: Task | None = None
    ) -> FeatureSchema:
        """The schema of a training frame: every column but `target` and those in `ignore` (ids, the time column).

        Kinds: numbers -> numeric; bool, nullable boolean and objects of only True/False -> boolean; datetime64 and
        objects of date or datetime -> datetime; everything else that is scalar -> categorical, also any `category`
        dtype and object columns without one value. Objects of only numbers are numeric.
        Task, when not given: bool, text or exactly 2 distinct whole values -> binary (text with more: multiclass);
        at most 20 distinct whole numbers -> multiclass; else regression.

        >>> import pandas as pd
        >>> frame = pd.DataFrame({"age": [31, 52], "city": ["Bonn", None], "paid": [True, False]})
        >>> [feature.kind for feature in FeatureSchema.infer(frame, "paid").features]
        ['numeric', 'categorical']

        Raises SchemaError for an empty frame, repeated or unusable column names, unknown `target` or `ignore` names,
        rows without a label (drop them first), a classifier's target with one class, infinite numbers, and values that
        are no scalars.
        """
        columns = list(frame.columns)
        repeated = _first_repeated(columns)
        if repeated is not None:
            raise SchemaError(f"column {_show(repeated)} appears twice: rename or drop one of them")
        for column in columns:
            if not isinstance(column, str):
                raise SchemaError(
                    f"column name {column!r} is not a string: set frame.columns = frame.columns.astype(str) first"
                )
        ignored = [ignore] if isinstance(ignore, str) else list(ignore)
        for role, names in (("target", [target]), ("ignored", ignored)):
            for name in names:
                if name not in columns:
                    raise SchemaError(f"{role} column {_show(name)} is not in the data{_nearest(name, columns)}")
        if target in ignored:
            raise SchemaError(f"column {_show(target)} is the target and cannot be ignored")
        if len(frame) == 0:
            raise SchemaError("the frame has no rows: nothing can be learned from it")
        found, classes = _infer_target(frame[target], target, task)
        names = [column for column in columns if column != target and column not in ignored]
        return cls(tuple(_infer_feature(name, frame[name]) for name in names), target, found, classes)

    @classmethod
    def from_json(cls, data: bytes | str) -> FeatureSchema:
        """The schema in a schema.json; raises SchemaError when it is not one."""
        try:
            return msgspec.json.decode(data, type=cls)
        except (ValueError, RecursionError) as error:
            raise SchemaError(f"this is not a feature schema: {error}") from None

    def to_json(self) -> bytes:
        """The schema as stored in schema.json: the same bytes for the same schema."""
        return msgspec.json.encode(self)

    @property
    def digest(self) -> str:
        """SHA-256 hex of what requests and answers depend on: names, kinds, target, task, classes; not the ranges."""
        identity = [[[f.name, f.kind] for f in self.features], self.target, self.task, list(self.classes)]
        return hashlib.sha256(msgspec.json.encode(identity)).hexdigest()

    # -- names ---------------------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """All features, in order."""
        return tuple(feature.name for feature in self.features)

    @property
    def numeric_names(self) -> tuple[str, ...]:
        """Features that are float32 in canonical form (numeric, boolean, datetime), in order."""
        return tuple(feature.name for feature in self.features if feature.kind != "categorical")

    @property
    def categorical_names(self) -> tuple[str, ...]:
        """Features that are text in canonical form, in order."""
        return tuple(feature.name for feature in self.features if feature.kind == "categorical")

    # -- data ----------------------------------------------------------------------------------------------------------

    def canonical(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The features of a frame in schema order and canonical form; a canonical frame comes back as it is.

        float32 for numeric, boolean (0/1) and datetime (days since 1970-01-01 UTC), missing = NaN; object of str for
        categorical, missing = np.nan (None, NaN and pd.NA are missing, "" is a value; numbers become their text,
        whole ones without ".0", as pandas turns integers with gaps into floats). The index is kept.
        Raises SchemaError naming the column and its first bad value.
        """
        import pandas as pd

        columns = {}
        for feature in self.features:
            if feature.name not in frame.columns:
                raise SchemaError(
                    f"column {_show(feature.name)} is missing from the data{_nearest(feature.name, frame.columns)}"
                )
            column = frame[feature.name]
            if isinstance(column, pd.DataFrame):
                raise SchemaError(f"column {_show(feature.name)} appears twice: rename or drop one of them")
            columns[feature.name] = _CANONICAL[feature.kind](feature.name, column)
        return pd.DataFrame(columns, index=frame.index, columns=list(self.names))

    def frame(self, records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        """The canonical frame of decoded JSON records, as clients send them; n rows numbered from 0.

        A feature that a record lacks is missing and other keys are passed over, so that rows recorded under an earlier
        schema can still be read. Raises SchemaError naming the column and its first bad value.
        """
        import pandas as pd

        columns = {}
        for feature in self.features:
            values = pd.Series([record.get(feature.name) for record in records], dtype=object)
            columns[feature.name] = _CANONICAL[feature.kind](feature.name, values)
        return pd.DataFrame(columns, index=pd.RangeIndex(len(records)), columns=list(self.names))

    def labels(self, series: pd.Series[Any] | Sequence[Any]) -> npt.NDArray[Any]:
        """Labels in canonical form: float64 for a regression; int64, bool or object of str as the classes are.

        Classes not in the schema are kept. Raises SchemaError for missing labels (drop those rows) and for values that
        are not of the target's type.
        """
        import pandas as pd

        column = series if isinstance(series, pd.Series) else pd.Series(list(series), dtype=object)
        _refuse_missing_labels(self.target, column)
        if self.task == "regression":
            return _finite(self.target, _numbers(self.target, column), column)
        if isinstance(self.classes[0], str):
            return _texts(self.target, column)
        if isinstance(self.classes[0], bool):
            if not _only_booleans(column):
                raise _unfit(self.target, "True or False", column, lambda value: isinstance(value, bool | np.bool_))
            return np.array(column, dtype=bool)
        if column.dtype == np.int64:
            return np.array(column, dtype=np.int64)
        values = [value.item() if isinstance(value, np.generic) else value for value in column.tolist()]
        for value in values:
            if isinstance(value, Decimal) and _is_finite(value) and value == int(value):
                value = int(value)
            if not fits.whole_number(value):
                raise SchemaError(
                    f"target {_show(self.target)}: expected whole numbers (the classes are {_some(self.classes)}), "
                    f"got {_show(value)}"
                )
        return np.fromiter(map(int, values), np.int64, len(values))

    def takes_label(self, value: Any) -> bool:
        """Whether a JSON value has the type of the target and can be read, also when it is no class of the model.

        What rooms ask of labels and answers: another version may have had the class.
        """
        if self.task == "regression":
            return fits.target_number(value)
        if isinstance(self.classes[0], str):
            return isinstance(value, str) and (len(value) <= fits.LABEL_CHARS or value in self.classes)
        if isinstance(self.classes[0], bool):
            return isinstance(value, bool)
        return fits.whole_number(value)

    def check_label(self, value: Any) -> str | None:
        """None when a JSON value is a label that this model can learn from, else why not: what the door asks."""
        if value is None:
            return fits.label_problem(value)
        if not self.takes_label(value):
            if self.task == "regression":
                far = fits.is_number(value)
                expected = f"a finite number within ±{fits.TARGET_LIMIT:g}" if far else "a number"
                return f"expected {expected}, got {_show(value)}"
            if isinstance(value, str) and isinstance(self.classes[0], str):
                return fits.label_problem(value)
            kinds = {str: "a string", bool: "true or false", int: "an integer"}
            return f"expected {kinds[type(self.classes[0])]} such as {json.dumps(self.classes[0])}, got {_show(value)}"
        if self.task == "regression" or value in self.classes:
            return None
        return f"{_show(value)} is no class of the model; its classes are {_some(self.classes, 10)}"

    def example(self, max_chars: int = CATEGORY_CHARS) -> dict[str, Any]:
        """One record that the decoder accepts, with values typical of the training data."""
        return {feature.name: (_examples(feature, max_chars) or [None])[0] for feature in self.features}

    def json_schema(self, max_chars: int = CATEGORY_CHARS) -> dict[str, Any]:
        """JSON Schema (2020-12) of one record; the target is `$defs.label`, and `x-evergreen` says task and classes.

        Ranges and categories are descriptions and examples, never limits: values not seen in training are taken too.
        Text of more than `max_chars` characters is not.
        """
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "record",
            "description": "One row to predict. Every feature is required; null stands for an unknown value.",
            "type": "object",
            "properties": {feature.name: _property(feature, max_chars) for feature in self.features},
            "required": list(self.names),
            "additionalProperties": False,
            "examples": [self.example(max_chars)],
            "$defs": {"label": _label_property(self)},
            "x-evergreen": {
                "target": self.target,
                "task": self.task,
                "classes": list(self.classes),
                "digest": self.digest,
            },
        }


# -- inference ---------------------------------------------------------------------------------------------------------


def _infer_feature(name: str, column: pd.Series[Any]) -> Feature:
    kind, integer = _infer_kind(name, column)
    values = _CANONICAL[kind](name, column)
    if kind == "categorical":
        import pandas as pd

        counts = pd.Series(values, dtype=object).value_counts(dropna=True)
        frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_CATEGORIES]
        categories = tuple(sorted(str(category) for category, _ in frequent))
        return Feature(name, kind, bool(column.isna().any()), categories=categories)
    missing = np.isnan(values)
    present = values[~missing]
    ranged = kind in ("numeric", "datetime") and present.size > 0
    return Feature(
        name,
        kind,
        nullable=bool(missing.any()),
        integer=integer,
        minimum=float(present.min()) if ranged else None,
        maximum=float(present.max()) if ranged else None,
    )


def _infer_kind(name: str, column: pd.Series[Any]) -> tuple[Kind, bool]:
    """The kind, and whether the type admits only whole numbers."""
    import pandas as pd

    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return "categorical", False
    if pd.api.types.is_bool_dtype(dtype):
        return "boolean", False
    if pd.api.types.is_datetime64_any_dtype(dtype):
        return "datetime", False
    if pd.api.types.is_complex_dtype(dtype) or pd.api.types.is_timedelta64_dtype(dtype):
        raise SchemaError(f"column {_show(name)} has dtype {dtype}: convert it to a number, or ignore it")
    if pd.api.types.is_numeric_dtype(dtype):
        return "numeric", pd.api.types.is_integer_dtype(dtype)
    present = column[~column.isna()].astype(object)
    content = pd.api.types.infer_dtype(present, skipna=True)
    if content == "boolean":
        return "boolean", False
    if content in ("integer", "floating", "mixed-integer-float", "decimal"):
        return "numeric", content == "integer"
    if len(present) and all(isinstance(value, date | np.datetime64) for value in present):
        return "datetime", False
    return "categorical", False


def _infer_target(column: pd.Series[Any], target: str, task: Task | None) -> tuple[Task, tuple[str | int | bool, ...]]:
    if task is not None and task not in get_args(Task):
        raise SchemaError(f"task is {task!r}; it must be one of {', '.join(get_args(Task))}")
    _refuse_missing_labels(target, column)
    kind, _ = _infer_kind(target, column)
    if kind == "datetime":
        raise SchemaError(f"target {_show(target)} holds dates: derive a number or a class from it first")
    if kind != "numeric":
        if task == "regression":
            raise SchemaError(
                f"target {_show(target)} holds {'booleans' if kind == 'boolean' else 'text'}, such as "
                f"{_show(column.iloc[0])}; a regression needs numbers"
            )
        classes: tuple[str | int | bool, ...]
        if kind == "boolean":
            classes = tuple(sorted({bool(value) for value in column}))
        else:
            classes = tuple(sorted(set(_texts(target, column).tolist())))
        return _task_of(target, classes, task), classes
    numbers = _finite(target, _numbers(target, column), column)
    if task == "regression":
        return "regression", ()
    distinct = np.unique(numbers)
    # By float64 the greatest int64 would be 2**63, and too large.
    whole = column.dtype == np.int64 or bool(((distinct == np.floor(distinct)) & (np.abs(distinct) < 2.0**63)).all())
    if task is None and (not whole or distinct.size > MAX_CLASSES_FROM_INTEGERS):
        return "regression", ()
    if not whole:
        fraction = distinct[distinct != np.floor(distinct)]
        raise SchemaError(
            f"target {_show(target)} is not whole, such as {float(fraction[0] if fraction.size else distinct[0])!r}; "
            f"the classes of a {task} task are whole numbers, strings or booleans"
        )
    classes = tuple(sorted({int(value) for value in column}))
    return _task_of(target, classes, task), classes


def _task_of(target: str, classes: Sequence[Any], task: Task | None) -> Task:
    if len(classes) < 2:
        raise SchemaError(
            f"target {_show(target)} has one class only, {_some(classes)}: a classifier needs rows of at least two"
        )
    if task == "binary" and len(classes) > 2:
        raise SchemaError(
            f"target {_show(target)} has {len(classes)} distinct values, {_some(classes)}; a binary task needs 2"
        )
    return task or ("binary" if len(classes) == 2 else "multiclass")


def _refuse_missing_labels(target: str, column: pd.Series[Any]) -> None:
    missing = int(column.isna().sum())
    if missing:
        raise SchemaError(
            f"target {_show(target)} is missing in {missing} of {len(column)} rows: drop those rows first"
        )


# -- one column in canonical form --------------------------------------------------------------------------------------


def _canonical_numeric(name: str, column: pd.Series[Any]) -> npt.NDArray[Any]:
    return _float32(name, _numbers(name, column), column)


def _canonical_boolean(name: str, column: pd.Series[Any]) -> npt.NDArray[Any]:
    if _only_booleans(column):
        return np.fromiter(
            (math.nan if missing else value for value, missing in zip(column, column.isna(), strict=True)),
            np.float32,
            len(column),
        )
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column.dtype):
        numbers = _numbers(name, column)
        if (np.isnan(numbers) | (numbers == 0) | (numbers == 1)).all():
            return numbers.astype(np.float32)
        raise _unfit(name, "True, False, 1 or 0", column, lambda value: value in (0, 1))
    raise _unfit(name, "True or False", column, lambda value: isinstance(value, bool | np.bool_))


def _canonical_datetime(name: str, column: pd.Series[Any]) -> npt.NDArray[Any]:
    import pandas as pd

    dtype = column.dtype
    if pd.api.types.is_datetime64_any_dtype(dtype):
        if getattr(dtype, "tz", None) is not None:
            column = column.dt.tz_convert("UTC").dt.tz_localize(None)
        instants = column.to_numpy(dtype="datetime64[us]")
        days: npt.NDArray[np.float64] = instants.astype(np.int64) / 86_400_000_000
        days[np.isnat(instants)] = np.nan
        return days.astype(np.float32)
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype):
        return _float32(name, _numbers(name, column), column)  # canonical already
    days = np.empty(len(column), dtype=np.float64)
    for row, (value, missing) in enumerate(zip(column, column.isna(), strict=True)):
        try:
            days[row] = math.nan if missing else _days(value)
        except (TypeError, ValueError, OverflowError):
            raise SchemaError(
                f"column {_show(name)}: expected a date or an ISO-8601 string, got {_show(value)}"
            ) from None
    return days.astype(np.float32)


def _days(value: Any) -> float:
    if isinstance(value, np.datetime64):
        return float(value.astype("datetime64[us]").astype(np.int64)) / 86_400_000_000
    if isinstance(value, str | date):
        return days_since_epoch(value)
    raise TypeError


def _texts(name: str, column: pd.Series[Any]) -> npt.NDArray[Any]:
    """Object array of str, missing = np.nan."""
    values: npt.NDArray[Any] = column.to_numpy(dtype=object, copy=True)
    missing = column.isna().to_numpy(dtype=bool)
    values[missing] = np.nan
    for row, value in enumerate(values.tolist()):
        if type(value) is str or missing[row]:
            continue
        if not isinstance(value, _SCALARS):
            raise SchemaError(
                f"column {_show(name)}: expected text, got {_show(value)} of type {type(value).__name__}; "
                "turn it into columns of single values, or ignore it"
            )
        values[row] = _text(value)
    return values


def _text(value: Any) -> str:
    if isinstance(value, float | np.floating) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value)


def _numbers(name: str, column: pd.Series[Any]) -> npt.NDArray[np.float64]:
    """Float64, missing = NaN; raises SchemaError for anything that is not a number."""
    import pandas as pd

    dtype = column.dtype
    numeric = pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype)
    if numeric and not pd.api.types.is_bool_dtype(dtype):
        return np.array(column.to_numpy(dtype=np.float64, na_value=np.nan))
    values = [None if missing else value for value, missing in zip(column.tolist(), column.isna(), strict=True)]
    types = set(map(type, values)) - {type(None)}
    if not all(issubclass(kind, _NUMBERS) and kind is not bool for kind in types):
        raise _unfit(name, "a number", column, _is_number)
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:
        raise _unfit(name, "a number that fits float32", column, _is_finite) from None


def _float32(name: str, numbers: npt.NDArray[np.float64], column: pd.Series[Any]) -> npt.NDArray[np.float32]:
    bad = np.abs(numbers) >= FLOAT32_LIMIT
    if bad.any():
        raise SchemaError(
            f"column {_show(name)}: {_show(column.iloc[int(np.argmax(bad))])} is infinite or outside float32; "
            "the model takes finite numbers up to ±3.4e38, or missing"
        )
    return numbers.astype(np.float32)


def _finite(target: str, numbers: npt.NDArray[np.float64], column: pd.Series[Any]) -> npt.NDArray[np.float64]:
    bad = ~(np.abs(numbers) <= fits.TARGET_LIMIT)
    if bad.any():
        raise SchemaError(
            f"target {_show(target)}: expected finite numbers within ±{fits.TARGET_LIMIT:g}, "
            f"got {_show(column.iloc[int(np.argmax(bad))])}"
        )
    return numbers


def _only_booleans(column: pd.Series[Any]) -> bool:
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)
    if pd.api.types.is_bool_dtype(column.dtype):
        return True
    return column.dtype == object and all(isinstance(value, bool | np.bool_) for value in column[~column.isna()])


def _unfit(name: str, expected: str, column: pd.Series[Any], fits: Any) -> SchemaError:
    for value in column[~column.isna()]:
        if not fits(value):
            return SchemaError(f"column {_show(name)}: expected {expected}, got {_show(value)}")
    return SchemaError(f"column {_show(name)}: expected {expected}, got dtype {column.dtype}")


_CANONICAL: Final = {
    "numeric": _canonical_numeric,
    "boolean": _canonical_boolean,
    "datetime": _canonical_datetime,
    "categorical": _texts,
}


# -- JSON Schema -------------------------------------------------------------------------------------------------------


def _property(feature: Feature, max_chars: int) -> dict[str, Any]:
    extra: dict[str, Any] = {"kind": feature.kind, "nullable": feature.nullable}
    described = "never present in training"
    if feature.kind == "numeric":
        if feature.minimum is not None and feature.maximum is not None:
            extra |= {
                "minimum": _short(feature.minimum),
                "maximum": _short(feature.maximum),
                "integer": feature.integer,
            }
            whole = "whole numbers " if feature.integer else ""
            described = f"{whole}from {_short(feature.minimum):g} to {_short(feature.maximum):g} in training"
        found: dict[str, Any] = {
            "type": ["number", "null"],
            "exclusiveMinimum": -FLOAT32_LIMIT,  # beyond it, a float32 is infinite
            "exclusiveMaximum": FLOAT32_LIMIT,
        }
    elif feature.kind == "datetime":
        if feature.minimum is not None and feature.maximum is not None:
            extra |= {"minimum": _instant(feature.minimum), "maximum": _instant(feature.maximum)}
            described = f"from {_instant(feature.minimum)} to {_instant(feature.maximum)} in training"
        described = f"ISO-8601, UTC unless it has an offset; {described}"
        found = {"type": ["string", "null"], "format": "date-time", "maxLength": INSTANT_CHARS}
    elif feature.kind == "boolean":
        described = "true or false"
        found = {"type": ["boolean", "null"]}
    else:
        extra["categories"] = len(feature.categories)
        if feature.categories:
            most = " or more" if len(feature.categories) == MAX_CATEGORIES else ""
            described = f"{len(feature.categories)}{most} different values in training; others are accepted"
        found = {"type": ["string", "null"], "maxLength": max_chars}
    missing = "; null was seen in training" if feature.nullable else "; never null in training"
    found |= {"description": described + missing, "x-evergreen": extra}
    examples = _examples(feature, max_chars)
    return found | ({"examples": examples} if examples else {})


def _label_property(schema: FeatureSchema) -> dict[str, Any]:
    if schema.task == "regression":
        limits = {"minimum": -fits.TARGET_LIMIT, "maximum": fits.TARGET_LIMIT}
        return {"title": schema.target, "type": "number", **limits}
    first = schema.classes[0]
    name = "string" if isinstance(first, str) else "boolean" if isinstance(first, bool) else "integer"
    return {"title": schema.target, "type": name, "enum": list(schema.classes)}


def _examples(feature: Feature, max_chars: int) -> list[Any]:
    if feature.kind == "boolean":
        return [True, False]
    if feature.kind == "categorical":
        return [category for category in feature.categories if len(category) <= max_chars][:5]
    if feature.minimum is None or feature.maximum is None:
        return []
    middle = feature.minimum / 2 + feature.maximum / 2
    values = [middle, feature.minimum, feature.maximum]
    if feature.kind == "datetime":
        return list(dict.fromkeys(_instant(value) for value in values))
    if feature.integer:
        return list(dict.fromkeys(int(value) for value in values))
    return list(dict.fromkeys(_short(value) for value in values))


def _short(value: float) -> float:
    """The shortest decimal that is the same float32: 0.1 where the double says 0.10000000149."""
    return float(str(np.float32(value)))


def _instant(days: float) -> str:
    try:
        instant = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=round(days * 86_400))
    except OverflowError:
        instant = datetime.max.replace(microsecond=0, tzinfo=UTC) if days > 0 else datetime.min.replace(tzinfo=UTC)
    return instant.isoformat().replace("+00:00", "Z")


# -- words -------------------------------------------------------------------------------------------------------------


def _name_problem(name: str) -> str | None:
    """Why a column cannot be a feature, or None."""
    if not name:
        return "its name is empty; rename it"
    if name in RESERVED_COLUMNS:
        return "Evergreen uses that name for its own columns; rename it"
    if any(character in '"\\' or character < " " for character in name):
        return 'its name has a ", a \\ or a control character, which a request cannot spell plainly; rename it'
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not valid Unicode; rename it"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, _NUMBERS) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _first_repeated(names: Iterable[Any]) -> Any | None:
    seen = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _nearest(name: str, known: Iterable[Any]) -> str:
    names = [str(column) for column in known]
    found = nearest(str(name), names, cutoff=0.5)
    if found:
        return f"; did you mean {_show(found)}?"
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"; the columns are {', '.join(names[:20])}{more}"


def _show(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    try:
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
    except ValueError:  # Python refuses to print integers of more than 4300 digits
        text = "an integer too long to print"
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"


def _some(values: Sequence[Any], most: int = 5) -> str:
    return ", ".join(_show(value) for value in values[:most]) + (", …" if len(values) > most else "")
