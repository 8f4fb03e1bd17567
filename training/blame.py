"""Which column, in which transformer, keeps a pipeline from answering a row."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from monitoring.errors import in_short
from training.artefact import ArtefactError
from training.pipeline import final_of, names_of, predict

if TYPE_CHECKING:
    import pandas as pd

    from monitoring.schema import FeatureSchema

_BROUGHT: Final = {
    "boolean": "booleans come as the numbers 1.0 and 0.0 (float32)",
    "datetime": "times come as days since 1970-01-01 UTC (float32)",
    "numeric": "numbers come as float32",
    "categorical": "categories come as text",
}
"""Kind of a feature -> how a request's value reaches the pipeline: `FeatureSchema.canonical`."""


def check_takes_a_row(pipeline: Any, schema: FeatureSchema) -> None:
    """Raises `ArtefactError`, naming column and transformer, when the pipeline cannot answer an ordinary record."""
    row = schema.frame([schema.example()])
    if (error := _failure(pipeline, row, schema)) is not None:
        said = reason(pipeline, row, schema, error)
        raise ArtefactError(
            f"the pushed model cannot answer a record: {said}: fit it to the columns in the form in which they come"
        )


def refused_row(pipeline: Any, rows: pd.DataFrame, schema: FeatureSchema, error: Exception) -> str:
    """Why the pipeline, which has raised `error`, cannot answer all of these rows; the first of them is ordinary."""
    low, high = 0, len(rows)
    while high - low > 1:  # the first half that fails
        middle = (low + high) // 2
        low, high = (low, middle) if _failure(pipeline, rows.iloc[low:middle], schema) is not None else (middle, high)
    row = rows.iloc[low:high]
    found = _failure(pipeline, row, schema)
    return in_short(error) if found is None else reason(pipeline, row, schema, found, rows.iloc[:1])


def reason(
    pipeline: Any, row: pd.DataFrame, schema: FeatureSchema, error: Exception, good: pd.DataFrame | None = None
) -> str:
    """Where an answer to this one row fails with `error`; `good` is another row, which is answered."""
    steps, part, given, error = _innermost(pipeline, row[names_of(pipeline, schema)], error)
    named = [str(name) for name in given.columns if name in schema.names]
    guilty = [name for name in named if _is_guilty(part, given, name, good)] or named
    kinds = {feature.name: feature.kind for feature in schema.features}
    columns = ", ".join(f"{name!r} (value {given[name].tolist()[0]!r}; {_BROUGHT[kinds[name]]})" for name in guilty[:3])
    more = f" and {len(guilty) - 3} more" if len(guilty) > 3 else ""
    return f"{' > '.join(steps)} does not take column {columns}{more}: {in_short(error)}"


def _failure(pipeline: Any, rows: pd.DataFrame, schema: FeatureSchema) -> Exception | None:
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            predict(pipeline, rows, schema)
        except Exception as error:  # of any pipeline of a user's own making
            return error
    return None


def _innermost(part: Any, given: Any, error: Exception) -> tuple[list[str], Any, pd.DataFrame, Exception]:
    """(names on the way to the innermost part that fails, the last part that is given named columns, these, error)."""
    here = given
    for step, inner, taken in _inside(part, given):
        try:
            inner.transform(taken)
        except Exception as found:  # as above
            steps, last, columns, error = _innermost(inner, taken, found)
            return [repr(step), *steps], *((last, columns) if hasattr(taken, "columns") else (part, here)), error
    return [type(final_of(part)).__name__], part, given, error


def _inside(part: Any, given: Any) -> Any:
    """(name, transformer, what it is given) of each transformer in a pipeline or a ColumnTransformer, in order."""
    if hasattr(part, "steps"):
        for step, inner in part.steps:
            if hasattr(inner, "transform"):
                yield step, inner, given
                given = inner.transform(given)
    elif hasattr(part, "transformers_"):
        for step, inner, columns in part.transformers_:
            if hasattr(inner, "transform") and len(np.atleast_1d(np.asarray(columns))):
                by_name = all(isinstance(name, str) for name in np.atleast_1d(np.asarray(columns)).tolist())
                yield step, inner, given[columns] if by_name else given.iloc[:, columns]


def _is_guilty(part: Any, given: Any, name: str, good: pd.DataFrame | None) -> bool:
    """Whether the part takes the row once this column has another value, or the same in another form."""
    value = given[name].iloc[0]
    others = [value != 0, str(value), str(value != 0)] if good is None else [good[name].iloc[0]]
    for other in others:
        changed = given.astype({name: object}) if good is None else given.copy()
        changed[name] = [other]
        if good is not None:
            changed[name] = changed[name].astype(given[name].dtype)
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                (part.transform if hasattr(part, "transform") else part.predict)(changed)
        except Exception:  # as above: it is not this one alone
            continue
        return True
    return False
