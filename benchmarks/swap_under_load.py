"""Fifty swaps of the model under full load: nothing fails, and every answer is that of the version it names.

    python -m benchmarks.swap_under_load --adaptations 200 --json swap.json

A real `evergreen serve` with two workers. Three versions that predict differently are registered and promoted in turn
through the management API, and between two swaps adaptations of the version in service are put into force, while a load
generator keeps all its clients busy. What each version, and each adaptation of it, makes of the same rows is computed
beforehand; each answer is compared with that of the version and the adaptation it names.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import sqlalchemy as sa

from benchmarks import adapted, report
from benchmarks.load import Enough, Generator, Measured, Target, closed_loop, percentile
from benchmarks.peers import records_body
from benchmarks.processes import Family
from benchmarks.report import Spread
from benchmarks.serving import TOLERANCE, question
from monitoring.schema import FeatureSchema
from monitoring.store import aliases, connect
from service import sample
from tests.real_server import Server
from training.adaptation import Adaptation
from training.export import export
from training.pipeline import build
from training.registry import Registry
from training.trust import load_pipeline

SEED: Final = 1
ROWS: Final = 200
VERSIONS: Final = 3
KINDS: Final = 3
"""Different adaptations of each version, in turn by their number: adaptation n is of kind n modulo this."""
RAW: Final = -1
"""Kind of an answer without an adaptation."""
SHIFT: Final = 0.4
"""Logits between two kinds."""
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
    adaptation: int = 0


Expected = dict[tuple[int, int], list[float]]
"""(version, kind of adaptation or `RAW`) -> the probability of class 1 for each of the target's bodies."""


@dataclass(slots=True)
class Seen:
    """Every good answer, in the order they came (perf_counter seconds)."""

    sent: array[float] = field(default_factory=lambda: array("d"))
    answered: array[float] = field(default_factory=lambda: array("d"))
    version: array[int] = field(default_factory=lambda: array("i"))
    adaptation: array[int] = field(default_factory=lambda: array("i"))  # 0: none
    wrong: Counter[str] = field(default_factory=Counter)


def checked_load(target: Target, clients: int, expected: Expected, at_least: int, until: Path) -> tuple[Measured, Seen]:
    """A closed loop whose every answer is checked, until `at_least` requests are answered and `until` exists."""
    seen = Seen()
    decode = msgspec.json.Decoder(Answer).decode

    def check(number: int, _: int, body: bytes, sent: float, answered: float) -> bool:
        try:
            answer = decode(body)
            probability = answer.probabilities[0][1]
            kind = answer.adaptation % KINDS if answer.adaptation else RAW
            right = abs(probability - expected[answer.version, kind][number]) <= TOLERANCE
            right = right and answer.predictions[0] == int(probability > 0.5)
        except (msgspec.DecodeError, KeyError, IndexError) as error:
            seen.wrong[repr(error)[:100]] += 1
            return False
        seen.sent.append(sent)
        seen.answered.append(answered)
        seen.version.append(answer.version)
        seen.adaptation.append(answer.adaptation)
        if not right:
            seen.wrong[f"version {answer.version}, adaptation {answer.adaptation}"] += 1
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


@dataclass(frozen=True, slots=True)
class Change:
    """One adaptation put into force; times are perf_counter seconds."""

    version: int
    number: int
    written: float
    """When its row was in the store."""
    reported: float
    """When all workers said that they answer with it."""


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


def make_adaptations(home: Path, versions: Iterable[int], seed: int) -> dict[tuple[int, int], Adaptation]:
    """By version and kind."""
    first = {version: adapted.with_every_expert(home / str(version), version, seed) for version in versions}
    return {(v, kind): adapted.shifted(one, SHIFT * kind) for v, one in first.items() for kind in range(KINDS)}


def swap_around(
    server: Server,
    versions: Sequence[int],
    swaps: int,
    adaptations: Mapping[tuple[int, int], Adaptation],
    changes: int,
    say: Callable[[str], None],
) -> tuple[list[Swap], list[Change]]:
    """Promote the versions in turn, each when all workers serve the one before; and between two, adapt what serves."""
    store, changed = adapted.Store(server), list[Change]()
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
            while len(changed) < changes * (i + 1) // swaps:
                number = store.next_number(version)
                store.add(version, adaptations[version, number % KINDS])
                written = time.perf_counter()
                store.wait(number)
                changed.append(Change(version, number, written, time.perf_counter()))
            if (i + 1) % 10 == 0:
                say(f"{i + 1} of {swaps} swaps")
    return done, changed


