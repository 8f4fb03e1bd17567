"""How far are two samples of one column apart, and how far could chance alone bring them? Evidently's distances.

Both of Evidently's distances grow as samples shrink, by about `1/sqrt(rows)`, also when nothing changed: at 200 rows
one unmoved normal column of three has a normed Wasserstein distance over 0.1. `beyond_chance` says what random splits
of the two samples laid together reach (a permutation test, Fisher 1935; Good, "Permutation, Parametric and Bootstrap
Tests", 2005, ch. 3); rows are taken as independent. What dependent rows reach says `monitoring.past`.

Evidently is imported inside `distance_of` (the import runs its whole package: about 13 s and 280 MB once a process on
two busy cores; there is no lighter public door to its statistical tests), and its size-dependent defaults are never
used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
Column = Literal["num", "cat"]
Distance = Callable[[npt.NDArray[np.generic], npt.NDArray[np.generic]], float]


FIRST_SPLITS: Final = 25


def beyond_chance(
    score: float,
    test: str,
    column_type: Column,
    old: Array | Codes,
    new: Array | Codes,
    *,
    sigmas: float,
    permutations: int,
    rng: np.random.Generator,
) -> float:
    """What random splits of both samples do not reach: `sigmas` deviations over their mean, and the largest.

    The largest bounds false alarms at 1 in `permutations` + 1 whatever the distribution; for skewed columns the
    deviation alone does not: with 10 % log-normal values and 200 rows 5 deviations were passed in 2 % of checks.
    The first 25 splits are enough when one of them reaches the score, or when it is four times as far out as it must
    be (sequential Monte Carlo tests, Besag and Clifford 1991): only scores in between cost them all.
    """

    def splits(count: int) -> Array:
        if test == "wasserstein":
            return _wasserstein_splits(old, new, count, rng)
        if test == "jensenshannon" and column_type == "cat":
            return _jensenshannon_splits(old, new, count, rng)
        return _splits(distance_of(test, column_type), old, new, count, rng)

    def reached(found: Array, times: float = 1.0) -> float:
        return max(float(found.mean()) + times * sigmas * float(found.std(ddof=1)), times * float(found.max()))

    found = splits(min(FIRST_SPLITS, permutations))
    if found.max() < score < reached(found, 4.0) and len(found) < permutations:
        found = np.concatenate([found, splits(permutations - len(found))])
    return reached(found)


def _splits(distance: Distance, old: Array | Codes, new: Array | Codes, count: int, rng: np.random.Generator) -> Array:
    """Distances of random splits of both samples laid together, at their sizes; about 1 ms each."""
    together = np.concatenate([old, new])
    distances = np.empty(count)
    for position in range(count):
        shuffled = rng.permutation(together)
        distances[position] = distance(shuffled[: len(old)], shuffled[len(old) :])
    return distances


def _wasserstein_splits(old: Array | Codes, new: Array | Codes, count: int, rng: np.random.Generator) -> Array:
    """`_splits` for Evidently's normed Wasserstein distance, ten times as fast because values are sorted once."""
    values = np.sort(np.concatenate([old, new]))
    steps = np.diff(values)
    ranks = np.arange(1, len(values))
    is_old = np.arange(len(values)) < len(old)
    distances = np.empty(count)
    for position in range(count):
        rng.shuffle(is_old)
        below = np.cumsum(is_old)[:-1]
        gaps = np.abs(below / len(old) - (ranks - below) / len(new))
        distances[position] = (gaps * steps).sum() / max(float(values[is_old].std()), 0.001)  # `@` would wake threads
    return distances


def _jensenshannon_splits(old: Array | Codes, new: Array | Codes, count: int, rng: np.random.Generator) -> Array:
    """`_splits` for the Jensen-Shannon distance of codes, drawn as counts of each code."""
    from scipy.spatial.distance import jensenshannon

    counts = np.unique(np.concatenate([old, new]), return_counts=True)[1]
    drawn = rng.multivariate_hypergeometric(counts, len(old), size=count)
    with np.errstate(invalid="ignore"):
        distances = jensenshannon(drawn / len(old), (counts - drawn) / len(new), axis=1)
    return np.nan_to_num(np.asarray(distances, dtype=np.float64))


def distance_of(test: str, column_type: Column) -> Distance:
    """Evidently's distance of that name as a function of two arrays."""
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing evidently imports nltk, litestar, plotly: not ours to fix
        from evidently.legacy.calculations.stattests import get_stattest
        from evidently.legacy.core import ColumnType

    kind = ColumnType(column_type)
    empty = pd.Series(dtype=float)
    stattest = get_stattest(empty, empty, kind, test)

    def distance(old: npt.NDArray[np.generic], new: npt.NDArray[np.generic]) -> float:
        with np.errstate(invalid="ignore"):
            # The threshold given here decides nothing: only the distance is read.
            score = float(stattest(pd.Series(old), pd.Series(new), kind, 0.1).drift_score)
        # scipy takes the square root of a divergence that rounding can make -1e-17 for equal samples.
        return 0.0 if np.isnan(score) else score

    return distance


def scaled(old: Array, new: Array) -> tuple[Array, Array]:
    """Both samples in standard deviations of the reference, clipped to its 0.1 % and 99.9 % quantiles.

    One value of 1e9 among 1,000 must neither raise an alarm nor, by widening the noise, hide a real shift; it is
    counted in `FeatureDrift.outside`. Both sides are clipped alike: clipping them differently made 1 % of unmoved
    log-normal columns drift. Scaling first also avoids Evidently's floor of 0.001 on the reference's deviation, under
    which columns of small values never drift.
    """
    low, high = np.quantile(old, (0.001, 0.999))
    if low == high:  # all but a handful of rows are one value
        low, high = old.min(), old.max()
    old, new = np.clip(old, low, high), np.clip(new, low, high)
    center, deviation = old.mean(), old.std()
    return (old - center) / deviation, (new - center) / deviation


def buckets(old: list[str], new: list[str], most: int) -> tuple[tuple[Codes, Codes], int]:
    """Integer codes of both samples, and how many categories there were; the rare ones share the last code.

    Ranked on both samples together, so that random splits of them meet the same buckets. By a dictionary: a NumPy
    array of text is as wide as its longest cell in every row.
    """
    code_of = {category: code for code, category in enumerate(sorted({*old, *new}))}
    codes = np.fromiter(map(code_of.__getitem__, old + new), np.int64, len(old) + len(new))
    if len(code_of) > most:
        counts = np.bincount(codes, minlength=len(code_of))
        rank = np.empty(len(code_of), np.int64)
        rank[np.argsort(-counts, kind="stable")] = np.arange(len(code_of))
        codes = np.minimum(rank, most)[codes]
    return (codes[: len(old)], codes[len(old) :]), len(code_of)


def numbers(series: pd.Series[Any]) -> Array:
    """Float64 values; what is missing or infinite is NaN."""
    values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.isfinite(values), values, np.nan)


def keys(series: pd.Series[Any]) -> list[str | None]:
    """Values as text; numbers and booleans alike whether they come as int, float or bool. Missing is None."""
    return [
        None if missing else (value if isinstance(value, str) else repr(float(value)))
        for value, missing in zip(series.tolist(), series.isna().tolist(), strict=True)
    ]
