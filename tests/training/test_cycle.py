from __future__ import annotations

import pickle
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from monitoring.quality import QualityPolicy
from monitoring.schema import FeatureSchema
from monitoring.store import leases
from tests.places import START, TOKEN, Place, checked, first, place, world
from training import checking, job
from training.artefact import SCHEMA
from training.cycle import bootstrap, run_cycle, take_over, work_off
from training.gate_policy import GatePolicy
from training.lease import CONTROLLER, Lease, LeaseLost
from training.manifest import NO_ACTION
from training.pipeline import build
from training.policy import RetrainPolicy
from training.rollout import WorkerState
from training.runs import Run
from training.spec import JobResult, JobSpec
from training.split import TrainPolicy
from training.storage import Storage, shared_push
from training.subprocess_job import subprocess_job

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # importing bentoml warns

__all__ = ["first", "place"]  # fixtures


def turn(place: Place, **changes: Any) -> Run:
    return run_cycle(replace(place.loop, **changes))


def test_a_deployment_with_a_champion_is_not_bootstrapped_again(place: Place) -> None:
    assert bootstrap(place.loop) is None
    assert place.registry.live().champion == 1


def test_nothing_moved_is_a_no_in_the_runs_with_its_reasons(place: Place) -> None:
    place.answer(400, 1, moved=False)

    run = turn(place)

    assert (run.kind, run.state, run.outcome, run.version) == ("check", "done", NO_ACTION, 1)
    assert "quality not known yet: served " in run.why and "no drift: 0 of 3 features moved" in run.why
    (check,) = place.runs.checks()
    assert check.drift is not None and check.drift["detected"] is False
    assert check.quality is not None and check.quality["rows"] == check.quality["answered"] == 400
    assert check.quality["state"] == "not known yet" and check.quality["words"] in run.why
    assert (check.quality["labels"]["delay_s"], check.quality["labels"]["coverage"]) == (0.0, 1.0)
    assert place.events() == ["adapted", "checked", "run_finished"]


def test_a_movement_begins_at_one_check_and_goes_on_at_the_next(place: Place) -> None:
    place.answer(400, 1, moved=True, labelled=False)
    first_look = checked(place.loop).drift
    turn(place)
    place.answer(400, 2, moved=True, labelled=False)
    second_look = checked(place.loop).drift

    assert first_look.news and first_look.matters
    assert [f.state for f in first_look.findings if f.name in ("income", "debt")] == ["began", "began"]
    assert [f.state for f in second_look.findings if f.name in ("income", "debt")] == ["continues", "continues"]


def test_an_empty_record_is_a_no_that_says_what_is_missing(place: Place) -> None:
    run = turn(place)

    assert run.outcome == NO_ACTION
    assert "the window has 0 rows; drift needs at least 100" in run.why
    assert "quality not known yet" in run.why
    assert "growth: 0 labelled rows since the last training, 1,400 make one due (200% of 700)" in run.why


def test_rows_are_counted_on_when_older_ones_are_not_read_any_more(place: Place) -> None:
    few = QualityPolicy(min_labels=50, judged_rows=100, window_rows=50)
    told = []
    for seed, rows in enumerate((90, 60, 60, 250)):
        place.answer(rows, seed, moved=False)
        turn(place, quality=few)
        quality = place.runs.checks(limit=1)[0].quality or {}
        told.append((quality["answered"], quality["compared"][0]["fall"]["rows"] <= 100, quality["rows"]))

    assert told == [(90, True, 50), (150, True, 50), (210, True, 50), (460, True, 50)]


def test_rows_whose_labels_are_not_all_there_count_neither_for_quality_nor_for_growth(place: Place) -> None:
    place.answer(400, 1, moved=True)

    run = turn(place, quality=QualityPolicy(min_labels=50, label_delay=300))

    assert "growth: 100 labelled rows since the last training" in run.why
    quality = place.runs.checks(limit=1)[0].quality or {}
    assert quality["rows"] == 100
    assert quality["labels"]["waiting"] == 300 and quality["labels"]["delay_s"] == 300
    assert run.outcome == NO_ACTION and "100 labelled rows, 300 needed" in run.why


def test_trainings_keep_their_trials_where_the_next_one_finds_them_and_tell_what_came_of_it(
    place: Place, tmp_path: Path
) -> None:
    search = TrainPolicy(min_rows=100, trials=3, families=("linear",))
    place.answer(600, 2, moved=True)

    run = turn(place, training=search, studies_dir=tmp_path / "studies")

    assert run.outcome == "promoted", run.document
    assert run.record.job is not None and run.record.job.notes[0].startswith("3 trials of parameters in ")
    (study,) = (tmp_path / "studies").iterdir()
    assert len(study.read_text().splitlines()) == 1 + 3
    manifest = place.registry.manifest(2)
    assert manifest.data.search is not None and manifest.data.search.trials == 3


