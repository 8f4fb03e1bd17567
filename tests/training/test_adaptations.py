"""Which adaptation of a version is in force, as the store has it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from monitoring.store import adaptations, open_store, versions
from training.adaptation import Adaptation, Expert, decode
from training.adaptations import Adaptations, InForce, SwitchedOff, UnknownAdaptation
from training.lease import CONTROLLER, Lease, LeaseLost

TOKEN = 1
MADE = Adaptation(
    version=0,
    task="binary",
    width=1,
    columns=0,
    experts=(Expert("identity", 0, (0.0,), 1.0),),
    weights=(1.0,),
    bound=2.0,
)


@pytest.fixture
def engine(store_url: str) -> Iterator[sa.Engine]:
    engine = open_store(store_url)
    yield engine
    engine.dispose()


@pytest.fixture
def table(engine: sa.Engine) -> Adaptations:
    assert Lease(engine, CONTROLLER, "test", 60).acquire()
    return Adaptations(engine)


def make(table: Adaptations, version: int, now: float) -> int:
    return table.add(
        version,
        kind="made",
        who="loop",
        why="a check",
        served=MADE,
        whole=MADE,
        record={"weights": {"identity": 1.0}, "gain": float("nan")},
        now=now,
        token=TOKEN,
    )


def say(table: Adaptations, version: int, kind: str, now: float) -> int:
    return table.add(version, kind=kind, who="ana", why="a trial", now=now, token=TOKEN)  # type: ignore[arg-type]


def test_the_numbers_of_a_version_grow_and_its_newest_is_in_force(table: Adaptations) -> None:
    assert [make(table, 3, 1.0), make(table, 3, 2.0), make(table, 4, 3.0)] == [1, 2, 1]

    stored = table.served(3, 2)

    assert (decode(stored).version, decode(stored).number) == (3, 2)
    assert decode(table.whole(3, 2)).number == 2
    assert table.in_force(3) == InForce(2, hashlib.sha256(stored).hexdigest())
    assert table.in_force(5) is None
    (newest, first) = table.list(3)
    assert (newest.number, newest.at, newest.kind, newest.who, newest.why) == (2, 2.0, "made", "loop", "a check")
    assert newest.record == {"weights": {"identity": 1.0}, "gain": None}
    assert (table.newest(3), first.number, len(table.list(3, 1))) == (newest, 1, 1)


@pytest.mark.parametrize("kind", ["reverted", "on"])
def test_whatever_else_happens_ends_it_until_another_is_made(table: Adaptations, kind: str) -> None:
    make(table, 3, 1.0)
    assert say(table, 3, kind, 2.0) == 2
    assert table.in_force(3) is None
    with pytest.raises(UnknownAdaptation, match="version 3 has no adaptation 2"):
        table.served(3, 2)

    assert make(table, 3, 3.0) == 3
    found = table.in_force(3)
    assert found is not None and found.number == 3


def test_off_holds_for_every_version_until_on(table: Adaptations) -> None:
    make(table, 2, 1.0)
    make(table, 3, 2.0)
    assert table.switch() is None
    say(table, 3, "off", 3.0)

    assert table.in_force(2) is None  # also after a rollback to it
    switch = table.switch()
    assert switch is not None and (switch.kind, switch.version) == ("off", 3)
    for version in (2, 3):
        with pytest.raises(SwitchedOff, match="evergreen adaptation on"):
            make(table, version, 3.5)
    assert len(table.list(3)) == 2

    say(table, 3, "on", 4.0)
    found = table.in_force(2)
    assert found is not None and found.number == 1


def test_without_the_lease_nothing_is_written(table: Adaptations) -> None:
    with pytest.raises(LeaseLost):
        table.add(3, kind="off", who="ana", why="", now=1.0, token=TOKEN + 1)
    assert table.list(3) == []


@pytest.mark.parametrize(("kind", "given"), [("made", {}), ("made", {"served": MADE}), ("off", {"served": MADE})])
def test_only_what_was_made_comes_with_an_adaptation(
    table: Adaptations, kind: str, given: dict[str, Adaptation]
) -> None:
    with pytest.raises(ValueError, match="made"):
        table.add(3, kind=kind, who="", why="", now=1.0, token=TOKEN, **given)  # type: ignore[arg-type]


def test_old_rows_go_but_what_is_in_force_and_the_last_switch_stay(engine: sa.Engine, table: Adaptations) -> None:
    with engine.begin() as connection:
        for version in (2, 3):
            row = {"name": "m", "version": version, "created_at": 1.0, "origin": "push", "manifest": "{}"}
            connection.execute(versions.insert().values(row))
    make(table, 1, 1.0)  # of a version that is gone
    say(table, 2, "on", 1.0)
    for at in range(2, 8):
        make(table, 2, float(at))
    for _ in range(3):
        make(table, 3, 100.0)

    assert table.prune(before=50.0, keep_newest=2, token=TOKEN) == 1 + 4

    with engine.connect() as connection:
        left = connection.execute(sa.select(adaptations.c.version, adaptations.c.number).order_by("version", "number"))
        assert [tuple(row) for row in left] == [(2, 1), (2, 6), (2, 7), (3, 1), (3, 2), (3, 3)]
    with pytest.raises(LeaseLost):
        table.prune(before=50.0, keep_newest=2, token=TOKEN + 1)
