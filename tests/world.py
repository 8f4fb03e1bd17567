"""A small world whose rule can turn: frames for the tests of training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import sklearn.ensemble  # noqa: F401  (its OpenMP must be loaded to be bounded)
from threadpoolctl import threadpool_limits

from monitoring.feature import Task
from monitoring.schema import FeatureSchema
from training.data import assemble, prepare

threadpool_limits(1)  # boosting's threads wait for each other on a busy machine: 30 s instead of 0.1 s

START = 1_700_000_000.0  # seconds; the first row's time, one row a minute

CITIES = ("Bonn", "Köln", "Ulm", "Aachen")


def raw(rows: int, seed: int = 0, *, task: Task = "binary", turned: bool = False, start: float = START) -> pd.DataFrame:
    """Rows as a data file would hold them; `turned` swaps what the numbers mean for the target `y`."""
    random = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "when": pd.to_datetime(start + 60.0 * np.arange(rows), unit="s"),
            "a": random.normal(size=rows),
            "b": random.normal(size=rows),
            "member": random.random(rows) < 0.5,
            "city": random.choice(np.array(CITIES, dtype=object), rows),
            "joined": pd.to_datetime(1.6e9 + 86_400.0 * random.integers(0, 900, rows), unit="s"),
        }
    )
    first, second = ("b", "a") if turned else ("a", "b")
    value = 2 * frame[first] - 0.3 * frame[second] + 0.8 * (frame["city"] == "Ulm") + 0.3 * random.normal(size=rows)
    frame.loc[random.random(rows) < 0.1, "a"] = np.nan
    frame.loc[random.random(rows) < 0.1, "city"] = None
    if task == "regression":
        frame["y"] = 1000 + 10 * value
    elif task == "binary":
        frame["y"] = (value > 0).astype(int)
    else:
        frame["y"] = np.select([value < -1, value < 1], ["low", "middle"], "high")
    return frame


def known(rows: int, seed: int = 0, task: Task = "binary") -> tuple[FeatureSchema, pd.DataFrame, Any]:
    """(schema, canonical features, labels)."""
    data = prepare(raw(rows, seed, task=task), target="y", time="when", task=task)
    return data.schema, data.frame[list(data.schema.names)], data.schema.labels(data.frame["_label"])


def history(
    source_rows: int, record_rows: int, *, task: Task = "binary", turned: bool = True
) -> tuple[FeatureSchema, pd.DataFrame]:
    """(schema, snapshot frame): a source and, after it, a record in which the rule has turned."""
    data = prepare(raw(source_rows, 1, task=task), target="y", time="when", task=task)
    if not record_rows:
        return data.schema, assemble(data.schema, data.frame, None)
    later = raw(record_rows, 2, task=task, turned=turned, start=START + 60.0 * source_rows)
    recorded = prepare(later, target="y", time="when", schema=data.schema).frame
    return data.schema, assemble(data.schema, data.frame, recorded)
