"""Deployments without a server: a small credit story, its loop in a folder, and rows as its record holds them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from monitoring.drain import Drainer
from monitoring.drift import DriftPolicy
from monitoring.log import LogPolicy, PredictionLog
from monitoring.maturity import Maturity
from monitoring.quality import QualityPolicy
from monitoring.record import FEEDBACK, PREDICTION
from monitoring.schema import FeatureSchema
from monitoring.store import connect, labels, open_store, predictions
from tests.once import once
from training import job
from training.adaptation import Adapter, decode
from training.adaptations import Adaptations
from training.adapting import adapt
from training.artefact import SCHEMA, read_manifest
from training.checking import Seen, check, matured_rows, maturity
from training.cycle import bootstrap, run_cycle, work_off
from training.data import Prepared, prepare
from training.experts import AdaptPolicy
from training.gate_policy import GatePolicy
from training.lease import CONTROLLER, Lease
from training.loaded import load_model
from training.loop import Loop
from training.policy import RetrainPolicy
from training.registry import NoChampion, Registry
from training.runs import Run, Runs
from training.spec import Adapted
from training.split import TrainPolicy
from training.subprocess_job import subprocess_job

TOKEN = 1
START = 1_700_000_000.0
POLICY = LogPolicy(fsync="never")
NOW = 1_700_000_000.0


def world(rows: int, seed: int, *, moved: bool = False) -> pd.DataFrame:
    """Labelled rows of a small credit story; when the world has moved, incomes grew and the risk turned round."""
    random = np.random.default_rng(seed)
    income = random.normal(3.0 if moved else 0.0, 1.0, rows)
    debt = random.normal(2.0 if moved else 0.0, 1.0, rows)
    purpose = random.choice(["car", "home", "travel"], rows)
    risk = (income - 3.0) - (debt - 2.0) if moved else debt - income
    late = risk + (purpose == "travel") + random.normal(0, 0.5, rows) > 0
    return pd.DataFrame({"income": income, "debt": debt, "purpose": purpose, "late": late})


def source() -> Prepared:
    return prepare(world(700, 0), target="late")


class Place:
    """One deployment in a folder: a clock that only moves when told, the events it heard, its loop."""

    def __init__(self, folder: Path, store_url: str = "") -> None:
        self.now, self.heard = START, list[tuple[str, Mapping[str, Any]]]()
        self.engine = connect(store_url or f"sqlite:///{folder}/evergreen.db")
        self.registry = Registry(self.engine, folder / "bentoml" / "models", "credit")
        self.runs = Runs(self.engine)
        self.loop = Loop(
            engine=self.engine,
            registry=self.registry,
            runs=self.runs,
            token=TOKEN,
            who="test",
            seed=0,
            drift=DriftPolicy(min_rows=100),
            quality=QualityPolicy(min_labels=50),
            retrain=RetrainPolicy(growth=2.0, cooldown_s=60, min_labelled_rows=300, min_new_labelled_rows=100),
            gates=GatePolicy(min_holdout_rows=100),
            training=TrainPolicy(min_rows=100),
            adapt=AdaptPolicy(),
            snapshots_dir=folder / "snapshots",
            work_dir=folder / "work",
            source=source,
            run_job=job.run,
            live_workers=lambda: (),
            on_event=lambda event, fields: self.heard.append((event, fields)),
            clock=lambda: self.now,
            sleep=self.sleep,
        )

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def answer(self, rows: int, seed: int, *, moved: bool, labelled: bool = True) -> None:
        """The champion answers `rows` requests, one a second, and their labels come back: as the drain stores them."""
        frame = world(rows, seed, moved=moved)
        champion = self.registry.champion()
        folder = self.registry.path(champion)
        schema = FeatureSchema.from_json((folder / SCHEMA).read_bytes())
        model = load_model(folder, read_manifest(folder), schema)
        chances, x = model.answer_with_matrix(schema.canonical(frame))
        table = Adaptations(self.engine)
        adaptation = table.in_force(champion)
        if adaptation is not None:
            chances = Adapter(decode(table.served(champion, adaptation.number))).apply(chances, x)
        key = {"day": 1, "segment": int(self.now * 1000)}
        answered, known = [], []
        for at, (row, p) in enumerate(zip(frame.to_dict("records"), chances, strict=True)):
            late = bool(row.pop("late"))
            self.now += 1
            row_key = {**key, "position": at << 16}
            answered.append(
                {
                    **row_key,
                    "id": f"{seed}-{at}",
                    "at": self.now,
                    "version": champion,
                    "features": json.dumps(row),
                    "prediction": json.dumps(bool(p[1] > 0.5)),
                    "probabilities": json.dumps(p.tolist()),
                    "adaptation": None if adaptation is None else adaptation.number,
                }
            )
            label = {"id": f"{seed}-{at}", "label": json.dumps(late), "observed_at": self.now, "received_at": self.now}
            known.append({**row_key, **label})
        with self.engine.begin() as connection:
            connection.execute(predictions.insert(), answered)
            if labelled:
                connection.execute(labels.insert(), known)

    def ask(self, kind: str, **payload: Any) -> Run:
        """A person's wish, carried out."""
        self.runs.queue(kind, trigger="manual", who="ana", why="because", now=self.now, payload=payload)
        run = work_off(self.loop)
        assert run is not None
        return run

    def events(self) -> list[str]:
        return [event for event, _ in self.heard]


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment whose first version was trained in a process of its own."""
    return once(tmp_path_factory, "first", _train)


def _train(folder: Path) -> None:
    open_store(f"sqlite:///{folder}/evergreen.db").dispose()
    place = Place(folder)
    assert Lease(place.engine, CONTROLLER, "test", 86_400).acquire()
    with pytest.raises(NoChampion):
        run_cycle(place.loop)
    run = bootstrap(replace(place.loop, run_job=partial(subprocess_job, timeout_s=600)))
    assert run is not None and (run.state, run.outcome, run.version) == ("done", "promoted", 1), run
    assert (run.kind, run.trigger, run.document["verdict"]["passed"]) == ("bootstrap", "start", True)
    assert place.events() == ["training_started", "training_ended", "judged", "run_finished"]
    with place.engine.begin() as connection:
        connection.exec_driver_sql("pragma wal_checkpoint(truncate)")
    place.engine.dispose()


@pytest.fixture
def place(first: Path, tmp_path: Path) -> Iterator[Place]:
    """A deployment of its own, with version 1 in service."""
    shutil.copytree(first, tmp_path / "home")
    place = Place(tmp_path / "home")
    yield place
    place.engine.dispose()


def adapted(loop: Loop, champion: int = 1, until: float = math.inf) -> Adapted | None:
    """What comes of adapting this version to its rows answered before `until`."""
    labels_now = Maturity(0.0, until, measured=False, labels=0)
    return adapt(loop, champion, matured_rows(loop, champion, until), labels_now)


def checked(loop: Loop, champion: int = 1) -> Seen:
    """What a check of this version finds."""
    labels_now = maturity(loop)
    return check(loop, champion, labels_now, matured_rows(loop, champion, labels_now.matured_until))


def append(log: PredictionLog, at: float, ids: list[str], records: list[dict[str, Any]]) -> None:
    answer = {"model": "credit", "version": 1, "ids": ids, "predictions": [True] * len(ids)}
    answer["probabilities"] = [[0.2, 0.8]] * len(ids)
    assert log.append(PREDICTION, at, len(ids), json.dumps(answer).encode(), json.dumps({"records": records}).encode())


def append_label(log: PredictionLog, at: float, id_: str) -> None:
    assert log.append(FEEDBACK, at, 1, json.dumps({"labels": [{"id": id_, "label": True}]}).encode())


def record(purpose: str, income: float = 1.5) -> dict[str, Any]:
    return {"income": income, "debt": 0.25, "purpose": purpose}


def drain(spool: Path, engine: sa.Engine, now: float = NOW) -> Any:
    with Drainer(spool, engine) as drainer:
        return drainer.drain(now)


def files_with(folder: Path, *needles: str) -> list[str]:
    """Files that hold one of the texts: as bytes, or in a cell of a Parquet file."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content += pd.read_parquet(path).to_csv().encode()
        if any(needle.encode() in content for needle in needles):
            found.append(str(path.relative_to(folder)))
    return found
