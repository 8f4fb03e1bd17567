"""Is a verdict on quality seldom wrong, and does it come soon? `monitoring.evidence` on streams made for it.

    python -m benchmarks.validity                          (1,000 streams of each kind; some minutes on one core)
    python -m benchmarks.validity --streams 100 --only auc,rare-class --json validity.json
    python -m benchmarks.validity --check                  (exit 1 and the lines that do not hold)

1. Validity: nothing changes over 50,000 rows, and somebody looks every 100. How many streams are ever called lost?
   Once with the fall that the default policy allows, once with none allowed, which is the harder half.
2. Power: quality falls by twice what is allowed. How many rows until it is called lost, beside a test that looks once?
3. A rare class: 1.4 % positives, and the concept flips halfway.

A look that cannot say `lost` is passed over: sums of 100 rows each give every window's metric and a lower bound of its
error (`_suspects`). All others are judged by `evidence.judge` itself, on the rows themselves.
"""

from __future__ import annotations

import argparse
import functools
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks import report
from monitoring import evidence
from monitoring.evidence import Fall, Influences, State, judge, spread, while_doubling
from monitoring.influence import of_classes, of_numbers
from monitoring.verdict import FEWEST_TO_HOLD

Array = npt.NDArray[np.float64]
Metric = Literal["auc", "log_loss", "r2", "mse"]

STREAMS: Final = 1_000
ROWS: Final = 50_000
EVERY: Final = 100
READ: Final = 20_000
"""Newest rows that a check can read."""
HOLDOUT: Final = 2_000
"""Rows on which the champion's own level is known."""
FALLS: Final = 200
"""Streams of each case of power, at least."""
BEGINS: Final = (0, 6_000, 27_300)
"""Rows answered before the fall."""
POWER: Final = ("auc", "log-loss", "r2", "mse")
"""Kinds in which a fall is made."""
LOSSES: Final = ("log_loss", "mse")
FEWEST: Final = 10
"""Rows of each class without which a window says nothing."""
RARE: Final = 0.014
SOON: Final = 60
"""Positives after the flip within which it must be told."""
FLIPS: Final = ((0.8, HOLDOUT, True), (0.95, 5_000, False))
"""AUC, rows of the holdout, and whether `held` must never be said after the flip. It is reported without a bound for a
champion known so well that it held before: until the first positives come, no row tells of the flip."""
ONE_LOOK: Final = (1.6449 + 0.8416) ** 2
"""Squared standard errors that a fall must measure to be found by one look with 5 % false alarms, 80 times of 100."""

DOES_NOT_SHOW: Final = (
    "Real streams: see `benchmarks.decisions`. These rows are drawn independently, but for `dependent`.",
    "Dependence that reaches over thousands of rows: no window shows it, and nothing here bounds its false alarms.",
)


class Rows(NamedTuple):
    """n rows in time order: class numbers or values, and what was answered: a chance of class 1, or a value."""

    truth: Array
    said: Array

    def part(self, begin: int, end: int) -> Rows:
        return Rows(self.truth[begin:end], self.said[begin:end])


@dataclass(frozen=True, slots=True)
class Kind:
    """A way to draw rows, and the metric that is watched."""

    metric: Metric
    positives: float = 0.5
    """Share of class 1."""
    tails: int = 0
    """Degrees of freedom of a regression's errors; 0: normal ones."""
    dependent: bool = False
    """Whether neighbouring rows are difficult together."""
    bounded: bool = True

    def draw(self, random: np.random.Generator, rows: int, *, auc: float = 0.8) -> Rows:
        """Rows of a calibrated model of this AUC (regression: of R² 0.8); below 0.5 it answers as for 1 - AUC."""
        common = _remembered(random, rows) if self.dependent else np.zeros(rows)
        if self.metric in ("r2", "mse"):
            truth = random.normal(0, 1, rows)
            noise = random.standard_t(self.tails, rows) / math.sqrt(self.tails / (self.tails - 2)) if self.tails else 0
            noise = noise if self.tails else random.normal(0, 1, rows)
            return Rows(truth, truth + math.sqrt(0.2) * (noise + common))
        # Two normal distributions a distance apart have this AUC, and these are their chances (Green & Swets 1966).
        apart = math.sqrt(2) * _normal_quantile(max(auc, 1 - auc))
        truth = (random.random(rows) < self.positives).astype(np.float64)
        score = random.normal(0, 1, rows) + (apart if auc >= 0.5 else -apart) * truth + common
        score = np.clip(np.round(score * 8), -_GRID, _GRID) / 8  # few different scores, so that they can be counted
        return Rows(
            truth, 1 / (1 + np.exp(-(apart * score - apart**2 / 2 + math.log(self.positives / (1 - self.positives)))))
        )

    def spoilt(self, random: np.random.Generator, rows: Rows, share: float) -> Rows:
        """The same with the truth of this share of the rows drawn anew, whatever was answered."""
        new = self.draw(random, len(rows.truth)).truth
        return Rows(np.where(random.random(len(new)) < share, new, rows.truth), rows.said)

    def measured(self, rows: Rows, newest: int | None = None) -> Influences | None:
        """The metric of the newest rows, as a check takes it."""
        truth, said = (rows.truth, rows.said) if newest is None else (rows.truth[-newest:], rows.said[-newest:])
        if self.metric in ("r2", "mse"):
            return of_numbers(self.metric, truth, said)
        ones = int(truth.sum())
        if min(ones, len(truth) - ones) < FEWEST:
            return None
        return of_classes(self.metric, truth.astype(np.int64), np.column_stack([1 - said, said]))

    def allowed(self, level: float) -> float:
        """What the default policy allows the metric to fall: for losses a share of the champion's own (of its root)."""
        return {"log_loss": 0.15, "mse": 1.15**2 - 1}[self.metric] * abs(level) if self.metric in LOSSES else 0.05


