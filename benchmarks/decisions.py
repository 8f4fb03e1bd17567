"""Is the default policy worth it? The loop over real streams, beside plain schedules with as many trainings.

    python -m benchmarks.decisions                          (every stream, in time order and shuffled; half an hour)
    python -m benchmarks.decisions --only elec2,noaa --order time --json decisions.json --html pages
    python -m benchmarks.decisions --check                  (exit 1 and the lines that do not hold)
    python -m benchmarks.decisions --delay 2000 --check     (labels 2,000 rows late: adapting must not hurt)

Nothing is tuned for a file: the one default policy on each, its first fifth as start, a check every 500 rows. The files
lie in `--data` (else `DECISIONS_DATA`, else `../shared/data`).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks import report
from service.command.replay import Asked, run, write_page
from service.configuration import load
from service.replay.study import PolicyResult, ScheduleResult, Study
from service.sample import SCENARIOS, Scenario
from service.settings import SAMPLE

ROOT: Final = Path(__file__).parent.parent
SEED: Final = 0
EVERY: Final = 500
MOST_TRAININGS: Final = 12
TOLD_WITHIN: Final = 1_000
SAMPLE_ROWS: Final = 16_000
"""After the first 4,000; the scenario begins halfway."""

DOES_NOT_SHOW: Final = (
    "Other streams: these are five real ones and a synthetic one's scenarios.",
    "Luck: one seed. Differences of a few thousandths of an AUC are within it.",
    "What a training costs a server under load: see `benchmarks.interference`.",
)


@dataclass(frozen=True, slots=True)
class Measured:
    """Metric and loss."""

    metric: float
    loss: float


@dataclass(frozen=True, slots=True)
class Known:
    """One file: how it is read, and what was measured on it before (`EVIDENCE.md`, section 1)."""

    file: str
    time: str
    ignore: tuple[str, ...]
    delay: int
    loop: Measured
    all_rows: Measured
    window: Measured
    calibrated: bool = False
    """Whether the served output's calibration error must be at most half of the schedule's."""


FILES: Final = {
    "elec2": Known(
        "elec2.parquet", "timestamp", ("date_norm",), 50,
        Measured(0.844, 0.490), Measured(0.799, 0.616), Measured(0.791, 0.673), calibrated=True,
    ),
    "bike": Known(
        "bike_sharing_hourly.parquet", "timestamp", ("casual", "registered"), 500,
        Measured(0.851, 5_355), Measured(0.831, 6_076), Measured(0.804, 7_069),
    ),
    "noaa": Known(
        "noaa_weather.parquet", "seq", (), 50,
        Measured(0.855, 0.435), Measured(0.852, 0.442), Measured(0.842, 0.459), calibrated=True,
    ),
    "hotel": Known(
        "hotel_bookings.parquet", "arrival_date",
        (
            "reservation_status", "assigned_room_type", "booking_changes", "required_car_parking_spaces",
            "days_in_waiting_list", "booking_date", "label_date",
        ), 500,
        Measured(0.906, 0.365), Measured(0.857, 0.505), Measured(0.904, 0.373), calibrated=True,
    ),
    "sea": Known(
        "sea_abrupt_12500_SYNTHETIC.parquet", "seq", (), 500,
        Measured(0.882, 0.372), Measured(0.877, 0.408), Measured(0.876, 0.398),
    ),
}  # fmt: skip
STREAMS: Final = (*FILES, *(f"sample-{scenario}" for scenario in SCENARIOS))
Order = str
"""time or shuffled."""


@dataclass(frozen=True, slots=True)
class Done:
    """One replay."""

    stream: str
    order: Order
    delay: int
    study: Study

    @property
    def loop(self) -> PolicyResult:
        return self.study.policies[0]

    @property
    def equal(self) -> ScheduleResult:
        """As many trainings, on all rows."""
        return self.study.schedule(self.loop.trainings)

    @property
    def window(self) -> ScheduleResult:
        """As many trainings, on the newest rows."""
        return self.study.schedule(self.loop.trainings, window=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decisions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = Path(os.environ.get("DECISIONS_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=data, metavar="FOLDER", help="where the files lie")
    parser.add_argument("--only", default="", metavar="NAMES", help=f"some of {','.join(STREAMS)}")
    parser.add_argument("--order", choices=("time", "shuffled", "both"), default="both")
    parser.add_argument("--delay", type=int, metavar="ROWS", help="from a row to its label (default: the file's own)")
    parser.add_argument("--policy", type=Path, action="append", default=[], help="settings file; for experiments only")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--check", action="store_true", help="exit 1 when a line of what must hold does not")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--html", type=Path, metavar="FOLDER", help="a page for each replay")
    given = parser.parse_args()
    only = [name.strip() for name in given.only.split(",") if name.strip()] or list(STREAMS)
    if unknown := [name for name in only if name not in STREAMS]:
        parser.error(f"no stream {', '.join(unknown)}; there are {', '.join(STREAMS)}")
    orders = ("time", "shuffled") if given.order == "both" else (given.order,)
    found = measure(given.data, only, orders, given.delay, given.policy, given.seed, given.html, print)
    lines = [line for done in found for line in must_hold(done, late=given.delay is not None)]
    wrong = [text for text, holds in lines if not holds]
    for text, holds in lines:
        print(f"{'holds' if holds else 'DOES NOT HOLD'}: {text}")
    content = {
        "benchmark": "decisions",
        "machine": report.machine(),
        "seed": given.seed,
        "does_not_show": DOES_NOT_SHOW,
        "lines": [{"line": text, "holds": holds} for text, holds in lines],
        "replays": [
            {"stream": d.stream, "order": d.order, "delay": d.delay, **msgspec.to_builtins(d.study)} for d in found
        ],
    }
    report.write_json(given.json, content)
    return 1 if given.check and wrong else 0


def measure(
    data: Path,
    streams: Sequence[str],
    orders: Sequence[Order],
    delay: int | None,
    policies: Sequence[Path],
    seed: int,
    pages: Path | None,
    say: Callable[[str], None],
) -> list[Done]:
    """Each stream in each order, told as it is done. The scenarios of the sample are in time order alone."""
    say(report.machine_text(report.machine()))
    say(f"seed {seed}, a check every {EVERY} rows; AUC (R²) / log loss (MSE) / calibration error\n")
    say(report.table(HEAD, []))
    found = []
    for name in streams:
        for order in orders:
            if name not in FILES and order == "shuffled" and name != "sample-none":
                continue
            asked = _asked(data, name, order, delay, seed)
            done = Done(name, order, int(asked.label_delay), run(asked, load(environ={}), policies, quiet=True))
            found.append(done)
            say("| " + " | ".join(_row(done)) + " |")
            if pages is not None:
                pages.mkdir(parents=True, exist_ok=True)
                write_page(done.study, pages / f"{name}-{order}.html")
    say("")
    return found


def _asked(data: Path, name: str, order: Order, delay: int | None, seed: int) -> Asked:
    shared: dict[str, Any] = {"every": EVERY, "seed": seed, "shuffle": order == "shuffled"}
    if name in FILES:
        known = FILES[name]
        return Asked(
            data=str(data / known.file),
            target="target",
            time=known.time,
            ignore=known.ignore,
            label_delay=str(known.delay if delay is None else delay),
            **shared,
        )
    scenario: Scenario = next(each for each in SCENARIOS if name == f"sample-{each}")
    late = str(EVERY if delay is None else delay)
    return Asked(data=SAMPLE, scenario=scenario, max_rows=SAMPLE_ROWS, label_delay=late, **shared)


HEAD: Final = (
    "stream", "order", "served", "raw", "equal count, all rows", "equal count, window", "four times as many", "never",
    "trainings (refused)", "held / lost / not known", "drift news", "rows/min", "seconds",
)  # fmt: skip


def _row(done: Done) -> list[str]:
    loop, never = done.loop, done.study.schedule(0)
    dense = done.study.schedule(4 * loop.trainings)
    scores = (loop.served, loop.raw, done.equal.scores, done.window.scores, dense.scores, never.scores)
    return [
        done.stream,
        done.order,
        *(_scores(each) for each in scores),
        f"{loop.trainings} ({loop.refused + loop.failed})",
        " / ".join(str(count) for count in loop.checks.values()),
        f"{loop.drift_news} of {len(loop.turns)}",
        f"{loop.rows_a_minute:,.0f}",
        f"{loop.seconds:.0f} ({loop.training_s:.0f} training)",
    ]


def _scores(found: Any) -> str:
    values = (found.metric, found.loss, found.calibration)
    return " / ".join(f"{v:,.0f}" if abs(v) >= 100 else f"{v:.4f}" for v in values if v is not None)


# -- what must hold ------------------------------------------------------------------------------------------------


Line = tuple[str, bool]


def must_hold(done: Done, *, late: bool = False) -> list[Line]:
    """Each line that this replay is asked for, and whether it holds; `late`: those of labels that come late."""
    if late:
        return _late(done)
    if done.stream not in FILES:
        return _sample(done) if done.order == "time" else _stationary(done)
    return _ahead(done, FILES[done.stream]) if done.order == "time" else _stationary(done)


def _ahead(done: Done, known: Known) -> list[Line]:
    name, loop, equal, window = done.stream, done.loop, _measured(done.equal), _measured(done.window)
    served, metric, loss = _measured(loop), done.study.metric, done.study.loss
    lines = []
    for what, other in (("all rows", equal), ("a window", window)):
        lines += [
            (f"{name}: {metric} {served.metric:.4f} > {other.metric:.4f} of as many trainings on {what}",
             served.metric > other.metric),
            (f"{name}: {loss} {_text(served.loss)} < {_text(other.loss)} of as many trainings on {what}",
             served.loss < other.loss),
        ]  # fmt: skip
    # As good as measured before (to the three digits that are known of it); or, as this pipeline is another, as far
    # ahead of both of its own schedules.
    higher = min(
        known.loop.metric - 0.0005,
        max(
            equal.metric + known.loop.metric - known.all_rows.metric,
            window.metric + known.loop.metric - known.window.metric,
        ),
    )
    rounding = 0.5 if known.loop.loss >= 100 else 0.0005
    lower = max(
        known.loop.loss + rounding,
        min(equal.loss + known.loop.loss - known.all_rows.loss, window.loss + known.loop.loss - known.window.loss),
    )
    lines += [
        (f"{name}: {metric} {served.metric:.4f} >= {higher:.4f}: {known.loop.metric} as measured before, or as far "
         "ahead of its own schedules", served.metric >= higher),
        (f"{name}: {loss} {_text(served.loss)} <= {_text(lower)}: {_text(known.loop.loss)} as measured before, or as "
         "far below its own schedules", served.loss <= lower),
        (f"{name}: {loop.trainings} trainings, at most {MOST_TRAININGS}", loop.trainings <= MOST_TRAININGS),
    ]  # fmt: skip
    if known.calibrated:
        ours, theirs = loop.served.calibration or 0.0, done.equal.scores.calibration or 0.0
        lines.append((f"{name}: calibration error {ours:.4f} <= half of {theirs:.4f}", ours <= theirs / 2))
    if name in ("noaa", "bike"):
        lines.append(_quiet(done, 0.20))
    return lines


def _stationary(done: Done) -> list[Line]:
    name, served, equal = f"{done.stream} shuffled", _measured(done.loop), _measured(done.equal)
    more = 0.02 * equal.loss if done.study.task == "regression" else 0.002
    lost = done.loop.checks["lost"]
    return [
        (f"{name}: {done.study.metric} {served.metric:.4f} within .001 of {equal.metric:.4f} of as many trainings",
         served.metric >= equal.metric - 0.001),
        (f"{name}: {done.study.loss} {_text(served.loss)} within {_text(more)} of {_text(equal.loss)} of as many "
         "trainings", served.loss <= equal.loss + more),
        (f"{name}: quality lost in {lost} checks, in none of a world that stands still", lost == 0),
        _quiet(done, 0.02),
    ]  # fmt: skip


def _sample(done: Done) -> list[Line]:
    turn = SAMPLE_ROWS // 2
    told = [t for t in done.loop.turns if t.row > turn and (t.drift_news or t.verdict == "lost")]
    if done.stream == "sample-abrupt":
        first = told[0].row - turn if told else None
        said = "never" if first is None else f"after {first:,} rows"
        return [(f"{done.stream}: told {said}, within {TOLD_WITHIN:,}", first is not None and first <= TOLD_WITHIN)]
    if done.stream == "sample-harmless":
        wrong = sum(t.drift_matters is True or t.verdict == "lost" for t in done.loop.turns)
        open_ = sum(t.drift_matters is None for t in done.loop.turns)
        last = done.loop.turns[-1].drift_matters
        return [
            (f"{done.stream}: {wrong} checks said that it matters or that quality is lost", wrong == 0),
            (f"{done.stream}: {open_} checks said that it may matter, the last that it does not", last is False),
        ]
    return _stationary(done) if done.stream == "sample-none" else []


def _late(done: Done) -> list[Line]:
    name, served, raw = f"{done.stream} {done.order}, labels {done.delay:,} rows late", done.loop.served, done.loop.raw
    assert served.metric is not None and raw.metric is not None and served.loss is not None and raw.loss is not None
    return [
        (f"{name}: {done.study.loss} {_text(served.loss)} served, not worse than {_text(raw.loss)} raw",
         served.loss <= raw.loss),
        (f"{name}: {done.study.metric} {served.metric:.4f} served, at most .005 below {raw.metric:.4f} raw",
         served.metric >= raw.metric - 0.005),
    ]  # fmt: skip


def _quiet(done: Done, share: float) -> Line:
    news, checks = done.loop.drift_news, len(done.loop.turns)
    return f"{done.stream} {done.order}: drift news in {news} of {checks} checks, at most {share:.0%}", (
        news <= share * checks
    )


def _measured(found: PolicyResult | ScheduleResult) -> Measured:
    scores = found.served if isinstance(found, PolicyResult) else found.scores
    assert scores.metric is not None and scores.loss is not None
    return Measured(scores.metric, scores.loss)


def _text(loss: float) -> str:
    return f"{loss:,.0f}" if abs(loss) >= 100 else f"{loss:.4f}"


if __name__ == "__main__":
    sys.exit(main())
