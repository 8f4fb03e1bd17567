"""What each endpoint of the page answers: the contract between the server and the scripts in `static/`.

Everywhere: moments are seconds since 1970 UTC, lengths of time are in seconds unless the name says `_ms`, shares lie
between 0 and 1, `null` is "not known" and never 0. A refused request is `{"error": "what happened and what to do"}`.

Series are columns of one length, oldest first, ready for a plot, at most `MOST_POINTS` points whatever the span:
`?since=<s>&until=<s>` chooses the span (`since` <= at < `until`), without them it is all there is. A point stands for
one check (or one moment of the record) and is never a mean over several; between two points others may be left out,
and `of` says how many there are in the span.

Every GET of data answers `etag`; sent back as `if-none-match` it answers 304 without a body while nothing has changed.
Files of the page are at `/page/static/NAME`; their addresses in the HTML are relative.

| method and path | answers |
|---|---|
| `POST /page/session` with `SignIn`, `GET /page/session` | `Session`; `DELETE /page/session` ends it, 204 |
| `GET /page/state` | `State` |
| `GET /page/quality?since=&until=` | `Quality` |
| `GET /page/decisions?before=&limit=&checks=` | `Decisions`; `limit` 1 to 200 (50); `checks=0` hides the noes |
| `GET /page/drift?since=&until=` | `Drift` |
| `GET /page/drift/{check}/{feature}` | `Histogram`; the feature's name is percent-encoded; `prediction` is the output |
| `GET /page/distribution?since=&until=` | `Distribution` |
| `GET /page/segments` | `Segments` |
| `GET /page/traffic?since=&until=` | `Traffic` |
| `GET /page/runs/{id}` | `Story` |
| `GET /page/versions/{a}/{b}` | `training.comparison.Comparison` |
| `GET /page/events` | server-sent events: `event: changed`, `data: Changed`; 503 when too many listen: poll `State` |

Writes are those of `/manage`: `POST /manage/retrain`, `/manage/models/{version}/promote`, `/manage/rollback`,
`/manage/pause`, `/manage/resume` with `{"why": "..."}`, `/manage/adaptation` with `{"state": "on" | "off", "why": ""}`.
Each answers 202 `{"run": id}` and needs the scope `operate`; with the cookie also `x-evergreen-csrf: <Session.csrf>`.
While the loop is paused, `/manage/retrain` answers 409.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from service.serving.management.sentence import AlertKind

MOST_POINTS: Final = 500
"""Of one series."""

Number = float | None
"""None: not known."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """Any of them."""


# -- session ---------------------------------------------------------------------------------------------------------


class SignIn(Shape, frozen=True, kw_only=True):
    """Body of `POST /page/session`."""

    token: str


class Session(Shape, frozen=True, kw_only=True):
    """Who is signed in."""

    name: str
    """Of the token."""
    scopes: tuple[str, ...]
    """read | operate | push | predict | feedback; writes of the page need `operate`."""
    csrf: str
    """To be sent with each write as `x-evergreen-csrf`; "" when a bearer token asked, which needs none."""
    expires_at: Number
    """None for a bearer token."""


class Changed(Shape, frozen=True, kw_only=True):
    """Data of the event `changed`: what to fetch again."""

    topics: tuple[str, ...]
    """Of state, quality, decisions, drift, distribution, segments, traffic, runs, versions."""
    revision: str
    """As `State.revision`."""


# -- state -----------------------------------------------------------------------------------------------------------


class QualityNow(Shape, frozen=True, kw_only=True):
    """What the newest check knows of the champion's answers, served as they were; as in `/manage/drift`."""

    state: Literal["held", "lost", "not known yet"]
    metric: str
    """auc | accuracy | f1 | f1_macro | log_loss | brier | r2 | mae | rmse"""
    higher_is_better: bool
    value: Number
    """None: too few matured rows, or they do not define it; `why` says so."""
    low: Number
    """`value` lies between them with 95 %: 1.96 standard errors (`error` of `/manage/drift`) to each side."""
    high: Number
    rows: int
    """Matured rows with a label that it was measured on."""
    holdout: Number
    """The metric on the champion's own holdout."""
    why: str
    """The state in one sentence with its numbers."""
    at: float
    """Of the check."""
    check: int


