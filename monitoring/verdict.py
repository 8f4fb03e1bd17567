"""Held, lost, or not known yet: what the labels say of a champion's quality, as numbers and as one sentence.

The rows that the champion answered are compared with its own holdout, in the chosen metric and in loss (log loss, or
the root of the mean squared error), by `monitoring/evidence.py`: one may look as often as one likes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from monitoring.evidence import ALPHA, Fall, Influences, State, judge, spread
from monitoring.feature import HOLDOUT, LABEL, PREDICTED, PROBABILITIES, SCORE, Task
from monitoring.influence import of_classes, of_numbers
from monitoring.quality import (
    LOWER_IS_BETTER,
    Classes,
    Metric,
    QualityPolicy,
    as_chances,
    as_codes,
    as_floats,
    chosen_metric,
)
from monitoring.wording import metric_name

if TYPE_CHECKING:
    import pandas as pd

FEWEST: Final = 10
"""Rows with another label than the most frequent one that a comparison of classes needs: fewer say nothing of chance,
and labels of one class only may be those that come early."""
FEWEST_TO_HOLD: Final = 50
"""Such rows that the champion's holdout needs before quality can be called held: with fewer its level may be low by
luck, and rows that come seldom tell late of a fall."""


class Outputs(NamedTuple):
    """What was said of n rows in time order, and what was true."""

    labels: Sequence[Any] | npt.NDArray[Any]
    """Classes, or numbers."""
    answers: Sequence[Any] | npt.NDArray[Any]
    """The same."""
    scores: Sequence[Any] | npt.NDArray[Any] | None
    """As `monitoring.quality.measure` takes them."""


def holdout_of(reference: pd.DataFrame, task: Task) -> Outputs:
    """What a champion said of its own holdout: the rows of its reference that it did not learn from."""
    holdout = reference[reference[HOLDOUT]]
    scores = None if task == "regression" else holdout.get(SCORE if task == "binary" else PROBABILITIES)
    return Outputs(holdout[LABEL].to_numpy(), holdout[PREDICTED].to_numpy(), scores)


class Compared(msgspec.Struct, frozen=True):
    """One metric of the rows answered against the champion's holdout."""

    metric: str
    allowed: float
    """Fall (where lower is better: rise) that is no loss of quality yet, in the metric's unit."""
    level: float | None
    """The metric on the holdout; None when it is not defined there."""
    fall: Fall
    """Its `value` is negative where lower is better."""


class QualityVerdict(msgspec.Struct, frozen=True):
    """What is known of the quality of an output."""

    state: State
    words: str
    """The state, on which rows, with which output, against what: one sentence."""
    compared: tuple[Compared, ...]
    """In the chosen metric, and in loss where that is another one."""


def judge_quality(
    answered: Outputs,
    holdout: Outputs,
    task: Task,
    classes: Classes,
    policy: QualityPolicy,
    *,
    before: int = 0,
    output: str = "served",
) -> QualityVerdict:
    """Whether the quality of the rows `answered` is that of the champion's `holdout`.

    `answered` are matured rows that the champion answered itself, oldest first; `before` more came earlier and are not
    read any more. `output` is their name in the sentence: served, or raw.
    Lost when the metric or the loss is, held when both are. All false alarms together stay below `ALPHA`.
    """
    metric = chosen_metric(task, policy)
    loss: Metric = "rmse" if task == "regression" else "log_loss"
    rows_of = {name: _rows(answered, name, task, classes) for name in dict.fromkeys((metric, loss))}
    own = {name: _rows(holdout, name, task, classes) for name in rows_of}
    levels = {name: _level(rows) for name, rows in own.items()}
    if levels[loss] is None and loss != metric:
        del rows_of[loss]  # a model without probabilities has none
    compared = tuple(
        _compare(name, rows, levels[name], _can_hold(own[name]), policy, before, ALPHA / len(rows_of))
        for name, rows in rows_of.items()
    )
    states = [each.fall.state for each in compared]
    state: State = "lost" if "lost" in states else "held" if set(states) == {"held"} else "not known yet"
    shown = next(each for each in compared if each.fall.state == state)
    about = rows_of[shown.metric]  # type: ignore[index]
    return QualityVerdict(state, f"quality {state}: {_words(state, shown, about, policy, output)}", compared)


class _Rows(NamedTuple):
    """The rows that define a metric."""

    rows: int
    measure: Callable[[int], Influences | None]  # of the newest n; None where they say nothing
    others: Callable[[int], int] | None  # of the newest n, those without the most frequent label; None: numbers
    positives: Callable[[int], int] | None  # of a binary task


