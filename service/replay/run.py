"""The loop itself over a stream: the service's answers, the record, and one turn of `run_cycle` every few hundred rows.

Only the clock is simulated, and a training runs in this process. Store, registry and record lie in a folder that is the
caller's to delete.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import numpy as np
from evergreen_client.frames import json_columns

from monitoring.feature import AT
from monitoring.insert import insert
from monitoring.record import Label, Prediction, TableRows
from monitoring.spool import number_at, segment_day
from monitoring.store import open_store
from service.control.deployment import assemble
from service.handover import LiveVersion
from service.replay.stream import ReplayError, Stream
from service.serving.predictor import ServedModel, load
from service.settings import Settings, StoreSettings
from training import job
from training.adaptation import Adapter, decode
from training.adaptations import Adaptations
from training.cycle import bootstrap, run_cycle
from training.lease import CONTROLLER, Lease

if TYPE_CHECKING:
    import numpy.typing as npt
    import sqlalchemy as sa

    from training.loop import Loop
    from training.runs import Check, Run
    from training.spec import JobResult, JobSpec

LEASE_S: Final = 30 * 86_400.0
"""By the real clock: nobody else wants this store."""

Verdict = Literal["held", "lost", "not known yet"]
OnRows = Callable[[int, str], None]
"""Told how many rows have been answered, and in a few words what has just happened."""


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One check, and what came of it."""

    row: int
    """Rows answered before it."""
    at: float
    """Seconds since 1970 UTC, by the simulated clock."""
    version: int
    """That had answered until then."""
    champion: int
    """That answers from now on."""
    trained: bool
    outcome: str
    """Of the run: promoted, kept, refused, no_action, …"""
    trigger: str
    why: str
    verdict: Verdict
    drift_news: bool
    """Whether something was told to move."""
    drift_matters: bool | None
    """Whether what has moved matters to the model; False when nothing has, None when that is not known yet."""
    adaptation: int | None
    """In force from now on; None: the champion's own output is served."""
    weights: dict[str, float]
    """Of the experts of that adaptation."""


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """What the loop answered, and what it did. The outputs are n by classes, or n values."""

    raw: npt.NDArray[np.float64]
    """The champions' own output."""
    served: npt.NDArray[np.float64]
    turns: tuple[Turn, ...]
    seconds: float
    """By the wall's clock, all of it."""
    training_s: float
    """Of these, within trainings (the first version's too)."""
    rows_a_minute: float
    """Of this process's processor time besides the trainings."""


def replay_loop(
    stream: Stream, settings: Settings, folder: Path, *, every: int = 500, seed: int = 0, on_rows: OnRows | None = None
) -> Replayed:
    """What the loop of these settings makes of the stream, with a turn after each `every` rows.

    The same stream, settings and seed give the same answers and decisions, as long as no gate depends on a clock.
    Raises `ReplayError` when the first version is not brought into service.
    """
    wall, processor = time.perf_counter(), time.process_time()
    home = settings.model_copy(
        update={"home": folder, "config_file": None, "bentoml_home": None, "store": StoreSettings()}
    )
    home.var.mkdir(parents=True, exist_ok=True)
    engine = open_store(home.store_url)
    try:
        place = _Place(stream, home, engine, seed)
        turns = place.live(every, on_rows or (lambda rows, note: None))
    finally:
        engine.dispose()
    seconds, used = time.perf_counter() - wall, time.process_time() - processor
    return Replayed(
        np.concatenate(place.raw),
        np.concatenate(place.served),
        tuple(turns),
        seconds,
        place.training_s,
        60 * len(stream) / max(used - place.training_processor_s, 1e-9),
    )


