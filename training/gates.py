"""May the challenger replace the champion? Every gate answers with a number and a reason.

`judge` sees only what two models said of the same holdout, so it is pure; `answers` asks a model and times it. pandas
and scikit-learn are not imported here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from training.manifest import GateResult, Verdict

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from monitoring.schema import FeatureSchema

Metric = Literal["auc", "accuracy", "r2"]
SHOWN_CHARS: Final = 60
"""Of a category in the name of its segment."""
PRIMARY: Final[dict[str, Metric]] = {"binary": "auc", "multiclass": "accuracy", "regression": "r2"}


class GatePolicy(BaseModel):
    """What a challenger must show before it may replace the champion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Literal["auto", "auc", "accuracy", "r2"] = Field(
        "auto", description="metric compared; auto: auc for two classes, accuracy for more, r2 for regression"
    )
    min_gain: float = Field(0.0, ge=0, description="of the metric; the challenger must be better by more than this")
    confidence: float = Field(
        0.9,
        ge=0.5,
        lt=1,
        description="probability; a gain must hold in this share of resampled holdouts, so luck is rare",
    )
    resamples: int = Field(500, ge=100, le=10_000, description="number; bootstrap samples, 500 settle a share of 0.9")
    min_holdout_rows: int = Field(200, ge=20, description="rows; fewer say nothing about a difference of a few percent")
    max_segment_loss: float = Field(
        0.05, ge=0, description="of the metric; what a segment may lose against the champion before the gate fails"
    )
    min_segment_rows: int = Field(100, ge=20, description="rows; smaller segments differ by chance and are not judged")
    max_segment_categories: int = Field(20, ge=2, description="number; features with more categories form no segments")
    sensitive: tuple[str, ...] = Field(
        (), description="features; always form segments, numeric ones by their quartiles"
    )
    label_sources: tuple[str, ...] = Field(
        (),
        description="token names; whose labels may judge and train (empty: everyone's, also of an open `/feedback`)",
    )
    max_latency_ratio: float = Field(
        3.0, gt=0, description="times; the challenger may take this much longer than the champion to answer"
    )
    one_row_budget_ms: float = Field(20.0, gt=0, description="ms; one row answered within this is always fast enough")
    batch_budget_ms: float = Field(500.0, gt=0, description="ms; 1000 rows answered within this are always fast enough")


class Answers(msgspec.Struct, frozen=True):
    """What a model says of the holdout, and how long it takes to say it as it would in service."""

    values: Any  # probabilities, rows by classes; for regression one value a row
    one_row_ms: float | None = None  # median
    batch_ms: float | None = None  # median for 1000 rows
    twin: bool | None = None  # an ONNX twin answers; None: not known
    parity: str = ""  # why, or why not


def judge(
    challenger: Answers,
    champion: Answers | None,
    holdout: pd.DataFrame,
    labels: npt.NDArray[Any],
    schema: FeatureSchema,
    policy: GatePolicy,
    seed: int = 0,
) -> Verdict:
    """The verdict on a challenger from the same holdout as the champion's answers; None for a first version.

    `holdout` holds canonical features (rows by features), `labels` their canonical labels. A first version is judged by
    `holdout_rows` and `baseline` only (`parity` informs). The same arguments give the same verdict.
    """
    metric = metric_of(schema.task, policy)
    truth = Truth.of(labels, schema)
    gates = [_holdout_rows(truth, policy)]
    measurable = gates[0].passed
    if measurable:
        gates.append(_baseline(challenger, truth, metric, policy, seed))
        if champion is not None:
            gates.append(_quality(challenger, champion, truth, metric, policy, seed))
            gates.append(_segments(challenger, champion, holdout, truth, metric, schema, policy, seed))
    if champion is not None:
        gates.append(_latency(challenger, champion, policy))
    gates.append(_parity(challenger))
    return Verdict(all(gate.passed for gate in gates), tuple(gates))


def metric_of(task: str, policy: GatePolicy) -> Metric:
    """The metric that decides. Raises ValueError for one that does not fit the task."""
    metric = PRIMARY[task] if policy.metric == "auto" else policy.metric
    fits = {"binary": ("auc", "accuracy"), "multiclass": ("accuracy",), "regression": ("r2",)}[task]
    if metric not in fits:
        raise ValueError(f"metric {metric!r} does not fit a {task} task: use {' or '.join(fits)}, or auto")
    return metric


