"""Fifty swaps of the model under full load: nothing fails, and every answer is that of the version it names.

    python -m benchmarks.swap_under_load --json swap.json

A real `evergreen serve` with two workers. Three versions that predict differently are registered and promoted in turn
through the management API while a load generator keeps all its clients busy. The pipeline of each version predicts the
same rows beforehand; each answer is compared with the prediction of the version it names.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import sqlalchemy as sa

from benchmarks import report
from benchmarks.load import Enough, Generator, Measured, Target, closed_loop, percentile
from benchmarks.peers import records_body
from benchmarks.processes import Family
from benchmarks.report import Spread
from benchmarks.serving import TOLERANCE, question
from monitoring.schema import FeatureSchema
from monitoring.store import aliases, connect
from service import sample
from tests.real_server import Server
from training.export import export
from training.pipeline import build
from training.registry import Registry
from training.trust import load_pipeline

SEED: Final = 1
ROWS: Final = 200
VERSIONS: Final = 3
STEADY_S: Final = 0.5
"""Pause after a swap, so that there is a steady time to compare with."""
LONGEST_S: Final = 1800.0

DOES_NOT_SHOW: Final = (
    "One row a request, closed loop at full load on loopback; the load generator and the controller share the cores "
    "with the workers, so latencies are those of a saturated machine.",
    "Versions of one schema and one size, the artefacts in the page cache; no version that fails to load (tests/ have "
    "that).",
    "One replica and SQLite: not how long an alias takes to reach other replicas.",
)


class Answer(msgspec.Struct):
    version: int
    predictions: list[Any]
    probabilities: list[list[float]]


@dataclass(slots=True)
class Seen:
    """Every good answer, in the order they came (perf_counter seconds)."""

    sent: array[float] = field(default_factory=lambda: array("d"))
    answered: array[float] = field(default_factory=lambda: array("d"))
    version: array[int] = field(default_factory=lambda: array("i"))
    wrong: Counter[str] = field(default_factory=Counter)


def checked_load(
    target: Target, clients: int, expected: dict[int, list[float]], at_least: int, until: Path
) -> tuple[Measured, Seen]:
    """A closed loop whose every answer is checked, until `at_least` requests are answered and `until` exists.

    `expected` holds, for each version, the probability of class 1 for each of the target's bodies.
    """
    seen = Seen()
    decode = msgspec.json.Decoder(Answer).decode

    def check(number: int, _: int, body: bytes, sent: float, answered: float) -> bool:
        try:
            answer = decode(body)
            probability = answer.probabilities[0][1]
            right = abs(probability - expected[answer.version][number]) <= TOLERANCE
            right = right and answer.predictions[0] == int(probability > 0.5)
        except (msgspec.DecodeError, KeyError, IndexError) as error:
            seen.wrong[repr(error)[:100]] += 1
            return False
        seen.sent.append(sent)
        seen.answered.append(answered)
        seen.version.append(answer.version)
        if not right:
            seen.wrong[f"version {answer.version}"] += 1
        elif len(seen.sent) >= at_least and len(seen.sent) % 100 == 0 and until.exists():
            raise Enough
        return right

    return closed_loop(target, clients, LONGEST_S, on_answer=check), seen


@dataclass(frozen=True, slots=True)
class Swap:
    """One promotion; times are perf_counter seconds."""

    version: int
    asked: float
    flipped: float
    """When the alias changed."""
    reported: float
    """When all workers said (GET /manage/status) that they serve it."""


def register_versions(server: Server, seed: int) -> dict[int, Any]:
    """The pipelines by version: the champion's and those of further versions with fewer trees and other seeds."""
    settings = server.settings
    registry = Registry(connect(settings.store_url), settings.models_dir, settings.model.name)
    champion = registry.champion()
    folder = registry.path(champion)
    schema = FeatureSchema.from_json((folder / "schema.json").read_bytes())
    pipelines = {champion: load_pipeline(folder)}
    for i in range(1, VERSIONS):
        frame = sample.training_frame(3000, seed + i)
        features, labels = schema.canonical(frame), schema.labels(frame[sample.TARGET])
        pipeline = build(schema, {"max_iter": 100 - 20 * i}, seed + i).fit(features, labels)
        with tempfile.TemporaryDirectory() as work:
            manifest = {"name": settings.model.name}
            export(pipeline, schema, Path(work, "artefact"), check_frame=features.head(200), manifest=manifest)
            version = registry.register(Path(work, "artefact"), origin="push", now=time.time())
        pipelines[version] = pipeline
    return pipelines


