from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from monitoring.store import connect, db_now, leases, open_store, runs
from tests.processes import python
from training.lease import CONTROLLER, Lease, LeaseLost, autocommit, fence, write_fenced
from training.runs import Runs


@pytest.fixture
def engine(store_url: str) -> Iterator[sa.Engine]:
    engine = open_store(store_url)
    yield engine
    engine.dispose()


def taken(engine: sa.Engine, holder: str = "a", seconds: float = 30.0) -> Lease:
    lease = Lease(engine, CONTROLLER, holder, seconds)
    assert lease.acquire(), lease.reason
    return lease


def run_out(engine: sa.Engine) -> None:
    """What waiting would do: the lease ends in the past."""
    with engine.begin() as connection:
        connection.execute(leases.update().values(expires_at=db_now(engine) - 1.0))


def note(engine: sa.Engine, token: int) -> int:
    return Runs(engine).note("check", trigger="schedule", who="test", why=str(token), now=1.0, token=token)


def count(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(runs)).scalar_one())


def test_one_holder_at_a_time_and_the_other_learns_who_and_for_how_long(engine: sa.Engine) -> None:
    first, second = taken(engine, "host-1:7"), Lease(engine, CONTROLLER, "host-2:9", 30)

    assert not second.acquire()
    assert (second.held, second.token) == (False, None)
    assert second.reason.startswith("'host-1:7' holds it for 29") or "30.0 s more" in second.reason
    assert first.held


def test_the_token_grows_with_each_change_of_holder_and_stays_over_renewals(engine: sa.Engine) -> None:
    first = taken(engine, "a")
    assert first.renew() and first.acquire() and first.token == 1

    assert first.release()
    second = taken(engine, "b")
    run_out(engine)
    third = taken(engine, "a")

    assert (second.token, third.token) == (2, 3)


def test_a_replaced_holder_learns_it_at_its_next_renewal(engine: sa.Engine) -> None:
    stale = taken(engine, "a")
    run_out(engine)
    taken(engine, "b")

    assert not stale.renew()
    assert (stale.state, stale.token, stale.held) == ("lost", None, False)
    assert stale.reason == "'b' took it with token 2"


def test_a_lease_that_ran_out_and_was_not_taken_is_renewed_with_the_same_token(engine: sa.Engine) -> None:
    lease = taken(engine)
    run_out(engine)

    with pytest.raises(LeaseLost, match="it ran out 1"):
        note(engine, 1)
    assert lease.renew()
    assert note(engine, 1)


def test_a_stale_holder_cannot_write(engine: sa.Engine) -> None:
    taken(engine, "a")
    run_out(engine)
    current = taken(engine, "b")

    with pytest.raises(LeaseLost, match=r"'b' took it with token 2.*nothing was written"):
        note(engine, 1)
    assert count(engine) == 0
    assert current.token is not None and note(engine, current.token)


def test_after_a_release_the_released_token_cannot_write(engine: sa.Engine) -> None:
    taken(engine).release()

    with pytest.raises(LeaseLost, match="it was released"):
        note(engine, 1)


def test_without_any_lease_nothing_is_written(engine: sa.Engine) -> None:
    with pytest.raises(LeaseLost, match="nobody ever took it"):
        note(engine, 1)


def test_a_statement_whose_own_conditions_fail_is_not_a_lost_lease(engine: sa.Engine) -> None:
    taken(engine)
    nothing = runs.update().where(runs.c.id == 99, fence(engine, 1)).values(who="x").returning(runs.c.id)

    assert list(write_fenced(engine, nothing, 1)) == []


def test_on_postgresql_nobody_takes_the_lease_between_the_check_and_the_write(
    engine: sa.Engine, store_url: str
) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("a writing SQLite statement has the database to itself")
    taken(engine, "a", seconds=2.0)
    impatient = sa.create_engine(store_url, connect_args={"options": "-c lock_timeout=100"})
    other = Lease(impatient, CONTROLLER, "b", 30)
    row = sa.select(*(sa.literal(v) for v in ("check", "done", "schedule", "x", "y")), sa.literal(1.0))
    columns = ["kind", "state", "trigger", "who", "why", "created_at"]

    with engine.connect() as connection:  # a transaction left open stands for a write that takes its time
        write = runs.insert().from_select(columns, row.where(fence(engine, 1)))
        assert connection.scalar(write.returning(runs.c.id)) == 1
        while connection.scalar(sa.select(leases.c.expires_at > db_now(engine))):
            pass
        assert not other.acquire()
        assert "lock timeout" in other.reason
        connection.commit()

    assert other.acquire() and other.token == 2
    impatient.dispose()