class Truth(msgspec.Struct, frozen=True):
    """Labels as numbers: the position in the schema's classes (-1: a class the model never saw), or the value."""

    values: Any
    classes: tuple[Any, ...]

    @classmethod
    def of(cls, labels: npt.NDArray[Any], schema: FeatureSchema) -> Truth:
        if schema.task == "regression":
            return cls(np.asarray(labels, dtype=np.float64), ())
        position = {value: at for at, value in enumerate(schema.classes)}
        return cls(np.array([position.get(label, -1) for label in labels.tolist()], dtype=np.int64), schema.classes)

    def __len__(self) -> int:
        return len(self.values)


def score(values: npt.NDArray[Any], truth: Truth, metric: Metric) -> float:
    """The metric of a model's answers; NaN where it is undefined (one class only, constant labels, no rows)."""
    if not len(truth):
        return float("nan")
    ones = np.ones((1, len(truth)))
    return float(_scores(values, truth, metric, ones)[0])


def answers(
    values: npt.NDArray[Any],
    one_row: Callable[[], object],
    batch: Callable[[], object],
    *,
    twin: bool,
    parity: str,
    clock: Callable[[], float] = time.perf_counter,
    repeats: int = 15,
) -> Answers:
    """`values` with the median time of answering one row and 1000 rows; two calls of each warm up unmeasured."""
    measured = []
    for call in (one_row, batch):
        call()
        call()
        times = []
        for _ in range(repeats):
            begin = clock()
            call()
            times.append(clock() - begin)
        measured.append(statistics.median(times) * 1000)
    return Answers(values, measured[0], measured[1], twin, parity)


# -- gates ----------------------------------------------------------------------------------------------------------


def _holdout_rows(truth: Truth, policy: GatePolicy) -> GateResult:
    rows, needed = len(truth), policy.min_holdout_rows
    if rows < needed:
        why = f"the holdout has {rows} labelled rows, {needed} are needed to judge: wait for more labels"
        return GateResult("holdout_rows", False, rows, needed, why)
    present = np.unique(truth.values[truth.values >= 0] if truth.classes else truth.values)
    if len(present) < 2:
        if truth.classes:
            only = repr(truth.classes[int(present[0])]) if len(present) else "none of the model's classes"
            why = f"all {rows} labels of the holdout are {only}: nothing can be compared"
        else:
            why = f"all {rows} labels of the holdout have one value: nothing can be compared"
        return GateResult("holdout_rows", False, rows, needed, why)
    return GateResult("holdout_rows", True, rows, needed, f"the holdout has {rows} labelled rows, {needed} are needed")


def _baseline(challenger: Answers, truth: Truth, metric: Metric, policy: GatePolicy, seed: int) -> GateResult:
    constant = _constant(truth)
    value, base = score(challenger.values, truth, metric), score(constant, truth, metric)
    chance = _chance_better(challenger.values, constant, truth, metric, policy, seed)
    passed = bool(value > base and chance >= policy.confidence)
    what = "the mean" if metric == "r2" else "the most frequent class"
    why = (
        f"{metric} {value:.4f}, always saying {what} has {base:.4f}; "
        f"better with probability {chance:.3f}, {policy.confidence:g} is needed"
    )
    return GateResult("baseline", passed, value, base, why)


def _quality(
    challenger: Answers, champion: Answers, truth: Truth, metric: Metric, policy: GatePolicy, seed: int
) -> GateResult:
    new, old = score(challenger.values, truth, metric), score(champion.values, truth, metric)
    chance = _chance_better(challenger.values, champion.values, truth, metric, policy, seed)
    gain = new - old
    passed = bool(gain > 0 and gain >= policy.min_gain and chance >= policy.confidence)
    why = (
        f"{metric} {new:.4f} against the champion's {old:.4f} on {len(truth)} rows: gain {gain:+.4f} "
        f"(at least {policy.min_gain:g} is needed), better with probability {chance:.3f} "
        f"({policy.confidence:g} is needed)"
    )
    return GateResult("quality", passed, gain, policy.min_gain, why)