def test_when_the_world_moves_a_better_version_is_trained_judged_and_promoted(place: Place) -> None:
    place.answer(600, 2, moved=True)

    run = turn(place)

    assert (run.kind, run.state, run.outcome, run.version) == ("retrain", "done", "promoted", 2), run.document
    assert run.trigger == "quality" and run.record.decision is not None and run.record.decision.due
    assert place.registry.live().champion == 2 and place.registry.live().previous == 1
    story = run.document
    assert story["quality"]["challenger"] > story["quality"]["champion"] + 0.2
    assert story["data"]["record_rows"] == 600 and story["data"]["rows"] == 1300
    assert [gate["passed"] for gate in story["verdict"]["gates"]] == [True] * len(story["verdict"]["gates"])
    assert story["rollout"]["reason"] == "no live workers to wait for"
    assert place.runs.checks(limit=1)[0].id == story["check"]
    assert place.registry.get(2).origin == "retrain"
    assert place.registry.manifest(2).data.snapshot == story["data"]["snapshot"]
    assert place.events()[-5:] == ["checked", "training_started", "training_ended", "judged", "run_finished"]
    assert list((place.loop.work_dir).iterdir()) == []


def test_after_a_promotion_the_new_world_is_no_drift_and_the_cooldown_counts(place: Place) -> None:
    place.answer(600, 2, moved=True)
    turn(place)

    place.answer(300, 3, moved=True)
    run = turn(place)

    assert run.outcome == NO_ACTION
    assert "quality lost" not in run.why and "served " in run.why and "no drift" in run.why
    history = checking.past(place.loop, checked(place.loop, 2))
    assert (history.trained_rows, history.refusals) == (1_300, 0)
    assert (history.new_labelled_rows, history.crashes, history.drift_checks) == (300, 0, 0)
    assert history.last_trained_at == START + 600


def test_a_candidate_that_does_not_win_leaves_the_champion(place: Place) -> None:
    place.answer(400, 4, moved=False)
    never = {"max_latency_ratio": 1e-6, "one_row_budget_ms": 1e-6, "batch_budget_ms": 1e-6}
    place.loop = replace(place.loop, gates=GatePolicy(min_holdout_rows=100, **never))

    run = place.ask("retrain")

    assert (run.state, run.outcome, run.version) == ("done", "kept", None), run.document
    assert place.registry.live().champion == 1
    assert [known.version for known in place.registry.list()] == [1]
    lost = [gate for gate in run.document["verdict"]["gates"] if not gate["passed"]]
    assert lost and lost[0]["reason"]
    assert place.now - START == 400 and run.who == "ana"


def test_a_training_is_due_when_rows_have_grown_and_a_refusal_makes_the_next_wait_longer(place: Place) -> None:
    def refused(spec: JobSpec) -> JobResult:
        return msgspec.structs.replace(job.run(spec), passed=False)

    policy = RetrainPolicy(growth=0.5, cooldown_s=0, min_labelled_rows=300, min_new_labelled_rows=100)
    place.answer(349, 4, moved=False)
    early = turn(place, retrain=policy)
    assert "349 labelled rows since the last training, 350 make one due (50% of 700)" in early.why

    place.answer(1, 5, moved=False)
    run = turn(place, retrain=policy, run_job=refused)

    assert (run.kind, run.trigger, run.outcome) == ("retrain", "growth", "kept"), run.document
    place.answer(10, 6, moved=False)
    later = turn(place, retrain=policy)
    assert later.outcome == NO_ACTION
    assert "growth: 10 labelled rows since the last training, 788 make one due" in later.why
    assert "(75% of 1,050, more than 50% as the last training was refused)" in later.why


def test_a_person_asking_with_too_few_labels_is_told_so(place: Place) -> None:
    place.answer(20, 5, moved=False)

    run = place.ask("retrain")

    assert (run.state, run.outcome) == ("done", NO_ACTION)
    assert "20 labelled rows, 300 needed" in run.document["error"]


def test_a_training_that_is_killed_leaves_the_champion_and_the_run_says_why(place: Place) -> None:
    place.answer(400, 6, moved=True)

    place.runs.queue("retrain", trigger="manual", who="ana", why="x", now=place.now)
    ended = work_off(replace(place.loop, run_job=partial(subprocess_job, timeout_s=0.0)))

    assert ended is not None
    assert (ended.state, ended.outcome) == ("failed", "crashed")
    assert "was killed: it took longer than 0 s; the champion stays" in ended.document["error"]
    assert place.registry.live().champion == 1
    assert checking.past(place.loop, checked(place.loop)).crashes == 1


