"""Homes: seen by the database's clock, whoever leads, and gone when a person says so."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa

from monitoring.store import homes, open_store
from training.homes import (
    HomeInUse,
    HomeReport,
    UnknownHome,
    declare_gone,
    expected,
    find_home,
    known_homes,
    report_home,
)
from training.lease import Lease, LeaseLost

ONE = HomeReport("aaaa", "alpha", "alpha:1", "0.2.0", 3, "", 0, 0.0)
TWO = HomeReport("bbbb", "beta", "beta:1", "0.2.0", None, "version 3 is being fetched", 512, 1.5)


@pytest.fixture
def engine(store_url: str) -> Iterator[sa.Engine]:
    opened = open_store(store_url)
    yield opened
    opened.dispose()


@pytest.fixture
def lease(engine: sa.Engine) -> Lease:
    found = Lease(engine, holder="beta:1:77")
    assert found.acquire()
    return found


def unseen(engine: sa.Engine, home: str, seconds: float) -> None:
    with engine.begin() as connection:
        connection.execute(homes.update().where(homes.c.home == home).values(seen_at=homes.c.seen_at - seconds))


def test_each_home_is_known_by_what_it_last_said_and_the_leader_by_its_lease(engine: sa.Engine, lease: Lease) -> None:
    assert report_home(engine, ONE, time.time()) and report_home(engine, TWO, time.time())
    assert report_home(engine, replace(ONE, serving=4, replica="alpha:2"), time.time())

    one, two = known_homes(engine)

    assert (one.home, one.serving, one.replica, one.leads, one.away) == ("aaaa", 4, "alpha:2", False, False)
    assert (two.why_not_ready, two.spool_bytes, two.lag_s, two.leads) == (TWO.why_not_ready, 512, 1.5, True)
    assert 0 <= one.seen_s < 30
    assert lease.release() and not any(home.leads for home in known_homes(engine))


@pytest.mark.parametrize("shift", [-60.0, 60.0])
def test_a_home_whose_clock_is_wrong_is_seen_all_the_same_and_the_difference_told(
    engine: sa.Engine, shift: float
) -> None:
    report_home(engine, ONE, time.time() + shift)

    (one,) = known_homes(engine)

    assert one.ahead_s == pytest.approx(shift, abs=25) and not one.away and one.seen_s < 30


def test_a_home_that_is_gone_is_waited_for_no_more_and_only_then(engine: sa.Engine, lease: Lease) -> None:
    report_home(engine, ONE, time.time())
    report_home(engine, TWO, time.time())
    assert lease.token is not None
    with pytest.raises(HomeInUse, match="stop it first"):
        declare_gone(engine, "alpha", lease.token)
    unseen(engine, "aaaa", 60)
    with pytest.raises(LeaseLost):
        declare_gone(engine, "alpha", lease.token + 1)
    assert [home.away for home in expected(engine)] == [True, False]

    assert declare_gone(engine, "alpha", lease.token).home == "aaaa"

    assert [home.home for home in expected(engine)] == ["bbbb"]
    assert not report_home(engine, ONE, time.time())
    assert [home.gone for home in known_homes(engine)] == [True, False]


def test_a_home_is_found_by_its_id_or_by_its_host_when_that_has_one(engine: sa.Engine) -> None:
    report_home(engine, ONE, time.time())
    report_home(engine, replace(TWO, host="alpha"), time.time())

    assert find_home(engine, "bbbb").home == "bbbb"
    with pytest.raises(UnknownHome, match="several homes; there are aaaa"):
        find_home(engine, "alpha")
    with pytest.raises(UnknownHome, match="no home of this deployment"):
        find_home(engine, "gamma")
