"""Which rows of a snapshot train and which judge.

Interleaved blocks: every n-th block of consecutive rows of the newest stretch judges, the rows around it train. So a
candidate is judged on rows that it was not fitted to and that are as new as those it was: one tail at the end would
cost the newest rows, which matter most.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from monitoring.feature import AT, LABEL, ORIGIN
from training.families import OWN_PIPELINE
from training.manifest import Holdout
from training.spec import JobError

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from monitoring.schema import FeatureSchema


Family = Literal["boosting", "forest", "extra_trees", "linear"]


class TrainPolicy(BaseModel):
    """Which rows a challenger learns from and is judged on, and how long it may look for its parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    block_rows: int = Field(
        50, ge=1, description="consecutive rows that judge together: neighbours resemble each other"
    )
    judge_every: int = Field(
        4, ge=2, le=20, description="blocks; of the newest stretch one in so many judges and does not train"
    )
    first_stretch: float = Field(
        0.5, gt=0, le=1, description="share; of the source's rows, the newest ones whose blocks judge a first version"
    )
    purge_s: float = Field(
        0.0,
        ge=0,
        description="seconds around a judging block whose rows do not train; as long as a label looks ahead, when the "
        "labels of neighbouring rows overlap in time",
    )
    max_holdout_rows: int = Field(
        20_000, ge=20, description="rows that judge at most; more settle nothing and cost time"
    )
    last_fit: bool = Field(
        True,
        description="switch; what goes into service is fitted once more, to all rows, with the judged parameters; off "
        "serves the judged model itself, byte for byte",
    )
    max_rows: int = Field(100_000, ge=100, description="rows; the newest that a training reads, bounds time and memory")
    min_rows: int = Field(100, ge=20, description="rows; a model is not fitted to fewer")
    window_shares: tuple[float, ...] = Field(
        (0.25,), description="shares of the rows; recent windows tried besides all rows, the newest of each"
    )
    window_sigmas: float = Field(
        8.0, ge=0, description="standard errors by which a recent window must beat all rows; fewer are often luck"
    )
    inner_share: float = Field(
        0.2, gt=0, lt=0.9, description="share of the newest training rows on which parameters are compared"
    )
    trials: int = Field(
        0, ge=0, le=10_000, description="number; sets of parameters that a search tries at most, 0: no search"
    )
    tune_seconds: float = Field(
        300.0, gt=0, description="seconds; no fit of a search begins later than this; what it had tried by then counts"
    )
    families: tuple[Family, ...] = Field(
        ("boosting", "linear", "extra_trees", "forest"),
        min_length=1,
        description="kinds of models that a search tries; forests take several times as long as boosting",
    )
    pipeline: str = Field(
        "",
        description="`mypkg.module:function` of an installed package; what `function(schema, seed)` returns is trained "
        "in place of all families, without a search (empty: none)",
    )
    backend: Literal["local", "dask"] = Field(
        "local",
        description="where the trials of a search are fitted; dask: by the workers of a cluster (extra `dask`)",
    )
    scheduler_address: str = Field("", description="`tcp://host:8786`; the Dask scheduler, with backend dask")
    reference_rows: int = Field(5000, ge=100, description="rows; the newest known ones, with which drift compares")

    @field_validator("pipeline")
    @classmethod
    def _names_a_function(cls, pipeline: str) -> str:
        if pipeline and not re.fullmatch(OWN_PIPELINE, pipeline):
            raise ValueError(f"{pipeline!r} names no function: write `mypkg.module:function`")
        return pipeline

    @model_validator(mode="after")
    def _a_cluster_has_an_address(self) -> TrainPolicy:
        if self.backend == "dask" and not self.scheduler_address:
            raise ValueError('backend "dask" needs `scheduler_address`, such as tcp://host:8786')
        return self


class Split(msgspec.Struct, frozen=True):
    """Positions in the snapshot, in time order: rows that may train, rows that judge, and all that may be learnt."""

    train: Any
    holdout: Any
    all: Any
    """What the last fit learns from: `train`, `holdout` and what was purged between them."""
    origin: str
    """Of the holdout: "record", "source" or both."""
    left_out: Any = ()
    """In quarantine: in none of the others."""

    def besides(self, left_out: npt.NDArray[np.intp], least: int) -> Split:
        """The same without rows in quarantine. Raises `JobError` when fewer than `least` are left to judge."""
        train, holdout, every = (rows[~np.isin(rows, left_out)] for rows in (self.train, self.holdout, self.all))
        if len(holdout) < least:
            raise JobError(
                f"{len(holdout)} rows are left to judge beside {len(left_out)} in quarantine, {least} are needed: wait "
                "for more labels, or see what the data checks found"
            )
        return Split(train, holdout, every, self.origin, left_out)


