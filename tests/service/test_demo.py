from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.command.demo import CALM_S, RATE, Story, told, what_happened
from service.command.traffic import Answered, TrafficSummary

CHANGE = int(RATE * CALM_S)
PAID = {"raw_loss": 0.68, "served_loss": 0.55, "compared": 4_200}


def answered(first_row: int, version: int = 1, adaptation: int | None = None) -> Answered:
    chances = [[0.8, 0.2], [0.3, 0.7]]
    return Answered(first_row, 0.0, version, ["a", "b"], [0, 1], chances, [0, 1], adaptation)


ANSWERS = [answered(0), answered(CHANGE, adaptation=5), answered(CHANGE + 2, adaptation=6), answered(CHANGE + 4, 2, 1)]
TRAFFIC = TrafficSummary(
    rows=8,
    rows_sent=8,
    rows_failed=0,
    requests=4,
    retries=0,
    labels_sent=8,
    labels_failed=0,
    versions={1: 6, 2: 2},
    p50_ms=1.0,
    p99_ms=2.0,
    sending_s=1.0,
    duration_s=1.0,
    reasons={},
)
WHOLE: dict[str, Any] = {
    "told_at": 24.0,
    "adapted_at": 27.0,
    "trained_at": 50.0,
    "served_at": 50.5,
    "recovered_at": 54.0,
    "adaptation": 6,
    "version": 2,
    "paid": PAID,
}


def missing(story: Story, traffic: TrafficSummary = TRAFFIC, on_new: tuple[str, ...] = ("api-1", "api-2")) -> list[str]:
    return [what for what, good, _ in what_happened(story, ANSWERS, traffic, list(on_new)) if not good]


def test_a_story_is_whole_when_all_of_it_happened_and_each_part_says_when() -> None:
    told = {what: text for what, _, text in what_happened(Story(**WHOLE), ANSWERS, TRAFFIC, ["api-1", "api-2"])}

    assert missing(Story(**WHOLE)) == []
    assert told["adapted"] == "27.0 s, 7.0 s after the change: adaptation 6 in force"
    assert told["adapting paid"] == "loss 0.550 served, 0.680 raw on 4,200 rows"
    assert "2 rows" in told["after it, version 1 adapted"]


@pytest.mark.parametrize(
    ("without", "what"),
    [
        ({"told_at": None}, "drift told"),
        ({"adapted_at": None}, "adapted"),
        ({"paid": None}, "adapting paid"),
        ({"trained_at": None}, "trained"),
        ({"served_at": None}, "swapped"),
        ({"recovered_at": None}, "recovered"),
    ],
)
def test_a_part_that_did_not_happen_fails_the_demo(without: dict[str, Any], what: str) -> None:
    assert missing(Story(**WHOLE | without)) == [what]


def test_a_failed_request_and_a_worker_left_behind_fail_the_demo() -> None:
    assert missing(Story(**WHOLE), replace(TRAFFIC, rows_failed=1)) == ["requests failed"]
    assert missing(Story(**WHOLE), on_new=("api-1",)) == ["swapped"]


def test_an_adaptation_is_told_in_plain_sentences() -> None:
    weights = {"identity": 0.07, "scale-1000": 0.18, "residual-1000": 0.55, "shift-300": 0.02}

    text = told({"version": 1, "number": 8, "weights": weights, "record": PAID})

    assert text == (
        "adaptation 8 of version 1 answers: 7% the model's own output, 55% residual-1000, 18% scale-1000, "
        "2% shift-300, the rest others. On 4,200 rows answered while adapted the loss was 0.550 served, 0.680 raw."
    )