def test_a_training_that_cannot_be_done_is_failed_with_the_reason(place: Place) -> None:
    place.answer(400, 6, moved=True)
    demanding = replace(place.loop, gates=GatePolicy(min_holdout_rows=5000))
    place.runs.queue("retrain", trigger="manual", who="ana", why="x", now=place.now)

    run = work_off(demanding)

    assert run is not None and (run.state, run.outcome) == ("failed", "failed")
    assert "judging alone needs 5000: wait for more labels" in run.document["error"]
    assert place.registry.live().champion == 1


def test_a_fault_of_ours_is_a_failed_run_not_a_dead_loop(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.answer(400, 6, moved=True)

    def broken(spec: JobSpec) -> JobResult:
        raise ZeroDivisionError("division by zero")

    place.runs.queue("retrain", trigger="manual", who="ana", why="x", now=place.now)
    run = work_off(replace(place.loop, run_job=broken))

    assert run is not None and (run.state, run.outcome) == ("failed", "crashed")
    assert run.document["error"] == "ZeroDivisionError: division by zero"
    assert "broken" in caplog.text, "the log has the trace"


def test_a_training_ended_by_a_stopping_server_is_no_crash(place: Place) -> None:
    place.answer(400, 6, moved=True)
    place.runs.queue("retrain", trigger="manual", who="ana", why="x", now=place.now)

    run = work_off(replace(place.loop, run_job=partial(subprocess_job, timeout_s=60, stopped=lambda: True)))

    assert run is not None and (run.state, run.outcome) == ("failed", "stopped")
    assert checking.past(place.loop, checked(place.loop)).crashes == 0


def test_a_version_that_a_worker_cannot_load_does_not_come_into_service(place: Place) -> None:
    place.answer(600, 2, moved=True)
    workers = (WorkerState("host", "0", 1, (1,), {2: "digest of model.onnx"}),)
    place.runs.queue("retrain", trigger="manual", who="ana", why="x", now=place.now)

    run = work_off(replace(place.loop, live_workers=lambda: workers))

    assert run is not None and (run.state, run.outcome, run.version) == ("failed", "not_loaded", 2)
    assert "host/0: digest of model.onnx" in run.document["error"]
    assert (place.registry.live().champion, place.registry.live().announced) == (1, None)


def pushed(place: Place, pipeline: Any, name: str = "model.skops") -> str:
    import skops.io

    path = place.loop.snapshots_dir.parent / name
    skops.io.dump(pipeline, path)
    return str(path)


def fitted(place: Place, frame: pd.DataFrame) -> Any:
    schema = FeatureSchema.from_json((place.registry.path(1) / SCHEMA).read_bytes())
    return build(schema, {"max_iter": 30}).fit(schema.canonical(frame), schema.labels(frame["late"]))


def test_a_pushed_model_that_wins_is_promoted(place: Place) -> None:
    place.answer(400, 7, moved=True)

    run = place.ask("push", path=pushed(place, fitted(place, world(600, 8, moved=True))), label="ana-7", temporary=True)

    assert (run.state, run.outcome, run.version) == ("done", "promoted", 2), run.document
    assert place.registry.get(2).origin == "push"
    assert place.registry.manifest(2).label == "ana-7"
    assert place.registry.live().champion == 2
    assert not Path(run.record.payload.path).exists()


def test_a_pushed_model_that_another_host_took_in_is_fetched_judged_and_gone(place: Place, tmp_path: Path) -> None:
    place.answer(400, 7, moved=True)
    file = pushed(place, fitted(place, world(600, 8, moved=True)))
    storage = Storage(str(tmp_path / "shared"))
    storage.put(Path(file), shared_push("/home/of/another/model.skops"))
    Path(file).unlink()
    place.loop = replace(place.loop, storage=storage)

    run = place.ask("push", path="/home/of/another/model.skops", temporary=True)

    assert run.outcome == "promoted", run.document
    assert storage.names("pushes") == ()
    again = place.ask("push", path="/home/of/another/model.skops", temporary=True)
    assert (again.state, again.outcome) == ("failed", "refused")
    assert "pushes/model.skops could not be read" in again.document["error"]


def test_a_pushed_model_that_loses_is_refused_with_the_gate(place: Place) -> None:
    place.answer(400, 7, moved=False)

    run = place.ask("push", path=pushed(place, fitted(place, world(600, 8, moved=True))))

    assert (run.state, run.outcome) == ("done", "refused")
    assert not run.document["verdict"]["passed"]
    assert place.registry.live().champion == 1


def test_a_pushed_pickle_or_a_model_of_another_schema_is_refused(place: Place, tmp_path: Path) -> None:
    place.answer(400, 7, moved=False)
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"a": 1}))
    other = FeatureSchema.infer(pd.DataFrame({"x": [1.0, 2.0], "y": [True, False]}), "y")
    frame = pd.DataFrame({"x": np.arange(40.0)})
    foreign = build(other).fit(other.canonical(frame), np.arange(40) % 2 == 0)

    as_pickle = place.ask("push", path=str(path))
    as_foreign = place.ask("push", path=pushed(place, foreign))
    gone = place.ask("push", path=str(tmp_path / "nothing"))

    assert [run.outcome for run in (as_pickle, as_foreign, gone)] == ["refused"] * 3
    assert as_pickle.document["error"]
    assert "does not take the features income, debt, purpose" in as_foreign.document["error"]
    assert "is not on this host: push it again" in gone.document["error"]
    assert place.registry.live().champion == 1


