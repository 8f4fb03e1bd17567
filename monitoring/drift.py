"""Has the world moved? The distances between a reference and a window, and what counts as moved.

A column has moved when its distance is **material** (at least `DriftPolicy.threshold`), **beyond chance** (what random
splits of independent rows reach, `monitoring.distance`) and **beyond its own past** (what consecutive stretches of the
reference show among themselves, `monitoring.past`). The own past is looked at only for a column that is over the
threshold, chance only for one that is beyond its past, too: a quiet check costs one distance a column.

Whether a movement is new, and whether it matters, says `monitoring.news`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from monitoring.distance import Array, Codes, Column, beyond_chance, buckets, distance_of, keys, numbers, scaled
from monitoring.feature import AT, MAX_CATEGORIES, PREDICTED, SCORE
from monitoring.past import codes_shown, distances_shown, missing_shown, numbers_shown
from monitoring.wording import percent

if TYPE_CHECKING:
    import pandas as pd

    from monitoring.feature import Feature
    from monitoring.schema import FeatureSchema

OUTPUT: Final = "prediction"
"""Name under which the model's own output is reported."""

MAX_REACH: Final = 4.0
"""Times the reference's own gap up to which what its past shows is extended: further out nobody knows."""


class DriftPolicy(BaseModel):
    """What counts as drift. Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    numeric_test: Literal["wasserstein", "jensenshannon", "psi"] = Field(
        "wasserstein",
        description="Evidently's name of the distance for numbers and dates; wasserstein is in standard deviations of "
        "the reference, sees shifts and spread alike, and needs no bins",
    )
    categorical_test: Literal["jensenshannon", "psi"] = Field(
        "jensenshannon",
        description="Evidently's name of the distance for categories and booleans; jensenshannon stays finite when a "
        "category vanishes or appears",
    )
    threshold: float = Field(
        0.1,
        gt=0,
        description="distance that is material: 0.1 standard deviations for wasserstein, 0.1 of at most 0.83 for "
        "jensenshannon (a share of 50 % becoming 64 %); Evidently's own default for both",
    )
    noise_sigmas: float = Field(
        5.0,
        ge=0,
        description="standard deviations over the mean distance of random splits that a score must also exceed; "
        "with 5, 11 of 18,920 unmoved columns were false alarms (windows of 200 to 20,000 rows), and "
        "none of their 1,720 checks",
    )
    permutations: int = Field(
        500,
        ge=20,
        description="random splits of a column that is over the threshold; 500 keep false alarms to 1 in 500 columns "
        "whatever the distribution, and cost about 0.1 s",
    )
    past_sigmas: float = Field(
        3.0,
        ge=0,
        description="standard deviations over the mean distance between stretches of the reference's own time that a "
        "score must also exceed; consecutive rows differ from others also when nothing is new",
    )
    missing_threshold: float = Field(
        0.1, gt=0, le=1, description="change in the share of missing values that is drift in itself; 0.1 = ten points"
    )
    share: float = Field(
        0.2,
        gt=0,
        le=1,
        description="share of the counted features that makes the whole drift: 3 of 14. Chance is already kept out "
        "column by column, so the share only says how much is worth a training run",
    )
    prediction: bool = Field(
        True,
        description="whether drift of the model's output alone is enough: important features move it, also when they "
        "are only 2 of 14, and unimportant ones do not",
    )
    key_features: tuple[str, ...] = Field(
        (), description="features of which any one is enough; for those you know the model leans on"
    )
    ignored_features: tuple[str, ...] = Field(
        (), description="features measured and reported, never counted; for those that move by nature, as a month does"
    )
    confirmations: int = Field(
        2,
        ge=1,
        description="checks in a row that must see a movement before it is news, each with at least half of its rows "
        "newer than the one before; one odd window is no news",
    )
    far: float = Field(
        3.0,
        gt=1,
        description="times what a score had to reach (or what was told before) that are news at once, unconfirmed",
    )
    calm: float = Field(
        0.75,
        gt=0,
        le=1,
        description="times what a score had to reach, below which a movement is over; between this and 1 it goes on",
    )
    matters: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of the model's importance from which a feature's movement matters, if the output moved, too",
    )
    window_rows: int = Field(1_000, ge=1, description="rows of the current window; 1,000 show a shift of 0.2 sigma")
    reference_rows: int = Field(
        5_000, ge=1, description="rows of the reference that are used, drawn with the seed; more hardly lower the noise"
    )
    min_rows: int = Field(200, ge=2, description="rows both sides need; fewer would see only shifts over 0.4 sigma")
    min_values: int = Field(30, ge=2, description="values present both sides of a column need for its distance")
    max_categories: int = Field(
        50, ge=2, description="most frequent categories kept apart, the rest share one bucket: noise grows with buckets"
    )


class FeatureDrift(msgspec.Struct, frozen=True):
    """How far one column moved."""

    name: str
    test: str
    """Evidently's name of the distance."""
    score: float | None
    """The distance; None when it could not be measured, and `note` says why."""
    threshold: float
    """What the score had to reach: the most of `DriftPolicy.threshold`, of what chance gives and of `past`."""
    drifted: bool
    note: str = ""
    causes: tuple[str, ...] = ()
    """Why it drifted: `distribution`, `missing`, or both; empty when it did not."""
    counted: bool = True
    """False for dates and ignored features, which are measured but make no alarm."""
    missing_reference: float = 0.0
    """Share of missing values, 0 to 1."""
    missing_current: float = 0.0
    unseen: int = 0
    """Rows of the window with a category that training never saw."""
    outside: int = 0
    """Rows of the window with a number outside the range that training saw."""
    past: float = 0.0
    """Distance that the reference's own past shows at this gap in time; 0 when it was not looked at."""
    times: float = 0.0
    """How many times what it had to reach it moved, of its causes the larger one; over 1 is drifted."""


