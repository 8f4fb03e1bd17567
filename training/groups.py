"""Which groups of rows are looked at by themselves: the segments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from monitoring.feature import Feature
    from monitoring.schema import FeatureSchema
    from training.gate_policy import GatePolicy

    Groups = list[tuple[str, npt.NDArray[np.bool_]]]

SHOWN_CHARS: Final = 60
"""Of a category in the name of its segment."""


def groups_of(
    holdout: pd.DataFrame, schema: FeatureSchema, policy: GatePolicy
) -> Iterator[tuple[str, npt.NDArray[np.intp]]]:
    """(name, row positions) of each segment with enough rows, but not of one that is the whole holdout."""
    sensitive = sensitive_features(schema, policy)
    told: set[bytes] = set()
    for feature in schema.features:
        most = None if feature in sensitive else policy.max_segment_categories
        if feature.kind not in ("categorical", "boolean") and feature not in sensitive:
            continue
        for name, chosen in groups_by(feature, holdout[feature.name], most):
            rows = np.flatnonzero(chosen)
            if policy.min_segment_rows <= len(rows) < len(holdout) and rows.tobytes() not in told:
                told.add(rows.tobytes())  # two columns may mark the same rows: that is one group
                yield name, rows


def sensitive_features(schema: FeatureSchema, policy: GatePolicy) -> tuple[Feature, ...]:
    """The features that the policy calls sensitive. Raises ValueError for one that is not in the schema."""
    if unknown := [name for name in policy.sensitive if name not in schema.names]:
        raise ValueError(f"sensitive features {unknown} are not in the schema; it has {', '.join(schema.names)}")
    return tuple(feature for feature in schema.features if feature.name in policy.sensitive)


def groups_by(feature: Feature, column: pd.Series[Any], most: int | None = None) -> Groups:
    """(name, which rows) of each value of a feature, of a number's quartiles, and of the rows without a value.

    No group of a feature with more than `most` values; None: any number of them.
    """
    if feature.kind not in ("categorical", "boolean"):
        return _quartiles(feature.name, column.to_numpy(dtype=np.float64))
    values = sorted(set(column.dropna().tolist()))
    if most is not None and len(values) > most:
        return []
    array = column.to_numpy()
    shown = (lambda v: bool(v)) if feature.kind == "boolean" else (lambda v: v[:SHOWN_CHARS])
    groups = [(f"{feature.name}={shown(value)}", array == value) for value in values]
    return [*groups, (f"{feature.name} missing", column.isna().to_numpy())]


def _quartiles(name: str, values: npt.NDArray[np.float64]) -> Groups:
    present = values[~np.isnan(values)]
    if not len(present):
        return []
    edges = np.unique(np.quantile(present, [0.25, 0.5, 0.75]))
    at = np.searchsorted(edges, values, side="left")
    bounds = ["-∞", *(f"{edge:.4g}" for edge in edges), "∞"]
    groups = [
        (f"{name} in ({bounds[part]}, {bounds[part + 1]}]", (at == part) & ~np.isnan(values))
        for part in range(len(edges) + 1)
    ]
    return [*groups, (f"{name} missing", np.isnan(values))]
