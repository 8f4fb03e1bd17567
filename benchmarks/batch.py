"""Batches beside the peers and beside a bare floor, in every encoding; and single rows beside batches.

    python -m benchmarks.batch --cache /tmp/peers --json batch.json --check
    python -m benchmarks.batch --only single            (single rows beside batches alone)

The servers, rows and ways of `benchmarks.serving`: one worker each, the whole server tree on one core, the load
generator on another, servers not being measured stopped. 1,000 rows a request, 4 clients, all of Evergreen's rows
recorded. A server has to answer as the pipeline does, in this very encoding, before it is measured. Then single rows
come at a constant rate, 30 % of what the worker takes, in phases that alternate: alone, and beside four clients who
send batches of 10,000 rows one after the other. `--before FOLDER` names a checkout of an earlier Evergreen, for what
must not have become worse: single rows of 32 clients, a worker's memory, a start.

With `--check` gives 1 when a line does not hold. Engines and parity are `benchmarks.trees`, files `benchmarks.scoring`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import joblib  # type: ignore[import-untyped]
import numpy as np
import pandas as pd
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from benchmarks import processes, report
from benchmarks.load import Generator, Measured, Target, closed_loop, open_loop
from benchmarks.peers import FOLDER, MODEL, PEERS, Peer, Record, probabilities, records_body
from benchmarks.processes import CannotMeasure
from benchmarks.report import Spread
from benchmarks.serving import (
    EVERGREEN,
    FLOOR,
    ROWS,
    SEED,
    TOLERANCE,
    WARM_UP_S,
    Running,
    check,
    drained,
    question,
    served_artefact,
    start_evergreen,
    start_peer,
)
from monitoring.schema import FeatureSchema
from tests.real_server import Server
from training.trust import load_pipeline

CLIENTS: Final = 4
LARGE_ROWS: Final = 10_000
SINGLE_CLIENTS: Final = 32
BATCH_CLIENTS_NICE: Final = 10
"""They stand for programs on other machines: what measures single rows does not wait for them."""
SHARE: Final = 0.3
DRAIN_S: Final = 10.0
"""At most, for what a measurement left behind; the rest is stored beside the next one, at Evergreen's cost."""
ARROW: Final = "application/vnd.apache.arrow.stream"
OCTETS: Final = "application/octet-stream"

FASTER_JSON: Final = 3.0
ABOVE_FLOOR: Final = 1.2
FASTER_ARROW: Final = 10.0
SLOWER_BESIDE: Final = 3.0
AS_BEFORE: Final = 0.97
MORE_MB: Final = 5.0
SLOWER_START: Final = 1.1

DOES_NOT_SHOW: Final = (
    "Loopback only, one model of one size (`benchmarks.trees` has many), the same 1,000 rows again and again.",
    "The drain: Evergreen's rows are in its spool when it answers, and in the store after the measurement.",
    "The peers record nothing and validate little. On NumPy they get the matrix that the pipeline would make: their "
    "clients did that part of the work, and Evergreen's did not.",
    "MLServer's binary tensors: its REST server (1.7) reads none, and gRPC needs another load generator.",
)

NUMPY_PEERS: Final = (
    Peer(
        "mlserver-numpy",
        "MLServer, one tensor (NumPy)",
        "mlserver_matrix.py",
        ("mlserver==1.7.1", "mlserver-sklearn==1.7.1", "uvloop", "httptools", *MODEL),
        records_body,
        probabilities,
        path="/v2/models/model/infer",
        serves="estimator",
    ),
    Peer(
        "bentoml-numpy",
        "BentoML, NumPy file",
        "bentoml_numpy.py",
        (*next(peer.requirements for peer in PEERS if peer.name == "bentoml"),),
        records_body,
        probabilities,
        command=lambda port, model: [
            *("-m", "bentoml", "serve", "bentoml_numpy:Predictor"),
            *("--working-dir", str(FOLDER), "--host", "127.0.0.1", "--port", str(port)),
        ],
        serves="estimator",
    ),
)

Chances = Callable[[httpx.Response], Any]


