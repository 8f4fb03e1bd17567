"""The proof that a pipeline and its ONNX twin answer the same.

The tolerance (`TOLERANCE`) is 1e-5 on every probability, and the same label on every row whose two best probabilities
do not tie within it; for regression 1e-5 of the distance from the median prediction, or of the predictions' standard
deviation where that is larger. The rows of the proof are the check frame plus rows with each value missing, unseen
categories and numbers up to 1e30 in size.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final

from training.interface import counts_classes
from training.manifest import Parity
from training.pipeline import names_of, predict

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from monitoring.schema import FeatureSchema

TOLERANCE: Final = 1e-5
EXACT: Final = 1e-12
"""Of each probability, or of a value (of its own size where that is above 1), by the compiled trees."""
CHECK_ROWS: Final = 2000
"""Rows of the check frame that are compared, evenly spaced; the made-up rows come on top."""

UNSEEN: Final = "\x00 a category nobody has seen"

EXTREME: Final = 1e30
"""Largest number that parity is proven for: a scaler overflows float32 beyond it."""


def check_rows(frame: pd.DataFrame, schema: FeatureSchema) -> pd.DataFrame:
    """Rows of `frame` (at most `CHECK_ROWS`, evenly spaced), and the edge rows."""
    import numpy as np
    import pandas as pd

    frame = frame[list(schema.names)]
    if len(frame) > CHECK_ROWS:
        frame = frame.iloc[np.linspace(0, len(frame) - 1, CHECK_ROWS).astype(int)]
    return pd.concat([frame, edge_rows(frame, schema)], ignore_index=True)


def edge_rows(frame: pd.DataFrame, schema: FeatureSchema) -> pd.DataFrame:
    """Rows like some of `frame` in which one value is missing, unseen or extreme, and one in which all are missing."""
    import numpy as np
    import pandas as pd

    frame = frame[list(schema.names)]
    seeds = frame.iloc[np.unique(np.linspace(0, len(frame) - 1, 3).astype(int))]
    made = []
    extremes = (0.0, 1.0, -1.0, 1e6, -1e6, EXTREME, -EXTREME)
    for name in schema.names:
        numeric = name in schema.numeric_names
        values: list[Any] = [np.nan, *(extremes if numeric else (UNSEEN, ""))]
        if numeric:
            low, high = float(frame[name].min()), float(frame[name].max())
            if np.isfinite(low) and np.isfinite(high):
                reach, most = high - low + 1, float(np.finfo(np.float32).max)
                values += [np.float32(max(low - reach, -most)), np.float32(min(high + reach, most))]
                values.append(np.float32((low + high) / 2))
        for value in values:
            changed = seeds.copy()
            changed[name] = pd.Series([value] * len(seeds), index=seeds.index).astype(frame[name].dtype)
            made.append(changed)
    nothing = seeds.iloc[:1].copy()
    for name in schema.names:
        nothing[name] = pd.Series([np.nan], index=nothing.index).astype(frame[name].dtype)
    return pd.concat([*made, nothing], ignore_index=True)


def answers_of(pipeline: Any, rows: pd.DataFrame, schema: FeatureSchema) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """What the pipeline says of the rows: (probabilities or values, labels)."""
    import numpy as np

    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the made-up rows: overflow, unknown categories
        values = predict(pipeline, rows, schema)
        labels = (
            values if schema.task == "regression" else np.asarray(pipeline.predict(rows[names_of(pipeline, schema)]))
        )
        if schema.task != "regression" and counts_classes(pipeline):
            labels = np.array(schema.classes, dtype=object)[labels.astype(int)]
    return values, labels


def compare(
    expected: tuple[npt.NDArray[Any], npt.NDArray[Any]], found: npt.NDArray[Any], schema: FeatureSchema, real: int
) -> Parity:
    """`real`: so many of the first rows are data; the largest difference is reported of them, all are judged."""
    import numpy as np

    values, labels = expected
    rows = len(values)
    if found.shape != values.shape:
        return Parity(rows, None, False, f"the twin answers shape {found.shape}, the pipeline {values.shape}")
    with np.errstate(all="ignore"):
        same = (found == values) | (np.isnan(found) & np.isnan(values))
        difference = np.where(same, 0.0, np.abs(found.astype(np.float64) - values))
        difference = np.where(np.isnan(difference), np.inf, difference)
        allowed: Any = TOLERANCE
        if schema.task == "regression":
            finite = values[np.isfinite(values)]
            middle, spread = (np.median(finite), np.std(_inner(finite))) if len(finite) else (0.0, 0.0)
            allowed = TOLERANCE * np.maximum(np.abs(values - middle), spread)
        worst = float(difference[:real].max(initial=0.0))
        beyond = int(np.count_nonzero((difference > allowed).reshape(rows, -1).any(axis=1)))
    if beyond:
        what = "of the distance from the median" if schema.task == "regression" else "in a probability"
        return Parity(rows, worst, False, f"{beyond} of {rows} rows differ by more than {TOLERANCE:g} {what}")
    if schema.task != "regression":
        classes = np.array(schema.classes, dtype=object)
        best = np.sort(values, axis=1)[:, -2:]
        # A forest's votes tie often, and float32 breaks a tie by rounding.
        decided = best[:, 1] - best[:, 0] > 2 * TOLERANCE
        flipped = int(np.count_nonzero((classes[found.argmax(axis=1)] != labels) & decided))
        if flipped:
            return Parity(rows, worst, False, f"{flipped} of {rows} rows get another label")
    return Parity(rows, worst, True, f"{rows:,} rows agree to {worst:.1e}")


def compare_exactly(expected: npt.NDArray[Any], found: npt.NDArray[Any]) -> Parity:
    """The same for compiled trees: every number of every row within `EXACT`."""
    import numpy as np

    rows = len(expected)
    if found.shape != expected.shape:
        return Parity(rows, None, False, f"the trees answer shape {found.shape}, the pipeline {expected.shape}")
    with np.errstate(all="ignore"):
        same = (found == expected) | (np.isnan(found) & np.isnan(expected))
        apart = np.where(same, 0.0, np.abs(found - expected) / np.maximum(1.0, np.abs(expected)))
    worst = float(np.where(np.isnan(apart), np.inf, apart).max(initial=0.0))
    if worst > EXACT:
        return Parity(rows, worst, False, f"the trees differ by {worst:.1e}, more than {EXACT:g}")
    return Parity(rows, worst, True, f"{rows:,} rows agree to {worst:.1e}")


def _inner(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Without the outermost percents, so that the made-up extremes do not widen the tolerance of the real rows."""
    import numpy as np

    low, high = np.quantile(values, [0.02, 0.98])
    inner: npt.NDArray[Any] = values[(values >= low) & (values <= high)]
    return inner
