"""Two workers beside one, on two cores: how much more do they answer?

    python -m benchmarks.workers --json workers.json

Two real servers, one with a single worker, one with two, take turns; the one not being measured is stopped. Requests of
1,000 rows, so that the load generator, which needs a core of its own otherwise, takes next to nothing of the two.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks import report
from benchmarks.load import Generator, Measured, Target, closed_loop
from benchmarks.peers import records_body
from benchmarks.processes import Family
from benchmarks.report import Spread
from benchmarks.serving import ROWS, drained, question
from monitoring.schema import FeatureSchema
from service.handover import read_live
from tests.real_server import Server
from training.trust import load_pipeline

SEED: Final = 1
CLIENTS: Final = 16

DRAIN_S: Final = 120.0

DOES_NOT_SHOW: Final = (
    "More than two workers; nothing is pinned, and the controllers store the rows on the same two cores.",
    "Requests of one row: with them the load generator would need one of the two cores for itself.",
)


def run(
    *,
    seconds: float = 5.0,
    repeats: int = 3,
    seed: int = SEED,
    json_to: Path | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Measure and print; 1 when a request failed, else 0."""
    machine = report.machine()
    found: dict[int, list[Measured]] = {1: [], 2: []}
    with ExitStack() as stack, Generator() as generator:
        servers: dict[int, tuple[Server, Family]] = {}
        for workers in found:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="evergreen-", ignore_cleanup_errors=True))
            family = Family()
            stack.callback(family.end)
            server = Server(
                Path(folder),
                environ=family.environ,
                SERVE__WORKERS=str(workers),
                TRAINING__TRIALS="1",
                SCHEDULE__CHECK_INTERVAL_S="3600",
            )
            say(f"evergreen with {workers} worker(s) starts and trains its first version")
            server.start().wait_ready(180)
            servers[workers] = server, family
        live = read_live(servers[1][0].settings.live_file)
        assert live is not None and live.champion is not None
        artefact = Path(live.champion.path)
        schema = FeatureSchema.from_json((artefact / "schema.json").read_bytes())
        body = records_body(question(load_pipeline(artefact), schema, seed).records)
        for _, family in servers.values():
            family.pause()
        for repeat in range(repeats):
            for workers, (server, family) in servers.items():
                say(f"repeat {repeat + 1} of {repeats}: {workers} worker(s)")
                family.resume()
                target = Target(server.port, "/predict", (body,))
                generator.run(closed_loop, target, CLIENTS, 1.0)
                found[workers].append(generator.run(closed_loop, target, CLIENTS, seconds))
                drained(server, DRAIN_S)  # what one measurement leaves behind must not weigh on the next
                family.pause()

    rates = {workers: [m.requests_per_second * ROWS for m in measured] for workers, measured in found.items()}
    ratio = Spread.of(two / one for one, two in zip(rates[1], rates[2], strict=True))
    failed = sum(m.failed for measured in found.values() for m in measured)
    report.write_json(
        json_to,
        {
            "benchmark": "workers",
            "machine": machine,
            "seed": seed,
            "repeats": repeats,
            "rows_per_second": {workers: Spread.of(values).json() for workers, values in rates.items()},
            "ratio": ratio.json(),
            "failed": failed,
            "does_not_show": DOES_NOT_SHOW,
        },
    )
    lines = [(f"{workers} worker(s)", Spread.of(values).text()) for workers, values in rates.items()]
    say("")
    say(f"Measured {report.machine_text(machine)}.\n")
    say(f"{ROWS:,} rows x {CLIENTS} clients, {repeats} repeats of {seconds:g} s, seed {seed}, {failed} failed.\n")
    say(report.table(("", "rows/s"), [*lines, ("two ÷ one", ratio.text())]))
    say("\nWhat this does not show.\n" + "\n".join(f"- {line}" for line in DOES_NOT_SHOW))
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    return run(
        seconds=given.seconds,
        repeats=given.repeats,
        seed=given.seed,
        json_to=given.json,
        say=lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    sys.exit(main())
