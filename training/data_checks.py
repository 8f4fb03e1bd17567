"""Is what has come since the last training fit to learn from? Each check compares the new rows with schema and past.

New are the record's rows that are later than those the champion was fitted to; the past are all others of the snapshot.
A first version has no past: only a leak is looked for, and said. Nothing is deleted: rows in quarantine stay in the
record and in the snapshot, they are left out of one training, and looked at again by the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from monitoring.feature import AT, LABEL, ORIGIN
from monitoring.wording import percent
from training.leak import MEASURE, tells
from training.manifest import DataFinding
from training.spec import JobError

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from monitoring.feature import Feature
    from monitoring.schema import FeatureSchema

    Mask = npt.NDArray[np.bool_]

OnRows = Literal["warn", "quarantine", "stop"]
OnAll = Literal["warn", "stop"]
"""For what concerns no single rows, so that none can be left out."""

FEW: Final = 100
"""New rows, and rows of the past, below which neither shares nor leaks are told from chance."""
EXPECTED: Final = 10
"""Rows of a class that the past makes one expect: so many are missing by chance once in 20,000 times."""
LOOKED_AT: Final = 20_000
"""Newest rows from which it is judged what a feature tells of the label."""
SHOWN: Final = 5


class DataCheckPolicy(BaseModel):
    """What is done about rows, or a whole stretch of them, that are unlike schema and past."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    types: Literal["quarantine", "stop"] = Field(
        "quarantine",
        description="action; rows of the record with values of other types than the schema's, which no model can take: "
        "they are left out, or stop the training when they are more than `max_unfit`",
    )
    max_unfit: float = Field(0.05, ge=0, le=1, description="share of the record's rows; more of other types are told")
    ranges: OnRows = Field(
        "warn", description="action; rows with a number far outside what the champion was fitted to (`range_reach`)"
    )
    range_reach: float = Field(
        1.0, ge=0, description="times the known range; how far beyond it a number may lie: streams grow"
    )
    missing: OnRows = Field(
        "warn", description="action; a feature that is missing much more often than before (`missing_rise`)"
    )
    missing_rise: float = Field(0.2, gt=0, le=1, description="share of the new rows; a smaller rise is not told")
    duplicates: OnRows = Field(
        "warn", description="action; rows that repeat others, label included, much more often than before"
    )
    duplicate_rise: float = Field(0.2, gt=0, le=1, description="share of the new rows; a smaller rise is not told")
    leak: OnAll = Field(
        "stop", description="action; a feature that now tells the label alone, and did not before (`leak_above`)"
    )
    leak_above: float = Field(
        0.99,
        gt=0,
        le=1,
        description="accuracy above guessing, or R², of one feature alone; a first version is only warned",
    )
    classes: OnAll = Field("warn", description="action; a class that was to be expected among the new rows and is gone")
    label_shift: OnAll = Field(
        "warn", description="action; labels whose shares, or mean, moved suddenly (`label_shift_above`)"
    )
    label_shift_above: float = Field(
        0.2,
        gt=0,
        description="share of the labels (standard deviations of a quantity); less is not told, nor what stretches of "
        "the past differ among themselves",
    )
    max_quarantine: float = Field(
        0.2,
        ge=0,
        le=1,
        description="share of the new rows; when more would be left out, the training is stopped",
    )


class Looked(NamedTuple):
    """What the checks found, and the positions of the rows that are left out, in order."""

    findings: tuple[DataFinding, ...]
    left_out: npt.NDArray[np.intp]


class DataStopped(JobError):
    """Raised when a data check stops a training; `findings` are those of all checks."""

    def __init__(self, findings: tuple[DataFinding, ...]) -> None:
        self.findings = findings
        stopping = [found for found in findings if found.action == "stop"]
        said = "; ".join(f"{found.check}: {found.words}" for found in stopping)
        first = stopping[0].check
        super().__init__(
            f"the data checks stopped the training, the champion stays: {said}; look at what sends these rows, "
            f'or have them train all the same with data_checks.{first} = "warn"'
        )


def notes(findings: tuple[DataFinding, ...]) -> tuple[str, ...]:
    """The findings as sentences for the run."""
    return tuple(f"data check {found.check}: {found.words}" for found in findings)