def test_a_person_rolls_back_and_promotes_and_both_are_runs(place: Place) -> None:
    place.answer(600, 2, moved=True)
    place.ask("retrain")

    back = place.ask("rollback")
    assert (back.state, back.outcome, back.version, back.document["from"]) == ("done", "rolled_back", 1, 2)
    again = place.ask("rollback")
    assert (again.state, again.outcome) == ("failed", "refused")
    assert "no champion before version 1" in again.document["error"]
    forward = place.ask("promote", version=2)
    assert (forward.state, forward.outcome, forward.version) == ("done", "promoted", 2)
    assert place.ask("promote", version=2).outcome == NO_ACTION
    assert place.ask("promote", version=9).document["error"].startswith("the model 'credit' has no version 9")
    assert place.ask("dance").document["error"] == "nobody knows runs of kind 'dance'"
    assert work_off(place.loop) is None


def test_who_lost_the_lease_while_training_promotes_nothing_and_the_next_holder_clears_up(place: Place) -> None:
    place.answer(600, 2, moved=True)
    place.runs.queue("retrain", trigger="manual", who="ana", why="x", now=place.now)

    def slow(spec: JobSpec) -> JobResult:
        result = job.run(spec)
        with place.engine.begin() as connection:
            connection.execute(leases.update().values(expires_at=0.0))
        assert Lease(place.engine, CONTROLLER, "other", 86_400).acquire()
        return result

    with pytest.raises(LeaseLost):
        work_off(replace(place.loop, run_job=slow))

    assert place.registry.live().champion == 1
    assert [known.version for known in place.registry.list()] == [1]
    other = replace(place.loop, token=TOKEN + 1)
    (left,) = take_over(other)
    assert (place.runs.get(left).state, place.runs.get(left).outcome) == ("failed", "interrupted")
    assert place.registry.live().announced is None
    assert turn(place, token=TOKEN + 1).outcome == NO_ACTION


def test_a_listener_that_fails_does_not_stop_the_loop(place: Place) -> None:
    def deaf(event: str, fields: Mapping[str, Any]) -> None:
        raise OSError("webhook down")

    assert turn(place, on_event=deaf).outcome == NO_ACTION


def test_without_the_old_snapshot_the_record_alone_is_used_and_that_is_noted(place: Place) -> None:
    place.answer(600, 2, moved=True)
    shutil.rmtree(place.loop.snapshots_dir)

    run = place.ask("retrain")

    assert run.outcome == "promoted", run.document
    assert run.document["data"]["rows"] == run.document["data"]["record_rows"] == 600
    assert "is gone: only the record was used" in run.document["notes"][0]


def test_the_same_seed_and_data_give_the_same_decision_and_model(first: Path, tmp_path: Path) -> None:
    stories = []
    for name in ("a", "b"):
        shutil.copytree(first, tmp_path / name)
        place = Place(tmp_path / name)
        place.answer(600, 2, moved=True)
        run = place.ask("retrain")
        stories.append(
            (run.outcome, run.document["data"]["snapshot"], run.document["quality"], run.document["decision"])
        )
        place.engine.dispose()

    assert stories[0] == stories[1]


def test_the_store_is_not_left_with_an_open_transaction(place: Place) -> None:
    turn(place)

    with place.engine.connect() as connection:
        assert connection.execute(sa.text("pragma wal_checkpoint(truncate)")).first() == (0, 0, 0)
