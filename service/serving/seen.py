"""What did training see? Ranges and categories of a version, and what of a request lies outside of them.

Seen is what the schema says (the rows that the first version was fitted to) and what stands in the version's reference
(the newest rows it knows). Both are read once for a version, when somebody asks for the first time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import numpy as np

from monitoring.feature import MAX_CATEGORIES, Feature, instant, short, shown
from monitoring.schema import FeatureSchema
from training.artefact import REFERENCE, SCHEMA

if TYPE_CHECKING:
    from monitoring.decode import Batch

MOST_ROWS: Final = 100
"""Rows that one warning names; it counts all."""


class Warned(msgspec.Struct, frozen=True):
    """What of one column lies outside what training saw."""

    column: str
    kind: Literal["category", "range"]
    count: int
    """Rows that it is said of."""
    rows: list[int]
    """The first of them, at most `MOST_ROWS`, counted from 0."""
    message: str
    """With the first value, and what is known instead."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What training saw of each feature; features that nothing is known of are left out."""

    schema: FeatureSchema
    ranges: dict[str, tuple[float, float]]
    """Lowest and highest number; of times in days since 1970-01-01 UTC."""
    categories: dict[str, frozenset[str]]
    """Of features with fewer categories than a schema remembers: of others nobody knows which are new."""

    def warnings(self, batch: Batch) -> list[Warned]:
        """What of these rows lies outside, column by column in the schema's order; a missing value does not."""
        found: dict[str, Warned] = {}
        numbers = batch.numeric()
        for at, name in enumerate(self.schema.numeric_names):
            if name in self.ranges:
                low, high = self.ranges[name]
                values = numbers[:, at].astype(np.float64)
                rows = np.flatnonzero((values < low) | (values > high)).tolist()
                if rows:
                    feature = self._feature(name)
                    known = f"{_number(feature, low)} to {_number(feature, high)}"
                    words = f"{_number(feature, values[rows[0]])} is outside what training saw, {known}"
                    found[name] = Warned(name, "range", len(rows), rows[:MOST_ROWS], words)
        texts = batch.categorical() if self.categories else []
        for at, name in enumerate(self.schema.categorical_names):
            if name in self.categories:
                known_ones = self.categories[name]
                rows = [row for row, one in enumerate(texts) if one[at] is not None and one[at] not in known_ones]
                if rows:
                    words = f"{shown(texts[rows[0]][at])} is a category that training did not see"
                    found[name] = Warned(name, "category", len(rows), rows[:MOST_ROWS], words)
        return [found[name] for name in self.schema.names if name in found]

    def _feature(self, name: str) -> Feature:
        return next(feature for feature in self.schema.features if feature.name == name)


def _number(feature: Feature, value: float) -> str:
    return instant(value) if feature.kind == "datetime" else f"{short(value):g}"


@lru_cache(maxsize=2)  # the champion, and during a swap the one before
def seen(folder: Path) -> Seen:
    """What the version in this artefact folder was fitted to, as far as it is known. Reads two files, once."""
    schema = FeatureSchema.from_json((folder / SCHEMA).read_bytes())
    columns = _reference(schema, folder / REFERENCE)
    ranges: dict[str, tuple[float, float]] = {}
    categories: dict[str, frozenset[str]] = {}
    for feature in schema.features:
        column = columns.get(feature.name, [])
        if feature.kind in ("numeric", "datetime"):
            ends = [end for end in (feature.minimum, feature.maximum) if end is not None]
            numbers = np.array([*ends, *column], np.float32).astype(np.float64)  # as a request's numbers are
            if numbers.size:
                ranges[feature.name] = float(numbers.min()), float(numbers.max())
        elif feature.kind == "categorical" and len(feature.categories) < MAX_CATEGORIES:
            categories[feature.name] = frozenset((*feature.categories, *column))
    return Seen(schema, ranges, categories)


def _reference(schema: FeatureSchema, path: Path) -> dict[str, list[Any]]:
    """The values of each feature in the reference, missing ones left out; none where the version has no reference."""
    import pyarrow.parquet as pq

    if not path.is_file():
        return {}
    table = pq.read_table(path, columns=list(schema.names), use_threads=False)
    found = {}
    for name in schema.names:
        values = table.column(name).drop_null().to_pylist()
        found[name] = [value for value in values if value == value]
    return found
