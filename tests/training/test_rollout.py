from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from monitoring.store import db_now, open_store, workers
from training.artefact import write_manifest
from training.lease import CONTROLLER, Lease, LeaseLost
from training.registry import NoPrevious, Registry, UnknownVersion
from training.rollout import (
    KNOWN_S,
    WorkerState,
    forget_workers,
    live_workers,
    promote,
    report_workers,
    roll_back,
)

TOKEN = 1

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # importing bentoml warns


@pytest.fixture
def engine(store_url: str) -> Iterator[sa.Engine]:
    engine = open_store(store_url)
    assert Lease(engine, CONTROLLER, "test", 60).acquire()
    yield engine
    engine.dispose()


@pytest.fixture
def registry(engine: sa.Engine, tmp_path: Path) -> Registry:
    """Version 1 is champion, 2 is registered."""
    folder = tmp_path / "artefact"
    folder.mkdir()
    (folder / "model.skops").write_bytes(b"weights")
    (folder / "schema.json").write_bytes(b"{}")
    write_manifest(folder, {"task": "binary"})
    registry = Registry(engine, tmp_path / "bentoml" / "models", "credit")
    for _ in range(2):
        registry.register(folder, origin="bootstrap", now=1.0)
    registry.announce(1, TOKEN)
    registry.flip(1, TOKEN)
    return registry


class Replica:
    """Workers that answer with one scripted list of states after another; its clock moves when it is slept on."""

    def __init__(self, *states: Sequence[WorkerState]) -> None:
        self.states, self.now, self.asked = states, 100.0, 0

    def workers(self) -> Sequence[WorkerState]:
        self.asked += 1
        return self.states[min(self.asked, len(self.states)) - 1]

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def clock(self) -> float:
        return self.now


def worker(slot: str, *ready: int, failed: dict[int, str] | None = None) -> WorkerState:
    return WorkerState("host", slot, 1, (1, *ready), failed or {})


def test_it_flips_once_every_live_worker_has_the_version_loaded(registry: Registry) -> None:
    seen = []
    replica = Replica([worker("0"), worker("1")], [worker("0", 2), worker("1")], [worker("0", 2), worker("1", 2)])

    def sleep(seconds: float) -> None:
        seen.append((registry.live().champion, registry.live().announced))
        replica.sleep(seconds)

    result = promote(registry, 2, TOKEN, live_workers=replica.workers, timeout_s=30, sleep=sleep, clock=replica.clock)

    assert seen == [(1, 2), (1, 2)]
    assert (result.flipped, result.champion, result.previous) == (True, 2, 1)
    assert (result.ready, result.not_ready) == (("host/0", "host/1"), ())
    assert registry.live().announced is None


def test_a_host_that_is_out_of_reach_is_named_and_nobody_waits_for_it(registry: Registry, engine: sa.Engine) -> None:
    report_workers(engine, "host", [worker("0", 2)])
    report_workers(engine, "far", [worker("0")])
    with engine.begin() as connection:
        connection.execute(workers.update().where(workers.c.replica == "far").values(seen_at=db_now(engine) - 60))
    replica = Replica()

    result = promote(
        registry,
        2,
        TOKEN,
        live_workers=lambda: live_workers(engine, KNOWN_S),
        timeout_s=30,
        sleep=replica.sleep,
        clock=replica.clock,
    )

    assert (result.flipped, result.ready, result.not_ready) == (True, ("host/0",), ("far/0",))
    assert (result.reason, result.waited_s) == ("all 1 live workers had it loaded; not reached: far/0", 0.0)


def test_one_worker_that_cannot_load_it_keeps_the_champion_and_says_who_and_why(registry: Registry) -> None:
    replica = Replica([worker("0"), worker("1")], [worker("0", 2), worker("1", failed={2: "digest of model.onnx"})])

    result = promote(
        registry, 2, TOKEN, live_workers=replica.workers, timeout_s=30, sleep=replica.sleep, clock=replica.clock
    )

    assert not result.flipped
    assert result.failed == {"host/1": "digest of model.onnx"}
    assert result.reason == "1 of 2 workers could not load version 2; host/1: digest of model.onnx"
    assert (registry.live().champion, registry.live().announced) == (1, None)