class Finding(msgspec.Struct, frozen=True):
    """What is known of one column's movement, from check to check; `monitoring.news` makes it."""

    name: str
    state: Literal["suspected", "began", "continues", "over", "remembered"]
    """`remembered`: it was told before and is over; when it comes back as far, that is no news."""
    times: float
    """`FeatureDrift.times` of this check."""
    looks: int
    """Checks in a row that saw it, those with mostly the same rows counted once."""
    since: float
    """When it was first seen, seconds since 1970 UTC: the end of that window; 0 when windows do not say."""
    looked_at: float
    """The end of the window of the last look that counted."""
    told: float
    """The most `times` since it was told, of former ones too; 0 before it was ever told."""
    importance: float | None
    """Share of the model's importance, 0 to 1; None when that is not known."""
    matters: bool | None
    """None: not known."""
    sentence: str


class DriftReport(msgspec.Struct, frozen=True):
    """What one check found."""

    features: tuple[FeatureDrift, ...]
    prediction: FeatureDrift | None
    """The model's output, when both frames carry it."""
    share: float
    """Share of the counted features that drifted, 0 to 1."""
    detected: bool
    reasons: tuple[str, ...]
    """Each rule that made `detected` true, in words."""
    reference_rows: int
    current_rows: int
    skipped: str | None = None
    """Why nothing was computed; None when it was."""
    middle_at: float = 0.0
    """When the middle row of the window was answered, seconds since 1970 UTC; 0 when the window does not say."""
    until_at: float = 0.0
    """When its newest row was answered."""
    findings: tuple[Finding, ...] = ()
    """The movements of counted features and of the output that are seen or remembered, in schema order."""
    format: int = 1

    @property
    def drifted(self) -> tuple[str, ...]:
        """Names of the drifted features, in schema order, the uncounted ones too."""
        return tuple(feature.name for feature in self.features if feature.drifted)

    @property
    def news(self) -> bool:
        """Whether something begins with this check."""
        return any(finding.state == "began" for finding in self.findings)

    @property
    def matters(self) -> bool:
        """Whether a movement that begins or goes on matters, or may: not known counts as yes."""
        return any(f.state in ("began", "continues") and f.matters is not False for f in self.findings)

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, data: bytes) -> DriftReport:
        """Raises msgspec.ValidationError when `data` is not a report."""
        return msgspec.json.decode(data, type=cls)


