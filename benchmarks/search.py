"""Is a search for parameters worth its minutes? The defaults beside what a search found, on the same rows.

    OMP_NUM_THREADS=1 python -m benchmarks.search                     (three files, five minutes each)
    python -m benchmarks.search --only bike --seconds 60 --json search.json
    python -m benchmarks.search --check                               (exit 1 and the lines that do not hold)

The newest fifth of each file is touched by no training. On the rest, two trainings of a first version: one without a
search, one with; the second is killed (SIGKILL) when half of its time is over, and begun again. Compared are the judged
models on the blocks that judge, as the training itself does when it decides for what was found, and what would go into
service on the untouched rows. These count: they had no part in any decision.
The files lie in `--data` (else `DECISIONS_DATA`, else `../shared/data`).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks import report
from training.artefact import verify
from training.comparing import LOSSES, Difference, Truth, difference
from training.data import prepare, row_order, seconds_of, snapshot
from training.loaded import load_model
from training.manifest import Searched
from training.source import load_source
from training.spec import JobResult, JobSpec
from training.subprocess_job import JobStopped, subprocess_job

ROOT: Final = Path(__file__).parent.parent
UNTOUCHED: Final = 0.2
INTERVAL: Final = 1.96
"""Standard errors to each side: 95 %."""
FILES: Final[dict[str, tuple[str, str, tuple[str, ...]]]] = {
    "adult": ("adult_income.parquet", "", ()),
    "bike": ("bike_sharing_hourly.parquet", "timestamp", ("casual", "registered")),
    "hotel": (
        "hotel_bookings.parquet",
        "arrival_date",
        (
            "reservation_status", "assigned_room_type", "booking_changes", "required_car_parking_spaces",
            "days_in_waiting_list", "booking_date", "label_date",
        ),
    ),
}  # fmt: skip
"""Name -> file, time, columns that are known later only."""
DOES_NOT_SHOW: Final = (
    "Other files: these are three. Other seeds: one each.",
    "What a search costs a server that answers meanwhile: see `benchmarks.interference`.",
)


@dataclass(frozen=True, slots=True)
class Gain:
    """How much smaller the loss is after a search; with a 95 % interval."""

    before: float
    after: float
    gain: float
    low: float
    high: float
    rows: int

    @classmethod
    def of(cls, found: Difference, rows: int) -> Gain:
        half = INTERVAL * found.error
        return cls(-found.old, -found.new, found.gain, found.gain - half, found.gain + half, rows)

    @property
    def better(self) -> bool:
        return self.low > 0

    @property
    def worse(self) -> bool:
        return self.high < 0

    def text(self) -> str:
        return f"{self.before:.4g} → {self.after:.4g}: {self.gain:+.3g} [{self.low:+.3g}, {self.high:+.3g}]"


@dataclass(frozen=True, slots=True)
class Done:
    """One file."""

    name: str
    loss: str
    rows: int
    judged: Gain | None
    """None: the defaults stayed."""
    untouched: Gain
    parameters: dict[str, Any]
    trials: int
    given_up: int
    families: dict[str, int]
    killed_after: int
    """Trials that the killed process left."""
    resumed: int
    """Of these, what the second process went on from."""
    seconds: float
    twin: bool
    note: str


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = Path(os.environ.get("DECISIONS_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=data, metavar="FOLDER", help="where the files lie")
    parser.add_argument("--only", default="", metavar="NAMES", help=f"some of {','.join(FILES)}")
    parser.add_argument("--seconds", type=float, default=300.0, help="of each search (default 300)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="exit 1 when a line of what must hold does not")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    only = [name.strip() for name in given.only.split(",") if name.strip()] or list(FILES)
    if unknown := [name for name in only if name not in FILES]:
        parser.error(f"no file {', '.join(unknown)}; there are {', '.join(FILES)}")
    print(report.machine_text(report.machine()))
    print(f"seed {given.seed}, {given.seconds:g} s a search, one thread; loss before → after: gain [95 % interval]\n")
    print(report.table(HEAD, []))
    found = []
    for name in only:
        found.append(measure(name, given.data, given.seconds, given.seed))
        print("| " + " | ".join(row(found[-1])) + " |", flush=True)
    print()
    for done in found:
        print(f"{done.name}: {done.note}")
    lines = must_hold(found)
    for text, holds in lines:
        print(f"{'holds' if holds else 'DOES NOT HOLD'}: {text}")
    content = {
        "benchmark": "search",
        "machine": report.machine(),
        "seed": given.seed,
        "seconds": given.seconds,
        "does_not_show": DOES_NOT_SHOW,
        "lines": [{"line": text, "holds": holds} for text, holds in lines],
        "files": [asdict(done) for done in found],
    }
    report.write_json(given.json, content)
    return 1 if given.check and not all(holds for _, holds in lines) else 0


HEAD: Final = (
    "file", "loss", "on the judging blocks", "on untouched rows", "family", "trials (given up)", "left by the killed",
    "seconds", "ONNX twin",
)  # fmt: skip


def row(done: Done) -> list[str]:
    return [
        done.name,
        done.loss,
        done.judged.text() if done.judged else "the defaults stayed",
        done.untouched.text(),
        str(done.parameters.get("family", "boosting")),
        f"{done.trials} ({done.given_up})",
        f"{done.killed_after}, {done.resumed} gone on from",
        f"{done.seconds:.0f}",
        "yes" if done.twin else "no",
    ]


def must_hold(found: list[Done]) -> list[tuple[str, bool]]:
    """Each line that is asked for, and whether it holds."""
    better = [done.name for done in found if done.untouched.better]
    lines = [
        (f"surely better on untouched rows: {', '.join(better) or 'none'}; at least two of three files",
         len(better) >= min(2, len(found))),
    ]  # fmt: skip
    for done in found:
        lines += [
            (f"{done.name}: not worse on the judging blocks", not (done.judged and done.judged.worse)),
            (f"{done.name}: not worse on {done.untouched.rows:,} untouched rows", not done.untouched.worse),
            (f"{done.name}: the second process went on from {done.resumed} of the {done.killed_after} trials that the "
             "killed one left", 0 < done.killed_after == done.resumed),
            (f"{done.name}: what was found has an ONNX twin", done.twin),
        ]  # fmt: skip
    return lines


def measure(name: str, data: Path, seconds: float, seed: int) -> Done:
    """One file: trained without a search; trained with one, killed halfway, and trained again."""
    file, ordered_by, ignore = FILES[name]
    frame = load_source(data / file)
    frame = frame.iloc[row_order(frame, time=ordered_by)]
    if ordered_by:
        frame = frame.assign(**{ordered_by: seconds_of(frame[ordered_by], ordered_by)})
    prepared = prepare(frame, target="target", time=ordered_by, ignore=ignore)
    schema, known = prepared.schema, prepared.frame
    cut = int((1 - UNTOUCHED) * len(known))
    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        taken = snapshot(known.iloc[:cut], here)

        def spec(out: str, **training: Any) -> JobSpec:
            return JobSpec(
                kind="train",
                out=str(here / out / "artefact"),
                snapshot=str(taken.path),
                schema=msgspec.json.decode(schema.to_json()),
                training={"max_rows": 100_000, **training},
                seed=seed,
                nice=0,
                studies=str(here / "studies"),
                created_at=time.time(),
            )

        began = time.monotonic()
        _run(spec("without"), seconds)
        wanted = spec("with", trials=10_000, tune_seconds=seconds)
        searching = time.monotonic()
        with suppress(JobStopped):
            _run(wanted, seconds, stopped=lambda: time.monotonic() - searching > seconds / 2)
        killed_after = sum(len(path.read_bytes().split(b"\n")) - 2 for path in (here / "studies").glob("*.jsonl"))
        result = _run(wanted, seconds)
        took = time.monotonic() - began
        untouched = known.iloc[cut:]
        features, truth = untouched[list(schema.names)], Truth.of(schema.labels(untouched["_label"]), schema)
        manifests = [verify(here / out / "artefact") for out in ("without", "with")]
        said = [
            load_model(here / out / "artefact", manifest, schema).answer(features)
            for out, manifest in zip(("without", "with"), manifests, strict=True)
        ]
    measure_by = LOSSES[schema.task]
    compared = difference(said[1], said[0], truth, measure_by)
    assert compared is not None
    facts, after = manifests[1].data.search, manifests[1]
    assert facts is not None and after.quality is not None
    return Done(
        name=name,
        loss=measure_by,
        rows=cut,
        judged=_judged(after.quality.rows, facts),
        untouched=Gain.of(compared, len(truth)),
        parameters=after.parameters,
        trials=facts.trials,
        given_up=facts.trials - facts.finished,
        families=dict(Counter(str(trial["parameters"]["family"]) for trial in after.data.trials)),
        killed_after=killed_after,
        resumed=facts.resumed,
        seconds=took,
        twin=after.twin is not None,
        note="; ".join(result.notes),
    )


def _run(spec: JobSpec, seconds: float, stopped: Callable[[], bool] = lambda: False) -> JobResult:
    result = subprocess_job(spec, timeout_s=seconds + 1800, stopped=stopped)
    if not result.ok:
        raise SystemExit(f"the training failed: {result.error}")
    return result


def _judged(rows: int, facts: Searched) -> Gain | None:
    """What the training itself found on the judging blocks; None when the defaults stayed."""
    if not facts.chosen or facts.value is None or facts.gain is None or facts.error is None:
        return None
    return Gain.of(Difference(facts.value, facts.value - facts.gain, facts.error), rows)


if __name__ == "__main__":
    sys.exit(main())
