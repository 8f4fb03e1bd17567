"""A file of many rows scored by `evergreen predict`: rows a second, memory by quarter, killed twice and gone on.

    python -m benchmarks.scoring --rows 10000000 --json scoring.json

A real server with one worker, everything recorded. The file is scored once undisturbed. Then it is scored once more:
`evergreen predict` is killed with SIGKILL at a third and at two thirds of its rows and begun again, and the whole
server is killed at half and started again. The two outputs must be equal byte for byte. Exit code 1 when they are not,
or when a row is missing, twice, or under a second id in the record.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import sqlalchemy as sa

from benchmarks import report
from monitoring.store import predictions
from service import sample
from tests.real_server import ROOT, Server, wait_until

SEED: Final = 1
CHUNK_ROWS: Final = 100_000
RUN: Final = "benchmark"

DOES_NOT_SHOW: Final = (
    "A server on another host: here it shares the cores with the sender.",
    "Several workers: one worker answers.",
    "An adaptation that changes on the way: the answers would rightly differ between two runs.",
)


def write_rows(path: Path, rows: int) -> None:
    """A Parquet file of the sample's rows, written in pieces; a piece recurs after 1,000,000 rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    for start in range(0, rows, CHUNK_ROWS):
        many = min(CHUNK_ROWS, rows - start)
        frame = sample.frame(many, start=sample.TRAINING_ROWS + start % 1_000_000, seed=SEED)
        table = pa.Table.from_pandas(frame, preserve_index=False)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def command(server: Server, file: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    """`evergreen predict`, a process of its own."""
    arguments = [str(file), "--out", str(out), "--url", server.url, "--run", RUN, "--json", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "service.command.cli", "predict", *arguments],
        cwd=ROOT,
        env=server.env,
        stdout=subprocess.PIPE,
    )


@contextmanager
def watched(process: subprocess.Popen[bytes]) -> Iterator[list[tuple[float, float]]]:
    """(Seconds, resident MB) of the process, every fifth of a second."""
    seen: list[tuple[float, float]] = []
    began = time.monotonic()

    def watch() -> None:
        known = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                seen.append((time.monotonic() - began, known.memory_info().rss / 2**20))
            except psutil.NoSuchProcess:
                return
            time.sleep(0.2)

    thread = threading.Thread(target=watch)
    thread.start()
    yield seen
    thread.join()


def peaks(seen: list[tuple[float, float]]) -> list[float]:
    """The largest resident memory, MB, in each quarter of the time."""
    end = seen[-1][0]
    return [
        round(max((mb for at, mb in seen if end * part / 4 <= at <= end * (part + 1) / 4), default=0.0), 1)
        for part in range(4)
    ]


def rows_done(out: Path) -> int:
    """What the journal says."""
    try:
        return int(json.loads(out.with_name(out.name + ".progress").read_bytes())["rows"])
    except FileNotFoundError:
        return 0


def digest(path: Path) -> str:
    with path.open("rb") as file:
        found = sha256()
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def reach(process: subprocess.Popen[bytes], out: Path, rows: int) -> int:
    """The rows that are done once they are so many or more, and the process goes on."""
    wait_until(f"{rows:,} rows", lambda: rows_done(out) >= rows or process.poll() is not None, 86_400)
    if process.poll() is not None:
        raise SystemExit(f"it ended with {process.returncode} before it was disturbed: give more --rows")
    return rows_done(out)


def disturbed(server: Server, file: Path, out: Path, rows: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Killed at a third and at two thirds, the server killed and started again at half: where, and how it ended."""
    at: dict[str, int] = {}
    process = command(server, file, out)
    try:
        at["sender killed"] = reach(process, out, rows // 3)
        process.kill()
        process.wait()
        process = command(server, file, out)
        at["server killed"] = reach(process, out, rows // 2)
        assert server.process is not None
        for each in (server.process, *server.children()):
            each.kill()
        server.end()
        server.start().wait_ready()
        at["sender killed again"] = reach(process, out, rows * 2 // 3)
        process.kill()
        process.wait()
        say(f"rows in the journal as it was disturbed: {at}")
        process = command(server, file, out)
        said, _ = process.communicate()
    finally:
        process.kill()
        process.wait()
    return {"at_rows": at, "last": json.loads(said)}


def drained(server: Server, seconds: float = 7200.0) -> None:
    """Wait until nothing is left in the spool: the controller says so, some seconds on end."""
    quiet, deadline = 0, time.monotonic() + seconds
    while quiet < 5 and time.monotonic() < deadline:
        time.sleep(2)
        page = httpx.get(f"{server.url}/metrics", timeout=30).text
        (left,) = (line.split()[-1] for line in page.splitlines() if line.startswith("evergreen_log_spool_bytes"))
        quiet = quiet + 1 if float(left) == 0 else 0


def recorded(server: Server) -> dict[str, int]:
    """Rows and different ids in the store: both runs have the same ids, rows under way at a kill stand there again."""
    engine = sa.create_engine(server.settings.store_url)
    try:
        with engine.connect() as connection:
            rows, ids = connection.execute(
                sa.select(sa.func.count(), sa.func.count(sa.distinct(predictions.c.id)))
            ).one()
    finally:
        engine.dispose()
    return {"rows": rows, "ids": ids}


def run(*, rows: int, suffix: str, json_to: Path | None, say: Callable[[str], None] = print) -> int:
    """Measure, tell, and give 1 when the outputs differ or the record has not exactly the rows of the file."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir()
        file = Path(folder) / "rows.parquet"
        write_rows(file, rows)
        say(f"{rows:,} rows in {file.stat().st_size / 2**20:.0f} MB")
        server = Server(home, SERVE__WORKERS="1", SCHEDULE__CHECK_INTERVAL_S="86400")
        try:
            server.start().wait_ready()
            load = os.getloadavg()[0]
            calm, rough = Path(folder) / f"calm{suffix}", Path(folder) / f"rough{suffix}"
            process = command(server, file, calm)
            with watched(process) as seen:
                said = process.communicate()[0]
            undisturbed = json.loads(said)
            say(f"undisturbed: {undisturbed['rows_per_second']:,.0f} rows/s, peak MB by quarter {peaks(seen)}")
            drained(server)  # else the second run would wait for the rows of the first
            broken = disturbed(server, file, rough, rows, say)
            drained(server)
            result = {
                "benchmark": "scoring",
                "machine": report.machine(),
                "load_before": round(load, 2),
                "rows": rows,
                "output": suffix,
                "undisturbed": undisturbed,
                "peak_mb_by_quarter": peaks(seen),
                "disturbed": broken,
                "equal": digest(calm) == digest(rough),
                "record": recorded(server),
                "does_not_show": DOES_NOT_SHOW,
            }
        finally:
            server.end()
    report.write_json(json_to, result)
    say(json.dumps(result, indent=2))
    answered = undisturbed["rows"] == broken["last"]["rows"] == result["record"]["ids"] == rows
    return 0 if result["equal"] and answered else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--out", choices=[".csv", ".parquet"], default=".parquet", help="what is written")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    return run(rows=given.rows, suffix=given.out, json_to=given.json)


if __name__ == "__main__":
    raise SystemExit(main())
