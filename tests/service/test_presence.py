"""What a controller says of its home and takes over from the others; and a home that is gone takes no part."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from monitoring.log import PredictionLog
from monitoring.store import homes, open_store, predictions
from service import keys, tokens
from service.configuration import load
from service.control.controller import Controller
from service.control.own_part import OwnPart
from service.control.presence import Presence
from service.handover import ControllerStatus, Live
from service.process import Tree
from service.secret_file import home_id
from service.settings import Settings
from tests.places import NOW, POLICY, append, record
from training.homes import known_homes
from training.rollout import WorkerState

STATUS = ControllerStatus(at=0.0, spool_bytes=77, drain_lag_s=2.5)
LIVE = Live(model="evergreen", problem="version 3 is not on this host yet: it is being fetched")


@pytest.fixture
def settings(tmp_path: Path, store_url: str) -> Settings:
    return load(environ={"EVERGREEN_HOME": str(tmp_path), "EVERGREEN_STORE__URL": store_url})


@pytest.fixture
def engine(settings: Settings) -> Iterator[sa.Engine]:
    opened = open_store(settings.store_url)
    yield opened
    opened.dispose()


def worker(serving: int | None, slot: str = "api-1", **failed: str) -> WorkerState:
    return WorkerState("here:1", slot, serving, (), {int(version[1:]): why for version, why in failed.items()})


@pytest.mark.parametrize(
    ("workers", "serving", "why"),
    [
        ([], None, LIVE.problem),
        ([worker(None)], None, LIVE.problem),
        ([worker(None, v3="digest differs")], None, "digest differs"),
        ([worker(3), worker(3, "api-2")], 3, ""),
        ([worker(3), worker(2, "api-2")], None, ""),
    ],
)
def test_a_home_says_what_it_serves_or_why_it_does_not(
    settings: Settings, engine: sa.Engine, workers: list[WorkerState], serving: int | None, why: str
) -> None:
    Presence(settings, engine, "here:1").turn(LIVE, workers, STATUS)

    (home,) = known_homes(engine)
    assert (home.home, home.replica, home.serving, home.why_not_ready) == (home_id(settings), "here:1", serving, why)
    assert (home.spool_bytes, home.lag_s, home.away) == (77, 2.5, False) and abs(home.ahead_s) < 30


def test_a_turn_copies_the_tokens_and_one_that_cannot_is_told_once(
    settings: Settings, engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    presence = Presence(settings, engine, "here:1")
    tokens.add(engine, "ana", ["read"], 1.0)
    presence.turn(LIVE, [], STATUS)
    assert [token.name for token in keys.read(settings.tokens_file)] == ["ana"]

    tokens.add(engine, "bo", ["read"], 2.0)
    settings.tokens_file.unlink()
    settings.tokens_file.mkdir()
    with caplog.at_level(logging.ERROR):
        presence.turn(LIVE, [], STATUS)
        presence.turn(LIVE, [], STATUS)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["tokens and keys are not followed"]

    settings.tokens_file.rmdir()
    presence.turn(LIVE, [], STATUS)
    assert [token.name for token in keys.read(settings.tokens_file)] == ["ana", "bo"]


@pytest.mark.parametrize("gone", [False, True])
def test_a_home_that_was_said_to_be_gone_stores_and_takes_over_nothing_any_more(
    settings: Settings, engine: sa.Engine, gone: bool, caplog: pytest.LogCaptureFixture
) -> None:
    presence = Presence(settings, engine, "here:1")
    presence.turn(LIVE, [], STATUS)
    with engine.begin() as connection:
        connection.execute(homes.update().values(gone_at=1.0 if gone else None))
    log = PredictionLog(settings.spool_dir, POLICY)
    append(log, NOW, ["late"], [record("car")])
    log.close()
    tokens.add(engine, "ana", ["read"], 1.0)
    controller = Controller(settings, Tree(settings.home / "run", "serve"))
    controller._stopping.set()

    presence.turn(LIVE, [], STATUS)
    presence.turn(LIVE, [], STATUS)
    controller._drain()
    controller.metrics.close()
    opened = controller.engine()
    assert opened is not None
    opened.dispose()

    with engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(predictions)) == (0 if gone else 1)
    assert len(keys.read(settings.tokens_file)) == (0 if gone else 1)
    said = [record.getMessage() for record in caplog.records if "said to be gone" in record.getMessage()]
    assert presence.gone is gone and len(said) == int(gone)


def test_the_own_part_of_a_home_outlives_a_store_that_is_away(tmp_path: Path) -> None:
    away = load(environ={"EVERGREEN_HOME": str(tmp_path), "EVERGREEN_STORE__URL": f"sqlite:///{tmp_path}/none.db"})
    engine = sa.create_engine(f"sqlite:///{tmp_path}/none.db")

    OwnPart(away, engine, "here:1", lambda: False).turn()  # there is no table
    engine.dispose()
