"""How good one set of parameters is, on rows that the judging of a training does not use.

Two questions, as a version faces both: how well does it answer rows between those it learnt (interleaved blocks, as the
gates ask), and rows that come after them (rolling origin, Tashman 2000)? What is gained on the first may be memory. So
a trial is worth what it gains on rows between, over the parameters that the search began with, but not more than it may
gain on rows after: what is lost there beyond chance is not made up for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from monitoring.evidence import BLOCKS, Influences
from training.comparing import LOSSES, Truth, influences
from training.families import parameters_of
from training.fitting import fit_rows, has_all_classes, labels_of
from training.pipeline import predict
from training.split import TrainPolicy, interleaved, without

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from monitoring.schema import FeatureSchema

FOLDS: Final = 5
"""By turns rows between (three times) and rows after (twice): few judges would let luck choose."""


Scores = tuple[tuple[float, ...], ...]


MOST_ROWS: Final = 30_000
"""The newest that a search looks at: with more there would be fewer trials, and the judging is on all rows anyway."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a trial: of each fold that was judged, the scores of blocks of consecutive rows; larger is better.

    A fold without any has no score: a class was missing, or the metric is undefined.
    """

    scores: Scores = ()
    late: bool = False  # time was up
    error: str = ""


@dataclass(frozen=True)
class Folds:
    """The rows that a search looks at, and for each fold (positions that are learnt, positions that judge)."""

    frame: pd.DataFrame
    schema: FeatureSchema
    seed: int
    parts: tuple[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]], ...]


def folds_of(training: pd.DataFrame, schema: FeatureSchema, policy: TrainPolicy, seed: int) -> Folds | None:
    """The folds of these training rows, which are in time order; None when too few would be left to learn from."""
    training = training.tail(MOST_ROWS)
    rows = np.arange(len(training))
    judges = max(int(policy.inner_share * len(rows)), 50)
    first = len(rows) - judges
    if first < policy.min_rows:
        return None
    betweens, afters = (FOLDS + 1) // 2, FOLDS // 2
    borders = [first + judges * at // afters for at in range(afters + 1)]
    parts = []
    for at in range(betweens):
        stretch = rows[: len(rows) - at * policy.block_rows]  # each time the blocks before the last ones
        between = interleaved(stretch, policy, len(stretch) // policy.judge_every)
        parts.append((without(rows, between, training, policy), between))
        parts += [(rows[: borders[at]], rows[borders[at] : borders[at + 1]])] if at < afters else []
    if any(len(learnt) < policy.min_rows or not len(judging) for learnt, judging in parts):
        return None
    return Folds(training, schema, seed, tuple(parts))


def evaluate(
    folds: Folds,
    parameters: dict[str, Any],
    base: Scores | None = None,
    bar: Sequence[float] = (),
    seconds: float = math.inf,
) -> Outcome:
    """The trial of these parameters.

    It ends early when what it may be worth after a fold (with a standard error), beside the scores `base`, is not above
    `bar`'s for it; and when time is up, `seconds` from now, before a fold.
    """
    began = time.monotonic()
    given, schema = parameters_of(parameters), folds.schema
    scores: list[tuple[float, ...]] = []
    for learnt, judging in folds.parts:
        if time.monotonic() - began > seconds:
            return Outcome(scores=tuple(scores), late=True)
        past, future = folds.frame.iloc[learnt], folds.frame.iloc[judging]
        found = None
        try:
            if has_all_classes(past, schema):
                fitted = fit_rows(past, schema, given, folds.seed)
                truth = Truth.of(labels_of(future, schema), schema)
                found = influences(predict(fitted, future[list(schema.names)], schema), truth, LOSSES[schema.task])
        except (ValueError, ArithmeticError) as problem:  # of a library: these parameters cannot be fitted
            why = f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"
            return Outcome(scores=tuple(scores), error=why)
        scores.append(() if found is None else _blocks(found))
        if base is not None and len(scores) <= len(bar) and worth(scores, base, errors=1) <= bar[len(scores) - 1]:
            break
    return Outcome(scores=tuple(scores))


def _blocks(found: Influences) -> tuple[float, ...]:
    """A loss is a mean: of blocks of rows as of all."""
    rows = found.value + found.rows
    return tuple(float(block.mean()) for block in np.array_split(rows, min(BLOCKS, len(rows))))


def worth(scores: Sequence[tuple[float, ...]], base: Scores, *, errors: float = 0.0) -> float:
    """The gain over `base` on rows between (with so many standard `errors`), or that on rows after (with one): the
    smaller.

    Of the folds there are so far, by paired differences of blocks; minus infinity where one has no score,
    or `base` was not judged.
    """
    if not scores or not all(scores) or len(base) < len(scores):
        return -math.inf
    gains = [np.subtract(new, old if old else new) for new, old in zip(scores, base, strict=False)]
    found = _mean(gains[::2], errors)
    return min(found, _mean(gains[1::2], 1.0)) if len(gains) > 1 else found


def _mean(gains: Sequence[npt.NDArray[np.float64]], errors: float) -> float:
    """The mean of the blocks' gains, and so many of its standard errors on top."""
    each = np.concatenate(gains)
    return float(each.mean() + errors * each.std() / math.sqrt(max(len(each) - 1, 1)))
