"""The search for parameters: what it tries, what it keeps, and what it goes on from."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from monitoring.schema import FeatureSchema
from tests.training.test_job import SMALL
from tests.world import history
from training.artefact import verify
from training.data import Snapshot, snapshot
from training.families import FAMILIES, Boosting, parameters_of
from training.fitting import refit
from training.job import run
from training.pipeline import predict
from training.searching import starting_point
from training.spec import JobSpec, read_result
from training.split import TrainPolicy
from training.trial import FOLDS, Outcome, Scores, evaluate, folds_of, worth
from training.trust import load_pipeline
from training.tune import MOST_NODES, TOGETHER, in_turn, search


@dataclass
class World:
    """Stands in for fits: boosting is best at a slow rate, all else is worse; every trial takes a second of `late`."""

    best_rate: float = 0.05
    others: float = -3.0
    calibrated: float = 0.0
    fails: str = ""
    stops_after: int = 10**9
    seconds: float = math.inf
    asked: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, given: dict[str, Any], base: Scores | None, bar: Sequence[float], seconds: float) -> Outcome:
        if len(self.asked) >= self.stops_after:
            raise KeyboardInterrupt
        if len(self.asked) >= self.seconds:
            return Outcome(late=True)
        self.asked.append(given)
        if given["family"] == self.fails:
            return Outcome(error="ValueError: no")
        value = self.others
        if given["family"] == "boosting":
            value = -1.0 - abs(math.log(given["learning_rate"] / self.best_rate))
        value += self.calibrated * (given["calibration"] == "sigmoid")
        scores: list[tuple[float, ...]] = []
        while len(scores) < FOLDS:
            scores.append((value, value))
            if base is not None and len(scores) <= len(bar) and worth(scores, base) <= bar[len(scores) - 1]:
                break
        return Outcome(scores=tuple(scores))


def test_a_search_without_trials_keeps_the_start_and_leaves_optuna_alone() -> None:
    before = "optuna" in sys.modules
    study = search(in_turn(lambda *given: pytest.fail("fitted")), trials=0, start=Boosting(max_iter=7))
    assert study.parameters == Boosting(max_iter=7) and study.trials == ()
    assert ("optuna" in sys.modules) == before


def test_a_search_begins_with_the_start_then_the_defaults_and_finds_what_is_worth_more() -> None:
    world = World()
    study = search(in_turn(world), trials=40, seed=5, start=Boosting(max_iter=7), classes=2)
    assert [each["family"] for each in world.asked[:6]] == ["boosting"] * 3 + ["forest", "extra_trees", "linear"]
    assert world.asked[0] == Boosting(max_iter=7).model_dump() and world.asked[1] == Boosting().model_dump()
    assert len(study.trials) == 40 and study.ended == "trials"
    assert isinstance(study.parameters, Boosting) and abs(math.log(study.parameters.learning_rate / 0.05)) < 0.1
    assert study.trials[0].worth == 0.0


def test_a_family_that_is_far_behind_is_not_drawn_again() -> None:
    behind, near = World(others=-3.0), World(others=-1.7)
    for world in (behind, near):
        search(in_turn(world), trials=40, seed=5)
    assert {each["family"] for each in behind.asked[6:]} == {"boosting"}
    assert {each["family"] for each in near.asked[6:]} == set(FAMILIES)


def test_the_start_stays_when_nothing_is_worth_more() -> None:
    start = Boosting(learning_rate=0.05, max_leaf_nodes=12)
    assert search(in_turn(World()), trials=12, start=start).parameters == start


def test_the_same_seed_and_number_of_trials_find_the_same_and_another_seed_tries_others() -> None:
    first, second, other = (search(in_turn(World()), trials=20, seed=seed).trials for seed in (5, 5, 6))
    asked = [[trial.parameters for trial in trials] for trials in (first, second, other)]
    assert asked[0] == asked[1] != asked[2]
    fewer = search(in_turn(World()), trials=11, seed=5).trials
    assert [trial.parameters for trial in fewer] == asked[0][:11]


def test_time_ends_a_search_and_as_many_trials_find_the_same() -> None:
    ended = search(in_turn(World(seconds=13)), trials=100, seed=1)
    assert (len(ended.trials), ended.ended) == (13, "time")
    assert search(in_turn(World()), trials=13, seed=1).parameters == ended.parameters
    assert len(search(in_turn(World()), trials=100, seconds=1e-9).trials) == 1  # the start, whatever the time


@pytest.mark.parametrize("killed_after", [1, 6, 8, 13])
def test_a_killed_search_goes_on_where_it_was_and_finds_what_it_would_have_found(
    tmp_path: Path, killed_after: int
) -> None:
    whole = search(in_turn(World()), trials=20, seed=3)
    file = tmp_path / "study.jsonl"
    with pytest.raises(KeyboardInterrupt):
        search(in_turn(World(stops_after=killed_after)), trials=20, seed=3, file=file)
    with file.open("ab") as torn:
        torn.write(b'{"number":')  # the line that was being written
    rest = World()
    resumed = search(in_turn(rest), trials=20, seed=3, file=file)
    assert resumed.resumed == killed_after and len(rest.asked) == 20 - killed_after
    assert [t.parameters for t in resumed.trials] == [t.parameters for t in whole.trials]
    assert resumed.parameters == whole.parameters
    again = search(in_turn(World(stops_after=0)), trials=20, seed=3, file=file)
    assert again.parameters == whole.parameters and again.resumed == 20


def test_time_that_a_killed_search_has_spent_is_spent(tmp_path: Path) -> None:
    file = tmp_path / "study.jsonl"

    def slow(*given: Any) -> Outcome:
        time.sleep(0.02)
        return Outcome(scores=((-1.0,),) * FOLDS)

    search(in_turn(slow), trials=4, file=file)
    again = search(in_turn(lambda *given: pytest.fail("fitted")), trials=10, seconds=0.04, file=file)
    assert (len(again.trials), again.ended) == (4, "time")


def test_a_search_over_other_rows_begins_with_the_best_of_the_last_one(tmp_path: Path) -> None:
    before = search(in_turn(World()), trials=20, seed=3, file=tmp_path / "one.jsonl")
    world = World()
    search(in_turn(world), trials=4, seed=3, file=tmp_path / "two.jsonl")
    assert world.asked[0] == Boosting().model_dump() and world.asked[1] == before.parameters.model_dump()


def test_files_of_old_studies_do_not_pile_up(tmp_path: Path) -> None:
    for number in range(9):
        search(in_turn(World()), trials=1, file=tmp_path / f"{number}.jsonl")
    assert len(list(tmp_path.iterdir())) <= 6


def test_calibration_is_tried_on_the_best_so_far_and_weights_only_where_a_class_is_rare() -> None:
    world, rare, numbers = World(calibrated=0.5), World(calibrated=0.5), World(calibrated=0.5)
    study = search(in_turn(world), trials=24, classes=2)
    search(in_turn(rare), trials=24, classes=2, rare=True)
    search(in_turn(numbers), trials=24, classes=0)
    assert study.parameters.model_dump()["calibration"] == "sigmoid"
    assert {each["class_weight"] for each in world.asked} == {"none"}
    assert {"balanced"} < {each["class_weight"] for each in rare.asked}
    assert {each["calibration"] for each in numbers.asked} == {"none"}


def test_poissons_loss_is_tried_for_counts_alone() -> None:
    counts, numbers = World(), World()
    search(in_turn(counts), trials=24, counts=True)
    search(in_turn(numbers), trials=24)
    assert {each.get("loss") for each in counts.asked} == {"squared_error", "poisson", None}
    assert {each.get("loss") for each in numbers.asked} == {"squared_error", None}


def test_parameters_that_cannot_be_fitted_are_told_and_passed_over() -> None:
    study = search(in_turn(World(fails="linear")), trials=16, families=("boosting", "linear"))
    failed = [trial for trial in study.trials if trial.parameters["family"] == "linear"]
    assert failed and all(trial.error == "ValueError: no" and trial.worth is None for trial in failed)
    assert study.parameters.family == "boosting"


def test_no_proposal_is_too_large_for_a_twin_and_only_the_wanted_families_are_drawn() -> None:
    world = World()
    search(in_turn(world), trials=40, classes=9, families=("boosting", "forest"))
    for given in world.asked[8:]:
        assert given["family"] in ("boosting", "forest")
        trees = parameters_of(given).trees(9)
        assert trees * (2 * given["max_leaf_nodes"] - 1) <= MOST_NODES


def test_a_trial_is_worth_its_gain_between_and_not_more_than_it_may_gain_after() -> None:
    base = ((-2.0, -2.0),) * 5
    better, same, worse, unclear = (-1.0, -1.0), (-2.0, -2.0), (-2.5, -2.5), (-4.0, -0.5)
    assert worth((better,), base) == 1.0
    assert worth((better, same), base) == 0.0
    assert worth((better, worse, better), base) == -0.5
    assert worth((better, unclear), base) == 1.0  # it loses a quarter, give or take 1.75
    assert worth((worse, better), base) == -0.5
    assert worth((better, ()), base) == worth((), base) == worth((better,), ()) == -math.inf


def test_when_the_start_itself_cannot_be_fitted_it_stays_and_the_training_says_why() -> None:
    study = search(in_turn(World(fails="boosting")), trials=8, families=("linear",))
    assert study.parameters == Boosting() and study.trials[0].error == "ValueError: no"
    assert all(trial.worth is None for trial in study.trials)


def folds(rows: int = 600) -> Any:
    schema, frame = history(rows, 0)
    made = folds_of(frame, schema, TrainPolicy(), seed=0)
    assert made is not None
    return made


def test_no_fold_is_judged_on_rows_that_it_learnt_and_later_folds_only_on_rows_after() -> None:
    parts = folds().parts
    assert len(parts) == FOLDS
    for learnt, judging in parts:
        assert not set(learnt) & set(judging)
    for learnt, judging in parts[1::2]:
        assert learnt.max() < judging.min()
    for learnt, judging in parts[::2]:
        assert learnt.max() > judging.min()
    between = np.concatenate([judging for _, judging in parts[::2]])
    assert len(set(between)) == len(between)  # each time other blocks
    schema, frame = history(140, 0)
    assert folds_of(frame, schema, TrainPolicy(), seed=0) is None


def test_a_trial_that_falls_behind_ends_after_the_fold_that_shows_it() -> None:
    made = folds()
    good = evaluate(made, {"max_iter": 20})
    assert len(good.scores) == FOLDS
    poor = {"max_iter": 1, "learning_rate": 0.01}
    behind = evaluate(made, poor, good.scores, [0.0] * FOLDS)
    assert len(behind.scores) == 1 and not behind.late and not behind.error
    assert evaluate(made, poor, seconds=-1.0) == Outcome(late=True)


def test_a_trial_whose_fit_raises_says_so() -> None:
    made = folds()
    broken = made.frame.assign(a=np.nan, b=np.nan, member=np.nan, city=None, joined=np.nan)
    outcome = evaluate(type(made)(broken, made.schema, 0, made.parts), {"max_iter": 5})
    assert outcome.error.startswith("ValueError: none of the 5 features has a value")


# -- in a training ---------------------------------------------------------------------------------------------------


def job(schema: FeatureSchema, data: Snapshot, out: Path, **changes: Any) -> JobSpec:
    given: dict[str, Any] = {"kind": "train", "gates": SMALL, "created_at": 1.0, "nice": 0}
    content = msgspec.json.decode(schema.to_json())
    return JobSpec(out=str(out), snapshot=str(data.path), schema=content, **{**given, **changes})


LINEAR = {"trials": 10, "families": ["linear"]}
"""A line is what the rule of `tests.world` draws: a linear model is better than the defaults, and fitted in no time."""


def test_what_was_found_is_trained_told_and_made_again_without_a_search(tmp_path: Path) -> None:
    schema, frame = history(1500, 0)
    data = snapshot(frame, tmp_path)
    result = run(job(schema, data, tmp_path / "v1", training=LINEAR, parameters={"max_iter": 10}))
    assert result.ok, result.error
    manifest = verify(tmp_path / "v1")
    found = manifest.data.search
    assert found is not None and found.chosen and found.trials == len(manifest.data.trials) == 10
    assert found.gain is not None and found.error is not None and found.gain > found.error
    assert manifest.parameters["family"] == "linear" and manifest.estimator in (
        "LogisticRegression",
        "CalibratedClassifierCV",
    )
    assert "trials of parameters" in result.notes[0] and "on the judging rows" in result.notes[0]
    assert manifest.twin is not None
    features = frame[list(schema.names)]
    again = refit(manifest, data.path, schema)
    assert np.array_equal(predict(again, features, schema), predict(load_pipeline(tmp_path / "v1"), features, schema))


def test_what_is_not_surely_better_on_the_judging_blocks_does_not_replace_the_defaults(tmp_path: Path) -> None:
    schema, frame = history(1500, 0)
    data = snapshot(frame, tmp_path)
    strict = {**SMALL, "confidence": 0.999999999}
    given: dict[str, Any] = {"parameters": {"family": "linear"}, "training": {**LINEAR, "families": ["linear"]}}
    result = run(job(schema, data, tmp_path / "v1", gates=strict, **given))
    assert result.ok, result.error
    manifest = verify(tmp_path / "v1")
    assert manifest.data.search is not None and not manifest.data.search.chosen
    assert manifest.parameters["penalty"] == 1.0
    assert "the parameters before stay" in result.notes[0] or "none was better" in result.notes[0]


def test_a_retraining_keeps_the_champions_parameters_and_a_search_begins_with_them(tmp_path: Path) -> None:
    schema, source = history(600, 0)
    assert run(job(schema, snapshot(source, tmp_path), tmp_path / "v1", parameters={"max_iter": 12})).ok
    _, frame = history(600, 600)
    data = snapshot(frame, tmp_path)
    assert run(job(schema, data, tmp_path / "v2", champion=str(tmp_path / "v1"))).ok
    assert verify(tmp_path / "v2").parameters["max_iter"] == 12
    assert run(job(schema, data, tmp_path / "v3", champion=str(tmp_path / "v1"), training=LINEAR)).ok
    first, second, *_ = verify(tmp_path / "v3").data.trials
    assert first["parameters"]["max_iter"] == 12 and second["parameters"] == Boosting().model_dump()


def test_without_a_champion_of_ours_a_training_begins_with_the_defaults(tmp_path: Path) -> None:
    schema, source = history(600, 0)
    spec = job(schema, snapshot(source, tmp_path), tmp_path / "v1", parameters={"max_iter": 12})
    assert run(spec).ok
    manifest = tmp_path / "v1" / "manifest.json"
    retrain = msgspec.structs.replace(spec, champion=str(tmp_path / "v1"), parameters={})
    assert starting_point(retrain, TrainPolicy())[0] == Boosting(max_iter=12)
    document = msgspec.json.decode(manifest.read_bytes())
    manifest.write_bytes(msgspec.json.encode({**document, "origin": "push", "parameters": {"alpha": 1}}))
    assert starting_point(retrain, TrainPolicy()) == (Boosting(), ())
    manifest.write_bytes(msgspec.json.encode({**document, "parameters": {"family": "boosting", "of_tomorrow": 1}}))
    start, notes = starting_point(retrain, TrainPolicy())
    assert start == Boosting() and "the defaults were taken" in notes[0]


def test_a_job_that_was_killed_in_its_search_goes_on_and_trains_the_same(tmp_path: Path) -> None:
    schema, frame = history(1500, 0)
    data = snapshot(frame, tmp_path)
    training = {"trials": 12, "families": ["linear", "boosting"]}
    given: dict[str, Any] = {"training": training, "parameters": {"max_iter": 10}}
    spec = job(schema, data, tmp_path / "killed" / "artefact", studies=str(tmp_path / "studies"), **given)
    (tmp_path / "killed").mkdir()
    (tmp_path / "spec.json").write_bytes(msgspec.json.encode(spec))
    process = subprocess.Popen([sys.executable, "-m", "training.job", str(tmp_path / "spec.json")])
    for lines in _growing(tmp_path / "studies", process):
        if lines >= 1 + TOGETHER + 1:
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    assert read_result(tmp_path / "killed" / "artefact") is None
    assert run(spec).ok
    assert run(job(schema, data, tmp_path / "whole", **given)).ok
    resumed, whole = verify(tmp_path / "killed" / "artefact"), verify(tmp_path / "whole")
    assert resumed.data.search is not None and resumed.data.search.resumed > TOGETHER
    assert resumed.data.trials == whole.data.trials and resumed.parameters == whole.parameters
    features = frame[list(schema.names)]
    said = [predict(load_pipeline(tmp_path / where), features, schema) for where in ("killed/artefact", "whole")]
    assert np.array_equal(*said)


def _growing(folder: Path, process: subprocess.Popen[bytes]) -> Iterator[int]:
    """Whole lines of the one study, again and again while the job runs."""
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        yield sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl"))
        time.sleep(0.01)
