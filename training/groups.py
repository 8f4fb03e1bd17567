"""Which groups of rows are looked at by themselves: the segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from monitoring.schema import FeatureSchema
    from training.gate_policy import GatePolicy

SHOWN_CHARS: Final = 60
"""Of a category in the name of its segment."""


def groups_of(
    holdout: pd.DataFrame, schema: FeatureSchema, policy: GatePolicy
) -> Iterator[tuple[str, npt.NDArray[np.intp]]]:
    """(name, row positions) of each segment with enough rows, but not of one that is the whole holdout."""
    if unknown := [name for name in policy.sensitive if name not in schema.names]:
        raise ValueError(f"sensitive features {unknown} are not in the schema; it has {', '.join(schema.names)}")
    told: set[bytes] = set()
    for feature in schema.features:
        column = holdout[feature.name]
        sensitive = feature.name in policy.sensitive
        groups: Sequence[tuple[str, npt.NDArray[np.bool_]]]
        if feature.kind in ("categorical", "boolean"):
            values = sorted(set(column.dropna().tolist()))
            if len(values) > policy.max_segment_categories and not sensitive:
                continue
            array = column.to_numpy()
            shown = (lambda v: bool(v)) if feature.kind == "boolean" else (lambda v: v[:SHOWN_CHARS])
            groups = [(f"{feature.name}={shown(value)}", array == value) for value in values]
            groups = [*groups, (f"{feature.name} missing", column.isna().to_numpy())]
        elif sensitive:
            groups = _quartiles(feature.name, column.to_numpy(dtype=np.float64))
        else:
            continue
        for name, chosen in groups:
            rows = np.flatnonzero(chosen)
            if policy.min_segment_rows <= len(rows) < len(holdout) and rows.tobytes() not in told:
                told.add(rows.tobytes())  # two columns may mark the same rows: that is one group
                yield name, rows


def _quartiles(name: str, values: npt.NDArray[np.float64]) -> list[tuple[str, npt.NDArray[np.bool_]]]:
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
