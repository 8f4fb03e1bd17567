from __future__ import annotations

import textwrap
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from service.serving.management.sentence import Alert, KnownQuality, Next, Standing, duration, moment, sentence
from service.serving.management.standing import interval_of, quality_of, upcoming
from training.runs import Check

NOW = datetime(2026, 11, 27, 10, 0, tzinfo=UTC).timestamp()
HELD = KnownQuality(state="held", metric="auc", value=0.8123, low=0.788, high=0.836, rows=1000, holdout=0.8291)
DUE = "a check; a training at 140 new labels (40 so far)"
STEADY = Standing(
    version=3,
    served_since=NOW - 2 * 86_400,
    quality=HELD,
    coverage=0.97,
    delay_s=3600.0,
    next=Next(DUE, NOW + 60),
)


def said(standing: Standing = STEADY, **changed: Any) -> str:
    return sentence(msgspec.structs.replace(standing, **changed), NOW, UTC)


def quality(**changed: Any) -> KnownQuality:
    return msgspec.structs.replace(HELD, **changed)


def test_a_steady_deployment_is_two_sentences() -> None:
    assert said() == (
        "Version 3 answers since 25 Nov 10:00 UTC; quality held: AUC 0.812 ± 0.024 on 1,000 labelled rows, "
        "0.829 on its holdout. "
        f"Next at 10:01 UTC: {DUE}."
    )


@pytest.mark.parametrize(
    ("known", "words"),
    [
        (None, "quality not known yet: no check has looked at it"),
        (
            KnownQuality(metric="auc", rows=12, why="12 rows answered have a matured label, 100 are needed"),
            "quality not known yet: 12 rows answered have a matured label, 100 are needed",
        ),
        (quality(state="lost"), "; quality lost: AUC 0.812 ± 0.024 on 1,000 labelled rows, 0.829 on its holdout."),
        (quality(state="not known yet"), "; quality not known yet: AUC 0.812 ± 0.024 on"),
        (quality(low=None, high=None, holdout=None), "; quality held: AUC 0.812 on 1,000 labelled rows."),
        (quality(low=0.8099, high=0.8147), "AUC 0.8123 ± 0.0024 on 1,000 labelled rows, 0.8291 on its holdout."),
        (
            quality(metric="rmse", value=12_345.6, low=12_145.0, high=12_546.0, holdout=11_999.4),
            "RMSE 12,346 ± 200 on 1,000 labelled rows, 11,999 on its holdout.",
        ),
    ],
)
def test_what_is_known_of_the_quality_is_said_and_no_more(known: KnownQuality | None, words: str) -> None:
    assert words in said(quality=known)


def test_labels_are_told_of_when_many_are_missing() -> None:
    assert "have their label" not in said()
    assert "; 83% of the rows older than 1 h have their label." in said(coverage=0.83)


def test_labels_that_are_not_due_yet_are_no_missing_labels() -> None:
    assert "; no row is older than 1 h yet, when its label is due." in said(coverage=None)
    assert "; 83% of the rows have their label." in said(coverage=0.83, delay_s=0.0)
    assert "; no row" not in said(coverage=None, delay_s=None, next=Next("a check"))


def test_the_usual_state_is_three_lines_of_80_columns() -> None:
    usual = said(
        served_since=NOW - 86_400,
        quality=quality(state="not known yet", rows=20_000),
        next=Next("a check; a training at 20,317 new labels (10,336 so far), sooner if quality is lost", NOW),
    )

    assert len(textwrap.wrap(usual, 80)) == 3, usual


def test_without_a_version_it_says_why() -> None:
    assert said(Standing(why_none="the first version is being trained from sample")) == (
        "No version answers yet: the first version is being trained from sample. Next: the first check."
    )


def test_a_paused_loop_announces_no_check() -> None:
    assert said(paused="ana: an audit").endswith(
        "The loop is paused (ana: an audit): nothing is checked or trained until it is resumed."
    )


