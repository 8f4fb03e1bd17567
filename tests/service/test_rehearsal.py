"""The infra gate: a candidate answers recorded rows in a fresh, real server before it takes over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.configuration import load
from service.control.rehearsal import rehearse
from service.settings import Settings
from tests.places import Place, first, place
from tests.world import known
from training import job
from training.artefact import TREES, TWIN, read_manifest, write_manifest
from training.gate_policy import GatePolicy
from training.manifest import GateResult
from training.pipeline import build, predict
from training.rehearsal import read_rehearsal, records_of, write_rehearsal
from training.runs import Run
from training.spec import JobResult, JobSpec

__all__ = ["first", "place"]  # fixtures: a deployment whose first version is in service

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


class Watched:
    """A deployment with the infra gate, and every process that its servers were seen to have."""

    def __init__(self, place: Place, home: Path, **gates: Any) -> None:
        self.place, self.seen = place, set[psutil.Process]()
        self._others = set(psutil.Process().children(recursive=True))
        self.settings: Settings = load(
            environ={"EVERGREEN_HOME": str(home), "EVERGREEN_MODEL__NAME": "credit"}
        ).model_copy(update={"gates": GatePolicy(min_holdout_rows=100, **gates)})

    def look(self) -> bool:
        self.seen |= set(psutil.Process().children(recursive=True)) - self._others
        return False

    def retrain(
        self, spoil: Callable[[Path], None] = lambda out: None, stopped: Callable[[], bool] = lambda: False
    ) -> Run:
        """A person's wish for a training in a world that has moved; `spoil` changes what the job left."""

        def run_job(spec: JobSpec) -> JobResult:
            result = job.run(spec)
            if spec.kind == "train":
                spoil(Path(spec.out))
            return result

        gate = partial(rehearse, self.settings, stopped=lambda: self.look() or stopped())
        self.place.loop = replace(self.place.loop, gates=self.settings.gates, run_job=run_job, rehearse=gate)
        return self.place.ask("retrain")

    def left(self) -> list[str]:
        """Processes of its servers that are still there."""
        _, alive = psutil.wait_procs(self.seen, timeout=60)
        return [str(process) for process in alive]


@pytest.fixture
def watched(place: Place, tmp_path: Path) -> Watched:
    place.answer(600, 2, moved=True)
    return Watched(place, tmp_path / "home")


def infra(run: Run) -> GateResult:
    assert run.record.verdict is not None, run.document
    return next(gate for gate in run.record.verdict.gates if gate.name == "infra")


def test_a_good_candidate_answers_in_a_fresh_server_first_and_nothing_of_that_is_left(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERGREEN_SECURITY__KEY", "k" * 32)  # what the replicas share is none of its business
    monkeypatch.setenv("EVERGREEN_PRIVACY__HASH", '["email"]')

    run = watched.retrain()

    assert (run.outcome, watched.place.registry.live().champion) == ("promoted", 2), run.document
    assert "answered 150 recorded rows over HTTP as the candidate itself does" in infra(run).reason
    assert infra(run).value is not None and infra(run).value < 1e-5
    verdict = watched.place.registry.manifest(2).verdict
    assert verdict is not None and verdict.gates[-1] == infra(run)
    assert watched.seen and watched.left() == []
    assert list(watched.place.loop.work_dir.iterdir()) == []


def test_a_candidate_that_is_served_otherwise_than_it_was_judged_stays_out(watched: Watched) -> None:
    champion = watched.place.registry.path(1)

    def with_the_champions_twin(out: Path) -> None:
        for name in (TWIN, TREES):
            if (champion / name).exists():
                (out / name).write_bytes((champion / name).read_bytes())
        write_manifest(out, read_manifest(out).document)  # its digests are right: only its answers are not

    run = watched.retrain(with_the_champions_twin)

    assert (run.state, run.outcome) == ("done", "kept"), run.document
    assert not infra(run).passed and "otherwise than the candidate itself" in infra(run).reason
    assert [gate.name for gate in run.record.verdict.gates if not gate.passed] == ["infra"]
    assert [version.version for version in watched.place.registry.list()] == [1]
    assert watched.place.registry.live().champion == 1
    assert watched.left() == []


def test_a_candidate_that_does_not_load_stays_out_with_the_servers_own_words(watched: Watched) -> None:
    def damaged(out: Path) -> None:
        (out / TWIN).write_bytes((out / TWIN).read_bytes()[:-1])

    run = watched.retrain(damaged)

    assert run.outcome == "kept", run.document
    assert not infra(run).passed and "model.onnx was changed" in infra(run).reason
    assert watched.place.registry.live().champion == 1
    assert watched.left() == []


def test_who_stops_or_pauses_the_loop_does_not_wait_for_the_server(watched: Watched) -> None:
    run = watched.retrain(stopped=lambda: True)

    assert (run.state, run.outcome) == ("failed", "stopped"), run.document
    assert watched.place.registry.live().champion == 1
    assert watched.seen and watched.left() == []


def test_a_server_that_is_not_ready_in_time_is_a_refusal_and_is_ended(place: Place, tmp_path: Path) -> None:
    place.answer(600, 2, moved=True)
    watched = Watched(place, tmp_path / "home", infra_timeout_s=0.2)
    run = watched.retrain()

    assert run.outcome == "kept", run.document
    assert "was not ready in time (gates.infra_timeout_s)" in infra(run).reason
    assert place.registry.live().champion == 1
    assert watched.seen and watched.left() == []


def test_a_candidate_that_another_gate_has_refused_starts_no_server(place: Place, tmp_path: Path) -> None:
    place.answer(600, 2, moved=True)
    watched = Watched(place, tmp_path / "home", min_quality=1.0)
    run = watched.retrain()

    assert run.outcome == "kept"
    assert infra(run).reason == "not asked: another gate has refused the candidate"
    assert watched.seen == set()


def test_records_become_the_rows_that_they_were_made_of(tmp_path: Path) -> None:
    schema, features, labels = known(300)
    assert {feature.kind for feature in schema.features} == {"numeric", "boolean", "categorical", "datetime"}
    assert schema.frame(records_of(features, schema)).equals(features.reset_index(drop=True))
    pipeline = build(schema, {"max_iter": 5}).fit(features, labels)
    write_rehearsal(tmp_path / "artefact", pipeline, features, schema)
    asked = read_rehearsal(tmp_path / "artefact")
    assert asked.expected == predict(pipeline, features.tail(200), schema).tolist()
