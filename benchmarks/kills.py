"""Twenty workers killed at full load: which requests fail, and what is there afterwards?

    python -m benchmarks.kills --json kills.json

A real `evergreen serve` with two workers. For each kill all clients are kept busy, one worker gets SIGKILL, and the
client's port of every failed request is compared with the connections that the worker held just before. The next kill
comes when both workers serve the current version again. At the end every row is in the store exactly once. Cold start
and the memory of the workers are told beside it.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
import psutil  # type: ignore[import-untyped]
import sqlalchemy as sa

from benchmarks import report
from benchmarks.load import Generator, Measured, Target, closed_loop
from benchmarks.peers import records_body
from benchmarks.processes import Family
from benchmarks.report import Spread
from benchmarks.serving import question
from monitoring.schema import FeatureSchema
from service.handover import read_live
from tests.real_server import Server, wait_until
from training.trust import load_pipeline

SEED: Final = 1
LOAD_S: Final = 2.0
KILL_AFTER_S: Final = (0.4, 1.2)

DOES_NOT_SHOW: Final = (
    "One replica on loopback; a load balancer that retries would hide most of the failures.",
    "Between the kills there is no load: BentoML's supervisor takes some ten seconds to replace a worker, in which the "
    "other one serves alone.",
)


def serving(server: Server) -> dict[str, int]:
    """Slot -> version, as /metrics tells it."""
    text = httpx.get(f"{server.url}/metrics", timeout=10).text
    found = re.findall(r'evergreen_model_info\{model="[^"]*",version="(\d+)",engine="[^"]*",worker="([^"]*)"\} 1', text)
    return {slot: int(version) for version, slot in found}


def counted(server: Server, outcome: str) -> int:
    """`evergreen_log_records_total` of this outcome."""
    text = httpx.get(f"{server.url}/metrics", timeout=10).text
    found = re.search(rf'evergreen_log_records_total\{{outcome="{outcome}"\}} (\S+)', text)
    return int(float(found[1])) if found else 0


def ports_of(worker: psutil.Process, port: int) -> set[int]:
    """The clients' ports of the worker's connections."""
    return {c.raddr.port for c in worker.net_connections("tcp") if c.raddr and c.laddr.port == port}


def one_kill(
    server: Server, generator: Generator, target: Target, clients: int, chance: random.Random
) -> tuple[Measured, int, int]:
    """(the load, connections the killed worker had, failed requests that were not on one of them)."""
    load = generator.begin(closed_loop, target, clients, LOAD_S)
    time.sleep(chance.uniform(*KILL_AFTER_S))
    workers = [(worker, ports_of(worker, server.port)) for worker in server.children("PredictionService")]
    worker, held = chance.choice([one for one in workers if one[1]])
    worker.kill()
    found = load.result()
    return found, len(held), sum(port not in held for port in found.lost_ports) + found.failed - len(found.lost_ports)


def run(
    *,
    kills: int = 20,
    clients: int = 16,
    seed: int = SEED,
    json_to: Path | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Measure and print; 1 when a request failed that was on no killed worker, or a row is lost or doubled."""
    machine, family, chance = report.machine(), Family(), random.Random(seed)
    found: list[tuple[Measured, int, int]] = []
    back: list[float] = []
    with (
        tempfile.TemporaryDirectory(prefix="evergreen-", ignore_cleanup_errors=True) as folder,
        Generator() as generator,
    ):
        server = Server(
            Path(folder),
            environ=family.environ,
            SERVE__WORKERS="2",
            TRAINING__TRIALS="1",
            SCHEDULE__CHECK_INTERVAL_S="3600",
        )
        try:
            say("evergreen starts and trains its first version")
            server.start().wait_ready(180)
            server.stop()
            began = time.perf_counter()
            server.start().wait_ready(60)
            cold_s = time.perf_counter() - began
            live = read_live(server.settings.live_file)
            assert live is not None and live.champion is not None
            artefact = Path(live.champion.path)
            schema = FeatureSchema.from_json((artefact / "schema.json").read_bytes())
            records = question(load_pipeline(artefact), schema, seed).records
            target = Target(server.port, "/predict", tuple(records_body([record]) for record in records))
            everyone = {"api-1": live.champion.version, "api-2": live.champion.version}
            wait_until("both workers", lambda: serving(server) == everyone, 60)
            generator.run(closed_loop, target, clients, 1.0)
            memory_mb = [p.memory_info().rss / 2**20 for p in server.children("PredictionService")]
            before = counted(server, "appended")
            for number in range(kills):
                found.append(one_kill(server, generator, target, clients, chance))
                began = time.perf_counter()
                wait_until(
                    "both workers",
                    lambda: len(server.children("PredictionService")) == 2 and serving(server) == everyone,
                    90,
                )
                back.append(time.perf_counter() - began)
                say(f"kill {number + 1} of {kills}: {found[-1][0].requests:,} requests, {found[-1][0].failed} failed")
            appended = counted(server, "appended")
            engine = sa.create_engine(server.settings.store_url)
            wait_until("the drain", lambda: stored(engine)[0] >= appended, 300)
            rows, ids = stored(engine)
            engine.dispose()
            after_mb = [p.memory_info().rss / 2**20 for p in server.children("PredictionService")]
        finally:
            family.end()

    requests = sum(m.requests for m, *_ in found)
    answered = sum(m.good for m, *_ in found)
    failed = sum(m.failed for m, *_ in found)
    strangers = sum(stranger for *_, stranger in found)
    surplus = rows - before - answered
    good = not strangers and rows == ids and 0 <= surplus <= failed
    result: dict[str, Any] = {
        "benchmark": "kills",
        "machine": machine,
        "seed": seed,
        "kills": kills,
        "clients": clients,
        "requests": requests,
        "answered": answered,
        "failed": failed,
        "failed_elsewhere": strangers,
        "rows_stored": rows - before,
        "rows_doubled": rows - ids,
        "rows_surplus": surplus,
        "back_s": Spread.of(back).json(),
        "cold_start_s": cold_s,
        "worker_rss_mb": memory_mb,
        "worker_rss_after_mb": after_mb,
        "does_not_show": DOES_NOT_SHOW,
    }
    report.write_json(json_to, result)
    lines = [
        ("requests, of which failed", f"{requests:,}, {failed:,}"),
        ("failed though not on a connection of the killed worker", f"{strangers:,}"),
        ("connections the killed worker had", Spread.of(held for _, held, _ in found).text()),
        ("failed requests a kill", Spread.of(m.failed for m, *_ in found).text()),
        ("rows answered; stored; of these twice", f"{answered:,}; {rows - before:,}; {rows - ids:,}"),
        ("load's end until both workers serve the version again, s", Spread.of(back).text()),
        ("cold start with a champion to ready, s", report.number(cold_s)),
        ("resident memory of the workers under load, MB", ", ".join(map(report.number, memory_mb))),
    ]
    say("")
    say(f"Measured {report.machine_text(machine)}.\n")
    say(f"2 workers, {clients} clients at full load, one row a request, seed {seed}; median (lowest to highest).\n")
    say(report.table((f"{kills} workers killed", ""), lines))
    say("\nWhat this does not show.\n" + "\n".join(f"- {line}" for line in DOES_NOT_SHOW))
    return 0 if good else 1


def stored(engine: sa.Engine) -> tuple[int, int]:
    """(rows, distinct ids) of predictions."""
    with engine.connect() as connection:
        rows, ids = connection.execute(sa.text("select count(*), count(distinct id) from predictions")).one()
    return int(rows), int(ids)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    return run(
        kills=given.kills,
        clients=given.clients,
        seed=given.seed,
        json_to=given.json,
        say=lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    sys.exit(main())