def look(
    frame: pd.DataFrame,
    schema: FeatureSchema,
    policy: DataCheckPolicy,
    *,
    champion_until: float | None,
    unfit_rows: int = 0,
) -> Looked:
    """All findings on a snapshot frame, and which rows are left out.

    `champion_until`: `_at` of the last record row that the champion was fitted to; None for a first version.
    `unfit_rows` of the record did not fit the schema and are not in the frame. Raises `DataStopped`.
    """
    if champion_until is None:
        findings = tuple(found for found, _ in _leaks(frame, None, schema, policy, "warn"))
        return Looked(findings, np.empty(0, dtype=np.intp))
    recorded = (frame[ORIGIN] == "record").to_numpy()
    new = recorded & (frame[AT].to_numpy() > champion_until)
    present, past = frame[new], frame[~new]
    found = [
        *_types(unfit_rows, int(recorded.sum()), policy),
        *_ranges(present, schema, policy),
        *_missing(present, past, schema, policy),
        *_duplicates(present, past, schema, policy),
        *_leaks(present, past, schema, policy, policy.leak),
        *_classes(present, past, schema, policy),
        *_label_shift(present, past, schema, policy),
    ]
    at = np.flatnonzero(new)
    out = np.zeros(len(frame), dtype=bool)
    for finding, rows in found:
        if finding.action == "quarantine" and rows is not None:
            out[at[rows]] = True
    findings = tuple(finding for finding, _ in found)
    left_out = np.flatnonzero(out)
    if len(left_out) > policy.max_quarantine * len(present):
        words = (
            f"{len(left_out):,} of {len(present):,} new rows would be left out, more than "
            f"{percent(policy.max_quarantine)}"
        )
        share = len(left_out) / len(present)
        findings += (DataFinding("max_quarantine", "stop", words, len(left_out), share, policy.max_quarantine),)
    if any(finding.action == "stop" for finding in findings):
        raise DataStopped(findings)
    return Looked(findings, left_out)


# -- checks: each a finding, and which of the new rows it is about (None: all, or none of them) ----------------------

Found = tuple[DataFinding, "Mask | None"]


def _types(unfit: int, taken: int, policy: DataCheckPolicy) -> Iterator[Found]:
    share = unfit / max(1, unfit + taken)
    if share > policy.max_unfit:
        words = f"{unfit:,} of {unfit + taken:,} rows of the record do not fit the schema's types and were left out"
        yield DataFinding("types", policy.types, words, unfit, share, policy.max_unfit), None


def _ranges(present: pd.DataFrame, schema: FeatureSchema, policy: DataCheckPolicy) -> Iterator[Found]:
    for feature in schema.features:
        if feature.kind not in ("numeric", "datetime") or feature.minimum is None or feature.maximum is None:
            continue
        reach = policy.range_reach * (feature.maximum - feature.minimum)
        values = present[feature.name].to_numpy(dtype=np.float64)
        far = (values < feature.minimum - reach) | (values > feature.maximum + reach)  # a missing one is neither
        if far.any():
            known = f"{feature.minimum:.6g} to {feature.maximum:.6g}"
            worst = values[far][np.argmax(np.abs(values[far]))]
            words = (
                f"{feature.name!r} is far outside of {known} in {int(far.sum()):,} of {len(values):,} new rows, "
                f"such as {worst:.6g}"
            )
            yield _finding("ranges", policy.ranges, words, far, float(far.mean()), 0.0)


def _missing(
    present: pd.DataFrame, past: pd.DataFrame, schema: FeatureSchema, policy: DataCheckPolicy
) -> Iterator[Found]:
    if min(len(present), len(past)) < FEW:
        return
    for name in schema.names:
        gone = present[name].isna().to_numpy()
        now, before = float(gone.mean()), float(past[name].isna().mean())
        if now - before > policy.missing_rise:
            words = f"{name!r} is missing in {percent(now)} of {len(gone):,} new rows, before in {percent(before)}"
            yield _finding("missing", policy.missing, words, gone, now - before, policy.missing_rise)


def _duplicates(
    present: pd.DataFrame, past: pd.DataFrame, schema: FeatureSchema, policy: DataCheckPolicy
) -> Iterator[Found]:
    if min(len(present), len(past)) < FEW:
        return
    columns = [*schema.names, LABEL]
    rows = min(len(present), len(past))  # the more rows there are, the more of them are alike
    again = present.duplicated(columns).to_numpy()
    now = float(present.tail(rows).duplicated(columns).mean())
    before = float(past.tail(rows).duplicated(columns).mean())
    if now - before > policy.duplicate_rise:
        words = (
            f"{int(again.sum()):,} of {len(again):,} new rows repeat another one, label included; of as many rows "
            f"before {percent(before)} did"
        )
        yield _finding("duplicates", policy.duplicates, words, again, now - before, policy.duplicate_rise)


