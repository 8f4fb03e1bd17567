"""How much is known about a quality: held, lost, or not known yet. NumPy and the standard library alone.

A fall of quality is judged by intervals that hold at all times at once, so that one may look at every check, as often
as one likes, and all false alarms together stay below `alpha`. Sources: Podkopaev & Ramdas, "Tracking the risk of a
deployed model", ICLR 2022 (the risk on the stream against the risk on the holdout); Miller & Siegmund, "Maximally
selected chi square statistics", Biometrics 1982 (the highest of all looks at a sum while its rows double);
Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences",
Annals of Statistics 2024 (looks without an end: the one-sided boundary, equation 10). `benchmarks/validity.py` measures
what they keep of it.

A metric enters as its value and the influence of each row on it (Hampel 1974): the mean of the influences is 0, their
spread is what chance does. Neighbouring rows may resemble each other, so the spread is also taken from blocks of
consecutive rows, and the larger of both counts (Carlstein 1986).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec
import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

State = Literal["held", "lost", "not known yet"]

ALPHA: Final = 0.05
"""All false alarms of one champion together."""
BLOCKS: Final = 20
"""Blocks of consecutive rows that show how far neighbours resemble each other."""
SHORTEST: Final = 100
"""Rows of the shortest window that is looked at."""


class Influences(NamedTuple):
    """A metric of some rows in time order, larger is better: its value, and how each row moves it (mean 0)."""

    value: float
    rows: Array


class Fall(msgspec.Struct, frozen=True):
    """What is known about a metric's fall below the champion's own level, in the metric's unit (positive: worse)."""

    state: State
    rows: int
    """Matured rows that the interval rests on."""
    value: float | None = None
    """The metric on them."""
    fall: float | None = None
    low: float | None = None
    high: float | None = None
    """The fall lies between them, at all looks at once."""
    chance: float | None = None
    """How far chance alone moves the fall in the window looked at, by itself: lost is beyond that."""
    more_rows: int | None = None
    """About how many more rows it takes to tell; None when it is told, or cannot be said."""


def spread(influences: Array) -> float:
    """Standard deviation of one row's influence as it counts for a mean: the larger of rows' own and blocks'."""
    n = len(influences)
    own = float(influences.std())
    size = n // BLOCKS
    if size < 2:
        return own
    means = influences[n - size * BLOCKS :].reshape(BLOCKS, size).mean(axis=1)
    return max(own, float(means.std(ddof=1)) * math.sqrt(size))


def boundary(rows: int, alpha: float, tuned_to: int) -> float:
    """Standard errors that a one-sided confidence sequence is wide at `rows`, tightest near `tuned_to` rows.

    Times the standard error of a mean it is the half-width that no look at any time exceeds with probability `alpha`.
    """
    tuning = _tuning(alpha) / tuned_to
    grown = rows * tuning + 1
    return math.sqrt(2 * grown / (rows * tuning) * math.log1p(math.sqrt(grown) / (2 * alpha)))


def _tuning(alpha: float) -> float:
    """rho squared times the rows at which the boundary is tightest (equation 14 there, for 2 alpha two-sided)."""
    logs = -2 * math.log(2 * alpha)
    return logs + math.log(max(logs, 1e-9) + 1) if logs > 0 else 1.0


@functools.lru_cache(maxsize=4096)
def while_doubling(alpha: float) -> float:
    """Standard errors that a mean exceeds with probability `alpha` at any of its looks from n rows to twice as many.

    Miller & Siegmund's tail of the highest of them, half of the two-sided one; simulated, it is .9 to 1 of `alpha`.
    Such a window is never longer, so its boundary may be a fifth lower than one for looks without an end.
    """
    low, high = 1.0, 40.0
    while high - low > 1e-9:
        c = (low + high) / 2
        tail = math.exp(-c * c / 2) / math.sqrt(2 * math.pi) * ((c - 1 / c) * math.log(2) / 2 + 2 / c)
        low, high = (c, high) if tail > alpha else (low, c)
    return high