KINDS: Final = {
    "auc": Kind("auc"),
    "log-loss": Kind("log_loss"),
    "r2": Kind("r2"),
    "mse": Kind("mse"),
    "heavy-tails": Kind("mse", tails=5),
    "rare-class": Kind("auc", positives=RARE),
    "rare-class-loss": Kind("log_loss", positives=RARE),
    "dependent": Kind("log_loss", dependent=True, bounded=False),
    "dependent-mse": Kind("mse", dependent=True, bounded=False),
}

_GRID: Final = 40


def _normal_quantile(share: float) -> float:
    return NormalDist().inv_cdf(share)


def _remembered(random: np.random.Generator, rows: int) -> Array:
    """Noise of which a row keeps 0.98 of the row before: half of it is forgotten after 34 rows."""
    from scipy.signal import lfilter

    keep = 0.98
    noise = random.normal(0, math.sqrt(1 - keep**2), rows + 500)
    return np.asarray(lfilter([1.0], [1.0, -keep], noise)[500:] * 0.5)


# -- looks ---------------------------------------------------------------------------------------------------------


class Level(NamedTuple):
    """The champion's own: the metric on its holdout, and its standard error."""

    value: float
    error: float
    can_hold: bool = True


def level_of(kind: Kind, random: np.random.Generator, holdout: int = HOLDOUT) -> Level | None:
    """None when the holdout does not define it."""
    found = kind.measured(kind.draw(random, holdout))
    return None if found is None else Level(found.value, spread(found.rows) / math.sqrt(holdout))


def look(kind: Kind, stream: Rows, end: int, level: Level, allowed: float) -> Fall:
    """What a check says after `end` rows."""
    begin = max(0, end - READ)
    rows = stream.part(begin, end)
    return judge(
        lambda n: kind.measured(rows, n),
        end - begin,
        begin,
        level.value,
        level.error,
        allowed,
        can_hold=level.can_hold,
    )


def ever_lost(kind: Kind, stream: Rows, level: Level, allowed: float) -> tuple[bool, bool]:
    """Whether any of the looks, one every 100 rows, says `lost`: with this fall allowed, and with none."""
    looks = [end for end in _suspects(kind, stream, level) if look(kind, stream, end, level, 0.0).state == "lost"]
    # What excludes a fall within the allowed one excludes that there is none.
    return any(look(kind, stream, end, level, allowed).state == "lost" for end in looks), bool(looks)


class _Schedule(NamedTuple):
    """Every window of every look, by rows of 100: where it begins and ends, and its two boundaries."""

    begin: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    alone: Array
    together: Array


