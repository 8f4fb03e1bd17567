"""What does a request cost between socket and answer, and how much more with what may stand in it?

`python -m benchmarks.lane [--beside FOLDER] [--trace-to URL]`

The short way (`service/serving/wire.py`) in one process, fed by a transport that only counts: no network, no load
generator, the record is written. Each kind of request takes its turn in each round; the numbers are processor time, and
the ratio is the median of those within a round. `--beside` names another checkout of Evergreen, which takes its turns
in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

KINDS: Final = {
    "plain": b"",
    "with a request id": b"x-request-id: 0123456789abcdef\r\n",
    "with a traceparent": b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00\r\n",
    "sampled": b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n",
}
DOES_NOT_SHOW: Final = (
    "The kernel's part: some 10 µs a request on a loopback socket, the same for all kinds.",
    "What the drain pays later.",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lane", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="another checkout, to be compared with")
    parser.add_argument("--clients", type=int, default=1, metavar="N", help="requests in one turn of the event loop")
    parser.add_argument("--rounds", type=int, default=40, metavar="N")
    parser.add_argument("--requests", type=int, default=2_000, metavar="N", help="of each kind in a round")
    parser.add_argument(
        "--trace-to", default="", metavar="URL", help="spans of sampled requests go to this collector; without it: none"
    )
    parser.add_argument("--turns", action="store_true", help=argparse.SUPPRESS)  # the measured process itself
    given = parser.parse_args()
    if given.turns:
        with tempfile.TemporaryDirectory(prefix="evergreen-lane-") as home:
            asyncio.run(_take_turns(Path(home), given.clients, given.requests))
        return 0

    from benchmarks import report

    print(report.machine_text(report.machine()))
    print(f"{given.rounds} rounds of {given.requests:,} requests of a kind, {given.clients} in one turn\n")
    trees = {"here": Path(__file__).resolve().parents[1]}
    if given.beside:
        trees["beside"] = given.beside.resolve()
    found = _measured(trees, given)
    base, rows = found[("beside" if given.beside else "here", "plain")], []
    for (tree, kind), all_us in found.items():
        ratio = statistics.median(one / other for one, other in zip(all_us, base, strict=True))
        rows.append((tree, kind, f"{statistics.median(all_us):.2f}", f"{min(all_us):.2f}", f"{ratio:.3f}"))
    print(report.table(("checkout", "request", "µs, median", "least", "ratio"), rows))
    print()
    for line in DOES_NOT_SHOW:
        print(f"does not show: {line}")
    return 0


def _measured(trees: dict[str, Path], given: argparse.Namespace) -> dict[tuple[str, str], list[float]]:
    """Microseconds a request in each round, by checkout and kind."""
    passed = ["--turns", "--clients", str(given.clients), "--requests", str(given.requests)]
    children = {}
    for name, tree in trees.items():
        env = (
            os.environ
            | {"PYTHONPATH": str(tree)}
            | ({"EVERGREEN_TRACE__ENDPOINT": given.trace_to} if given.trace_to else {})
        )
        children[name] = subprocess.Popen(
            [sys.executable, __file__, *passed],
            env=env,
            cwd=tree,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    found: dict[tuple[str, str], list[float]] = {}
    try:
        for turn in range(given.rounds + 2):
            for name, child in children.items():
                for kind in KINDS:
                    assert child.stdin is not None and child.stdout is not None
                    print(kind, file=child.stdin, flush=True)
                    us = float(child.stdout.readline())
                    if turn >= 2:  # the first ones are slow everywhere
                        found.setdefault((name, kind), []).append(us)
    finally:
        for child in children.values():
            assert child.stdin is not None
            child.stdin.close()
            child.wait()
    return found


async def _take_turns(home: Path, clients: int, requests: int) -> None:
    """Answer so many requests for each line on stdin, of the kind that it names; print what each of them took."""
    import json

    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from service.configuration import load
    from service.handover import Live, LiveVersion, write_live
    from service.serving.front import Front
    from service.serving.wire import LaneProtocol
    from service.serving.worker import Worker
    from tests.artefacts import example_record, make_artefact

    make_artefact(home / "1")
    settings = load(
        environ={name: value for name, value in os.environ.items() if name.startswith("EVERGREEN_")}
        | {"EVERGREEN_HOME": str(home), "EVERGREEN_SERVE__WORKERS": "1"}
    )
    write_live(settings.live_file, Live(model="evergreen", champion=LiveVersion(1, str(home / "1"))))
    worker = Worker(settings, home / "run", "api-1")
    worker.start()
    LaneProtocol.front = front = Front(_nowhere, lambda: worker)
    config, state = Config(front, http=LaneProtocol, ws="none", lifespan="off", log_config=None), ServerState()
    config.load()
    state.default_headers = [(b"date", b"Fri, 27 Nov 2026 06:00:00 GMT")]
    body = json.dumps({"records": [example_record()]}).encode()
    ends: list[tuple[LaneProtocol, Counting]] = []
    for _ in range(clients):
        protocol = LaneProtocol(config=config, server_state=state, app_state={}, _loop=asyncio.get_running_loop())
        transport = Counting()
        protocol.connection_made(transport)  # type: ignore[arg-type]
        ends.append((protocol, transport))
    for line in sys.stdin:
        head = b"POST /predict HTTP/1.1\r\nhost: 127.0.0.1:3000\r\nuser-agent: python-httpx/0.28\r\naccept: */*\r\n"
        head += b"content-type: application/json\r\n%bcontent-length: %d\r\n\r\n" % (KINDS[line.strip()], len(body))
        request, before = head + body, sum(one.written for _, one in ends)
        began = time.process_time()
        for _ in range(requests // clients):
            for protocol, _ in ends:
                protocol.data_received(request)
            await asyncio.sleep(0)
        took = time.process_time() - began
        answered = sum(one.written for _, one in ends) - before
        assert answered == requests // clients * clients, f"{answered} answers"
        print(took / answered * 1e6, flush=True)
    worker.close()


class Counting:
    """A transport that takes everything at once and counts the answers of status 200."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, data: bytes) -> None:
        self.written += data.startswith(b"HTTP/1.1 200")

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 4000), "sockname": ("127.0.0.1", 3000)}.get(name, default)

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """There is nothing to close."""

    abort = close


async def _nowhere(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("only the short way is measured")


if __name__ == "__main__":
    sys.exit(main())
