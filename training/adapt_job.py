"""The champion's matured answers become the next adaptation, in a process of its own (`training/job.py`).

The champion's raw output is computed anew, by the engine that answers requests: also for rows that the versions before
answered and that the champion did not learn. Each row is scored with the adaptation that was in force when it was
answered, those with the champion's first (`training/experts.py`); quality and harm are judged on its own answers only.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pandas as pd

from monitoring.evidence import boundary, spread
from monitoring.feature import ADAPTATION, AT, LABEL
from monitoring.quality import QualityPolicy
from monitoring.verdict import Outputs, QualityVerdict, holdout_of, judge_quality
from training.adaptation import Adaptation, Adapter, decode, link, losses
from training.artefact import REFERENCE, UNSEEN, verify
from training.comparing import Truth
from training.data import read_snapshot
from training.experts import AdaptPolicy, Answered, Standing, error_scale, make, score, tempered
from training.fitting import labels_of
from training.gate_policy import GatePolicy
from training.groups import groups_of
from training.judgement import answered, schema_of
from training.loaded import LoadedModel, load_model
from training.spec import Adapted, JobError, JobResult, JobSpec, write_made

if TYPE_CHECKING:
    import numpy.typing as npt

    from monitoring.feature import Task
    from monitoring.schema import FeatureSchema

    Array = npt.NDArray[np.float64]


def make_adaptation(spec: JobSpec, out: Path) -> JobResult:
    """Weigh the experts, look whether the served output did harm, and fit them anew."""
    if spec.champion is None or spec.served is None:
        raise JobError("an adaptation needs a champion's folder and what it served")
    policy, schema = AdaptPolicy.model_validate(spec.adapt), schema_of(spec)
    model = load_model(Path(spec.champion), verify(Path(spec.champion)), schema, spec.trusted)
    recorded = pd.read_parquet(spec.snapshot)
    served = np.load(spec.served, allow_pickle=False)
    own = np.ones(len(recorded), bool) if spec.own is None else np.load(spec.own, allow_pickle=False)
    truth = Truth.of(labels_of(recorded, schema), schema)
    known = truth.known
    if not known.any():
        return JobResult(ok=True, passed=False, adapted=Adapted(made=False))
    recorded, served, own = recorded[known].reset_index(drop=True), served[known], own[known]
    features = schema.canonical(recorded)
    raw, x = model.answer_with_matrix(features)
    rows = tempered(Answered(raw, x, truth.values[known]), schema.task)
    scale = error_scale(rows) if schema.task == "regression" else 1.0
    standing = _scored(spec, recorded, rows, policy, scale)
    found = msgspec.structs.replace(
        _compared(raw, served, rows.truth, recorded, features, schema, spec, policy, scale),
        raw=_judged(raw[own], recorded[own], schema, spec),
    )
    if found.harm:
        return JobResult(ok=True, passed=False, adapted=found)
    together = _with_unseen(spec, rows, model, schema, policy)
    made = make(together, schema.task, standing, policy, version=0, seed=spec.seed, waiting=spec.waiting)
    if made is None:
        return JobResult(ok=True, passed=False, adapted=found)
    write_made(made, out)
    return JobResult(
        ok=True,
        passed=True,
        adapted=msgspec.structs.replace(
            found,
            made=True,
            rows=len(rows.truth),
            standing=standing.gains,
            weights=made.whole.weight_of,
            slope=made.served.slope,
            moved=_moved(made.served, rows.newest(1_000), scale),
        ),
    )


def _judged(
    raw: npt.NDArray[Any], recorded: pd.DataFrame, schema: FeatureSchema, spec: JobSpec
) -> QualityVerdict | None:
    """Whether the quality of the champion's own output is that of its holdout; None without a reference."""
    path = Path(str(spec.champion)) / REFERENCE
    if not path.is_file():
        return None
    task, classes = schema.task, schema.classes
    answers, scores = (raw, None) if task == "regression" else (np.array(classes, object)[raw.argmax(axis=1)], raw)
    return judge_quality(
        Outputs(recorded[LABEL].to_numpy(), answers, scores),
        holdout_of(pd.read_parquet(path), task),
        task,
        classes,
        QualityPolicy.model_validate(spec.quality),
        before=spec.answered_before,
        output="raw",
    )


