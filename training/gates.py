"""May the challenger replace the champion? Every gate answers with a number and a reason.

`judge` sees only what two models said of the same rows, so it is pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from monitoring.wording import metric_name
from training.calibration import calibration
from training.comparing import LOSSES, Measure, Metric, Truth, difference, metric_of, score
from training.edges import Edges, edges_gate
from training.fairness import fairness
from training.groups import groups_of
from training.latency import Latency
from training.manifest import GateResult, Verdict

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from monitoring.schema import FeatureSchema
    from training.gate_policy import GatePolicy


class Answers(msgspec.Struct, frozen=True):
    """What a model says of the holdout, and how long it takes to say it as it would in service."""

    values: Any  # probabilities, rows by classes; for regression one value a row
    latency: Latency | None = None  # None: not measured
    twin: bool | None = None  # an ONNX twin answers; None: not known
    parity: str = ""  # why, or why not
    disagrees: bool = False  # a twin was made, and answers otherwise than its pipeline
    edges: Edges | None = None  # None: not asked
    size_mb: float | None = None  # of what is loaded to serve it; None: not known


class Trusted(msgspec.Struct, frozen=True):
    """What both models say of the rows of a file that nobody but the owner writes."""

    new: Any
    old: Any | None  # None: a first version
    truth: Truth


def judge(
    challenger: Answers,
    champion: Answers | None,
    holdout: pd.DataFrame,
    labels: npt.NDArray[Any],
    schema: FeatureSchema,
    policy: GatePolicy,
    *,
    due: bool = False,
    trusted: Trusted | None = None,
    trained: bool = True,
) -> Verdict:
    """The verdict on a challenger from the same rows as the champion's answers; None for a first version.

    `holdout` holds canonical features (rows by features, in time order), `labels` their canonical labels. With `due`
    it suffices not to be probably worse, else it must be probably better. `trained`: it was fitted here, not pushed. A
    first version is compared with a constant. All gates are asked, whatever the others say; those without a setting or
    a measurement are left out. The same arguments give the same verdict.
    """
    metric, task = metric_of(schema.task, policy), schema.task
    truth = Truth.of(labels, schema)
    old = None if champion is None else champion.values
    gates: list[GateResult | None] = [_holdout_rows(truth, policy)]
    if champion is None:
        gates.append(_baseline(challenger, truth, task))
    else:
        gates.append(_quality(challenger, champion, truth, task, metric, policy, due=due))
    gates.append(None if trusted is None else _trusted_holdout(trusted, task, policy))
    gates.append(None if policy.min_quality is None else _floor(challenger, truth, metric, policy.min_quality))
    if champion is not None:
        gates.append(_segments(challenger, champion, holdout, truth, metric, schema, policy))
    if policy.sensitive:
        gates.append(fairness(challenger.values, old, holdout, truth, schema, policy))
    gates.append(calibration(challenger.values, old, truth, policy))
    if challenger.edges is not None:
        gates.append(edges_gate(challenger.edges, None if champion is None else champion.edges))
    if champion is not None:
        gates.append(_latency(challenger.latency, policy))
    gates.append(None if challenger.size_mb is None else _size(challenger, champion, policy))
    gates.append(_parity(challenger, champion, policy, trained=trained))
    asked = tuple(gate for gate in gates if gate is not None)
    return Verdict(all(gate.passed for gate in asked), asked)


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


def _trusted_holdout(found: Trusted, task: str, policy: GatePolicy) -> GateResult:
    """Fails when the challenger is probably worse than the champion on rows that no label of the record reaches."""
    loss, rows = LOSSES[task], len(found.truth)
    if found.old is None:
        value = score(found.new, found.truth, loss)
        why = f"{metric_name(loss)} {-value:.4g} on {rows:,} trusted rows; there is no champion to compare with"
        return GateResult("trusted_holdout", True, value, None, why)
    compared = difference(found.new, found.old, found.truth, loss)
    if compared is None:
        why = f"nothing can be compared on {rows:,} trusted rows: their labels are of no class of the model"
        return GateResult("trusted_holdout", False, None, 0.0, why)
    worse = 1 - compared.chance_above(0.0)
    why = (
        f"{metric_name(loss)} {-compared.new:.4g} against the champion's {-compared.old:.4g} on {rows:,} trusted rows: "
        f"worse with probability {worse:.3f} ({policy.worse_confidence:g} refuses it)"
    )
    return GateResult("trusted_holdout", worse < policy.worse_confidence, compared.gain, 0.0, why)


def _floor(challenger: Answers, truth: Truth, metric: Metric, least: float) -> GateResult:
    value = score(challenger.values, truth, metric)
    known, passed = value == value, value >= least
    why = f"{metric_name(metric)} {value:.4f}" if known else f"{metric_name(metric)} is undefined on these rows"
    return GateResult(
        "floor", passed, value if known else None, least, why + (", " if passed else ": not ") + f"at least {least:g}"
    )


def _size(challenger: Answers, champion: Answers | None, policy: GatePolicy) -> GateResult:
    size, most = challenger.size_mb or 0.0, policy.max_artefact_mb
    theirs = "" if champion is None or champion.size_mb is None else f", the champion's has {champion.size_mb:.3g} MB"
    over = "" if size <= most else f": more than {most:g} MB"
    return GateResult("size", size <= most, size, most, f"the artefact has {size:.3g} MB{theirs}{over}")


def _parity(challenger: Answers, champion: Answers | None, policy: GatePolicy, *, trained: bool) -> GateResult:
    said = {True: "it has an ONNX twin", False: "scikit-learn serves it, no ONNX twin", None: "not known"}
    why = said[challenger.twin] + (f": {challenger.parity}" if challenger.parity else "")
    value = None if challenger.twin is None else float(challenger.twin)
    asked = policy.twin_must_agree == "always" or (policy.twin_must_agree == "trained" and trained)
    if asked and challenger.disagrees and champion is not None and champion.twin:
        why = (
            f"its ONNX twin answers otherwise than its pipeline, the champion's does not: {challenger.parity}; with "
            'gates.twin_must_agree = "never" scikit-learn serves it'
        )
        return GateResult("parity", False, value, 1.0, why)
    return GateResult("parity", True, value, None, f"{why} (for information)")


def _constant(truth: Truth) -> npt.NDArray[np.float64]:
    """The answers of a model that always says the classes' shares, or the mean."""
    if not truth.classes:
        return np.full(len(truth), truth.values.mean())
    counts = np.bincount(truth.values[truth.values >= 0], minlength=len(truth.classes))
    return np.tile(counts / max(1, counts.sum()), (len(truth), 1))