def swap_around(server: Server, versions: Sequence[int], swaps: int, say: Callable[[str], None]) -> list[Swap]:
    """Promote the versions in turn, each when all workers serve the one before."""
    engine = connect(server.settings.store_url)
    flipped_at = sa.select(aliases.c.changed_at).where(aliases.c.alias == "champion")
    offset = time.perf_counter() - time.time()
    done = []
    with server.client() as client:
        for i in range(swaps):
            version = versions[(i + 1) % len(versions)]
            time.sleep(STEADY_S)
            asked = time.perf_counter()
            run = client.promote(version, f"swap {i + 1} of the benchmark")
            until = time.monotonic() + 60
            while True:
                status = client.status()
                if status["champion"] == version and all(w["serving"] == version for w in status["workers"]):
                    break
                if time.monotonic() > until:
                    raise RuntimeError(f"version {version} is not served after 60 s: {client.run(run)}, {status}")
                time.sleep(0.1)  # each look costs the workers a few milliseconds
            reported = time.perf_counter()
            with engine.connect() as connection:
                changed_at = float(connection.execute(flipped_at).scalar_one())
            done.append(Swap(version, asked, changed_at + offset, reported))
            if (i + 1) % 10 == 0:
                say(f"{i + 1} of {swaps} swaps")
    return done


def last_of_the_old(swaps: Sequence[Swap], seen: Seen) -> list[float]:
    """For each swap, seconds from the flip to the last request that was sent and still answered by another version.

    0 when there was none: the workers may swap before the alias is seen to have changed.
    """
    sent, version = np.array(seen.sent), np.array(seen.version)
    found = []
    for swap, after in zip(swaps, [*(s.asked for s in swaps[1:]), math.inf], strict=True):
        old = sent[(sent > swap.flipped) & (sent < after) & (version != swap.version)]
        found.append(float(old.max() - swap.flipped) if len(old) else 0.0)
    return found


def windows(swaps: Sequence[Swap], seen: Seen) -> tuple[list[float], list[float]]:
    """Latencies in ms, sorted: of requests under way during a swap (asked until all workers serve it), and others."""
    sent, answered = np.array(seen.sent), np.array(seen.answered)
    during = np.zeros(len(sent), dtype=bool)
    for swap in swaps:
        during |= (answered >= swap.asked) & (sent <= swap.reported)
    latency = (answered - sent) * 1e3
    inside = (sent >= swaps[0].asked - STEADY_S) & (sent <= swaps[-1].reported)
    return np.sort(latency[during]).tolist(), np.sort(latency[inside & ~during]).tolist()


