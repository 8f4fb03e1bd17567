from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from monitoring.drift import DriftReport, FeatureDrift
from monitoring.quality import Quality
from training.policy import History, QualityCheck, RetrainPolicy, cooldown_s, decide

NOW = 1_000_000.0
POLICY = RetrainPolicy(confirmations=1)
READY = History(last_trained_at=NOW - 10_000, labelled_rows=500, new_labelled_rows=200)
"""Nothing stands in the way of a training."""


def drift(detected: bool, skipped: str | None = None) -> DriftReport:
    features = tuple(FeatureDrift(name, "wasserstein", 0.5, 0.1, detected) for name in ("age", "income"))
    reasons = ("2 of 2 features drifted (share 0.2 is enough): age, income",) if detected else ()
    return DriftReport(features, None, float(detected), detected, reasons, 1000, 1000, skipped)


def quality(lost: str | None = None, **changes: Any) -> QualityCheck:
    measured = Quality("auc", 0.8, True, {"auc": 0.8}, 1000, usable=True)
    for name, value in changes.items():
        measured = Quality(**{**{f: getattr(measured, f) for f in measured.__struct_fields__}, name: value})
    return QualityCheck(measured, 0.82, lost)


LOST = "measured auc fell from 0.82 to 0.6 on 1000 rows (allowed 0.05, chance 0.04)"


def test_nothing_moved_is_a_no_with_the_numbers() -> None:
    decision = decide(drift(False), quality(), READY, NOW, POLICY)

    assert not decision.train and decision.trigger is None
    assert decision.reasons == (
        "quality held: auc 0.8 on 1000 rows, 0.82 on the champion's holdout",
        "no drift: 0 of 2 features moved",
    )


def test_drift_trains() -> None:
    decision = decide(drift(True), quality(), READY, NOW, POLICY)

    assert decision.train and decision.trigger == "drift"
    assert "2 of 2 features drifted (share 0.2 is enough): age, income" in decision.why


def test_lost_quality_trains_and_comes_before_drift() -> None:
    decision = decide(drift(True), quality(LOST), READY, NOW, POLICY)

    assert decision.train and decision.trigger == "quality"
    assert decision.reasons[0] == LOST


@pytest.mark.parametrize(("switch", "why"), [("on_drift", "on_drift is off"), ("on_quality", "on_quality is off")])
def test_a_trigger_switched_off_is_named_and_does_not_train(switch: str, why: str) -> None:
    found = (drift(True), quality()) if switch == "on_drift" else (drift(False), quality(LOST))

    decision = decide(*found, READY, NOW, POLICY.model_copy(update={switch: False}))

    assert not decision.train and decision.trigger is None
    assert why in decision.why


@pytest.mark.parametrize("what", ["drift", "quality"])
def test_it_must_be_seen_in_as_many_checks_in_a_row_as_asked_for(what: str) -> None:
    policy = RetrainPolicy(confirmations=3)
    found = (drift(True), quality()) if what == "drift" else (drift(False), quality(LOST))

    for before in (0, 1):
        decision = decide(*found, replace(READY, **{f"{what}_checks": before}), NOW, policy)
        assert not decision.train
        assert f"in {before + 1} of 3 checks in a row" in decision.why
    assert decide(*found, replace(READY, **{f"{what}_checks": 2}), NOW, policy).trigger == what


def test_what_could_not_be_computed_is_said_and_is_no_trigger() -> None:
    decision = decide(
        drift(False, skipped="the window has 50 rows; drift needs at least 200"),
        quality(value=None, usable=False, note="12 rows; a verdict needs 100"),
        READY,
        NOW,
        POLICY,
    )

    assert not decision.train
    assert decision.reasons == (
        "quality was not measured: 12 rows; a verdict needs 100",
        "drift was not computed: the window has 50 rows; drift needs at least 200",
    )
    assert decide(None, None, READY, NOW, POLICY).reasons == ("nothing was looked at",)


def test_quality_without_a_holdout_to_compare_with_is_no_trigger() -> None:
    alone = QualityCheck(quality().measured)

    assert "nothing to compare it with" in decide(None, alone, READY, NOW, POLICY).why