def test_what_needs_a_look_comes_last_the_first_in_words_the_others_as_a_count() -> None:
    refused = Alert("the store does not answer (refused)", "store")
    told = said(alerts=(refused,), doubts=("log loss 0.7: it has learnt nothing",))

    assert told.endswith("Needs a look: the store does not answer (refused) (and 1 more).")
    assert said(doubts=("it has learnt nothing.",)).endswith("the gates doubt this version: it has learnt nothing.")


def test_a_check_that_is_late_is_not_announced_for_a_time_that_is_over() -> None:
    assert "Next due since 09:55 UTC: a check" in said(next=Next("a check", NOW - 300))


def test_a_moment_names_what_differs_from_now() -> None:
    assert [moment(NOW - ago, NOW, UTC) for ago in (60, 86_400, 400 * 86_400)] == [
        "09:59 UTC",
        "26 Nov 10:00 UTC",
        "23 Oct 2025 10:00 UTC",
    ]
    assert [duration(s) for s in (0.2, 45, 700, 7200, 86_400, 3e5)] == [
        "0 s",
        "45 s",
        "12 min",
        "2 h",
        "1 day",
        "3 days",
    ]


def test_an_interval_stays_within_what_the_metric_can_be() -> None:
    assert interval_of("auc", 0.99, 0.02) == pytest.approx((0.9508, 1.0))
    assert interval_of("mae", 0.1, 0.1) == pytest.approx((0.0, 0.296))
    assert interval_of("r2", 0.0, 0.1) == pytest.approx((-0.196, 0.196))


def test_a_value_on_too_few_rows_is_not_told_as_a_quality() -> None:
    known = {"metric": "auc", "value": 0.9, "error": 0.05, "rows": 12, "usable": False, "state": "not known yet"}
    found = quality_of({**known, "words": "quality not known yet: 12 rows answered have a matured label"})

    assert (found.value, found.rows, found.why) == (None, 12, "12 rows answered have a matured label")
    usable = quality_of({**known, "usable": True, "compared": [{"metric": "auc", "level": 0.8}]})
    assert (usable.value, usable.holdout) == (0.9, 0.8) and (usable.low, usable.high) == (
        pytest.approx(0.802),
        pytest.approx(0.998),
    )


def checked(decision: dict[str, Any], *findings: dict[str, Any], state: str = "held") -> Check:
    return Check(
        1, NOW, 3, {"findings": list(findings)}, {"state": state}, {"train": False, "trigger": None, **decision}
    )


@pytest.mark.parametrize(
    ("decision", "state", "what"),
    [
        ({"ahead": {"new_rows": 40, "rows_due": 140}}, "held", f"{DUE}, sooner if quality is lost"),
        ({"ahead": {"new_rows": 40, "rows_due": 140}}, "lost", DUE),
        (
            {"ahead": {"rows_due": None, "due_at": NOW + 7200}},
            "held",
            "a check; a training by age in 2 h, sooner if",
        ),
        ({}, "held", "a check; a training if quality is lost"),
        (
            {"trigger": "growth", "reasons": ["growth: …", "cool-down: 200 s left of 300 s"]},
            "held",
            "a check; a training is wanted (growth) and waits: cool-down: 200 s left of 300 s",
        ),
        ({"train": True, "trigger": "growth"}, "held", "a check; it counts what the next training needs"),
    ],
)
def test_what_makes_a_training_due_is_told_as_the_check_counted_it(decision: Any, state: str, what: str) -> None:
    found = upcoming(checked(decision, state=state), 3, None, 60.0)

    assert found.what.startswith(what) and found.at == NOW + 60


def test_the_next_check_comes_sooner_after_news_that_may_matter() -> None:
    began = {"state": "began", "matters": None}
    assert upcoming(checked({}, began), 3, None, 60.0).at == NOW + 15
    assert upcoming(checked({}, {**began, "matters": False}), 3, None, 60.0).at == NOW + 60
    assert upcoming(checked({}, {**began, "state": "continues"}), 3, None, 60.0).at == NOW + 60


def test_before_the_first_check_nothing_is_counted() -> None:
    assert upcoming(None, 1, None, 60.0) == Next("the first check, within 1 min of a version in service")
