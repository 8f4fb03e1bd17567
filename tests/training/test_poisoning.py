"""4,000 own predictions with inverted labels: through the real door, the drain and the loop."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from monitoring.drain import Drainer
from monitoring.store import labels
from service import keys
from service.configuration import load
from service.handover import Live, LiveVersion, write_live
from service.serving.front import Front
from service.serving.worker import Worker
from tests.places import Place, first, world
from training.cycle import run_cycle
from training.gates import GatePolicy
from training.runs import Run

__all__ = ["first"]  # the fixture: a deployment whose first version was trained

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

ROWS, BATCH = 4_000, 500


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
        self.crm = {
            "authorization": f"Bearer {keys.add(self.settings.tokens_file, 'crm', ('predict', 'feedback'), 1.0)}"
        }
        self.worker = Worker(self.settings, home / "run", "api-1")
        self.worker.start()

    def send(self, rows: int, seed: int, *, inverted: bool, headers: dict[str, str]) -> None:
        """Predictions of the unmoved world, and then their labels, right or inverted; drained at once."""
        frame = world(rows, seed)
        truth = frame.pop("late").tolist()
        records = frame.to_dict("records")

        async def run() -> None:
            async def beyond(scope: Any, receive: Any, send: Any) -> None:
                raise AssertionError(scope["path"])

            transport = httpx.ASGITransport(Front(beyond, lambda: self.worker))
            async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as http:
                for start in range(0, rows, BATCH):
                    answer = await http.post("/predict", json={"records": records[start : start + BATCH]})
                    assert answer.status_code == 200, answer.text
                    given = [
                        {"id": id_, "label": bool(label) is not inverted}
                        for id_, label in zip(answer.json()["ids"], truth[start : start + BATCH], strict=True)
                    ]
                    assert (await http.post("/feedback", json={"labels": given})).status_code == 202

        asyncio.run(run())
        with Drainer(self.settings.spool_dir, self.place.engine) as drainer:
            assert drainer.drain(time.time()).dead == 0

    def turns(self, gates: GatePolicy, count: int = 3) -> list[Run]:
        self.place.now = time.time() + 3_600
        return [run_cycle(replace(self.place.loop, gates=gates)) for _ in range(count)]

    def sources(self) -> dict[str, int]:
        with self.place.engine.connect() as connection:
            found = connection.execute(sa.select(labels.c.source, sa.func.count()).group_by(labels.c.source))
            return {source: count for source, count in found}


@pytest.fixture
def attacked(first: Path, tmp_path: Path) -> Iterator[Attacked]:
    import shutil

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


def test_by_default_whoever_reaches_feedback_teaches_the_model_as_the_readme_says(attacked: Attacked) -> None:
    attacked.send(1_000, 1, inverted=False, headers=attacked.crm)
    attacked.send(ROWS, 2, inverted=True, headers={})

    (run,) = attacked.turns(GatePolicy(min_holdout_rows=100), 1)

    assert (run.kind, run.trigger, run.outcome) == ("retrain", "quality", "promoted"), json.dumps(run.document)[:2000]
    assert attacked.place.registry.live().champion == 2
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert "anyone who can reach it can teach the model" in " ".join(readme.split())