def detect(
    reference: pd.DataFrame, current: pd.DataFrame, schema: FeatureSchema, policy: DriftPolicy, *, seed: int = 0
) -> DriftReport:
    """Report how far each feature, and the model's output, moved from `reference` to `current`.

    Both are canonical frames (`FeatureSchema.canonical`), oldest row first; columns `_score` (binary) or `_prediction`,
    when both have them with values, are compared as the pseudo-feature "prediction". They must come from the same model
    version, and the reference's from rows the model was not fitted on (a model is surer of rows it has seen): leave the
    answer of a fitted row missing. With a column `_at` in both, what the own past shows grows with the gap in time.

    Drift is detected when any of these holds, and `DriftReport.reasons` says which:
    the share of drifted features reaches `policy.share`; a feature of `policy.key_features` drifted; the prediction
    drifted and `policy.prediction` is on. Dates move with the clock: they are measured and never counted, unless key.

    The same arguments give the same report. Raises ValueError when a frame lacks a feature or the policy names a
    feature that the schema does not have.
    """
    _require_columns(reference, current, schema, policy)
    rows = (len(reference), len(current))
    for side, count in zip(("reference", "window"), rows, strict=True):
        if count < policy.min_rows:
            skipped = f"the {side} has {count} rows; drift needs at least {policy.min_rows}"
            return DriftReport((), None, 0.0, False, (), *rows, skipped=skipped)
    reference = sampled(reference, policy.reference_rows, seed)
    reach, middle, until = _times(reference, current)

    features = []
    for index, feature in enumerate(schema.features):
        look = _Look(policy, np.random.default_rng((seed, index)), reach)
        features.append(_feature_drift(feature, reference[feature.name], current[feature.name], look))
    look = _Look(policy, np.random.default_rng((seed, len(features))), reach)
    prediction = _prediction_drift(reference, current, schema, look)

    counted = [feature for feature in features if feature.counted]
    drifted = [feature for feature in counted if feature.drifted]
    share = len(drifted) / len(counted) if counted else 0.0
    reasons = []
    if drifted and share >= policy.share - 1e-9:
        names = ", ".join(feature.name for feature in drifted)
        reasons.append(f"{len(drifted)} of {len(counted)} features drifted (share {policy.share:g} is enough): {names}")
    if keys := [feature.name for feature in drifted if feature.name in policy.key_features]:
        reasons.append(f"key features drifted: {', '.join(keys)}")
    if prediction is not None and prediction.drifted and policy.prediction:
        reasons.append(f"the prediction drifted: {prediction.note or _words(prediction)}")
    return DriftReport(
        tuple(features),
        prediction,
        share,
        bool(reasons),
        tuple(reasons),
        len(reference),
        rows[1],
        middle_at=middle,
        until_at=until,
    )


class _Look(NamedTuple):
    """What measuring one column takes besides its values."""

    policy: DriftPolicy
    rng: np.random.Generator
    reach: float


def _times(reference: pd.DataFrame, current: pd.DataFrame) -> tuple[float, float, float]:
    """How many times the reference's own gap the window lies away from its middle; middle and end of the window.

    1 and zeros where the frames do not say when.
    """
    if AT not in current.columns:
        return 1.0, 0.0, 0.0
    now = numbers(current[AT])
    middle, until = float(np.median(now)), float(now[-1])
    then = numbers(reference[AT]) if AT in reference.columns else np.zeros(1)
    half = float(then[-1] - then[0]) / 2
    reach = (middle - then[0] - half) / half if half > 0 else 1.0
    return float(np.clip(reach, 1.0, MAX_REACH)), middle, until


def _require_columns(
    reference: pd.DataFrame, current: pd.DataFrame, schema: FeatureSchema, policy: DriftPolicy
) -> None:
    known = [feature.name for feature in schema.features]
    for side, frame in (("reference", reference), ("window", current)):
        if absent := [name for name in known if name not in frame.columns]:
            raise ValueError(f"the {side} has no column {', '.join(absent)}; make it with FeatureSchema.canonical")
    for setting in ("key_features", "ignored_features"):
        if strangers := [name for name in getattr(policy, setting) if name not in known]:
            raise ValueError(f"{setting} names {', '.join(strangers)}; the features are {', '.join(known)}")


