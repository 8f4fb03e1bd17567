"""How long until a row's label is there? Which rows are old enough to be judged by their labels. NumPy alone.

Labels that come early are not a sample of all labels: a cancelled booking is known at once, a kept one after the stay.
So a row takes part in a judgement only when (nearly) every row of its age that will ever get a label has it. The delay
is measured from the record itself; a row answered an hour ago can only show delays below an hour, which the estimate
takes into account (right truncation: Lagakos, Barraj & De Gruttola, "Nonparametric analysis of truncated survival
data", Biometrika 1988).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

COMPLETE: Final = 0.99
"""Share of the labels that will ever come that must be there."""
FEWEST: Final = 30
"""Labels from which a delay can be measured."""
AT_RISK: Final = 10
"""Labels on rows old enough to show a delay, from which the share of shorter ones can be told."""


class Maturity(msgspec.Struct, frozen=True):
    """What is known of labels' delays."""

    delay_s: float
    """A row is mature this many seconds after its answer."""
    matured_until: float
    """Rows answered before this moment (seconds since 1970 UTC) are mature."""
    measured: bool
    """Whether it was measured; otherwise it is a setting, or 0 because there are too few labels to measure."""
    labels: int
    """Labels that it was measured from."""
    coverage: float | None = None
    """Share of the mature rows that have a label; None when no row is mature."""
    waiting: int = 0
    """Rows that are not mature yet."""


def delay(answered: Array, known: Array, now: float, complete: float = COMPLETE) -> float | None:
    """Seconds within which `complete` of the labels come that will ever come; None for fewer than 30 labels.

    `answered` and `known` are the moments (seconds since 1970) of n predictions and of their labels' receipt, NaN
    where there is none yet. A label from before its prediction counts as known at once.
    """
    there = ~np.isnan(known)
    late = np.maximum(known[there] - answered[there], 0.0)
    n = len(late)
    if n < FEWEST:
        return None
    age = np.maximum(now - answered[there], late)
    # F(d), the share that comes within d: the product over longer delays u of 1 - n(u) / R(u), where R(u) are the
    # labels whose delay is at most u on rows at least u old.
    order = np.sort(late)
    at = np.unique(order)
    count = np.diff(np.append(np.searchsorted(order, at, side="left"), n))
    within = np.searchsorted(order, at, side="right")
    young = np.searchsorted(np.sort(age), at, side="left")
    # Rows younger than u have a delay below u as well: they are among `within`, and cannot show a delay of u.
    at_risk = np.maximum(within - young, count)
    steps = 1 - count / at_risk
    # The longest delays rest on few old rows: with one at risk the product would say that nothing comes before.
    steps[at_risk < AT_RISK] = 1.0
    share = np.append(np.cumprod(steps[::-1])[::-1][1:], 1.0)
    return float(at[int(np.searchsorted(share, complete))])


def measure(answered: Array, known: Array, now: float, setting: float | None = None) -> Maturity:
    """The delay (`setting` seconds, or measured when None), and what it means for these predictions."""
    found = delay(answered, known, now) if setting is None else setting
    there = ~np.isnan(known)
    until = math.nextafter(now - (found or 0.0), math.inf)
    old = answered < until
    return Maturity(
        delay_s=found or 0.0,
        matured_until=until,
        measured=setting is None and found is not None,
        labels=int(there.sum()),
        coverage=float(there[old].mean()) if old.any() else None,
        waiting=int(np.count_nonzero(~old)),
    )
