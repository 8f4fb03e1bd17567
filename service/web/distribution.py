"""`/page/distribution`: what is answered and what turns out to be true, now and over time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import sqlalchemy as sa

from monitoring.store import key_columns, labels, predictions
from service.web.bins import SHOWN_CHARS, Sketch, categories, counted, numbers
from service.web.champion import champion_schema
from service.web.rows import NEWEST, edges_of, sample, span_of
from service.web.shapes import Distribution, OutputBars, OutputSeries
from service.web.sketch import text_of
from service.web.span import Asked

if TYPE_CHECKING:
    from monitoring.schema import FeatureSchema
    from service.serving.management.deployment import Managed

NOW_ROWS: Final = 1_000
MOMENTS: Final = 48
ROWS_EACH: Final = 50
SCORE_EDGES: Final = tuple(np.linspace(0.0, 1.0, 21).tolist())
MOST_CLASSES: Final = 20
"""Of which a share is shown over time."""


def distribution(here: Managed, asked: Asked) -> Distribution:
    schema = champion_schema(here)
    with here.engine.connect() as connection:
        span = span_of(connection)
        samples = sample(connection, edges_of(span, asked, MOMENTS), ROWS_EACH)
        now = connection.execute(
            sa.select(predictions.c.prediction, predictions.c.probabilities).order_by(*NEWEST).limit(NOW_ROWS)
        ).all()
        came = connection.scalars(
            sa.select(labels.c.label).order_by(*(column.desc() for column in key_columns(labels))).limit(NOW_ROWS)
        ).all()
    if schema is None:
        nothing = OutputSeries(at=(), values={}, rows=())
        return Distribution(
            task=None,
            classes=(),
            scores=None,
            predictions=None,
            labels=None,
            predictions_over_time=nothing,
            labels_over_time=nothing,
            span=span,
        )
    series = _numbers if schema.task == "regression" else _shares(schema)
    answered = [(group[0].at, [row.prediction for row in group]) for group in samples if group]
    known = [(group[0].at, [row.label for row in group if row.label is not None]) for group in samples if group]
    return Distribution(
        task=schema.task,
        classes=tuple(text_of(each)[:SHOWN_CHARS] for each in schema.classes),
        scores=_scores([row.probabilities for row in now]) if schema.task == "binary" and now else None,
        predictions=_bars(schema, [row.prediction for row in now]),
        labels=_bars(schema, came),
        predictions_over_time=_series(answered, series),
        labels_over_time=_series([(at, texts) for at, texts in known if texts], series),
        span=span,
    )


def _scores(texts: Sequence[str | None]) -> OutputBars | None:
    chances = [msgspec.json.decode(text) for text in texts if text is not None]
    scores = np.array([each[1] for each in chances if len(each) == 2 and each[1] is not None], dtype=np.float64)
    if not len(scores):
        return None
    bars = counted(scores, SCORE_EDGES)
    return OutputBars(edges=SCORE_EDGES, categories=None, counts=bars.counts, rows=bars.rows)


def _bars(schema: FeatureSchema, texts: Sequence[str]) -> OutputBars | None:
    if not texts:
        return None
    if schema.task == "regression":
        found: Sketch = numbers(_floats(texts))
        return OutputBars(edges=found.edges, categories=None, counts=found.bars.counts, rows=len(texts))
    of = {text_of(each): 0 for each in schema.classes}
    counted_by = categories(_classes(texts))
    of |= dict(zip(counted_by.categories or (), counted_by.bars.counts, strict=True))
    names = tuple(name[:SHOWN_CHARS] for name in of)
    return OutputBars(edges=None, categories=names, counts=tuple(of.values()), rows=len(texts))


def _series(
    groups: Sequence[tuple[float, list[str]]], of: Callable[[list[str]], dict[str, float | None]]
) -> OutputSeries:
    found = [of(texts) for _, texts in groups]
    names = list(found[0]) if found else []
    return OutputSeries(
        at=tuple(at for at, _ in groups),
        values={name: tuple(one[name] for one in found) for name in names},
        rows=tuple(len(texts) for _, texts in groups),
    )


def _shares(schema: FeatureSchema) -> Callable[[list[str]], dict[str, float | None]]:
    names = [text_of(each) for each in schema.classes[:MOST_CLASSES]]

    def of(texts: list[str]) -> dict[str, float | None]:
        found = Counter(_classes(texts))
        return {name[:SHOWN_CHARS]: found[name] / len(texts) for name in names}

    return of


def _classes(texts: Sequence[str]) -> list[str]:
    """The class in each of these JSON texts; equal ones are decoded once."""
    names = {text: text_of(msgspec.json.decode(text)) for text in set(texts)}
    return [names[text] for text in texts]


def _numbers(texts: list[str]) -> dict[str, float | None]:
    found = _floats(texts)
    found = found[np.isfinite(found)]
    if not len(found):
        return {"mean": None, "low": None, "high": None}
    low, high = np.quantile(found, (0.1, 0.9)).tolist()
    return {"mean": float(found.mean()), "low": low, "high": high}


def _floats(texts: Sequence[str]) -> Any:
    values = map(msgspec.json.decode, texts)
    return np.array([each if isinstance(each, int | float) else np.nan for each in values], dtype=np.float64)