def _segments(
    challenger: Answers,
    champion: Answers,
    holdout: pd.DataFrame,
    truth: Truth,
    metric: Metric,
    schema: FeatureSchema,
    policy: GatePolicy,
    seed: int,
) -> GateResult:
    judged = 0
    worst: tuple[float, str] | None = None
    failing: list[str] = []
    for name, rows in _segments_of(holdout, schema, policy):
        part = Truth(truth.values[rows], truth.classes)
        new, old = score(challenger.values[rows], part, metric), score(champion.values[rows], part, metric)
        if np.isnan(new) or np.isnan(old):
            continue  # one class only
        judged += 1
        loss = old - new
        said = f"{name} ({len(part)} rows): {metric} {new:.4f} against {old:.4f}"
        if worst is None or loss > worst[0]:
            worst = (loss, said)
        if loss > policy.max_segment_loss:
            lost = _chance_better(
                champion.values[rows], challenger.values[rows], part, metric, policy, seed, by=policy.max_segment_loss
            )
            if lost >= policy.confidence:  # among many small segments one always loses by chance
                failing.append(said)
    if worst is None:
        why = f"no segment has {policy.min_segment_rows} rows"
        return GateResult("segments", True, None, policy.max_segment_loss, why)
    if failing:
        shown = "; ".join(failing[:5]) + (f"; and {len(failing) - 5} more" if len(failing) > 5 else "")
        why = f"{len(failing)} of {judged} segments lose more than {policy.max_segment_loss:g}: {shown}"
        return GateResult("segments", False, worst[0], policy.max_segment_loss, why)
    why = f"none of {judged} segments surely loses more than {policy.max_segment_loss:g}; the worst is {worst[1]}"
    return GateResult("segments", True, worst[0], policy.max_segment_loss, why)


def _latency(challenger: Answers, champion: Answers, policy: GatePolicy) -> GateResult:
    worst, reasons, passed = 0.0, [], True
    for what, new, old, budget in (
        ("one row", challenger.one_row_ms, champion.one_row_ms, policy.one_row_budget_ms),
        ("1000 rows", challenger.batch_ms, champion.batch_ms, policy.batch_budget_ms),
    ):
        if new is None or old is None:
            reasons.append(f"{what} not measured")
            continue
        ratio = new / max(old, 1e-9)
        worst = max(worst, ratio)
        enough = ratio <= policy.max_latency_ratio or new <= budget
        passed &= enough
        reasons.append(
            f"{what} in {new:.3g} ms, the champion in {old:.3g} ms"
            + ("" if enough else f": more than {policy.max_latency_ratio:g} times that, and than {budget:g} ms")
        )
    return GateResult("latency", passed, worst or None, policy.max_latency_ratio, "; ".join(reasons))


def _parity(challenger: Answers) -> GateResult:
    said = {True: "an ONNX twin serves it", False: "scikit-learn serves it, no ONNX twin", None: "not known"}
    why = said[challenger.twin] + (f": {challenger.parity}" if challenger.parity else "")
    value = None if challenger.twin is None else float(challenger.twin)
    return GateResult("parity", True, value, None, f"{why} (for information)")


def _segments_of(
    holdout: pd.DataFrame, schema: FeatureSchema, policy: GatePolicy
) -> Iterator[tuple[str, npt.NDArray[np.intp]]]:
    """(name, row positions) of each segment with enough rows, but not of one that is the whole holdout."""
    if unknown := [name for name in policy.sensitive if name not in schema.names]:
        raise ValueError(f"sensitive features {unknown} are not in the schema; it has {', '.join(schema.names)}")
    for feature in schema.features:
        column = holdout[feature.name]
        sensitive = feature.name in policy.sensitive
        groups: Sequence[tuple[str, npt.NDArray[np.bool_]]]
        if feature.kind in ("categorical", "boolean"):
            values = sorted(set(column.dropna().tolist()))
            if len(values) > policy.max_segment_categories and not sensitive:
                continue
            array = column.to_numpy()
            shown = (lambda v: bool(v)) if feature.kind == "boolean" else (lambda v: v[:SHOWN_CHARS])
            groups = [(f"{feature.name}={shown(value)}", array == value) for value in values]
            groups = [*groups, (f"{feature.name} missing", column.isna().to_numpy())]
        elif sensitive:
            groups = _quartiles(feature.name, column.to_numpy(dtype=np.float64))
        else:
            continue
        for name, chosen in groups:
            if policy.min_segment_rows <= chosen.sum() < len(holdout):
                yield name, np.flatnonzero(chosen)


