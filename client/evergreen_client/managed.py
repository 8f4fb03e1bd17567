"""What `/manage` answers, as dictionaries with known keys; a key may be there that none of these names.

Times are seconds since 1970 UTC. `/manage/openapi.json` describes the same; a test holds both to each other.
"""

# No `from __future__ import annotations`: with it, `NotRequired` is not seen at run time.
from typing import Any, NotRequired, TypedDict


class RunInShort(TypedDict):
    """A run: something the service did, or is to do."""

    id: int
    kind: str
    """check | retrain | push | promote | rollback | …"""
    state: str
    """queued | running | waiting | done | failed"""
    outcome: str | None
    """promoted | kept | refused | no_action | crashed | …; None until it is over."""
    trigger: str
    """drift | quality | schedule | manual | …"""
    who: str
    why: str
    created_at: float
    started_at: float | None
    finished_at: float | None
    version: int | None
    """The version that it made, or moved to."""


class Run(RunInShort):
    """A run with its full record of why."""

    record: dict[str, Any]
    count: NotRequired[int]
    """Of a fold: how many checks in a row are this entry; `first_id` and `first_at` are those of the oldest."""
    first_id: NotRequired[int]
    first_at: NotRequired[float]


class Check(TypedDict):
    """What was measured, and what was decided from it."""

    id: int
    at: float
    version: int
    drift: dict[str, Any] | None
    quality: dict[str, Any] | None
    decision: dict[str, Any]


class Replica(TypedDict):
    """A home of the deployment, and what runs there."""

    home: str
    host: str
    replica: str
    release: str
    serving: int | None
    """The version its workers answer with; None: none, or several."""
    why_not_ready: str
    """ "" when it answers predictions."""
    spool_bytes: int
    lag_s: float
    ahead_s: float
    seen_s: float
    leads: bool
    gone: bool
    away: bool
    here: bool


class Worker(TypedDict):
    """A process that answers predictions."""

    replica: str
    slot: str
    serving: int | None
    ready: list[int]
    failed: dict[str, str]


class Status(TypedDict):
    """The deployment at a glance."""

    model: str
    champion: int | None
    previous: int | None
    ready: bool
    workers: list[Worker]
    replicas: list[Replica]
    runs: list[RunInShort]
    """The newest five."""
    adaptation: NotRequired[int | None]
    sentence: NotRequired[str]
    """How the deployment stands, in words."""
    alerts: NotRequired[list[str]]
    doubts: NotRequired[list[str]]
    announced: NotRequired[int | None]
    engine: NotRequired[str | None]
    served_since: NotRequired[float | None]
    quality: NotRequired[dict[str, Any] | None]
    coverage: NotRequired[float | None]
    delay_s: NotRequired[float | None]
    next: NotRequired[dict[str, Any] | None]
    paused: NotRequired[str | None]
    unadapted: NotRequired[dict[str, str]]
    leader: NotRequired[bool | None]
    spool_bytes: NotRequired[int | None]
    drain_lag_s: NotRequired[float | None]
    last_check: NotRequired[dict[str, Any] | None]


class Version(TypedDict):
    """A version of the model."""

    version: int
    created_at: float
    origin: str
    estimator: str
    quality: dict[str, Any] | None
    engine: str
    snapshot: str | None
    tags: list[str]
    reproducible: NotRequired[bool]


class Models(TypedDict):
    """All versions, the newest first, and which of them runs under which alias."""

    model: str
    champion: int | None
    previous: int | None
    announced: int | None
    models: list[Version]


class Note(TypedDict):
    """What somebody said of a version."""

    text: str
    who: str
    at: float
    run: int


class VersionInFull(Version):
    """A version with its manifest, its lineage and notes on it."""

    manifest: dict[str, Any]
    lineage: dict[str, Any]
    notes: list[Note]


class Comparison(TypedDict):
    """Two versions side by side; None is "not known"."""

    a: dict[str, Any]
    b: dict[str, Any]
    parameters: list[dict[str, Any]]
    data: list[dict[str, Any]]
    libraries: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    importance: list[dict[str, Any]]
    slices: list[dict[str, Any]]
    slice_metric: str


class ComparisonHere(Comparison):
    """As the command `evergreen models compare` has it: what both predict is not asked over the wire."""

    predictions: None


class KeptLabel(TypedDict):
    """One label of a prediction."""

    label: Any
    observed_at: float
    received_at: float
    source: NotRequired[str]
    """Name of the token it came with, "" for none."""


class Prediction(TypedDict):
    """What is known of a prediction's id."""

    id: str
    predictions: int
    """Rows in the store that have it: 0 when none came yet."""
    version: int | None
    """Of the newest of them, which the labels are of."""
    at: float | None
    prediction: Any
    labels: list[KeptLabel]
    """The one that counts first."""


class Adaptations(TypedDict):
    """How the champion's output is adapted, and what happened to its adaptations, the newest first."""

    version: int | None
    enabled: bool
    in_force: int | None
    adaptations: list[dict[str, Any]]
