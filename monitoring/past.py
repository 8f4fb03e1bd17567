"""How much do stretches of the reference differ among themselves? What consecutive, dependent rows show unmoved.

A window of 1,000 consecutive half-hours differs from a reference of other times although nothing is new: rows of one
week, one season, one price war resemble each other. Random splits (`monitoring.distance.beyond_chance`) know nothing of
that. So the reference, whose rows stand in the order of time, is cut into consecutive blocks of the window's length (at
least `BLOCKS` of them, then shorter ones), and each block is compared with the others together. A window is beyond the
own past when it differs by more than `sigmas` deviations over the mean of the blocks, and by more than each of them
(subsampling for dependent rows: Politis, Romano and Wolf, "Subsampling", 1999).

Where blocks that lie further apart differ more (a trend, a season, a random walk), so must a window that lies further
away: the level grows with a power of the gap, the slope of the log distance over the log gap (a variogram; Cressie,
"Statistics for Spatial Data", 1993, ch. 2), 0 for a column that shows no such growth and at most 1, a trend.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from monitoring.distance import Array, Codes, Distance

BLOCKS: Final = 8
MOST_BLOCKS: Final = 40
MIN_BLOCK_ROWS: Final = 25
_LEVELS: Final = 200  # quantiles of a block that are compared
_SHUFFLES: Final = 4


class Shown(NamedTuple):
    """What a column's own past shows."""

    level: float
    """Distance, of the column's test, that blocks of the past do not reach."""
    growth: float
    """Power of the gap with which distances grow, 0 to 1."""

    def at(self, reach: float) -> float:
        """The level at `reach` times the gap that the reference itself spans (half of its time)."""
        return float(self.level * max(reach, 1.0) ** self.growth)


NOTHING: Final = Shown(0.0, 0.0)
"""Of a reference that is too short to be cut."""


def numbers_shown(values: Array, window_rows: int, sigmas: float) -> Shown:
    """Of numbers in standard deviations of the reference, in time order: mean distances between quantiles.

    That is the Wasserstein distance of the blocks, on 200 levels.
    """
    count, length = _cut(len(values), window_rows)
    if not count:
        return NOTHING
    levels = (np.arange(_LEVELS) + 0.5) / _LEVELS
    whole = np.sort(values)[(levels * len(values)).astype(int)]

    def quantiles(ordered: Array) -> Array:
        blocks = np.sort(ordered[-count * length :].reshape(count, length), axis=1)
        return np.asarray(blocks[:, (levels * length).astype(int)])

    def from_rest(ordered: Array) -> Array:
        # The whole holds the block itself: its distance from the rest is larger by exactly that share of rows.
        return np.asarray(np.abs(quantiles(ordered) - whole).mean(axis=1) / (1 - length / len(values)))

    found = quantiles(values)
    apart = np.stack([np.abs(found - one).mean(axis=1) for one in found])
    return Shown(_level(from_rest, values, length, window_rows, sigmas), _growth(apart))


def codes_shown(codes: Codes, window_rows: int, sigmas: float) -> Shown:
    """Of the codes of categories, in time order: Jensen-Shannon distances between the blocks' counts."""
    from scipy.spatial.distance import jensenshannon

    count, length = _cut(len(codes), window_rows)
    if not count:
        return NOTHING
    kinds = int(codes.max()) + 1
    whole, block = np.bincount(codes, minlength=kinds), np.repeat(np.arange(count), length) * kinds

    def counts(ordered: Codes) -> Codes:
        found = np.bincount(block + ordered[-count * length :], minlength=count * kinds)
        return np.asarray(found.reshape(count, kinds))

    def from_rest(ordered: Codes) -> Array:
        found = counts(ordered)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.nan_to_num(jensenshannon(found, whole - found, axis=1)))

    found = counts(codes)
    with np.errstate(invalid="ignore"):
        apart = np.nan_to_num(jensenshannon(found[:, None, :], found[None, :, :], axis=2))
    return Shown(_level(from_rest, codes, length, window_rows, sigmas), _growth(apart))


