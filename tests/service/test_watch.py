"""Each trouble of the workers is told once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.control.watch import QUIET_S, Watch
from service.handover import WorkerReport

Told = list[tuple[str, str, Mapping[str, Any]]]


def report(slot: str, **failed: str) -> WorkerReport:
    return WorkerReport(slot, 1, 0.0, failed={name.removeprefix("v"): why for name, why in failed.items()})


def watching(dropped_rows: float = 0.0) -> tuple[Watch, Told]:
    told: Told = []
    return Watch(lambda event, facts, state: told.append((event, state, facts)), dropped_rows), told


def test_a_spell_of_dropped_rows_is_told_when_it_begins_and_when_it_has_ended() -> None:
    watch, told = watching(dropped_rows=100)

    for now, dropped in (
        (0.0, 100),
        (5.0, 130),
        (10.0, 150),
        (300.0, 170),
        (305.0, 170),
        (300 + QUIET_S, 170),
        (999, 170),
    ):
        watch.look(dropped, [], now)

    assert [(event, state, facts["rows"]) for event, state, facts in told] == [
        ("record_dropped", "began", 30),
        ("record_dropped", "ended", 70),
    ]
    assert {facts["trouble"] for *_, facts in told} == {"record_dropped"}


def test_a_second_spell_is_another_trouble_with_rows_of_its_own() -> None:
    watch, told = watching()

    for now, dropped in ((0.0, 5), (QUIET_S, 5), (200.0, 9), (200 + QUIET_S, 9)):
        watch.look(dropped, [], now)

    assert [(state, facts["rows"]) for _, state, facts in told] == [
        ("began", 5),
        ("ended", 5),
        ("began", 4),
        ("ended", 4),
    ]


def test_a_version_that_does_not_load_is_told_once_for_each_worker() -> None:
    watch, told = watching()

    for reports in ([report("api-1", v2="digest")], [report("api-1", v2="digest"), report("api-2", v2="digest")]):
        watch.look(0.0, reports, 1.0)

    assert [(state, facts["worker"], facts["version"], facts["why"]) for _, state, facts in told] == [
        ("began", "api-1", 2, "digest"),
        ("began", "api-2", 2, "digest"),
    ]


def test_a_version_that_loads_at_last_has_ended_its_trouble_and_may_begin_another() -> None:
    watch, told = watching()

    for reports in ([report("api-1", v2="digest")], [report("api-1")], [report("api-1", v2="gone")]):
        watch.look(0.0, reports, 1.0)

    assert [(state, facts["why"]) for _, state, facts in told] == [
        ("began", "digest"),
        ("ended", "digest"),
        ("began", "gone"),
    ]
    assert {facts["trouble"] for *_, facts in told} == {"version_failed/2/api-1"}
