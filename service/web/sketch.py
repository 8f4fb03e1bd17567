"""A version's reference in bins, made in a process of its own: reading Parquet would cost a worker 40 MB for good.

`python -m service.web.sketch FOLDER` prints it as JSON, in about a second.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from monitoring.feature import PREDICTED, SCORE
from monitoring.schema import FeatureSchema
from service.web.bins import Sketch, categories, numbers
from training.artefact import REFERENCE, SCHEMA

DAY_S: Final = 86_400.0

Sketches = dict[str, Sketch]
"""By feature, and what the model answers under `OUTPUT`."""
OUTPUT: Final = ""
"""No feature has this name."""


def sketches(folder: Path) -> Sketches:
    """Every feature of the reference in this artefact, and the output on the rows that the model was not fitted to."""
    import pyarrow.parquet as parquet

    schema = FeatureSchema.from_json((folder / SCHEMA).read_bytes())
    table = parquet.ParquetFile(folder / REFERENCE).read()  # `read_table` would import pandas
    found: Sketches = {}
    for feature in schema.features:
        column = table.column(feature.name)
        if feature.kind == "categorical":
            found[feature.name] = categories(column.to_pylist())
        elif feature.kind == "boolean":
            found[feature.name] = categories([_truth(value) for value in column.to_pylist()])
        else:
            values = np.array(column.to_pylist(), dtype=np.float64)
            found[feature.name] = numbers(values * DAY_S if feature.kind == "datetime" else values)
    unseen = np.array(table.column("_holdout").to_pylist(), dtype=bool)
    answers = [value for value, kept in zip(table.column(PREDICTED).to_pylist(), unseen, strict=True) if kept]
    if schema.task == "binary":
        found[OUTPUT] = numbers(np.array(table.column(SCORE).to_pylist(), dtype=np.float64)[unseen])
    elif schema.task == "regression":
        found[OUTPUT] = numbers(np.array(answers, dtype=np.float64))
    else:
        found[OUTPUT] = categories([None if value is None else text_of(value) for value in answers])
    return found


def text_of(value: Any) -> str:
    """A class or a category as the page shows it."""
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _truth(value: float | None) -> str | None:
    return None if value is None or value != value else "true" if value else "false"


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(sketches(Path(sys.argv[1]))))
