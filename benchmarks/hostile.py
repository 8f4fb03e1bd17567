"""Hostile clients beside a well-behaved one: does it notice, does the server grow, does the loop go on?

    python -m benchmarks.hostile --json hostile.json
    python -m benchmarks.hostile --quick --only bodies --only mutated

One real `evergreen serve` with two workers. Beside each attack (`attacks.py`) a client asks for 200 predictions a
second on an open loop: each latency counts from the moment the request was due. Afterwards a prediction and a check
have to succeed, and after the last attack a training. A server that an attack has broken is replaced.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import psutil  # type: ignore[import-untyped]
from evergreen_client import EvergreenClientError
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import report
from benchmarks.attacks import ATTACKS, Told, attack, be_patient, valid_bodies
from benchmarks.attacks import Target as Victim
from benchmarks.load import Generator, Measured, Target, open_loop
from benchmarks.peers import records_body
from benchmarks.processes import Family
from service import sample
from service.command.traffic import replay_traffic
from service.keys import known_token
from tests.real_server import Server, wait_until

SEED: Final = 1
RATE: Final = 200.0
CLIENTS: Final = 16
SLICE_S: Final = 3.0
"""The good client comes with new connections this often: new ones have to be taken, too."""
WARM_ROWS: Final = 4_000
SAMPLE_S: Final = 0.2
CHECK_S: Final = 60.0
"""How long a check may take to come after an attack; one is due every 2 s."""
TRAINING_S: Final = 300.0

LARGEST_LATENCY_S: Final = 0.3
LARGEST_GROWTH_MB: Final = 64.0

DATATYPES: Final = {"numeric": "FP64", "boolean": "BOOL", "categorical": "BYTES", "datetime": "BYTES"}

DOES_NOT_SHOW: Final = (
    "A network: attackers, good client and server share two cores and one loopback address, and the attackers run at "
    "nice 5, because what they compute themselves is not the server's to bear.",
    "More attackers than one, or several attacks at once; a flood of valid requests, which is load and not malice.",
    "Memory between two looks (every 0.2 s), and a slow leak: growth is over one attack.",
    "PostgreSQL: the store is SQLite.",
)


@dataclass(slots=True)
class Line:
    """What happened beside one attack."""

    name: str
    seconds: float = 0.0
    sent: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    growth_mb: dict[str, float] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    told: Told = field(default_factory=Told)
    tracebacks: int = 0
    wrong: list[str] = field(default_factory=list)
    """What does not work afterwards."""

    def broken(self) -> list[str]:
        """The bounds that do not hold."""
        worst_s = max(self.latencies_ms, default=0.0) / 1e3
        found = {
            f"{self.failures.total()} good requests failed": self.failures.total() > 0,
            f"latency {worst_s:.2f} s": worst_s > LARGEST_LATENCY_S,
            f"{self.told.errors()} answers 5xx": self.told.errors() > 0,
            f"{self.tracebacks} tracebacks": self.tracebacks > 0,
            **{f"{role} +{mb:.0f} MB": mb > LARGEST_GROWTH_MB for role, mb in self.growth_mb.items()},
            **{f"{role} ended": True for role in self.ended},
            **dict.fromkeys(self.wrong, True),
        }
        return [what for what, is_so in found.items() if is_so]

    def cells(self) -> Sequence[str]:
        answers = ", ".join(f"{status} {count:,}" for status, count in sorted(self.told.answers.items())) or "-"
        return (
            f"{list(ATTACKS).index(self.name)} {self.name}",
            f"{self.seconds:.0f}" + (" (cut short)" if self.told.cut_short else ""),
            f"{self.sent:,}",
            f"{self.failures.total():,}",
            report.number(max(self.latencies_ms, default=float("nan"))),
            *(f"{self.growth_mb.get(role, float('nan')):.0f}" for role in ("worker", "controller")),
            f"{self.told.errors():,}",
            f"{self.told.answers['503']:,}",
            f"{self.tracebacks:,}",
            answers,
            "; ".join(self.broken()) or "all well",
        )

    def json(self) -> dict[str, Any]:
        ordered = sorted(self.latencies_ms)
        return {
            "name": self.name,
            "seconds": self.seconds,
            "sent": self.sent,
            "failures": self.failures,
            "p99_ms": Measured(len(ordered), 1.0, ordered).percentile(0.99),
            "worst_ms": max(ordered, default=None),
            "growth_mb": self.growth_mb,
            "ended": self.ended,
            "attacker": {
                "answers": self.told.answers,
                "sent_bytes": self.told.sent_bytes,
                "connections": self.told.connections,
                "cut_short": self.told.cut_short,
                "examples": self.told.examples,
            },
            "tracebacks": self.tracebacks,
            "broken": self.broken(),
        }


HEAD: Final = (
    "attack", "s", "good sent", "failed", "worst, ms", "worker, MB", "controller, MB", "5xx", "503", "tracebacks",
    "the attacker was told", "afterwards",
)  # fmt: skip


class Watch(threading.Thread):
    """The memory of a server's processes while this runs, and which of them ended."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._processes = [
            (role, process)
            for role, service in (("worker", "PredictionService"), ("controller", "Controller"))
            for process in server.children(service)
        ]
        self._before = {process.pid: process.memory_info().rss for _, process in self._processes}
        self._peak = dict(self._before)
        self._ended: set[int] = set()
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(SAMPLE_S):
            for _, process in self._processes:
                try:
                    self._peak[process.pid] = max(self._peak[process.pid], process.memory_info().rss)
                except psutil.NoSuchProcess:
                    self._ended.add(process.pid)

    def done(self) -> tuple[dict[str, float], list[str]]:
        """(role -> MB that its largest process grew by, the roles of those that ended)."""
        self._over.set()
        self.join()
        grown: dict[str, float] = {}
        for role, process in self._processes:
            mb = (self._peak[process.pid] - self._before[process.pid]) / 2**20
            grown[role] = max(grown.get(role, 0.0), mb)
        return grown, [role for role, process in self._processes if process.pid in self._ended]