def _quartiles(name: str, values: npt.NDArray[np.float64]) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    present = values[~np.isnan(values)]
    if not len(present):
        return []
    edges = np.unique(np.quantile(present, [0.25, 0.5, 0.75]))
    at = np.searchsorted(edges, values, side="left")
    bounds = ["-∞", *(f"{edge:.4g}" for edge in edges), "∞"]
    groups = [
        (f"{name} in ({bounds[part]}, {bounds[part + 1]}]", (at == part) & ~np.isnan(values))
        for part in range(len(edges) + 1)
    ]
    return [*groups, (f"{name} missing", np.isnan(values))]


# -- paired bootstrap -----------------------------------------------------------------------------------------------


def _chance_better(
    new: npt.NDArray[Any],
    old: npt.NDArray[Any],
    truth: Truth,
    metric: Metric,
    policy: GatePolicy,
    seed: int,
    *,
    by: float = 0.0,
) -> float:
    """The share of resampled holdouts in which `new` is better than `old` by more than `by`; NaN resamples say no.

    Paired bootstrap (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 16): both models are scored on
    the same rows drawn with replacement, so what is hard for both cancels out.
    """
    random = np.random.default_rng(seed)
    rows = len(truth)
    step = max(1, min(policy.resamples, 2_000_000 // rows))  # 16 MB of counts at a time
    better = 0
    for begin in range(0, policy.resamples, step):
        count = min(step, policy.resamples - begin)
        drawn = random.multinomial(rows, np.full(rows, 1 / rows), size=count).astype(np.float64)
        difference = _scores(new, truth, metric, drawn) - _scores(old, truth, metric, drawn)
        better += int(np.count_nonzero(difference > by))
    return better / policy.resamples


def _scores(
    values: npt.NDArray[Any], truth: Truth, metric: Metric, weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The metric for each row of `weights` (resamples by rows: how often each row was drawn)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric == "accuracy":
            right = (values.argmax(axis=1) == truth.values).astype(np.float64)
            return np.asarray((weights @ right) / weights.sum(axis=1))
        if metric == "r2":
            errors = (truth.values - np.asarray(values, dtype=np.float64)) ** 2
            total = weights.sum(axis=1)
            centred = truth.values - truth.values.mean()
            spread = weights @ centred**2 - (weights @ centred) ** 2 / total
            spread[spread <= 1e-12 * max(1.0, float((centred**2).sum()))] = np.nan
            return np.asarray(1 - (weights @ errors) / spread)
        return _auc(np.asarray(values[:, 1], dtype=np.float64), truth, weights)


def _auc(scores: npt.NDArray[np.float64], truth: Truth, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Area under the ROC curve as the Mann-Whitney statistic, ties counting half (Hanley & McNeil 1982)."""
    order = np.argsort(scores, kind="stable")
    label = truth.values[order]
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])
    drawn = weights[:, order]
    positive = np.add.reduceat(drawn * (label == 1), starts, axis=1)
    negative = np.add.reduceat(drawn * (label == 0), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    won = (positive * (below + negative / 2)).sum(axis=1)
    return np.asarray(won / (positive.sum(axis=1) * negative.sum(axis=1)))


def _constant(truth: Truth) -> npt.NDArray[np.float64]:
    """The answers of a model that always says the most frequent class, or the mean."""
    if not truth.classes:
        return np.full(len(truth), truth.values.mean())
    counts = np.bincount(truth.values[truth.values >= 0], minlength=len(truth.classes))
    constant = np.zeros((len(truth), len(truth.classes)))
    constant[:, int(counts.argmax())] = 1.0
    return constant
