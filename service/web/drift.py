"""`/page/drift`: how far each feature had moved at each check, as a strip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from monitoring.drift import FeatureDrift, Finding
from monitoring.store import checks
from service.web.champion import schema_of
from service.web.shapes import Drift, DriftCheck, DriftFeature
from service.web.span import Asked, chosen_checks, with_ids
from training.registry import UnknownVersion

if TYPE_CHECKING:
    from service.serving.management.deployment import Managed

MOST_COLUMNS: Final = 250
"""Checks of the strip: a screen shows no more, and each has a score of every feature."""


class _Moved(msgspec.Struct):
    name: str
    score: float | None = None
    times: float = 0.0


class _Began(msgspec.Struct):
    name: str
    state: str = ""


class Seen(msgspec.Struct):
    """What a check's row says of drift, as far as a column of the strip shows it; the rest is not decoded."""

    features: tuple[_Moved, ...] = ()
    prediction: _Moved | None = None
    findings: tuple[_Began, ...] = ()
    share: float | None = None
    detected: bool = False
    skipped: str | None = None


class Newest(msgspec.Struct):
    """What the newest check of the strip says of each feature."""

    features: tuple[FeatureDrift, ...] = ()
    prediction: FeatureDrift | None = None
    findings: tuple[Finding, ...] = ()
    skipped: str | None = None


def drift(here: Managed, asked: Asked) -> Drift:
    with here.engine.connect() as connection:
        ids, span = chosen_checks(connection, asked, MOST_COLUMNS)
        rows = with_ids(connection, (checks.c.id, checks.c.at, checks.c.version, checks.c.drift), ids)
    decode = msgspec.json.Decoder(Seen).decode
    seen = [Seen() if row.drift is None else decode(row.drift) for row in rows]
    newest = Newest()
    features: tuple[DriftFeature, ...] = ()
    if rows:
        newest = Newest() if rows[-1].drift is None else msgspec.json.decode(rows[-1].drift, type=Newest)
        features = _features(here, newest, rows[-1].version)
    place = {feature.name: at for at, feature in enumerate(features)}
    times: list[list[float | None]] = [[None] * len(rows) for _ in features]
    scores: list[list[float | None]] = [[None] * len(rows) for _ in features]
    news = []
    for column, one in enumerate(seen):
        for moved in (*one.features, *((one.prediction,) if one.prediction is not None else ())):
            at = place.get(moved.name)
            if at is not None:
                scores[at][column] = moved.score
                times[at][column] = moved.times if moved.score is not None or moved.times else None
        news += [
            (place[begun.name], column) for begun in one.findings if begun.state == "began" and begun.name in place
        ]
    return Drift(
        features=features,
        checks=tuple(DriftCheck(id=row.id, at=row.at, version=row.version) for row in rows),
        times=tuple(map(tuple, times)),
        scores=tuple(map(tuple, scores)),
        news=tuple(news),
        share=tuple(one.share if one.skipped is None else None for one in seen),
        detected=tuple(one.detected for one in seen),
        skipped=newest.skipped if rows and rows[-1].drift is not None else None,
        span=span,
    )


def _features(here: Managed, newest: Newest, version: int) -> tuple[DriftFeature, ...]:
    try:
        importance = here.registry.manifest(version).importance or {}
    except UnknownVersion:  # deleted since
        importance = {}
    schema = schema_of(here, version)
    kinds: dict[str, Any] = {} if schema is None else {feature.name: feature.kind for feature in schema.features}
    findings = {finding.name: finding for finding in newest.findings}

    def shown(moved: FeatureDrift, kind: Any) -> DriftFeature:
        found = findings.get(moved.name)
        return DriftFeature(
            name=moved.name,
            kind=kind,
            output=kind == "output",
            counted=moved.counted,
            importance=None if kind == "output" else importance.get(moved.name),
            score=moved.score,
            threshold=moved.threshold,
            test=moved.test,
            times=moved.times,
            moved=moved.drifted,
            state="" if found is None else found.state,
            news=found is not None and found.state == "began",
            matters=None if found is None else found.matters,
            sentence="" if found is None else found.sentence,
            note=moved.note,
            missing_reference=moved.missing_reference,
            missing_window=moved.missing_current,
            unseen=moved.unseen,
            outside=moved.outside,
        )

    by_test = {"wasserstein": "numeric", "psi": "numeric"}
    features = [
        shown(moved, kinds.get(moved.name, by_test.get(moved.test, "categorical"))) for moved in newest.features
    ]
    features.sort(key=lambda one: (-(one.importance or 0.0) * one.times, -(one.importance or 0.0), -one.times))
    output = () if newest.prediction is None else (shown(newest.prediction, "output"),)
    return (*output, *features)