class NextStep(Shape, frozen=True, kw_only=True):
    what: str
    at: Number
    """None: when something else is over, or never."""


class AdaptationNow(Shape, frozen=True, kw_only=True):
    """How the champion's output is adapted between trainings."""

    state: Literal["in force", "none", "off", "never"]
    """`none`: it answers with its own output for now. `off`: a person switched it off. `never`: a setting did."""
    number: int | None
    """Of the adaptation in force."""
    since: Number
    """When it was made, or switched off."""
    weight: Number
    """Share of the experts other than `identity` in what is served, 0 to 1."""
    weights: dict[str, float]
    """Of each expert; `identity` leaves the output as it is. They add up to 1."""
    raw_loss: Number
    served_loss: Number
    """Log loss, or mean squared error, on the `compared` matured rows that were answered while adapted."""
    compared: int
    who: str
    why: str
    """Of the newest event."""


class Alert(Shape, frozen=True, kw_only=True):
    text: str
    """What a person should look at, in one sentence; the same ones that the sentence of `State` counts."""
    kind: AlertKind
    run: int | None
    """Whose page says more."""


class Paused(Shape, frozen=True, kw_only=True):
    who: str
    why: str
    at: float
    run: int


class RunningNow(Shape, frozen=True, kw_only=True):
    run: int
    kind: str
    trigger: str
    since: float
    queued: int
    """Runs that wait behind it."""


class WorkerNow(Shape, frozen=True, kw_only=True):
    """One API worker, of any replica."""

    replica: str
    slot: str
    serving: int | None
    """Version that it answers with; None: none yet."""
    ready: tuple[int, ...]
    """Versions loaded and warm."""
    failed: dict[str, str]
    """Version -> why it would not load."""


class ReplicaNow(Shape, frozen=True, kw_only=True):
    """One home of the deployment, and the server that runs on it; not those that are gone for good."""

    home: str
    host: str
    replica: str
    """As in `WorkerNow`, and in the lease's holder."""
    serving: int | None
    """Version that its workers answer with; None: none, or several."""
    why_not_ready: str
    """"" when it answers predictions."""
    spool_bytes: int
    """Recorded there and not yet in the store."""
    lag_s: float
    """Age of the oldest of these."""
    ahead_s: float
    """Its clock before the database's."""
    seen_s: float
    """Ago."""
    leads: bool
    """Whether it does the scheduled work."""
    away: bool
    """Whether nothing was heard of it for 10 s."""
    here: bool
    """Whether it is this one."""


class Lease(Shape, frozen=True, kw_only=True):
    """Who does the scheduled work."""

    holder: str
    expires_at: float
    here: bool
    """Whether it is this replica."""


class Job(Shape, frozen=True, kw_only=True):
    """A job of the replica that holds the lease."""

    name: str
    """commands | moves | check | prune | retention"""
    last_success: Number
    """None: none yet since this server started."""
    next: Number
    """None: not planned (paused, or it runs now)."""
    failures: int
    """Since this server started."""


class DelayHistogram(Shape, frozen=True, kw_only=True):
    """How long labels took to come, of rows spread over the newest 20,000 that were answered."""

    edges_s: tuple[float, ...]
    """n + 1 edges of n bins, growing by a factor."""
    labels: tuple[int, ...]
    """Labels in each bin."""
    rows: int
    """That were looked at, at most 1,000."""
    without: int
    """Of these, without a label (yet)."""


class Record(Shape, frozen=True, kw_only=True):
    """What was answered, on its way into the store. Of this replica, but for `delays`."""

    spool_bytes: int | None
    """Recorded and not yet in the store."""
    lag_s: Number
    """Age of the oldest of these; 0: all is stored."""
    drops: int | None
    """Rows and labels that were answered and not recorded, since this server started."""
    unfit: int | None
    """Rows and labels of the record that a reader left out because they do not fit, since this server started."""
    dead_letters: int | None
    """Entries that could not be stored, since this server started."""
    delays: DelayHistogram | None
    """None: no label yet."""


