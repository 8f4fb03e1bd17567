"""A training: which rows, which parameters, which window; then `training/judgement.py` judges what came of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from monitoring.feature import AT, ORIGIN
from monitoring.wording import percent
from training.comparing import LOSSES, Truth, difference
from training.convert import convert
from training.data import content_digest, read_snapshot
from training.data_checks import DataCheckPolicy, look, notes
from training.experts import AdaptPolicy
from training.fitting import fit_rows, has_all_classes, labels_of, refreshed
from training.gate_policy import GatePolicy
from training.judgement import Judged, Unseen, finish, schema_of
from training.manifest import Searched, TriedWindow
from training.phases import phase
from training.pipeline import predict
from training.searching import searched, starting_point
from training.split import Split, TrainPolicy, holdout_facts, split, without

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from monitoring.schema import FeatureSchema
    from training.families import Parameters
    from training.spec import JobResult, JobSpec
    from training.tune import Study


def train(spec: JobSpec, out: Path) -> JobResult:
    """Fit, judge on the blocks, and make what goes into service."""
    policy, gates = TrainPolicy.model_validate(spec.training), GatePolicy.model_validate(spec.gates)
    schema = schema_of(spec)
    first = spec.champion is None
    with phase("read"):
        frame = read_snapshot(Path(spec.snapshot), schema)
        rows = split(frame, schema, policy, gates.min_holdout_rows, champion_until=spec.champion_until, first=first)
    with phase("check data"):
        checks = DataCheckPolicy.model_validate(spec.data_checks)
        until = None if first else spec.champion_until
        looked = look(frame, schema, checks, champion_until=until, unfit_rows=spec.unfit_rows)
        if len(looked.left_out):
            rows = rows.besides(looked.left_out, gates.min_holdout_rows)
    start, told = starting_point(spec, policy)
    with phase("tune"):
        study = searched(frame.iloc[rows.train], schema, spec, policy, start)
    with phase("fit to judge"):
        whole = fit_rows(frame.iloc[rows.train], schema, start, spec.seed)
        found = _found(study, whole, frame, rows, schema, spec, gates)
        parameters, whole = (start, whole) if found.pipeline is None else (study.parameters, found.pipeline)
        window, pipeline, tried = _best_window(frame, rows, schema, spec, policy, parameters, whole)
    learnt = rows.all[-window:]
    with phase("fit to serve"):
        final = fit_rows(frame.iloc[learnt], schema, parameters, spec.seed) if policy.last_fit else pipeline
    chosen = next(one.name for one in tried if one.chosen)
    data = {
        "snapshot": content_digest(frame),
        "rows": len(learnt) if policy.last_fit else int((rows.train >= learnt[0]).sum()),
        "known": len(frame),
        "from": float(frame[AT].iloc[learnt[0]]),
        "until": float(frame[AT].iloc[learnt[-1]]),
        "window": {"name": chosen, "rows": len(learnt), "start": int(learnt[0]), "stop": int(learnt[-1]) + 1},
        "windows": msgspec.to_builtins(tried),
        "left_out": looked.left_out.tolist(),
        "trials": [
            {"parameters": t.parameters, "score": t.score, **({"error": t.error} if t.error else {})}
            for t in study.trials
        ],
        "search": msgspec.to_builtins(found.facts) if study.trials else None,
        "last_fit": policy.last_fit,
        "blocks": {
            "policy": policy.model_dump(mode="json", exclude={"backend", "scheduler_address"}),
            "min_holdout_rows": gates.min_holdout_rows,
            "champion_until": spec.champion_until,
            "first": first,
        },
        "holdout": holdout_facts(frame, rows),
    }
    recorded = frame.iloc[learnt].loc[lambda part: part[ORIGIN] == "record", AT]
    done = finish(
        spec,
        out,
        Judged(frame, rows, pipeline),
        final,
        refreshed(schema, frame.iloc[learnt]),
        manifest={"parameters": parameters.model_dump(), "data": data},
        unseen=partial(_unseen, frame, learnt, schema, parameters, spec, policy),
        windows=tried,
        until=float(recorded.iloc[-1]) if len(recorded) else 0.0,
        notes=(*told, *([found.note] if study.trials else []), *notes(looked.findings)),
    )
    return msgspec.structs.replace(done, data_checks=looked.findings)


class _Found(NamedTuple):
    """What a search came to: the pipeline with the found parameters, None when those of the start stay."""

    pipeline: Any
    facts: Searched | None = None
    note: str = ""


def _found(
    study: Study, whole: Any, frame: pd.DataFrame, rows: Split, schema: FeatureSchema, spec: JobSpec, gates: GatePolicy
) -> _Found:
    """The found parameters, if they are better than the start's on the judging blocks by evidence and have a twin.

    `whole` is the start's pipeline. A search picks the best of many on few rows: some of that is luck.
    """
    facts = Searched(
        trials=len(study.trials),
        finished=sum(trial.finished for trial in study.trials),
        resumed=study.resumed,
        ended=study.ended,
        seconds=study.trials[-1].spent if study.trials else 0.0,
    )
    began = f"{len(study.trials)} trials of parameters in {facts.seconds:.0f} s"
    if not study.trials or study.parameters.model_dump() == study.trials[0].parameters:
        return _Found(None, facts, f"{began}: none was better than those it began with")
    holdout = frame.iloc[rows.holdout]
    features, truth = holdout[list(schema.names)], Truth.of(labels_of(holdout, schema), schema)
    pipeline = fit_rows(frame.iloc[rows.train], schema, study.parameters, spec.seed)
    said = predict(pipeline, features, schema)
    compared = difference(said, predict(whole, features, schema), truth, LOSSES[schema.task])
    chance = 0.0 if compared is None else compared.chance_above(0.0)
    what = f"{began}: the best ({study.parameters.family})"
    if compared is not None:
        facts = msgspec.structs.replace(facts, value=compared.new, gain=compared.gain, error=compared.error)
        what += f" gains {compared.gain:+.4g} ± {compared.error:.2g} on the judging rows"
    if chance < gates.confidence:
        return _Found(None, facts, f"{what}, better with probability {chance:.3f} only: the parameters before stay")
    model, _, parity = convert(pipeline, schema, features)
    if model is None:
        return _Found(None, facts, f"{what}, but has no ONNX twin ({parity.reason}): the parameters before stay")
    return _Found(pipeline, msgspec.structs.replace(facts, chosen=True), what)


def _best_window(
    frame: pd.DataFrame,
    rows: Split,
    schema: FeatureSchema,
    spec: JobSpec,
    policy: TrainPolicy,
    parameters: Parameters,
    whole: Any,
) -> tuple[int, Any, tuple[TriedWindow, ...]]:
    """How many of the newest rows to learn from, the pipeline fitted to those that train, and what was compared.

    All rows (`whole` is fitted to them), unless a recent window is better on the judging blocks by more than luck ever
    is.
    """
    holdout = frame.iloc[rows.holdout]
    features, truth = holdout[list(schema.names)], Truth.of(labels_of(holdout, schema), schema)
    tried = [TriedWindow("all rows", len(rows.all), chosen=True)]
    best, pipeline, answers = len(rows.all), whole, None
    for share in sorted(policy.window_shares, reverse=True):
        window = int(share * len(rows.all))
        part = frame.iloc[rows.train[rows.train >= rows.all[-window]]] if window else frame.iloc[:0]
        if spec.champion is None or len(part) < policy.min_rows or not has_all_classes(part, schema):
            continue
        answers = predict(pipeline, features, schema) if answers is None else answers
        fitted = fit_rows(part, schema, parameters, spec.seed)
        said = predict(fitted, features, schema)
        found = difference(said, answers, truth, LOSSES[schema.task])
        sigmas = 0.0 if found is None or not found.error else found.gain / found.error
        chosen = sigmas > policy.window_sigmas
        tried.append(TriedWindow(f"the newest {percent(share)}", window, sigmas))
        if chosen:
            best, pipeline, answers = window, fitted, said
            tried = [msgspec.structs.replace(one, chosen=one is tried[-1]) for one in tried]
    return best, pipeline, tuple(tried)


def _unseen(
    frame: pd.DataFrame,
    learnt: npt.NDArray[np.intp],
    schema: FeatureSchema,
    parameters: Parameters,
    spec: JobSpec,
    policy: TrainPolicy,
) -> Unseen | None:
    """Answers to the newest rows by models that learned only rows before them, as the version will answer new ones.

    Models that learn from what comes after a row as well answer it too well: the world of the row is then known to
    them. Nor do they learn rows whose labels had not come by then. At most a quarter of the rows are answered. None
    when too few rows or classes would be left for a fit.
    Source: Dawid 1984 ("prequential": every answer is given before its outcome is known).
    """
    adapt = AdaptPolicy.model_validate(spec.adapt)
    newest = learnt[-min(adapt.most_rows, len(learnt) // 4) :]
    folds = np.arange(len(newest)) * adapt.start_folds // len(newest)
    said: npt.NDArray[Any] | None = None
    for fold in range(adapt.start_folds):
        answered = newest[folds == fold]
        if not len(answered):
            continue
        part = frame.iloc[without(_known_at(answered[0], learnt, frame, spec.delay_s), answered, frame, policy)]
        if len(part) < policy.min_rows or not has_all_classes(part, schema):
            return None
        answers = predict(
            fit_rows(part, schema, parameters, spec.seed), frame.iloc[answered][list(schema.names)], schema
        )
        said = np.empty((len(newest), *answers.shape[1:])) if said is None else said
        said[folds == fold] = answers
    return None if said is None else Unseen(newest, said)


def _known_at(row: int, learnt: npt.NDArray[np.intp], frame: pd.DataFrame, delay_s: float) -> npt.NDArray[np.intp]:
    """The positions before `row` whose labels were known by then: `delay_s` after each answer, a source's at once."""
    before = learnt[learnt < row]
    origin, at = frame[ORIGIN].to_numpy(), frame[AT].to_numpy()
    late = (origin[before] == "record") & (at[before] > at[row] - delay_s)
    known: npt.NDArray[np.intp] = before[~late]
    return known