def split(
    frame: pd.DataFrame,
    schema: FeatureSchema,
    policy: TrainPolicy,
    min_holdout_rows: int,
    *,
    champion_until: float = 0.0,
    first: bool = False,
) -> Split:
    """Which rows of a snapshot frame train and which judge.

    The newest stretch are the record rows later than `champion_until`, so that the champion was not fitted to them
    either; for a `first` version the newest `first_stretch` of all rows. Raises `JobError` when it has fewer than
    `min_holdout_rows` rows, or when too few are left to train on.
    """
    learnable = usable(frame, schema)
    if first:
        known = np.flatnonzero(learnable)
        stretch = known[-max(math.ceil(policy.first_stretch * len(known)), 1) :]
    else:
        fresh = (frame[ORIGIN] == "record").to_numpy() & (frame[AT].to_numpy() > champion_until)
        stretch = np.flatnonzero(fresh)
        if len(stretch) < min_holdout_rows:
            raise JobError(
                f"there are {len(stretch)} labelled record rows newer than the champion's training data, judging alone "
                f"needs {min_holdout_rows}: wait for more labels"
            )
    holdout = interleaved(stretch, policy, min_holdout_rows)
    known = np.flatnonzero(learnable)[-policy.max_rows :]
    train = without(known, holdout, frame, policy)
    if len(train) < policy.min_rows:
        raise JobError(
            f"{len(train)} rows are left to train on beside the {len(holdout)} that judge, {policy.min_rows} are "
            "needed: wait for more labels, or give more source data"
        )
    return Split(train, holdout, known, " and ".join(sorted(set(frame[ORIGIN].iloc[holdout]))))


def without(
    rows: npt.NDArray[np.intp], left_out: npt.NDArray[np.intp], frame: pd.DataFrame, policy: TrainPolicy
) -> npt.NDArray[np.intp]:
    """Those of `rows` that may be learnt when `left_out` is to stay unseen; all are positions in the frame."""
    seen = ~np.isin(rows, left_out)
    if policy.purge_s:
        seen &= ~_near(frame[AT].to_numpy()[rows], frame[AT].to_numpy()[left_out], policy.purge_s)
    return rows[seen]


def interleaved(stretch: npt.NDArray[np.intp], policy: TrainPolicy, at_least: int) -> npt.NDArray[np.intp]:
    """Every n-th block of these positions, counted from the newest; more densely when that gives too few rows."""
    every = policy.judge_every
    while every > 2 and len(stretch) / every < at_least:
        every -= 1
    blocks = np.arange(len(stretch) - 1, -1, -1) // policy.block_rows
    chosen: npt.NDArray[np.intp] = stretch[blocks % every == 0][-max(policy.max_holdout_rows, at_least) :]
    return chosen


def champions_holdout(
    frame: pd.DataFrame, then: Holdout, policy: TrainPolicy, at_least: int, reason: str
) -> tuple[Split, str]:
    """Rows of the stretch the champion was judged on, for when the record has too few newer ones.

    `then` is its holdout as its manifest has it, `reason` why there are too few newer rows. With the rows comes a note
    that says so: a champion fitted once more to all rows knows them, and looks better than it is. Raises `JobError`.
    """
    if "source" not in then.origin:
        raise JobError(f"{reason}; and the champion's own holdout was not of the source data")
    at = frame[AT].to_numpy()
    inside = (at >= then.since) & (at <= then.until) & (frame[ORIGIN] == "source").to_numpy()
    stretch = np.flatnonzero(inside)
    if len(stretch) < at_least:
        raise JobError(f"{reason}; and {len(stretch)} rows of the champion's own holdout are in the snapshot")
    holdout = interleaved(stretch, policy, at_least)
    everything = np.arange(len(frame))
    rows = Split(np.setdiff1d(everything, holdout), holdout, everything, "source")
    return rows, f"{reason}; judged on {len(holdout)} rows of the stretch that the champion itself was judged on"


def holdout_facts(frame: pd.DataFrame, rows: Split) -> dict[str, Any]:
    """What a manifest says of the rows that judged."""
    first, last = int(rows.holdout[0]), int(rows.holdout[-1])
    return {
        "rows": len(rows.holdout),
        "from": float(frame[AT].iloc[first]),
        "until": float(frame[AT].iloc[last]),
        "origin": rows.origin,
        "start": first,
        "stop": last + 1,
    }


def known_rows(frame: pd.DataFrame, rows: Split, policy: TrainPolicy) -> pd.DataFrame:
    """The newest rows up to the last that judged, at most `reference_rows`; the column `_holdout` marks those.

    Without those in quarantine.
    """
    marked = np.zeros(len(frame), dtype=bool)
    marked[rows.holdout] = True
    kept = np.setdiff1d(np.arange(int(rows.holdout[-1]) + 1), np.asarray(rows.left_out, dtype=np.intp))
    return frame.assign(_holdout=marked).iloc[kept].tail(policy.reference_rows)


def _near(at: npt.NDArray[np.float64], judged: npt.NDArray[np.float64], seconds: float) -> npt.NDArray[np.bool_]:
    """Whether each moment lies within so many seconds of one of `judged`, which are in order."""
    after = np.searchsorted(judged, at - seconds, side="left")
    before = np.searchsorted(judged, at + seconds, side="right")
    return np.asarray(before > after)


def usable(frame: pd.DataFrame, schema: FeatureSchema) -> npt.NDArray[np.bool_]:
    """Which rows have a label that the schema knows: one boolean a row."""
    if schema.task == "regression":
        return np.ones(len(frame), dtype=bool)
    known: npt.NDArray[np.bool_] = frame[LABEL].isin(list(schema.classes)).to_numpy(dtype=bool)
    return known
