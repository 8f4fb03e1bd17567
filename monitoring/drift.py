"""Has the world moved? Evidently's distances between a reference and a window, and what counts as an alarm.

Two conditions make an alarm: the distance is **material** (at least `DriftPolicy.threshold`) and it is **beyond
chance**. Both of Evidently's distances grow as windows shrink, by about `1/sqrt(rows)`, also when nothing changed:
at 200 rows one unmoved normal column of three has a normed Wasserstein distance over 0.1. So a score over the threshold
is compared with the same distance between random splits of the two samples laid together (a permutation test, Fisher
1935; Good, "Permutation, Parametric and Bootstrap Tests", 2005, ch. 3), and must exceed their mean by
`noise_sigmas` standard deviations, and the largest of them. Splits are drawn only for a column that is over the
threshold: a quiet check costs one distance a column.

Rows are taken as independent. A window of 200 consecutive half-hours of one cold night is not: it has moved against
a reference of a year, and it is reported so. A longer window is the remedy, not a higher threshold.

Evidently is imported inside `detect` (the import runs its whole package: about 13 s and 280 MB once a process on two
busy cores; there is no lighter public door to its statistical tests), and its size-dependent defaults are never used.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from monitoring.feature import MAX_CATEGORIES, PREDICTED, SCORE

if TYPE_CHECKING:
    import pandas as pd

    from monitoring.feature import Feature
    from monitoring.schema import FeatureSchema

OUTPUT: Final = "prediction"
"""Name under which the model's own output is reported."""

Array = npt.NDArray[np.float64]
_Codes = npt.NDArray[np.int64]
_Distance = Callable[[npt.NDArray[np.generic], npt.NDArray[np.generic]], float]


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
    """What the score had to reach: `DriftPolicy.threshold`, or what chance gives at these sizes when that is more."""
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
    format: int = 1

    @property
    def drifted(self) -> tuple[str, ...]:
        """Names of the drifted features, in schema order, the uncounted ones too."""
        return tuple(feature.name for feature in self.features if feature.drifted)

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

    Both are canonical frames (`FeatureSchema.canonical`); columns `_score` (binary) or `_prediction`, when both have
    them with values, are compared as the pseudo-feature "prediction". They must come from the same model version, and
    the reference's from rows the model was not fitted on: a model is surer of rows it has seen.

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

    features = []
    for index, feature in enumerate(schema.features):
        rng = np.random.default_rng((seed, index))
        features.append(_feature_drift(feature, reference[feature.name], current[feature.name], policy, rng))
    prediction = _prediction_drift(reference, current, schema, policy, np.random.default_rng((seed, len(features))))

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
    return DriftReport(tuple(features), prediction, share, bool(reasons), tuple(reasons), len(reference), rows[1])


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


def _feature_drift(
    feature: Feature, reference: pd.Series[Any], current: pd.Series[Any], policy: DriftPolicy, rng: np.random.Generator
) -> FeatureDrift:
    counted = feature.name not in policy.ignored_features and (
        feature.kind != "datetime" or feature.name in policy.key_features
    )
    if feature.kind in ("numeric", "datetime"):
        values = _numbers(current)
        with np.errstate(invalid="ignore"):
            low = values < feature.minimum if feature.minimum is not None else np.zeros(len(values), bool)
            high = values > feature.maximum if feature.maximum is not None else np.zeros(len(values), bool)
        drift = _numeric_drift(feature.name, _numbers(reference), values, policy, rng)
        outside = int(np.count_nonzero(low | high))
        return msgspec.structs.replace(drift, counted=counted, outside=outside)
    old, new = _keys(reference), _keys(current)
    drift = _categorical_drift(feature.name, old, new, policy, rng)
    unseen = 0
    if feature.kind == "categorical" and len(feature.categories) < MAX_CATEGORIES:  # at the cap the list is cut
        seen = {*feature.categories, *old}
        unseen = sum(1 for key in new if key is not None and key not in seen)
    return msgspec.structs.replace(drift, counted=counted, unseen=unseen)


def _prediction_drift(
    reference: pd.DataFrame, current: pd.DataFrame, schema: FeatureSchema, policy: DriftPolicy, rng: np.random.Generator
) -> FeatureDrift | None:
    """Compare scores when both sides have them, else predictions; None when neither can be compared."""
    column = output_column(reference, current)
    if column is None:
        return None
    if column == SCORE or schema.task == "regression":
        return _numeric_drift(OUTPUT, _numbers(reference[column]), _numbers(current[column]), policy, rng)
    return _categorical_drift(OUTPUT, _keys(reference[column]), _keys(current[column]), policy, rng)


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