class _Place:
    """One deployment on a simulated clock, and what it has answered so far."""

    def __init__(self, stream: Stream, settings: Settings, engine: sa.Engine, seed: int) -> None:
        self.stream, self.settings, self.engine = stream, settings, engine
        self.now = float(stream.first.frame[AT].iloc[-1])
        self.training_s = self.training_processor_s = 0.0
        self.trained = False
        self.raw: list[npt.NDArray[np.float64]] = []
        self.served: list[npt.NDArray[np.float64]] = []
        self.adaptations = Adaptations(engine)
        self.source = next(iter(settings.gates.label_sources), "")  # whose labels count, count here
        self._labelled = np.zeros(len(stream), bool)
        lease = Lease(engine, CONTROLLER, "replay", LEASE_S)
        if not lease.acquire() or lease.token is None:
            raise ReplayError(f"the replay's own store cannot be used: {lease.reason}")
        self.loop: Loop = replace(
            assemble(settings, engine, lease.token, "replay", on_event=self._heard, stopped=lambda: False),
            source=lambda: stream.first,
            run_job=self._run_job,
            rehearse=None,  # a replay starts no servers
            live_workers=lambda: (),
            clock=lambda: self.now,
            sleep=lambda seconds: None,
            seed=seed,
            threads=1,
            memory_mb=0,
        )

    def live(self, every: int, on_rows: OnRows) -> list[Turn]:
        """The whole stream: its rows answered and recorded, with a turn of the loop after each `every`."""
        on_rows(0, "training the first version")
        champion = self._first_version()
        model, turns = self._load(champion), list[Turn]()
        adapted, *_ = self._adapted(model)
        for start in range(0, len(self.stream), every):
            stop = min(start + every, len(self.stream))
            self._answer(model, adapted, start, stop)
            if stop - start < every:
                on_rows(stop, "")
                break
            self.trained = False
            run = run_cycle(self.loop)
            was, champion = champion, self.loop.registry.champion()
            if champion != was:
                model = self._load(champion)
            adapted, number, weights = self._adapted(model)
            (check,) = self.loop.runs.checks(limit=1)
            turns.append(self._turn(stop, was, champion, run, check, number, weights))
            on_rows(stop, f"version {champion}: {run.outcome}" if self.trained else f"version {champion}")
        return turns

    def _first_version(self) -> int:
        run = bootstrap(self.loop)
        champion = self.loop.registry.live().champion
        if champion is None:
            story: dict[str, Any] = {} if run is None else run.document
            lost = [gate["reason"] for gate in (story.get("verdict") or {}).get("gates", ()) if not gate["passed"]]
            why = story.get("error") or "; ".join(lost) or "its gates did not pass"
            raise ReplayError(f"the first version was not brought into service, so nothing can be replayed: {why}")
        return champion

    def _load(self, version: int) -> ServedModel:
        wanted = LiveVersion(version, str(self.loop.registry.path(version)))
        most = self.settings.serve.max_category_chars
        return load(self.settings.model.name, wanted, len(self.stream), self.loop.trusted, max_chars=most)

    def _adapted(self, model: ServedModel) -> tuple[ServedModel, int | None, dict[str, float]]:
        """The model with what is in force, the number of that, and the experts' weights."""
        found = self.adaptations.in_force(model.version)
        if found is None:
            return model, None, {}
        served = decode(self.adaptations.served(model.version, found.number))
        event = self.adaptations.newest(model.version)
        weights = event.record.get("weights") if event is not None else None
        return model.adapted(Adapter(served)), found.number, dict(weights or {})

    def _answer(self, model: ServedModel, adapted: ServedModel, start: int, stop: int) -> None:
        """Rows `start` … `stop` answered, and recorded with the labels that have become known until then."""
        stream, schema = self.stream, self.stream.schema
        block = stream.frame.iloc[start:stop]
        columns = json_columns(block, {feature.name: feature.kind for feature in schema.features})
        encode = msgspec.json.Encoder().encode
        records = [encode(dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]
        batch = model.decoder.decode(b'{"records":[' + b",".join(records) + b"]}")
        assert model.run_with_matrix is not None
        self.raw.append(np.asarray(model.run_with_matrix(batch)[0], dtype=np.float64))
        predictions, chances = adapted.predict(batch)
        self.served.append(np.asarray(predictions if chances is None else chances, dtype=np.float64))

        self.now = float(stream.at[stop - 1])
        segment = number_at(self.now) | (stop & 0xFFFFF)
        day, number = segment_day(segment), adapted.adaptation if isinstance(adapted.adaptation, int) else None
        rows = TableRows()
        for place, record in enumerate(records):
            chance = None if chances is None else encode(chances[place]).decode()
            key, at, said = (day, segment, place << 16), float(stream.at[start + place]), encode(predictions[place])
            texts = (record.decode(), said.decode(), chance)
            rows.predictions.append(
                Prediction(*key, str(start + place), at, model.version, *texts, adaptation=number, trace_id=None)
            )
        known = stream.known(stop)
        known = known[~self._labelled[known]]
        self._labelled[known] = True
        for place, (row, label) in enumerate(zip(known.tolist(), stream.labels[known].tolist(), strict=True)):
            key, due = (day, segment, place << 16), float(stream.due[row])
            rows.labels.append(Label(*key, str(row), encode(label).decode(), due, due, self.source))
        insert(self.engine, rows, {})

    def _turn(
        self, row: int, was: int, champion: int, run: Run, check: Check, number: int | None, weights: dict[str, float]
    ) -> Turn:
        error = run.document.get("error")
        news, matters = news_of(check.drift or {})
        return Turn(
            row=row,
            at=self.now,
            version=was,
            champion=champion,
            trained=self.trained,
            outcome=run.outcome or run.state,
            trigger=run.trigger,
            why=f"{run.why}; {error}" if error else run.why,
            verdict=verdict_of(check.quality or {}),
            drift_news=news,
            drift_matters=matters,
            adaptation=number,
            weights=weights,
        )

    def _heard(self, event: str, fields: Any) -> None:
        self.trained = self.trained or event == "training_started"

    def _run_job(self, spec: JobSpec) -> JobResult:
        wall, processor = time.perf_counter(), time.process_time()
        try:
            return job.run(spec)
        finally:
            if spec.kind == "train":
                self.training_s += time.perf_counter() - wall
                self.training_processor_s += time.process_time() - processor


def verdict_of(quality: dict[str, Any]) -> Verdict:
    """What a check's record says of quality."""
    if (said := quality.get("state")) in ("held", "lost", "not known yet"):
        found: Verdict = said
        return found
    if quality.get("lost"):
        return "lost"
    return "held" if quality.get("usable") and quality.get("reference") is not None else "not known yet"


def news_of(drift: dict[str, Any]) -> tuple[bool, bool | None]:
    """Whether a check's record says that something has begun to move, and whether what has moved by now matters."""
    if "findings" not in drift:
        return bool(drift.get("detected")), bool(drift.get("detected"))
    moved = [finding for finding in drift["findings"] if finding["state"] in ("began", "continues")]
    began = any(finding["state"] == "began" for finding in moved)
    weights = {finding["matters"] for finding in moved}
    return began, True if True in weights else None if None in weights else False
