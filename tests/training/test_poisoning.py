"""4,000 own predictions with inverted labels: through the real door, the drain and the loop."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sa

from monitoring.drain import Drainer
from monitoring.schema import FeatureSchema
from monitoring.store import labels
from service.configuration import load
from service.control.deployment import trusted_rows
from service.control.in_force import InForceFiles
from service.handover import Live, LiveVersion, write_live
from service.serving.front import Front
from service.serving.worker import Worker
from tests.places import Place, adapted, first, world
from tests.wired import add_token
from training.adaptation import link
from training.adaptations import Adaptations
from training.artefact import SCHEMA, read_manifest
from training.cycle import run_cycle
from training.experts import AdaptPolicy
from training.gate_policy import GatePolicy
from training.loaded import load_model
from training.runs import Run

__all__ = ["first"]  # the fixture: a deployment whose first version was trained

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

ROWS, BATCH = 4_000, 500
UNLIKE = ("latency", "size")
"""Gates that measure something else each time: a skops file names its objects by their place in memory."""


class Attacked:
    """A deployment with its door; everybody here is on the same machine."""

    def __init__(self, home: Path) -> None:
        self.place = Place(home)
        self.settings = load(
            environ={
                "EVERGREEN_HOME": str(home),
                "EVERGREEN_STORE__URL": f"sqlite:///{home}/evergreen.db",
                "EVERGREEN_MODEL__NAME": "credit",
            }
        )
        champion = LiveVersion(1, str(self.place.registry.path(1)))
        write_live(self.settings.live_file, Live(model="credit", champion=champion))
        self.crm = {"authorization": f"Bearer {add_token(self.settings.tokens_file, 'crm', ('predict', 'feedback'))}"}
        self.worker = Worker(self.settings, home / "run", "api-1")
        self.worker.start()

    def send(
        self, rows: int, seed: int, *, inverted: bool, headers: dict[str, str], spoilt: bool = False
    ) -> list[dict[str, Any]]:
        """Predictions of the unmoved world, and then their labels, right or inverted; drained at once.

        `spoilt`: somebody without a token sends the contrary of each label afterwards. Returns the answers.
        """
        frame = world(rows, seed)
        truth = frame.pop("late").tolist()
        records = frame.to_dict("records")
        answers = []

        async def run() -> None:
            async def beyond(scope: Any, receive: Any, send: Any) -> None:
                raise AssertionError(scope["path"])

            transport = httpx.ASGITransport(Front(beyond, lambda: self.worker))
            async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as http:
                for start in range(0, rows, BATCH):
                    answer = await http.post("/predict", json={"records": records[start : start + BATCH]})
                    assert answer.status_code == 200, answer.text
                    answers.append(answer.json())
                    given = [
                        {"id": id_, "label": bool(label) is not inverted}
                        for id_, label in zip(answer.json()["ids"], truth[start : start + BATCH], strict=True)
                    ]
                    assert (await http.post("/feedback", json={"labels": given})).status_code == 202
                    if spoilt:
                        contrary = [{**one, "label": not one["label"]} for one in given]
                        said = await http.post("/feedback", json={"labels": contrary}, headers={"authorization": ""})
                        assert said.status_code == 202, said.text

        asyncio.run(run())
        with Drainer(self.settings.spool_dir, self.place.engine) as drainer:
            assert drainer.drain(time.time()).dead == 0
        return answers

    def hand_over(self) -> int | None:
        """What is in force comes to the workers, as the controller does it; its number."""
        files = InForceFiles(self.settings.adaptations_dir, Adaptations(self.place.engine))
        named = files.named(1)
        champion = LiveVersion(1, str(self.place.registry.path(1)), named)
        write_live(self.settings.live_file, Live(model="credit", champion=champion))
        self.worker._look(time.monotonic())
        return None if named is None else named.number

    def raw(self, rows: int, seed: int) -> np.ndarray:
        """What the champion itself says of the rows of `send`: probabilities n by 2."""
        folder = self.place.registry.path(1)
        schema = FeatureSchema.from_json((folder / SCHEMA).read_bytes())
        model = load_model(folder, read_manifest(folder), schema)
        return model.answer_with_matrix(schema.canonical(world(rows, seed)))[0]

    def turns(self, gates: GatePolicy, count: int = 3) -> list[Run]:
        self.place.now = time.time() + 3_600
        return [run_cycle(replace(self.place.loop, gates=gates)) for _ in range(count)]

    def sources(self) -> dict[str, int]:
        with self.place.engine.connect() as connection:
            found = connection.execute(sa.select(labels.c.source, sa.func.count()).group_by(labels.c.source))
            return {source: count for source, count in found}


@pytest.fixture
def attacked(first: Path, tmp_path: Path) -> Iterator[Attacked]:
    shutil.copytree(first, tmp_path / "home")
    deployment = Attacked(tmp_path / "home")
    yield deployment
    deployment.worker.close()
    deployment.place.engine.dispose()


def test_with_a_trusted_source_inverted_labels_of_others_change_nothing(attacked: Attacked) -> None:
    attacked.send(1_000, 1, inverted=False, headers=attacked.crm)
    attacked.send(ROWS, 2, inverted=True, headers={})

    runs = attacked.turns(GatePolicy(min_holdout_rows=100, label_sources=("crm",)))

    assert attacked.sources() == {"crm": 1_000, "": ROWS}
    assert attacked.place.registry.live().champion == 1 and attacked.place.registry.live().announced is None
    assert [run.outcome for run in runs] == ["no_action"] * 3
    (check,) = attacked.place.runs.checks(limit=1)
    assert check.quality is not None and check.quality["rows"] == 1_000 and check.quality["value"] > 0.9
    attacked.place.runs.queue("retrain", trigger="manual", who="ana", why="x", now=attacked.place.now)
    run = attacked.place.runs.claim(1, attacked.place.now)
    assert run is not None
    done = run_cycle(replace(attacked.place.loop, gates=GatePolicy(min_holdout_rows=100, label_sources=("crm",))), run)
    assert done.document["data"]["record_rows"] == 1_000  # training sees none of them either


def test_by_default_whoever_reaches_feedback_teaches_the_model_as_the_documents_say(attacked: Attacked) -> None:
    attacked.send(1_000, 1, inverted=False, headers=attacked.crm)
    attacked.send(ROWS, 2, inverted=True, headers={})

    (run,) = attacked.turns(GatePolicy(min_holdout_rows=100), 1)

    assert (run.kind, run.trigger, run.outcome) == ("retrain", "quality", "promoted"), json.dumps(run.document)[:2000]
    assert attacked.place.registry.live().champion == 2
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    assert "anyone who can reach it can teach the model" in " ".join(page.split())


def test_rows_that_only_the_owner_writes_refuse_what_inverted_labels_teach(attacked: Attacked, tmp_path: Path) -> None:
    """The same attack on the same open door; the owner has named a file that trains nothing."""
    world(500, 99).to_csv(tmp_path / "reviewed.csv", index=False)
    settings = attacked.settings.model_copy(
        update={"data": attacked.settings.data.model_copy(update={"trusted_holdout": str(tmp_path / "reviewed.csv")})}
    )
    attacked.place.loop = replace(attacked.place.loop, trusted_rows=partial(trusted_rows, settings))
    attacked.send(1_000, 1, inverted=False, headers=attacked.crm)
    attacked.send(ROWS, 2, inverted=True, headers={})

    (run,) = attacked.turns(GatePolicy(min_holdout_rows=100), 1)

    assert (run.kind, run.outcome) == ("retrain", "kept"), json.dumps(run.document)[:2000]
    assert attacked.place.registry.live().champion == 1
    verdict = run.record.verdict
    assert verdict is not None and [gate.name for gate in verdict.gates if not gate.passed] == ["trusted_holdout"]
    assert "on 500 trusted rows: worse with probability 1.000" in verdict.reasons[0]
    assert run.document["trusted_holdout"]["rows"] == 500
    answers = attacked.send(BATCH, 3, inverted=False, headers=attacked.crm)
    assert answers[0]["version"] == 1


def test_a_trusted_file_that_cannot_be_used_stops_the_training_and_is_named(attacked: Attacked, tmp_path: Path) -> None:
    world(50, 99).drop(columns="debt").to_csv(tmp_path / "reviewed.csv", index=False)
    for name, words in (("absent.csv", "does not exist"), ("reviewed.csv", "has no column 'debt'")):
        data = attacked.settings.data.model_copy(update={"trusted_holdout": str(tmp_path / name)})
        settings = attacked.settings.model_copy(update={"data": data})
        attacked.place.loop = replace(attacked.place.loop, trusted_rows=partial(trusted_rows, settings))
        attacked.place.answer(400, 7, moved=False)
        run = attacked.place.ask("retrain")
        assert (run.state, run.outcome) == ("failed", "refused"), run.document
        assert run.record.error is not None
        assert run.record.error.startswith("data.trusted_holdout: ") and words in run.record.error
        assert attacked.place.registry.live().champion == 1


def test_labels_of_others_move_neither_adaptation_nor_verdict_nor_training(
    attacked: Attacked, first: Path, tmp_path: Path
) -> None:
    """Two deployments see the same rows with the same labels of the CRM. In one of them somebody sends the contrary of
    each, too, and 4,000 labels more. Both make the same adaptation, verdict and model, to the last byte."""
    shutil.copytree(first, tmp_path / "clean")
    clean = Attacked(tmp_path / "clean")
    attacked.send(1_000, 1, inverted=False, headers=attacked.crm, spoilt=True)
    attacked.send(ROWS, 2, inverted=True, headers={})
    clean.send(1_000, 1, inverted=False, headers=clean.crm)
    assert attacked.sources() == {"crm": 1_000, "": 1_000 + ROWS}

    adapted, verdicts, trained = [], [], []
    for one in (clean, attacked):
        gates = GatePolicy(min_holdout_rows=100, label_sources=("crm",))
        (run,) = one.turns(gates, 1)
        assert (run.kind, run.outcome) == ("check", "no_action")
        adapted.append(Adaptations(one.place.engine).served(1, 1))
        (check,) = one.place.runs.checks(limit=1)
        assert check.quality is not None
        verdicts.append({name: check.quality[name] for name in ("rows", "value", "error", "metrics")})
        loop = replace(one.place.loop, gates=gates)
        one.place.runs.queue("retrain", trigger="manual", who="ana", why="x", now=one.place.now)
        done = run_cycle(loop, one.place.runs.claim(1, one.place.now))
        assert done.document["data"]["record_rows"] == 1_000
        judged = done.document["verdict"]["gates"]
        trained.append([{**gate, "reason": ""} for gate in judged if gate["name"] not in UNLIKE])
    clean.worker.close()
    clean.place.engine.dispose()
    assert adapted[0] == adapted[1]
    assert verdicts[0] == verdicts[1]
    assert trained[0] == trained[1]


def test_without_a_trusted_label_there_is_nothing_to_adapt_to(attacked: Attacked) -> None:
    attacked.send(1_000, 2, inverted=True, headers={})
    loop = replace(attacked.place.loop, gates=GatePolicy(min_holdout_rows=100, label_sources=("crm",)))
    assert adapted(loop) is None
    assert attacked.hand_over() is None
    loop = replace(loop, gates=GatePolicy(min_holdout_rows=100))
    found = adapted(loop)
    assert found is not None and found.made, "by default everybody is trusted"


def test_poison_from_a_trusted_source_moves_answers_within_the_bound_and_is_taken_back(attacked: Attacked) -> None:
    policy = AdaptPolicy(rate=1.0, identity_prior=0.01, half_life_rows=100_000, guard_alpha=0.05)
    most = policy.max_move
    gates = GatePolicy(min_holdout_rows=100, label_sources=("crm",))
    loop = replace(attacked.place.loop, adapt=policy, gates=gates, clock=time.time)

    for seed in (1, 2, 3):
        answers = attacked.send(BATCH, seed, inverted=True, headers=attacked.crm)
        assert adapted(loop) is not None
        number = attacked.hand_over()
        assert number == seed
    (answer,) = attacked.send(BATCH, 4, inverted=True, headers=attacked.crm)
    assert answer["adaptation"] == number
    served, raw = np.array(answer["probabilities"]), attacked.raw(BATCH, 4)
    moved = np.abs(link(served, "binary") - link(raw, "binary"))
    assert 0.9 * most < moved.max() <= most + 1e-3

    for seed in range(11, 20):  # the true labels come back
        answers = attacked.send(BATCH, seed, inverted=False, headers=attacked.crm)
        moved = np.abs(
            link(np.array(answers[0]["probabilities"]), "binary") - link(attacked.raw(BATCH, seed), "binary")
        )
        assert moved.max() <= most + 1e-3
        found = adapted(loop)
        if found is not None and found.harm:
            break
        attacked.hand_over()
    newest = Adaptations(attacked.place.engine).list(1)[0]
    assert newest.kind == "reverted" and "loses" in newest.why
    assert attacked.hand_over() is None
    (answer,) = attacked.send(BATCH, 30, inverted=False, headers=attacked.crm)
    assert "adaptation" not in answer
    assert np.array(answer["probabilities"]) == pytest.approx(attacked.raw(BATCH, 30), abs=1e-6)