def test_the_schedule_trains_when_its_time_has_come() -> None:
    policy = RetrainPolicy(every_s=20_000)

    early = decide(drift(False), quality(), READY, NOW, policy)
    assert not early.train and "schedule: 10000 s left of 20000 s" in early.why

    due = decide(drift(False), quality(), READY, NOW + 10_000, policy)
    assert due.train and due.trigger == "schedule"
    assert decide(None, None, replace(READY, last_trained_at=None), NOW, policy).trigger == "schedule"


def test_a_cooldown_says_how_long_it_still_is() -> None:
    decision = decide(drift(True), None, replace(READY, last_trained_at=NOW - 260), NOW, POLICY)

    assert not decision.train and decision.trigger == "drift"
    assert decision.reasons[-1] == "cool-down: 40 s left of 300 s"
    assert decide(drift(True), None, replace(READY, last_trained_at=NOW - 300), NOW, POLICY).train


def test_the_cooldown_doubles_with_each_crash_up_to_its_limit() -> None:
    crashed = [cooldown_s(replace(READY, crashes=n), POLICY) for n in (0, 1, 2, 6, 7, 10_000)]
    assert crashed == [300, 600, 1200, 19_200, 21_600, 21_600]

    decision = decide(drift(True), None, replace(READY, last_trained_at=NOW - 500, crashes=1), NOW, POLICY)
    assert decision.reasons[-1] == "cool-down: 100 s left of 600 s (doubled by 1 crashed trainings in a row)"
    long = RetrainPolicy(cooldown_s=50_000)
    assert cooldown_s(replace(READY, crashes=3), long) == 50_000


def test_a_clock_set_back_does_not_make_the_cooldown_longer_than_it_is() -> None:
    decision = decide(drift(True), None, replace(READY, last_trained_at=NOW + 86_400), NOW, POLICY)

    assert decision.reasons[-1] == "cool-down: 300 s left of 300 s"


def test_too_few_labelled_rows_say_how_many_there_are_and_are_needed() -> None:
    few = decide(drift(True), None, replace(READY, labelled_rows=499), NOW, POLICY)
    assert not few.train and few.reasons[-1] == "499 labelled rows, 500 needed"

    old = decide(drift(True), None, replace(READY, new_labelled_rows=199), NOW, POLICY)
    assert not old.train and old.reasons[-1] == "199 labelled rows since the last training, 200 needed"


def test_before_the_first_training_there_is_neither_cooldown_nor_a_need_of_newer_rows() -> None:
    assert decide(drift(True), None, History(labelled_rows=500), NOW, POLICY).train


def test_a_person_gets_past_the_cooldown_and_the_newer_rows() -> None:
    decision = decide(
        drift(False), quality(), History(NOW - 1, labelled_rows=500, new_labelled_rows=0), NOW, POLICY, manual=True
    )

    assert decision.train and decision.trigger == "manual"
    assert decision.reasons[0] == "a person asked"


def test_a_person_does_not_get_past_the_rows_of_the_holdout_nor_a_training_under_way() -> None:
    few = decide(None, None, replace(READY, labelled_rows=20), NOW, POLICY, manual=True)
    assert not few.train and few.trigger == "manual" and "20 labelled rows, 500 needed" in few.why

    busy = decide(None, None, replace(READY, running=7), NOW, POLICY, manual=True)
    assert not busy.train and "run 7 is under way" in busy.why


def test_everything_that_stands_against_it_is_said_at_once() -> None:
    decision = decide(drift(True), None, History(NOW - 1, running=7), NOW, POLICY)

    assert decision.reasons[1:] == (
        "run 7 is under way",
        "0 labelled rows, 500 needed",
        "0 labelled rows since the last training, 200 needed",
        "cool-down: 299 s left of 300 s",
    )


def test_the_policy_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValidationError):
        RetrainPolicy(cooldown=3)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        POLICY.cooldown_s = 3  # type: ignore[misc]
    assert all(field.description for field in RetrainPolicy.model_fields.values())
