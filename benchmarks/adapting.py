"""What does a check pay for its adaptation? `python -m benchmarks.adapting [--rows 8000 --features 22 --check]`.

A champion of 22 features answered 8,000 rows whose labels have come, every expert of the default policy is fitted, and
all rows are scored by what was in force. The job runs as in production, in a process of its own; the caller is a fresh
process, as the controller is one. Exit 1 with `--check` when a job takes more than 2 s of processor time, or the calls
leave more than 50 MB in the caller.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from benchmarks import report
from monitoring.schema import FeatureSchema
from monitoring.store import labels, open_store, predictions
from tests.places import START, Place, adapted
from training.adaptation import Adapter, decode
from training.adaptations import Adaptations
from training.artefact import SCHEMA, read_manifest
from training.cycle import bootstrap
from training.data import prepare
from training.lease import CONTROLLER, Lease
from training.loaded import load_model
from training.subprocess_job import subprocess_job

MOST_SECONDS: Final = 2.0
MOST_MB: Final = 50.0
CALLS: Final = 5
DOES_NOT_SHOW: Final = (
    "The check's other steps: drift, quality.",
    "How long it takes beside a busy server: the job gives way to it. See `benchmarks.interference`.",
)


def main() -> int:
    """1 when `--check` is given and a bound does not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adapting", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=8_000, metavar="N", help="answered, with a label")
    parser.add_argument("--features", type=int, default=22, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="exit 1 when a bound does not hold")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    machine = report.machine()
    print(report.machine_text(machine))
    print(f"seed {given.seed}; {given.rows:,} rows of {given.features} features, {CALLS} adaptations\n")
    with tempfile.TemporaryDirectory(prefix="evergreen-adapting-") as folder:
        prepared(Path(folder), given.rows, given.features, given.seed)
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            found = fresh.apply(measured, (Path(folder), given.rows))
    seconds, left = report.Spread.of(found["seconds"]), found["left_mb"]
    head = ("", "processor time of a job", "memory of a job", "left in the caller by the first", f"by all {CALLS}")
    row = (f"{found['experts']} experts", seconds.text(" s"), f"{found['job_mb']:.0f} MB")
    print(report.table(head, [(*row, f"{left[0]:.1f} MB", f"{left[-1]:.1f} MB")]))
    lines = [
        (f"a job takes {seconds.median:.2f} s of one core, at most {MOST_SECONDS:g}", seconds.median <= MOST_SECONDS),
        (f"{left[-1]:.1f} MB are left in the caller, at most {MOST_MB:g}", left[-1] <= MOST_MB),
    ]
    print()
    for text, holds in lines:
        print(f"{'holds' if holds else 'DOES NOT HOLD'}: {text}")
    content = {"benchmark": "adapting", "machine": machine, "does_not_show": DOES_NOT_SHOW, **found}
    report.write_json(given.json, {**content, "lines": [{"line": text, "holds": holds} for text, holds in lines]})
    return 1 if given.check and not all(holds for _, holds in lines) else 0


def frame_of(rows: int, features: int, seed: int, *, turned: bool = False) -> pd.DataFrame:
    """Labelled rows: one feature in five is a category; `turned`: the first numbers mean the contrary."""
    random = np.random.default_rng(seed)
    columns: dict[str, Any] = {}
    for at in range(features):
        columns[f"f{at}"] = random.choice(["a", "b", "c"], rows) if at % 5 == 4 else random.normal(0, 1, rows)
    score = (columns["f0"] + columns["f1"]) * (-1 if turned else 1) + columns["f2"]
    columns["y"] = score + random.normal(0, 0.5, rows) > 0
    return pd.DataFrame(columns)


def prepared(folder: Path, rows: int, features: int, seed: int) -> None:
    """A deployment in this folder: a trained champion, and matured rows half of which an adaptation answered."""
    open_store(f"sqlite:///{folder}/evergreen.db").dispose()
    place = Place(folder)
    assert Lease(place.engine, CONTROLLER, "benchmark", 86_400).acquire()
    source = prepare(frame_of(4_000, features, seed), target="y")
    run = bootstrap(replace(place.loop, source=lambda: source, run_job=partial(subprocess_job, timeout_s=300)))
    assert run is not None and run.outcome == "promoted", run
    answer(place, frame_of(rows // 2, features, seed + 1, turned=True))
    assert adapted(place.loop) is not None
    answer(place, frame_of(rows - rows // 2 + CALLS * place.loop.adapt.every_rows, features, seed + 2, turned=True))
    place.engine.dispose()


def answer(place: Place, frame: pd.DataFrame) -> None:
    """The champion answers these rows, one a second, with what is in force, and their labels come back."""
    folder = place.registry.path(1)
    schema = FeatureSchema.from_json((folder / SCHEMA).read_bytes())
    chances, x = load_model(folder, read_manifest(folder), schema).answer_with_matrix(schema.canonical(frame))
    table = Adaptations(place.engine)
    in_force = table.in_force(1)
    if in_force is not None:
        chances = Adapter(decode(table.served(1, in_force.number))).apply(chances, x)
    with place.engine.connect() as connection:
        place.now = START + connection.exec_driver_sql("select count(*) from predictions").scalar_one()
    key = {"day": 1, "segment": int(place.now)}
    answered, known = [], []
    for at, (row, p) in enumerate(zip(frame.to_dict("records"), chances, strict=True)):
        label = bool(row.pop("y"))
        row_key = {**key, "position": at << 16, "id": f"{int(place.now)}-{at}"}
        when = place.now + at
        said = {"prediction": json.dumps(bool(p[1] > 0.5)), "probabilities": json.dumps(p.tolist())}
        number = None if in_force is None else in_force.number
        answered.append(
            {**row_key, "at": when, "version": 1, "features": json.dumps(row), "adaptation": number, **said}
        )
        known.append({**row_key, "label": json.dumps(label), "observed_at": when, "received_at": when})
    place.now += len(frame)
    with place.engine.begin() as connection:
        connection.execute(predictions.insert(), answered)
        connection.execute(labels.insert(), known)


def measured(folder: Path, rows: int) -> dict[str, Any]:
    """In a fresh process: each call's processor time of its job, and what all calls so far have left here."""
    place = Place(folder)
    loop = replace(place.loop, run_job=partial(subprocess_job, timeout_s=300))
    before, seconds, left = resident_mb(), [], []
    for call in range(CALLS):
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        until = START + rows + (call + 1) * loop.adapt.every_rows
        found = adapted(loop, until=until)
        assert found is not None and found.made and found.rows == rows, found
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime)
        left.append(resident_mb() - before)
    return {"seconds": seconds, "left_mb": left, "job_mb": now.ru_maxrss / 1024, "experts": len(found.weights)}


def resident_mb() -> float:
    """Memory of this process, MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


if __name__ == "__main__":
    sys.exit(main())
