"""The page over a long past: how long each of its endpoints takes, and the first view, on SQLite and on PostgreSQL.

    python -m benchmarks.page --json page.json
    python -m benchmarks.page --checks 1000 --runs 300 --rows 10000     (a minute)

The store holds 100,000 checks, 10,000 runs and 200,000 answered rows, all copies of real ones with other numbers and
moments. As in a server, a worker asks another process for every answer, which makes it anew: nothing is kept between
two requests. Gives 1 when the middle one of an endpoint's repeats took longer than 100 ms, or the first view longer
than 1 s: the worst one, and all of them on a machine that has other work, say more of the machine. The processor's
time, of both processes and of a PostgreSQL server of this benchmark's own, does not: the mean of the repeats.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import msgspec
import psutil  # type: ignore[import-untyped]
import sqlalchemy as sa

from benchmarks import report
from benchmarks.record import _database, _postgres
from monitoring.schema import FeatureSchema
from monitoring.store import checks, ensure_days, labels, open_store, predictions, runs
from service import sample
from service.configuration import load
from service.control.deployment import assemble
from service.handover import ControllerStatus, Live, LiveVersion, write_live, write_status
from service.serving.front import Front
from service.serving.tuning import tune
from service.serving.worker import Worker
from service.settings import Settings
from service.web import page
from service.web.desk import serve
from service.web.frames import SOCKET
from tests.real_server import wait_until
from training import job
from training.artefact import SCHEMA, read_manifest
from training.cycle import bootstrap, run_cycle
from training.lease import CONTROLLER, Lease
from training.loaded import load_model
from training.loop import Loop

SEED: Final = 1
TOKEN: Final = "a-token-of-the-benchmark"
AT_ONCE: Final = 2_000
DAY_S: Final = 86_400
APART_S: Final = 60.0
VARIETY: Final = 1_500

ENDPOINTS: Final = (
    "state",
    "quality",
    "decisions",
    "decisions?limit=200",
    "decisions?limit=200&checks=0",
    "drift",
    "drift/{check}/income",
    "drift/{check}/purpose",
    "drift/{check}/prediction",
    "distribution",
    "segments",
    "traffic",
    "runs/{run}",
    "versions/1/1",
    "quality?since={middle}",
    "drift?since={middle}&until={later}",
)
FIRST_VIEW: Final = ("state", "quality", "decisions", "drift", "distribution", "segments", "traffic")
LOOKS_EVERY_S: Final = 0.001
MOST_MS: Final = 100.0
MOST_VIEW_MS: Final = 1_000.0

DOES_NOT_SHOW: Final = (
    "A store on another host, or a page cache that is cold.",
    "The network, and what the browser does with the answers.",
    "The first histogram of a version: its reference is read by another process, about a second, once.",
)


def deployment(home: Path, url: str) -> tuple[Settings, sa.Engine, Loop]:
    """A deployment with a first version, 1,500 answered and labelled rows of the sample, and one real check."""
    settings = load(
        environ={
            "EVERGREEN_HOME": str(home),
            "EVERGREEN_STORE__URL": url,
            "EVERGREEN_SECURITY__TOKEN": TOKEN,
            "EVERGREEN_SERVE__WORKERS": "1",
        }
    )
    engine = open_store(url)
    lease = Lease(engine, CONTROLLER, "benchmark", 86_400)
    assert lease.acquire() and lease.token is not None
    loop = assemble(settings, engine, lease.token, "benchmark", on_event=lambda *_: None, stopped=lambda: False)
    loop = _with(loop, run_job=job.run, live_workers=lambda: ())
    ended = bootstrap(loop)
    assert ended is not None and ended.outcome == "promoted", ended
    return settings, engine, loop


def _with(loop: Loop, **changed: Any) -> Loop:
    from dataclasses import replace

    return replace(loop, **changed)


def fill(loop: Loop, engine: sa.Engine, counts: tuple[int, int, int], now: float) -> None:
    """As many checks, runs and rows, spread over the time before `now`."""
    many_checks, many_runs, many_rows = counts
    began = now - many_checks * APART_S
    _rows(loop, engine, many_rows, began, now)
    run_cycle(loop)
    draw = random.Random(SEED)
    real, trained = loop.runs.checks(limit=1)[0], loop.runs.list(kind="bootstrap")[0]
    said_no = loop.runs.list(kind="check")[0]

    def check(number: int) -> dict[str, Any]:
        drift, quality = copy.deepcopy(real.drift), dict(real.quality or {})
        assert drift is not None
        for moved in drift["features"]:
            moved["times"] = moved["score"] = draw.random() * 1.5
        quality["value"] = 0.8 + draw.random() / 20
        return {
            "at": began + number * APART_S,
            "version": real.version,
            "drift": msgspec.json.encode(drift).decode(),
            "quality": msgspec.json.encode(quality).decode(),
            "decision": msgspec.json.encode(real.decision).decode(),
        }

    def run(number: int) -> dict[str, Any]:
        at = began + number * many_checks * APART_S / many_runs
        of = trained if number % 10 == 0 else said_no
        outcome = ("promoted", "kept", "refused")[number // 10 % 3] if of is trained else of.outcome
        return {
            "kind": "retrain" if of is trained else of.kind,
            "state": "done",
            "outcome": outcome,
            "trigger": "growth" if of is trained else of.trigger,
            "who": of.who,
            "why": of.why.replace("0", str(number % 10)),
            "created_at": at,
            "started_at": at,
            "finished_at": at + 30,
            "version": 1,
            "record": msgspec.json.encode(of.document).decode(),
        }

    for table, make, many in ((checks, check, many_checks), (runs, run, many_runs)):
        for start in range(0, many, AT_ONCE):
            with engine.begin() as connection:
                connection.execute(table.insert(), [make(each) for each in range(start, min(start + AT_ONCE, many))])
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # A store that grew in months was vacuumed as it grew; one that grew in minutes would be while it is measured.
        connection.exec_driver_sql("analyze" if engine.dialect.name == "sqlite" else "vacuum analyze")
    real_again = loop.runs.checks(limit=1)[0]
    assert real_again.id >= many_checks


def _rows(loop: Loop, engine: sa.Engine, many: int, began: float, now: float) -> None:
    folder = loop.registry.path(1)
    schema = FeatureSchema.from_json((folder / SCHEMA).read_bytes())
    model = load_model(folder, read_manifest(folder), schema)
    frame = sample.training_frame(VARIETY, seed=7)
    chances = model.answer(schema.canonical(frame))
    records = [
        {name: value.item() if hasattr(value, "item") else value for name, value in row.items()}
        for row in frame[list(schema.names)].to_dict("records")
    ]
    texts = [msgspec.json.encode(record).decode() for record in records]
    truths = [msgspec.json.encode(value.item()).decode() for value in frame[sample.TARGET].to_numpy()]
    ensure_days(engine, range(int(began // DAY_S), int(now // DAY_S) + 1))
    for start in range(0, many, AT_ONCE):
        answered, known = [], []
        for number in range(start, min(start + AT_ONCE, many)):
            at, which = began + (now - began) * number / many, number % VARIETY
            key = {"day": int(at // DAY_S), "segment": int(at * 1000) << 20, "position": number << 16}
            p = chances[which]
            answered.append(
                {
                    **key,
                    "id": f"row-{number}",
                    "at": at,
                    "version": 1,
                    "features": texts[which],
                    "prediction": msgspec.json.encode(schema.classes[int(p[1] > 0.5)]).decode(),
                    "probabilities": msgspec.json.encode(p.tolist()).decode(),
                    "adaptation": None,
                }
            )
            late = {"observed_at": at + 3600, "received_at": at + 3600, "source": ""}
            known.append({**key, "id": f"row-{number}", "label": truths[which], **late})
        with engine.begin() as connection:
            connection.execute(predictions.insert(), answered)
            connection.execute(labels.insert(), known)


@contextmanager
def working(settings: Settings, loop: Loop) -> Iterator[tuple[Front, psutil.Process]]:
    """A worker, and what makes its page."""

    async def beyond(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError(scope["path"])

    write_live(
        settings.live_file,
        Live(model=settings.model.name, champion=LiveVersion(1, str(loop.registry.path(1)))),
    )
    worker = Worker(settings, settings.var / "run" / "benchmark", "api-1")
    worker.start()
    tune()  # as every worker of a server
    write_status(worker.run_dir, ControllerStatus(at=time.time(), holder="benchmark"))
    controller = multiprocessing.get_context("spawn").Process(target=_controller, args=(settings, worker.run_dir))
    controller.start()
    try:
        wait_until("the page's socket", (worker.run_dir / SOCKET).exists)
        yield Front(beyond, lambda: worker), psutil.Process(controller.pid)
    finally:
        controller.terminate()
        controller.join()
        worker.close()


def _controller(settings: Settings, run_dir: Path) -> None:
    page.KEPT = 0  # type: ignore[misc]
    asyncio.run(serve(settings, run_dir, threading.Event()))


class Took(NamedTuple):
    """Milliseconds of one endpoint."""

    each: list[float]
    processor: float
    """Of the processor, the mean."""
    stalls: list[float]
    """How long the event loop, which answers predictions, had to wait at worst while each was made."""


def _server_of(engine: sa.Engine) -> psutil.Process | None:
    """The server of a PostgreSQL database on this machine."""
    if engine.dialect.name != "postgresql":
        return None
    with engine.connect() as connection:
        return psutil.Process(connection.exec_driver_sql("select pg_backend_pid()").scalar_one()).parent()


def _spent_ms(*others: psutil.Process | None) -> float:
    """The processor's time so far, of this process and of the others with all of their own."""
    spent = time.process_time()
    for process in [one for other in others if other is not None for one in (other, *other.children())]:
        with suppress(psutil.NoSuchProcess):
            spent += sum(process.cpu_times()[:4])
    return spent * 1000


