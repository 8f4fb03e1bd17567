from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from pydantic import ValidationError

from monitoring.drift import DriftReport, FeatureDrift, Finding
from monitoring.quality import Quality
from monitoring.verdict import QualityVerdict
from training.policy import Ahead, History, QualityCheck, RetrainPolicy, cooldown_s, decide, growth_needed

NOW = 1_000_000.0
POLICY = RetrainPolicy(confirmations=1)
EAGER = RetrainPolicy(confirmations=1, on_drift=True)
READY = History(last_trained_at=NOW - 10_000, trained_rows=2_500, labelled_rows=500, new_labelled_rows=300)
"""Nothing stands in the way of a training, and none is due: 500 labelled rows more would make it so."""


def drift(detected: bool, skipped: str | None = None) -> DriftReport:
    features = tuple(FeatureDrift(name, "wasserstein", 0.5, 0.1, detected) for name in ("age", "income"))
    reasons = ("2 of 2 features drifted (share 0.2 is enough): age, income",) if detected else ()
    return DriftReport(features, None, float(detected), detected, reasons, 1000, 1000, skipped)


HELD = "quality held: auc 0.8 on 1,000 rows answered, 0.82 on the champion's holdout"
LOST = "quality lost: auc 0.6 on 1,000 rows answered, 0.82 on the champion's holdout"
UNKNOWN = "quality not known yet: 12 rows answered have a label, 100 are needed"
GROWING = "growth: 300 labelled rows since the last training, 500 make one due (20% of 2,500)"


def quality(words: str = HELD) -> QualityCheck:
    measured = Quality("auc", 0.8, True, {"auc": 0.8}, 1000, usable=True)
    state = {HELD: "held", LOST: "lost", UNKNOWN: "not known yet"}[words]
    return QualityCheck(measured, QualityVerdict(state, words, ()))  # type: ignore[arg-type]


def test_nothing_moved_is_a_no_with_the_numbers() -> None:
    decision = decide(drift(False), quality(), READY, NOW, POLICY)

    assert not decision.train and decision.trigger is None and not decision.due
    assert decision.reasons == (HELD, GROWING, "no drift: 0 of 2 features moved beyond what their own past shows")


def test_a_training_is_due_when_the_labelled_rows_have_grown_enough() -> None:
    history = History(NOW - 10_000, trained_rows=25_000, labelled_rows=500, new_labelled_rows=4_812)
    early = decide(drift(False), quality(), history, NOW, POLICY)
    assert not early.train
    assert "growth: 4,812 labelled rows since the last training, 5,000 make one due (20% of 25,000)" in early.reasons

    due = decide(drift(False), quality(), replace(history, new_labelled_rows=5_000), NOW, POLICY)
    assert due.train and due.trigger == "growth" and due.due
    assert (
        "growth: the 5,000 labelled rows since the last training that make one due are there (20% of 25,000)"
        in due.reasons
    )
    off = decide(None, quality(), replace(history, new_labelled_rows=5_000), NOW, RetrainPolicy(growth=0))
    assert off.reasons == (HELD,)


def test_a_decision_counts_what_makes_the_next_training_due() -> None:
    assert decide(None, quality(), READY, NOW, POLICY).ahead == Ahead(300, 500, None, NOW - 10_000 + 300)
    assert decide(None, quality(LOST), READY, NOW, POLICY).ahead.rows_due == 250
    aged = decide(None, quality(), READY, NOW, RetrainPolicy(growth=0, every_s=20_000)).ahead
    assert (aged.rows_due, aged.due_at) == (None, NOW + 10_000)
    few = replace(READY, trained_rows=100, labelled_rows=320, new_labelled_rows=120)
    assert decide(None, quality(), few, NOW, POLICY).ahead.rows_due == 300, "the record itself lacks 180"
    assert decide(None, quality(), replace(few, labelled_rows=500), NOW, POLICY).ahead.rows_due == 200
    assert decide(None, None, History(), NOW, POLICY).ahead == Ahead(0, 500)


