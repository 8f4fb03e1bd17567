"""What a replica costs itself, its PostgreSQL and its disk, and how much one PostgreSQL takes: numbers for planning.

    python -m benchmarks.scale --write docs/scale.md

Real replicas (two workers each) on one real PostgreSQL and one shared folder, all on this machine: idle, at full load
with one row a request, and with 1,000. Then the database alone: the drain of one spool, of two at once and of four.
What is counted in seconds of processor hardly depends on who else is busy here; what is counted in seconds of the
clock does.
`--write` replaces what stands between `<!-- measured -->` and `<!-- /measured -->`.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped]
import sqlalchemy as sa

from benchmarks import report
from benchmarks.kills import counted
from benchmarks.load import Generator, Measured, Target, closed_loop
from benchmarks.outage import start_postgres
from benchmarks.peers import records_body
from benchmarks.processes import Family, cpu_seconds
from benchmarks.record import fill
from benchmarks.serving import question
from monitoring.drain import Drainer
from monitoring.schema import FeatureSchema
from monitoring.spool import spool_bytes
from monitoring.store import open_store
from service.handover import read_live
from tests.real_server import Server, wait_until
from training.trust import load_pipeline

SEED: Final = 1
REPLICAS: Final = 3
DRAINERS: Final = (1, 2, 4)
BATCH: Final = 1_000
DAY_S: Final = 86_400
RESERVED_CONNECTIONS: Final = 3
"""What PostgreSQL keeps of `max_connections` for its superusers."""
BUSY: Final = 0.7
"""The share of a core that may be planned with: beyond it, what comes together waits long."""

DOES_NOT_SHOW: Final = (
    "A network between replica and database, and a disk that is shared: everything here is on one machine.",
    "Labels, checks and trainings: rows only. A training has a core of its own for its minutes.",
    "A database that is large: indexes that no longer fit into memory make each row dearer.",
)


class Database:
    """One real PostgreSQL, and what it used of the processor."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.start()

    def start(self) -> None:
        self.server = start_postgres(self.folder)
        self.url = self.server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
        self.engine = sa.create_engine(self.url, poolclass=sa.NullPool)
        self.postmaster = psutil.Process(int((self.folder / "postmaster.pid").read_text().split()[0]))

    def stop(self) -> None:
        self.server.cleanup()

    def asked(self, query: str) -> float:
        with self.engine.connect() as connection:
            return float(connection.execute(sa.text(query)).scalar_one())

    @property
    def cpu_s(self) -> float:
        """Of all its processes, also of those that have ended."""
        times = self.postmaster.cpu_times()
        total = times.user + times.system + times.children_user + times.children_system
        for child in self.postmaster.children():
            with contextlib.suppress(psutil.Error):
                own = child.cpu_times()
                total += own.user + own.system
        return float(total)

    @property
    def connections(self) -> int:
        """Of its clients, this one left out."""
        return int(self.asked("select count(*) - 1 from pg_stat_activity where backend_type = 'client backend'"))

    @property
    def transactions(self) -> float:
        return self.asked("select sum(xact_commit) from pg_stat_database")

    @property
    def rows(self) -> int:
        return int(self.asked("select count(*) from predictions"))

    @property
    def stored_bytes(self) -> float:
        """Of predictions with their indexes."""
        return self.asked(
            "select coalesce(sum(pg_total_relation_size(inhrelid)), 0) from pg_inherits "
            "where inhparent = 'predictions'::regclass"
        )


@contextlib.contextmanager
def spent(database: Database, families: Mapping[str, Family]) -> Iterator[dict[str, float]]:
    """Seconds of the clock, and of the processor by family and of the database, that the block took."""
    found: dict[str, float] = {}
    before = {name: cpu_seconds(family) for name, family in families.items()}
    postgres, began = database.cpu_s, time.perf_counter()
    yield found
    found["seconds"] = time.perf_counter() - began
    found["postgres"] = database.cpu_s - postgres
    found |= {name: cpu_seconds(family) - before[name] for name, family in families.items()}


def replica(folder: Path, name: str, url: str) -> tuple[Server, Family]:
    family, home = Family(), folder / name
    home.mkdir()
    server = Server(
        home,
        environ=family.environ,
        STORE__URL=url,
        STORE__ARTEFACTS=str(folder / "shared"),
        SECURITY__TOKEN="the-token-of-all-replicas",
        SERVE__WORKERS="2",
        TRAINING__TRIALS="0",
        SCHEDULE__CHECK_INTERVAL_S="3600",
    )
    return server.start(), family