def test_a_silent_worker_holds_it_up_until_the_timeout_and_is_named(registry: Registry) -> None:
    replica = Replica([worker("0", 2), worker("1")])

    result = promote(
        registry, 2, TOKEN, live_workers=replica.workers, timeout_s=5, sleep=replica.sleep, clock=replica.clock
    )

    assert (result.flipped, result.not_ready, result.waited_s) == (True, ("host/1",), 5.0)
    assert result.reason == "1 of 2 workers were not ready after 5 s: host/1"
    assert registry.live().champion == 2


def test_without_live_workers_it_flips_at_once(registry: Registry) -> None:
    replica = Replica([])

    result = promote(
        registry, 2, TOKEN, live_workers=replica.workers, timeout_s=30, sleep=replica.sleep, clock=replica.clock
    )

    assert (result.flipped, result.waited_s, registry.live().champion) == (True, 0.0, 2)


def test_the_champion_is_not_promoted_again(registry: Registry) -> None:
    replica = Replica([worker("0")])

    result = promote(
        registry, 1, TOKEN, live_workers=replica.workers, timeout_s=30, sleep=replica.sleep, clock=replica.clock
    )

    assert (result.flipped, result.reason) == (False, "version 1 is the champion already")
    assert registry.live().previous is None


def test_an_unknown_version_or_a_stale_token_changes_nothing(registry: Registry) -> None:
    replica = Replica([])
    for version, token, error in ((9, TOKEN, UnknownVersion), (2, 0, LeaseLost)):
        with pytest.raises(error):
            promote(
                registry,
                version,
                token,
                live_workers=replica.workers,
                timeout_s=30,
                sleep=replica.sleep,
                clock=replica.clock,
            )
    assert (registry.live().champion, registry.live().announced) == (1, None)


def test_a_rollout_that_is_cut_off_is_withdrawn(registry: Registry) -> None:
    replica = Replica([worker("0")])

    def stopped(seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        promote(registry, 2, TOKEN, live_workers=replica.workers, timeout_s=30, sleep=stopped, clock=replica.clock)
    assert (registry.live().champion, registry.live().announced) == (1, None)


def test_a_rollback_waits_for_the_workers_as_well(registry: Registry) -> None:
    nobody = Replica([])
    promote(registry, 2, TOKEN, live_workers=nobody.workers, timeout_s=1, sleep=nobody.sleep, clock=nobody.clock)
    replica = Replica([WorkerState("host", "0", 2, (2,))], [WorkerState("host", "0", 2, (2, 1))])

    result = roll_back(
        registry, TOKEN, live_workers=replica.workers, timeout_s=30, sleep=replica.sleep, clock=replica.clock
    )

    assert (result.flipped, result.version, result.champion, result.previous) == (True, 1, 1, None)
    assert replica.asked == 2
    with pytest.raises(NoPrevious, match="no champion before version 1"):
        roll_back(registry, TOKEN, live_workers=nobody.workers, timeout_s=1, sleep=nobody.sleep, clock=nobody.clock)


def test_the_table_of_workers_keeps_the_newest_word_of_each_live_slot(engine: sa.Engine) -> None:
    report_workers(engine, "east", [WorkerState("east", "0"), WorkerState("east", "1", 1, (1,))])
    report_workers(engine, "west", [WorkerState("west", "0", 1, (1, 2), {3: "too big"})])
    report_workers(engine, "east", [WorkerState("east", "0", 1, (1, 2))])

    assert live_workers(engine) == (
        WorkerState("east", "0", 1, (1, 2)),
        WorkerState("west", "0", 1, (1, 2), {3: "too big"}),
    )


def test_a_worker_not_seen_for_ten_seconds_does_not_count_and_is_forgotten_later(engine: sa.Engine) -> None:
    report_workers(engine, "east", [WorkerState("east", "0"), WorkerState("east", "1")])
    with engine.begin() as connection:
        connection.execute(workers.update().where(workers.c.slot == "1").values(seen_at=db_now(engine) - 11))

    assert [state.slot for state in live_workers(engine)] == ["0"]
    assert forget_workers(engine, older_than_s=3600) == 0
    assert forget_workers(engine, older_than_s=10) == 1


def test_a_replica_without_workers_reports_none(engine: sa.Engine) -> None:
    report_workers(engine, "east", [WorkerState("east", "0")])
    report_workers(engine, "east", [])

    assert live_workers(engine) == ()
