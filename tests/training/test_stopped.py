"""Each kind of bad candidate is stopped by the gate that is there for it, and the champion goes on serving.

Two more are elsewhere: inverted labels in `test_poisoning.py`, what a fresh server answers in
`tests/service/test_rehearsal.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
import sqlalchemy as sa
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from monitoring.schema import FeatureSchema
from monitoring.store import labels, predictions
from tests.places import Place, first, place, world
from tests.training.test_job import job
from training.artefact import SCHEMA, read_manifest
from training.data import assemble, prepare, snapshot
from training.gate_policy import GatePolicy
from training.job import run
from training.runs import Run

__all__ = ["first", "place"]  # fixtures: a deployment whose first version is in service

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

NUMBERS, WORDS = ["income", "debt"], ["purpose"]


def pushed(place: Place, pipeline: Pipeline, path: Path, spoil: Callable[[pd.DataFrame], Any] | None = None) -> Run:
    """The run of a pipeline that was fitted to the world as it is now; `spoil` says with which labels."""
    frame = world(4_000, 77, moved=True)
    frame.loc[::10, "income"] = np.nan
    schema = FeatureSchema.from_json((place.registry.path(1) / SCHEMA).read_bytes())
    known = frame["late"].to_numpy() if spoil is None else spoil(frame)
    model = pipeline.fit(schema.canonical(frame), known)
    skops.io.dump(model, path / "mine.skops")
    return place.ask("push", path=str(path / "mine.skops"))


def with_gates(place: Place, **gates: Any) -> Place:
    place.answer(1_600, 2, moved=True)
    place.loop = replace(place.loop, gates=GatePolicy(min_holdout_rows=100, **gates))
    return place


def boosting(**numbers: Any) -> Pipeline:
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    columns = ColumnTransformer([("numbers", numbers.get("numbers", "passthrough"), NUMBERS), ("words", codes, WORDS)])
    return Pipeline([("columns", columns), ("model", HistGradientBoostingClassifier(random_state=0))])


def failed(done: Run) -> set[str]:
    assert done.record.verdict is not None, done.document
    return {gate.name for gate in done.record.verdict.gates if not gate.passed}


def stays(place: Place, done: Run) -> bool:
    assert place.registry.live().champion == 1 and place.registry.live().announced is None
    assert [version.version for version in place.registry.list()] == [1]
    return done.outcome in ("kept", "refused")


def test_the_same_pipeline_without_a_fault_takes_over(place: Place, tmp_path: Path) -> None:
    done = pushed(with_gates(place, sensitive=("purpose",), min_segment_rows=40), boosting(), tmp_path)
    assert (done.outcome, place.registry.live().champion) == ("promoted", 2), done.document


def test_a_feature_that_leaks_the_label(place: Place) -> None:
    place.answer(1_600, 2, moved=True)
    with place.engine.begin() as connection:
        late = {id_: label for id_, label in connection.execute(sa.select(labels.c.id, labels.c.label))}
        for id_, features in connection.execute(sa.select(predictions.c.id, predictions.c.features)).all():
            known = {**json.loads(features), "debt": 40.0 + float(late[id_] == "true")}
            change = predictions.update().where(predictions.c.id == id_).values(features=json.dumps(known))
            connection.execute(change)

    done = place.ask("retrain")

    assert stays(place, done) and (done.state, done.outcome) == ("done", "refused")
    assert done.record.error is not None and "leak: 'debt' alone tells the label" in done.record.error
    assert [(found.check, found.action) for found in done.record.data_checks if found.action == "stop"] == [
        ("leak", "stop")
    ]
    assert done.record.job is not None and any("data check leak" in note for note in done.record.job.notes)


def test_one_that_is_better_overall_and_worse_for_one_group(place: Place, tmp_path: Path) -> None:
    def turned_for_some(frame: pd.DataFrame) -> Any:
        return np.where(frame["purpose"] == "travel", ~frame["late"], frame["late"])

    with_gates(place, sensitive=("purpose",), min_segment_rows=40)
    done = pushed(place, boosting(), tmp_path, turned_for_some)

    assert stays(place, done)
    assert {"segments", "fairness"} <= failed(done)
    assert "quality" not in failed(done), "the loss alone would have taken it"


def test_one_that_is_better_and_five_times_slower(place: Place, tmp_path: Path) -> None:
    words = OneHotEncoder(handle_unknown="ignore")
    columns = ColumnTransformer([("numbers", "passthrough", NUMBERS), ("words", words, WORDS)])
    slow = Pipeline([("columns", columns), ("model", RandomForestClassifier(400, random_state=0))])
    with_gates(place, one_row_budget_ms=0.001, batch_budget_ms=0.001)

    done = pushed(place, slow, tmp_path)

    assert stays(place, done) and failed(done) == {"latency"}
    assert done.record.verdict is not None
    found = next(gate for gate in done.record.verdict.gates if gate.name == "latency")
    assert found.value is not None and found.value > 5


def test_a_twin_that_answers_otherwise_than_its_pipeline(tmp_path: Path) -> None:
    """A scaler before trees: in float32 large numbers fall on the other side of a threshold. Trees that know missing
    values have no twin in float64."""
    random = np.random.default_rng(0)
    meter = 1e5 + 3 * random.normal(size=3_000)
    late = np.sin(4 * meter) + 0.3 * random.normal(size=3_000) > 0  # many thresholds
    frame = pd.DataFrame({"meter": np.where(random.random(3_000) < 0.1, np.nan, meter), "late": late})
    data = prepare(frame, target="late")
    source, record = data.frame.iloc[:600], data.frame.iloc[600:]
    champion = run(job(data.schema, snapshot(source, tmp_path), tmp_path / "v1"))
    assert champion.passed and read_manifest(tmp_path / "v1").twin is not None
    pipeline = Pipeline([("scale", StandardScaler()), ("model", HistGradientBoostingClassifier(random_state=0))])
    skops.io.dump(pipeline.fit(data.schema.canonical(frame), frame["late"]), tmp_path / "mine.skops")
    known = snapshot(assemble(data.schema, source, record), tmp_path)
    until = float(source["_at"].iloc[-1])
    given = {
        "kind": "judge",
        "champion_until": until,
        "champion": str(tmp_path / "v1"),
        "pushed": str(tmp_path / "mine.skops"),
        "due": True,
    }

    refused = run(job(data.schema, known, tmp_path / "v2", gates={"twin_must_agree": "always"}, **given))

    assert refused.ok and not refused.passed and refused.verdict is not None, refused.error
    (parity,) = [gate for gate in refused.verdict.gates if not gate.passed]
    assert parity.name == "parity" and "answers otherwise than its pipeline" in parity.reason
    assert run(job(data.schema, known, tmp_path / "v2", **given)).passed, "scikit-learn serves it"
    assert read_manifest(tmp_path / "v2").twin is None
