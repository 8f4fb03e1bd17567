"""The client with a real server whose workers are killed and that is started again: every row is answered, in order."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from evergreen_client import Answers, AsyncClient

from service import sample
from tests.artefacts import sample_schema
from tests.real_server import SMALL, Server, wait_until

BATCHES, ROWS = 60, 20


def label_counts(home: Path) -> dict[str, int]:
    """How many labels there are for each id that has one."""
    with sqlite3.connect(f"file:{home}/var/evergreen.db?mode=ro", uri=True) as connection:
        found = dict(connection.execute("select id, count(*) from labels group by id").fetchall())
    connection.close()
    return found


def predicted(home: Path) -> dict[str, int]:
    """How often each id stands in the store."""
    with sqlite3.connect(f"file:{home}/var/evergreen.db?mode=ro", uri=True) as connection:
        found = dict(connection.execute("select id, count(*) from predictions group by id").fetchall())
    connection.close()
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # bentoml's own
def test_rows_are_answered_in_order_over_killed_workers_and_a_restart(
    tmp_path: Path, trained: Callable[[Path], Path]
) -> None:
    server = Server(
        trained(tmp_path), SERVE__WORKERS="2", **SMALL, SCHEDULE__CHECK_INTERVAL_S="600", ADAPT__ENABLED="false"
    )
    frame = sample.frame(BATCHES * ROWS, start=sample.TRAINING_ROWS)
    names = list(sample_schema()[0].names)

    async def ask() -> tuple[list[Answers], int]:
        gate = asyncio.Semaphore(3)
        troubled = {15: lambda: killed(server), 30: lambda: restarted(server), 45: lambda: killed(server)}
        async with AsyncClient(server.url, retry_s=120.0) as client:

            async def one(batch: int) -> Answers:
                async with gate:
                    if batch in troubled:
                        await asyncio.to_thread(troubled[batch])
                    answers = await client.predict(frame.iloc[batch * ROWS : (batch + 1) * ROWS])
                    await client.feedback([{"id": each, "label": 1} for each in answers.ids])
                    return answers

            return list(await asyncio.gather(*map(one, range(BATCHES)))), client.repeated

    try:
        server.start().wait_ready()
        answered, repeated = asyncio.run(ask())
        ids = [each for answers in answered for each in answers.ids]
        wait_until("all labels in the store", lambda: set(ids) <= label_counts(tmp_path).keys())
        with server.client() as client:
            again = client.predict(frame[names])
    finally:
        server.end()

    assert repeated > 0 and len(set(ids)) == BATCHES * ROWS
    # In order: a second time, one row for one, the model says the same.
    assert [each for answers in answered for each in answers.predictions] == again.predictions
    stored = predicted(tmp_path)
    assert set(ids) <= stored.keys() and sum(times - 1 for times in stored.values()) <= repeated * ROWS


def killed(server: Server) -> None:
    os.kill(server.children("PredictionService")[0].pid, signal.SIGKILL)


def restarted(server: Server) -> None:
    server.stop()
    server.start()
