"""What does a training frame hold? The kind, range and categories of each column, and what kind of task its target is.

pandas is imported only inside the functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np

from monitoring.canonical import canonical_column, refuse_missing_labels, to_target_numbers, to_texts
from monitoring.feature import MAX_CATEGORIES, Feature, Kind, SchemaError, Task, first_repeated, nearest, shown, some
from monitoring.moments import iso_texts

if TYPE_CHECKING:
    import pandas as pd

MAX_CLASSES_FROM_INTEGERS: Final = 20
"""An integer target with at most this many distinct values is taken as classes, one with more as a quantity."""

Classes = tuple[str | int | bool, ...]


def infer(
    frame: pd.DataFrame, target: str, *, ignore: Iterable[str] = (), task: Task | None = None
) -> tuple[tuple[Feature, ...], Task, Classes]:
    """Features, task and classes of a training frame, as `FeatureSchema.infer` says."""
    columns = list(frame.columns)
    repeated = first_repeated(columns)
    if repeated is not None:
        raise SchemaError(f"column {shown(repeated)} appears twice: rename or drop one of them")
    for column in columns:
        if not isinstance(column, str):
            raise SchemaError(
                f"column name {column!r} is not a string: set frame.columns = frame.columns.astype(str) first"
            )
    ignored = [ignore] if isinstance(ignore, str) else list(ignore)
    for role, names in (("target", [target]), ("ignored", ignored)):
        for name in names:
            if name not in columns:
                raise SchemaError(f"{role} column {shown(name)} is not in the data{nearest(name, columns)}")
    if target in ignored:
        raise SchemaError(f"column {shown(target)} is the target and cannot be ignored")
    if len(frame) == 0:
        raise SchemaError("the frame has no rows: nothing can be learned from it")
    found, classes = _infer_target(frame[target], target, task)
    names = [column for column in columns if column != target and column not in ignored]
    return tuple(_infer_feature(name, frame[name]) for name in names), found, classes


def _infer_feature(name: str, column: pd.Series[Any]) -> Feature:
    kind, integer = _infer_kind(name, column)
    values = canonical_column(kind, name, column)
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
        raise SchemaError(f"column {shown(name)} has dtype {dtype}: convert it to a number, or ignore it")
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
    if content == "string" and iso_texts(present):
        return "datetime", False
    return "categorical", False


def _infer_target(column: pd.Series[Any], target: str, task: Task | None) -> tuple[Task, Classes]:
    if task is not None and task not in get_args(Task):
        raise SchemaError(f"task is {task!r}; it must be one of {', '.join(get_args(Task))}")
    refuse_missing_labels(target, column)
    kind, _ = _infer_kind(target, column)
    if kind == "datetime":
        raise SchemaError(f"target {shown(target)} holds dates: derive a number or a class from it first")
    if kind != "numeric":
        if task == "regression":
            raise SchemaError(
                f"target {shown(target)} holds {'booleans' if kind == 'boolean' else 'text'}, such as "
                f"{shown(column.iloc[0])}; a regression needs numbers"
            )
        classes: Classes
        if kind == "boolean":
            classes = tuple(sorted({bool(value) for value in column}))
        else:
            classes = tuple(sorted(set(to_texts(target, column).tolist())))
        return _task_of(target, classes, task), classes
    numbers = to_target_numbers(target, column)
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
            f"target {shown(target)} is not whole, such as {float(fraction[0] if fraction.size else distinct[0])!r}; "
            f"the classes of a {task} task are whole numbers, strings or booleans"
        )
    classes = tuple(sorted({int(value) for value in column}))
    return _task_of(target, classes, task), classes


def _task_of(target: str, classes: Sequence[Any], task: Task | None) -> Task:
    if len(classes) < 2:
        raise SchemaError(
            f"target {shown(target)} has one class only, {some(classes)}: a classifier needs rows of at least two"
        )
    if task == "binary" and len(classes) > 2:
        raise SchemaError(
            f"target {shown(target)} has {len(classes)} distinct values, {some(classes)}; a binary task needs 2"
        )
    return task or ("binary" if len(classes) == 2 else "multiclass")