def _feature_drift(feature: Feature, reference: pd.Series[Any], current: pd.Series[Any], look: _Look) -> FeatureDrift:
    policy = look.policy
    counted = feature.name not in policy.ignored_features and (
        feature.kind != "datetime" or feature.name in policy.key_features
    )
    if feature.kind in ("numeric", "datetime"):
        values = numbers(current)
        with np.errstate(invalid="ignore"):
            low = values < feature.minimum if feature.minimum is not None else np.zeros(len(values), bool)
            high = values > feature.maximum if feature.maximum is not None else np.zeros(len(values), bool)
        drift = _numeric_drift(feature.name, numbers(reference), values, look)
        outside = int(np.count_nonzero(low | high))
        return msgspec.structs.replace(drift, counted=counted, outside=outside)
    old, new = keys(reference), keys(current)
    drift = _categorical_drift(feature.name, old, new, look)
    unseen = 0
    if feature.kind == "categorical" and len(feature.categories) < MAX_CATEGORIES:  # at the cap the list is cut
        seen = {*feature.categories, *old}
        unseen = sum(1 for key in new if key is not None and key not in seen)
    return msgspec.structs.replace(drift, counted=counted, unseen=unseen)


def _prediction_drift(
    reference: pd.DataFrame, current: pd.DataFrame, schema: FeatureSchema, look: _Look
) -> FeatureDrift | None:
    """Compare scores when both sides have them, else predictions; None when neither can be compared."""
    column = output_column(reference, current)
    if column is None:
        return None
    old, new = reference[column].dropna(), current[column].dropna()
    if column == SCORE or schema.task == "regression":
        return _numeric_drift(OUTPUT, numbers(old), numbers(new), look)
    return _categorical_drift(OUTPUT, keys(old), keys(new), look)


def output_column(reference: pd.DataFrame, current: pd.DataFrame) -> str | None:
    """The column of the model's output that both have values in: its score rather than its answer; None for neither."""
    for column in (SCORE, PREDICTED):
        both = column in reference.columns and column in current.columns
        if both and reference[column].notna().any() and current[column].notna().any():
            return column
    return None


def sampled(frame: pd.DataFrame, most: int, seed: int) -> pd.DataFrame:
    """At most so many rows of the frame, drawn with the seed, in their order."""
    if len(frame) <= most:
        return frame
    chosen = np.random.default_rng(seed).choice(len(frame), most, replace=False)
    return frame.iloc[np.sort(chosen)]


def _numeric_drift(name: str, reference: Array, current: Array, look: _Look) -> FeatureDrift:
    policy = look.policy
    holes = np.isnan(reference), np.isnan(current)
    old, new = reference[~holes[0]], current[~holes[1]]
    missing = _missing(*holes, look)
    if (shortage := _shortage(len(old), len(new), policy)) is not None:
        return _verdict(name, policy.numeric_test, _Distance(), missing, shortage, policy)
    if old.min() == old.max():
        codes = np.zeros(len(old), np.int64), (new != old[0]).astype(np.int64)
        differing = codes[1].mean()
        note = (
            f"constant {old[0]:g} in the reference, different in {percent(differing)} of the window"
            if differing
            else ""
        )
        distance = _measured(policy.categorical_test, "cat", *codes, look)
        return _verdict(name, policy.categorical_test, distance, missing, note, policy)
    old, new = scaled(old, new)
    note = "constant in the window" if new.min() == new.max() else ""
    return _verdict(
        name, policy.numeric_test, _measured(policy.numeric_test, "num", old, new, look), missing, note, policy
    )


def _categorical_drift(name: str, reference: list[str | None], current: list[str | None], look: _Look) -> FeatureDrift:
    policy = look.policy
    old = [key for key in reference if key is not None]
    new = [key for key in current if key is not None]
    holes = np.array([key is None for key in reference]), np.array([key is None for key in current])
    missing = _missing(*holes, look)
    if (shortage := _shortage(len(old), len(new), policy)) is not None:
        return _verdict(name, policy.categorical_test, _Distance(), missing, shortage, policy)
    codes, distinct = buckets(old, new, policy.max_categories)
    tail = f"{distinct} categories, all but the {policy.max_categories} most frequent in one bucket"
    note = tail if distinct > policy.max_categories else ""
    distance = _measured(policy.categorical_test, "cat", *codes, look)
    return _verdict(name, policy.categorical_test, distance, missing, note, policy)