@dataclass(slots=True)
class Way:
    """One server, asked in one encoding."""

    server: Running
    encoding: str
    target: Target
    positive: Chances
    """The probabilities of the second class in an answer."""
    measured: list[Measured] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.server.name}, {self.encoding}"

    def rows_per_second(self) -> list[float]:
        return [found.requests_per_second * ROWS for found in self.measured]


# -- encodings -----------------------------------------------------------------------------------------------------


def json_way(server: Running, records: Sequence[Record]) -> Way:
    return Way(server, "JSON", server.target([server.body(records)]), lambda answer: server.positive(answer.json()))


def tensors(server: Running, records: Sequence[Record], schema: FeatureSchema) -> Way:
    """V2 as Triton's own client sends it: a binary tensor a column."""
    inputs = []
    for feature in schema.features:
        values = [record[feature.name] for record in records]
        text = isinstance(values[0], str)
        kind = "BYTES" if text else "BOOL" if isinstance(values[0], bool) else "FP64"
        one = InferInput(feature.name, [len(values)], kind)
        one.set_data_from_numpy(np.array(values, {"BYTES": object, "BOOL": bool, "FP64": np.float64}[kind]))
        inputs.append(one)
    outputs = [InferRequestedOutput("probabilities", binary_data=False)]
    body, length = InferenceServerClient.generate_request_body(inputs, outputs=outputs)
    path, headers = "/v2/models/evergreen/infer", (("Inference-Header-Content-Length", str(length)),)
    target = Target(server.target([]).port, path, (body,), content_type=OCTETS, headers=headers)
    return Way(server, "V2 binary", target, lambda answer: _flat(answer)[1::2])


def matrix_tensor(server: Running, matrix: Any) -> Way:
    """MLServer's V2 on NumPy: one tensor, the matrix, in JSON; its REST server reads no binary tensors."""
    tensor = {"name": "matrix", "shape": list(matrix.shape), "datatype": "FP32", "data": matrix.ravel().tolist()}
    body = {"inputs": [tensor | {"parameters": {"content_type": "np"}}], "outputs": [{"name": "predict_proba"}]}
    target = server.target([json.dumps(body, separators=(",", ":")).encode()])
    return Way(server, "one tensor", target, lambda answer: _flat(answer)[1::2])


def _flat(answer: httpx.Response) -> list[float]:
    """The first output of an answer in V2."""
    found: list[float] = answer.json()["outputs"][0]["data"]
    return found


def matrix_file(server: Running, matrix: Any) -> Way:
    body = io.BytesIO()
    np.save(body, matrix.astype(np.float32))
    target = Target(server.target([]).port, "/predict", (body.getvalue(),), content_type=OCTETS, accept="*/*")
    return Way(server, "NumPy file", target, lambda answer: np.load(io.BytesIO(answer.content))[:, 1])


def arrow(server: Running, records: Sequence[Record], schema: FeatureSchema) -> Way:
    import pyarrow as pa

    table = pa.Table.from_pylist([dict(record) for record in records])
    for name in schema.categorical_names:  # as a DataFrame's categories come
        table = table.set_column(table.schema.get_field_index(name), name, table[name].dictionary_encode())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)

    def positive(answer: httpx.Response) -> Any:
        found = pa.ipc.open_stream(answer.content).read_all()
        return found.column(found.num_columns - 1).to_numpy()

    body = sink.getvalue().to_pybytes()
    return Way(
        server, "Arrow", Target(server.target([]).port, "/predict", (body,), content_type=ARROW, accept=ARROW), positive
    )


def csv(server: Running, records: Sequence[Record]) -> Way:
    body = pd.DataFrame(list(records)).to_csv(index=False).encode()

    def positive(answer: httpx.Response) -> Any:
        return pd.read_csv(io.BytesIO(answer.content)).iloc[:, -1].to_numpy()

    target = Target(server.target([]).port, "/predict", (body,), content_type="text/csv", accept="text/csv")
    return Way(server, "CSV", target, positive)


