"""Each trouble of the workers is told once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.control.watch import REMIND_EVERY_S, Watch
from service.handover import WorkerReport

Told = list[tuple[str, Mapping[str, Any]]]


def report(slot: str, **failed: str) -> WorkerReport:
    return WorkerReport(slot, 1, 0.0, failed={name.removeprefix("v"): why for name, why in failed.items()})


def watching(dropped_rows: float = 0.0) -> tuple[Watch, Told]:
    told: Told = []
    return Watch(lambda event, facts: told.append((event, facts)), dropped_rows), told


def test_dropped_rows_are_told_once_a_spell_and_again_while_it_lasts() -> None:
    watch, told = watching(dropped_rows=100)

    for now, dropped in ((0.0, 100), (5.0, 130), (10.0, 150), (15.0, 150), (5 + REMIND_EVERY_S, 170)):
        watch.look(dropped, [], now)

    assert [(event, facts["rows"]) for event, facts in told] == [("record_dropped", 30), ("record_dropped", 40)]


def test_a_version_that_does_not_load_is_told_once_for_each_worker() -> None:
    watch, told = watching()

    for reports in ([report("api-1", v2="digest")], [report("api-1", v2="digest"), report("api-2", v2="digest")]):
        watch.look(0.0, reports, 1.0)

    assert [(facts["worker"], facts["version"], facts["why"]) for _, facts in told] == [
        ("api-1", 2, "digest"),
        ("api-2", 2, "digest"),
    ]


def test_a_version_that_fails_again_after_it_had_loaded_is_news() -> None:
    watch, told = watching()

    for reports in ([report("api-1", v2="digest")], [report("api-1")], [report("api-1", v2="gone")]):
        watch.look(0.0, reports, 1.0)

    assert [facts["why"] for _, facts in told] == ["digest", "gone"]
