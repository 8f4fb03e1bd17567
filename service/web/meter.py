"""How fast is this replica just now? Counters of its processes, looked at while somebody has the page open."""

from __future__ import annotations

import math
import time
from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from monitoring.metrics import samples
from service.web.shapes import Recent, Totals

if TYPE_CHECKING:
    from pathlib import Path

EVERY_S: Final = 5.0
KEPT: Final = 180
"""Looks: 15 minutes."""
_NAMES: Final = ("requests", "predictions", "prediction_seconds")
_LATE: Final = 3.0
"""Times `EVERY_S` between two looks, from which what lies between is not one point but a gap."""


class Look(NamedTuple):
    """Counters since the server started."""

    at: float
    rows: float = 0.0
    requests: float = 0.0
    errors: float = 0.0
    refused: float = 0.0
    buckets: tuple[tuple[float, float], ...] = ()
    """(upper edge in seconds, predictions in it), by edge."""


class Meter:
    """The looks of the last 15 minutes at the metrics in one directory. `look` may be called from any thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._looks: deque[Look] = deque(maxlen=KEPT + 1)

    def look(self) -> Look:
        """The counters now, and kept unless the last look has just been."""
        now = counted(self._directory)
        if not self._looks or now.at - self._looks[-1].at >= EVERY_S * 0.8:
            self._looks.append(now)
        return now

    def recent(self) -> Recent:
        """What happened between each two looks."""
        looks = list(self._looks)
        kept = [(a, b, b.at - a.at) for a, b in pairwise(looks)]
        rates = [
            None if seconds > _LATE * EVERY_S else tuple((y - x) / seconds for x, y in zip(a[1:5], b[1:5], strict=True))
            for a, b, seconds in kept
        ]
        rows, requests, errors, refused = (
            tuple(None if rate is None else rate[place] for rate in rates) for place in range(4)
        )
        spent = [None if rate is None else _between(a, b) for (a, b, _), rate in zip(kept, rates, strict=True)]
        return Recent(
            at=tuple(b.at for _, b, _ in kept),
            rows_s=rows,
            requests_s=requests,
            errors_s=errors,
            refused_s=refused,
            p50_ms=tuple(None if buckets is None else quantile_ms(buckets, 0.5) for buckets in spent),
            p99_ms=tuple(None if buckets is None else quantile_ms(buckets, 0.99) for buckets in spent),
        )

    def totals(self, since: float | None) -> Totals:
        """Since the server started."""
        now = self.look()
        return Totals(
            since=since,
            rows=int(now.rows),
            requests=int(now.requests),
            errors=int(now.errors),
            refused=int(now.refused),
            p50_ms=quantile_ms(now.buckets, 0.5),
            p99_ms=quantile_ms(now.buckets, 0.99),
        )


def counted(directory: Path) -> Look:
    """The counters of all processes that share this directory, as they are now."""
    found = samples(directory, _NAMES)
    requests = errors = refused = 0.0
    for labels, value in found.get("evergreen_requests_total", {}).items():
        of = dict(labels)
        if of.get("route") not in ("/predict", "/feedback", "/v2/models/{model}/infer"):
            continue  # the page itself is no traffic
        requests += value
        status = of.get("status", "")
        if status.startswith("5") or status == "429":
            errors += value
        elif status.startswith("4"):
            refused += value
    buckets = {
        float(dict(labels)["le"]): value
        for labels, value in found.get("evergreen_prediction_seconds_bucket", {}).items()
    }
    rows = sum(found.get("evergreen_predictions_total", {}).values())
    return Look(time.time(), rows, requests, errors, refused, tuple(sorted(buckets.items())))


def _between(a: Look, b: Look) -> tuple[tuple[float, float], ...]:
    before = dict(a.buckets)
    return tuple((edge, count - before.get(edge, 0.0)) for edge, count in b.buckets)


def quantile_ms(buckets: tuple[tuple[float, float], ...], share: float) -> float | None:
    """A quantile read between the edges of a histogram's buckets, as Prometheus' `histogram_quantile`; None of nothing.

    Beyond the last edge it is that edge: more is not known.
    """
    whole = sum(count for _, count in buckets)
    if whole <= 0:
        return None
    wanted, below, lower = share * whole, 0.0, 0.0
    for edge, count in buckets:
        if count and below + count >= wanted:
            return (lower if math.isinf(edge) else lower + (edge - lower) * (wanted - below) / count) * 1000
        below, lower = below + count, lower if math.isinf(edge) else edge
    return lower * 1000
