"""One training or one judgement, in a process of its own: `python -m training.job SPEC.json`.

The process lowers its priority and bounds its threads and memory before scikit-learn is imported; the parent bounds its
time. Into the output folder go the artefact and `result.json`; an error is a result too (exit code 1), a crash leaves
none. `run` is the same in the caller's process. Heavy libraries are imported inside the functions.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from pydantic import ValidationError

from monitoring.errors import CannotGoOn
from monitoring.feature import AT, LABEL, ORIGIN, Feature
from monitoring.quality import QualityPolicy, measure
from monitoring.schema import FeatureSchema
from training.artefact import SCHEMA, read_manifest, verify, write_manifest
from training.data import content_digest, read_snapshot
from training.export import export
from training.gates import Answers, GatePolicy, Metric, Truth, answers, judge, metric_of, score
from training.manifest import HoldoutQuality, Manifest, TriedWindow
from training.pipeline import Parameters, final_of, fit, predict
from training.priority import end_with_parent, give_way
from training.spec import RESULT, JobError, JobResult, JobSpec, write_result
from training.split import (
    TrainPolicy,
    champions_holdout,
    holdout_facts,
    inner_split,
    known_rows,
    split,
    usable,
    windows_of,
)
from training.trust import load_pipeline, load_skops
from training.tune import search

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def main(arguments: list[str] | None = None) -> int:
    """Run the job in the file named by the one argument; 0 when it ran to a verdict, 1 when not, 2 for a bad spec."""
    os.umask(0o077)  # what it writes was learnt from the record
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 1:
        print("usage: python -m training.job SPEC.json", file=sys.stderr)
        return 2
    try:
        spec = msgspec.json.decode(Path(given[0]).read_bytes(), type=JobSpec)
    except (OSError, msgspec.DecodeError) as error:
        print(f"{given[0]} is no job: {error}", file=sys.stderr)
        return 2
    confine(spec)
    return 0 if run(spec).ok else 1


def confine(spec: JobSpec) -> None:
    """Lower this process's priority and bound its memory and threads, for good. Before scikit-learn is imported."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(spec.threads)
    end_with_parent(signal.SIGKILL)  # a killed controller must not leave its training behind: the next one trains again
    give_way(spec.nice)
    if spec.memory_mb:
        # Private writable memory: a bound on address space would also count shared libraries and untouched stacks.
        limit = spec.memory_mb << 20
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def run(spec: JobSpec) -> JobResult:
    """Do the job and write `result.json`; whatever fails becomes a result with the reason."""
    begin = time.perf_counter()
    out = Path(spec.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / RESULT).unlink(missing_ok=True)
    try:
        with _bounded_threads(spec.threads):
            result = _train(spec, out) if spec.kind == "train" else _judge(spec, out)
    except (JobError, CannotGoOn, ValidationError) as error:
        result = JobResult(ok=False, error=str(error))
    except MemoryError:
        result = JobResult(
            ok=False, error=f"out of memory at {spec.memory_mb} MB: raise `memory_mb`, or lower `max_rows`"
        )
    except Exception as error:  # of a library, or a fault of ours: the loop needs a result, the log the trace
        traceback.print_exc()
        result = JobResult(ok=False, error=f"{spec.kind} failed with {type(error).__name__}: {error}")
    result = msgspec.structs.replace(result, seconds=time.perf_counter() - begin)
    write_result(out, result)
    return result


# -- train ----------------------------------------------------------------------------------------------------------


