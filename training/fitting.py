"""Fitting a pipeline to rows of a snapshot, now or again from a version's manifest."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from monitoring.feature import LABEL, Feature
from monitoring.schema import FeatureSchema
from training.data import content_digest, read_snapshot
from training.pipeline import fit
from training.source import DataError
from training.spec import JobError
from training.split import TrainPolicy, split, usable

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt
    import pandas as pd

    from training.families import Parameters
    from training.manifest import Manifest


def fit_rows(window: pd.DataFrame, schema: FeatureSchema, parameters: Parameters | Mapping[str, Any], seed: int) -> Any:
    """The pipeline, fitted to those rows whose label the schema knows. Raises `JobError` when a class is missing."""
    window = window[usable(window, schema)]
    if not has_all_classes(window, schema):
        present = sorted(map(str, set(window[LABEL].tolist())))
        raise JobError(
            f"the {len(window)} training rows hold the classes {', '.join(present)} only, the schema has "
            f"{', '.join(map(str, schema.classes))}: give source data with all of them"
        )
    return fit(schema, window[list(schema.names)], labels_of(window, schema), parameters, seed)


def refit(manifest: Manifest, snapshot: Path, schema: FeatureSchema, *, judged: bool = False) -> Any:
    """The pipeline of a version, fitted again to the same rows: it predicts the same.

    With `judged` the one that the gates saw, which learnt nothing from the rows that judged it. Raises `DataError` when
    the snapshot is not the one that the manifest names, or the version was not trained here.
    """
    frame, data = read_snapshot(snapshot, schema), manifest.data
    found = content_digest(frame)
    if found != data.snapshot:
        raise DataError(f"{snapshot} has content {found}, the model was trained from {data.snapshot}")
    if data.window is None:
        raise DataError("the version was pushed: its artefact holds the model, what it was fitted to is not known")
    rows = np.arange(data.window.start, data.window.stop)
    if data.blocks is not None and (judged or not data.last_fit):
        policy = TrainPolicy.model_validate(data.blocks.policy)
        then = data.blocks
        until, first = then.champion_until, then.first
        parts = split(frame, schema, policy, then.min_holdout_rows, champion_until=until, first=first)
        rows = np.intersect1d(rows, parts.train)
    rows = np.setdiff1d(rows, np.array(data.left_out, dtype=np.intp))
    return fit_rows(frame.iloc[rows], schema, manifest.parameters, manifest.seed)


def labels_of(frame: pd.DataFrame, schema: FeatureSchema) -> npt.NDArray[Any]:
    """The canonical labels of these rows."""
    return schema.labels(frame[LABEL])


def has_all_classes(frame: pd.DataFrame, schema: FeatureSchema) -> bool:
    """Whether the rows hold every class of the schema; a regression has none to miss."""
    # Not `unique`: pandas 2 takes texts that agree up to a zero character for one.
    return schema.task == "regression" or set(schema.classes) <= set(frame[LABEL].tolist())


def refreshed(schema: FeatureSchema, frame: pd.DataFrame) -> FeatureSchema:
    """The same columns and kinds with the ranges, categories and missing values of these canonical rows."""
    from monitoring.feature import MAX_CATEGORIES

    features: list[Feature] = []
    for feature in schema.features:
        column = frame[feature.name]
        changes: dict[str, Any] = {"nullable": bool(column.isna().any())}
        if feature.kind == "categorical":
            common = column.value_counts().head(MAX_CATEGORIES)
            changes["categories"] = tuple(sorted(common.index))
        elif feature.kind != "boolean":
            low, high = float(column.min()), float(column.max())
            changes |= {"minimum": None, "maximum": None} if math.isnan(low) else {"minimum": low, "maximum": high}
        features.append(msgspec.structs.replace(feature, **changes))
    return msgspec.structs.replace(schema, features=tuple(features))