def proven(way: Way, expected: Any, seconds: float = 120.0) -> None:
    """Return when it answers as the pipeline does. Raises `CannotMeasure`."""
    target = way.target
    headers = {"content-type": target.content_type, "accept": target.accept, **dict(target.headers)}
    url, said = f"http://{target.host}:{target.port}{target.path}", "it does not listen"
    until = time.monotonic() + seconds
    with httpx.Client(trust_env=False, timeout=30) as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = client.post(url, content=target.bodies[0], headers=headers)
                if answer.status_code == 200:
                    break
                said = f"{answer.status_code}: {answer.text[:200]}"
                if answer.status_code in (400, 406, 415, 422):
                    raise CannotMeasure(said)
            if way.server.process.poll() is not None:
                raise CannotMeasure(f"ended while starting: {processes.last_words(way.server.log)}")
            if time.monotonic() > until:
                raise CannotMeasure(f"not ready after {seconds:.0f} s ({said})")
            time.sleep(0.2)
    try:
        difference = float(np.abs(np.asarray(way.positive(answer), float) - expected).max())
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise CannotMeasure(f"answers in another form ({error!r}): {answer.content[:200]!r}") from None
    if not difference <= TOLERANCE:
        raise CannotMeasure(f"answers wrongly: a probability differs by {difference:.2g}")


# -- measurements --------------------------------------------------------------------------------------------------


def measure(ways: Sequence[Way], generator: Generator, seconds: float, repeats: int) -> Iterator[str]:
    """Fill `measured`, way by way within repeat; yields what is being done."""
    for repeat in range(repeats):
        at = repeat % len(ways)
        for way in [*ways[at:], *ways[:at]]:
            yield f"repeat {repeat + 1} of {repeats}: {way.name}"
            way.server.family.resume()
            generator.run(closed_loop, way.target, CLIENTS, WARM_UP_S)
            cpu_s = processes.cpu_seconds(way.server.family)
            way.measured.append(generator.run(closed_loop, way.target, CLIENTS, seconds))
            way.cpu_s.append(processes.cpu_seconds(way.server.family) - cpu_s)
            if way.server.evergreen is not None:
                drained(way.server.evergreen, DRAIN_S)
            way.server.family.pause()


