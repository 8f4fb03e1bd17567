"""Does a model treat the groups of a sensitive feature alike? Fairlearn's rates by group, and what chance does to them.

The rates and their difference between groups are those of Fairlearn (Weerts et al., "Fairlearn: Assessing and Improving
Fairness of AI Systems", JMLR 2023). Fairlearn does not say whether one model's difference is larger than another's by
more than chance; that is known here from the rows of the two groups that differ most, which both models answered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from training.groups import groups_by, sensitive_features
from training.manifest import GateResult

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from monitoring.schema import FeatureSchema
    from training.comparing import Truth
    from training.gate_policy import GatePolicy, Rate

LEAST: Final = 20
"""Rows of a group that a rate is of, such as its positives for the true positive rate: fewer say nothing."""


class Gap(NamedTuple):
    """The largest difference of a rate between the groups of one feature."""

    words: str
    new: float
    old: float | None
    error: float
    """Standard error of `new` - `old`."""

    @property
    def chance_worse(self) -> float:
        """Probability that the challenger's gap is larger than the champion's."""
        if self.old is None:
            return 1.0
        if not self.error:
            return float(self.new > self.old)
        return 0.5 * (1 + math.erf((self.new - self.old) / self.error / math.sqrt(2)))


def fairness(
    new: npt.NDArray[Any],
    old: npt.NDArray[Any] | None,
    holdout: pd.DataFrame,
    truth: Truth,
    schema: FeatureSchema,
    policy: GatePolicy,
) -> GateResult:
    """Fails when a rate differs between groups by more than the limit, and surely by more than the champion's does.

    Without a champion (`old` None) the limit alone counts. With many rates one always grows by chance (Bonferroni).
    """
    limit = policy.max_group_difference
    gaps = [
        gap
        for feature in sensitive_features(schema, policy)
        for rate in (policy.fairness if schema.task == "binary" else ("error",))
        if (gap := _gap(rate, groups_by(feature, holdout[feature.name]), new, old, truth, policy)) is not None
    ]
    if not gaps:
        named = ", ".join(policy.sensitive)
        return GateResult("fairness", True, None, limit, f"{named}: no two groups have enough rows to be compared")
    surely = 1 - (1 - policy.confidence) / len(gaps)
    failing = [gap for gap in gaps if gap.new > limit and gap.chance_worse >= surely]
    worst = max(failing or gaps, key=lambda gap: gap.new)
    if failing:
        beyond = f"more than {limit:g}" + ("" if old is None else ", and surely more than the champion's")
        why = f"{'; '.join(gap.words for gap in failing[:5])}: {beyond}"
    else:
        over = worst.new > limit
        known = f"more than {limit:g}, but not surely more than the champion's" if over else f"at most {limit:g}"
        why = f"the largest of {len(gaps)} differences: {worst.words}; {known}"
    return GateResult("fairness", not failing, worst.new, limit, why)


def _gap(
    rate: Rate,
    groups: list[tuple[str, npt.NDArray[np.bool_]]],
    new: npt.NDArray[Any],
    old: npt.NDArray[Any] | None,
    truth: Truth,
    policy: GatePolicy,
) -> Gap | None:
    """None where fewer than two groups have enough rows."""
    asked = _asked(rate, truth)
    groups = [
        (name, rows) for name, rows in groups if rows.sum() >= policy.min_segment_rows and (rows & asked).sum() >= LEAST
    ]
    if len(groups) < 2:
        return None
    mine, theirs = _rates(rate, groups, new, truth), None if old is None else _rates(rate, groups, old, truth)
    most, least = max(mine.by_group, key=mine.by_group.__getitem__), min(mine.by_group, key=mine.by_group.__getitem__)
    variance = 0.0
    if old is not None:
        moved = _each(rate, new, truth) - _each(rate, old, truth)
        parts = [moved[rows & asked] for name, rows in groups if name in (most, least)]
        variance = sum(float(part.var()) / len(part) for part in parts)
    words = (
        f"{rate.replace('_', ' ')} {mine.by_group[most]:.3f} for {most} and {mine.by_group[least]:.3f} for {least}"
        + ("" if theirs is None else f" (the champion's differs by {theirs.difference:.3f})")
    )
    return Gap(words, mine.difference, None if theirs is None else theirs.difference, math.sqrt(variance))


class _Rates(NamedTuple):
    by_group: dict[str, float]
    difference: float


def _rates(
    rate: Rate, groups: list[tuple[str, npt.NDArray[np.bool_]]], answers: npt.NDArray[Any], truth: Truth
) -> _Rates:
    """Fairlearn's rate of each group, and the largest difference between two of them."""
    from fairlearn import metrics as fairlearn
    from sklearn.metrics import mean_absolute_error, zero_one_loss

    of: dict[str, Callable[..., Any]] = {
        "selection_rate": fairlearn.selection_rate,
        "true_positive_rate": fairlearn.true_positive_rate,
        "false_positive_rate": fairlearn.false_positive_rate,
        "error": zero_one_loss if truth.classes else mean_absolute_error,
    }
    member = np.full(len(truth), None, dtype=object)
    for name, rows in groups:
        member[rows] = name
    chosen = np.array([name is not None for name in member]) & truth.known
    so, said = truth.values[chosen], _said(answers, truth)[chosen]
    if not truth.classes:
        so, said = so / _spread(truth), said / _spread(truth)
    frame = fairlearn.MetricFrame(metrics=of[rate], y_true=so, y_pred=said, sensitive_features=member[chosen])
    return _Rates({str(name): float(value) for name, value in frame.by_group.items()}, float(frame.difference()))


def _said(answers: npt.NDArray[Any], truth: Truth) -> npt.NDArray[Any]:
    """The answers as labels are written in `Truth`."""
    said: npt.NDArray[Any] = answers.argmax(axis=1) if truth.classes else np.asarray(answers, dtype=np.float64)
    return said


def _spread(truth: Truth) -> float:
    """What an error of a quantity is measured in: the standard deviation of the labels."""
    return float(truth.values.std()) or 1.0


def _asked(rate: Rate, truth: Truth) -> npt.NDArray[np.bool_]:
    """The rows that a rate is of."""
    if rate == "true_positive_rate":
        return np.asarray(truth.values == 1)
    if rate == "false_positive_rate":
        return np.asarray(truth.values == 0)
    return np.asarray(truth.known)


def _each(rate: Rate, answers: npt.NDArray[Any], truth: Truth) -> npt.NDArray[np.float64]:
    """Per row what the rate is the mean of, over the rows that it is of."""
    said = _said(answers, truth)
    if rate == "error" and not truth.classes:
        return np.asarray(np.abs(said - truth.values) / _spread(truth))
    return np.asarray((said != truth.values) if rate == "error" else (said == 1), dtype=np.float64)