def missing_shown(missing: npt.NDArray[np.bool_], window_rows: int, sigmas: float) -> Shown:
    """Of which rows lack the value: differences of the blocks' shares."""
    count, length = _cut(len(missing), window_rows)
    if not count:
        return NOTHING

    def shares(ordered: npt.NDArray[np.bool_]) -> Array:
        return np.asarray(ordered[-count * length :].reshape(count, length).mean(axis=1))

    def from_rest(ordered: npt.NDArray[np.bool_]) -> Array:
        return np.asarray(np.abs(shares(ordered) - missing.mean()) / (1 - length / len(missing)))

    found = shares(missing)
    apart = np.abs(found[:, None] - found[None, :])
    return Shown(_level(from_rest, missing, length, window_rows, sigmas), _growth(apart))


def distances_shown(distance: Distance, values: Array | Codes, window_rows: int, sigmas: float) -> Shown:
    """By any distance: each block against the others together, about 1 ms a block; without growth."""
    count, length = _cut(len(values), window_rows)
    if not count:
        return NOTHING

    def from_rest(ordered: Array | Codes) -> Array:
        ends = [len(ordered) - length * place for place in range(count)]
        blocks = [slice(end - length, end) for end in ends]
        return np.array([distance(np.delete(ordered, block), ordered[block]) for block in blocks])

    return Shown(_level(from_rest, values, length, window_rows, sigmas), 0.0)


def _cut(rows: int, window_rows: int) -> tuple[int, int]:
    """How many blocks of how many rows; none when they would be too short to be compared."""
    count = min(max(BLOCKS, rows // window_rows), MOST_BLOCKS)
    length = min(window_rows, rows // count)
    return (count, length) if length >= MIN_BLOCK_ROWS else (0, 0)


def _level(from_rest: Callable[[Any], Array], ordered: Any, length: int, window_rows: int, sigmas: float) -> float:
    """What no block reaches, brought from the blocks' length to the window's.

    The squared mean distance of the blocks is a part that chance gives, as large as with the rows in random order, and
    a part that time makes. The first shrinks with the root of the rows; the second is kept whole.
    """
    found = from_rest(ordered)
    level = max(float(found.mean()) + _deviations(len(found), sigmas) * float(found.std(ddof=1)), float(found.max()))
    if length >= window_rows or not level:
        return level
    random = np.random.default_rng(0)
    chance = max(float(from_rest(random.permutation(ordered)).mean()) for _ in range(_SHUFFLES))
    share = min((chance / float(found.mean())) ** 2, 1.0)
    return level * math.sqrt(1 - share + share * length / window_rows)


def _deviations(count: int, sigmas: float) -> float:
    """Deviations of `count` values that one more is as unlikely to exceed as a normal one its `sigmas`.

    A prediction interval: Student's t, for the deviation is itself known from these few (Hahn and Meeker, "Statistical
    Intervals", 1991, ch. 4). 3 become 4.8 with 8 values, 3.2 with 40.
    """
    from scipy.special import ndtr, stdtrit

    return float(stdtrit(count - 1, ndtr(sigmas))) * math.sqrt(1 + 1 / count)


def _growth(apart: Array) -> float:
    """Slope of log distance over log gap between near blocks and far ones. `apart`: distances, blocks by blocks."""
    places = np.arange(len(apart))
    gaps = np.abs(places[:, None] - places[None, :])
    near, far = (gaps >= 1) & (gaps <= len(apart) // 4), gaps >= len(apart) // 2
    nearby, apart_far = float(apart[near].mean()), float(apart[far].mean())
    if nearby <= 0 or apart_far <= nearby:
        return 0.0
    return min(math.log(apart_far / nearby) / math.log(gaps[far].mean() / gaps[near].mean()), 1.0)
