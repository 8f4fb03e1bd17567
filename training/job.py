"""One training or one judgement, in a process of its own: `python -m training.job SPEC.json`.

The process lowers its priority and bounds its threads and memory before scikit-learn is imported; the parent bounds its
time. Into the output folder go the artefact and `result.json`; an error is a result too (exit code 1), a crash leaves
none. `run` is the same in the caller's process. Heavy libraries are imported inside the functions.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from monitoring.errors import EvergreenError
from monitoring.feature import AT, LABEL, ORIGIN, Feature, SchemaError
from monitoring.quality import QualityPolicy, measure
from monitoring.schema import FeatureSchema
from training.artefact import SCHEMA, ArtefactError, plain, read_manifest, verify, write_atomically
from training.data import DataError, content_digest, read_snapshot
from training.gates import Answers, GatePolicy, Metric, Truth, Verdict, answers, judge, metric_of, score
from training.pipeline import Parameters, fit
from training.priority import end_with_parent, give_way
from training.tune import search

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

RESULT: Final = "result.json"
THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class JobError(EvergreenError, RuntimeError):
    """Raised when a training or a judgement cannot be done; the message says what it lacked."""


class TrainPolicy(BaseModel):
    """Which rows a challenger learns from, and how long it may look for its parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    holdout_share: float = Field(
        0.25,
        gt=0,
        lt=1,
        description="share; of the rows newer than the champion, the newest that judge and never train",
    )
    max_holdout_rows: int = Field(
        20_000, ge=20, description="rows; more settle nothing and would be missed in training"
    )
    max_rows: int = Field(100_000, ge=100, description="rows; the newest that a training reads, bounds time and memory")
    min_rows: int = Field(100, ge=20, description="rows; a model is not fitted to fewer")
    window_shares: tuple[float, ...] = Field(
        (1.0, 0.5, 0.25), description="shares of the record; windows tried besides all rows, newest rows of each"
    )
    inner_share: float = Field(
        0.2, gt=0, lt=0.9, description="share of the newest training rows on which windows and parameters are compared"
    )
    trials: int = Field(0, ge=0, le=1000, description="fits; hyper-parameter trials, 0 keeps the defaults")
    tune_seconds: float = Field(300.0, gt=0, description="seconds; no trial begins later than this")
    reference_rows: int = Field(5000, ge=100, description="rows; the newest known ones, with which drift compares")


class JobSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to do, complete: nothing is read from settings or the environment."""

    kind: Literal["train", "judge"]
    out: str  # folder for the artefact and result.json, made when absent
    snapshot: str  # Parquet file of a snapshot frame (training.data)
    schema: str | dict[str, Any]  # path of a schema.json, or its content
    name: str = "model"
    champion: str | None = None  # artefact folder
    champion_until: float = 0.0  # `_at` of the last record row the champion was fitted to; 0: none of the record
    pushed: str | None = None  # judge: path of the skops file
    training: dict[str, Any] = {}  # TrainPolicy
    gates: dict[str, Any] = {}  # GatePolicy
    parameters: dict[str, Any] = {}  # pipeline.Parameters: where the search starts
    trusted: tuple[str, ...] = ()  # types beyond export.DEFAULT_TRUSTED
    seed: int = 0
    threads: int = 1
    memory_mb: int = 0  # of private memory; 0: unbounded
    nice: int = 10
    origin: str = "retrain"  # bootstrap | retrain | push
    created_at: float = 0.0  # seconds since 1970 UTC
    git: str | None = None  # revision of the program
    version: str | None = None  # the pusher's own label
    twin: bool = True  # False: judge the scikit-learn pipeline only


class JobResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a job. `passed` only when `ok`; `error` only when not."""

    ok: bool
    passed: bool = False
    verdict: Verdict | None = None
    error: str | None = None
    quality: dict[str, Any] = {}  # on the holdout: metric, challenger, champion (or None), error, rows, metrics
    windows: tuple[dict[str, Any], ...] = ()  # {"name", "rows", "score", "chosen"}
    seconds: float = 0.0
    until: float = 0.0  # `_at` of the last record row the challenger was fitted to: the next champion_until
    notes: tuple[str, ...] = ()


class Rows(msgspec.Struct, frozen=True):
    """Positions in the snapshot: the rows that may train (in time order), and the holdout."""

    train: Any
    holdout: Any
    origin: str  # of the holdout: "record", "source" or both


