"""What `benchmarks.decisions` asks for, on studies made by hand."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from benchmarks.decisions import Done, must_hold
from service.replay.run import Turn
from service.replay.scores import Scores
from service.replay.study import PolicyResult, ScheduleResult, Study

CHECKS = {"held": 18, "lost": 0, "not known yet": 2}


def turns(news: int = 0, matters: bool = True, first: int = 500) -> list[Turn]:
    return [
        Turn(
            row=first + 500 * at,
            at=0.0,
            version=1,
            champion=1,
            trained=False,
            outcome="no_action",
            trigger="schedule",
            why="",
            verdict="held",
            drift_news=at < news,
            drift_matters=at < news and matters,
            adaptation=None,
            weights={},
        )
        for at in range(20)
    ]


def schedule(trainings: int, window: bool, *scores: float) -> ScheduleResult:
    return ScheduleResult(
        name="", trainings=trainings, window=window, scores=Scores(*scores), seconds=0.0, over_time=[]
    )


def done(stream: str = "elec2", order: str = "time", served: Any = (0.85, 0.48, 0.02), **changes: Any) -> Done:
    """Eight trainings, ahead of both schedules unless `served` says otherwise."""
    policy = PolicyResult(
        name="loop",
        served=Scores(*served),
        raw=Scores(0.82, 0.55, 0.06),
        trainings=8,
        promoted=8,
        refused=0,
        failed=0,
        checks=CHECKS,
        drift_news=0,
        seconds=0.0,
        training_s=0.0,
        rows_a_minute=0.0,
        served_over_time=[],
        raw_over_time=[],
        turns=turns(),
    )
    study = Study(
        data="",
        target="target",
        task="binary",
        metric="auc",
        loss="log loss",
        start_rows=0,
        rows=0,
        first_at=0.0,
        last_at=0.0,
        dated=False,
        every=500,
        label_delay="",
        seed=0,
        notes=[],
        policies=[msgspec.structs.replace(policy, **changes)],
        schedules=[
            schedule(0, False, 0.75, 1.0, 0.2),
            schedule(8, False, 0.80, 0.60, 0.06),
            schedule(8, True, 0.79, 0.67, 0.08),
            schedule(32, False, 0.83, 0.53, 0.04),
        ],
    )
    return Done(stream, order, 50, study)


def broken(given: Done, **how: Any) -> list[str]:
    return [line for line, holds in must_hold(given, **how) if not holds]


def test_a_loop_that_is_ahead_of_its_schedules_holds_every_line() -> None:
    assert broken(done()) == []
    assert broken(done("elec2", "shuffled")) == []
    assert broken(done("sample-none")) == []
    assert broken(done(), late=True) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (done(served=(0.795, 0.48, 0.02)), "auc 0.7950 > 0.8000 of as many trainings on all rows"),
        (done(served=(0.85, 0.65, 0.02)), "log loss 0.6500 < 0.6000 of as many trainings on all rows"),
        (done(served=(0.842, 0.48, 0.02)), "auc 0.8420 >= 0.8435: 0.844 as measured before, or as far ahead"),
        (done(served=(0.85, 0.48, 0.04)), "calibration error 0.0400 <= half of 0.0600"),
        (done("noaa", served=(0.86, 0.43, 0.02), drift_news=5), "drift news in 5 of 20 checks, at most 20%"),
        (done("elec2", "shuffled", drift_news=1), "drift news in 1 of 20 checks, at most 2%"),
        (done("elec2", "shuffled", served=(0.798, 0.60, 0.02)), "auc 0.7980 within .001 of 0.8000"),
        (done("sea", "shuffled", checks={**CHECKS, "lost": 1}), "quality lost in 1 checks"),
        (done("sample-abrupt"), "told never, within 1,000"),
        (done("sample-abrupt", turns=turns(1, first=9_500)), "told after 1,500 rows, within 1,000"),
        (done("sample-harmless", turns=turns(2)), "2 checks said that it matters"),
    ],
)
def test_a_line_that_does_not_hold_is_named(given: Done, said: str) -> None:
    assert [line for line in broken(given) if said in line]


def test_what_is_told_in_time_or_as_harmless_holds() -> None:
    assert broken(done("sample-abrupt", turns=turns(1, first=8_500))) == []
    assert broken(done("sample-harmless", turns=turns(2, matters=False))) == []


def test_a_pipeline_of_other_figures_may_be_as_far_ahead_of_its_own_schedules() -> None:
    assert broken(done("sea", served=(0.806, 0.56, 0.02))) == []
    assert len(broken(done("sea", served=(0.803, 0.58, 0.02)))) == 2


def test_labels_that_come_late_must_not_make_adapting_harmful() -> None:
    late = done("noaa", served=(0.81, 0.56, 0.02))

    assert len(broken(late, late=True)) == 2