class StateForAll(Shape, frozen=True, kw_only=True):
    """The deployment at a glance, the same for whoever asks."""

    revision: str
    """Changes when anything of the page's data has changed."""
    at: float
    """The server's clock."""
    model: str
    task: Literal["binary", "multiclass", "regression"] | None
    """None: no version yet."""
    sentence: str
    """The same as `evergreen status` says, times in UTC."""
    version: int | None
    """The champion."""
    previous: int | None
    """What a rollback would put in service; None: nothing to go back to."""
    announced: int | None
    """Being loaded by the workers, to become champion."""
    engine: str | None
    """onnx | scikit-learn | …: what this server's workers answer with; None when none serves the champion."""
    served_since: Number
    """Since when the champion is in service."""
    ready: bool
    why_not_ready: str
    """Of a worker of this server; "" when all are."""
    quality: QualityNow | None
    """None: no check of this version yet."""
    coverage: Number
    """Share of the rows older than `delay_s` whose label is known."""
    delay_s: Number
    """After so many seconds a row is judged by its label."""
    waiting: int | None
    """Rows younger than that, of the newest 20,000."""
    next: NextStep
    doubts: tuple[str, ...]
    """What the gates had against the champion, which is served all the same; [] when nothing."""
    adaptation: AdaptationNow
    alerts: tuple[Alert, ...]
    paused: Paused | None
    """None: the loop runs."""
    running: RunningNow | None
    """The run under way."""
    queued: int
    """Runs that wait."""
    versions: tuple[int, ...]
    """All that are registered, newest first: what can be promoted or looked at side by side."""
    replicas: tuple[str, ...]
    """That reported in the last 10 s; this one is `here`."""
    homes: tuple[ReplicaNow, ...]
    """All that are known, those that are away, too."""
    here: str
    workers: tuple[WorkerNow, ...]
    lease: Lease | None
    """None: nobody holds it."""
    jobs: tuple[Job, ...] | None
    """None: another replica holds the lease, and knows."""
    record: Record


class State(StateForAll, frozen=True, kw_only=True):
    """The deployment at a glance, as who asks gets it."""

    name: str
    """Of the token that asks."""
    scopes: tuple[str, ...]


# -- quality ---------------------------------------------------------------------------------------------------------


class Span(Shape, frozen=True, kw_only=True):
    """What a series covers."""

    since: Number
    """The oldest there is at all (not only in the span asked for); None: nothing yet."""
    until: Number
    """The newest there is."""
    of: int | None
    """How many there are in the span asked for, of checks by their ids; the series shows at most `MOST_POINTS` of them.
    None: not counted."""


class Mark(Shape, frozen=True, kw_only=True):
    """Something that happened, to be drawn over a series."""

    at: float
    kind: Literal["training", "promotion", "refusal", "rollback", "adaptation", "pause", "alert"]
    run: int | None
    """None: an adaptation made by a check has no run of its own."""
    version: int | None
    text: str


class QualitySeries(Shape, frozen=True, kw_only=True):
    """A point is a check."""

    at: tuple[float, ...]
    check: tuple[int, ...]
    version: tuple[int, ...]
    """The champion then."""
    served: tuple[Number, ...]
    """The metric on the newest matured rows, as they were answered."""
    low: tuple[Number, ...]
    high: tuple[Number, ...]
    """95 % around `served`."""
    holdout: tuple[Number, ...]
    """The metric on the champion's own holdout."""
    rows: tuple[int | None, ...]
    """Matured rows that `served` rests on."""
    state: tuple[str, ...]
    """held | lost | not known yet"""
    coverage: tuple[Number, ...]
    delay_s: tuple[Number, ...]


class LossSeries(Shape, frozen=True, kw_only=True):
    """Served beside raw: a point is an adaptation. The record does not keep raw outputs, so they are compared by loss
    where an adaptation was made, and not by the metric of each check."""

    metric: str
    """log_loss, or mse of a regression; lower is better."""
    at: tuple[float, ...]
    version: tuple[int, ...]
    number: tuple[int, ...]
    served: tuple[Number, ...]
    raw: tuple[Number, ...]
    rows: tuple[int, ...]
    """Matured rows answered while adapted, that both are measured on."""


