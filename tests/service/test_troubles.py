"""Quality, adaptations and drift: an event when a trouble begins and one when it has ended, whoever leads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from monitoring.drift import DriftReport, Finding
from monitoring.store import adaptations, checks, open_store
from service.control.troubles import adaptation_troubles, drift_troubles, known_before, quality_troubles
from training.adaptations import Adaptations
from training.experts import AdaptPolicy

Known = list[tuple[int, str | None]]
Rows = list[tuple[int, str, float | None]]


@contextmanager
def store_with(url: str, known: Known) -> Iterator[sa.Engine]:
    """A store with one check for each (version, state of its quality); None: no labels then."""
    engine = open_store(url)
    with engine.begin() as connection:
        for at, (version, state) in enumerate(known):
            quality = None if state is None else json.dumps({"verdict": {"state": state}})
            values = {"at": float(at), "version": version, "quality": quality, "decision": "{}"}
            connection.execute(sa.insert(checks).values(values))
    yield engine
    engine.dispose()


def told_of(url: str, known: Known) -> list[tuple[int, str]]:
    """(version, state) of every event while checks came one after the other, each seen by another replica."""
    found = []
    with store_with(url, known) as engine:
        for check, (version, state) in enumerate(known, start=1):
            told = quality_troubles(engine, check, version, state or "not known yet", "words")  # type: ignore[arg-type]
            found += [(each.facts["version"], each.state) for each in told]
    return found


def test_quality_that_is_lost_for_many_checks_is_one_trouble_with_an_end(store_url: str) -> None:
    known: Known = [(1, "held"), (1, "lost"), (1, "lost"), (1, "not known yet"), (1, None), (1, "lost"), (1, "held")]

    assert told_of(store_url, known) == [(1, "began"), (1, "ended")]


def test_a_version_that_is_lost_from_its_first_check_on_is_told(store_url: str) -> None:
    assert told_of(store_url, [(1, "lost"), (1, "lost")]) == [(1, "began")]


def test_what_is_not_known_is_no_trouble_and_ends_none(store_url: str) -> None:
    assert told_of(store_url, [(1, None), (1, "not known yet"), (1, "held"), (1, None)]) == []


def test_another_version_ends_the_trouble_of_the_one_before(store_url: str) -> None:
    assert told_of(store_url, [(1, "lost"), (2, None), (2, "lost"), (3, "held"), (3, "lost")]) == [
        (1, "began"),
        (1, "ended"),
        (2, "began"),
        (2, "ended"),
        (3, "began"),
    ]


def test_a_check_of_an_older_release_says_nothing_of_quality(sqlite_url: str) -> None:
    with store_with(sqlite_url, [(1, "lost")]) as engine:
        with engine.begin() as connection:
            old = {"at": 9.0, "version": 1, "quality": '{"auc": 0.7}', "decision": "{}"}
            connection.execute(sa.insert(checks).values(old))

        assert known_before(engine, 3) == (1, "lost")


def told_of_adaptations(url: str, rows: Rows) -> list[tuple[int, str]]:
    """(version, state) of every event while rows (version, kind, moved) came, each seen by another process.

    Hard work are two in a row that moved outputs by 1. None: no check made it.
    """
    policy, found = AdaptPolicy(much=1.0, much_for=2), []
    numbers: dict[int, int] = {}
    for at, (version, kind, moved) in enumerate(rows):
        numbers[version] = numbers.get(version, 0) + 1
        engine = open_store(url)
        with engine.begin() as connection:
            values = {
                "version": version,
                "number": numbers[version],
                "at": float(at),
                "kind": kind,
                "who": "",
                "why": "",
            }
            record = {} if moved is None else {"moved": moved}
            connection.execute(adaptations.insert().values(**values, record=json.dumps(record)))
        if moved is not None:
            found += [(each.facts["version"], each.state) for each in adaptation_troubles(Adaptations(engine), policy)]
        engine.dispose()
    return found


def test_an_adaptation_that_works_hard_is_one_trouble_whoever_looks(store_url: str) -> None:
    moved = [2.0, 0.5, 2.0, 2.0, 2.0, 2.0, 0.5, 0.5, 2.0]

    assert told_of_adaptations(store_url, [(1, "made", each) for each in moved]) == [(1, "began"), (1, "ended")]


def test_hard_work_ends_with_its_version(store_url: str) -> None:
    hard: Rows = [(1, "made", 2.0), (1, "made", 2.0)]

    assert told_of_adaptations(store_url, [*hard, (2, "made", None), (2, "made", 2.0), (2, "made", 2.0)]) == [
        (1, "began"),
        (1, "ended"),
        (2, "began"),
    ]


@pytest.mark.parametrize("between", [[(1, "reverted", 2.0)], [(1, "off", None), (1, "on", None), (1, "made", 2.0)]])
def test_hard_work_is_over_when_it_was_reverted_or_switched_off(sqlite_url: str, between: Rows) -> None:
    rows: Rows = [(1, "made", 2.0), (1, "made", 2.0), *between]

    assert told_of_adaptations(sqlite_url, rows) == [(1, "began"), (1, "ended")]


def finding(name: str, state: str) -> Finding:
    return Finding(name, state, 2.0, 1, 0.0, 0.0, 2.0, None, None, f"{name} moved")  # type: ignore[arg-type]


def report(*findings: Finding) -> DriftReport:
    return DriftReport((), None, 0.0, False, (), 100, 100, findings=findings)


def test_movements_are_told_as_they_begin_and_as_they_are_over() -> None:
    told = list(
        drift_troubles(report(finding("age", "began"), finding("income", "over"), finding("debt", "continues")), 3)
    )

    assert [(one.state, one.facts["features"], one.facts["reasons"]) for one in told] == [
        ("began", ["age"], ["age moved"]),
        ("ended", ["income"], ["income moved"]),
    ]


def test_a_movement_that_goes_on_or_is_remembered_is_no_event() -> None:
    assert list(drift_troubles(report(finding("age", "continues"), finding("debt", "remembered")), 3)) == []