def _with_unseen(
    spec: JobSpec, rows: Answered, model: LoadedModel, schema: FeatureSchema, policy: AdaptPolicy
) -> Answered:
    """These rows after those which the version started with, until it has answered enough itself.

    Without the latter when an erasure has rewritten the snapshot: the positions are no longer those of the same rows.
    """
    path = Path(str(spec.champion)) / UNSEEN
    room = policy.most_rows - len(rows.truth)
    if spec.unseen is None or room <= 0 or not path.is_file():
        return rows
    with np.load(path, allow_pickle=False) as held:
        snapshot, places, said = str(held["snapshot"]), held["rows"][-room:], held["said"][-room:]
    if snapshot != Path(spec.unseen).stem or not Path(spec.unseen).is_file():
        return rows
    part = read_snapshot(Path(spec.unseen), schema).iloc[places]
    before = answered(model, part, said.astype(rows.raw.dtype), schema)
    both = Answered(*(np.concatenate(parts) for parts in zip(before, rows, strict=True)))
    return tempered(both, schema.task)


def _scored(spec: JobSpec, recorded: pd.DataFrame, rows: Answered, policy: AdaptPolicy, scale: float) -> Standing:
    """The standing after the labels that are new, oldest first; rows that no known adaptation answered do not count."""
    standing = Standing(dict(spec.standing))
    numbers = recorded[ADAPTATION].to_numpy(dtype=np.float64)
    fresh = recorded[AT].to_numpy(dtype=np.float64) > spec.scored_until
    for number in sorted(spec.answered_by):
        chosen = np.flatnonzero(fresh & (numbers == number))
        if len(chosen):
            adapter = Adapter(decode(Path(spec.answered_by[number]).read_bytes()))
            part = Answered(rows.raw[chosen], rows.x[chosen], rows.truth[chosen])
            standing = score(standing, adapter, part, policy, scale=scale)
    return standing


def _compared(
    raw: npt.NDArray[Any],
    served: npt.NDArray[Any],
    truth: npt.NDArray[Any],
    recorded: pd.DataFrame,
    features: pd.DataFrame,
    schema: FeatureSchema,
    spec: JobSpec,
    policy: AdaptPolicy,
    scale: float,
) -> Adapted:
    """Raw beside served on the rows that an adaptation answered, overall and in every group that is large enough."""
    numbers = recorded[ADAPTATION].to_numpy(dtype=np.float64)
    adapted = np.isin(numbers, list(spec.answered_by)) & np.isfinite(served).reshape(len(served), -1).all(axis=1)
    count = int(adapted.sum())
    if not count:
        return Adapted(made=False, rows=len(truth))
    lost = [losses(link(said[adapted], schema.task), truth[adapted], schema.task, scale) for said in (raw, served)]
    unit = scale if schema.task == "regression" else 1.0
    gates = GatePolicy.model_validate(spec.gates)
    groups = [("all rows", np.arange(count)), *groups_of(features[adapted].reset_index(drop=True), schema, gates)]
    harm = _harm(lost[1] - lost[0], groups, policy)
    means = [float(one.mean()) * unit for one in lost]
    return Adapted(made=False, rows=len(truth), compared=count, raw_loss=means[0], served_loss=means[1], harm=harm)


def _harm(more: Array, groups: list[tuple[str, npt.NDArray[np.intp]]], policy: AdaptPolicy) -> str:
    """The group in which the served output surely loses `more` than the raw one; "" when in none.

    The newest rows are looked at by themselves, too: what helped for long may do harm since yesterday.
    """
    newest = [("all rows", np.arange(len(more) - size, len(more))) for size in policy.windows if size < len(more)]
    looks = [(name, rows) for name, rows in [*newest, *groups] if len(rows) >= policy.min_rows]
    for name, rows in looks:
        part = more[rows]
        chance = boundary(len(part), policy.guard_alpha / len(looks), len(part)) * spread(part) / math.sqrt(len(part))
        if part.mean() - chance > policy.guard_loss:
            return (
                f"{name}, {len(part)} answered while adapted: the adapted output loses {part.mean():.3g} more a row "
                f"than the raw one; {policy.guard_loss:g} are tolerated, chance explains {chance:.2g}"
            )
    return ""


def _moved(adaptation: Adaptation, rows: Answered, scale: float) -> float:
    task: Task = adaptation.task
    way = link(Adapter(adaptation).apply(rows.raw, rows.x), task) - link(rows.raw, task)
    return float(np.sqrt(np.mean(way**2) / (scale / 2 if task == "regression" else 1.0)))
