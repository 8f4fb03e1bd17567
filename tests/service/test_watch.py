"""Each trouble of the workers is told once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from service.control.open_troubles import OpenTroubles
from service.control.watch import QUIET_S, Watch
from service.handover import WorkerReport

Told = list[tuple[str, str, Mapping[str, Any]]]


def report(slot: str, *ready: int, **failed: str) -> WorkerReport:
    return WorkerReport(slot, 1, 0.0, ready=ready, failed={name.removeprefix("v"): why for name, why in failed.items()})


class Restarting:
    """The watch of a controller that may start anew, and what it told over all its lives."""

    def __init__(self, folder: Path) -> None:
        self.told: Told = []
        self._path = folder / "troubles.json"

    def watch(self, dropped_rows: float = 0.0, now: float = 0.0) -> Watch:
        troubles = OpenTroubles(self._path, lambda event, facts, state: self.told.append((event, state, facts)))
        return Watch(troubles, dropped_rows, now)


@pytest.fixture
def controller(tmp_path: Path) -> Restarting:
    return Restarting(tmp_path)


def test_a_spell_of_dropped_rows_is_told_when_it_begins_and_when_it_has_ended(controller: Restarting) -> None:
    watch, told = controller.watch(dropped_rows=100), controller.told

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


def test_a_second_spell_is_another_trouble_with_rows_of_its_own(controller: Restarting) -> None:
    watch, told = controller.watch(), controller.told

    for now, dropped in ((0.0, 5), (QUIET_S, 5), (200.0, 9), (200 + QUIET_S, 9)):
        watch.look(dropped, [], now)

    assert [(state, facts["rows"]) for _, state, facts in told] == [
        ("began", 5),
        ("ended", 5),
        ("began", 4),
        ("ended", 4),
    ]


def test_a_version_that_does_not_load_is_told_once_for_each_worker(controller: Restarting) -> None:
    watch, told = controller.watch(), controller.told

    for reports in ([report("api-1", v2="digest")], [report("api-1", v2="digest"), report("api-2", v2="digest")]):
        watch.look(0.0, reports, 1.0)

    assert [(state, facts["worker"], facts["version"], facts["why"]) for _, state, facts in told] == [
        ("began", "api-1", 2, "digest"),
        ("began", "api-2", 2, "digest"),
    ]


def test_a_version_that_loads_at_last_has_ended_its_trouble_and_may_begin_another(controller: Restarting) -> None:
    watch, told = controller.watch(), controller.told

    for reports in ([report("api-1", v2="digest")], [report("api-1", 1)], [report("api-1", v2="gone")]):
        watch.look(0.0, reports, 1.0)

    assert [(state, facts["why"]) for _, state, facts in told] == [
        ("began", "digest"),
        ("ended", "digest"),
        ("began", "gone"),
    ]
    assert {facts["trouble"] for *_, facts in told} == {"version_failed/2/api-1"}


def test_a_trouble_of_a_worker_that_lasts_over_restarts_is_one_event_and_one_when_it_has_ended(
    controller: Restarting,
) -> None:
    failing, other = report("api-1", v2="digest"), report("api-2", 2)

    for reports in ([failing, other], [failing, other]):
        controller.watch().look(0.0, reports, 1.0)
    started_again = controller.watch(now=0.0)
    for reports in ([], [other], [report("api-1"), other], [failing, other], [report("api-1", 2), other]):
        started_again.look(0.0, reports, 1.0)
    controller.watch().look(0.0, [report("api-1", 2), other], 1.0)

    assert [(state, facts["trouble"]) for _, state, facts in controller.told] == [
        ("began", "version_failed/2/api-1"),
        ("ended", "version_failed/2/api-1"),
    ]


def test_a_worker_that_there_is_no_more_after_a_restart_has_no_trouble(controller: Restarting) -> None:
    controller.watch().look(0.0, [report("api-2", v2="digest")], 1.0)
    fewer_workers = controller.watch(now=0.0)

    fewer_workers.look(0.0, [report("api-1", 2)], QUIET_S - 1)
    assert len(controller.told) == 1
    fewer_workers.look(0.0, [report("api-1", 2)], QUIET_S)

    assert [state for _, state, _ in controller.told] == ["began", "ended"]


def test_lost_rows_end_a_minute_after_a_restart_when_no_more_are_lost(controller: Restarting) -> None:
    controller.watch().look(30, [], 1.0)
    counted_anew = controller.watch(dropped_rows=0, now=500.0)
    for now, dropped in ((501.0, 0), (510.0, 12), (510.0 + QUIET_S, 12)):
        counted_anew.look(dropped, [], now)
    controller.watch().look(0, [], 999.0)

    assert [(state, facts["rows"]) for _, state, facts in controller.told] == [("began", 30), ("ended", 42)]


def test_a_file_that_cannot_be_read_or_written_costs_only_the_memory(controller: Restarting, tmp_path: Path) -> None:
    (tmp_path / "troubles.json").write_text("{")
    controller.watch().look(0.0, [report("api-1", v2="digest")], 1.0)
    (tmp_path / "troubles.json").unlink()
    (tmp_path / "troubles.json").mkdir()
    watch = controller.watch()
    for reports in ([report("api-1", v2="digest")], [report("api-1", 2)]):
        watch.look(0.0, reports, 1.0)

    assert [state for _, state, _ in controller.told] == ["began", "began", "ended"]
