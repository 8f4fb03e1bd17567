"""`/page/drift/{check}/{feature}`: one column at one check, the reference beside the window that was looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import sqlalchemy as sa

from monitoring.decode import InvalidRequest, RequestDecoder
from monitoring.drift import OUTPUT
from monitoring.store import checks, key_columns, predictions
from service.serving.request import Reject
from service.web import sketch
from service.web.bins import SHOWN_CHARS, Sketch, categories, counted, numbers, of_categories
from service.web.champion import schema_of
from service.web.references import References
from service.web.shapes import Bars, Histogram
from service.web.sketch import DAY_S, text_of

if TYPE_CHECKING:
    from monitoring.schema import FeatureSchema
    from service.serving.management.deployment import Managed

GONE: Final = "the rows of this window are no longer in the record"


class _Until(msgspec.Struct):
    until_at: float = 0.0
    current_rows: int = 0


def histogram(here: Managed, references: References, check: int, feature: str) -> Histogram:
    """Raises Reject 404 for a check or a feature that there is not."""
    with here.engine.connect() as connection:
        row = connection.execute(
            sa.select(checks.c.at, checks.c.version, checks.c.drift).where(checks.c.id == check)
        ).first()
    if row is None:
        raise Reject(404, f"there is no check {check}; `evergreen drift` shows the newest")
    schema = schema_of(here, row.version)
    if schema is None:
        raise Reject(404, f"the artefact of version {row.version} is not on this host: its features are not known")
    kind = _kind(schema, feature)
    known = references.of(here, row.version) or {}
    reference = known.get(sketch.OUTPUT if _is_output(schema, feature) else feature)
    looked = _Until() if row.drift is None else msgspec.json.decode(row.drift, type=_Until)
    values = _values(here, schema, row.version, looked, feature, kind)
    shown = reference
    if shown is None and values is not None:  # the window's own bins
        shown = categories(values) if kind in ("categorical", "boolean") else numbers(np.asarray(values))
    notes = []
    if reference is None:
        notes.append("the version's reference cannot be read on this host")
    if values is None:
        notes.append(GONE if looked.until_at else "this check did not say which rows it looked at")
    elif looked.current_rows and len(values) < looked.current_rows:
        notes.append(f"{looked.current_rows - len(values)} of {looked.current_rows} rows are gone from the record")
    return Histogram(
        check=check,
        at=row.at,
        version=row.version,
        feature=feature,
        kind=kind,
        edges=None if shown is None else shown.edges,
        categories=None if shown is None or shown.categories is None else tuple(map(_short, shown.categories)),
        reference=None if reference is None else reference.bars,
        window=None if values is None or shown is None else _bars(values, shown),
        note="; ".join(notes),
    )


def _is_output(schema: FeatureSchema, feature: str) -> bool:
    return feature == OUTPUT and feature not in schema.names


def _kind(schema: FeatureSchema, feature: str) -> Any:
    if _is_output(schema, feature):
        return "categorical" if schema.task == "multiclass" else "numeric"
    for each in schema.features:
        if each.name == feature:
            return each.kind
    raise Reject(404, f"the model has no feature {feature[:60]!r}; it has {', '.join(schema.names)[:500]}")


def _values(here: Managed, schema: FeatureSchema, version: int, looked: _Until, feature: str, kind: str) -> Any:
    """What the check's window holds of this column; None when nothing of it is in the record."""
    if not looked.until_at:
        return None
    output = _is_output(schema, feature)
    table = predictions.c
    columns = (table.prediction, table.probabilities) if output else (table.features,)
    newest = (table.at.desc(), *(column.desc() for column in key_columns(predictions)))
    with here.engine.connect() as connection:
        rows = connection.execute(
            sa.select(*columns)
            .where(table.version == version, table.at <= looked.until_at)
            .order_by(*newest)
            .limit(looked.current_rows or here.settings.drift.window_rows)
        ).all()
    if not rows:
        return None
    if output:
        return outputs(schema, rows)
    return _column(schema, [row.features for row in rows], feature, kind)


def outputs(schema: FeatureSchema, rows: Any) -> Any:
    """The score of each row (binary), its number (regression), or its class as text."""
    if schema.task == "binary":
        chances = (None if row.probabilities is None else msgspec.json.decode(row.probabilities) for row in rows)
        return np.array([np.nan if not each or len(each) < 2 or each[1] is None else each[1] for each in chances])
    answers = [msgspec.json.decode(row.prediction) for row in rows]
    if schema.task == "regression":
        return np.array([each if isinstance(each, int | float) else np.nan for each in answers], dtype=np.float64)
    return [None if each is None else text_of(each) for each in answers]


def _column(schema: FeatureSchema, texts: list[str], feature: str, kind: str) -> Any:
    """One feature of these records; those that this schema does not read are left out."""
    decode = RequestDecoder(schema, len(texts)).decode
    try:
        batches = [decode(('{"records":[' + ",".join(texts) + "]}").encode())]
    except InvalidRequest:
        batches = []
        for text in texts:
            try:
                batches.append(decode(f'{{"records":[{text}]}}'.encode()))
            except InvalidRequest:
                continue
    if kind == "categorical":
        at = schema.categorical_names.index(feature)
        return [row[at] for batch in batches for row in batch.categorical()]
    at = schema.numeric_names.index(feature)
    found = np.concatenate([batch.numeric()[:, at] for batch in batches]) if batches else np.empty(0)
    if kind == "boolean":
        return [None if value != value else "true" if value else "false" for value in found.tolist()]
    return found.astype(np.float64) * (DAY_S if kind == "datetime" else 1.0)


def _bars(values: Any, shown: Sketch) -> Bars:
    if shown.categories is not None:
        return of_categories(values, shown.categories, rest=shown.rest)
    return counted(np.asarray(values), shown.edges or ())


def _short(name: str) -> str:
    return name if len(name) <= SHOWN_CHARS else f"{name[: SHOWN_CHARS - 1]}…"
