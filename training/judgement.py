"""What every candidate goes through: exported, asked, timed, compared with the champion, and given a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from monitoring.feature import AT, LABEL
from monitoring.quality import QualityPolicy, measure
from monitoring.schema import FeatureSchema
from training.artefact import PIPELINE, SCHEMA, TREES, TWIN, UNSEEN, verify, write_manifest
from training.comparing import LOSSES, Truth, difference, metric_of, score
from training.data import read_snapshot
from training.edges import ask
from training.experts import AdaptPolicy, Answered, Standing, make, tempered
from training.export import export
from training.fitting import labels_of
from training.gate_policy import GatePolicy
from training.gates import Answers, Trusted, judge
from training.importance import importance
from training.latency import Latency, timed
from training.loaded import LoadedModel, load_model
from training.manifest import HoldoutQuality, Manifest, TriedWindow
from training.phases import phase
from training.pipeline import predict
from training.rehearsal import write_rehearsal
from training.spec import JobError, JobResult, JobSpec, write_made
from training.split import Split, TrainPolicy, known_rows

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd


class Judged(NamedTuple):
    """What the gates look at: a snapshot frame, its rows by their use, and the pipeline that never saw `holdout`."""

    frame: pd.DataFrame
    rows: Split
    pipeline: Any


class Unseen(NamedTuple):
    """Rows of the snapshot, oldest first, and answers to them by models like the final one that did not learn them."""

    rows: npt.NDArray[np.intp]
    said: npt.NDArray[Any]


def finish(
    spec: JobSpec,
    out: Path,
    judged: Judged,
    final: Any,
    schema: FeatureSchema,
    *,
    unseen: Callable[[], Unseen | None] | None = None,
    manifest: dict[str, Any],
    windows: tuple[TriedWindow, ...],
    until: float,
    notes: tuple[str, ...] = (),
) -> JobResult:
    """Export `final`, judge, and write the verdict into the artefact."""
    policy, gates = TrainPolicy.model_validate(spec.training), GatePolicy.model_validate(spec.gates)
    holdout = judged.frame.iloc[judged.rows.holdout]
    features, labels = holdout[list(schema.names)], labels_of(holdout, schema)
    truth = Truth.of(labels, schema)
    known = known_rows(judged.frame, judged.rows, policy)
    said = _answers(judged.pipeline, features, schema)
    if final is not judged.pipeline and (doubt := _doubt(final, said, features, truth, schema, gates)):
        final, notes = judged.pipeline, (*notes, f"the last fit did not pass ({doubt}): the judged model is served")
        manifest["data"]["last_fit"] = False
    given = {
        "name": spec.name,
        "created_at": spec.created_at,
        "origin": spec.origin,
        "seed": spec.seed,
        "git": spec.git,
        "label": spec.version,
        "until": until,
        "notes": list(notes),
        **manifest,
    }
    with phase("export"):
        reference = _with_answers(known, _answers(judged.pipeline, known[list(schema.names)], schema), schema)
        complete = export(final, schema, out, check_frame=features, reference=reference, manifest=given)
    new = load_model(out, complete, schema, spec.trusted)
    old = None if spec.champion is None else _champion(spec, schema)
    with phase("gates"):
        challenger = _challenger(said, new, old, features, complete, out)
        champion = None
        if old is not None:
            champion = Answers(
                _served(spec, judged.rows.holdout, old.answer(features)),
                twin=old.has_twin,
                edges=ask(old.answer, features, schema),
                size_mb=_size_mb(Path(str(spec.champion))),
            )
        verdict = judge(
            challenger,
            champion,
            features,
            labels,
            schema,
            gates,
            due=spec.due,
            trusted=_trusted(spec, new, old, schema),
            trained=spec.kind == "train",
        )
    if verdict.passed and spec.champion is not None and gates.infra:
        write_rehearsal(out, final, features, schema)
    quality = _quality(said, None if champion is None else champion.values, labels, truth, schema, gates, spec.seed)
    found = {
        "importance": importance(new.answer, features, schema, seed=spec.seed),
        "quality": msgspec.to_builtins(quality),
        "verdict": msgspec.to_builtins(verdict),
    }
    if verdict.passed and spec.champion is not None and AdaptPolicy.model_validate(spec.adapt).enabled:
        start = (unseen() if unseen is not None else None) or Unseen(judged.rows.holdout, said)
        snapshot = str(manifest["data"]["snapshot"])
        np.savez(out / UNSEEN, snapshot=snapshot, rows=start.rows, said=start.said.astype(np.float32))
        _write_start(spec, out, new, judged.frame, start, schema)
    write_manifest(out, {**complete.document, **found})
    return JobResult(
        ok=True,
        passed=verdict.passed or spec.champion is None,  # a first version is served: the run says what is wrong with it
        verdict=verdict,
        quality=quality,
        windows=windows,
        until=until,
        notes=notes,
    )


def _answers(pipeline: Any, features: pd.DataFrame, schema: FeatureSchema) -> npt.NDArray[Any]:
    """What a pipeline of any make says of these rows. Raises `JobError` when it cannot, or not in numbers."""
    try:
        said: npt.NDArray[Any] = predict(pipeline, features, schema)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:  # a pushed model of any make
        raise JobError(f"the model cannot answer the holdout's rows: {' '.join(str(error).split())[:300]}") from error
    if not np.isfinite(said).all():
        raise JobError(f"the model answers NaN or infinity for {int((~np.isfinite(said)).sum())} of the holdout's rows")
    return said


def _doubt(
    final: Any, judged: npt.NDArray[Any], features: pd.DataFrame, truth: Truth, schema: FeatureSchema, gates: GatePolicy
) -> str:
    """Why the last fit should not go into service; "" when nothing speaks against it.

    It learnt the judging rows too, so on them it must be at least as good as the judged model.
    """
    try:
        said = _answers(final, features, schema)
    except JobError as error:
        return str(error)
    found = difference(said, judged, truth, LOSSES[schema.task])
    if found is not None and found.gain < 0 and found.chance_above(0.0) <= 1 - gates.worse_confidence:
        return f"on the judging rows {found.new:.4g} against {found.old:.4g} of the judged model"
    return ""


def _champion(spec: JobSpec, schema: FeatureSchema) -> LoadedModel:
    folder = Path(str(spec.champion))
    manifest = verify(folder)
    its_schema = FeatureSchema.from_json((folder / SCHEMA).read_bytes())
    if its_schema.digest != schema.digest:
        raise JobError("the champion takes other columns, kinds or classes than this schema: it cannot be compared")
    return load_model(folder, manifest, its_schema, spec.trusted)


def _challenger(
    said: npt.NDArray[Any],
    new: LoadedModel,
    old: LoadedModel | None,
    features: pd.DataFrame,
    manifest: Manifest,
    out: Path,
) -> Answers:
    """What the judged model said, and what was found of the one that would serve."""
    parity, trees = manifest.parity, manifest.trees
    words = parity.reason if parity else ""
    if trees is not None and trees.agrees:
        words += f"; compiled trees: {trees.reason}"
    return Answers(
        said,
        latency=None if old is None else _latency(new, old, features),
        twin=new.has_twin,
        parity=words,
        disagrees=parity is not None and not parity.agrees and parity.max_abs_difference is not None,
        edges=ask(new.answer, features, new.schema),
        size_mb=_size_mb(out),
    )


def _size_mb(folder: Path) -> float:
    """Of the files that are loaded to serve a version."""
    return sum(path.stat().st_size for name in (PIPELINE, TWIN, TREES) if (path := folder / name).exists()) / 1e6


def _trusted(spec: JobSpec, new: LoadedModel, old: LoadedModel | None, schema: FeatureSchema) -> Trusted | None:
    """What both models say of the owner's rows themselves: nobody served them, so nothing is adapted."""
    if spec.trusted_holdout is None:
        return None
    frame = read_snapshot(Path(spec.trusted_holdout), schema)
    features = frame[list(schema.names)]
    truth = Truth.of(labels_of(frame, schema), schema)
    return Trusted(new.answer(features), None if old is None else old.answer(features), truth)


