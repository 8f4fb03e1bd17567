"""May the challenger replace the champion? Every gate answers with a number and a reason.

`judge` sees only what two models said of the same rows, so it is pure; `timed` asks two models in turn and times them.
Differences are paired: both models answer the same rows, so what is hard for both cancels out. How far chance moves a
difference comes from each row's influence on it, and from blocks of neighbouring rows (`monitoring/evidence.py`).
pandas and scikit-learn are not imported here.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from monitoring.evidence import Influences, spread
from monitoring.influence import of_classes, of_numbers
from monitoring.wording import metric_name
from training.manifest import GateResult, Verdict

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from monitoring.schema import FeatureSchema

Metric = Literal["auc", "accuracy", "r2"]
Measure = Literal["auc", "accuracy", "r2", "log_loss", "mse"]
SHOWN_CHARS: Final = 60
"""Of a category in the name of its segment."""
LOSSES: Final[dict[str, Measure]] = {"binary": "log_loss", "multiclass": "log_loss", "regression": "mse"}
"""What decides between two models: a loss sees every row, a metric of ranks or hits only what crosses a line."""
PRIMARY: Final[dict[str, Metric]] = {"binary": "auc", "multiclass": "accuracy", "regression": "r2"}


class GatePolicy(BaseModel):
    """What a challenger must show before it may replace the champion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Literal["auto", "auc", "accuracy", "r2"] = Field(
        "auto",
        description="what decides between two models; auto: the loss (log loss, squared error), which sees every row. "
        "Told besides: AUC for two classes, accuracy for more, R² for regression",
    )
    min_gain: float = Field(
        0.0, ge=0, description="of what decides; a candidate that was only hoped for must be better by more than this"
    )
    confidence: float = Field(
        0.9, ge=0.5, lt=1, description="probability that a candidate which was only hoped for is better"
    )
    worse_confidence: float = Field(
        0.84,
        ge=0.5,
        lt=1,
        description="probability of being worse from which a candidate that was due is refused; 0.84 is one standard "
        "error. More data is a reason by itself, so small steady gains need not be proven one by one",
    )
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
    batch_budget_ms: float = Field(
        500.0, gt=0, description="ms; 1,000 rows answered within this are always fast enough"
    )


class Latency(msgspec.Struct, frozen=True):
    """Times of two models that answered in turn, in one process; milliseconds, medians."""

    one_row_ms: float
    champion_one_row_ms: float
    batch_ms: float
    champion_batch_ms: float
    one_row_ratio: float
    """Times the champion that all but the fastest tenth of the pairs took at least: noise is slow now and then."""
    batch_ratio: float


class Answers(msgspec.Struct, frozen=True):
    """What a model says of the holdout, and how long it takes to say it as it would in service."""

    values: Any  # probabilities, rows by classes; for regression one value a row
    latency: Latency | None = None  # None: not measured
    twin: bool | None = None  # an ONNX twin answers; None: not known
    parity: str = ""  # why, or why not


def judge(
    challenger: Answers,
    champion: Answers | None,
    holdout: pd.DataFrame,
    labels: npt.NDArray[Any],
    schema: FeatureSchema,
    policy: GatePolicy,
    *,
    due: bool = False,
) -> Verdict:
    """The verdict on a challenger from the same rows as the champion's answers; None for a first version.

    `holdout` holds canonical features (rows by features, in time order), `labels` their canonical labels. With `due`
    it suffices not to be probably worse, else it must be probably better. A first version is judged by `holdout_rows`
    and `baseline` only. The same arguments give the same verdict.
    """
    metric = metric_of(schema.task, policy)
    truth = Truth.of(labels, schema)
    gates = [_holdout_rows(truth, policy)]
    if gates[0].passed and champion is None:
        gates.append(_baseline(challenger, truth, schema.task))
    elif gates[0].passed and champion is not None:
        gates.append(_quality(challenger, champion, truth, schema.task, metric, policy, due=due))
        gates.append(_segments(challenger, champion, holdout, truth, metric, schema, policy))
    if champion is not None:
        gates.append(_latency(challenger.latency, policy))
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

    @property
    def known(self) -> Any:
        """Which labels the models have a class for (every number of a regression): one boolean a row."""
        return self.values >= 0 if self.classes else np.ones(len(self.values), dtype=bool)


def score(values: npt.NDArray[Any], truth: Truth, metric: Measure) -> float:
    """The metric of a model's answers; NaN where it is undefined (one class only, constant labels, no rows)."""
    found = influences(values, truth, metric)
    return math.nan if found is None else found.value


def influences(values: npt.NDArray[Any], truth: Truth, metric: Measure) -> Influences | None:
    """The metric of a model's answers and each row's influence on it; larger is better, so losses are negative.

    A row of a class that the models never saw is a wrong answer for `accuracy`, and does not count in the others. None
    where the metric is undefined.
    """
    if not truth.classes:
        return of_numbers(metric, truth.values, np.asarray(values, dtype=np.float64))
    known = truth.known | (metric == "accuracy")
    return of_classes(metric, truth.values[known], np.asarray(values, dtype=np.float64)[known])


