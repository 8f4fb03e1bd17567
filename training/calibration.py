"""Do the answers mean what they say? The expected calibration error, and how far chance moves it.

The error is the mean distance between what is said and what is so, over bins of equally many rows in the order of what
is said (Naeini et al. 2015). Of a quantity it is the same in standard deviations of the label. Few rows show an error
by chance: how much is expected of a calibrated model is taken off before it is compared with the limit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from monitoring.evidence import spread
from training.manifest import GateResult

if TYPE_CHECKING:
    import numpy.typing as npt

    from training.comparing import Truth
    from training.gate_policy import GatePolicy

BINS: Final = 10


class Error(NamedTuple):
    """A calibration error, each row's part in it, and what chance alone makes of a calibrated model's."""

    value: float
    rows: npt.NDArray[np.float64]
    by_chance: float


def calibration(
    new: npt.NDArray[Any], old: npt.NDArray[Any] | None, truth: Truth, policy: GatePolicy
) -> GateResult | None:
    """Fails when the error is over the limit beyond chance, and probably larger than the champion's.

    Without a champion (`old` None) the limit alone counts. None where the labels do not define it.
    """
    limit = policy.max_calibration_error
    mine = calibration_error(new, truth)
    if mine is None:
        return None
    over = mine.value - mine.by_chance > limit
    unit = "" if truth.classes else " standard deviations of the label"
    why = f"calibration error {mine.value:.4g}{unit}, about {mine.by_chance:.2g} of it by chance"
    theirs = None if old is None else calibration_error(old, truth)
    if theirs is None:
        return GateResult("calibration", not over, mine.value, limit, why + (f": more than {limit:g}" if over else ""))
    moved = mine.rows - theirs.rows
    error = spread(moved) / math.sqrt(len(moved))
    grown = mine.value - theirs.value
    worse = 0.5 * (1 + math.erf(grown / error / math.sqrt(2))) if error else float(grown > 0)
    why += f", the champion's is {theirs.value:.4g}"
    failed = over and worse >= policy.confidence
    if failed:
        why += f": more than {limit:g}, and larger than the champion's with probability {worse:.3f}"
    return GateResult("calibration", not failed, mine.value, limit, why)


def calibration_error(answers: npt.NDArray[Any], truth: Truth) -> Error | None:
    """Of the second class for two classes, of the most probable class for more; None without rows to tell."""
    known = truth.known
    labels, answers = truth.values[known], np.asarray(answers, dtype=np.float64)[known]
    if len(labels) < BINS:
        return None
    if not truth.classes:
        scale = float(labels.std())
        if not scale:
            return None
        said, so = answers / scale, labels / scale
    elif len(truth.classes) == 2:
        said, so = answers[:, 1], (labels == 1).astype(np.float64)
    else:
        said, so = answers.max(axis=1), (answers.argmax(axis=1) == labels).astype(np.float64)
    off = said - so
    rows, by_chance = np.empty(len(off)), 0.0
    for part in np.array_split(np.argsort(said, kind="stable"), BINS):
        rows[part] = off[part] * np.sign(off[part].mean())
        by_chance += math.sqrt(2 / math.pi * len(part)) * float(off[part].std()) / len(off)
    value = float(rows.mean())
    return Error(value, rows - value, by_chance)