def measured(settings: Settings, loop: Loop, repeats: int, server: psutil.Process | None) -> dict[str, Took]:
    """Each endpoint, and the first view of a worker that was never asked for the page."""
    newest = loop.runs.checks(limit=1)[0]
    trained = loop.runs.list(kind="retrain", limit=1)[0]
    oldest = newest.at - newest.id * APART_S
    names = {
        "check": newest.id,
        "run": trained.id,
        "middle": (oldest + newest.at) / 2,
        "later": oldest + (newest.at - oldest) * 0.9,
    }
    found: dict[str, Took] = {}
    with working(settings, loop) as (front, controller):
        client = httpx.AsyncClient(transport=httpx.ASGITransport(front), base_url="http://page")

        # Who was told of another revision has the store looked at again.
        headers = {"authorization": f"Bearer {TOKEN}", "x-evergreen-revision": "another"}

        async def ask(endpoint: str) -> None:
            path = "/page/" + endpoint.format(**names)
            answer = await client.get(path, headers=headers)
            assert answer.status_code == 200, (path, answer.text)

        stall = 0.0

        async def watch() -> None:
            nonlocal stall
            while True:
                due = time.perf_counter() + LOOKS_EVERY_S
                await asyncio.sleep(LOOKS_EVERY_S)
                stall = max(stall, time.perf_counter() - due)

        async def timed(*endpoints: str) -> tuple[float, float]:
            """Milliseconds until all were answered, and the longest stall meanwhile."""
            nonlocal stall
            await asyncio.sleep(2 * LOOKS_EVERY_S)
            stall, began = 0.0, time.perf_counter()
            await asyncio.gather(*(ask(endpoint) for endpoint in endpoints))
            took = (time.perf_counter() - began) * 1000
            await asyncio.sleep(2 * LOOKS_EVERY_S)
            return took, stall * 1000

        async def all_of_it() -> None:
            async with client:
                watching = asyncio.create_task(watch())
                spent = _spent_ms(server, controller)
                took, stalled = await timed(*FIRST_VIEW)
                found["the first view"] = Took([took], _spent_ms(server, controller) - spent, [stalled])
                await ask("drift/{check}/income")  # the reference is read once
                for endpoint in ENDPOINTS:
                    spent, each = _spent_ms(server, controller), []
                    for _ in range(repeats):
                        each.append(await timed(endpoint))
                    times, stalls = map(list, zip(*each, strict=True))
                    found[endpoint] = Took(times, (_spent_ms(server, controller) - spent) / repeats, stalls)
                watching.cancel()

        asyncio.run(all_of_it())
    return found