def _train(spec: JobSpec, out: Path) -> JobResult:
    policy, gates = TrainPolicy.model_validate(spec.training), GatePolicy.model_validate(spec.gates)
    schema = _schema(spec)
    frame = read_snapshot(Path(spec.snapshot), schema)
    rows = split(frame, schema, policy, gates, champion_until=spec.champion_until, first=spec.champion is None)
    holdout = frame.iloc[rows.holdout]
    training = frame.iloc[rows.train[-policy.max_rows :]]
    metric = metric_of(schema.task, gates)

    inner = inner_split(training, policy)
    tried = _try_windows(training, inner, schema, spec, policy, metric)
    chosen = max(tried, key=lambda window: (_order(window.score), window.rows))
    tried = tuple(msgspec.structs.replace(window, chosen=window is chosen) for window in tried)
    parameters = Parameters.model_validate(spec.parameters)
    trials: list[dict[str, Any]] = []
    if policy.trials and inner:
        past, future = training.iloc[:-inner].tail(chosen.rows), training.iloc[-inner:]
        parameters, trials = _tune(past, future, schema, parameters, spec.seed, policy, metric)

    window_frame = training.tail(chosen.rows)
    pipeline = _fit(window_frame, schema, parameters, spec.seed)
    stop = int(rows.train[-1]) + 1
    start = int(rows.train[-len(window_frame)])
    data = {
        "snapshot": content_digest(frame),
        "rows": len(window_frame),
        "from": float(window_frame[AT].iloc[0]),
        "until": float(window_frame[AT].iloc[-1]),
        "window": {"name": chosen.name, "rows": chosen.rows, "start": start, "stop": stop},
        "windows": msgspec.to_builtins(tried),
        "trials": trials,
        "holdout": holdout_facts(holdout, rows),
    }
    known = known_rows(frame.iloc[start : int(rows.holdout[-1]) + 1], len(holdout), policy)
    until = window_frame.loc[window_frame[ORIGIN] == "record", AT]
    return _finish(
        spec,
        out,
        pipeline,
        refreshed(schema, window_frame),
        holdout,
        known,
        gates,
        manifest={"parameters": parameters.model_dump(), "data": data},
        windows=tried,
        until=float(until.iloc[-1]) if len(until) else 0.0,
        notes=(),
    )


def _tune(
    past: pd.DataFrame,
    future: pd.DataFrame,
    schema: FeatureSchema,
    start: Parameters,
    seed: int,
    policy: TrainPolicy,
    metric: Metric,
) -> tuple[Parameters, list[dict[str, Any]]]:
    """The best parameters found, and every trial."""
    study = search(
        lambda p: _order(_try(past, future, schema, p, seed, metric)),
        trials=policy.trials,
        seconds=policy.tune_seconds,
        seed=seed,
        start=start,
    )
    trials = [{"parameters": parameters, "score": value} for parameters, value in study.trials]
    return Parameters.model_validate(study.parameters), trials


def _try_windows(
    training: pd.DataFrame, inner: int, schema: FeatureSchema, spec: JobSpec, policy: TrainPolicy, metric: Metric
) -> tuple[TriedWindow, ...]:
    """Each window with its score on the newest training rows; only the whole when there is nothing to choose by."""
    windows = windows_of(training, policy)
    if len(windows) == 1 or not inner:
        return (TriedWindow(windows[0].name, windows[0].rows),)
    parameters = Parameters.model_validate(spec.parameters)
    past, future = training.iloc[:-inner], training.iloc[-inner:]
    tried: list[TriedWindow] = []
    for window in windows:
        complete = _has_all_classes(training.tail(window.rows), schema)
        value = _try(past.tail(window.rows), future, schema, parameters, spec.seed, metric) if complete else math.nan
        tried.append(TriedWindow(window.name, window.rows, value))
    return tuple(tried)


def _try(
    past: pd.DataFrame, future: pd.DataFrame, schema: FeatureSchema, parameters: Parameters, seed: int, metric: Metric
) -> float:
    if not _has_all_classes(past, schema):
        return math.nan
    pipeline = _fit(past, schema, parameters, seed)
    return score(
        predict(pipeline, future[list(schema.names)], schema), Truth.of(_labels(future, schema), schema), metric
    )


def _order(value: float | None) -> float:
    return -math.inf if value is None or math.isnan(value) else value


