"""What one check finds: drift and quality of what the champion answered, and what happened before."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from monitoring.answers import Answers, count_labelled, label_maturity, read_answers
from monitoring.drift import DriftPolicy, DriftReport, detect
from monitoring.feature import ADAPTATION, VERSION
from monitoring.maturity import Maturity
from monitoring.news import Labels, told
from monitoring.quality import measure
from monitoring.schema import FeatureSchema
from monitoring.verdict import Outputs, QualityVerdict, holdout_of, judge_quality
from monitoring.window import read_window
from training.artefact import REFERENCE, SCHEMA
from training.counted import ever_answered
from training.loop import Loop
from training.manifest import NO_ACTION, Slices
from training.policy import History, QualityCheck, RetrainPolicy, growth_needed
from training.runs import Check, Run
from training.slices import ROWS, slices

if TYPE_CHECKING:
    import pandas as pd

    from training.spec import Adapted

TRAININGS: Final = ("bootstrap", "retrain")
"""Kinds of runs that fit a model; the cool-down counts from them."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one check found."""

    champion: int
    drift: DriftReport
    quality: QualityCheck
    labels: Maturity
    schema: FeatureSchema
    reference: pd.DataFrame = field(repr=False, compare=False)  # what the window was compared with
    window: pd.DataFrame = field(repr=False, compare=False)
    unfit: Mapping[str, int]  # rows and labels that were left out, by what they were read for
    slices: Slices  # the champion's groups, the worst first

    def known(self) -> dict[str, Any]:
        """What the check's row says of the quality."""
        quality: dict[str, Any] = msgspec.to_builtins(self.quality.measured)
        verdict = msgspec.to_builtins(self.quality.verdict)
        counted = {"answered": self.quality.answered, "until": self.quality.until}
        raw = {"raw": msgspec.to_builtins(self.quality.raw), "slices": msgspec.to_builtins(self.slices)}
        return {**quality, **verdict, **counted, **raw, "labels": msgspec.to_builtins(self.labels)}


def check(loop: Loop, champion: int, labels: Maturity, matured: pd.DataFrame, adapted: Adapted | None = None) -> Seen:
    """Drift and quality of what the champion answered lately, against its own reference and holdout.

    `labels` is what `maturity` says now, `matured` what `matured_rows` does. `adapted` is what came of adapting to
    these rows, with a verdict on the champion's own output; without one, what the last check knew of that stands.
    """
    import pandas as pd

    folder = loop.registry.fetch(champion)
    schema = FeatureSchema.from_json((folder / SCHEMA).read_bytes())
    reference = pd.read_parquet(folder / REFERENCE)
    window = read_window(loop.engine, schema, rows=loop.drift.window_rows, version=champion)
    compared = comparable(reference, loop.drift)

    answered = read_answers(
        loop.engine,
        schema,
        version=champion,
        rows=max(loop.quality.judged_rows, loop.quality.window_rows),
        until=labels.matured_until,
        sources=loop.gates.label_sources,
    )
    last = next(iter(loop.runs.checks(limit=1, version=champion)), None)
    raw = None if adapted is None else adapted.raw
    if raw is None and window[ADAPTATION].notna().any():
        raw = _raw_before(last)
    quality = _quality(loop, champion, schema, reference, answered, labels, raw)
    drift = told(
        detect(compared, window, schema, loop.drift, seed=loop.seed),
        _drift_before(last),
        loop.drift,
        importance=loop.registry.manifest(champion).importance,
        labels=_labels_say(quality, answered) if labels.labels else None,
    )
    unfit = {"drift": unfit_rows(window), "quality": answered.unfit}
    groups = slices(loop, schema, matured[matured[VERSION] == champion])
    return Seen(champion, drift, quality, labels, schema, compared, window, unfit, groups)


def maturity(loop: Loop) -> Maturity:
    """Which rows of the record may be judged, trained on and adapted to by now: those before `matured_until`."""
    return label_maturity(loop.engine, loop.clock(), loop.quality.delay_s, loop.gates.label_sources)


def matured_rows(loop: Loop, champion: int, until: float) -> pd.DataFrame:
    """The newest rows with a label that the champion did not learn and that were answered before `until`, oldest first:
    all that adapting and the groups look at. Quality is measured on more of its own, for which `read_answers` needs no
    features.

    After a training these are also the rows that the versions before answered and whose labels came too late for it. Of
    a pushed or a first version nobody knows that it did not learn them: only those it answered.
    """
    folder, manifest = loop.registry.fetch(champion), loop.registry.manifest(champion)
    learnt = manifest.until if manifest.origin == "retrain" else 0.0
    return read_window(
        loop.engine,
        FeatureSchema.from_json((folder / SCHEMA).read_bytes()),
        rows=max(loop.adapt.most_rows, ROWS),
        since=math.nextafter(learnt, math.inf) if learnt else None,
        until=until,
        version=None if learnt else champion,
        labelled=True,
        sources=loop.gates.label_sources,
    )


