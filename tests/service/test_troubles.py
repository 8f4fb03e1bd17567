"""Quality and drift: an event when a trouble begins and one when it has ended, whoever leads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from monitoring.drift import DriftReport, Finding
from monitoring.store import checks, open_store
from service.control.troubles import drift_troubles, known_before, quality_troubles

Known = list[tuple[int, str | None]]


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
