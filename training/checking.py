"""What one check finds: drift and quality of what the champion answered, and what happened before."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from monitoring.answers import count_labelled, label_maturity
from monitoring.drift import DriftPolicy, DriftReport, detect
from monitoring.feature import AT, LABEL
from monitoring.maturity import Maturity
from monitoring.news import Labels, told
from monitoring.quality import fell, measure
from monitoring.schema import FeatureSchema
from monitoring.window import read_window
from training.artefact import REFERENCE, SCHEMA
from training.loop import Loop
from training.policy import History, QualityCheck, RetrainPolicy, growth_needed
from training.runs import NO_ACTION, Run

if TYPE_CHECKING:
    import pandas as pd

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

    def known(self) -> dict[str, Any]:
        """What the check's row says of the quality."""
        found: dict[str, Any] = msgspec.to_builtins(self.quality.measured)
        return {
            **found,
            "state": self.quality.state,
            "words": self.quality.words,
            "labels": msgspec.to_builtins(self.labels),
        }


def check(loop: Loop, champion: int, labels: Maturity | None = None) -> Seen:
    """Drift and quality of what the champion answered lately, against its own reference and holdout.

    `labels` is what `maturity` says now; it is asked when none is given.
    """
    import pandas as pd

    folder = loop.registry.path(champion)
    schema = FeatureSchema.from_json((folder / SCHEMA).read_bytes())
    reference = pd.read_parquet(folder / REFERENCE)
    window = read_window(loop.engine, schema, rows=loop.drift.window_rows, version=champion)
    compared = _comparable(reference, loop.drift)

    labels = maturity(loop) if labels is None else labels
    answered = read_window(
        loop.engine,
        schema,
        rows=loop.quality.window_rows,
        until=labels.matured_until,
        version=champion,
        labelled=True,
        sources=loop.gates.label_sources,
    )
    quality = _quality(loop, schema, reference[reference["_holdout"]], answered)
    drift = told(
        detect(compared, window, schema, loop.drift, seed=loop.seed),
        _drift_before(loop, champion),
        loop.drift,
        importance=loop.registry.manifest(champion).importance,
        labels=_labels_say(quality, answered),
    )
    unfit = {"drift": unfit_rows(window), "quality": unfit_rows(answered)}
    return Seen(champion, drift, quality, labels, schema, compared, window, unfit)


def maturity(loop: Loop) -> Maturity:
    """Which rows of the record may be judged, trained on and adapted to by now: those before `matured_until`."""
    return label_maturity(loop.engine, loop.clock(), loop.quality.delay_s, loop.gates.label_sources)


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
    # A source has times of its own: none of the record was learned from, whatever they are.
    since = math.nextafter(data.until, math.inf) if data and data.until is not None and data.record_rows else None
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


def _comparable(reference: pd.DataFrame, policy: DriftPolicy) -> pd.DataFrame:
    """The champion's reference, with its answers to rows it was not fitted to: it is surer of the others.

    Without any answer when there are fewer such rows than drift needs.
    """
    unseen = reference["_holdout"] & (reference["_holdout"].sum() >= policy.min_rows)
    answers = {name: reference[name].astype(object).where(unseen, None) for name in ("_prediction", "_score")}
    return reference.assign(**answers)


def _drift_before(loop: Loop, champion: int) -> DriftReport | None:
    """What the champion's last check found of drift; None at its first, and when another release wrote it otherwise."""
    for last in loop.runs.checks(limit=1, version=champion):
        with suppress(msgspec.ValidationError):
            return msgspec.convert(last.drift, DriftReport)
    return None


def _labels_say(quality: QualityCheck, answered: pd.DataFrame) -> Labels | None:
    """What the labels say of the champion, and of when; None when they do not say."""
    if quality.state == "not known yet":
        return None
    return Labels(held=quality.state == "held", middle_at=float(answered[AT].median()))


def _quality(loop: Loop, schema: FeatureSchema, holdout: pd.DataFrame, answered: pd.DataFrame) -> QualityCheck:
    def measured(frame: pd.DataFrame) -> Any:
        scores = frame["_score"].to_numpy() if schema.task == "binary" else frame.get("_probabilities")
        if schema.task == "regression":
            scores = None
        answers = frame["_prediction"].to_numpy()
        return measure(
            frame[LABEL].to_numpy(), answers, scores, schema.task, schema.classes, loop.quality, seed=loop.seed
        )

    then, now = measured(holdout), measured(answered)
    if then.value is None or now.value is None or not now.usable:
        return QualityCheck(now, "not known yet", f"quality not known yet: {now.note or 'no holdout to compare with'}")
    on = f"{now.metric} {now.value:.4g} on {now.rows:,} rows answered, {then.value:.4g} on the champion's holdout"
    if fell(then.value, now, loop.quality, reference_error=then.error or 0.0):
        return QualityCheck(now, "lost", f"quality lost: {on}")
    return QualityCheck(now, "held", f"quality held: {on}")


def _in_a_row(found: Iterable[bool]) -> int:
    count = 0
    for one in found:
        if not one:
            break
        count += 1
    return count