class Window(msgspec.Struct, frozen=True):
    """The newest `rows` of the training rows."""

    name: str
    rows: int


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
    except (JobError, DataError, SchemaError, ArtefactError, ValidationError) as error:
        result = JobResult(ok=False, error=str(error))
    except MemoryError:
        result = JobResult(
            ok=False, error=f"out of memory at {spec.memory_mb} MB: raise `memory_mb`, or lower `max_rows`"
        )
    except Exception as error:  # of a library, or a fault of ours: the loop needs a result, the log the trace
        traceback.print_exc()
        result = JobResult(ok=False, error=f"{spec.kind} failed with {type(error).__name__}: {error}")
    result = msgspec.structs.replace(result, seconds=time.perf_counter() - begin)
    content = json.dumps(plain(msgspec.to_builtins(result)), indent=2, allow_nan=False)
    write_atomically(out / RESULT, content.encode())
    return result


def read_result(out: Path) -> JobResult | None:
    """The result in an output folder; None when the job left none, that is when it was killed."""
    try:
        return msgspec.json.decode((out / RESULT).read_bytes(), type=JobResult)
    except FileNotFoundError:
        return None


def refit(manifest: Mapping[str, Any], snapshot: Path, schema: FeatureSchema) -> Any:
    """The pipeline of a manifest, fitted again to the same rows: it predicts the same.

    Raises `DataError` when the snapshot is not the one the manifest names.
    """
    frame = read_snapshot(snapshot, schema)
    data = manifest["data"]
    found = content_digest(frame)
    if found != data["snapshot"]:
        raise DataError(f"{snapshot} has content {found}, the model was trained from {data['snapshot']}")
    window = frame.iloc[data["window"]["start"] : data["window"]["stop"]]
    return _fit(window, schema, Parameters.model_validate(manifest["parameters"]), int(manifest["seed"]))


# -- train ----------------------------------------------------------------------------------------------------------


def _train(spec: JobSpec, out: Path) -> JobResult:
    policy, gates = TrainPolicy.model_validate(spec.training), GatePolicy.model_validate(spec.gates)
    schema = _schema(spec)
    frame = read_snapshot(Path(spec.snapshot), schema)
    rows = split(frame, schema, policy, gates, champion_until=spec.champion_until, first=spec.champion is None)
    holdout = frame.iloc[rows.holdout]
    training = frame.iloc[rows.train[-policy.max_rows :]]
    metric = metric_of(schema.task, gates)

    inner = _inner_split(training, policy)
    tried = _try_windows(training, inner, schema, spec, policy, metric)
    chosen = max(tried, key=lambda window: (_order(window["score"]), window["rows"]))
    for window in tried:
        window["chosen"] = window is chosen
    parameters, trials = Parameters.model_validate(spec.parameters), []
    if policy.trials and inner:
        past, future = training.iloc[:-inner].tail(chosen["rows"]), training.iloc[-inner:]
        study = search(
            lambda p: _order(_try(past, future, schema, p, spec.seed, metric)),
            trials=policy.trials,
            seconds=policy.tune_seconds,
            seed=spec.seed,
            start=parameters,
        )
        parameters = Parameters.model_validate(study.parameters)
        trials = [{"parameters": p, "score": value} for p, value in study.trials]

    window_frame = training.tail(chosen["rows"])
    pipeline = _fit(window_frame, schema, parameters, spec.seed)
    stop = int(rows.train[-1]) + 1
    start = int(rows.train[-len(window_frame)])
    data = {
        "snapshot": content_digest(frame),
        "rows": len(window_frame),
        "from": float(window_frame[AT].iloc[0]),
        "until": float(window_frame[AT].iloc[-1]),
        "window": {"name": chosen["name"], "rows": chosen["rows"], "start": start, "stop": stop},
        "windows": tried,
        "trials": trials,
        "holdout": _holdout_facts(holdout, rows),
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
        windows=tuple(tried),
        until=float(until.iloc[-1]) if len(until) else 0.0,
        notes=(),
    )


def split(
    frame: pd.DataFrame,
    schema: FeatureSchema,
    policy: TrainPolicy,
    gates: GatePolicy,
    *,
    champion_until: float = 0.0,
    first: bool = False,
) -> Rows:
    """Which rows of a snapshot frame train and which judge.

    The holdout is the newest `holdout_share` of the record rows later than `champion_until` (at least
    `gates.min_holdout_rows`), so that neither model was fitted to it; for a `first` version of all rows. Everything
    before its first row may train. Raises `JobError` when there are too few rows.
    """
    record = (frame[ORIGIN] == "record").to_numpy()
    at = frame[AT].to_numpy()
    fresh = np.arange(len(frame)) if first else np.flatnonzero(record & (at > champion_until))
    needed = gates.min_holdout_rows
    if len(fresh) < needed:
        what = "labelled rows" if first else "labelled record rows newer than the champion's training data"
        raise JobError(f"there are {len(fresh)} {what}, the holdout alone needs {needed}: wait for more labels")
    rows = min(max(math.ceil(policy.holdout_share * len(fresh)), needed), max(policy.max_holdout_rows, needed))
    holdout = fresh[-rows:]
    train = np.flatnonzero(_usable(frame, schema) & (np.arange(len(frame)) < holdout[0]))
    if len(train) < policy.min_rows:
        raise JobError(
            f"{len(train)} rows are left to train on before the holdout of {rows}, {policy.min_rows} are needed: "
            "wait for more labels, or give more source data"
        )
    origins = sorted(set(frame[ORIGIN].iloc[holdout]))
    return Rows(train, holdout, " and ".join(origins))


