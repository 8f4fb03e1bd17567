"""What a job is given and what it gives back: values that cross between two processes as JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from monitoring.errors import EvergreenError
from monitoring.files import write_atomically
from monitoring.verdict import QualityVerdict
from training.adaptation import decode
from training.artefact import plain
from training.experts import Made
from training.manifest import DataFinding, HoldoutQuality, TriedWindow, Verdict
from training.phases import Phase

RESULT: Final = "result.json"
DRAWN: Final = "report.html"
START: Final = "adaptation"
"""Beside the output folder: `adaptation.served` and `adaptation.whole`."""


class JobError(EvergreenError, RuntimeError):
    """Raised when a training or a judgement cannot be done; the message says what it lacked."""


class JobSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to do, complete: nothing is read from settings or the environment."""

    kind: Literal["train", "judge", "adapt", "report"]
    out: str  # folder for the artefact and result.json, made when absent
    snapshot: str  # Parquet file of a snapshot frame (training.data)
    schema: str | dict[str, Any]  # path of a schema.json, or its content
    name: str = "model"
    champion: str | None = None  # artefact folder
    champion_until: float = 0.0  # `_at` of the last record row the champion was fitted to; 0: none of the record
    served: str | None = None  # .npy beside the snapshot: what the champion served for each row, NaN where it did not
    own: str | None = None  # adapt: .npy with which rows of the snapshot the champion answered; None: all
    trusted_holdout: str | None = None  # Parquet file of a snapshot frame: rows whose labels only the owner writes
    delay_s: float = 0.0  # train: seconds from an answer to its label
    waiting: int = 0  # rows that were answered so lately that their labels are not known
    due: bool = False  # not probably worse is enough; else it must be probably better
    pushed: str | None = None  # judge: path of the skops or ONNX file
    pushed_until: float | None = None  # judge: `_at` after which it learnt nothing; None: not known
    training: dict[str, Any] = {}  # TrainPolicy
    data_checks: dict[str, Any] = {}  # DataCheckPolicy
    unfit_rows: int = 0  # of the record, that fit the schema not and so are not in the snapshot
    gates: dict[str, Any] = {}  # GatePolicy
    adapt: dict[str, Any] = {}  # AdaptPolicy
    quality: dict[str, Any] = {}  # QualityPolicy
    answered_before: int = 0  # adapt: matured rows that the champion answered before those of the snapshot
    standing: dict[str, float] = {}  # what each expert has been worth; to a new version, half of it
    answered_by: dict[int, str] = {}  # adapt: number of an adaptation -> file with it and every expert
    unseen: str | None = None  # adapt: the snapshot of the champion's `unseen.npz`; None: it is not used
    scored_until: float = 0.0  # adapt: `_at` of the last row whose label has counted for `standing`
    reference: str | None = None  # report: Parquet file of what the snapshot is compared with
    drift: dict[str, Any] = {}  # report: DriftReport, as the check's row has it
    heading: str = ""  # report: what the page is of
    parameters: dict[str, Any] = {}  # families.Parameters: where a search starts; {}: at the champion's
    studies: str | None = None  # folder where a search keeps its trials, so that one that was killed goes on
    trusted: tuple[str, ...] = ()  # types beyond training.known_types
    seed: int = 0
    threads: int = 1
    memory_mb: int = 0  # of private memory; 0: unbounded
    nice: int = 10
    origin: str = "retrain"  # bootstrap | retrain | push
    created_at: float = 0.0  # seconds since 1970 UTC
    git: str | None = None  # revision of the program
    version: str | None = None  # the pusher's own label


class Adapted(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an adaptation. Losses are log loss in nats, or the mean squared error."""

    made: bool  # False: too few rows
    rows: int = 0  # matured rows it was made from
    standing: dict[str, float] = {}
    weights: dict[str, float] = {}
    slope: float = 1.0  # by how much the served output follows the raw one; negative: it says the opposite
    moved: float = 0.0  # root mean square of the way from raw to served: logits, or the champion's errors
    compared: int = 0  # matured rows that an adaptation answered
    raw_loss: float | None = None  # on these
    served_loss: float | None = None
    harm: str = ""  # in what the served output is surely worse than the raw one; "" in nothing
    raw: QualityVerdict | None = None  # what these rows say of the champion's own output


class JobResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a job. `passed` only when `ok`; `error` only when not."""

    ok: bool
    passed: bool = False
    verdict: Verdict | None = None
    error: str | None = None
    quality: HoldoutQuality | None = None
    windows: tuple[TriedWindow, ...] = ()
    seconds: float = 0.0
    until: float = 0.0  # `_at` of the last record row the challenger was fitted to: the next champion_until
    notes: tuple[str, ...] = ()
    data_checks: tuple[DataFinding, ...] = ()
    phases: tuple[Phase, ...] = ()
    adapted: Adapted | None = None  # of a job of kind "adapt"


def write_result(out: Path, result: JobResult) -> None:
    """Leave the result in the output folder, whole or not at all."""
    content = json.dumps(plain(msgspec.to_builtins(result)), indent=2, allow_nan=False)
    write_atomically(out / RESULT, content.encode())


def read_result(out: Path) -> JobResult | None:
    """The result in an output folder; None when the job left none, that is when it was killed."""
    try:
        return msgspec.json.decode((out / RESULT).read_bytes(), type=JobResult)
    except FileNotFoundError:
        return None


def write_made(made: Made, out: Path) -> None:
    """Leave an adaptation beside a job's output folder, for `read_made`."""
    for name, one in made._asdict().items():
        write_atomically(out.with_name(f"{START}.{name}"), one.encode())


def read_made(out: Path) -> Made | None:
    """The adaptation that a job left beside its output folder; None when it made none."""
    try:
        return Made(*(decode(out.with_name(f"{START}.{name}").read_bytes()) for name in Made._fields))
    except FileNotFoundError:
        return None