def _leaks(
    present: pd.DataFrame, past: pd.DataFrame | None, schema: FeatureSchema, policy: DataCheckPolicy, action: OnAll
) -> Iterator[Found]:
    regression = schema.task == "regression"
    present = present.tail(LOOKED_AT)
    if len(present) < FEW:
        return
    aim = _aim(present, schema)
    if not regression and np.sort(np.bincount(aim, minlength=2))[:-1].sum() < EXPECTED:
        return  # with hardly any other label, guessing is nearly perfect, too
    for feature in schema.features:
        now = tells(_numbers(present, feature), aim, regression)
        if now <= policy.leak_above:
            continue
        words = f"{feature.name!r} alone tells the label ({MEASURE[regression]} {now:.3f} on {len(present):,} new rows"
        if past is not None and len(past) >= FEW:
            earlier = past.tail(LOOKED_AT)
            before = tells(_numbers(earlier, feature), _aim(earlier, schema), regression)
            if before > policy.leak_above or 1 - now > 0.5 * (1 - before):
                continue  # it always did, or nearly
            words += f", before {before:.3f}"
        words += "): it may not be known when predicting"
        yield DataFinding("leak", action, words, len(present), now, policy.leak_above), None


def _classes(
    present: pd.DataFrame, past: pd.DataFrame, schema: FeatureSchema, policy: DataCheckPolicy
) -> Iterator[Found]:
    for value, before in zip(schema.classes, _shares(past, schema), strict=True):
        expected = before * len(present)
        if expected >= EXPECTED and not (present[LABEL] == value).any():
            words = f"no new row of {len(present):,} has the label {value!r}, which {percent(before)} had before"
            yield DataFinding("classes", policy.classes, words, 0, 0.0, expected / len(present)), None


def _label_shift(
    present: pd.DataFrame, past: pd.DataFrame, schema: FeatureSchema, policy: DataCheckPolicy
) -> Iterator[Found]:
    if min(len(present), len(past)) < FEW:
        return
    moved = _apart(present, past, schema)
    size = min(len(present), len(past) // 2)
    stretches = [past.iloc[stop - size : stop] for stop in range(len(past), size - 1, -size)]
    usual = max((_apart(each, past.drop(each.index), schema) for each in stretches), default=0.0)
    limit = max(policy.label_shift_above, usual)
    if moved <= limit:
        return
    unit = "standard deviations" if schema.task == "regression" else "of all labels"
    if schema.task == "regression":
        how = f"mean {past[LABEL].mean():.6g} before, {present[LABEL].mean():.6g} now"
    else:
        pairs = zip(schema.classes, _shares(past, schema), _shares(present, schema), strict=True)
        most = sorted(pairs, key=lambda one: -abs(one[2] - one[1]))[:SHOWN]
        how = ", ".join(f"{value!r} {percent(then)} before, {percent(now)} now" for value, then, now in most)
    words = (
        f"the labels of {len(present):,} new rows moved by {moved:.2f} {unit} ({how}); stretches of the past differ by "
        f"up to {usual:.2f}"
    )
    yield DataFinding("label_shift", policy.label_shift, words, len(present), moved, limit), None


def _finding(check: str, action: OnRows, words: str, rows: Mask, value: float, limit: float) -> Found:
    words += ": left out" if action == "quarantine" else ""
    return DataFinding(check, action, words, int(rows.sum()), value, limit), rows


def _apart(some: pd.DataFrame, others: pd.DataFrame, schema: FeatureSchema) -> float:
    """How far labels differ: total variation of the classes' shares; the means' distance in standard deviations."""
    if schema.task == "regression":
        spread = float(others[LABEL].std()) or 1.0
        return abs(float(some[LABEL].mean()) - float(others[LABEL].mean())) / spread
    pairs = zip(_shares(some, schema), _shares(others, schema), strict=True)
    return sum(abs(one - other) for one, other in pairs) / 2


def _shares(frame: pd.DataFrame, schema: FeatureSchema) -> list[float]:
    """Of each class, in the schema's order."""
    return [float((frame[LABEL] == value).mean()) if len(frame) else 0.0 for value in schema.classes]


def _aim(frame: pd.DataFrame, schema: FeatureSchema) -> npt.NDArray[Any]:
    """The labels as numbers; those of no class of the schema are one more class."""
    if schema.task == "regression":
        return np.asarray(frame[LABEL], dtype=np.float64)
    position = {value: at for at, value in enumerate(schema.classes)}
    return np.array([position.get(label, len(position)) for label in frame[LABEL].tolist()], dtype=np.int64)


def _numbers(frame: pd.DataFrame, feature: Feature) -> npt.NDArray[np.float64]:
    import pandas as pd

    column = frame[feature.name]
    if feature.kind != "categorical":
        return np.asarray(column, dtype=np.float64)
    codes = pd.factorize(column.astype(object).where(column.notna(), None), use_na_sentinel=False)[0]
    return np.asarray(codes, dtype=np.float64)