def _served(spec: JobSpec, holdout: npt.NDArray[np.intp], raw: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What the champion served for these rows, adapted; its raw answer to those that it did not serve."""
    if spec.served is None:
        return raw
    served = np.load(spec.served, allow_pickle=False)[holdout].reshape(raw.shape)
    return np.where(np.isfinite(served), served, raw)


def _quality(
    said: npt.NDArray[Any],
    champion: npt.NDArray[Any] | None,
    labels: npt.NDArray[Any],
    truth: Truth,
    schema: FeatureSchema,
    gates: GatePolicy,
    seed: int,
) -> HoldoutQuality:
    """The judged model's quality on the judging rows: what the champion is later compared with."""
    metric = metric_of(schema.task, gates)
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
        champion=None if champion is None else score(champion, truth, metric),
        rows=len(labels),
        error=measured.error,
        metrics=dict(measured.metrics),
    )


def _write_start(
    spec: JobSpec, out: Path, model: LoadedModel, frame: pd.DataFrame, unseen: Unseen, schema: FeatureSchema
) -> None:
    """The adaptation that the version starts with, from answers to rows that the models giving them had not seen.

    Weights come from what the experts were worth to the champion, halved. Scoring them on these rows, too, made answers
    worse: models that learned the neighbours of a row answer it better than a model can answer the future.
    """
    policy = AdaptPolicy.model_validate(spec.adapt)
    rows = tempered(answered(model, frame.iloc[unseen.rows], unseen.said, schema), schema.task)
    standing = Standing(dict(spec.standing))
    made = make(rows, schema.task, standing, policy, version=0, seed=spec.seed, waiting=spec.waiting)
    if made is not None:
        write_made(made, out)