class Quality(Shape, frozen=True, kw_only=True):
    metric: str | None
    """None: no check yet. Points of another metric (the setting was changed) have null values."""
    higher_is_better: bool
    span: Span
    series: QualitySeries
    losses: LossSeries
    marks: tuple[Mark, ...]
    """Oldest first, at most `MOST_POINTS`, the newest when there are more."""


# -- decisions -------------------------------------------------------------------------------------------------------


class Chip(Shape, frozen=True, kw_only=True):
    """The verdict of one gate."""

    gate: str
    """holdout_rows | baseline | quality | segments | latency | parity"""
    passed: bool
    text: str
    value: Number
    threshold: Number


class Decision(Shape, frozen=True, kw_only=True):
    """One run, or several checks in a row that said no in the same way."""

    kind: str
    """check | retrain | push | promote | rollback | bootstrap | adaptation | pause | resume | erase | retention
    | erase_part | retention_part (of one home) | gone (a home)"""
    state: str
    """queued | running | waiting (an erasure, for other hosts) | done | failed"""
    outcome: str | None
    """promoted | kept | refused | no_action | crashed | failed | not_loaded | stopped | rolled_back | ..."""
    run: int
    """The newest of them."""
    first: int
    """The oldest; equal to `run` unless folded."""
    count: int
    since: float = msgspec.field(name="from")
    """When the oldest was asked for."""
    to: float
    """When the newest ended; for one that has not ended, when it was asked for."""
    version: int | None
    trigger: str
    who: str
    why: str
    """Of the newest."""
    sentence: str
    """What came of it and why, of the newest."""
    chips: tuple[Chip, ...]
    check: int | None
    """The check it came of."""
    seconds: Number
    """From start to end, of the newest."""


class Decisions(Shape, frozen=True, kw_only=True):
    decisions: tuple[Decision, ...]
    before: int | None
    """Give it as `before` for what is older; None: nothing is."""
    total: int
    """Runs in the store."""


# -- drift -----------------------------------------------------------------------------------------------------------


class DriftFeature(Shape, frozen=True, kw_only=True):
    """One column, with what the newest check in the span says of it."""

    name: str
    """`prediction` with `output` true: what the model answers."""
    kind: Literal["numeric", "categorical", "boolean", "datetime", "output"]
    output: bool
    counted: bool
    """False: measured, and never an alarm (dates, ignored features)."""
    importance: Number
    """Share in how the champion's answers vary; None: not measured, or of the output."""
    score: Number
    """The distance, in the unit of `test`; None: could not be measured, `note` says why."""
    threshold: float
    """What the score had to reach."""
    test: str
    times: float
    """How many times what it had to reach it moved; 1 and more has moved."""
    moved: bool
    state: Literal["", "suspected", "began", "continues", "over", "remembered"]
    news: bool
    """It began with this check."""
    matters: bool | None
    """None: not known."""
    sentence: str
    note: str
    missing_reference: float
    missing_window: float
    """Shares."""
    unseen: int
    """Rows of the window with a category that training never saw."""
    outside: int
    """Rows of the window with a number outside the range that training saw."""


class DriftCheck(Shape, frozen=True, kw_only=True):
    id: int
    at: float
    version: int


class Drift(Shape, frozen=True, kw_only=True):
    """The strip: a row is a feature, a column is a check."""

    features: tuple[DriftFeature, ...]
    """By importance x `times` of the newest check, the largest first; the output is the first of all."""
    checks: tuple[DriftCheck, ...]
    """Oldest first."""
    times: tuple[tuple[Number, ...], ...]
    """[feature][check], as `DriftFeature.times`: what the colour shows. None: not measured."""
    scores: tuple[tuple[Number, ...], ...]
    """[feature][check]."""
    news: tuple[tuple[int, int], ...]
    """(feature, check): it began there."""
    share: tuple[Number, ...]
    """Of the counted features that moved, for each check."""
    detected: tuple[bool, ...]
    """Whether the check as a whole found drift."""
    skipped: str | None
    """Why the newest check measured nothing; None: it did."""
    span: Span