def _usable(frame: pd.DataFrame, schema: FeatureSchema) -> npt.NDArray[np.bool_]:
    if schema.task == "regression":
        return np.ones(len(frame), dtype=bool)
    known: npt.NDArray[np.bool_] = frame[LABEL].isin(list(schema.classes)).to_numpy(dtype=bool)
    return known


def _inner_split(training: pd.DataFrame, policy: TrainPolicy) -> int:
    """How many of the newest training rows compare windows and parameters; 0 when there are too few for that."""
    recorded = int((training[ORIGIN] == "record").sum())
    rows = int(policy.inner_share * (recorded if recorded >= 5 * policy.min_rows else len(training)))
    rows = min(max(rows, 50), policy.max_holdout_rows)
    return rows if len(training) - rows >= policy.min_rows else 0


def _try_windows(
    training: pd.DataFrame, inner: int, schema: FeatureSchema, spec: JobSpec, policy: TrainPolicy, metric: Metric
) -> list[dict[str, Any]]:
    """Each window with its score on the newest training rows; only the whole when there is nothing to choose by."""
    recorded = int((training[ORIGIN] == "record").sum())
    sizes = {len(training): "all rows"}
    for share in policy.window_shares:
        rows = int(share * recorded)
        if policy.min_rows <= rows < 0.9 * len(training) and all(abs(rows - s) > 0.05 * s for s in sizes):
            sizes[rows] = "the record" if share == 1 else f"the newest {share:.0%} of the record"
    windows = [Window(name, rows) for rows, name in sizes.items()]
    if len(windows) == 1 or not inner:
        return [{"name": windows[0].name, "rows": windows[0].rows, "score": None}]
    parameters = Parameters.model_validate(spec.parameters)
    past, future = training.iloc[:-inner], training.iloc[-inner:]
    tried: list[dict[str, Any]] = []
    for window in windows:
        complete = _has_all_classes(training.tail(window.rows), schema)
        value = _try(past.tail(window.rows), future, schema, parameters, spec.seed, metric) if complete else math.nan
        tried.append({"name": window.name, "rows": window.rows, "score": value})
    return tried


def _try(
    past: pd.DataFrame, future: pd.DataFrame, schema: FeatureSchema, parameters: Parameters, seed: int, metric: Metric
) -> float:
    from training.export import predict

    if not _has_all_classes(past, schema):
        return math.nan
    pipeline = _fit(past, schema, parameters, seed)
    return score(
        predict(pipeline, future[list(schema.names)], schema), Truth.of(_labels(future, schema), schema), metric
    )


def _order(value: float | None) -> float:
    return -math.inf if value is None or math.isnan(value) else value


def _fit(window: pd.DataFrame, schema: FeatureSchema, parameters: Parameters, seed: int) -> Any:
    window = window[_usable(window, schema)]
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


def known_rows(known: pd.DataFrame, holdout_rows: int, policy: TrainPolicy) -> pd.DataFrame:
    """The newest rows of training and holdout, at most `reference_rows`; the column `_holdout` marks which is which."""
    marked = known.assign(_holdout=np.arange(len(known)) >= len(known) - holdout_rows)
    return marked.tail(max(policy.reference_rows, 1))


# -- judge ----------------------------------------------------------------------------------------------------------


def _judge(spec: JobSpec, out: Path) -> JobResult:
    from training.export import load_skops

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
        rows, note = _champions_holdout(frame, spec, gates, str(reason))
        notes = (note,)
    holdout = frame.iloc[rows.holdout]
    notes += ("whether the pushed model was fitted to rows of the holdout is not known",)
    known = known_rows(frame.iloc[: int(rows.holdout[-1]) + 1], len(holdout), policy)
    data = {"snapshot": content_digest(frame), "rows": None, "holdout": _holdout_facts(holdout, rows)}
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