def _numeric_drift(
    name: str, reference: Array, current: Array, policy: DriftPolicy, rng: np.random.Generator
) -> FeatureDrift:
    old, new = reference[~np.isnan(reference)], current[~np.isnan(current)]
    missing = _Missing(len(reference), len(current), len(reference) - len(old), len(current) - len(new))
    if (shortage := _shortage(len(old), len(new), policy)) is not None:
        return _verdict(name, policy.numeric_test, None, policy.threshold, missing, shortage, policy)
    if old.min() == old.max():
        codes = np.zeros(len(old), np.int64), (new != old[0]).astype(np.int64)
        score, threshold = _score(policy.categorical_test, "cat", *codes, policy, rng)
        differing = codes[1].mean()
        note = f"constant {old[0]:g} in the reference, different in {differing:.1%} of the window" if differing else ""
        return _verdict(name, policy.categorical_test, score, threshold, missing, note, policy)
    old, new = _scaled(old, new)
    score, threshold = _score(policy.numeric_test, "num", old, new, policy, rng)
    note = "constant in the window" if new.min() == new.max() else ""
    return _verdict(name, policy.numeric_test, score, threshold, missing, note, policy)


def _categorical_drift(
    name: str, reference: list[str | None], current: list[str | None], policy: DriftPolicy, rng: np.random.Generator
) -> FeatureDrift:
    old = [key for key in reference if key is not None]
    new = [key for key in current if key is not None]
    missing = _Missing(len(reference), len(current), len(reference) - len(old), len(current) - len(new))
    if (shortage := _shortage(len(old), len(new), policy)) is not None:
        return _verdict(name, policy.categorical_test, None, policy.threshold, missing, shortage, policy)
    codes, distinct = _buckets(old, new, policy.max_categories)
    score, threshold = _score(policy.categorical_test, "cat", *codes, policy, rng)
    tail = f"{distinct} categories, all but the {policy.max_categories} most frequent in one bucket"
    note = tail if distinct > policy.max_categories else ""
    return _verdict(name, policy.categorical_test, score, threshold, missing, note, policy)


class _Missing(NamedTuple):
    """Rows of both sides, and how many of them lack the value."""

    reference_rows: int
    current_rows: int
    reference: int
    current: int

    def shares(self) -> tuple[float, float]:
        return self.reference / self.reference_rows, self.current / self.current_rows

    def error(self) -> float:
        """Standard error of the difference of the shares when they are equal (pooled two-proportion z test)."""
        pooled = (self.reference + self.current) / (self.reference_rows + self.current_rows)
        return math.sqrt(pooled * (1 - pooled) * (1 / self.reference_rows + 1 / self.current_rows))


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
    name: str, test: str, score: float | None, threshold: float, missing: _Missing, note: str, policy: DriftPolicy
) -> FeatureDrift:
    """Join the distance and the change in missing values; each must be material and beyond chance to be a cause."""
    causes = []
    if score is not None and score >= threshold:
        causes.append("distribution")
    before, after = missing.shares()
    change = abs(after - before)
    if change >= policy.missing_threshold:
        words = f"missing values went from {before:.1%} to {after:.1%}"
        note = f"{note}; {words}" if note else words
        if change > policy.noise_sigmas * missing.error():
            causes.append("missing")
    return FeatureDrift(
        name=name,
        test=test,
        score=score,
        threshold=threshold,
        drifted=bool(causes),
        note=note,
        causes=tuple(causes),
        missing_reference=before,
        missing_current=after,
    )