class _Distance(NamedTuple):
    """A distance, and what it has to reach by chance and by the own past; none when it could not be measured."""

    score: float | None = None
    chance: float = 0.0
    past: float = 0.0


def _measured(test: str, column: Column, old: Array | Codes, new: Array | Codes, look: _Look) -> _Distance:
    policy = look.policy
    score = distance_of(test, column)(old, new)
    if score < policy.threshold:
        return _Distance(score)
    if test == "wasserstein":
        shown = numbers_shown(old.astype(np.float64), len(new), policy.past_sigmas)
    elif test == "jensenshannon" and column == "cat":
        shown = codes_shown(old.astype(np.int64), len(new), policy.past_sigmas)
    else:
        shown = distances_shown(distance_of(test, column), old, len(new), policy.past_sigmas)
    past = shown.at(look.reach)
    if score < past or not policy.noise_sigmas:
        return _Distance(score, 0.0, past)
    sigmas, most = policy.noise_sigmas, policy.permutations
    chance = beyond_chance(score, test, column, old, new, sigmas=sigmas, permutations=most, rng=look.rng)
    return _Distance(score, chance, past)


class _Missing(NamedTuple):
    """Share of missing values of both sides, and what its change has to exceed by chance and by the own past."""

    before: float
    after: float
    chance: float
    past: float


def _missing(reference: npt.NDArray[np.bool_], current: npt.NDArray[np.bool_], look: _Look) -> _Missing:
    before, after = float(reference.mean()), float(current.mean())
    if abs(after - before) < look.policy.missing_threshold:
        return _Missing(before, after, 0.0, 0.0)
    # Standard error of the difference of the shares when they are equal (pooled two-proportion z test).
    pooled = (reference.sum() + current.sum()) / (len(reference) + len(current))
    error = math.sqrt(pooled * (1 - pooled) * (1 / len(reference) + 1 / len(current)))
    shown = missing_shown(reference, len(current), look.policy.past_sigmas)
    return _Missing(before, after, look.policy.noise_sigmas * error, shown.at(look.reach))


def _shortage(old: int, new: int, policy: DriftPolicy) -> str | None:
    """Why a column with so many values present cannot be measured; None when it can."""
    if not old and not new:
        return "missing everywhere on both sides"
    if not old or not new:
        return f"missing everywhere in the {'window' if old else 'reference'}"
    if min(old, new) < policy.min_values:
        return f"{old} values in the reference, {new} in the window; a distance needs {policy.min_values} on both sides"
    return None


def _verdict(
    name: str, test: str, distance: _Distance, missing: _Missing, note: str, policy: DriftPolicy
) -> FeatureDrift:
    """Join the distance and the change in missing values; each must be material and beyond chance and the own past."""
    threshold = max(policy.threshold, distance.chance, distance.past)
    times = {"distribution": 0.0 if distance.score is None else distance.score / threshold}
    change = abs(missing.after - missing.before)
    times["missing"] = change / max(policy.missing_threshold, missing.chance, missing.past)
    causes = tuple(cause for cause, reached in times.items() if reached >= 1)
    if change >= policy.missing_threshold:
        words = f"missing values went from {percent(missing.before)} to {percent(missing.after)}"
        note = f"{note}; {words}" if note else words
    return FeatureDrift(
        name=name,
        test=test,
        score=distance.score,
        threshold=threshold,
        drifted=bool(causes),
        note=note,
        causes=causes,
        missing_reference=missing.before,
        missing_current=missing.after,
        past=distance.past,
        times=max(times.values()),
    )


def _words(drift: FeatureDrift) -> str:
    return f"{drift.test} {drift.score:.3f} over {drift.threshold:.3f}" if drift.score is not None else drift.test
