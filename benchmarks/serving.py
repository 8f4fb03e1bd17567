"""Evergreen beside its peers and beside a bare floor: requests a second and latency, in one run.

    python -m benchmarks.serving --cache /tmp/peers --json serving.json

Every server serves the same fitted pipeline (the champion that a fresh `evergreen serve` trains from its sample data:
10 numeric and 4 categorical features, 100 trees), or its ONNX twin (the floor, Evergreen), to the same load generator
with the same rows. One worker each; the whole server tree on one core, the load generator on another, the servers not
being measured stopped (SIGSTOP). Servers take turns within each repeat, so that what the machine does in between hits
all alike. A server has to answer as the pipeline does before it is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np

from benchmarks import adapted, processes, report
from benchmarks.load import Generator, Measured, Target, closed_loop
from benchmarks.peers import PEERS, Peer, Record, probabilities, records_body
from benchmarks.processes import CannotMeasure, Family
from benchmarks.report import Spread
from monitoring.schema import FeatureSchema
from service import sample
from service.handover import read_live
from service.place import free_port
from tests.real_server import Server
from training.trust import load_pipeline

SEED: Final = 1
ROWS: Final = 1000
WARM_UP_S: Final = 0.5
START_S: Final = 120.0
TOLERANCE: Final = 1e-5
"""Largest difference of a probability from the pipeline's own."""

EVERGREEN: Final = "evergreen"
ADAPTED: Final = "evergreen-adapted"
FLOOR: Final = "floor"
TITLE: Final = "**Evergreen** (recording, metrics, strict validation)"
ADAPTED_TITLE: Final = "**Evergreen**, with an adaptation in force"
ADAPTED_CONFIGURATION: Final = (
    "The same in a folder of its own, with an adaptation of all experts that the default policy knows, three residual "
    "learners with 30, 30 and 60 trees among them; it had to answer as the adaptation of the twin's output does."
)
CONFIGURATION: Final = (
    "`evergreen serve` with one worker (SERVE__WORKERS=1) and its controller, which stores the recorded rows "
    "meanwhile; one trial of the study (TRAINING__TRIALS=1) gives the default 100 trees; scheduled checks are an hour "
    "apart (SCHEDULE__CHECK_INTERVAL_S), all else is the default."
)

DOES_NOT_SHOW: Final = (
    "Loopback only: no network, no TLS, no proxy.",
    "One worker on one core: not how a server scales over cores; servers of several processes share that core.",
    "The same 1,000 rows without missing values again and again; one model of one size.",
    "A few seconds a measurement: no growth over hours (`make soak`), no restart, no swap (`swap_under_load.py`).",
    "No scheduled check and no training while measuring (`interference.py` has that).",
    "Evergreen's rows are in its spool when it answers; those of the 1,000-row load reach the store after the "
    "measurement (the time is in the JSON as `drained_after_s`).",
    "The peers record nothing and validate little; what they do with more of both is not measured.",
)


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    rows: int
    clients: int


WORKLOADS: Final = (
    Workload("1 row x 1 client", 1, 1),
    Workload("1 row x 32 clients", 1, 32),
    Workload("1,000 rows x 4 clients", ROWS, 4),
)


@dataclass(slots=True)
class Running:
    """A server that is up, and how it is asked."""

    name: str
    title: str
    configuration: str
    family: Family
    target: Callable[[Sequence[bytes]], Target]
    body: Callable[[Sequence[Record]], bytes]
    positive: Callable[[Any], list[float]]
    log: Path
    process: subprocess.Popen[bytes]
    evergreen: Server | None = None
    measured: dict[str, list[Measured]] = field(default_factory=dict)
    cpu_s: dict[str, list[float]] = field(default_factory=dict)
    """Processor seconds of the whole tree in each measurement: these do not depend on who else was busy."""
    drained_after_s: list[float] = field(default_factory=list)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """The rows everyone is asked, and the pipeline's own answer: the probability of the second class."""

    records: list[dict[str, Any]]
    expected: np.ndarray[Any, np.dtype[np.float64]]