def _rows(given: Outputs, metric: Metric, task: Task, classes: Classes) -> _Rows:
    if task == "regression":
        truth, answers = as_floats(given.labels), as_floats(given.answers)
        there = np.isfinite(truth) & np.isfinite(answers)
        truth, answers = truth[there], answers[there]
        return _Rows(len(truth), lambda n: of_numbers(metric, truth[-n:], answers[-n:]), None, None)
    codes, said = as_codes(given.labels, classes), as_codes(given.answers, classes)
    if metric in ("accuracy", "f1", "f1_macro"):
        there = (codes >= (-1 if metric == "accuracy" else 0)) & (said >= 0)
        chances = np.eye(len(classes))[np.maximum(said, 0)]
    elif given.scores is None:
        there, chances = np.zeros(len(codes), dtype=bool), np.empty((len(codes), len(classes)))
    else:
        chances = as_chances(given.scores, len(classes))
        there = (codes >= 0) & np.isfinite(chances).all(axis=1)
    codes, chances = codes[there], chances[there]

    def others(n: int) -> int:
        newest = codes[-n:]
        return len(newest) - int(np.bincount(newest + 1).max()) if len(newest) else 0

    def measure(n: int) -> Influences | None:
        return of_classes(metric, codes[-n:], chances[-n:]) if others(n) >= FEWEST else None

    return _Rows(len(codes), measure, others, (lambda n: int((codes[-n:] == 1).sum())) if task == "binary" else None)


def _level(holdout: _Rows) -> tuple[float, float] | None:
    """The metric and its standard error; None where it is not defined."""
    found = holdout.measure(holdout.rows) if holdout.rows else None
    return None if found is None else (found.value, spread(found.rows) / math.sqrt(holdout.rows))


def _can_hold(holdout: _Rows) -> bool:
    return holdout.others is None or holdout.others(holdout.rows) >= FEWEST_TO_HOLD


def _compare(
    metric: str,
    rows: _Rows,
    level: tuple[float, float] | None,
    can_hold: bool,
    policy: QualityPolicy,
    before: int,
    alpha: float,
) -> Compared:
    if level is None:
        return Compared(metric, 0.0, None, Fall("not known yet", rows.rows))
    value, error = level
    allowed = policy.max_rise * abs(value) if metric in LOWER_IS_BETTER else policy.max_fall
    fall = judge(
        rows.measure,
        rows.rows,
        before,
        value,
        error,
        allowed,
        alpha=alpha,
        shortest=policy.min_labels,
        can_hold=can_hold,
    )
    return Compared(metric, allowed, -value if metric in LOWER_IS_BETTER else value, fall)


def _words(state: State, compared: Compared, rows: _Rows, policy: QualityPolicy, output: str) -> str:
    fall = compared.fall
    if compared.level is None:
        return (
            f"{metric_name(compared.metric)} is not defined on the champion's holdout, there is nothing to compare with"
        )
    if fall.value is None or fall.fall is None or fall.high is None:
        return _too_few(compared.metric, rows, policy)
    verb = "rise" if compared.metric in LOWER_IS_BETTER else "fall"
    value = -fall.value if compared.metric in LOWER_IS_BETTER else fall.value
    told = ""
    if state == "not known yet" and rows.positives is not None:
        told = f" ({rows.positives(fall.rows):,} of them positive)"
    text = (
        f"{output} {metric_name(compared.metric)} {value:.4g} on {fall.rows:,} rows answered{told}, "
        f"{compared.level:.4g} on the champion's holdout; "
    )
    limit = f"{compared.allowed:.2g} allowed"
    if state == "lost":
        return f"{text}the {verb} is at least {fall.fall - (fall.chance or 0.0):.2g}, {limit}"
    if state == "held":
        return text + (f"a {verb} of {fall.high:.2g} at most, {limit}" if fall.high > 0 else f"no {verb}")
    text += f"a {verb} of up to {fall.high - fall.fall:.2g} could be chance, {limit}; "
    if fall.more_rows is None:
        return f"{text}the holdout is too small to tell"
    return f"{text}about {_rounded(fall.more_rows):,} more labels will tell"


def _too_few(metric: str, rows: _Rows, policy: QualityPolicy) -> str:
    if rows.rows < policy.min_labels:
        return f"{rows.rows:,} rows answered have a matured label, {policy.min_labels:,} are needed"
    if rows.others is not None and rows.others(rows.rows) < FEWEST:
        found = rows.others(rows.rows)
        kind = "of another label than the most frequent one"
        if rows.positives is not None:
            kind = "positives" if rows.positives(rows.rows) == found else "negatives"
        return f"{found} {kind} among {rows.rows:,} rows answered, {FEWEST} are needed"
    return f"{metric_name(metric)} is not defined yet on the newest of {rows.rows:,} rows answered"


def _rounded(rows: int) -> int:
    """To two digits: it is a guess."""
    return max(1, round(rows, 1 - int(math.log10(rows)))) if rows > 0 else 1