class Bars(Shape, frozen=True, kw_only=True):
    """Rows by bin."""

    rows: int
    """With and without a value."""
    missing: int
    counts: tuple[int, ...]
    """Rows in each bin."""
    below: int
    above: int
    """Rows beyond the first and the last edge; 0 for categories."""


class Histogram(Shape, frozen=True, kw_only=True):
    """One column at one check: what the champion knew, and what came."""

    check: int
    at: float
    version: int
    feature: str
    kind: Literal["numeric", "categorical", "boolean", "datetime"]
    edges: tuple[float, ...] | None
    """n + 1 edges of n bins; seconds since 1970 for dates; None for categories."""
    categories: tuple[str, ...] | None
    """One a bin, the most frequent in the reference first; the last may be "others"."""
    reference: Bars | None
    """Rows of the version's reference. None: its artefact is not on this host."""
    window: Bars | None
    """The rows that the check looked at. None: they are gone from the record (retention), `note` says so."""
    note: str


# -- distribution ----------------------------------------------------------------------------------------------------


class OutputBars(Shape, frozen=True, kw_only=True):
    edges: tuple[float, ...] | None
    """Of scores (probability of the second class) or of numbers; None for classes."""
    categories: tuple[str, ...] | None
    """The classes; None for scores and numbers."""
    counts: tuple[int, ...]
    rows: int


class OutputSeries(Shape, frozen=True, kw_only=True):
    """Small samples of rows that followed each other, at moments spread over the span."""

    at: tuple[float, ...]
    """When the first of them was answered."""
    values: dict[str, tuple[Number, ...]]
    """Share of each class; for a regression `mean`, `low` and `high` (10 % and 90 % quantiles)."""
    rows: tuple[int, ...]
    """Rows of each sample."""


class Distribution(Shape, frozen=True, kw_only=True):
    """What is answered and what turns out to be true."""

    task: Literal["binary", "multiclass", "regression"] | None
    """None: no version yet."""
    classes: tuple[str, ...]
    """As text; [] for a regression."""
    scores: OutputBars | None
    """Binary: probability of the second class, of the newest 1,000 rows. None: not binary, or nothing yet."""
    predictions: OutputBars | None
    """Answers of the newest 1,000 rows; None: nothing was answered yet."""
    labels: OutputBars | None
    """The newest labels that came, at most 1,000; None: none yet."""
    predictions_over_time: OutputSeries
    labels_over_time: OutputSeries
    """Of the same samples, the rows that have a label; by when the row was answered."""
    span: Span


# -- segments --------------------------------------------------------------------------------------------------------


class Slice(Shape, frozen=True, kw_only=True):
    """A group of rows, as the gates form them."""

    name: str
    feature: str
    sensitive: bool
    rows: int
    value: float
    error: Number
    """Standard error."""
    difference: float
    """`value` minus that of all rows; negative is worse, whatever the metric."""


class Segments(Shape, frozen=True, kw_only=True):
    check: int | None
    """None: no check yet has looked at slices."""
    at: Number
    version: int | None
    metric: str
    """Larger is better; losses are negative."""
    value: Number
    """Of all rows."""
    rows: int
    """Matured rows that were looked at."""
    slices: tuple[Slice, ...]
    """The worst first (lowest `difference`), at most 10; then every sensitive group that is not among them."""
    note: str
    """Why there are none; "" when there are."""


# -- traffic ---------------------------------------------------------------------------------------------------------


class Rate(Shape, frozen=True, kw_only=True):
    """From the record, all replicas."""

    at: tuple[float, ...]
    """Where each bin begins; they are equally wide."""
    rows_s: tuple[Number, ...]
    """Rows answered a second."""
    exact: tuple[bool, ...]
    """False: estimated from the pace of two times 250 rows of this bin, because it has more."""
    bin_s: Number


