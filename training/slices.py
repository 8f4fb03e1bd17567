"""How good is the champion for each group of rows? The groups are those of the gates, the rows those it answered."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from monitoring.evidence import spread
from monitoring.feature import LABEL
from training.adapting import served_of
from training.comparing import Truth, influences, metric_of
from training.groups import groups_of
from training.manifest import Slice, Slices

if TYPE_CHECKING:
    import pandas as pd

    from monitoring.schema import FeatureSchema
    from training.gate_policy import GatePolicy
    from training.loop import Loop

ROWS: Final = 5_000
"""Newest matured rows that are looked at: groups need 100 of them."""
WORST: Final = 10
"""Groups that are kept besides the sensitive ones."""


def slices(loop: Loop, schema: FeatureSchema, matured: pd.DataFrame) -> Slices:
    """The champion's groups on the newest of these rows with labels, which it answered."""
    window = matured.tail(ROWS)
    # A feature that the gates name and this version lacks stops a training, not a check.
    policy: GatePolicy = loop.gates.model_copy(
        update={"sensitive": tuple(name for name in loop.gates.sensitive if name in schema.names)}
    )
    metric = metric_of(schema.task, policy)
    answers = served_of(window, schema)
    answered = np.isfinite(answers) if answers.ndim == 1 else np.isfinite(answers).all(axis=1)
    window, answers = window[answered].reset_index(drop=True), answers[answered]
    truth = Truth.of(window[LABEL].to_numpy(), schema)
    whole = influences(answers, truth, metric) if len(truth) else None
    if whole is None:
        return Slices(metric, len(truth), None, ())
    found = []
    for name, rows in groups_of(window, schema, policy):
        part = influences(answers[rows], Truth(truth.values[rows], truth.classes), metric)
        if part is not None and math.isfinite(part.value):
            sensitive = any(name.startswith((f"{each}=", f"{each} ")) for each in policy.sensitive)
            error = spread(part.rows) / math.sqrt(len(rows))
            found.append(Slice(name, sensitive, len(rows), part.value, error))
    found.sort(key=lambda one: one.value)
    kept = (*found[:WORST], *(one for one in found[WORST:] if one.sensitive))
    return Slices(metric, len(truth), whole.value, kept)