def _champions_holdout(frame: pd.DataFrame, spec: JobSpec, gates: GatePolicy, reason: str) -> tuple[Rows, str]:
    """The rows the champion was judged on, for when the record has too few newer ones: it was not fitted to them."""
    if spec.champion is None:
        raise JobError(reason)
    facts = (read_manifest(Path(spec.champion)).get("data") or {}).get("holdout") or {}
    if "source" not in str(facts.get("origin", "")):
        raise JobError(f"{reason}; and the champion's own holdout was not of the source data")
    at = frame[AT].to_numpy()
    inside = (at >= facts["from"]) & (at <= facts["until"]) & (frame[ORIGIN] == "source").to_numpy()
    holdout = np.flatnonzero(inside)
    if len(holdout) < gates.min_holdout_rows:
        raise JobError(f"{reason}; and {len(holdout)} rows of the champion's own holdout are in the snapshot")
    train = np.flatnonzero(np.arange(len(frame)) < holdout[0])
    return Rows(train, holdout, "source"), f"{reason}; judged on the {len(holdout)} rows of the champion's own holdout"


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
    final = pipeline.steps[-1][1] if hasattr(pipeline, "steps") else pipeline
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
    windows: tuple[dict[str, Any], ...],
    until: float,
    notes: tuple[str, ...],
) -> JobResult:
    """Export, compare with the champion on the holdout, and write the verdict into the artefact."""
    from training.artefact import write_manifest
    from training.export import export, load_pipeline, predict

    features, labels = holdout[list(schema.names)], _labels(holdout, schema)
    truth, metric = Truth.of(labels, schema), metric_of(schema.task, gates)
    try:
        said = predict(pipeline, features, schema)
        if not np.isfinite(said).all():
            raise JobError(
                f"the model answers NaN or infinity for {int((~np.isfinite(said)).sum())} of the holdout's rows"
            )
        reference = _with_answers(known, predict(pipeline, known[list(schema.names)], schema), schema)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:  # a pushed model of any make
        raise JobError(f"the model cannot answer the holdout's rows: {' '.join(str(error).split())[:300]}") from error

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
        twin=spec.twin,
    )
    challenger = _answers_in_service(out, complete, pipeline, said, features, schema)
    champion = None
    if spec.champion is not None:
        folder = Path(spec.champion)
        champions_manifest = verify(folder)
        its_schema = FeatureSchema.from_json((folder / SCHEMA).read_bytes())
        if its_schema.digest != schema.digest:
            raise JobError("the champion takes other columns, kinds or classes than this schema: it cannot be compared")
        champions = load_pipeline(folder, spec.trusted)
        champion = _answers_in_service(
            folder, champions_manifest, champions, predict(champions, features, schema), features, schema
        )
    verdict = judge(challenger, champion, features, labels, schema, gates, spec.seed)
    measured = measure(
        labels,
        _predictions(said, schema),
        None if schema.task == "regression" else said,
        schema.task,
        schema.classes,
        QualityPolicy(metric=metric),
        seed=spec.seed,
    )
    quality = {
        "metric": metric,
        "challenger": score(challenger.values, truth, metric),
        "champion": None if champion is None else score(champion.values, truth, metric),
        "rows": len(holdout),
        "error": measured.error,
        "metrics": measured.metrics,
    }
    complete |= {"quality": quality, "verdict": msgspec.to_builtins(verdict)}
    write_manifest(out, complete)
    return JobResult(
        ok=True, passed=verdict.passed, verdict=verdict, quality=quality, windows=windows, until=until, notes=notes
    )


def _answers_in_service(
    folder: Path,
    manifest: Mapping[str, Any],
    pipeline: Any,
    values: npt.NDArray[Any],
    features: pd.DataFrame,
    schema: FeatureSchema,
) -> Answers:
    """The pipeline's answers, timed on the road that would serve them: the twin when there is one."""
    import pandas as pd

    from training.export import predict
    from training.twin import Rows as Encoded
    from training.twin import Twin

    thousand = pd.concat([features] * math.ceil(1000 / len(features)), ignore_index=True).head(1000)
    one = thousand.head(1)
    reason = str((manifest.get("parity") or {}).get("reason", ""))
    one_row: Callable[[], object]
    batch: Callable[[], object]
    if manifest.get("twin"):
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


def _holdout_facts(holdout: pd.DataFrame, rows: Rows) -> dict[str, Any]:
    return {
        "rows": len(holdout),
        "from": float(holdout[AT].iloc[0]),
        "until": float(holdout[AT].iloc[-1]),
        "origin": rows.origin,
        "start": int(rows.holdout[0]),
        "stop": int(rows.holdout[-1]) + 1,
    }


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