def answered(model: LoadedModel, part: pd.DataFrame, said: npt.NDArray[Any], schema: FeatureSchema) -> Answered:
    """These rows of a snapshot with what was said of them, but for those of a class that the model does not have."""
    truth = Truth.of(labels_of(part, schema), schema)
    _, x = model.answer_with_matrix(part[list(schema.names)])
    return Answered(said[truth.known], x[truth.known], truth.values[truth.known])


def _latency(new: LoadedModel, old: LoadedModel, features: pd.DataFrame) -> Latency:
    """Both models' times on the roads that would serve them."""
    import pandas as pd

    thousand = pd.concat([features] * math.ceil(1000 / len(features)), ignore_index=True).head(1000)
    one = thousand.head(1)
    calls = [tuple(model.call(part) for part in (one, thousand)) for model in (new, old)]
    return timed(*calls)  # type: ignore[arg-type]


def _with_answers(known: pd.DataFrame, values: npt.NDArray[Any], schema: FeatureSchema) -> pd.DataFrame:
    frame = known[[*schema.names, AT, LABEL, "_holdout"]].reset_index(drop=True)
    frame["_prediction"] = _predictions(values, schema)
    frame["_score"] = values[:, 1] if schema.task == "binary" else np.nan
    return frame


def _predictions(values: npt.NDArray[Any], schema: FeatureSchema) -> npt.NDArray[Any]:
    if schema.task == "regression":
        return values
    classes = np.array(schema.classes, dtype=object if isinstance(schema.classes[0], str) else None)
    said: npt.NDArray[Any] = classes[values.argmax(axis=1)]
    return said


def schema_of(spec: JobSpec) -> FeatureSchema:
    if isinstance(spec.schema, dict):
        return FeatureSchema.from_json(msgspec.json.encode(spec.schema))
    try:
        return FeatureSchema.from_json(Path(spec.schema).read_bytes())
    except FileNotFoundError:
        raise JobError(f"there is no schema at {spec.schema}") from None