def last_without(changes: Sequence[Change], swaps: Sequence[Swap], seen: Seen) -> list[float]:
    """For each adaptation, seconds from its row to the last request sent and still answered by its version without it.

    Looked at until the next adaptation or swap was asked for; 0 when there was none.
    """
    sent, version, adaptation = np.array(seen.sent), np.array(seen.version), np.array(seen.adaptation)
    ends = np.array(sorted([*(c.written for c in changes), *(s.asked for s in swaps), math.inf]))
    found = []
    for change in changes:
        until = ends[np.searchsorted(ends, change.written, side="right")]
        late = sent[
            (sent > change.written) & (sent < until) & (version == change.version) & (adaptation != change.number)
        ]
        found.append(float(late.max() - change.written) if len(late) else 0.0)
    return found


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
    adaptations: int = 50,
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
            home = Path(server.settings.models_dir, server.settings.model.name)
            schema = FeatureSchema.from_json((home / str(min(pipelines)) / "schema.json").read_bytes())
            records = question(first, schema, seed).records[:ROWS]
            frame = schema.frame(records)
            expected = {(v, RAW): pipeline.predict_proba(frame)[:, 1].tolist() for v, pipeline in pipelines.items()}
            made = make_adaptations(home, pipelines, seed)
            expected |= {(v, k): adapted.expected(home / str(v), one, records) for (v, k), one in made.items()}
            different = _different(expected)
            target = Target(server.port, "/predict", tuple(records_body([record]) for record in records))
            stop = Path(folder, "enough")
            with Generator() as generator:
                load = generator.begin(checked_load, target, clients, expected, requests, stop)
                try:
                    done, changed = swap_around(server, sorted(pipelines), swaps, made, adaptations, say)
                finally:
                    stop.touch()
                say(f"{swaps} swaps done; waiting for {requests:,} requests")
                measured, seen = load.result()
        finally:
            family.end()

    during, steady = windows(done, seen)
    old = Spread.of(last_of_the_old(done, seen))
    reported = Spread.of(swap.reported - swap.flipped for swap in done)
    without = Spread.of(last_without(changed, done, seen))
    in_force = Spread.of(change.reported - change.written for change in changed)
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
        "adaptations": len(changed),
        "requests": measured.requests,
        "seconds": measured.seconds,
        "failures": measured.failures,
        "wrong": dict(seen.wrong),
        "answers_by_version": {str(v): n for v, n in sorted(Counter(seen.version).items())},
        "answers_with_an_adaptation": int((np.array(seen.adaptation) > 0).sum()),
        "rows_on_which_versions_and_adaptations_differ": different,
        "adaptation_written_to_last_answer_without_s": without.json(),
        "adaptation_written_to_reported_s": in_force.json(),
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
        ("answers other than the named version's and adaptation's own", f"{wrong:,}"),
        ("answers with an adaptation", f"{result['answers_with_an_adaptation']:,}"),
        ("swaps", str(len(done))),
        ("adaptations", str(len(changed))),
        ("adaptation written until no request is answered without it, s", without.text()),
        ("adaptation written until all workers report it, s", in_force.text()),
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
        f"{workers} workers, {clients} clients, {VERSIONS} versions with {KINDS} adaptations each, "
        f"any two of which differ on {different:.0%} or more of {ROWS} rows, "
        f"seed {seed}; median (lowest to highest) of the swaps; nothing pinned.\n"
    )
    say(report.table(("Swaps under load", ""), rows))
    say("\nWhat this does not show.\n" + "\n".join(f"- {line}" for line in DOES_NOT_SHOW))
    return 1 if measured.failed else 0


def _different(expected: Expected) -> float:
    """Share of rows on which two versions or adaptations can be told apart, the least of all pairs.

    The check of the answers is as sharp as this.
    """
    values = np.array(list(expected.values()))
    gaps = [np.abs(a - b) for i, a in enumerate(values) for b in values[i + 1 :]]
    return float((np.array(gaps) > 2 * TOLERANCE).mean(axis=1).min())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.swap_under_load", description=__doc__.splitlines()[0])
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--adaptations", type=int, default=50)
    parser.add_argument("--requests", type=int, default=200_000, help="at least")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    return run(
        swaps=given.swaps,
        adaptations=given.adaptations,
        requests=given.requests,
        clients=given.clients,
        workers=given.workers,
        seed=given.seed,
        json_to=given.json,
        say=lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    sys.exit(main())
