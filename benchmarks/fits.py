"""What the door accepts, every room takes: `python -m benchmarks.fits [--bodies 24000 --seed 1]`.

The property test of `tests/service/test_fits.py` with many more bodies: a third of each task, half on SQLite, half on
PostgreSQL.
Prints what became of them. An exception behind the door, a 5xx, a lost or unfit row ends it with a trace.
It does not show what happens to rows that older releases accepted; `tests/service/test_fits.py` has some of those.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.soak import Postgres
from monitoring.feature import Task
from tests.bodies import through

TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")


def main() -> int:
    """0 when every room took everything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fits", description=__doc__)
    parser.add_argument("--bodies", type=int, default=24_000, help="accepted bodies in all")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    total, unfit = 0, 0
    for at, task in enumerate(TASKS):
        with tempfile.TemporaryDirectory(prefix="evergreen-fits-") as folder, Postgres() as postgres:
            for name, url in (("sqlite", f"sqlite:///{folder}/evergreen.db"), ("postgresql", postgres)):
                began = time.monotonic()
                count = -(-given.bodies // (2 * len(TASKS)))
                found = through(Path(folder) / name, url, task, count, seed_=given.seed + 1000 * at)
                total, unfit = total + found["accepted"], unfit + found["unfit"]
                print(json.dumps({"task": task, "store": name, "seconds": round(time.monotonic() - began, 1), **found}))
                sys.stdout.flush()
    print(f"{total:,} accepted bodies, 0 exceptions behind the door, {unfit} rows unfit (seed {given.seed})")
    return 1 if unfit else 0


if __name__ == "__main__":
    sys.exit(main())
