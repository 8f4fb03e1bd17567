"""What is stored of a version and of a run: the manifest and the record, as their readers see them.

Both are JSON objects. What another release wrote and this one does not know stays in `document`, and goes back with it.
Each has a number of its format, 1 when it has none: bump it when a reader of the old one would go wrong, and keep
reading the old ones. Imported by API workers: msgspec only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeVar

import msgspec

from monitoring.errors import CannotGoOn

MANIFEST_FORMAT: Final = 1
RECORD_FORMAT: Final = 1
"""While it is 1 it is not written: a record without a format has format 1."""
NO_ACTION: Final = "no_action"
"""Outcome of a run that changed nothing, such as a check that decided against training."""


class FormatError(CannotGoOn, RuntimeError):
    """Raised when a manifest, or the record of a run, was written by a newer release or is not one."""


# -- both -----------------------------------------------------------------------------------------------------------


class GateResult(msgspec.Struct, frozen=True):
    """One gate: what it measured, what it asked for, and why it passed or not, in words with numbers."""

    name: str
    passed: bool
    value: float | None
    threshold: float | None
    reason: str


class Verdict(msgspec.Struct, frozen=True):
    """Whether the challenger may be promoted: when every gate passed."""

    passed: bool
    gates: tuple[GateResult, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons of the gates that failed; of all gates when none did."""
        return tuple(gate.reason for gate in self.gates if not gate.passed) or tuple(g.reason for g in self.gates)


class HoldoutQuality(msgspec.Struct, frozen=True, kw_only=True):
    """The metric that decides, of both models on the same holdout; None where it is undefined."""

    metric: str = ""
    challenger: float | None = None
    champion: float | None = None  # None: there was none
    rows: int = 0
    error: float | None = None  # standard error of the challenger's
    metrics: dict[str, float | None] = {}  # the challenger's others


class DataFinding(msgspec.Struct, frozen=True):
    """What a data check found in the rows that a training was to learn from, and what was done about it."""

    check: str
    action: Literal["warn", "quarantine", "stop"]
    words: str
    rows: int = 0  # that it is about
    value: float | None = None
    limit: float | None = None


class TriedWindow(msgspec.Struct, frozen=True):
    """The newest `rows` of what may be learnt, and how much better than all rows they were on the judging rows."""

    name: str
    rows: int
    sigmas: float | None = None  # standard errors; None: not compared, or undefined
    chosen: bool = False


# -- a check -----------------------------------------------------------------------------------------------------


class Slice(msgspec.Struct, frozen=True):
    """One group of rows."""

    name: str
    sensitive: bool
    rows: int
    value: float
    error: float
    """Standard error."""


class Slices(msgspec.Struct, frozen=True):
    """What the labels say of the champion's answers by group; the metric is larger where it is better."""

    metric: str
    rows: int
    value: float | None
    """Of all rows; None where these do not define it."""
    groups: tuple[Slice, ...]
    """The worst first, then the sensitive ones that are not among these."""


# -- the manifest of a version --------------------------------------------------------------------------------------


class Parity(msgspec.Struct, frozen=True):
    """How a pipeline and its twin compare; `agrees` False means that there is no twin, and `reason` says why."""

    rows: int
    max_abs_difference: float | None
    agrees: bool
    reason: str


class Column(msgspec.Struct, frozen=True):
    """One column of a twin's matrix: a number as it is, or (with `codes`) the number of a category."""

    feature: str
    codes: dict[str, float] | None = None
    unknown: float | None = None  # None: NaN, which JSON cannot carry
    missing: float | None = None


class Input(msgspec.Struct, frozen=True):
    """One input of a twin that reads columns."""

    feature: str
    input: str
    type: Literal["float", "string"]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How a decoded request becomes what the ONNX model reads: one matrix, or one input a column."""

    layout: Literal["matrix", "columns"]
    output: str
    row_by_row: bool = False  # whether a row's answer is the same to the last bit whatever is predicted with it
    input: str = ""
    columns: tuple[Column, ...] = ()
    dtype: Literal["float32", "float64"] = "float32"
    inputs: tuple[Input, ...] = ()
    missing_category: str = ""


class Place(msgspec.Struct, frozen=True):
    """The window learnt from: the snapshot's rows from `start` up to, without, `stop` that can be used."""

    name: str
    rows: int
    start: int
    stop: int