def test_each_refused_training_makes_the_next_one_wait_longer_up_to_four_times() -> None:
    needed = [growth_needed(0.2, 1_000, refusals) for refusals in (0, 1, 2, 3, 4, 10_000)]
    assert needed == [200, 300, 450, 675, 800, 800]

    once = decide(None, None, replace(READY, new_labelled_rows=749, refusals=1), NOW, POLICY)
    assert once.reasons == (
        "growth: 749 labelled rows since the last training, 750 make one due "
        "(30% of 2,500, more than 20% as the last training was refused)",
    )
    assert decide(None, None, replace(READY, new_labelled_rows=750, refusals=1), NOW, POLICY).train
    twice = decide(None, None, replace(READY, refusals=2), NOW, POLICY)
    assert "(45% of 2,500, more than 20% as the last 2 trainings were refused)" in twice.why


def test_without_a_training_before_any_new_rows_are_a_growth() -> None:
    assert decide(None, None, History(labelled_rows=500, new_labelled_rows=500), NOW, POLICY).trigger == "growth"
    assert decide(None, None, History(), NOW, POLICY).trigger is None


def test_drift_trains_only_where_it_is_asked_to_and_then_the_candidate_is_only_hoped_for() -> None:
    began = Finding("age", "began", 2.0, 2, NOW, NOW, 2.0, 0.4, True, "age moved twice as far as its past, matters")
    news = "2 of 2 features drifted (share 0.2 is enough): age, income"

    silent = decide(msgspec.structs.replace(drift(True), findings=(began,)), quality(), READY, NOW, POLICY)
    assert not silent.train and silent.trigger is None
    assert silent.reasons[-1] == f"{began.sentence}; drift alone trains nothing (on_drift is off)"

    asked = decide(drift(True), quality(), READY, NOW, EAGER)
    assert asked.train and asked.trigger == "drift" and not asked.due
    assert any(reason.startswith(news) for reason in asked.reasons)


def test_lost_quality_trains_before_growth_would_and_comes_before_drift() -> None:
    decision = decide(drift(True), quality(LOST), READY, NOW, EAGER)

    assert decision.train and decision.trigger == "quality" and decision.due
    assert decision.reasons[:2] == (LOST, GROWING)


def test_lost_quality_waits_for_rows_that_could_change_something() -> None:
    history = replace(READY, new_labelled_rows=249)
    decision = decide(None, quality(LOST), history, NOW, POLICY)

    assert not decision.train and decision.trigger is None
    assert decision.reasons[:2] == (
        LOST,
        "quality: 249 labelled rows since the last training, 250 make one due (10% of 2,500)",
    )
    refused = decide(None, quality(LOST), replace(READY, refusals=1), NOW, POLICY)
    assert not refused.train and "375 make one due (15% of 2,500, more than 10%" in refused.why


def test_lost_quality_switched_off_is_said_and_does_not_train() -> None:
    decision = decide(None, quality(LOST), READY, NOW, RetrainPolicy(on_quality=False))

    assert not decision.train and decision.trigger is None
    assert decision.reasons[0] == f"{LOST}, but on_quality is off"


def test_drift_must_be_seen_in_as_many_checks_in_a_row_as_asked_for() -> None:
    policy = RetrainPolicy(confirmations=3, on_drift=True)

    for before in (0, 1):
        decision = decide(drift(True), quality(), replace(READY, drift_checks=before), NOW, policy)
        assert not decision.train
        assert f"in {before + 1} of 3 checks in a row" in decision.why
    assert decide(drift(True), quality(), replace(READY, drift_checks=2), NOW, policy).trigger == "drift"