def _fit(window: pd.DataFrame, schema: FeatureSchema, parameters: Parameters, seed: int) -> Any:
    window = window[usable(window, schema)]
    if not _has_all_classes(window, schema):
        present = sorted(map(str, set(window[LABEL].tolist())))
        raise JobError(
            f"the {len(window)} training rows hold the classes {', '.join(present)} only, the schema has "
            f"{', '.join(map(str, schema.classes))}: give source data with all of them"
        )
    return fit(schema, window[list(schema.names)], _labels(window, schema), parameters, seed)


def _labels(frame: pd.DataFrame, schema: FeatureSchema) -> npt.NDArray[Any]:
    return schema.labels(frame[LABEL])


def _has_all_classes(frame: pd.DataFrame, schema: FeatureSchema) -> bool:
    # Not `unique`: pandas 2 takes texts that agree up to a zero character for one.
    return schema.task == "regression" or set(schema.classes) <= set(frame[LABEL].tolist())


def refreshed(schema: FeatureSchema, frame: pd.DataFrame) -> FeatureSchema:
    """The same columns and kinds with the ranges, categories and missing values of these canonical rows."""
    from monitoring.feature import MAX_CATEGORIES

    features: list[Feature] = []
    for feature in schema.features:
        column = frame[feature.name]
        changes: dict[str, Any] = {"nullable": bool(column.isna().any())}
        if feature.kind == "categorical":
            common = column.value_counts().head(MAX_CATEGORIES)
            changes["categories"] = tuple(sorted(common.index))
        elif feature.kind != "boolean":
            low, high = float(column.min()), float(column.max())
            changes |= {"minimum": None, "maximum": None} if math.isnan(low) else {"minimum": low, "maximum": high}
        features.append(msgspec.structs.replace(feature, **changes))
    return msgspec.structs.replace(schema, features=tuple(features))


# -- judge ----------------------------------------------------------------------------------------------------------


def _judge(spec: JobSpec, out: Path) -> JobResult:
    policy, gates = TrainPolicy.model_validate(spec.training), GatePolicy.model_validate(spec.gates)
    if spec.pushed is None:
        raise JobError("a judge job needs `pushed`, the path of a skops file")
    schema = _schema(spec)
    pipeline = load_skops(Path(spec.pushed), spec.trusted)
    _check_interface(pipeline, schema)
    frame = read_snapshot(Path(spec.snapshot), schema)
    notes: tuple[str, ...] = ()
    try:
        rows = split(frame, schema, policy, gates, champion_until=spec.champion_until, first=spec.champion is None)
    except JobError as reason:
        if spec.champion is None:
            raise
        holdout_then = read_manifest(Path(spec.champion)).data.holdout
        rows, note = champions_holdout(frame, holdout_then, gates, str(reason))
        notes = (note,)
    holdout = frame.iloc[rows.holdout]
    notes += ("whether the pushed model was fitted to rows of the holdout is not known",)
    known = known_rows(frame.iloc[: int(rows.holdout[-1]) + 1], len(holdout), policy)
    data = {"snapshot": content_digest(frame), "rows": None, "holdout": holdout_facts(holdout, rows)}
    recorded = frame.loc[frame[ORIGIN] == "record", AT]
    return _finish(
        spec,
        out,
        pipeline,
        refreshed(schema, known),
        holdout,
        known,
        gates,
        manifest={"parameters": _simple_parameters(pipeline), "data": data},
        windows=(),
        until=float(recorded.iloc[-1]) if len(recorded) else 0.0,  # as if fitted to everything known when it came
        notes=notes,
    )