class Blocks(msgspec.Struct, frozen=True, kw_only=True):
    """What decides which rows judge and which train: with the snapshot, `training.split.split` finds them again."""

    policy: dict[str, Any]  # TrainPolicy
    min_holdout_rows: int
    champion_until: float = 0.0
    first: bool = False


class Holdout(msgspec.Struct, frozen=True, kw_only=True):
    """The rows that judged; between the positions `start` and `stop` in the snapshot lie others, which trained."""

    rows: int = 0
    since: float = msgspec.field(default=0.0, name="from")  # seconds since 1970 UTC
    until: float = 0.0
    origin: str = ""  # record | source | record and source
    start: int = 0
    stop: int = 0


class Searched(msgspec.Struct, frozen=True, kw_only=True):
    """How a search for parameters went; the trials themselves are in `Data.trials`."""

    trials: int = 0  # with the seed they say what was tried, whatever the clock said
    finished: int = 0  # of these, not given up halfway
    resumed: int = 0  # of these, by a process that was killed
    ended: str = ""  # trials | time
    seconds: float = 0.0
    chosen: bool = False  # False: the parameters that it began with stay
    value: float | None = None  # of the best on the judging rows: its negative loss; None: it was those
    gain: float | None = None  # of it against those
    error: float | None = None  # standard error of the gain


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """What a version was fitted to; of a pushed one only the snapshot and the holdout are known."""

    snapshot: str | None = None  # its digest; None: every row was erased
    rows: int | None = None  # that it was fitted to
    known: int | None = None  # rows of the snapshot
    left_out: tuple[int, ...] = ()  # positions of its rows in quarantine: neither trained nor judged
    last_fit: bool | None = None  # fitted once more to all rows after it was judged; False: the judged model itself
    blocks: Blocks | None = None  # None: one tail judged (before 0.3), or a pushed model
    since: float | None = msgspec.field(default=None, name="from")  # seconds since 1970 UTC
    until: float | None = None
    window: Place | None = None
    windows: tuple[TriedWindow, ...] = ()
    trials: tuple[dict[str, Any], ...] = ()  # {"parameters", "score"}, in the order tried
    search: Searched | None = None  # None: there was none
    holdout: Holdout = Holdout()


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a version. `document` is the JSON object it was read from, whole."""

    document: dict[str, Any]
    format: int = 1
    name: str = ""
    created_at: float = 0.0  # seconds since 1970 UTC
    origin: str = ""  # bootstrap | retrain | push
    label: str | None = None  # the pusher's own name for it
    task: str = ""
    estimator: str | None = None
    parameters: dict[str, Any] = {}
    seed: int = 0
    git: str | None = None  # revision of the program
    libraries: dict[str, str] = {}
    machine: str = ""  # kind of machine it was made on; "": not told
    data: Data = Data()
    until: float = 0.0  # `_at` of the last record row it was fitted to; 0: none of the record
    notes: tuple[str, ...] = ()
    quality: HoldoutQuality | None = None
    importance: dict[str, float] | None = None  # share of each feature in how the answers vary; None: not measured
    verdict: Verdict | None = None
    twin: Plan | None = None  # None: the scikit-learn pipeline serves
    parity: Parity | None = None
    trees: Parity | None = None  # of the compiled trees with the pipeline; None: made before there were any
    digests: dict[str, str] = {}  # file -> sha256
    reproducible: bool = True  # False: rows it was trained on were erased, or expired
    erasure: int | None = None  # the run that erased them
    expired: float | None = None  # seconds since 1970 UTC; rows older than that went

    @property
    def engine(self) -> Literal["trees", "onnx", "scikit-learn"]:
        """The fastest that its artefact can be answered by; "trees" where the compiled engine is built."""
        if self.twin is None:
            return "scikit-learn"
        return "trees" if self.trees is not None and self.trees.agrees else "onnx"

    def changed(self, **fields: Any) -> Manifest:
        """With other values of these fields; a mapping changes only the keys it has of one that is there."""
        document = dict(self.document)
        for name, value in fields.items():
            before = document.get(name)
            document[name] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
        return manifest_of(document)


# -- the record of a run --------------------------------------------------------------------------------------------


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """What the one who asked for a run handed along."""

    version: int | None = None  # promote: this one
    path: str = ""  # push: of the skops file
    label: str | None = None  # push: the pusher's own name for it
    temporary: bool = False  # push: the file is deleted afterwards
    trained_until: float | None = None  # push: seconds since 1970 UTC; it learnt no later row, says who pushed
    ids: tuple[str, ...] | int = ()  # erase: of predictions; once that is done, how many
    feature: str = ""  # erase: whose value is meant
    value: str | bool | int | float | None = None
    state: Literal["", "on", "off"] = ""  # adaptation: what it is switched to
    add: tuple[str, ...] = ()  # tag: put on the version
    remove: tuple[str, ...] = ()  # tag: taken off
    asked_at: float | None = None  # erase: when, by the database's clock, seconds since 1970 UTC
    home: str = ""  # gone: the home that does not come back; erase_part: the one that is asked
    of: int | None = None  # erase_part: the erasure
    until: float = 0.0  # erase_part: rows answered up to then, by the clock of whoever answered
    snapshots: tuple[str, ...] = ()  # erase_part: digests of those that are gone
    hidden: str | None = None  # erase: the value as it is recorded where the feature is hashed


class Decided(msgspec.Struct, frozen=True, kw_only=True):
    """What a check decided."""

    train: bool = False
    trigger: str | None = None
    reasons: tuple[str, ...] = ()
    due: bool = False  # promoted unless probably worse; False: it had to be probably better


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """The snapshot a job was given."""

    snapshot: str = ""  # its digest
    rows: int = 0
    record_rows: int = 0  # of these, from the record
    since: float = msgspec.field(default=0.0, name="from")  # seconds since 1970 UTC
    until: float | None = None


class JobFacts(msgspec.Struct, frozen=True, kw_only=True):
    """How the job went."""

    seconds: float = 0.0
    windows: tuple[TriedWindow, ...] = ()
    notes: tuple[str, ...] = ()


class RolloutFacts(msgspec.Struct, frozen=True, kw_only=True):
    """How the promotion or the rollback went; `training.rollout.RolloutResult` says what each means."""

    flipped: bool = False
    version: int | None = None
    champion: int | None = None
    previous: int | None = None
    ready: tuple[str, ...] = ()
    not_ready: tuple[str, ...] = ()
    failed: dict[str, str] = {}
    waited_s: float = 0.0
    reason: str = ""


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The full story of a run; what a run of its kind does not tell has its default."""

    format: int = 1
    payload: Payload = Payload()
    error: str | None = None
    stderr: str = ""  # of a job that crashed, its end
    # a check, and the training it led to
    check: int | None = None  # id
    decision: Decided | None = None
    data: Given | None = None
    unfit_rows: int = 0  # rows and labels of the record that were left out
    notes: tuple[str, ...] = ()
    data_checks: tuple[DataFinding, ...] = ()
    job: JobFacts | None = None
    quality: HoldoutQuality | None = None
    verdict: Verdict | None = None
    version: int | None = None
    rollout: RolloutFacts | None = None
    champion: int | None = None  # in service when the run crashed
    times: int = 0  # a failed check or retention: how often in a row
    # an erasure, or the retention
    rows: dict[str, int] = {}  # table -> rows deleted
    spool_records: int = 0
    snapshots: int = 0  # files deleted
    waits_for: tuple[str, ...] = ()  # homes that have not done their part
    errors: dict[str, str] = {}  # kind of copy -> why it could not be reached


# -- reading --------------------------------------------------------------------------------------------------------

_Stored = TypeVar("_Stored", Manifest, RunRecord)


def manifest_of(document: object, where: str = "the manifest") -> Manifest:
    """The manifest in a JSON object; `where` stands in the message of a `FormatError`."""
    given = {**document, "document": document} if isinstance(document, Mapping) else document
    return _read(given, Manifest, MANIFEST_FORMAT, where)


def record_of(document: object, where: str = "the record of the run") -> RunRecord:
    """The record in a JSON object; `where` stands in the message of a `FormatError`."""
    return _read(document, RunRecord, RECORD_FORMAT, where)


def _read(document: object, kind: type[_Stored], newest: int, where: str) -> _Stored:
    found = document.get("format", 1) if isinstance(document, Mapping) else None
    if isinstance(found, int) and found > newest:
        raise FormatError(
            f"{where} was written by a newer release: it has format {found}, this one reads up to {newest}: "
            "upgrade evergreen"
        )
    if not isinstance(found, int) or found < 1:
        raise FormatError(f"{where} has format {found!r}, this release reads 1 to {newest}: restore it from a backup")
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise FormatError(f"{where} cannot be read ({error}): restore it from a backup") from None