def last_check(server: Server) -> float:
    """When a check last ended well, as /metrics tells it; 0: never."""
    text = httpx.get(f"{server.url}/metrics", timeout=10).text
    return max(
        (
            one.value
            for family in text_string_to_metric_families(text)
            for one in family.samples
            if one.name == "evergreen_last_success_timestamp_seconds"
            and one.labels.get("work") == "check"
            and one.value == one.value
        ),
        default=0.0,
    )


def checked(server: Server, after: float) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return last_check(server) > after
    return False


def state_afterwards(server: Server, record: dict[str, Any]) -> list[str]:
    """What does not work: a prediction, a check."""
    wrong = []
    try:
        with server.client() as client:
            client.predict([record])
    except EvergreenClientError as error:
        wrong.append(f"no prediction ({str(error)[:80]})")
    try:
        now = time.time()
        wait_until("a check", lambda: checked(server, now), CHECK_S)
    except AssertionError:
        wrong.append(f"no check in {CHECK_S:.0f} s")
    return wrong


def training_afterwards(server: Server) -> list[str]:
    """What is wrong with a training that is asked for now."""
    try:
        with server.client() as client:
            run = client.wait(client.retrain("after the attacks"), timeout_s=TRAINING_S)
    except EvergreenClientError as error:
        return [f"no training ({str(error)[:80]})"]
    return [] if run["state"] == "done" else [f"training {run['state']}"]


def begin(server: Server, seed: int) -> None:
    """A server that has done everything once: predictions, labels, a check, the pages that are made when asked for."""
    server.start().wait_ready(180)
    frame = sample.frame(WARM_ROWS, start=sample.TRAINING_ROWS, seed=seed)
    sent = replay_traffic(server.url, frame, target=sample.TARGET, rate=0.0, label_delay_s=0.0)
    assert not sent.rows_failed, sent.reasons
    token = {"authorization": f"Bearer {known_token(server.settings)}"}
    for _ in range(20):  # each on a connection of its own, so that both workers are asked
        for path in ("/docs.json", "/v2", "/schema", "/manage/openapi.json", "/manage/status", "/manage/drift"):
            httpx.get(server.url + path, headers=token, timeout=30).raise_for_status()
    for _ in range(2):
        now = time.time()
        wait_until("a check", lambda now=now: checked(server, now), CHECK_S)


def beside(
    server: Server, good: Target, generator: Generator, attacking: Callable[[], Future[Told]], name: str
) -> Line:
    """The good client from before this attack until some seconds after it."""
    line = Line(name)
    log_before = server.log_path.stat().st_size
    watch = Watch(server)
    watch.start()
    began = time.monotonic()
    future = attacking()
    over = False
    while not over:
        over = future.done()  # one more round when it is
        line.sent += int(RATE * SLICE_S)
        try:
            found = generator.run(open_loop, good, CLIENTS, SLICE_S, rate=RATE)
        except OSError as error:  # it had no connection, and got no new one
            line.failures[f"no connection: {error}"] += int(RATE * SLICE_S)
            continue
        line.latencies_ms += found.latencies_ms
        line.failures.update(found.failures)
        if future.done() and not line.seconds:
            line.seconds = time.monotonic() - began
    line.told = future.result()
    line.growth_mb, line.ended = watch.done()
    with server.log_path.open("rb") as log:
        log.seek(log_before)
        line.tracebacks = log.read().count(b"Traceback (most recent call last)")
    return line