class Difference(NamedTuple):
    """How much better a challenger is than a champion on the same rows."""

    new: float
    old: float
    error: float
    """Standard error of `new` - `old`."""

    @property
    def gain(self) -> float:
        return self.new - self.old

    def chance_above(self, gain: float) -> float:
        """Probability that the true gain is above this one."""
        if not self.error:
            return 1.0 if self.gain > gain else 0.0 if self.gain < gain else 0.5
        return 0.5 * (1 + math.erf((self.gain - gain) / self.error / math.sqrt(2)))


def difference(new: npt.NDArray[Any], old: npt.NDArray[Any], truth: Truth, metric: Measure) -> Difference | None:
    """The paired difference of two models' answers to the same rows, None where the metric is undefined."""
    first, second = influences(new, truth, metric), influences(old, truth, metric)
    if first is None or second is None:
        return None
    rows = first.rows - second.rows
    return Difference(first.value, second.value, spread(rows) / math.sqrt(len(rows)))


def timed(
    new: tuple[Callable[[], object], Callable[[], object]],
    old: tuple[Callable[[], object], Callable[[], object]],
    *,
    clock: Callable[[], float] = time.perf_counter,
    repeats: int = 31,
) -> Latency:
    """Both models' times for one row and for 1,000 rows, called in turn; two calls of each warm up unmeasured."""
    found = []
    for calls in zip(new, old, strict=True):
        times: tuple[list[float], list[float]] = ([], [])
        for turn in range(2 + repeats):
            for call, into in zip(calls, times, strict=True):
                begin = clock()
                call()
                if turn >= 2:
                    into.append((clock() - begin) * 1000)
        ratios = sorted(mine / max(theirs, 1e-9) for mine, theirs in zip(*times, strict=True))
        found.append((statistics.median(times[0]), statistics.median(times[1]), ratios[len(ratios) // 10]))
    (one, its_one, one_ratio), (batch, its_batch, batch_ratio) = found
    return Latency(one, its_one, batch, its_batch, one_ratio, batch_ratio)


# -- gates ----------------------------------------------------------------------------------------------------------


def _holdout_rows(truth: Truth, policy: GatePolicy) -> GateResult:
    rows, needed = len(truth), policy.min_holdout_rows
    if rows < needed:
        why = f"the holdout has {rows:,} labelled rows, {needed:,} are needed to judge: wait for more labels"
        return GateResult("holdout_rows", False, rows, needed, why)
    present = np.unique(truth.values[truth.values >= 0] if truth.classes else truth.values)
    if len(present) < 2:
        if truth.classes:
            only = repr(truth.classes[int(present[0])]) if len(present) else "none of the model's classes"
            why = f"all {rows:,} labels of the holdout are {only}: nothing can be compared"
        else:
            why = f"all {rows:,} labels of the holdout have one value: nothing can be compared"
        return GateResult("holdout_rows", False, rows, needed, why)
    return GateResult(
        "holdout_rows", True, rows, needed, f"the holdout has {rows:,} labelled rows, {needed:,} are needed"
    )


def _baseline(challenger: Answers, truth: Truth, task: str) -> GateResult:
    """Against the best constant in hindsight; it informs a person, since a first version is served anyway."""
    loss = LOSSES[task]
    found = difference(challenger.values, _constant(truth), truth, loss)
    if found is None:
        return GateResult("baseline", True, None, None, "nothing to compare with")
    what = "the mean" if task == "regression" else "the classes' shares"
    passed = found.gain > 0
    why = f"{metric_name(loss)} {-found.new:.4g}, always answering with {what} has {-found.old:.4g}"
    return GateResult("baseline", passed, found.new, found.old, why + ("" if passed else ": it has learnt nothing"))


def _quality(
    challenger: Answers, champion: Answers, truth: Truth, task: str, metric: Metric, policy: GatePolicy, *, due: bool
) -> GateResult:
    measure: Measure = LOSSES[task] if policy.metric == "auto" else metric
    found = difference(challenger.values, champion.values, truth, measure)
    if found is None:  # a metric without a value on these rows: the loss has one
        measure = LOSSES[task]
        found = difference(challenger.values, champion.values, truth, measure)
    if found is None:
        return GateResult("quality", False, None, None, f"nothing can be compared on {len(truth):,} rows")
    sign = -1 if measure in LOSSES.values() else 1
    better = found.chance_above(policy.min_gain)
    worse = 1 - found.chance_above(0.0)
    if due:
        passed = worse < policy.worse_confidence
        need = f"it was due, so {policy.worse_confidence:g} would refuse it"
        chance = f"worse with probability {worse:.3f} ({need})"
    else:
        passed = found.gain > 0 and better >= policy.confidence
        by = f" by more than {policy.min_gain:g}" if policy.min_gain else ""
        chance = f"better{by} with probability {better:.3f} ({policy.confidence:g} is needed)"
    why = (
        f"{metric_name(measure)} {sign * found.new:.4g} against the champion's {sign * found.old:.4g} on "
        f"{len(truth):,} rows neither was fitted to, gain {found.gain:+.4g} ± {found.error:.2g}: {chance}"
    )
    other = difference(challenger.values, champion.values, truth, metric)
    if measure != metric and other is not None:
        why += f"; {metric_name(metric)} {other.new:.4f} against {other.old:.4f}"
    return GateResult("quality", bool(passed), found.gain, policy.min_gain, why)


def _segments(
    challenger: Answers,
    champion: Answers,
    holdout: pd.DataFrame,
    truth: Truth,
    metric: Metric,
    schema: FeatureSchema,
    policy: GatePolicy,
) -> GateResult:
    """Fails when a segment surely loses too much: with many segments one always loses by chance (Bonferroni)."""
    compared = []
    for name, rows in groups_of(holdout, schema, policy):
        part = Truth(truth.values[rows], truth.classes)
        found = difference(challenger.values[rows], champion.values[rows], part, metric)
        if found is not None:
            compared.append(
                (found, f"{name} ({len(part):,} rows): {metric_name(metric)} {found.new:.4f} against {found.old:.4f}")
            )
    limit = policy.max_segment_loss
    if not compared:
        return GateResult("segments", True, None, limit, f"no segment has {policy.min_segment_rows} rows")
    worst, described = min(compared, key=lambda one: one[0].gain)
    tolerated = (1 - policy.confidence) / len(compared)
    failing = [name for found, name in compared if found.gain < -limit and found.chance_above(-limit) <= tolerated]
    if failing:
        shown = "; ".join(failing[:5]) + (f"; and {len(failing) - 5} more" if len(failing) > 5 else "")
        why = f"{len(failing)} of {len(compared)} segments surely lose more than {limit:g}: {shown}"
        return GateResult("segments", False, -worst.gain, limit, why)
    why = f"none of {len(compared)} segments surely loses more than {limit:g}; the worst is {described}"
    return GateResult("segments", True, -worst.gain, limit, why)


def _latency(found: Latency | None, policy: GatePolicy) -> GateResult:
    if found is None:
        return GateResult("latency", True, None, policy.max_latency_ratio, "not measured")
    reasons, passed, worst = [], True, max(found.one_row_ratio, found.batch_ratio)
    for what, new, old, ratio, budget in (
        ("one row", found.one_row_ms, found.champion_one_row_ms, found.one_row_ratio, policy.one_row_budget_ms),
        ("1,000 rows", found.batch_ms, found.champion_batch_ms, found.batch_ratio, policy.batch_budget_ms),
    ):
        enough = ratio <= policy.max_latency_ratio or new <= budget
        passed &= enough
        over = f": more than {policy.max_latency_ratio:g} times that in nine of ten pairs, and than {budget:g} ms"
        reasons.append(f"{what} in {new:.3g} ms, the champion in {old:.3g} ms" + ("" if enough else over))
    return GateResult("latency", passed, worst, policy.max_latency_ratio, "; ".join(reasons))


def _parity(challenger: Answers) -> GateResult:
    said = {True: "an ONNX twin serves it", False: "scikit-learn serves it, no ONNX twin", None: "not known"}
    why = said[challenger.twin] + (f": {challenger.parity}" if challenger.parity else "")
    value = None if challenger.twin is None else float(challenger.twin)
    return GateResult("parity", True, value, None, f"{why} (for information)")


def groups_of(
    holdout: pd.DataFrame, schema: FeatureSchema, policy: GatePolicy
) -> Iterator[tuple[str, npt.NDArray[np.intp]]]:
    """(name, row positions) of each segment with enough rows, but not of one that is the whole holdout."""
    if unknown := [name for name in policy.sensitive if name not in schema.names]:
        raise ValueError(f"sensitive features {unknown} are not in the schema; it has {', '.join(schema.names)}")
    told: set[bytes] = set()
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
            rows = np.flatnonzero(chosen)
            if policy.min_segment_rows <= len(rows) < len(holdout) and rows.tobytes() not in told:
                told.add(rows.tobytes())  # two columns may mark the same rows: that is one group
                yield name, rows


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


def _constant(truth: Truth) -> npt.NDArray[np.float64]:
    """The answers of a model that always says the classes' shares, or the mean."""
    if not truth.classes:
        return np.full(len(truth), truth.values.mean())
    counts = np.bincount(truth.values[truth.values >= 0], minlength=len(truth.classes))
    return np.tile(counts / max(1, counts.sum()), (len(truth), 1))