def under_load(
    database: Database, server: Server, family: Family, generator: Generator, target: Target, clients: int, rows: int,
    seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """Full load for `seconds` and until everything is stored: what was answered, and what each row cost whom."""
    generator.run(closed_loop, target, clients, 2.0)
    settle(database, server)
    before, had, size = in_flight(server), database.rows, database.stored_bytes
    with spent(database, {"replica": family}) as cost:
        found: Measured = generator.run(closed_loop, target, clients, seconds)
        flying, connections = in_flight(server), database.connections
        settle(database, server)
    answered = database.rows - had
    mean_s = (flying["seconds"] - before["seconds"]) / max(1.0, flying["requests"] - before["requests"])
    return {
        "requests": found.requests,
        "failed": found.failed,
        "requests_per_second": found.requests_per_second,
        "rows_per_second": found.requests_per_second * rows,
        "p99_ms": found.percentile(0.99),
        "rows": answered,
        "rows_in_flight": found.requests_per_second * rows * mean_s,
        "replica_cpu_us_a_row": cost["replica"] / answered * 1e6,
        "postgres_cpu_us_a_row": cost["postgres"] / answered * 1e6,
        "stored_bytes_a_row": (database.stored_bytes - size) / answered,
        "connections": connections,
    }


def in_flight(server: Server) -> dict[str, float]:
    """Requests answered in the lane, and the seconds that they took there together."""
    import httpx

    text = httpx.get(f"{server.url}/metrics", timeout=10).text
    ends = {"requests": "count", "seconds": "sum"}
    return {
        name: sum(
            float(v) for v in re.findall(rf"^evergreen_prediction_seconds_{end}(?:{{[^}}]*}})? (\S+)$", text, re.M)
        )
        for name, end in ends.items()
    }


def settle(database: Database, server: Server) -> None:
    """Wait until everything that was recorded is stored."""
    wait_until("the drain", lambda: counted(server, "stored") >= counted(server, "appended"), 300)


def drained(database: Database, folder: Path, drainers: int, rows: int) -> dict[str, float]:
    """`drainers` spools of `rows` rows each, emptied at once by a process each: rows/s together, and the processor."""
    context = multiprocessing.get_context("spawn")
    spools = [folder / f"drain-{drainers}-{number}" for number in range(drainers)]
    for number, spool in enumerate(spools):
        filling = context.Process(target=fill, args=(spool, rows, SEED + number))
        filling.start()
        filling.join()
        assert filling.exitcode == 0
    had, begin, done = database.rows, context.Barrier(drainers), context.Queue()
    processes = [context.Process(target=drain_one, args=(database.url, spool, begin, done)) for spool in spools]
    before = database.cpu_s
    for process in processes:
        process.start()
    found = [done.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    postgres, stored = database.cpu_s - before, database.rows - had
    assert stored == drainers * rows, f"{stored:,} rows stored of {drainers * rows:,}"
    return {
        "drainers": drainers,
        "rows_per_second": stored / (max(ended for _, ended, _ in found) - min(began for began, _, _ in found)),
        "postgres_cpu_us_a_row": postgres / stored * 1e6,
        "drainer_cpu_us_a_row": sum(cpu for _, _, cpu in found) / stored * 1e6,
    }


def drain_one(url: str, spool: Path, begin: Any, done: Any) -> None:
    """In a process of its own: (began, ended, seconds of the processor) of a drain that begins with the others."""
    engine = open_store(url)
    with Drainer(spool, engine) as drainer:
        begin.wait()
        began, cpu = time.time(), time.process_time()
        drainer.drain(began)
        done.put((began, time.time(), time.process_time() - cpu))
    engine.dispose()


def run(
    *,
    seconds: float = 20.0,
    rows: int = 200_000,
    json_to: Path | None = None,
    write: Path | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Measure, tell, write; 1 when a request failed or a row is missing."""
    result: dict[str, Any] = {"benchmark": "scale", "machine": report.machine(), "seed": SEED, "workers": 2}
    with (
        tempfile.TemporaryDirectory(prefix="evergreen-", ignore_cleanup_errors=True) as given,
        Generator() as generator,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(given)
        database = Database(folder / "postgres")
        stack.callback(lambda: database.stop())
        say("a replica starts and trains its first version")
        server, family = replica(folder, "replica-1", database.url)
        stack.callback(family.end)
        server.wait_ready(600)
        families = {"replica-1": family}

        say(f"idle, {seconds:g} s")
        result["one_idle"] = idle(database, families, seconds)
        live = read_live(server.settings.live_file)
        assert live is not None and live.champion is not None
        artefact = Path(live.champion.path)
        schema = FeatureSchema.from_json((artefact / "schema.json").read_bytes())
        records = question(load_pipeline(artefact), schema, SEED).records
        single = Target(server.port, "/predict", tuple(records_body([record]) for record in records))
        batch = Target(server.port, "/predict", (records_body(records[:BATCH]),))
        for name, target, clients, each in (("one_row", single, 32, 1), ("batch", batch, 4, min(BATCH, len(records)))):
            say(f"full load, {each:,} rows a request, {clients} clients, {seconds:g} s")
            result[name] = under_load(database, server, family, generator, target, clients, each, seconds)

        say("the database is away for 5 s: what a row takes in the spool, and how soon it is stored")
        database.stop()
        before = counted(server, "appended"), spool_bytes(server.settings.spool_dir)
        generator.run(closed_loop, single, 32, 5.0)
        waiting = counted(server, "appended") - before[0]
        result["spool_bytes_a_row"] = (spool_bytes(server.settings.spool_dir) - before[1]) / waiting
        database.start()
        began = time.perf_counter()
        settle(database, server)
        result["after_an_outage"] = {"rows": waiting, "seconds": time.perf_counter() - began}

        for number in range(2, REPLICAS + 1):
            say(f"replica {number} starts")
            other, families[f"replica-{number}"] = replica(folder, f"replica-{number}", database.url)
            stack.callback(families[f"replica-{number}"].end)
            other.wait_ready(600)
        say(f"{REPLICAS} replicas idle, {seconds:g} s")
        result["all_idle"] = idle(database, families, seconds)
        for each_family in families.values():
            each_family.end()

        result["drains"] = []
        for drainers in DRAINERS:
            say(f"{drainers} spools of {rows:,} rows are drained at once")
            result["drains"].append(drained(database, folder, drainers, rows))
        result["max_connections"] = int(
            database.asked("select setting from pg_settings where name = 'max_connections'")
        )
    result["planned"] = planned(result)
    result["does_not_show"] = DOES_NOT_SHOW
    report.write_json(json_to, result)
    text = markdown(result)
    say(f"\n{text}")
    if write is not None:
        page = write.read_text()
        block = f"<!-- measured -->\n{text}\n<!-- /measured -->"
        changed, times = re.subn(r"<!-- measured -->.*?<!-- /measured -->", lambda _: block, page, flags=re.DOTALL)
        assert times == 1, f"{write} has no place that is marked as measured"
        write.write_text(changed)
    return int(bool(result["one_row"]["failed"] or result["batch"]["failed"]))


def idle(database: Database, families: Mapping[str, Family], seconds: float) -> dict[str, float]:
    """What replicas without a request use: processor, and the database's transactions and connections."""
    time.sleep(3)
    before = database.transactions
    with spent(database, families) as cost:
        time.sleep(seconds)
    took = cost["seconds"]
    return {
        "replicas": len(families),
        "transactions_per_second": (database.transactions - before) / took,
        "postgres_core": cost["postgres"] / took,
        "replica_core": sum(cost[name] for name in families) / took / len(families),
        "connections": database.connections,
    }


def planned(result: Mapping[str, Any]) -> dict[str, float]:
    """What follows by calculation: how many replicas one PostgreSQL takes, by each of its limits."""
    every, one = result["all_idle"], result["one_row"]
    connections = max(every["connections"] / every["replicas"], one["connections"])
    of_each = every["postgres_core"] / every["replicas"]
    us = max(one["postgres_cpu_us_a_row"], *(each["postgres_cpu_us_a_row"] for each in result["drains"]))
    return {
        "connections_a_replica": connections,
        "replicas_by_connections": (result["max_connections"] - RESERVED_CONNECTIONS) // max(1.0, connections),
        "replicas_by_polling_one_core": BUSY // max(of_each, 1e-9),
        "rows_per_second_a_postgres_core": BUSY / us * 1e6,
        "replica_cores_for_a_million": one["replica_cpu_us_a_row"] / BUSY,
        "replica_cores_for_a_million_batched": result["batch"]["replica_cpu_us_a_row"] / BUSY,
        "postgres_cores_for_a_million": us / BUSY,
        "spool_mb_a_day_at_100": result["spool_bytes_a_row"] * 100 * DAY_S / 1e6,
        "stored_mb_a_day_at_100": one["stored_bytes_a_row"] * 100 * DAY_S / 1e6,
        "spool_s_in_4_gib_at_full_load": 4 * 2**30 / (result["spool_bytes_a_row"] * one["rows_per_second"]),
        "stored_tb_a_day_at_a_million": one["stored_bytes_a_row"] * 1e6 * DAY_S / 1e12,
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of docs/scale.md."""

    def n(value: float) -> str:
        return f"{value:,.0f}" if float(value).is_integer() else report.number(value)

    one, batch, plan = result["one_row"], result["batch"], result["planned"]
    alone, every, away = result["one_idle"], result["all_idle"], result["after_an_outage"]
    loads = (
        ("requests/s at full load", "requests_per_second"),
        ("rows/s", "rows_per_second"),
        ("p99, ms", "p99_ms"),
        ("rows in flight, as the autoscaler sees them", "rows_in_flight"),
        ("processor of the replica, µs a row", "replica_cpu_us_a_row"),
        ("processor of PostgreSQL, µs a row", "postgres_cpu_us_a_row"),
        ("bytes a row in PostgreSQL, indexes included", "stored_bytes_a_row"),
        ("connections to PostgreSQL under load", "connections"),
    )
    replicas = f"{every['replicas']} idle replicas"
    others = (
        ("bytes a row in the spool (1 row a request)", n(result["spool_bytes_a_row"])),
        ("rows that waited after 5 s without the database", f"{away['rows']:,}"),
        ("rows/s at which the controller then stored them", n(away["rows"] / away["seconds"])),
        ("an idle replica: share of a core", n(alone["replica_core"])),
        ("an idle replica: transactions/s in PostgreSQL", n(alone["transactions_per_second"])),
        (f"{replicas}: transactions/s in PostgreSQL", n(every["transactions_per_second"])),
        (f"{replicas}: share of a core in PostgreSQL", n(every["postgres_core"])),
        (f"{replicas}: connections", str(every["connections"])),
    )
    drains = ("rows_per_second", "postgres_cpu_us_a_row", "drainer_cpu_us_a_row")
    follows = (
        (f"replicas by connections (max_connections = {result['max_connections']})", "replicas_by_connections"),
        ("idle replicas whose polling fills one core of PostgreSQL", "replicas_by_polling_one_core"),
        ("rows/s that one core of PostgreSQL stores", "rows_per_second_a_postgres_core"),
        ("100 rows/s, 1 a request: MB a day written to the spool", "spool_mb_a_day_at_100"),
        ("100 rows/s: MB a day in PostgreSQL", "stored_mb_a_day_at_100"),
        ("full load without the database: seconds until 4 GiB of spool are full", "spool_s_in_4_gib_at_full_load"),
        ("1,000,000 rows/s, 1 a request: cores of replicas", "replica_cores_for_a_million"),
        ("1,000,000 rows/s, 1,000 a request: cores of replicas", "replica_cores_for_a_million_batched"),
        ("1,000,000 rows/s: cores of PostgreSQL", "postgres_cores_for_a_million"),
        ("1,000,000 rows/s: TB a day in PostgreSQL", "stored_tb_a_day_at_a_million"),
    )
    lines = [
        f"Measured {report.machine_text(result['machine'])}.",
        "",
        report.table(
            ("one replica with two workers", "1 row a request", "1,000 rows a request"),
            [(words, n(float(one[name])), n(float(batch[name]))) for words, name in loads],
        ),
        "",
        report.table(("", "measured"), others),
        "",
        report.table(
            ("spools drained at once", "rows/s together", "PostgreSQL, µs a row", "the drain, µs a row"),
            [(str(int(each["drainers"])), *(n(each[name]) for name in drains)) for each in result["drains"]],
        ),
        "",
        f"Calculated from these, with {BUSY:.0%} of a core as what may be planned with:",
        "",
        report.table(("", "calculated"), [(words, n(float(plan[name]))) for words, name in follows]),
        "",
        "What this does not show.",
        "",
        *(f"- {line}" for line in DOES_NOT_SHOW),
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load, and of each idle look")
    parser.add_argument("--rows", type=int, default=200_000, help="in each spool that is drained")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into docs/scale.md")
    given = parser.parse_args()
    return run(
        seconds=given.seconds,
        rows=given.rows,
        json_to=given.json,
        write=given.write,
        say=lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    sys.exit(main())
