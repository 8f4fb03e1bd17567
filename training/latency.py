"""How long two models take to answer, as they would in service."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import msgspec


class Latency(msgspec.Struct, frozen=True):
    """Times of two models that answered in turn, in one process; milliseconds, medians."""

    one_row_ms: float
    champion_one_row_ms: float
    batch_ms: float
    champion_batch_ms: float
    one_row_ratio: float
    """Times the champion that all but the fastest tenth of the pairs took at least: noise is slow now and then."""
    batch_ratio: float


def timed(
    new: tuple[Callable[[], object], Callable[[], object]],
    old: tuple[Callable[[], object], Callable[[], object]],
    *,
    clock: Callable[[], float] = time.perf_counter,
    repeats: int = 31,
) -> Latency:
    """Both models' times for one row and for 1,000 rows, called in turn; two calls of each warm up unmeasured."""
    found = []
    for calls in zip(new, old, strict=True):
        times: tuple[list[float], list[float]] = ([], [])
        for turn in range(2 + repeats):
            for call, into in zip(calls, times, strict=True):
                begin = clock()
                call()
                if turn >= 2:
                    into.append((clock() - begin) * 1000)
        ratios = sorted(mine / max(theirs, 1e-9) for mine, theirs in zip(*times, strict=True))
        found.append((statistics.median(times[0]), statistics.median(times[1]), ratios[len(ratios) // 10]))
    (one, its_one, one_ratio), (batch, its_batch, batch_ratio) = found
    return Latency(one, its_one, batch, its_batch, one_ratio, batch_ratio)