def judge(
    measure: Callable[[int], Influences | None],
    rows: int,
    before: int,
    level: float,
    level_error: float,
    allowed: float,
    *,
    alpha: float = ALPHA,
    shortest: int = SHORTEST,
    can_hold: bool = True,
) -> Fall:
    """Whether the metric of the newest rows fell by more than `allowed` below `level`.

    `measure(n)` is the metric of the newest n matured rows, None when they do not define it. `rows` can be read,
    `before` more came earlier from the same champion. `level` is the champion's own, on rows it did not learn from,
    with standard error `level_error`; without `can_hold` it rests on too few rows to say that anything held.

    Windows double in length from `shortest`. One that began at the i-th place of its length has a share of `alpha`
    of its own, and all shares together are `alpha`.
    - `lost`: a window by itself, at all its looks, excludes a fall within `allowed`, and all windows together exclude
      that there was none. So a stream whose quality did not fall is ever called lost with probability `alpha`.
    - `held`: all windows together exclude a fall of `allowed`, and in no window does the fall lie more than a
      standard error above it.
    """
    found: list[Fall] = []
    doubtful: Fall | None = None
    level_chance = NormalDist().inv_cdf(1 - alpha / 2) * level_error  # it was drawn once, whatever the looks
    for window, share in _windows(rows, before, alpha, shortest):
        seen = measure(window)
        if seen is not None:
            own = spread(seen.rows) / math.sqrt(window)
            fall, error = level - seen.value, math.hypot(own, level_error)
            widths = while_doubling(alpha), while_doubling(share)
            found.append(_told(seen.value, fall, window, own, level_chance, widths, allowed))
            if fall - error > allowed:
                doubtful = found[-1]
    for state in ("lost",) if doubtful or not can_hold else ("lost", "held"):
        told = [one for one in found if one.state == state]
        if told:  # the one that says most
            return max(told, key=lambda one: (one.low or 0.0) if one.state == "lost" else -(one.high or 0.0))
    if not found:
        return Fall("not known yet", rows)
    shown = doubtful or found[-1]
    return msgspec.structs.replace(shown, state="not known yet", more_rows=shown.more_rows if can_hold else None)


def _told(
    value: float, fall: float, rows: int, own: float, level_chance: float, widths: tuple[float, float], allowed: float
) -> Fall:
    """What one window says.

    `widths` are standard errors `own` that chance moves it by, alone and at all windows; `level_chance`, the level.
    """
    alone, together = (math.hypot(width * own, level_chance) for width in widths)
    state: State = "not known yet"
    more = None
    if fall - alone > allowed and fall > together:
        state = "lost"
    elif fall + together < allowed:
        state = "held"
    else:
        # Its own rows must bring their part down to this; the level's stays as it is.
        left = ((fall - allowed) ** 2 - level_chance**2) / widths[0 if fall > allowed else 1] ** 2
        if left > 0:
            more = max(0, math.ceil(rows * (own**2 / left - 1)))
    return Fall(state, rows, value, fall, fall - together, fall + together, alone, more)


def _windows(rows: int, before: int, alpha: float, shortest: int) -> Iterator[tuple[int, float]]:
    """(rows, alpha of its own) of each window that is looked at now, shortest first."""
    total = before + rows
    lengths = max(1, int(math.log2(max(total, shortest) / shortest)) + 1)
    for power in range(lengths):
        length = shortest << power
        # Windows of this length begin at multiples of it and are looked at until they are twice as long.
        place = (total - length) // length
        begins = place * length
        if begins < before:  # its first rows are not read any more
            continue
        weight = 6 / (math.pi * (power + 1)) ** 2  # sums to 1 over all lengths there will ever be
        yield total - begins, alpha * weight / ((place + 1) * (place + 2))
