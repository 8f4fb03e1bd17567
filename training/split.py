"""Which rows of a snapshot train and which judge, and the windows of them that are tried."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from monitoring.feature import AT, LABEL, ORIGIN
from training.manifest import Holdout
from training.spec import JobError

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from monitoring.schema import FeatureSchema
    from training.gates import GatePolicy


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


class Rows(msgspec.Struct, frozen=True):
    """Positions in the snapshot: the rows that may train (in time order), and the holdout."""

    train: Any
    holdout: Any
    origin: str  # of the holdout: "record", "source" or both


class Window(msgspec.Struct, frozen=True):
    """The newest `rows` of the training rows."""

    name: str
    rows: int


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
    train = np.flatnonzero(usable(frame, schema) & (np.arange(len(frame)) < holdout[0]))
    if len(train) < policy.min_rows:
        raise JobError(
            f"{len(train)} rows are left to train on before the holdout of {rows}, {policy.min_rows} are needed: "
            "wait for more labels, or give more source data"
        )
    origins = sorted(set(frame[ORIGIN].iloc[holdout]))
    return Rows(train, holdout, " and ".join(origins))


def champions_holdout(frame: pd.DataFrame, then: Holdout, gates: GatePolicy, reason: str) -> tuple[Rows, str]:
    """The rows the champion was judged on, for when the record has too few newer ones: it was not fitted to them.

    `then` is its holdout as its manifest has it, `reason` why there are too few newer rows. With the rows comes a
    note that says so. Raises `JobError`.
    """
    if "source" not in then.origin:
        raise JobError(f"{reason}; and the champion's own holdout was not of the source data")
    at = frame[AT].to_numpy()
    inside = (at >= then.since) & (at <= then.until) & (frame[ORIGIN] == "source").to_numpy()
    holdout = np.flatnonzero(inside)
    if len(holdout) < gates.min_holdout_rows:
        raise JobError(f"{reason}; and {len(holdout)} rows of the champion's own holdout are in the snapshot")
    train = np.flatnonzero(np.arange(len(frame)) < holdout[0])
    return Rows(train, holdout, "source"), f"{reason}; judged on the {len(holdout)} rows of the champion's own holdout"


def holdout_facts(holdout: pd.DataFrame, rows: Rows) -> dict[str, Any]:
    """What a manifest says of the holdout."""
    return {
        "rows": len(holdout),
        "from": float(holdout[AT].iloc[0]),
        "until": float(holdout[AT].iloc[-1]),
        "origin": rows.origin,
        "start": int(rows.holdout[0]),
        "stop": int(rows.holdout[-1]) + 1,
    }


def known_rows(known: pd.DataFrame, holdout_rows: int, policy: TrainPolicy) -> pd.DataFrame:
    """The newest rows of training and holdout, at most `reference_rows`; the column `_holdout` marks which is which."""
    marked = known.assign(_holdout=np.arange(len(known)) >= len(known) - holdout_rows)
    return marked.tail(max(policy.reference_rows, 1))


def inner_split(training: pd.DataFrame, policy: TrainPolicy) -> int:
    """How many of the newest training rows compare windows and parameters; 0 when there are too few for that."""
    recorded = int((training[ORIGIN] == "record").sum())
    rows = int(policy.inner_share * (recorded if recorded >= 5 * policy.min_rows else len(training)))
    rows = min(max(rows, 50), policy.max_holdout_rows)
    return rows if len(training) - rows >= policy.min_rows else 0


def windows_of(training: pd.DataFrame, policy: TrainPolicy) -> list[Window]:
    """All training rows, and the shares of the record among them that differ enough to be worth a fit."""
    recorded = int((training[ORIGIN] == "record").sum())
    sizes = {len(training): "all rows"}
    for share in policy.window_shares:
        rows = int(share * recorded)
        if policy.min_rows <= rows < 0.9 * len(training) and all(abs(rows - s) > 0.05 * s for s in sizes):
            sizes[rows] = "the record" if share == 1 else f"the newest {share:.0%} of the record"
    return [Window(name, rows) for rows, name in sizes.items()]


def usable(frame: pd.DataFrame, schema: FeatureSchema) -> npt.NDArray[np.bool_]:
    """Which rows have a label that the schema knows: one boolean a row."""
    if schema.task == "regression":
        return np.ones(len(frame), dtype=bool)
    known: npt.NDArray[np.bool_] = frame[LABEL].isin(list(schema.classes)).to_numpy(dtype=bool)
    return known