def question(pipeline: Any, schema: FeatureSchema, seed: int) -> Question:
    """`ROWS` rows of the sample stream that the model has not seen.

    Without missing values (not every protocol has a word for them), and such on which it does not matter whether a
    server computes in float32 (as trained) or in float64 (as pandas reads JSON).
    """
    frame = sample.frame(4 * ROWS, start=50_000, seed=seed)[list(schema.names)].dropna()
    records = [
        {name: value.item() if hasattr(value, "item") else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]
    for feature in schema.features:
        if feature.kind == "boolean":
            for record in records:
                record[feature.name] = bool(record[feature.name])
        elif feature.integer:
            for record in records:
                record[feature.name] = int(record[feature.name])
    exact = schema.frame(records)
    expected = pipeline.predict_proba(exact)[:, 1]
    wide = frame.astype({name: np.float64 for name in schema.numeric_names})
    agrees = np.abs(pipeline.predict_proba(wide)[:, 1] - expected) <= TOLERANCE
    chosen = np.flatnonzero(agrees)[:ROWS]
    assert len(chosen) == ROWS, f"only {len(chosen)} of the rows are fit for all servers"
    return Question([records[i] for i in chosen], expected[chosen])


def start_evergreen(home: Path, core: int | None) -> Running:
    """A fresh Evergreen, which trains its first version from the sample."""
    family = Family()
    server = Server(
        home,
        environ=family.environ,
        SERVE__WORKERS="1",
        TRAINING__TRIALS="1",
        SCHEDULE__CHECK_INTERVAL_S="3600",
    )
    server.start()  # trained on whatever core is free; then all of it moves to its own
    try:
        server.wait_ready(START_S)
        assert server.process is not None
        _move(family, core)
    except BaseException:
        family.end()
        raise
    return Running(
        EVERGREEN,
        TITLE,
        CONFIGURATION,
        family,
        lambda bodies: Target(server.port, "/predict", tuple(bodies)),
        records_body,
        probabilities,
        server.log_path,
        server.process,
        evergreen=server,
    )


def served_artefact(server: Server) -> Path:
    """The folder of the version in service."""
    live = read_live(server.settings.live_file)
    assert live is not None and live.champion is not None
    return Path(live.champion.path)


def adapt(server: Running, artefact: Path, asked: Question, seed: int) -> Question:
    """Put an adaptation into force in this Evergreen: what it must answer from now on."""
    assert server.evergreen is not None
    server.name, server.title, server.configuration = ADAPTED, ADAPTED_TITLE, ADAPTED_CONFIGURATION
    adaptation = adapted.with_every_expert(artefact, int(artefact.name), seed)
    store = adapted.Store(server.evergreen)
    store.wait(store.add(adaptation.version, adaptation))
    return Question(asked.records, np.array(adapted.expected(artefact, adaptation, asked.records)))


def _move(family: Family, core: int | None) -> None:
    if core is None:
        return
    for process in family.processes():
        for thread in process.threads():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, {core})