class Recent(Shape, frozen=True, kw_only=True):
    """From the metrics of one replica, sampled every 5 s while somebody has the page open, at most 15 minutes."""

    at: tuple[float, ...]
    rows_s: tuple[Number, ...]
    requests_s: tuple[Number, ...]
    errors_s: tuple[Number, ...]
    """Requests answered with 5xx, or 429."""
    refused_s: tuple[Number, ...]
    """Requests answered with another 4xx."""
    p50_ms: tuple[Number, ...]
    p99_ms: tuple[Number, ...]
    """From request received to answer recorded; None: no request in these 5 s. The upper edges of histogram buckets
    bound them, so they are read between edges."""


class Totals(Shape, frozen=True, kw_only=True):
    """From the metrics of one replica, since its server started."""

    since: Number
    rows: int
    requests: int
    errors: int
    refused: int
    p50_ms: Number
    p99_ms: Number


class Ribbon(Shape, frozen=True, kw_only=True):
    """One version in service."""

    version: int
    since: float = msgspec.field(name="from")
    to: Number
    """None: still."""
    run: int
    """That put it in service."""


class Traffic(Shape, frozen=True, kw_only=True):
    replica: str
    """Whose `recent` and `totals` are."""
    rate: Rate
    recent: Recent
    totals: Totals
    versions: tuple[Ribbon, ...]
    span: Span
    """Of the record; `of` is null: its rows are not counted."""


# -- one run ---------------------------------------------------------------------------------------------------------


class Phase(Shape, frozen=True, kw_only=True):
    name: str
    """waiting | data | training and judging | taking into service | the rest"""
    since: float = msgspec.field(name="from")
    to: float
    seconds: float


class Tried(Shape, frozen=True, kw_only=True):
    """A window of the newest rows that was tried as what to learn from."""

    name: str
    rows: int
    sigmas: Number
    """How much better than all rows, in standard errors; None: not compared."""
    chosen: bool


class Trial(Shape, frozen=True, kw_only=True):
    """One set of parameters that the study tried."""

    number: int
    value: Number
    """What was maximised (the negative loss); None: it is not a number."""
    parameters: dict[str, Any]
    chosen: bool


class Learned(Shape, frozen=True, kw_only=True):
    """The snapshot that the job was given."""

    snapshot: str
    rows: int
    record_rows: int
    """Of these, from the record; the others are of the source."""
    since: Number = msgspec.field(name="from")
    until: Number


class Compared(Shape, frozen=True, kw_only=True):
    """The metric of both models on the same holdout."""

    metric: str
    challenger: Number
    champion: Number
    error: Number
    rows: int
    metrics: dict[str, Number]
    """The challenger's others."""


class Rows(Shape, frozen=True, kw_only=True):
    """Which rows judged, and which trained."""

    use: Literal["training", "judging"]
    rows: int


class Link(Shape, frozen=True, kw_only=True):
    text: str
    kind: Literal["run", "version", "versions", "check", "report"]
    run: int | None = None
    version: int | None = None
    other: int | None = None
    """The second version of `versions`."""
    check: int | None = None


class Story(Shape, frozen=True, kw_only=True):
    """All that is known of one run."""

    id: int
    kind: str
    state: str
    outcome: str | None
    trigger: str
    who: str
    why: str
    sentence: str
    created_at: float
    started_at: Number
    finished_at: Number
    version: int | None
    error: str | None
    stderr: str
    notes: tuple[str, ...]
    decision: tuple[str, ...]
    """The reasons of the check that led to it."""
    due: bool | None
    """True: promoted unless probably worse; False: it had to be probably better; None: nothing was decided."""
    phases: tuple[Phase, ...]
    gates: tuple[Chip, ...]
    passed: bool | None
    """The verdict of the gates; None: they were not asked."""
    quality: Compared | None
    windows: tuple[Tried, ...]
    trials: tuple[Trial, ...]
    """In the order tried; []: no study, or no version came of the run."""
    data: Learned | None
    judged: tuple[Rows, ...]
    unfit_rows: int
    rollout: dict[str, Any] | None
    """As in `record`."""
    links: tuple[Link, ...]
    record: dict[str, Any]
    """As in `/manage/runs/{id}`."""
    newer: int | None
    older: int | None
    """Neighbours by id."""
