"""What does a batch cost in JSON, Arrow, CSV and NDJSON, from the body to the answer and its record?

`python -m benchmarks.bodies [--rounds N]`

One process, no network: the door, the model, the answer in the kind of the body, one write to the record. The kinds
take turns in each round; the numbers are processor time a row, and the ratio is the median of those within a round.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks import report

ROWS: Final = (1, 100, 1_000, 10_000)
ROWS_A_TURN: Final = 20_000
DOES_NOT_SHOW: Final = (
    "The network, and what making the body and reading the answer costs a client.",
    "What the drain pays later: of a batch in Arrow it makes the rows, some 2 µs each.",
    "Other models: the compiled trees answer 100 trees of 31 leaves here.",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bodies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    given = parser.parse_args()
    print(report.machine_text(report.machine()))
    print(f"{given.rounds} rounds of {ROWS_A_TURN:,} rows of a kind (of 1 row: {ROWS_A_TURN // 20:,})\n")
    with tempfile.TemporaryDirectory(prefix="evergreen-bodies-") as home:
        found = asyncio.run(_measured(Path(home), given.rounds))
    rows = []
    for (count, kind), all_us in found.items():
        base = found[count, "JSON"]
        ratio = statistics.median(other / one for one, other in zip(all_us, base, strict=True))
        rows.append((f"{count:,}", kind, f"{statistics.median(all_us):.2f}", f"{min(all_us):.2f}", f"{ratio:.2f}"))
    print(report.table(("rows", "body", "µs a row, median", "least", "times as fast as JSON"), rows))
    print()
    for line in DOES_NOT_SHOW:
        print(f"does not show: {line}")
    return 0


async def _measured(home: Path, rounds: int) -> dict[tuple[int, str], list[float]]:
    """Microseconds of processor time a row in each round, by rows and kind."""
    from service.configuration import load
    from service.handover import Live, LiveVersion, write_live
    from service.serving.front import Front
    from service.serving.worker import Worker
    from tests.artefacts import make_artefact, sample_schema

    make_artefact(home / "1", rows=3_000, iterations=100)
    settings = load(environ={"EVERGREEN_HOME": str(home), "EVERGREEN_SERVE__WORKERS": "1"})
    write_live(settings.live_file, Live(model="evergreen", champion=LiveVersion(1, str(home / "1"))))
    worker = Worker(settings, home / "run", "api-1")
    worker.start()
    front = Front(_nowhere, lambda: worker)
    schema, features, _ = sample_schema(max(ROWS))
    found: dict[tuple[int, str], list[float]] = {}
    for count in ROWS:
        sent = bodies(schema, features.head(count))
        turns = max(2, ROWS_A_TURN // count if count > 1 else ROWS_A_TURN // 20)
        for turn in range(rounds + 1):
            for name, (kind, body) in sent.items():
                began = time.process_time()
                for _ in range(turns):
                    await _post(front, kind, body)
                if turn:  # the first one loads what it needs
                    us = (time.process_time() - began) / turns / count * 1e6
                    found.setdefault((count, name), []).append(us)
    worker.close()
    return found


def bodies(schema: Any, frame: Any) -> dict[str, tuple[bytes, bytes]]:
    """(content type, body) of the same rows in every kind."""
    import pyarrow as pa

    booleans = {feature.name for feature in schema.features if feature.kind == "boolean"}
    records = [
        {name: None if value != value else bool(value) if name in booleans else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]
    table = pa.Table.from_pylist(records)
    columns = {name: table[name].combine_chunks() for name in table.schema.names}
    coded = {name: one.dictionary_encode() if pa.types.is_string(one.type) else one for name, one in columns.items()}
    lean = {name: one.cast(pa.float32()) if pa.types.is_float64(one.type) else one for name, one in coded.items()}
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(schema.names)
    writer.writerows(record.values() for record in records)
    arrow = b"application/vnd.apache.arrow.stream"
    return {
        "JSON": (b"application/json", json.dumps({"records": records}).encode()),
        "Arrow": (arrow, _stream(pa.table(columns))),
        "Arrow, float32 and dictionaries": (arrow, _stream(pa.table(lean))),
        "NDJSON": (b"application/x-ndjson", "\n".join(map(json.dumps, records)).encode()),
        "CSV": (b"text/csv", text.getvalue().encode()),
    }


def _stream(table: Any) -> bytes:
    import pyarrow as pa

    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


async def _post(front: Any, kind: bytes, body: bytes) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        assert message.get("status", 200) == 200, message

    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers, "client": ("127.0.0.1", 4000)}
    await front(scope, receive, send)


async def _nowhere(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("only /predict is measured")


if __name__ == "__main__":
    sys.exit(main())
