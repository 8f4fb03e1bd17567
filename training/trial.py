"""How good one set of parameters is: fitted to rows before a moment, judged by rows after it, three times.

Rolling origin (Tashman 2000): each fold's model learns everything before the rows that judge it, as a version answers
rows that come after its training. A trial that falls behind is given up after the fold that shows it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from training.families import parameters_of
from training.fitting import fit_rows, has_all_classes, labels_of
from training.gates import LOSSES, Truth, score
from training.pipeline import predict

if TYPE_CHECKING:
    import pandas as pd

    from monitoring.schema import FeatureSchema

FOLDS: Final = 3


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a trial. `scores` has the mean of the folds so far after each: larger is better."""

    scores: tuple[float, ...] = ()
    finished: bool = False  # False, without an error: it fell behind, or time was up
    late: bool = False  # time was up
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Folds:
    """The rows that a search looks at, in time order, and where each fold's judges begin."""

    frame: pd.DataFrame
    schema: FeatureSchema
    seed: int
    borders: tuple[int, ...]
    """Positions; a fold's judges go from one to the next, what it learns ends where they begin."""


def folds_of(training: pd.DataFrame, schema: FeatureSchema, share: float, min_rows: int, seed: int) -> Folds | None:
    """The newest `share` of the rows judges; None when fewer than `min_rows` would be left to learn from."""
    judges = max(int(share * len(training)), 50)
    first = len(training) - judges
    if first < min_rows:
        return None
    borders = tuple(first + judges * at // FOLDS for at in range(FOLDS + 1))
    return Folds(training, schema, seed, borders)


def evaluate(
    folds: Folds, parameters: dict[str, Any], bar: Sequence[float] | None = None, seconds: float = math.inf
) -> Outcome:
    """The trial of these parameters. It ends early when its mean after a fold is below `bar`'s for it, or no fold can
    begin within `seconds`."""
    began = time.perf_counter()
    given, schema, found = parameters_of(parameters), folds.schema, []
    means: list[float] = []
    late, error = False, ""
    for at, (begin, end) in enumerate(zip(folds.borders, folds.borders[1:], strict=False)):
        if time.perf_counter() - began > seconds:
            late = True
            break
        past, future = folds.frame.iloc[:begin], folds.frame.iloc[begin:end]
        try:
            value = -math.inf
            if has_all_classes(past, schema):
                fitted = fit_rows(past, schema, given, folds.seed)
                truth = Truth.of(labels_of(future, schema), schema)
                value = score(predict(fitted, future[list(schema.names)], schema), truth, LOSSES[schema.task])
        except (ValueError, ArithmeticError) as problem:  # of a library: these parameters cannot be fitted
            error = f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"
            break
        found.append(-math.inf if math.isnan(value) else value)
        means.append(sum(found) / len(found))
        if bar is not None and at + 1 < FOLDS and at < len(bar) and means[-1] < bar[at]:
            break
    finished = len(means) == len(folds.borders) - 1
    return Outcome(scores=tuple(means), finished=finished, late=late, error=error, seconds=time.perf_counter() - began)
