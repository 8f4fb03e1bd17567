"""`evergreen drain`: what a server that is gone left in its spool reaches the store, each row once, or is told of."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner, Result

from monitoring.drain import Drainer, SpoolBusy
from monitoring.log import LogPolicy, PredictionLog
from monitoring.spool import segments
from monitoring.store import homes, labels, open_store, predictions
from service.command.cli import app
from service.command.drain import drain
from service.secret_file import home_id
from service.settings import Settings, StoreSettings
from tests.places import append, append_label, record
from tests.processes import python
from tests.real_server import wait_until
from training.homes import HomeGone, HomeReport, report_home


@pytest.fixture
def settings(tmp_path: Path, store_url: str) -> Settings:
    return Settings(home=tmp_path, store=StoreSettings(url=store_url))


def leave_behind(settings: Settings, rows: int, *, first: int = 0, batch: int = 100) -> None:
    """What the worker of a server that was taken away has left in its spool: sealed segments."""
    log = PredictionLog(settings.spool_dir, LogPolicy(fsync="never", segment_bytes=64 * 2**10))
    for start in range(first, first + rows, batch):
        ids = [f"row-{number}" for number in range(start, min(start + batch, first + rows))]
        append(log, 1.0, ids, [record("car")] * len(ids))
    append_label(log, 1.0, f"row-{first}")
    log.close()


def stored(settings: Settings) -> list[str]:
    engine = open_store(settings.store_url)
    try:
        with engine.connect() as connection:
            return list(connection.scalars(sa.select(predictions.c.id)))
    finally:
        engine.dispose()


def evergreen(settings: Settings, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    monkeypatch.setenv("EVERGREEN_HOME", str(settings.home))
    monkeypatch.setenv("EVERGREEN_STORE__URL", settings.store.url)
    return CliRunner().invoke(app, ["drain", *arguments])


def test_rows_of_a_server_that_is_gone_are_stored_once_and_counted(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_behind(settings, 2_500)

    told = evergreen(settings, monkeypatch)
    again = evergreen(settings, monkeypatch, "--json")

    assert told.exit_code == 0
    assert told.stdout == f"stored 2,500 predictions, 1 labels; nothing is left in {settings.spool_dir}\n"
    assert again.exit_code == 0 and json.loads(again.stdout)["predictions"] == 0
    assert sorted(stored(settings)) == sorted(f"row-{number}" for number in range(2_500))
    assert segments(settings.spool_dir) == {}


def test_a_home_that_was_said_to_be_gone_stores_nothing_any_more(settings: Settings) -> None:
    leave_behind(settings, 100)
    engine = open_store(settings.store_url)
    report_home(engine, HomeReport(home_id(settings), "here", "here:1", "0", None, "", 0, 0.0), 0.0)
    with engine.begin() as connection:
        connection.execute(homes.update().values(gone_at=1.0))
    engine.dispose()

    with pytest.raises(HomeGone, match="erasures since then did not look here"):
        drain(settings, 30.0, say=print)

    assert stored(settings) == []
    assert segments(settings.spool_dir)


def test_a_spool_that_was_never_there_is_empty(settings: Settings) -> None:
    assert drain(settings, 1.0, say=print) == (str(settings.spool_dir), 0, 0, 0, 0, "")


def test_a_store_that_stays_away_leaves_the_rows_and_says_how_many(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_behind(settings, 1_000)
    away = settings.model_copy(update={"store": StoreSettings(url="postgresql+psycopg://nobody@127.0.0.1:9/none")})

    told = evergreen(away, monkeypatch, "--timeout", "1.5")

    assert told.exit_code == 1
    assert f"up to 1,001 rows are left in {settings.spool_dir} (the store does not take them: " in told.stdout
    assert "`evergreen drain`" in told.stdout
    assert told.stderr.count("the store does not take them") == 1
    assert drain(settings, 60, say=print).predictions == 1_000


def test_only_rows_that_are_not_stored_count_as_left(settings: Settings) -> None:
    leave_behind(settings, 700)
    engine = open_store(settings.store_url)
    with Drainer(settings.spool_dir, engine) as drainer:
        log = PredictionLog(settings.spool_dir, LogPolicy(fsync="never"))
        append(log, 1.0, ["open-1", "open-2"], [record("car")] * 2)
        assert drainer.rows_waiting() == 703
        drainer.drain(2.0)
        assert drainer.rows_waiting() == 0
        append(log, 1.0, ["open-3"], [record("car")])
        assert drainer.rows_waiting() == 1
    with Drainer(settings.spool_dir, engine) as another:
        another.drain(3.0)  # asks the store how far the open segment was stored
        append(log, 1.0, ["open-4"], [record("car")])
        assert another.rows_waiting() == 1
    log.close()
    engine.dispose()


def test_with_no_time_given_nothing_is_stored_and_all_rows_are_told(settings: Settings) -> None:
    leave_behind(settings, 40)

    left = drain(settings, 0.0, say=print)

    assert (left.rows_left, left.predictions) == (41, 0)
    assert "there was no time to store them" in left.sentence


def test_the_spool_of_a_server_that_runs_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_behind(settings, 10)
    engine = open_store(settings.store_url)

    with Drainer(settings.spool_dir, engine):
        told = evergreen(settings, monkeypatch)
        with pytest.raises(SpoolBusy):
            drain(settings, 10, say=print)
    engine.dispose()

    assert told.exit_code == 1
    assert "is being drained by process" in told.stderr
    assert drain(settings, 60, say=print).predictions == 10


def test_a_second_signal_ends_the_waiting(settings: Settings) -> None:
    leave_behind(settings, 10)
    away = settings.model_copy(update={"store": StoreSettings(url="postgresql+psycopg://nobody@127.0.0.1:9/none")})
    said: list[str] = []

    left = drain(away, 3600, say=said.append, enough=lambda: bool(said))

    assert left.rows_left == 11 and len(said) == 1


def test_a_database_that_answers_nothing_holds_nobody_beyond_the_time(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    leave_behind(settings, 10)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql+psycopg://nobody@127.0.0.1:{silent.getsockname()[1]}/none"
        environ = {**os.environ, "EVERGREEN_HOME": str(tmp_path), "EVERGREEN_STORE__URL": url}
        command = [sys.executable, "-m", "service.command.cli", "drain", "--timeout", "2"]
        told = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=600)

    assert told.returncode == 1, told.stderr
    assert "up to 11 rows are left" in told.stdout
    assert drain(settings, 60, say=print).predictions == 10


KILLED = """
import sys
from pathlib import Path
from service.command.drain import drain
from service.secret_file import home_id
from service.settings import Settings, StoreSettings
settings = Settings(home=Path(sys.argv[1]), store=StoreSettings(url=sys.argv[2]))
print("begins", flush=True)
print(drain(settings, 600, say=print).sentence, flush=True)
"""


def test_kills_in_the_middle_lose_and_double_nothing(settings: Settings) -> None:
    leave_behind(settings, 60_000, batch=1_000)
    open_store(settings.store_url).dispose()
    reached = []
    for after in (1, 20_000):
        with python(KILLED, settings.home, settings.store.url) as process:
            assert process.stdout is not None and process.stdout.readline() == "begins\n"
            wait_until("rows in the store", lambda after=after: len(stored(settings)) >= after)
            process.kill()
            process.wait()
        reached.append(len(stored(settings)))

    done = drain(settings, 300, say=print)

    assert reached[0] < 60_000, "it had stored everything before it was killed: nothing was tried"
    assert done.rows_left == 0 and done.predictions == 60_000 - reached[-1]
    assert sorted(stored(settings)) == sorted(f"row-{number}" for number in range(60_000))
    engine = open_store(settings.store_url)
    with engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(labels)) == 1
    engine.dispose()
