"""What a training, or ten open pages, do to predictions on the same cores: p99 at 30 % of capacity, with and without.

    python -m benchmarks.interference --json interference.json
    python -m benchmarks.interference --pages 10

A real `evergreen serve` with its default two workers. Capacity is measured first; then a constant rate of 30 % of it,
open loop (latency counts from the moment a request was due), in phases that alternate: without a training, and with
one that was asked for through the management API; or without a page, and with so many (`benchmarks/open_pages.py`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

import psutil  # type: ignore[import-untyped]
from evergreen_client.frames import json_columns

from benchmarks import report
from benchmarks.load import Generator, Measured, Target, closed_loop, open_loop
from benchmarks.open_pages import OpenPages
from benchmarks.peers import records_body
from benchmarks.processes import Family
from benchmarks.report import Spread
from benchmarks.serving import question
from monitoring.schema import FeatureSchema
from service import sample
from service.handover import read_live
from tests.real_server import Server, wait_until
from training.trust import load_pipeline

SEED: Final = 1
CLIENTS: Final = 32
SHARE: Final = 0.3
LABELLED_ROWS: Final = 3000
CAPACITY_S: Final = 4.0
CHECK_OF_PHASE: Final = 0.8
"""Seconds between two checks, of a phase beside open pages: begun after one, it has the whole of the next."""

DOES_NOT_SHOW: Final = (
    "One row a request on loopback; the load generator runs on the same cores and is disturbed as well, which these "
    "numbers count as the server's.",
    "A training on the sample's few thousand rows: much larger ones press on memory bandwidth and cache, too.",
    "Beside trainings no checks (drift, quality) are scheduled; they run in the controller. Beside open pages each "
    "phase, also those without a page, begins after one check has ended and lasts until the next one has: by default "
    "there is one every minute only. The browsers are on other machines: what asks here in their place gives way to "
    "everything else.",
)


class Disturbance(Protocol):
    """What may slow predictions; `busy` costs the same in every phase, also where it was never started."""

    outcomes: list[str]

    def start(self) -> None: ...
    def busy(self) -> bool: ...
    def stop(self) -> None: ...


class Trainings:
    """Asks for one training after the other while it is wanted, and knows how much of the time one was running."""

    def __init__(self, server: Server, family: Family) -> None:
        self.server, self.family = server, family
        self.outcomes: list[str] = []
        self.problem = ""
        self._wanted = True
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Return when the first training is at work."""
        self._thread.start()
        wait_until("a training", lambda: self.job() or self.problem, 60)
        if self.problem:
            raise RuntimeError(f"the service did not train: {self.problem}")

    def stop(self) -> None:
        """Return when the last training has ended."""
        self._wanted = False
        self._thread.join()

    def busy(self) -> bool:
        return self.job() is not None

    def job(self) -> psutil.Process | None:
        """The process that trains, if there is one."""
        for process in self.family.processes():
            try:
                if "training.job" in process.cmdline():
                    return process
            except psutil.Error:
                continue
        return None

    def _run(self) -> None:
        with self.server.client() as client:
            while self._wanted:
                run = client.wait(client.retrain("interference benchmark"), poll_s=1.0)
                self.outcomes.append(str(run["outcome"]))
                if run["outcome"] in ("no_action", "failed"):
                    self.problem = str(run["record"].get("error"))
                    return


def send_labelled_rows(server: Server, schema: FeatureSchema, seed: int) -> None:
    """What a training needs: predictions whose labels are known."""
    frame = sample.frame(LABELLED_ROWS, start=10_000, seed=seed)
    columns = json_columns(frame, {feature.name: feature.kind for feature in schema.features})
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    labels = frame[sample.TARGET].tolist()
    with server.client() as client:
        for at in range(0, LABELLED_ROWS, 500):
            ids = client.predict(records[at : at + 500]).ids
            pairs = zip(ids, labels[at : at + 500], strict=True)
            client.feedback([{"id": i, "label": int(label)} for i, label in pairs])


def after_a_check(server: Server) -> None:
    """Return when a check has just ended: it takes a core for a second or two, which no phase may have more often."""
    with server.client() as client:
        last = [check["id"] for check in client.drift(1)]
        wait_until("a check", lambda: [check["id"] for check in client.drift(1)] != last, 120)


def phase(
    generator: Generator, target: Target, rate: float, seconds: float, other: Disturbance
) -> tuple[Measured, float]:
    """A constant load, and the share of the time that something else was busy meanwhile.

    Looking for it costs the same in every phase, and the cores are the server's, too.
    """
    load = generator.begin(open_loop, target, CLIENTS, seconds, rate=rate)
    looks, alive = 0, 0
    while not load.done():
        looks += 1
        alive += other.busy()
        time.sleep(1.0)
    return load.result(), alive / looks if looks else 0.0