def run(
    *,
    counts: tuple[int, int, int],
    repeats: int,
    kinds: Sequence[str] = ("sqlite", "postgresql"),
    postgres: str | None = None,
    json_to: Path | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Measure and tell; 1 when something was slower than it may be."""
    result: dict[str, Any] = {
        "benchmark": "page",
        "machine": report.machine(),
        "seed": SEED,
        "counts": dict(zip(("checks", "runs", "rows"), counts, strict=True)),
        "repeats": repeats,
        "does_not_show": DOES_NOT_SHOW,
    }
    slow = []
    with tempfile.TemporaryDirectory() as folder, _postgres(Path(folder), postgres) as server:
        for kind in kinds:
            home = Path(folder) / kind
            home.mkdir()
            with _database(home, None if kind == "sqlite" else server) as url:
                settings, engine, loop = deployment(home, url)
                began = time.monotonic()
                fill(loop, engine, counts, time.time())
                say(f"{kind}: filled in {time.monotonic() - began:.0f} s")
                found = measured(settings, loop, repeats, _server_of(engine) if postgres is None else None)
                engine.dispose()
            result[kind] = {name: took._asdict() for name, took in found.items()}
            result[kind]["load_average"] = round(os.getloadavg()[0], 2)
            rows = []
            for name, (times, processor, stalls) in found.items():
                limit = MOST_VIEW_MS if name == "the first view" else MOST_MS
                middle = statistics.median(times)
                slow += [f"{kind} {name}"] if middle > limit else []
                rows.append((name, f"{middle:.1f}", f"{max(times):.1f}", f"{processor:.1f}", f"{max(stalls):.1f}"))
            say(report.table((kind, "median ms", "worst ms", "processor ms", "worst stall ms"), rows))
            say(f"load average {result[kind]['load_average']}")
    say(report.machine_text(result["machine"]))
    report.write_json(json_to, result)
    for name in slow:
        say(f"too slow: {name}")
    return int(bool(slow))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("--checks", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--only", choices=("sqlite", "postgresql"))
    parser.add_argument("--postgres", metavar="URL", help="a server that is there; else one is started")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    return run(
        counts=(given.checks, given.runs, given.rows),
        repeats=given.repeats,
        kinds=(given.only,) if given.only else ("sqlite", "postgresql"),
        postgres=given.postgres,
        json_to=given.json,
    )


if __name__ == "__main__":
    sys.exit(main())