def test_of_many_threads_that_ask_at_once_exactly_one_gets_it(engine: sa.Engine) -> None:
    rivals = [Lease(engine, CONTROLLER, f"thread-{n}", 30) for n in range(8)]

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(Lease.acquire, rivals))

    assert won.count(True) == 1


RIVAL = """
import random, sys, time
from monitoring.store import connect
from training.lease import CONTROLLER, Lease, LeaseLost
from training.runs import Runs
engine = connect(sys.argv[1])
chance = random.Random(int(sys.argv[2]))
lease, runs = Lease(engine, CONTROLLER, sys.argv[2], 0.02), Runs(engine)
token, refused, written = None, 0, 0
ends = time.monotonic() + 120
while (refused < 3 or written < 10 or (token or 0) < 6) and time.monotonic() < ends:
    token = lease.token if lease.acquire() else token  # a stale token is kept, as a stopped process would
    time.sleep(chance.choice([0, 0.005, 0.03]))
    if token is not None:
        try:
            runs.note("check", trigger="schedule", who=sys.argv[2], why=str(token), now=1.0, token=token)
            written += 1
        except LeaseLost:
            refused += 1
print(written, refused)
"""


def test_between_two_processes_every_write_carries_the_newest_token(engine: sa.Engine, store_url: str) -> None:
    with python(RIVAL, store_url, 1) as one, python(RIVAL, store_url, 2) as other:
        said = [rival.communicate(timeout=240)[0].split() for rival in (one, other)]

    with engine.connect() as connection:
        tokens = [int(why) for why in connection.scalars(sa.select(runs.c.why).order_by(runs.c.id))]
    assert tokens == sorted(tokens)
    assert len(set(tokens)) > 2, "the lease never changed hands, nothing was shown"
    assert len(tokens) == sum(int(written) for written, _ in said)
    assert all(int(refused) > 0 for _, refused in said)


def test_the_clock_of_the_process_does_not_matter(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    lease = taken(engine)

    assert note(engine, 1)
    with engine.connect() as connection:
        left = connection.scalar(sa.select(leases.c.expires_at - db_now(engine)))
    assert left is not None and 0 < left <= lease.seconds


def test_a_database_in_trouble_is_a_reason_not_an_exception(engine: sa.Engine) -> None:
    lease, other = taken(engine), Lease(engine, CONTROLLER, "b", 30)
    with autocommit(engine) as connection:
        connection.execute(sa.text("alter table leases rename to gone"))

    assert not lease.renew()
    assert (lease.state, lease.held, lease.token) == ("unsure", False, 1)
    assert "the database did not answer" in lease.reason and "leases" in lease.reason
    assert not lease.acquire() and lease.state == "unsure"
    assert not other.acquire() and "the database did not answer" in other.reason

    with autocommit(engine) as connection:
        connection.execute(sa.text("alter table gone rename to leases"))
    assert lease.renew() and lease.held
    assert lease.release() and not lease.held


def test_a_database_that_cannot_be_reached_is_a_reason_too() -> None:
    lease = Lease(connect("postgresql+psycopg://nobody@127.0.0.1:1/none"), CONTROLLER, "a", 30)

    assert not lease.acquire()
    assert "the database did not answer" in lease.reason


def test_who_hears_nothing_for_as_long_as_the_lease_lasts_is_not_sure_of_it(engine: sa.Engine) -> None:
    lease = taken(engine, "a", 2.0)
    assert lease.sure

    time.sleep(2.1)  # stopped, or waiting for an answer
    assert lease.held and not lease.sure

    assert lease.renew() and lease.sure
    assert lease.release() and not lease.sure