def run(
    *,
    seconds: float = 10.0,
    repeats: int = 4,
    trials: int = 12,
    pages: int = 0,
    checks: bool = True,
    workers: int = 2,
    seed: int = SEED,
    json_to: Path | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Measure and print; 1 when a request failed, else 0. With `pages` they are what disturbs, else trainings.

    `checks`: whether each phase beside pages has one.
    """
    machine = report.machine()
    family = Family()
    phases: dict[str, list[Measured]] = {"without": [], "with": []}
    shares: list[float] = []
    outcomes: list[str] = []
    what = f"{pages} open pages" if pages else "a training"
    with (
        tempfile.TemporaryDirectory(prefix="evergreen-", ignore_cleanup_errors=True) as folder,
        Generator() as generator,
    ):
        server = Server(
            Path(folder),
            environ=family.environ,
            SERVE__WORKERS=str(workers),
            TRAINING__TRIALS=str(trials),
            SCHEDULE__CHECK_INTERVAL_S=str(CHECK_OF_PHASE * seconds if pages and checks else 3600),
        )
        try:
            say("evergreen starts and trains its first version")
            server.start().wait_ready(600)
            settings = server.settings
            live = read_live(settings.live_file)
            assert live is not None and live.champion is not None
            artefact = Path(live.champion.path)
            schema = FeatureSchema.from_json((artefact / "schema.json").read_bytes())
            records = question(load_pipeline(artefact), schema, seed).records
            target = Target(server.port, "/predict", tuple(records_body([record]) for record in records))
            send_labelled_rows(server, schema, seed)
            generator.run(closed_loop, target, CLIENTS, 1.0)
            capacity = generator.run(closed_loop, target, CLIENTS, CAPACITY_S).requests_per_second
            rate = SHARE * capacity
            say(f"capacity {capacity:,.0f} requests/s; {rate:,.0f} from here on")
            time.sleep(2)  # the record of the capacity run reaches the store
            generator.run(open_loop, target, CLIENTS, 2.0, rate=rate)
            for repeat in range(repeats):
                say(f"repeat {repeat + 1} of {repeats}: without {what}")
                other: Disturbance = OpenPages(server, pages) if pages else Trainings(server, family)
                if pages and checks:
                    after_a_check(server)
                phases["without"].append(phase(generator, target, rate, seconds, other)[0])
                say(f"repeat {repeat + 1} of {repeats}: with {what}")
                other.start()
                if pages and checks:
                    after_a_check(server)
                found, share = phase(generator, target, rate, seconds, other)
                phases["with"].append(found)
                shares.append(share)
                other.stop()
                outcomes += other.outcomes
        finally:
            family.end()

    readings: dict[str, Callable[[Measured], float]] = {
        "p50_ms": lambda m: m.percentile(0.5),
        "p99_ms": lambda m: m.percentile(0.99),
        "p999_ms": lambda m: m.percentile(0.999),
    }
    found_by = {
        name: {which: Spread.of(read(m) for m in measured) for which, measured in phases.items()}
        | {"ratio": Spread.of(read(b) / read(a) for a, b in zip(phases["without"], phases["with"], strict=True))}
        for name, read in readings.items()
    }
    failed = sum(m.failed for measured in phases.values() for m in measured)
    result: dict[str, Any] = {
        "benchmark": "interference",
        "machine": machine,
        "seed": seed,
        "workers": workers,
        "capacity_rps": capacity,
        "rate_rps": rate,
        "seconds": seconds,
        "repeats": repeats,
        "trials": trials,
        "requests": {which: sum(m.requests for m in measured) for which, measured in phases.items()},
        "failures": {which: [m.failures for m in measured] for which, measured in phases.items()},
        "with": what,
        "share": shares,
        "outcomes": outcomes,
        "training_nice": settings.training.nice,
        "training_threads": settings.training.threads,
        **{name: {which: s.json() for which, s in by.items()} for name, by in found_by.items()},
        "does_not_show": DOES_NOT_SHOW,
    }
    report.write_json(json_to, result)
    titles = {"p50_ms": "p50 ms", "p99_ms": "p99 ms", "p999_ms": "p99.9 ms"}
    rows = [
        (titles[name], by["without"].text(), by["with"].text(), by["ratio"].text()) for name, by in found_by.items()
    ]
    say("")
    say(f"Measured {report.machine_text(machine)}.\n")
    jobs = f"nice {settings.training.nice}, {settings.training.threads} thread, {trials} trials"
    told = f"{what}, there in" if pages else f"{what} ({jobs}) was running in"
    say(
        f"{workers} workers, capacity {capacity:,.0f} requests/s, constant rate {rate:,.0f} ({SHARE:.0%}), {repeats} "
        f"repeats of {seconds:g} s each way, {sum(m.requests for ms in phases.values() for m in ms):,} requests, "
        f"{failed} failed, seed {seed}; {told} {Spread.of(shares).median:.0%} of the phases with it "
        f"({', '.join(outcomes)}); median (lowest to highest).\n"
    )
    say(report.table((f"At {SHARE:.0%} of capacity", f"without {what}", "with", "ratio"), rows))
    say("\nWhat this does not show.\n" + "\n".join(f"- {line}" for line in DOES_NOT_SHOW))
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interference", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of one phase")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--trials", type=int, default=12, help="of each training")
    parser.add_argument("--pages", type=int, default=0, metavar="N", help="open pages instead of trainings")
    parser.add_argument(
        "--checks", action=argparse.BooleanOptionalAction, default=True, help="one in each phase beside open pages"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    return run(
        seconds=given.seconds,
        repeats=given.repeats,
        trials=given.trials,
        pages=given.pages,
        checks=given.checks,
        workers=given.workers,
        seed=given.seed,
        json_to=given.json,
        say=lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    sys.exit(main())