def start_peer(peer: Peer, model: str, cache: Path, work: Path, core: int | None) -> Running:
    """A peer's server in a folder of its own under `work`. Raises `CannotMeasure`."""
    python = processes.environment(cache, peer.name, peer.requirements)
    family = Family()
    folder = work / peer.name
    folder.mkdir()
    port = free_port()
    environ = {
        "HOME": str(folder),  # some leave files there (Ray its token)
        "BENCHMARK_MODEL": model,
        "BENCHMARK_FOLDER": str(folder),
        "BENCHMARK_SPARE_PORT": str(free_port()),
        "BENTOML_HOME": str(folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    with processes.pinned(core):
        process = processes.start([str(python), *peer.arguments(port, model)], family, environ, folder)
    return Running(
        peer.name,
        peer.title,
        peer.configuration,
        family,
        lambda bodies: Target(port, peer.path, tuple(bodies)),
        peer.body,
        peer.positive,
        folder / "log",
        process,
    )


def check(server: Running, asked: Question) -> None:
    """Wait until it answers, then compare with the pipeline: all rows at once, and twenty of them alone.

    Raises `CannotMeasure` when it does not come up, or answers anything else.
    """
    target = server.target([])
    url = f"http://{target.host}:{target.port}{target.path}"
    until = time.monotonic() + START_S
    with httpx.Client(trust_env=False, timeout=20) as client:

        def ask(records: Sequence[Record]) -> httpx.Response:
            return client.post(url, content=server.body(records), headers={"content-type": "application/json"})

        said = "it does not listen"
        while True:
            if server.process.poll() is not None:
                raise CannotMeasure(f"ended while starting: {processes.last_words(server.log)}")
            with contextlib.suppress(httpx.TransportError):
                response = ask(asked.records[:1])
                if response.status_code == 200:
                    break
                said = f"{response.status_code}: {response.text[:200]}"
            if time.monotonic() > until:
                raise CannotMeasure(f"not ready after {START_S:.0f} s ({said})")
            time.sleep(0.2)
        for part in (slice(0, ROWS), *(slice(i, i + 1) for i in range(0, ROWS, ROWS // 20))):
            records = asked.records[part]
            try:
                response = ask(records)
            except httpx.TransportError as error:
                raise CannotMeasure(f"gave no answer to {len(records)} rows ({type(error).__name__})") from None
            if response.status_code != 200:
                raise CannotMeasure(f"answered {len(records)} rows with {response.status_code}: {response.text[:200]}")
            try:
                given = np.array(server.positive(response.json()))
                difference = float(np.abs(given - asked.expected[part]).max())
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise CannotMeasure(f"answers in another form ({error!r}): {response.text[:200]}") from None
            if not difference <= TOLERANCE:
                raise CannotMeasure(f"answers wrongly: a probability differs by {difference:.2g}")


def measure(
    servers: Sequence[Running], asked: Question, generator: Generator, *, seconds: float, repeats: int
) -> Iterator[str]:
    """Fill `measured` of every server, server by server within workload within repeat; yields what is being done."""
    for repeat in range(repeats):
        turn = [*servers[repeat % len(servers) :], *servers[: repeat % len(servers)]]
        for workload in WORKLOADS:
            for server in turn:
                if server.problem:
                    continue
                yield f"repeat {repeat + 1} of {repeats}, {workload.name}: {server.name}"
                parts = [asked.records] if workload.rows > 1 else [[record] for record in asked.records]
                target = server.target([server.body(part) for part in parts])
                server.family.resume()
                try:
                    generator.run(closed_loop, target, workload.clients, WARM_UP_S)
                    cpu_s = processes.cpu_seconds(server.family)
                    found = generator.run(closed_loop, target, workload.clients, seconds)
                    cpu_s = processes.cpu_seconds(server.family) - cpu_s
                    server.measured.setdefault(workload.name, []).append(found)
                    server.cpu_s.setdefault(workload.name, []).append(cpu_s)
                    if server.evergreen is not None:
                        server.drained_after_s.append(drained(server.evergreen))
                except OSError as error:
                    server.problem = f"stopped answering ({error}): {processes.last_words(server.log)}"
                server.family.pause()


def drained(server: Server, seconds: float = 60.0) -> float:
    """Seconds until the recorded rows are in the store: what a measurement leaves behind must not weigh on the next."""
    began = time.monotonic()
    with server.client() as client:
        while time.monotonic() - began < seconds:
            status = client.status()
            if (status.get("drain_lag_s") or 0) < 0.5 and time.monotonic() - began > 0.5:
                break
            time.sleep(0.2)
    return time.monotonic() - began


# The results


Reading = Callable[[Measured, Workload], float]

READINGS: Final[dict[str, Reading]] = {
    "requests_per_second": lambda found, _: found.requests_per_second,
    "rows_per_second": lambda found, workload: found.requests_per_second * workload.rows,
    "p50_ms": lambda found, _: found.percentile(0.50),
    "p99_ms": lambda found, _: found.percentile(0.99),
}


def spread(server: Running, workload: Workload, reading: str) -> Spread:
    return Spread.of(READINGS[reading](found, workload) for found in server.measured.get(workload.name, []))


def cpu_us(server: Running, workload: Workload) -> Spread:
    """Microseconds of processor that the whole tree used for each good answer."""
    pairs = zip(server.cpu_s.get(workload.name, []), server.measured.get(workload.name, []), strict=True)
    return Spread.of(cpu_s / found.good * 1e6 for cpu_s, found in pairs if found.good)


def ratio(one: Running, other: Running, workload: Workload, reading: str) -> Spread:
    """`one` divided by `other`, repeat by repeat: both were measured within the same minute."""
    pairs = zip(one.measured.get(workload.name, []), other.measured.get(workload.name, []), strict=False)
    values = [(READINGS[reading](a, workload), READINGS[reading](b, workload)) for a, b in pairs]
    return Spread.of(a / b for a, b in values if b)


def best_peer(servers: Sequence[Running], workload: Workload, reading: str = "requests_per_second") -> Running | None:
    """The quickest peer by the median; the floor is no peer, it does not do the work."""
    peers = [s for s in servers if s.name not in (EVERGREEN, ADAPTED, FLOOR) and s.measured.get(workload.name)]
    worth = {s.name: spread(s, workload, reading).median for s in peers}
    if reading == "p50_ms":
        return min((s for s in peers if worth[s.name] == worth[s.name]), key=lambda s: worth[s.name], default=None)
    return max(peers, key=lambda s: worth[s.name], default=None)


def ratios(servers: Sequence[Running]) -> list[tuple[str, str, Spread]]:
    """(workload, what, ratio) of Evergreen to the best peer in requests and in p50, and to the floor."""
    by_name = {server.name: server for server in servers}
    evergreen, floor = by_name.get(EVERGREEN), by_name.get(FLOOR)
    found: list[tuple[str, str, Spread]] = []
    if evergreen is None:
        return found
    for workload in WORKLOADS:
        rate = "rows/s" if workload.rows > 1 else "requests/s"
        if peer := best_peer(servers, workload):
            against = ratio(evergreen, peer, workload, "requests_per_second")
            found.append((workload.name, f"{rate}, Evergreen ÷ best peer ({peer.name})", against))
        if peer := best_peer(servers, workload, "p50_ms"):
            found.append(
                (workload.name, f"p50, Evergreen ÷ best peer ({peer.name})", ratio(evergreen, peer, workload, "p50_ms"))
            )
        if floor:
            against = ratio(evergreen, floor, workload, "requests_per_second")
            found.append((workload.name, f"{rate}, Evergreen ÷ floor", against))
        if with_one := by_name.get(ADAPTED):
            against = ratio(with_one, evergreen, workload, "requests_per_second")
            found.append((workload.name, f"{rate}, with an adaptation ÷ without", against))
    return found


def markdown(result: dict[str, Any], servers: Sequence[Running], left_out: dict[str, str]) -> str:
    lines = [f"Measured {report.machine_text(result['machine'])}.", "", result["how"], ""]
    for workload in WORKLOADS:
        rows = []
        many = workload.rows > 1
        order = sorted(servers, key=lambda s: -(spread(s, workload, "requests_per_second").median or 0.0))
        for server in order:
            found = server.measured.get(workload.name, [])
            if not found:
                continue
            failures = sum(m.failed for m in found)
            rows.append(
                (
                    server.title,
                    spread(server, workload, "rows_per_second" if many else "requests_per_second").text(),
                    spread(server, workload, "p50_ms").text(),
                    spread(server, workload, "p99_ms").text(),
                    report.number(cpu_us(server, workload).median),
                    f"{failures:,} of {sum(m.requests for m in found):,}",
                )
            )
        head = (workload.name, "rows/s" if many else "requests/s", "p50 ms", "p99 ms", "CPU µs a request", "failed")
        lines += [report.table(head, rows), ""]
    lines += [
        report.table(("", "", "ratio"), [(name, what, spread.text("x")) for name, what, spread in ratios(servers)]),
        "",
    ]
    lines += [f"- Not measured: {name}: {reason}" for name, reason in left_out.items()]
    lines += ["", "Configured as follows.", *(f"- {s.name}: {s.configuration}" for s in servers)]
    lines += ["", "What this does not show.", *(f"- {line}" for line in DOES_NOT_SHOW)]
    return "\n".join(lines)


def as_json(servers: Sequence[Running], left_out: dict[str, str]) -> dict[str, Any]:
    return {
        "servers": {
            server.name: {
                "title": server.title,
                "configuration": server.configuration,
                "problem": server.problem,
                "drained_after_s": server.drained_after_s,
                "workloads": {
                    workload.name: {name: spread(server, workload, name).json() for name in READINGS}
                    | {
                        "cpu_us_per_request": cpu_us(server, workload).json(),
                        "requests": sum(m.requests for m in found),
                        "failures": [m.failures for m in found],
                        "generator_cpu": max(m.generator_cpu for m in found),
                    }
                    for workload in WORKLOADS
                    if (found := server.measured.get(workload.name))
                },
            }
            for server in servers
        },
        "ratios": [{"workload": workload, "what": what, **found.json()} for workload, what, found in ratios(servers)],
        "not_measured": left_out,
        "does_not_show": DOES_NOT_SHOW,
    }


def run(
    *,
    cache: Path,
    only: Sequence[str] = (),
    seconds: float = 2.5,
    repeats: int = 3,
    seed: int = SEED,
    json_to: Path | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Measure and print; 1 when Evergreen failed a request, else 0."""
    machine = report.machine()
    server_core, load_core = processes.cores()
    wanted = [peer for peer in PEERS if not only or peer.name in only]
    servers: list[Running] = []
    left_out: dict[str, str] = {}
    cache.mkdir(parents=True, exist_ok=True)
    for peer in wanted:
        try:
            processes.environment(cache, peer.name, peer.requirements)
        except CannotMeasure as problem:
            left_out[peer.name] = str(problem)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        generator = stack.enter_context(Generator(load_core))
        folder = tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)
        work = Path(stack.enter_context(folder))  # short: Ray puts sockets there
        home = work / "home"
        home.mkdir()
        say("evergreen: starts and trains its first version")
        evergreen = start_evergreen(home, server_core)
        stack.callback(evergreen.family.end)
        assert evergreen.evergreen is not None
        artefact = served_artefact(evergreen.evergreen)
        schema = FeatureSchema.from_json((artefact / "schema.json").read_bytes())
        pipeline = load_pipeline(artefact)
        asked = question(pipeline, schema, seed)
        model = _dump(pipeline, home / "pipeline.joblib")
        check(evergreen, asked)
        evergreen.family.pause()
        if not only or EVERGREEN in only:
            servers.append(evergreen)
        if not only or ADAPTED in only:
            say(f"{ADAPTED}: starts and trains its first version")
            other_home = work / "other"
            other_home.mkdir()
            with_one = start_evergreen(other_home, server_core)
            stack.callback(with_one.family.end)
            assert with_one.evergreen is not None
            check(with_one, adapt(with_one, served_artefact(with_one.evergreen), asked, seed))
            with_one.family.pause()
            servers.append(with_one)
        for peer in wanted:
            if peer.name in left_out:
                continue
            say(f"{peer.name}: starts")
            server = start_peer(peer, str(artefact) if peer.serves == "artefact" else model, cache, work, server_core)
            stack.callback(server.family.end)
            try:
                check(server, asked)
                server.family.pause()
                servers.append(server)
            except CannotMeasure as problem:
                left_out[peer.name] = str(problem)
                say(f"{peer.name}: {problem}")
                server.family.end()
        for progress in measure(servers, asked, generator, seconds=seconds, repeats=repeats):
            say(progress)
    left_out |= {server.name: server.problem for server in servers if server.problem}
    estimator = pipeline[-1]
    pinning = (
        f"server trees on core {server_core}, load generator on core {load_core}"
        if server_core is not None
        else "one core for servers and load generator (this machine has no other)"
    )
    result: dict[str, Any] = {
        "benchmark": "serving",
        "machine": machine,
        "seed": seed,
        "how": (
            f"One worker each; {pinning}. {type(estimator).__name__} of {estimator.n_iter_} trees on "
            f"{len(schema.names)} features; {ROWS:,} distinct rows, seed {seed}; {repeats} repeats of {seconds:g} s "
            f"after {WARM_UP_S:g} s of warm-up, servers taking turns; median (lowest to highest) of the repeats; CPU "
            "of the whole server tree; every server gave the pipeline's own answers "
            f"(within {TOLERANCE:g}) before it was measured."
        ),
        "seconds": seconds,
        "repeats": repeats,
        "took_s": round(time.monotonic() - began, 1),
        **as_json(servers, left_out),
    }
    report.write_json(json_to, result)
    say("")
    say(markdown(result, servers, left_out))
    ours = [server for server in servers if server.name in (EVERGREEN, ADAPTED)]
    failed = sum(m.failed for server in ours for found in server.measured.values() for m in found)
    return 1 if failed or any(server.problem for server in ours) else 0


def _dump(pipeline: Any, path: Path) -> str:
    import joblib

    joblib.dump(pipeline, path)
    return str(path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "evergreen-peers", metavar="FOLDER")
    parser.add_argument(
        "--only", default="", help=f"of {', '.join([EVERGREEN, ADAPTED, *(peer.name for peer in PEERS)])}"
    )
    parser.add_argument("--seconds", type=float, default=2.5, help="of one measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    only = [name for name in given.only.split(",") if name]
    unknown = set(only) - {EVERGREEN, ADAPTED, *(peer.name for peer in PEERS)}
    if unknown:
        parser.error(f"--only: no server {', '.join(sorted(unknown))}; {parser.format_help()}")
    return run(
        cache=given.cache,
        only=only,
        seconds=given.seconds,
        repeats=given.repeats,
        seed=given.seed,
        json_to=given.json,
        say=lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    sys.exit(main())