def test_what_could_not_be_computed_is_said_and_is_no_trigger() -> None:
    skipped = drift(False, skipped="the window has 50 rows; drift needs at least 200")
    decision = decide(skipped, quality(UNKNOWN), READY, NOW, EAGER)

    assert not decision.train
    assert decision.reasons == (
        UNKNOWN,
        GROWING,
        "drift was not computed: the window has 50 rows; drift needs at least 200",
    )
    assert decide(None, None, READY, NOW, RetrainPolicy(growth=0)).reasons == ("nothing was looked at",)


def test_the_schedule_trains_when_its_time_has_come() -> None:
    policy = RetrainPolicy(every_s=20_000)

    early = decide(drift(False), quality(), READY, NOW, policy)
    assert not early.train and "schedule: 10000 s left of 20000 s" in early.why

    due = decide(drift(False), quality(), READY, NOW + 10_000, policy)
    assert due.train and due.trigger == "schedule" and due.due
    assert decide(None, None, replace(READY, last_trained_at=None), NOW, policy).trigger == "schedule"


def test_a_cooldown_says_how_long_it_still_is() -> None:
    decision = decide(drift(True), None, replace(READY, last_trained_at=NOW - 260), NOW, EAGER)

    assert not decision.train and decision.trigger == "drift"
    assert decision.reasons[-1] == "cool-down: 40 s left of 300 s"
    assert decide(drift(True), None, replace(READY, last_trained_at=NOW - 300), NOW, EAGER).train


def test_the_cooldown_doubles_with_each_crash_up_to_its_limit() -> None:
    crashed = [cooldown_s(replace(READY, crashes=n), POLICY) for n in (0, 1, 2, 6, 7, 10_000)]
    assert crashed == [300, 600, 1200, 19_200, 21_600, 21_600]

    decision = decide(drift(True), None, replace(READY, last_trained_at=NOW - 500, crashes=1), NOW, EAGER)
    assert decision.reasons[-1] == "cool-down: 100 s left of 600 s (doubled by 1 crashed trainings in a row)"
    long = RetrainPolicy(cooldown_s=50_000)
    assert cooldown_s(replace(READY, crashes=3), long) == 50_000


def test_a_clock_set_back_does_not_make_the_cooldown_longer_than_it_is() -> None:
    decision = decide(drift(True), None, replace(READY, last_trained_at=NOW + 86_400), NOW, EAGER)

    assert decision.reasons[-1] == "cool-down: 300 s left of 300 s"


def test_too_few_labelled_rows_say_how_many_there_are_and_are_needed() -> None:
    few = decide(drift(True), None, replace(READY, labelled_rows=499), NOW, EAGER)
    assert not few.train and few.reasons[-1] == "499 labelled rows, 500 needed"

    old = decide(drift(True), None, replace(READY, new_labelled_rows=199), NOW, EAGER)
    assert not old.train and old.reasons[-1] == "199 labelled rows since the last training, 200 needed"


def test_before_the_first_training_there_is_neither_cooldown_nor_a_need_of_newer_rows() -> None:
    assert decide(drift(True), None, History(labelled_rows=500), NOW, EAGER).train


def test_a_person_gets_past_the_cooldown_and_the_newer_rows() -> None:
    decision = decide(
        drift(False), quality(), History(NOW - 1, labelled_rows=500, new_labelled_rows=0), NOW, EAGER, manual=True
    )

    assert decision.train and decision.trigger == "manual" and decision.due
    assert decision.reasons[0] == "a person asked"


def test_a_person_does_not_get_past_the_rows_of_the_holdout_nor_a_training_under_way() -> None:
    few = decide(None, None, replace(READY, labelled_rows=20), NOW, POLICY, manual=True)
    assert not few.train and few.trigger == "manual" and "20 labelled rows, 500 needed" in few.why

    busy = decide(None, None, replace(READY, running=7), NOW, POLICY, manual=True)
    assert not busy.train and "run 7 is under way" in busy.why


def test_everything_that_stands_against_it_is_said_at_once() -> None:
    decision = decide(drift(True), None, History(NOW - 1, running=7), NOW, EAGER)

    assert decision.reasons[2:] == (
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