def single_beside_batches(
    server: Running,
    records: Sequence[Record],
    single: Generator,
    batches: Generator,
    seconds: float,
    repeats: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Latencies of single rows at a constant rate, alone and beside four clients of 10,000-row batches."""
    ones = server.target([server.body([record]) for record in records])
    many = [records[at % len(records)] for at in range(LARGE_ROWS)]
    large = server.target([server.body(many)])
    server.family.resume()
    single.run(closed_loop, ones, SINGLE_CLIENTS, 1.0)
    rate = SHARE * single.run(closed_loop, ones, SINGLE_CLIENTS, 3.0).requests_per_second
    single.run(open_loop, ones, SINGLE_CLIENTS, 2.0, rate=rate)
    phases: dict[str, list[Measured]] = {"alone": [], "beside": []}
    rows: list[float] = []
    for repeat in range(repeats):
        say(f"repeat {repeat + 1} of {repeats}: single rows alone, then beside batches of {LARGE_ROWS:,}")
        phases["alone"].append(single.run(open_loop, ones, SINGLE_CLIENTS, seconds, rate=rate))
        load = batches.begin(closed_loop, large, CLIENTS, seconds + 1.0)
        time.sleep(0.5)
        phases["beside"].append(single.run(open_loop, ones, SINGLE_CLIENTS, seconds, rate=rate))
        found = load.result()
        rows.append(found.requests_per_second * LARGE_ROWS)
        phases["beside"][-1].failures.update({f"batch: {kind}": n for kind, n in found.failures.items()})
        assert server.evergreen is not None
        drained(server.evergreen, DRAIN_S)
    server.family.pause()
    p99 = {name: Spread.of(found.percentile(0.99) for found in measured) for name, measured in phases.items()}
    pairs = zip(phases["alone"], phases["beside"], strict=True)
    ratio = Spread.of(beside.percentile(0.99) / alone.percentile(0.99) for alone, beside in pairs)
    return {
        "rate": rate,
        "p99_ms": p99,
        "p50_ms": {name: Spread.of(m.percentile(0.5) for m in measured) for name, measured in phases.items()},
        "ratio": ratio,
        "batch_rows_per_second": Spread.of(rows),
        "failed": sum(m.failed for measured in phases.values() for m in measured),
        "requests": sum(m.requests for measured in phases.values() for m in measured),
    }


class Former(Server):
    """An Evergreen of another checkout."""

    def __init__(self, home: Path, tree: Path, **settings: str) -> None:
        super().__init__(home, environ={"PYTHONPATH": str(tree)}, **settings)
        self.cwd = tree


def as_before(before: Path, work: Path, generator: Generator, seconds: float, repeats: int) -> dict[str, Any]:
    """Single rows of 32 clients, a worker's memory and a start: here, and in the checkout `before`, taking turns."""
    trees = {"here": Server.cwd, "before": before.resolve()}
    core, _ = processes.cores()
    starts: dict[str, list[float]] = {name: [] for name in trees}
    resident: dict[str, list[float]] = {name: [] for name in trees}
    rates: dict[str, list[float]] = {name: [] for name in trees}
    settings = {"SERVE__WORKERS": "1", "TRAINING__TRIALS": "1", "SCHEDULE__CHECK_INTERVAL_S": "3600"}
    for name, tree in trees.items():  # trained once
        home = work / f"home-{name}"
        home.mkdir()
        server = Former(home, tree, **settings)
        try:
            server.start().wait_ready(300)
        finally:
            server.end()
    for repeat in range(repeats):
        for name in trees if repeat % 2 == 0 else reversed(list(trees)):
            server = Former(work / f"home-{name}", trees[name], **settings)
            began = time.monotonic()
            try:
                with processes.pinned(core):
                    server.start()
                server.wait_ready(120)
                starts[name].append(time.monotonic() - began)
                artefact = served_artefact(server)
                schema = FeatureSchema.from_json((artefact / "schema.json").read_bytes())
                records = question(load_pipeline(artefact), schema, SEED).records
                target = Target(server.port, "/predict", tuple(records_body([record]) for record in records))
                generator.run(closed_loop, target, SINGLE_CLIENTS, 1.0)
                rates[name].append(generator.run(closed_loop, target, SINGLE_CLIENTS, seconds).requests_per_second)
                workers = server.children("PredictionService")
                resident[name].append(max(worker.memory_info().rss for worker in workers) / 2**20)
            finally:
                server.end()
    return {
        "requests_per_second": {name: Spread.of(found) for name, found in rates.items()},
        "ratio": Spread.of(a / b for a, b in zip(rates["here"], rates["before"], strict=True)),
        "resident_mb": {name: Spread.of(found) for name, found in resident.items()},
        "start_s": {name: Spread.of(found) for name, found in starts.items()},
    }


# -- the run -------------------------------------------------------------------------------------------------------

PARTS: Final = ("peers", "single")


def run(
    *,
    cache: Path,
    only: Sequence[str] = PARTS,
    peers: Sequence[str] = (),
    before: Path | None = None,
    seconds: float = 2.5,
    repeats: int = 5,
    seed: int = SEED,
    json_to: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Measure and print; the lines that do not hold."""
    machine = report.machine()
    server_core, load_core = processes.cores()
    cache.mkdir(parents=True, exist_ok=True)
    left_out: dict[str, str] = {}
    result: dict[str, Any] = {"benchmark": "batch", "machine": machine, "seed": seed, "seconds": seconds}
    lines: list[tuple[str, bool]] = []
    ways: list[Way] = []
    with contextlib.ExitStack() as stack:
        generator = stack.enter_context(Generator(load_core))
        second = stack.enter_context(Generator(load_core, BATCH_CLIENTS_NICE))
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)))
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
        check(evergreen, asked)
        result["model"] = (
            f"{type(pipeline[-1]).__name__} of {pipeline[-1].n_iter_} trees on {len(schema.names)} features"
        )
        models = {"artefact": str(artefact)}
        for name, model in (("pipeline", pipeline), ("estimator", pipeline[-1])):
            models[name] = str(work / f"{name}.joblib")
            joblib.dump(model, models[name])
        matrix = np.asarray(pipeline[:-1].transform(schema.frame(asked.records)), np.float32)

        def offer(way: Callable[[], Way], name: str) -> None:
            try:
                made = way()
                proven(made, asked.expected)
                ways.append(made)
            except CannotMeasure as problem:
                left_out[name] = str(problem)
                say(f"{name}: {problem}")

        if "peers" in only:
            offer(lambda: json_way(evergreen, asked.records), "evergreen, JSON")
            offer(lambda: tensors(evergreen, asked.records, schema), "evergreen, V2 binary")
            offer(lambda: arrow(evergreen, asked.records, schema), "evergreen, Arrow")
            offer(lambda: csv(evergreen, asked.records), "evergreen, CSV")
            evergreen.family.pause()
            for peer in (peer for peer in (*PEERS, *NUMPY_PEERS) if not peers or peer.name in peers):
                try:
                    say(f"{peer.name}: starts")
                    server = start_peer(peer, models[peer.serves], cache, work, server_core)
                except CannotMeasure as problem:
                    left_out[peer.name] = str(problem)
                    say(f"{peer.name}: {problem}")
                    continue
                stack.callback(server.family.end)
                if peer.name == "mlserver-numpy":
                    offer(lambda server=server: matrix_tensor(server, matrix), peer.name)  # type: ignore[misc]
                elif peer.name == "bentoml-numpy":
                    offer(lambda server=server: matrix_file(server, matrix), peer.name)  # type: ignore[misc]
                else:
                    offer(lambda server=server: json_way(server, asked.records), peer.name)  # type: ignore[misc]
                server.family.pause()
            for progress in measure(ways, generator, seconds, repeats):
                say(progress)
            lines += _of_peers(ways, result)
        evergreen.family.pause()
        if "single" in only:
            found = single_beside_batches(evergreen, asked.records, generator, second, max(seconds, 5.0), repeats, say)
            result["single"] = found
            lines += _of_single(found, say)
        evergreen.family.end()
        if before is not None:
            compared = as_before(before, work, generator, seconds, repeats)
            result["before"] = compared
            lines += _of_before(compared, say)
    result |= {"ways": [_told(way) for way in ways], "not_measured": left_out, "does_not_show": DOES_NOT_SHOW}
    result["lines"] = [{"line": text, "holds": holds} for text, holds in lines]
    report.write_json(json_to, result)
    say(f"\nMeasured {report.machine_text(machine)}; {result['model']}; seed {seed}; {repeats} repeats.\n")
    if ways:
        order = sorted(ways, key=lambda way: -statistics.median(way.rows_per_second()))
        head = (f"{ROWS:,} rows x {CLIENTS} clients", "body, kB", "rows/s", "p99 ms", "CPU µs a request", "failed")
        say(report.table(head, [_row(way) for way in order]))
    for name, reason in left_out.items():
        say(f"- Not measured: {name}: {reason}")
    for text, holds in lines:
        say(f"{'holds' if holds else 'DOES NOT HOLD'}: {text}")
    say("\nWhat this does not show.\n" + "\n".join(f"- {line}" for line in DOES_NOT_SHOW))
    return [text for text, holds in lines if not holds]


def _of_peers(ways: Sequence[Way], result: dict[str, Any]) -> list[tuple[str, bool]]:
    by_name = {way.name: way for way in ways}
    peers = [way for way in ways if way.server.name not in (EVERGREEN, FLOOR)]
    lines = []

    def against(ours: str, theirs: Way | None, asked: float, what: str) -> None:
        mine = by_name.get(f"{EVERGREEN}, {ours}")
        if mine is None or theirs is None:
            lines.append((f"{what}: not measured", False))
            return
        pairs = zip(mine.rows_per_second(), theirs.rows_per_second(), strict=True)
        ratio = Spread.of(a / b for a, b in pairs)
        result.setdefault("ratios", {})[what] = ratio.json()
        lines.append((f"{what} ({theirs.name}): {ratio.text(' x')}, at least {asked:g}", ratio.median >= asked))

    def best(of: Sequence[Way]) -> Way | None:
        return max(of, key=lambda way: statistics.median(way.rows_per_second()), default=None)

    against("JSON", best([way for way in peers if way.encoding == "JSON"]), FASTER_JSON, "JSON ÷ the best peer's JSON")
    against("JSON", by_name.get(f"{FLOOR}, JSON"), ABOVE_FLOOR, "JSON ÷ the floor")
    against("Arrow", best(peers), FASTER_ARROW, "Arrow ÷ the best peer's best encoding")
    failed = sum(m.failed for way in ways if way.server.name == EVERGREEN for m in way.measured)
    lines.append((f"{failed} requests to Evergreen failed", failed == 0))
    return lines


def _of_single(found: dict[str, Any], say: Callable[[str], None]) -> list[tuple[str, bool]]:
    p50, p99 = found["p50_ms"], found["p99_ms"]
    head = (f"single rows, {found['rate']:,.0f} a second", "p50 ms", "p99 ms")
    say(report.table(head, [(name, p50[name].text(), p99[name].text()) for name in p99]))
    say(f"meanwhile {found['batch_rows_per_second'].text()} rows/s in batches")
    return [
        (f"p99 of single rows beside batches: {found['ratio'].text(' x')}, at most {SLOWER_BESIDE:g}",
         found["ratio"].median <= SLOWER_BESIDE),
        (f"{found['failed']} of {found['requests']:,} requests failed", found["failed"] == 0),
    ]  # fmt: skip


def _of_before(found: dict[str, Any], say: Callable[[str], None]) -> list[tuple[str, bool]]:
    rates, resident, starts = found["requests_per_second"], found["resident_mb"], found["start_s"]
    head = (f"1 row x {SINGLE_CLIENTS} clients", "requests/s", "a worker's memory, MB", "start, s")
    say(report.table(head, [(name, rates[name].text(), resident[name].text(), starts[name].text()) for name in rates]))
    more = resident["here"].median - resident["before"].median
    slower = starts["here"].median / starts["before"].median
    return [
        (f"single rows, now ÷ before: {found['ratio'].text(' x')}, at least {AS_BEFORE:g}",
         found["ratio"].median >= AS_BEFORE),
        (f"a worker has {more:+.1f} MB, at most +{MORE_MB:g}", more <= MORE_MB),
        (f"a start takes {slower:.2f} x, at most {SLOWER_START:g}", slower <= SLOWER_START),
    ]  # fmt: skip


def _row(way: Way) -> tuple[str, ...]:
    failed, requests = sum(m.failed for m in way.measured), sum(m.requests for m in way.measured)
    cpu = Spread.of(cpu_s / m.good * 1e6 for cpu_s, m in zip(way.cpu_s, way.measured, strict=True) if m.good)
    return (
        way.name,
        f"{len(way.target.bodies[0]) / 1000:,.0f}",
        Spread.of(way.rows_per_second()).text(),
        Spread.of(m.percentile(0.99) for m in way.measured).text(),
        report.number(cpu.median),
        f"{failed:,} of {requests:,}",
    )


def _told(way: Way) -> dict[str, Any]:
    return {
        "name": way.name,
        "configuration": way.server.configuration,
        "rows_per_second": Spread.of(way.rows_per_second()).json(),
        "requests": sum(m.requests for m in way.measured),
        "failures": [m.failures for m in way.measured],
        "body_bytes": len(way.target.bodies[0]),
    }


def main() -> int:
    """1 with `--check` when a line does not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.batch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "evergreen-peers", metavar="FOLDER")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--peers", default="", metavar="NAME,…", help="only these (default: all)")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="a checkout of an earlier Evergreen")
    parser.add_argument("--seconds", type=float, default=2.5, help="of one measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--check", action="store_true", help="exit 1 when a line does not hold")
    given = parser.parse_args()
    only = [name for name in given.only.split(",") if name]
    if unknown := set(only) - set(PARTS):
        parser.error(f"--only: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    missing = run(
        cache=given.cache,
        only=only,
        peers=[name for name in given.peers.split(",") if name],
        before=given.before,
        seconds=given.seconds,
        repeats=given.repeats,
        seed=given.seed,
        json_to=given.json,
        say=lambda line: print(line, flush=True),
    )
    return int(given.check and bool(missing))


if __name__ == "__main__":
    sys.exit(main())