def _score(
    test: str,
    column_type: Literal["num", "cat"],
    old: Array | _Codes,
    new: Array | _Codes,
    policy: DriftPolicy,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Return the distance and what it has to reach at these sizes."""
    distance = _distance(test, column_type)
    score = distance(old, new)
    if score < policy.threshold or policy.noise_sigmas == 0:
        return score, policy.threshold
    if test == "wasserstein":
        splits = _wasserstein_splits(old, new, policy.permutations, rng)
    elif test == "jensenshannon" and column_type == "cat":
        splits = _jensenshannon_splits(old, new, policy.permutations, rng)
    else:
        splits = _splits(distance, old, new, policy.permutations, rng)
    # The largest split bounds false alarms at 1 in permutations + 1 whatever the distribution; for skewed columns the
    # deviation alone does not: with 10 % log-normal values and 200 rows 5 deviations were passed in 2 % of checks.
    beyond = float(splits.mean()) + policy.noise_sigmas * float(splits.std(ddof=1))
    return score, max(policy.threshold, beyond, float(splits.max()))


def _splits(
    distance: _Distance, old: Array | _Codes, new: Array | _Codes, count: int, rng: np.random.Generator
) -> Array:
    """Distances of random splits of both samples laid together, at their sizes; about 1 ms each."""
    together = np.concatenate([old, new])
    distances = np.empty(count)
    for position in range(count):
        shuffled = rng.permutation(together)
        distances[position] = distance(shuffled[: len(old)], shuffled[len(old) :])
    return distances


def _wasserstein_splits(old: Array | _Codes, new: Array | _Codes, count: int, rng: np.random.Generator) -> Array:
    """`_splits` for Evidently's normed Wasserstein distance, ten times as fast because values are sorted once."""
    values = np.sort(np.concatenate([old, new]))
    steps = np.diff(values)
    ranks = np.arange(1, len(values))
    is_old = np.arange(len(values)) < len(old)
    distances = np.empty(count)
    for position in range(count):
        rng.shuffle(is_old)
        below = np.cumsum(is_old)[:-1]
        gaps = np.abs(below / len(old) - (ranks - below) / len(new))
        distances[position] = (gaps * steps).sum() / max(float(values[is_old].std()), 0.001)  # `@` would wake threads
    return distances


def _jensenshannon_splits(old: Array | _Codes, new: Array | _Codes, count: int, rng: np.random.Generator) -> Array:
    """`_splits` for the Jensen-Shannon distance of codes, drawn as counts of each code."""
    from scipy.spatial.distance import jensenshannon

    counts = np.unique(np.concatenate([old, new]), return_counts=True)[1]
    drawn = rng.multivariate_hypergeometric(counts, len(old), size=count)
    with np.errstate(invalid="ignore"):
        distances = jensenshannon(drawn / len(old), (counts - drawn) / len(new), axis=1)
    return np.nan_to_num(np.asarray(distances, dtype=np.float64))


def _distance(test: str, column_type: Literal["num", "cat"]) -> _Distance:
    """Evidently's distance of that name as a function of two arrays."""
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing evidently imports nltk, litestar, plotly: not ours to fix
        from evidently.legacy.calculations.stattests import get_stattest
        from evidently.legacy.core import ColumnType

    kind = ColumnType(column_type)
    empty = pd.Series(dtype=float)
    stattest = get_stattest(empty, empty, kind, test)

    def distance(old: npt.NDArray[np.generic], new: npt.NDArray[np.generic]) -> float:
        with np.errstate(invalid="ignore"):
            # The threshold given here decides nothing: only the distance is read.
            score = float(stattest(pd.Series(old), pd.Series(new), kind, 0.1).drift_score)
        # scipy takes the square root of a divergence that rounding can make -1e-17 for equal samples.
        return 0.0 if np.isnan(score) else score

    return distance


def _scaled(old: Array, new: Array) -> tuple[Array, Array]:
    """Both samples in standard deviations of the reference, clipped to its 0.1 % and 99.9 % quantiles.

    One value of 1e9 among 1,000 must neither raise an alarm nor, by widening the noise, hide a real shift; it is
    counted in `FeatureDrift.outside`. Both sides are clipped alike: clipping them differently made 1 % of unmoved
    log-normal columns drift. Scaling first also avoids Evidently's floor of 0.001 on the reference's deviation, under
    which columns of small values never drift.
    """
    low, high = np.quantile(old, (0.001, 0.999))
    if low == high:  # all but a handful of rows are one value
        low, high = old.min(), old.max()
    old, new = np.clip(old, low, high), np.clip(new, low, high)
    center, deviation = old.mean(), old.std()
    return (old - center) / deviation, (new - center) / deviation


def _buckets(old: list[str], new: list[str], most: int) -> tuple[tuple[_Codes, _Codes], int]:
    """Integer codes of both samples, and how many categories there were; the rare ones share the last code.

    Ranked on both samples together, so that random splits of them meet the same buckets. By a dictionary: a NumPy
    array of text is as wide as its longest cell in every row.
    """
    code_of = {category: code for code, category in enumerate(sorted({*old, *new}))}
    codes = np.fromiter(map(code_of.__getitem__, old + new), np.int64, len(old) + len(new))
    if len(code_of) > most:
        counts = np.bincount(codes, minlength=len(code_of))
        rank = np.empty(len(code_of), np.int64)
        rank[np.argsort(-counts, kind="stable")] = np.arange(len(code_of))
        codes = np.minimum(rank, most)[codes]
    return (codes[: len(old)], codes[len(old) :]), len(code_of)


def _numbers(series: pd.Series[Any]) -> Array:
    """Float64 values; what is missing or infinite is NaN."""
    values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.isfinite(values), values, np.nan)


def _keys(series: pd.Series[Any]) -> list[str | None]:
    """Values as text; numbers and booleans alike whether they come as int, float or bool. Missing is None."""
    return [
        None if missing else (value if isinstance(value, str) else repr(float(value)))
        for value, missing in zip(series.tolist(), series.isna().tolist(), strict=True)
    ]


def _words(drift: FeatureDrift) -> str:
    return f"{drift.test} {drift.score:.3f} over {drift.threshold:.3f}" if drift.score is not None else drift.test