@functools.cache
def _schedule(rows: int) -> _Schedule:
    found = []
    for end in range(EVERY, rows + 1, EVERY):
        before = max(0, end - READ)
        for window, share in evidence._windows(end - before, before, evidence.ALPHA, evidence.SHORTEST):
            alone, together = (while_doubling(alpha) for alpha in (evidence.ALPHA, share))
            found.append(((end - window) // EVERY, end // EVERY, alone, together))
    begin, last, alone, together = (np.array(column) for column in zip(*found, strict=True))
    return _Schedule(begin, last, alone, together)


def _suspects(kind: Kind, stream: Rows, level: Level) -> list[int]:
    """The looks, by rows seen, that could say `lost`: those where the rows' own spread does not exclude it."""
    windows = _schedule(len(stream.truth))
    value, own = _from_sums(kind, stream, windows.begin, windows.end)
    # The same as `evidence.judge`, but for blocks of rows, which can only make an error larger.
    drawn = NormalDist().inv_cdf(1 - evidence.ALPHA / 2) * level.error
    error = own / np.sqrt((windows.end - windows.begin) * EVERY) * (1 - 1e-9)
    fall = level.value - value + 1e-9
    possible = (fall > np.hypot(windows.alone * error, drawn)) & (fall > np.hypot(windows.together * error, drawn))
    return sorted({int(end) * EVERY for end in windows.end[possible]})


def _from_sums(kind: Kind, stream: Rows, begin: Any, end: Any) -> tuple[Array, Array]:
    """The metric of each window and the standard deviation of the influences in it, from sums of 100 rows each."""

    def summed(each: Array) -> Array:
        blocks = each.reshape(-1, EVERY, *each.shape[1:]).sum(axis=1)
        total = np.concatenate([np.zeros((1, *blocks.shape[1:])), np.cumsum(blocks, axis=0)])
        return np.asarray(total[end] - total[begin])

    n = (end - begin) * float(EVERY)
    truth, said = stream
    with np.errstate(invalid="ignore", divide="ignore"):
        if kind.metric == "auc":
            return _auc_from_counts(*_counts(stream, begin, end))
        if kind.metric == "r2":
            squares = (said - truth) ** 2
            powers = [summed(truth**power) / n for power in range(5)]
            s, ss, ys, yys = (summed(e) / n for e in (squares, squares**2, truth * squares, truth**2 * squares))
            mean = powers[1]
            total = powers[2] - mean**2
            value = 1 - s / total
            around = powers[4] - 4 * mean * powers[3] + 6 * mean**2 * powers[2] - 3 * mean**4
            both = yys - 2 * mean * ys + mean**2 * s
            return value, np.sqrt(np.maximum((1 - value) ** 2 * around - 2 * (1 - value) * both + ss, 0)) / total
        each = -((said - truth) ** 2) if kind.metric == "mse" else np.log(np.where(truth == 1, said, 1 - said))
        value = summed(each) / n
        return value, np.sqrt(np.maximum(summed(each**2) / n - value**2, 0))


def _counts(stream: Rows, begin: Any, end: Any) -> tuple[Array, Array]:
    """How often each score occurs in each window, among negatives and among positives: windows by scores."""
    scores, places = np.unique(stream.said, return_inverse=True)
    blocks, width = len(places) // EVERY, len(scores)
    at = (np.arange(len(places)) // EVERY * 2 + stream.truth.astype(np.int64)) * width + places
    counted = np.bincount(at, minlength=blocks * 2 * width).reshape(blocks, 2, width)
    total = np.concatenate([np.zeros((1, 2, width)), np.cumsum(counted, axis=0)])
    return total[end, 0] - total[begin, 0], total[end, 1] - total[begin, 1]


def _auc_from_counts(downs: Array, ups: Array) -> tuple[Array, Array]:
    negatives, positives = downs.sum(axis=1), ups.sum(axis=1)
    below = (np.cumsum(downs, axis=1) - downs / 2) / negatives[:, None]
    above = 1 - (np.cumsum(ups, axis=1) - ups / 2) / positives[:, None]
    value = (ups * below).sum(axis=1) / positives
    n = negatives + positives
    around = [(ups * (below - value[:, None]) ** 2).sum(axis=1), (downs * (above - value[:, None]) ** 2).sum(axis=1)]
    variance = (around[0] * (n / positives) ** 2 + around[1] * (n / negatives) ** 2) / n
    said = np.minimum(positives, negatives) >= FEWEST
    return np.where(said, value, np.inf), np.where(said, np.sqrt(variance), 0)


# -- the three questions -------------------------------------------------------------------------------------------


def falsely_lost(name: str, seed: int, rows: int = ROWS) -> tuple[bool, bool]:
    """Whether one stream in which nothing changes is ever called lost: with the allowed fall, and with none allowed."""
    kind, random = KINDS[name], np.random.default_rng([seed, 1])
    level, stream = level_of(kind, random), kind.draw(random, rows)
    if level is None:
        return False, False
    return ever_lost(kind, stream, level, kind.allowed(level.value))


class Fell(NamedTuple):
    """A fall of twice what is allowed: rows until it was called lost (inf: never), as multiples of one look's."""

    ratio: float
    one_look: float


def fallen(name: str, begins: int, seed: int) -> Fell:
    """One stream whose quality falls after `begins` rows."""
    kind, random = KINDS[name], np.random.default_rng([seed, 2, begins])
    share, deviation, fall = _spoiling(name)
    level = level_of(kind, random)
    assert level is not None
    # The one look has the same holdout, and knows the deviation.
    one_look = deviation**2 / ((fall / 2) ** 2 / ONE_LOOK - level.error**2)
    most = begins + int(10 * one_look) // EVERY * EVERY + EVERY
    good, rest = kind.draw(random, begins), kind.draw(random, most - begins)
    bad = kind.spoilt(random, rest, share)
    stream = Rows(*(np.concatenate(both) for both in zip(good, bad, strict=True)))
    for end in range(begins + EVERY, most + 1, EVERY):
        if look(kind, stream, end, level, fall / 2).state == "lost":
            return Fell((end - begins) / one_look, one_look)
    return Fell(math.inf, one_look)


@functools.cache
def _spoiling(name: str) -> tuple[float, float, float]:
    """The share of rows to spoil for a fall of twice what is allowed, one row's deviation then, and that fall."""
    kind, many = KINDS[name], 200_000
    rows = kind.draw(np.random.default_rng(0), many)
    before = kind.measured(rows)
    assert before is not None
    fall = 2 * kind.allowed(before.value)
    low, high = 0.0, 1.0
    for _ in range(20):
        share = (low + high) / 2
        after = kind.measured(kind.spoilt(np.random.default_rng(1), rows, share))
        assert after is not None
        low, high = (share, high) if before.value - after.value < fall else (low, share)
    return share, float(after.rows.std()), fall


class Flipped(NamedTuple):
    """A rare class whose concept flips: what was said of it. Positives are those since the flip."""

    held_before: float
    """Share of looks before the flip."""
    held_until: int
    """Positives at the last look that said `held`; -1: none did."""
    lost_after: int
    """Positives at the first look that said `lost`; a large number: none did."""


def flipped(auc: float, holdout: int, seed: int, rows: int = 30_000) -> Flipped:
    """One stream of which the second half has the opposite concept. Looked at until 200 positives after the flip."""
    kind, random = KINDS["rare-class"], np.random.default_rng([seed, 3])
    half = rows // 2
    good, bad = kind.draw(random, holdout + half, auc=auc), kind.draw(random, rows - half, auc=1 - auc)
    known = good.part(0, holdout)
    own = kind.measured(known)
    assert own is not None
    level = Level(own.value, spread(own.rows) / math.sqrt(holdout), int(known.truth.sum()) >= FEWEST_TO_HOLD)
    stream = Rows(*(np.concatenate([a[holdout:], b]) for a, b in zip(good, bad, strict=True)))

    def state(end: int) -> State:
        return look(kind, stream, end, level, kind.allowed(level.value)).state

    before = [state(end) for end in range(10 * EVERY, half + 1, 10 * EVERY)]
    held_until, lost_after = -1, 10**9
    for end in range(half + EVERY, rows + 1, EVERY):
        said, positives = state(end), int(stream.truth[half:end].sum())
        if said == "held":
            held_until = positives
        elif said == "lost":
            lost_after = min(lost_after, positives)
        if positives > 200:
            break
    return Flipped(before.count("held") / len(before), held_until, lost_after)


# -- the command ---------------------------------------------------------------------------------------------------

Line = tuple[str, bool]


def main() -> int:
    """1 when a line does not hold and `--check` is given."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.validity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=STREAMS, metavar="N", help="of each kind; power takes a fifth")
    parser.add_argument("--only", default="", metavar="NAMES", help=f"some of {','.join(KINDS)}")
    parser.add_argument("--processes", type=int, default=1, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="exit 1 when a line of what must hold does not")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    only = [name.strip() for name in given.only.split(",") if name.strip()] or list(KINDS)
    if unknown := [name for name in only if name not in KINDS]:
        parser.error(f"no kind {', '.join(unknown)}; there are {', '.join(KINDS)}")
    content = run(given.streams, only, given.processes, given.seed, print)
    report.write_json(given.json, content)
    return 1 if given.check and not all(line["holds"] for line in content["lines"]) else 0


def run(streams: int, only: Sequence[str], processes: int, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """All three questions, told as they are answered; what `--json` writes."""
    machine = report.machine()
    say(report.machine_text(machine))
    say(f"seed {seed}; a look every {EVERY} rows; the champion's level from {HOLDOUT:,} rows\n")
    with multiprocessing.get_context("spawn").Pool(processes) if processes > 1 else nullcontext() as pool:
        each = _starmap if pool is None else pool.starmap
        stationary, first = _validity(each, streams, only, seed, say)
        falls, second = _power(each, max(1, streams // 5), only, seed, say)
        flips, third = _rare(each, max(1, streams // 5), seed, say) if "rare-class" in only else ([], [])
    lines = [*first, *second, *third]
    for text, holds in lines:
        say(f"{'holds' if holds else 'DOES NOT HOLD'}: {text}")
    return {
        "benchmark": "validity",
        "machine": machine,
        "seed": seed,
        "streams": streams,
        "does_not_show": DOES_NOT_SHOW,
        "lines": [{"line": text, "holds": holds} for text, holds in lines],
        "stationary": stationary,
        "power": falls,
        "rare_class": flips,
    }


Each = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], list[Any]]
Part = tuple[list[dict[str, Any]], list[Line]]


def _starmap(call: Callable[..., Any], given: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [call(*each) for each in given]


def _validity(each: Each, streams: int, only: Sequence[str], seed: int, say: Callable[[str], None]) -> Part:
    say(report.table(("nothing changes", "streams", "ever lost", "ever lost, no fall allowed", "seconds"), []))
    found, lines = [], []
    for name in only:
        began = time.perf_counter()
        said = each(falsely_lost, [(name, seed * 1_000_000 + number) for number in range(streams)])
        shares = [float(np.mean(column)) for column in zip(*said, strict=True)]
        took = time.perf_counter() - began
        say(f"| {name} | {streams:,} | {shares[0]:.1%} | {shares[1]:.1%} | {took:.0f} |")
        found.append({"kind": name, "allowed": shares[0], "none_allowed": shares[1], "bounded": KINDS[name].bounded})
        if KINDS[name].bounded:
            for share, what in zip(shares, ("the default fall allowed", "no fall allowed"), strict=True):
                text = f"{name}: {share:.1%} of {streams:,} streams ever lost with {what}, at most 5 %"
                lines.append((text, share <= evidence.ALPHA))
    return found, lines


def _power(each: Each, streams: int, only: Sequence[str], seed: int, say: Callable[[str], None]) -> Part:
    say("")
    head = (
        "twice the allowed fall",
        "rows before it",
        "streams",
        "one look needs",
        "times that, median",
        "80 % within",
    )
    say(report.table((*head, "seconds"), []))
    found, lines = [], []
    for name in only:
        if name not in POWER:
            continue
        for begins in BEGINS:
            began = time.perf_counter()
            said = each(fallen, [(name, begins, seed * 1_000_000 + number) for number in range(streams)])
            ratios = np.array([one.ratio for one in said])
            median, most = (float(np.quantile(ratios, q, method="higher")) for q in (0.5, 0.8))
            rows = float(np.median([one.one_look for one in said]))
            took = time.perf_counter() - began
            say(f"| {name} | {begins:,} | {streams:,} | {rows:,.0f} | {median:.2f} | {most:.2f} | {took:.0f} |")
            found.append({"kind": name, "before": begins, "one_look": rows, "median": median, "quantile_80": most})
            text = f"{name}: a fall after {begins:,} rows lost within {most:.2f} times one look's rows, at most 3"
            lines.append((text, most <= 3))
    return found, lines


def _rare(each: Each, streams: int, seed: int, say: Callable[[str], None]) -> Part:
    say("")
    head = (
        f"{RARE:.1%} positives, flipped",
        "streams",
        "looks held before",
        "ever held after",
        "lost first, median",
        "latest",
    )
    say(report.table(head, []))
    found, lines = [], []
    for auc, holdout, bounded in FLIPS:
        name = f"AUC {auc}, level from {holdout:,} rows"
        said = each(flipped, [(auc, holdout, seed * 1_000_000 + number) for number in range(streams)])
        before, until, after = (np.array(column) for column in zip(*said, strict=True))
        held, median, latest = int((until >= 0).sum()), int(np.median(after)), int(after.max())
        told = f"{held} streams" + (f", last at {until.max()} positives" if held else "")
        say(f"| {name} | {streams:,} | {before.mean():.0%} | {told} | {median} positives | {latest} |")
        text = f"rare-class, {name}: lost within {latest} positives after the flip, at most {SOON}"
        lines.append((text, latest <= SOON))
        if bounded:
            text = f"rare-class, {name}: {held} of {streams:,} streams ever held after the flip, none may be"
            lines.append((text, held == 0))
        given = {"auc": auc, "holdout": holdout, "held_before": float(before.mean())}
        found.append({**given, "held_until": until.tolist(), "lost_after": after.tolist()})
    say("")
    return found, lines


if __name__ == "__main__":
    sys.exit(main())