def unfit_rows(window: pd.DataFrame) -> int:
    """How many rows of the record this window left out, and how many labels: they do not fit its schema."""
    return int(window.attrs["skipped"] + window.attrs["unfit_labels"])


def past(loop: Loop, seen: Seen, besides: Run | None = None) -> History:
    """What the decision needs to know of the past; `besides` is the run that asks."""
    trainings = [run for kind in TRAININGS for run in loop.runs.list(kind=kind, limit=50)]
    trainings = sorted((run for run in trainings if run.state in ("done", "failed")), key=lambda run: -run.id)
    trainings = [run for run in trainings if run.outcome not in (NO_ACTION, "stopped")]
    crashes = next((at for at, run in enumerate(trainings) if run.state == "done"), len(trainings))
    ended = [run for run in trainings if run.state == "done"]
    data = ended[0].record.data if ended else None
    refusals = _in_a_row(run.outcome == "kept" for run in ended)
    rows = data.rows if data is not None else 0
    since = None
    if data is not None and data.until is not None and data.record_rows:
        # A source may have times of its own, later than today: nothing was learned that was not answered then.
        since = math.nextafter(min(data.until, ended[0].started_at or math.inf), math.inf)
    running = loop.runs.running()
    checks = loop.runs.checks(limit=loop.retrain.confirmations, version=seen.champion)
    return History(
        last_trained_at=trainings[0].finished_at if trainings else None,
        trained_rows=rows,
        labelled_rows=_labelled(loop, seen, loop.retrain.min_labelled_rows),
        new_labelled_rows=_labelled(loop, seen, _new_rows_asked_for(loop.retrain, rows, refusals), since),
        refusals=refusals,
        crashes=crashes,
        drift_checks=_in_a_row(bool((c.drift or {}).get("detected")) for c in checks),
        running=running.id if running is not None and (besides is None or running.id != besides.id) else None,
    )


def _new_rows_asked_for(policy: RetrainPolicy, trained_rows: int, refusals: int) -> int:
    shares = (policy.growth, policy.growth_if_lost)
    return max(policy.min_new_labelled_rows, *(growth_needed(share, trained_rows, refusals) for share in shares))


def _labelled(loop: Loop, seen: Seen, most: int, since: float | None = None) -> int:
    until = seen.labels.matured_until
    return count_labelled(loop.engine, most=most, since=since, until=until, sources=loop.gates.label_sources)


def comparable(reference: pd.DataFrame, policy: DriftPolicy) -> pd.DataFrame:
    """The champion's reference, with its answers to rows it was not fitted to: it is surer of the others.

    Without any answer when there are fewer such rows than drift needs.
    """
    unseen = reference["_holdout"] & (reference["_holdout"].sum() >= policy.min_rows)
    answers = {name: reference[name].astype(object).where(unseen, None) for name in ("_prediction", "_score")}
    return reference.assign(**answers)


def _drift_before(last: Check | None) -> DriftReport | None:
    """What the champion's last check found of drift; None at its first, and when another release wrote it otherwise."""
    with suppress(msgspec.ValidationError):
        return None if last is None else msgspec.convert(last.drift, DriftReport)
    return None


def _raw_before(last: Check | None) -> QualityVerdict | None:
    """What the champion's last check knew of its own output; None when it was not adapted then."""
    with suppress(msgspec.ValidationError):
        return msgspec.convert((last.quality or {}).get("raw"), QualityVerdict | None) if last is not None else None
    return None


def _labels_say(quality: QualityCheck, answered: Answers) -> Labels:
    """What the labels say of the champion, and of when.

    Its own output is asked where it was adapted: that an adaptation makes good what a movement did is no sign that the
    movement does not matter.
    """
    verdict = quality.raw or quality.verdict
    if verdict.state == "not known yet":
        return Labels(held=None)
    rows = max(one.fall.rows for one in verdict.compared if one.fall.state == verdict.state)
    return Labels(held=verdict.state == "held", middle_at=float(np.median(answered.at[-rows:])))


def _quality(
    loop: Loop,
    champion: int,
    schema: FeatureSchema,
    reference: pd.DataFrame,
    answered: Answers,
    labels: Maturity,
    raw: QualityVerdict | None,
) -> QualityCheck:
    task, classes = schema.task, schema.classes
    newest = slice(-loop.quality.window_rows, None)
    served = Outputs(answered.labels, answered.answers, answered.scores)
    scores = None if served.scores is None else served.scores[newest]
    measured = measure(
        served.labels[newest], served.answers[newest], scores, task, classes, loop.quality, seed=loop.seed
    )
    total, until = ever_answered(loop, champion, answered.at, labels.matured_until, loop.quality.judged_rows)
    before = max(total - len(answered.at), 0)
    verdict = judge_quality(served, holdout_of(reference, task), task, classes, loop.quality, before=before)
    return QualityCheck(measured, verdict, total, until, raw)


def _in_a_row(found: Iterable[bool]) -> int:
    count = 0
    for one in found:
        if not one:
            break
        count += 1
    return count
