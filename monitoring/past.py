"""How much do stretches of the reference differ among themselves? What consecutive, dependent rows show unmoved.

A window of 1,000 consecutive half-hours differs from a reference of other times although nothing is new: rows of one
week, one season, one price war resemble each other. Random splits (`monitoring.distance.beyond_chance`) know nothing of
that. So the reference, whose rows stand in the order of time, is cut into consecutive blocks of the window's length (at
least `BLOCKS` of them, then shorter ones: these differ more, which errs towards silence), and each block is compared
with the whole. A window is beyond the own past when it differs by more than `sigmas` deviations over the mean of the
blocks, and by more than each of them (subsampling for dependent rows: Politis, Romano and Wolf, "Subsampling", 1999).

Where blocks that lie further apart differ more (a trend, a season, a random walk), so must a window that lies further
away: the level grows with a power of the gap, the slope of the log distance over the log gap (a variogram; Cressie,
"Statistics for Spatial Data", 1993, ch. 2), 0 for a column that shows no such growth and at most 1, a trend.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from monitoring.distance import Array, Codes, Distance

BLOCKS: Final = 8
MOST_BLOCKS: Final = 40
MIN_BLOCK_ROWS: Final = 25
_LEVELS: Final = 200  # quantiles of a block that are compared


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
    blocks = np.sort(values[-count * length :].reshape(count, length), axis=1)
    levels = (np.arange(_LEVELS) + 0.5) / _LEVELS
    quantiles = blocks[:, (levels * length).astype(int)]
    whole = np.sort(values)[(levels * len(values)).astype(int)]
    from_whole = np.abs(quantiles - whole).mean(axis=1)
    apart = np.stack([np.abs(quantiles - one).mean(axis=1) for one in quantiles])
    # The whole holds the block itself: its distance from the rest is larger by exactly that share of rows.
    return _shown(from_whole / (1 - length / len(values)), apart, sigmas)


def codes_shown(codes: Codes, window_rows: int, sigmas: float) -> Shown:
    """Of the codes of categories, in time order: Jensen-Shannon distances between the blocks' counts."""
    from scipy.spatial.distance import jensenshannon

    count, length = _cut(len(codes), window_rows)
    if not count:
        return NOTHING
    kinds = int(codes.max()) + 1
    block = np.repeat(np.arange(count), length) * kinds
    counts = np.bincount(block + codes[-count * length :], minlength=count * kinds).reshape(count, kinds)
    rest = np.bincount(codes, minlength=kinds) - counts
    with np.errstate(invalid="ignore"):
        from_rest = np.nan_to_num(jensenshannon(counts, rest, axis=1))
        apart = np.nan_to_num(jensenshannon(counts[:, None, :], counts[None, :, :], axis=2))
    return _shown(from_rest, apart, sigmas)


def missing_shown(missing: npt.NDArray[np.bool_], window_rows: int, sigmas: float) -> Shown:
    """Of which rows lack the value: differences of the blocks' shares."""
    count, length = _cut(len(missing), window_rows)
    if not count:
        return NOTHING
    shares = missing[-count * length :].reshape(count, length).mean(axis=1)
    from_whole = np.abs(shares - missing.mean()) / (1 - length / len(missing))
    return _shown(from_whole, np.abs(shares[:, None] - shares[None, :]), sigmas)


def distances_shown(distance: Distance, values: Array | Codes, window_rows: int, sigmas: float) -> Shown:
    """By any distance: each block against the others together, about 1 ms a block; without growth."""
    count, length = _cut(len(values), window_rows)
    if not count:
        return NOTHING
    starts = len(values) - length * np.arange(1, count + 1)
    found = [
        distance(np.delete(values, slice(start, start + length)), values[start : start + length]) for start in starts
    ]
    return _shown(np.array(found), np.zeros((count, count)), sigmas)


def _cut(rows: int, window_rows: int) -> tuple[int, int]:
    """How many blocks of how many rows; none when they would be too short to be compared."""
    count = min(max(BLOCKS, rows // window_rows), MOST_BLOCKS)
    length = min(window_rows, rows // count)
    return (count, length) if length >= MIN_BLOCK_ROWS else (0, 0)


def _shown(from_rest: Array, apart: Array, sigmas: float) -> Shown:
    """`from_rest`: each block's distance from the others together; `apart`: the blocks' distances from each other."""
    level = max(float(from_rest.mean() + sigmas * from_rest.std(ddof=1)), float(from_rest.max()))
    count = len(from_rest)
    gaps = np.abs(np.arange(count)[:, None] - np.arange(count)[None, :])
    near, far = (gaps >= 1) & (gaps <= count // 4), gaps >= count // 2
    nearby, apart_far = float(apart[near].mean()), float(apart[far].mean())
    if nearby <= 0 or apart_far <= nearby:
        return Shown(level, 0.0)
    growth = math.log(apart_far / nearby) / math.log(gaps[far].mean() / gaps[near].mean())
    return Shown(level, min(growth, 1.0))