def _check_interface(pipeline: Any, schema: FeatureSchema) -> None:
    """Raises `JobError` naming every way in which a pushed model does not fit the schema."""
    needed = ("predict",) if schema.task == "regression" else ("predict", "predict_proba")
    problems = [f"it has no method {method}" for method in needed if not callable(getattr(pipeline, method, None))]
    names = getattr(pipeline, "feature_names_in_", None)
    if names is None:
        problems.append("it has no feature_names_in_: fit it to a DataFrame with the schema's columns")
    else:
        found = [str(name) for name in names]
        if missing := [name for name in schema.names if name not in found]:
            problems.append(f"it does not take the features {', '.join(missing)}")
        if extra := [name for name in found if name not in schema.names]:
            problems.append(f"it wants features that requests do not have: {', '.join(extra)}")
    classes = getattr(pipeline, "classes_", None)
    if schema.task == "regression":
        if classes is not None:
            problems.append("it is a classifier, the task is a regression")
    elif classes is None:
        problems.append(f"it has no classes_; the task is {schema.task}")
    else:
        found_classes = np.asarray(classes).tolist()
        same = found_classes == list(schema.classes) and list(map(type, found_classes)) == list(
            map(type, schema.classes)
        )
        if not same:
            problems.append(f"its classes are {found_classes}, those of {schema.target!r} are {list(schema.classes)}")
    if problems:
        raise JobError(f"the pushed model does not fit: {'; '.join(problems)}")


def _simple_parameters(pipeline: Any) -> dict[str, Any]:
    final = final_of(pipeline)
    given = final.get_params(deep=False) if hasattr(final, "get_params") else {}
    return {name: value for name, value in given.items() if isinstance(value, (bool, int, float, str, type(None)))}


# -- both -----------------------------------------------------------------------------------------------------------


def _finish(
    spec: JobSpec,
    out: Path,
    pipeline: Any,
    schema: FeatureSchema,
    holdout: pd.DataFrame,
    known: pd.DataFrame,
    gates: GatePolicy,
    *,
    manifest: dict[str, Any],
    windows: tuple[TriedWindow, ...],
    until: float,
    notes: tuple[str, ...],
) -> JobResult:
    """Export, compare with the champion on the holdout, and write the verdict into the artefact."""
    features, labels = holdout[list(schema.names)], _labels(holdout, schema)
    said, reference = _asked(pipeline, features, known, schema)
    complete = export(
        pipeline,
        schema,
        out,
        check_frame=features,
        reference=reference,
        manifest={
            "name": spec.name,
            "created_at": spec.created_at,
            "origin": spec.origin,
            "seed": spec.seed,
            "git": spec.git,
            "label": spec.version,
            "until": until,
            "notes": list(notes),
            **manifest,
        },
    )
    challenger = _answers_in_service(out, complete, pipeline, said, features, schema)
    champion = None if spec.champion is None else _champions_answers(spec, Path(spec.champion), features, schema)
    verdict = judge(challenger, champion, features, labels, schema, gates, spec.seed)
    quality = _quality(challenger, champion, labels, schema, metric_of(schema.task, gates), spec.seed)
    judged = {"quality": msgspec.to_builtins(quality), "verdict": msgspec.to_builtins(verdict)}
    write_manifest(out, {**complete.document, **judged})
    return JobResult(
        ok=True, passed=verdict.passed, verdict=verdict, quality=quality, windows=windows, until=until, notes=notes
    )


def _asked(
    pipeline: Any, features: pd.DataFrame, known: pd.DataFrame, schema: FeatureSchema
) -> tuple[npt.NDArray[Any], pd.DataFrame]:
    """What the model says of the holdout's features, and the reference: the known rows with its answers."""
    try:
        said = predict(pipeline, features, schema)
        if not np.isfinite(said).all():
            raise JobError(
                f"the model answers NaN or infinity for {int((~np.isfinite(said)).sum())} of the holdout's rows"
            )
        return said, _with_answers(known, predict(pipeline, known[list(schema.names)], schema), schema)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:  # a pushed model of any make
        raise JobError(f"the model cannot answer the holdout's rows: {' '.join(str(error).split())[:300]}") from error