def run(
    *,
    only: Sequence[str] = (),
    scale: float = 1.0,
    seed: int = SEED,
    json_to: Path | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Measure and print; 1 when a bound does not hold beside one of the attacks."""
    machine, family = report.machine(), Family()
    names = [name for name in ATTACKS if not only or name in only]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for 10,000 connections, here and in the server
    lines: list[Line] = []
    with (
        tempfile.TemporaryDirectory(prefix="evergreen-", ignore_cleanup_errors=True) as folder,
        Generator() as generator,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=be_patient) as attackers,
    ):
        server = Server(
            Path(folder),
            environ=family.environ,
            SERVE__WORKERS="2",
            TRAINING__TRIALS="1",
            SCHEDULE__CHECK_INTERVAL_S="2",
        )
        try:
            say("evergreen starts and trains its first version")
            begin(server, seed)
            with server.client() as client:
                features = client.schema()["properties"]
            rows = sample.frame(200, start=50_000, seed=seed)[list(features)].dropna()
            records: list[dict[str, Any]] = [
                {name: bool(row[name]) if _kind(features[name]) == "boolean" else row[name] for name in features}
                for row in rows.astype(object).to_dict("records")
            ]
            good = Target(server.port, "/predict", tuple(records_body([record]) for record in records))
            kinds = {name: DATATYPES[_kind(features[name])] for name in features}
            victim = Victim(
                server.port,
                known_token(server.settings),
                server.settings.model.name,
                *valid_bodies(records[0], kinds),
                body_bytes=server.settings.serve.max_request_bytes,
            )
            for path, body in (
                ("/predict", victim.predict),
                ("/feedback", victim.feedback),
                (victim.infer_path, victim.infer),
            ):  # mutations of what was never valid would show little
                httpx.post(
                    server.url + path, content=body, headers={"content-type": "application/json"}
                ).raise_for_status()
            for name in names:
                line = beside(
                    server,
                    good,
                    generator,
                    lambda name=name: attackers.submit(attack, name, victim, scale, seed),
                    name,
                )
                line.wrong = state_afterwards(server, records[0])
                if name == names[-1]:
                    line.wrong += training_afterwards(server)
                lines.append(line)
                say(f"{name}: {'; '.join(line.broken()) or 'all well'}")
                for example in line.told.examples[:3]:
                    say(f"    {example[:300]}")
                if (line.wrong or line.ended) and name != names[-1]:
                    say("the server is started again")
                    family.end()
                    begin(server, seed)
        finally:
            family.end()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    failed = [line.name for line in lines if line.broken()]
    report.write_json(
        json_to,
        {
            "benchmark": "hostile",
            "machine": machine,
            "seed": seed,
            "scale": scale,
            "rate": RATE,
            "open_files": hard,
            "bounds": {"latency_s": LARGEST_LATENCY_S, "growth_mb": LARGEST_GROWTH_MB},
            "lines": [line.json() for line in lines],
            "failed": failed,
            "does_not_show": DOES_NOT_SHOW,
        },
    )
    say("")
    say(f"Measured {report.machine_text(machine)}.\n")
    say(
        f"2 workers, a good client at {RATE:g} requests/s on {CLIENTS} connections, attacks at {scale:g} of their "
        f"size, {hard:,} open files a process, seed {seed}, one run each; growth is of the process that grew most. "
        f"Bounds: 0 failed, {LARGEST_LATENCY_S * 1e3:g} ms, {LARGEST_GROWTH_MB:g} MB, 0 5xx but 503, 0 tracebacks.\n"
    )
    say(report.table(HEAD, [line.cells() for line in lines]))
    if failed:
        say(f"\nA bound does not hold: {', '.join(failed)}.")
    say("\nWhat this does not show.\n" + "\n".join(f"- {line}" for line in DOES_NOT_SHOW))
    return 1 if failed else 0


def _kind(feature: dict[str, Any]) -> str:
    return str(feature["x-evergreen"]["kind"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", default=[], choices=list(ATTACKS), help="can be given again")
    parser.add_argument("--quick", action="store_true", help="a tenth of each attack")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    return run(
        only=given.only,
        scale=0.1 if given.quick else 1.0,
        seed=given.seed,
        json_to=given.json,
        say=lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    sys.exit(main())