def run(
    *,
    swaps: int = 50,
    requests: int = 200_000,
    clients: int = 16,
    workers: int = 2,
    seed: int = SEED,
    json_to: Path | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Measure and print; 1 when a request failed or an answer was wrong, else 0."""
    machine = report.machine()
    family = Family()
    with tempfile.TemporaryDirectory(prefix="evergreen-", ignore_cleanup_errors=True) as folder:
        server = Server(
            Path(folder),
            environ=family.environ,
            SERVE__WORKERS=str(workers),
            TRAINING__TRIALS="1",
            SCHEDULE__CHECK_INTERVAL_S="3600",
        )
        try:
            say("evergreen starts and trains its first version")
            server.start().wait_ready(180)
            pipelines = register_versions(server, seed)
            first = pipelines[min(pipelines)]
            champion = Path(server.settings.models_dir, server.settings.model.name, str(min(pipelines)))
            schema = FeatureSchema.from_json((champion / "schema.json").read_bytes())
            records = question(first, schema, seed).records[:ROWS]
            frame = schema.frame(records)
            expected = {v: pipeline.predict_proba(frame)[:, 1].tolist() for v, pipeline in pipelines.items()}
            different = _different(expected)
            target = Target(server.port, "/predict", tuple(records_body([record]) for record in records))
            stop = Path(folder, "enough")
            with Generator() as generator:
                load = generator.begin(checked_load, target, clients, expected, requests, stop)
                try:
                    done = swap_around(server, sorted(pipelines), swaps, say)
                finally:
                    stop.touch()
                say(f"{swaps} swaps done; waiting for {requests:,} requests")
                measured, seen = load.result()
        finally:
            family.end()

    during, steady = windows(done, seen)
    old = Spread.of(last_of_the_old(done, seen))
    reported = Spread.of(swap.reported - swap.flipped for swap in done)
    took = Spread.of(swap.reported - swap.asked for swap in done)
    p99 = {"during": percentile(during, 0.99), "steady": percentile(steady, 0.99)}
    wrong = sum(seen.wrong.values())
    result = {
        "benchmark": "swap_under_load",
        "machine": machine,
        "seed": seed,
        "workers": workers,
        "clients": clients,
        "swaps": len(done),
        "requests": measured.requests,
        "seconds": measured.seconds,
        "failures": measured.failures,
        "wrong": dict(seen.wrong),
        "answers_by_version": {str(v): n for v, n in sorted(Counter(seen.version).items())},
        "rows_on_which_versions_differ": different,
        "flip_to_last_old_answer_s": old.json(),
        "flip_to_reported_s": reported.json(),
        "asked_to_served_s": took.json(),
        "p99_ms": p99,
        "p99_ratio": p99["during"] / p99["steady"],
        "requests_during_swaps": len(during),
        "requests_steady": len(steady),
        "does_not_show": DOES_NOT_SHOW,
    }
    report.write_json(json_to, result)
    rows = [
        ("requests, of which failed", f"{measured.requests:,}, {measured.failed - wrong:,}"),
        ("answers other than the named version's own", f"{wrong:,}"),
        ("swaps", str(len(done))),
        ("flip until no request gets the old version, s", old.text()),
        ("flip until all workers report the new version, s", reported.text()),
        ("promote asked until served everywhere, s", took.text()),
        ("p99 ms during swaps", f"{report.number(p99['during'])} ({len(during):,} requests)"),
        ("p99 ms between swaps", f"{report.number(p99['steady'])} ({len(steady):,} requests)"),
        ("ratio of the two", f"{result['p99_ratio']:.2f}"),
        ("requests/s", report.number(measured.requests_per_second)),
    ]
    say("")
    say(f"Measured {report.machine_text(machine)}.\n")
    say(
        f"{workers} workers, {clients} clients, {VERSIONS} versions that differ on {different:.0%} of {ROWS} rows, "
        f"seed {seed}; median (lowest to highest) of the swaps; nothing pinned.\n"
    )
    say(report.table(("Swaps under load", ""), rows))
    say("\nWhat this does not show.\n" + "\n".join(f"- {line}" for line in DOES_NOT_SHOW))
    return 1 if measured.failed else 0


def _different(expected: dict[int, list[float]]) -> float:
    """Share of rows on which any two versions can be told apart; the check of the answers is as sharp as this."""
    values = np.array(list(expected.values()))
    gaps = [np.abs(a - b) for i, a in enumerate(values) for b in values[i + 1 :]]
    return float((np.min(gaps, axis=0) > 2 * TOLERANCE).mean())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.swap_under_load", description=__doc__.splitlines()[0])
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--requests", type=int, default=200_000, help="at least")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    return run(
        swaps=given.swaps,
        requests=given.requests,
        clients=given.clients,
        workers=given.workers,
        seed=given.seed,
        json_to=given.json,
        say=lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    sys.exit(main())