def _champions_answers(spec: JobSpec, folder: Path, features: pd.DataFrame, schema: FeatureSchema) -> Answers:
    """What the champion in `folder` says of the holdout. Raises `JobError` when it reads other columns."""
    manifest = verify(folder)
    its_schema = FeatureSchema.from_json((folder / SCHEMA).read_bytes())
    if its_schema.digest != schema.digest:
        raise JobError("the champion takes other columns, kinds or classes than this schema: it cannot be compared")
    pipeline = load_pipeline(folder, spec.trusted)
    return _answers_in_service(folder, manifest, pipeline, predict(pipeline, features, schema), features, schema)


def _quality(
    challenger: Answers,
    champion: Answers | None,
    labels: npt.NDArray[Any],
    schema: FeatureSchema,
    metric: Metric,
    seed: int,
) -> HoldoutQuality:
    """What the manifest and the run say of the quality on the holdout."""
    truth, said = Truth.of(labels, schema), challenger.values
    measured = measure(
        labels,
        _predictions(said, schema),
        None if schema.task == "regression" else said,
        schema.task,
        schema.classes,
        QualityPolicy(metric=metric),
        seed=seed,
    )
    return HoldoutQuality(
        metric=metric,
        challenger=score(said, truth, metric),
        champion=None if champion is None else score(champion.values, truth, metric),
        rows=len(labels),
        error=measured.error,
        metrics=dict(measured.metrics),
    )


def _answers_in_service(
    folder: Path,
    manifest: Manifest,
    pipeline: Any,
    values: npt.NDArray[Any],
    features: pd.DataFrame,
    schema: FeatureSchema,
) -> Answers:
    """The pipeline's answers, timed on the road that would serve them: the twin when there is one."""
    import pandas as pd

    from training.twin import Rows as Encoded
    from training.twin import Twin

    thousand = pd.concat([features] * math.ceil(1000 / len(features)), ignore_index=True).head(1000)
    one = thousand.head(1)
    reason = manifest.parity.reason if manifest.parity else ""
    one_row: Callable[[], object]
    batch: Callable[[], object]
    if manifest.twin is not None:
        twin = Twin(folder, manifest)
        first, all_rows = (Encoded(part, schema.numeric_names, schema.categorical_names) for part in (one, thousand))
        one_row, batch = (lambda: twin.predict(first)), (lambda: twin.predict(all_rows))
        return answers(values, one_row, batch, twin=True, parity=reason)
    one_row, batch = (lambda: predict(pipeline, one, schema)), (lambda: predict(pipeline, thousand, schema))
    return answers(values, one_row, batch, twin=False, parity=reason)


def _with_answers(known: pd.DataFrame, values: npt.NDArray[Any], schema: FeatureSchema) -> pd.DataFrame:
    frame = known[[*schema.names, LABEL, "_holdout"]].reset_index(drop=True)
    frame["_prediction"] = _predictions(values, schema)
    frame["_score"] = values[:, 1] if schema.task == "binary" else np.nan
    return frame


def _predictions(values: npt.NDArray[Any], schema: FeatureSchema) -> npt.NDArray[Any]:
    if schema.task == "regression":
        return values
    classes = np.array(schema.classes, dtype=object if isinstance(schema.classes[0], str) else None)
    said: npt.NDArray[Any] = classes[values.argmax(axis=1)]
    return said


def _schema(spec: JobSpec) -> FeatureSchema:
    if isinstance(spec.schema, dict):
        return FeatureSchema.from_json(msgspec.json.encode(spec.schema))
    try:
        return FeatureSchema.from_json(Path(spec.schema).read_bytes())
    except FileNotFoundError:
        raise JobError(f"there is no schema at {spec.schema}") from None


@contextlib.contextmanager
def _bounded_threads(threads: int) -> Iterator[None]:
    import sklearn.ensemble  # noqa: F401  (its OpenMP must be loaded to be bounded)
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=threads):
        yield


if __name__ == "__main__":
    sys.exit(main())
